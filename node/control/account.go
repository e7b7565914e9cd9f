package control

import (
	"context"
	"net/http"
	"net/url"
	"slices"
	"strings"
)

// maxAccounts is how many accounts a node may have itself: of a CA, its staging, and those that follow them.
const maxAccounts = 8

// defaultIssuers are the names that CAs have in CAA records, by the host of their accounts' addresses.
func defaultIssuers() map[string]string {
	return map[string]string{
		"acme-v02.api.letsencrypt.org":         "letsencrypt.org",
		"acme-staging-v02.api.letsencrypt.org": "letsencrypt.org",
		"acme.zerossl.com":                     "sectigo.com",
		"dv.acme-v02.api.pki.goog":             "pki.goog",
		"dv.acme-v02.test-api.pki.goog":        "pki.goog",
	}
}

// issuer is the name in CAA records of the CA that an account is of. The account's address becomes part of a record, so it is
// taken to pieces first: nothing in it may end a parameter (RFC 8657, section 3; RFC 8659, section 4.2).
func (r *Registry) issuer(account string) (string, error) {
	no := func(why string) (string, error) {
		return "", refuse(http.StatusBadRequest, codeBad, "the account %.100q: %s", account, why)
	}
	u, err := url.Parse(account)
	switch {
	case err != nil, u.String() != account, len(account) > 180:
		return no("no address of one")
	case strings.ContainsFunc(account, func(c rune) bool { return c <= ' ' || c > '~' || strings.ContainsRune(`;"\`, c) }):
		return no("it has characters that cannot stand in a CAA record")
	case u.Scheme != "https", u.User != nil, u.RawQuery != "", u.Fragment != "", u.Opaque != "", len(u.Path) < 2:
		return no("want https://HOST/PATH and nothing more")
	}
	if domain := r.cfg.Issuers[strings.ToLower(u.Host)]; domain != "" {
		return domain, nil
	}
	return no("its host is that of no CA that this gateway is configured for")
}

// issueValues are the values of a node's CAA records. Everything that may issue is named: where a client's account is not
// known, that of any account has to be let, or the client would get nothing.
func (r *Registry) issueValues(c certRecord) []string {
	var values []string
	add := func(value string) {
		if !slices.Contains(values, value) {
			values = append(values, value)
		}
	}
	accounts, suspended := c.accounts()
	if suspended != nil {
		for _, domain := range r.cfg.Issuers {
			add(domain + "; validationmethods=dns-01")
		}
		slices.Sort(values)
		return values
	}
	for _, account := range accounts {
		if domain, err := r.issuer(account); err == nil { // unless it was configured away
			add(domain + "; validationmethods=dns-01; accounturi=" + account)
		}
	}
	slices.Sort(values)
	return values
}

// accounts are all that are known for a node. suspended are the credentials whose clients' accounts are not.
func (c certRecord) accounts() (known, suspended []string) {
	known = slices.Clone(c.Accounts)
	for _, one := range c.Credentials {
		if one.Account == "" {
			suspended = append(suspended, one.ID)
		} else {
			known = append(known, one.Account)
		}
	}
	return known, suspended
}

// setAccount adds an account to a node's own, or removes it.
func (r *Registry) setAccount(ctx context.Context, node, account string, drop bool) error {
	if _, err := r.issuer(account); err != nil && !drop {
		return err
	}
	return r.changeCert(ctx, node, func(c *certRecord) error {
		i := slices.Index(c.Accounts, account)
		switch {
		case drop && i >= 0:
			c.Accounts = slices.Delete(c.Accounts, i, i+1)
		case !drop && i < 0 && len(c.Accounts) >= maxAccounts:
			return refuse(http.StatusConflict, codeFull, "%s has %d accounts already", node, len(c.Accounts))
		case !drop && i < 0:
			c.Accounts = append(c.Accounts, account)
		}
		return nil
	})
}

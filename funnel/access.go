package funnel

import (
	"errors"
	"fmt"
	"net/netip"
	"net/url"
	"slices"
	"strings"
	"time"
)

// What a configuration of Access may hold at most.
const (
	maxPrefixes = 10000
	maxUsers    = 1000
	maxShares   = 1000
	maxListed   = 1000 // of every other list
	maxNotice   = 4096
	maxWord     = 256
	sessionTime = 12 * time.Hour
	maxLifetime = 90 * 24 * time.Hour
)

// Access says who may reach an entry or a mount, and how. Of the ways to log in that are set (Basic, Login, Shares) one is
// enough; all the rest holds beside it. The zero value lets everybody in.
type Access struct {
	Allow       []netip.Prefix `json:"allow,omitempty"`       // addresses that may; empty: all
	Deny        []netip.Prefix `json:"deny,omitempty"`        // addresses that may not, whatever else is set
	Nodes       []string       `json:"nodes,omitempty"`       // nodes of the tailnet that may, or tag:NAME; empty: all, and the world
	Rate        Rate           `json:"rate,omitzero"`         // requests or connections of one client, which is a /64 of IPv6
	Methods     []string       `json:"methods,omitempty"`     // that may be used, HEAD where GET may; empty: all
	Paths       []string       `json:"paths,omitempty"`       // that exist: "/x" alone, "/x/" with all below; empty: all
	Origins     []string       `json:"origins,omitempty"`     // other sites whose pages may change things: "https://example.com"
	Basic       *Basic         `json:"basic,omitempty"`       // names and passwords
	Login       *OIDC          `json:"login,omitempty"`       // a provider of OpenID Connect
	Shares      []Share        `json:"shares,omitempty"`      // links that work once
	Maintenance *Maintenance   `json:"maintenance,omitempty"` // a page instead of the service
}

// Basic lets in who knows a password (RFC 7617).
type Basic struct {
	Realm string            `json:"realm,omitempty"` // that browsers show; empty: the entry's name
	Users map[string]string `json:"users"`           // by name: the password's hash, argon2id or bcrypt, as HashPassword writes it
}

// OIDC lets in whom a provider of OpenID Connect knows, if the list has them too.
type OIDC struct {
	Issuer   string        `json:"issuer"`             // https URL
	ClientID string        `json:"clientID"`           // that the provider knows us by
	Secret   string        `json:"secret,omitempty"`   // empty: a public client, PKCE alone
	Scopes   []string      `json:"scopes,omitempty"`   // besides openid; empty: email, and groups where Groups is set
	Mails    []string      `json:"mails,omitempty"`    // verified addresses, or @example.com for a whole domain
	Subjects []string      `json:"subjects,omitempty"` // the provider's ids
	Groups   []string      `json:"groups,omitempty"`   // of the claim "groups"
	Lifetime time.Duration `json:"lifetime,omitempty"` // of a login; zero: 12 h
	Unproved bool          `json:"unproved,omitempty"` // take mail addresses of which the provider does not say that they are verified
}

// Share is a link that lets one browser in, the first that takes it. NewShare makes one.
type Share struct {
	ID       string        `json:"id"`                 // to name it by; not secret
	Hash     string        `json:"hash"`               // SHA-256 of its token, hexadecimal
	Path     string        `json:"path,omitempty"`     // what it opens: "/x" alone, "/x/" with all below; empty: all
	Until    time.Time     `json:"until"`              // when the link ends, if nobody has taken it
	Lifetime time.Duration `json:"lifetime,omitempty"` // how long its taker stays in; zero: 12 h
	Spent    time.Time     `json:"spent,omitzero"`     // when it was taken; zero: it was not
}

// Maintenance is what everybody sees instead of the service.
type Maintenance struct {
	Text   string         `json:"text,omitempty"`   // plain
	Until  time.Time      `json:"until,omitzero"`   // when to try again, for programs
	Except []netip.Prefix `json:"except,omitempty"` // addresses that see the service
}

// restricts says whether a keeps somebody out. Then what a browser brings along opens doors, and other sites must not use it.
func (a Access) restricts() bool {
	return len(a.Allow)+len(a.Nodes) > 0 || a.logsIn()
}

// logsIn says whether visitors have to show who they are.
func (a Access) logsIn() bool { return a.Basic != nil || a.Login != nil || len(a.Shares) > 0 }

// needsTLS says whether a has what only works over HTTPS: cookies that never leave it.
func (a Access) needsTLS() bool { return a.Login != nil || len(a.Shares) > 0 }

// needsHTTP names the first rule of a that means nothing for bare connections, or is "".
func (a Access) needsHTTP() string {
	for _, rule := range []struct {
		name string
		set  bool
	}{
		{"methods", len(a.Methods) > 0},
		{"paths", len(a.Paths) > 0},
		{"origins", len(a.Origins) > 0},
		{"basic", a.Basic != nil},
		{"login", a.Login != nil},
		{"shares", len(a.Shares) > 0},
		{"maintenance", a.Maintenance != nil},
	} {
		if rule.set {
			return rule.name
		}
	}
	return ""
}

// fits says why a cannot be the rules of an entry of a kind and a name.
func (a Access) fits(kind, name string) error {
	if rule := a.needsHTTP(); rule != "" && !isWeb(kind) {
		return fmt.Errorf("%s: is for https and http, and %s knows addresses, nodes and rate alone", rule, kind)
	}
	if a.needsTLS() && (kind != kindHTTPS || strings.HasPrefix(name, "*")) {
		return errors.New("login and shares: need https and one exact name, for cookies that nobody else gets")
	}
	return nil
}

// Redacted is a without what opens doors: hashes and the client's secret.
func (a Access) Redacted() Access {
	const struck = "(secret)"
	if a.Basic != nil {
		b := *a.Basic
		b.Users = map[string]string{}
		for name := range a.Basic.Users {
			b.Users[name] = struck
		}
		a.Basic = &b
	}
	if a.Login != nil && a.Login.Secret != "" {
		l := *a.Login
		l.Secret = struck
		a.Login = &l
	}
	a.Shares = slices.Clone(a.Shares)
	for i := range a.Shares {
		a.Shares[i].Hash = struck
	}
	return a
}

// Check says what is wrong with a, every problem with the name of its field.
func (a Access) Check() error {
	err := errors.Join(
		checkPrefixes("allow", a.Allow),
		checkPrefixes("deny", a.Deny),
		checkList("nodes", a.Nodes, checkNode),
		checkList("methods", a.Methods, checkMethod),
		checkList("paths", a.Paths, checkPath),
		checkList("origins", a.Origins, checkOrigin),
		a.Rate.check(),
	)
	if a.Basic != nil {
		err = errors.Join(err, a.Basic.check())
	}
	if a.Login != nil {
		err = errors.Join(err, a.Login.check())
	}
	if m := a.Maintenance; m != nil {
		err = errors.Join(err, checkPrefixes("maintenance.except", m.Except))
		if len(m.Text) > maxNotice {
			err = errors.Join(err, fmt.Errorf("maintenance.text: %d bytes, more than %d", len(m.Text), maxNotice))
		}
	}
	return errors.Join(err, checkShares(a.Shares))
}

func checkPrefixes(field string, list []netip.Prefix) error {
	if len(list) > maxPrefixes {
		return fmt.Errorf("%s: %d addresses, more than %d", field, len(list), maxPrefixes)
	}
	for _, p := range list {
		switch {
		case !p.IsValid():
			return fmt.Errorf("%s: %s is no address with a length", field, p)
		case p.Addr().Is4In6():
			return fmt.Errorf("%s: %s: write the IPv4 address itself", field, p)
		case p != p.Masked():
			return fmt.Errorf("%s: %s has bits behind its length: %s is meant, or a longer one", field, p, p.Masked())
		}
	}
	return nil
}

// checkList has every value of a list checked.
func checkList(field string, list []string, check func(string) error) error {
	if len(list) > maxListed {
		return fmt.Errorf("%s: %d values, more than %d", field, len(list), maxListed)
	}
	for _, value := range list {
		if err := check(value); err != nil {
			return fmt.Errorf("%s: %q: %w", field, value, err)
		}
	}
	return nil
}

// checkWord refuses what is no word: nothing, too much, or what could end a line or a header.
func checkWord(s string) error {
	switch {
	case s == "":
		return errors.New("is empty")
	case len(s) > maxWord:
		return fmt.Errorf("is longer than %d bytes", maxWord)
	case strings.ContainsFunc(s, func(r rune) bool { return r <= ' ' || r == 0x7f }):
		return errors.New("has a space or a control character in it")
	}
	return nil
}

func checkNode(s string) error { return checkWord(strings.TrimPrefix(s, "tag:")) }

func checkMethod(s string) error {
	if s == "" || len(s) > maxWord || strings.ContainsFunc(s, func(r rune) bool { return r < 'A' || r > 'Z' }) {
		return errors.New("is no method: they are words in capitals, such as GET")
	}
	return nil
}

func checkOrigin(s string) error {
	if s == "*" {
		return nil
	}
	u, err := url.Parse(s)
	if err != nil || u.Scheme != "https" && u.Scheme != "http" || u.Host == "" || s != u.Scheme+"://"+u.Host || s != strings.ToLower(s) {
		return errors.New("is no origin: https://NAME[:PORT] in lower case, or *")
	}
	return nil
}

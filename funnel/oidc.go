package funnel

import (
	"cmp"
	"context"
	"crypto/subtle"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/coreos/go-oidc/v3/oidc"
	"golang.org/x/oauth2"
)

const (
	flowTime  = 10 * time.Minute // from being sent to the provider to being back
	maxReturn = 1024             // bytes of the path to go back to
	maxCode   = 4096
)

func (o *OIDC) check() error {
	var errs []error
	u, err := url.Parse(o.Issuer)
	if err != nil || u.Host == "" || u.RawQuery != "" || u.Fragment != "" || u.User != nil || len(o.Issuer) > maxReturn ||
		u.Scheme != "https" && (u.Scheme != "http" || !isLoopback(u.Hostname())) {
		errs = append(errs, fmt.Errorf("login.issuer: %.100q: is no https URL of a provider (http only on this machine)", o.Issuer))
	}
	if err := checkWord(o.ClientID); err != nil {
		errs = append(errs, fmt.Errorf("login.clientID: %q: %w", o.ClientID, err))
	}
	if len(o.Mails)+len(o.Subjects)+len(o.Groups) == 0 {
		errs = append(errs, errors.New("login: says nobody who may: set mails, subjects or groups"))
	}
	for _, list := range []struct {
		field string
		words []string
		check func(string) error
	}{
		{"login.scopes", o.Scopes, checkWord},
		{"login.mails", o.Mails, checkMail},
		{"login.subjects", o.Subjects, checkWord},
		{"login.groups", o.Groups, checkGroup},
	} {
		errs = append(errs, checkList(list.field, list.words, list.check))
	}
	if len(o.Secret) > maxWord*4 {
		errs = append(errs, errors.New("login.secret: is too long"))
	}
	if o.Lifetime < 0 || o.Lifetime > maxLifetime {
		errs = append(errs, fmt.Errorf("login.lifetime: %s is not between 0 and %s", o.Lifetime, maxLifetime))
	}
	return errors.Join(errs...)
}

func checkMail(s string) error {
	name, domain, at := strings.Cut(s, "@")
	if !at || domain == "" || strings.Contains(domain, "@") || strings.Contains(name, "*") || strings.Contains(domain, "*") {
		return errors.New("is neither a mail address nor @ and a domain")
	}
	return checkWord(s)
}

// checkGroup lets groups have spaces in their names.
func checkGroup(s string) error { return checkWord(strings.ReplaceAll(s, " ", "")) }

// allows says as whom somebody passes whom the provider has told about, if at all.
func (o *OIDC) allows(l login) (login, bool) {
	var groups []string
	for _, g := range l.Groups {
		if slices.Contains(o.Groups, g) && !slices.Contains(groups, g) {
			groups = append(groups, g)
		}
	}
	l.Groups = groups
	ok := slices.Contains(o.Subjects, l.ID) || len(groups) > 0 ||
		l.Mail != "" && slices.ContainsFunc(o.Mails, func(m string) bool { return mailMatches(m, l.Mail) })
	l.User = cmp.Or(l.Mail, l.ID)
	return l, ok && l.ID != ""
}

// mailMatches compares without case. @example.com is the domain itself, and none below it.
func mailMatches(rule, mail string) bool {
	_, domain, ok := strings.Cut(mail, "@")
	if !ok || strings.Contains(domain, "@") {
		return false
	}
	if strings.HasPrefix(rule, "@") {
		return strings.EqualFold(rule[1:], domain)
	}
	return strings.EqualFold(rule, mail)
}

// scopes are what is asked for.
func (o *OIDC) scopes() []string {
	asked := []string{oidc.ScopeOpenID}
	switch {
	case len(o.Scopes) > 0:
		asked = append(asked, o.Scopes...)
	case len(o.Groups) > 0:
		asked = append(asked, "email", "groups")
	default:
		asked = append(asked, "email")
	}
	return asked
}

// loginGuard lets in whom a provider of OpenID Connect vouches for.
type loginGuard struct {
	rule    *OIDC
	cfg     guardConfig
	source  *oidcSource
	sealer  sealer
	start   string // where to go without a better place
	back    string // the path that the provider sends back to
	address string // the redirect URI: from the configuration alone
}

func newLoginGuard(o *OIDC, cfg guardConfig, own string) (*loginGuard, error) {
	s, err := newSealer(cfg.Shared.secrets().key, cfg, "oidc", o.Issuer, o.ClientID)
	if err != nil {
		return nil, err
	}
	return &loginGuard{
		rule: o, cfg: cfg, sealer: s,
		source:  cfg.Shared.source(o.Issuer),
		start:   strings.TrimSuffix(cfg.Mount, "/") + "/",
		back:    own + "callback",
		address: siteOf(cfg.Name, cfg.Port) + own + "callback",
	}, nil
}

// cookie is the name of the one that a login is kept in.
func (g *loginGuard) cookie() string { return g.sealer.cookie("login") }

// session is as whom a browser with these cookies has logged in, if the list has them still.
func (g *loginGuard) session(cookies map[string]string, now time.Time) (login, bool) {
	var l login
	value := cookies[g.cookie()]
	if value == "" || g.sealer.open("login", value, &l) != nil || l.Way != "oidc" || now.Unix() >= l.Until {
		return login{}, false
	}
	return g.rule.allows(l)
}

// loginFlow is what is remembered of a visitor who was sent to the provider: by the visitor's browser, as the state.
type loginFlow struct {
	ID   string `json:"i"`
	Path string `json:"p"`
	End  int64  `json:"x"`
}

// begin sends a browser to the provider. State, nonce and PKCE's verifier belong to this browser alone: all three
// are bound to a secret in a cookie, which a page of another site can neither read nor plant.
func (g *loginGuard) begin(w http.ResponseWriter, r *http.Request) {
	provider, err := g.source.provider(r.Context(), g.cfg.Shared)
	if err != nil {
		g.unreachable(w, r, err)
		return
	}
	p, r := passageOf(r)
	browser := p.cookies[g.sealer.cookie("flow")]
	if len(browser) < tokenBytes || len(browser) > maxToken {
		browser = random(tokenBytes)
	}
	f := loginFlow{ID: random(16), Path: localPath(r.URL.RequestURI(), g.start), End: time.Now().Add(flowTime).Unix()}
	state, err := g.sealer.seal("state "+browser, f)
	if err != nil {
		turnAway(w, r, err)
		return
	}
	setCookie(w, g.sealer.cookie("flow"), browser, flowTime)
	to := g.client(provider).AuthCodeURL(state,
		oidc.Nonce(g.sealer.derive("nonce", browser, f.ID)),
		oauth2.S256ChallengeOption(g.sealer.derive("verifier", browser, f.ID)))
	sendOn(w, r, to)
}

func (g *loginGuard) client(provider *oidc.Provider) *oauth2.Config {
	return &oauth2.Config{
		ClientID: g.rule.ClientID, ClientSecret: g.rule.Secret,
		Endpoint: provider.Endpoint(), RedirectURL: g.address, Scopes: g.rule.scopes(),
	}
}

func (g *loginGuard) unreachable(w http.ResponseWriter, r *http.Request, err error) {
	g.cfg.Shared.logger().Warn("the provider of logins does not answer", "name", g.cfg.Name, "issuer", g.rule.Issuer, "err", plain(err))
	w.Header().Set("Retry-After", "10")
	notice{Status: http.StatusBadGateway, Title: "No login now", Text: "The provider of logins does not answer."}.write(w, r)
}

// errFlow says that an answer of a provider is not for this browser, or not any more.
var errFlow = errors.New("the login was not begun by this browser, or it took too long")

// callback takes what the provider sends a browser back with.
func (g *loginGuard) callback(w http.ResponseWriter, r *http.Request, p *passage, c Caller) {
	again := notice{Status: http.StatusBadRequest, Title: "Not logged in", Text: "The login was not begun here, took too long, or was refused.", Again: g.start}
	if r.Method != http.MethodGet {
		w.Header().Set("Allow", http.MethodGet)
		again.Status = http.StatusMethodNotAllowed
		again.write(w, r)
		return
	}
	if wait, ok := g.cfg.Shared.takeTry(c.Addr.Addr()); !ok {
		turnAway(w, r, &errTooMany{wait})
		return
	}
	browser := p.cookies[g.sealer.cookie("flow")]
	code, f, err := g.answer(r.URL.RawQuery, browser, time.Now())
	if err != nil {
		g.cfg.Shared.logger().Debug("a login did not come back right", "name", g.cfg.Name, "err", err)
		again.write(w, r)
		return
	}
	l, err := g.redeem(r.Context(), code, browser, f)
	if err != nil {
		g.cfg.Shared.logger().Warn("the provider's answer to a login cannot be believed", "name", g.cfg.Name, "issuer", g.rule.Issuer, "err", plain(err))
		again.write(w, r)
		return
	}
	l, ok := g.rule.allows(l)
	if !ok {
		notice{Status: http.StatusForbidden, Title: "Not on the list", Text: "You are logged in with the provider, but may not come in here.", Again: g.start}.write(w, r)
		return
	}
	lifetime := cmp.Or(g.rule.Lifetime, sessionTime)
	l.Until = time.Now().Add(lifetime).Unix()
	value, err := g.sealer.seal("login", l)
	if err != nil || len(value) > maxCookie-len(g.cookie())-1 {
		turnAway(w, r, errors.Join(errors.New("the login does not go into a cookie"), err))
		return
	}
	setCookie(w, g.cookie(), value, lifetime)
	sendOn(w, r, f.Path)
}

// answer reads the query that a provider sent a browser back with, and uses its state up.
func (g *loginGuard) answer(query, browser string, now time.Time) (code string, f loginFlow, err error) {
	if len(query) > maxSealed {
		return "", loginFlow{}, errFlow
	}
	q, err := url.ParseQuery(query)
	if err != nil || len(q["state"]) != 1 || len(browser) < tokenBytes {
		return "", loginFlow{}, errFlow
	}
	if err := g.sealer.open("state "+browser, q.Get("state"), &f); err != nil {
		return "", loginFlow{}, errFlow
	}
	end := time.Unix(f.End, 0)
	if !now.Before(end) || !g.cfg.Shared.burn(f.ID, end) {
		return "", loginFlow{}, errFlow
	}
	// A provider that says who it is (RFC 9207) has to be the one that was asked.
	if iss, said := q["iss"]; said && (len(iss) != 1 || iss[0] != g.rule.Issuer) {
		return "", loginFlow{}, errors.New("the answer is another provider's")
	}
	if q.Has("error") {
		return "", loginFlow{}, errors.New("the provider refused")
	}
	if len(q["code"]) != 1 || q.Get("code") == "" || len(q.Get("code")) > maxCode {
		return "", loginFlow{}, errors.New("the answer has no code")
	}
	f.Path = localPath(f.Path, g.start)
	return q.Get("code"), f, nil
}

// redeem has the provider say, for a code, who it is for.
func (g *loginGuard) redeem(ctx context.Context, code, browser string, f loginFlow) (login, error) {
	provider, err := g.source.provider(ctx, g.cfg.Shared)
	if err != nil {
		return login{}, err
	}
	ctx, cancel := context.WithTimeout(oidc.ClientContext(ctx, g.cfg.Shared.client()), providerTime)
	defer cancel()
	token, err := g.client(provider).Exchange(ctx, code, oauth2.VerifierOption(g.sealer.derive("verifier", browser, f.ID)))
	if err != nil {
		return login{}, fmt.Errorf("redeeming the code: %w", err)
	}
	raw, _ := token.Extra("id_token").(string)
	if raw == "" {
		return login{}, errors.New("the provider sent no ID token")
	}
	id, err := provider.Verifier(&oidc.Config{ClientID: g.rule.ClientID}).Verify(ctx, raw)
	if err != nil {
		return login{}, fmt.Errorf("checking the ID token: %w", err)
	}
	if subtle.ConstantTimeCompare([]byte(id.Nonce), []byte(g.sealer.derive("nonce", browser, f.ID))) != 1 {
		return login{}, errors.New("the ID token was made for another login")
	}
	var told claims
	if err := id.Claims(&told); err != nil {
		return login{}, fmt.Errorf("reading the ID token: %w", err)
	}
	l := told.login(id.Subject, g.rule.Unproved)
	if _, ok := g.rule.allows(l); ok || provider.UserInfoEndpoint() == "" {
		return l, nil
	}
	return g.more(ctx, provider, token, l)
}

// more asks the provider for what its ID token left out: some put only the subject there.
func (g *loginGuard) more(ctx context.Context, provider *oidc.Provider, token *oauth2.Token, l login) (login, error) {
	info, err := provider.UserInfo(ctx, oauth2.StaticTokenSource(token))
	if err != nil {
		return l, nil // the ID token is enough to say no by
	}
	if info.Subject != l.ID {
		return login{}, errors.New("the provider tells about somebody else") // OpenID Connect Core, 5.3.2
	}
	var told claims
	if err := info.Claims(&told); err != nil {
		return login{}, fmt.Errorf("reading what the provider tells: %w", err)
	}
	return told.login(l.ID, g.rule.Unproved), nil
}

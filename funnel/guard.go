package funnel

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/netip"
	"reflect"
	"slices"
	"strings"
	"sync"
	"time"
)

const (
	maxLimiters  = 4096
	maxBurned    = 65536
	secretLength = 32
)

// guardConfig says what a guard stands for, and with what.
type guardConfig struct {
	Name   string  // the entry's server name, which cookies and redirect addresses are for; never a Host that came
	Port   uint16  // the visitor's
	Kind   string  // the entry's
	Mount  string  // the mount's path, where the Access is one mount's; "" for the whole entry's
	Shared *guards // not nil
}

// guards is what the guards of one server have in common, over every new list of entries: &guards{...}, by its pointer.
type guards struct {
	// Key is a secret of this node that logins are sealed with; empty: one of this process, so that logins end with it.
	Key []byte
	// Spend notes down that a share link was taken, so that it is not taken again after a restart. nil: only remembered.
	Spend  func(ctx context.Context, name string, s Share) error
	Client *http.Client // for providers of logins; nil: one that goes by the system's roots
	Log    *slog.Logger // nil: nothing is logged

	once sync.Once
	made guardSecrets

	mu       sync.Mutex
	limiters map[string]*limiter    // by what they are for
	known    map[[32]byte]time.Time // passwords that were right, until then
	burned   map[string]time.Time   // logins that were used up, until they would have ended
	spent    map[string]bool        // share links that were taken, by hash
	sources  map[string]*oidcSource // providers, by what is asked of them
}

// guardSecrets is what guards make for themselves, once.
type guardSecrets struct {
	key, known     []byte
	hashing, queue chan struct{}
	tries          *limiter
}

// secrets makes them at the first use.
func (g *guards) secrets() *guardSecrets {
	g.once.Do(func() {
		g.made = guardSecrets{
			key:     g.Key,
			known:   []byte(random(secretLength)),
			hashing: make(chan struct{}, maxHashing),
			queue:   make(chan struct{}, maxHashQueue),
			tries:   newLimiter(Rate{Count: 10, Per: time.Minute}),
		}
		if len(g.made.key) == 0 {
			g.made.key = []byte(random(secretLength))
		}
	})
	return &g.made
}

// takeTry counts what a client may not do often: passwords, tokens and logins that may be wrong.
func (g *guards) takeTry(client netip.Addr) (wait time.Duration, ok bool) {
	return g.secrets().tries.take(client, time.Now())
}

// limiter is the one for a scope, with what it has counted already unless the rate is another now.
func (g *guards) limiter(scope string, r Rate) *limiter {
	if r == (Rate{}) {
		return nil
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	if l := g.limiters[scope]; l != nil && l.rate == r {
		return l
	}
	if g.limiters == nil || len(g.limiters) >= maxLimiters {
		g.limiters = map[string]*limiter{}
	}
	l := newLimiter(r)
	g.limiters[scope] = l
	return l
}

// burn uses a word up, and says whether it was there to use.
func (g *guards) burn(word string, until time.Time) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	now := time.Now()
	if g.burned == nil {
		g.burned = map[string]time.Time{}
	}
	if _, used := g.burned[word]; used {
		return false
	}
	if len(g.burned) >= maxBurned {
		for w, at := range g.burned {
			if now.After(at) {
				delete(g.burned, w)
			}
		}
	}
	if len(g.burned) >= maxBurned {
		return false
	}
	g.burned[word] = until
	return true
}

// guard decides who may pass.
type guard struct {
	access    Access
	cfg       guardConfig
	own       string // the path below which requests are for the guard itself; "" if there are none
	limit     *limiter
	passwords *passwords
	login     *loginGuard
	shares    *shareGuard
}

// newGuard returns the guard of an entry or of a mount. It does nothing else: a provider of logins is first asked when
// somebody wants to log in.
func newGuard(a Access, cfg guardConfig) (*guard, error) {
	g := &guard{access: a, cfg: cfg}
	if err := a.fits(cfg.Kind, cfg.Name); err != nil {
		return nil, err
	}
	if a.needsTLS() {
		g.own = ownPath(cfg.Mount)
	}
	scope := fmt.Sprintf("%s %s %d %s", cfg.Kind, cfg.Name, cfg.Port, cfg.Mount)
	g.limit = cfg.Shared.limiter(scope, a.Rate)
	var err error
	if a.Basic != nil {
		realm := a.Basic.Realm
		if realm == "" {
			realm = cfg.Name
		}
		if g.passwords, err = newPasswords(a.Basic, realm, cfg.Shared); err != nil {
			return nil, fmt.Errorf("basic: %w", err)
		}
	}
	if a.Login != nil {
		if g.login, err = newLoginGuard(a.Login, cfg, g.own); err != nil {
			return nil, fmt.Errorf("login: %w", err)
		}
	}
	if len(a.Shares) > 0 {
		if g.shares, err = newShareGuard(a.Shares, cfg); err != nil {
			return nil, fmt.Errorf("shares: %w", err)
		}
	}
	return g, nil
}

func isWeb(kind string) bool { return kind == kindHTTPS || kind == kindHTTP }

// ownOfRoot is where the mount / has its own pages: beside those of the entry, which are below /.meshdns/.
const ownOfRoot = "/.meshdns/root/"

// ownPath is where the guard of an entry, or of one of its mounts, has its own pages.
func ownPath(mount string) string {
	if mount == "/" {
		return ownOfRoot
	}
	return mount + "/.meshdns/"
}

// isOwn says whether a path is one of the guard's own pages.
func (g *guard) isOwn(path string) bool {
	return g.own != "" && strings.HasPrefix(path, g.own) && (g.own == ownOfRoot || !strings.HasPrefix(path, ownOfRoot))
}

// errTooMany says that a client has to wait.
type errTooMany struct{ wait time.Duration }

func (e *errTooMany) Error() string { return "too many requests: wait " + seconds(e.wait) + " s" }

// errNotAdmitted says that an address or a node may not.
var errNotAdmitted = errors.New("this address is not allowed")

// admits says whether a connection may be opened, by the rules that need no HTTP: addresses, nodes and rate.
func (g *guard) admits(c Caller) error {
	if !g.allows(c) {
		return errNotAdmitted
	}
	if wait, ok := g.limit.take(c.Addr.Addr(), time.Now()); !ok {
		return &errTooMany{wait}
	}
	return nil
}

// allows is admits without the rate, which what is open already does not count for.
func (g *guard) allows(c Caller) bool {
	addr := c.Addr.Addr().Unmap().WithZone("")
	return addr.IsValid() && !within(g.access.Deny, addr) &&
		(len(g.access.Allow) == 0 || within(g.access.Allow, addr)) &&
		(len(g.access.Nodes) == 0 || g.isNode(c))
}

func within(list []netip.Prefix, addr netip.Addr) bool {
	return slices.ContainsFunc(list, func(p netip.Prefix) bool { return p.Contains(addr) })
}

// isNode says whether the caller is one of the nodes that may. Who came from the world is none, whatever it says.
func (g *guard) isNode(c Caller) bool {
	if c.Public || c.Node == "" {
		return false
	}
	label, _, _ := strings.Cut(c.Node, ".")
	return slices.ContainsFunc(g.access.Nodes, func(want string) bool {
		if tag, ok := strings.CutPrefix(want, "tag:"); ok {
			return slices.Contains(c.Tags, tag) || slices.Contains(c.Tags, want)
		}
		if strings.Contains(want, ".") {
			return strings.EqualFold(strings.TrimSuffix(want, "."), strings.TrimSuffix(c.Node, "."))
		}
		return strings.EqualFold(want, label)
	})
}

// passage is one request's way through the guards: the entry's, then the mount's.
type passage struct {
	cookies       map[string]string
	authorization string
	login         login // the last guard's word counts
}

type passageKey struct{}

// passageOf is the request's passage, and the request with it. At the first guard, or in front of it, all that only
// guards may see is taken from the header.
func passageOf(r *http.Request) (*passage, *http.Request) {
	if p, ok := r.Context().Value(passageKey{}).(*passage); ok {
		return p, r
	}
	p := &passage{cookies: takeCookies(r.Header), authorization: r.Header.Get("Authorization")}
	strip(r.Header)
	strip(r.Trailer)
	return p, r.WithContext(context.WithValue(r.Context(), passageKey{}, p))
}

// loginOf is as whom the visitor of a request passed; without a User, nobody had to log in.
func loginOf(ctx context.Context) login {
	if p, ok := ctx.Value(passageKey{}).(*passage); ok {
		return p.login
	}
	return login{}
}

// wrap has next serve only what passes. The Caller is in the request's context; without one nothing passes.
// What a visitor shows to the guard is not in the request that next gets, and neither are headers that say who came.
func (g *guard) wrap(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		p, r := passageOf(r)
		c, ok := callerOf(r.Context())
		if !ok {
			turnAway(w, r, errNotAdmitted)
			return
		}
		if err := g.admits(c); err != nil {
			turnAway(w, r, err)
			return
		}
		if g.maintained(c) {
			g.access.Maintenance.write(w, r)
			return
		}
		if n := g.denies(r, c); n != nil {
			if n.Status == http.StatusMethodNotAllowed {
				w.Header().Set("Allow", strings.Join(g.access.Methods, ", "))
			}
			n.write(w, r)
			return
		}
		if g.isOwn(r.URL.Path) {
			g.serveOwn(w, r, p, c)
			return
		}
		if g.enters(w, r, p, c) {
			next.ServeHTTP(w, r)
		}
	})
}

// serveOwn serves the pages by which visitors come in.
func (g *guard) serveOwn(w http.ResponseWriter, r *http.Request, p *passage, c Caller) {
	page := strings.TrimPrefix(r.URL.Path, g.own)
	token, isShare := strings.CutPrefix(page, "share/")
	switch {
	case isShare && g.shares != nil:
		g.shares.serve(w, r, token, c)
	case page == "callback" && g.login != nil:
		g.login.callback(w, r, p, c)
	case page == "logout":
		g.logout(w, r, p)
	default:
		notice{Status: http.StatusNotFound, Title: "Not found", Text: "There is no such page."}.write(w, r)
	}
}

// maintained says whether the caller sees the page of a service that is being worked on.
func (g *guard) maintained(c Caller) bool {
	m := g.access.Maintenance
	return m != nil && !within(m.Except, c.Addr.Addr().Unmap().WithZone(""))
}

// denies is the page for a request that may not be, whoever sent it; nil if it may.
func (g *guard) denies(r *http.Request, c Caller) *notice {
	a := g.access
	if !g.isOwn(r.URL.Path) {
		if len(a.Paths) > 0 && (ambiguous(r.URL.Path) || !slices.ContainsFunc(a.Paths, func(rule string) bool { return covers(rule, r.URL.Path) })) {
			return &notice{Status: http.StatusNotFound, Title: "Not found", Text: "There is no such page."}
		}
		if len(a.Methods) > 0 && !allowsMethod(a.Methods, r.Method) {
			return &notice{Status: http.StatusMethodNotAllowed, Title: "Method not allowed", Text: "This method may not be used here."}
		}
	}
	// Where anybody may come in anyhow, a browser brings nothing along that another site could use.
	if (a.restricts() || !c.Public) && changes(r) && !g.sameOrigin(r) {
		return &notice{Status: http.StatusForbidden, Title: "Not from there", Text: "Pages of other sites may not do this."}
	}
	return nil
}

func allowsMethod(list []string, method string) bool {
	return slices.Contains(list, method) || method == http.MethodHead && slices.Contains(list, http.MethodGet)
}

// write sends the page of a service that is being worked on.
func (m *Maintenance) write(w http.ResponseWriter, r *http.Request) {
	text := m.Text
	if text == "" {
		text = "This service is being worked on. Please come back later."
	}
	if wait := time.Until(m.Until); wait > 0 {
		w.Header().Set("Retry-After", seconds(wait))
	}
	notice{Status: http.StatusServiceUnavailable, Title: "Maintenance", Text: text}.write(w, r)
}

// enters says whether a visitor is known, by any of the ways that there are; who is not is told how to become so.
func (g *guard) enters(w http.ResponseWriter, r *http.Request, p *passage, c Caller) bool {
	if !g.access.logsIn() {
		return true
	}
	if l, ok := g.session(p, r.URL.Path); ok {
		p.login = l
		return true
	}
	if g.passwords != nil {
		if name, password, ok := basicAuth(p.authorization); ok {
			return g.entersByPassword(w, r, p, c, [2]string{name, password})
		}
	}
	g.ask(w, r, "")
	return false
}

// session is as whom a browser has come in before, by what it keeps for us.
func (g *guard) session(p *passage, path string) (login, bool) {
	now := time.Now()
	if g.login != nil {
		if l, ok := g.login.session(p.cookies, now); ok {
			return l, true
		}
	}
	if g.shares != nil {
		return g.shares.session(p.cookies, path, now)
	}
	return login{}, false
}

// keeps says whether a request that is being answered may go on, since these rules took the place of others: it is
// asked for nothing, counted nowhere, and no hash is computed. A password goes on where it was checked against the same.
func (g *guard) keeps(r *http.Request, before *guard) bool {
	p, r := passageOf(r)
	c, ok := callerOf(r.Context())
	if !ok || !g.allows(c) || g.denies(r, c) != nil {
		return false
	}
	if !g.access.logsIn() {
		return true
	}
	if _, ok := g.session(p, r.URL.Path); ok {
		return true
	}
	name, _, ok := basicAuth(p.authorization)
	if !ok || g.passwords == nil || before == nil || before.passwords == nil {
		return false
	}
	hash, exists := g.passwords.users[name]
	return exists && reflect.DeepEqual(hash, before.passwords.users[name])
}

// entersByPassword checks a name and a password. Behind the guard nobody needs to see them.
func (g *guard) entersByPassword(w http.ResponseWriter, r *http.Request, p *passage, c Caller, shown [2]string) bool {
	err := g.passwords.check(r.Context(), c.Addr.Addr(), shown[0], shown[1])
	switch {
	case err == nil:
		r.Header.Del("Authorization")
		p.login = login{Way: "basic", User: shown[0]}
		return true
	case errors.Is(err, errWrongPassword):
		g.ask(w, r, "The name or the password is not right.")
	default:
		turnAway(w, r, err)
	}
	return false
}

// ask tells a visitor how to come in: browsers by the provider if there is one, everybody else by a password.
func (g *guard) ask(w http.ResponseWriter, r *http.Request, why string) {
	if g.login != nil && navigates(r) && why == "" {
		g.login.begin(w, r)
		return
	}
	n := notice{Status: http.StatusUnauthorized, Title: "Log in first", Text: why}
	switch {
	case g.passwords != nil:
		w.Header().Set("WWW-Authenticate", g.passwords.challenge())
		if n.Text == "" {
			n.Text = "A name and a password are needed here."
		}
	case g.login != nil:
		w.Header().Set("WWW-Authenticate", "OpenID")
		n.Text = "This is for people who have logged in. Open the page in a browser."
	default:
		n = notice{Status: http.StatusForbidden, Title: "By invitation", Text: "This opens by a link that you have to be given."}
	}
	n.write(w, r)
}

// turnAway tells a visitor no, and nothing about why that somebody could use.
func turnAway(w http.ResponseWriter, r *http.Request, err error) {
	n := notice{Status: http.StatusForbidden, Title: "Not allowed", Text: "You may not see this from where you are."}
	var tooMany *errTooMany
	switch {
	case errors.As(err, &tooMany):
		w.Header().Set("Retry-After", seconds(tooMany.wait))
		n = notice{Status: http.StatusTooManyRequests, Title: "Too many requests", Text: "Please wait a little."}
	case !errors.Is(err, errNotAdmitted):
		w.Header().Set("Retry-After", "5")
		n = notice{Status: http.StatusServiceUnavailable, Title: "Busy", Text: "Please try again in a moment."}
	}
	n.write(w, r)
}

// logout ends the logins of a browser here. It takes a POST, as all that changes something.
func (g *guard) logout(w http.ResponseWriter, r *http.Request, p *passage) {
	if r.Method != http.MethodPost {
		notice{Status: http.StatusOK, Title: "Log out", Text: "This ends your login here, and not the one with your provider.", Button: "Log out"}.write(w, r)
		return
	}
	for name := range p.cookies {
		if g.login != nil && name == g.login.cookie() || g.shares != nil && g.shares.owns(name) {
			setCookie(w, name, "", 0)
		}
	}
	notice{Status: http.StatusOK, Title: "Logged out", Text: "You are logged out here."}.write(w, r)
}

package funnel

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

// cookiesOf is what a browser sends back after an answer.
func cookiesOf(w *httptest.ResponseRecorder) string {
	var pairs []string
	for _, c := range w.Result().Cookies() {
		if c.MaxAge >= 0 {
			pairs = append(pairs, c.Name+"="+c.Value)
		}
	}
	return strings.Join(pairs, "; ")
}

// shared is a guard with one link, and the link's path.
func shared(t *testing.T, change func(*Share), shared *guards) (*guarded, string) {
	t.Helper()
	share, token := NewShare(time.Now().Add(time.Hour))
	if change != nil {
		change(&share)
	}
	link := Entry{Name: "nas.example.org", Port: 443}.ShareLink("", token)
	path, ok := strings.CutPrefix(link, "https://nas.example.org/")
	if !ok {
		t.Fatalf("link %s", link)
	}
	return newGuarded(t, Access{Shares: []Share{share}}, shared), "/" + path
}

func TestALinkIsSpentByPostAlone(t *testing.T) {
	g, link := shared(t, nil, nil)
	g.wantStatus(g.ask("GET", "/"), http.StatusForbidden)
	// Chat programs, mail filters and browsers that fetch ahead look, and take nothing.
	for range 3 {
		for _, method := range []string{"GET", "HEAD"} {
			w := g.ask(method, link, "Accept", "text/html", "Purpose", "prefetch", "Sec-Purpose", "prefetch;prerender")
			if w.Code != 200 || cookiesOf(w) != "" || g.got != nil {
				t.Fatalf("%s: %d, cookies %q", method, w.Code, cookiesOf(w))
			}
			if w.Header().Get("Referrer-Policy") != "strict-origin" || w.Header().Get("Cache-Control") != "no-store" || w.Header().Get("X-Frame-Options") != "DENY" {
				t.Errorf("headers %v", w.Header())
			}
			if body := w.Body.String(); method == "GET" && !strings.Contains(body, `<form method="post">`) {
				t.Errorf("page %s", body)
			}
		}
	}
	for _, method := range []string{"PUT", "DELETE", "OPTIONS", "PATCH"} {
		if w := g.ask(method, link); w.Code != 405 || cookiesOf(w) != "" {
			t.Errorf("%s: %d", method, w.Code)
		}
	}
	// A page of another site cannot have it taken, and so put its visitors where it likes.
	if w := g.ask("POST", link, "Origin", "https://evil.example"); w.Code != 403 || cookiesOf(w) != "" {
		t.Errorf("from another site: %d", w.Code)
	}
	w := g.ask("POST", link, "Origin", "https://nas.example.org")
	if w.Code != http.StatusSeeOther || w.Header().Get("Location") != "/" {
		t.Fatalf("POST: %d to %q", w.Code, w.Header().Get("Location"))
	}
	cookie := cookiesOf(w)
	g.wantStatus(g.ask("GET", "/", "Cookie", cookie), http.StatusOK)
	if got := g.got.Header["Cookie"]; got != nil {
		t.Errorf("the service got our cookie: %q", got)
	}
	// It is spent, for everybody but for who took it.
	for _, method := range []string{"GET", "POST"} {
		if w := g.ask(method, link); w.Code != 404 || cookiesOf(w) != "" {
			t.Errorf("%s again: %d", method, w.Code)
		}
	}
	if w := g.ask("GET", link, "Cookie", cookie); w.Code != http.StatusSeeOther {
		t.Errorf("the taker opens it again: %d", w.Code)
	}
}

func TestCookiesOfLoginsAreClosed(t *testing.T) {
	g, link := shared(t, nil, nil)
	w := g.ask("POST", link)
	cookies := w.Result().Cookies()
	if len(cookies) != 1 {
		t.Fatalf("cookies %v", cookies)
	}
	c := cookies[0]
	if !strings.HasPrefix(c.Name, "__Host-") || !c.Secure || !c.HttpOnly || c.Path != "/" || c.Domain != "" || c.SameSite != http.SameSiteLaxMode || c.MaxAge != int(sessionTime/time.Second) {
		t.Errorf("cookie %s", w.Header().Get("Set-Cookie"))
	}
}

func TestALinkIsTakenOnceByWhoeverIsFirst(t *testing.T) {
	var noted atomic.Int64
	all := &guards{Spend: func(_ context.Context, name string, s Share) error {
		if noted.Add(1); name != "nas.example.org" || s.Spent.IsZero() || s.ID == "" {
			t.Errorf("noted down %s %+v", name, s)
		}
		return nil
	}}
	g, link := shared(t, nil, all)
	// The rules may be read anew meanwhile.
	other := newGuarded(t, g.access, all)
	var taken atomic.Int64
	var visitors sync.WaitGroup
	for i := range 20 {
		visitors.Go(func() {
			r := httptest.NewRequest("POST", "https://nas.example.org"+link, http.NoBody)
			w := httptest.NewRecorder()
			[]*guarded{g, other}[i%2].wrap(http.NotFoundHandler()).ServeHTTP(w, r.WithContext(withCaller(r.Context(), g.from)))
			if w.Code == http.StatusSeeOther {
				taken.Add(1)
			}
		})
	}
	visitors.Wait()
	if taken.Load() != 1 || noted.Load() != 1 {
		t.Errorf("taken %d times, noted down %d times", taken.Load(), noted.Load())
	}
	// Two may have looked before either took it.
	second, _ := NewShare(time.Now().Add(time.Hour))
	second.Spent = time.Now()
	if err := all.spend(t.Context(), "nas.example.org", second); err != nil {
		t.Error(err)
	}
	if err := all.spend(t.Context(), "nas.example.org", second); !errors.Is(err, errSpent) {
		t.Errorf("the second who takes it: %v", err)
	}
}

func TestALinkThatCannotBeNotedDownIsNotTaken(t *testing.T) {
	full := true
	g, link := shared(t, nil, &guards{Spend: func(context.Context, string, Share) error {
		if full {
			return errors.New("no space left on device")
		}
		return nil
	}})
	w := g.ask("POST", link)
	if w.Code != http.StatusServiceUnavailable || cookiesOf(w) != "" || strings.Contains(w.Body.String(), "space") {
		t.Errorf("%d %s", w.Code, w.Body)
	}
	full = false
	if w := g.ask("POST", link); w.Code != http.StatusSeeOther {
		t.Errorf("with room again: %d", w.Code)
	}
}

func TestALinkOutlivesNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		key := []byte("a key of the node, kept in a file")
		g, link := shared(t, func(s *Share) { s.Lifetime = 2 * time.Hour }, &guards{Key: key})
		late, lateLink := shared(t, nil, nil)
		time.Sleep(59 * time.Minute)
		cookie := cookiesOf(g.ask("POST", link))
		time.Sleep(2 * time.Minute)
		if w := late.ask("POST", lateLink); w.Code != 404 {
			t.Errorf("after its end: %d", w.Code)
		}
		if w := late.ask("GET", lateLink); w.Code != 404 {
			t.Errorf("after its end: %d", w.Code)
		}
		g.wantStatus(g.ask("GET", "/", "Cookie", cookie), http.StatusOK)

		// After a restart with the same key the taker is still in, and the link still spent.
		spent := g.access
		spent.Shares[0].Spent = time.Now()
		again := newGuarded(t, spent, &guards{Key: key})
		again.wantStatus(again.ask("GET", "/", "Cookie", cookie), http.StatusOK)
		if w := again.ask("POST", link); w.Code != 404 {
			t.Errorf("after a restart: %d", w.Code)
		}
		other := newGuarded(t, spent, &guards{Key: []byte("another node's")})
		other.wantStatus(other.ask("GET", "/", "Cookie", cookie), http.StatusForbidden)

		// A share that is taken back ends what it opened.
		fresh, _ := NewShare(time.Now().Add(time.Hour))
		without := newGuarded(t, Access{Shares: []Share{fresh}}, &guards{Key: key})
		without.wantStatus(without.ask("GET", "/", "Cookie", cookie), http.StatusForbidden)

		time.Sleep(2 * time.Hour)
		g.wantStatus(g.ask("GET", "/", "Cookie", cookie), http.StatusForbidden)
	})
}

func TestALinkOpensItsPathAlone(t *testing.T) {
	g, link := shared(t, func(s *Share) { s.Path = "/photos/" }, nil)
	w := g.ask("POST", link)
	if w.Header().Get("Location") != "/photos/" {
		t.Errorf("goes to %q", w.Header().Get("Location"))
	}
	cookie := cookiesOf(w)
	for target, want := range map[string]int{
		"/photos/": 200, "/photos/a/b.jpg?x=1": 200, "/photos": 403, "/": 403, "/photosx": 403, "/PHOTOS/": 403,
		"/photos/..%2fsecret": 403, "/photos/../secret": 403, "/photos/..;/secret": 403, "/photos/%252e%252e/secret": 403, "//photos/": 403,
	} {
		w := g.ask("GET", target, "Cookie", cookie)
		if w.Code != want || (g.got != nil) != (want == 200) {
			t.Errorf("%s: %d, want %d", target, w.Code, want)
		}
	}
}

func TestTokensCannotBeTriedForLong(t *testing.T) {
	g, link := shared(t, nil, nil)
	last := 0
	for range 11 {
		last = g.ask("POST", link[:len(link)-1]).Code
	}
	if last != http.StatusTooManyRequests {
		t.Errorf("the eleventh wrong token: %d", last)
	}
	g.from = fromWorld("192.0.2.8")
	for _, token := range []string{"", "x", strings.Repeat("x", 5000), "../../x"} {
		if w := g.ask("POST", "/.meshdns/share/"+token); w.Code != 404 || cookiesOf(w) != "" {
			t.Errorf("%.20q: %d", token, w.Code)
		}
	}
}

func TestACookieCountsWhereItWasMadeForAlone(t *testing.T) {
	key := []byte("the same key of the same node, for all")
	g, link := shared(t, nil, &guards{Key: key})
	cookie := cookiesOf(g.ask("POST", link))
	g.wantStatus(g.ask("GET", "/", "Cookie", cookie), http.StatusOK)
	name, value, _ := strings.Cut(cookie, "=")
	for what, cfg := range map[string]guardConfig{
		"another name":  {Name: "photos.example.org", Port: 443, Kind: kindHTTPS},
		"another port":  {Name: "nas.example.org", Port: 8443, Kind: kindHTTPS},
		"a mount":       {Name: "nas.example.org", Port: 443, Kind: kindHTTPS, Mount: "/photos"},
		"the top mount": {Name: "nas.example.org", Port: 443, Kind: kindHTTPS, Mount: "/"},
	} {
		cfg.Shared = &guards{Key: key}
		other := newGuardedBy(t, g.access, cfg)
		// Whoever holds the cookie can give it the name that the other guard looks for.
		renamed := other.shares.sealer.cookie(g.access.Shares[0].ID) + "=" + value
		for _, c := range []string{cookie, renamed} {
			if w := other.ask("GET", "/photos/", "Cookie", c); w.Code != http.StatusForbidden || other.got != nil {
				t.Errorf("%s took %s: %d", what, c, w.Code)
			}
		}
	}
	// Nor does one link's cookie count for another link, or what was changed in it.
	second, _ := NewShare(time.Now().Add(time.Hour))
	both := newGuarded(t, Access{Shares: append(g.access.Shares[:1:1], second)}, &guards{Key: key})
	changed := []byte(value)
	changed[len(changed)-5] ^= 1
	for _, c := range []string{
		both.shares.sealer.cookie(second.ID) + "=" + value,
		name + "=" + string(changed),
		name + "=" + value[:len(value)-1],
		name + "=", name, "x" + name + "=" + value, strings.ToLower(name) + "=" + value,
		name + "=" + strings.Repeat("A", 100000),
	} {
		if w := both.ask("GET", "/", "Cookie", c); w.Code != http.StatusForbidden {
			t.Errorf("%.80s: %d", c, w.Code)
		}
	}
	both.wantStatus(both.ask("GET", "/", "Cookie", cookie), http.StatusOK)
}

func TestEntryAndMountHaveLinksOfTheirOwn(t *testing.T) {
	all := &guards{}
	share, token := NewShare(time.Now().Add(time.Hour))
	entry := newGuarded(t, Access{Shares: []Share{share}}, all)
	linkTo := func(mount, token string) string {
		return strings.TrimPrefix(Entry{Name: "nas.example.org", Port: 443}.ShareLink(mount, token), "https://nas.example.org")
	}
	cookie := "theme=dark; " + cookiesOf(entry.ask("POST", linkTo("", token)))
	for _, path := range []string{"/", "/photos"} {
		inner, innerToken := NewShare(time.Now().Add(time.Hour))
		mount := newGuardedBy(t, Access{Shares: []Share{inner}}, guardConfig{Name: "nas.example.org", Port: 443, Kind: kindHTTPS, Mount: path, Shared: all})
		ask := func(method, target, cookie string) *httptest.ResponseRecorder {
			r := httptest.NewRequest(method, "https://nas.example.org"+target, http.NoBody)
			r.Header.Set("Cookie", cookie)
			w := httptest.NewRecorder()
			entry.wrap(mount.wrap(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				if r.Header.Get("Cookie") != "theme=dark" {
					t.Errorf("the service got the cookies %q", r.Header["Cookie"])
				}
				w.WriteHeader(http.StatusTeapot)
			}))).ServeHTTP(w, r.WithContext(withCaller(r.Context(), entry.from)))
			return w
		}
		if w := ask("GET", path, cookie); w.Code != http.StatusForbidden {
			t.Errorf("%s with the entry's link alone: %d", path, w.Code)
		}
		link := linkTo(path, innerToken)
		w := ask("POST", link, cookie)
		if want := strings.TrimSuffix(path, "/") + "/"; w.Code != http.StatusSeeOther || w.Header().Get("Location") != want {
			t.Fatalf("%s: POST %s: %d to %q", path, link, w.Code, w.Header().Get("Location"))
		}
		if w := ask("GET", path, cookie+"; "+cookiesOf(w)); w.Code != http.StatusTeapot {
			t.Errorf("%s with both: %d", path, w.Code)
		}
	}
}

func TestSharesAreChecked(t *testing.T) {
	good, token := NewShare(time.Now().Add(time.Hour))
	if err := (Access{Shares: []Share{good}}).Check(); err != nil {
		t.Fatal(err)
	}
	text, err := json.Marshal(Access{Shares: []Share{good}})
	if err != nil || strings.Contains(string(text), token) {
		t.Errorf("the token is at rest in %s (%v)", text, err)
	}
	for name, change := range map[string]func(*Share){
		"no id":              func(s *Share) { s.ID = "" },
		"an id with a sign":  func(s *Share) { s.ID = "a;b" },
		"no hash":            func(s *Share) { s.Hash = "" },
		"a short hash":       func(s *Share) { s.Hash = s.Hash[:62] },
		"a hash in capitals": func(s *Share) { s.Hash = strings.ToUpper(s.Hash) },
		"no end":             func(s *Share) { s.Until = time.Time{} },
		"a negative time":    func(s *Share) { s.Lifetime = -1 },
		"a path of dots":     func(s *Share) { s.Path = "/../x" },
		"no path":            func(s *Share) { s.Path = "x" },
	} {
		bad := good
		change(&bad)
		if err := (Access{Shares: []Share{bad}}).Check(); err == nil && bad != good {
			t.Errorf("%s was taken", name)
		}
	}
	if err := (Access{Shares: []Share{good, good}}).Check(); err == nil {
		t.Error("the same twice was taken")
	}
}

func TestLogoutTakesAPost(t *testing.T) {
	g, link := shared(t, nil, nil)
	cookie := cookiesOf(g.ask("POST", link))
	if w := g.ask("GET", "/.meshdns/logout", "Cookie", cookie); w.Code != 200 || w.Header().Get("Set-Cookie") != "" {
		t.Errorf("GET: %d %v", w.Code, w.Header())
	}
	if w := g.ask("POST", "/.meshdns/logout", "Cookie", cookie, "Origin", "https://evil.example"); w.Code != 403 || w.Header().Get("Set-Cookie") != "" {
		t.Errorf("from another site: %d %v", w.Code, w.Header())
	}
	w := g.ask("POST", "/.meshdns/logout", "Cookie", cookie+"; __Host-meshdns-other-x=1", "Origin", "https://nas.example.org")
	if set := w.Header()["Set-Cookie"]; len(set) != 1 || !strings.Contains(set[0], "Max-Age=0") || !strings.HasPrefix(set[0], strings.SplitN(cookie, "=", 2)[0]) {
		t.Errorf("POST: %d %v", w.Code, set)
	}
}

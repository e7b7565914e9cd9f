package funnel

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"net/url"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// fromWorld and fromTailnet are callers at an address.
func fromWorld(addr string) Caller {
	return Caller{Public: true, Addr: netip.AddrPortFrom(netip.MustParseAddr(addr), 4711)}
}

func fromTailnet(addr, node string, tags ...string) Caller {
	return Caller{Addr: netip.AddrPortFrom(netip.MustParseAddr(addr), 4711), Node: node, Tags: tags}
}

// guarded is a guard before a backend that says what it got.
type guarded struct {
	*guard

	t    *testing.T
	from Caller
	got  *http.Request // the last one that passed
}

// newGuarded returns the guard of https://nas.example.org/.
func newGuarded(t *testing.T, a Access, shared *guards) *guarded {
	t.Helper()
	return newGuardedBy(t, a, guardConfig{Name: "nas.example.org", Port: 443, Kind: kindHTTPS, Shared: shared})
}

func newGuardedBy(t *testing.T, a Access, cfg guardConfig) *guarded {
	t.Helper()
	if err := a.Check(); err != nil {
		t.Fatal(err)
	}
	if cfg.Shared == nil {
		cfg.Shared = &guards{}
	}
	g, err := newGuard(a, cfg)
	if err != nil {
		t.Fatal(err)
	}
	return &guarded{guard: g, t: t, from: fromWorld("192.0.2.7")}
}

// ask sends a request; headers are name and value in turn.
func (g *guarded) ask(method, target string, headers ...string) *httptest.ResponseRecorder {
	g.t.Helper()
	r := httptest.NewRequest(method, "https://nas.example.org/", http.NoBody)
	u, err := url.ParseRequestURI(target)
	if err != nil {
		g.t.Fatal(err)
	}
	r.URL, r.RequestURI = u, target
	for i := 0; i < len(headers); i += 2 {
		r.Header.Add(headers[i], headers[i+1])
	}
	return g.send(r.WithContext(withCaller(r.Context(), g.from)))
}

func (g *guarded) send(r *http.Request) *httptest.ResponseRecorder {
	g.got = nil
	w := httptest.NewRecorder()
	g.wrap(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		g.got = r
		fmt.Fprint(w, "the service")
	})).ServeHTTP(w, r)
	return w
}

// wantStatus checks an answer, and that nothing but 200 came from the service.
func (g *guarded) wantStatus(w *httptest.ResponseRecorder, want int) {
	g.t.Helper()
	if w.Code != want {
		g.t.Errorf("status %d, want %d; body %q", w.Code, want, w.Body)
	}
	if passed := g.got != nil; passed != (want == http.StatusOK) {
		g.t.Errorf("status %d, and the request reached the service: %t", w.Code, passed)
	}
}

func prefixes(list ...string) []netip.Prefix {
	var out []netip.Prefix
	for _, p := range list {
		out = append(out, netip.MustParsePrefix(p))
	}
	return out
}

func TestNobodyPassesWithoutACaller(t *testing.T) {
	g := newGuarded(t, Access{}, nil)
	g.wantStatus(g.send(httptest.NewRequest("GET", "https://nas.example.org/", http.NoBody)), http.StatusForbidden)
	g.from = Caller{Public: true}
	g.wantStatus(g.ask("GET", "/"), http.StatusForbidden)
}

func TestAddressesAndNodesDecide(t *testing.T) {
	for name, test := range map[string]struct {
		access Access
		from   Caller
		ok     bool
	}{
		"no rules":               {Access{}, fromWorld("192.0.2.7"), true},
		"allowed":                {Access{Allow: prefixes("192.0.2.0/24")}, fromWorld("192.0.2.7"), true},
		"not among the allowed":  {Access{Allow: prefixes("192.0.2.0/24")}, fromWorld("198.51.100.1"), false},
		"IPv4 as IPv6":           {Access{Allow: prefixes("192.0.2.0/24")}, fromWorld("::ffff:192.0.2.7"), true},
		"denied as IPv6":         {Access{Deny: prefixes("192.0.2.0/24")}, fromWorld("::ffff:192.0.2.7"), false},
		"denied with a zone":     {Access{Deny: prefixes("fe80::/10")}, fromWorld("fe80::1%eth0"), false},
		"denied within allowed":  {Access{Allow: prefixes("192.0.2.0/24"), Deny: prefixes("192.0.2.7/32")}, fromWorld("192.0.2.7"), false},
		"the other family":       {Access{Allow: prefixes("0.0.0.0/0")}, fromWorld("2001:db8::1"), false},
		"a node":                 {Access{Nodes: []string{"laptop"}}, fromTailnet("100.64.0.9", "laptop.foo-bar.ts.net"), true},
		"a node in full":         {Access{Nodes: []string{"Laptop.foo-bar.ts.net"}}, fromTailnet("100.64.0.9", "laptop.foo-bar.ts.net"), true},
		"a node of another zone": {Access{Nodes: []string{"laptop.foo-bar.ts.net"}}, fromTailnet("100.64.0.9", "laptop.evil.example"), false},
		"another node":           {Access{Nodes: []string{"laptop"}}, fromTailnet("100.64.0.9", "phone"), false},
		"a tag":                  {Access{Nodes: []string{"tag:admin"}}, fromTailnet("100.64.0.9", "phone", "admin"), true},
		"another tag":            {Access{Nodes: []string{"tag:admin"}}, fromTailnet("100.64.0.9", "phone", "guest"), false},
		"an unknown node":        {Access{Nodes: []string{"laptop"}}, fromTailnet("100.64.0.9", ""), false},
		"the world as a node":    {Access{Nodes: []string{"laptop"}}, Caller{Public: true, Addr: fromWorld("192.0.2.7").Addr, Node: "laptop", Tags: []string{"admin"}}, false},
		"the world with a tag":   {Access{Nodes: []string{"tag:admin"}}, Caller{Public: true, Addr: fromWorld("192.0.2.7").Addr, Node: "laptop", Tags: []string{"admin"}}, false},
		"a tag's name as a node": {Access{Nodes: []string{"tag:admin"}}, fromTailnet("100.64.0.9", "admin"), false},
		"address and node":       {Access{Allow: prefixes("100.64.0.0/10"), Nodes: []string{"laptop"}}, fromTailnet("100.64.0.9", "laptop"), true},
	} {
		t.Run(name, func(t *testing.T) {
			g := newGuarded(t, test.access, nil)
			g.from = test.from
			status := map[bool]int{true: http.StatusOK, false: http.StatusForbidden}[test.ok]
			// What a visitor says about addresses is not asked.
			g.wantStatus(g.ask("GET", "/", "X-Forwarded-For", "192.0.2.7", "Meshdns-Node", "laptop"), status)
			if err := g.admits(test.from); (err == nil) != test.ok {
				t.Errorf("a bare connection: %v, want it admitted: %t", err, test.ok)
			}
		})
	}
}

func TestOneClientIsLimitedAndNoOther(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newGuarded(t, Access{Rate: Rate{Count: 2, Per: time.Second, Burst: 3}}, nil)
		from := func(addr string, want int) *httptest.ResponseRecorder {
			t.Helper()
			g.from = fromWorld(addr)
			w := g.ask("GET", "/")
			g.wantStatus(w, want)
			return w
		}
		for range 3 {
			from("2001:db8:0:1::1", http.StatusOK)
		}
		// The rest of the /64 is the same client, who has as many addresses as it likes.
		w := from("2001:db8:0:1:ffff::2", http.StatusTooManyRequests)
		if got := w.Header().Get("Retry-After"); got != "1" {
			t.Errorf("Retry-After %q, want 1", got)
		}
		from("2001:db8:0:2::1", http.StatusOK)
		for range 3 {
			from("192.0.2.1", http.StatusOK)
		}
		from("::ffff:192.0.2.1", http.StatusTooManyRequests)
		from("192.0.2.2", http.StatusOK)
		time.Sleep(500 * time.Millisecond)
		from("192.0.2.1", http.StatusOK)
		from("192.0.2.1", http.StatusTooManyRequests)
		time.Sleep(time.Hour)
		for range 3 {
			from("192.0.2.1", http.StatusOK)
		}
		from("192.0.2.1", http.StatusTooManyRequests)
		if err := g.admits(g.from); err == nil {
			t.Error("a bare connection of a client beyond its rate was admitted")
		}
	})
}

func TestCountsOutliveNewRules(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		shared, a := &guards{}, Access{Rate: Rate{Count: 1, Per: time.Minute}}
		g := newGuarded(t, a, shared)
		g.wantStatus(g.ask("GET", "/"), http.StatusOK)
		g = newGuarded(t, a, shared)
		g.wantStatus(g.ask("GET", "/"), http.StatusTooManyRequests)
		a.Rate.Count = 2
		g = newGuarded(t, a, shared)
		g.wantStatus(g.ask("GET", "/"), http.StatusOK)
	})
}

func TestMethodsAndPaths(t *testing.T) {
	g := newGuarded(t, Access{Methods: []string{"GET", "POST"}, Paths: []string{"/open/", "/one", "/ö/"}}, nil)
	for _, test := range []struct {
		method, target string
		want           int
	}{
		{"GET", "/open/", 200},
		{"HEAD", "/open/x/y?z=/../", 200},
		{"POST", "/one", 200},
		{"PUT", "/one", 405},
		{"OPTIONS", "/one", 405},
		{"get", "/one", 405},
		{"CONNECT", "/one", 405},
		{"GET", "/one/", 404},
		{"GET", "/one/two", 404},
		{"GET", "/open", 404},
		{"GET", "/", 404},
		{"GET", "/ONE", 404},
		{"GET", "/%C3%B6/x", 200},
		{"GET", "/open/100%25", 200},
		// Ways out of a path that a backend may read as the way to another one.
		{"GET", "/open/../admin", 404},
		{"GET", "/open/..%2fadmin", 404},
		{"GET", "/open/%2e%2e/admin", 404},
		{"GET", "/open/%252e%252e/admin", 404},
		{"GET", "/open/..%5cadmin", 404},
		{"GET", "/open/..%c0%afadmin", 200}, // is no slash to anybody who knows UTF-8, and one part to the others
		{"GET", "/open/..;/admin", 404},
		{"GET", "/open/..;x=y/admin", 404},
		{"GET", "/open/.;/x", 404},
		{"GET", "/open//admin", 404},
		{"GET", "//open/admin", 404},
		{"GET", "/open/./x", 404},
		{"GET", "/open/x%00.html", 404},
		{"GET", "/open/%0d%0aX:y", 404},
		{"GET", "/open%2fadmin", 200}, // decoded, it is below /open/
		{"GET", "https://nas.example.org/open/../admin", 404},
	} {
		t.Run(test.method+" "+test.target, func(t *testing.T) {
			g.t = t
			w := g.ask(test.method, test.target)
			g.wantStatus(w, test.want)
			if test.want == 405 && w.Header().Get("Allow") != "GET, POST" {
				t.Errorf("Allow: %q", w.Header().Get("Allow"))
			}
		})
	}
}

func TestMaintenanceShowsAPage(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := Access{Maintenance: &Maintenance{Text: "Back <soon>", Until: time.Now().Add(90 * time.Second), Except: prefixes("192.0.2.9/32")}}
		g := newGuarded(t, a, nil)
		w := g.ask("POST", "/", "Accept", "text/html")
		g.wantStatus(w, http.StatusServiceUnavailable)
		if got := w.Header().Get("Retry-After"); got != "90" {
			t.Errorf("Retry-After %q, want 90", got)
		}
		if body := w.Body.String(); !strings.Contains(body, "Back &lt;soon&gt;") || strings.Contains(body, "<soon>") {
			t.Errorf("page: %s", body)
		}
		if body := g.ask("GET", "/").Body.String(); !strings.Contains(body, "Back <soon>") || strings.Contains(body, "<html") {
			t.Errorf("text for programs: %s", body)
		}
		g.from = fromWorld("192.0.2.9")
		g.wantStatus(g.ask("GET", "/"), http.StatusOK)
	})
}

func TestOtherSitesMayNotChangeThings(t *testing.T) {
	login := Access{Basic: &Basic{Users: map[string]string{"ann": cheapHash}}}
	authorized := []string{"Authorization", basicOf("ann", "secret")}
	for name, test := range map[string]struct {
		access  Access
		from    Caller
		method  string
		headers []string
		ok      bool
	}{
		"a form of ours":                  {login, fromWorld("192.0.2.7"), "POST", []string{"Origin", "https://nas.example.org"}, true},
		"a form of another site":          {login, fromWorld("192.0.2.7"), "POST", []string{"Origin", "https://evil.example"}, false},
		"of a name below":                 {login, fromWorld("192.0.2.7"), "POST", []string{"Origin", "https://x.nas.example.org"}, false},
		"of a name that starts so":        {login, fromWorld("192.0.2.7"), "POST", []string{"Origin", "https://nas.example.org.evil.example"}, false},
		"of another port":                 {login, fromWorld("192.0.2.7"), "POST", []string{"Origin", "https://nas.example.org:8443"}, false},
		"without TLS":                     {login, fromWorld("192.0.2.7"), "DELETE", []string{"Origin", "http://nas.example.org"}, false},
		"of a sandbox":                    {login, fromWorld("192.0.2.7"), "PUT", []string{"Origin", "null"}, false},
		"an empty origin":                 {login, fromWorld("192.0.2.7"), "POST", []string{"Origin", ""}, false},
		"two origins":                     {login, fromWorld("192.0.2.7"), "POST", []string{"Origin", "https://nas.example.org", "Origin", "https://evil.example"}, false},
		"by fetch metadata alone":         {login, fromWorld("192.0.2.7"), "POST", []string{"Sec-Fetch-Site", "cross-site"}, false},
		"a sister by fetch metadata":      {login, fromWorld("192.0.2.7"), "POST", []string{"Sec-Fetch-Site", "same-site"}, false},
		"no browser":                      {login, fromWorld("192.0.2.7"), "POST", nil, true},
		"reading":                         {login, fromWorld("192.0.2.7"), "GET", []string{"Origin", "https://evil.example"}, true},
		"a WebSocket of ours":             {login, fromWorld("192.0.2.7"), "GET", []string{"Upgrade", "websocket", "Connection", "Upgrade", "Origin", "https://nas.example.org"}, true},
		"a WebSocket of another":          {login, fromWorld("192.0.2.7"), "GET", []string{"Upgrade", "websocket", "Connection", "Upgrade", "Origin", "https://evil.example"}, false},
		"a WebSocket in capitals":         {login, fromWorld("192.0.2.7"), "GET", []string{"Upgrade", "WebSocket", "Origin", "https://evil.example"}, false},
		"another method":                  {login, fromWorld("192.0.2.7"), "PROPPATCH", []string{"Origin", "https://evil.example"}, false},
		"a method in small letters":       {login, fromWorld("192.0.2.7"), "post", []string{"Origin", "https://evil.example"}, false},
		"an origin that is listed":        {Access{Basic: login.Basic, Origins: []string{"https://app.example"}}, fromWorld("192.0.2.7"), "POST", []string{"Origin", "https://app.example"}, true},
		"any, listed":                     {Access{Basic: login.Basic, Origins: []string{"*"}}, fromWorld("192.0.2.7"), "POST", []string{"Origin", "https://evil.example"}, true},
		"to who is let in by address":     {Access{Allow: prefixes("192.0.2.0/24")}, fromWorld("192.0.2.7"), "POST", []string{"Origin", "https://evil.example"}, false},
		"to the tailnet":                  {Access{}, fromTailnet("100.64.0.9", "laptop"), "POST", []string{"Origin", "https://evil.example"}, false},
		"a WebSocket to the tailnet":      {Access{}, fromTailnet("100.64.0.9", "laptop"), "GET", []string{"Upgrade", "websocket", "Origin", "https://evil.example"}, false},
		"to the world, where all come in": {Access{}, fromWorld("192.0.2.7"), "POST", []string{"Origin", "https://evil.example"}, true},
	} {
		t.Run(name, func(t *testing.T) {
			g := newGuarded(t, test.access, nil)
			g.from = test.from
			headers := test.headers
			if test.access.Basic != nil {
				headers = append(headers[:len(headers):len(headers)], authorized...)
			}
			g.wantStatus(g.ask(test.method, "/", headers...), map[bool]int{true: 200, false: 403}[test.ok])
		})
	}
}

func TestNothingThatSaysWhoCameGetsThrough(t *testing.T) {
	g := newGuarded(t, Access{}, nil)
	sent := []string{}
	for _, name := range []string{
		"X-Forwarded-For", "x-forwarded-for", "X_Forwarded_For", "X-Forwarded_User", "x.forwarded.for", "X~Forwarded-Host",
		"Forwarded", "X-Real-IP", "X_Real_IP", "Meshdns-Node", "meshdns_node", "Meshdns_User", "MESHDNS-TAGS", "Tailscale-User-Login",
		"Tailscale_User_Login", "Remote-User", "REMOTE_USER", "X-Remote-User", "X_WEBAUTH_USER", "True-Client-IP", "Client_IP",
		"Remote_Groups", "Remote-Email", "X-Authentik-Username", "X_Goog_Authenticated_User_Email", "Cf-Access-Authenticated-User-Email",
		"X-MS-CLIENT-PRINCIPAL-NAME", "X-Amzn-Oidc-Identity", "X_SSL_Client_Verify", "X-Auth-Request-Groups",
	} {
		sent = append(sent, name, "boss")
	}
	r := httptest.NewRequest("GET", "https://nas.example.org/", http.NoBody)
	for i := 0; i < len(sent); i += 2 {
		r.Header[sent[i]] = []string{sent[i+1]} // as HTTP/2 and lenient parsers have them
	}
	r.Header.Set("X-Other", "kept")
	r.Trailer = http.Header{"Meshdns_node": nil, "X-Sum": nil}
	g.wantStatus(g.send(r.WithContext(withCaller(r.Context(), g.from))), http.StatusOK)
	want := http.Header{"X-Other": {"kept"}}
	if !maps.EqualFunc(g.got.Header, want, func(a, b []string) bool { return strings.Join(a, "|") == strings.Join(b, "|") }) {
		t.Errorf("the service got %v, want %v", g.got.Header, want)
	}
	if _, there := g.got.Trailer["Meshdns_node"]; there || len(g.got.Trailer) != 1 {
		t.Errorf("the service got the trailers %v", g.got.Trailer)
	}
}

func TestRulesForTheWebAreForTheWebAlone(t *testing.T) {
	share, _ := NewShare(time.Now().Add(time.Hour))
	for name, test := range map[string]struct {
		access Access
		kind   string
		host   string
		want   string
	}{
		"tcp with addresses":     {Access{Allow: prefixes("192.0.2.0/24"), Rate: Rate{Count: 1, Per: time.Second}}, kindTCP, "", ""},
		"tcp with basic":         {Access{Basic: &Basic{Users: map[string]string{"ann": cheapHash}}}, kindTCP, "", "basic: is for https"},
		"udp with maintenance":   {Access{Maintenance: &Maintenance{}}, kindUDP, "", "maintenance: is for https"},
		"tls with paths":         {Access{Paths: []string{"/x"}}, kindTLS, "nas.example.org", "paths: is for https"},
		"http with shares":       {Access{Shares: []Share{share}}, kindHTTP, "nas.example.org", "need https"},
		"a wildcard with shares": {Access{Shares: []Share{share}}, kindHTTPS, "*.example.org", "one exact name"},
		"http with basic":        {Access{Basic: &Basic{Users: map[string]string{"ann": cheapHash}}}, kindHTTP, "nas.example.org", ""},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := newGuard(test.access, guardConfig{Name: test.host, Port: 443, Kind: test.kind, Shared: &guards{}})
			if test.want == "" && err != nil || test.want != "" && (err == nil || !strings.Contains(err.Error(), test.want)) {
				t.Errorf("got %v, want %q", err, test.want)
			}
		})
	}
}

func TestRefusalsSayNothingOfTheService(t *testing.T) {
	g := newGuarded(t, Access{}, nil)
	for _, err := range []error{errNotAdmitted, &errTooMany{time.Second}, errors.New("reading /etc/secret: denied"), context.Canceled} {
		w := httptest.NewRecorder()
		turnAway(w, httptest.NewRequest("GET", "/", http.NoBody), err)
		if strings.Contains(w.Body.String(), "secret") || w.Code < 400 {
			t.Errorf("%v: %d %s", err, w.Code, w.Body)
		}
	}
	w := g.ask("GET", "/")
	if w.Code != 200 {
		t.Fatal(w.Code)
	}
}

func TestNewRulesKeepWhoMayStill(t *testing.T) {
	shared := &guards{}
	share, token := NewShare(time.Now().Add(time.Hour))
	linked := newGuarded(t, Access{Shares: []Share{share}}, shared)
	taken := cookiesOf(linked.ask("POST", "/.meshdns/share/"+token))
	password := withUsers(map[string]string{"ann": cheapHash})
	for name, test := range map[string]struct {
		before, now Access
		header      [2]string
		keep        bool
	}{
		"no rules":              {Access{}, Access{}, [2]string{}, true},
		"allowed still":         {Access{}, Access{Allow: prefixes("192.0.2.0/24")}, [2]string{}, true},
		"denied now":            {Access{}, Access{Deny: prefixes("192.0.2.0/24")}, [2]string{}, false},
		"a path that is not":    {Access{}, Access{Paths: []string{"/other"}}, [2]string{}, false},
		"a rate and a page":     {Access{}, Access{Rate: Rate{Count: 1, Per: time.Hour}, Maintenance: &Maintenance{}}, [2]string{}, true},
		"a password from now":   {Access{}, password, [2]string{"Authorization", basicOf("ann", "secret")}, false},
		"the same password":     {password, password, [2]string{"Authorization", basicOf("ann", "secret")}, true},
		"another password":      {password, withUsers(map[string]string{"ann": bcrypted}), [2]string{"Authorization", basicOf("ann", "secret")}, false},
		"another user":          {password, withUsers(map[string]string{"bob": cheapHash}), [2]string{"Authorization", basicOf("ann", "secret")}, false},
		"a link":                {linked.access, Access{Shares: append([]Share{}, share), Rate: Rate{Count: 1, Per: time.Hour}}, [2]string{"Cookie", taken}, true},
		"a link that was ended": {linked.access, password, [2]string{"Cookie", taken}, false},
		"a provider's, down":    {password, Access{Login: &OIDC{Issuer: "https://192.0.2.1", ClientID: "nas", Subjects: []string{"1"}}}, [2]string{"Accept", "text/html"}, false},
	} {
		t.Run(name, func(t *testing.T) {
			before, now := newGuarded(t, test.before, shared), newGuarded(t, test.now, shared)
			shared.Client = &http.Client{Transport: roundTrip(func(*http.Request) (*http.Response, error) {
				t.Error("a provider was asked")
				return nil, errOffline
			})}
			// Not even with all places taken does anybody wait for a hash.
			for range maxHashing {
				shared.secrets().hashing <- struct{}{}
			}
			defer func() {
				for range maxHashing {
					<-shared.secrets().hashing
				}
			}()
			r := httptest.NewRequest("GET", "https://nas.example.org/", http.NoBody)
			if test.header[0] != "" {
				r.Header.Set(test.header[0], test.header[1])
			}
			_, r = passageOf(r.WithContext(withCaller(r.Context(), now.from)))
			for range 2 { // the entry's guard, and a mount's with the same rules
				if got := now.keeps(r, before.guard); got != test.keep {
					t.Errorf("kept: %t, want %t", got, test.keep)
				}
			}
		})
	}
}

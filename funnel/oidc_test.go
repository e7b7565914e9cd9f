package funnel

import (
	"bytes"
	"context"
	"crypto"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"maps"
	"math/big"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"sync"
	"testing"
	"time"
)

// roundTrip is a transport by function.
type roundTrip func(*http.Request) (*http.Response, error)

func (f roundTrip) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }

var errOffline = errors.New("there is no network here")

// provider is a provider of OpenID Connect that does as its fields say. It checks PKCE and the redirect URI as a real one
// does.
type provider struct {
	t      *testing.T
	server *httptest.Server
	key    *rsa.PrivateKey

	mu       sync.Mutex
	claims   map[string]any                   // of the ID token
	info     map[string]any                   // of the userinfo; nil: it has none
	sign     func(header, body string) []byte // nil: with the key
	header   string                           // of the ID token
	describe map[string]any                   // besides the usual description
	asked    map[string]url.Values            // by code: what the browser was sent with
	tokens   int                              // codes that were redeemed
	body     string                           // of the token answer, instead
}

func newProvider(t *testing.T) *provider {
	t.Helper()
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	p := &provider{t: t, key: key, header: `{"alg":"RS256","kid":"1"}`, asked: map[string]url.Values{}}
	mux := http.NewServeMux()
	p.server = httptest.NewServer(mux)
	t.Cleanup(p.server.Close)
	answer := func(w http.ResponseWriter, v any) {
		w.Header().Set("Content-Type", "application/json")
		if err := json.NewEncoder(w).Encode(v); err != nil {
			t.Error(err)
		}
	}
	mux.HandleFunc("/.well-known/openid-configuration", func(w http.ResponseWriter, _ *http.Request) {
		p.mu.Lock()
		defer p.mu.Unlock()
		d := map[string]any{
			"issuer": p.server.URL, "authorization_endpoint": p.server.URL + "/auth", "token_endpoint": p.server.URL + "/token",
			"jwks_uri": p.server.URL + "/keys", "id_token_signing_alg_values_supported": []string{"RS256"},
		}
		if p.info != nil {
			d["userinfo_endpoint"] = p.server.URL + "/info"
		}
		maps.Copy(d, p.describe)
		answer(w, d)
	})
	mux.HandleFunc("/keys", func(w http.ResponseWriter, _ *http.Request) {
		answer(w, map[string]any{"keys": []any{map[string]string{
			"kty": "RSA", "kid": "1", "alg": "RS256", "use": "sig",
			"n": base64.RawURLEncoding.EncodeToString(key.N.Bytes()),
			"e": base64.RawURLEncoding.EncodeToString(big.NewInt(int64(key.E)).Bytes()),
		}}})
	})
	mux.HandleFunc("/info", func(w http.ResponseWriter, _ *http.Request) {
		p.mu.Lock()
		defer p.mu.Unlock()
		answer(w, p.info)
	})
	mux.HandleFunc("/token", p.token)
	return p
}

// consent is what a browser that was sent to the provider comes back with.
func (p *provider) consent(location string) url.Values {
	p.t.Helper()
	u, err := url.Parse(location)
	if err != nil || !strings.HasPrefix(location, p.server.URL+"/auth?") {
		p.t.Fatalf("sent to %q: %v", location, err)
	}
	q := u.Query()
	for key, want := range map[string]string{"response_type": "code", "client_id": "nas", "code_challenge_method": "S256", "redirect_uri": "https://nas.example.org/.meshdns/callback"} {
		if got := q.Get(key); got != want {
			p.t.Errorf("asked with %s=%q, want %q", key, got, want)
		}
	}
	if len(q.Get("state")) < 20 || len(q.Get("nonce")) < 20 || len(q.Get("code_challenge")) != 43 || !strings.Contains(q.Get("scope"), "openid") {
		p.t.Errorf("asked with %v", q)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	code := random(8)
	p.asked[code] = q
	return url.Values{"code": {code}, "state": {q.Get("state")}}
}

// token redeems a code.
func (p *provider) token(w http.ResponseWriter, r *http.Request) {
	p.mu.Lock()
	defer p.mu.Unlock()
	q, ok := p.asked[r.FormValue("code")]
	delete(p.asked, r.FormValue("code"))
	challenge := sha256.Sum256([]byte(r.FormValue("code_verifier")))
	if !ok || r.FormValue("redirect_uri") != q.Get("redirect_uri") || base64.RawURLEncoding.EncodeToString(challenge[:]) != q.Get("code_challenge") {
		w.Header().Set("Content-Type", "application/json")
		w.WriteHeader(http.StatusBadRequest)
		_, _ = io.WriteString(w, `{"error":"invalid_grant","error_description":"SECRET `+r.FormValue("code")+`"}`)
		return
	}
	p.tokens++
	now := time.Now()
	claims := map[string]any{
		"iss": p.server.URL, "aud": "nas", "sub": "ann-1", "nonce": q.Get("nonce"), "iat": now.Unix(), "exp": now.Add(time.Hour).Unix(),
		"email": "ann@example.com", "email_verified": true,
	}
	maps.Copy(claims, p.claims)
	maps.DeleteFunc(claims, func(_ string, v any) bool { return v == nil })
	text, err := json.Marshal(claims)
	if err != nil {
		p.t.Error(err)
	}
	b64 := base64.RawURLEncoding
	signed := b64.EncodeToString([]byte(p.header)) + "." + b64.EncodeToString(text)
	sum := sha256.Sum256([]byte(signed))
	signature, err := rsa.SignPKCS1v15(rand.Reader, p.key, crypto.SHA256, sum[:])
	if err != nil {
		p.t.Error(err)
	}
	if p.sign != nil {
		signature = p.sign(p.header, string(text))
	}
	body := `{"access_token":"a","token_type":"bearer","id_token":"` + signed + "." + b64.EncodeToString(signature) + `"}`
	if p.body != "" {
		body = p.body
	}
	w.Header().Set("Content-Type", "application/json")
	_, _ = io.WriteString(w, body)
}

// withProvider is a guard that goes by a provider, for ann.
func withProvider(t *testing.T, p *provider, change func(*OIDC)) *guarded {
	t.Helper()
	o := &OIDC{Issuer: p.server.URL, ClientID: "nas", Secret: "s", Mails: []string{"ann@example.com"}}
	if change != nil {
		change(o)
	}
	return newGuarded(t, Access{Login: o}, nil)
}

// begin has a browser want a page, and returns where it is sent and with what cookies.
func begin(t *testing.T, g *guarded, target string) (location, cookie string) {
	t.Helper()
	w := g.ask("GET", target, "Accept", "text/html")
	if w.Code != http.StatusSeeOther || g.got != nil {
		t.Fatalf("%s: %d %s", target, w.Code, w.Body)
	}
	return w.Header().Get("Location"), cookiesOf(w)
}

// back has a browser come back from the provider.
func back(g *guarded, q url.Values, cookie string) *httptest.ResponseRecorder {
	return g.ask("GET", "/.meshdns/callback?"+q.Encode(), "Cookie", cookie, "Accept", "text/html", "Sec-Fetch-Site", "cross-site")
}

func TestALoginOpens(t *testing.T) {
	p := newProvider(t)
	g := withProvider(t, p, nil)
	location, cookie := begin(t, g, "/photos/?page=2")
	w := back(g, p.consent(location), cookie)
	if w.Code != http.StatusSeeOther || w.Header().Get("Location") != "/photos/?page=2" {
		t.Fatalf("%d to %q: %s", w.Code, w.Header().Get("Location"), w.Body)
	}
	for _, c := range w.Result().Cookies() {
		if !strings.HasPrefix(c.Name, "__Host-meshdns-") || !c.Secure || !c.HttpOnly || c.Path != "/" || c.Domain != "" || c.SameSite != http.SameSiteLaxMode {
			t.Errorf("cookie %+v", c)
		}
		if strings.Contains(c.Value, "ann") {
			t.Errorf("the cookie can be read: %s", c.Value)
		}
	}
	session := cookiesOf(w)
	g.wantStatus(g.ask("POST", "/x", "Cookie", session), http.StatusOK)
	if l := loginOf(g.got.Context()); l.Way != "oidc" || l.User != "ann@example.com" || l.ID != "ann-1" {
		t.Errorf("passed as %+v", l)
	}
	if g.got.Header.Get("Cookie") != "" {
		t.Error("the service got the cookie")
	}
	// Not by other people, nor by programs, who are told so instead of being sent along.
	g.wantStatus(g.ask("GET", "/x", "Accept", "application/json"), http.StatusUnauthorized)
	g.wantStatus(g.ask("POST", "/x", "Accept", "text/html"), http.StatusUnauthorized)
	g.wantStatus(g.ask("GET", "/x", "Accept", "text/html", "Sec-Fetch-Mode", "cors"), http.StatusUnauthorized)
	g.wantStatus(g.ask("GET", "/x", "Accept", "text/html", "Upgrade", "websocket"), http.StatusUnauthorized)
	g.wantStatus(g.ask("GET", "/x", "Cookie", cookie), http.StatusUnauthorized) // what a login begins with is none

	// Whoever is taken off the list is out at once.
	off := withProvider(t, p, func(o *OIDC) { o.Mails = []string{"bob@example.com"} })
	off.cfg.Shared, off.login.sealer = g.cfg.Shared, g.login.sealer
	off.wantStatus(off.ask("GET", "/x", "Cookie", session), http.StatusUnauthorized)
}

func TestALoginIsForOneBrowserOneNameAndOneProvider(t *testing.T) {
	p := newProvider(t)
	key := []byte("the key of the node, in all cases")
	guardOf := func(cfg guardConfig, change func(*OIDC)) *guarded {
		o := &OIDC{Issuer: p.server.URL, ClientID: "nas", Mails: []string{"ann@example.com"}}
		if change != nil {
			change(o)
		}
		cfg.Kind, cfg.Shared = kindHTTPS, &guards{Key: key}
		return newGuardedBy(t, Access{Login: o}, cfg)
	}
	g := guardOf(guardConfig{Name: "nas.example.org", Port: 443}, nil)
	location, cookie := begin(t, g, "/")
	session := cookiesOf(back(g, p.consent(location), cookie))
	again := guardOf(guardConfig{Name: "nas.example.org", Port: 443}, nil)
	again.wantStatus(again.ask("GET", "/", "Cookie", session), http.StatusOK) // after a restart
	_, value, _ := strings.Cut(session, "=")
	for what, other := range map[string]*guarded{
		"another name":     guardOf(guardConfig{Name: "photos.example.org", Port: 443}, nil),
		"another port":     guardOf(guardConfig{Name: "nas.example.org", Port: 8443}, nil),
		"a mount":          guardOf(guardConfig{Name: "nas.example.org", Port: 443, Mount: "/x"}, nil),
		"another client":   guardOf(guardConfig{Name: "nas.example.org", Port: 443}, func(o *OIDC) { o.ClientID = "photos" }),
		"another provider": guardOf(guardConfig{Name: "nas.example.org", Port: 443}, func(o *OIDC) { o.Issuer += "/other" }),
	} {
		other.wantStatus(other.ask("GET", "/", "Cookie", session), http.StatusUnauthorized)
		other.wantStatus(other.ask("GET", "/", "Cookie", other.login.cookie()+"="+value), http.StatusUnauthorized)
		if t.Failed() {
			t.Fatal(what)
		}
	}
}

func TestAttacksOnTheWayBack(t *testing.T) {
	p := newProvider(t)
	for name, test := range map[string]struct {
		query  func(q url.Values)
		cookie func(mine string) string
		method string
	}{
		"no state":         {query: func(q url.Values) { q.Del("state") }},
		"an empty state":   {query: func(q url.Values) { q.Set("state", "") }},
		"two states":       {query: func(q url.Values) { q.Add("state", q.Get("state")) }},
		"a changed state":  {query: func(q url.Values) { q.Set("state", "A"+q.Get("state")[1:]) }},
		"a huge state":     {query: func(q url.Values) { q.Set("state", strings.Repeat("A", 100000)) }},
		"no code":          {query: func(q url.Values) { q.Del("code") }},
		"two codes":        {query: func(q url.Values) { q.Add("code", "x") }},
		"a made-up code":   {query: func(q url.Values) { q.Set("code", "x") }},
		"a huge code":      {query: func(q url.Values) { q.Set("code", strings.Repeat("x", 5000)) }},
		"an error":         {query: func(q url.Values) { q.Set("error", "<script>access_denied") }},
		"another issuer":   {query: func(q url.Values) { q.Set("iss", "https://evil.example") }},
		"another browser":  {cookie: func(string) string { return "" }},
		"a planted cookie": {cookie: func(mine string) string { return mine[:strings.Index(mine, "=")+1] + strings.Repeat("A", 43) }},
		"a short cookie":   {cookie: func(mine string) string { return mine[:strings.Index(mine, "=")+1] + "A" }},
		"a POST":           {method: "POST"},
		"a HEAD":           {method: "HEAD"},
	} {
		t.Run(name, func(t *testing.T) {
			p.t = t
			g := withProvider(t, p, nil)
			location, cookie := begin(t, g, "/")
			q := p.consent(location)
			if test.query != nil {
				test.query(q)
			}
			if test.cookie != nil {
				cookie = test.cookie(cookie)
			}
			method := "GET"
			if test.method != "" {
				method = test.method
			}
			w := g.ask(method, "/.meshdns/callback?"+q.Encode(), "Cookie", cookie, "Accept", "text/html")
			if w.Code < 400 || strings.Contains(w.Header().Get("Set-Cookie"), g.login.cookie()) || strings.Contains(w.Body.String(), "script") {
				t.Errorf("%d %v %s", w.Code, w.Header(), w.Body)
			}
		})
	}
}

func TestALoginOfSomebodyElseIsNotTakenOver(t *testing.T) {
	p := newProvider(t)
	g := withProvider(t, p, nil)
	mine, myCookie := begin(t, g, "/")
	theirs, theirCookie := begin(t, g, "/")
	q := p.consent(mine)
	// The attacker's answer in the victim's browser: the victim would be logged in as the attacker.
	if w := back(g, q, theirCookie); w.Code != http.StatusBadRequest {
		t.Errorf("another browser's answer: %d", w.Code)
	}
	// The victim's code with the attacker's own state: the code was not made for that nonce and verifier.
	other := p.consent(theirs)
	if w := back(g, url.Values{"code": {other.Get("code")}, "state": {q.Get("state")}}, myCookie); w.Code != http.StatusBadRequest {
		t.Errorf("another browser's code: %d", w.Code)
	}
	// And an answer counts once.
	mine, myCookie = begin(t, g, "/")
	q = p.consent(mine)
	if w := back(g, q, myCookie); w.Code != http.StatusSeeOther {
		t.Fatalf("%d %s", w.Code, w.Body)
	}
	p.mu.Lock()
	redeemed := p.tokens
	p.asked[q.Get("code")] = url.Values{}
	p.mu.Unlock()
	if w := back(g, q, myCookie); w.Code != http.StatusBadRequest {
		t.Errorf("the same answer again: %d", w.Code)
	}
	if p.mu.Lock(); p.tokens != redeemed || len(p.asked) == 0 {
		t.Error("a used state was taken to the provider")
	}
	p.mu.Unlock()
}

func TestIDTokensThatAreNotBelieved(t *testing.T) {
	p := newProvider(t)
	other, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	for name, test := range map[string]struct {
		claims map[string]any
		header string
		sign   func(header, body string) []byte
		body   string
		want   int
	}{
		"as it should be":    {want: 303},
		"another nonce":      {claims: map[string]any{"nonce": "x"}, want: 400},
		"no nonce":           {claims: map[string]any{"nonce": nil}, want: 400},
		"for another client": {claims: map[string]any{"aud": "photos"}, want: 400},
		"of another issuer":  {claims: map[string]any{"iss": "https://evil.example"}, want: 400},
		"over":               {claims: map[string]any{"exp": time.Now().Add(-time.Hour).Unix()}, want: 400},
		"without a subject":  {claims: map[string]any{"sub": ""}, want: 403},
		"signed by nobody":   {header: `{"alg":"none"}`, sign: func(string, string) []byte { return nil }, want: 400},
		"signed by its text": {header: `{"alg":"HS256","kid":"1"}`, want: 400},
		"signed by a stranger": {sign: func(header, body string) []byte {
			b64 := base64.RawURLEncoding
			sum := sha256.Sum256([]byte(b64.EncodeToString([]byte(header)) + "." + b64.EncodeToString([]byte(body))))
			signature, _ := rsa.SignPKCS1v15(rand.Reader, other, crypto.SHA256, sum[:])
			return signature
		}, want: 400},
		"no token":               {body: `{"access_token":"a","token_type":"bearer"}`, want: 400},
		"garbage":                {body: `{"access_token":"a","token_type":"bearer","id_token":"x"}`, want: 400},
		"too much":               {body: `{"access_token":"a","x":"` + strings.Repeat("x", 2<<20) + `"}`, want: 400},
		"an unproved mail":       {claims: map[string]any{"email_verified": false}, want: 403},
		"nothing proved":         {claims: map[string]any{"email_verified": nil}, want: 403},
		"proved in words":        {claims: map[string]any{"email_verified": "true"}, want: 303},
		"another's mail":         {claims: map[string]any{"email": "bob@example.com"}, want: 403},
		"a longer mail":          {claims: map[string]any{"email": "ann@example.com.evil.example"}, want: 403},
		"two in one":             {claims: map[string]any{"email": "ann@example.com@evil.example"}, want: 403},
		"with a line":            {claims: map[string]any{"email": "ann@example.com\n"}, want: 403},
		"in capitals":            {claims: map[string]any{"email": "Ann@Example.COM"}, want: 303},
		"a mail that is no text": {claims: map[string]any{"email": []string{"ann@example.com"}}, want: 400},
	} {
		t.Run(name, func(t *testing.T) {
			p.t = t
			g := withProvider(t, p, nil)
			p.mu.Lock()
			p.claims, p.sign, p.body, p.header = test.claims, test.sign, test.body, `{"alg":"RS256","kid":"1"}`
			if test.header != "" {
				p.header = test.header
			}
			p.mu.Unlock()
			location, cookie := begin(t, g, "/")
			w := back(g, p.consent(location), cookie)
			if in := strings.Contains(w.Header().Get("Set-Cookie"), g.login.cookie()); w.Code != test.want || in != (test.want == 303) {
				t.Errorf("%d, in: %t, want %d; %s", w.Code, in, test.want, w.Body)
			}
		})
	}
}

func TestTheListDecides(t *testing.T) {
	for name, test := range map[string]struct {
		rule OIDC
		told login
		ok   bool
	}{
		"a mail":                {OIDC{Mails: []string{"ann@example.com"}}, login{ID: "1", Mail: "ANN@example.com"}, true},
		"a domain":              {OIDC{Mails: []string{"@example.com"}}, login{ID: "1", Mail: "ann@example.com"}, true},
		"a domain below":        {OIDC{Mails: []string{"@example.com"}}, login{ID: "1", Mail: "ann@x.example.com"}, false},
		"a domain that ends so": {OIDC{Mails: []string{"@example.com"}}, login{ID: "1", Mail: "ann@evilexample.com"}, false},
		"no mail":               {OIDC{Mails: []string{"@example.com"}}, login{ID: "1"}, false},
		"a subject":             {OIDC{Subjects: []string{"1"}}, login{ID: "1"}, true},
		"a subject in a mail":   {OIDC{Subjects: []string{"1"}}, login{ID: "2", Mail: "1"}, false},
		"no subject":            {OIDC{Subjects: []string{"1"}}, login{}, false},
		"a group":               {OIDC{Groups: []string{"family"}}, login{ID: "1", Groups: []string{"x", "family"}}, true},
		"another group":         {OIDC{Groups: []string{"family"}}, login{ID: "1", Groups: []string{"Family"}}, false},
		"nobody":                {OIDC{}, login{ID: "1", Mail: "ann@example.com", Groups: []string{"x"}}, false},
	} {
		t.Run(name, func(t *testing.T) {
			l, ok := test.rule.allows(test.told)
			if ok != test.ok {
				t.Errorf("%+v: %t", l, ok)
			}
			for _, group := range l.Groups {
				if group == "x" {
					t.Error("groups that do not count are kept")
				}
			}
		})
	}
}

func TestWhatIDTokensLeaveOutIsAskedFor(t *testing.T) {
	p := newProvider(t)
	p.claims = map[string]any{"email": nil, "email_verified": nil}
	for name, test := range map[string]struct {
		info map[string]any
		want int
	}{
		"the mail":           {map[string]any{"sub": "ann-1", "email": "ann@example.com", "email_verified": true}, 303},
		"somebody else":      {map[string]any{"sub": "bob-1", "email": "ann@example.com", "email_verified": true}, 400},
		"a group":            {map[string]any{"sub": "ann-1", "groups": []string{"family"}}, 303},
		"one group in words": {map[string]any{"sub": "ann-1", "groups": "family"}, 303},
		"nothing":            {map[string]any{"sub": "ann-1"}, 403},
	} {
		t.Run(name, func(t *testing.T) {
			p.mu.Lock()
			p.t, p.info = t, test.info
			p.mu.Unlock()
			g := withProvider(t, p, func(o *OIDC) { o.Groups = []string{"family"} })
			location, cookie := begin(t, g, "/")
			if w := back(g, p.consent(location), cookie); w.Code != test.want {
				t.Errorf("%d, want %d; %s", w.Code, test.want, w.Body)
			}
		})
	}
}

func TestALoginNeverLeadsAway(t *testing.T) {
	p := newProvider(t)
	g := withProvider(t, p, nil)
	for target, want := range map[string]string{
		"/x?next=https://evil.example":  "/x?next=https://evil.example",
		"//evil.example/":               "/",
		"///evil.example/":              "/",
		"/\\evil.example/":              "/%5Cevil.example/", // escaped, it is a part of a path
		"/%5cevil.example/":             "/%5cevil.example/",
		"https://evil.example/":         "/",
		"/" + strings.Repeat("x", 5000): "/",
	} {
		r := httptest.NewRequest("GET", "https://nas.example.org/", http.NoBody)
		u, err := url.Parse(target)
		if err != nil {
			t.Fatal(err)
		}
		r.URL = u
		r.Header.Set("Accept", "text/html")
		// Nor does a Host that came decide where the provider sends its answer: consent checks the address.
		r.Host = "evil.example"
		r.Header.Set("X-Forwarded-Host", "evil.example")
		w := g.send(r.WithContext(withCaller(r.Context(), g.from)))
		if w.Code != http.StatusSeeOther {
			t.Fatalf("%q: %d", target, w.Code)
		}
		got := back(g, p.consent(w.Header().Get("Location")), cookiesOf(w)).Header().Get("Location")
		if got != want {
			t.Errorf("%.40q leads to %.40q, want %.40q", target, got, want)
		}
	}
	for _, path := range []string{"", "x", "//x", "/\\x", "\\/x", "/\t/x", "/\n/x", "/x\r\nSet-Cookie: a", "/\x00", "http://x"} {
		if got := localPath(path, "/home"); got != "/home" {
			t.Errorf("%q leads to %q", path, got)
		}
	}
}

func TestAProviderThatDoesNotAnswer(t *testing.T) {
	p := newProvider(t)
	for name, describe := range map[string]map[string]any{
		"another issuer":        {"issuer": "https://evil.example"},
		"tokens in the clear":   {"token_endpoint": "http://192.0.2.1/token"},
		"a page that is script": {"authorization_endpoint": "javascript:alert(1)"},
		"too much":              {"x": strings.Repeat("x", 2<<20)},
	} {
		t.Run(name, func(t *testing.T) {
			p.mu.Lock()
			p.describe = describe
			p.mu.Unlock()
			g := withProvider(t, p, nil)
			if w := g.ask("GET", "/", "Accept", "text/html"); w.Code != http.StatusBadGateway || g.got != nil || w.Header().Get("Retry-After") == "" {
				t.Errorf("%d %s", w.Code, w.Body)
			}
		})
	}
	// One that is down is asked once in a while, not by every visitor; the log says so without the visitor's code.
	var asked int
	var notes bytes.Buffer
	shared := &guards{Log: slog.New(slog.NewTextHandler(&notes, nil)), Client: &http.Client{Transport: roundTrip(func(*http.Request) (*http.Response, error) {
		asked++
		return nil, errOffline
	})}}
	g := newGuarded(t, Access{Login: &OIDC{Issuer: "https://id.example", ClientID: "nas", Subjects: []string{"1"}}}, shared)
	for range 5 {
		if w := g.ask("GET", "/", "Accept", "text/html"); w.Code != http.StatusBadGateway || strings.Contains(w.Body.String(), "id.example") {
			t.Errorf("%d %s", w.Code, w.Body)
		}
	}
	if asked != 1 || !strings.Contains(notes.String(), "no network here") {
		t.Errorf("asked %d times; logged %s", asked, &notes)
	}
}

func TestCodesAreNotLogged(t *testing.T) {
	p := newProvider(t)
	var notes bytes.Buffer
	o := &OIDC{Issuer: p.server.URL, ClientID: "nas", Secret: "CLIENT", Subjects: []string{"ann-1"}}
	g := newGuarded(t, Access{Login: o}, &guards{Log: slog.New(slog.NewTextHandler(&notes, &slog.HandlerOptions{Level: slog.LevelDebug}))})
	location, cookie := begin(t, g, "/")
	q := p.consent(location)
	q.Set("code", "SECRETCODE")
	if w := back(g, q, cookie); w.Code != http.StatusBadRequest {
		t.Errorf("%d", w.Code)
	}
	if got := notes.String(); !strings.Contains(got, "invalid_grant") || strings.Contains(got, "SECRET") || strings.Contains(got, "CLIENT") || strings.Contains(got, q.Get("state")) {
		t.Errorf("logged %s", got)
	}
}

func TestLoginsThatComeBackAreLimited(t *testing.T) {
	p := newProvider(t)
	g := withProvider(t, p, nil)
	last := 0
	for range 11 {
		last = back(g, url.Values{"code": {"x"}, "state": {"y"}}, "").Code
	}
	if last != http.StatusTooManyRequests {
		t.Errorf("the eleventh: %d", last)
	}
}

func TestBrowsersLogInAndProgramsHavePasswords(t *testing.T) {
	p := newProvider(t)
	o := &OIDC{Issuer: p.server.URL, ClientID: "nas", Subjects: []string{"ann-1"}}
	g := newGuarded(t, Access{Login: o, Basic: &Basic{Users: map[string]string{"ann": cheapHash}}}, nil)
	begin(t, g, "/")
	w := g.ask("GET", "/")
	g.wantStatus(w, http.StatusUnauthorized)
	if !strings.HasPrefix(w.Header().Get("WWW-Authenticate"), "Basic ") {
		t.Errorf("challenge %q", w.Header().Get("WWW-Authenticate"))
	}
	g.wantStatus(g.ask("GET", "/", "Authorization", basicOf("ann", "secret")), http.StatusOK)
	g.wantStatus(g.ask("GET", "/", "Authorization", basicOf("ann", "wrong"), "Accept", "text/html"), http.StatusUnauthorized)
}

func TestAskingAProviderIsNotLost(t *testing.T) {
	// Who asks first hangs up: the answer is there for who comes next.
	p := newProvider(t)
	shared := &guards{}
	ctx, cancel := context.WithCancel(t.Context())
	s := shared.source(p.server.URL)
	cancel()
	if _, err := s.provider(ctx, shared); err != nil {
		t.Fatal(err) // the place was free, so that it asked at once
	}
	found, err, settled := s.known()
	if found == nil || err != nil || !settled {
		t.Errorf("known: %v %v %t", found, err, settled)
	}
	// And who waits for somebody else's question does so only while the visitor is there.
	busy := shared.source("https://busy.example")
	busy.asking <- struct{}{}
	if _, err := busy.provider(ctx, shared); !errors.Is(err, context.Canceled) {
		t.Errorf("waited for %v", err)
	}
}

// FuzzCallback checks that no query and no cookie of a visitor's own making gets anybody in.
func FuzzCallback(f *testing.F) {
	f.Add("state=a&code=b", "__Host-meshdns-x-flow=y")
	f.Add("state=%zz;code", "=;;=")
	offline := &http.Client{Transport: roundTrip(func(*http.Request) (*http.Response, error) { return nil, errOffline })}
	f.Fuzz(func(t *testing.T, query, cookie string) {
		o := &OIDC{Issuer: "https://id.example", ClientID: "nas", Subjects: []string{"1"}}
		g := newGuarded(t, Access{Login: o}, &guards{Client: offline})
		r := httptest.NewRequest("GET", "https://nas.example.org/.meshdns/callback", http.NoBody)
		r.URL.RawQuery = query
		r.Header["Cookie"] = []string{cookie, strings.ReplaceAll(cookie, "x", g.login.sealer.id)}
		w := g.send(r.WithContext(withCaller(r.Context(), g.from)))
		if w.Code < 400 || w.Header().Get("Set-Cookie") != "" || g.got != nil {
			t.Errorf("%d %v", w.Code, w.Header())
		}
		left := http.Header{"Cookie": {cookie}}
		takeCookies(left)
		if strings.Contains(strings.ToLower(left.Get("Cookie")), "; __host-meshdns-") || strings.HasPrefix(strings.ToLower(left.Get("Cookie")), "__host-meshdns-") {
			t.Errorf("%q leaves %q", cookie, left)
		}
	})
}

package funnel

import (
	"bufio"
	"io"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"
)

// recorder is a target that remembers the last request.
type recorder struct {
	mu   sync.Mutex
	last *http.Request
	body string
}

func (r *recorder) ServeHTTP(w http.ResponseWriter, in *http.Request) {
	body, _ := io.ReadAll(in.Body)
	r.mu.Lock()
	defer r.mu.Unlock()
	r.last, r.body = in, string(body)
}

// saw is the last request.
func (r *recorder) saw() *http.Request {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.last
}

// sendRaw sends bytes in a connection of its own, and returns the status of the first answer.
func sendRaw(t *testing.T, addr, request string) int {
	t.Helper()
	conn, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(time.Minute)); err != nil {
		t.Fatal(err)
	}
	if _, err := io.WriteString(conn, request); err != nil {
		t.Fatal(err)
	}
	res, err := http.ReadResponse(bufio.NewReader(conn), nil)
	if err != nil {
		t.Fatal(err)
	}
	res.Body.Close()
	return res.StatusCode
}

func TestWhoCameIsOursToSay(t *testing.T) {
	w := newWorld(t)
	rec := &recorder{}
	w.set(site("http", "a.example", 80, false, backend(t, rec.ServeHTTP)))
	addr := w.tailnet(80)
	lies := []string{"X-Forwarded-For", "x_forwarded_for", "X.Forwarded.For", "X-FORWARDED_host", "X-Forwarded-Proto", "X-Forwarded-User", "X-Forwarded-Groups",
		"Forwarded", "X-Real-IP", "x_real_ip", "True-Client-IP", "Client-IP", "CF-Connecting-IP",
		"Meshdns-Node", "meshdns_node", "MESHDNS-Tags", "Meshdns.Addresses", "Meshdns-Funnel", "Meshdns-Anything", "Meshdns!Node",
		"Tailscale-User-Login", "tailscale_user_login", "Remote-User", "remote_user", "X-Remote-User", "X-WebAuth-User", "X-Auth-Request-Email",
		"X-Original-URL", "X-Rewrite-URL", "Proxy", "X-Host"}
	// What Connection names goes away, and must not take along what we add.
	request := "GET / HTTP/1.1\r\nHost: a.example\r\nX-Own: kept\r\nUnder_score: kept\r\n" +
		strings.Join(lies, ": 6.6.6.6\r\n") + ": 6.6.6.6\r\n" +
		"Connection: keep-alive, x-forwarded-for, Meshdns-Node, X-Real-Ip, forwarded\r\n\r\n"
	if got := sendRaw(t, addr, request); got != 200 {
		t.Fatal(got)
	}
	r := rec.saw()
	for name, values := range r.Header {
		if strings.Contains(strings.Join(values, ","), "6.6.6.6") {
			t.Errorf("%s: %s has come through", name, values)
		}
	}
	for name, want := range map[string]string{
		"X-Forwarded-For": "127.0.0.1", "X-Forwarded-Host": "a.example", "X-Forwarded-Proto": "http", "X-Forwarded-Port": "80", "X-Real-Ip": "127.0.0.1",
		"Forwarded":    `for=127.0.0.1;host="a.example";proto=http`,
		"Meshdns-Node": "laptop.example", "Meshdns-Addresses": "100.64.0.9, fd7a::9", "Meshdns-Tags": "admin, web",
		"X-Own": "kept", "Under_score": "kept", "Connection": "", "Keep-Alive": "",
	} {
		if got := r.Header.Values(name); strings.Join(got, ",") != want || len(got) > 1 {
			t.Errorf("%s: %q, want %q", name, got, want)
		}
	}
}

func TestTheWorldHasNoIdentity(t *testing.T) {
	w := newWorld(t)
	rec := &recorder{}
	w.set(site("https", "public.example", 443, true, backend(t, rec.ServeHTTP)))
	w.caller = Caller{Node: "laptop.example", Tags: []string{"admin"}, Owner: true} // which Identify would say
	c := w.client(w.public("public.example", 443, "https"), http2)
	w.get(c, "https://public.example/", func(r *http.Request) {
		r.Header.Set("Meshdns-Node", "admin.example")
		r.Header.Set("X_Forwarded_For", "100.64.0.1")
	})
	h := rec.saw().Header
	for name, want := range map[string]string{
		"X-Forwarded-For": "198.51.100.7", "X-Forwarded-Proto": "https", "Meshdns-Funnel": "?1", "Meshdns-Node": "", "Meshdns-Tags": "", "X_forwarded_for": "",
		"Forwarded": `for=198.51.100.7;host="public.example";proto=https`,
	} {
		if got := strings.Join(h.Values(name), ","); got != want {
			t.Errorf("%s: %q, want %q", name, got, want)
		}
	}
}

func TestVisitorsOverIPv6AreNamed(t *testing.T) {
	in := httpRequest(t, "GET", "http://a.example/")
	in = in.WithContext(withCaller(in.Context(), Caller{Public: true, Addr: netip.MustParseAddrPort("[2001:db8::7]:443")}))
	out := in.Clone(in.Context())
	forward(out, in)
	if got := out.Header.Get("Forwarded"); got != `for="[2001:db8::7]";host="a.example";proto=http` {
		t.Error(got)
	}
	if got := out.Header.Get("X-Forwarded-For"); got != "2001:db8::7" {
		t.Error(got)
	}
}

func httpRequest(t *testing.T, method, url string) *http.Request {
	t.Helper()
	r, err := http.NewRequestWithContext(t.Context(), method, url, nil)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func TestWhatIsForOneConnectionEndsThere(t *testing.T) {
	w := newWorld(t)
	rec := &recorder{}
	w.set(site("http", "a.example", 80, false, backend(t, rec.ServeHTTP)))
	addr := w.tailnet(80)
	request := "POST / HTTP/1.1\r\nHost: a.example\r\nConnection: X-Hop, Upgrade, close\r\nX-Hop: 1\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAAP__\r\n" +
		"Keep-Alive: timeout=5\r\nProxy-Connection: keep-alive\r\nProxy-Authorization: Basic eDp5\r\nTE: trailers, gzip\r\nX-End: 1\r\n" +
		"Transfer_Encoding: chunked\r\nContent_Length: 44\r\nContent-Length: 3\r\n\r\nabc"
	if got := sendRaw(t, addr, request); got != 200 {
		t.Fatal(got)
	}
	r := rec.saw()
	for _, name := range []string{"X-Hop", "Connection", "Upgrade", "Http2-Settings", "Keep-Alive", "Proxy-Connection", "Proxy-Authorization", "Transfer_encoding", "Content_length"} {
		if got := r.Header.Values(name); len(got) > 0 {
			t.Errorf("%s: %q has come through", name, got)
		}
	}
	if r.Header.Get("X-End") != "1" || r.Header.Get("Te") != "trailers" || rec.body != "abc" {
		t.Errorf("%v %q", r.Header, rec.body)
	}
}

func TestRulesForHeaders(t *testing.T) {
	w := newWorld(t)
	rec := &recorder{}
	to := backend(t, func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("X-Powered-By", "something")
		w.Header().Set("Alt-Svc", `h3=":8443"`)
		rec.ServeHTTP(w, r)
	})
	rules := HeaderRules{
		Set: map[string]string{"X-Api-Key": "k", "host": "inner.example", "cookie": "a=b"}, Remove: []string{"authorization", "Cookie"},
		ResponseSet: map[string]string{"Strict-Transport-Security": "max-age=1"}, ResponseRemove: []string{"x-powered-by"},
	}
	w.set(Entry{Kind: "http", Name: "a.example", Port: 80, Mounts: []Mount{
		{Path: "/", Target: to, Headers: rules}, {Path: "/text", Target: "text:x", Headers: rules},
	}})
	c := w.client(w.tailnet(80), http1)
	got := w.get(c, "http://a.example/", func(r *http.Request) {
		r.Header.Set("Authorization", "Bearer x")
		r.Header.Set("Cookie", "other=1")
	})
	r := rec.saw()
	if r.Header.Get("X-Api-Key") != "k" || r.Host != "inner.example" || r.Header.Get("Authorization") != "" || r.Header.Get("Cookie") != "a=b" {
		t.Errorf("%s %v", r.Host, r.Header)
	}
	if r.Header.Get("X-Forwarded-Host") != "a.example" {
		t.Errorf("X-Forwarded-Host: %s", r.Header.Get("X-Forwarded-Host"))
	}
	for _, got := range []answer{got, w.get(c, "http://a.example/text")} {
		if got.header.Get("Strict-Transport-Security") != "max-age=1" || got.header.Get("X-Powered-By") != "" || got.header.Get("Alt-Svc") != "" {
			t.Errorf("%v", got.header)
		}
	}
	for name, bad := range map[string]HeaderRules{
		"a value with a line end": {Set: map[string]string{"X": "a\r\nB: c"}},
		"a name with a space":     {Set: map[string]string{"X Y": "a"}},
		"a name with a line end":  {ResponseSet: map[string]string{"X\r\nY": "a"}},
		"what frames":             {Set: map[string]string{"transfer-encoding": "chunked"}},
		"a length":                {ResponseSet: map[string]string{"Content-Length": "1"}},
		"who came":                {Set: map[string]string{"meshdns_node": "x"}},
		"from where":              {Set: map[string]string{"x-forwarded-for": "x"}},
		"too many":                {Remove: make([]string, maxHeaderSets+1)},
	} {
		if bad.check() == nil {
			t.Errorf("%s: it is taken", name)
		}
	}
}

package funnel

import (
	"bufio"
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/http/httptrace"
	"net/textproto"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/net/websocket"
)

func TestWebSockets(t *testing.T) {
	w := newWorld(t)
	echo := backend(t, websocket.Handler(func(c *websocket.Conn) {
		for message := ""; websocket.Message.Receive(c, &message) == nil; {
			_ = websocket.Message.Send(c, message)
		}
	}).ServeHTTP)
	w.set(site("https", "a.example", 443, false, echo), site("https", "public.example", 443, true, echo))
	for name, addr := range map[string]string{"a.example": w.tailnet(443), "public.example": w.public("public.example", 443, "https")} {
		t.Run(name, func(t *testing.T) {
			raw, err := w.handshake(addr, &tls.Config{ServerName: name})
			if err != nil {
				t.Fatal(err)
			}
			cfg, err := websocket.NewConfig("wss://"+name+"/echo", "https://"+name)
			if err != nil {
				t.Fatal(err)
			}
			conn, err := websocket.NewClient(cfg, raw)
			if err != nil {
				t.Fatal(err)
			}
			// These bytes are no HTTP, and are longer than any head.
			for _, message := range []string{"hello\n\x00\r", strings.Repeat("x", 200<<10)} {
				if err := websocket.Message.Send(conn, message); err != nil {
					t.Fatal(err)
				}
				var got string
				if err := websocket.Message.Receive(conn, &got); err != nil || got != message {
					t.Fatalf("%d bytes, %v", len(got), err)
				}
			}
		})
	}
}

func TestNoOtherProtocolIsUpgradedTo(t *testing.T) {
	w := newWorld(t)
	var upgrades atomic.Int64
	to := backend(t, func(rw http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Upgrade") != "" {
			upgrades.Add(1)
		}
		if r.URL.Path == "/changes" { // whether it was asked to or not
			conn, _, err := http.NewResponseController(rw).Hijack()
			if err != nil {
				return
			}
			defer conn.Close()
			_, _ = io.WriteString(conn, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\n\r\nGET / HTTP/1.1")
		}
	})
	w.set(site("http", "a.example", 80, false, to))
	addr := w.tailnet(80)
	const key = "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\nSec-WebSocket-Version: 13\r\n"
	for name, request := range map[string]string{
		"h2c":               "GET / HTTP/1.1\r\nHost: a.example\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAAP__\r\n\r\n",
		"a list":            "GET / HTTP/1.1\r\nHost: a.example\r\nConnection: Upgrade\r\nUpgrade: websocket, h2c\r\n" + key + "\r\n",
		"two headers":       "GET / HTTP/1.1\r\nHost: a.example\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nUpgrade: h2c\r\n" + key + "\r\n",
		"something unknown": "GET / HTTP/1.1\r\nHost: a.example\r\nConnection: Upgrade\r\nUpgrade: x/1\r\n\r\n",
		"without a key":     "GET / HTTP/1.1\r\nHost: a.example\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n",
		"by POST":           "POST / HTTP/1.1\r\nHost: a.example\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nContent-Length: 0\r\n" + key + "\r\n",
		"with a body":       "GET / HTTP/1.1\r\nHost: a.example\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nContent-Length: 1\r\n" + key + "\r\nx",
		"in HTTP/1.0":       "GET / HTTP/1.0\r\nHost: a.example\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n" + key + "\r\n",
	} {
		t.Run(name, func(t *testing.T) {
			if got := sendRaw(t, addr, request); got != 200 {
				t.Errorf("%d, want an answer without an upgrade", got)
			}
			if upgrades.Load() != 0 {
				t.Error("the target was asked to change the protocol")
			}
		})
	}
	if got := sendRaw(t, addr, "GET /changes HTTP/1.1\r\nHost: a.example\r\n\r\n"); got != 502 {
		t.Errorf("a target that changes by itself: %d", got)
	}
	for _, method := range []string{"CONNECT", "TRACE"} {
		if got := sendRaw(t, addr, method+" a.example:80 HTTP/1.1\r\nHost: a.example\r\n\r\n"); got != 405 && got != 421 && got != 400 {
			t.Errorf("%s: %d", method, got)
		}
	}
}

// pipe is a body that is written piece by piece.
func pipe(t *testing.T) (*io.PipeReader, *io.PipeWriter) {
	r, w := io.Pipe()
	t.Cleanup(func() { w.Close(); r.Close() })
	return r, w
}

// callEcho answers each line at once, then with trailers, as gRPC does.
func callEcho(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Content-Type", "application/grpc")
	w.Header().Set("Trailer", "Grpc-Status")
	w.Header().Set("Proto", r.Proto)
	control := http.NewResponseController(w)
	w.WriteHeader(200)
	_ = control.Flush()
	lines := bufio.NewScanner(r.Body)
	for lines.Scan() {
		_, _ = fmt.Fprintln(w, lines.Text())
		_ = control.Flush()
	}
	w.Header().Set("Grpc-Status", "0")
	w.Header().Set(http.TrailerPrefix+"Grpc-Message", "te="+r.Header.Get("Te"))
}

func TestGRPC(t *testing.T) {
	w := newWorld(t)
	plain := httptest.NewUnstartedServer(http.HandlerFunc(callEcho))
	plain.Config.Protocols = new(http.Protocols)
	plain.Config.Protocols.SetUnencryptedHTTP2(true)
	plain.Start()
	t.Cleanup(plain.Close)
	secure := httptest.NewUnstartedServer(http.HandlerFunc(callEcho))
	secure.EnableHTTP2 = true
	secure.StartTLS()
	t.Cleanup(secure.Close)
	w.set(site("https", "a.example", 443, false, plain.URL), site("https", "b.example", 443, false, "https+insecure"+strings.TrimPrefix(secure.URL, "https")),
		site("http", "a.example", 80, false, plain.URL))
	for name, test := range map[string]struct {
		addr, url string
		protocols func(*http.Protocols)
	}{
		"https to h2c":   {w.tailnet(443), "https://a.example/service/Method", http2},
		"https to https": {w.tailnet(443), "https://b.example/service/Method", http2},
		"h2c to h2c":     {w.tailnet(80), "http://a.example/service/Method", h2c},
	} {
		t.Run(name, func(t *testing.T) {
			body, write := pipe(t)
			r, err := http.NewRequestWithContext(t.Context(), "POST", test.url, body)
			if err != nil {
				t.Fatal(err)
			}
			r.Header.Set("Content-Type", "application/grpc+proto")
			r.Header.Set("Te", "trailers")
			res, err := w.client(test.addr, test.protocols).Do(r)
			if err != nil {
				t.Fatal(err)
			}
			defer res.Body.Close()
			if res.Header.Get("Proto") != "HTTP/2.0" {
				t.Fatalf("the target was asked by %q (%d)", res.Header.Get("Proto"), res.StatusCode)
			}
			// Both ways at once: each line is answered before the next one is sent.
			lines := bufio.NewReader(res.Body)
			for i := range 3 {
				if _, err := fmt.Fprintf(write, "line %d\n", i); err != nil {
					t.Fatal(err)
				}
				if got, err := lines.ReadString('\n'); err != nil || got != fmt.Sprintf("line %d\n", i) {
					t.Fatalf("%q, %v", got, err)
				}
			}
			write.Close()
			if _, err := io.ReadAll(lines); err != nil {
				t.Fatal(err)
			}
			if res.Trailer.Get("Grpc-Status") != "0" || res.Trailer.Get("Grpc-Message") != "te=trailers" {
				t.Errorf("trailers %v", res.Trailer)
			}
		})
	}
}

func TestEventsComeAtOnce(t *testing.T) {
	w := newWorld(t)
	next := make(chan string)
	to := backend(t, func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/events":
			w.Header().Set("Content-Type", "text/event-stream")
		case "/length":
			w.Header().Set("Content-Length", "8")
		}
		control := http.NewResponseController(w)
		_ = control.Flush()
		for range 2 {
			_, _ = io.WriteString(w, <-next)
			_ = control.Flush()
		}
	})
	w.set(site("https", "a.example", 443, false, to))
	addr := w.tailnet(443)
	for _, path := range []string{"/events", "/length", "/any"} {
		for _, protocols := range []func(*http.Protocols){http1, http2} {
			res, err := w.client(addr, protocols).Get("https://a.example" + path)
			if err != nil {
				t.Fatal(err)
			}
			defer res.Body.Close()
			buf := make([]byte, 4)
			for _, part := range []string{"abc\n", "def\n"} {
				next <- part
				if _, err := io.ReadFull(res.Body, buf); err != nil || string(buf) != part {
					t.Fatalf("%s: %q, %v", path, buf, err)
				}
			}
		}
	}
}

func TestContinueIsTheTargetsToSay(t *testing.T) {
	w := newWorld(t)
	w.server.times.proceed = time.Minute
	read := make(chan int64, 1)
	to := backend(t, func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/refused" {
			w.WriteHeader(http.StatusExpectationFailed)
			read <- 0
			return
		}
		n, _ := io.Copy(io.Discard, r.Body)
		read <- n
	})
	w.set(site("https", "a.example", 443, false, to))
	addr := w.tailnet(443)
	for name, test := range map[string]struct {
		path   string
		status int
		asked  bool
		bytes  int64
	}{
		"taken":   {"/taken", 200, true, 1 << 20},
		"refused": {"/refused", 417, false, 0},
	} {
		t.Run(name, func(t *testing.T) {
			c := w.client(addr, http1)
			c.Transport.(*http.Transport).ExpectContinueTimeout = time.Minute
			continued := false
			ctx := httptrace.WithClientTrace(t.Context(), &httptrace.ClientTrace{Got100Continue: func() { continued = true }})
			r, err := http.NewRequestWithContext(ctx, "PUT", "https://a.example"+test.path, io.LimitReader(endless{}, 1<<20))
			if err != nil {
				t.Fatal(err)
			}
			r.ContentLength = 1 << 20
			r.Header.Set("Expect", "100-continue")
			got := w.do(c, r)
			if n := <-read; got.status != test.status || continued != test.asked || n != test.bytes {
				t.Errorf("%d, continued %v, %d bytes", got.status, continued, n)
			}
		})
	}
}

// endless has as many as are read.
type endless struct{}

func (endless) Read(p []byte) (int, error) {
	clear(p)
	return len(p), nil
}

func TestOtherInterimAnswersPass(t *testing.T) {
	w := newWorld(t)
	w.set(site("https", "a.example", 443, false, backend(t, func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Link", "</x.css>; rel=preload")
		w.WriteHeader(http.StatusEarlyHints)
	})))
	addr := w.tailnet(443)
	for _, protocols := range []func(*http.Protocols){http1, http2} {
		var link string
		trace := &httptrace.ClientTrace{Got1xxResponse: func(_ int, h textproto.MIMEHeader) error {
			link = h.Get("Link")
			return nil
		}}
		r := httpRequest(t, "GET", "https://a.example/")
		got := w.do(w.client(addr, protocols), r.WithContext(httptrace.WithClientTrace(r.Context(), trace)))
		if got.status != 200 || link == "" {
			t.Errorf("%d %q", got.status, link)
		}
	}
}

func TestTrailersOfRequestsPass(t *testing.T) {
	w := newWorld(t)
	rec := &recorder{}
	w.set(site("https", "a.example", 443, false, backend(t, rec.ServeHTTP)))
	addr := w.tailnet(443)
	for _, protocols := range []func(*http.Protocols){http1, http2} {
		r, err := http.NewRequestWithContext(t.Context(), "POST", "https://a.example/", io.LimitReader(endless{}, 100<<10))
		if err != nil {
			t.Fatal(err)
		}
		r.Trailer = http.Header{"Checksum": {"abc"}, "X-Forwarded-For": {"6.6.6.6"}, "Meshdns_node": {"admin"}}
		if got := w.do(w.client(addr, protocols), r); got.status != 200 {
			t.Fatal(got.status)
		}
		if got := rec.saw().Trailer; got.Get("Checksum") != "abc" || len(got) != 1 {
			t.Errorf("%v", got)
		}
	}
}

func TestBodiesAreNotHeld(t *testing.T) {
	w := newWorld(t)
	const size = 64 << 20
	got := make(chan int64, 1)
	to := backend(t, func(w http.ResponseWriter, r *http.Request) {
		n, _ := io.Copy(io.Discard, r.Body)
		got <- n
		_, _ = io.CopyN(w, endless{}, size)
	})
	w.set(site("https", "a.example", 443, false, to))
	addr := w.tailnet(443)
	for _, protocols := range []func(*http.Protocols){http1, http2} {
		r, err := http.NewRequestWithContext(t.Context(), "PUT", "https://a.example/", io.LimitReader(endless{}, size))
		if err != nil {
			t.Fatal(err)
		}
		res, err := w.client(addr, protocols).Do(r)
		if err != nil {
			t.Fatal(err)
		}
		n, err := io.Copy(io.Discard, res.Body)
		res.Body.Close()
		if up := <-got; err != nil || n != size || up != size {
			t.Errorf("%d bytes up, %d down, %v", up, n, err)
		}
	}
}

func TestConnectionsToTargetsAreKept(t *testing.T) {
	w := newWorld(t)
	var conns atomic.Int64
	s := httptest.NewUnstartedServer(http.HandlerFunc(mirror))
	s.Config.ConnState = func(_ net.Conn, state http.ConnState) {
		if state == http.StateNew {
			conns.Add(1)
		}
	}
	s.Start()
	t.Cleanup(s.Close)
	entry := site("https", "a.example", 443, false, s.URL)
	w.set(entry)
	c := w.client(w.tailnet(443), http2)
	for i := range 10 {
		if i == 5 { // a change elsewhere changes nothing here
			w.set(entry, site("https", "b.example", 443, false, "text:b"))
		}
		w.get(c, "https://a.example/")
	}
	if n := conns.Load(); n != 1 {
		t.Errorf("%d connections", n)
	}
}

func TestPathsReachTargetsAsTheyAre(t *testing.T) {
	w := newWorld(t)
	to := backend(t, mirror)
	w.set(Entry{Kind: "http", Name: "a.example", Port: 80, Mounts: []Mount{
		{Path: "/", Target: to}, {Path: "/m", Target: to}, {Path: "/m/deep", Target: "http://" + to + "/base/?k=v"}, {Path: "/s", Target: "http://" + to + "/base"},
	}})
	addr := w.tailnet(80)
	for path, want := range map[string]string{
		"/":                        "/",
		"/a%2Fb/%41?x=%zz;y&&":     "/a%2Fb/%41?x=%zz;y&&",
		"/a//b":                    "/a//b",
		"/?":                       "/?",
		"/mm":                      "/mm",
		"/m":                       "/",
		"/m/":                      "/",
		"/m/x%2Fy?z":               "/x%2Fy?z",
		"/m/x//y":                  "/x//y",
		"//m/x":                    "/x",
		"/%6d/x":                   "/x",
		"/m/deep":                  "/base?k=v",
		"/m/deep/x?y":              "/base/x?k=v&y",
		"/m/deeper":                "/deeper",
		"/s":                       "/base",
		"/s/":                      "/base/",
		"/s/x":                     "/base/x",
		"/%E2%82%AC":               "/%E2%82%AC",
		"/m%2Fx":                   "400",
		"/x%2F../m":                "400",
		"/m%2Fdeep/x":              "400",
		"/m/deep%2Fx":              "400",
		"/x/../m":                  "400",
		"/x/%2e%2e/m":              "400",
		"/x/.%2e;a/m":              "400",
		"/x\\..\\m":                "400",
		"/x/./m":                   "400",
		"/x/..":                    "400",
		"/%00":                     "400",
		"/%zz":                     "400",
		"*":                        "400",
		"http://a.example/m/x?y":   "/x?y",
		"http://evil.example/m/x?": "421",
	} {
		t.Run(path, func(t *testing.T) {
			conn, err := net.Dial("tcp", addr)
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			method := "GET "
			if path == "*" {
				method = "OPTIONS "
			}
			if _, err := io.WriteString(conn, method+path+" HTTP/1.1\r\nHost: a.example\r\n\r\n"); err != nil {
				t.Fatal(err)
			}
			res, err := http.ReadResponse(bufio.NewReader(conn), nil)
			if err != nil {
				t.Fatal(err)
			}
			defer res.Body.Close()
			body, err := io.ReadAll(res.Body)
			if err != nil {
				t.Fatal(err)
			}
			got, _, _ := strings.Cut(strings.TrimPrefix(string(body), "GET "), " HTTP/")
			if res.StatusCode != 200 {
				got = fmt.Sprint(res.StatusCode)
			}
			if got != want {
				t.Errorf("got %s, want %s", got, want)
			}
		})
	}
}

// An answer that breaks off must not look whole.
func TestAnAnswerThatBreaksOffIsSeen(t *testing.T) {
	w := newWorld(t)
	to := listener(t, func(c net.Conn) {
		_, _ = http.ReadRequest(bufio.NewReader(c))
		_, _ = io.WriteString(c, "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n")
	})
	w.set(site("https", "a.example", 443, false, to))
	addr := w.tailnet(443)
	for _, protocols := range []func(*http.Protocols){http1, http2} {
		res, err := w.client(addr, protocols).Get("https://a.example/")
		if err != nil {
			continue
		}
		body, err := io.ReadAll(res.Body)
		res.Body.Close()
		if err == nil {
			t.Errorf("%q looks whole", body)
		}
	}
}

func TestALoopEnds(t *testing.T) {
	w := newWorld(t)
	ln := listenTest(t)
	w.set(Entry{Kind: "http", Name: "a.example", Port: 80, Mounts: []Mount{{Path: "/", Target: ln.Addr().String()}}})
	w.serve(ln, 80, false)
	if got := w.get(w.client(ln.Addr().String(), http1), "http://a.example/"); got.status != http.StatusLoopDetected || !strings.Contains(got.body, "leads back") {
		t.Errorf("%+v", got)
	}
}

// A visitor who leaves has the target's work end.
func TestWhoLeavesIsNotWorkedFor(t *testing.T) {
	w := newWorld(t)
	ended := make(chan struct{})
	started := make(chan struct{})
	w.set(site("https", "a.example", 443, false, backend(t, func(_ http.ResponseWriter, r *http.Request) {
		close(started)
		<-r.Context().Done()
		close(ended)
	})))
	ctx, cancel := context.WithCancel(t.Context())
	r, err := http.NewRequestWithContext(ctx, "GET", "https://a.example/", nil)
	if err != nil {
		t.Fatal(err)
	}
	go func() {
		<-started
		cancel()
	}()
	if _, err := w.client(w.tailnet(443), http2).Do(r); err == nil {
		t.Error("an answer")
	}
	select {
	case <-ended:
	case <-time.After(time.Minute):
		t.Error("the target still works")
	}
}

package funnel

import (
	"crypto/tls"
	"errors"
	"io"
	"net"
	"net/http"
	"net/netip"
	"runtime"
	"strings"
	"testing"
	"time"

	"golang.org/x/crypto/bcrypt"
	"golang.org/x/net/websocket"
)

// endlessly answers one byte at a time, for as long as somebody asks for the next one.
type endlessly struct {
	next chan struct{}
}

func (e *endlessly) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	control := http.NewResponseController(w)
	for {
		if _, err := io.WriteString(w, "x"); err != nil || control.Flush() != nil {
			return
		}
		select {
		case <-e.next:
		case <-r.Context().Done():
			return
		}
	}
}

// download is an answer that does not end by itself.
type download struct {
	t    *testing.T
	body io.ReadCloser
	next chan struct{}
}

func (w *world) download(c *http.Client, e *endlessly, url string, change ...func(*http.Request)) *download {
	w.t.Helper()
	r := httpRequest(w.t, "GET", url)
	for _, f := range change {
		f(r)
	}
	res, err := c.Do(r)
	if err != nil || res.StatusCode != 200 {
		w.t.Fatalf("%v, %v", res, err)
	}
	w.t.Cleanup(func() { res.Body.Close() })
	d := &download{w.t, res.Body, e.next}
	d.read()
	return d
}

func (d *download) read() {
	d.t.Helper()
	if _, err := io.ReadFull(d.body, make([]byte, 1)); err != nil {
		d.t.Fatal(err)
	}
}

// goesOn checks that more comes. It asks until it does, since the target of one that has ended may take what it asks.
func (d *download) goesOn() {
	d.t.Helper()
	got := make(chan error, 1)
	go func() {
		_, err := io.ReadFull(d.body, make([]byte, 1))
		got <- err
	}()
	for {
		select {
		case d.next <- struct{}{}:
		case err := <-got:
			if err != nil {
				d.t.Errorf("it has ended: %v", err)
			}
			return
		case <-time.After(time.Minute):
			d.t.Error("nothing comes any more")
			return
		}
	}
}

// ends checks that it is over.
func (d *download) ends() {
	d.t.Helper()
	got := make(chan error, 1)
	go func() {
		_, err := io.Copy(io.Discard, d.body)
		got <- err
	}()
	select {
	case err := <-got:
		if err == nil {
			d.t.Error("it looks whole")
		}
	case <-time.After(time.Minute):
		d.t.Error("it does not end")
	}
}

func TestANewListDropsNothing(t *testing.T) {
	for name, protocols := range map[string]func(*http.Protocols){"HTTP/1.1": http1, "HTTP/2": http2} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			e := &endlessly{make(chan struct{})}
			to := backend(t, e.ServeHTTP)
			entry := Entry{Kind: "https", Name: "a.example", Port: 443, Mounts: []Mount{{Path: "/x", Target: to}, {Path: "/y", Target: "text:y"}}}
			w.set(entry)
			addr := w.tailnet(443)
			c := w.client(addr, protocols)
			d := w.download(c, e, "https://a.example/x")
			w.set(entry, site("https", "b.example", 443, false, "text:b"))
			d.goesOn()
			changed := entry
			changed.Mounts = []Mount{{Path: "/x", Target: "text:new"}, {Path: "/z", Target: "text:z"}}
			w.set(changed)
			d.goesOn()
			if got := w.get(c, "https://a.example/x"); got.body != "new" {
				t.Errorf("%+v", got)
			}
			if got := w.get(c, "https://a.example/y"); got.status != 404 {
				t.Errorf("%+v", got)
			}
			changed.Access = Access{Rate: Rate{Count: 1000, Per: time.Second}, Allow: []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")}}
			w.set(changed)
			d.goesOn()
			changed.Mounts = changed.Mounts[1:]
			w.set(changed)
			d.ends()
		})
	}
}

func TestWhatIsNotAllowedAnyMoreEnds(t *testing.T) {
	hash, err := bcrypt.GenerateFromPassword([]byte("secret"), 10)
	if err != nil {
		t.Fatal(err)
	}
	basic := Access{Basic: &Basic{Users: map[string]string{"me": string(hash)}}}
	both := Access{Basic: &Basic{Users: map[string]string{"me": string(hash), "you": string(hash)}}}
	you := Access{Basic: &Basic{Users: map[string]string{"you": string(hash)}}}
	password := func(r *http.Request) { r.SetBasicAuth("me", "secret") }
	deny := Access{Deny: []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")}}
	for name, test := range map[string]struct {
		before, after Access
		change        func(*http.Request)
		goesOn        bool
	}{
		"the address":            {Access{}, deny, nil, false},
		"without a login":        {Access{}, basic, nil, false},
		"another one's login":    {basic, you, password, false},
		"a login beside":         {basic, both, password, true},
		"a login that was asked": {both, Access{}, password, true},
		"maintenance":            {Access{}, Access{Maintenance: &Maintenance{Text: "later"}}, nil, true},
	} {
		for _, ofMount := range []bool{false, true} {
			if ofMount && test.change != nil && test.goesOn {
				continue // hashes are slow to check
			}
			t.Run(name, func(t *testing.T) {
				w := newWorld(t)
				e := &endlessly{make(chan struct{})}
				to := backend(t, e.ServeHTTP)
				entry := func(a Access) Entry {
					one := site("https", "a.example", 443, false, to)
					if one.Access = a; ofMount {
						one.Access, one.Mounts[0].Access = Access{}, &a
					}
					return one
				}
				w.set(entry(test.before))
				change := func(*http.Request) {}
				if test.change != nil {
					change = test.change
				}
				d := w.download(w.client(w.tailnet(443), http2), e, "https://a.example/x", change)
				w.set(entry(test.after))
				if test.goesOn {
					d.goesOn()
				} else {
					d.ends()
				}
			})
		}
	}
}

func TestWhatIsNotServedAnyMoreEnds(t *testing.T) {
	w := newWorld(t)
	e := &endlessly{make(chan struct{})}
	to := backend(t, e.ServeHTTP)
	socket := backend(t, websocket.Handler(func(c *websocket.Conn) { _, _ = io.Copy(io.Discard, c) }).ServeHTTP)
	echo := listener(t, func(c net.Conn) { _, _ = io.Copy(c, c) })
	big := tree(t, map[string]string{"big": ""})
	stays := []Entry{site("https", "b.example", 443, false, to), site("http", "b.example", 80, false, to), {Kind: "tcp", Port: 23, Target: echo}}
	goes := []Entry{
		{Kind: "https", Name: "a.example", Port: 443, Mounts: []Mount{{Path: "/", Target: to}, {Path: "/socket", Target: socket}, {Path: "/big", Target: big}}},
		site("http", "a.example", 80, false, to), {Kind: "tcp", Port: 22, Target: echo},
	}
	w.set(append(goes, stays...)...)
	secure, plain := w.tailnet(443), w.tailnet(80)
	gone := []*download{
		w.download(w.client(secure, http1), e, "https://a.example/"),
		w.download(w.client(secure, http2), e, "https://a.example/"),
		w.download(w.client(plain, http1), e, "http://a.example/"),
		w.download(w.client(plain, h2c), e, "http://a.example/"),
	}
	stay := []*download{
		w.download(w.client(secure, http2), e, "https://b.example/"),
		w.download(w.client(plain, h2c), e, "http://b.example/"),
	}
	raw, err := w.handshake(secure, &tls.Config{ServerName: "a.example"})
	if err != nil {
		t.Fatal(err)
	}
	cfg, err := websocket.NewConfig("wss://a.example/socket", "https://a.example")
	if err != nil {
		t.Fatal(err)
	}
	conn, err := websocket.NewClient(cfg, raw)
	if err != nil {
		t.Fatal(err)
	}
	idle, err := w.handshake(secure, &tls.Config{ServerName: "a.example"})
	if err != nil {
		t.Fatal(err)
	}
	bare := dialEcho(t, w.tailnet(22))
	kept := dialEcho(t, w.tailnet(23))
	w.set(stays...)
	for _, d := range gone {
		d.ends()
	}
	for _, c := range []net.Conn{conn, idle, bare} {
		if err := c.SetDeadline(time.Now().Add(time.Minute)); err != nil {
			t.Fatal(err)
		}
		var timeout net.Error
		if n, err := c.Read(make([]byte, 1)); n != 0 || err == nil || errors.As(err, &timeout) && timeout.Timeout() {
			t.Errorf("it goes on: %d bytes, %v", n, err)
		}
	}
	for _, d := range stay {
		d.goesOn()
	}
	echoes(t, kept, "still")
}

// dialEcho dials what gives back what it gets.
func dialEcho(t *testing.T, addr string) net.Conn {
	t.Helper()
	conn, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	echoes(t, conn, "hello")
	return conn
}

func echoes(t *testing.T, conn net.Conn, text string) {
	t.Helper()
	if err := conn.SetDeadline(time.Now().Add(time.Minute)); err != nil {
		t.Fatal(err)
	}
	if _, err := io.WriteString(conn, text); err != nil {
		t.Fatal(err)
	}
	buf := make([]byte, len(text))
	if _, err := io.ReadFull(conn, buf); err != nil || string(buf) != text {
		t.Fatalf("%q, %v", buf, err)
	}
}

func TestAListenerEndsWithWhatItStarted(t *testing.T) {
	before := runtime.NumGoroutine()
	w := newWorld(t, func(c *ServerConfig) { c.Drain = 5 * time.Second })
	started, release := make(chan struct{}), make(chan struct{})
	to := listener(t, func(c net.Conn) {
		buf := make([]byte, 1000)
		n, _ := c.Read(buf)
		started <- struct{}{}
		if strings.Contains(string(buf[:n]), "/short") {
			<-release
			_, _ = io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
			return
		}
		_, _ = io.Copy(io.Discard, c) // until it is closed
	})
	w.set(site("https", "a.example", 443, false, to), Entry{Kind: "tcp", Port: 22, Target: to})
	addr, bare := w.tailnet(443), w.tailnet(22)
	answers := make(chan string, 2)
	for _, path := range []string{"/short", "/long"} {
		c := w.client(addr, http2)
		go func() {
			res, err := c.Get("https://a.example" + path)
			if err != nil {
				answers <- path + " " + "broken"
				return
			}
			defer res.Body.Close()
			body, _ := io.ReadAll(res.Body)
			answers <- path + " " + string(body)
		}()
		<-started
	}
	conn, err := net.Dial("tcp", bare)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if _, err := io.WriteString(conn, "x"); err != nil {
		t.Fatal(err)
	}
	<-started
	ended := make(chan struct{})
	go func() {
		w.stop()
		close(ended)
	}()
	close(release)
	if got := <-answers; got != "/short ok" {
		t.Errorf("the one that ends soon: %s", got)
	}
	if got := <-answers; got == "/long ok" {
		t.Errorf("the other one: %s", got)
	}
	<-ended
	if n := w.server.links.counts.open(); n != 0 {
		t.Errorf("%d connections are left", n)
	}
	// Only what the test itself has started is left.
	for deadline := time.Now().Add(time.Minute); ; {
		if inServer := serverGoroutines(); inServer == 0 {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("%d goroutines before, %d now", before, runtime.NumGoroutine())
		}
		runtime.Gosched()
	}
}

// serverGoroutines counts those that a Server has started.
func serverGoroutines() (n int) {
	buf := make([]byte, 1<<20)
	for stack := range strings.SplitSeq(string(buf[:runtime.Stack(buf, true)]), "\n\n") {
		if strings.Contains(stack, "funnel.(*bench)") || strings.Contains(stack, "funnel.(*Server)") || strings.Contains(stack, "net/http.(*conn).serve(") && strings.Contains(stack, "funnel") {
			n++
		}
	}
	return n
}

func TestVisitorsAreBounded(t *testing.T) {
	w := newWorld(t, func(c *ServerConfig) { c.MaxEach, c.MaxRequests = 3, 2*shareOfOne })
	e := &endlessly{make(chan struct{})}
	w.set(site("https", "a.example", 443, false, backend(t, e.ServeHTTP)), site("https", "b.example", 443, false, "text:b"))
	addr := w.tailnet(443)
	c := w.client(addr, http2)
	first := w.download(c, e, "https://a.example/1")
	w.download(c, e, "https://a.example/2")
	if got := w.get(c, "https://a.example/3"); got.status != 503 || got.header.Get("Retry-After") == "" {
		t.Errorf("one request too many: %+v", got)
	}
	first.body.Close()
	for deadline := time.Now().Add(time.Minute); w.get(c, "https://a.example/", func(r *http.Request) { r.Method = "TRACE" }).status == 503 || w.server.flights.counts.open() > 1; {
		if time.Now().After(deadline) {
			t.Fatal("a request that has ended still counts")
		}
		runtime.Gosched()
	}
	// One connection is there.
	for range 2 {
		if _, err := w.handshake(addr, &tls.Config{ServerName: "b.example"}); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := w.handshake(addr, &tls.Config{ServerName: "b.example"}); err == nil {
		t.Error("one connection too many is served")
	}
}

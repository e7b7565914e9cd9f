package funnel

import (
	"crypto/tls"
	"errors"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	h2 "golang.org/x/net/http2"
)

// hasty is a world that does not wait for long.
func hasty(t *testing.T) *world {
	w := newWorld(t)
	const soon = 4 * time.Second // a busy machine has to be in time with what is not late
	w.server.times = times{handshake: soon, head: soon, keep: soon, body: soon, write: soon, raw: soon, sweep: soon / 40, proceed: time.Second}
	return w
}

// empty waits until no visitor is left.
func (w *world) empty(t *testing.T) {
	t.Helper()
	for deadline := time.Now().Add(time.Minute); w.server.links.counts.open() > 0 || w.server.flights.counts.open() > 0; {
		if time.Now().After(deadline) {
			t.Fatalf("%d connections and %d requests are left", w.server.links.counts.open(), w.server.flights.counts.open())
		}
		rest(t.Context(), time.Millisecond)
	}
}

func TestWhoDoesNothingIsLetGo(t *testing.T) {
	w := hasty(t)
	started := make(chan struct{}, 10)
	endless := backend(t, func(w http.ResponseWriter, _ *http.Request) {
		started <- struct{}{}
		_, _ = io.Copy(w, endless{})
	})
	reading := backend(t, func(w http.ResponseWriter, r *http.Request) { _, _ = io.Copy(w, r.Body) })
	quiet := listener(t, func(c net.Conn) { _, _ = io.Copy(io.Discard, c) })
	w.set(Entry{Kind: "https", Name: "a.example", Port: 443, Mounts: []Mount{{Path: "/", Target: endless}, {Path: "/up", Target: reading}}},
		Entry{Kind: "http", Name: "a.example", Port: 80, Mounts: []Mount{{Path: "/", Target: endless}, {Path: "/up", Target: reading}}},
		Entry{Kind: "tcp", Port: 22, Target: quiet})
	secure, plain, bare := w.tailnet(443), w.tailnet(80), w.tailnet(22)
	say := func(text string) func(*testing.T, net.Conn) {
		return func(t *testing.T, c net.Conn) {
			if _, err := io.WriteString(c, text); err != nil {
				t.Fatal(err)
			}
		}
	}
	inTLS := func(what func(*testing.T, net.Conn)) func(*testing.T, net.Conn) {
		return func(t *testing.T, c net.Conn) {
			conn := tls.Client(c, &tls.Config{ServerName: "a.example", RootCAs: w.ca.pool})
			if err := conn.Handshake(); err != nil {
				t.Fatal(err)
			}
			what(t, conn)
		}
	}
	tests := map[string]struct {
		addr string
		do   func(*testing.T, net.Conn)
	}{
		"no handshake":                    {secure, say("")},
		"half a ClientHello":              {secure, say("\x16\x03\x01\x02\x00\x01")},
		"no request":                      {plain, say("")},
		"half a head":                     {plain, say("GET / HTTP/1.1\r\nHost: a.exam")},
		"half a head in TLS":              {secure, inTLS(say("GET / HTTP/1.1\r\nHost: a.exam"))},
		"half a body":                     {plain, say("POST /up HTTP/1.1\r\nHost: a.example\r\nContent-Length: 100\r\n\r\nhalf")},
		"half a chunk":                    {secure, inTLS(say("POST /up HTTP/1.1\r\nHost: a.example\r\nTransfer-Encoding: chunked\r\n\r\n64\r\nhalf"))},
		"no second request":               {plain, say("GET /up HTTP/1.1\r\nHost: a.example\r\n\r\n")},
		"an answer that is not read":      {plain, say("GET / HTTP/1.1\r\nHost: a.example\r\n\r\n")},
		"one in TLS that is not read":     {secure, inTLS(say("GET / HTTP/1.1\r\nHost: a.example\r\n\r\n"))},
		"a bare connection without bytes": {bare, say("hello")},
	}
	conns := map[string]net.Conn{}
	for name, test := range tests {
		conn, err := net.Dial("tcp", test.addr)
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		test.do(t, conn)
		conns[name] = conn
	}
	for name, conn := range conns {
		if strings.HasSuffix(name, "not read") {
			<-started
			continue // it is over once no connection is left
		}
		if err := conn.SetDeadline(time.Now().Add(time.Minute)); err != nil {
			t.Fatal(err)
		}
		_, err := io.Copy(io.Discard, conn)
		var timeout net.Error
		if errors.As(err, &timeout) && timeout.Timeout() {
			t.Errorf("%s: the connection stays open", name)
		}
	}
	w.empty(t)
}

// A visitor takes part in HTTP/2, but lets no byte of the answers come.
func TestStreamsWithoutAWindowAreReset(t *testing.T) {
	w := hasty(t)
	w.set(site("https", "a.example", 443, false, "text:"+strings.Repeat("x", maxText)))
	f := w.frames(t, w.tailnet(443), "a.example")
	if err := f.WriteSettings(h2.Setting{ID: h2.SettingInitialWindowSize, Val: 0}); err != nil {
		t.Fatal(err)
	}
	if got := f.ask("", ":method", "GET", ":scheme", "https", ":authority", "a.example", ":path", "/"); got != 200 {
		t.Fatal(got)
	}
	for {
		frame, err := f.ReadFrame()
		if err != nil {
			t.Fatalf("the connection has ended, not the stream: %v", err)
		}
		if _, ok := frame.(*h2.RSTStreamFrame); ok {
			break
		}
	}
	for deadline := time.Now().Add(time.Minute); w.server.flights.counts.open() > 0; {
		if time.Now().After(deadline) {
			t.Fatal("the request is left")
		}
		rest(t.Context(), time.Millisecond)
	}
}

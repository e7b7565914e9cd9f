package funnel

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"
)

// servePlain has a relay answer plain HTTP.
func servePlain(t *testing.T, r *Relay) (addr string) {
	t.Helper()
	ln := listen(t)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- r.ServeRedirect(ctx, ln) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return ln.Addr().String()
}

// request sends a request as it stands.
func request(t *testing.T, addr, text string) *http.Response {
	t.Helper()
	conn, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	_ = conn.SetDeadline(time.Now().Add(soon))
	_, _ = io.WriteString(conn, text)
	method, _, _ := strings.Cut(text, " ")
	resp, err := http.ReadResponse(bufio.NewReader(conn), &http.Request{Method: method})
	if err != nil {
		t.Fatalf("%q: %v", text, err)
	}
	return resp
}

func TestPlainHTTPIsSentToHTTPS(t *testing.T) {
	high := shown("high.example")
	high.Port = 8443
	stream := shown("stream.example")
	stream.Kind = kindTLS
	nas, tv := &testNode{name: "nas"}, &testNode{name: "tv"}
	r := NewRelay(RelayConfig{})
	if err := r.Set([]Public{high, shown("nas.example", nas), shown("*.wild.example", nas), shown("both.example", nas, tv), stream}); err != nil {
		t.Fatal(err)
	}
	addr := servePlain(t, r)
	for _, tt := range []struct {
		request, host string
		status        int
		location      string
	}{
		{"GET /", "nas.example", 301, "https://nas.example/"},
		{"HEAD /a%20b?c=d&e", "NAS.Example.", 301, "https://nas.example/a%20b?c=d&e"},
		{"POST /form", "nas.example:80", 308, "https://nas.example/form"},
		{"GET /", "a.wild.example", 301, "https://a.wild.example/"},
		{"GET /", "high.example", 301, "https://high.example:8443/"},
		{"GET //evil.example/x", "nas.example", 301, "https://nas.example//evil.example/x"},
		{"GET /\\evil.example", "nas.example", 301, "https://nas.example/%5Cevil.example"},
		{"GET http://nas.example/x", "evil.example", 301, "https://nas.example/x"},
		{"GET http://evil.example/x", "nas.example", 404, ""},
		{"OPTIONS *", "nas.example", 308, "https://nas.example/"},
		{"GET /.well-known/acme-challenge/x", "nas.example", 301, "https://nas.example/.well-known/acme-challenge/x"},
		{"GET /.well-known/acme-challenge/x", "both.example", 404, ""},
		{"GET /", "both.example", 301, "https://both.example/"},
		{"GET /", "stream.example", 404, ""},
		{"GET /", "other.example", 404, ""},
		{"GET /", "a.b.wild.example", 404, ""},
		{"GET /", "203.0.113.5", 404, ""},
		{"GET /", "[2001:db8::5]:80", 404, ""},
		{"GET /", "", 404, ""},
		{"GET /", "nas.example@evil.example", 400, ""},
		{"GET /", "nas.example/evil", 400, ""},
	} {
		resp := request(t, addr, fmt.Sprintf("%s HTTP/1.1\r\nHost: %s\r\nUser-Agent: x\r\n\r\n", tt.request, tt.host))
		if tt.status == 400 && resp.StatusCode >= 400 {
			continue // net/http says it, or we do
		}
		if resp.StatusCode != tt.status || resp.Header.Get("Location") != tt.location {
			t.Errorf("%s of %q: %d %q, want %d %q", tt.request, tt.host, resp.StatusCode, resp.Header.Get("Location"), tt.status, tt.location)
		}
		if body, _ := io.ReadAll(resp.Body); len(body) > 0 || resp.Header.Get("Server") != "" || !resp.Close {
			t.Errorf("%s of %q: %q, %v", tt.request, tt.host, body, resp.Header)
		}
	}
	if resp := request(t, addr, "GET /"+strings.Repeat("x", 64<<10)+" HTTP/1.1\r\nHost: nas.example\r\n\r\n"); resp.StatusCode != 431 {
		t.Errorf("a header of 64 KiB: %d", resp.StatusCode)
	}
}

// One source has so many connections, and another one is answered meanwhile.
func TestPlainHTTPIsBounded(t *testing.T) {
	r := NewRelay(RelayConfig{})
	if err := r.Set([]Public{shown("nas.example", &testNode{name: "nas"})}); err != nil {
		t.Fatal(err)
	}
	addr := servePlain(t, r)
	var open []net.Conn
	for range maxRedirectsOf {
		conn, err := net.Dial("tcp", addr)
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		open = append(open, conn)
	}
	more, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	defer more.Close()
	_ = more.SetDeadline(time.Now().Add(soon))
	if n, err := more.Read(make([]byte, 1)); err == nil {
		t.Errorf("one more is answered: %d", n)
	}
	other, err := (&net.Dialer{LocalAddr: &net.TCPAddr{IP: net.IPv4(127, 0, 0, 2)}}).Dial("tcp", addr)
	if err != nil {
		t.Skip("this system has no 127.0.0.2")
	}
	defer other.Close()
	_, _ = io.WriteString(other, "GET / HTTP/1.0\r\nHost: nas.example\r\n\r\n")
	if resp, err := http.ReadResponse(bufio.NewReader(other), nil); err != nil || resp.StatusCode != 301 {
		t.Errorf("another source: %v, %v", resp, err)
	}
	// Who says nothing is let go, and then there is room.
	_ = open[0].SetDeadline(time.Now().Add(soon))
	_, _ = io.ReadAll(open[0])
	open[0].Close()
	if resp := request(t, addr, "GET / HTTP/1.0\r\nHost: nas.example\r\n\r\n"); resp.StatusCode != 301 {
		t.Errorf("afterwards: %d", resp.StatusCode)
	}
}

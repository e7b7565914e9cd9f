package funnel

import (
	"crypto/sha256"
	"crypto/tls"
	"encoding/base64"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/pires/go-proxyproto"
)

func TestTargetsThatDoNotAnswer(t *testing.T) {
	w := newWorld(t)
	release := make(chan struct{})
	slow := backend(t, func(http.ResponseWriter, *http.Request) { <-release })
	t.Cleanup(func() { close(release) })
	garbage := listener(t, func(c net.Conn) { _, _ = io.WriteString(c, "garbage\r\n\r\n") })
	resetting := listener(t, func(c net.Conn) { _ = c.(*net.TCPConn).SetLinger(0) })
	dead := listenTest(t)
	dead.Close()
	nowhere := filepath.Join(t.TempDir(), "socket")
	mounts := []Mount{
		{Path: "/slow", Target: slow, Wait: 50 * time.Millisecond}, {Path: "/garbage", Target: garbage}, {Path: "/resetting", Target: resetting},
		{Path: "/dead", Target: dead.Addr().String()}, {Path: "/unix", Target: "unix:" + nowhere}, {Path: "/name", Target: "nobody.invalid:80"},
	}
	w.set(Entry{Kind: "https", Name: "a.example", Port: 443, Mounts: mounts}, Entry{Kind: "https", Name: "public.example", Port: 443, Public: true, Mounts: mounts})
	owner, world := w.client(w.tailnet(443), http2), w.client(w.public("public.example", 443, "https"), http2)
	for _, m := range mounts {
		t.Run(m.Path, func(t *testing.T) {
			want := 502
			if m.Path == "/slow" {
				want = 504
			}
			got := w.get(owner, "https://a.example"+m.Path, func(r *http.Request) { r.Header.Set("Accept", "text/html") })
			if got.status != want || !strings.Contains(got.body, m.Target) || !strings.Contains(got.body, "<h1>") || got.header.Get("Content-Security-Policy") == "" {
				t.Errorf("to the owner: %d %s", got.status, got.body)
			}
			got = w.get(world, "https://public.example"+m.Path)
			if got.status != want || strings.Contains(got.body, strings.TrimPrefix(m.Target, "unix:")) || strings.Contains(got.body, "refused") || strings.Count(got.body, "\n") != 2 {
				t.Errorf("to the world: %d %s", got.status, got.body)
			}
		})
	}
	w.caller.Owner = false
	if got := w.get(w.client(w.tailnet(443), http2), "https://a.example/dead"); strings.Contains(got.body, dead.Addr().String()) {
		t.Errorf("to another node: %s", got.body)
	}
}

// listener has each connection to it treated and closed.
func listener(t *testing.T, do func(net.Conn)) (address string) {
	ln := listenTest(t)
	var running sync.WaitGroup
	running.Go(func() {
		for {
			conn, err := ln.Accept()
			if err != nil {
				return
			}
			running.Go(func() {
				defer conn.Close()
				do(conn)
			})
		}
	})
	t.Cleanup(func() {
		ln.Close()
		running.Wait()
	})
	return ln.Addr().String()
}

func TestTargetsOverTLSAreKnown(t *testing.T) {
	w := newWorld(t)
	s := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { _, _ = io.WriteString(w, r.TLS.ServerName) }))
	s.TLS = &tls.Config{Certificates: []tls.Certificate{*w.ca.issue(t, "inner.example")}}
	s.StartTLS()
	t.Cleanup(s.Close)
	sum := sha256.Sum256(s.TLS.Certificates[0].Leaf.RawSubjectPublicKeyInfo)
	pin := "sha256//" + base64.StdEncoding.EncodeToString(sum[:])
	other := "sha256//" + base64.StdEncoding.EncodeToString(make([]byte, 32))
	insecure := "https+insecure://" + s.Listener.Addr().String()
	mounts := []Mount{
		{Path: "/checked", Target: s.URL, TLSName: "inner.example"}, // by no root that this machine has
		{Path: "/insecure", Target: insecure, TLSName: "inner.example"},
		{Path: "/pinned", Target: s.URL, TLSName: "inner.example", TLSPin: pin},
		{Path: "/otherpin", Target: insecure, TLSPin: other},
	}
	w.set(Entry{Kind: "https", Name: "a.example", Port: 443, Mounts: mounts})
	c := w.client(w.tailnet(443), http2)
	for path, want := range map[string]string{"/checked": "unknown authority", "/insecure": "inner.example", "/pinned": "inner.example", "/otherpin": "another key than tlsPin"} {
		if got := w.get(c, "https://a.example"+path); !strings.Contains(got.body, want) {
			t.Errorf("%s: %d %s", path, got.status, got.body)
		}
	}
}

func TestTargetsAreToldWhoComes(t *testing.T) {
	w := newWorld(t)
	ln := listenTest(t)
	s := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { _, _ = io.WriteString(w, r.RemoteAddr) })}
	done := make(chan error, 1)
	go func() {
		done <- s.Serve(&proxyproto.Listener{Listener: ln, ConnPolicy: func(proxyproto.ConnPolicyOptions) (proxyproto.Policy, error) { return proxyproto.REQUIRE, nil }})
	}()
	t.Cleanup(func() { s.Close(); <-done })
	for version := 1; version <= 2; version++ {
		public := site("https", "public.example", 443, true, ln.Addr().String())
		public.ProxyProtocol = version
		tailnet := site("http", "a.example", 80, false, ln.Addr().String())
		tailnet.ProxyProtocol = version
		w.set(public, tailnet)
		got := w.get(w.client(w.public("public.example", 443, "https"), http2), "https://public.example/")
		if got.body != visitorAddr.String() {
			t.Errorf("version %d: %d %q", version, got.status, got.body)
		}
		// Connections of two visitors are two to the target, or one would pass for the other.
		addr := w.tailnet(80)
		a, b := w.get(w.client(addr, http1), "http://a.example/"), w.get(w.client(addr, http1), "http://a.example/")
		if _, err := netip.ParseAddrPort(a.body); err != nil || a.body == b.body {
			t.Errorf("version %d: %q and %q", version, a.body, b.body)
		}
	}
}

func TestUnixSocketsAreOpenedByTheirOwner(t *testing.T) {
	var mu sync.Mutex
	var as []uint32
	w := newWorld(t, func(c *ServerConfig) {
		c.As = func(e Entry, do func() error) error {
			mu.Lock()
			as = append(as, e.Owner)
			mu.Unlock()
			if e.Owner == 1001 {
				return os.ErrPermission
			}
			return do()
		}
	})
	path := filepath.Join(t.TempDir(), "socket")
	ln, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	s := &http.Server{Handler: http.HandlerFunc(mirror)}
	done := make(chan error, 1)
	go func() { done <- s.Serve(ln) }()
	t.Cleanup(func() { s.Close(); <-done })
	mine, other := site("http", "a.example", 80, false, "unix:"+path), site("http", "b.example", 80, false, "unix:"+path)
	mine.Owner, other.Owner = 1000, 1001
	w.set(mine, other)
	c := w.client(w.tailnet(80), http1)
	if got := w.get(c, "http://a.example/x"); got.status != 200 || !strings.Contains(got.body, "Host: a.example") {
		t.Errorf("%+v", got)
	}
	if got := w.get(c, "http://b.example/x"); got.status != 502 {
		t.Errorf("%+v", got)
	}
	mu.Lock()
	defer mu.Unlock()
	if fmt.Sprint(as) != "[1000 1001]" {
		t.Errorf("opened as %v", as)
	}
}

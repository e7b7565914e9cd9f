package resolver

import (
	"bufio"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/miekg/dns"
)

// secureServer is a DoT or DoH server.
type secureServer struct {
	port  uint16
	asked atomic.Int64
	conns atomic.Int64

	mu   sync.Mutex
	sni  []string
	open []net.Conn
}

// spelt is the spelling of an upstream, with %d in place of the port.
func (s *secureServer) spelt(t *testing.T, format string) Upstream {
	t.Helper()
	u, err := ParseUpstream(fmt.Sprintf(format, s.port))
	if err != nil {
		t.Fatal(err)
	}
	return u
}

func (s *secureServer) config(cert tls.Certificate, protocols ...string) *tls.Config {
	return &tls.Config{NextProtos: protocols, GetCertificate: func(h *tls.ClientHelloInfo) (*tls.Certificate, error) {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.sni = append(s.sni, h.ServerName)
		return &cert, nil
	}}
}

func (s *secureServer) names() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.sni
}

// keep notes a connection, so that it can be closed.
func (s *secureServer) keep(conn net.Conn) {
	s.conns.Add(1)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.open = append(s.open, conn)
}

// closeAll ends the connections there are.
func (s *secureServer) closeAll() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, c := range s.open {
		_ = c.Close()
	}
	s.open = nil
}

// answerA answers a query with 192.0.2.1.
func answerA(q []byte) []byte {
	var m dns.Msg
	if m.Unpack(q) != nil {
		return nil
	}
	reply := new(dns.Msg).SetReply(&m)
	if m.Question[0].Qtype == dns.TypeA {
		reply.Answer = []dns.RR{&dns.A{Hdr: dns.RR_Header{Name: m.Question[0].Name, Rrtype: dns.TypeA, Class: dns.ClassINET, Ttl: 60}, A: net.IPv4(192, 0, 2, 1)}}
	}
	out, _ := reply.Pack()
	return out
}

// newDoT serves DNS over TLS with a certificate.
func newDoT(t *testing.T, cert tls.Certificate) *secureServer {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := &secureServer{port: uint16(ln.Addr().(*net.TCPAddr).Port)}
	config := s.config(cert, "dot")
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			conn, err := ln.Accept()
			if err != nil {
				return
			}
			s.keep(conn)
			wg.Go(func() {
				defer conn.Close()
				c := &scriptedConn{Conn: tls.Server(conn, config)}
				c.r = bufio.NewReader(c.Conn)
				for q := c.next(); q != nil; q = c.next() {
					s.asked.Add(1)
					if len(q)%paddingBlock != 0 {
						t.Errorf("a query of %d octets: not padded", len(q))
					}
					c.sendMsg(answerA(q))
				}
			})
		}
	})
	t.Cleanup(func() { _ = ln.Close(); s.closeAll(); wg.Wait() })
	return s
}

// newHTTPS serves DNS over HTTPS; handle is for /dns-query.
func newHTTPS(t *testing.T, cert tls.Certificate, handle http.HandlerFunc) *secureServer {
	t.Helper()
	s := &secureServer{}
	mux := http.NewServeMux()
	mux.HandleFunc("POST /dns-query", func(w http.ResponseWriter, r *http.Request) { s.asked.Add(1); handle(w, r) })
	h := httptest.NewUnstartedServer(mux)
	h.EnableHTTP2 = true
	h.TLS = s.config(cert)
	h.TLS.Certificates = []tls.Certificate{cert} // for clients that name no server
	h.Config.ErrorLog = log.New(io.Discard, "", 0)
	h.Config.ConnState = func(c net.Conn, state http.ConnState) {
		if state == http.StateNew {
			s.keep(c)
		}
	}
	h.StartTLS()
	t.Cleanup(h.Close)
	s.port = uint16(h.Listener.Addr().(*net.TCPAddr).Port)
	return s
}

// answerHTTP answers as RFC 8484 has it.
func answerHTTP(w http.ResponseWriter, r *http.Request) {
	q, _ := io.ReadAll(r.Body)
	w.Header().Set("Content-Type", mediaType)
	_, _ = w.Write(answerA(q))
}

func TestEncryptedUpstreams(t *testing.T) {
	ca := newAuthority(t)
	dot, doh := newDoT(t, ca.issue("dns.example")), newHTTPS(t, ca.issue("dns.example"), answerHTTP)
	byAddr, dohByAddr := newDoT(t, ca.issue("127.0.0.1")), newHTTPS(t, ca.issue("127.0.0.1"), answerHTTP)
	for name, row := range map[string]struct {
		*secureServer
		spelling string
	}{
		"DoT, pinned name":            {dot, "tls://127.0.0.1:%d#dns.example"},
		"DoT, bootstrap address":      {dot, "tls://dns.example:%d#127.0.0.1"},
		"DoT, second address is good": {dot, "tls://dns.example:%d#127.99.99.99,127.0.0.1"},
		"DoT, certificate of address": {byAddr, "tls://127.0.0.1:%d"},
		"DoH, pinned name":            {doh, "https://127.0.0.1:%d/dns-query#dns.example"},
		"DoH, bootstrap address":      {doh, "https://dns.example:%d/dns-query#127.0.0.1"},
		"DoH, certificate of address": {dohByAddr, "https://127.0.0.1:%d/dns-query"},
	} {
		t.Run(name, func(t *testing.T) {
			g := newRig(t, Config{Base: Base{Upstreams: []Upstream{row.spelt(t, row.spelling)}}, RootCAs: ca.pool()})
			wantA(t, g.ask("www.example", dns.TypeA), "192.0.2.1")
			wantA(t, g.ask("WWW2.Example", dns.TypeA), "192.0.2.1")
		})
	}
	for _, s := range []*secureServer{dot, doh} {
		for _, name := range s.names() {
			if name != "dns.example" {
				t.Errorf("server name %q, want dns.example", name)
			}
		}
	}
}

func TestAServerThatCannotProveItselfIsNotAsked(t *testing.T) {
	ca, other := newAuthority(t), newAuthority(t)
	dot, doh := newDoT(t, ca.issue("dns.example")), newHTTPS(t, ca.issue("dns.example"), answerHTTP)
	for name, row := range map[string]struct {
		*secureServer
		spelling string
		roots    *x509.CertPool
	}{
		"DoT, another name":      {dot, "tls://127.0.0.1:%d#other.example", ca.pool()},
		"DoT, address not in it": {dot, "tls://127.0.0.1:%d", ca.pool()},
		"DoT, another CA":        {dot, "tls://127.0.0.1:%d#dns.example", other.pool()},
		"DoH, another name":      {doh, "https://127.0.0.1:%d/dns-query#other.example", ca.pool()},
		"DoH, another CA":        {doh, "https://127.0.0.1:%d/dns-query#dns.example", other.pool()},
	} {
		t.Run(name, func(t *testing.T) {
			g := newRig(t, Config{Base: Base{Upstreams: []Upstream{row.spelt(t, row.spelling)}}, RootCAs: row.roots})
			m := new(dns.Msg).SetQuestion("www.example.", dns.TypeA).SetEdns0(1232, false)
			if m = g.exchange(m); m.Rcode != dns.RcodeServerFailure || len(m.IsEdns0().Option) == 0 {
				t.Errorf("got\n%v", m)
			}
			if n := row.asked.Load(); n != 0 {
				t.Errorf("it was told %d questions", n)
			}
		})
	}
}

func TestAnUpstreamGivenByNameIsLookedUpAtThePlainOnes(t *testing.T) {
	ca := newAuthority(t)
	dot := newDoT(t, ca.issue("dns.example"))
	plain := newUpstream(t, func(_ dns.ResponseWriter, req, reply *dns.Msg) bool {
		switch {
		case !strings.EqualFold(req.Question[0].Name, "dns.example."):
			reply.Rcode = dns.RcodeServerFailure
		case req.Question[0].Qtype == dns.TypeA:
			reply.Answer = rr(t, req.Question[0].Name+" 60 A 127.0.0.1")
		default:
			reply.Rcode = dns.RcodeServerFailure // one family is enough
		}
		return true
	})
	route := Route{Suffix: "corp.example", Upstreams: []Upstream{dot.spelt(t, "tls://dns.example:%d")}}
	g := newRig(t, Config{Base: base(plain), Routes: []Route{route}, RootCAs: ca.pool()})
	wantA(t, g.ask("www.corp.example", dns.TypeA), "192.0.2.1")
	asked := plain.asked.Load()
	wantA(t, g.ask("www2.corp.example", dns.TypeA), "192.0.2.1")
	if n := plain.asked.Load(); n != asked {
		t.Error("the address was not remembered")
	}
}

func TestANameThatNobodyCanLookUpGivesAHint(t *testing.T) {
	u, err := ParseUpstream("tls://dns.example")
	if err != nil {
		t.Fatal(err)
	}
	for name, resolve := range map[string]resolveFunc{
		"no way to look it up": nil,
		"no plain upstream":    func(context.Context, string) ([]netip.Addr, error) { return nil, errNoBootstrap },
		"a useless address":    func(context.Context, string) ([]netip.Addr, error) { return []netip.Addr{netip.IPv4Unspecified()}, nil },
	} {
		x := newStream(u, nil, resolve)
		_, err := x.exchange(t.Context(), query(t, "www.example", dns.TypeA))
		var boot *bootstrapError
		if !errors.As(err, &boot) || !strings.Contains(boot.Hint(), "tls://dns.example#") || !strings.Contains(err.Error(), "dns.example") {
			t.Errorf("%s: got %v", name, err)
		}
		x.close()
	}
}

func TestEncryptedConnectionsAreMadeAnewWhenTheServerClosesThem(t *testing.T) {
	ca := newAuthority(t)
	for name, row := range map[string]struct {
		*secureServer
		spelling string
	}{
		"DoT": {newDoT(t, ca.issue("dns.example")), "tls://127.0.0.1:%d#dns.example"},
		"DoH": {newHTTPS(t, ca.issue("dns.example"), answerHTTP), "https://127.0.0.1:%d/dns-query#dns.example"},
	} {
		t.Run(name, func(t *testing.T) {
			g := newRig(t, Config{Base: Base{Upstreams: []Upstream{row.spelt(t, row.spelling)}}, RootCAs: ca.pool()})
			wantA(t, g.ask("one.example", dns.TypeA), "192.0.2.1")
			wantA(t, g.ask("two.example", dns.TypeA), "192.0.2.1")
			if n := row.conns.Load(); n != 1 {
				t.Errorf("%d connections for two queries, want 1", n)
			}
			row.closeAll()
			wantA(t, g.ask("three.example", dns.TypeA), "192.0.2.1")
			if n := row.conns.Load(); n != 2 {
				t.Errorf("%d connections in all, want 2", n)
			}
		})
	}
}

// testDoH asks one server over HTTPS.
func testDoH(t *testing.T, ca *authority, s *secureServer) *doh {
	t.Helper()
	x := newDoH(s.spelt(t, "https://127.0.0.1:%d/dns-query#dns.example"), ca.pool(), nil)
	t.Cleanup(func() {
		x.close()
		if _, err := x.exchange(context.Background(), query(t, "late.example", dns.TypeA)); err == nil {
			t.Error("it asks after its end")
		}
	})
	return x
}

func TestHTTPSIsAskedAsRFC8484Says(t *testing.T) {
	ca := newAuthority(t)
	s := newHTTPS(t, ca.issue("dns.example"), func(w http.ResponseWriter, r *http.Request) {
		q, _ := io.ReadAll(r.Body)
		for what, bad := range map[string]bool{
			"protocol " + r.Proto:                          r.ProtoMajor != 2,
			"type " + r.Header.Get("Content-Type"):         r.Header.Get("Content-Type") != mediaType,
			"accept " + r.Header.Get("Accept"):             r.Header.Get("Accept") != mediaType,
			"agent " + r.UserAgent():                       r.UserAgent() != "",
			"host " + r.Host:                               !strings.HasPrefix(r.Host, "dns.example:"),
			"cookie " + r.Header.Get("Cookie"):             r.Header.Get("Cookie") != "",
			fmt.Sprintf("%d octets, ID %x", len(q), q[:2]): len(q)%paddingBlock != 0 || binary.BigEndian.Uint16(q) != 0,
		} {
			if bad {
				t.Errorf("%s is wrong", what)
			}
		}
		w.Header().Set("Content-Type", mediaType)
		w.Header().Set("Set-Cookie", "a=b")
		w.Header().Set("Age", "25")
		_, _ = w.Write(answerA(q))
	})
	x := testDoH(t, ca, s)
	m := new(dns.Msg).SetQuestion("www.example.", dns.TypeA).SetEdns0(1232, false)
	m.Id = 77
	for range 2 {
		raw, err := x.exchange(t.Context(), pack(t, m))
		if err != nil {
			t.Fatal(err)
		}
		var got dns.Msg
		if err := got.Unpack(raw); err != nil || got.Id != 77 || len(got.Answer) != 1 || got.Answer[0].Header().Ttl != 35 {
			t.Errorf("%v, want ID 77 and a TTL of 60 less the age of 25\n%v", err, &got)
		}
	}
}

func TestWhatAnHTTPSServerMustNotSend(t *testing.T) {
	ca := newAuthority(t)
	for name, row := range map[string]struct {
		handle http.HandlerFunc
		want   string
	}{
		"an error":   {func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusTooManyRequests) }, "429"},
		"a redirect": {func(w http.ResponseWriter, r *http.Request) { http.Redirect(w, r, "/elsewhere", http.StatusFound) }, "302"},
		"a web page": {func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write([]byte("<html>")) }, "text/html"},
		"64 KiB": {func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Type", mediaType)
			_, _ = w.Write(make([]byte, dns.MaxMsgSize+1))
		}, "longer"},
		"another answer": {func(w http.ResponseWriter, r *http.Request) {
			q, _ := io.ReadAll(r.Body)
			q[headerSize+1] = 'x'
			w.Header().Set("Content-Type", mediaType)
			_, _ = w.Write(answerA(q))
		}, errMismatch.Error()},
		"another ID": {func(w http.ResponseWriter, r *http.Request) {
			q, _ := io.ReadAll(r.Body)
			q[0] = 9
			w.Header().Set("Content-Type", mediaType)
			_, _ = w.Write(answerA(q))
		}, errMismatch.Error()},
	} {
		t.Run(name, func(t *testing.T) {
			s := newHTTPS(t, ca.issue("dns.example"), row.handle)
			x := testDoH(t, ca, s)
			if msg, err := x.exchange(t.Context(), query(t, "www.example", dns.TypeA)); err == nil || !strings.Contains(err.Error(), row.want) {
				t.Errorf("got %x, %v; want an error with %q", msg, err, row.want)
			}
			if n := s.asked.Load(); n != 1 {
				t.Errorf("asked %d times, want 1", n)
			}
		})
	}
}

func TestAnHTTPSQueryEndsWithItsContext(t *testing.T) {
	ca := newAuthority(t)
	s := newHTTPS(t, ca.issue("dns.example"), func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() })
	x := testDoH(t, ca, s)
	ctx, cancel := context.WithCancel(t.Context())
	failed := make(chan error)
	go func() {
		_, err := x.exchange(ctx, query(t, "www.example", dns.TypeA))
		failed <- err
	}()
	waitUntil(t, func() bool { return s.asked.Load() == 1 })
	cancel()
	if err := <-failed; err == nil {
		t.Error("got no error")
	}
	go func() {
		_, err := x.exchange(context.Background(), query(t, "www.example", dns.TypeA))
		failed <- err
	}()
	waitUntil(t, func() bool { return s.asked.Load() == 2 })
	x.close()
	if err := <-failed; err == nil {
		t.Error("closing ended no query")
	}
}

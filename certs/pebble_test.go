package certs

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/letsencrypt/pebble/v2/ca"
	"github.com/letsencrypt/pebble/v2/db"
	"github.com/letsencrypt/pebble/v2/va"
	"github.com/letsencrypt/pebble/v2/wfe"
	"github.com/miekg/dns"
)

// nameServer is an authoritative server that a test writes TXT records to and a CA asks.
type nameServer struct {
	addr string

	mu      sync.Mutex
	txt     map[string][]string
	writes  int
	most    int                     // values at one time
	refuse  func(name string) error // by SetTXT; may be nil
	serial  bool
	present func(name string) // is told once a record is served; may be nil
}

func newNameServer(t *testing.T) *nameServer {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := &nameServer{addr: ln.Addr().String(), txt: map[string][]string{}}
	server := &dns.Server{Listener: ln, Handler: s}
	done := make(chan struct{})
	go func() {
		defer close(done)
		if err := server.ActivateAndServe(); err != nil {
			t.Error(err)
		}
	}()
	t.Cleanup(func() {
		if err := server.Shutdown(); err != nil {
			t.Error(err)
		}
		<-done
	})
	return s
}

// ServeDNS answers TXT.
func (s *nameServer) ServeDNS(w dns.ResponseWriter, q *dns.Msg) {
	m := new(dns.Msg).SetReply(q)
	m.Authoritative = true
	name := strings.ToLower(strings.TrimSuffix(q.Question[0].Name, "."))
	s.mu.Lock()
	for _, value := range s.txt[name] {
		m.Answer = append(m.Answer, &dns.TXT{Hdr: dns.RR_Header{Name: q.Question[0].Name, Rrtype: dns.TypeTXT, Class: dns.ClassINET, Ttl: 1}, Txt: []string{value}})
	}
	s.mu.Unlock()
	if len(m.Answer) == 0 {
		m.Rcode = dns.RcodeNameError
	}
	_ = w.WriteMsg(m)
}

// SetTXT publishes a value.
func (s *nameServer) SetTXT(ctx context.Context, name, value string) (func(context.Context) error, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	s.mu.Lock()
	refuse, present := s.refuse, s.present
	s.mu.Unlock()
	if refuse != nil {
		if err := refuse(name); err != nil {
			return nil, err
		}
	}
	s.mu.Lock()
	s.writes++
	s.txt[name] = append(s.txt[name], value)
	n := 0
	for _, values := range s.txt {
		n += len(values)
	}
	s.most = max(s.most, n)
	s.mu.Unlock()
	Report(ctx, Step{Stage: Published, Name: name, Detail: s.addr})
	if present != nil {
		present(name)
	}
	return func(ctx context.Context) error {
		s.mu.Lock()
		defer s.mu.Unlock()
		for i, v := range s.txt[name] {
			if v == value {
				s.txt[name] = append(s.txt[name][:i:i], s.txt[name][i+1:]...)
				return ctx.Err()
			}
		}
		return errors.New("no such value")
	}, nil
}

// Serial reports whether names have to go one after the other.
func (s *nameServer) Serial() bool { return s.serial }

// has sets fields.
func (s *nameServer) has(set func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	set()
}

// left is how many values are served.
func (s *nameServer) left() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	n := 0
	for _, values := range s.txt {
		n += len(values)
	}
	return n
}

// pebble is a real CA, with faults before it.
type pebble struct {
	*httptest.Server
	roots *x509.CertPool
	dns   *nameServer
	db    *db.MemoryStore
	ca    *ca.CAImpl

	mu     sync.Mutex
	inner  http.Handler
	admin  http.Handler
	fault  func(w http.ResponseWriter, r *http.Request) bool // true: it has answered
	counts map[string]int                                    // requests by path up to the second slash
	bodies []string                                          // of new orders
}

// newPebble starts a CA that asks dns. life is that of its certificates.
func newPebble(t *testing.T, names *nameServer, life time.Duration) *pebble {
	t.Helper()
	t.Setenv("PEBBLE_VA_NOSLEEP", "1")
	t.Setenv("PEBBLE_AUTHZREUSE", "0")
	if os.Getenv("PEBBLE_WFE_NONCEREJECT") == "" {
		t.Setenv("PEBBLE_WFE_NONCEREJECT", "0") // what is counted must not depend on chance
	}
	p := &pebble{dns: names, counts: map[string]int{}}
	p.reset(life, false)
	p.Server = httptest.NewUnstartedServer(p)
	p.Config.ErrorLog = log.New(io.Discard, "", 0)
	p.StartTLS()
	t.Cleanup(p.Close)
	p.roots = x509.NewCertPool()
	p.roots.AddCert(p.Certificate())
	return p
}

// reset makes the CA forget everything.
func (p *pebble) reset(life time.Duration, bind bool) {
	quiet := log.New(io.Discard, "", 0)
	store := db.NewMemoryStore()
	profiles := map[string]ca.Profile{"default": {Description: "of the test", ValidityPeriod: uint64(life / time.Second)}}
	authority := ca.New(quiet, store, "", "ecdsa", 0, 1, profiles)
	verifier := va.New(quiet, 0, 0, false, p.dns.addr, store)
	front := wfe.New(quiet, store, verifier, authority, []string{"ca.test"}, false, bind, 0, 0)
	p.mu.Lock()
	defer p.mu.Unlock()
	handler := front.Handler()
	p.inner, p.admin, p.db, p.ca = handler, front.ManagementHandler(), store, authority
}

// ServeHTTP counts, and answers what no fault does.
func (p *pebble) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	path, _, _ := strings.Cut(r.URL.Path[1:], "/")
	p.mu.Lock()
	p.counts[path]++
	inner, fault := p.inner, p.fault
	p.mu.Unlock()
	if path == "order-plz" {
		body, _ := io.ReadAll(r.Body)
		r.Body = io.NopCloser(strings.NewReader(string(body)))
		p.mu.Lock()
		p.bodies = append(p.bodies, string(body))
		p.mu.Unlock()
	}
	if fault != nil && fault(w, r) {
		return
	}
	inner.ServeHTTP(w, r)
}

func (p *pebble) has(set func()) {
	p.mu.Lock()
	defer p.mu.Unlock()
	set()
}

func (p *pebble) count(path string) int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.counts[path]
}

// root is the root of what the CA signs.
func (p *pebble) root(t *testing.T) *x509.CertPool {
	t.Helper()
	pool := x509.NewCertPool()
	pool.AddCert(p.ca.GetRootCert(0).Cert)
	return pool
}

// refuse is a fault: a problem document.
func refuse(w http.ResponseWriter, status int, kind, detail, retryAfter string) {
	w.Header().Set("Content-Type", "application/problem+json")
	w.Header().Set("Replay-Nonce", "x")
	if retryAfter != "" {
		w.Header().Set("Retry-After", retryAfter)
	}
	w.WriteHeader(status)
	_, _ = io.WriteString(w, `{"type":"urn:ietf:params:acme:error:`+kind+`","status":`+strconv.Itoa(status)+`,"detail":"`+detail+`"}`)
}

// issuer is an Issuer for the CA with an account of its own.
func (p *pebble) issuer(t *testing.T, change func(*ACMEConfig)) *ACME {
	t.Helper()
	cfg := ACMEConfig{Name: "pebble", Directory: p.URL + "/dir", Dir: t.TempDir(), TXT: p.dns, Roots: p.roots, Logger: testLog(t)}
	if change != nil {
		change(&cfg)
	}
	a, err := NewACME(cfg)
	if err != nil {
		t.Fatal(err)
	}
	return a
}

// manager holds what the CA signs.
func (p *pebble) manager(t *testing.T, change func(*Config)) *Manager {
	t.Helper()
	dir := t.TempDir()
	cfg := Config{Dir: dir, CAs: []CA{{"pebble", p.issuer(t, nil)}}, Logger: testLog(t)}
	if change != nil {
		change(&cfg)
	}
	m, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	return m
}

// serves checks that a handshake for name succeeds with what m has.
func serves(t *testing.T, m *Manager, p *pebble, name string) *x509.Certificate {
	t.Helper()
	client, server := net.Pipe()
	defer client.Close()
	defer server.Close()
	done := make(chan error, 1)
	go func() {
		done <- tls.Server(server, &tls.Config{GetCertificate: m.GetCertificate}).HandshakeContext(t.Context())
	}()
	c := tls.Client(client, &tls.Config{ServerName: name, RootCAs: p.root(t)})
	if err := c.HandshakeContext(t.Context()); err != nil {
		t.Fatalf("handshake for %s: %v", name, err)
	}
	if err := <-done; err != nil {
		t.Fatalf("handshake for %s: %v", name, err)
	}
	return c.ConnectionState().PeerCertificates[0]
}

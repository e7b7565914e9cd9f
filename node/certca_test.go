package node

import (
	"crypto/x509"
	"encoding/pem"
	"io"
	"log"
	"net"
	"net/http/httptest"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/letsencrypt/pebble/v2/ca"
	"github.com/letsencrypt/pebble/v2/db"
	"github.com/letsencrypt/pebble/v2/va"
	"github.com/letsencrypt/pebble/v2/wfe"
	"github.com/miekg/dns"
)

// testACME is a real CA that asks the gateway's public name server.
type testACME struct {
	url   string
	root  string // file with the root of its HTTPS
	roots *x509.CertPool
	host  string

	gateway atomic.Pointer[Node] // whose public name server it asks
}

// ServeDNS answers the CA as the gateway's public name server does.
func (a *testACME) ServeDNS(w dns.ResponseWriter, q *dns.Msg) {
	g := a.gateway.Load()
	query, err := q.Pack()
	if g == nil || err != nil {
		return
	}
	_, _ = w.Write(g.queryPublic(query, netip.MustParseAddr("198.51.100.7"), true))
}

// nameServer is where the CA asks.
func (a *testACME) nameServer(t *testing.T) string {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	server := &dns.Server{Listener: ln, Handler: a}
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
	return ln.Addr().String()
}

// newTestACME starts pebble.
func newTestACME(t *testing.T) *testACME {
	t.Helper()
	a := &testACME{roots: x509.NewCertPool()}
	names := a.nameServer(t)
	authority, directory, root := pebble{dns: names, caa: "pebble.test", life: 90 * 24 * 3600}.start(t)
	a.url, a.root = directory, root
	a.host, _, _ = strings.Cut(strings.TrimPrefix(directory, "https://"), "/")
	a.roots.AddCert(authority.GetRootCert(0).Cert)
	return a
}

// pebble is a CA that asks a DNS server.
type pebble struct {
	dns   string
	caa   string // its name in CAA records
	life  uint64 // of certificates, in seconds
	retry int    // seconds, of orders and authorizations that are not done
}

// start runs it. root is a file with the certificate of its HTTPS.
func (p pebble) start(t *testing.T) (authority *ca.CAImpl, directory, root string) {
	t.Helper()
	t.Setenv("PEBBLE_VA_NOSLEEP", "1")
	t.Setenv("PEBBLE_AUTHZREUSE", "0")
	quiet, store := log.New(io.Discard, "", 0), db.NewMemoryStore()
	authority = ca.New(quiet, store, "", "ecdsa", 0, 1, map[string]ca.Profile{"default": {ValidityPeriod: p.life}})
	front := wfe.New(quiet, store, va.New(quiet, 0, 0, false, p.dns, store), authority, []string{p.caa}, false, false, p.retry, p.retry)
	server := httptest.NewTLSServer(front.Handler())
	t.Cleanup(server.Close)
	root = filepath.Join(t.TempDir(), "root.pem")
	text := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: server.Certificate().Raw})
	if err := os.WriteFile(root, text, 0o600); err != nil {
		t.Fatal(err)
	}
	return authority, server.URL + "/dir", root
}

// in has a configuration ask the CA.
func (a *testACME) in(cfg *Config) {
	cfg.Certs = DefaultConfig().Certs
	cfg.Certs.CA, cfg.Certs.Root = []string{a.url}, a.root
}

// verify checks a chain for a name.
func (a *testACME) verify(t *testing.T, chain, name string) {
	t.Helper()
	between := x509.NewCertPool()
	block, rest := pem.Decode([]byte(chain))
	if block == nil || !between.AppendCertsFromPEM(rest) {
		t.Fatalf("no chain: %s", chain)
	}
	leaf, err := x509.ParseCertificate(block.Bytes)
	if err == nil {
		_, err = leaf.Verify(x509.VerifyOptions{DNSName: name, Roots: a.roots, Intermediates: between})
	}
	if err != nil {
		t.Error(err)
	}
}

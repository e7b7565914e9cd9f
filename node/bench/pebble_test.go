//go:build bench

package bench

import (
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"io"
	"log"
	"net/http/httptest"
	"net/netip"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/letsencrypt/pebble/v2/ca"
	"github.com/letsencrypt/pebble/v2/db"
	"github.com/letsencrypt/pebble/v2/va"
	"github.com/letsencrypt/pebble/v2/wfe"

	"github.com/meshdns/meshdns/certs"
)

// testCA is a CA without its sleeps.
type testCA struct {
	directory string
	root      string // file with the root of its HTTPS
	roots     *x509.CertPool
}

// startPebble runs a CA that asks a DNS server.
func startPebble(t *testing.T, dns string) testCA {
	t.Helper()
	t.Setenv("PEBBLE_VA_NOSLEEP", "1")
	t.Setenv("PEBBLE_AUTHZREUSE", "0")
	t.Setenv("PEBBLE_WFE_NONCEREJECT", "0")
	quiet, store := log.New(io.Discard, "", 0), db.NewMemoryStore()
	authority := ca.New(quiet, store, "", "ecdsa", 0, 1, map[string]ca.Profile{"default": {ValidityPeriod: 90 * 24 * 3600}})
	front := wfe.New(quiet, store, va.New(quiet, 0, 0, false, dns, store), authority, []string{"ca.test"}, false, false, 0, 0)
	server := httptest.NewTLSServer(front.Handler())
	t.Cleanup(server.Close)
	c := testCA{directory: server.URL + "/dir", root: filepath.Join(t.TempDir(), "root.pem"), roots: x509.NewCertPool()}
	c.roots.AddCert(server.Certificate())
	text := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: server.Certificate().Raw})
	if err := os.WriteFile(c.root, text, 0o600); err != nil {
		t.Fatal(err)
	}
	return c
}

// startProvider runs a name server that takes updates.
func startProvider(t *testing.T) {
	t.Helper()
	dir := t.TempDir()
	write := func(name, text string) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
		return path
	}
	write("zone", "@ 60 SOA ns1 root 1 60 60 60 1\n@ NS ns1\nns1 A "+providerAddress+"\n")
	conf := write("knot.conf", fmt.Sprintf(`server:
  rundir: %[1]q
  listen: "%[2]s@53"
database:
  storage: %[1]q
key:
- id: "ours."
  algorithm: hmac-sha256
  secret: %[3]s
acl:
- id: ours
  key: "ours."
  action: update
zone:
- domain: %[4]s.
  storage: %[1]q
  file: zone
  acl: ours
  zonefile-sync: -1
  journal-content: none
`, dir, providerAddress, providerKey, certZone))
	launch(t, "knotd", nil, "knotd", "-c", conf)
	until(t, "knotd", 30*time.Second, func() bool {
		_, err := certs.Lookup{Resolvers: providerServer}.Target(t.Context(), certZone)
		return err == nil
	})
}

func providerServer() []netip.AddrPort {
	return []netip.AddrPort{netip.MustParseAddrPort(providerAddress + ":53")}
}

package main_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"math/big"
	"net"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/miekg/dns"

	"github.com/meshdns/meshdns/node"
)

// A hotel's network: its DNS says of every name that it is the portal, and nothing gets out before somebody has signed in.
const (
	portalAddr = "192.0.2.10"   // the page
	ownServer  = "198.51.100.9" // the configured upstream, over TLS
)

// newHotel has the sandbox be in that network. signIn lets packets out, as the page does.
func newHotel(t *testing.T) (signIn, block func()) {
	t.Helper()
	newMachine(t)
	for line := range strings.Lines(`ip route add default via 192.0.2.53
ip netns exec outside ip addr add 192.0.2.54/24 dev e1
`) {
		must(t, strings.Fields(line)...)
	}
	writeFile(t, "/tmp/hotel.conf", `server:
  interface: 192.0.2.54
  access-control: 192.0.2.0/24 allow
  directory: "/tmp"
  do-daemonize: no
  chroot: ""
  username: ""
  pidfile: ""
  use-syslog: no
  module-config: "iterator"
  local-zone: "." redirect
  local-data: ". 3600 A 192.0.2.10"
remote-control:
  control-enable: no
`)
	background(t, "ip", "netns", "exec", "outside", "unbound", "-d", "-c", "/tmp/hotel.conf")
	writeCertificate(t, "/tmp/dot")
	writeFile(t, "/tmp/dot.conf", `server:
  interface: 198.51.100.9@853
  ip-freebind: yes
  tls-port: 853
  tls-service-key: "/tmp/dot.key"
  tls-service-pem: "/tmp/dot.pem"
  access-control: 0.0.0.0/0 allow
  directory: "/tmp"
  do-daemonize: no
  chroot: ""
  username: ""
  pidfile: ""
  use-syslog: no
  module-config: "iterator"
  local-zone: "." static
  local-data: ". 60 SOA ns. host. 1 3600 600 86400 60"
  local-data: ". 60 NS ns."
  local-data: "www.outside.example.org. 60 A 192.0.2.80"
remote-control:
  control-enable: no
`)
	background(t, "ip", "netns", "exec", "outside", "unbound", "-d", "-c", "/tmp/dot.conf")
	eventually(t, readyTimeout, "the hotel's DNS", func() error { return asks("192.0.2.54:53", outsideName, portalAddr) })
	writeFile(t, resolvConf, "nameserver 192.0.2.54\n")
	writeFile(t, "/etc/meshdns/meshdns.yaml", proofConfig+"dns:\n  upstreams: [\"tls://"+ownServer+"#dns.example\"]\n")
	// Without the address whoever holds the way out drops what is for it.
	return func() { must(t, "ip", "-n", "outside", "addr", "add", ownServer+"/32", "dev", "lo") },
		func() { must(t, "ip", "-n", "outside", "addr", "del", ownServer+"/32", "dev", "lo") }
}

// writeCertificate writes a key and a certificate of its own for dns.example, which meshdns is to trust.
func writeCertificate(t *testing.T, path string) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "dns.example"}, DNSNames: []string{"dns.example"},
		IPAddresses: []net.IP{net.ParseIP(ownServer)}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(24 * time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	private, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	writeFile(t, path+".pem", string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})))
	writeFile(t, path+".key", string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: private})))
	t.Setenv("SSL_CERT_FILE", path+".pem")
}

// portalState is what status says of the portal.
func portalState(t *testing.T) (state, reason string) {
	t.Helper()
	s, err := node.Client{Socket: "/run/meshdns/meshdns.sock"}.DNSStatus(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return s.Portal.State, s.Portal.Reason
}

func wantPortal(t *testing.T, want string) {
	t.Helper()
	eventually(t, 30*time.Second, "the portal to be "+want, func() error {
		if state, reason := portalState(t); state != want {
			return fmt.Errorf("it is %s (%s)", state, reason)
		}
		return nil
	})
}

// provePortalIsPassed: the page is found while it has to be, visibly, and nothing of it stays. On a network that has let the
// configured upstream through, blocking it brings nobody's names to anybody.
func provePortalIsPassed(t *testing.T) {
	signIn, block := newHotel(t)
	d, _ := up(t)
	start := time.Now()
	eventually(t, 30*time.Second, "the portal's page", func() error { return asks(stub, outsideName, portalAddr) })
	t.Logf("the page was found %s after the start", time.Since(start).Round(100*time.Millisecond))
	wantPortal(t, "up")
	for range 2 { // names of the tailnet have no part in it
		if err := asks(stub, nasName, nasAddr); err != nil {
			t.Error(err)
		}
	}
	if out, code := output(t, program, "status"); code != 0 || !strings.Contains(out, "state") || !strings.Contains(out, "degraded") || !strings.Contains(out, "sign") {
		t.Errorf("status: %d\n%s", code, out)
	}
	if out, code := output(t, program, "doctor"); code != 6 || !strings.Contains(out, "portal") {
		t.Errorf("doctor: %d\n%s", code, out)
	}
	if !strings.Contains(d.log.String(), "portal") {
		t.Errorf("the log says nothing:\n%s", d.log.String())
	}

	signIn()
	wantPortal(t, "none")
	eventually(t, readyTimeout, "the real answer", func() error { return asks(stub, outsideName, outsideAddr) })
	reply, err := dns.Exchange(new(dns.Msg).SetQuestion("elsewhere.example.", dns.TypeA), stub)
	if err != nil || len(reply.Answer) > 0 {
		t.Errorf("a name that the portal alone knew: %v, %v", reply, err)
	}

	// The same network blocks the upstream later: that is no portal, and nobody is told names.
	block()
	for over := time.Now().Add(8 * time.Second); time.Now().Before(over); {
		reply, _, err := (&dns.Client{Timeout: 3 * time.Second}).Exchange(new(dns.Msg).SetQuestion(dns.Fqdn(fmt.Sprintf("n%d.example", time.Now().UnixNano())), dns.TypeA), stub)
		if err == nil && len(reply.Answer) > 0 {
			t.Fatalf("a name was told to the hotel's DNS: %v", reply.Answer)
		}
	}
	if state, reason := portalState(t); state != "none" {
		t.Errorf("the portal is %s: %s", state, reason)
	}
	if err := asks(stub, nasName, nasAddr); err != nil {
		t.Error(err)
	}
	d.end(t, syscall.SIGTERM)
	if text, err := os.ReadFile(resolvConf); err != nil || string(text) != "nameserver 192.0.2.54\n" {
		t.Errorf("given back: %q, %v", text, err)
	}
}

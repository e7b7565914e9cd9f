package certs

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"net"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

const testZone = "foo-bar.ts.net"

func testCA(t *testing.T, now time.Time) (*Root, *Intermediate) {
	t.Helper()
	root, err := NewRoot(testZone, now)
	if err != nil {
		t.Fatal(err)
	}
	i, err := root.Intermediate(now)
	if err != nil {
		t.Fatal(err)
	}
	return root, i
}

func testKey(t *testing.T) *ecdsa.PrivateKey {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

// parseChain reads all certificates of a text.
func parseChain(t *testing.T, text []byte) []*x509.Certificate {
	t.Helper()
	var chain []*x509.Certificate
	for block, rest := pem.Decode(text); block != nil; block, rest = pem.Decode(rest) {
		cert, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			t.Fatal(err)
		}
		chain = append(chain, cert)
	}
	return chain
}

func verify(root *Root, chain []*x509.Certificate, name string, now time.Time) error {
	roots, between := x509.NewCertPool(), x509.NewCertPool()
	roots.AddCert(root.cert)
	for _, c := range chain[1:] {
		between.AddCert(c)
	}
	_, err := chain[0].Verify(x509.VerifyOptions{DNSName: name, Roots: roots, Intermediates: between, CurrentTime: now})
	return err
}

func TestALocalCAIssues(t *testing.T) {
	now := time.Now()
	root, i := testCA(t, now)
	text, err := i.Issue(testKey(t).Public(), []string{"nas.foo-bar.ts.net", "*.nas.foo-bar.ts.net", "photos.foo-bar.ts.net"}, now)
	if err != nil {
		t.Fatal(err)
	}
	chain := parseChain(t, text)
	for _, name := range []string{"nas.foo-bar.ts.net", "x.nas.foo-bar.ts.net", "photos.foo-bar.ts.net"} {
		if err := verify(root, chain, name, now); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	leaf := chain[0]
	if life := leaf.NotAfter.Sub(now); life > 30*24*time.Hour || life < 29*24*time.Hour {
		t.Errorf("it lives for %s, want 30 days at most", life)
	}
	if len(leaf.ExtKeyUsage) != 1 || leaf.ExtKeyUsage[0] != x509.ExtKeyUsageServerAuth {
		t.Errorf("it is for %v, want servers only", leaf.ExtKeyUsage)
	}
	if err := verify(root, chain, "nas.foo-bar.ts.net", now.Add(31*24*time.Hour)); err == nil {
		t.Error("it is good after its end")
	}
}

func TestWhatALocalCARefusesToIssue(t *testing.T) {
	now := time.Now()
	_, i := testCA(t, now)
	good := []string{"nas.foo-bar.ts.net"}
	weak, err := rsa.GenerateKey(rand.Reader, 1024)
	if err != nil {
		t.Fatal(err)
	}
	small, err := ecdsa.GenerateKey(elliptic.P224(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	for what, tt := range map[string]struct {
		key   crypto.PublicKey
		names []string
		at    time.Time
		why   string
	}{
		"no name":                 {testKey(t).Public(), nil, now, "no name"},
		"another zone":            {testKey(t).Public(), []string{"www.example.org"}, now, "not in the zone"},
		"one name of another":     {testKey(t).Public(), append(good, "www.example.org"), now, "www.example.org is not in the zone"},
		"a zone that ends alike":  {testKey(t).Public(), []string{"nas.evilfoo-bar.ts.net"}, now, "not in the zone"},
		"the zone itself":         {testKey(t).Public(), []string{testZone}, now, "not in the zone"},
		"the zone's wildcard":     {testKey(t).Public(), []string{"*." + testZone}, now, "not in the zone"},
		"a short RSA key":         {weak.Public(), good, now, "1024 bits"},
		"a small curve":           {small.Public(), good, now, "too small"},
		"no key":                  {nil, good, now, "a key of kind"},
		"an intermediate of past": {testKey(t).Public(), good, now.Add(intermediateLife + time.Hour), "has ended"},
	} {
		_, err := i.Issue(tt.key, tt.names, tt.at)
		if err == nil || !strings.Contains(err.Error(), tt.why) {
			t.Errorf("%s: got %v, want %q", what, err, tt.why)
		}
	}
}

// S19: a gateway that was broken into has the intermediate's key, and with it could certify whatever the constraints let
// pass. Without them each of these is believed, which is tried as well.
func TestAStolenIntermediateCertifiesNothingOutside(t *testing.T) {
	now := time.Now()
	leaf := func() *x509.Certificate {
		return &x509.Certificate{
			NotBefore: now.Add(-time.Hour), NotAfter: now.Add(time.Hour), KeyUsage: x509.KeyUsageDigitalSignature,
			ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}, BasicConstraintsValid: true,
		}
	}
	parsed, err := url.Parse("https://www.example.org/")
	if err != nil {
		t.Fatal(err)
	}
	inside := "nas.foo-bar.ts.net"
	for what, tt := range map[string]struct {
		change func(c *x509.Certificate)
		name   string // that is asked for
	}{
		"a name outside":             {func(c *x509.Certificate) { c.DNSNames = []string{"www.example.org"} }, "www.example.org"},
		"one outside beside ours":    {func(c *x509.Certificate) { c.DNSNames = []string{inside, "www.example.org"} }, "www.example.org"},
		"an IPv4 address":            {func(c *x509.Certificate) { c.IPAddresses = []net.IP{{192, 0, 2, 1}} }, "192.0.2.1"},
		"an IPv6 address":            {func(c *x509.Certificate) { c.IPAddresses = []net.IP{net.ParseIP("2001:db8::1")} }, "2001:db8::1"},
		"a tailnet address":          {func(c *x509.Certificate) { c.IPAddresses = []net.IP{{100, 64, 0, 2}} }, "100.64.0.2"},
		"a mailbox beside a name":    {func(c *x509.Certificate) { c.DNSNames, c.EmailAddresses = []string{inside}, []string{"a@example.org"} }, inside},
		"a mailbox of the zone":      {func(c *x509.Certificate) { c.DNSNames, c.EmailAddresses = []string{inside}, []string{"a@" + inside} }, inside},
		"a URI beside a name":        {func(c *x509.Certificate) { c.DNSNames, c.URIs = []string{inside}, []*url.URL{parsed} }, inside},
		"a CA beneath it":            {nil, inside},
		"a name beside, one outside": {func(c *x509.Certificate) { c.DNSNames = []string{inside, "foo-bar.ts.net.example.org"} }, inside},
	} {
		t.Run(what, func(t *testing.T) {
			for _, held := range []bool{true, false} {
				root, i := testCA(t, now)
				if !held {
					root, i = unconstrained(t, now)
				}
				chain := []*x509.Certificate{nil, i.cert}
				parent, key := i.cert, crypto.Signer(i.key)
				if tt.change == nil { // a CA of the thief's own
					key = testKey(t)
					c := authority(testZone, now, time.Hour)
					c.Subject = pkix.Name{CommonName: "thief"}
					sub, err := sign(c, i.cert, key.Public(), i.key)
					if err != nil {
						t.Fatal(err)
					}
					parent, chain = sub, append(chain, sub)
				}
				template := leaf()
				if tt.change != nil {
					tt.change(template)
				} else {
					template.DNSNames = []string{inside}
				}
				cert, err := sign(template, parent, testKey(t).Public(), key)
				if err != nil {
					t.Fatal(err)
				}
				chain[0] = cert
				if err := verify(root, chain, tt.name, now); (err != nil) != held {
					t.Errorf("constraints %t: %v", held, err)
				}
				if opensslSays(t, root, chain) == held {
					t.Errorf("constraints %t: openssl believes it: %t", held, held)
				}
			}
		})
	}
}

// unconstrained is a CA as people make them by hand.
func unconstrained(t *testing.T, now time.Time) (*Root, *Intermediate) {
	t.Helper()
	make := func(name string, parent *x509.Certificate, by crypto.Signer) (*x509.Certificate, crypto.Signer) {
		key := testKey(t)
		c := &x509.Certificate{
			Subject: pkix.Name{CommonName: name}, NotBefore: now.Add(-time.Hour), NotAfter: now.Add(time.Hour),
			KeyUsage: x509.KeyUsageCertSign, BasicConstraintsValid: true, IsCA: true, MaxPathLen: -1,
		}
		if parent == nil {
			parent, by = c, key
		}
		cert, err := sign(c, parent, key.Public(), by)
		if err != nil {
			t.Fatal(err)
		}
		return cert, key
	}
	top, topKey := make("root", nil, nil)
	between, betweenKey := make("intermediate", top, topKey)
	return &Root{top, topKey}, &Intermediate{between, top, betweenKey}
}

// opensslSays is what another library says of a chain, its names aside.
func opensslSays(t *testing.T, root *Root, chain []*x509.Certificate) bool {
	t.Helper()
	if _, err := exec.LookPath("openssl"); err != nil {
		t.Skip("openssl is not installed")
	}
	dir := t.TempDir()
	write := func(name string, certs ...*x509.Certificate) string {
		var text []byte
		for _, c := range certs {
			text = append(text, certPEM(c)...)
		}
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, text, 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	out, err := exec.CommandContext(t.Context(), "openssl", "verify", "-x509_strict", "-purpose", "sslserver", "-CAfile", write("root", root.cert),
		"-untrusted", write("between", chain[1:]...), write("leaf", chain[0])).CombinedOutput()
	t.Logf("openssl: %v: %s", err, out)
	return err == nil
}

func TestCheckRootRefusesWhatCouldCertifyMore(t *testing.T) {
	now := time.Now()
	good := func() *x509.Certificate {
		c := authority(testZone, now, rootLife)
		c.Subject, c.MaxPathLen = pkix.Name{CommonName: "root"}, 1
		return c
	}
	for what, tt := range map[string]struct {
		change func(c *x509.Certificate)
		why    string
	}{
		"as it should be":    {func(*x509.Certificate) {}, ""},
		"no constraints":     {func(c *x509.Certificate) { *c = *unboundRoot(now) }, "missing or not critical"},
		"not critical":       {func(c *x509.Certificate) { c.PermittedDNSDomainsCritical = false }, "missing or not critical"},
		"two zones":          {func(c *x509.Certificate) { c.PermittedDNSDomains = append(c.PermittedDNSDomains, "example.org") }, "2 zones"},
		"no zone":            {func(c *x509.Certificate) { c.PermittedDNSDomains = nil }, "0 zones"},
		"every zone":         {func(c *x509.Certificate) { c.PermittedDNSDomains = []string{""} }, "zones"},
		"IPv4":               {func(c *x509.Certificate) { c.ExcludedIPRanges = c.ExcludedIPRanges[1:] }, "IP addresses"},
		"IPv6":               {func(c *x509.Certificate) { c.ExcludedIPRanges = c.ExcludedIPRanges[:1] }, "IP addresses"},
		"mailboxes":          {func(c *x509.Certificate) { c.PermittedEmailAddresses = nil }, "mailboxes"},
		"URIs":               {func(c *x509.Certificate) { c.PermittedURIDomains = []string{"example.org"} }, "URIs"},
		"a longer path":      {func(c *x509.Certificate) { c.MaxPathLen = 2 }, "longer than 1"},
		"a path without end": {func(c *x509.Certificate) { c.MaxPathLen = -1 }, "longer than 1"},
		"no CA at all":       {func(c *x509.Certificate) { c.IsCA, c.MaxPathLen = false, 0 }, "signed itself"},
	} {
		template := good()
		tt.change(template)
		key := testKey(t)
		cert, err := sign(template, template, key.Public(), key)
		if err != nil {
			t.Errorf("%s: %v", what, err)
			continue
		}
		_, err = CheckRoot(certPEM(cert))
		switch {
		case tt.why == "" && err != nil:
			t.Errorf("%s: %v", what, err)
		case tt.why != "" && (err == nil || !strings.Contains(err.Error(), tt.why)):
			t.Errorf("%s: got %v, want %q", what, err, tt.why)
		}
	}
	root, i := testCA(t, now)
	if _, err := CheckRoot(certPEM(i.cert)); err == nil {
		t.Error("an intermediate is taken for a root")
	}
	if _, err := CheckRoot(append(certPEM(root.cert), certPEM(i.cert)...)); err == nil {
		t.Error("a text of two certificates is taken")
	}
}

func unboundRoot(now time.Time) *x509.Certificate {
	return &x509.Certificate{
		Subject: pkix.Name{CommonName: "root"}, NotBefore: now, NotAfter: now.Add(time.Hour), SerialNumber: big.NewInt(1),
		KeyUsage: x509.KeyUsageCertSign, BasicConstraintsValid: true, IsCA: true, MaxPathLen: 1,
	}
}

// The root's key may live on a machine of its own: only a request and a certificate travel.
func TestARootElsewhereSignsAnIntermediate(t *testing.T) {
	now := time.Now()
	root, _ := testCA(t, now)
	cert, key, err := root.PEM()
	if err != nil {
		t.Fatal(err)
	}
	request, between, err := NewIntermediateRequest()
	if err != nil {
		t.Fatal(err)
	}
	elsewhere, err := ParseRoot(cert, key)
	if err != nil {
		t.Fatal(err)
	}
	signed, err := elsewhere.Sign(request, now)
	if err != nil {
		t.Fatal(err)
	}
	i, err := ParseIntermediate(signed, between, cert)
	if err != nil {
		t.Fatal(err)
	}
	text, err := i.Issue(ed25519.PublicKey(make([]byte, ed25519.PublicKeySize)), []string{"nas.foo-bar.ts.net"}, now)
	if err != nil {
		t.Fatal(err)
	}
	if err := verify(root, parseChain(t, text), "nas.foo-bar.ts.net", now); err != nil {
		t.Error(err)
	}
	if i.Due(now) || !i.Due(now.Add(46*24*time.Hour)) || !i.End().After(now.Add(89*24*time.Hour)) {
		t.Errorf("due %t now, %t after 46 days, ends %s", i.Due(now), i.Due(now.Add(46*24*time.Hour)), i.End())
	}
	if _, err := ParseIntermediate(signed, key, cert); err == nil {
		t.Error("an intermediate is taken with a key that is not its own")
	}
	other, _ := testCA(t, now)
	if _, err := ParseIntermediate(signed, between, certPEM(other.cert)); err == nil {
		t.Error("an intermediate of another root is taken")
	}
	for what, request := range map[string][]byte{"nothing": nil, "a certificate": cert, "half of it": request[:len(request)/2]} {
		if _, err := root.Sign(request, now); err == nil {
			t.Errorf("%s is signed", what)
		}
	}
}

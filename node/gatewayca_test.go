package node

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/meshdns/meshdns/certs"
	"github.com/meshdns/meshdns/node/control"
)

// csrFor is a request with a key of its own.
func csrFor(t *testing.T, names ...string) *x509.CertificateRequest {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{DNSNames: names}, key)
	if err != nil {
		t.Fatal(err)
	}
	csr, err := x509.ParseCertificateRequest(der)
	if err != nil {
		t.Fatal(err)
	}
	return csr
}

// trusts reports what a client that believes root says of a chain.
func trusts(t *testing.T, root, chain []byte, name string) error {
	t.Helper()
	roots, between := x509.NewCertPool(), x509.NewCertPool()
	block, rest := pem.Decode(chain)
	if block == nil || !roots.AppendCertsFromPEM(root) || !between.AppendCertsFromPEM(rest) {
		t.Fatalf("not a root and a chain: %q, %q", root, chain)
	}
	leaf, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		t.Fatal(err)
	}
	_, err = leaf.Verify(x509.VerifyOptions{DNSName: name, Roots: roots, Intermediates: between})
	return err
}

// S19: the registry says which names a certificate has. Another node's name is refused, and a node that is gone gets none.
func TestTheTailnetsCACertifiesANodesOwnNames(t *testing.T) {
	gate := startGateway(t)
	nas := gate.invited(t, "nas")
	gate.invited(t, "web")
	soon(t, "nas and web join", func() bool { return gate.isNode(t, "nas") && gate.isNode(t, "web") })
	root, err := nas.node.tailnetRoot(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	issuer := enrolment{nas.node}
	for what, tt := range map[string]struct {
		names []string
		has   []string
		why   string
	}{
		"what it is told": {nil, []string{"nas.foo-bar.example.org", "x.nas.foo-bar.example.org"}, ""},
		"less":            {[]string{"nas.foo-bar.example.org"}, []string{"nas.foo-bar.example.org"}, ""},
		"another's":       {[]string{"web.foo-bar.example.org"}, nil, "web.foo-bar.example.org is not a name of nas"},
		"another's too":   {[]string{"nas.foo-bar.example.org", "*.web.foo-bar.example.org"}, nil, "is not a name of nas"},
		"the zone":        {[]string{"foo-bar.example.org"}, nil, "is not a name of nas"},
		"all of the zone": {[]string{"*.foo-bar.example.org"}, nil, "is not a name of nas"},
		"outside":         {[]string{"www.example.org"}, nil, "is not a name of nas"},
	} {
		chain, err := issuer.Issue(t.Context(), csrFor(t, tt.names...))
		if tt.why != "" {
			var step *certs.StepError
			if !errors.As(err, &step) || !strings.Contains(err.Error(), tt.why) {
				t.Errorf("%s: got %v, want %q", what, err, tt.why)
			}
			continue
		}
		if err != nil {
			t.Errorf("%s: %v", what, err)
			continue
		}
		for _, name := range tt.has {
			if err := trusts(t, root, chain, name); err != nil {
				t.Errorf("%s: %s: %v", what, name, err)
			}
		}
		if err := trusts(t, root, chain, "web.foo-bar.example.org"); err == nil {
			t.Errorf("%s: it is good for web, too", what)
		}
	}
	if chain, err := (enrolment{gate.node}).Issue(t.Context(), csrFor(t)); err != nil || trusts(t, root, chain, "edge.foo-bar.example.org") != nil {
		t.Errorf("the gateway's own: %v", err)
	}
	client := nas.node.member.caller()
	if _, err := client.Certify(t.Context(), []byte("no request")); err == nil || !strings.Contains(err.Error(), "cannot be read") {
		t.Errorf("what is no request: %v", err)
	}
	if err := gate.RemoveNode(t.Context(), "nas"); err != nil {
		t.Fatal(err)
	}
	if chain, err := issuer.Issue(t.Context(), csrFor(t)); err == nil {
		t.Errorf("a node that was removed: %s", chain)
	}
}

// The root's key may be taken elsewhere: an intermediate goes on until its end, and the next one is signed there.
func TestTheRootOfTheTailnetsCAMayBeElsewhere(t *testing.T) {
	now := time.Now()
	newCA := func(dir string) *tailnetCA {
		return &tailnetCA{dir: dir, zone: "foo-bar.ts.net", now: func() time.Time { return now }}
	}
	ca := newCA(filepath.Join(t.TempDir(), "ca"))
	names := []string{"nas.foo-bar.ts.net"}
	if _, err := ca.issue(csrFor(t), names); err != nil {
		t.Fatal(err)
	}
	root, err := ca.rootPEM()
	if err != nil {
		t.Fatal(err)
	}
	for name, mode := range map[string]os.FileMode{"root.crt": 0o644, "root.key": 0o600, "intermediate.pem": 0o600} {
		if info, err := os.Stat(ca.file(name)); err != nil || info.Mode() != mode {
			t.Errorf("%s: %v, %v; want %v", name, info.Mode(), err, mode)
		}
	}
	away := filepath.Join(t.TempDir(), "root.key")
	if err := os.Rename(ca.file("root.key"), away); err != nil {
		t.Fatal(err)
	}
	now = now.Add(50 * 24 * time.Hour) // it is due
	again := newCA(ca.dir)
	if chain, err := again.issue(csrFor(t), names); err != nil {
		t.Fatal(err)
	} else if got := count(chain); got != 2 {
		t.Errorf("a chain of %d", got)
	}
	request, err := os.ReadFile(ca.file("intermediate.csr"))
	if err != nil {
		t.Fatal(err)
	}
	now = now.Add(50 * 24 * time.Hour) // it is over
	var lacks *rootAwayError
	if _, err := again.issue(csrFor(t), names); !errors.As(err, &lacks) || !strings.Contains(lacks.Hint(), "gateway ca sign") {
		t.Errorf("after the intermediate's end: %v", err)
	}
	key, err := os.ReadFile(away)
	if err != nil {
		t.Fatal(err)
	}
	elsewhere, err := certs.ParseRoot(root, key)
	if err != nil {
		t.Fatal(err)
	}
	signed, err := elsewhere.Sign(request, now)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(ca.file("intermediate.crt"), signed, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, one := range []*tailnetCA{again, newCA(ca.dir)} {
		if _, err := one.issue(csrFor(t), names); err != nil {
			t.Errorf("with the one that was signed elsewhere: %v", err)
		}
	}
	left, err := filepath.Glob(ca.file("*"))
	if err != nil || len(left) != 2 {
		t.Errorf("there is %q, %v", left, err)
	}
	if again, err := newCA(ca.dir).rootPEM(); err != nil || !slices.Equal(again, root) {
		t.Errorf("the root has changed: %v", err)
	}
}

func count(chain []byte) (n int) {
	for block, rest := pem.Decode(chain); block != nil; block, rest = pem.Decode(rest) {
		n++
	}
	return n
}

// A gateway that was broken into could hand out any root: a node looks at it before anybody believes it.
func TestARootThatCouldCertifyMoreIsNotTaken(t *testing.T) {
	gate := startGateway(t)
	nas := gate.invited(t, "nas")
	soon(t, "nas joins", func() bool { return gate.isNode(t, "nas") })
	other, err := certs.NewRoot("example.org", time.Now())
	if err != nil {
		t.Fatal(err)
	}
	wide, _, err := other.PEM()
	if err != nil {
		t.Fatal(err)
	}
	gate.node.gateway.ca.mu.Lock()
	gate.node.gateway.ca.root, gate.node.gateway.ca.between = wide, new(certs.Intermediate)
	gate.node.gateway.ca.mu.Unlock()
	if _, err := nas.node.tailnetRoot(t.Context()); err == nil || !strings.Contains(err.Error(), "is for the zone example.org") {
		t.Errorf("of another zone: %v", err)
	}
	gate.node.gateway.ca.mu.Lock()
	gate.node.gateway.ca.root = []byte("nothing")
	gate.node.gateway.ca.mu.Unlock()
	if _, err := nas.node.tailnetRoot(t.Context()); err == nil {
		t.Error("what is no root is taken")
	}
}

func TestCertifiableNames(t *testing.T) {
	got := certifiable(control.Node{Name: "nas", Names: []string{"photos"}}, "foo-bar.ts.net")
	want := []string{"nas.foo-bar.ts.net", "*.nas.foo-bar.ts.net", "photos.foo-bar.ts.net", "*.photos.foo-bar.ts.net"}
	if !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
}

var _ certs.Issuer = enrolment{}

func TestAMachineWithoutAGatewayHasNoCA(t *testing.T) {
	n := startNode(t, testConfig(), testPaths(t))
	if _, err := (enrolment{n.node}).Issue(context.Background(), csrFor(t)); err == nil {
		t.Error("a certificate from nobody")
	}
	if _, err := n.node.tailnetRoot(t.Context()); err == nil {
		t.Error("a root from nobody")
	}
}

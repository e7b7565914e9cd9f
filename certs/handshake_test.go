package certs

import (
	"crypto"
	"crypto/tls"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"
)

// holding is a manager that holds certificates for each of these lists of names.
func holding(t *testing.T, lists ...[]string) *Manager {
	t.Helper()
	m, err := New(Config{Dir: t.TempDir(), CAs: []CA{{"ca0", newFakeCA(t, 90*day)}}, Logger: testLog(t)})
	if err != nil {
		t.Fatal(err)
	}
	for _, names := range lists {
		if _, _, err := m.Get(t.Context(), Request{Names: names}); err != nil {
			t.Fatal(err)
		}
	}
	return m
}

func TestWhichCertificateAHandshakeGets(t *testing.T) {
	m := holding(t,
		[]string{"nas.example.org", "*.nas.example.org"},
		[]string{"photos.nas.example.org"},
		[]string{"xn--bro-hoa.example.org"},
	)
	for _, test := range []struct{ server, want string }{
		{"nas.example.org", "nas.example.org"},
		{"NAS.example.ORG", "nas.example.org"},
		{"nas.example.org.", "nas.example.org"},
		{"x.nas.example.org", "nas.example.org"},
		{"X.nas.example.org.", "nas.example.org"},
		{"photos.nas.example.org", "photos.nas.example.org"}, // the exact one before the wildcard
		{"büro.example.org", "xn--bro-hoa.example.org"},
		{"BÜRO.example.org.", "xn--bro-hoa.example.org"},
		{"xn--bro-hoa.example.org", "xn--bro-hoa.example.org"},
		{"a.b.nas.example.org", ""}, // a wildcard stands for one label
		{".nas.example.org", ""},
		{"*.nas.example.org", "nas.example.org"},
		{"example.org", ""},
		{"org", ""},
		{".", ""},
		{"", ""},
		{"192.0.2.1", ""},
		{strings.Repeat("a", 300) + ".nas.example.org", "nas.example.org"},
	} {
		c, err := m.GetCertificate(&tls.ClientHelloInfo{ServerName: test.server})
		switch {
		case test.want == "" && err == nil:
			t.Errorf("%q gets the certificate of %s", test.server, c.Leaf.DNSNames[0])
		case test.want != "" && (err != nil || c.Leaf.DNSNames[0] != test.want):
			t.Errorf("%q: %v, want that of %s", test.server, err, test.want)
		}
	}
}

func TestHandshakesNeedNoDisk(t *testing.T) {
	m := holding(t, nasNames())
	if err := os.RemoveAll(m.cfg.Dir); err != nil {
		t.Fatal(err)
	}
	if _, err := m.GetCertificate(&tls.ClientHelloInfo{ServerName: nasNames()[0]}); err != nil {
		t.Error(err)
	}
}

func TestACertificateIsSwappedUnderHandshakes(t *testing.T) {
	m := holding(t, nasNames())
	end := make(chan struct{})
	var wait sync.WaitGroup
	for range 2 {
		wait.Go(func() {
			for {
				select {
				case <-end:
					return
				default:
				}
				c, err := m.GetCertificate(&tls.ClientHelloInfo{ServerName: nasNames()[0]})
				if err != nil {
					t.Error(err)
					return
				}
				if _, err := tls.X509KeyPair(certPEM(c.Leaf), mustKeyPEM(t, c)); err != nil {
					t.Errorf("key and certificate are not one: %v", err)
					return
				}
			}
		})
	}
	for range 8 {
		if _, issued, err := m.Get(t.Context(), Request{Names: nasNames(), Force: true}); err != nil || !issued {
			t.Error(issued, err)
		}
	}
	close(end)
	wait.Wait()
}

func mustKeyPEM(t *testing.T, c *tls.Certificate) []byte {
	t.Helper()
	text, err := keyPEM(c.PrivateKey.(crypto.Signer))
	if err != nil {
		t.Fatal(err)
	}
	return text
}

func TestTheStoreNeverMixesAPair(t *testing.T) {
	m := holding(t, nasNames())
	name := nasNames()[0]
	first, err := m.store.load(name)
	if err != nil {
		t.Fatal(err)
	}
	// As if the process had died in each step of storing the next one.
	next := testPair(t, nasNames()...)
	draft := m.store.at(name, ".draft")
	if err := os.Mkdir(draft, 0o700); err != nil {
		t.Fatal(err)
	}
	for _, file := range []struct {
		name string
		data []byte
	}{{keyFile, next.KeyPEM}, {chainFile, next.ChainPEM}} {
		if err := os.WriteFile(filepath.Join(draft, file.name), file.data, 0o600); err != nil {
			t.Fatal(err)
		}
		sameStill(t, m, first)
	}
	if err := writeJSON(filepath.Join(draft, metaFile), meta{CA: "ca0"}); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(draft, m.store.at(name, "v2")); err != nil {
		t.Fatal(err)
	}
	sameStill(t, m, first)
	// The next one takes a number of its own, and the old ones go in time.
	for range 4 {
		if err := m.store.save(testPair(t, nasNames()...)); err != nil {
			t.Fatal(err)
		}
	}
	versions, err := m.store.versions(name)
	if err != nil || len(versions) != kept || versions[kept-1] != 6 {
		t.Errorf("versions %v, %v", versions, err)
	}
}

// testPair is a certificate and its key.
func testPair(t *testing.T, names ...string) *Certificate {
	t.Helper()
	key, err := newKey(keyP256)
	if err != nil {
		t.Fatal(err)
	}
	csr, err := newRequest(key, names)
	if err != nil {
		t.Fatal(err)
	}
	chain, err := newFakeCA(t, 90*day).Issue(t.Context(), csr)
	if err != nil {
		t.Fatal(err)
	}
	text, err := keyPEM(key)
	if err != nil {
		t.Fatal(err)
	}
	c, err := newCertificate(names[0], "ca0", chain, text)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// sameStill checks that a new process would find this certificate.
func sameStill(t *testing.T, m *Manager, want *Certificate) {
	t.Helper()
	got, err := m.store.load(want.Name)
	if err != nil || !got.Leaf.Equal(want.Leaf) {
		t.Errorf("the current one is %v, %v", got, err)
	}
}

func TestDamageIsSaidAndMended(t *testing.T) {
	for _, damage := range []string{keyFile, chainFile, metaFile} {
		m := holding(t, nasNames(), []string{"photos.example.org"})
		name := nasNames()[0]
		if err := os.WriteFile(m.store.at(name, "current", damage), []byte("x"), 0o600); err != nil {
			t.Fatal(err)
		}
		again, err := New(m.cfg)
		if err != nil {
			t.Fatal(err)
		}
		if err := again.Load(); err == nil || !strings.Contains(err.Error(), name) {
			t.Errorf("%s is damaged: %v", damage, err)
		}
		if _, err := again.GetCertificate(&tls.ClientHelloInfo{ServerName: "photos.example.org"}); err != nil {
			t.Errorf("the other certificate: %v", err)
		}
	}
}

func TestWhoWaitsForALockGoesOnAfterARemoval(t *testing.T) {
	m := holding(t, nasNames())
	name := nasNames()[0]
	unlock, err := m.store.lock(t.Context(), name)
	if err != nil {
		t.Fatal(err)
	}
	got := make(chan error, 1)
	go func() {
		_, _, err := m.Get(t.Context(), Request{Names: nasNames()})
		got <- err
	}()
	if err := m.store.remove(name); err != nil {
		t.Fatal(err)
	}
	unlock()
	select {
	case err := <-got:
		if err != nil {
			t.Error(err)
		}
	case <-time.After(time.Minute):
		t.Fatal("it still waits")
	}
	if _, err := m.store.load(name); err != nil {
		t.Errorf("what it got is not there: %v", err)
	}
	if err := m.Remove(t.Context(), "other.example.org"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("removing what was never there: %v", err)
	}
}

func FuzzCleanName(f *testing.F) {
	for _, name := range []string{"nas.example.org", "*.nas.example.org.", "büro", "..", "*", "a_b.example", "../../etc", "xn--a"} {
		f.Add(name)
	}
	f.Fuzz(func(t *testing.T, name string) {
		clean, err := CleanName(name)
		if err != nil {
			return
		}
		if again, err := CleanName(clean); err != nil || again != clean {
			t.Errorf("%q becomes %q, and that %q, %v", name, clean, again, err)
		}
		path := (store{dir: "/x"}).at(clean)
		if filepath.Dir(path) != "/x/names" || strings.ContainsAny(clean, "/\\\x00") {
			t.Errorf("%q lies at %s", clean, path)
		}
	})
}

func FuzzRetryAfter(f *testing.F) {
	for _, header := range []string{"", "120", "-1", "Fri, 31 Dec 1999 23:59:59 GMT", "99999999999999999999"} {
		f.Add(header)
	}
	now := time.Unix(0, 0)
	f.Fuzz(func(t *testing.T, header string) {
		at := later(header, now)
		if !at.IsZero() && (at.Before(now) || at.After(now.Add(maxLater))) {
			t.Errorf("%q is %v", header, at)
		}
	})
}

func FuzzChain(f *testing.F) {
	f.Add([]byte("-----BEGIN CERTIFICATE-----\nAA==\n-----END CERTIFICATE-----\n"))
	f.Fuzz(func(t *testing.T, data []byte) {
		chain, err := readChain(data)
		if (err == nil) != (len(chain) > 0) {
			t.Errorf("%d certificates, %v", len(chain), err)
		}
	})
}

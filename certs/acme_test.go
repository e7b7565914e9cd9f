package certs

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/mholt/acmez/v3/acme"
)

const month = 30 * 24 * time.Hour

// nasNames are a node's names: its own, a service's, and what is below it.
func nasNames() []string {
	return []string{"nas.foo-bar.example.org", "photos.foo-bar.example.org", "*.nas.foo-bar.example.org"}
}

// steps collects what is reported.
type steps struct {
	mu  sync.Mutex
	got []Step
}

func (s *steps) add(step Step) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.got = append(s.got, step)
}

// stages are the steps' names, each once, in the order of their first.
func (s *steps) stages() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	var stages []string
	for _, step := range s.got {
		if !slices.Contains(stages, step.Stage) {
			stages = append(stages, step.Stage)
		}
	}
	return stages
}

func TestOneOrderForNameWildcardAndServices(t *testing.T) {
	p := newPebble(t, newNameServer(t), month)
	m := p.manager(t, nil)
	var told steps
	c, issued, err := m.Get(t.Context(), Request{Names: nasNames(), Steps: told.add})
	if err != nil || !issued {
		t.Fatalf("Get = %v, %v", issued, err)
	}
	if !covers(c.Leaf, nasNames()) {
		t.Errorf("names = %q", c.Leaf.DNSNames)
	}
	want := []string{registered, ordered, Published, seen, validated, issuedStep(), written}
	if got := told.stages(); !slices.Equal(got, want) {
		t.Errorf("steps = %q, want %q", got, want)
	}
	if n := p.count("order-plz"); n != 1 {
		t.Errorf("%d orders, want 1", n)
	}
	if n := p.dns.left(); n != 0 {
		t.Errorf("%d TXT values are left", n)
	}
	for _, name := range []string{"nas.foo-bar.example.org", "x.nas.foo-bar.example.org", "photos.foo-bar.example.org"} {
		serves(t, m, p, name)
	}
	if _, issued, err := m.Get(t.Context(), Request{Names: nasNames()}); issued || err != nil {
		t.Errorf("asked again: issued = %t, %v", issued, err)
	}
}

func issuedStep() string { return issued }

func TestFilesAreForThisUserOnly(t *testing.T) {
	p := newPebble(t, newNameServer(t), month)
	var dir string
	m := p.manager(t, func(c *Config) { dir = c.Dir })
	if _, _, err := m.Get(t.Context(), Request{Names: nasNames()}); err != nil {
		t.Fatal(err)
	}
	for _, top := range []string{dir, p.issuerDir(t, m)} {
		err := filepath.WalkDir(top, func(path string, d os.DirEntry, err error) error {
			if err != nil || d.Type()&os.ModeSymlink != 0 {
				return err
			}
			info, err := d.Info()
			if err != nil {
				return err
			}
			if path != top && info.Mode().Perm()&0o077 != 0 {
				t.Errorf("%s has mode %v", path, info.Mode())
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
	}
}

func (p *pebble) issuerDir(t *testing.T, m *Manager) string {
	t.Helper()
	return m.cfg.CAs[0].Issuer.(*ACME).cfg.Dir
}

func TestNoncesThatAreRejected(t *testing.T) {
	t.Setenv("PEBBLE_WFE_NONCEREJECT", "60")
	p := newPebble(t, newNameServer(t), month)
	if _, _, err := p.manager(t, nil).Get(t.Context(), Request{Names: nasNames()[:1]}); err != nil {
		t.Fatal(err)
	}
}

// More nonces may be lost in a row than acmez bears.
func TestAnOrderOutlivesManyLostNonces(t *testing.T) {
	p := newPebble(t, newNameServer(t), month)
	for _, path := range []string{"/finalize-order/", "/chalZ/"} {
		left := 12
		p.has(func() {
			p.fault = func(w http.ResponseWriter, r *http.Request) bool {
				p.mu.Lock()
				defer p.mu.Unlock()
				if !strings.HasPrefix(r.URL.Path, path) || left == 0 {
					return false
				}
				left--
				refuse(w, http.StatusBadRequest, "badNonce", "lost", "")
				return true
			}
		})
		before := p.count("order-plz")
		if _, _, err := p.manager(t, nil).Get(t.Context(), Request{Names: nasNames()[:1]}); err != nil {
			t.Errorf("%s: %v", path, err)
		}
		if left != 0 {
			t.Errorf("%s: was not asked for", path)
		}
		if n := p.count("order-plz") - before; n != 1 {
			t.Errorf("%s: %d orders", path, n)
		}
	}
}

func TestAProviderOfOneValueAtATime(t *testing.T) {
	p := newPebble(t, newNameServer(t), month)
	p.dns.serial = true
	if _, _, err := p.manager(t, nil).Get(t.Context(), Request{Names: nasNames()}); err != nil {
		t.Fatal(err)
	}
	if p.dns.most != 1 {
		t.Errorf("%d values at a time, want 1", p.dns.most)
	}
}

func TestARateLimitIsKeptOnDisk(t *testing.T) {
	p := newPebble(t, newNameServer(t), month)
	var cfg Config
	m := p.manager(t, func(c *Config) { cfg = *c })
	p.has(func() {
		p.fault = func(w http.ResponseWriter, r *http.Request) bool {
			if r.URL.Path != "/order-plz" {
				return false
			}
			refuse(w, http.StatusTooManyRequests, "rateLimited", "too many certificates this week", "3600")
			return true
		}
	})
	_, _, err := m.Get(t.Context(), Request{Names: nasNames()})
	var step *StepError
	var later *LaterError
	if !errors.As(err, &step) || step.Stage != ordered || !errors.As(err, &later) || !strings.Contains(err.Error(), `the CA says "too many certificates this week"`) {
		t.Fatalf("Get: %v, want the CA's words at step order, and a time", err)
	}
	if until := time.Until(later.Until); until < 55*time.Minute || until > time.Hour {
		t.Errorf("not before %v from now, want an hour", until)
	}
	orders := p.count("order-plz")
	if orders != 1 {
		t.Errorf("%d orders, want 1", orders)
	}
	p.has(func() { p.fault = nil })
	again, err := New(cfg) // another process
	if err != nil {
		t.Fatal(err)
	}
	_, _, err = again.Get(t.Context(), Request{Names: nasNames(), Force: true})
	if !errors.As(err, &later) || !strings.Contains(err.Error(), "too many certificates") || p.count("order-plz") != orders {
		t.Errorf("asked again at once: %v, %d orders", err, p.count("order-plz"))
	}
	if err := again.Load(); err != nil {
		t.Fatal(err)
	}
	if info := again.List()[0]; time.Until(info.Renewal) < 55*time.Minute || info.Trouble == nil || info.Trouble.Step != ordered {
		t.Errorf("the list says %+v, trouble %+v", info, info.Trouble)
	}
}

func TestACAThatIsDownForAMoment(t *testing.T) {
	p := newPebble(t, newNameServer(t), month)
	failures := 2
	p.has(func() {
		p.fault = func(w http.ResponseWriter, r *http.Request) bool {
			p.mu.Lock()
			defer p.mu.Unlock()
			if r.URL.Path != "/order-plz" || failures == 0 {
				return false
			}
			failures--
			refuse(w, http.StatusServiceUnavailable, "serverInternal", "maintenance", "1")
			return true
		}
	})
	if _, _, err := p.manager(t, nil).Get(t.Context(), Request{Names: nasNames()}); err != nil {
		t.Fatal(err)
	}
}

func TestACAThatIsDownForLong(t *testing.T) {
	p := newPebble(t, newNameServer(t), month)
	p.has(func() {
		p.fault = func(w http.ResponseWriter, _ *http.Request) bool {
			refuse(w, http.StatusServiceUnavailable, "serverInternal", "maintenance", time.Now().Add(2*time.Hour).UTC().Format(http.TimeFormat))
			return true
		}
	})
	_, _, err := p.manager(t, nil).Get(t.Context(), Request{Names: nasNames()})
	var later *LaterError
	if !errors.As(err, &later) || time.Until(later.Until) < 110*time.Minute || !strings.Contains(err.Error(), `registering an account (CA pebble): the CA says "maintenance"`) {
		t.Errorf("Get: %v", err)
	}
}

func TestACAThatHangsIsLeftForTheNext(t *testing.T) {
	names := newNameServer(t)
	slow, good := newPebble(t, names, month), newPebble(t, names, month)
	hang := make(chan struct{})
	slow.has(func() {
		slow.fault = func(_ http.ResponseWriter, r *http.Request) bool {
			if r.URL.Path == "/order-plz" {
				select {
				case <-hang:
				case <-r.Context().Done():
				}
			}
			return false
		}
	})
	defer close(hang)
	m := good.manager(t, func(c *Config) {
		c.CAs = []CA{{"slow", slow.issuer(t, func(c *ACMEConfig) { c.Name, c.Request = "slow", 200*time.Millisecond })}, {"good", good.issuer(t, nil)}}
	})
	c, _, err := m.Get(t.Context(), Request{Names: nasNames()})
	if err != nil {
		t.Fatal(err)
	}
	if c.CA != "good" {
		t.Errorf("signed by %s", c.CA)
	}
	if _, _, err := m.Get(t.Context(), Request{Names: nasNames(), CA: "slow"}); err == nil || !strings.Contains(err.Error(), "ordering (CA slow)") {
		t.Errorf("from the one that hangs: %v", err)
	}
}

func TestACAThatForgotTheAccount(t *testing.T) {
	p := newPebble(t, newNameServer(t), month)
	var uris []string
	a := p.issuer(t, func(c *ACMEConfig) {
		c.Account = func(_ context.Context, uri string) error { uris = append(uris, uri); return nil }
	})
	m := p.manager(t, func(c *Config) { c.CAs = []CA{{"pebble", a}} })
	first, _, err := m.Get(t.Context(), Request{Names: nasNames()})
	if err != nil {
		t.Fatal(err)
	}
	key := a.account.Key
	p.reset(month, false)
	second, issued, err := m.Get(t.Context(), Request{Names: nasNames(), Force: true})
	if err != nil || !issued || second.Leaf.Equal(first.Leaf) {
		t.Fatalf("after the CA forgot all: issued = %t, %v", issued, err)
	}
	if a.account.Key != key {
		t.Error("the account's key is another one")
	}
	if len(uris) < 2 || uris[len(uris)-1] != a.URI() {
		t.Errorf("told of the accounts %q, it is %s", uris, a.URI())
	}
}

func TestTheCAsWordsOnARefusedName(t *testing.T) {
	p := newPebble(t, newNameServer(t), month)
	if err := p.db.AddBlockedDomain("nas.foo-bar.example.org"); err != nil {
		t.Fatal(err)
	}
	_, _, err := p.manager(t, nil).Get(t.Context(), Request{Names: nasNames()})
	if !isProblem(err, acme.ProblemTypeRejectedIdentifier) || !strings.Contains(err.Error(), "ordering (CA pebble): the CA says") {
		t.Errorf("Get: %v", err)
	}
}

func TestARecordThatTheCADoesNotSee(t *testing.T) {
	p := newPebble(t, newNameServer(t), month)
	p.dns.has(func() {
		p.dns.present = func(name string) { // as if another server answered the CA
			p.dns.has(func() { p.dns.txt[name] = []string{strings.Repeat("x", 43)} })
		}
	})
	m := p.manager(t, nil)
	_, _, err := m.Get(t.Context(), Request{Names: nasNames()[:1]})
	var step *StepError
	if !errors.As(err, &step) || step.Stage != validated || !strings.Contains(err.Error(), `nas.foo-bar.example.org: the CA says "`) {
		t.Fatalf("Get: %v", err)
	}
	p.dns.has(func() { p.dns.present = nil; clear(p.dns.txt) })
	if _, _, err := m.Get(t.Context(), Request{Names: nasNames()[:1]}); err != nil {
		t.Errorf("once it is mended: %v", err)
	}
}

func TestARecordThatCannotBeWritten(t *testing.T) {
	p := newPebble(t, newNameServer(t), month)
	p.dns.has(func() {
		p.dns.refuse = func(name string) error {
			if strings.Contains(name, "photos") {
				return errors.New("gateway edge says no")
			}
			return nil
		}
	})
	m := p.manager(t, nil)
	_, _, err := m.Get(t.Context(), Request{Names: nasNames()})
	if err == nil || !strings.Contains(err.Error(), "publishing the TXT record (CA pebble): _acme-challenge.photos.foo-bar.example.org: gateway edge says no") {
		t.Fatalf("Get: %v", err)
	}
	if n := p.dns.left(); n != 0 {
		t.Errorf("%d TXT values are left", n)
	}
	if n := p.count("chalZ"); n != 0 {
		t.Errorf("the CA was asked to look %d times", n)
	}
	p.dns.has(func() { p.dns.refuse = nil })
	if _, _, err := m.Get(t.Context(), Request{Names: nasNames()}); err != nil {
		t.Fatal(err)
	}
	if n := p.count("order-plz"); n != 1 {
		t.Errorf("%d orders, want the first one to be gone on with", n)
	}
}

func TestAnAccountOfAnother(t *testing.T) {
	p := newPebble(t, newNameServer(t), month)
	p.reset(month, true)
	const secret = "zWNDZM6eQGHWpSRTPal5eIUYFTu7EajVIoguysqZ9wG44nMEtx3MUAsUDkMTQ12W"
	if err := p.db.AddExternalAccountKeyByID("kid-1", secret); err != nil {
		t.Fatal(err)
	}
	if _, _, err := p.manager(t, nil).Get(t.Context(), Request{Names: nasNames()}); !isProblem(err, acme.ProblemTypeExternalAccountRequired) {
		t.Errorf("without it: %v", err)
	}
	m := p.manager(t, func(c *Config) {
		c.CAs = []CA{{"pebble", p.issuer(t, func(c *ACMEConfig) { c.EAB = [2]string{"kid-1", secret} })}}
	})
	if _, _, err := m.Get(t.Context(), Request{Names: nasNames()}); err != nil {
		t.Errorf("with it: %v", err)
	}
}

func TestPublicCAsAreNotAskedForPrivateNames(t *testing.T) {
	dir, names := t.TempDir(), &nameServer{}
	for _, test := range []struct{ ca, name, want string }{
		{"letsencrypt", "nas.foo-bar.ts.net", "ts.net belongs to Tailscale"},
		{"letsencrypt-staging", "nas.foo-bar.ts.net.", "ts.net belongs to Tailscale"},
		{"zerossl", "nas.home.internal", ".internal is no domain of the public DNS"},
		{"google", "nas", "it is a bare name"},
		{"letsencrypt", "*.nas.foo-bar.ts.net", "ts.net belongs to Tailscale"},
		{"letsencrypt", "100.64.0.2", "is an address"},
		{"letsencrypt", "fd7a::1", "is an address"},
		{"letsencrypt", "printer.local", ".local is no domain"},
	} {
		directory, ok := Directory(test.ca)
		if !ok {
			t.Fatalf("no directory of %s", test.ca)
		}
		a, err := NewACME(ACMEConfig{Name: test.ca, Directory: directory, Dir: dir, TXT: names})
		if err != nil {
			t.Fatal(err)
		}
		a.live, a.directory.live = nil, nil // nothing must be asked
		m, err := New(Config{Dir: dir, CAs: []CA{{test.ca, a}}})
		if err != nil {
			t.Fatal(err)
		}
		_, _, err = m.Get(t.Context(), Request{Names: []string{test.name}})
		var hint interface{ Hint() string }
		if err == nil || !strings.Contains(err.Error(), test.want) || !errors.As(err, &hint) || hint.Hint() == "" {
			t.Errorf("%s of %s: %v, want %q and a hint", test.name, test.ca, err, test.want)
		}
		if _, err := os.Stat(filepath.Join(dir, "names")); err == nil {
			t.Errorf("%s left something on disk", test.name)
		}
	}
	for _, fine := range []string{"nas.foo-bar.example.org", "ts.net.example.org", "nas.notts.net", "internal.example.org"} {
		if why := neverPublic(fine); why != "" {
			t.Errorf("%s: %s", fine, why)
		}
	}
}

func TestRevoke(t *testing.T) {
	p := newPebble(t, newNameServer(t), month)
	m := p.manager(t, nil)
	c, _, err := m.Get(t.Context(), Request{Names: nasNames()})
	if err != nil {
		t.Fatal(err)
	}
	if err := m.Revoke(t.Context(), c.Name, "boredom"); err == nil {
		t.Error("any reason is taken")
	}
	if err := m.Revoke(t.Context(), c.Name, "superseded"); err != nil {
		t.Fatal(err)
	}
	if got := p.db.GetRevokedCertificateBySerial(c.Leaf.SerialNumber); got == nil {
		t.Error("the CA does not know")
	}
	if len(m.List()) != 0 {
		t.Errorf("it is still there: %+v", m.List())
	}
}

func TestSecretsAreNotPrinted(t *testing.T) {
	p := newPebble(t, newNameServer(t), month)
	m := p.manager(t, nil)
	c, _, err := m.Get(t.Context(), Request{Names: nasNames()})
	if err != nil {
		t.Fatal(err)
	}
	a := m.cfg.CAs[0].Issuer.(*ACME)
	cfg := a.cfg
	cfg.EAB = [2]string{"kid", "SECRET"}
	for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%x"} {
		for _, v := range []any{c, *c, a.account, cfg} {
			text := fmt.Sprintf(verb, v)
			if strings.Contains(text, "PRIVATE") || strings.Contains(text, "SECRET") || len(text) > 300 {
				t.Errorf("%s of %T prints %.200s", verb, v, text)
			}
		}
	}
}

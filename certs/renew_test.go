package certs

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"math/big"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// fakeCA signs whatever it is asked for, by the clock of the test.
type fakeCA struct {
	life time.Duration

	mu       sync.Mutex
	key      *ecdsa.PrivateKey
	issued   []time.Time
	replaced int
	refuse   func() error                            // may be nil
	window   func(*x509.Certificate) (window, error) // may be nil
	asked    int

	refuseNames func(names []string) error // may be nil
}

func newFakeCA(t *testing.T, life time.Duration) *fakeCA {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return &fakeCA{life: life, key: key}
}

func (f *fakeCA) has(set func()) {
	f.mu.Lock()
	defer f.mu.Unlock()
	set()
}

// Issue signs.
func (f *fakeCA) Issue(ctx context.Context, csr *x509.CertificateRequest) ([]byte, error) {
	f.mu.Lock()
	refuse, refuseNames := f.refuse, f.refuseNames
	f.issued = append(f.issued, time.Now())
	serial := int64(len(f.issued))
	f.mu.Unlock()
	if refuse != nil {
		if err := refuse(); err != nil {
			return nil, err
		}
	}
	if refuseNames != nil {
		if err := refuseNames(csr.DNSNames); err != nil {
			return nil, err
		}
	}
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(serial), DNSNames: csr.DNSNames, NotBefore: time.Now(), NotAfter: time.Now().Add(f.life)}
	der, err := x509.CreateCertificate(rand.Reader, template, template, csr.PublicKey, f.key)
	if err != nil {
		return nil, err
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, err
	}
	return certPEM(cert), nil
}

// Replace counts what is replaced.
func (f *fakeCA) Replace(ctx context.Context, csr *x509.CertificateRequest, old *x509.Certificate) ([]byte, error) {
	if old != nil {
		f.has(func() { f.replaced++ })
	}
	return f.Issue(ctx, csr)
}

// RenewalInfo is what the test says.
func (f *fakeCA) RenewalInfo(_ context.Context, leaf *x509.Certificate) (window, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.asked++
	if f.window == nil {
		return window{}, errors.ErrUnsupported
	}
	return f.window(leaf)
}

func (f *fakeCA) times() []time.Time {
	f.mu.Lock()
	defer f.mu.Unlock()
	return append([]time.Time(nil), f.issued...)
}

// testLog logs to the test.
func testLog(t *testing.T) *slog.Logger {
	return slog.New(slog.NewTextHandler(t.Output(), &slog.HandlerOptions{Level: slog.LevelInfo}))
}

// fakeManager runs a manager over CAs until the test's bubble ends.
func fakeManager(t *testing.T, dir string, log *slog.Logger, cas ...Issuer) (m *Manager, stop func()) {
	t.Helper()
	cfg := Config{Dir: dir, Random: func() float64 { return 0.5 }, Logger: log}
	for i, ca := range cas {
		cfg.CAs = append(cfg.CAs, CA{fmt.Sprintf("ca%d", i), ca})
	}
	return managerOf(t, cfg)
}

// managerOf runs a manager, which has loaded what is stored, until stop is called.
func managerOf(t *testing.T, cfg Config) (m *Manager, stop func()) {
	t.Helper()
	m, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	if err := m.Load(); err != nil {
		t.Fatal(err)
	}
	return m, running(t, m)
}

// running runs m until stop is called.
func running(t *testing.T, m *Manager) (stop func()) {
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- m.Run(ctx) }()
	return func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
}

const day = 24 * time.Hour

func TestRenewsAtTwoThirdsOrAtHalf(t *testing.T) {
	for _, test := range []struct {
		name        string
		life        time.Duration
		least, most time.Duration
	}{
		{"of ninety days", 90 * day, 54 * day, 60 * day},
		{"of six days", 160 * time.Hour, 70 * time.Hour, 80 * time.Hour},
		{"of three minutes", 3 * time.Minute, 80 * time.Second, 90 * time.Second},
	} {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				ca := newFakeCA(t, test.life)
				m, stop := fakeManager(t, t.TempDir(), testLog(t), ca)
				defer stop()
				c, _, err := m.Get(t.Context(), Request{Names: nasNames()})
				if err != nil {
					t.Fatal(err)
				}
				time.Sleep(test.least - time.Second)
				synctest.Wait()
				if n := len(ca.times()); n != 1 {
					t.Fatalf("%d issued before it was time", n)
				}
				time.Sleep(test.most - test.least + 2*time.Second)
				synctest.Wait()
				if n := len(ca.times()); n != 2 || ca.replaced != 1 {
					t.Fatalf("%d issued, %d as replacements; want 2 and 1", n, ca.replaced)
				}
				if now := m.ready.Load().byName[nasNames()[0]]; now.Leaf.Equal(c.Leaf) {
					t.Error("handshakes still get the old one")
				}
			})
		})
	}
}

func TestTheCAsWindowIsKeptTo(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ca := newFakeCA(t, 90*day)
		ca.window = func(leaf *x509.Certificate) (window, error) {
			at := leaf.NotBefore.Add(10 * day)
			return window{Start: at, End: at.Add(2 * day), Again: time.Now().Add(6 * time.Hour)}, nil
		}
		m, stop := fakeManager(t, t.TempDir(), testLog(t), ca)
		defer stop()
		if _, _, err := m.Get(t.Context(), Request{Names: nasNames()}); err != nil {
			t.Fatal(err)
		}
		time.Sleep(10*day + 12*time.Hour)
		synctest.Wait()
		if n := len(ca.times()); n != 1 {
			t.Fatalf("%d issued half a day into the window; half of it was chosen", n)
		}
		time.Sleep(day)
		synctest.Wait()
		if n := len(ca.times()); n != 2 {
			t.Fatalf("%d issued after the chosen time", n)
		}
		if ca.asked < 40 || ca.asked > 60 {
			t.Errorf("the CA was asked when to renew %d times in 11.5 days, each 6 h wanted", ca.asked)
		}
	})
}

func TestAWindowInThePastRenewsAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ca := newFakeCA(t, 90*day)
		m, stop := fakeManager(t, t.TempDir(), testLog(t), ca)
		defer stop()
		if _, _, err := m.Get(t.Context(), Request{Names: nasNames()}); err != nil {
			t.Fatal(err)
		}
		time.Sleep(5 * day)
		revoked := ca.times()[0]
		ca.has(func() {
			ca.window = func(leaf *x509.Certificate) (window, error) {
				if leaf.NotBefore.After(revoked.Add(time.Hour)) {
					return window{}, errors.ErrUnsupported
				}
				return window{Start: time.Now().Add(-2 * day), End: time.Now().Add(-day), Why: "https://ca.test/incident"}, nil
			}
		})
		time.Sleep(6*time.Hour + time.Minute) // when the CA is asked again at the latest
		synctest.Wait()
		if n := len(ca.times()); n != 2 {
			t.Errorf("%d issued", n)
		}
	})
}

func TestACAThatAlwaysSaysNowIsAskedTwiceADay(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ca := newFakeCA(t, 90*day)
		ca.window = func(*x509.Certificate) (window, error) {
			return window{Start: time.Now().Add(-time.Hour), End: time.Now().Add(-time.Minute), Again: time.Now()}, nil
		}
		m, stop := fakeManager(t, t.TempDir(), testLog(t), ca)
		defer stop()
		if _, _, err := m.Get(t.Context(), Request{Names: nasNames()}); err != nil {
			t.Fatal(err)
		}
		time.Sleep(10 * day)
		synctest.Wait()
		if n := len(ca.times()); n < 19 || n > 22 {
			t.Errorf("%d issued in ten days", n)
		}
		times := ca.times()
		for i := perDay; i < len(times); i++ {
			if gap := times[i].Sub(times[i-perDay]); gap < day {
				t.Errorf("three within %v", gap)
			}
		}
	})
}

func TestACAThatFailsIsAskedLessAndLess(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ca := newFakeCA(t, 90*day)
		var log bytes.Buffer
		var mu sync.Mutex
		m, stop := fakeManager(t, t.TempDir(), slog.New(slog.NewJSONHandler(lockedWriter{&mu, &log}, nil)), ca)
		defer stop()
		if _, _, err := m.Get(t.Context(), Request{Names: nasNames()}); err != nil {
			t.Fatal(err)
		}
		ca.has(func() {
			ca.refuse = func() error { return &StepError{Stage: validated, CA: "ca0", Err: errors.New("no TXT record found")} }
		})
		time.Sleep(58*day + 12*time.Hour)
		synctest.Wait()
		if n := len(ca.times()); n < 5 || n > 12 {
			t.Errorf("%d attempts in the first half day or so", n-1)
		}
		info := m.List()[0]
		if info.State != "valid" || info.Trouble == nil || info.Trouble.Step != validated || !strings.Contains(info.Trouble.Error, "no TXT record found") {
			t.Errorf("it says %+v, %+v", info, info.Trouble)
		}
		time.Sleep(10 * day) // a quarter is left
		synctest.Wait()
		if info := m.List()[0]; info.State != "expiring" {
			t.Errorf("with a quarter left it is %s", info.State)
		}
		mu.Lock()
		alarms := strings.Count(log.String(), `"level":"ERROR","msg":"a certificate is about to end"`)
		mu.Unlock()
		if alarms < 1 || alarms > 3 {
			t.Errorf("the log was told %d times in a day", alarms)
		}
		ca.has(func() { ca.refuse = nil })
		time.Sleep(9 * time.Hour)
		synctest.Wait()
		if info := m.List()[0]; info.State != "valid" || info.Trouble != nil {
			t.Errorf("once it is mended: %+v, %+v", info, info.Trouble)
		}
	})
}

// lockedWriter lets a test read what is logged meanwhile.
type lockedWriter struct {
	mu *sync.Mutex
	w  *bytes.Buffer
}

// Write writes under the lock.
func (l lockedWriter) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.w.Write(p)
}

func TestRetryAfterIsHonouredAcrossAStart(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ca, dir := newFakeCA(t, 90*day), t.TempDir()
		ca.refuse = func() error {
			return &StepError{Stage: ordered, CA: "ca0", Err: &LaterError{Until: time.Now().Add(3 * day), Err: errors.New("too many certificates")}}
		}
		m, stop := fakeManager(t, dir, testLog(t), ca)
		if _, _, err := m.Get(t.Context(), Request{Names: nasNames()}); err == nil {
			t.Fatal("issued")
		}
		time.Sleep(day)
		stop()
		ca.has(func() { ca.refuse = nil })
		_, stop = fakeManager(t, dir, testLog(t), ca)
		defer stop()
		time.Sleep(2*day - time.Minute)
		synctest.Wait()
		if n := len(ca.times()); n != 1 {
			t.Fatalf("asked %d times before the CA wanted to be", n)
		}
		time.Sleep(2 * time.Minute)
		synctest.Wait()
		if n := len(ca.times()); n != 2 {
			t.Errorf("asked %d times, want once more after that", n)
		}
	})
}

func TestTheNextCAIsAskedWhereOneWantsToRest(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		first, second := newFakeCA(t, 90*day), newFakeCA(t, 90*day)
		first.refuse = func() error { return &LaterError{Until: time.Now().Add(day), Err: errors.New("busy")} }
		m, stop := fakeManager(t, t.TempDir(), testLog(t), first, second)
		defer stop()
		for range 3 {
			c, _, err := m.Get(t.Context(), Request{Names: nasNames(), Force: true})
			if err != nil {
				t.Fatal(err)
			}
			if c.CA != "ca1" {
				t.Errorf("signed by %s", c.CA)
			}
			time.Sleep(time.Minute)
		}
		if n := len(first.times()); n != 1 {
			t.Errorf("the first CA was asked %d times", n)
		}
	})
}

func TestOneThatHangsHoldsNoOtherUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ca := newFakeCA(t, 90*day)
		var m *Manager
		stuck := &hangingCA{fakeCA: newFakeCA(t, 90*day)}
		m, stop := fakeManager(t, t.TempDir(), testLog(t), stuck, ca)
		defer stop()
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() {
			_, _, err := m.Get(ctx, Request{Names: []string{"slow.example.org"}, CA: "ca0"})
			done <- err
		}()
		synctest.Wait()
		if _, _, err := m.Get(t.Context(), Request{Names: nasNames(), CA: "ca1"}); err != nil {
			t.Fatal(err)
		}
		time.Sleep(61 * day)
		synctest.Wait()
		if n := len(ca.times()); n != 2 {
			t.Errorf("%d issued beside one that hangs", n)
		}
		cancel()
		if err := <-done; !errors.Is(err, context.Canceled) {
			t.Errorf("the one that hung: %v", err)
		}
	})
}

// hangingCA never answers.
type hangingCA struct{ *fakeCA }

// Issue waits for the end.
func (h *hangingCA) Issue(ctx context.Context, _ *x509.CertificateRequest) ([]byte, error) {
	<-ctx.Done()
	return nil, ctx.Err()
}

func TestACertificateThatWasStoredButNotNotedIsNotRenewed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ca, dir := newFakeCA(t, 90*day), t.TempDir()
		m, stop := fakeManager(t, dir, testLog(t), ca)
		c, _, err := m.Get(t.Context(), Request{Names: nasNames()})
		if err != nil {
			t.Fatal(err)
		}
		stop()
		// As if the process had died right after the certificate was stored.
		if err := m.store.writeState(c.Name, state{RenewAt: time.Now().Add(-day), Of: "another", Failures: 3}); err != nil {
			t.Fatal(err)
		}
		m, stop = fakeManager(t, dir, testLog(t), ca)
		defer stop()
		time.Sleep(day)
		synctest.Wait()
		if n := len(ca.times()); n != 1 {
			t.Errorf("%d issued", n)
		}
		if info := m.List()[0]; info.Renewal.Before(time.Now().Add(40 * day)) {
			t.Errorf("it is renewed at %v", info.Renewal)
		}
	})
}

func TestMinimalValidity(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ca := newFakeCA(t, 90*day)
		m, stop := fakeManager(t, t.TempDir(), testLog(t), ca)
		defer stop()
		get := func(least time.Duration) (bool, error) {
			_, issued, err := m.Get(t.Context(), Request{Names: nasNames(), MinValidity: least})
			return issued, err
		}
		if issued, err := get(30 * day); !issued || err != nil {
			t.Fatal(issued, err)
		}
		time.Sleep(20 * day)
		if issued, err := get(60 * day); issued || err != nil {
			t.Errorf("70 days left, 60 wanted: issued = %t, %v", issued, err)
		}
		if issued, err := get(80 * day); !issued || err != nil {
			t.Errorf("70 days left, 80 wanted: issued = %t, %v", issued, err)
		}
		if issued, err := get(100 * day); issued || err == nil || !strings.Contains(err.Error(), "and not for 2400h0m0s") {
			t.Errorf("longer than any: issued = %t, %v", issued, err)
		}
	})
}

func TestTheWishGrowsAndShrinks(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ca := newFakeCA(t, 90*day)
		m, stop := fakeManager(t, t.TempDir(), testLog(t), ca)
		defer stop()
		for _, step := range []struct {
			names  []string
			exact  bool
			key    string
			issued bool
			has    int
		}{
			{nasNames(), true, "", true, 3},
			{nasNames()[:1], false, "", false, 3}, // it has that one, and more
			{nasNames()[:1], true, "", true, 1},
			{nasNames()[:2], false, "", true, 2},
			{nasNames()[:2], false, "rsa2048", true, 2},
			{nasNames()[:2], false, "", false, 2},
		} {
			c, issued, err := m.Get(t.Context(), Request{Names: step.names, Exact: step.exact, Key: step.key})
			if err != nil || issued != step.issued || c == nil || len(c.Leaf.DNSNames) != step.has {
				t.Errorf("%+v: issued = %t, %v, %v", step, issued, c, err)
			}
			if c != nil && step.key != "" && kindOfPublic(c.Leaf.PublicKey) != step.key {
				t.Errorf("the key is of kind %s", kindOfPublic(c.Leaf.PublicKey))
			}
			time.Sleep(time.Minute)
		}
	})
}

func TestStateIsReadable(t *testing.T) {
	r := record{cert: &Certificate{Leaf: &x509.Certificate{NotBefore: time.Unix(0, 0), NotAfter: time.Unix(0, 0).Add(90 * day)}}}
	st := &r.state
	r.heed(window{Start: time.Unix(100, 0), End: time.Unix(200, 0), Again: time.Unix(0, 0)}, time.Unix(1000, 0), 0.25)
	if want := time.Unix(125, 0); !st.Chosen.Equal(want) || !st.Ask.Equal(time.Unix(1900, 0)) {
		t.Errorf("chosen %v, asked again %v", st.Chosen, st.Ask)
	}
	chosen := st.Chosen
	r.heed(window{Start: time.Unix(100, 0), End: time.Unix(200, 0), Again: time.Unix(1<<40, 0)}, time.Unix(1000, 0), 0.75)
	if !st.Chosen.Equal(chosen) || !st.Ask.Equal(time.Unix(1000, 0).Add(day)) {
		t.Errorf("the same window: chosen %v, asked again %v", st.Chosen, st.Ask)
	}
	data, err := json.Marshal(st)
	var back state
	if err != nil || json.Unmarshal(data, &back) != nil || !back.Chosen.Equal(chosen) {
		t.Errorf("written as %s, read as %+v", data, back)
	}
}

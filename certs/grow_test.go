package certs

import (
	"errors"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// owner is a machine whose names change.
type owner struct {
	mu    sync.Mutex
	names []string
}

func (o *owner) is(names ...string) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.names = names
}

func (o *owner) get() []string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return slices.Clone(o.names)
}

// ownerManager runs a manager for a machine in a bubble.
func ownerManager(t *testing.T, dir string, ca *fakeCA, o *owner) (m *Manager, stop func()) {
	t.Helper()
	return managerOf(t, Config{Dir: dir, CAs: []CA{{"ca0", ca}}, Own: o.get, Random: func() float64 { return 0.5 }, Logger: testLog(t)})
}

// names are those of the certificate, sorted.
func (m *Manager) namesOf(t *testing.T, name string) []string {
	t.Helper()
	r, err := m.look(name)
	if err != nil {
		t.Fatal(err)
	}
	return slices.Sorted(slices.Values(r.cert.Leaf.DNSNames))
}

func TestACertificateFollowsTheMachinesNames(t *testing.T) {
	const nas, photos, films, music = "nas.example.org", "photos.example.org", "films.example.org", "music.example.org"
	synctest.Test(t, func(t *testing.T) {
		ca, o, dir := newFakeCA(t, 30*day), &owner{}, t.TempDir()
		o.is(nas, photos)
		m, stop := ownerManager(t, dir, ca, o)
		if _, _, err := m.Get(t.Context(), Request{Names: append(o.get(), "*."+nas), Own: true, Exact: true}); err != nil {
			t.Fatal(err)
		}
		if _, _, err := m.Get(t.Context(), Request{Names: []string{"other.example.org"}}); err != nil {
			t.Fatal(err)
		}
		time.Sleep(30 * time.Minute)
		synctest.Wait()
		if n := len(ca.times()); n != 2 {
			t.Errorf("%d certificates without a change", n)
		}

		// Names that come one after the other are one certificate.
		o.is(nas, photos, films)
		m.changed("") // as a new map does
		synctest.Wait()
		time.Sleep(growAfter - time.Second)
		o.is(nas, photos, films, music)
		if info := m.List()[0]; !slices.Equal(info.Lacks, []string{films, music}) || info.GrowsAt.Before(time.Now().Add(growAfter)) {
			t.Errorf("the list says %q at %v", info.Lacks, info.GrowsAt)
		}
		time.Sleep(growAfter + time.Second)
		synctest.Wait()
		want := []string{"*." + nas, films, music, nas, photos}
		if got := m.namesOf(t, nas); !slices.Equal(got, want) || len(ca.times()) != 3 {
			t.Errorf("it is for %q, and there were %d", got, len(ca.times()))
		}
		if info := m.List()[0]; len(info.Lacks) != 0 || !info.GrowsAt.IsZero() {
			t.Errorf("the list says %q at %v", info.Lacks, info.GrowsAt)
		}
		if ca.replaced != 1 {
			t.Errorf("%d said what they replace", ca.replaced)
		}

		// Twice a day, however often names change.
		for i := range 24 {
			o.is(nas, "a"+string(rune('a'+i))+".example.org")
			time.Sleep(time.Hour)
		}
		if n := len(ca.times()); n > 6 {
			t.Errorf("%d certificates after a day of changes", n)
		}

		// A name that is gone goes with the next renewal, and is not worth a certificate.
		o.is(nas)
		time.Sleep(2 * day)
		synctest.Wait()
		before := len(ca.times())
		time.Sleep(day)
		synctest.Wait()
		if n := len(ca.times()); n != before {
			t.Error("a name that is gone made for a certificate")
		}
		stop()
		m, stop = ownerManager(t, dir, ca, o) // it is kept
		defer stop()
		time.Sleep(22 * day)
		synctest.Wait()
		if got := m.namesOf(t, nas); !slices.Equal(got, []string{"*." + nas, nas}) {
			t.Errorf("after its renewal it is for %q", got)
		}

		// Who asks for other names by hand gets those.
		if _, _, err := m.Get(t.Context(), Request{Names: []string{nas, "www.example.com"}}); err != nil {
			t.Fatal(err)
		}
		o.is(nas, photos)
		time.Sleep(day)
		synctest.Wait()
		if got := m.namesOf(t, nas); !slices.Equal(got, []string{nas, "www.example.com"}) {
			t.Errorf("asked for by hand: %q", got)
		}
	})
}

// A new name that no CA certifies costs the others nothing.
func TestANameThatCannotBeHadHoldsNoRenewalUp(t *testing.T) {
	const nas, bad = "nas.example.org", "bad.example.org"
	synctest.Test(t, func(t *testing.T) {
		ca, o := newFakeCA(t, 30*day), &owner{}
		o.is(nas)
		m, stop := ownerManager(t, t.TempDir(), ca, o)
		defer stop()
		if _, _, err := m.Get(t.Context(), Request{Names: o.get(), Own: true}); err != nil {
			t.Fatal(err)
		}
		ca.has(func() {
			ca.refuseNames = func(names []string) error {
				if slices.Contains(names, bad) {
					return errors.New("no such name")
				}
				return nil
			}
		})
		o.is(nas, bad)
		time.Sleep(7 * day)
		synctest.Wait()
		info := m.List()[0]
		if info.Trouble == nil || !slices.Equal(info.Lacks, []string{bad}) || !info.GrowsAt.After(time.Now()) || info.State != "valid" {
			t.Errorf("the list says %+v, trouble %v", info, info.Trouble)
		}
		tries := len(ca.times())
		if tries < 5 || tries > 50 {
			t.Errorf("%d tries in a week", tries)
		}
		time.Sleep(18 * day)
		synctest.Wait()
		r, err := m.look(nas)
		if err != nil || time.Until(r.cert.Leaf.NotAfter) < 20*day || !slices.Equal(r.cert.Leaf.DNSNames, []string{nas}) {
			t.Errorf("it was not renewed: %v, %v", r.cert, err)
		}
		ca.has(func() { ca.refuseNames = nil })
		time.Sleep(2 * day)
		synctest.Wait()
		if got := m.namesOf(t, nas); !slices.Equal(got, []string{bad, nas}) {
			t.Errorf("once it can be had: %q", got)
		}
	})
}

// The process that got a certificate with more names died before it could keep that.
func TestACertificateWithMoreNamesThanKeptIsTaken(t *testing.T) {
	const nas, photos = "nas.example.org", "photos.example.org"
	synctest.Test(t, func(t *testing.T) {
		ca, o, dir := newFakeCA(t, 30*day), &owner{}, t.TempDir()
		o.is(nas, photos)
		m, stop := ownerManager(t, dir, ca, o)
		if _, _, err := m.Get(t.Context(), Request{Names: o.get(), Own: true}); err != nil {
			t.Fatal(err)
		}
		stop()
		if err := m.store.writeWish(nas, wish{Names: []string{nas}, Own: true}); err != nil {
			t.Fatal(err)
		}
		m, stop = ownerManager(t, dir, ca, o)
		defer stop()
		time.Sleep(day)
		synctest.Wait()
		if got := m.namesOf(t, nas); !slices.Equal(got, []string{nas, photos}) || len(ca.times()) != 1 {
			t.Errorf("it is for %q, and there were %d", got, len(ca.times()))
		}
	})
}

// A CA that is not configured any more signs nothing, and its certificates are renewed by another one.
func TestACAThatIsNotConfiguredAnyMore(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dir := t.TempDir()
		first, second := newFakeCA(t, 30*day), newFakeCA(t, 30*day)
		start := func(cas ...CA) (m *Manager, stop func()) {
			return managerOf(t, Config{Dir: dir, CAs: cas, Random: func() float64 { return 0.5 }, Logger: testLog(t)})
		}
		m, stop := start(CA{"first", first}, CA{"second", second})
		for _, name := range []string{"asked.example.org", "any.example.org"} {
			req := Request{Names: []string{name}}
			if name == "asked.example.org" {
				req.CA = "first"
			}
			if _, _, err := m.Get(t.Context(), req); err != nil {
				t.Fatal(err)
			}
		}
		stop()
		m, stop = start(CA{"second", second})
		for _, info := range m.List() {
			if !info.CAGone || info.CA != "first" || info.State != "valid" || info.Renewal.Before(time.Now().Add(10*day)) {
				t.Errorf("%+v", info)
			}
		}
		time.Sleep(10 * day)
		if len(second.times()) != 0 {
			t.Error("it was replaced before it was due")
		}
		if c, issued, err := m.Get(t.Context(), Request{Names: []string{"any.example.org"}, Force: true}); err != nil || !issued || c.CA != "second" {
			t.Errorf("by force: %v, %v", c, err)
		}
		time.Sleep(12 * day)
		synctest.Wait()
		for _, info := range m.List() {
			if info.CAGone || info.CA != "second" {
				t.Errorf("once it was due: %+v", info)
			}
		}
		if n := len(second.times()); n != 2 {
			t.Errorf("%d certificates", n)
		}
		stop()
	})
}

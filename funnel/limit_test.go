package funnel

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"testing"
	"testing/synctest"
	"time"
)

func TestLimitsOfConnections(t *testing.T) {
	few := Limits{Connections: 3}
	for name, tt := range map[string]struct {
		cfg    RelayConfig
		public Limits
		node   Limits
		next   string // where the fourth comes from
		other  string // what still gets in then: a name
		free   string // or whoever comes from here
	}{
		"of a source":            {cfg: RelayConfig{Source: few}, next: visitorA, free: visitorB},
		"of a source, not of v6": {cfg: RelayConfig{Source: few}, next: visitorA, free: "[2001:db8::1]:5"},
		"of a name":              {cfg: RelayConfig{Name: few}, next: visitorB, other: "two.example"},
		"of a name, by its list": {public: few, next: visitorB, other: "two.example"},
		"of a node":              {cfg: RelayConfig{Node: few}, next: visitorB, other: "other.example"},
		"of a node, by policy":   {cfg: RelayConfig{Node: Limits{Connections: 1}}, node: few, next: visitorB, other: "other.example"},
		"of all":                 {cfg: RelayConfig{MaxVisits: 3}, next: visitorB},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				nas, tv := newFakeNode(t, "nas"), newFakeNode(t, "tv")
				one, two, other := shownBy("one.example", nas), shownBy("two.example", nas), shownBy("other.example", tv)
				one.Limits = tt.public
				one.Backends[0].Limits, two.Backends[0].Limits = tt.node, tt.node
				r := newFakeRelay(t, tt.cfg, one, two, other)
				for range 3 {
					v := r.visit(visitorA, "one.example")
					say(t, <-nas.visits, v, "in")
				}
				next := r.visit(tt.next, "one.example")
				if got, _ := next.heard(); got != alertOf(alertInternalError) {
					t.Errorf("the fourth: %q", got)
				}
				if tt.free != "" || tt.other != "" {
					v := r.visit(cmp.Or(tt.free, "203.0.113.77:1"), cmp.Or(tt.other, "one.example"))
					synctest.Wait()
					if r.Stats().Open != 4 {
						t.Errorf("another does not get in: %+v", r.Stats())
					}
					v.Close()
				}
				now, cancel := context.WithCancel(t.Context())
				cancel()
				r.Drain(now)
				synctest.Wait()
				r.mu.Lock()
				defer r.mu.Unlock()
				for key, m := range r.meters {
					if m.open != 0 {
						t.Errorf("%d are left of %v", m.open, key)
					}
				}
				if r.active != [classes]int{} {
					t.Errorf("active: %v", r.active)
				}
			})
		})
	}
}

func TestNewConnectionsASecond(t *testing.T) {
	m := &meter{}
	m.limits.Store(&Limits{PerSecond: 5})
	now := time.Unix(1_800_000_000, 0)
	begun := 0
	// Twenty a second for ten seconds, after as many as may come at once.
	for i := range 200 {
		if m.mayStart(now.Add(time.Duration(i)*50*time.Millisecond)) == nil {
			m.starts.left--
			begun++
		}
	}
	if begun < 50 || begun > 55 {
		t.Errorf("%d in ten seconds, at 5 a second", begun)
	}
}

func TestBytesASecondAreShared(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		nas := newFakeNode(t, "nas")
		p := shownBy("nas.example", nas)
		p.Limits.BytesPerSecond = 10_000
		r := newFakeRelay(t, RelayConfig{Idle: time.Hour}, p)
		visitors := map[string]*visitor{visitorA: r.visit(visitorA, "nas.example"), visitorB: r.visit(visitorB, "nas.example")}
		got := map[string]*int{visitorA: new(int), visitorB: new(int)}
		for range 2 {
			v := <-nas.visits
			go func() { _, _ = io.Copy(v, endless{}) }()
			from := v.Visitor.String()
			go func() {
				buf := make([]byte, 1000)
				for {
					n, err := visitors[from].Read(buf)
					if *got[from] += n; err != nil {
						return
					}
				}
			}()
		}
		time.Sleep(time.Minute)
		now, cancel := context.WithCancel(t.Context())
		cancel()
		r.Drain(now)
		synctest.Wait()
		a, b := *got[visitorA], *got[visitorB]
		if sum := a + b; sum < 590_000 || sum > 640_000 {
			t.Errorf("%d bytes in a minute, at 10,000 a second", sum)
		}
		if a < 9*b/10 || b < 9*a/10 {
			t.Errorf("%d and %d: one has got more", a, b)
		}
	})
}

func TestBytesAMonth(t *testing.T) {
	synctest.Test(t, func(t *testing.T) { // which begins on the first of January 2000
		nas := newFakeNode(t, "nas")
		r := newStillRelay(t, RelayConfig{Node: Limits{BytesPerMonth: 100_000}}, shownBy("nas.example", nas))
		r.Resume(Usage{Month: "1999-12", Bytes: map[string]int64{"node nas": 1 << 40}})
		r.Resume(Usage{Month: "2000-01", Bytes: map[string]int64{"node nas": 40_000, "node gone": 7, "garbage": 1, "name x": -5}})
		v := r.visit(visitorA, "nas.example")
		inner := <-nas.visits
		go func() { _, _ = io.Copy(inner, endless{}) }()
		got, _ := v.heard()
		if n := len(got); n < 60_000 || n > 60_000+copyBuffer {
			t.Errorf("%d bytes came, of 60,000 that were left", n)
		}
		if again, _ := r.visit(visitorA, "nas.example").heard(); again != alertOf(alertInternalError) {
			t.Errorf("another visit: %q", again)
		}
		u := r.Usage()
		if u.Month != "2000-01" || u.Bytes["node nas"] != 40_000+int64(len(got)) || u.Bytes["name nas.example:443"] != int64(len(got)) || u.Bytes["node gone"] != 7 || len(u.Bytes) != 3 {
			t.Errorf("%+v", u)
		}
		time.Sleep(31 * 24 * time.Hour)
		if u := r.Usage(); u.Month != "2000-02" || len(u.Bytes) != 0 {
			t.Errorf("%+v", u)
		}
		v = r.visit(visitorA, "nas.example")
		say(t, <-nas.visits, v, "a new month")
	})
}

func TestLimitsStandForEachOther(t *testing.T) {
	builtin := Limits{Connections: 7, PerSecond: 7}
	got := Limits{Connections: -1, BytesPerSecond: 5}.over(Limits{Connections: 3, PerSecond: 3, BytesPerSecond: -1, BytesPerMonth: 9}, builtin)
	if want := (Limits{PerSecond: 3, BytesPerSecond: 5, BytesPerMonth: 9}); got != want {
		t.Errorf("%+v, want %+v", got, want)
	}
	if got := (Limits{}).over(Limits{}, builtin); got != builtin {
		t.Errorf("%+v", got)
	}
}

// Whoever fills the gateway does not keep the others out: above three quarters each node and each source gets its share.
func TestAnOverloadIsSharedFairly(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		nas, tv := newFakeNode(t, "nas"), newFakeNode(t, "tv")
		r := newFakeRelay(t, RelayConfig{MaxVisits: 40, Source: Limits{Connections: -1}}, shownBy("nas.example", nas), shownBy("tv.example", tv))
		r.visit(visitorB, "tv.example")
		synctest.Wait()
		for range 60 { // from one source, to one node
			r.visit(visitorA, "nas.example")
			synctest.Wait()
		}
		if n := r.Stats().Open; n != 30 {
			t.Errorf("%d visits: the flood has more than three quarters, or less", n)
		}
		for i := range 10 { // others are served all the same
			r.visit(fmt.Sprintf("198.51.100.%d:7", 10+i), "tv.example")
			synctest.Wait()
		}
		if n := r.Stats().Open; n != 40 {
			t.Errorf("%d visits: the others are kept out", n)
		}
	})
}

// However many sources come and go, what is remembered of them is bounded.
func TestSourcesAreForgotten(t *testing.T) {
	r := NewRelay(RelayConfig{})
	r.mu.Lock()
	defer r.mu.Unlock()
	kept := r.meter(meterKey{class: ofSource, name: "busy"}, Limits{}, Limits{})
	kept.open = 1
	node := r.meter(meterKey{class: ofNode, name: "nas"}, Limits{}, Limits{})
	node.monthly(1, time.Now())
	for i := range 3 * maxMeters / 2 {
		a := netip.AddrFrom4([4]byte{11, byte(i >> 16), byte(i >> 8), byte(i)})
		r.meter(meterKey{class: ofSource, source: netip.PrefixFrom(a, 32)}, Limits{}, Limits{})
	}
	if r.meters[node.key] != node {
		t.Error("what a node has moved this month is forgotten for sources that have nothing open")
	}
	for i := range 3 * maxMeters / 2 { // names that a node takes and gives back
		m := r.meter(meterKey{class: ofName, name: fmt.Sprint(i)}, Limits{}, Limits{})
		m.monthly(1, time.Now())
	}
	if len(r.meters) > maxMeters || r.meters[kept.key] != kept {
		t.Errorf("%d are kept", len(r.meters))
	}
	if err := kept.mayStart(time.Now()); err != nil || errors.Is(err, errBusy) {
		t.Error(err)
	}
}

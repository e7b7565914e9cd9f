package node

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/meshdns/meshdns/osconfig"
)

// fakeSystem is the DNS of a machine that does what it is told, or fails.
type fakeSystem struct {
	fail error

	mu      sync.Mutex
	applied []osconfig.Config
	lost    string // what has become of the takeover since; empty: nothing
	trouble []string
	closed  bool
}

func (f *fakeSystem) Apply(_ context.Context, c osconfig.Config) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.fail == nil {
		f.applied = append(f.applied, c)
	}
	return f.fail
}

func (f *fakeSystem) Plan(context.Context, osconfig.Config) (osconfig.Plan, error) {
	return osconfig.Plan{}, f.fail
}

func (f *fakeSystem) Status() osconfig.Status {
	f.mu.Lock()
	defer f.mu.Unlock()
	s := osconfig.Status{Mode: "direct", Problems: f.trouble, Trace: []string{"a fact"}}
	if f.lost != "" {
		s.Problems = []string{f.lost}
		return s
	}
	s.Active = len(f.applied) > 0 && len(f.applied[len(f.applied)-1].Servers) > 0
	return s
}

func (f *fakeSystem) Close() error {
	f.closed = true
	return f.fail
}

// ours reports whether the machine points at us.
func (f *fakeSystem) ours() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return len(f.applied) > 0 && len(f.applied[len(f.applied)-1].Servers) > 0
}

// newTakeover is a takeover of f that nothing speaks against, and what it reports.
func newTakeover(f *fakeSystem) (t *takeover, reports *[]string) {
	reports = new([]string)
	t = &takeover{
		system: f,
		config: func() osconfig.Config {
			return osconfig.Config{Servers: []osconfig.Server{{AddrPort: netip.MustParseAddrPort("127.0.0.77:53")}}}
		},
		report: func(format string, args ...any) { *reports = append(*reports, fmt.Sprintf(format, args...)) },
		log:    slog.New(slog.DiscardHandler),
		kick:   make(chan struct{}, 1),
		wanted: true,
	}
	return t, reports
}

func TestTakeoverIsUndoneUnlessConfirmed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		system := &fakeSystem{}
		takeover, _ := newTakeover(system)
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error)
		go func() { done <- takeover.run(ctx) }()

		if err := takeover.apply(ctx, 30*time.Second); err != nil {
			t.Fatal(err)
		}
		if got := takeover.state(); got.State != takeoverPending || got.Until == nil || !got.Until.Equal(time.Now().Add(30*time.Second)) {
			t.Errorf("after apply: got %+v, want pending for 30 s", got)
		}
		time.Sleep(29 * time.Second)
		synctest.Wait()
		if !system.ours() {
			t.Error("undone before its time")
		}
		time.Sleep(2 * time.Second)
		synctest.Wait()
		if got := takeover.state(); system.ours() || got.State != takeoverOff || got.Reason != "not confirmed in time" {
			t.Errorf("after 31 s: got %+v, ours %t; want off", got, system.ours())
		}
		if err := takeover.confirm(); !errors.Is(err, ErrNotFound) {
			t.Errorf("confirming too late: got %v, want ErrNotFound", err)
		}
		cancel()
		if err := <-done; err != nil {
			t.Errorf("run: %v", err)
		}
	})
}

func TestTakeoverThatIsConfirmedStays(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		system := &fakeSystem{}
		takeover, _ := newTakeover(system)
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error)
		go func() { done <- takeover.run(ctx) }()

		if err := takeover.apply(ctx, 30*time.Second); err != nil {
			t.Fatal(err)
		}
		time.Sleep(10 * time.Second)
		if err := takeover.confirm(); err != nil {
			t.Fatalf("confirm: %v", err)
		}
		time.Sleep(time.Hour)
		synctest.Wait()
		if got := takeover.state(); !system.ours() || got.State != takeoverOn || got.Until != nil {
			t.Errorf("an hour later: got %+v, ours %t; want on", got, system.ours())
		}
		cancel()
		<-done
	})
}

func TestTakeoverThatStandsIsNotPutAtRisk(t *testing.T) {
	takeover, _ := newTakeover(&fakeSystem{})
	for _, confirm := range []time.Duration{0, 30 * time.Second} {
		if err := takeover.apply(t.Context(), confirm); err != nil {
			t.Fatal(err)
		}
	}
	if got := takeover.state(); got.State != takeoverOn || got.Until != nil {
		t.Errorf("got %+v, want on without a limit", got)
	}
}

func TestTakeoverGoesBackAndForth(t *testing.T) {
	system := &fakeSystem{}
	takeover, reports := newTakeover(system)
	takeover.begin(t.Context())
	if err := takeover.restore(t.Context(), "asked for"); err != nil || system.ours() {
		t.Fatalf("restore: %v, ours %t", err, system.ours())
	}
	takeover.reapply(t.Context())
	if system.ours() {
		t.Error("a changed map took the machine's DNS over again, though it was given back")
	}
	if err := takeover.apply(t.Context(), 0); err != nil || !system.ours() {
		t.Fatalf("apply: %v, ours %t", err, system.ours())
	}
	if err := takeover.close(); err != nil || !system.closed {
		t.Fatalf("close: %v, closed %t", err, system.closed)
	}
	if err := takeover.apply(t.Context(), 0); !errors.Is(err, errEnding) {
		t.Errorf("apply after close: got %v, want it refused", err)
	}
	want := []string{
		"the machine's DNS is taken over (direct)",
		"the machine's DNS is given back: asked for",
		"the machine's DNS is taken over (direct)",
		"the machine's DNS is given back",
	}
	if !slices.Equal(*reports, want) {
		t.Errorf("reports: got %q, want %q", *reports, want)
	}
}

func TestTakeoverFollowsAChangedMap(t *testing.T) {
	system := &fakeSystem{}
	takeover, _ := newTakeover(system)
	takeover.begin(t.Context())
	takeover.reapply(t.Context())
	if got := len(system.applied); got != 1 {
		t.Errorf("applied %d times though nothing changed, want once", got)
	}
	was := takeover.config()
	takeover.config = func() osconfig.Config { return osconfig.Config{Servers: was.Servers, Search: []string{"new.example"}} }
	takeover.reapply(t.Context())
	if got := system.applied[len(system.applied)-1].Search; !slices.Equal(got, []string{"new.example"}) {
		t.Errorf("search list: got %q, want the new one", got)
	}
}

func TestTakeoverThatIsDeniedTouchesNothing(t *testing.T) {
	for name, wanted := range map[string]string{"off": takeoverOff, "refused": takeoverRefused} {
		t.Run(name, func(t *testing.T) {
			system := &fakeSystem{}
			takeover, reports := newTakeover(system)
			takeover.wanted = wanted == takeoverRefused
			takeover.denied = hinted(nil, errors.New("dnsmasq holds port 53"), "end it")
			takeover.begin(t.Context())
			if got := takeover.state(); got.State != wanted || got.Reason != "dnsmasq holds port 53" {
				t.Errorf("got %+v, want %s with the reason", got, wanted)
			}
			err := takeover.apply(t.Context(), 0)
			if err == nil || hintOf(err) != "end it" {
				t.Errorf("apply: got %v, want the reason with its hint", err)
			}
			if len(system.applied) > 0 {
				t.Errorf("applied %v", system.applied)
			}
			want := []string{"the machine's DNS is left alone: dnsmasq holds port 53"}
			if wanted == takeoverRefused { // nobody needs a hint how to get what they did not want
				want = append(want, "hint: end it")
			}
			if !slices.Equal(*reports, want) {
				t.Errorf("reports: got %q, want %q", *reports, want)
			}
		})
	}
}

func TestTakeoverThatFailsIsNoReasonToEnd(t *testing.T) {
	system := &fakeSystem{fail: errors.New("/etc/resolv.conf is immutable")}
	takeover, reports := newTakeover(system)
	takeover.begin(t.Context())
	if got := takeover.state(); got.State != takeoverRefused || got.Reason != "/etc/resolv.conf is immutable" {
		t.Errorf("got %+v, want refused with the reason", got)
	}
	if want := []string{"the machine's DNS is left alone: /etc/resolv.conf is immutable"}; !slices.Equal(*reports, want) {
		t.Errorf("reports: got %q, want %q", *reports, want)
	}
}

func TestTakeoverThatWasLostIsNotCalledOn(t *testing.T) {
	for name, confirm := range map[string]time.Duration{"on": 0, "pending": time.Minute} {
		t.Run(name, func(t *testing.T) {
			system := &fakeSystem{}
			takeover, _ := newTakeover(system)
			if err := takeover.apply(t.Context(), confirm); err != nil {
				t.Fatal(err)
			}
			system.lost = "the machine's DNS is no longer taken over: NetworkManager owns it"
			if got := takeover.state(); got.State != takeoverRefused || got.Reason != system.lost || got.Until != nil {
				t.Errorf("got %+v, want refused for the manager's reason", got)
			}
			takeover.reapply(t.Context())
			if got := len(system.applied); got != 1 {
				t.Errorf("applied %d times, want once: it is somebody else's now", got)
			}
		})
	}
}

func TestStatusShowsTheProblemsOfTheMachinesDNS(t *testing.T) {
	lost := "the machine's DNS is no longer taken over: it is locked"
	tests := []struct {
		name   string
		system *fakeSystem
		want   []string
	}{
		{"none", &fakeSystem{}, nil},
		{"another program", &fakeSystem{trouble: []string{"another program keeps overwriting /etc/resolv.conf"}},
			[]string{"another program keeps overwriting /etc/resolv.conf"}},
		{"lost, said once", &fakeSystem{lost: lost}, []string{lost}},
		{"refused", &fakeSystem{fail: errors.New("it is immutable")}, []string{"the machine's DNS is not taken over: it is immutable"}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			n, err := New(testConfig(), Options{Paths: testPaths(t)})
			if err != nil {
				t.Fatal(err)
			}
			if err := n.prepareIdle(); err != nil {
				t.Fatal(err)
			}
			takeover, _ := newTakeover(tt.system)
			n.takeover.system, n.takeover.config, n.takeover.report = tt.system, takeover.config, takeover.report
			n.takeover.kick, n.takeover.wanted = takeover.kick, true
			n.takeover.begin(t.Context())
			m, _ := n.tailnet.current()
			if got := n.currentProblems(m); !slices.Equal(got, tt.want) {
				t.Errorf("got %q, want %q", got, tt.want)
			}
			if got := n.dnsStatus().Takeover.Trace; len(got) != 1 {
				t.Errorf("trace: got %q, want the manager's", got)
			}
		})
	}
}

package node

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/meshdns/meshdns/osconfig"
)

func TestWhoMayTakeTheMachinesDNSOver(t *testing.T) {
	tests := []struct {
		name   string
		opt    Options
		os     string
		fault  error
		wanted bool
		denied string
	}{
		{"root", Options{Root: true}, "auto", nil, true, ""},
		{"a user", Options{}, "auto", nil, false, "the daemon is not root"},
		{"a first look, though root", Options{Root: true, Try: true}, "auto", nil, false, "a node for a first look leaves it alone"},
		{"switched off", Options{Root: true}, "off", nil, false, "dns.os is off"},
		{"a stub on another port", Options{Root: true}, "auto", errors.New("dnsmasq holds it"), true, "dnsmasq holds it"},
		{"a user beside another program", Options{}, "auto", errors.New("dnsmasq holds it"), false, "the daemon is not root"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			n := &Node{opt: tt.opt, stubFault: tt.fault}
			n.cfg.DNS.OS = tt.os
			wanted, denied := n.mayTakeOver()
			if wanted != tt.wanted || (denied == nil) != (tt.denied == "") || denied != nil && denied.Error() != tt.denied {
				t.Errorf("got %t, %v; want %t, %q", wanted, denied, tt.wanted, tt.denied)
			}
			if !wanted && hintOf(denied) == "" {
				t.Error("there is no hint how to have it")
			}
			n.takeover.wanted = wanted
			if got := n.systemOptions().Mode; (got == "off") != !wanted {
				t.Errorf("osconfig's mode is %q where wanted is %t", got, wanted)
			}
		})
	}
}

func TestMachineIsToldWhichNamesAreOurs(t *testing.T) {
	cfg := testConfig()
	cfg.DNS.Routes = map[string][]string{"corp.example": {"10.0.0.1"}, "foo-bar.ts.net.example": {"10.0.0.1"}}
	n, _ := apiNode(t, cfg, &fakeSystem{})
	must(t, n.routing.setNetwork(network(t, "192.0.2.3", "lan.example")))
	n.stub = netip.MustParseAddrPort("127.0.0.77:53")

	n.cfg.DNS.Takeover = "split"
	got := n.systemConfig()
	if len(got.Servers) != 1 || got.Servers[0].AddrPort != n.stub || !slices.Equal(got.Search, []string{"foo-bar.ts.net"}) {
		t.Errorf("got %+v, want our stub and zone", got)
	}
	for _, want := range []string{"foo-bar.ts.net", "corp.example", "foo-bar.ts.net.example", "64.100.in-addr.arpa", "127.100.in-addr.arpa"} {
		if !slices.Contains(got.Match, want) {
			t.Errorf("%s is missing in %q", want, got.Match)
		}
	}
	for _, not := range []string{"lan.example", "63.100.in-addr.arpa", "128.100.in-addr.arpa", "."} {
		if slices.Contains(got.Match, not) {
			t.Errorf("%s is not ours, but in %q", not, got.Match)
		}
	}
	if !slices.IsSorted(got.Match) || len(slices.Compact(slices.Clone(got.Match))) != len(got.Match) {
		t.Errorf("not sorted, or twice: %q", got.Match)
	}
	if fmt.Sprint(n.systemConfig()) != fmt.Sprint(got) {
		t.Error("the same map gives another configuration, so that it would be applied for nothing")
	}

	n.cfg.DNS.Takeover = "full"
	if got := n.systemConfig(); len(got.Match) != 0 {
		t.Errorf("where all is ours: got %q, want no list of names", got.Match)
	}
}

func TestUpstreamsOfTheMachineAreTold(t *testing.T) {
	n, _ := apiNode(t, testConfig(), &fakeSystem{})
	var mu sync.Mutex
	var lines []string
	n.opt.Report = func(line string) {
		mu.Lock()
		defer mu.Unlock()
		lines = append(lines, line)
	}
	n.useBase(baseOf([]string{"10.0.0.1", "9.9.9.9"}, "corp.example"))
	n.useBase(osconfig.Base{})
	want := []string{"upstreams 10.0.0.1 9.9.9.9", "no upstreams: only names of the tailnet are answered"}
	if !slices.Equal(lines, want) {
		t.Errorf("got %q, want %q", lines, want)
	}
	if got := n.dnsStatus(); len(got.Base) != 0 || len(got.Upstreams) != 0 {
		t.Errorf("what a network had that is gone is still asked: %+v", got.Upstreams)
	}
	// Servers that make no sense leave what is in use.
	n.useBase(baseOf([]string{"10.0.0.1"}))
	n.useBase(osconfig.Base{Servers: []osconfig.Server{{}}})
	if got := n.dnsStatus().Base; !slices.Equal(got, []string{"10.0.0.1"}) {
		t.Errorf("base: got %q, want the last good one", got)
	}
}

func TestRestoreOfWhatWasNeverTakenChangesNothing(t *testing.T) {
	got, err := testPaths(t).Restore(t.Context(), false)
	if err != nil || got.State != takeoverOff || got.Trace == nil || got.Reason == "" || got.Schema != takeoverSchema {
		t.Errorf("got %+v, %v; want it off, and why nothing was done", got, err)
	}
}

func TestPlanWithoutADaemonSaysWhatIsInTheWay(t *testing.T) {
	for _, opt := range []Options{{}, {Root: true}} {
		opt.Paths = testPaths(t)
		n, err := New(testConfig(), opt) // dns.os is off
		must(t, err)
		got, err := n.Plan(t.Context())
		must(t, err)
		if got.Possible || got.Reason == "" || got.Hint == "" || got.Trace == nil {
			t.Errorf("got %+v, want it impossible, with reason and hint", got)
		}
		if opt.Root != strings.Contains(got.Reason, "dns.os is off") {
			t.Errorf("root %t: got the reason %q", opt.Root, got.Reason)
		}
		if names := names(t, opt.Paths.State[:len(opt.Paths.State)-len("/state")]); names != "map.yaml" {
			t.Errorf("the directory holds %q, want the map alone", names)
		}
	}
}

func TestTakeoverThatCannotBeUndoneSaysSo(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		system := &fakeSystem{}
		takeover, _ := newTakeover(system)
		must(t, takeover.apply(t.Context(), 30*time.Second))
		time.Sleep(31 * time.Second)
		system.fail = errors.New("it is immutable")
		takeover.expire(t.Context())
		got := takeover.state()
		if got.State != takeoverOn || got.Until != nil || !strings.Contains(got.Reason, "not confirmed, and not undone: ") || !strings.Contains(got.Reason, "it is immutable") {
			t.Errorf("got %+v, want it on, with the reason", got)
		}
	})
}

func TestTakeoverDoesNotExpireBeforeItsTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		system := &fakeSystem{}
		takeover, _ := newTakeover(system)
		takeover.expire(t.Context()) // nothing waits
		must(t, takeover.apply(t.Context(), 30*time.Second))
		time.Sleep(29 * time.Second)
		takeover.expire(t.Context())
		if got := takeover.state(); got.State != takeoverPending || !system.ours() {
			t.Errorf("got %+v, want it pending", got)
		}
		// Asked for again it waits anew.
		must(t, takeover.apply(t.Context(), 30*time.Second))
		time.Sleep(2 * time.Second)
		takeover.expire(t.Context())
		if got := takeover.state(); got.State != takeoverPending {
			t.Errorf("after it was asked for again: got %+v, want it pending", got)
		}
	})
}

func TestCloseThatFailsSaysWhatToRun(t *testing.T) {
	system := &fakeSystem{}
	takeover, reports := newTakeover(system)
	must(t, takeover.apply(t.Context(), 0))
	system.fail = errors.New("it is immutable")
	if err := takeover.close(); err == nil || hintOf(err) != "run: meshdns dns restore" {
		t.Errorf("got %v (hint %q), want the command", err, hintOf(err))
	}
	if slices.Contains(*reports, "the machine's DNS is given back") {
		t.Error("it is said to be given back")
	}
}

func TestMapThatTheMachineCannotBeToldOfStays(t *testing.T) {
	system := &fakeSystem{}
	takeover, _ := newTakeover(system)
	must(t, takeover.apply(t.Context(), 0))
	was := takeover.applied
	next := osconfig.Config{Servers: was.Servers, Search: []string{"new.example"}}
	takeover.config = func() osconfig.Config { return next }
	system.fail = errors.New("busy")
	takeover.reapply(t.Context())
	if len(takeover.applied.Search) != 0 {
		t.Error("it counts as applied, so nobody tries again")
	}
	system.fail = nil
	takeover.reapply(t.Context())
	if got := system.applied[len(system.applied)-1].Search; !slices.Equal(got, next.Search) {
		t.Errorf("the next time: got %q, want the new list", got)
	}
}

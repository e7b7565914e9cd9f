package node

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/miekg/dns"
)

func TestStatusTellsWhatTheMapHolds(t *testing.T) {
	n, c := apiNode(t, testConfig(), &fakeSystem{})
	n.started = time.Date(2026, 1, 2, 3, 4, 5, 678_900_000, time.FixedZone("", 3600))
	got, err := c.Status(t.Context())
	must(t, err)
	if got.Schema != "meshdns.status/v1" || got.Version != "test" || got.PID != os.Getpid() || got.Zone != "foo-bar.ts.net" || got.Node != "nas.foo-bar.ts.net" {
		t.Errorf("got %+v", got)
	}
	if want := "2026-01-02 02:04:05.678 +0000 UTC"; got.Started.String() != want {
		t.Errorf("started: got %s, want %s", got.Started, want)
	}
	if got.Map.Source != n.opt.Paths.Map || got.Map.Nodes != 2 || got.Map.Records != 5 || got.Map.Loaded.IsZero() {
		t.Errorf("map: got %+v", got.Map)
	}
	want := []nodeStatus{
		{Name: "edge", Addresses: []netip.Addr{netip.MustParseAddr("100.64.0.1")}, Names: []string{}},
		{Name: "nas", Addresses: []netip.Addr{netip.MustParseAddr("100.64.0.2")}, Names: []string{"photos"}, Self: true},
	}
	slices.SortFunc(got.Nodes, func(a, b nodeStatus) int { return strings.Compare(a.Name, b.Name) })
	if fmt.Sprint(got.Nodes) != fmt.Sprint(want) {
		t.Errorf("nodes: got %v, want %v", got.Nodes, want)
	}
	alone, err := c.DNSStatus(t.Context())
	must(t, err)
	if fmt.Sprint(alone) != fmt.Sprint(got.DNS) || alone.Schema != "meshdns.dns.status/v1" {
		t.Errorf("the DNS alone: got %+v, want %+v", alone, got.DNS)
	}
}

func TestStatusOfAMachineThatIsInNoMap(t *testing.T) {
	n, _ := apiNode(t, testConfig(), &fakeSystem{})
	n.cfg.Node = "elsewhere"
	if got := n.status(); got.Node != "" || slices.ContainsFunc(got.Nodes, func(s nodeStatus) bool { return s.Self }) {
		t.Errorf("got %q in %v, want no node", got.Node, got.Nodes)
	}
}

func TestNodeIsDegradedForWhatSomebodyHasToMend(t *testing.T) {
	tests := []struct {
		name   string
		system *fakeSystem
		prep   func(n *Node)
		want   string // in its problems or the map's; "": it is well
	}{
		{"nothing", &fakeSystem{}, func(*Node) {}, ""},
		{"a broken map", &fakeSystem{}, func(n *Node) { n.badMap(errors.New("map.yaml:3:1: nodes: unknown")) }, "map.yaml:3:1"},
		{"a source that fails", &fakeSystem{}, func(n *Node) { n.sourced("tailscale", nil, errors.New("no socket")) }, "tailscale: no socket"},
		{"a source that came back", &fakeSystem{}, func(n *Node) {
			n.sourced("tailscale", nil, errors.New("no socket"))
			n.sourced("tailscale", nil, nil)
		}, ""},
		{"a machine whose name is taken", &fakeSystem{}, func(n *Node) { n.sourced("s", []Machine{machine("nas", "100.64.0.7")}, nil) }, "name nas: taken already"},
		{"a takeover that was refused", &fakeSystem{fail: errors.New("it is immutable")}, func(*Node) {}, "is not taken over: it is immutable"},
		{"a takeover that nobody wants", &fakeSystem{}, func(n *Node) {
			n.takeover.wanted, n.takeover.denied = false, errors.New("dns.os is off")
		}, ""},
		{"one that was lost", &fakeSystem{}, func(n *Node) { n.takeover.system.(*fakeSystem).lost = "somebody owns it" }, "somebody owns it"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			n, c := apiNode(t, testConfig(), tt.system)
			if strings.Contains(tt.name, "nobody wants") {
				tt.prep(n)
				n.takeover.begin(t.Context())
			} else {
				n.takeover.begin(t.Context())
				tt.prep(n)
			}
			s, err := c.Status(t.Context())
			must(t, err)
			all := strings.Join(append(s.Problems, s.Map.Problems...), "\n")
			if tt.want == "" && (s.State != stateOK || all != "") || tt.want != "" && (s.State != stateDegraded || !strings.Contains(all, tt.want)) {
				t.Errorf("got %s for %q, want %q", s.State, all, tt.want)
			}
			text, err := c.Metrics(t.Context())
			must(t, err)
			want := "meshdns_degraded 0\n"
			if tt.want != "" {
				want = "meshdns_degraded 1\n"
			}
			if !strings.Contains(string(text), want) {
				t.Errorf("metrics: want %q in\n%s", want, text)
			}
		})
	}
}

func TestProblemsOfAMapAreALineEach(t *testing.T) {
	n, c := apiNode(t, testConfig(), &fakeSystem{})
	n.badMap(errors.New("map.yaml:1:1: one\nmap.yaml:2:2: two"))
	s, err := c.Status(t.Context())
	must(t, err)
	if want := []string{"map.yaml:1:1: one", "map.yaml:2:2: two"}; !slices.Equal(s.Map.Problems, want) {
		t.Errorf("got %q, want %q", s.Map.Problems, want)
	}
}

func TestUpstreamsAreToldWithTheirRoutes(t *testing.T) {
	corp := zoneServer(t, map[string]string{"www.corp.example.": "A 192.0.2.7"})
	broken := testServer(t, func(w dns.ResponseWriter, q *dns.Msg) {
		_ = w.WriteMsg(new(dns.Msg).SetRcode(q, dns.RcodeServerFailure)) // what does not arrive, the test sees
	}).String()
	cfg := testConfig()
	cfg.DNS.Upstreams = []string{broken}
	cfg.DNS.Routes = map[string][]string{"corp.example": {corp}}
	n := startNode(t, cfg, testPaths(t))
	if _, got := n.ask(t, "www.corp.example."); len(got) != 1 {
		t.Fatalf("got %v, want an answer", got)
	}
	if rcode, _ := n.ask(t, "elsewhere.example."); rcode != dns.RcodeServerFailure {
		t.Errorf("the broken one: got %s, want SERVFAIL", dns.RcodeToString[rcode])
	}
	s, err := n.DNSStatus(t.Context())
	must(t, err)
	// Ours and those by which it checks itself, over UDP and TCP.
	if !slices.Equal(s.Base, []string{broken}) || s.Queries != 4 {
		t.Errorf("base: got %q after %d queries, want %s after 4", s.Base, s.Queries, broken)
	}
	if want := (routeStatus{"corp.example", []string{corp}, routeConfig}); len(s.Routes) == 0 || !sameRoute(s.Routes[0], want) {
		t.Errorf("routes: got %v, want %v first", s.Routes, want)
	}
	seen := map[string]upstreamStatus{}
	for _, u := range s.Upstreams {
		seen[u.Upstream] = u
	}
	if u := seen[corp]; !slices.Equal(u.Routes, []string{"corp.example."}) || u.State != "ok" || u.Queries == 0 || u.Failures != 0 {
		t.Errorf("the good one: got %+v", u)
	}
	if u := seen[broken]; !slices.Equal(u.Routes, []string{"."}) || u.Queries == 0 {
		t.Errorf("the broken one: got %+v", u)
	}
	text, err := n.Metrics(t.Context())
	must(t, err)
	for _, want := range []string{
		fmt.Sprintf(`meshdns_upstream_up{upstream=%q} 1`, corp),
		fmt.Sprintf(`meshdns_upstream_failures_total{upstream=%q} 0`, corp),
		fmt.Sprintf(`meshdns_upstream_latency_seconds_count{upstream=%q} 1`, corp),
		`meshdns_dns_queries_total{rcode="NOERROR",source="upstream",type="A"} 1`,
		`meshdns_dns_queries_total{rcode="SERVFAIL",source="upstream",type="A"} 1`,
	} {
		if !strings.Contains(string(text), want+"\n") {
			t.Errorf("metrics: want %s in\n%s", want, text)
		}
	}
	if strings.Contains(string(text), "www.corp") || strings.Contains(string(text), "elsewhere") {
		t.Error("metrics tell a name that was asked for")
	}
}

func TestSearchListPutsTheZoneFirst(t *testing.T) {
	n, _ := apiNode(t, testConfig(), &fakeSystem{})
	must(t, n.tailnet.set(mustParse(t, testMap+"dns: {search: [corp.example]}\n")))
	if got, want := n.search(), []string{"foo-bar.ts.net", "corp.example"}; !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
	n.cfg.DNS.Search = false
	if got := n.search(); len(got) != 0 {
		t.Errorf("where it is not wanted: got %q", got)
	}
	if got := n.dnsStatus().Search; got == nil || len(got) != 0 {
		t.Errorf("status: got %v, want an empty list", got)
	}
}

func TestListsAreCopies(t *testing.T) {
	list := make([]string, 1, 8)
	list[0] = "a"
	got := notNil(list)
	got[0] = "changed"
	_ = append(list, "b")
	if list[0] != "a" || len(got) != 1 {
		t.Errorf("got %q of %q", got, list)
	}
	if got := notNil[string](nil); got == nil {
		t.Error("of nil: nil")
	}
}

func TestMetricsAreBooleansAndTimes(t *testing.T) {
	if truth(true) != 1 || truth(false) != 0 {
		t.Error("truth is not 1 and 0")
	}
	if got := seconds(time.UnixMilli(1_500)); got != 1.5 {
		t.Errorf("got %g, want 1.5", got)
	}
}

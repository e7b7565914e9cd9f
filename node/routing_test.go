package node

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/miekg/dns"

	"github.com/meshdns/meshdns/resolver"
)

// newRouting is the routing of a configuration, with a resolver that runs until the test ends.
func newRouting(t *testing.T, c dnsConfig) *routing {
	t.Helper()
	checkGoroutines(t)
	r, err := resolver.New(resolver.Config{})
	must(t, err)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- r.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("the resolver: %v", err)
		}
	})
	return &routing{resolver: r, dns: c}
}

// countingServer answers every question for an address with answer, and counts them.
func countingServer(t *testing.T, answer string) (at string, asked *atomic.Int64) {
	t.Helper()
	asked = new(atomic.Int64)
	addr := testServer(t, func(w dns.ResponseWriter, q *dns.Msg) {
		m := new(dns.Msg).SetReply(q)
		if q.Question[0].Qtype == dns.TypeA {
			asked.Add(1)
			m.Answer = append(m.Answer, &dns.A{
				Hdr: dns.RR_Header{Name: q.Question[0].Name, Rrtype: dns.TypeA, Class: dns.ClassINET, Ttl: 600},
				A:   netip.MustParseAddr(answer).AsSlice(),
			})
		}
		_ = w.WriteMsg(m) // what does not arrive, the test sees
	})
	return addr.String(), asked
}

// addressOf is what the resolver says of a name.
func (r *routing) addressOf(t *testing.T, name string) string {
	t.Helper()
	query, err := new(dns.Msg).SetQuestion(name, dns.TypeA).Pack()
	must(t, err)
	raw, err := r.resolver.Answer(t.Context(), query, resolver.TCP)
	must(t, err)
	reply := new(dns.Msg)
	must(t, reply.Unpack(raw))
	for _, rr := range reply.Answer {
		if a, ok := rr.(*dns.A); ok {
			return a.A.String()
		}
	}
	return dns.RcodeToString[reply.Rcode]
}

// network is what a network offers with one server, which knows domains of its own.
func network(t *testing.T, server string, domains ...string) resolver.Base {
	t.Helper()
	u, err := resolver.ParseUpstream(server)
	must(t, err)
	b := resolver.Base{Upstreams: []resolver.Upstream{u}}
	for _, domain := range domains {
		b.Learnt = append(b.Learnt, resolver.Route{Suffix: domain, Upstreams: b.Upstreams})
	}
	return b
}

func TestQuestionsGoWhereTheStrongestSays(t *testing.T) {
	ofConfig, _ := countingServer(t, "192.0.2.1")
	ofMap, _ := countingServer(t, "192.0.2.2")
	ofNetwork, _ := countingServer(t, "192.0.2.3")
	mapWith := func(suffixes ...string) *Map {
		var text strings.Builder
		text.WriteString("zone: a.internal\ndns:\n  routes:\n")
		for _, s := range suffixes {
			fmt.Fprintf(&text, "    %s: [%q]\n", s, ofMap)
		}
		return mustParse(t, text.String())
	}
	r := newRouting(t, dnsConfig{Routes: map[string][]string{"both.example": {ofConfig}, "Mine.Example.": {ofConfig}}})
	must(t,
		r.setMap(mapWith("both.example", "map.example", "learnt-too.example")),
		r.setNetwork(network(t, ofNetwork, "both.example", "learnt-too.example", "learnt.example")))
	for name, want := range map[string]string{
		"a.both.example.":         "192.0.2.1",
		"mine.example.":           "192.0.2.1",
		"a.map.example.":          "192.0.2.2",
		"deep.down.map.example.":  "192.0.2.2",
		"notmap.example.":         "192.0.2.3",
		"a.learnt-too.example.":   "192.0.2.2",
		"a.learnt.example.":       "192.0.2.3",
		"elsewhere.example.":      "192.0.2.3",
		"A.BOTH.Example.":         "192.0.2.1",
		"a.both.example.invalid.": "NXDOMAIN",
	} {
		if got := r.addressOf(t, name); got != want {
			t.Errorf("%s: got %s, want %s", name, got, want)
		}
	}
	// Without the map's word the network's counts again.
	must(t, r.setMap(mapWith("map.example")))
	if got := r.addressOf(t, "a.learnt-too.example."); got != "192.0.2.3" {
		t.Errorf("once the map has let go of it: got %s, want the network's 192.0.2.3", got)
	}
}

func TestOwnUpstreamsReplaceTheNetworks(t *testing.T) {
	const given, ofMap, ofNetwork = "192.0.2.1", "192.0.2.2", "192.0.2.3"
	with := mustParse(t, "zone: a.internal\ndns: {upstreams: ["+ofMap+"]}\n")
	without := mustParse(t, "zone: a.internal\n")
	tests := []struct {
		name   string
		config []string
		m      *Map
		want   string
	}{
		{"the configuration's", []string{given}, with, given},
		{"the configuration's, where the map has none", []string{given}, without, given},
		{"the map's", nil, with, ofMap},
		{"the network's", nil, without, ofNetwork},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			r := newRouting(t, dnsConfig{Upstreams: tt.config})
			must(t, r.setMap(tt.m), r.setNetwork(network(t, ofNetwork, "corp.example")))
			routes, base := r.describe()
			if !slices.Equal(base, []string{tt.want}) {
				t.Errorf("base: got %q, want %s", base, tt.want)
			}
			want := []routeStatus{{"corp.example", []string{ofNetwork}, routeLearnt}}
			if !slices.EqualFunc(routes, want, sameRoute) {
				t.Errorf("routes: got %v, want %v: only the network's servers know its domains", routes, want)
			}
			asked := map[string][]string{}
			for _, u := range r.resolver.Upstreams() {
				asked[u.Upstream] = u.Routes
			}
			if !slices.Contains(asked[tt.want], ".") {
				t.Errorf("the resolver has %v, want %s for everything", asked, tt.want)
			}
		})
	}
}

func TestMapsUpstreamsComeAndGo(t *testing.T) {
	r := newRouting(t, dnsConfig{})
	must(t, r.setNetwork(network(t, "192.0.2.3")))
	for _, step := range []struct{ text, want string }{
		{"zone: a.internal\n", "192.0.2.3"},
		{"zone: a.internal\ndns: {upstreams: [192.0.2.2]}\n", "192.0.2.2"},
		{"zone: a.internal\ndns: {upstreams: [192.0.2.4]}\n", "192.0.2.4"},
		{"zone: a.internal\n", "192.0.2.3"},
	} {
		must(t, r.setMap(mustParse(t, step.text)))
		if _, base := r.describe(); !slices.Equal(base, []string{step.want}) {
			t.Errorf("base after %q: got %q, want %s", step.text, base, step.want)
		}
		if u := r.resolver.Upstreams(); len(u) != 1 || u[0].Upstream != step.want {
			t.Errorf("upstreams after %q: got %v, want %s alone", step.text, u, step.want)
		}
	}
}

func TestUpstreamsOfOursAreAskedBeforeTheNetworkIsKnown(t *testing.T) {
	at, _ := countingServer(t, "192.0.2.1")
	r := newRouting(t, dnsConfig{Upstreams: []string{at}})
	must(t, r.setMap(mustParse(t, "zone: a.internal\n")))
	if got := r.addressOf(t, "a.example."); got != "192.0.2.1" {
		t.Errorf("got %s, want an answer", got)
	}
}

func TestCacheStaysUnlessRoutesChange(t *testing.T) {
	at, asked := countingServer(t, "192.0.2.1")
	const plainMap = "zone: a.internal\nranges: [100.64.0.0/10]\n"
	routed := fmt.Sprintf("%sdns: {routes: {corp.example: [%q]}}\n", plainMap, at)
	r := newRouting(t, dnsConfig{Upstreams: []string{at}})
	must(t, r.setMap(mustParse(t, plainMap)), r.setNetwork(network(t, "192.0.2.3", "lan.example")))
	for _, step := range []struct {
		name   string
		change func() error
		want   int64 // questions asked so far
	}{
		{"the first question", func() error { return nil }, 1},
		{"the same map", func() error { return r.setMap(mustParse(t, plainMap)) }, 1},
		{"a map with another node", func() error {
			return r.setMap(mustParse(t, plainMap+"nodes: {nas: {addresses: [100.64.0.2]}}\n"))
		}, 1},
		{"the same network", func() error { return r.setNetwork(network(t, "192.0.2.3", "lan.example")) }, 1},
		{"a map with a route", func() error { return r.setMap(mustParse(t, routed)) }, 2},
		{"the same route again", func() error { return r.setMap(mustParse(t, routed)) }, 2},
		{"a map without it", func() error { return r.setMap(mustParse(t, plainMap)) }, 3},
		{"another network", func() error { return r.setNetwork(network(t, "192.0.2.4", "other.example")) }, 4},
	} {
		must(t, step.change())
		if got := r.addressOf(t, "cached.example."); got != "192.0.2.1" {
			t.Errorf("%s: got %s", step.name, got)
		}
		if got := asked.Load(); got != step.want {
			t.Errorf("%s: asked %d times, want %d", step.name, got, step.want)
		}
	}
}

func TestRouteThatIsReplacedIsNotTold(t *testing.T) {
	r := newRouting(t, dnsConfig{Routes: map[string][]string{"corp.example": {"192.0.2.1"}}})
	must(t, r.setMap(mustParse(t, "zone: a.internal\n")), r.setNetwork(network(t, "192.0.2.3", "corp.example", "a.corp.example", "xcorp.example")))
	routes, _ := r.describe()
	want := []routeStatus{
		{"corp.example", []string{"192.0.2.1"}, routeConfig},
		{"xcorp.example", []string{"192.0.2.3"}, routeLearnt},
	}
	if !slices.EqualFunc(routes, want, sameRoute) {
		t.Errorf("got %v, want %v", routes, want)
	}
}

func TestWhatIsToldIsACopy(t *testing.T) {
	r := newRouting(t, dnsConfig{Upstreams: []string{"192.0.2.1"}, Routes: map[string][]string{"corp.example": {"192.0.2.1"}}})
	must(t, r.setMap(mustParse(t, "zone: a.internal\n")))
	routes, base := r.describe()
	routes[0].Suffix, base[0] = "changed", "changed"
	if routes, base = r.describe(); routes[0].Suffix != "corp.example" || base[0] != "192.0.2.1" {
		t.Errorf("got %v and %q, want what was set", routes, base)
	}
}

func TestUpstreamsThatMakeNoSenseAreToldWithTheirRoute(t *testing.T) {
	r := newRouting(t, dnsConfig{Routes: map[string][]string{"corp.example": {"not an address"}}})
	if err := r.setMap(mustParse(t, "zone: a.internal\n")); err == nil || !strings.Contains(err.Error(), "route corp.example: ") {
		t.Errorf("a route: got %v, want an error that names it", err)
	}
	r = newRouting(t, dnsConfig{})
	must(t, r.setNetwork(network(t, "192.0.2.3")))
	r.dns.Upstreams = []string{"not an address"}
	for range 2 { // the second time too: it did not become good by having been refused
		if err := r.setMap(mustParse(t, "zone: a.internal\n")); err == nil {
			t.Error("the base: no error")
		}
	}
	if _, base := r.describe(); !slices.Equal(base, []string{"192.0.2.3"}) {
		t.Errorf("base: got %q, want the one in use", base)
	}
}

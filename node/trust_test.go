package node

import (
	"net/netip"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/meshdns/meshdns/node/control"
)

// S5: once nobody has confirmed the map for long, names still resolve, and nobody but the gateway is a peer.
func TestAMapIsNotTrustedForEver(t *testing.T) {
	g := startGateway(t)
	nas, tv := g.invited(t, "nas"), g.invited(t, "tv")
	soon(t, "names", func() bool { return nas.knows(t, "tv") && tv.knows(t, "nas") })
	if err := tv.end(); err != nil {
		t.Fatal(err)
	}
	var ahead atomic.Int64
	cfg := testConfig()
	cfg.Node, cfg.Tunnel = "", tunnelConfig{Mode: "userspace"}
	tv = startNodeWith(t, cfg, Options{Paths: tv.paths, clock: func() time.Time { return time.Now().Add(time.Duration(ahead.Load())) }})
	c := startChatter(t, nas, tv, "nas")
	c.say(t, "trusted")
	// While the gateway is heard its clock counts.
	if err := g.end(); err != nil {
		t.Fatal(err)
	}
	ahead.Store(int64(15 * 24 * time.Hour))
	tv.node.useContacts() // as each try of the gateway does
	peers := func() int {
		stats, err := tv.node.carrier.tunnel.Stats()
		if err != nil {
			t.Fatal(err)
		}
		return len(stats)
	}
	soon(t, "the end of trust", func() bool { return peers() == 2 }) // the gateway and its relay
	s, err := tv.Status(t.Context())
	if err != nil || s.State != stateDegraded || !strings.Contains(strings.Join(s.Problems, " "), "names resolve, and no other node is spoken to") {
		t.Errorf("%+v, %v", s.Problems, err)
	}
	if !tv.knows(t, "nas") {
		t.Error("names do not resolve any more")
	}
	ahead.Store(0)
	soon(t, "trust", func() bool { return peers() == 3 })
	startGatewayWith(t, g.cfg, g.paths)
	c.say(t, "trusted again")
}

// S5: a machine that starts long after anybody confirmed its map resolves names, and speaks to nobody but the gateway.
func TestAMapOfLongAgoIsNotTrusted(t *testing.T) {
	g := startGateway(t)
	nas, tv := g.invited(t, "nas"), g.invited(t, "tv")
	soon(t, "names", func() bool { return nas.knows(t, "tv") && tv.knows(t, "nas") })
	for _, n := range []*testNode{nas, tv, g.testNode} {
		if err := n.end(); err != nil {
			t.Fatal(err)
		}
	}
	cfg := testConfig()
	cfg.Node, cfg.Tunnel = "", tunnelConfig{Mode: "userspace"}
	for days, want := range map[int]string{13: "edge nas", 15: "edge"} {
		ahead := time.Duration(days) * 24 * time.Hour
		again := startNodeWith(t, cfg, Options{Paths: tv.paths, clock: func() time.Time { return time.Now().Add(ahead) }})
		if got := again.speaksTo(t); got != want || !again.knows(t, "nas") {
			t.Errorf("after %d days the peers are %q, want %q; nas resolves: %t", days, got, want, again.knows(t, "nas"))
		}
		if err := again.end(); err != nil {
			t.Fatal(err)
		}
	}
}

func TestWhichEndpointOfAGatewayIsUsed(t *testing.T) {
	list := func(addrs ...string) (out []netip.AddrPort) {
		for _, a := range addrs {
			out = append(out, netip.MustParseAddrPort(a))
		}
		return out
	}
	g := gatewayContact{Endpoints: list("203.0.113.5:1", "[2001:db8::5]:1"), Relay: list("203.0.113.5:2", "[2001:db8::5]:2")}
	for _, want := range []string{"203.0.113.5:2", "[2001:db8::5]:2", "203.0.113.5:2"} {
		if got := g.relay().String(); got != want {
			t.Errorf("%d: %s, want %s", g.at, got, want)
		}
		g.at++
	}
	g.Relay = list("198.51.100.1:2")
	if got := g.relay().String(); got != "198.51.100.1:2" {
		t.Errorf("a relay elsewhere: %s", got)
	}
}

func TestWhatAMemberComplainsOf(t *testing.T) {
	now := time.Now()
	m := &member{keeps: &membership{Map: &control.Map{TrustUntil: now.Add(time.Hour)}, Gateways: []gatewayContact{{Name: "edge"}}}, doubts: map[string]doubt{"nas": {doubtChanged, "nas: other keys"}, "tv": {state: doubtDropped}}}
	for name, tt := range map[string]struct {
		lost time.Time
		at   time.Time
		want int
	}{
		"all is well":           {time.Time{}, now, 1},
		"lost for a moment":     {now.Add(-time.Minute), now, 1},
		"lost":                  {now.Add(-time.Hour), now, 2},
		"lost, and trusted out": {now.Add(-time.Hour), now.Add(2 * time.Hour), 3},
	} {
		m.lost = tt.lost
		if got := m.faults(now, tt.at); len(got) != tt.want || got[0] != "nas: other keys" {
			t.Errorf("%s: %q", name, got)
		}
	}
	if got := new(member).faults(now, now); got != nil {
		t.Errorf("not joined: %q", got)
	}
}

package node

import (
	"os"
	"testing"
	"time"
)

// joinBehindBox joins a machine and starts its node; relayed: it tries no direct path.
func (g *testGateway) joinBehindBox(t *testing.T, name string, relayed bool) *testNode {
	t.Helper()
	paths := testPaths(t)
	if _, err := paths.Join(t.Context(), g.invite(t, name), "", nil); err != nil {
		t.Fatal(err)
	}
	cfg := testConfig()
	cfg.Node, cfg.Tunnel = "", tunnelConfig{Mode: "userspace"}
	return startNodeWith(t, cfg, Options{Paths: paths, probe: time.Second, relayed: relayed})
}

// A network that lets no UDP through any more, and then does again, costs no connection: packets move to TLS and back.
func TestAConnectionOutlivesUDP(t *testing.T) {
	g, box := startBehindBox(t)
	defer box.close()
	box.open.Store(true)
	nas, tv := g.joinBehindBox(t, "nas", true), g.joinBehindBox(t, "tv", true)
	soon(t, "names", func() bool { return nas.knows(t, "tv") && tv.knows(t, "nas") && nas.hasStream() && tv.hasStream() })
	c := startChatter(t, nas, tv, "nas")
	c.sayWithin(t, "over UDP", time.Minute)
	if nas.overTLS(t) || tv.overTLS(t) {
		t.Error("TLS is used where UDP gets through")
	}
	rounds := 1
	if os.Getenv("MESHDNS_SOAK") != "" {
		rounds = 4
	}
	for round := range rounds {
		box.open.Store(false)
		c.sayWithin(t, "over TLS", 2*time.Minute)
		waitFor(t, time.Minute, "status to say so", func() bool { return nas.overTLS(t) && tv.overTLS(t) })
		if !nas.knows(t, "tv") {
			t.Error("names do not resolve")
		}
		box.open.Store(true)
		waitFor(t, 2*time.Minute, "UDP", func() bool { return !nas.overTLS(t) && !tv.overTLS(t) })
		c.sayWithin(t, "over UDP again", time.Minute)
		waitFor(t, time.Minute, "the end of TLS", func() bool { return g.node.gateway.overTLS.count() == 0 })
		if t.Failed() {
			t.Fatalf("in round %d", round)
		}
	}
}

// Two nodes that reach each other directly go on so while neither reaches the gateway over UDP: what goes over TLS is for the gateway.
func TestADirectPathOutlivesUDPToTheGateway(t *testing.T) {
	g, box := startBehindBox(t)
	defer box.close()
	box.open.Store(true)
	nas, tv := g.joinBehindBox(t, "nas", false), g.joinBehindBox(t, "tv", false)
	soon(t, "names", func() bool { return nas.knows(t, "tv") && tv.knows(t, "nas") })
	c := startChatter(t, nas, tv, "nas")
	isDirect := func() bool {
		c.sayWithin(t, "word", time.Minute)
		return tv.isDirect(t, "nas") && nas.isDirect(t, "tv")
	}
	waitFor(t, 2*time.Minute, "the direct path", isDirect)
	box.open.Store(false)
	waitFor(t, 2*time.Minute, "TLS", func() bool {
		c.sayWithin(t, "word", time.Minute)
		return nas.overTLS(t) && tv.overTLS(t)
	})
	waitFor(t, 2*time.Minute, "the stream, and the direct path", func() bool { return nas.hasStream() && tv.hasStream() && isDirect() })
	relayed := g.node.gateway.relay.Stats().Passed
	for range 100 {
		c.sayWithin(t, "directly", time.Minute)
	}
	if passed := g.node.gateway.relay.Stats().Passed - relayed; passed > 20 {
		t.Errorf("%d packets of a direct pair went through the gateway", passed)
	}
	box.open.Store(true)
	waitFor(t, 2*time.Minute, "UDP", func() bool {
		c.sayWithin(t, "word", time.Minute)
		return !nas.overTLS(t) && !tv.overTLS(t)
	})
	waitFor(t, 2*time.Minute, "the direct path", isDirect)
}

package node

import (
	"testing"

	"github.com/meshdns/meshdns/node/control"
)

// A gateway that was broken into inserts a node: whoever has a lock does not speak to it before the owner has signed it (S3).
func TestALockKeepsInsertedNodesOut(t *testing.T) {
	owner, err := control.NewPrivateKey()
	if err != nil {
		t.Fatal(err)
	}
	g := startGateway(t)
	registry := g.node.gateway.registry
	sign := func(name string, by control.PrivateKey) {
		t.Helper()
		m, _ := registry.Map()
		for _, n := range m.Nodes {
			if n.Name == name {
				if err := registry.Sign(t.Context(), name, by.SignNode(m.Zone, n)); err != nil {
					t.Fatal(err)
				}
				return
			}
		}
		t.Fatalf("the map has no %s", name)
	}
	sign("edge", owner)
	reply, err := g.Invite(t.Context(), "nas", nil, 0, false)
	if err != nil {
		t.Fatal(err)
	}
	paths := testPaths(t)
	if _, err := paths.Join(t.Context(), reply.Invite, "", nil); err != nil {
		t.Fatal(err)
	}
	cfg := testConfig()
	cfg.Node, cfg.Tunnel, cfg.Lock = "", tunnelConfig{Mode: "userspace"}, []control.ControlKey{owner.Public()}
	nas := startNode(t, cfg, paths)
	g.invited(t, "tv") // which the gateway lets in, and the owner does not know of
	g.invited(t, "box")
	within10s(t, "the gateway to have both", func() bool { return g.knows(t, "tv") && g.knows(t, "box") })
	thief, err := control.NewPrivateKey()
	if err != nil {
		t.Fatal(err)
	}
	sign("tv", thief)
	sign("box", owner)
	peers := func() map[string]bool {
		have := map[string]bool{}
		s, err := nas.Status(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		for _, p := range s.Tunnel.Peers {
			have[p.Node] = true
		}
		return have
	}
	within10s(t, "what the owner signed", func() bool { return peers()["box"] })
	if have := peers(); have["tv"] {
		t.Errorf("nas has the inserted node as a peer: %v", have)
	}
	sign("tv", owner)
	within10s(t, "what the owner signs later", func() bool { return peers()["tv"] })
}

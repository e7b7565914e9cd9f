package node

import (
	"errors"
	"testing"
)

// A pair's way shows in ping and status: through the gateway at first, then directly.
func TestPingAndStatusTellTheWay(t *testing.T) {
	g := startGateway(t)
	nas, tv := g.invited(t, "nas"), g.invited(t, "tv")
	soon(t, "names", func() bool { return nas.knows(t, "tv") && tv.knows(t, "nas") })
	soon(t, "an answer", func() bool {
		reply, err := tv.Ping(t.Context(), "nas")
		if err != nil && !errors.Is(err, ErrTimeout) {
			t.Fatal(err)
		}
		return err == nil && reply.Node == "nas" && reply.Latency > 0 && reply.Path != pathNone
	})
	soon(t, "a direct answer", func() bool {
		reply, err := tv.Ping(t.Context(), "nas")
		return err == nil && reply.Path == pathDirect && reply.Endpoint != ""
	})
	soon(t, "an answer of the gateway, and to it", func() bool {
		to, err := tv.Ping(t.Context(), "edge.foo-bar.example.org")
		from, err2 := g.Ping(t.Context(), "tv")
		return err == nil && err2 == nil && to.Path == pathDirect && from.Path == pathDirect
	})
	if _, err := tv.Ping(t.Context(), "nobody"); !errors.Is(err, ErrNotFound) || hintOf(err) == "" {
		t.Errorf("nobody: %v", err)
	}
	if _, err := tv.Ping(t.Context(), "tv"); !errors.Is(err, ErrBadRequest) {
		t.Errorf("itself: %v", err)
	}
	s, err := tv.Status(t.Context())
	if err != nil || s.Tunnel.Mode != "userspace" || s.Tunnel.Port == 0 || s.Tunnel.MTU < 1280 || len(s.Tunnel.Peers) != 2 || len(s.Tunnel.Why) == 0 {
		t.Fatalf("%+v, %v", s.Tunnel, err)
	}
	if gw := s.Tunnel.Gateway; gw == nil || gw.Name != "edge" || gw.Since == nil || gw.Version == 0 || gw.TrustUntil.IsZero() {
		t.Errorf("%+v", gw)
	}
	if p := s.Tunnel.Peers[1]; p.Node != "nas" || p.Path == pathNone || p.Handshake == nil || p.Received == 0 || p.Sent == 0 {
		t.Errorf("%+v", p)
	}
	soon(t, "the direct path in the status", func() bool {
		s, err := tv.Status(t.Context())
		return err == nil && s.Tunnel.Peers[1].Path == pathDirect
	})
	if s := startNode(t, testConfig(), testPaths(t)).node.status(); s.Tunnel.Gateway != nil || s.Tunnel.Mode != "" || s.Tunnel.Peers == nil {
		t.Errorf("a node on its own: %+v", s.Tunnel)
	}
}

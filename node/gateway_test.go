package node

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/meshdns/meshdns/node/control"
)

// freePorts is a UDP port that nothing uses, with the one above it, which a relay takes.
func freePorts(t *testing.T, addr string) uint16 {
	t.Helper()
	for range 50 {
		first, err := net.ListenUDP("udp", &net.UDPAddr{IP: net.ParseIP(addr)})
		if err != nil {
			t.Fatal(err)
		}
		port := first.LocalAddr().(*net.UDPAddr).Port
		second, err := net.ListenUDP("udp", &net.UDPAddr{IP: net.ParseIP(addr), Port: port + relayPort})
		first.Close()
		if err == nil {
			second.Close()
			return uint16(port)
		}
	}
	t.Fatal("no two ports")
	return 0
}

// testGateway is a gateway on an address of loopback.
type testGateway struct {
	*testNode
	cfg Config
}

const gatewayAddress = "127.80.9.1"

func gatewayTestConfig(t *testing.T) Config {
	cfg := testConfig()
	cfg.Node = "edge"
	cfg.Tunnel = tunnelConfig{Mode: "userspace", Port: freePorts(t, gatewayAddress)}
	cfg.Gateway = gatewayConfig{
		Zone: "foo-bar.example.org", Public: []netip.Addr{netip.MustParseAddr("203.0.113.5")}, Listen: []netip.Addr{netip.MustParseAddr(gatewayAddress)},
	}
	return cfg
}

func startGateway(t *testing.T) *testGateway {
	t.Helper()
	return startGatewayWith(t, gatewayTestConfig(t), testPaths(t))
}

func startGatewayWith(t *testing.T, cfg Config, paths Paths) *testGateway {
	t.Helper()
	reached := []netip.Addr{netip.MustParseAddr(gatewayAddress)}
	return &testGateway{startNodeWith(t, cfg, Options{Paths: paths, reached: reached}), cfg}
}

// invited joins a machine by an invite for name, and starts its node.
func (g *testGateway) invited(t *testing.T, name string) *testNode {
	t.Helper()
	reply, err := g.Invite(t.Context(), name, nil, 0, false)
	if err != nil {
		t.Fatal(err)
	}
	paths := testPaths(t)
	joined, err := paths.Join(t.Context(), reply.Invite, "", nil)
	if err != nil {
		t.Fatal(err)
	}
	if joined.Node != name+".foo-bar.example.org" || len(joined.Addresses) != 2 {
		t.Fatalf("%+v", joined)
	}
	// WireGuard takes two initiations of a key within 16 ms for a replay, and waits for 5 s with the third.
	soon(t, "the end of joining", func() bool { return g.isNode(t, name) })
	return startMember(t, paths)
}

// invite is an invite for name.
func (g *testGateway) invite(t *testing.T, name string) string {
	t.Helper()
	reply, err := g.Invite(t.Context(), name, nil, 0, false)
	if err != nil {
		t.Fatal(err)
	}
	return reply.Invite
}

// isNode reports whether a node has finished joining: until its key has completed a handshake its place is pending.
func (g *testGateway) isNode(t *testing.T, name string) bool {
	t.Helper()
	nodes, err := g.Nodes(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return slices.ContainsFunc(nodes.Nodes, func(n gatewayPeer) bool { return n.Name == name && n.State == "node" })
}

func startMember(t *testing.T, paths Paths) *testNode {
	t.Helper()
	cfg := testConfig()
	cfg.Node = ""
	cfg.Tunnel = tunnelConfig{Mode: "userspace"}
	return startNode(t, cfg, paths)
}

// knows reports whether a node resolves a name of the tailnet.
func (n *testNode) knows(t *testing.T, name string) bool {
	t.Helper()
	_, addrs := n.ask(t, name+".foo-bar.example.org.")
	return len(addrs) == 1
}

// soon waits for what takes a moment, and on a machine that is busy some more.
func soon(t *testing.T, what string, so func() bool) {
	t.Helper()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for over := time.After(time.Minute); !so(); {
		select {
		case <-tick.C:
		case <-over:
			t.Fatalf("waited for %s for a minute", what)
		}
	}
}

// A tailnet in two commands: names resolve on every node, and each reaches every other, here through the gateway.
func TestATailnetComesTogether(t *testing.T) {
	g := startGateway(t)
	nas, tv := g.invited(t, "nas"), g.invited(t, "tv")
	soon(t, "names", func() bool {
		return nas.knows(t, "tv") && tv.knows(t, "nas") && g.knows(t, "tv") && nas.knows(t, "edge")
	})
	m, _ := tv.node.tailnet.current()
	node, _ := m.Node("nas")
	at := netip.AddrPortFrom(node.Addresses[0], 7)
	ln, err := nas.node.carrier.tunnel.Listen(t.Context(), "tcp", at)
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	go func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			_, _ = io.WriteString(c, "hello")
			c.Close()
		}
	}()
	c, err := tv.node.carrier.tunnel.Dial(t.Context(), "tcp", at)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if data, err := io.ReadAll(c); err != nil || string(data) != "hello" {
		t.Errorf("%q, %v", data, err)
	}
	soon(t, "the newest map to be confirmed by all", func() bool {
		nodes, err := g.Nodes(t.Context())
		if err != nil || len(nodes.Nodes) != 3 {
			t.Fatalf("%+v, %v", nodes, err)
		}
		for _, n := range nodes.Nodes {
			if n.State != "node" || !n.Confirmed {
				return false
			}
		}
		return true
	})
	if g.ready.State != stateOK && !strings.Contains(fmt.Sprint(g.ready.Problems), "public") {
		t.Errorf("%+v", g.ready.Problems)
	}
	// S5: what was removed is gone at once, everywhere.
	if err := g.RemoveNode(t.Context(), "nas"); err != nil {
		t.Fatal(err)
	}
	soon(t, "the removal", func() bool { return !tv.knows(t, "nas") && !g.knows(t, "nas") })
	if err := g.RemoveNode(t.Context(), "nas"); !errors.Is(err, ErrNotFound) {
		t.Errorf("removed again: %v", err)
	}
	if err := g.RenameNode(t.Context(), "tv", "screen"); err != nil {
		t.Fatal(err)
	}
	soon(t, "the new name", func() bool { return g.knows(t, "screen") && tv.knows(t, "screen") && !tv.knows(t, "tv") })
	if s, err := tv.Status(t.Context()); err != nil || s.Node != "screen.foo-bar.example.org" {
		t.Errorf("%s, %v", s.Node, err)
	}
}

// Policy is enforced by the node that is reached, and by the relay; a node that is removed leaves it in force.
func TestAGatewaysPolicyHolds(t *testing.T) {
	cfg, paths := gatewayTestConfig(t), testPaths(t)
	cfg.Gateway.Policy = paths.Map + ".policy"
	text := "policy: {allow: [{from: [tv], to: [\"nas:7\"]}, {from: [later], to: [nas]}]}\n"
	if err := os.WriteFile(cfg.Gateway.Policy, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	g := startGatewayWith(t, cfg, paths)
	nas, tv, web := g.invited(t, "nas"), g.invited(t, "tv"), g.invited(t, "web")
	soon(t, "names", func() bool { return nas.knows(t, "web") && tv.knows(t, "nas") && web.knows(t, "nas") })
	m, _ := tv.node.tailnet.current()
	to, _ := m.Node("nas")
	for _, port := range []uint16{7, 8} {
		ln, err := nas.node.carrier.tunnel.Listen(t.Context(), "tcp", netip.AddrPortFrom(to.Addresses[0], port))
		if err != nil {
			t.Fatal(err)
		}
		defer ln.Close()
		go func() {
			for {
				c, err := ln.Accept()
				if err != nil {
					return
				}
				c.Close()
			}
		}()
	}
	dial := func(n *testNode, port uint16, patience time.Duration) error {
		ctx, cancel := context.WithTimeout(t.Context(), patience)
		defer cancel()
		c, err := n.node.carrier.tunnel.Dial(ctx, "tcp", netip.AddrPortFrom(to.Addresses[0], port))
		if err == nil {
			c.Close()
		}
		return err
	}
	if err := dial(tv, 7, 30*time.Second); err != nil {
		t.Errorf("what is allowed: %v", err)
	}
	if err := dial(tv, 8, time.Second); err == nil {
		t.Error("another port is reached")
	}
	if err := dial(web, 7, time.Second); err == nil {
		t.Error("another node reaches it")
	}
	if _, err := web.node.member.client.Connect(t.Context(), "nas"); err == nil {
		t.Error("where it is was told")
	}
	if err := g.RemoveNode(t.Context(), "tv"); err != nil {
		t.Fatal(err)
	}
	soon(t, "the removal", func() bool { return !nas.knows(t, "tv") })
	if err := dial(web, 7, time.Second); err == nil {
		t.Error("the policy is gone with a node that it names")
	}
}

// A node that starts while the gateway is down works from the last good map, and catches up.
func TestNamesOutliveTheGateway(t *testing.T) {
	g := startGateway(t)
	nas := g.invited(t, "nas")
	soon(t, "the map", func() bool { return nas.knows(t, "nas") && nas.knows(t, "edge") })
	if err := nas.end(); err != nil {
		t.Fatal(err)
	}
	if err := g.end(); err != nil {
		t.Fatal(err)
	}
	again := startMember(t, nas.paths)
	if !again.knows(t, "edge") || !again.knows(t, "nas") || !strings.HasPrefix(again.ready.Node, "nas.") {
		t.Errorf("%+v", again.ready)
	}
	back := startGatewayWith(t, g.cfg, g.paths)
	other := back.invited(t, "tv")
	soon(t, "the node to catch up", func() bool { return again.knows(t, "tv") && other.knows(t, "nas") })
}

func TestWhoCannotJoin(t *testing.T) {
	g := startGateway(t)
	ctx := t.Context()
	reply, err := g.Invite(ctx, "nas", nil, 0, false)
	if err != nil || !strings.HasPrefix(reply.Invite, "MESHDNS") || time.Until(reply.Expires) > time.Hour {
		t.Fatalf("%+v, %v", reply, err)
	}
	nas := testPaths(t)
	if _, err := nas.Join(ctx, reply.Invite[:60], "", nil); !errors.Is(err, control.ErrNoInvite) || !errors.Is(err, ErrBadRequest) || hintOf(err) == "" {
		t.Errorf("half an invite: %v", err)
	}
	if _, err := nas.Join(ctx, reply.Invite, "tv", nil); err == nil || !strings.Contains(err.Error(), "for nas") {
		t.Errorf("another name: %v", err)
	}
	if _, err := nas.Join(ctx, reply.Invite, "", nil); err != nil {
		t.Fatal(err)
	}
	if _, err := nas.Join(ctx, reply.Invite, "", nil); err == nil || !strings.Contains(err.Error(), "already") || hintOf(err) == "" {
		t.Errorf("joined twice: %v", err)
	}
	// S6: the invite is dead once the machine's key has completed its handshake.
	soon(t, "the node to be one", func() bool {
		nodes, err := g.Nodes(ctx)
		return err == nil && len(nodes.Nodes) == 2 && nodes.Nodes[1].State == "node"
	})
	for _, name := range []string{"nas", "wpad", "ns1", "edge"} {
		if _, err := g.Invite(ctx, name, nil, 0, false); !errors.Is(err, ErrBadRequest) {
			t.Errorf("an invite for %s: %v", name, err)
		}
	}
	if err := g.RemoveNode(ctx, "edge"); !errors.Is(err, ErrBadRequest) {
		t.Errorf("the gateway removes itself: %v", err)
	}
	if _, err := startNode(t, testConfig(), testPaths(t)).Invite(ctx, "x", nil, 0, false); !errors.Is(err, ErrNotFound) || hintOf(err) == "" {
		t.Errorf("an invite of a node that is no gateway: %v", err)
	}
}

// S6: whoever comes second with an invite is refused, and the gateway's owner gets to know.
func TestASecondUseOfAnInviteIsReported(t *testing.T) {
	g := startGateway(t)
	reply, err := g.Invite(t.Context(), "nas", nil, 0, false)
	if err != nil {
		t.Fatal(err)
	}
	invite, err := control.ParseInvite(reply.Invite)
	if err != nil {
		t.Fatal(err)
	}
	thief, err := newSecrets()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := g.node.gateway.registry.Join(t.Context(), invite.Address, thief.keys().Control, control.JoinRequest{Key: thief.keys().Key}); err != nil {
		t.Fatal(err)
	}
	_, err = testPaths(t).Join(t.Context(), reply.Invite, "", nil)
	if err == nil || !strings.Contains(err.Error(), "the invite was used already, by node nas") || hintOf(err) == "" {
		t.Errorf("the second one: %v, %q", err, hintOf(err))
	}
	nodes, err := g.Nodes(t.Context())
	if err != nil || !slices.ContainsFunc(nodes.Nodes, func(n gatewayPeer) bool { return n.Name == "nas" && n.Contested != nil }) {
		t.Errorf("%+v, %v", nodes, err)
	}
	status, err := g.Status(t.Context())
	if err != nil || !strings.Contains(strings.Join(status.Problems, "\n"), "the invite of nas was used again, by another machine") {
		t.Errorf("%q, %v", status.Problems, err)
	}
	if later := g.node.gateway.contested(time.Now().Add(contestedTime + time.Minute)); len(later) > 0 {
		t.Errorf("a week later: %q", later)
	}
}

func TestAReusableInviteIsForManyMachines(t *testing.T) {
	g := startGateway(t)
	reply, err := g.Invite(t.Context(), "", []string{"lab"}, time.Hour, true)
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"one", "two"} {
		if joined, err := testPaths(t).Join(t.Context(), reply.Invite, name, nil); err != nil || joined.Node != name+".foo-bar.example.org" {
			t.Errorf("%+v, %v", joined, err)
		}
	}
}

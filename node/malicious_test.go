package node

import (
	"context"
	"log/slog"
	"net"
	"net/netip"
	"sync"
	"testing"
	"time"

	"github.com/meshdns/meshdns/node/control"
	"github.com/meshdns/meshdns/node/tunnel"
)

// strangerTunnel is somebody's tunnel to a gateway, with a key and an address of their choice.
func strangerTunnel(t *testing.T, g *testGateway, key tunnel.Secret, source netip.Addr) *tunnel.Tunnel {
	t.Helper()
	single := func(a netip.Addr) netip.Prefix { return netip.PrefixFrom(a, a.BitLen()) }
	tun, err := tunnel.New(tunnel.Config{
		Mode: tunnel.Userspace, Key: key, Addresses: []netip.Addr{source}, Ranges: []netip.Prefix{single(source)}, Logger: slog.New(slog.DiscardHandler),
	})
	if err == nil {
		err = tun.Start(t.Context())
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { tun.Close() })
	err = tun.SetPeers([]tunnel.Peer{{
		Key:        g.node.carrier.secrets.wireGuard.Public(),
		Endpoint:   netip.AddrPortFrom(netip.MustParseAddr(gatewayAddress), g.cfg.Tunnel.Port),
		AllowedIPs: []netip.Prefix{single(g.address())},
	}})
	if err != nil {
		t.Fatal(err)
	}
	return tun
}

// address is the gateway's in the tailnet.
func (g *testGateway) address() netip.Addr {
	m, _ := g.node.gateway.registry.Map()
	return m.Ranges[0].Addr().Next()
}

// reaches reports whether a connection comes about in that time.
func reaches(t *testing.T, tun *tunnel.Tunnel, to netip.AddrPort, patience time.Duration) bool {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	conn, err := tun.Dial(ctx, "tcp", to)
	if err != nil {
		return false
	}
	conn.Close()
	return true
}

// answerAt has a node answer connections on a port of its tailnet address.
func (n *testNode) answerAt(t *testing.T, at netip.AddrPort) {
	t.Helper()
	ln, err := n.node.carrier.tunnel.Listen(t.Context(), "tcp", at)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ln.Close() })
	go func() {
		for {
			conn, err := ln.Accept()
			if err != nil {
				return
			}
			conn.Close()
		}
	}()
}

// attackPatience is how long what is not to come about is waited for: longer than what may come about takes.
const attackPatience = 3 * time.Second

// S6: with an invite the call to join is reached, and nothing else of the gateway; a node reaches the rest.
func TestAnInviteReachesTheJoinAlone(t *testing.T) {
	g := startGateway(t)
	nas := g.invited(t, "nas")
	soon(t, "the node", func() bool { return nas.knows(t, "nas") && g.knows(t, "nas") })
	other := netip.AddrPortFrom(g.address(), 7)
	g.answerAt(t, other)
	reply, err := g.Invite(t.Context(), "tv", nil, 0, false)
	if err != nil {
		t.Fatal(err)
	}
	invite, err := control.ParseInvite(reply.Invite)
	if err != nil {
		t.Fatal(err)
	}
	guest := strangerTunnel(t, g, invite.Key, invite.Address)
	if !reaches(t, guest, netip.AddrPortFrom(g.address(), control.Port), 30*time.Second) {
		t.Fatal("the call to join is not reached")
	}
	if reaches(t, guest, other, attackPatience) {
		t.Error("another port of the gateway is reached")
	}
	if !reaches(t, nas.node.carrier.tunnel, other, 30*time.Second) {
		t.Error("a node does not reach it either")
	}
}

// S1: packets with another node's address as their source do not come out of the tunnel, whatever key the call would show.
func TestAnothersAddressIsNoSource(t *testing.T) {
	g := startGateway(t)
	nas := g.invited(t, "nas")
	reply, err := g.Invite(t.Context(), "bad", nil, 0, false)
	if err != nil {
		t.Fatal(err)
	}
	paths := testPaths(t)
	bad, err := paths.Join(t.Context(), reply.Invite, "", nil)
	if err != nil {
		t.Fatal(err)
	}
	s, err := loadSecrets(paths.State)
	if err != nil {
		t.Fatal(err)
	}
	soon(t, "the nodes", func() bool { return g.isNode(t, "bad") && nas.knows(t, "bad") })
	m, _ := nas.node.tailnet.current()
	victim, _ := m.Node("nas")
	calls := netip.AddrPortFrom(g.address(), control.Port)
	spoofing := strangerTunnel(t, g, s.wireGuard, victim.Addresses[0])
	if reaches(t, spoofing, calls, attackPatience) {
		t.Error("with another node's address the gateway answers")
	}
	if err := spoofing.Close(); err != nil {
		t.Fatal(err)
	}
	honest := strangerTunnel(t, g, s.wireGuard, bad.Addresses[0])
	if !reaches(t, honest, calls, 30*time.Second) {
		t.Error("with its own it does not either")
	}
	// Its address without its key makes no call: here with the key of a program on that machine.
	thief, err := control.NewPrivateKey()
	if err != nil {
		t.Fatal(err)
	}
	for key, want := range map[*control.PrivateKey]bool{&thief: false, &s.control: true} {
		c := control.Client{
			Dial: func(ctx context.Context, network, address string) (net.Conn, error) {
				return dialTunnel(ctx, honest, network, address)
			},
			Server: calls, Gateway: g.node.carrier.secrets.control.Public(), Key: *key,
		}
		if err := c.Report(t.Context(), control.Report{}); (err == nil) != want {
			t.Errorf("a call from its address, with its key %t: %v", want, err)
		}
	}
}

// A node floods the gateway with calls, and the others get the next map meanwhile.
func TestAFloodOfCallsHoldsNobodyUp(t *testing.T) {
	g := startGateway(t)
	nas, bad := g.invited(t, "nas"), g.invited(t, "bad")
	soon(t, "names", func() bool { return nas.knows(t, "bad") && bad.knows(t, "nas") })
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	var flood sync.WaitGroup
	var mu sync.Mutex
	calls := 0
	for range 16 {
		flood.Go(func() {
			for ctx.Err() == nil {
				_ = bad.node.member.caller().Report(ctx, control.Report{}) // which is refused once there were many
				mu.Lock()
				calls++
				mu.Unlock()
			}
		})
	}
	soon(t, "the flood", func() bool { mu.Lock(); defer mu.Unlock(); return calls > 40 })
	if err := g.RenameNode(t.Context(), "bad", "worse"); err != nil {
		t.Fatal(err)
	}
	soon(t, "the next map, while that goes on", func() bool { return nas.knows(t, "worse") })
	if err := nas.node.reportOnce(t.Context()); err != nil {
		t.Errorf("another node's call: %v", err)
	}
	stop()
	flood.Wait()
}

package node

import (
	"context"
	"maps"
	"math/rand/v2"
	"net/netip"
	"time"

	"github.com/meshdns/meshdns/node/control"
	"github.com/meshdns/meshdns/node/tunnel"
)

// A gateway that was killed and started again knows no session, and the nodes do not know that: what they hold is a stream
// that is silent anyway, and they would miss it only when they have asked it in vain. So a gateway keeps where nodes are, and greets
// them when it starts, by its registry's epoch, which is another one with each start; whoever is greeted opens the stream again.

// The times of greetings.
const (
	greetEvery = time.Millisecond // so that nodes do not all come at once
	greetSoon  = 2 * time.Second  // a try of the stream that is younger finds who greets: TCP sends again what the one before got
)

// noteNodes takes note of where a gateway's nodes are, and forgets those that are none any more.
func (s *paths) noteNodes(heard map[control.WireGuardKey]netip.AddrPort, nodes map[control.WireGuardKey]string, now time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for key, at := range heard {
		s.noteLocked(tunnel.Key(key), at, now)
	}
	maps.DeleteFunc(s.last, func(key tunnel.Key, _ lastPath) bool {
		gone := nodes[control.WireGuardKey(key)] == ""
		s.unsaved = s.unsaved || gone
		return gone
	})
}

// greetNodes says to the nodes that the gateway has begun anew, where they were last. Whoever has come already knows it.
func (n *Node) greetNodes(ctx context.Context) error {
	n.awaitPeers()
	stats, err := n.carrier.tunnel.Stats()
	if err != nil && ctx.Err() == nil {
		n.log.Warn("nodes are not greeted", "err", err)
	}
	here := map[tunnel.Key]bool{}
	for _, s := range stats {
		here[s.Key] = !s.Handshake.IsZero()
	}
	n.paths.mu.Lock()
	last := maps.Clone(n.paths.last)
	n.paths.mu.Unlock()
	m, _ := n.gateway.registry.Map()
	for _, node := range m.Nodes {
		l, ok := last[tunnel.Key(node.Key)]
		if !ok || here[tunnel.Key(node.Key)] || len(node.Addresses) == 0 || ctx.Err() != nil {
			continue
		}
		err := n.carrier.tunnel.SetEndpoint(tunnel.Key(node.Key), l.At)
		if err == nil {
			err = n.echo.say(node.Addresses[0], echoGreet, m.Epoch)
		}
		if err != nil {
			n.log.Debug("a node was not greeted", "node", node.Name, "err", err)
		}
		sleep(ctx, greetEvery)
	}
	<-ctx.Done()
	return nil
}

// gatewayGreets opens the gateway's stream again, at once, where the one that is open, or is being opened, was begun with a gateway
// that is gone. Whose the stream is, is told by the epoch.
func (n *Node) gatewayGreets(from netip.Addr, epoch uint64) {
	m := &n.member
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.keeps == nil || m.keeps.Gateways[0].Server != from || m.hangUp == nil {
		return
	}
	if m.stream.IsZero() && time.Since(m.begun) < greetSoon {
		time.AfterFunc(greetSoon, func() { n.gatewayGreets(from, epoch) }) // or does not find it
		return
	}
	if !m.stream.IsZero() && epoch <= m.keeps.Map.Epoch {
		return
	}
	m.hangUpLocked()
}

// hangUpLocked ends the stream, and has it opened again at once, by new sessions.
func (m *member) hangUpLocked() {
	if m.hangUp == nil {
		return
	}
	select {
	case m.again <- struct{}{}:
	default:
	}
	m.hangUp()
}

// shakePatience is how long a try of the stream waits for a handshake with the gateway before another one is made, after so many
// tries in vain. Two sides that begin one at the same time, as where a gateway greets whom it is called by, both drop what the other
// one answers, and WireGuard begins again only after 5 s. A slow link gets more time with each try.
func shakePatience(tries int) time.Duration {
	d := handshakeAgain << min(tries, 3)
	return d + rand.N(d/4)
}

// unshaken reports whether the tunnel has no session with a gateway.
func (n *Node) unshaken(g gatewayContact) bool {
	s, ok := n.gatewayStats(g)
	return ok && s.Handshake.IsZero()
}

// openStream is one stream of maps, until it ends or a new one is wanted.
func (n *Node) openStream(ctx context.Context, have *control.Map) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	n.member.mu.Lock()
	n.member.hangUp, n.member.begun = cancel, time.Now()
	patience := shakePatience(n.member.tries)
	n.member.mu.Unlock()
	impatient := time.AfterFunc(patience, func() {
		if g, _ := n.firstGateway(); n.unshaken(g) {
			cancel()
		}
	})
	defer impatient.Stop()
	return n.member.caller().Stream(ctx, have, n.gatewayEvent)
}

// rest waits before the stream is opened again, unless the gateway says that it is there.
func (n *Node) rest(ctx context.Context, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
	case <-n.member.again:
	case <-ctx.Done():
	}
}

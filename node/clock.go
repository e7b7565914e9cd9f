package node

import (
	"errors"
	"net/netip"
	"slices"
	"time"

	"github.com/meshdns/meshdns/node/control"
	"github.com/meshdns/meshdns/node/tunnel"
)

// WireGuard takes no handshake that claims to be older than the last one of the same peer. A machine whose clock was ahead and is
// right again, or that starts without a clock of its own, is therefore nobody's peer until its old time has come. So that it is
// one at once, a gateway forgets that time when the machine shows by its control key, over TLS, that it is there and that its
// handshakes are refused; and nodes whose handshakes with each other are refused have the gateway ask the other side to begin.

// clockWentBack has a gateway take handshakes of a node that claim to be older than those before.
func (n *Node) clockWentBack(of control.ControlKey) {
	g := &n.gateway
	for _, s := range g.registry.Nodes() {
		if s.Control != of || s.Invited {
			continue
		}
		n.log.Warn("a node's handshakes are refused: its clock has gone back", "node", s.Name)
		var err error
		for _, p := range g.registry.Peers() {
			if p.Node != s.Name {
				continue
			}
			err = errors.Join(err, n.carrier.tunnel.Forget(tunnel.Key(p.Key)))
			if g.relay != nil {
				err = errors.Join(err, g.relay.Forget(tunnel.Key(p.Key)))
			}
		}
		if err != nil {
			n.log.Error("its handshakes stay refused", "node", s.Name, "err", err)
		}
	}
}

// beginSession has WireGuard make a session with a peer that wants to speak to this node, if there is none.
func (n *Node) beginSession(key tunnel.Key, at netip.Addr) {
	stats, err := n.carrier.tunnel.Stats()
	if err != nil || slices.ContainsFunc(stats, func(s tunnel.PeerStats) bool {
		return s.Key == key && !s.Handshake.IsZero() && time.Since(s.Handshake) < sessionLife
	}) {
		return
	}
	if err := n.echo.nudge(at); err != nil {
		n.log.Debug("a session was not begun", "to", at, "err", err)
	}
}

// gatewayClock takes note of what the gateway's clock says.
func (n *Node) gatewayClock(says time.Time) {
	ahead := n.clock().Sub(says).Round(time.Second)
	n.member.mu.Lock()
	defer n.member.mu.Unlock()
	n.member.ahead = &ahead
}

// trusted reports whether the map is trusted at what this machine's clock says, or the gateway's: it was the gateway that said
// until when, and a clock that is wrong does not make it wrong.
func (m *member) trusted(now time.Time) bool {
	return m.keeps.trusted(now) || m.ahead != nil && m.keeps.trusted(now.Add(-*m.ahead))
}

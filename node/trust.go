package node

import (
	"fmt"
	"net/netip"
	"slices"
	"time"

	"github.com/meshdns/meshdns/node/tunnel"
)

// endpoint is where the gateway's WireGuard is tried now.
func (g gatewayContact) endpoint() netip.AddrPort {
	if g.way[portWireGuard].IsValid() {
		return g.way[portWireGuard]
	}
	return g.Endpoints[g.at%len(g.Endpoints)]
}

// relay is where packets for other nodes are sent now: at the address that the gateway itself is reached at.
func (g gatewayContact) relay() netip.AddrPort {
	if g.way[portRelay].IsValid() {
		return g.way[portRelay]
	}
	if len(g.Endpoints) > 0 {
		i := slices.IndexFunc(g.Relay, func(r netip.AddrPort) bool { return r.Addr() == g.endpoint().Addr() })
		return g.Relay[max(i, 0)]
	}
	return g.Relay[0]
}

// clock is the time that trust is measured by.
func (n *Node) clock() time.Time {
	if n.opt.clock != nil {
		return n.opt.clock()
	}
	return time.Now()
}

// streamOpened takes note of an event of the gateway's stream.
func (n *Node) streamOpened() {
	m := &n.member
	m.mu.Lock()
	fresh := m.stream.IsZero() // its end, or that of the one before, has made it so
	back := fresh && m.tries > 0
	if fresh {
		m.stream = time.Now()
	}
	m.lost, m.tries = time.Time{}, 0
	m.mu.Unlock()
	n.gatewayKnows(n.carrier.own().keys(), true)
	if fresh {
		n.registration.again() // the gateway may know nothing of this node's funnels
	}
	if !back {
		return
	}
	// The gateway may have been started anew, and its relay with it.
	n.paths.mu.Lock()
	defer n.paths.mu.Unlock()
	for _, p := range n.paths.peers {
		p.relayRestarted(time.Now())
	}
	n.paths.wake()
}

// streamEnded takes note of the stream's end, or that it could not be opened.
func (n *Node) streamEnded(why error) {
	n.member.mu.Lock()
	defer n.member.mu.Unlock()
	n.member.why = why
	if n.member.lost.IsZero() {
		n.member.lost = time.Now()
	}
	n.member.stream = time.Time{}
	n.member.tries++
}

// meetGateway makes new sessions with the gateway and its relay: one that was started anew knows none of the old ones, and
// WireGuard notices that only after 15 s. Each time the gateway's next endpoint is tried.
func (n *Node) meetGateway() {
	n.member.mu.Lock()
	g := &n.member.keeps.Gateways[0]
	if n.member.tries > 1 {
		g.turn(g.at+1, routed)
	}
	n.member.mu.Unlock()
	n.useContacts()
	if n.rotation.undecided() {
		n.tryOtherKeys()
		n.renewGateway(0)
		return
	}
	n.renewGateway(youngSession)
}

// youngSession is the age of a session with a gateway up to which it is one with the gateway of now: whoever was greeted has one.
const youngSession = time.Second

// renewGateway makes new sessions with the gateway's relay, and with the gateway itself where the one that there is is older than that.
func (n *Node) renewGateway(than time.Duration) {
	n.member.mu.Lock()
	used := n.member.keeps.Gateways[0]
	n.member.mu.Unlock()
	s, known := n.gatewayStats(used)
	young := known && time.Since(s.Handshake) < than
	for key, at := range used.places() {
		if young && key == tunnel.Key(used.Key) {
			continue
		}
		if err := n.carrier.tunnel.Renew(key, at); err != nil {
			n.log.Debug("no new session with the gateway is made", "at", at, "err", err)
		}
	}
}

// places are where the gateway and its relay are.
func (g gatewayContact) places() map[tunnel.Key]netip.AddrPort {
	list := map[tunnel.Key]netip.AddrPort{}
	if len(g.Endpoints) > 0 {
		list[tunnel.Key(g.Key)] = g.endpoint()
	}
	if len(g.Relay) > 0 {
		list[tunnel.Key(g.RelayKey)] = g.relay()
	}
	return list
}

// trusted reports whether the map still says who may be spoken to (S5).
func (m *membership) trusted(now time.Time) bool {
	return m.Map.TrustUntil.IsZero() || now.Before(m.Map.TrustUntil)
}

// gatewayKeys are the keys of those that are spoken to whatever the map's age: else there would be no way to a newer one.
func (m *membership) gatewayKeys() map[tunnel.Key]bool {
	keys := map[tunnel.Key]bool{}
	for _, g := range m.Gateways {
		keys[tunnel.Key(g.Key)] = true
	}
	return keys
}

// checkTrust has the tunnel's peers be those that are trusted now.
func (n *Node) checkTrust() {
	n.member.mu.Lock()
	trusted := n.member.trusted(n.clock())
	n.member.mu.Unlock()
	n.carrier.mu.Lock()
	changed := trusted == n.carrier.strict
	n.carrier.mu.Unlock()
	if !changed {
		return
	}
	n.log.Warn("trust in the map has changed", "trusted", trusted)
	n.useContacts()
	m, _ := n.tailnet.current()
	if err := n.carrier.setMap(m, n.findSelf(m)); err != nil {
		n.log.Error("the tunnel has not the peers that it is to have", "err", err)
	}
}

// keepStep is by how much trust has to have grown to be written down. It grows with each sign of life.
const keepStep = time.Hour

// keepTrust writes down that the map is trusted for longer.
func (n *Node) keepTrust(kept *membership) error {
	n.member.mu.Lock()
	due := kept.Map.TrustUntil.Sub(n.member.written) >= keepStep || n.member.unkept != nil
	if due {
		n.member.written = kept.Map.TrustUntil
	}
	n.member.mu.Unlock()
	if !due {
		return nil
	}
	_ = n.keep(kept) // which status tells
	return nil
}

// lostTime is after how long a gateway that is not reached is somebody's business.
const lostTime = 2 * time.Minute

// faults are what is wrong with the membership, a line each.
func (m *member) faults(now, clock time.Time) []string {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.broken != nil {
		return []string{fmt.Sprintf("this machine is in no tailnet: %v; %s", m.broken, hintOf(m.broken))}
	}
	if m.keeps == nil {
		return nil
	}
	list := doubtLines(m.doubts)
	if m.unkept != nil {
		list = append(list, fmt.Sprintf("the map is in use, and not kept for the next start: %v", m.unkept))
	}
	if !m.lost.IsZero() && now.Sub(m.lost) >= lostTime {
		list = append(list, fmt.Sprintf("the gateway %s is not reached since %s: %v", m.keeps.Gateways[0].label(), m.lost.Format(time.DateTime), m.why))
	}
	if !m.trusted(clock) {
		list = append(list, fmt.Sprintf("the gateway has confirmed the map until %s only: names resolve, and no other node is spoken to", m.keeps.Map.TrustUntil.Format(time.DateTime)))
	}
	return list
}

// label is the gateway's name or address.
func (g gatewayContact) label() string {
	if g.Name != "" {
		return g.Name
	}
	return g.Server.String()
}

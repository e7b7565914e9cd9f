package node

import (
	"bytes"
	"context"
	"net"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/meshdns/meshdns/node/control"
	"github.com/meshdns/meshdns/node/tunnel"
)

// paths is how the peers of a node that has joined are reached.
type paths struct {
	mu    sync.Mutex
	peers map[tunnel.Key]*path
	kick  chan struct{}
	asks  chan string // nodes that the gateway is to introduce us to
	links []link      // as they were last looked at
	from  []netip.Addr

	last    map[tunnel.Key]lastPath // where peers were reached directly
	unsaved bool                    // it is not on disk

	relayRenewed time.Time // when a new session with the relay was made for want of answers; followPaths alone has it
}

// The bounds of looking for paths.
const (
	maxTrials = 8 // at once
	maxAsks   = 16
	lookLinks = 5 * time.Second
)

// startPaths looks for direct paths from now on.
func (n *Node) startPaths() {
	n.startLastPaths()
	n.paths.mu.Lock()
	n.paths.peers, n.paths.kick, n.paths.asks = map[tunnel.Key]*path{}, make(chan struct{}, 1), make(chan string, maxAsks)
	n.paths.mu.Unlock()
	n.services.run("direct paths", n.followPaths)
	n.services.run("introductions", n.askForPaths)
	n.services.run("watching of the network", n.watchNetwork)
}

// tryPaths takes note of where another node may be reached directly.
func (n *Node) tryPaths(c control.Connect, asked bool) {
	m, _ := n.tailnet.current()
	node, ok := m.Node(c.Node)
	key, err := tunnel.ParseKey(node.Key)
	if !ok || err != nil {
		return // gone, or not believed
	}
	if !asked {
		n.beginSession(key, node.Addresses[0])
	}
	if n.opt.relayed {
		return
	}
	n.member.mu.Lock()
	gateway := n.member.keeps.Gateways[0]
	n.member.mu.Unlock()
	peers, relays := n.pathPeers()
	if _, ok := peers[key]; !ok {
		return
	}
	n.paths.mu.Lock()
	defer n.paths.mu.Unlock()
	p := n.paths.peers[key]
	if p == nil {
		p = newPath(relays, time.Now())
		n.paths.peers[key] = p
	}
	// What there is no route to would cost a trial, and the packets that are sent there.
	candidates := slices.DeleteFunc(candidatesOf(c.Endpoints, n.paths.links, m.Ranges(), gateway.isLocal()), func(e netip.AddrPort) bool {
		return routed(e) != nil
	})
	p.introduce(candidates, time.Now(), asked)
	n.paths.wake()
}

// wake has the paths looked at now.
func (s *paths) wake() {
	select {
	case s.kick <- struct{}{}:
	default:
	}
}

// isLocal reports whether the gateway is on this machine.
func (g gatewayContact) isLocal() bool {
	return slices.ContainsFunc(g.Endpoints, func(e netip.AddrPort) bool { return e.Addr().IsLoopback() })
}

// candidatesOf are the endpoints that are worth a trial: public ones, and private ones on a link of ours, which come first
// (S8). local: nodes of the gateway may be on this machine.
func candidatesOf(endpoints []netip.AddrPort, links []link, ranges []netip.Prefix, local bool) []netip.AddrPort {
	var near, far []netip.AddrPort
	for _, e := range endpoints {
		a := e.Addr().Unmap()
		e = netip.AddrPortFrom(a, e.Port())
		switch {
		case e.Port() < 1024 || a.Zone() != "" || rangeOf(ranges, a).IsValid() || len(near)+len(far) >= maxEndpoints:
		case a.IsLoopback() && !local, !a.IsGlobalUnicast() && !a.IsLoopback(), slices.Contains(near, e), slices.Contains(far, e):
		case a.IsPrivate() && slices.ContainsFunc(links, func(l link) bool { return l.has(a) }):
			near = append(near, e)
		case !a.IsPrivate():
			far = append(far, e)
		}
	}
	return append(near, far...)
}

// has reports whether an address is on the link.
func (l link) has(a netip.Addr) bool {
	return slices.ContainsFunc(l.addrs, func(p netip.Prefix) bool { return p.Contains(a) })
}

// followPaths looks at all paths, and does what they decide.
func (n *Node) followPaths(ctx context.Context) error {
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-n.paths.kick:
		case <-timer.C:
		}
		n.checkTrust()
		timer.Reset(n.lookAtPaths(time.Now()))
	}
}

// pathPeer is a peer that packets may go to through the gateway.
type pathPeer struct {
	name string
	at   netip.Addr // its tailnet address
	key  tunnel.Key
}

// pathPeers are all of them.
func (n *Node) pathPeers() (peers map[tunnel.Key]pathPeer, relays []netip.AddrPort) {
	n.member.mu.Lock()
	for _, g := range n.member.keeps.Gateways {
		if len(g.Relay) > 0 {
			relays = append(append(relays, g.relay()), g.Relay...) // the one in use comes first
		}
	}
	n.member.mu.Unlock()
	peers = map[tunnel.Key]pathPeer{}
	m, _ := n.tailnet.current()
	self := n.findSelf(m)
	for _, node := range m.Nodes() {
		key, err := tunnel.ParseKey(node.Key)
		if err == nil && node.Name != self && !node.Gateway && len(relays) > 0 {
			peers[key] = pathPeer{name: node.Name, at: node.Addresses[0], key: key}
		}
	}
	return peers, relays
}

// lookAtPaths is one look. It returns when the next one is due.
func (n *Node) lookAtPaths(now time.Time) time.Duration {
	wait := 2 * time.Second
	stats, err := n.carrier.tunnel.Stats()
	if err != nil {
		n.log.Error("how peers are reached is not known", "err", err)
		return wait
	}
	peers, relays := n.pathPeers()
	gateway, reached := n.firstGateway()
	m, _ := n.tailnet.current()
	n.paths.mu.Lock()
	moves := n.paths.decide(pathFacts{now: now, gateway: reached}, pathWorld{stats, peers, relays, m.Ranges(), gateway.isLocal(), tunnel.Key(n.carrier.own().keys().Key)})
	n.paths.note(peers, now)
	for key, move := range moves {
		if p := n.paths.peers[key]; move.was != p.state {
			n.log.Debug("a peer's path has changed", "node", peers[key].name, "from", move.was, "to", p.state, "failures", p.failures)
		}
	}
	n.paths.mu.Unlock()
	n.movePaths(moves, peers)
	for _, m := range moves {
		wait = min(wait, m.wait)
	}
	n.keepPathsOpen(now)
	if reached {
		n.mendRelay(now, gateway)
	}
	return wait
}

// relayMend is how often a new session with the relay is made at most, for want of answers.
const relayMend = 30 * time.Second

// mendRelay makes a new session with the relay while nobody answers who is reached through it: a relay that does not know this node, or
// where it is, drops all without a word. WireGuard itself makes one every two minutes only.
func (n *Node) mendRelay(now time.Time, g gatewayContact) {
	if now.Sub(n.paths.relayRenewed) < relayMend || !n.paths.waiting(now, refusedTime) {
		return
	}
	n.paths.relayRenewed = now
	if err := n.renewRelay(g); err != nil {
		n.log.Debug("no new session with the relay is made", "err", err)
	}
}

// renewRelay makes a new session with a gateway's relay, where it has one.
func (n *Node) renewRelay(g gatewayContact) error {
	if len(g.Relay) == 0 || g.RelayKey == (control.WireGuardKey{}) {
		return nil
	}
	return n.carrier.tunnel.Renew(tunnel.Key(g.RelayKey), g.relay())
}

// pathWorld is what all paths have in common.
type pathWorld struct {
	stats  []tunnel.PeerStats
	peers  map[tunnel.Key]pathPeer
	relays []netip.AddrPort
	ranges []netip.Prefix
	local  bool // the gateway is on this machine
	own    tunnel.Key
}

// decide asks each path what is to be done.
func (s *paths) decide(f pathFacts, w pathWorld) map[tunnel.Key]pathMove {
	trials := 0
	for key, p := range s.peers {
		if _, ok := w.peers[key]; !ok {
			delete(s.peers, key)
		} else if p.state == trying {
			trials++
		}
	}
	moves := map[tunnel.Key]pathMove{}
	for _, one := range w.stats {
		if _, ok := w.peers[one.Key]; !ok {
			continue
		}
		p := s.peers[one.Key]
		if p == nil {
			p = newPath(w.relays, f.now)
			s.peers[one.Key] = p
		}
		was := p.state
		p.relays, p.second = w.relays, bytes.Compare(w.own[:], one.Key[:]) > 0
		f.stats, f.room, f.last = one, trials < maxTrials, netip.AddrPort{}
		if l, ok := s.last[one.Key]; ok && (p.state == relayed || p.state == recalled) {
			for _, at := range candidatesOf([]netip.AddrPort{l.At}, s.links, w.ranges, w.local) {
				f.last = at
			}
		}
		m := p.step(f)
		m.was = was
		moves[one.Key] = m
		if was != trying && p.state == trying {
			trials++
		}
	}
	return moves
}

// movePaths does what was decided.
func (n *Node) movePaths(moves map[tunnel.Key]pathMove, peers map[tunnel.Key]pathPeer) {
	set := false
	for key, m := range moves {
		var err error
		switch {
		case m.to.IsValid() && m.renew:
			err = n.carrier.tunnel.Renew(key, m.to)
		case m.to.IsValid():
			err = n.carrier.tunnel.SetEndpoint(key, m.to)
		}
		if err != nil {
			n.log.Debug("a path was not set", "node", peers[key].name, "to", m.to, "err", err)
		}
		set = set || m.to.IsValid()
	}
	if set {
		n.rebasePaths(moves)
	}
	for key, m := range moves {
		if m.nudge {
			if err := n.echo.nudge(peers[key].at); err != nil {
				n.log.Debug("a node was not asked whether it is there", "node", peers[key].name, "err", err)
			}
		}
		if m.ask {
			select {
			case n.paths.asks <- peers[key].name:
			default: // it is asked next time
			}
		}
	}
}

// rebasePaths has the paths count from now on what is received: what came before says nothing of a new endpoint.
func (n *Node) rebasePaths(moves map[tunnel.Key]pathMove) {
	stats, err := n.carrier.tunnel.Stats()
	if err != nil {
		return // the next look says so
	}
	n.paths.mu.Lock()
	defer n.paths.mu.Unlock()
	for _, s := range stats {
		if p := n.paths.peers[s.Key]; p != nil && moves[s.Key].to.IsValid() {
			p.based(s.Received)
		}
	}
}

// keepPathsOpen has WireGuard keep the paths open that need it.
func (n *Node) keepPathsOpen(now time.Time) {
	n.paths.mu.Lock()
	keep := map[tunnel.Key]time.Duration{}
	for key, p := range n.paths.peers {
		keep[key] = p.keepalive(now)
	}
	n.paths.mu.Unlock()
	if err := n.carrier.keepOpen(keep); err != nil {
		n.log.Warn("paths are not kept open", "err", err)
	}
}

// askForPaths has the gateway introduce this node to others, one after another.
func (n *Node) askForPaths(ctx context.Context) error {
	for {
		select {
		case <-ctx.Done():
			return nil
		case name := <-n.paths.asks:
			c, err := n.member.caller().Connect(ctx, name)
			if err != nil {
				n.log.Debug("the gateway did not introduce us", "node", name, "err", err)
				continue
			}
			n.tryPaths(c, true)
		}
	}
}

// watchNetwork has paths begin anew, and the gateway know, when the machine is in another network.
func (n *Node) watchNetwork(ctx context.Context) error {
	for first := true; ctx.Err() == nil; first = false {
		links, err := machineLinks()
		from := defaultSources()
		n.paths.mu.Lock()
		changed := err == nil && !(slices.EqualFunc(links, n.paths.links, sameLink) && slices.Equal(from, n.paths.from))
		if changed {
			n.paths.links, n.paths.from = links, from
		}
		if changed && !first {
			for _, p := range n.paths.peers {
				p.moved(time.Now())
			}
		}
		n.paths.mu.Unlock()
		if changed && !first {
			n.log.Info("the network has changed")
			if err := n.reportOnce(ctx); err != nil {
				n.log.Debug("the gateway was not told where this node is", "err", err)
			}
		}
		sleep(ctx, lookLinks)
	}
	return nil
}

func sameLink(a, b link) bool { return a.name == b.name && slices.Equal(a.addrs, b.addrs) }

// defaultSources are the addresses that packets to the world come from.
func defaultSources() []netip.Addr {
	var list []netip.Addr
	for _, to := range []string{"192.0.2.1:9", "[2001:db8::1]:9"} {
		conn, err := net.Dial("udp", to) // which sends nothing: it asks the routing table
		if err != nil {
			continue
		}
		list = append(list, addrPortOf(conn.LocalAddr()).Addr())
		conn.Close()
	}
	return list
}

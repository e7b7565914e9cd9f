package node

import (
	"context"
	"net/netip"
	"time"

	"github.com/meshdns/meshdns/node/control"
	"github.com/meshdns/meshdns/node/tunnel"
)

// The times at which the gateway looks at its tunnel.
const (
	lookPending = 200 * time.Millisecond // while a key has to complete a handshake
	lookPeers   = 2 * time.Second        // where nodes are is what a gateway that is started anew greets them by
	// lookRest is how many times as long as a look took it is until the next one: those who join at the same time share one.
	lookRest = 4
	// peersTime bounds how long a call waits for the tunnel to have new peers.
	peersTime = 5 * time.Second
)

// wakeGateway has tendGateway look at once.
func (n *Node) wakeGateway() {
	select {
	case n.gateway.kick <- struct{}{}:
	default:
	}
}

// awaitPeers waits until the tunnel has the registry's peers of now: what a key sends that is no peer's yet is dropped, and
// WireGuard sends it again after 5 s only.
func (n *Node) awaitPeers() {
	g := &n.gateway
	done := make(chan struct{})
	g.mu.Lock()
	g.waiting = append(g.waiting, done)
	g.mu.Unlock()
	n.wakeGateway()
	timer := time.NewTimer(peersTime)
	defer timer.Stop()
	select {
	case <-done:
	case <-timer.C:
	case <-n.services.ctx.Done(): // nobody looks any more
	}
}

// joined has the tunnel know whoever has a place now, or other keys.
func (n *Node) joined() {
	if n.opt.joined != nil {
		n.opt.joined()
	}
	n.awaitPeers()
}

// takeWaiting are those who wait for a look that begins now.
func (g *gateway) takeWaiting() []chan struct{} {
	g.mu.Lock()
	defer g.mu.Unlock()
	list := g.waiting
	g.waiting = nil
	return list
}

// tendGateway keeps the tunnel's and the relay's peers those of the registry, and the registry's view of nodes that of the
// tunnel: who has completed a handshake, and where packets come from.
func (n *Node) tendGateway(ctx context.Context) error {
	var heard time.Time // when the tunnel was asked last
	var spare spare
	var followed *control.Map
	for {
		begun := time.Now()
		waiting := n.gateway.takeWaiting()
		m, changed := n.gateway.registry.Map()
		if m != followed { // not where changed is closed: at the same time somebody may wait, and be seen first
			n.followRegistry(m)
			followed = m
		}
		spare.keep(len(m.Nodes))
		pending, err := n.tendPeers(m)
		for _, done := range waiting {
			close(done)
		}
		wait := lookPeers
		if pending && n.gateway.registry.Fault() == nil {
			wait = lookPending
		}
		// Not at each join: the answer is as long as the peers are many.
		if err == nil && time.Since(heard) >= wait {
			heard = time.Now()
			err = n.hearPeers(ctx, m)
			if !pending {
				spare.look()
			}
		}
		if err != nil {
			n.log.Error("the gateway's peers are not those of the registry", "err", err)
		}
		sleep(ctx, min(lookRest*time.Since(begun), lookPending))
		timer := time.NewTimer(wait - min(wait, time.Since(heard)))
		select {
		case <-ctx.Done():
			timer.Stop()
			return nil
		case <-changed:
		case <-n.gateway.kick:
		case <-timer.C:
		}
		timer.Stop()
	}
}

// followRegistry takes a map of the registry into use.
func (n *Node) followRegistry(told *control.Map) {
	m, err := mapFromGateway(told, believeAll)
	if err != nil {
		n.badMap(err)
		return
	}
	n.newMap(m)
	n.gateway.funnels.again()
}

// tendPeers has the tunnel and the relay have the registry's peers. pending reports whether a key has still to complete a
// handshake.
func (n *Node) tendPeers(m *control.Map) (pending bool, err error) {
	g := &n.gateway
	own := n.carrier.secrets.keys().Key
	if g.overTLS != nil {
		g.overTLS.sweep()
	}
	known := knownKeys(m)
	var list []tunnel.Peer
	var keys []tunnel.Key
	for _, p := range g.registry.Peers() {
		if p.Key == own {
			continue
		}
		one := tunnel.Peer{Key: tunnel.Key(p.Key)}
		for _, a := range p.Addresses {
			one.AllowedIPs = append(one.AllowedIPs, netip.PrefixFrom(a, a.BitLen()))
		}
		list = append(list, one)
		if p.Node != "" {
			keys = append(keys, one.Key)
			pending = pending || !known[p.Key]
		}
	}
	if err := n.carrier.setPeers(list); err != nil {
		return pending, err
	}
	if g.relay != nil {
		return pending, g.relay.SetPeers(keys)
	}
	return pending, nil
}

// knownKeys are those of the nodes in a map.
func knownKeys(m *control.Map) map[control.WireGuardKey]bool {
	known := make(map[control.WireGuardKey]bool, len(m.Nodes))
	for _, node := range m.Nodes {
		known[node.Key] = true
	}
	return known
}

// hearPeers has the registry know which keys have completed a handshake, and where packets come from.
func (n *Node) hearPeers(ctx context.Context, m *control.Map) error {
	g := &n.gateway
	stats, err := n.carrier.tunnel.Stats()
	if err != nil {
		return err
	}
	known, nodes := knownKeys(m), map[control.WireGuardKey]string{}
	for _, p := range g.registry.Peers() {
		nodes[p.Key] = p.Node
	}
	var shook []control.WireGuardKey
	heard := map[control.WireGuardKey]netip.AddrPort{}
	for _, s := range stats {
		key := control.WireGuardKey(s.Key)
		if nodes[key] == "" || s.Handshake.IsZero() {
			continue
		}
		if !known[key] {
			shook = append(shook, key)
		}
		if s.Endpoint.IsValid() && time.Since(s.Handshake) < sessionLife && !g.overTLS.isSource(s.Endpoint) {
			g.registry.Seen(nodes[key], s.Endpoint)
			heard[key] = s.Endpoint
		}
	}
	n.paths.noteNodes(heard, nodes, time.Now())
	if len(shook) == 0 {
		return nil
	}
	_, err = g.registry.Handshaken(ctx, shook...)
	return err
}

// sessionLife is for how long after its handshake a session may carry packets (REJECT_AFTER_TIME of WireGuard).
const sessionLife = 180 * time.Second

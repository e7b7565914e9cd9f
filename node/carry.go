package node

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/meshdns/meshdns/node/tunnel"
)

// carrier is this node's tunnel and who its peers are.
type carrier struct {
	tunnel  *tunnel.Tunnel // nil: none runs
	secrets secrets
	shared  preshared // set before the tunnel is
	joined  bool      // the map is a gateway's

	proxy netip.AddrPort // of the proxy for programs of this machine; invalid: none runs

	mu     sync.Mutex
	fault  error                        // why none runs though one is wanted, or what it did not take
	lacks  []error                      // parts that could not be started
	extra  []tunnel.Peer                // besides those of the map, unless it has them: a relay's endpoint, the gateway
	shut   []uint16                     // ports of 127.0.0.1 that are for this machine's programs alone
	places map[tunnel.Key]tunnel.Peer   // that say where a peer of the map is reached at first, and how it is kept alive
	peers  []tunnel.Peer                // as the tunnel has them
	open   map[tunnel.Key]time.Duration // keepalives of direct paths
	only   map[tunnel.Key]bool          // nobody but these is spoken to (S5); nil: everybody in the map is
	strict bool                         // the tunnel's peers are those
}

// wanted reports whether the map has something for a tunnel of ours to do: this machine is in it, with its own key.
func tunnelWanted(mode string, m *Map, self string, own tunnel.Key) (wanted bool, problem string) {
	n, ok := m.Node(self)
	switch {
	case mode == string(tunnel.Off) || !ok || n.Key == "":
		return false, ""
	case n.Key != own.String():
		return false, fmt.Sprintf("the map has another key for %s than this machine's, so no tunnel runs; write this one: %s", n.Name, own)
	}
	return true, ""
}

// peersOf are the WireGuard peers of a node: everybody in the map who has a key. An endpoint that is a name is left to
// whoever looks it up.
func peersOf(m *Map, self string) []tunnel.Peer {
	var peers []tunnel.Peer
	for _, n := range m.Nodes() {
		if n.Name == self || n.Key == "" {
			continue
		}
		key, err := tunnel.ParseKey(n.Key)
		if err != nil {
			continue // which the map's check has kept out
		}
		p := tunnel.Peer{Key: key}
		for _, a := range n.Addresses {
			p.AllowedIPs = append(p.AllowedIPs, netip.PrefixFrom(a, a.BitLen()))
		}
		for _, e := range n.Endpoints {
			if at, err := netip.ParseAddrPort(e); err == nil && !p.Endpoint.IsValid() {
				p.Endpoint = at
			}
		}
		peers = append(peers, p)
	}
	return peers
}

// startTunnel brings the tunnel up where the map has this machine in it. A tunnel that cannot be had costs no name: the
// resolver goes on, and status says what is missing.
func (n *Node) startTunnel(ctx context.Context) error {
	s, err := loadSecrets(n.opt.Paths.State)
	if err != nil {
		return err
	}
	c := &n.carrier
	c.secrets, c.places = s, map[tunnel.Key]tunnel.Peer{}
	if err := n.openRotation(); err != nil {
		return err
	}
	s = c.secrets
	m := n.tailnet.static
	self := n.findSelf(m)
	wanted, problem := tunnelWanted(n.cfg.Tunnel.Mode, m, self, s.wireGuard.Public())
	if problem != "" && n.member.joined() {
		wanted, problem = true, "" // the gateway's newer map may have it, and cannot be had without a tunnel
	}
	if n.opt.Try || !wanted {
		if problem != "" {
			c.fail(fmt.Errorf("%s", problem))
			n.report("%s", problem)
		}
		return nil
	}
	node, _ := m.Node(self)
	if c.shared, err = loadPreshared(n.cfg.Tunnel.Preshared); err != nil {
		c.fail(err) // with no secrets in their place: who wants them wants no session without
		n.report("no tunnel: %v", err)
		return nil
	}
	c.joined = n.member.joined()
	t, err := tunnel.New(tunnel.Config{
		Mode:      tunnel.Mode(n.tunnelMode()),
		Key:       s.wireGuard,
		Addresses: node.Addresses,
		Ranges:    m.Ranges(),
		Port:      n.cfg.Tunnel.Port,
		StateDir:  n.opt.Paths.State,
		Loopback:  c.mayLoop,
		Exempt:    n.serviceAddresses(m),
		Bridges:   n.containerBridges(),
		Logger:    n.log,
	})
	if err == nil {
		err = t.Start(ctx)
	}
	if err != nil {
		c.fail(fmt.Errorf("starting the tunnel: %w", err))
		n.report("no tunnel: %v", err)
		return nil
	}
	c.tunnel = t
	n.undo.push("closing the tunnel", func(context.Context) error { return t.Close() })
	n.report("tunnel %s", t.Mode())
	if n.gateway.registry == nil {
		return nil
	}
	if err := n.carrier.setPolicy(m, self); err != nil {
		n.log.Debug("nodes are not known yet", "err", err)
		return nil
	}
	n.knowNodes()
	return nil
}

// knowNodes has a gateway's tunnel and relay know its nodes as soon as they listen: a handshake of one that is not known is lost, and
// WireGuard begins again only after 5 s.
func (n *Node) knowNodes() {
	told, _ := n.gateway.registry.Map()
	if _, err := n.tendPeers(told); err != nil {
		n.log.Debug("nodes are not known yet", "err", err)
	}
}

// serviceAddresses are the addresses in the tailnet's ranges that other links may be asked at: the one that containers ask,
// which has a filter of its own (S9).
func (n *Node) serviceAddresses(m *Map) []netip.Addr {
	a, err := serviceAddress(n.cfg.DNS.Service, m, nil)
	if err != nil || n.cfg.DNS.Containers == containersOff || !rangeOf(m.Ranges(), a).IsValid() {
		return nil
	}
	return []netip.Addr{a}
}

// containerBridges are the links whose containers may send into the tailnet, as they are now.
func (n *Node) containerBridges() []string {
	list := slices.Clone(n.cfg.DNS.Bridges)
	bridges, err := machineBridges()
	if err != nil {
		n.log.Debug("the machine's bridges are not known", "err", err)
	}
	for _, b := range bridges {
		if engineBridge.MatchString(b.name) && !slices.Contains(list, b.name) {
			list = append(list, b.name)
		}
	}
	return list
}

// tunnelMode is the configured one. Without root only the kind inside this process is to be had.
func (n *Node) tunnelMode() string {
	if n.cfg.Tunnel.Mode == string(tunnel.Auto) && !n.opt.Root {
		return string(tunnel.Userspace)
	}
	return n.cfg.Tunnel.Mode
}

// mayLoop reports whether connections of other nodes may go on to a port of 127.0.0.1, where the tunnel is inside this
// process. What the node itself listens on there is not for them: through its proxy they would speak in this node's name.
func (c *carrier) mayLoop(port uint16) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return !slices.Contains(c.shut, port)
}

// machineAddress is where programs of this machine listen for each other.
func machineAddress() netip.Addr { return netip.AddrFrom4([4]byte{127, 0, 0, 1}) }

// shutPort leaves a port to this machine's programs.
func (c *carrier) shutPort(port uint16) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.shut = append(c.shut, port)
}

// fail takes note of what the tunnel lacks; nil: nothing.
func (c *carrier) fail(err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.fault = err
}

// problems are what is wrong with the tunnel, a line each.
func (c *carrier) problems() []string {
	c.mu.Lock()
	defer c.mu.Unlock()
	var list []string
	for _, err := range append([]error{c.fault}, c.lacks...) {
		if err != nil {
			list = append(list, err.Error())
		}
	}
	return list
}

// add takes note of a part that could not be started.
func (c *carrier) add(err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.lacks = append(c.lacks, err)
}

// setPeers has these be the tunnel's peers: a gateway's are those of its registry, not of the map alone.
func (c *carrier) setPeers(peers []tunnel.Peer) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.setLocked(peers)
}

func (c *carrier) setLocked(peers []tunnel.Peer) error {
	c.peers = peers
	list := slices.Clone(peers)
	for i := range list {
		if d := c.open[list[i].Key]; d > 0 {
			list[i].Keepalive = d
		}
	}
	c.fault = c.tunnel.SetPeers(list)
	return c.fault
}

// keepOpen has these peers be sent something from time to time; zero: not.
func (c *carrier) keepOpen(keep map[tunnel.Key]time.Duration) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	maps.DeleteFunc(keep, func(_ tunnel.Key, d time.Duration) bool { return d == 0 })
	if maps.Equal(keep, c.open) {
		return nil
	}
	c.open = keep
	return c.setLocked(c.peers)
}

// setMap has the tunnel's peers be those of a map.
func (c *carrier) setMap(m *Map, self string) error {
	if c.tunnel == nil {
		return nil
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	peers := peersOf(m, self)
	c.strict = c.only != nil
	if c.strict {
		peers = slices.DeleteFunc(peers, func(p tunnel.Peer) bool { return !c.only[p.Key] })
	}
	for i := range peers {
		if at, ok := c.places[peers[i].Key]; ok {
			peers[i].Endpoint, peers[i].Keepalive = at.Endpoint, at.Keepalive
		}
	}
	if c.fault = c.shared.share(peers, m, self, c.joined); c.fault != nil {
		return c.fault
	}
	policy := c.tunnel.SetPolicy(m.access.rules(m, self))
	for _, e := range c.extra {
		if !slices.ContainsFunc(peers, func(p tunnel.Peer) bool { return p.Key == e.Key }) {
			peers = append(peers, e)
		}
	}
	c.fault = errors.Join(policy, c.setLocked(peers))
	return c.fault
}

// setPolicy has the tunnel let in what the map's policy allows.
func (c *carrier) setPolicy(m *Map, self string) error {
	if c.tunnel == nil {
		return nil
	}
	return c.tunnel.SetPolicy(m.access.rules(m, self))
}

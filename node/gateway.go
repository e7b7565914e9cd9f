package node

import (
	"cmp"
	"context"
	"crypto/hkdf"
	"crypto/sha256"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"path/filepath"
	"slices"
	"sync"

	"github.com/meshdns/meshdns/funnel"
	"github.com/meshdns/meshdns/node/control"
	"github.com/meshdns/meshdns/node/tunnel"
	"github.com/meshdns/meshdns/resolver"
)

// gateway is what a node does besides, where gateway.zone is configured: it keeps the registry, hands out the map, relays
// packets, answers for the zone in public and takes connections on 443.
type gateway struct {
	registry  *control.Registry // nil: this node is no gateway
	server    *control.Server
	relay     *tunnel.Relay
	relayKey  tunnel.Secret
	authority *resolver.Authority
	front     *funnel.Front
	overTLS   *tlsGate // nil: none
	funnels   *funnelGate
	public    publicState
	ca        *tailnetCA
	listen    []netip.Addr
	kick      chan struct{} // the tunnel's peers are other ones now

	mu      sync.Mutex
	waiting []chan struct{} // for the tunnel to have them
}

// registryFile is the registry below the state directory.
const registryFile = "registry.db"

// relayPort is how far the relay's port is above WireGuard's.
const relayPort = 1

// The gateway's own labels: no node may have their names (S12).
const (
	serverLabel = "ns" // ns1 and on, by public address
	maxServers  = 8
)

// openGateway opens the registry, which the map comes from where this node is a gateway.
func (n *Node) openGateway(ctx context.Context) error {
	g := &n.gateway
	zone := n.cfg.Gateway.Zone
	if zone == "" || n.opt.Try {
		return nil
	}
	var err error
	if n.carrier.secrets, err = loadSecrets(n.opt.Paths.State); err != nil {
		return err
	}
	if g.relayKey, err = relaySecret(n.carrier.secrets); err != nil {
		return err
	}
	if g.listen, err = n.gatewayAddresses(); err != nil {
		return err
	}
	drawn, err := loadRanges(n.opt.Paths.State)
	if err != nil {
		return err
	}
	keys := n.carrier.secrets.keys()
	self := hostLabel(n.host())
	ranges := []netip.Prefix{drawn.V4, drawn.V6}
	g.kick = make(chan struct{}, 1)
	g.registry, err = control.OpenRegistry(ctx, control.RegistryConfig{
		File:   filepath.Join(n.opt.Paths.State, registryFile),
		Zone:   foldName(zone),
		Ranges: ranges,
		Template: control.Invite{
			Gateway:   keys.Key,
			Control:   keys.Control,
			Server:    ranges[0].Addr().Next(),
			Endpoints: ports(n.reached(), n.reachedPort()),
			Carrier:   firstPort(n.reached(), n.publicPort()),
		},
		CheckName: checkNodeName,
		MayHave:   n.mayTakeNames,
		Now:       n.clock,
		Issuers:   issuerHosts(n.cfg.Gateway.Issuers),
		Lock:      n.cfg.Lock,
		Logger:    n.log,
	})
	if err != nil {
		return fmt.Errorf("opening the registry of nodes: %w", err)
	}
	n.undo.push("closing the registry", func(context.Context) error { return g.registry.Close() })
	if err := g.registry.Put(ctx, n.gatewayNode(self, keys, ranges)); err != nil {
		return err
	}
	return n.readPolicy(ctx)
}

// maxPolicy is the size in bytes up to which a policy is read.
const maxPolicy = 48 << 10

// readPolicy has the map carry the policy that the gateway's owner wrote. One that is wrong changes nothing.
func (n *Node) readPolicy(ctx context.Context) error {
	text := ""
	if path := n.cfg.Gateway.Policy; path != "" {
		data, err := readFile(path, maxPolicy)
		if err != nil {
			return err
		}
		text = string(data)
	}
	told, _ := n.gateway.registry.Map()
	next := *told
	next.Policy = text
	if _, err := mapFromGateway(&next, believeAll); err != nil {
		return fmt.Errorf("reading %s: %w", n.cfg.Gateway.Policy, err)
	}
	return n.gateway.registry.Policy(ctx, text)
}

// gatewayNode is this gateway as others see it.
func (n *Node) gatewayNode(name string, keys control.Keys, ranges []netip.Prefix) control.Node {
	node := control.Node{
		Name:      name,
		Key:       keys.Key,
		Control:   keys.Control,
		Endpoints: ports(n.reached(), n.reachedPort()),
		Gateway: &control.GatewayNode{
			Public:   n.cfg.Gateway.Public,
			Relay:    ports(n.reached(), n.reachedPort()+relayPort),
			RelayKey: control.WireGuardKey(n.gateway.relayKey.Public()),
		},
	}
	for _, p := range ranges {
		node.Addresses = append(node.Addresses, p.Addr().Next())
	}
	return node
}

// reached are the addresses at which nodes reach this gateway.
func (n *Node) reached() []netip.Addr {
	if n.opt.reached != nil {
		return n.opt.reached
	}
	return n.cfg.Gateway.Public
}

// reachedPort is the one at which nodes reach this gateway's WireGuard.
func (n *Node) reachedPort() uint16 {
	if n.opt.udp != 0 {
		return n.opt.udp
	}
	return n.cfg.Tunnel.Port
}

// publicPort is where visitors come in, and nodes without UDP.
func (n *Node) publicPort() uint16 {
	return cmp.Or(n.cfg.Gateway.Ports.HTTPS, publicPort)
}

// checkNodeName says why a node may not have a name (S12).
func checkNodeName(name string, _ []string) error {
	label, msg := checkLabel(name)
	if msg == "" && label != name {
		msg = "write it as " + label
	}
	if msg == "" {
		msg = refusedName(label, false)
	}
	if msg == "" && isServerLabel(label) {
		msg = "the gateway's own name as the zone's name server"
	}
	if msg != "" {
		return fmt.Errorf("the name %q: %s", name, msg)
	}
	return nil
}

// mayTakeNames says why a node may not have service names.
func (n *Node) mayTakeNames(node control.Node, names []string) error {
	m, _ := n.tailnet.current()
	machine, _ := m.Node(node.Name)
	return m.showing.mayTake(machine, names)
}

func isServerLabel(label string) bool {
	for i := range maxServers {
		if label == serverName(i) {
			return true
		}
	}
	return false
}

// serverName is the label of the zone's name server with the i-th public address.
func serverName(i int) string { return fmt.Sprintf("%s%d", serverLabel, i+1) }

// relaySecret is the WireGuard key of the relay's port, which no file needs to hold.
func relaySecret(s secrets) (tunnel.Secret, error) {
	key, err := hkdf.Key(sha256.New, s.control.Seed(), nil, "meshdns relay", len(tunnel.Secret{}))
	if err != nil {
		return tunnel.Secret{}, fmt.Errorf("making the relay's key: %w", err)
	}
	return tunnel.Secret(key), nil
}

// publicPort is where visitors and the carriers of nodes without UDP come in.
const publicPort = 443

// ports are addresses with a port.
func ports(addrs []netip.Addr, port uint16) []netip.AddrPort {
	var list []netip.AddrPort
	for _, a := range addrs {
		list = append(list, netip.AddrPortFrom(a, port))
	}
	return list
}

func firstPort(addrs []netip.Addr, port uint16) netip.AddrPort {
	if len(addrs) == 0 {
		return netip.AddrPort{}
	}
	return netip.AddrPortFrom(addrs[0], port)
}

// gatewayAddresses are where the gateway listens: as configured, or at the addresses that packets to the world come from.
func (n *Node) gatewayAddresses() ([]netip.Addr, error) {
	if len(n.cfg.Gateway.Listen) > 0 {
		return n.cfg.Gateway.Listen, nil
	}
	var list []netip.Addr
	for network, to := range map[string]string{"udp4": "192.0.2.1:9", "udp6": "[2001:db8::1]:9"} {
		conn, err := net.Dial(network, to) // which sends nothing: it asks the routing table
		if err != nil {
			continue
		}
		// A route that outlived its link's address leaves only loopback's, or the link's own.
		if a := conn.LocalAddr().(*net.UDPAddr).AddrPort().Addr().Unmap(); a.IsGlobalUnicast() {
			list = append(list, a)
		}
		conn.Close()
	}
	if len(list) == 0 {
		return nil, hinted(nil, errors.New("the gateway has no address to listen on: there is no default route"), "set gateway.listen")
	}
	slices.SortFunc(list, netip.Addr.Compare)
	return list, nil
}

// startGateway starts what a gateway does, once the tunnel is up. A port that cannot be had is said in status, and costs
// only what it is for.
func (n *Node) startGateway(ctx context.Context) error {
	g := &n.gateway
	if g.registry == nil {
		return nil
	}
	var err error
	n.saveMemory()
	n.services.run("registry", g.registry.Run)
	if n.carrier.tunnel == nil {
		return hinted(nil, errors.New("a gateway needs a tunnel, and none could be started"), "see: meshdns doctor; set tunnel.mode")
	}
	if g.funnels, err = n.newFunnelGate(); err != nil {
		return err
	}
	g.server = control.NewServer(control.ServerConfig{
		Registry: g.registry, Key: n.carrier.secrets.control, Reach: n.mayReach, Joined: n.joined,
		Publish: n.publish, Query: n.queryPublic, Pace: int(n.cfg.Gateway.Pace), Logger: n.log,
		Register: n.registerFunnels, Try: n.tryFunnel, Left: g.funnels.left,
		Certify: n.certifyNode, Root: func(context.Context) ([]byte, error) { return g.ca.rootPEM() },
	})
	m, _ := g.registry.Map()
	g.ca = n.newTailnetCA(m.Zone)
	server := netip.AddrPortFrom(m.Ranges[0].Addr().Next(), control.Port)
	var ln net.Listener
	ln, err = n.carrier.tunnel.Listen(ctx, "tcp", server)
	if err != nil {
		return fmt.Errorf("listening for nodes: %w", err)
	}
	if err := n.startAuthority(ctx); err != nil {
		ln.Close()
		return err
	}
	n.services.run("control server", func(ctx context.Context) error { return g.server.Serve(ctx, ln) })
	n.startFaces(ctx, server.Addr())
	n.startRelay(ctx)
	n.startFront(ctx)
	n.startFunnels()
	n.startLastPaths()
	n.services.run("gateway", n.tendGateway)
	n.services.run("greetings", n.greetNodes)
	n.report("gateway of %s: nodes at %s, public at %v", m.Zone, server, g.listen)
	return nil
}

// lacks takes note of a part of the gateway that could not be started.
func (n *Node) lacks(what string, err error) {
	n.carrier.add(fmt.Errorf("%s: %w", what, err))
	n.report("%s: %v", what, err)
}

// startRelay passes packets between nodes that do not reach each other.
func (n *Node) startRelay(ctx context.Context) {
	g := &n.gateway
	var err error
	g.relay, err = tunnel.NewRelay(tunnel.RelayConfig{Key: g.relayKey, Allow: n.mayRelay, Met: n.introduce, Logger: n.log})
	var conns []*net.UDPConn
	for _, at := range ports(g.listen, n.cfg.Tunnel.Port+relayPort) {
		if err != nil {
			break
		}
		var conn *net.UDPConn
		if conn, err = net.ListenUDP("udp", net.UDPAddrFromAddrPort(at)); err == nil {
			conns = append(conns, conn)
		}
	}
	if err != nil {
		for _, c := range conns {
			c.Close()
		}
		g.relay = nil
		n.lacks("the relay for nodes without a direct path", err)
		return
	}
	n.knowNodes()
	n.services.run("relay", func(ctx context.Context) error { return g.relay.Serve(ctx, conns...) })
}

// mayReach reports whether policy lets a node reach anything of another one.
func (n *Node) mayReach(from, to string) bool {
	m, _ := n.tailnet.current()
	a, knownA := m.Node(from)
	b, knownB := m.Node(to)
	return knownA && knownB && m.access.reaches(a, b)
}

// mayRelay reports whether two nodes' packets are relayed: where either may reach the other, since answers have to come back.
func (n *Node) mayRelay(from, to tunnel.Key) bool {
	m, _ := n.tailnet.current()
	keyA, keyB := from.String(), to.String()
	var a, b Machine
	for _, node := range m.Nodes() {
		switch node.Key {
		case keyA:
			a = node
		case keyB:
			b = node
		}
	}
	return a.Name != "" && b.Name != "" && (m.access.reaches(a, b) || m.access.reaches(b, a))
}

// introduce has two nodes that speak through the relay try each other directly.
func (n *Node) introduce(a, b tunnel.Key) {
	m, _ := n.gateway.registry.Map()
	names := map[control.WireGuardKey]string{}
	for _, node := range m.Nodes {
		names[node.Key] = node.Name
	}
	from, to := names[control.WireGuardKey(a)], names[control.WireGuardKey(b)]
	if from != "" && to != "" {
		n.gateway.server.Introduce(from, to)
		n.gateway.server.Introduce(to, from)
	}
}

// startAuthority answers for the zone in public.
func (n *Node) startAuthority(ctx context.Context) error {
	g := &n.gateway
	m, _ := g.registry.Map()
	var err error
	g.authority, err = resolver.NewAuthority(resolver.AuthorityConfig{
		Zone: m.Zone, View: n.publicView(nil, nil), Unsure: g.registry.Unsure, Pinned: n.cfg.Gateway.Pinned, Logger: n.log,
	})
	if err == nil {
		err = n.publish() // what it served when it ended, before anybody can ask
	}
	if err != nil {
		return fmt.Errorf("serving %s in public: %w", m.Zone, err)
	}
	n.services.run("values for CAs", n.tendPublic)
	for _, at := range ports(g.listen, cmp.Or(n.cfg.Gateway.Ports.DNS, portDNS)) {
		s, err := listenDNS(ctx, at, readers())
		if err != nil {
			n.lacks("the zone's public name server", err)
			continue
		}
		for _, conn := range s.udp {
			n.services.run(fmt.Sprintf("public name server at %s/udp", at), func(ctx context.Context) error { return g.authority.ServeUDP(ctx, conn) })
		}
		n.services.run(fmt.Sprintf("public name server at %s/tcp", at), func(ctx context.Context) error { return g.authority.ServeTCP(ctx, s.tcp) })
	}
	return nil
}

// startFront takes public TLS connections. Names that nobody has go to the sites that the machine serves already.
func (n *Node) startFront(ctx context.Context) {
	g := &n.gateway
	cfg := funnel.FrontConfig{Logger: n.log}
	if target := n.cfg.Gateway.Fallback; target != "" {
		cfg.Fallback = passTo(target, n.log)
	}
	g.front = funnel.NewFront(cfg)
	n.startTLSGate()
	for _, at := range ports(g.listen, n.publicPort()) {
		ln, err := new(net.ListenConfig).Listen(ctx, "tcp", at.String())
		if err != nil {
			if isAddrInUse(err) {
				err = &heldError{addr: at, holder: portHolder(at), err: err}
			}
			n.lacks("the public port", err)
			continue
		}
		n.services.run(fmt.Sprintf("public port at %s", at), func(ctx context.Context) error { return g.front.Serve(ctx, ln) })
	}
}

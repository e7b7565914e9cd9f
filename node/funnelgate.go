package node

import (
	"cmp"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/meshdns/meshdns/funnel"
	"github.com/meshdns/meshdns/node/control"
)

// ingressPort is the TCP port on every node's tailnet addresses that takes visitors from gateways, and from nobody else.
const ingressPort = 41444

// The times of what nodes show.
const (
	// wishGrace is how long what a node shows outlives its stream: a node that is started anew is back by then.
	wishGrace  = 15 * time.Second
	proveTime  = 6 * time.Second // for the domains of a call, which itself may take 10 s
	settleRest = 30 * time.Second
)

// funnelGate is a gateway's side of what nodes show to the world. What they want is here; what becomes of it is decided in one
// place, and anew whenever something is another thing: a wish, the map, the policy, a domain, a port.
type funnelGate struct {
	relay  *funnel.Relay
	proofs proofs
	wake   chan struct{}
	prove  chan struct{} // tests: domains are looked up again, if it is time
	shown  atomic.Pointer[[]shown]
	end    time.Duration // for which visits may go on once the gateway ends
	self   []byte        // the key of visits to this machine itself

	settling sync.Mutex // held while a decision is made and put into effect
	ports    map[showPorts]*publicPorts
	failed   map[showPorts]portFailure
	routes   []funnel.Route // of the public port, besides names

	mu     sync.Mutex
	wishes map[string]*wishOf
	since  map[showKey]uint64
	count  uint64
	told   map[string][]control.Funnel
	trying map[string]bool // nodes for whom a try is under way
}

// wishOf is what one node wants to show.
type wishOf struct {
	list []control.Funnel
	gone time.Time // since when its stream is closed; zero: it is open
}

// portFailure is why a port cannot be had.
type portFailure struct {
	err error
	at  time.Time
}

func (n *Node) newFunnelGate() (*funnelGate, error) {
	cfg := n.cfg.Gateway.Limits.relay(n.log)
	cfg.HTTPSPort = n.publicPort()
	g := &funnelGate{
		self:  make([]byte, 32),
		end:   visitsEnd,
		relay: funnel.NewRelay(cfg),
		proofs: proofs{
			outside: outsideDNS{resolvers: n.publicResolvers, exchange: n.opt.outside},
			slots:   make(chan struct{}, maxLookups), of: map[string]domainProof{},
		},
		wake:   make(chan struct{}, 1),
		prove:  make(chan struct{}, 1),
		trying: map[string]bool{},
		ports:  map[showPorts]*publicPorts{}, failed: map[showPorts]portFailure{},
		wishes: map[string]*wishOf{}, since: map[showKey]uint64{}, told: map[string][]control.Funnel{},
	}
	g.shown.Store(&[]shown{})
	if _, err := rand.Read(g.self); err != nil {
		return nil, fmt.Errorf("making a key for visits: %w", err)
	}
	return g, nil
}

// again has it be decided anew.
func (g *funnelGate) again() {
	if g == nil {
		return
	}
	select {
	case g.wake <- struct{}{}:
	default:
	}
}

// registerFunnels takes all that a node wants to show, and says what becomes of each.
func (n *Node) registerFunnels(ctx context.Context, node string, list []control.Funnel) ([]control.Funnel, error) {
	g := n.gateway.funnels
	g.want(node, list)
	if _, open := n.gateway.server.VisitKey(node); !open && !n.isSelf(node) {
		g.left(node) // while the call came: nobody would say so again
	}
	ctx, cancel := context.WithTimeout(ctx, proveTime)
	defer cancel()
	g.proofs.look(ctx, n.foreign(list), whenAsked)
	n.settleFunnels()
	told := g.toldTo(node)
	if told == nil && len(list) > 0 {
		return nil, &control.RefusedError{Status: http.StatusServiceUnavailable, Code: "busy", Message: "the gateway does not know " + node + " yet"}
	}
	return notNil(told), nil
}

// isSelf reports whether a node is this machine.
func (n *Node) isSelf(node string) bool { return n.findSelf(n.tailnet.given()) == node }

// want notes a node's wishes.
func (g *funnelGate) want(node string, list []control.Funnel) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if old := g.wishes[node]; old != nil {
		for _, f := range old.list {
			if !slices.ContainsFunc(list, f.Same) {
				delete(g.since, keyOf(node, f))
			}
		}
	}
	for _, f := range list {
		if key := keyOf(node, f); g.since[key] == 0 {
			g.count++
			g.since[key] = g.count
		}
	}
	g.wishes[node] = &wishOf{list: list}
}

// left notes that a node's stream has ended.
func (g *funnelGate) left(node string) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if w := g.wishes[node]; w != nil && w.gone.IsZero() {
		w.gone = time.Now()
	}
	g.again()
}

// toldTo is what a node is told of its wishes.
func (g *funnelGate) toldTo(node string) []control.Funnel {
	g.mu.Lock()
	defer g.mu.Unlock()
	return slices.Clone(g.told[node])
}

// current are the wishes that still count: of nodes of the registry, whose streams are open or were just now. next is when the
// next one ends.
func (g *funnelGate) current(nodes map[string]bool, now time.Time) (wishes map[string][]control.Funnel, since map[showKey]uint64, next time.Time) {
	g.mu.Lock()
	defer g.mu.Unlock()
	wishes, since = map[string][]control.Funnel{}, map[showKey]uint64{}
	for node, w := range g.wishes {
		ends := w.gone.Add(wishGrace)
		if !nodes[node] || !w.gone.IsZero() && !ends.After(now) || len(w.list) == 0 {
			delete(g.wishes, node)
			for _, f := range w.list {
				delete(g.since, keyOf(node, f))
			}
			continue
		}
		if !w.gone.IsZero() && (next.IsZero() || ends.Before(next)) {
			next = ends
		}
		wishes[node] = w.list
		for _, f := range w.list {
			since[keyOf(node, f)] = g.since[keyOf(node, f)]
		}
	}
	return wishes, since, next
}

// foreign are the domains of wishes that are no names of the zone.
func (n *Node) foreign(list []control.Funnel) []string {
	m, _ := n.gateway.registry.Map()
	var domains []string
	for _, f := range list {
		if _, msg := checkDomain(f.Name); f.Name != "" && msg == "" && !within(f.Name, m.Zone) && !slices.Contains(domains, f.Name) {
			domains = append(domains, f.Name)
		}
	}
	return domains[:min(len(domains), maxForeign)]
}

// settleFunnels decides anew, and puts that into effect: when it returns, visitors find what is shown and nothing else. It returns
// when it has to be done again although nothing else happens; zero: never.
func (n *Node) settleFunnels() (next time.Time) {
	g := n.gateway.funnels
	g.settling.Lock()
	defer g.settling.Unlock()
	now := time.Now()
	told, _ := n.gateway.registry.Map()
	nodes := make(map[string]bool, len(told.Nodes))
	for _, node := range told.Nodes {
		nodes[node.Name] = true
	}
	facts := showFacts{m: n.mapOf(told), proofs: g.proofs.view(now), at: n.publicAt, ours: n.ownsPublicly}
	facts.wishes, facts.since, next = g.current(nodes, now)
	d := decision{}
	for range 2 { // the second time without the ports that could not be had
		facts.barred = n.barred(now)
		d = facts.decide()
		if n.openPorts(d.shown) {
			break
		}
	}
	if len(g.failed) > 0 {
		next = earlier(next, now.Add(settleRest))
	}
	n.putShown(d)
	return next
}

// mapOf is the registry's map as it is now, which may not be in use yet.
func (n *Node) mapOf(told *control.Map) *Map {
	m := n.tailnet.given()
	if m.Version() == told.Version {
		return m
	}
	if fresh, err := mapFromGateway(told, believeAll); err == nil {
		return fresh
	}
	return m // whose policy was good
}

func earlier(a, b time.Time) time.Time {
	if a.IsZero() || b.Before(a) {
		return b
	}
	return a
}

// putShown puts a decision into effect: the relay and its routes, names in the public DNS, and what nodes are told.
func (n *Node) putShown(d decision) {
	g := n.gateway.funnels
	err := g.relay.Set(n.publics(d.shown))
	if err == nil {
		err = n.routeShown(d.shown)
	}
	g.shown.Store(&d.shown)
	if err == nil {
		err = n.publish()
	}
	if err != nil {
		n.log.Error("what nodes show to the world is not as it was decided", "err", err)
	}
	g.mu.Lock()
	before := g.told
	g.told = d.of
	g.mu.Unlock()
	for node, list := range d.of {
		if !slices.EqualFunc(list, before[node], sameOutcome) {
			if n.isSelf(node) {
				n.registration.hears(list)
			}
			n.gateway.server.TellFunnels(node, list)
			for _, f := range list {
				n.log.Info("a funnel", "node", node, "what", f.String(), "open", f.Open, "why", f.Why)
			}
		}
	}
	for node := range before {
		if d.of[node] == nil {
			n.log.Info("funnels have ended", "node", node)
		}
	}
}

func sameOutcome(a, b control.Funnel) bool {
	return a.Same(b) && a.Open == b.Open && a.Code == b.Code && a.Why == b.Why && slices.Equal(a.At, b.At)
}

// publics are the relay's entries of what is shown.
func (n *Node) publics(list []shown) []funnel.Public {
	var all []funnel.Public
	for _, s := range list {
		p := funnel.Public{Port: s.port, Kind: s.kind}
		if s.name != "" {
			p.Names = []string{s.name}
		}
		for _, node := range s.nodes {
			p.Backends = append(p.Backends, n.backend(node))
		}
		all = append(all, p)
	}
	return all
}

// backend is the way to a node's ingress.
func (n *Node) backend(node string) funnel.Backend {
	return funnel.Backend{
		Node: node,
		Dial: func(ctx context.Context) (net.Conn, error) {
			m, _ := n.gateway.registry.Map()
			i := slices.IndexFunc(m.Nodes, func(one control.Node) bool { return one.Name == node })
			if i < 0 || len(m.Nodes[i].Addresses) == 0 {
				return nil, errors.New("it is no node any more")
			}
			return n.carrier.tunnel.Dial(ctx, "tcp", netip.AddrPortFrom(m.Nodes[i].Addresses[0], ingressPort))
		},
		Key: func() ([]byte, bool) {
			if n.isSelf(node) {
				return n.gateway.funnels.self, true
			}
			return n.gateway.server.VisitKey(node)
		},
	}
}

// routeShown has the public port pass names to the relay.
func (n *Node) routeShown(list []shown) error {
	g := n.gateway.funnels
	routes := slices.Clone(g.routes)
	var errs []error
	others := map[uint16][]funnel.Route{}
	for _, s := range list {
		if portKind(s.kind) != portTLS {
			continue
		}
		route := funnel.Route{Name: s.name, Handle: g.relay.Handler(s.port)}
		if s.port == publicPort {
			routes = append(routes, route)
		} else {
			others[s.port] = append(others[s.port], route)
		}
	}
	for at, p := range g.ports {
		if p.front != nil {
			errs = append(errs, p.front.SetRoutes(others[at.first]))
		}
	}
	if n.gateway.front != nil {
		errs = append(errs, n.gateway.front.SetRoutes(routes))
	}
	return errors.Join(errs...)
}

// publicAt is where visitors find a port.
func (n *Node) publicAt(port uint16) []netip.AddrPort {
	if port == publicPort {
		port = n.publicPort()
	}
	return ports(n.cfg.Gateway.Public, port)
}

// ownsPublicly reports whether a name is one that the gateway needs for itself (S12).
func (n *Node) ownsPublicly(name string) bool {
	m, _ := n.gateway.registry.Map()
	if name == m.Zone {
		return true
	}
	for i := range maxServers {
		if name == serverName(i)+"."+m.Zone {
			return true
		}
	}
	return false
}

// barred are ports that are not to be had.
func (n *Node) barred(now time.Time) map[showPorts]string {
	g := n.gateway.funnels
	all := map[showPorts]string{}
	for _, at := range []struct {
		port uint16
		kind string
		why  string
	}{
		{cmp.Or(n.cfg.Gateway.Ports.DNS, portDNS), "", "the zone's name server has it"}, {cmp.Or(n.cfg.Gateway.Ports.HTTP, plainPort), "", "it leads to https"},
		{control.Port, kindTCP, "nodes speak to the gateway there"}, {n.publicPort(), kindTCP, "it is the public port"},
		{n.cfg.Tunnel.Port, kindUDP, "WireGuard has it"}, {n.cfg.Tunnel.Port + relayPort, kindUDP, "the relay has it"},
	} {
		all[showPorts{at.port, at.port, at.kind}] = at.why
	}
	if n.publicPort() != publicPort {
		all[showPorts{n.publicPort(), n.publicPort(), portTLS}] = "it is the public port"
	}
	for at, f := range g.failed {
		if now.Sub(f.at) < settleRest {
			all[at] = f.err.Error()
		} else {
			delete(g.failed, at)
		}
	}
	return all
}

// tendFunnels decides anew whenever something has changed, and closes all ports at the end.
func (n *Node) tendFunnels(ctx context.Context) error {
	g := n.gateway.funnels
	defer n.closePorts()
	for {
		next := n.settleFunnels()
		wait := settleRest
		if !next.IsZero() {
			wait = max(min(wait, time.Until(next)), 0)
		}
		timer := time.NewTimer(wait)
		select {
		case <-ctx.Done():
			timer.Stop()
			return nil
		case <-g.wake:
		case <-timer.C:
		}
		timer.Stop()
	}
}

// tendDomains looks domains up again, which may take long: nothing else waits for it.
func (n *Node) tendDomains(ctx context.Context) error {
	g := n.gateway.funnels
	tick := time.NewTicker(proofTick)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		case <-g.prove:
		}
		n.proveAgain(ctx)
		g.again()
	}
}

// proveAgain looks up again the domains whose time it is.
func (n *Node) proveAgain(ctx context.Context) {
	g := n.gateway.funnels
	var domains []string
	good := map[string]bool{}
	g.mu.Lock()
	for node, w := range g.wishes {
		domains = append(domains, n.foreign(w.list)...)
		for _, f := range g.told[node] {
			good[f.Name] = good[f.Name] || f.Open
		}
	}
	g.mu.Unlock()
	g.proofs.keep(domains)
	slices.Sort(domains)
	domains = slices.Compact(domains)
	for _, ok := range []bool{true, false} {
		some := slices.DeleteFunc(slices.Clone(domains), func(d string) bool { return good[d] != ok })
		g.proofs.look(ctx, some, byTheClock(ok))
	}
}

// startFunnels shows to the world what nodes ask for.
func (n *Node) startFunnels() {
	g := n.gateway.funnels
	n.services.run("funnels", n.tendFunnels)
	n.services.run("domains of funnels", n.tendDomains)
	n.services.run("visits", g.relay.Run)
	n.services.run("registration of funnels", n.tendRegistration)
	n.resumeUsage()
	n.services.run("keeping of what visits move", n.keepUsage)
	n.undo.push("ending visits", g.drain)
}

// visitsEnd is how long visits may go on once the gateway ends.
const visitsEnd = 700 * time.Millisecond

func (g *funnelGate) drain(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, g.end)
	defer cancel()
	g.relay.Drain(ctx)
	return nil
}

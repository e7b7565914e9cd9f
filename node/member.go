package node

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"net"
	"net/netip"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"github.com/meshdns/meshdns/node/control"
	"github.com/meshdns/meshdns/node/tunnel"
)

// dialTunnel connects through a tunnel to an address in text.
func dialTunnel(ctx context.Context, t *tunnel.Tunnel, network, address string) (net.Conn, error) {
	to, err := netip.ParseAddrPort(address)
	if err != nil {
		return nil, fmt.Errorf("connecting to %s: %w", address, err)
	}
	return t.Dial(ctx, network, to)
}

// membership is the path of the membership's file.
func (p Paths) membership() string { return filepath.Join(p.State, membershipFile) }

// member is a node that has joined a tailnet: it holds the gateway's stream of maps, and works from the last good one while
// the gateway is not to be had.
type member struct {
	taking sync.Mutex // held while a map is judged and taken into use

	mu      sync.Mutex
	keeps   *membership // nil: this node has joined nothing
	client  *control.Client
	stream  time.Time        // since when the gateway's stream is open; zero: it is not
	begun   time.Time        // when it was tried to open it last
	lost    time.Time        // since when it is not
	tries   int              // of it, in vain, since
	doubts  map[string]doubt // nodes whose keys are not believed, by name
	written time.Time        // until when the map that is on disk is trusted
	ahead   *time.Duration   // by how much this machine's clock is ahead of the gateway's, when that was heard last; nil: it was not
	why     error            // why the stream is not open
	unkept  error            // why what is in use is not on disk; nil: it is
	broken  error            // why what is on disk is not in use; nil: it is, or there is nothing
	hangUp  func()           // ends the stream, or the try to open it
	again   chan struct{}    // it is wanted again at once
}

// The pauses between tries of the gateway's stream.
const (
	firstRetry = time.Second
	lastRetry  = 5 * time.Second
	lastReport = 30 * time.Second
	rekeyRetry = 100 * time.Millisecond
	// steady is how long a stream has to hold for the pauses to start again.
	steady = time.Minute
	// reportInterval is how often a node reports although nothing has changed.
	reportInterval = 5 * time.Minute
)

// gatewayKeepalive keeps the way from the gateway to a node open through its NAT; most forget a mapping after 30 s.
const gatewayKeepalive = 25 * time.Second

// openMembership reads what this machine has joined. A machine whose file is damaged is in no tailnet, and that is no reason for
// it to be without names at all: status says so.
func (n *Node) openMembership(context.Context) error {
	if n.cfg.Gateway.Zone != "" || n.opt.Try {
		return nil
	}
	keeps, err := loadMembership(n.opt.Paths.State)
	if keeps != nil {
		n.member.keeps = keeps
		if _, err = n.memberMap(); err != nil {
			n.member.keeps = nil
			err = damagedMembership(n.opt.Paths.State, err)
		}
	}
	if err != nil {
		n.member.broken = err
		n.report("this machine is in no tailnet: %v", err)
	}
	return nil
}

// memberMap is the map of what is kept.
func (n *Node) memberMap() (*Map, error) {
	n.member.mu.Lock()
	defer n.member.mu.Unlock()
	keeps := *n.member.keeps
	keeps.Pins = maps.Clone(keeps.Pins) // what is judged is pinned, and those of before may be on their way to the disk
	n.member.doubts = n.beliefs(&keeps).judge(keeps.Map)
	n.member.keeps = &keeps
	return mapFromGateway(keeps.Map, believed(n.member.doubts))
}

// beliefs are what this machine knows besides its gateway's map.
func (n *Node) beliefs(m *membership) beliefs {
	return beliefs{self: m.Node, pins: m.Pins, lock: n.cfg.Lock, gone: m.Gone, dropped: n.dropped.all()}
}

// learn takes note of what the map says of the gateways: a relay that was added, a new endpoint.
func (m *membership) learn() {
	for _, node := range m.Map.Nodes {
		if node.Gateway == nil {
			continue
		}
		i := slices.IndexFunc(m.Gateways, func(g gatewayContact) bool { return g.Control == node.Control })
		if i < 0 {
			continue // a further gateway is trusted once its keys were pinned at a join
		}
		g := &m.Gateways[i]
		g.Name, g.Relay, g.RelayKey = node.Name, node.Gateway.Relay, node.Gateway.RelayKey
		if len(node.Endpoints) > 0 {
			g.Endpoints = node.Endpoints
		}
	}
}

// gatewayPeers are the peers that a member has besides those of the map, and how those of the map are reached: the gateway
// itself at its endpoint, its relay, and everybody else through that until a direct path is found.
func (m *membership) gatewayPeers() (extra []tunnel.Peer, places map[tunnel.Key]tunnel.Peer) {
	places = map[tunnel.Key]tunnel.Peer{}
	for _, g := range m.Gateways {
		if len(g.Endpoints) > 0 {
			// The invite vouched for it: with a lock and no signature for the gateway yet, none could ever come.
			own := tunnel.Peer{Key: tunnel.Key(g.Key), Endpoint: g.endpoint(), Keepalive: gatewayKeepalive}
			own.AllowedIPs = []netip.Prefix{netip.PrefixFrom(g.Server, g.Server.BitLen())}
			places[own.Key] = own
			extra = append(extra, own)
		}
		if len(g.Relay) == 0 || g.RelayKey == (control.WireGuardKey{}) {
			continue
		}
		extra = append(extra, tunnel.Peer{Key: tunnel.Key(g.RelayKey), Endpoint: g.relay(), Keepalive: gatewayKeepalive})
		for _, node := range m.Map.Nodes {
			key := tunnel.Key(node.Key)
			if _, ok := places[key]; !ok && node.Name != m.Node {
				places[key] = tunnel.Peer{Endpoint: g.relay()}
			}
		}
	}
	return extra, places
}

// joined reports whether this machine is a member of a gateway's tailnet.
func (m *member) joined() bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.keeps != nil
}

// name is this machine's in the gateway's map; "": it has joined none.
func (m *member) name() string {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.keeps == nil {
		return ""
	}
	return m.keeps.Node
}

// useContacts has the tunnel reach gateways, and others through them, as the membership says.
func (n *Node) useContacts() {
	if !n.member.joined() {
		return
	}
	n.member.mu.Lock()
	extra, places := n.member.keeps.gatewayPeers()
	var only map[tunnel.Key]bool
	if !n.member.trusted(n.clock()) {
		only = n.member.keeps.gatewayKeys()
	}
	n.member.mu.Unlock()
	n.carrier.mu.Lock()
	defer n.carrier.mu.Unlock()
	n.carrier.extra, n.carrier.places, n.carrier.only = extra, places, only
}

// startMember holds the gateway's stream from now on.
func (n *Node) startMember(context.Context) error {
	m := &n.member
	if m.keeps == nil {
		return nil
	}
	if n.carrier.tunnel == nil {
		n.lacks("the gateway's stream of maps", errors.New("no tunnel runs"))
		return nil
	}
	m.again = make(chan struct{}, 1)
	n.useClient()
	n.startPaths()
	n.services.run("gateway's stream", n.followGateway)
	n.services.run("reports to the gateway", n.reportToGateway)
	n.services.run("way to the gateway", n.tendUDP)
	n.services.run("values for CAs", n.tendHeard)
	n.services.run("registration of funnels", n.tendRegistration)
	return nil
}

// followGateway holds the stream, and opens it again whenever it ends.
func (n *Node) followGateway(ctx context.Context) error {
	pause := firstRetry
	for ctx.Err() == nil {
		opened := time.Now()
		n.member.mu.Lock()
		have := n.member.keeps.Map
		n.member.mu.Unlock()
		n.findKeys(ctx)
		err := n.openStream(ctx, have)
		if ctx.Err() != nil {
			break
		}
		if time.Since(opened) > steady {
			pause = firstRetry
		}
		n.log.Info("the gateway's stream has ended", "err", err, "again", pause)
		n.streamEnded(err)
		if n.rotation.under() {
			pause = rekeyRetry // the gateway has ended the stream of the old control key
		}
		n.rest(ctx, pause-rand.N(pause/4))
		n.meetGateway()
		pause = min(2*pause, lastRetry)
	}
	return nil
}

// sleep waits, unless ctx ends before.
func sleep(ctx context.Context, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
	case <-ctx.Done():
	}
}

// gatewayEvent takes one event of the stream. A map that is not taken leaves the last good one in use.
func (n *Node) gatewayEvent(e control.Event) error {
	m := &n.member
	n.streamOpened()
	m.mu.Lock()
	keeps := m.keeps
	next, err := e.Newer(keeps.Map)
	m.mu.Unlock()
	if e.Connect != nil {
		n.tryPaths(*e.Connect, false)
	}
	if !e.Texts.IsZero() {
		n.heard.tell(e.Texts)
	}
	if e.Funnels != nil {
		n.registration.hears(e.Funnels)
	}
	if err != nil || next == keeps.Map {
		return err
	}
	if next.Version == keeps.Map.Version && next.Epoch == keeps.Map.Epoch {
		m.mu.Lock()
		m.keeps.Map = next // its trust lasts longer
		kept := *m.keeps
		m.mu.Unlock()
		return n.keepTrust(&kept)
	}
	return n.takeGatewayMap(next)
}

// takeGatewayMap takes a newer map into use, and keeps it.
func (n *Node) takeGatewayMap(next *control.Map) error {
	if !n.tookGatewayMap(next) {
		return nil // the next one may be good
	}
	return n.reportOnce(n.services.ctx)
}

func (n *Node) tookGatewayMap(next *control.Map) bool {
	m := &n.member
	m.taking.Lock()
	defer m.taking.Unlock()
	m.mu.Lock()
	changed := *m.keeps
	changed.Map, changed.Pins = next, maps.Clone(m.keeps.Pins)
	changed.learn()
	own := n.carrier.own().keys()
	known := false
	for _, node := range next.Nodes {
		if node.Key == own.Key {
			if changed.Node != node.Name {
				n.registration.again()
			}
			changed.Node, changed.Joining, known = node.Name, false, true // which may be another one now
		}
	}
	changed.Gone = goneWith(changed.Gone, m.keeps.Map, next, own.Key, n.clock())
	doubts := n.beliefs(&changed).judge(next)
	told, err := mapFromGateway(next, believed(doubts))
	if err == nil {
		m.keeps, m.doubts = &changed, doubts
	}
	m.mu.Unlock()
	if err != nil {
		n.badMap(err)
		return false
	}
	kept := n.keep(&changed)
	n.newMap(told)
	if known && kept == nil { // else the next start takes the old keys for the right ones
		n.gatewayKnows(own, false)
	}
	return true
}

// keep writes down what this machine works from. What the disk does not take is in use all the same; it is tried again with the
// next sign of life.
func (n *Node) keep(m *membership) error {
	err := m.save(n.opt.Paths.State)
	n.member.mu.Lock()
	first := err != nil && n.member.unkept == nil
	n.member.unkept = err
	n.member.mu.Unlock()
	if first {
		n.log.Error("the map is in use and not kept", "err", err)
	}
	return err
}

// reportToGateway tells the gateway how this node is, at first and from time to time.
func (n *Node) reportToGateway(ctx context.Context) error {
	for ctx.Err() == nil {
		if err := n.reportOnce(ctx); err != nil {
			n.log.Debug("the gateway was not told how this node is", "err", err)
			sleep(ctx, lastReport)
			continue
		}
		sleep(ctx, reportInterval)
	}
	return nil
}

// reportOnce makes one report.
func (n *Node) reportOnce(ctx context.Context) error {
	n.member.mu.Lock()
	have := n.member.keeps.Map
	n.member.mu.Unlock()
	return n.member.caller().Report(ctx, control.Report{Epoch: have.Epoch, Version: have.Version, Endpoints: n.localEndpoints()})
}

// localEndpoints are where this node's WireGuard may be reached on its own links (S8).
func (n *Node) localEndpoints() []netip.AddrPort {
	port, err := n.carrier.tunnel.Port()
	links, lerr := machineLinks()
	if err != nil || lerr != nil {
		return nil
	}
	m, _ := n.tailnet.current()
	var list []netip.AddrPort
	for _, l := range links {
		for _, a := range l.addrs {
			if a.Addr().IsPrivate() && !rangeOf(m.Ranges(), a.Addr()).IsValid() && len(list) < maxEndpoints {
				list = append(list, netip.AddrPortFrom(a.Addr(), port))
			}
		}
	}
	return list
}

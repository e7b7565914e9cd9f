package node

import (
	"bufio"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"github.com/meshdns/meshdns/funnel"
	"github.com/meshdns/meshdns/node/control"
)

// The bounds of what comes over TLS.
const (
	maxCarried      = 4096             // connections at once
	maxStrangers    = 8                // of keys that no node has, while there are invites: somebody joins
	strangerTime    = 2 * time.Minute  // in which a join is over
	strangerPause   = time.Second      // between two of them, once strangerBurst have come
	strangerBurst   = 16               // at once
	carriedSilence  = 90 * time.Second // nodes say something every 25 s
	carriedTime     = 10 * time.Second // for the handshake
	carriedBuffered = 16 << 10
)

// tlsGate is a gateway's side of packets over TLS. Each connection has a UDP socket of its own towards either port, so that
// WireGuard and the relay see a source for each node as they do over UDP, in every mode of the tunnel.
type tlsGate struct {
	key     control.PrivateKey
	targets [carriedPorts]netip.AddrPort // invalid: nobody is there
	nodes   func() []control.NodeState
	refused func(control.ControlKey) // is told of a node whose handshakes get no answer; nil: nobody is

	mu        sync.Mutex
	open      map[control.ControlKey]*carried
	strangers int
	tokens    float64
	refilled  time.Time
}

// carried is one connection.
type carried struct {
	cancel   context.CancelFunc
	stranger bool
}

// startTLSGate has the public port take packets over TLS.
func (n *Node) startTLSGate() {
	g := &n.gateway
	gate := &tlsGate{
		key: n.carrier.secrets.control, nodes: g.registry.Nodes, refused: n.clockWentBack,
		open: map[control.ControlKey]*carried{}, tokens: strangerBurst, refilled: time.Now(),
	}
	port, err := n.carrier.tunnel.Port()
	if err == nil {
		gate.targets[portWireGuard] = netip.AddrPortFrom(g.listen[0], port)
		if g.relay != nil {
			gate.targets[portRelay] = netip.AddrPortFrom(g.listen[0], n.cfg.Tunnel.Port+relayPort)
		}
		g.funnels.routes = []funnel.Route{{Protocol: overTLSProtocol, Handle: gate.handle(n)}}
		err = g.front.SetRoutes(g.funnels.routes)
	}
	if err != nil {
		n.lacks("packets over TLS for nodes without UDP", err)
		return
	}
	g.overTLS = gate
}

// handle is what the public port does with a connection.
func (g *tlsGate) handle(n *Node) funnel.Handler {
	return func(ctx context.Context, conn net.Conn, _ funnel.Hello) {
		if err := g.serve(ctx, conn); err != nil {
			n.log.Debug("packets over TLS have ended", "err", err)
		}
	}
}

// errCarriedFull ends a connection above a bound.
var errCarriedFull = errors.New("packets over TLS: too many connections")

// serve passes packets until either side ends.
func (g *tlsGate) serve(ctx context.Context, conn net.Conn) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var key control.ControlKey
	one := &carried{cancel: cancel}
	config, err := g.key.TLSFor(overTLSProtocol, func(k control.ControlKey) bool {
		known, invites := g.look()
		key, one.stranger = k, !known[k]
		return known[k] || invites
	})
	if err != nil {
		return err
	}
	secure := tls.Server(conn, config)
	hctx, done := context.WithTimeout(ctx, carriedTime)
	defer done()
	if err := secure.HandshakeContext(hctx); err != nil {
		return fmt.Errorf("packets over TLS: %w", err)
	}
	if !g.enter(key, one, time.Now()) {
		return errCarriedFull
	}
	defer g.leave(key, one)
	if one.stranger {
		timer := time.AfterFunc(strangerTime, cancel)
		defer timer.Stop()
	}
	var asked handshakes
	if !one.stranger && g.refused != nil {
		asked.refused = func() { g.refused(key) }
	}
	return g.pass(ctx, secure, &asked)
}

// look tells which control keys nodes have, and whether somebody may join, whose key cannot be known: the tunnel inside tells
// who has an invite.
func (g *tlsGate) look() (known map[control.ControlKey]bool, invites bool) {
	known = map[control.ControlKey]bool{}
	now := time.Now()
	for _, s := range g.nodes() {
		if s.Invited {
			invites = invites || s.Joined.After(now)
		} else {
			known[s.Control] = true
		}
	}
	return known, invites
}

// enter takes a place. A node's newer connection ends its older one.
func (g *tlsGate) enter(key control.ControlKey, one *carried, now time.Time) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	old := g.open[key]
	if len(g.open) >= maxCarried && old == nil {
		return false
	}
	if one.stranger {
		g.tokens = min(strangerBurst, g.tokens+float64(now.Sub(g.refilled))/float64(strangerPause))
		g.refilled = now
		if g.tokens < 1 || g.strangers >= maxStrangers {
			return false
		}
		g.tokens--
		g.strangers++
	}
	if old != nil {
		old.cancel()
	}
	g.open[key] = one
	return true
}

func (g *tlsGate) leave(key control.ControlKey, one *carried) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if one.stranger {
		g.strangers--
	}
	if g.open[key] == one {
		delete(g.open, key)
	}
}

// sweep ends the connections of nodes that were removed (S5).
func (g *tlsGate) sweep() {
	known, _ := g.look()
	g.mu.Lock()
	defer g.mu.Unlock()
	for key, one := range g.open {
		if !one.stranger && !known[key] {
			one.cancel()
		}
	}
}

// isSource reports whether an address may be that of a socket here, of now or before. It is where a node is heard from, and
// nothing to be told to others.
func (g *tlsGate) isSource(a netip.AddrPort) bool {
	return g != nil && a.Addr().Unmap() == g.targets[portWireGuard].Addr()
}

// handshakes watches those that a node begins with the gateway's WireGuard. Nothing is lost between here and there, so one that
// is not answered was refused.
type handshakes struct {
	refused func() // nil: nobody wants to know
	begun   atomic.Int32
}

// up takes note of what goes to a port.
func (h *handshakes) up(port int, datagram []byte) {
	if port == portWireGuard && isInitiation(datagram) && h.begun.Add(1) > 1 && h.refused != nil {
		h.begun.Store(0)
		h.refused()
	}
}

// down takes note of what comes from it.
func (h *handshakes) down(port int) {
	if port == portWireGuard {
		h.begun.Store(0)
	}
}

// pass passes packets between a connection and the ports.
func (g *tlsGate) pass(ctx context.Context, secure *tls.Conn, asked *handshakes) error {
	var sockets [carriedPorts]*net.UDPConn
	for i, to := range g.targets {
		if !to.IsValid() {
			continue
		}
		s, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(netip.AddrPortFrom(to.Addr(), 0)))
		if err != nil {
			return fmt.Errorf("packets over TLS: %w", err)
		}
		defer s.Close()
		sockets[i] = s
	}
	out := &frameWriter{conn: secure}
	var both sync.WaitGroup
	defer both.Wait()
	shut := func() {
		secure.NetConn().Close() // not secure: it would wait to say goodbye to who takes nothing
		for _, s := range sockets {
			if s != nil {
				s.Close()
			}
		}
	}
	stop := context.AfterFunc(ctx, shut)
	defer stop()
	defer shut()
	for i, s := range sockets {
		if s != nil {
			both.Go(func() { g.passUp(s, i, out, shut, asked) })
		}
	}
	in := bufio.NewReaderSize(secure, carriedBuffered)
	b := make([]byte, maxDatagram)
	for {
		if err := secure.SetReadDeadline(time.Now().Add(carriedSilence)); err != nil {
			return err
		}
		port, datagram, err := readFrame(in, b)
		if err != nil {
			return err
		}
		if s := sockets[port]; s != nil {
			asked.up(port, datagram)
			_, _ = s.WriteToUDPAddrPort(datagram, g.targets[port]) // one that is not taken is lost, as on any way
		}
	}
}

// passUp writes what a port sends as frames, until either is closed.
func (g *tlsGate) passUp(s *net.UDPConn, port int, out *frameWriter, shut func(), asked *handshakes) {
	b := make([]byte, frameHead+maxDatagram+1)
	for {
		n, from, err := s.ReadFromUDPAddrPort(b[frameHead:])
		if isRefused(err) {
			continue // nobody is at the port at this moment
		}
		// The socket is not connected: WireGuard may answer from another address of this machine than it was asked at.
		if a := from.Addr().Unmap(); err == nil && (from.Port() != g.targets[port].Port() || a != g.targets[port].Addr() && !a.IsLoopback()) {
			continue
		}
		if err == nil {
			asked.down(port)
			err = out.write(port, b[:frameHead+n])
		}
		if err != nil {
			shut()
			return
		}
	}
}

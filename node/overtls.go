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
	"time"

	"github.com/meshdns/meshdns/node/control"
	"github.com/meshdns/meshdns/node/tunnel"
)

// overTLS is a node's side of packets over TLS. Two UDP sockets on loopback stand for the gateway's two ports: they are what
// WireGuard is told as endpoints, be it the kernel's or one of this process.
type overTLS struct {
	gateway netip.AddrPort // its 443
	pinned  control.ControlKey
	config  *tls.Config
	port    func() (uint16, error) // of this machine's WireGuard: nobody else is listened to
	sockets [carriedPorts]*net.UDPConn
	heard   bool // something came by the last connection
}

// overTLSConfig is what an overTLS is made of.
type overTLSConfig struct {
	gateway netip.AddrPort
	pinned  control.ControlKey
	key     control.PrivateKey
	port    func() (uint16, error)
}

func openOverTLS(c overTLSConfig) (*overTLS, error) {
	o := &overTLS{gateway: c.gateway, pinned: c.pinned, port: c.port}
	err := o.use(c.key)
	if err != nil {
		return nil, err
	}
	for i := range o.sockets {
		if o.sockets[i], err = net.ListenUDP("udp4", net.UDPAddrFromAddrPort(netip.AddrPortFrom(machineAddress(), 0))); err != nil {
			o.close()
			return nil, fmt.Errorf("packets over TLS: %w", err)
		}
	}
	return o, nil
}

// use has connections be made with a control key from now on.
func (o *overTLS) use(key control.PrivateKey) (err error) {
	o.config, err = key.TLSFor(overTLSProtocol, o.pinned.Is)
	return err
}

func (o *overTLS) close() {
	for _, s := range o.sockets {
		if s != nil {
			s.Close()
		}
	}
}

// places are where WireGuard sends to.
func (o *overTLS) places() (list [carriedPorts]netip.AddrPort) {
	for i, s := range o.sockets {
		list[i] = addrPortOf(s.LocalAddr())
	}
	return list
}

// dial connects to the gateway.
func (o *overTLS) dial(ctx context.Context) (*tls.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, carriedTime)
	defer cancel()
	conn, err := (&tls.Dialer{Config: o.config}).DialContext(ctx, "tcp", o.gateway.String())
	if err != nil {
		return nil, fmt.Errorf("packets over TLS to %s: %w", o.gateway, err)
	}
	return conn.(*tls.Conn), nil
}

// pass passes packets until the connection or ctx ends, and closes the connection.
func (o *overTLS) pass(ctx context.Context, secure *tls.Conn) error {
	ctx, cancel := context.WithCancel(ctx)
	var both sync.WaitGroup
	defer both.Wait()
	defer cancel()
	ended := make(chan struct{})
	context.AfterFunc(ctx, func() {
		defer close(ended)
		secure.NetConn().Close()
		for _, s := range o.sockets {
			_ = s.SetReadDeadline(time.Unix(1, 0)) // a socket that is closed needs none
		}
	})
	defer func() { <-ended }()
	defer cancel()
	out := &frameWriter{conn: secure}
	for i, s := range o.sockets {
		if err := s.SetReadDeadline(time.Time{}); err != nil {
			return err
		}
		both.Go(func() {
			defer cancel()
			o.send(s, i, out)
		})
	}
	in := bufio.NewReaderSize(secure, carriedBuffered)
	b := make([]byte, maxDatagram)
	for o.heard = false; ; o.heard = true {
		port, datagram, err := readFrame(in, b)
		if err != nil {
			return err
		}
		own, err := o.port()
		if err != nil {
			return err
		}
		_, _ = o.sockets[port].WriteToUDPAddrPort(datagram, netip.AddrPortFrom(machineAddress(), own)) // else it is lost, as on any way
	}
}

// send writes what WireGuard sends to one of the gateway's ports as frames.
func (o *overTLS) send(s *net.UDPConn, port int, out *frameWriter) {
	b := make([]byte, frameHead+maxDatagram+1)
	for {
		n, from, err := s.ReadFromUDPAddrPort(b[frameHead:])
		if isRefused(err) {
			continue
		}
		if err != nil {
			return
		}
		if own, err := o.port(); err != nil || from.Port() != own {
			continue
		}
		if err := out.write(port, b[:frameHead+n]); err != nil {
			return
		}
	}
}

// The times of packets over TLS.
const (
	udpPatience  = 5 * time.Second  // without an answer from the gateway over UDP
	udpSilence   = 12 * time.Second // after which a gateway whose stream is open is asked: it may have been started anew
	udpLook      = 500 * time.Millisecond
	firstProbe   = 20 * time.Second // between tries of UDP, doubled with each that fails
	lastProbe    = 5 * time.Minute
	probeTime    = 700 * time.Millisecond // for an answer, in which packets over TLS wait
	probeSteps   = 4
	firstOverTLS = 5 * time.Second // between tries of TLS
)

// udpWatch judges whether UDP gets through to the gateway.
type udpWatch struct {
	received, sent uint64
	heard          time.Time // when something came last
	quiet          time.Time // since when we send and hear nothing, or ask and get no answer; zero: we do not
}

// The moves of an udpWatch.
const (
	udpPasses  = iota
	udpAsked   // the gateway is to be asked whether it hears us
	udpBlocked // nothing comes
)

// look is what the counters say. Under an open stream what is sent may need no answer: so the gateway is asked, at once where
// nothing comes of what goes through it.
func (w *udpWatch) look(now time.Time, s tunnel.PeerStats, stream, waiting bool) int {
	if s.Received != w.received || w.heard.IsZero() {
		*w = udpWatch{received: s.Received, sent: s.Sent, heard: now}
		return udpPasses
	}
	silent := now.Sub(w.heard)
	begins := !stream && s.Sent != w.sent || stream && (silent >= udpSilence || waiting && silent >= suspectTime)
	if begins && w.quiet.IsZero() {
		w.quiet = now
	}
	switch {
	case w.quiet.IsZero():
		return udpPasses
	case now.Sub(w.quiet) >= udpPatience:
		return udpBlocked
	}
	return udpAsked
}

// tendUDP has packets go over TLS while UDP does not reach the gateway.
func (n *Node) tendUDP(ctx context.Context) error {
	var watch udpWatch
	var retry time.Time
	for ctx.Err() == nil {
		sleep(ctx, udpLook)
		g, stream := n.firstGateway()
		s, ok := n.gatewayStats(g)
		now := time.Now()
		if !ok || !g.Carrier.IsValid() || now.Before(retry) {
			continue
		}
		switch watch.look(now, s, stream, n.paths.waiting(now, suspectTime)) {
		case udpPasses:
			continue
		case udpAsked:
			if err := n.echo.nudge(g.Server); err != nil {
				n.log.Debug("the gateway was not asked whether it is there", "err", err)
			}
			continue
		}
		if stream {
			// Maybe it was started anew, and knows no session: then a new one tells, and else what follows from its silence.
			watch = udpWatch{}
			n.member.mu.Lock()
			n.member.hangUpLocked()
			n.member.mu.Unlock()
			continue
		}
		if err := n.goOverTLS(ctx, g); err != nil && ctx.Err() == nil {
			n.log.Debug("packets do not go over TLS", "err", err)
		}
		watch, retry = udpWatch{}, time.Now().Add(firstOverTLS)
	}
	return nil
}

// waiting reports whether a peer that is reached through the gateway has answered nothing for that long.
func (s *paths) waiting(now time.Time, silent time.Duration) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, p := range s.peers {
		if p.state == relayed && !p.unanswered.IsZero() && now.Sub(p.unanswered) >= silent {
			return true
		}
	}
	return false
}

// firstGateway is the gateway that this node holds on to, and whether its stream of maps is open.
func (n *Node) firstGateway() (gatewayContact, bool) {
	n.member.mu.Lock()
	defer n.member.mu.Unlock()
	return n.member.keeps.Gateways[0], !n.member.stream.IsZero()
}

// gatewayStats is what is known of the session with a gateway.
func (n *Node) gatewayStats(g gatewayContact) (tunnel.PeerStats, bool) {
	stats, err := n.carrier.tunnel.Stats()
	if err != nil {
		return tunnel.PeerStats{}, false
	}
	for _, s := range stats {
		if s.Key == tunnel.Key(g.Key) {
			return s, true
		}
	}
	return tunnel.PeerStats{}, false
}

// goOverTLS has packets go over TLS until UDP gets through again, or TLS does not any more either.
func (n *Node) goOverTLS(ctx context.Context, g gatewayContact) error {
	at := carrierAt(g.Carrier, g.Endpoints, routed)
	o, err := openOverTLS(overTLSConfig{gateway: at, pinned: g.Control, key: n.carrier.own().control, port: n.carrier.tunnel.Port})
	if err != nil {
		return err
	}
	defer o.close()
	conn, err := o.dial(ctx)
	if err != nil {
		return err
	}
	n.takeWay(o.places())
	defer func() { n.takeWay([carriedPorts]netip.AddrPort{}) }()
	n.report("UDP to the gateway is blocked: packets go over TLS to %s", at)
	back, stop := context.WithCancel(ctx)
	var probing sync.WaitGroup
	defer probing.Wait()
	defer stop()
	probing.Go(func() {
		defer stop()
		n.awaitUDP(back, g, o.places()[portWireGuard])
	})
	for {
		err := o.pass(back, conn)
		if back.Err() != nil {
			n.report("UDP to the gateway gets through again")
			return nil
		}
		n.log.Info("packets over TLS have ended", "err", err)
		if !o.heard {
			// With TLS 1.3 a gateway that does not know the key says so after the handshake.
			return err
		}
		sleep(back, firstRetry)
		if err = o.use(n.carrier.own().control); err == nil { // which may have changed
			conn, err = o.dial(back)
		}
		if err != nil {
			return err // and UDP is tried again
		}
		n.takeWay(o.places()) // which are the same here, and others at the gateway
	}
}

// takeWay has WireGuard send what is for the gateway and its relay to these places; invalid ones: to the gateway itself.
func (n *Node) takeWay(way [carriedPorts]netip.AddrPort) {
	n.member.mu.Lock()
	n.member.keeps.Gateways[0].way = way
	g := n.member.keeps.Gateways[0]
	n.member.mu.Unlock()
	n.useContacts()
	m, _ := n.tailnet.current()
	err := n.paths.around(func() error { return n.carrier.setMap(m, n.findSelf(m)) }, n.carrier.tunnel.SetEndpoint)
	// The relay sends to where a handshake came from last.
	if err == nil {
		err = n.renewRelay(g)
	}
	if err == nil && len(g.Endpoints) > 0 {
		err = n.carrier.tunnel.SetEndpoint(tunnel.Key(g.Key), g.endpoint())
	}
	if err != nil && !errors.Is(err, net.ErrClosed) {
		n.log.Error("the way to the gateway was not set", "err", err)
	}
	// The gateway sends to where it heard us last.
	if err := n.echo.nudge(g.Server); err != nil {
		n.log.Debug("the gateway was not told of the way", "err", err)
	}
}

// around makes a change that has every peer be sent to through the gateway, and has those that are reached directly go on so: the
// way to the gateway is none of theirs.
func (s *paths) around(change func() error, set func(tunnel.Key, netip.AddrPort) error) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	err := change()
	for key, p := range s.peers {
		if p.state == direct || p.state == settling {
			_ = set(key, p.at) // a peer that is gone has no path by the next look
		}
	}
	return err
}

// awaitUDP returns once UDP gets through to the gateway.
func (n *Node) awaitUDP(ctx context.Context, g gatewayContact, way netip.AddrPort) {
	pause, longest := firstProbe, lastProbe
	if n.opt.probe > 0 {
		pause, longest = n.opt.probe, n.opt.probe
	}
	for ctx.Err() == nil {
		sleep(ctx, pause)
		pause = min(2*pause, longest)
		if len(g.Endpoints) == 0 || ctx.Err() != nil {
			continue
		}
		if n.probeUDP(ctx, g) {
			return
		}
		if err := n.carrier.tunnel.SetEndpoint(tunnel.Key(g.Key), way); err != nil {
			n.log.Debug("the way to the gateway was not set", "err", err)
		}
	}
}

// probeUDP has WireGuard ask the gateway something over UDP. What comes over TLS meanwhile turns it back to that, so it is
// told again.
func (n *Node) probeUDP(ctx context.Context, g gatewayContact) bool {
	key, to := tunnel.Key(g.Key), g.endpoint()
	for range probeSteps {
		if err := n.carrier.tunnel.SetEndpoint(key, to); err != nil {
			return false
		}
		before, ok := n.gatewayStats(g)
		if !ok {
			return false
		}
		if err := n.echo.nudge(g.Server); err != nil {
			n.log.Debug("the gateway was not asked whether it is there", "err", err)
		}
		sleep(ctx, probeTime/probeSteps)
		if s, ok := n.gatewayStats(g); ok && s.Endpoint == to && s.Received > before.Received {
			return true
		}
	}
	return false
}

// wayProblem says that packets go over TLS; "": they do not.
func (n *Node) wayProblem() string {
	n.member.mu.Lock()
	defer n.member.mu.Unlock()
	if n.member.keeps == nil || !n.member.keeps.Gateways[0].way[portWireGuard].IsValid() {
		return ""
	}
	return overTLSTold
}

// overTLSTold is how status says it.
const overTLSTold = "packets to the gateway go over TLS on 443: UDP is blocked, and this is slower"

package node

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"sync"
	"time"

	"github.com/meshdns/meshdns/funnel"
)

// plainPort is where visitors come who have not said https.
const plainPort = 80

// kindPlain is the kind of that port.
const kindPlain = "http"

// publicPorts is a port that the gateway has opened, on each of its addresses, because somebody shows something there.
type publicPorts struct {
	front *funnel.Front // where it is for names by TLS
	stop  func()        // ends what is served there, and waits for that
}

// openPorts has the gateway listen where something is shown, and nowhere else. It reports whether it does: ports that cannot be had
// are noted.
func (n *Node) openPorts(list []shown) bool {
	g := n.gateway.funnels
	wanted := map[showPorts]bool{}
	for _, s := range list {
		kind := portKind(s.kind)
		if kind != portTLS || s.port != publicPort {
			wanted[showPorts{s.port, s.port, kind}] = true
		}
		if s.kind == kindHTTPS && s.port == publicPort {
			wanted[showPorts{plainPort, plainPort, kindPlain}] = true
		}
	}
	for at, p := range g.ports {
		if !wanted[at] {
			p.stop()
			delete(g.ports, at)
		}
	}
	all := true
	for at := range wanted {
		if g.ports[at] != nil {
			continue
		}
		old, known := g.failed[at]
		if known && at.kind == kindPlain && time.Since(old.at) < settleRest {
			continue
		}
		p, err := n.openPort(at)
		if err == nil {
			g.ports[at] = p
			delete(g.failed, at)
			continue
		}
		g.failed[at] = portFailure{err, time.Now()}
		if !known {
			n.log.Warn("a port for the world cannot be had", "port", at.first, "kind", at.kind, "err", err)
		}
		all = all && at.kind == kindPlain // without it visitors have to write https
	}
	return all
}

// openPort opens one.
func (n *Node) openPort(at showPorts) (*publicPorts, error) {
	g := n.gateway.funnels
	ctx, cancel := context.WithCancel(context.Background())
	var running sync.WaitGroup
	p := &publicPorts{stop: func() {
		cancel()
		running.Wait()
	}}
	if at.kind == portTLS {
		p.front = funnel.NewFront(funnel.FrontConfig{Logger: n.log})
	}
	port := at.first
	if at.kind == kindPlain {
		port = cmp.Or(n.cfg.Gateway.Ports.HTTP, plainPort)
	}
	for _, addr := range ports(n.gateway.listen, port) {
		serve, err := g.listen(ctx, at, addr, p.front)
		if err != nil {
			p.stop()
			return nil, err
		}
		running.Go(func() {
			if err := serve(ctx); err != nil {
				n.log.Error("a port for the world is not served any more", "at", addr, "kind", at.kind, "err", err)
			}
		})
	}
	return p, nil
}

// listen listens at one address for what a port is for.
func (g *funnelGate) listen(ctx context.Context, at showPorts, addr netip.AddrPort, front *funnel.Front) (serve func(context.Context) error, err error) {
	if at.kind == kindUDP {
		conn, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(addr))
		if err != nil {
			return nil, notHad(addr, err)
		}
		return func(ctx context.Context) error { return g.relay.ServeUDP(ctx, conn, at.first) }, nil
	}
	ln, err := new(net.ListenConfig).Listen(ctx, "tcp", addr.String())
	if err != nil {
		return nil, notHad(addr, err)
	}
	switch at.kind {
	case portTLS:
		return func(ctx context.Context) error { return front.Serve(ctx, ln) }, nil
	case kindPlain:
		return func(ctx context.Context) error { return g.relay.ServeRedirect(ctx, ln) }, nil
	}
	return func(ctx context.Context) error { return g.relay.ServeTCP(ctx, ln, at.first) }, nil
}

// notHad is why a port cannot be had, in words that a node may be told.
func notHad(addr netip.AddrPort, err error) error {
	if isAddrInUse(err) {
		return errors.New("another program of the gateway has it")
	}
	var op *net.OpError
	if errors.As(err, &op) {
		err = op.Err
	}
	return fmt.Errorf("it cannot be had at %s: %w", addr.Addr(), err)
}

// closePorts closes all.
func (n *Node) closePorts() {
	g := n.gateway.funnels
	g.settling.Lock()
	defer g.settling.Unlock()
	for at, p := range g.ports {
		p.stop()
		delete(g.ports, at)
	}
}

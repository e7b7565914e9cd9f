package tunnel

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"sync"
)

// Take is Listen on a port that a program of this machine may have on every address: that program keeps all but the tailnet's
// connections. Where packets pass the machine, what is for the port is led to a listener of our own, by our table in nf_tables; where
// that cannot be done the port itself is listened on, and has to be free.
func (t *Tunnel) Take(ctx context.Context, network string, on netip.AddrPort) (net.Listener, error) {
	c, err := t.own(network, "tcp", on.Addr())
	if err != nil {
		return nil, err
	}
	if c.redirect == nil {
		return c.network.listen(ctx, network, on)
	}
	ln, err := c.network.listen(ctx, network, netip.AddrPortFrom(on.Addr(), 0))
	if err != nil {
		return nil, err
	}
	at, err := netip.ParseAddrPort(ln.Addr().String())
	if err == nil {
		err = c.redirect(on, at.Port())
	}
	if err == nil {
		return &taken{Listener: ln, on: on, release: func() error { return c.redirect(on, 0) }}, nil
	}
	if closed := ln.Close(); !errors.Is(err, errors.ErrUnsupported) {
		return nil, errors.Join(err, closed)
	}
	t.config.Logger.Info("no redirect to a listener of our own", "port", on.Port(), "err", err)
	return c.network.listen(ctx, network, on)
}

// taken is a listener whose port is led to.
type taken struct {
	net.Listener

	on      netip.AddrPort
	release func() error
	once    sync.Once
	failed  error
}

// Addr is the address that clients connect to.
func (l *taken) Addr() net.Addr { return net.TCPAddrFromAddrPort(l.on) }

// Close gives the port back first: nobody is led to where nobody listens.
func (l *taken) Close() error {
	l.once.Do(func() { l.failed = errors.Join(l.release(), l.Listener.Close()) })
	return l.failed
}

package tunnel

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
)

// openOff finds the link of another program that has this node's addresses.
func openOff(_ context.Context, c Config) (*carrier, error) {
	links, err := net.Interfaces()
	if err != nil {
		return nil, fmt.Errorf("listing links: %w", err)
	}
	link, err := pickLink(c, links, func(l net.Interface) ([]net.Addr, error) { return l.Addrs() })
	if err != nil {
		return nil, &hintError{err, "start the program that carries the tailnet, or set tunnel.mode to auto"}
	}
	opened := &carrier{network: &sockets{link: link.Name}, link: link.Name, index: link.Index}
	opened.notes = append(opened.notes, fmt.Sprintf("off: the addresses are on %s", link.Name))
	if !canBindLink {
		opened.notes = append(opened.notes, "off: this system cannot bind listeners to a link, so callers on other links may reach them")
	}
	return opened, nil
}

// pickLink is the configured link, or the one that has an address of this node; it must have one.
func pickLink(c Config, links []net.Interface, addrs func(net.Interface) ([]net.Addr, error)) (net.Interface, error) {
	for _, l := range links {
		if c.Link != "" && l.Name != c.Link {
			continue
		}
		have, err := addrs(l)
		if err != nil {
			continue // it went away
		}
		if slices.ContainsFunc(have, func(a net.Addr) bool { return slices.Contains(c.Addresses, addressOf(a)) }) {
			return l, nil
		}
		if c.Link != "" {
			return l, fmt.Errorf("link %s has none of the addresses %v", c.Link, c.Addresses)
		}
	}
	if c.Link != "" {
		return net.Interface{}, fmt.Errorf("no link %s", c.Link)
	}
	return net.Interface{}, fmt.Errorf("no link has any of the addresses %v", c.Addresses)
}

func addressOf(a net.Addr) netip.Addr {
	if p, ok := a.(*net.IPNet); ok {
		addr, _ := netip.AddrFromSlice(p.IP)
		return addr.Unmap()
	}
	return netip.Addr{}
}

// sockets makes sockets of the machine that are bound to the tunnel's link: what comes from another link does not reach
// them, and what they send takes no other way.
type sockets struct {
	link string
}

func (s *sockets) dial(ctx context.Context, network string, local netip.Addr, to netip.AddrPort) (net.Conn, error) {
	d := net.Dialer{Control: bindTo(s.link)}
	if local == to.Addr() {
		d.Control = nil // what a machine sends to itself takes lo
	}
	if transport(network) == "tcp" {
		d.LocalAddr = net.TCPAddrFromAddrPort(netip.AddrPortFrom(local, 0))
	} else {
		d.LocalAddr = net.UDPAddrFromAddrPort(netip.AddrPortFrom(local, 0))
	}
	return d.DialContext(ctx, network, to.String())
}

// listen listens twice where listeners can be bound: on the tunnel's link, and for the machine's own programs.
func (s *sockets) listen(ctx context.Context, network string, on netip.AddrPort) (net.Listener, error) {
	first, err := s.listenOn(ctx, network, on, s.link)
	if err != nil || loopbackLink == "" || loopbackLink == s.link {
		return first, err
	}
	actual, err := netip.ParseAddrPort(first.Addr().String())
	if err == nil {
		var second net.Listener
		if second, err = s.listenOn(ctx, network, actual, loopbackLink); err == nil {
			return joinListeners(first, second), nil
		}
	}
	return nil, errors.Join(fmt.Errorf("listening for this machine's own: %w", err), first.Close())
}

func (s *sockets) listenOn(ctx context.Context, network string, on netip.AddrPort, link string) (net.Listener, error) {
	config := net.ListenConfig{Control: bindTo(link)}
	return config.Listen(ctx, network, on.String())
}

func (s *sockets) listenPacket(ctx context.Context, network string, on netip.AddrPort) (net.PacketConn, error) {
	config := net.ListenConfig{Control: bindTo(s.link)}
	return config.ListenPacket(ctx, network, on.String())
}

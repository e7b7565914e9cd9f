package tunnel

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"syscall"
)

// transport is "tcp" or "udp" of "tcp4" and the like, "" of anything else.
func transport(network string) string {
	switch network {
	case "tcp", "tcp4", "tcp6":
		return "tcp"
	case "udp", "udp4", "udp6":
		return "udp"
	}
	return ""
}

// checkNetwork refuses a network that is not of the kind, and an address that is not of its family.
func checkNetwork(op, network string, kinds []string, a netip.Addr) error {
	if !slices.Contains(kinds, transport(network)) {
		return &net.OpError{Op: op, Net: network, Err: net.UnknownNetworkError(network)}
	}
	if !a.IsValid() || a.Is4In6() || strings.HasSuffix(network, "4") && !a.Is4() || strings.HasSuffix(network, "6") && !a.Is6() {
		return &net.OpError{Op: op, Net: network, Err: &net.AddrError{Err: "address of another family", Addr: a.String()}}
	}
	return nil
}

// Dial connects over "tcp" or "udp" to a node, from this node's address of that family.
func (t *Tunnel) Dial(ctx context.Context, network string, to netip.AddrPort) (net.Conn, error) {
	to = unmapped(to)
	if err := checkNetwork("dial", network, []string{"tcp", "udp"}, to.Addr()); err != nil {
		return nil, err
	}
	c, err := t.current()
	if err != nil {
		return nil, err
	}
	local, err := t.sourceFor(c, to.Addr())
	if err != nil {
		return nil, &net.OpError{Op: "dial", Net: network, Addr: net.TCPAddrFromAddrPort(to), Err: err}
	}
	return c.network.dial(ctx, network, local, to)
}

// sourceFor is the own address that a connection to a node comes from. An address that is nobody's is refused at once:
// WireGuard in this process would drop the packets in silence.
func (t *Tunnel) sourceFor(c *carrier, to netip.Addr) (netip.Addr, error) {
	if slices.Contains(t.config.Addresses, to) {
		return to, nil
	}
	if c.engine != nil {
		t.mu.Lock()
		applied := t.applied
		t.mu.Unlock()
		if _, ok := ownerOf(applied, to); !ok {
			return netip.Addr{}, fmt.Errorf("no node has %s: %w", to, syscall.EHOSTUNREACH)
		}
	}
	for _, a := range t.config.Addresses {
		if a.Is4() == to.Is4() {
			return a, nil
		}
	}
	return netip.Addr{}, fmt.Errorf("this node has no address of the family of %s: %w", to, syscall.EAFNOSUPPORT)
}

// Listen accepts TCP connections on an address of this node: those through the tunnel, and the machine's own.
func (t *Tunnel) Listen(ctx context.Context, network string, on netip.AddrPort) (net.Listener, error) {
	c, err := t.own(network, "tcp", on.Addr())
	if err != nil {
		return nil, err
	}
	return c.network.listen(ctx, network, on)
}

// ListenPacket receives UDP datagrams on an address of this node, through the tunnel only.
func (t *Tunnel) ListenPacket(ctx context.Context, network string, on netip.AddrPort) (net.PacketConn, error) {
	c, err := t.own(network, "udp", on.Addr())
	if err != nil {
		return nil, err
	}
	return c.network.listenPacket(ctx, network, on)
}

// own is current where the address is one of this node's: never a wildcard, which other links would reach.
func (t *Tunnel) own(network, kind string, a netip.Addr) (*carrier, error) {
	if err := checkNetwork("listen", network, []string{kind}, a); err != nil {
		return nil, err
	}
	if !slices.Contains(t.config.Addresses, a) {
		return nil, &net.OpError{Op: "listen", Net: network, Err: &net.AddrError{Err: "not an address of this node", Addr: a.String()}}
	}
	return t.current()
}

package node

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strconv"
	"strings"
	"time"

	"github.com/miekg/dns"

	"github.com/meshdns/meshdns/node/tunnel"
)

// connect reaches a node for a program of this machine.
func (n *Node) connect(ctx context.Context, to target) (net.Conn, error) {
	m, _ := n.tailnet.current()
	addrs := []netip.Addr{to.addr}
	if !to.addr.IsValid() {
		addrs = addressesOf(m, to.name)
	}
	if len(addrs) == 0 {
		return nil, fmt.Errorf("connecting to %s: %w", to, errNoNode)
	}
	ctx, cancel := context.WithTimeout(ctx, connectTime)
	defer cancel()
	var errs []error
	for i, a := range addrs {
		if !rangeOf(m.Ranges(), a).IsValid() {
			errs = append(errs, errOutside)
			continue
		}
		c, err := n.dialAddress(ctx, netip.AddrPortFrom(a, to.port), len(addrs)-i)
		if err == nil {
			return c, nil
		}
		if errors.Is(err, errNoTunnel) {
			return nil, fmt.Errorf("connecting to %s: %w", to, err)
		}
		errs = append(errs, err)
	}
	return nil, fmt.Errorf("connecting to %s: %w", to, errors.Join(errs...))
}

// dialServed reaches a target of what is served that is not on this machine. A node of the tailnet is reached through the
// tunnel, since the system knows neither its name nor its address while the tunnel is a userspace one.
func (n *Node) dialServed(ctx context.Context, network, address string) (net.Conn, error) {
	host, number, err := net.SplitHostPort(address)
	if err != nil {
		return nil, fmt.Errorf("reaching %s: %w", address, err)
	}
	port, err := strconv.ParseUint(number, 10, 16)
	if err != nil {
		return nil, fmt.Errorf("reaching %s: %w", address, err)
	}
	m, _ := n.tailnet.current()
	to := target{name: host, port: uint16(port)}
	if a, err := netip.ParseAddr(host); err == nil {
		to = target{addr: a, port: to.port}
	}
	ours := rangeOf(m.Ranges(), to.addr).IsValid()
	if !to.addr.IsValid() && (!strings.Contains(host, ".") || strings.HasSuffix(host, "."+m.Zone())) {
		ours = len(addressesOf(m, host)) > 0
	}
	if ours && network == "tcp" {
		return n.connect(ctx, to)
	}
	return new(net.Dialer).DialContext(ctx, network, address)
}

// dialAddress connects to one of a node's addresses, in its share of the time.
func (n *Node) dialAddress(ctx context.Context, to netip.AddrPort, share int) (net.Conn, error) {
	if end, ok := ctx.Deadline(); ok {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, time.Until(end)/time.Duration(share))
		defer cancel()
	}
	switch {
	case n.carrier.tunnel != nil:
		return n.carrier.tunnel.Dial(ctx, "tcp", to)
	case n.cfg.Tunnel.Mode == string(tunnel.Off):
		return new(net.Dialer).DialContext(ctx, "tcp", to.String()) // through whatever carries the tailnet instead
	}
	return nil, errNoTunnel
}

// maxAliases is how many CNAMEs in a row are followed.
const maxAliases = 8

// addressesOf are the addresses of a name of the tailnet: a node's or service's, or one of the map's records.
func addressesOf(m *Map, name string) []netip.Addr {
	name = strings.TrimSuffix(foldName(name), ".")
	if node, ok := m.Node(name); ok {
		return node.Addresses
	}
	if !strings.HasSuffix(name, "."+m.Zone()) {
		name = m.FQDN(name)
	}
	records := m.Records()
	for range maxAliases {
		owned := recordsOf(records, name+".")
		if _, parent, ok := strings.Cut(name, "."); ok && len(owned) == 0 {
			owned = recordsOf(records, "*."+parent+".")
		}
		var addrs []netip.Addr
		alias := ""
		for _, rr := range owned {
			switch rr := rr.(type) {
			case *dns.A:
				addrs = appendIP(addrs, rr.A)
			case *dns.AAAA:
				addrs = appendIP(addrs, rr.AAAA)
			case *dns.CNAME:
				alias = strings.TrimSuffix(foldName(rr.Target), ".")
			}
		}
		if alias == "" {
			return addrs
		}
		name = alias
	}
	return nil
}

func recordsOf(records []dns.RR, name string) []dns.RR {
	var list []dns.RR
	for _, rr := range records {
		if strings.EqualFold(rr.Header().Name, name) {
			list = append(list, rr)
		}
	}
	return list
}

func appendIP(list []netip.Addr, ip net.IP) []netip.Addr {
	if a, ok := netip.AddrFromSlice(ip); ok {
		list = append(list, a.Unmap())
	}
	return list
}

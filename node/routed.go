package node

import (
	"fmt"
	"net"
	"net/netip"
	"slices"
)

// routed says why this machine sends nothing to a place; nil: it has a route there. A host without IPv6, or with nothing
// else, learns so at once which of a gateway's addresses are worth a wait.
func routed(to netip.AddrPort) error {
	conn, err := net.Dial("udp", to.String()) // which sends nothing: it asks the routing table
	if err != nil {
		return fmt.Errorf("looking for a route to %s: %w", to.Addr(), err)
	}
	return conn.Close()
}

// turn has the gateway be reached from now on at the first endpoint from one on that there is a route to; at that one itself
// where there is a route to none.
func (g *gatewayContact) turn(from int, route func(netip.AddrPort) error) {
	g.at = from
	for i := range g.Endpoints {
		if route(g.Endpoints[(from+i)%len(g.Endpoints)]) == nil {
			g.at = from + i
			return
		}
	}
}

// carrierAt is where the gateway takes packets over TLS: at the address that is given, or at one of its others with a route.
func carrierAt(carrier netip.AddrPort, endpoints []netip.AddrPort, route func(netip.AddrPort) error) netip.AddrPort {
	if !carrier.IsValid() || route(carrier) == nil {
		return carrier
	}
	i := slices.IndexFunc(endpoints, func(e netip.AddrPort) bool { return route(e) == nil })
	if i < 0 {
		return carrier
	}
	return netip.AddrPortFrom(endpoints[i].Addr(), carrier.Port())
}

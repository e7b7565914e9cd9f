package node

import (
	"fmt"

	"github.com/vishvananda/netlink"
)

// findUplink finds the link of the default route; without such a route it is the zero uplink.
func findUplink() (uplink, error) {
	for _, family := range []int{netlink.FAMILY_V4, netlink.FAMILY_V6} {
		routes, err := netlink.RouteList(nil, family)
		if err != nil {
			return uplink{}, fmt.Errorf("listing routes: %w", err)
		}
		var best *netlink.Route
		for _, r := range routes {
			isDefault := r.Dst == nil || r.Dst.IP.IsUnspecified() && maskBits(r) == 0
			if isDefault && r.LinkIndex > 0 && (best == nil || r.Priority < best.Priority) {
				best = &r
			}
		}
		if best == nil {
			continue
		}
		l, err := netlink.LinkByIndex(best.LinkIndex)
		if err != nil {
			return uplink{}, fmt.Errorf("finding the link of the default route: %w", err)
		}
		return uplink{name: l.Attrs().Name, mtu: l.Attrs().MTU}, nil
	}
	return uplink{}, nil
}

// maskBits is the length of a route's destination.
func maskBits(r netlink.Route) int {
	bits, _ := r.Dst.Mask.Size()
	return bits
}

// tunnelKind is what kind of tunnel a link is; "" if it is none. A TAP is mostly a virtual machine's.
func tunnelKind(name string) string {
	l, err := netlink.LinkByName(name)
	if err != nil {
		return "" // it went away meanwhile
	}
	if tun, ok := l.(*netlink.Tuntap); ok && tun.Mode == netlink.TUNTAP_MODE_TUN {
		return "TUN"
	}
	if l.Type() == "wireguard" {
		return "WireGuard"
	}
	return ""
}

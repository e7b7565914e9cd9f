package node

import (
	"net/netip"

	"github.com/vishvananda/netlink"
)

// systemRoutes lists the destinations of the routes of both families, in every table.
func systemRoutes() ([]netip.Prefix, error) {
	// A filter by an all-zero table lists the routes of all tables.
	routes, err := netlink.RouteListFiltered(netlink.FAMILY_ALL, &netlink.Route{}, netlink.RT_FILTER_TABLE)
	if err != nil {
		return nil, err
	}
	var out []netip.Prefix
	for _, r := range routes {
		if r.Dst == nil {
			continue
		}
		if p, err := netip.ParsePrefix(r.Dst.String()); err == nil {
			out = append(out, p)
		}
	}
	return out, nil
}

package node

import (
	"net/netip"
	"strings"
)

// reverseZones are the zones below in-addr.arpa and ip6.arpa that hold the names of the addresses in ranges, without a
// final dot. A range that ends inside a label takes several: 10.1.16.0/20 is sixteen zones of a /24 each.
func reverseZones(ranges []netip.Prefix) []string {
	var zones []string
	for _, p := range ranges {
		unit, root := 4, "ip6.arpa"
		if p.Addr().Is4() {
			unit, root = 8, "in-addr.arpa"
		}
		labels := (p.Bits() + unit - 1) / unit
		for a := p.Masked().Addr(); p.Contains(a); {
			words := strings.Split(strings.TrimSuffix(reverseName(a), "."+root+"."), ".")
			words = append(words[len(words)-labels:], root)
			zones = append(zones, strings.Join(words, "."))
			last := lastAddr(netip.PrefixFrom(a, labels*unit))
			if a = last.Next(); !a.IsValid() {
				break // that was the end of all addresses
			}
		}
	}
	return zones
}

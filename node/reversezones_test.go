package node

import (
	"net/netip"
	"slices"
	"testing"
)

func TestReverseZonesCoverTheRangeAndNoMore(t *testing.T) {
	tests := []struct {
		name, prefix string
		count        int
		first, last  string
	}{
		{"a whole octet", "10.8.0.0/24", 1, "0.8.10.in-addr.arpa", "0.8.10.in-addr.arpa"},
		{"inside an octet", "10.1.16.0/20", 16, "16.1.10.in-addr.arpa", "31.1.10.in-addr.arpa"},
		{"Tailscale's range", "100.64.0.0/10", 64, "64.100.in-addr.arpa", "127.100.in-addr.arpa"},
		{"one address", "192.0.2.7/32", 1, "7.2.0.192.in-addr.arpa", "7.2.0.192.in-addr.arpa"},
		{"the end of all addresses", "255.255.255.0/24", 1, "255.255.255.in-addr.arpa", "255.255.255.in-addr.arpa"},
		{"a ULA", "fd7a:115c:a1e0::/48", 1, "0.e.1.a.c.5.1.1.a.7.d.f.ip6.arpa", "0.e.1.a.c.5.1.1.a.7.d.f.ip6.arpa"},
		{"inside a nibble", "fd00::/10", 4, "0.d.f.ip6.arpa", "3.d.f.ip6.arpa"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			p := netip.MustParsePrefix(tt.prefix)
			zones := reverseZones([]netip.Prefix{p})
			if len(zones) != tt.count || zones[0] != tt.first || zones[len(zones)-1] != tt.last {
				t.Errorf("got %d zones, %s to %s; want %d, %s to %s", len(zones), zones[0], zones[len(zones)-1],
					tt.count, tt.first, tt.last)
			}
			if slices.Contains(zones, "") {
				t.Errorf("an empty zone in %q", zones)
			}
		})
	}
}

package node

import (
	"net/netip"
	"testing"

	"github.com/meshdns/meshdns/osconfig"
)

func TestVPNsAreNamedWithWhatTheyDo(t *testing.T) {
	at := netip.MustParseAddr
	tailscale := link{name: "tailscale0", addrs: []netip.Prefix{netip.MustParsePrefix("100.70.1.2/32")}}
	many := []string{"lab.ts.net", "1.example", "2.example", "3.example", "4.example", "5.example"}
	for _, tt := range []struct {
		name   string
		tunnel []osconfig.Tunnel
		want   string
	}{
		{"nothing", nil, "leaves the machine's DNS alone"},
		{"another link's", []osconfig.Tunnel{{Link: "wg0", All: true}}, "leaves the machine's DNS alone"},
		{"some names", []osconfig.Tunnel{{Link: "tailscale0", Servers: []netip.Addr{tailscaleResolver()}, Domains: many}},
			"has 100.100.100.100 asked for lab.ts.net 1.example 2.example 3.example and 2 more"},
		{"every name", []osconfig.Tunnel{{Link: "tailscale0", Servers: []netip.Addr{at("10.9.0.1"), at("10.9.0.2")}, All: true}},
			"has 10.9.0.1 10.9.0.2 asked for every name"},
		{"every name, and domains", []osconfig.Tunnel{{Link: "tailscale0", Servers: []netip.Addr{at("10.9.0.1")}, All: true, Domains: []string{"Corp.test"}}},
			"has 10.9.0.1 asked for every name, and searches corp.test"},
		{"it stands before us", []osconfig.Tunnel{{Link: "tailscale0", Servers: []netip.Addr{tailscaleResolver()}, All: true, Asks: true}},
			"answers this machine's programs at 100.100.100.100, and asks this node for what it does not know"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got := describeVPNs([]link{{name: "lo"}, tailscale, {name: "meshdns0"}}, tt.tunnel)
			if len(got) != 1 || got[0].String() != "Tailscale on tailscale0 "+tt.want {
				t.Errorf("got %v, want Tailscale on tailscale0 %s", got, tt.want)
			}
		})
	}
}

func TestVPNsAreOfNoConcernWhereTheDNSIsLeftAlone(t *testing.T) {
	n, _ := apiNode(t, testConfig(), &fakeSystem{})
	n.takeover.wanted = false
	if got := n.status().VPNs; got == nil || len(got) > 0 {
		t.Errorf("got %v, want an empty list", got)
	}
}

package node

import (
	"errors"
	"net/netip"
	"slices"
	"testing"
)

// routesTo is a machine that has routes to these addresses alone.
func routesTo(addrs ...string) func(netip.AddrPort) error {
	return func(to netip.AddrPort) error {
		if slices.Contains(addrs, to.Addr().String()) {
			return nil
		}
		return errors.New("network is unreachable")
	}
}

func TestAGatewayIsLookedForWhereThereIsARoute(t *testing.T) {
	list := []netip.AddrPort{
		netip.MustParseAddrPort("203.0.113.5:1"), netip.MustParseAddrPort("203.0.113.6:1"), netip.MustParseAddrPort("[2001:db8::5]:1"),
	}
	for name, tt := range map[string]struct {
		routes  []string
		from    int
		want    string
		carrier string
	}{
		"all":                  {[]string{"203.0.113.5", "203.0.113.6", "2001:db8::5"}, 0, "203.0.113.5:1", "203.0.113.5:443"},
		"all, the next":        {[]string{"203.0.113.5", "203.0.113.6", "2001:db8::5"}, 1, "203.0.113.6:1", "203.0.113.5:443"},
		"IPv6 alone":           {[]string{"2001:db8::5"}, 0, "[2001:db8::5]:1", "[2001:db8::5]:443"},
		"IPv6 alone, the next": {[]string{"2001:db8::5"}, 3, "[2001:db8::5]:1", "[2001:db8::5]:443"},
		"no IPv6":              {[]string{"203.0.113.5", "203.0.113.6"}, 2, "203.0.113.5:1", "203.0.113.5:443"},
		"none":                 {nil, 1, "203.0.113.6:1", "203.0.113.5:443"},
	} {
		g := gatewayContact{Endpoints: list, Carrier: netip.MustParseAddrPort("203.0.113.5:443")}
		g.turn(tt.from, routesTo(tt.routes...))
		if got := g.endpoint().String(); got != tt.want {
			t.Errorf("%s: at %s, want %s", name, got, tt.want)
		}
		if got := carrierAt(g.Carrier, g.Endpoints, routesTo(tt.routes...)).String(); got != tt.carrier {
			t.Errorf("%s: over TLS at %s, want %s", name, got, tt.carrier)
		}
	}
	none := gatewayContact{}
	if none.turn(0, routesTo()); none.at != 0 || carrierAt(netip.AddrPort{}, list, routesTo()).IsValid() {
		t.Error("a gateway without endpoints or TLS has got some")
	}
}

func TestARouteIsAskedForAndNothingSent(t *testing.T) {
	if err := routed(netip.MustParseAddrPort("127.0.0.1:9")); err != nil {
		t.Errorf("loopback: %v", err)
	}
	if err := routed(netip.AddrPort{}); err == nil {
		t.Error("there is a route to no address")
	}
}

package node

import (
	"net/netip"
	"slices"
	"testing"

	"github.com/meshdns/meshdns/osconfig"
	"github.com/meshdns/meshdns/resolver"
)

// baseOf is a machine with these servers, on port 53, and search domains.
func baseOf(servers []string, search ...string) osconfig.Base {
	b := osconfig.Base{Search: search}
	for _, s := range servers {
		b.Servers = append(b.Servers, osconfig.Server{AddrPort: netip.AddrPortFrom(netip.MustParseAddr(s), 53)})
	}
	return b
}

// learntFor is who is asked for the names below suffix; ok is false if there is no such route.
func learntFor(b resolver.Base, suffix string) (servers []string, ok bool) {
	for _, route := range b.Learnt {
		if route.Suffix == suffix {
			return spell(route.Upstreams), true
		}
	}
	return nil, false
}

func TestNamesOfTheLocalNetworkGoToItsServersAlone(t *testing.T) {
	tests := []struct {
		name    string
		servers []string
		near    []string
	}{
		{"a home router", []string{"192.168.1.1"}, []string{"192.168.1.1"}},
		{"a router beside a public server", []string{"9.9.9.9", "192.168.1.1", "1.1.1.1"}, []string{"192.168.1.1"}},
		{"two in a company", []string{"10.0.0.1", "172.31.255.254"}, []string{"10.0.0.1", "172.31.255.254"}},
		{"a stub of this machine", []string{"127.0.0.53"}, []string{"127.0.0.53"}},
		{"a unique local one", []string{"fd00::1"}, []string{"fd00::1"}},
		{"a provider's behind its NAT", []string{"100.100.100.100"}, []string{"100.100.100.100"}},
		{"written as IPv6", []string{"::ffff:192.168.1.1"}, []string{"192.168.1.1"}},
		{"public ones", []string{"9.9.9.9", "2606:4700:4700::1111"}, nil},
		{"just outside of the private ranges", []string{"172.32.0.1", "11.0.0.1", "192.169.0.1", "100.128.0.1", "100.63.255.255"}, nil},
		{"none", nil, nil},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			b, err := learn(baseOf(tt.servers))
			must(t, err)
			if len(b.Upstreams) != len(tt.servers) {
				t.Errorf("base: got %v, want all of %v", spell(b.Upstreams), tt.servers)
			}
			for _, zone := range nearZones() {
				got, _ := learntFor(b, zone)
				if !slices.Equal(got, tt.near) {
					t.Errorf("%s: got %q, want %q", zone, got, tt.near)
				}
			}
			if tt.near == nil && len(b.Learnt) > 0 {
				t.Errorf("got routes %v, want none", b.Learnt)
			}
		})
	}
}

func TestNearZonesAreThoseOfPrivateAddresses(t *testing.T) {
	zones := nearZones()
	for _, want := range []string{
		"home.arpa", "10.in-addr.arpa", "16.172.in-addr.arpa", "31.172.in-addr.arpa", "168.192.in-addr.arpa",
		"254.169.in-addr.arpa", "c.f.ip6.arpa", "d.f.ip6.arpa", "8.e.f.ip6.arpa", "b.e.f.ip6.arpa",
	} {
		if !slices.Contains(zones, want) {
			t.Errorf("%s is missing", want)
		}
	}
	for _, not := range []string{"172.in-addr.arpa", "15.172.in-addr.arpa", "32.172.in-addr.arpa", "192.in-addr.arpa", "c.e.f.ip6.arpa", "in-addr.arpa", "arpa"} {
		if slices.Contains(zones, not) {
			t.Errorf("%s is among them, and has public names", not)
		}
	}
	if got := len(zones); got != 1+1+16+1+1+2+4 {
		t.Errorf("got %d zones: %q", got, zones)
	}
}

func TestSearchDomainsAreLearnt(t *testing.T) {
	servers := []string{"10.0.0.1", "9.9.9.9"}
	tests := []struct {
		name, domain, suffix string
		want                 []string
	}{
		{"a company's", "corp.example", "corp.example", servers},
		{"in capitals", "Corp.EXAMPLE", "corp.example", servers},
		{"with its final dot", "corp.example.", "corp.example", servers},
		{"home.arpa", "home.arpa", "home.arpa", servers[:1]},
		{"home.arpa with its final dot", "Home.Arpa.", "home.arpa", servers[:1]},
		{"below home.arpa", "lab.home.arpa", "lab.home.arpa", servers[:1]},
		{"a private reverse zone", "1.168.192.in-addr.arpa", "1.168.192.in-addr.arpa", servers[:1]},
		{"one that only ends alike", "myhome.arpa", "myhome.arpa", servers},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			b, err := learn(baseOf(servers, tt.domain))
			must(t, err)
			if got, ok := learntFor(b, tt.suffix); !ok || !slices.Equal(got, tt.want) {
				t.Errorf("got %q, want %q", got, tt.want)
			}
		})
	}
}

func TestSearchDomainOfHomesIsNotAskedOfPublicServers(t *testing.T) {
	b, err := learn(baseOf([]string{"9.9.9.9"}, "home.arpa", "lab.home.arpa", "corp.example"))
	must(t, err)
	for _, suffix := range []string{"home.arpa", "lab.home.arpa"} {
		if got, ok := learntFor(b, suffix); ok {
			t.Errorf("%s goes to %q (RFC 8375, 4)", suffix, got)
		}
	}
	if got, _ := learntFor(b, "corp.example"); !slices.Equal(got, []string{"9.9.9.9"}) {
		t.Errorf("corp.example: got %q, want the one server there is", got)
	}
}

func TestDomainThatIsSearchedTwiceIsOneRoute(t *testing.T) {
	b, err := learn(baseOf([]string{"10.0.0.1"}, "corp.example", "CORP.example.", "home.arpa"))
	must(t, err)
	seen := map[string]bool{}
	for _, route := range b.Learnt {
		if seen[route.Suffix] {
			t.Errorf("%s stands twice", route.Suffix)
		}
		seen[route.Suffix] = true
	}
}

func TestServerOfAnotherPortIsLearntWithIt(t *testing.T) {
	b, err := learn(osconfig.Base{Servers: []osconfig.Server{{AddrPort: netip.MustParseAddrPort("127.0.0.1:5353")}}})
	must(t, err)
	if got := spell(b.Upstreams); !slices.Equal(got, []string{"127.0.0.1:5353"}) {
		t.Errorf("got %q", got)
	}
}

// What is learnt must be what the resolver takes: an error there would cost all upstreams at once.
func TestResolverTakesWhatIsLearnt(t *testing.T) {
	r, err := resolver.New(resolver.Config{})
	must(t, err)
	for _, search := range [][]string{nil, {"corp.example", "CORP.example."}, {"home.arpa."}, {".", ""}, {"bücher.example"}, {"a..b"}} {
		b, err := learn(baseOf([]string{"10.0.0.1"}, search...))
		must(t, err)
		if err := r.SetBase(b); err != nil {
			t.Errorf("%q: %v", search, err)
		}
	}
}

func TestDomainsOfALinkGoToItsServers(t *testing.T) {
	base := baseOf([]string{"192.0.2.53"}, "lan.example", "corp.example")
	vpn := []osconfig.Server{{AddrPort: netip.MustParseAddrPort("10.9.0.1:53")}}
	base.Routes = map[string][]osconfig.Server{"corp.example": vpn, "9.10.in-addr.arpa": vpn, "not..a.name": vpn}
	b, err := learn(base)
	must(t, err)
	for suffix, want := range map[string]string{"corp.example": "10.9.0.1", "9.10.in-addr.arpa": "10.9.0.1", "lan.example": "192.0.2.53"} {
		if got, _ := learntFor(b, suffix); !slices.Equal(got, []string{want}) {
			t.Errorf("%s: got %q, want %s", suffix, got, want)
		}
	}
	if len(b.Learnt) != 3 {
		t.Errorf("got %v, want three routes", b.Learnt)
	}
}

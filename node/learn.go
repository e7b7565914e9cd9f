package node

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"

	"github.com/miekg/dns"

	"github.com/meshdns/meshdns/osconfig"
	"github.com/meshdns/meshdns/resolver"
)

// learn turns what the machine has by itself into what the resolver forwards to: its servers, and the domains that only
// they know. Those are its search domains and, if a server is on the local network, the names that have no meaning
// outside of it; without such a server they are nobody's, and never sent to a public one (RFC 6761, RFC 6303).
func learn(base osconfig.Base) (resolver.Base, error) {
	var b resolver.Base
	all, near, err := networkUpstreams(base.Servers)
	if err != nil {
		return resolver.Base{}, err
	}
	b.Upstreams = all
	zones := nearZones()
	add := func(domain string, all, near []resolver.Upstream) {
		suffix := strings.ToLower(strings.TrimSuffix(domain, "."))
		// One that is no name must not cost all the rest; the one for all names is the base itself.
		if _, err := dns.PackDomainName(dns.Fqdn(suffix), make([]byte, 256), 0, nil, false); err != nil || suffix == "" {
			return
		}
		within := func(zone string) bool { return suffix == zone || strings.HasSuffix(suffix, "."+zone) }
		if slices.ContainsFunc(zones, within) {
			all = near // many routers have home.arpa searched
		}
		same := func(r resolver.Route) bool { return r.Suffix == suffix }
		if len(all) > 0 && !slices.ContainsFunc(b.Learnt, same) {
			b.Learnt = append(b.Learnt, resolver.Route{Suffix: suffix, Upstreams: all})
		}
	}
	for _, domain := range slices.Sorted(maps.Keys(base.Routes)) {
		all, near, err := networkUpstreams(base.Routes[domain])
		if err != nil {
			return resolver.Base{}, err
		}
		add(domain, all, near)
	}
	for _, domain := range slices.Concat(base.Search, zones) {
		add(domain, all, near)
	}
	return b, nil
}

// networkUpstreams are the upstreams that the machine's nameservers make, and those of them that are near.
func networkUpstreams(servers []osconfig.Server) (all, near []resolver.Upstream, err error) {
	for _, server := range servers {
		u, err := resolver.ParseUpstream(server.AddrPort.String())
		if err != nil {
			return nil, nil, fmt.Errorf("reading the machine's nameservers: %w", err)
		}
		all = append(all, u)
		if isNear(server.AddrPort.Addr()) {
			near = append(near, u)
		}
	}
	return all, near, nil
}

// isNear reports whether a server is this machine or on its network, and so may know names of that network.
func isNear(addr netip.Addr) bool {
	return addr.IsPrivate() || addr.IsLinkLocalUnicast() || addr.IsLoopback() || cgnat().Contains(addr.Unmap())
}

// nearZones are the zones that belong to whoever runs the local network: home.arpa (RFC 8375), and the reverse zones of
// private and link-local addresses (RFC 1918, 3927, 4193 and 4291).
func nearZones() []string {
	zones := []string{"home.arpa"}
	for _, prefix := range []string{
		"10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "169.254.0.0/16", "fc00::/7", "fe80::/10",
	} {
		zones = append(zones, reverseZones([]netip.Prefix{netip.MustParsePrefix(prefix)})...)
	}
	return zones
}

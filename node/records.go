package node

import (
	"net/netip"
	"slices"
	"strconv"

	"github.com/miekg/dns"
)

// Records are the tailnet's names as records, for the resolver's table: the addresses of nodes, service names and
// wildcards, a PTR for each address, then the map's own records. The order is that of the nodes' names, and within a
// node that of the map. The records must not be changed.
func (m *Map) Records() []dns.RR {
	var rrs []dns.RR
	for _, n := range m.nodes {
		rrs = m.appendNode(rrs, n)
	}
	return append(rrs, m.records...)
}

func (m *Map) appendNode(rrs []dns.RR, n Machine) []dns.RR {
	names := append([]string{n.Name}, n.Names...)
	if n.Wildcard {
		names = append(names, "*."+n.Name)
	}
	for _, name := range names {
		for _, a := range n.Addresses {
			rrs = append(rrs, m.addressRecord(name, a))
		}
	}
	for _, a := range n.Addresses {
		rrs = append(rrs, &dns.PTR{Hdr: m.header(reverseName(a), dns.TypePTR), Ptr: m.FQDN(n.Name) + "."})
	}
	return rrs
}

func (m *Map) addressRecord(name string, a netip.Addr) dns.RR {
	owner := m.FQDN(name) + "."
	if a.Is4() {
		return &dns.A{Hdr: m.header(owner, dns.TypeA), A: a.AsSlice()}
	}
	return &dns.AAAA{Hdr: m.header(owner, dns.TypeAAAA), AAAA: a.AsSlice()}
}

func (m *Map) header(owner string, rrtype uint16) dns.RR_Header {
	return dns.RR_Header{Name: owner, Rrtype: rrtype, Class: dns.ClassINET, Ttl: m.ttl}
}

// reverseName is the name of an address below in-addr.arpa or ip6.arpa, with a final dot.
func reverseName(a netip.Addr) string {
	const hex = "0123456789abcdef"
	var b []byte
	for _, octet := range slices.Backward(a.AsSlice()) {
		if a.Is4() {
			b = append(strconv.AppendUint(b, uint64(octet), 10), '.')
			continue
		}
		b = append(b, hex[octet&15], '.', hex[octet>>4], '.')
	}
	if a.Is4() {
		return string(b) + "in-addr.arpa."
	}
	return string(b) + "ip6.arpa."
}

// freeAddress is the highest host address of the first IPv4 range that no node has and nobody in taken, or the zero Addr
// if there is none.
func (m *Map) freeAddress(taken []netip.Addr) netip.Addr {
	i := slices.IndexFunc(m.ranges, func(p netip.Prefix) bool { return p.Addr().Is4() })
	if i < 0 {
		return netip.Addr{}
	}
	used := map[netip.Addr]bool{}
	for _, n := range m.nodes {
		for _, a := range n.Addresses {
			used[a] = true
		}
	}
	r := m.ranges[i]
	for a := lastAddr(r); r.Contains(a); a = a.Prev() {
		if msg, _ := checkPlace(m.ranges[i:i+1], a); msg == "" && !used[a] && !slices.Contains(taken, a) {
			return a
		}
	}
	return netip.Addr{}
}

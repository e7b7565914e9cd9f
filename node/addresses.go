package node

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
)

// cgnat is the shared address space (RFC 6598) that mesh networks use by custom.
func cgnat() netip.Prefix { return netip.MustParsePrefix("100.64.0.0/10") }

// ula holds the unique local addresses (RFC 4193).
func ula() netip.Prefix { return netip.MustParsePrefix("fc00::/7") }

// parseAddresses reads addresses; where one is wrong the result holds the zero Addr.
func (c *checker) parseAddresses(words []word) []netip.Addr {
	out := make([]netip.Addr, len(words))
	for i, w := range words {
		a, err := netip.ParseAddr(w.text)
		switch {
		case err != nil && strings.Contains(w.text, "/"):
			c.hint(w.problem("address", "not an IP address"), "write the address without /LENGTH; ranges are given under ranges:")
		case err != nil:
			c.add(w.problem("address", "not an IP address"))
		case a.Is4In6():
			c.hint(w.problem("address", "an IPv4 address in IPv6 form"), "write "+a.Unmap().String())
		case !isUnicast(a):
			c.add(w.problem("address", "not the address of one machine"))
		default:
			out[i] = a
		}
	}
	return out
}

// isUnicast reports whether a can be the address of one machine as others see it.
func isUnicast(a netip.Addr) bool {
	return a.IsGlobalUnicast() && !a.Is4In6() && a.Zone() == ""
}

// address checks where a node's address lies and claims it.
func (c *checker) address(w word, a netip.Addr, who claim) bool {
	if msg, advice := checkPlace(c.m.ranges, a); msg != "" {
		c.hint(w.problem("address", msg), advice)
		return false
	}
	if first, taken := c.addrs[a]; taken {
		c.add(w.problem("address", "belongs already to "+first.String()))
		return false
	}
	c.addrs[a] = who
	return true
}

// checkPlace says why a machine cannot have address a in a tailnet with these ranges.
func checkPlace(ranges []netip.Prefix, a netip.Addr) (msg, advice string) {
	if len(ranges) == 0 {
		return "", "" // they are wrong themselves, which has been said
	}
	r := rangeOf(ranges, a)
	switch {
	case !r.IsValid():
		return "outside the tailnet's ranges " + listPrefixes(ranges), "give the map's ranges: so that they hold every address of a node"
	case a == r.Addr() && r.Bits() < a.BitLen()-1:
		return "the network address of " + r.String() + ", which no machine can have", ""
	case a.Is4() && r.Bits() < 31 && a == lastAddr(r):
		return "the broadcast address of " + r.String() + ", which no machine can have", ""
	}
	return "", ""
}

func listPrefixes(ps []netip.Prefix) string {
	words := make([]string, len(ps))
	for i, p := range ps {
		words[i] = p.String()
	}
	return strings.Join(words, ", ")
}

// rangeOf finds the range that holds a, or returns the zero Prefix.
func rangeOf(ranges []netip.Prefix, a netip.Addr) netip.Prefix {
	for _, r := range ranges {
		if r.Contains(a) {
			return r
		}
	}
	return netip.Prefix{}
}

// lastAddr is the highest address of p.
func lastAddr(p netip.Prefix) netip.Addr {
	b := p.Masked().Addr().AsSlice()
	for i := range b {
		hostBits := min(max((i+1)*8-p.Bits(), 0), 8)
		b[i] |= byte(1<<hostBits - 1)
	}
	a, _ := netip.AddrFromSlice(b)
	return a
}

// maxRanges bounds the ranges of a map, and shortest how much of the address space one may cover: its reverse zones
// are taken from everybody else.
const (
	maxRanges  = 32
	shortestV4 = 8
	shortestV6 = 16
)

// ranges reads the tailnet's ranges, or derives them from the addresses of its nodes.
func (c *checker) ranges(words []word, addrs []netip.Addr) {
	if len(words) == 0 {
		c.m.ranges, c.m.drawn = defaultRanges(addrs), true
		if len(c.m.ranges) > maxRanges {
			c.hint(Problem{Field: "ranges", Msg: fmt.Sprintf("the addresses lie in more than %d ranges", maxRanges)}, "give ranges: with fewer, larger ones")
		}
		return
	}
	for _, w := range words {
		p, err := netip.ParsePrefix(w.text)
		if err != nil {
			c.hint(w.problem("range", "not an address range"), "write it like 10.8.0.0/24 or fd00:1:2::/48")
			continue
		}
		if msg, advice := checkRange(p, c.m.ranges); msg != "" {
			c.hint(w.problem("range", msg), advice)
			continue
		}
		c.m.ranges = append(c.m.ranges, p)
	}
	if len(words) > maxRanges {
		c.add(words[maxRanges].problem("range", fmt.Sprintf("one of more than %d", maxRanges)))
	}
}

// checkRange says why p cannot be a range beside the others.
func checkRange(p netip.Prefix, others []netip.Prefix) (msg, advice string) {
	shortest := shortestV6
	if p.Addr().Is4() {
		shortest = shortestV4
	}
	switch {
	case p.Addr().Is4In6():
		return "an IPv4 range in IPv6 form", "write it as an IPv4 range"
	case p != p.Masked():
		return "has host bits set", "write " + p.Masked().String()
	case p.Bits() < shortest:
		return fmt.Sprintf("too large; at least /%d is wanted", shortest), ""
	}
	for _, r := range []string{"0.0.0.0/8", "127.0.0.0/8", "169.254.0.0/16", "224.0.0.0/3", "::/16", "fe80::/10", "ff00::/8"} {
		if p.Overlaps(netip.MustParsePrefix(r)) {
			return "overlaps " + r + ", which is no network of machines", ""
		}
	}
	if i := slices.IndexFunc(others, p.Overlaps); i >= 0 {
		return "overlaps the range " + others[i].String(), ""
	}
	return "", ""
}

// defaultRanges are the ranges of a map that gives none: 100.64.0.0/10 and the /48 of each unique local address.
func defaultRanges(addrs []netip.Addr) []netip.Prefix {
	ranges := []netip.Prefix{cgnat()}
	for _, a := range addrs {
		if !ula().Contains(a) || len(ranges) > maxRanges {
			continue
		}
		if p, _ := a.Prefix(48); !slices.Contains(ranges, p) {
			ranges = append(ranges, p)
		}
	}
	return ranges
}

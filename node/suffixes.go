package node

import (
	"net/netip"
	"strings"

	"golang.org/x/net/publicsuffix"
)

// checkZone makes a zone canonical and says why it cannot be one, with advice.
func checkZone(s string) (zone, msg, advice string) {
	zone, msg = checkDomain(s)
	switch {
	case msg != "":
		return "", msg, ""
	case len(zone) > maxName-maxLabel-1-2:
		// A node's name and a wildcard before it must fit.
		return "", "too long: no room for a node's name before it", ""
	case within(zone, "home.arpa"), within(zone, "internal"):
		return zone, "", "" // for private use (RFC 8375; ICANN board resolution 2024.07.29.06)
	}
	for _, special := range []string{"local", "localhost", "invalid", "onion", "arpa"} {
		if within(zone, special) {
			return "", "lies in ." + special + ", which means something else on every machine (RFC 6761)", "take a zone of your own, or " + defaultZone
		}
	}
	if isPublicSuffix(zone) {
		return "", "a public suffix: its names belong to many owners", "take a name below it, such as my-net." + zone + ", or " + defaultZone
	}
	return zone, "", ""
}

// isPublicSuffix reports whether many owners have names directly below the canonical domain. A single label that no
// list knows is not one: it does not exist in public.
func isPublicSuffix(domain string) bool {
	if !strings.Contains(domain, ".") {
		return isTopLevel(domain)
	}
	suffix, _ := publicsuffix.PublicSuffix(domain)
	return suffix == domain
}

// isTopLevel reports whether a label is delegated as a top-level domain. The list has an entry for every one of them,
// some only for what lies below (*.ck), and is as new as golang.org/x/net.
func isTopLevel(label string) bool {
	_, icann := publicsuffix.PublicSuffix("x." + label)
	return icann
}

// refusedName says why a label must not be a node's or service's name, or an own record of the zone: programs look
// such names up by themselves below every search domain and trust who answers.
func refusedName(label string, wildcard bool) string {
	switch label {
	case "wpad":
		return "browsers look for their proxy here"
	case "isatap":
		return "Windows looks for an IPv6 router here"
	case "localhost":
		return "means the machine itself (RFC 6761)"
	case "autodiscover", "autoconfig":
		return "mail programs look for their settings here and send passwords"
	case "mta-sts":
		return "mail servers look for a domain's policy here (RFC 8461)"
	}
	if wildcard && isTopLevel(label) {
		return "a top-level domain: with the wildcard and a search domain, every name below ." + label + " would lead here"
	}
	return ""
}

// capture says why questions below suffix must not be sent elsewhere, or nothing: the zone and the reverse zones of
// the tailnet's ranges are answered from the map and never forwarded.
func (m *Map) capture(suffix string) string {
	if m.zone != "" && within(suffix, m.zone) {
		return "would capture the zone " + m.zone + ", which is never forwarded"
	}
	if p, ok := parseReverse(suffix); ok {
		for _, r := range m.ranges {
			if r.Overlaps(p) && p.Bits() >= r.Bits() {
				return "would capture the reverse zone of " + r.String() + ", which is never forwarded"
			}
		}
	}
	return ""
}

// parseReverse reads a name below in-addr.arpa or ip6.arpa as the prefix that it stands for.
func parseReverse(name string) (netip.Prefix, bool) {
	if rest, ok := strings.CutSuffix(name, ".in-addr.arpa"); ok {
		return parseReverse4(strings.Split(rest, "."))
	}
	if rest, ok := strings.CutSuffix(name, ".ip6.arpa"); ok {
		return parseReverse6(strings.Split(rest, "."))
	}
	return netip.Prefix{}, false
}

func parseReverse4(labels []string) (netip.Prefix, bool) {
	if len(labels) > 4 {
		return netip.Prefix{}, false
	}
	octets := []string{"0", "0", "0", "0"}
	for i, l := range labels {
		octets[len(labels)-1-i] = l
	}
	a, err := netip.ParseAddr(strings.Join(octets, "."))
	if err != nil || !a.Is4() {
		return netip.Prefix{}, false
	}
	return netip.PrefixFrom(a, 8*len(labels)), true
}

func parseReverse6(labels []string) (netip.Prefix, bool) {
	if len(labels) > 32 {
		return netip.Prefix{}, false
	}
	var b [16]byte
	for i, l := range labels {
		nibble := strings.Index("0123456789abcdef", l)
		if len(l) != 1 || nibble < 0 {
			return netip.Prefix{}, false
		}
		at := len(labels) - 1 - i
		b[at/2] |= byte(nibble) << (4 * (1 - at%2))
	}
	return netip.PrefixFrom(netip.AddrFrom16(b), 4*len(labels)), true
}

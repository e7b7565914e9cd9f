package node

import (
	"net/netip"
	"strings"
	"unicode"
)

// defaultMap is the map of a machine that has none: the zone, and one node named after the host, with the first
// address of each range. An empty zone means mesh.internal.
func defaultMap(hostname, zone string, r drawnRanges) *Map {
	if zone == "" {
		zone = defaultZone
	}
	n := Machine{Name: hostLabel(hostname)}
	m := &Map{name: "default", zone: foldName(zone), ttl: defaultTTL, drawn: true}
	for _, p := range []netip.Prefix{r.V4, r.V6} {
		if p.IsValid() {
			m.ranges = append(m.ranges, p)
			n.Addresses = append(n.Addresses, p.Addr().Next())
		}
	}
	m.nodes = []Machine{n}
	return m
}

// hostLabel makes a host's name a node's name; "node" if nothing in it can be one.
func hostLabel(hostname string) string {
	label := makeLabel(hostname)
	if label == "" || refusedName(label, false) != "" {
		return "node"
	}
	return label
}

// makeLabel makes a label of the first part of a name that somebody gave a machine: "Jürgen's PC.lan" becomes the
// A-label of jürgen-s-pc. It is "" if nothing is left.
func makeLabel(name string) string {
	first, _, _ := strings.Cut(name, ".")
	if label, msg := checkLabel(first); msg == "" {
		return label
	}
	words := strings.FieldsFunc(strings.ToLower(first), func(r rune) bool { return !unicode.IsLetter(r) && !unicode.IsDigit(r) })
	if label, msg := checkLabel(strings.Join(words, "-")); msg == "" {
		return label
	}
	// Too long, or letters that do not go together: keep what is plain.
	ascii := strings.FieldsFunc(strings.ToLower(first), func(r rune) bool { return !(r >= 'a' && r <= 'z' || r >= '0' && r <= '9') })
	short := strings.Join(ascii, "-")
	short = strings.Trim(short[:min(len(short), maxLabel)], "-")
	if label, msg := checkLabel(short); msg == "" {
		return label
	}
	return ""
}

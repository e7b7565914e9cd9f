package resolver

import (
	"cmp"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"github.com/miekg/dns"
)

// TableConfig is what a Table is made from.
type TableConfig struct {
	// Zone is the suffix of the tailnet's names, with or without the final dot. Required.
	Zone string
	// Ranges are the tailnet's addresses; their reverse zones belong to the table. Ranges may overlap. A reverse
	// zone ends at a whole octet (IPv4) or nibble (IPv6), so a range may need several: 100.64.0.0/10 is
	// 64.100.in-addr.arpa to 127.100.in-addr.arpa. One of length 0 is an error.
	Ranges []netip.Prefix
	// Records have absolute owners in Zone or in a reverse zone. One whose owner begins with "*." is a wildcard.
	// They are only read.
	Records []dns.RR
	// Serial is the number of the SOA records that the table adds where Records has none.
	Serial uint32
	// TTL is in seconds, of records whose own is zero and of those that the table adds; 60 if zero.
	TTL uint32
}

// Times of the SOA records that are added, in seconds. Nobody transfers these zones, so only the last two
// matter: how long a program may keep an answer is how long it takes to see a change of the map. Five seconds,
// as Tailscale has, make every page load ask again; a minute is what a user who has just renamed a node waits.
const (
	defaultTTL  = 60
	maxNegative = 60 // of answers that say "no"; macOS keeps those longer than it likes
	soaRefresh  = 3600
	soaRetry    = 600
	soaExpire   = 86400
)

// maxTTL is the longest time to live there is (RFC 2181, 8).
const maxTTL = 1<<31 - 1

// NewTable makes a Table. Duplicates of a record are dropped, and the records of one name and type get the lowest
// TTL of them all (RFC 2181, 5.2). SOA and NS records are added at the top of each zone that has none. The error
// joins all problems, each naming its record: owners outside the zones, classes other than IN, a CNAME beside
// other data or at the top of a zone, CNAMEs in a loop or more than 16 in a row, data that fits no message.
func NewTable(c TableConfig) (*Table, error) {
	zones, err := c.zones()
	if err != nil {
		return nil, err
	}
	zone := presentName(zones[0])
	slices.SortFunc(zones, func(x, y []byte) int { return cmp.Compare(len(x), len(y)) }) // outer before inner
	b := newTableBuilder(c)
	for _, z := range zones {
		b.addZone(z)
	}
	for _, rr := range c.Records {
		b.addOrReport(rr)
	}
	b.addTops(zone)
	t := b.build()
	b.link(t)
	if len(b.errs) > 0 {
		return nil, errors.Join(b.errs...)
	}
	return t, nil
}

// zones returns the wire names of the zones, that of the tailnet first, each once.
func (c *TableConfig) zones() ([][]byte, error) {
	zone, err := wireName(c.Zone)
	if err == nil && (zone[0] == 0 || isWildcard(zone)) {
		err = &nameError{name: c.Zone}
	}
	if err != nil {
		err = fmt.Errorf("reading zone %q: %w", c.Zone, err)
	}
	ranges, rangeErr := mergeRanges(c.Ranges)
	zones := [][]byte{zone}
	for _, p := range ranges {
		for _, name := range reverseZones(p) {
			if string(name) != string(zone) {
				zones = append(zones, name)
			}
		}
	}
	return zones, errors.Join(err, rangeErr)
}

// isWildcard reports whether the first label of a wire name is "*".
func isWildcard(wire []byte) bool { return len(wire) > 2 && wire[0] == 1 && wire[1] == '*' }

// mergeRanges returns the ranges in order, without those that lie within another.
func mergeRanges(ranges []netip.Prefix) ([]netip.Prefix, error) {
	var errs []error
	var all []netip.Prefix
	for _, p := range ranges {
		if p.Addr().Is4In6() && p.Bits() >= 96 {
			p = netip.PrefixFrom(p.Addr().Unmap(), p.Bits()-96)
		}
		if p.Bits() <= 0 || p.Addr().Is4In6() {
			errs = append(errs, fmt.Errorf("range %s: no range of addresses that could have a reverse zone", p))
			continue
		}
		all = append(all, p.Masked())
	}
	slices.SortFunc(all, func(a, b netip.Prefix) int {
		return cmp.Or(a.Addr().Compare(b.Addr()), cmp.Compare(a.Bits(), b.Bits()))
	})
	merged := all[:0]
	for _, p := range all {
		if n := len(merged); n == 0 || !merged[n-1].Contains(p.Addr()) {
			merged = append(merged, p)
		}
	}
	return merged, errors.Join(errs...)
}

// reverseZones returns the wire names of the zones that cover p exactly: at most 128 for IPv4, 8 for IPv6.
func reverseZones(p netip.Prefix) [][]byte {
	addr, unit := p.Addr().AsSlice(), 8
	if p.Addr().Is6() {
		unit = 4
	}
	labels := (p.Bits() + unit - 1) / unit
	var zones [][]byte
	for i := range 1 << (labels*unit - p.Bits()) {
		// The bits of the last label that the prefix leaves open count through the zones.
		b := slices.Clone(addr)
		if last := labels - 1; unit == 8 {
			b[last] += byte(i)
		} else {
			b[last/2] += byte(i) << (4 * (1 - last%2))
		}
		zones = append(zones, reverseName(b, labels))
	}
	return zones
}

// reverseName is the wire name under in-addr.arpa or ip6.arpa for the first octets or nibbles of an address.
func reverseName(addr []byte, labels int) []byte {
	var name []byte
	label := func(s string) { name = append(append(name, byte(len(s))), s...) }
	for i := labels - 1; i >= 0; i-- {
		if len(addr) == 4 {
			label(strconv.Itoa(int(addr[i])))
		} else {
			label(strconv.FormatInt(int64(addr[i/2]>>(4*(1-i%2))&0xf), 16))
		}
	}
	if len(addr) == 4 {
		label("in-addr")
	} else {
		label("ip6")
	}
	label("arpa")
	return append(name, 0)
}

// addTops adds SOA and NS records at the tops of the zones that have none. zone is the tailnet's, under which
// the server's name is made.
func (b *tableBuilder) addTops(zone string) {
	for _, top := range b.tops {
		have := b.types(top)
		header := func(rtype uint16) dns.RR_Header {
			return dns.RR_Header{
				Name: presentName([]byte(b.nodes[top].name)), Rrtype: rtype, Class: dns.ClassINET, Ttl: b.ttl,
			}
		}
		if !slices.Contains(have, dns.TypeSOA) {
			b.addOrReport(&dns.SOA{
				Hdr: header(dns.TypeSOA), Ns: "ns." + zone, Mbox: "hostmaster." + zone, Serial: b.serial,
				Refresh: soaRefresh, Retry: soaRetry, Expire: soaExpire, Minttl: min(b.ttl, maxNegative),
			})
		}
		if !slices.Contains(have, dns.TypeNS) {
			b.addOrReport(&dns.NS{Hdr: header(dns.TypeNS), Ns: "ns." + zone})
		}
	}
}

// recordError says which record is at fault.
type recordError struct {
	record string
	err    error
}

func (e *recordError) Error() string { return "record " + e.record + ": " + e.err.Error() }
func (e *recordError) Unwrap() error { return e.err }

// maxShown is how much of a record an error shows, in octets: data can be 64 KiB long.
const maxShown = 120

func newRecordError(rr dns.RR, err error) error {
	if rr == nil {
		return &recordError{record: "nil", err: err}
	}
	text := strings.Join(strings.Fields(rr.String()), " ")
	if len(text) > maxShown {
		text = text[:maxShown] + "..."
	}
	return &recordError{record: text, err: err}
}

package node

import (
	"fmt"
	"slices"
	"strings"

	"github.com/miekg/dns"
)

// owned is what one name of the zone has.
type owned struct {
	types map[uint16]position // where each first stood
	cname string              // the target, lower case, with a final dot
	size  int                 // packed bytes of all its records
}

// maxOwned is how many bytes the records of one name may take, so that each answer fits one message.
const maxOwned = 32 << 10

// owners is what each full name has, lower case, with a final dot.
type owners map[string]*owned

func (o owners) get(name string) *owned {
	if o[name] == nil {
		o[name] = &owned{types: map[uint16]position{}}
	}
	return o[name]
}

// records reads the records block and checks it against the nodes.
func (c *checker) records(b recordBlock, data []byte) {
	z := zoneReader{block: b, lines: strings.Split(string(data), "\n"), origin: c.m.zone + ".", ttl: c.m.ttl}
	z.read()
	c.problems = append(c.problems, z.problems...)
	o := c.nodeOwners()
	seen := make(map[string]bool, len(z.records))
	for _, r := range z.records {
		h := r.rr.Header()
		h.Name = strings.ToLower(h.Name)
		if !c.record(r) {
			continue
		}
		// Whatever its TTL: all records of one name and type have one (RFC 2181, 5.2), the first's.
		text := h.Name + dns.TypeToString[h.Rrtype] + strings.TrimPrefix(r.rr.String(), h.String())
		twice := seen[text]
		seen[text] = true
		if !twice && c.claimRecord(o, r) { // twice the same record is one record
			c.m.records = append(c.m.records, r.rr)
		}
	}
	c.cnameLoops(o)
}

// nodeOwners is what the nodes' names have before any record.
func (c *checker) nodeOwners() owners {
	o := owners{}
	for name, claim := range c.names {
		o.get(name + "." + c.m.zone + ".").types[dns.TypeA] = claim.at
	}
	for _, n := range c.m.nodes {
		if n.Wildcard && n.Name != "" {
			o.get("*." + n.Name + "." + c.m.zone + ".").types[dns.TypeA] = c.names[n.Name].at
		}
	}
	return o
}

// record checks one record by itself.
func (c *checker) record(r locatedRR) bool {
	h := r.rr.Header()
	owner := strings.TrimSuffix(h.Name, ".")
	shown := owner + " " + dns.TypeToString[h.Rrtype]
	msg := checkType(h)
	if msg == "" {
		msg = checkOwner(owner)
	}
	if msg == "" {
		msg = c.outside(owner)
	}
	if msg == "" {
		msg = packing(r.rr)
	}
	if msg != "" {
		c.add(r.at.problem("record", shown, msg))
		return false
	}
	if msg, name := c.refusedOwner(owner); msg != "" {
		c.hint(r.at.problem("record", shown, msg), fmt.Sprintf("choose another name; if you mean it, add to the map: force: [%q]", name))
	}
	return true
}

// packing says why a record does not fit into a message. It is unpacked again because only that looks at the length of
// its names.
func packing(rr dns.RR) string {
	wire := make([]byte, maxOwned)
	n, err := dns.PackRR(rr, wire, 0, nil, false)
	if err == nil {
		_, _, err = dns.UnpackRR(wire[:n], 0)
	}
	if err != nil {
		return "does not fit into a message: " + strings.TrimPrefix(err.Error(), "dns: ")
	}
	return ""
}

// checkType says why a record of this type and class cannot be in a map.
func checkType(h *dns.RR_Header) string {
	switch {
	case h.Class != dns.ClassINET:
		return "only class IN is served"
	case h.Ttl > maxTTL:
		return "the TTL is too large"
	case h.Rrtype == dns.TypeSOA:
		return "the zone's SOA is made by meshdns"
	case h.Rrtype == dns.TypeNS || h.Rrtype == dns.TypeDNAME:
		return "the zone is answered from the map as a whole: no part of it is delegated or renamed"
	case h.Rrtype == dns.TypeOPT || h.Rrtype >= 128 && h.Rrtype <= 255 || h.Rrtype == 0:
		return "this type is for queries, not for data (RFC 6895, 3.1)"
	}
	return ""
}

// checkOwner says what is wrong with a record's name. Unlike a machine's it may hold underscores, and an asterisk as
// its first label.
func checkOwner(owner string) string {
	for i, l := range strings.Split(owner, ".") {
		if i == 0 && l == "*" {
			continue
		}
		if msg := checkLDH(strings.ReplaceAll(l, "_", "x")); msg != "" {
			return "not a valid name: " + labelProblem(l, msg)
		}
		if strings.HasPrefix(l, "xn--") {
			if _, msg := checkLabel(l); msg != "" {
				return "not a valid name: " + labelProblem(l, msg)
			}
		}
	}
	return ""
}

// outside says whether a record lies neither in the zone nor in a reverse zone of the ranges.
func (c *checker) outside(owner string) string {
	if within(owner, c.m.zone) {
		return ""
	}
	if p, ok := parseReverse(owner); ok {
		for _, r := range c.m.ranges {
			if r.Overlaps(p) && p.Bits() >= r.Bits() {
				return ""
			}
		}
		return "outside the reverse zones of the tailnet's ranges " + listPrefixes(c.m.ranges)
	}
	return "outside the zone " + c.m.zone
}

// refusedOwner applies rule S12 to a record: to a name directly below the zone, to a wildcard below such a name, and
// to the zone's own wildcard, which has all of these names.
func (c *checker) refusedOwner(owner string) (msg, name string) {
	rel := strings.TrimSuffix(owner, "."+c.m.zone)
	label, wildcard := strings.CutPrefix(rel, "*.")
	switch {
	case rel == "*":
		msg, label = "the zone's wildcard holds every name, also those that programs look up by themselves", "*"
	case !strings.Contains(label, "."):
		msg = refusedName(label, wildcard)
	}
	if msg == "" || c.m.force.has(label) {
		return "", ""
	}
	return msg, label
}

// claimRecord notes that a name has a record, unless that contradicts what it has already.
func (c *checker) claimRecord(o owners, r locatedRR) bool {
	h := r.rr.Header()
	has := o.get(h.Name)
	rel := strings.TrimSuffix(strings.TrimSuffix(h.Name, "."), "."+c.m.zone)
	if msg := c.contradiction(has, h, strings.TrimPrefix(rel, "*.")); msg != "" {
		c.add(r.at.problem("record", strings.TrimSuffix(h.Name, ".")+" "+dns.TypeToString[h.Rrtype], msg))
		return false
	}
	if _, ok := has.types[h.Rrtype]; !ok {
		has.types[h.Rrtype] = r.at
	}
	if cname, ok := r.rr.(*dns.CNAME); ok {
		has.cname = strings.ToLower(cname.Target)
	}
	if has.size += dns.Len(r.rr); has.size > maxOwned {
		c.add(r.at.problem("record", strings.TrimSuffix(h.Name, "."), fmt.Sprintf("its records take more than %d bytes", maxOwned)))
		return false
	}
	return true
}

// contradiction says why a name that has what it has cannot have a record of h's type too.
func (c *checker) contradiction(has *owned, h *dns.RR_Header, rel string) string {
	node, isNode := c.names[rel]
	address := h.Rrtype == dns.TypeA || h.Rrtype == dns.TypeAAAA
	_, hasA := has.types[dns.TypeA]
	switch {
	case isNode && hasA && has.types[dns.TypeA] == node.at && h.Rrtype == dns.TypeCNAME:
		return "a CNAME beside other data (RFC 1034, 3.6.2): the name is that of " + node.String()
	case isNode && hasA && has.types[dns.TypeA] == node.at && address:
		return "the name is that of " + node.String() + "; its addresses are given there"
	case h.Rrtype == dns.TypeCNAME && has.cname != "":
		return fmt.Sprintf("a second CNAME of one name, first in line %d", has.types[dns.TypeCNAME].line)
	case h.Rrtype == dns.TypeCNAME && len(has.types) > 0:
		return "a CNAME beside other data (RFC 1034, 3.6.2), which is in line " + firstLine(has)
	case has.cname != "":
		return fmt.Sprintf("beside the CNAME in line %d (RFC 1034, 3.6.2)", has.types[dns.TypeCNAME].line)
	}
	return ""
}

func firstLine(has *owned) string {
	lines := make([]int, 0, len(has.types))
	for _, at := range has.types {
		lines = append(lines, at.line)
	}
	return fmt.Sprint(slices.Min(lines))
}

// cnameLoops finds the CNAMEs that lead back to themselves, each loop once.
func (c *checker) cnameLoops(o owners) {
	o.addNodesBetween(c.m.zone + ".")
	done := map[string]bool{}
	for _, r := range c.m.records {
		name := r.Header().Name
		if r.Header().Rrtype != dns.TypeCNAME || done[name] {
			continue
		}
		onPath, path := map[string]bool{}, []string{}
		for name != "" && !done[name] && !onPath[name] {
			onPath[name] = true
			path = append(path, name)
			name = o.match(o[name].cname, c.m.zone+".")
		}
		if onPath[name] {
			loop := append(path[slices.Index(path, name):], name)
			c.add(o[name].types[dns.TypeCNAME].problem("record", strings.TrimSuffix(name, ".")+" CNAME", "leads back to itself: "+strings.Join(loop, " -> ")))
		}
		for _, p := range path {
			done[p] = true
		}
	}
}

// addNodesBetween gives the names between the zone and each owner an entry: they exist, so no wildcard covers them
// (RFC 4592, 2.2.2).
func (o owners) addNodesBetween(zone string) {
	names := make([]string, 0, len(o))
	for name := range o {
		names = append(names, name)
	}
	for _, name := range names {
		for strings.HasSuffix(name, "."+zone) {
			_, name, _ = strings.Cut(name, ".")
			if o[name] != nil {
				break
			}
			o.get(name)
		}
	}
	o.get(zone)
}

// match finds the owner that answers for name: itself, or the wildcard below its closest ancestor that exists. It is
// "" if none does, or if what answers is no CNAME.
func (o owners) match(name, zone string) string {
	for prefix := ""; within(name, zone); prefix = "*." {
		if has := o[prefix+name]; has != nil {
			if has.cname == "" {
				return ""
			}
			return prefix + name
		}
		if prefix != "" && o[name] != nil {
			return ""
		}
		_, name, _ = strings.Cut(name, ".")
	}
	return ""
}

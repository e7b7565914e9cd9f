package node

import (
	"net/netip"
	"slices"
	"strings"
)

// merger adds machines of other sources to a map.
type merger struct {
	m        *Map
	names    map[string]string     // name to who has it
	addrs    map[netip.Addr]string // address to the node that has it
	problems []Problem
}

// mergeMaps returns a map with the machines of other sources added. They give names and addresses only and lose to the map
// and to the sources before them: a name that is taken stays with its owner, an address too (S4). An address outside
// the ranges is refused, unless the map leaves its ranges to the defaults: then 100.64.0.0/10 and the /48 of a unique
// local address are added as they would be for a node of the map. What loses for a reason that the user may want to
// mend is a Problem; the static map is not changed.
func mergeMaps(static *Map, extra ...[]Machine) (*Map, []Problem) {
	merged := *static
	g := &merger{m: &merged, names: map[string]string{}, addrs: map[netip.Addr]string{}}
	merged.nodes = slices.Clone(static.nodes)
	merged.ranges = slices.Clone(static.ranges)
	for _, n := range static.nodes {
		g.claim(n)
	}
	for _, rr := range static.records {
		// Only what stands directly below the zone can be a machine's name.
		name := static.relative(rr.Header().Name)
		if _, taken := g.names[name]; !taken {
			g.names[name] = "a record of the map"
		}
	}
	for _, list := range extra {
		for _, n := range list {
			g.add(n)
		}
	}
	merged.finish()
	return &merged, g.problems
}

func (g *merger) claim(n Machine) {
	for _, name := range append([]string{n.Name}, n.Names...) {
		g.names[name] = "node " + n.Name
	}
	for _, a := range n.Addresses {
		g.addrs[a] = n.Name
	}
}

func (g *merger) problem(n Machine, field, value, msg, advice string) {
	if len(g.problems) < maxProblems {
		g.problems = append(g.problems, Problem{File: n.Source, Field: field, Value: value, Msg: msg, Advice: advice})
	}
}

// add adds what is left of one machine.
func (g *merger) add(n Machine) {
	if g.known(n) {
		return // the map says the same
	}
	if who, taken := g.names[n.Name]; taken {
		g.problem(n, "name", n.Name, "taken already by "+who, "")
		return
	}
	if label, msg := checkLabel(n.Name); msg != "" || label != n.Name {
		g.problem(n, "name", n.Name, "not a valid label", "")
		return
	}
	if msg := refusedName(n.Name, false); msg != "" && !g.m.force.has(n.Name) {
		g.problem(n, "name", n.Name, msg, "rename the machine, or add to the map: force: ["+n.Name+"]")
		return
	}
	added := Machine{Name: n.Name, Source: n.Source}
	for _, a := range n.Addresses {
		if g.address(n, a) {
			added.Addresses = append(added.Addresses, a)
		}
	}
	if len(added.Addresses) > 0 {
		g.m.nodes = append(g.m.nodes, added)
		g.claim(added)
	}
}

// known reports whether the node that has the machine's name has all its addresses too.
func (g *merger) known(n Machine) bool {
	return strings.TrimPrefix(g.names[n.Name], "node ") == n.Name &&
		!slices.ContainsFunc(n.Addresses, func(a netip.Addr) bool { return g.addrs[a] != n.Name })
}

// address reports whether a machine may have an address.
func (g *merger) address(n Machine, a netip.Addr) bool {
	if owner, taken := g.addrs[a]; taken {
		g.problem(n, "address", a.String(), "of "+n.Name+" belongs already to node "+owner, "")
		return false
	}
	g.extend(a)
	if msg, advice := checkPlace(g.m.ranges, a); msg != "" {
		g.problem(n, "address", a.String(), "of "+n.Name+" is "+msg, advice)
		return false
	}
	return true
}

// extend adds the default range that holds a, if the map has default ranges and a lies in none of them.
func (g *merger) extend(a netip.Addr) {
	if !g.m.drawn || rangeOf(g.m.ranges, a).IsValid() || len(g.m.ranges) >= maxRanges {
		return
	}
	for _, p := range defaultRanges([]netip.Addr{a}) {
		if p.Contains(a) && !slices.ContainsFunc(g.m.ranges, p.Overlaps) {
			g.m.ranges = append(g.m.ranges, p)
		}
	}
}

package node

import (
	"cmp"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/meshdns/meshdns/node/control"
)

// The codes of why something is not shown to the world.
const (
	shownNot      = "policy"   // the policy does not let it
	shownNobodys  = "name"     // the name is not the node's
	shownUnproven = "domain"   // nothing in the domain says that it is the node's
	shownTaken    = "taken"    // somebody else shows it
	shownNoPort   = "port"     // the gateway cannot have the port
	shownUnknown  = "kind"     // there is no such kind
	shownWaiting  = "checking" // it is being looked at
)

// showFacts is what decides about what nodes want to show. It is data: the same facts lead to the same decision.
type showFacts struct {
	m      *Map
	wishes map[string][]control.Funnel // by node; of none that is not in the registry
	since  map[showKey]uint64          // in which order they came
	proofs map[string]domainProof      // by domain
	barred map[showPorts]string        // ports of the gateway that are not to be had, and why
	at     func(port uint16) []netip.AddrPort
	ours   func(name string) bool // the gateway has that name for itself
}

// showKey is one thing that one node wants to show.
type showKey struct {
	node string
	name string
	port uint16
	kind string
}

func keyOf(node string, f control.Funnel) showKey { return showKey{node, f.Name, f.Port, f.Kind} }

// shown is something that the world sees.
type shown struct {
	name    string
	port    uint16
	kind    string
	nodes   []string // the first one is its owner, or who came first
	publish string   // the name of the zone that has to have addresses for it; "": none
}

// decision is what becomes of all that is wanted.
type decision struct {
	shown []shown
	of    map[string][]control.Funnel // what each node is told, in the order of its wishes
}

// want is a wish that nothing speaks against but others.
type want struct {
	node    Machine
	f       control.Funnel
	index   int // of the node's wishes
	owner   bool
	since   uint64
	publish string
}

// decide says what becomes of each wish.
func (s showFacts) decide() decision {
	d := decision{of: map[string][]control.Funnel{}}
	claims := map[showKey][]want{} // by what only one can have: a name at a port, or a port
	for _, name := range slices.Sorted(maps.Keys(s.wishes)) {
		node, _ := s.m.Node(name)
		told := make([]control.Funnel, len(s.wishes[name]))
		for i, f := range s.wishes[name] {
			if node.Name != name {
				told[i] = f.Refused(shownNobodys, "", "the gateway does not know %s", name)
				continue
			}
			c := want{node: node, f: f, index: i, since: s.since[keyOf(name, f)]}
			if told[i] = s.judge(&c); told[i].Open {
				key := showKey{name: f.Name, port: f.Port, kind: portKind(f.Kind)}
				claims[key] = append(claims[key], c)
			}
		}
		d.of[name] = told
	}
	s.settlePorts(claims, d)
	for _, key := range slices.SortedFunc(maps.Keys(claims), compareKeys) {
		if one, ok := s.settle(claims[key], d); ok {
			d.shown = append(d.shown, one)
		}
	}
	return d
}

func compareKeys(a, b showKey) int {
	return cmp.Or(cmp.Compare(a.port, b.port), strings.Compare(a.kind, b.kind), strings.Compare(a.name, b.name))
}

// judge looks at one wish by itself.
func (s showFacts) judge(c *want) control.Funnel {
	f, zone := c.f, s.m.Zone()
	kind := portKind(f.Kind)
	switch {
	case kind == "":
		return f.Refused(shownUnknown, "one of https, tls-terminated-tcp, tcp and udp", "%q is nothing that is shown to the world", f.Kind)
	case (kind == portTLS) != (f.Name != ""):
		return f.Refused(shownUnknown, "", "%s has to have a name if it starts with TLS, and none else", f)
	case f.Port == 0:
		return f.Refused(shownNoPort, "", "port 0")
	}
	if refused := s.owned(c); refused != nil {
		return *refused
	}
	if !s.m.showing.allows(zone, c.node, f) {
		return f.Refused(shownNot, "its owner can add to the policy of the gateway: "+policyLine(c.node.Name, f, zone),
			"the tailnet's policy does not let %s show %s", c.node.Name, f)
	}
	for _, one := range []showPorts{{f.Port, f.Port, kind}, {f.Port, f.Port, ""}} {
		if why := s.barred[one]; why != "" {
			return f.Refused(shownNoPort, "take another port", "port %d of the gateway: %s", f.Port, why)
		}
	}
	if c.publish == "" && f.Name == "" {
		c.publish = s.m.FQDN(c.node.Name)
	}
	f.Open, f.At = true, s.at(f.Port)
	return f
}

// policyLine is what a policy needs for a wish.
func policyLine(node string, f control.Funnel, zone string) string {
	kind := portKind(f.Kind)
	if kind == portTLS && f.Port == publicPort && within(f.Name, zone) {
		return "funnel: [" + node + "]"
	}
	port := fmt.Sprint(f.Port)
	if kind != portTLS {
		port += "/" + kind
	}
	if f.Name == "" {
		return fmt.Sprintf("funnel: [{nodes: [%s], ports: [%q]}]", node, port)
	}
	return fmt.Sprintf("funnel: [{nodes: [%s], names: [%q], ports: [%q]}]", node, f.Name, port)
}

// owned finds out whether a name is the node's, or one that policy lists with it. It returns why not.
func (s showFacts) owned(c *want) *control.Funnel {
	name, zone := c.f.Name, s.m.Zone()
	no := func(code, mend, format string, args ...any) *control.Funnel {
		f := c.f.Refused(code, mend, format, args...)
		return &f
	}
	if name == "" {
		return nil
	}
	if within(name, zone) {
		c.publish = name
		if ownsName(s.m, c.node, name) {
			c.owner = true
			return nil
		}
		if s.ours(name) {
			return no(shownNobodys, "", "%s is the gateway's own", name)
		}
		owner, taken := ownerOfName(s.m, name)
		switch {
		case !taken:
			return no(shownNobodys, "take it as a service name: --name "+strings.TrimSuffix(name, "."+zone), "%s is no name of %s", name, c.node.Name)
		case !s.m.showing.lists(zone, owner, c.f) || !s.m.showing.lists(zone, c.node, c.f):
			return no(shownNobodys, "two nodes show one name where the policy lists both", "%s is a name of another node", name)
		}
		return nil
	}
	if _, msg := checkDomain(name); msg != "" || !strings.Contains(name, ".") {
		return no(shownNobodys, "", "%s: %s", name, cmp.Or(msg, "it is no domain"))
	}
	proof, known := s.proofs[name]
	if !known {
		return no(shownWaiting, "", "%s has not been looked up yet", name)
	}
	publish, why := proof.of(s.m, c.node)
	if why != "" {
		return no(shownUnproven, domainMend(s.m, c.node, name), "%s", why)
	}
	c.publish = publish
	return nil
}

// ownsName reports whether a full name is a node's: its own, a service's, or with its wildcard one label below its own.
func ownsName(m *Map, n Machine, name string) bool {
	if !within(name, m.Zone()) {
		return false
	}
	label := m.relative(name)
	if label == n.Name || slices.Contains(n.Names, label) {
		return true
	}
	below, ok := strings.CutSuffix(label, "."+n.Name)
	return ok && n.Wildcard && isHostLabel(below)
}

// isHostLabel reports whether a word is one label of a host, or a wildcard.
func isHostLabel(s string) bool {
	label, msg := checkLabel(s)
	return s == "*" || msg == "" && label == s
}

// ownerOfName is the node whose name a full name is.
func ownerOfName(m *Map, name string) (Machine, bool) {
	label := m.relative(name)
	if i := strings.LastIndexByte(label, '.'); i >= 0 {
		label = label[i+1:]
	}
	n, ok := m.Node(label)
	return n, ok && ownsName(m, n, name)
}

// settlePorts has every port be of one kind of TCP: TLS by names, or a whole port.
func (s showFacts) settlePorts(claims map[showKey][]want, d decision) {
	tls := map[uint16]bool{publicPort: true}
	for key := range claims {
		if key.kind == portTLS {
			tls[key.port] = true
		}
	}
	for key, list := range claims {
		if key.kind != kindTCP || !tls[key.port] {
			continue
		}
		for _, c := range list {
			d.of[c.node.Name][c.index] = c.f.Refused(shownTaken, "take another port", "port %d of the gateway is for names by TLS", key.port)
		}
		delete(claims, key)
	}
}

// settle says who shows one thing, of all who want to. Whose name it is comes first, then who came first; others do with it
// where the policy lists all of them (S15).
func (s showFacts) settle(list []want, d decision) (shown, bool) {
	if len(list) == 0 {
		return shown{}, false
	}
	slices.SortStableFunc(list, func(a, b want) int {
		if a.owner != b.owner {
			return map[bool]int{true: -1, false: 1}[a.owner]
		}
		return cmp.Compare(a.since, b.since)
	})
	first := list[0]
	one := shown{name: first.f.Name, port: first.f.Port, kind: first.f.Kind, nodes: []string{first.node.Name}, publish: first.publish}
	listed := func(c want) bool { return s.m.showing.lists(s.m.Zone(), c.node, c.f) }
	for _, c := range list[1:] {
		mend, why := "two nodes show one name where the policy lists both", "another node shows it"
		switch {
		case c.f.Name == "":
			mend = "take another port"
		case !listed(first) || !listed(c):
		case c.f.Kind != first.f.Kind:
			mend, why = "", "another node shows it as "+first.f.Kind
		default:
			one.nodes = append(one.nodes, c.node.Name)
			continue
		}
		d.of[c.node.Name][c.index] = c.f.Refused(shownTaken, mend, "%s: %s", c.f, why)
	}
	return one, true
}

// domainProof is what the world's DNS says of a domain of somebody's own.
type domainProof struct {
	at      time.Time // of the lookup that said it
	targets []string  // that the domain is an alias of, in their order; lower case, without a final dot
	texts   []string  // at _meshdns and the domain
	err     error     // of a lookup since, that came to nothing
	tried   time.Time
}

// domainLabel is the label below a domain where a node can be named that the domain is for (S15).
const domainLabel = "_meshdns"

// of says which name of the zone a domain leads to, if it is a node's. why says why it is not.
func (p domainProof) of(m *Map, n Machine) (publish, why string) {
	for _, target := range p.targets {
		if ownsName(m, n, target) {
			return target, ""
		}
	}
	for _, text := range p.texts {
		if ownsName(m, n, foldName(text)) {
			return "", ""
		}
	}
	switch {
	case p.at.IsZero() && p.err != nil:
		return "", fmt.Sprintf("it could not be looked up: %v", p.err)
	case len(p.targets) > 0:
		return "", "it is an alias of " + p.targets[len(p.targets)-1] + ", which is no name of " + n.Name
	case len(p.texts) > 0:
		return "", fmt.Sprintf("%s and it names another node", domainLabel)
	}
	return "", "it is no alias of a name of " + n.Name
}

// domainMend is what has to be in a domain's zone.
func domainMend(m *Map, n Machine, domain string) string {
	full := m.FQDN(n.Name)
	return fmt.Sprintf("where %[1]s is kept, add: %[1]s. CNAME %[2]s. (where no CNAME can be: %[3]s.%[1]s. TXT %[2]q, and the gateway's addresses)", domain, full, domainLabel)
}

package node

import (
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/meshdns/meshdns/node/control"
)

// showing says which nodes may show what to the world, as the policy's lists have it:
//
//	policy:
//	  funnel:
//	    - nas                                  # a node, "tag:NAME" or "*": its own names, by TLS on port 443
//	    - photos                               # a service name: that one alone
//	    - {nodes: [nas, tv], names: [www.example.com], ports: ["443", "25565/tcp", "27015/udp"]}
//	  names: {nas: [photos, git], "tag:web": ["*"]}     # who may take which service names
//
// Without the list funnel every node may show its own names by TLS on port 443; without names every node may take service names
// that are free. A name that is listed with several nodes is shown by all of them.
type showing struct {
	given  bool // there is a list funnel
	grants []showGrant
	named  bool // there is a mapping names
	names  []nameGrant
}

// showGrant lets some nodes show some names at some ports.
type showGrant struct {
	who   []string // as in grant.from
	names []string // relative to the zone or in full, *.NAME for one label below; none: whatever is the node's
	ports []showPorts
}

// nameGrant lets some nodes take some service names.
type nameGrant struct {
	who   string
	names []string // "*": any
}

// showPorts are ports of one kind.
type showPorts struct {
	first, last uint16
	kind        string // portTLS, or as a control.Funnel has it
}

// portTLS is the kind of ports where visitors say by TLS which name they want.
const portTLS = "tls"

// The kinds of what a node shows.
const (
	kindHTTPS = "https"
	kindTLS   = "tls-terminated-tcp"
	kindTCP   = "tcp"
	kindUDP   = "udp"
)

// portKind is the kind of port that a kind of funnel needs; "": there is no such kind.
func portKind(kind string) string {
	switch kind {
	case kindHTTPS, kindTLS:
		return portTLS
	case kindTCP, kindUDP:
		return kind
	}
	return ""
}

// showFile is one entry of policy.funnel.
type showFile struct {
	word word // instead of all else

	Nodes []word `yaml:"nodes"`
	Names []word `yaml:"names"`
	Ports []word `yaml:"ports"`
}

func (f *showFile) decodeItem(d *decoder, it *item, path string) {
	if it.kind == scalarItem {
		f.word = word{text: it.text, at: it.at}
		return
	}
	type fields showFile // without this method
	d.into(it, path, (*fields)(f))
}

// nameGrantFile is one entry of policy.names.
type nameGrantFile struct {
	who   word
	names []word
}

type nameGrantsBlock []nameGrantFile

func (b *nameGrantsBlock) decodeItem(d *decoder, it *item, path string) {
	if it.kind == nullItem || !d.want(mappingItem, it, path) {
		return
	}
	for i, key := range it.keys {
		f := nameGrantFile{who: word{text: key.text, at: key.at}}
		d.into(it.items[i], join(path, key.text), &f.names)
		*b = append(*b, f)
	}
}

// showing reads policy.funnel and policy.names, and notes what is wrong with them.
func (c *checker) showing(b policyBlock) {
	s := &c.m.showing
	s.given, s.named = b.funnelled, b.named
	if len(b.funnel) > maxGrants || len(b.names) > maxGrants {
		c.add(Problem{Field: "policy.funnel", Msg: fmt.Sprintf("more than %d entries", maxGrants)})
		return
	}
	for _, f := range b.funnel {
		if g, ok := c.showGrant(f); ok {
			s.grants = append(s.grants, g)
		}
	}
	for _, f := range b.names {
		g := nameGrant{}
		var ok bool
		if g.who, ok = c.showParty("policy.names", f.who); !ok {
			continue
		}
		for _, w := range f.names {
			label, msg := checkLabel(w.text)
			if w.text != "*" && msg != "" {
				c.add(w.problem("policy.names", msg))
				continue
			}
			if w.text == "*" {
				label = w.text
			}
			g.names = append(g.names, label)
		}
		s.names = append(s.names, g)
	}
}

func (c *checker) showGrant(f showFile) (showGrant, bool) {
	var g showGrant
	const field = "policy.funnel"
	if f.word.text != "" {
		name, wildcard := strings.CutPrefix(f.word.text, "*.")
		who, ok := c.showParty(field, word{text: name, at: f.word.at})
		if !ok {
			return g, false
		}
		g.who = []string{who}
		if wildcard {
			g.names = []string{"*." + who}
		}
		return g, true
	}
	if len(f.Nodes) == 0 {
		c.add(Problem{Field: field, Msg: "an entry without nodes:"})
		return g, false
	}
	if max(len(f.Nodes), len(f.Names), len(f.Ports)) > maxGrantList {
		c.add(f.Nodes[0].problem(field, fmt.Sprintf("an entry of more than %d words", maxGrantList)))
		return g, false
	}
	for _, w := range f.Nodes {
		if who, ok := c.showParty(field, w); ok {
			g.who = append(g.who, who)
		}
	}
	for _, w := range f.Names {
		name, msg := checkDomain(strings.TrimPrefix(w.text, "*."))
		if msg != "" {
			c.add(w.problem(field, msg))
			continue
		}
		if strings.HasPrefix(w.text, "*.") {
			name = "*." + name
		}
		g.names = append(g.names, name)
	}
	for _, w := range f.Ports {
		if p, ok := c.showPorts(w); ok {
			g.ports = append(g.ports, p)
		}
	}
	return g, true
}

// showParty reads a node's or service's name, a tag, or a star.
func (c *checker) showParty(field string, w word) (string, bool) {
	if tag, ok := strings.CutPrefix(w.text, "tag:"); ok {
		if !isTag(tag) {
			c.add(w.problem(field, "want tag:NAME, of letters, digits and hyphens"))
			return "", false
		}
		return w.text, true
	}
	name := foldName(w.text)
	if _, ok := c.names[name]; !ok && !c.loose && name != "*" {
		c.add(w.problem(field, "neither a node nor a service name"))
		return "", false
	}
	return name, true
}

// showPorts reads PORT[-PORT][/tcp|/udp].
func (c *checker) showPorts(w word) (showPorts, bool) {
	ports, kind, given := strings.Cut(w.text, "/")
	if !given {
		kind = portTLS
	}
	first, last, isRange := strings.Cut(ports, "-")
	if !isRange {
		last = first
	}
	from, err1 := strconv.ParseUint(first, 10, 16)
	to, err2 := strconv.ParseUint(last, 10, 16)
	if err1 != nil || err2 != nil || from == 0 || to < from || kind != kindTCP && kind != kindUDP && given {
		c.hint(w.problem("policy.funnel", "want PORT, PORT-PORT, PORT/tcp or PORT/udp"), `such as "443" for TLS, or "25565/tcp"`)
		return showPorts{}, false
	}
	return showPorts{uint16(from), uint16(to), kind}, true
}

func (p showPorts) covers(f control.Funnel) bool {
	return p.kind == portKind(f.Kind) && p.first <= f.Port && f.Port <= p.last
}

// allows reports whether a grant lets a node show something.
func (g showGrant) allows(zone string, n Machine, f control.Funnel) bool {
	ports := g.ports
	if len(ports) == 0 {
		ports = []showPorts{{publicPort, publicPort, portTLS}}
	}
	if !slices.ContainsFunc(ports, func(p showPorts) bool { return p.covers(f) }) {
		return false
	}
	return slices.ContainsFunc(g.who, func(who string) bool {
		switch {
		case !n.isNode(who):
			return len(g.names) == 0 && n.is(who) && f.Name == who+"."+zone
		case len(g.names) > 0 && f.Name != "":
			return g.lists(zone, f.Name)
		}
		return true
	})
}

// lists reports whether a grant names a name.
func (g showGrant) lists(zone, name string) bool {
	_, parent, _ := strings.Cut(name, ".")
	return slices.ContainsFunc(g.names, func(one string) bool {
		if below, wildcard := strings.CutPrefix(one, "*."); wildcard {
			return parent == inFull(zone, below) || name == "*."+inFull(zone, below)
		}
		return name == inFull(zone, one)
	})
}

// inFull is a name of a policy: one label is of the zone.
func inFull(zone, name string) string {
	if strings.Contains(name, ".") {
		return name
	}
	return name + "." + zone
}

// allows reports whether policy lets a node show something that is its own.
func (s showing) allows(zone string, n Machine, f control.Funnel) bool {
	if !s.given {
		return showPorts{publicPort, publicPort, portTLS}.covers(f)
	}
	return slices.ContainsFunc(s.grants, func(g showGrant) bool { return g.allows(zone, n, f) })
}

// lists reports whether policy lets a node show a name by naming both: then others may that are listed with it (S15).
func (s showing) lists(zone string, n Machine, f control.Funnel) bool {
	return slices.ContainsFunc(s.grants, func(g showGrant) bool {
		return len(g.names) > 0 && f.Name != "" && g.lists(zone, f.Name) && g.allows(zone, n, f)
	})
}

// mayTake says why a node may not take service names (S12).
func (s showing) mayTake(n Machine, names []string) error {
	if !s.named {
		return nil
	}
	for _, name := range names {
		if !slices.ContainsFunc(s.names, func(g nameGrant) bool {
			return n.isNode(g.who) && (slices.Contains(g.names, name) || slices.Contains(g.names, "*"))
		}) {
			return fmt.Errorf("the policy does not let %s have the name %s: its owner can add it to policy.names", n.Name, name)
		}
	}
	return nil
}

package node

import (
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"github.com/meshdns/meshdns/node/control"
	"github.com/meshdns/meshdns/node/tunnel"
)

// policy says which nodes may reach which, as the map's allow list has it:
//
//	policy:
//	  allow:
//	    - {from: [laptop, "tag:admin"], to: ["*"]}              # everything
//	    - {from: ["*"], to: ["web:443", "dns:53/udp"]}          # a port, TCP unless it says otherwise
//	    - {from: [tv], to: ["nas:8000-8100", "nas:icmp"]}
//
// Without such a list every node may reach every other. With one, what it does not allow is refused by the receiving node,
// and not relayed where nothing at all is allowed between two nodes. Answers always pass.
type policy struct {
	grants []grant
	given  bool // there is a list
}

// grant lets some nodes reach some others.
type grant struct {
	from []string // node names, "tag:NAME", or "*"
	to   []reach
}

// reach is what of a node may be reached.
type reach struct {
	who         string // as in grant.from
	protocol    uint8  // IANA's number; 0: any
	first, last uint16 // 0 and 0: any
}

// The bounds of a policy.
const (
	maxGrants    = 1000
	maxGrantList = 1000
)

// The protocols that a policy has words for.
const (
	protocolICMP = 1
	protocolTCP  = 6
	protocolUDP  = 17
)

// grantFile is one entry of policy.allow.
type grantFile struct {
	From []word `yaml:"from"`
	To   []word `yaml:"to"`
}

// grants reads policy.allow, and notes what is wrong with it.
func (c *checker) grants(list []grantFile) {
	if len(list) > maxGrants {
		c.add(Problem{Field: "policy.allow", Msg: fmt.Sprintf("more than %d entries", maxGrants)})
		return
	}
	for _, f := range list {
		var g grant
		if len(f.From) > maxGrantList || len(f.To) > maxGrantList {
			c.add(Problem{Field: "policy.allow", Msg: fmt.Sprintf("an entry of more than %d words", maxGrantList)})
			continue
		}
		for _, w := range f.From {
			if who, ok := c.party(w, w.text); ok {
				g.from = append(g.from, who)
			}
		}
		for _, w := range f.To {
			if r, ok := c.reach(w); ok {
				g.to = append(g.to, r)
			}
		}
		c.m.access.grants = append(c.m.access.grants, g)
	}
}

// party reads a node's name, a tag, or a star.
func (c *checker) party(w word, text string) (string, bool) {
	if tag, ok := strings.CutPrefix(text, "tag:"); ok {
		if !isTag(tag) {
			c.add(w.problem("policy.allow", "want tag:NAME, of letters, digits and hyphens"))
			return "", false
		}
		return text, true
	}
	if text == "*" {
		return text, true
	}
	name := foldName(text)
	if _, ok := c.names[name]; !ok && !c.loose {
		c.hint(w.problem("policy.allow", "not a node of the map"), `want the name of a node, tag:NAME, or "*"`)
		return "", false
	}
	return name, true
}

// isTag reports whether a word can be a tag.
func isTag(s string) bool {
	return s != "" && len(s) <= maxLabel && !strings.ContainsFunc(s, func(r rune) bool {
		return (r < 'a' || r > 'z') && (r < '0' || r > '9') && r != '-'
	})
}

// reach reads WHO, WHO:PORT[-PORT][/PROTOCOL] or WHO:PROTOCOL.
func (c *checker) reach(w word) (reach, bool) {
	var who, rest string
	if tag, ok := strings.CutPrefix(w.text, "tag:"); ok {
		name, after, _ := strings.Cut(tag, ":")
		who, rest = "tag:"+name, after
	} else {
		who, rest, _ = strings.Cut(w.text, ":")
	}
	party, ok := c.party(w, who)
	if !ok {
		return reach{}, false
	}
	r := reach{who: party}
	if rest == "" || rest == "*" {
		return r, !strings.HasSuffix(w.text, ":") || c.wrongReach(w)
	}
	ports, protocol, _ := strings.Cut(rest, "/")
	if p, ok := protocolNumber(ports); ok && protocol == "" {
		r.protocol = p
		return r, true
	}
	first, last, isRange := strings.Cut(ports, "-")
	if !isRange {
		last = first
	}
	from, err1 := strconv.ParseUint(first, 10, 16)
	to, err2 := strconv.ParseUint(last, 10, 16)
	r.first, r.last, r.protocol = uint16(from), uint16(to), protocolTCP
	known := protocol == ""
	if !known {
		r.protocol, known = protocolNumber(protocol)
	}
	if err1 != nil || err2 != nil || from == 0 || to < from || !known || r.protocol == protocolICMP {
		return reach{}, c.wrongReach(w)
	}
	return r, true
}

func (c *checker) wrongReach(w word) bool {
	c.hint(w.problem("policy.allow", "want NODE, NODE:PORT, NODE:PORT-PORT/udp or NODE:icmp"), `such as "web:443" or "dns:53/udp"`)
	return false
}

func protocolNumber(word string) (uint8, bool) {
	n, ok := map[string]uint8{"tcp": protocolTCP, "udp": protocolUDP, "icmp": protocolICMP}[word]
	return n, ok
}

// is reports whether a word of a policy means a node.
func (n Machine) is(who string) bool {
	if who == "*" || who == n.Name || slices.Contains(n.Names, who) {
		return true
	}
	tag, ok := strings.CutPrefix(who, "tag:")
	return ok && slices.Contains(n.Tags, tag)
}

// isNode reports whether a word of a policy means a node itself, and not one of its services: nodes take service names that are
// free, and must not take with them what somebody else's name was given.
func (n Machine) isNode(who string) bool {
	return (who == "*" || who == n.Name || strings.HasPrefix(who, "tag:")) && n.is(who)
}

func (g grant) admits(from Machine) bool { return slices.ContainsFunc(g.from, from.isNode) }

// reaches reports whether anything at all of a node may be reached by another one. A gateway is always reached, by the calls
// that keep the tailnet together.
func (p policy) reaches(from, to Machine) bool {
	if !p.given || from.Name == to.Name || from.Gateway || to.Gateway {
		return true
	}
	return slices.ContainsFunc(p.grants, func(g grant) bool {
		return g.admits(from) && slices.ContainsFunc(g.to, func(r reach) bool { return to.is(r.who) })
	})
}

// rules are what a node lets in. nil: everything. A gateway always has some: whoever comes with an invite is its peer and no
// node of the map, and is to reach the call to join alone (S6).
func (p policy) rules(m *Map, self string) []tunnel.Rule {
	me, _ := m.Node(self)
	if !p.given && !me.Gateway {
		return nil
	}
	rules := []tunnel.Rule{}
	for _, from := range m.Nodes() {
		if from.Name == me.Name {
			continue
		}
		if !p.given {
			rules = append(rules, reach{}.rules(from)...)
		} else if from.Gateway { // whose visitors may come is for policy.funnel to say
			rules = append(rules, reach{protocol: protocolTCP, first: ingressPort, last: ingressPort}.rules(from)...)
		}
		for _, g := range p.grants {
			if !g.admits(from) {
				continue
			}
			for _, r := range g.to {
				if me.is(r.who) {
					rules = append(rules, r.rules(from)...)
				}
			}
		}
	}
	// What keeps the tailnet together is no one's to forbid, nor to those who come with an invite.
	for _, p := range m.Ranges() {
		rules = append(rules, tunnel.Rule{Source: p.Masked(), Protocol: protocolUDP, First: echoPort, Last: echoPort})
		if me.Gateway {
			rules = append(rules, tunnel.Rule{Source: p.Masked(), Protocol: protocolTCP, First: control.Port, Last: control.Port})
		}
	}
	return rules
}

// rules are those for one node's addresses.
func (r reach) rules(from Machine) []tunnel.Rule {
	var list []tunnel.Rule
	for _, a := range from.Addresses {
		list = append(list, tunnel.Rule{Source: netip.PrefixFrom(a, a.BitLen()), Protocol: r.protocol, First: r.first, Last: r.last})
	}
	return list
}

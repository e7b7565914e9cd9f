package node

import (
	"encoding/base64"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"time"
)

// checker turns a map as written into a Map and notes everything that is wrong on the way.
type checker struct {
	m        *Map
	problems Problems
	names    map[string]claim     // relative names of nodes and services
	addrs    map[netip.Addr]claim // of nodes
	keys     map[string]claim
	// loose lets a policy name nodes that are not in the map: a gateway's outlives those that are removed.
	loose bool
}

// claim says who has something.
type claim struct {
	who string // "node nas"
	at  position
}

func (c claim) String() string {
	if c.at.line == 0 {
		return c.who
	}
	return fmt.Sprintf("%s in line %d", c.who, c.at.line)
}

func newChecker(m *Map) *checker {
	return &checker{m: m, names: map[string]claim{}, addrs: map[netip.Addr]claim{}, keys: map[string]claim{}}
}

// add notes a problem.
func (c *checker) add(p Problem) { c.problems = append(c.problems, p) }

// hint notes a problem that the user can mend in a way worth saying.
func (c *checker) hint(p Problem, advice string) {
	p.Advice = advice
	c.add(p)
}

// check reads the whole map. Addresses come before ranges, because ranges may follow from them, and records last,
// because they must not contradict the nodes.
func (c *checker) check(f mapFile, data []byte) {
	c.zone(f.Zone)
	c.ttl(f.TTL)
	addrs := make([][]netip.Addr, len(f.Nodes))
	for i, n := range f.Nodes {
		addrs[i] = c.parseAddresses(n.Addresses)
	}
	c.ranges(f.Ranges, slices.Concat(addrs...))
	for i, n := range f.Nodes {
		c.node(n, addrs[i])
	}
	if c.m.zone != "" {
		c.records(f.Records, data)
	}
	c.dns(f.DNS)
	c.policy(f.Policy)
}

func (c *checker) zone(w word) {
	if w.text == "" {
		at := w.at
		if at.line == 0 {
			at = position{line: 1, column: 1}
		}
		c.hint(at.problem("zone", "", "missing"), "zone: "+defaultZone)
		return
	}
	zone, msg, advice := checkZone(w.text)
	if msg != "" {
		c.hint(w.problem("zone", msg), advice)
		return
	}
	c.m.zone = zone
}

// defaultTTL is short because an address may move, and asking again costs a local round trip.
const defaultTTL = 60

// maxTTL is the largest TTL that has no special meaning (RFC 2181, 8).
const maxTTL = 1<<31 - 1

func (c *checker) ttl(w word) {
	c.m.ttl = defaultTTL
	if w.text == "" {
		return
	}
	seconds, err := strconv.ParseInt(w.text, 10, 64)
	if d, derr := time.ParseDuration(w.text); err != nil && derr == nil {
		seconds, err = int64(d/time.Second), nil
	}
	if err != nil || seconds < 0 || seconds > maxTTL {
		c.add(w.problem("ttl", "want seconds, or a time such as 60s"))
		return
	}
	c.m.ttl = uint32(seconds)
}

// Bounds on one node, far above what anybody needs: they keep one name's answer within one message.
const (
	maxAddresses = 64
	maxNames     = 1024
	maxEndpoints = 16
)

// node reads one node.
func (c *checker) node(f nodeFile, addrs []netip.Addr) {
	n := Machine{Wildcard: f.Wildcard, Gateway: f.Gateway.given}
	n.Name = c.name(f.name, "node", "node "+f.name.text, f.Wildcard)
	who := claim{who: "node " + f.name.text, at: f.name.at}
	for i, a := range addrs {
		if a.IsValid() && c.address(f.Addresses[i], a, who) {
			n.Addresses = append(n.Addresses, a)
		}
	}
	if len(f.Addresses) == 0 {
		c.add(f.name.problem("node", "has no addresses"))
	}
	for _, w := range f.Names {
		if name := c.name(w, "name", "service "+w.text+" of "+f.name.text, false); name != "" {
			n.Names = append(n.Names, name)
		}
	}
	c.bound(f.name, "addresses", len(f.Addresses), maxAddresses)
	c.bound(f.name, "names", len(f.Names), maxNames)
	c.bound(f.name, "endpoints", len(f.Endpoints), maxEndpoints)
	n.Key = c.key(f.Key, who)
	n.Endpoints = c.endpoints(f.Endpoints)
	n.Public = c.public(f.Gateway.public)
	c.bound(f.name, "tags", len(f.Tags), maxNames)
	for _, w := range f.Tags {
		if !isTag(w.text) {
			c.add(w.problem("tag", "want letters, digits and hyphens, in lower case"))
			continue
		}
		n.Tags = append(n.Tags, w.text)
	}
	c.m.nodes = append(c.m.nodes, n)
}

func (c *checker) bound(w word, what string, n, limit int) {
	if n > limit {
		c.add(w.problem("node", fmt.Sprintf("has %d %s, at most %d are allowed", n, what, limit)))
	}
}

// name reads a node's or service's name and claims it. It returns "" if there is something wrong.
func (c *checker) name(w word, field, who string, wildcard bool) string {
	label, msg := checkLabel(w.text)
	if msg != "" {
		c.add(w.problem(field, msg))
		return ""
	}
	if msg := refusedName(label, wildcard); msg != "" && !c.m.force.has(label) {
		c.hint(w.problem(field, msg), "choose another name; if you mean it, add to the map: force: ["+label+"]")
	}
	if first, taken := c.names[label]; taken {
		c.add(w.problem(field, "taken already by "+first.String()))
		return ""
	}
	if c.m.zone != "" && len(label)+1+len(c.m.zone) > maxName-2 { // 2: room for a wildcard
		c.add(w.problem(field, "longer than 253 characters with the zone"))
	}
	c.names[label] = claim{who: who, at: w.at}
	return label
}

// key reads a WireGuard public key: 32 bytes in base64, as wg prints them.
func (c *checker) key(w word, who claim) string {
	if w.text == "" {
		return ""
	}
	raw, err := base64.StdEncoding.Strict().DecodeString(w.text)
	switch {
	case err != nil:
		c.hint(w.problem("key", "not base64"), "wg show INTERFACE public-key prints it")
		return ""
	case len(raw) != 32:
		c.add(w.problem("key", fmt.Sprintf("%d bytes long, a WireGuard key has 32", len(raw))))
		return ""
	case slices.Max(raw) == 0:
		c.add(w.problem("key", "all zero, which is no key"))
		return ""
	}
	if first, taken := c.keys[w.text]; taken {
		c.add(w.problem("key", "belongs already to "+first.String()))
		return ""
	}
	c.keys[w.text] = who
	return w.text
}

// endpoints reads where a node's WireGuard may be reached: an address or a name, and a port.
func (c *checker) endpoints(words []word) []string {
	var out []string
	for _, w := range words {
		host, port, err := net.SplitHostPort(w.text)
		if err != nil {
			c.add(w.problem("endpoint", "want ADDRESS:PORT, [ADDRESS]:PORT or NAME:PORT"))
			continue
		}
		if n, err := strconv.ParseUint(port, 10, 16); err != nil || n == 0 {
			c.add(w.problem("endpoint", "want a port from 1 to 65535"))
			continue
		}
		if msg := checkHost(host); msg != "" {
			c.add(w.problem("endpoint", msg))
			continue
		}
		out = append(out, w.text)
	}
	return out
}

// checkHost says what is wrong with an address or name that others are to connect to.
func checkHost(host string) string {
	if a, err := netip.ParseAddr(host); err == nil {
		if a.IsUnspecified() || a.IsMulticast() || a.Is4In6() {
			return "not the address of one machine"
		}
		return ""
	}
	_, msg := checkDomain(host)
	return msg
}

func (c *checker) public(words []word) []netip.Addr {
	var out []netip.Addr
	for _, w := range words {
		a, err := netip.ParseAddr(w.text)
		switch {
		case err != nil:
			c.add(w.problem("public", "not an IP address"))
		case !isUnicast(a) && !a.IsLoopback(): // which is this machine's own gateway's
			c.add(w.problem("public", "not the address of one machine"))
		case rangeOf(c.m.ranges, a).IsValid():
			c.add(w.problem("public", "inside the tailnet's ranges, so not public"))
		default:
			out = append(out, a)
		}
	}
	return out
}

// policy looks at the lists whose words are names here.
func (c *checker) policy(b policyBlock) {
	c.m.access.given = b.listed
	c.grants(b.allow)
	c.showing(b)
}

package node

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"strings"

	"github.com/miekg/dns"
)

// Map is the whole tailnet as data. It is immutable: what its methods return must not be changed, a change is a new
// map.
type Map struct {
	name     string // where it came from
	digest   [32]byte
	zone     string // lower case, A-labels, without a final dot
	ranges   []netip.Prefix
	drawn    bool // the ranges are defaults, not the owner's words
	ttl      uint32
	nodes    []Machine // sorted by name
	records  []dns.RR
	routes   []mapRoute
	upstream []string
	search   []string
	policy   map[string]any
	access   policy
	showing  showing
	version  uint64
	force    force
}

// Machine is a node of the map. A source gives names and addresses only.
type Machine struct {
	Name      string       // one label, lower case, as an A-label
	Addresses []netip.Addr // in the order of the map
	Key       string       // WireGuard public key, base64; empty for a machine without an agent
	Endpoints []string     // host:port
	Names     []string     // service names, one label each
	Wildcard  bool         // *.Name answers too
	Gateway   bool
	Public    []netip.Addr // a gateway's public addresses
	Tags      []string     // that a policy names it by
	Source    string       // what gave it; empty for the map itself

	dropped string // its key, which is left out since somebody here wanted it dropped
}

// mapRoute is a split route of the map: names at or below Suffix are asked at Upstreams, in resolver.ParseUpstream's
// spelling.
type mapRoute struct {
	Suffix    string // lower case, without a final dot
	Upstreams []string
}

// Zone is the suffix of the tailnet's names, lower case, without a final dot.
func (m *Map) Zone() string { return m.zone }

// Source says where the map came from: a file, or what made it.
func (m *Map) Source() string { return m.name }

// Ranges are the tailnet's address ranges.
func (m *Map) Ranges() []netip.Prefix { return m.ranges }

// TTL is how long, in seconds, answers may be kept by whoever asks.
func (m *Map) TTL() uint32 { return m.ttl }

// Version is the number that the map's owner gave it, or 0.
func (m *Map) Version() uint64 { return m.version }

// Nodes are the nodes, sorted by name.
func (m *Map) Nodes() []Machine { return m.nodes }

// Routes are the map's split routes, sorted by suffix.
func (m *Map) Routes() []mapRoute { return m.routes }

// Upstreams are the map's base upstreams, in resolver.ParseUpstream's spelling; usually none.
func (m *Map) Upstreams() []string { return m.upstream }

// Search are the map's further search domains.
func (m *Map) Search() []string { return m.search }

// Policy is what the map's policy says, unread.
func (m *Map) Policy() map[string]any { return m.policy }

// Node finds a node by its name or by one of its service names, in any case, with or without the zone.
func (m *Map) Node(name string) (Machine, bool) {
	name = m.relative(name)
	i, found := slices.BinarySearchFunc(m.nodes, name, func(n Machine, name string) int { return strings.Compare(n.Name, name) })
	if found {
		return m.nodes[i], true
	}
	for _, n := range m.nodes {
		if slices.Contains(n.Names, name) {
			return n, true
		}
	}
	return Machine{}, false
}

// FQDN is a node's or service's full name, without a final dot.
func (m *Map) FQDN(name string) string { return name + "." + m.zone }

// loadMap reads and checks the map in a file. Its error is a Problems, or about reading.
func loadMap(path string) (*Map, error) {
	data, err := readFile(path, maxMap)
	if err != nil {
		return nil, err
	}
	return parseMap(path, data)
}

// maxMap is the size in bytes up to which a map is read: some 100,000 nodes.
const maxMap = 16 << 20

// readFile reads a regular file of at most limit bytes. Others are refused: a FIFO would block, a device never end.
func readFile(path string, limit int64) ([]byte, error) {
	f, err := openRegular(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	data, err := readBounded(f, limit)
	if err != nil {
		return nil, fmt.Errorf("reading %s: %w", path, err)
	}
	return data, nil
}

// openRegular opens a regular file for reading. What it is is asked first, because opening a FIFO blocks.
func openRegular(path string) (*os.File, error) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, fmt.Errorf("reading %s: %w", path, errors.Unwrap(err))
	}
	if !info.Mode().IsRegular() {
		return nil, fmt.Errorf("reading %s: not a regular file", path)
	}
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("reading %s: %w", path, errors.Unwrap(err))
	}
	return f, nil
}

// openPrivate opens a file of secrets, which check may refuse. It is asked of the open file: the path may lead elsewhere by then.
func openPrivate(path string, check func(os.FileInfo) error) (*os.File, error) {
	f, err := openRegular(path)
	if err != nil {
		return nil, err
	}
	info, err := f.Stat()
	if err == nil {
		err = check(info)
	}
	if err != nil {
		f.Close()
		return nil, hinted(nil, fmt.Errorf("reading %s: %w", path, err), "chmod 600 "+path+"; make new keys if others could read them")
	}
	return f, nil
}

// parseMap reads a map and checks it. The name is for messages. Its error is a Problems with everything that is wrong.
func parseMap(name string, data []byte) (*Map, error) {
	if len(data) > maxMap {
		return nil, Problems{{File: name, Msg: fmt.Sprintf("longer than %d bytes", maxMap)}}
	}
	var f mapFile
	var d decoder
	d.document(data, &f)
	c := newChecker(&Map{name: name, digest: sha256.Sum256(data), version: f.Version, policy: f.Policy.values, force: f.Force})
	c.problems = d.problems
	// A document that cannot be read has no keys to miss.
	if len(d.problems) == 0 || f.Zone.text != "" {
		c.check(f, data)
	}
	if err := c.problems.named(name).err(); err != nil {
		return nil, err
	}
	c.m.finish()
	return c.m, nil
}

// finish brings a checked map into its canonical order.
func (m *Map) finish() {
	slices.SortFunc(m.nodes, func(a, b Machine) int { return strings.Compare(a.Name, b.Name) })
	slices.SortFunc(m.routes, func(a, b mapRoute) int { return strings.Compare(a.Suffix, b.Suffix) })
}

// relative is name as the map writes it: folded and without the zone.
func (m *Map) relative(name string) string { return strings.TrimSuffix(foldName(name), "."+m.zone) }

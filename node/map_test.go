package node

import (
	"encoding/base64"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/miekg/dns"
)

// mustParse is parseMap of a text that is valid.
func mustParse(t *testing.T, text string) *Map {
	t.Helper()
	m, err := parseMap("map.yaml", []byte(text))
	if err != nil {
		t.Fatalf("parseMap: %v", err)
	}
	return m
}

// key is a WireGuard public key that differs for each n.
func key(n byte) string {
	b := make([]byte, 32)
	b[0], b[31] = n, 1
	return base64.StdEncoding.EncodeToString(b)
}

// designMap is the example of DESIGN.md, and what it leaves out.
var designMap = `
zone: foo-bar.ts.net
ranges: [100.64.0.0/10, "fd7a:115c:a1e0::/48"]
ttl: 5m
version: 7
nodes:
  nas:
    addresses: [100.64.0.2, "fd7a:115c:a1e0::2", 100.64.0.3]
    key: ` + key(1) + `
    endpoints: ["192.0.2.10:41642", "nas.example.org:1", "[2001:db8::1]:2"]
    names: [photos, git]             # service names
    wildcard: true                   # *.nas answers too
  edge:
    addresses: [100.64.0.1]
    gateway: {public: [203.0.113.5]}
  Bücher: {addresses: [100.64.0.4], gateway: false}
  relay: {addresses: [100.64.0.5], gateway: true}
records: |
  printer  300 A     192.168.1.9
  db           CNAME nas
  *.Apps       A     100.64.9.9
               TXT   "all of them"
  @            TXT   "v=spf1 -all"
  _http._tcp   SRV   0 0 80 nas
  9.9.64.100.in-addr.arpa. PTR apps
  größe        AAAA  2001:db8::9
dns: {routes: {corp.example: [10.0.0.53], Lab.Example.: ["tls://10.9.0.1#dns.lab"]}, upstreams: [9.9.9.9], search: [Lab.example]}
policy: {funnel: [nas, photos], other: {a: [b, null]}}
`

func TestMapIsReadAsWritten(t *testing.T) {
	m := mustParse(t, designMap)
	if m.Zone() != "foo-bar.ts.net" || m.TTL() != 300 || m.Version() != 7 || m.Source() != "map.yaml" {
		t.Errorf("got zone %s, TTL %d, version %d, source %s", m.Zone(), m.TTL(), m.Version(), m.Source())
	}
	if got := fmt.Sprint(m.Ranges()); got != "[100.64.0.0/10 fd7a:115c:a1e0::/48]" {
		t.Errorf("ranges: got %s", got)
	}
	var names []string
	for _, n := range m.Nodes() {
		names = append(names, n.Name)
	}
	if got := strings.Join(names, " "); got != "edge nas relay xn--bcher-kva" {
		t.Errorf("nodes: got %s, want them sorted, as A-labels", got)
	}
	want := Machine{
		Name:      "nas",
		Addresses: []netip.Addr{netip.MustParseAddr("100.64.0.2"), netip.MustParseAddr("fd7a:115c:a1e0::2"), netip.MustParseAddr("100.64.0.3")},
		Key:       key(1),
		Endpoints: []string{"192.0.2.10:41642", "nas.example.org:1", "[2001:db8::1]:2"},
		Names:     []string{"photos", "git"},
		Wildcard:  true,
	}
	if nas, ok := m.Node("nas"); !ok || !reflect.DeepEqual(nas, want) {
		t.Errorf("nas: got %+v, want %+v", nas, want)
	}
	for name, gateway := range map[string]bool{"edge": true, "relay": true, "nas": false, "Bücher": false} {
		if n, ok := m.Node(name); !ok || n.Gateway != gateway {
			t.Errorf("%s: got %+v, want gateway %t", name, n, gateway)
		}
	}
	if edge, _ := m.Node("edge"); !slices.Equal(edge.Public, []netip.Addr{netip.MustParseAddr("203.0.113.5")}) {
		t.Errorf("edge: got %v", edge.Public)
	}
	routes := []mapRoute{{"corp.example", []string{"10.0.0.53"}}, {"lab.example", []string{"tls://10.9.0.1#dns.lab"}}}
	if !reflect.DeepEqual(m.Routes(), routes) || m.Upstreams()[0] != "9.9.9.9" || m.Search()[0] != "lab.example" {
		t.Errorf("dns: got %v, %v, %v", m.Routes(), m.Upstreams(), m.Search())
	}
	if got := m.Policy()["other"]; !reflect.DeepEqual(got, map[string]any{"a": []any{"b", nil}}) {
		t.Errorf("policy: got %#v", m.Policy())
	}
}

func TestNodesAreFoundByAnyOfTheirNames(t *testing.T) {
	m := mustParse(t, designMap)
	for name, want := range map[string]string{
		"nas": "nas", "NAS": "nas", "nas.foo-bar.ts.net": "nas", "nas.foo-bar.ts.net.": "nas", "photos": "nas", "Git.Foo-Bar.ts.net": "nas",
		"BÜCHER": "xn--bcher-kva", "xn--bcher-kva": "xn--bcher-kva", "printer": "", "": "", "foo-bar.ts.net": "", "nas.other": "",
	} {
		if got, ok := m.Node(name); got.Name != want || ok != (want != "") {
			t.Errorf("%q: got %q, want %q", name, got.Name, want)
		}
	}
	if got := m.FQDN("nas"); got != "nas.foo-bar.ts.net" {
		t.Errorf("FQDN: got %s", got)
	}
}

func TestMapBecomesRecords(t *testing.T) {
	var got []string
	for _, rr := range mustParse(t, designMap).Records() {
		got = append(got, strings.ReplaceAll(strings.TrimPrefix(rr.String(), "\\"), "\t", " "))
	}
	want := []string{
		"edge.foo-bar.ts.net. 300 IN A 100.64.0.1",
		"1.0.64.100.in-addr.arpa. 300 IN PTR edge.foo-bar.ts.net.",
		"nas.foo-bar.ts.net. 300 IN A 100.64.0.2",
		"nas.foo-bar.ts.net. 300 IN AAAA fd7a:115c:a1e0::2",
		"nas.foo-bar.ts.net. 300 IN A 100.64.0.3",
		"photos.foo-bar.ts.net. 300 IN A 100.64.0.2",
		"photos.foo-bar.ts.net. 300 IN AAAA fd7a:115c:a1e0::2",
		"photos.foo-bar.ts.net. 300 IN A 100.64.0.3",
		"git.foo-bar.ts.net. 300 IN A 100.64.0.2",
		"git.foo-bar.ts.net. 300 IN AAAA fd7a:115c:a1e0::2",
		"git.foo-bar.ts.net. 300 IN A 100.64.0.3",
		"*.nas.foo-bar.ts.net. 300 IN A 100.64.0.2",
		"*.nas.foo-bar.ts.net. 300 IN AAAA fd7a:115c:a1e0::2",
		"*.nas.foo-bar.ts.net. 300 IN A 100.64.0.3",
		"2.0.64.100.in-addr.arpa. 300 IN PTR nas.foo-bar.ts.net.",
		"2.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.e.1.a.c.5.1.1.a.7.d.f.ip6.arpa. 300 IN PTR nas.foo-bar.ts.net.",
		"3.0.64.100.in-addr.arpa. 300 IN PTR nas.foo-bar.ts.net.",
		"relay.foo-bar.ts.net. 300 IN A 100.64.0.5",
		"5.0.64.100.in-addr.arpa. 300 IN PTR relay.foo-bar.ts.net.",
		"xn--bcher-kva.foo-bar.ts.net. 300 IN A 100.64.0.4",
		"4.0.64.100.in-addr.arpa. 300 IN PTR xn--bcher-kva.foo-bar.ts.net.",
		"printer.foo-bar.ts.net. 300 IN A 192.168.1.9",
		"db.foo-bar.ts.net. 300 IN CNAME nas.foo-bar.ts.net.",
		"*.apps.foo-bar.ts.net. 300 IN A 100.64.9.9",
		`*.apps.foo-bar.ts.net. 300 IN TXT "all of them"`,
		`foo-bar.ts.net. 300 IN TXT "v=spf1 -all"`,
		"_http._tcp.foo-bar.ts.net. 300 IN SRV 0 0 80 nas.foo-bar.ts.net.",
		"9.9.64.100.in-addr.arpa. 300 IN PTR apps.foo-bar.ts.net.",
		"xn--gre-6ka8i.foo-bar.ts.net. 300 IN AAAA 2001:db8::9",
	}
	for i := range max(len(got), len(want)) {
		if i >= len(got) || i >= len(want) || got[i] != want[i] {
			t.Fatalf("record %d: got\n%s\nwant\n%s", i, strings.Join(got[i:], "\n"), strings.Join(want[min(i, len(want)):], "\n"))
		}
	}
}

func TestMapTakesEveryTypeOfRecord(t *testing.T) {
	for _, record := range []string{
		"a A 192.0.2.1", "a AAAA 2001:db8::1", "a CNAME b.example.", `a TXT "x" "y"`, "a SRV 1 2 3 b", "a MX 10 mail.example.",
		`a CAA 0 issue "letsencrypt.org"`, "a HTTPS 1 . alpn=h2,h3 ipv4hint=192.0.2.1", "a SVCB 0 b", "a SSHFP 4 2 0123456789ABCDEF0123456789ABCDEF0123456789ABCDEF0123456789ABCDEF",
		"_443._tcp.a TLSA 3 1 1 0123456789ABCDEF0123456789ABCDEF0123456789ABCDEF0123456789ABCDEF", `a NAPTR 1 1 "u" "E2U+sip" "!^.*$!sip:a@b!" .`,
		"a LOC 52 22 23.000 N 4 53 32.000 E -2.00m 0.00m 10000m 10m", `a HINFO "x" "y"`, `a URI 1 1 "https://a"`, "a TYPE65400 \\# 2 ABCD",
		"1.0.64.100.in-addr.arpa. PTR a", "a.b.c.d.e TXT x",
	} {
		t.Run(record, func(t *testing.T) {
			m := mustParse(t, "zone: foo-bar.ts.net\nrecords: |\n  "+record+"\n")
			if got := len(m.Records()); got != 1 {
				t.Errorf("got %d records", got)
			}
		})
	}
}

func TestMapFindsWhatIsWrongWithItsPlace(t *testing.T) {
	const nodes = "zone: a.internal\nnodes:\n"
	tests := []struct{ name, text, want string }{
		// The zone.
		{"no zone", "nodes: {}\n", "1:1: zone: missing"},
		{"empty", "", "1:1: zone: missing"},
		{"public suffix", "zone: github.io\n", "1:7: zone github.io: a public suffix: its names belong to many owners"},
		{"top-level domain", "zone: com\n", "1:7: zone com: a public suffix: its names belong to many owners"},
		{"mDNS's zone", "zone: x.local\n", "1:7: zone x.local: lies in .local, which means something else on every machine (RFC 6761)"},
		{"no name", "zone: a..b\n", "1:7: zone a..b: not a valid name: an empty label"},
		{"too long", "zone: " + strings.Repeat(strings.Repeat("a", 60)+".", 4) + "b\n", "1:7: zone \"" + strings.Repeat("a", 60) + "." + strings.Repeat("a", 19) + "\"…: too long: no room for a node's name before it"},
		// Keys.
		{"unknown key", "zone: a.internal\nnode: {}\n", "2:1: key node: unknown; did you mean nodes?"},
		{"unknown key of a node", nodes + "  n: {addresses: [100.64.0.1], adress: x}\n", "3:32: key nodes.n.adress: unknown; did you mean addresses?"},
		{"unknown key of dns", "zone: a.internal\ndns: {route: {}}\n", "2:7: key dns.route: unknown; did you mean routes?"},
		{"unknown key of a gateway", nodes + "  n: {addresses: [100.64.0.1], gateway: {publik: []}}\n", "3:42: key nodes.n.gateway.publik: unknown; did you mean public?"},
		{"nodes as a list", "zone: a.internal\nnodes: [a]\n", "2:8: nodes: want a mapping, not a list"},
		{"a bad TTL", "zone: a.internal\nttl: often\n", "2:6: ttl often: want seconds, or a time such as 60s"},
		{"a negative TTL", "zone: a.internal\nttl: -1\n", "2:6: ttl -1: want seconds, or a time such as 60s"},
		// Names.
		{"a node twice", nodes + "  n: {addresses: [100.64.0.1]}\n  n: {addresses: [100.64.0.2]}\n", "4:3: key n: given twice, first in line 3"},
		{"a node twice in another case", nodes + "  n: {addresses: [100.64.0.1]}\n  N: {addresses: [100.64.0.2]}\n", "4:3: node N: taken already by node n in line 3"},
		{"a node twice by IDNA", nodes + "  bücher: {addresses: [100.64.0.1]}\n  xn--bcher-kva: {addresses: [100.64.0.2]}\n", "4:3: node xn--bcher-kva: taken already by node bücher in line 3"},
		{"a service twice", nodes + "  n: {addresses: [100.64.0.1], names: [s]}\n  m: {addresses: [100.64.0.2], names: [S]}\n", "4:40: name S: taken already by service s of n in line 3"},
		{"a service like its node", nodes + "  n: {addresses: [100.64.0.1], names: [n]}\n", "3:40: name n: taken already by node n in line 3"},
		{"an underscore", nodes + "  n_m: {addresses: [100.64.0.1]}\n", "3:3: node n_m: not a valid label: only letters, digits and hyphens"},
		{"an underscore in front", nodes + "  _m: {addresses: [100.64.0.1]}\n", "3:3: node _m: labels that start with _ are for records, not for machines"},
		{"a hyphen in front", nodes + "  n: {addresses: [100.64.0.1], names: [-m]}\n", "3:40: name -m: not a valid label: starts or ends with a hyphen"},
		{"reserved hyphens", nodes + "  ab--c: {addresses: [100.64.0.1]}\n", "3:3: node ab--c: not a valid label: hyphens in the third and fourth place are reserved (RFC 5891, 4.2.3.1)"},
		{"a bad A-label", nodes + "  xn--a: {addresses: [100.64.0.1]}\n", "3:3: node xn--a: not a valid international label (IDNA2008)"},
		{"dots", nodes + "  n.m: {addresses: [100.64.0.1]}\n", "3:3: node n.m: one label is wanted, without dots"},
		{"64 characters", nodes + "  " + strings.Repeat("a", 64) + ": {addresses: [100.64.0.1]}\n", "3:3: node " + strings.Repeat("a", 64) + ": longer than 63 characters"},
		{"proxy discovery", nodes + "  wpad: {addresses: [100.64.0.1]}\n", "3:3: node wpad: browsers look for their proxy here"},
		{"a service of mail programs", nodes + "  n: {addresses: [100.64.0.1], names: [Autodiscover]}\n", "3:40: name Autodiscover: mail programs look for their settings here and send passwords"},
		{"a top-level domain with a wildcard", nodes + "  dev: {addresses: [100.64.0.1], wildcard: true}\n", "3:3: node dev: a top-level domain: with the wildcard and a search domain, every name below .dev would lead here"},
		// Addresses.
		{"no addresses", nodes + "  n: {}\n", "3:3: node n: has no addresses"},
		{"no address", nodes + "  n: {addresses: [100.64.0]}\n", "3:19: address 100.64.0: not an IP address"},
		{"a prefix", nodes + "  n: {addresses: [100.64.0.1/32]}\n", "3:19: address 100.64.0.1/32: not an IP address"},
		{"outside the default ranges", nodes + "  n: {addresses: [10.0.0.1]}\n", "3:19: address 10.0.0.1: outside the tailnet's ranges 100.64.0.0/10"},
		{"outside the given ranges", "zone: a.internal\nranges: [10.0.0.0/8]\nnodes:\n  n: {addresses: [100.64.0.1]}\n", "4:19: address 100.64.0.1: outside the tailnet's ranges 10.0.0.0/8"},
		{"a global address", nodes + "  n: {addresses: [\"2001:db8::1\"]}\n", "3:19: address 2001:db8::1: outside the tailnet's ranges 100.64.0.0/10"},
		{"in IPv6 form", nodes + "  n: {addresses: [\"::ffff:100.64.0.1\"]}\n", "3:19: address ::ffff:100.64.0.1: an IPv4 address in IPv6 form"},
		{"with a zone", nodes + "  n: {addresses: [\"fd00::1%eth0\"]}\n", "3:19: address fd00::1%eth0: not the address of one machine"},
		{"loopback", nodes + "  n: {addresses: [127.0.0.1]}\n", "3:19: address 127.0.0.1: not the address of one machine"},
		{"the network's address", "zone: a.internal\nranges: [10.0.0.0/24]\nnodes:\n  n: {addresses: [10.0.0.0]}\n", "4:19: address 10.0.0.0: the network address of 10.0.0.0/24, which no machine can have"},
		{"the broadcast address", "zone: a.internal\nranges: [10.0.0.0/24]\nnodes:\n  n: {addresses: [10.0.0.255]}\n", "4:19: address 10.0.0.255: the broadcast address of 10.0.0.0/24, which no machine can have"},
		{"an address twice", nodes + "  n: {addresses: [100.64.0.1, 100.64.0.1]}\n", "3:31: address 100.64.0.1: belongs already to node n in line 3"},
		{"an address of two", nodes + "  n: {addresses: [\"fd00::1\"]}\n  m: {addresses: [\"fd00:0::1\"]}\n", "4:19: address fd00:0::1: belongs already to node n in line 3"},
		// Ranges.
		{"no range", "zone: a.internal\nranges: [10.0.0.0]\n", "2:10: range 10.0.0.0: not an address range"},
		{"host bits", "zone: a.internal\nranges: [10.0.0.1/8]\n", "2:10: range 10.0.0.1/8: has host bits set"},
		{"too large", "zone: a.internal\nranges: [0.0.0.0/0]\n", "2:10: range 0.0.0.0/0: too large; at least /8 is wanted"},
		{"loopback's range", "zone: a.internal\nranges: [127.1.0.0/16]\n", "2:10: range 127.1.0.0/16: overlaps 127.0.0.0/8, which is no network of machines"},
		{"ranges that overlap", "zone: a.internal\nranges: [10.0.0.0/8, 10.1.0.0/16]\n", "2:22: range 10.1.0.0/16: overlaps the range 10.0.0.0/8"},
		// Keys, endpoints, gateways.
		{"no base64", nodes + "  n: {addresses: [100.64.0.1], key: x}\n", "3:37: key x: not base64"},
		{"a short key", nodes + "  n: {addresses: [100.64.0.1], key: AAAA}\n", "3:37: key AAAA: 3 bytes long, a WireGuard key has 32"},
		{"a zero key", nodes + "  n: {addresses: [100.64.0.1], key: AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=}\n", "3:37: key AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=: all zero, which is no key"},
		{"a key twice", nodes + "  n: {addresses: [100.64.0.1], key: " + key(1) + "}\n  m: {addresses: [100.64.0.2], key: " + key(1) + "}\n", "4:37: key " + key(1) + ": belongs already to node n in line 3"},
		{"an endpoint without a port", nodes + "  n: {addresses: [100.64.0.1], endpoints: [192.0.2.1]}\n", "3:44: endpoint 192.0.2.1: want ADDRESS:PORT, [ADDRESS]:PORT or NAME:PORT"},
		{"an endpoint at port 0", nodes + "  n: {addresses: [100.64.0.1], endpoints: [\"192.0.2.1:0\"]}\n", `3:44: endpoint "192.0.2.1:0": want a port from 1 to 65535`},
		{"an endpoint everywhere", nodes + "  n: {addresses: [100.64.0.1], endpoints: [\"0.0.0.0:1\"]}\n", `3:44: endpoint "0.0.0.0:1": not the address of one machine`},
		{"a gateway that is not public", nodes + "  n: {addresses: [100.64.0.1], gateway: {public: [100.64.0.9]}}\n", "3:51: public 100.64.0.9: inside the tailnet's ranges, so not public"},
		// Routes.
		{"a route of the zone", "zone: a.internal\ndns: {routes: {A.internal: [9.9.9.9]}}\n", "2:16: route A.internal: would capture the zone a.internal, which is never forwarded"},
		{"a route below the zone", "zone: a.internal\ndns: {routes: {x.a.internal.: [9.9.9.9]}}\n", "2:16: route x.a.internal.: would capture the zone a.internal, which is never forwarded"},
		{"a route of a reverse zone", "zone: a.internal\ndns: {routes: {1.70.100.in-addr.arpa: [9.9.9.9]}}\n", "2:16: route 1.70.100.in-addr.arpa: would capture the reverse zone of 100.64.0.0/10, which is never forwarded"},
		{"a route twice", "zone: a.internal\ndns: {routes: {b.c: [9.9.9.9], B.C.: [9.9.9.9]}}\n", "2:32: route B.C.: is the same as route b.c in line 2"},
		{"a route of everything", "zone: a.internal\ndns: {routes: {.: [9.9.9.9]}}\n", "2:16: route .: is every name"},
		{"a route to nobody", "zone: a.internal\ndns: {routes: {b.c: []}}\n", "2:16: route b.c: has no upstreams"},
		{"no upstream", "zone: a.internal\ndns: {upstreams: [dns.example]}\n", "2:19: upstream dns.example: "},
		{"no search domain", "zone: a.internal\ndns: {search: [\"a b\"]}\n", `2:16: search "a b": not a valid name`},
		// Policy.
		{"a funnel of nobody", nodes + "  n: {addresses: [100.64.0.1], names: [s]}\npolicy: {funnel: [n, s, x]}\n", "4:25: policy.funnel x: neither a node nor a service name"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			m, err := parseMap("map.yaml", []byte(tt.text))
			var problems Problems
			if m != nil || !errors.As(err, &problems) {
				t.Fatalf("got %v, want %s", err, tt.want)
			}
			if got := err.Error(); len(problems) != 1 || !strings.HasPrefix(got, "map.yaml:"+tt.want) {
				t.Errorf("got\n%s\nwant\nmap.yaml:%s", got, tt.want)
			}
		})
	}
}

func TestMapFindsWhatIsWrongWithRecords(t *testing.T) {
	// The records start in line 4, indented by two.
	const before = "zone: a.internal\nnodes: {n: {addresses: [100.64.0.1], names: [s], wildcard: true}}\nrecords: |\n"
	tests := []struct{ name, records, want string }{
		{"no type", "b FOO bar", "4:5: record FOO: neither a type of records nor a TTL"},
		{"no address", "b A 192.0.2.300", "4:7: record 192.0.2.300: not a valid A"},
		{"nothing behind the name", "b", "4:3: record"},
		{"outside the zone", "b.example. A 192.0.2.1", `4:3: record "b.example A": outside the zone a.internal`},
		{"outside the reverse zones", "1.2.0.192.in-addr.arpa. PTR n", `4:3: record "1.2.0.192.in-addr.arpa PTR": outside the reverse zones of the tailnet's ranges 100.64.0.0/10`},
		{"CNAME of a node", "n CNAME b", `4:3: record "n.a.internal CNAME": a CNAME beside other data (RFC 1034, 3.6.2): the name is that of node n in line 2`},
		{"CNAME of a service", "s CNAME b", `4:3: record "s.a.internal CNAME": a CNAME beside other data (RFC 1034, 3.6.2): the name is that of service s of n in line 2`},
		{"CNAME of a wildcard", "*.n CNAME b", `4:3: record "*.n.a.internal CNAME": a CNAME beside other data (RFC 1034, 3.6.2): the name is that of node n in line 2`},
		{"address of a node", "n A 192.0.2.1", `4:3: record "n.a.internal A": the name is that of node n in line 2; its addresses are given there`},
		{"CNAME beside data", "b A 192.0.2.1\n  b CNAME n", `5:3: record "b.a.internal CNAME": a CNAME beside other data (RFC 1034, 3.6.2), which is in line 4`},
		{"data beside a CNAME", "b CNAME n\n  B TXT x", `5:3: record "b.a.internal TXT": beside the CNAME in line 4 (RFC 1034, 3.6.2)`},
		{"two CNAMEs", "b CNAME n\n  b CNAME s", `5:3: record "b.a.internal CNAME": a second CNAME of one name, first in line 4`},
		{"a CNAME to itself", "b CNAME b", `4:3: record "b.a.internal CNAME": leads back to itself: b.a.internal. -> b.a.internal.`},
		{"a loop of three", "b CNAME c\n  c CNAME d\n  d CNAME B\n  e CNAME b", `4:3: record "b.a.internal CNAME": leads back to itself: b.a.internal. -> c.a.internal. -> d.a.internal. -> b.a.internal.`},
		{"a loop by a wildcard", "*.b CNAME x.b", `4:3: record "*.b.a.internal CNAME": leads back to itself: *.b.a.internal. -> *.b.a.internal.`},
		{"SOA", "@ SOA n hostmaster 1 2 3 4 5", `4:3: record "a.internal SOA": the zone's SOA is made by meshdns`},
		{"delegation", "b NS n", `4:3: record "b.a.internal NS": the zone is answered from the map as a whole: no part of it is delegated or renamed`},
		{"another class", "b CH TXT x", `4:3: record "b.a.internal TXT": only class IN is served`},
		{"an underscored refusal", "wpad A 192.0.2.1", `4:3: record "wpad.a.internal A": browsers look for their proxy here`},
		{"the zone's wildcard", "* A 192.0.2.1", `4:3: record "*.a.internal A": the zone's wildcard holds every name, also those that programs look up by themselves`},
		{"a top-level domain's wildcard", "*.com A 192.0.2.1", `4:3: record "*.com.a.internal A": a top-level domain: with the wildcard`},
		{"a bad name", "b- A 192.0.2.1", `4:3: record "b-.a.internal A": not a valid name: label b-: starts or ends with a hyphen`},
		{"a bad A-label", "xn--a A 192.0.2.1", `4:3: record "xn--a.a.internal A": not a valid name: label xn--a: not a valid international label (IDNA2008)`},
		{"a bad international name", "\u0301b A 192.0.2.1", "4:3: record \u0301b: not a valid international name (IDNA2008); put text in quotes"},
		{"an inclusion", "$INCLUDE /etc/passwd", "4:3: record $INCLUDE: not allowed here; only $TTL and $ORIGIN are"},
		{"a generator", "$GENERATE 1-65535 h$ A 192.0.2.$", "4:3: record $GENERATE: not allowed here; only $TTL and $ORIGIN are"},
		{"a bad TTL", "$TTL often", "4:8: record often: not a TTL in seconds"},
		{"a bad origin", "$ORIGIN a..b", "4:11: record a..b: not a domain name"},
		{"no origin", "$ORIGIN", "4:3: record $ORIGIN: wants one value"},
		{"no name before", "; c\n    A 192.0.2.1", "5:5: record: no name before it to belong to"},
		{"an open quote", "b TXT \"x\n  c A 192.0.2.1", "4:3: record: a quote is not closed"},
		{"an open parenthesis", "b A 192.0.2.1\n  c TXT ( x", "5:3: record: a parenthesis is not closed"},
		{"a long name", strings.Repeat(strings.Repeat("a", 60)+".", 4) + "b A 192.0.2.1", "4:3: record \"" + strings.Repeat("a", 60)},
		{"a long target", "b CNAME " + strings.Repeat(strings.Repeat("a", 60)+".", 4) + "b", `4:3: record "b.a.internal CNAME": does not fit into a message: `},
		{"a type for queries", "b TYPE255 \\# 0", "4:3: record"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			_, err := parseMap("map.yaml", []byte(before+"  "+tt.records+"\n"))
			var problems Problems
			if !errors.As(err, &problems) || len(problems) != 1 || !strings.HasPrefix(err.Error(), "map.yaml:"+tt.want) {
				t.Errorf("got\n%v\nwant\nmap.yaml:%s", err, tt.want)
			}
		})
	}
}

func TestMapTellsEveryProblemAtOnce(t *testing.T) {
	_, err := parseMap("map.yaml", []byte(`zone: a.internal
nodes:
  wpad: {addresses: [10.0.0.1, x], key: y, names: ["-"]}
  n: {adresses: []}
records: |
  b FOO
  c A 192.0.2.300
  d CNAME d
  e.example. A 192.0.2.1
dns: {routes: {a.internal: []}}
`))
	var lines []string
	for line := range strings.Lines(err.Error()) {
		where, _, _ := strings.Cut(strings.TrimPrefix(line, "map.yaml:"), ": ")
		lines = append(lines, where)
	}
	if got, want := strings.Join(lines, " "), "3:3 3:22 3:32 3:41 3:52 4:3 4:7 6:5 7:7 8:3 9:3 10:16 10:16"; got != want {
		t.Errorf("got %s, want %s:\n%v", got, want, err)
	}
}

func TestPlacesInRecordsAreThoseOfTheFile(t *testing.T) {
	tests := []struct{ name, text, want string }{
		{"a quoted block has one place", "zone: a.internal\nrecords: \"b A x\\nc A y\"\n", "2:10 2:10"},
		{"a folded one too", "zone: a.internal\nrecords: >\n  b A x\n", "2:10"},
		{"over several lines", "zone: a.internal\nrecords: |\n    b TXT ( a\n      b )\n    c A x\n", "5:9"},
		{"inside parentheses", "zone: a.internal\nrecords: |\n    b SVCB ( 1\n      . ipv4hint=x )\n", "4:9"},
		{"after comments and blank lines", "zone: a.internal\nrecords: |\n  ; c\n\n  b A x ; d\n", "5:7"},
		{"CRLF", "zone: a.internal\r\nrecords: |\r\n  b A 192.0.2.1\r\n  c A x\r\n", "4:7"},
		{"after tabs", "zone: a.internal\nrecords: |\n  b\tA\tx\n", "3:7"},
		{"after letters of two bytes", "zone: a.internal\nrecords: |\n  ö A x\n", "3:7"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			_, err := parseMap("m", []byte(tt.text))
			var problems Problems
			errors.As(err, &problems)
			var places []string
			for _, p := range problems {
				places = append(places, fmt.Sprintf("%d:%d", p.Line, p.Column))
			}
			if got := strings.Join(places, " "); got != tt.want {
				t.Errorf("got %s, want %s: %v", got, tt.want, err)
			}
		})
	}
}

func TestRecordsFollowDirectives(t *testing.T) {
	m := mustParse(t, `zone: a.internal
records: |
  b A 192.0.2.1
  $TTL 5
  c A 192.0.2.1
  $ORIGIN sub ; below the zone
  d A 192.0.2.1
    TXT "; no comment" ; a comment
  e 7 A 192.0.2.1
  f TXT ( "over
    lines" )
  b.a.internal. A 192.0.2.1 ; is there already
`)
	var got []string
	for _, rr := range m.Records() {
		got = append(got, strings.ReplaceAll(rr.String(), "\t", " "))
	}
	want := []string{
		"b.a.internal. 60 IN A 192.0.2.1",
		"c.a.internal. 5 IN A 192.0.2.1",
		"d.sub.a.internal. 5 IN A 192.0.2.1",
		`d.sub.a.internal. 5 IN TXT "; no comment"`,
		"e.sub.a.internal. 7 IN A 192.0.2.1",
		`f.sub.a.internal. 5 IN TXT "over\010  lines"`,
	}
	if !slices.Equal(got, want) {
		t.Errorf("got\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
}

func TestTheSameRecordTwiceIsOne(t *testing.T) {
	m := mustParse(t, "zone: a.internal\nrecords: |\n  b A 192.0.2.1\n  B A 192.0.2.1\n  b A 192.0.2.2\n  c CNAME b\n  c CNAME b\n")
	if got := len(m.Records()); got != 3 {
		t.Errorf("got %d records, want 3: %v", got, m.Records())
	}
}

func TestOwnersMayForceRefusedNames(t *testing.T) {
	const nodes = "nodes: {wpad: {addresses: [100.64.0.1]}, dev: {addresses: [100.64.0.2], wildcard: true}}\nrecords: |\n  * A 192.0.2.1\n  autoconfig A 192.0.2.2\n"
	for force, wrong := range map[string]int{
		"": 4, "force: [wpad]\n": 3, "force: [WPAD, dev, autoconfig]\n": 1, "force: [wpad, dev, autoconfig, \"*\"]\n": 0, "force: true\n": 0, "force: false\n": 4,
	} {
		_, err := parseMap("m", []byte("zone: a.internal\n"+force+nodes))
		var problems Problems
		errors.As(err, &problems)
		if len(problems) != wrong {
			t.Errorf("%q: got %v, want %d problems", force, err, wrong)
		}
		for _, p := range problems {
			if !strings.Contains(p.Hint(), "force: [") {
				t.Errorf("%v has the hint %q", p, p.Hint())
			}
		}
	}
}

func TestCNAMEsThatLeadSomewhereAreNoLoops(t *testing.T) {
	mustParse(t, `zone: a.internal
nodes: {n: {addresses: [100.64.0.1], wildcard: true}}
records: |
  a CNAME b
  b CNAME c
  c CNAME n
  d CNAME x.n
  *.w CNAME w
  w A 192.0.2.1
  *.v CNAME e.v
  e.v A 192.0.2.1
  out CNAME www.example.com.
  *.x CNAME deep.er.y
  y.x TXT "exists, so no wildcard below"
  f CNAME z.y.x
`)
}

func TestRangesFollowFromAddresses(t *testing.T) {
	tests := []struct{ name, text, want string }{
		{"no nodes", "zone: a.internal\n", "[100.64.0.0/10]"},
		{"IPv6 too", "zone: a.internal\nnodes: {n: {addresses: [100.64.0.1, \"fd00:1:2:3::1\"]}, m: {addresses: [\"fd00:1:2::9\", \"fd00:9::1\"]}}\n",
			"[100.64.0.0/10 fd00:1:2::/48 fd00:9::/48]"},
		{"given", "zone: a.internal\nranges: [10.8.0.0/24]\n", "[10.8.0.0/24]"},
		{"one alone", "zone: a.internal\nranges: 10.8.0.0/24\n", "[10.8.0.0/24]"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if got := fmt.Sprint(mustParse(t, tt.text).Ranges()); got != tt.want {
				t.Errorf("got %s, want %s", got, tt.want)
			}
		})
	}
	var b strings.Builder
	b.WriteString("zone: a.internal\nnodes:\n")
	for i := range 40 {
		fmt.Fprintf(&b, "  n%d: {addresses: [\"fd00:%x::1\"]}\n", i, i)
	}
	if _, err := parseMap("m", []byte(b.String())); err == nil || !strings.Contains(err.Error(), "more than 32 ranges") {
		t.Errorf("40 networks: got %v", err)
	}
}

func TestMapsAreBounded(t *testing.T) {
	many := func(n int, format string) string {
		words := make([]string, n)
		for i := range words {
			words[i] = fmt.Sprintf(format, i)
		}
		return strings.Join(words, ", ")
	}
	var big strings.Builder
	for i := range 200 {
		fmt.Fprintf(&big, "  b TXT \"%s%d\"\n", strings.Repeat("x", 240), i)
	}
	tests := []struct{ name, text, want string }{
		{"ranges", "ranges: [" + many(33, "10.%d.0.0/16") + "]\n", "one of more than 32"},
		{"names", "nodes: {n: {addresses: [100.64.0.1], names: [" + many(1025, "s%d") + "]}}\n", "has 1025 names, at most 1024 are allowed"},
		{"addresses", "ranges: [10.0.0.0/8]\nnodes: {n: {addresses: [" + many(65, "10.1.1.%d") + "]}}\n", "has 65 addresses, at most 64 are allowed"},
		{"endpoints", "nodes: {n: {addresses: [100.64.0.1], endpoints: [" + many(17, "\"192.0.2.%d:1\"") + "]}}\n", "has 17 endpoints, at most 16 are allowed"},
		{"upstreams", "dns: {upstreams: [" + many(17, "192.0.2.%d") + "]}\n", "one of more than 16"},
		{"search", "dns: {search: [" + many(33, "s%d.example") + "]}\n", "one of more than 32"},
		{"one name's records", "records: |\n" + big.String(), "its records take more than 32768 bytes"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			_, err := parseMap("m", []byte("zone: a.internal\n"+tt.text))
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("got %.200v, want %s", err, tt.want)
			}
		})
	}
	if _, err := parseMap("m", make([]byte, maxMap+1)); err == nil || !strings.Contains(err.Error(), "longer than") {
		t.Errorf("a huge file: got %v", err)
	}
}

func TestMapFilesAreRegularFiles(t *testing.T) {
	dir := t.TempDir()
	if _, err := loadMap(filepath.Join(dir, "none")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("none: got %v", err)
	}
	if _, err := loadMap(dir); err == nil || !strings.Contains(err.Error(), "not a regular file") {
		t.Errorf("a directory: got %v", err)
	}
	path := writeFileT(t, "map.yaml", designMap)
	m, err := loadMap(path)
	if err != nil || m.Source() != path {
		t.Errorf("got %v, %v", m, err)
	}
}

func TestFreeAddressIsTheHighestOne(t *testing.T) {
	tests := []struct{ name, text, want string }{
		{"default", "zone: a.internal\n", "100.127.255.254"},
		{"taken", "zone: a.internal\nranges: [\"fd00::/48\", 10.8.0.0/29]\nnodes: {n: {addresses: [10.8.0.6, 10.8.0.5]}}\n", "10.8.0.4"},
		{"no IPv4", "zone: a.internal\nranges: [\"fd00::/48\"]\n", "invalid IP"},
		{"full", "zone: a.internal\nranges: [10.8.0.0/30]\nnodes: {n: {addresses: [10.8.0.1, 10.8.0.2]}}\n", "invalid IP"},
		{"two addresses", "zone: a.internal\nranges: [10.8.0.0/31]\nnodes: {n: {addresses: [10.8.0.0]}}\n", "10.8.0.1"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if got := mustParse(t, tt.text).freeAddress(nil).String(); got != tt.want {
				t.Errorf("got %s, want %s", got, tt.want)
			}
		})
	}
}

func TestReverseNamesRoundTrip(t *testing.T) {
	for _, addr := range []string{"192.0.2.1", "0.0.0.0", "255.255.255.255", "fd7a:115c:a1e0::2", "::1", "2001:db8:ffff::"} {
		a := netip.MustParseAddr(addr)
		want, err := dns.ReverseAddr(addr)
		if err != nil {
			t.Fatal(err)
		}
		got := reverseName(a)
		if got != want {
			t.Errorf("%s: got %s, want %s", addr, got, want)
		}
		p, ok := parseReverse(strings.TrimSuffix(got, "."))
		if !ok || p != netip.PrefixFrom(a, a.BitLen()) {
			t.Errorf("%s: read back as %v", got, p)
		}
	}
	for name, want := range map[string]string{
		"in-addr.arpa": "", "10.in-addr.arpa": "10.0.0.0/8", "16.172.in-addr.arpa": "172.16.0.0/16", "1.2.3.4.5.in-addr.arpa": "",
		"256.in-addr.arpa": "", "010.in-addr.arpa": "", "x.in-addr.arpa": "", "d.f.ip6.arpa": "fd00::/8", "1.d.f.ip6.arpa": "fd10::/12", "gg.ip6.arpa": "", "g.ip6.arpa": "",
		"example": "", strings.Repeat("0.", 33) + "ip6.arpa": "",
	} {
		p, ok := parseReverse(name)
		if ok != (want != "") || ok && p.String() != want {
			t.Errorf("%s: got %v, %t; want %q", name, p, ok, want)
		}
	}
}

func TestLastAddressOfARange(t *testing.T) {
	for prefix, want := range map[string]string{
		"10.0.0.0/8": "10.255.255.255", "10.8.0.0/29": "10.8.0.7", "10.8.0.5/32": "10.8.0.5", "100.64.0.0/10": "100.127.255.255",
		"fd00::/48": "fd00::ffff:ffff:ffff:ffff:ffff", "fd00::1/128": "fd00::1", "fd00::/9": "fd7f:ffff:ffff:ffff:ffff:ffff:ffff:ffff",
	} {
		if got := lastAddr(netip.MustParsePrefix(prefix)).String(); got != want {
			t.Errorf("%s: got %s, want %s", prefix, got, want)
		}
	}
}

func FuzzMap(f *testing.F) {
	f.Add(designMap)
	f.Add("zone: a.internal\nnodes: {n: {addresses: [100.64.0.1], names: [s], wildcard: true}}\nrecords: |\n  *.b CNAME x.b\n")
	f.Add("zone: a.internal\nforce: true\ndns: {routes: {b.c: 9.9.9.9}, search: [d]}\n")
	f.Fuzz(func(t *testing.T, text string) {
		m, err := parseMap("m", []byte(text))
		if err != nil {
			var problems Problems
			if !errors.As(err, &problems) || len(problems) == 0 || len(problems) > maxProblems+1 {
				t.Fatalf("got %v, want problems", err)
			}
			return
		}
		for _, rr := range m.Records() {
			name := strings.TrimSuffix(rr.Header().Name, ".")
			if !within(name, m.Zone()) && !within(name, "arpa") {
				t.Errorf("%s lies outside the zone %s", name, m.Zone())
			}
			if _, err := dns.PackRR(rr, make([]byte, 1<<16), 0, nil, false); err != nil {
				t.Errorf("%v does not pack: %v", rr, err)
			}
		}
		for _, n := range m.Nodes() {
			if label, msg := checkLabel(n.Name); msg != "" || label != n.Name {
				t.Errorf("%q is no canonical label", n.Name)
			}
			for _, a := range n.Addresses {
				if !rangeOf(m.Ranges(), a).IsValid() {
					t.Errorf("%v lies outside the ranges %v", a, m.Ranges())
				}
			}
		}
	})
}

func FuzzRecords(f *testing.F) {
	for _, text := range []string{
		"b A 192.0.2.1\n  TXT ( \"x\n\" y ) ; z\n", "$ORIGIN c\n$TTL 5\n@ MX 1 d\n", "b TXT \"a\\\"b\\\\\" \\; c", "ö CNAME ü.example.\n", "b CAA 0 issue \"x\"\n\n;\n(\n)\n",
	} {
		f.Add(text)
	}
	f.Fuzz(func(t *testing.T, text string) {
		z := zoneReader{block: recordBlock{text: text, at: position{line: 1}, block: true}, lines: strings.Split(text, "\n"), origin: "a.internal.", ttl: 60}
		z.read()
		lines := strings.Count(text, "\n") + 1
		for _, p := range z.problems {
			if p.Line < 1 || p.Line > lines || p.Column < 1 {
				t.Errorf("%d:%d of %d lines: %v", p.Line, p.Column, lines, p)
			}
		}
		if len(z.records) > lines {
			t.Errorf("%d records of %d lines", len(z.records), lines)
		}
	})
}

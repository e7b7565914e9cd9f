package resolver

import (
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/miekg/dns"
)

// tableModel says what a table has to answer, in the plainest way: maps of strings and the codec's records.
type tableModel struct {
	zones []string
	data  map[string]map[uint16][]dns.RR // by lower-cased owner
	ttl   uint32
}

// modelAnswer is what the model says of a question.
type modelAnswer struct {
	outcome tableOutcome
	answer  []string
	soa     []string
	target  string
}

func newTableModel(zones []string, c TableConfig) *tableModel {
	m := &tableModel{zones: zones, data: map[string]map[uint16][]dns.RR{}, ttl: c.TTL}
	if m.ttl == 0 {
		m.ttl = 60
	}
	for _, r := range c.Records {
		m.add(dns.Copy(r))
	}
	for _, z := range zones {
		if m.data[z][dns.TypeSOA] == nil {
			m.add(mustRR(fmt.Sprintf("%s %d IN SOA ns.%s hostmaster.%[3]s %d 3600 600 86400 %d",
				z, m.ttl, zones[0], c.Serial, min(m.ttl, 60))))
		}
		if m.data[z][dns.TypeNS] == nil {
			m.add(mustRR(fmt.Sprintf("%s %d IN NS ns.%s", z, m.ttl, zones[0])))
		}
	}
	return m
}

func mustRR(text string) dns.RR {
	r, err := dns.NewRR(text)
	if err != nil {
		panic(err) // a test's own text
	}
	return r
}

func (m *tableModel) add(r dns.RR) {
	h := r.Header()
	h.Name = strings.ToLower(h.Name)
	if h.Ttl == 0 {
		h.Ttl = m.ttl
	}
	if m.data[h.Name] == nil {
		m.data[h.Name] = map[uint16][]dns.RR{}
	}
	set := m.data[h.Name][h.Rrtype]
	low := h.Ttl
	for _, other := range set {
		low = min(low, other.Header().Ttl)
	}
	if !slices.ContainsFunc(set, func(o dns.RR) bool { return dns.IsDuplicate(o, r) }) {
		set = append(set, r)
	}
	for _, other := range set {
		other.Header().Ttl = low
	}
	m.data[h.Name][h.Rrtype] = set
}

func (m *tableModel) zone(name string) string {
	best := ""
	for _, z := range m.zones {
		if dns.IsSubDomain(z, name) && len(z) > len(best) {
			best = z
		}
	}
	return best
}

func (m *tableModel) exists(name string) bool {
	for owner := range m.data {
		if dns.IsSubDomain(name, owner) {
			return m.zone(name) != ""
		}
	}
	return false
}

// source is the owner of the data that answers for name.
func (m *tableModel) source(name string) (string, bool) {
	if m.exists(name) {
		return name, true
	}
	for encloser := name; ; {
		i, _ := dns.NextLabel(encloser, 0)
		encloser = encloser[i:]
		if m.exists(encloser) {
			return "*." + encloser, m.exists("*." + encloser)
		}
	}
}

func (m *tableModel) lookup(name string, qtype uint16, rotate uint32) (a modelAnswer) {
	name = strings.ToLower(name)
	for hops := 0; ; hops++ {
		zone := m.zone(name)
		if zone == "" {
			if hops > 0 {
				a.outcome, a.target = tableExternal, name
			}
			return a
		}
		owner, ok := m.source(name)
		soa := dns.Copy(m.data[zone][dns.TypeSOA][0]).(*dns.SOA)
		soa.Hdr.Ttl = min(soa.Hdr.Ttl, soa.Minttl)
		if !ok {
			a.outcome, a.soa = tableNXDomain, []string{soa.String()}
			return a
		}
		sets := m.data[owner]
		set, alias := sets[qtype], sets[dns.TypeCNAME]
		if qtype == dns.TypeANY && hops == 0 {
			set = alias
			if len(sets) > 0 && alias == nil {
				set = []dns.RR{mustRR(fmt.Sprintf(`%s %d IN HINFO "RFC8482" ""`, name, m.data[zone][dns.TypeSOA][0].Header().Ttl))}
			}
		}
		switch {
		case set != nil:
			a.outcome = tableAnswer
			a.add(name, qtype, set, rotate)
			return a
		case alias == nil:
			a.outcome, a.soa = tableNoData, []string{soa.String()}
			return a
		}
		a.add(name, dns.TypeCNAME, alias, 0)
		name = strings.ToLower(alias[0].(*dns.CNAME).Target)
	}
}

func (a *modelAnswer) add(owner string, rtype uint16, set []dns.RR, rotate uint32) {
	turn := 0
	if rtype == dns.TypeA || rtype == dns.TypeAAAA {
		turn = int(rotate % uint32(len(set)))
	}
	for i := range set {
		r := dns.Copy(set[(i+turn)%len(set)])
		r.Header().Name = owner
		a.answer = append(a.answer, r.String())
	}
}

// valid reports whether the records may stand beside each other.
func (m *tableModel) valid() bool {
	for owner, sets := range m.data {
		if sets[dns.TypeCNAME] == nil {
			continue
		}
		if slices.Contains(m.zones, owner) || len(sets) > 1 || len(sets[dns.TypeCNAME]) > 1 {
			return false
		}
	}
	for owner, sets := range m.data {
		for hops := 0; sets[dns.TypeCNAME] != nil; hops++ {
			if hops == 16 {
				return false
			}
			owner = strings.ToLower(sets[dns.TypeCNAME][0].(*dns.CNAME).Target)
			if m.zone(owner) == "" {
				break
			}
			owner, _ = m.source(owner)
			sets = m.data[owner]
		}
	}
	return true
}

// tableAsk is one question to a table and the whole message that came of it.
type tableAsk struct {
	q   question
	msg []byte
	hit tableHit
}

// askTable assembles the message as a server does; limit is where records are cut.
func askTable(t testing.TB, table *Table, query []byte, limit int, rotate uint32) *tableAsk {
	t.Helper()
	a := new(tableAsk)
	if v := a.q.parse(query); v != verdictOK {
		t.Fatalf("parsing %x: verdict %d", query, v)
	}
	a.msg, a.hit = table.lookup(&a.q, append([]byte(nil), query[:a.q.end]...), limit, rotate)
	binary.BigEndian.PutUint16(a.msg[2:], flagQR|flagAA|a.hit.rcode())
	binary.BigEndian.PutUint16(a.msg[countAt(sectionAnswer):], a.hit.answer)
	binary.BigEndian.PutUint16(a.msg[countAt(sectionAuthority):], a.hit.authority)
	binary.BigEndian.PutUint16(a.msg[countAt(sectionAdditional):], 0)
	return a
}

// unpack reads the message with the codec and checks that the counts are right.
func (a *tableAsk) unpack(t testing.TB) *dns.Msg {
	t.Helper()
	m := new(dns.Msg)
	if err := m.Unpack(a.msg); err != nil {
		t.Fatalf("unpacking %x: %v", a.msg, err)
	}
	checkCounts(t, a.msg)
	return m
}

// checkCounts walks a message: it must end with the last record counted.
func checkCounts(t testing.TB, msg []byte) {
	t.Helper()
	off := headerSize
	for range binary.BigEndian.Uint16(msg[4:]) {
		off = skipName(msg, off) + 4
	}
	for section := range sections {
		for i := range binary.BigEndian.Uint16(msg[countAt(section):]) {
			if off = recordEnd(msg, off); off < 0 {
				t.Fatalf("record %d of section %d is not whole: %x", i, section, msg)
			}
		}
	}
	if off != len(msg) {
		t.Fatalf("the counted records end at %d of %d octets: %x", off, len(msg), msg)
	}
}

// lines are the records in presentation form, owners lower-cased.
func lines(rrs []dns.RR) []string {
	var out []string
	for _, r := range rrs {
		r.Header().Name = strings.ToLower(r.Header().Name)
		out = append(out, r.String())
	}
	return out
}

// check compares the answer of a table with the model's.
func (m *tableModel) check(t testing.TB, table *Table, query []byte, rotate uint32) {
	t.Helper()
	got := askTable(t, table, query, dns.MaxMsgSize, rotate)
	msg := got.unpack(t)
	name := msg.Question[0].Name
	want := m.lookup(name, got.q.qtype, rotate)
	have := modelAnswer{outcome: got.hit.outcome, answer: lines(msg.Answer), soa: lines(msg.Ns)}
	if got.hit.target != nil {
		have.target = strings.ToLower(presentName(got.hit.target))
	}
	if fmt.Sprintf("%+v", have) != fmt.Sprintf("%+v", want) {
		t.Fatalf("%s %s\n got %+v\nwant %+v", name, dns.Type(got.q.qtype), have, want)
	}
	if zone := m.zone(strings.ToLower(name)); table.zoneOf(&got.q) != zone {
		t.Fatalf("zone of %s: got %q, want %q", name, table.zoneOf(&got.q), zone)
	}
}

// randomTable draws a configuration, the zones that it has and the labels that make interesting names in it.
func randomTable(rng *rand.Rand) (c TableConfig, zones, labels []string) {
	zones = []string{[]string{"foo-bar.ts.net.", "mesh.", "10.in-addr.arpa.", "ip6.arpa."}[rng.IntN(4)]}
	labels = []string{"a", "B", "c", "*", "nas", "_tcp", "10"}
	c = TableConfig{Zone: zones[0], Serial: rng.Uint32(), TTL: uint32(rng.IntN(3)) * 50}
	if rng.IntN(2) == 0 {
		c.Ranges = append(c.Ranges, netip.MustParsePrefix("10.8.0.0/15"))
		zones = append(zones, "8.10.in-addr.arpa.", "9.10.in-addr.arpa.")
	}
	if rng.IntN(2) == 0 {
		c.Ranges = append(c.Ranges, netip.MustParsePrefix("fd00::/7"))
		zones = append(zones, "c.f.ip6.arpa.", "d.f.ip6.arpa.")
	}
	for range rng.IntN(25) {
		c.Records = append(c.Records, randomRecord(rng, zones, labels))
	}
	return c, zones, labels
}

func randomName(rng *rand.Rand, zones, labels []string) string {
	name := zones[rng.IntN(len(zones))]
	for range rng.IntN(5) {
		name = labels[rng.IntN(len(labels))] + "." + name
	}
	return name
}

func randomRecord(rng *rand.Rand, zones, labels []string) dns.RR {
	name := randomName(rng, zones, labels)
	target := randomName(rng, append(slices.Clone(zones), "example.org."), labels)
	n := rng.IntN(4)
	data := []string{
		fmt.Sprintf("A 100.64.0.%d", n), fmt.Sprintf("A 100.64.0.%d", n), fmt.Sprintf("AAAA fd00::%d", n),
		"CNAME " + target, "NS " + target, fmt.Sprintf("MX %d %s", n, target), fmt.Sprintf("TXT \"%d\"", n),
	}
	return mustRR(fmt.Sprintf("%s %d IN %s", name, rng.IntN(4)*30, data[rng.IntN(len(data))]))
}

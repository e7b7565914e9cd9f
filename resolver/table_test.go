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

// tableText is a zone with one of everything that is odd.
const tableText = `
$ORIGIN foo-bar.ts.net.
$TTL 300
nas            A     100.64.0.2
nas            AAAA  fd7a:115c:a1e0::2
many           A     100.64.1.1
many           A     100.64.1.2
many           A     100.64.1.3
mail        30 MX    10 nas
mail           MX    20 many
mail           MX    10 NAS
*.nas          A     100.64.0.3
x.y.nas        TXT   "below an empty non-terminal"
_http._tcp.nas SRV   0 0 80 nas
www            CNAME nas
WWW2           CNAME Www
any.nas        CNAME q.nas
*.alias        CNAME deep.er.nas
dead           CNAME nowhere.else
lost           CNAME gone.to.example.org.
lost2          CNAME lost
rev            CNAME 9.0.64.100.in-addr.arpa.
sub            NS    ns.sub
ns.sub         A     100.64.0.9
tree           DNAME nas
star.*.nas2    A     100.64.0.4
signed         CNAME nas
signed         RRSIG CNAME 13 4 300 20300101000000 20200101000000 1 foo-bar.ts.net. AAAA
2.0.64.100.in-addr.arpa. PTR nas
`

func oddTable(t testing.TB) *Table {
	t.Helper()
	return zoneTable(t, TableConfig{Zone: "Foo-Bar.ts.net", Serial: 7, Ranges: prefixes("100.64.0.0/10", "fd7a:115c:a1e0::/48")}, tableText)
}

// zoneTable makes a table of records in zone-file syntax.
func zoneTable(t testing.TB, c TableConfig, text string) *Table {
	t.Helper()
	c.Records = append(c.Records, parseZone(t, text)...)
	table, err := NewTable(c)
	if err != nil {
		t.Fatal(err)
	}
	return table
}

func parseZone(t testing.TB, text string) []dns.RR {
	t.Helper()
	var rrs []dns.RR
	p := dns.NewZoneParser(strings.NewReader(text), ".", "")
	p.SetDefaultTTL(3600)
	for r, ok := p.Next(); ok; r, ok = p.Next() {
		rrs = append(rrs, r)
	}
	if err := p.Err(); err != nil {
		t.Fatal(err)
	}
	return rrs
}

func prefixes(texts ...string) []netip.Prefix {
	var out []netip.Prefix
	for _, s := range texts {
		out = append(out, netip.MustParsePrefix(s))
	}
	return out
}

func TestTableAnswers(t *testing.T) {
	const (
		zone = ".foo-bar.ts.net. "
		soa  = "foo-bar.ts.net. 60 IN SOA ns.foo-bar.ts.net. hostmaster.foo-bar.ts.net. 7 3600 600 86400 60"
		rsoa = "64.100.in-addr.arpa. 60 IN SOA ns.foo-bar.ts.net. hostmaster.foo-bar.ts.net. 7 3600 600 86400 60"
	)
	tests := []struct {
		odd, name, qtype string
		outcome          tableOutcome
		want             []string // answer, then authority
	}{
		{"an exact name", "nas", "A", tableAnswer, []string{"nas" + zone + "300 IN A 100.64.0.2"}},
		{"the other family", "many", "AAAA", tableNoData, []string{soa}},
		{"a wildcard", "q.nas", "A", tableAnswer, []string{"q.nas" + zone + "300 IN A 100.64.0.3"}},
		{"a wildcard, deeper", "a.b.c.nas", "A", tableAnswer, []string{"a.b.c.nas" + zone + "300 IN A 100.64.0.3"}},
		{"a wildcard without the type", "q.nas", "TXT", tableNoData, []string{soa}},
		{"the wildcard's own name", "*.nas", "A", tableAnswer, []string{"*.nas" + zone + "300 IN A 100.64.0.3"}},
		{"below the wildcard's own name", "a.*.nas", "A", tableNXDomain, []string{soa}},
		{"an empty non-terminal hides the wildcard", "y.nas", "A", tableNoData, []string{soa}},
		{"beside a name that hides the wildcard", "z.y.nas", "A", tableNXDomain, []string{soa}},
		{"an empty non-terminal that is a wildcard", "q.nas2", "A", tableNoData, []string{soa}},
		{"the asterisk inside a name is a letter", "star.q.nas2", "A", tableNoData, []string{soa}},
		{"no such name", "nope", "A", tableNXDomain, []string{soa}},
		{"no such name, deep", "a.b.c.d.nope", "A", tableNXDomain, []string{soa}},
		{"capitals", "NAS", "A", tableAnswer, []string{"nas" + zone + "300 IN A 100.64.0.2"}},
		{"duplicates in other letters, TTLs that differ", "mail", "MX", tableAnswer, []string{
			"mail" + zone + "30 IN MX 10 nas.foo-bar.ts.net.", "mail" + zone + "30 IN MX 20 many.foo-bar.ts.net."}},
		{"an alias", "www", "A", tableAnswer, []string{
			"www" + zone + "300 IN CNAME nas.foo-bar.ts.net.", "nas" + zone + "300 IN A 100.64.0.2"}},
		{"an alias, itself asked for", "www", "CNAME", tableAnswer, []string{"www" + zone + "300 IN CNAME nas.foo-bar.ts.net."}},
		{"an alias of an alias, with capitals", "www2", "AAAA", tableAnswer, []string{
			"www2" + zone + "300 IN CNAME Www.foo-bar.ts.net.", "www" + zone + "300 IN CNAME nas.foo-bar.ts.net.",
			"nas" + zone + "300 IN AAAA fd7a:115c:a1e0::2"}},
		{"an alias without the type", "www", "TXT", tableNoData, []string{"www" + zone + "300 IN CNAME nas.foo-bar.ts.net.", soa}},
		{"an alias into a wildcard", "any.nas", "A", tableAnswer, []string{
			"any.nas" + zone + "300 IN CNAME q.nas.foo-bar.ts.net.", "q.nas" + zone + "300 IN A 100.64.0.3"}},
		{"a wildcard that is an alias", "a.alias", "A", tableAnswer, []string{
			"a.alias" + zone + "300 IN CNAME deep.er.nas.foo-bar.ts.net.", "deep.er.nas" + zone + "300 IN A 100.64.0.3"}},
		{"an alias of nothing", "dead", "A", tableNXDomain, []string{"dead" + zone + "300 IN CNAME nowhere.else.foo-bar.ts.net.", soa}},
		{"an alias of nothing in another zone of ours", "rev", "PTR", tableNXDomain, []string{
			"rev" + zone + "300 IN CNAME 9.0.64.100.in-addr.arpa.", rsoa}},
		{"an alias that leads away", "lost2", "A", tableExternal, []string{
			"lost2" + zone + "300 IN CNAME lost.foo-bar.ts.net.", "lost" + zone + "300 IN CNAME gone.to.example.org."}},
		{"the signature of an alias", "signed", "RRSIG", tableAnswer, []string{
			"signed" + zone + "300 IN RRSIG CNAME 13 4 300 20300101000000 20200101000000 1 foo-bar.ts.net. AAAA"}},
		{"ANY", "nas", "ANY", tableAnswer, []string{"nas" + zone + `60 IN HINFO "RFC8482" ""`}},
		{"ANY of a wildcard", "q.nas", "ANY", tableAnswer, []string{"q.nas" + zone + `60 IN HINFO "RFC8482" ""`}},
		{"ANY of an alias", "www", "ANY", tableAnswer, []string{"www" + zone + "300 IN CNAME nas.foo-bar.ts.net."}},
		{"ANY of an empty non-terminal", "y.nas", "ANY", tableNoData, []string{soa}},
		{"ANY of nothing", "nope", "ANY", tableNXDomain, []string{soa}},
		{"the top's SOA", "", "SOA", tableAnswer, []string{soa}},
		{"the top's NS", "", "NS", tableAnswer, []string{"foo-bar.ts.net. 60 IN NS ns.foo-bar.ts.net."}},
		{"the top without the type", "", "A", tableNoData, []string{soa}},
		{"DS", "nas", "DS", tableNoData, []string{soa}},
		{"NS below the top is data", "sub", "NS", tableAnswer, []string{"sub" + zone + "300 IN NS ns.sub.foo-bar.ts.net."}},
		{"below NS records there is no referral", "ns.sub", "A", tableAnswer, []string{"ns.sub" + zone + "300 IN A 100.64.0.9"}},
		{"below a DNAME nothing is rewritten", "a.tree", "A", tableNXDomain, []string{soa}},
		{"an address", "2.0.64.100.in-addr.arpa.", "PTR", tableAnswer, []string{"2.0.64.100.in-addr.arpa. 300 IN PTR nas.foo-bar.ts.net."}},
		{"half an address", "0.64.100.in-addr.arpa.", "PTR", tableNoData, []string{rsoa}},
		{"an address of nobody", "1.1.1.64.100.in-addr.arpa.", "PTR", tableNXDomain, []string{rsoa}},
		{"an address beside the range", "1.1.128.100.in-addr.arpa.", "PTR", tableOutside, nil},
		{"the zone's parent", "ts.net.", "A", tableOutside, nil},
		{"a sibling", "foo-baz.ts.net.", "A", tableOutside, nil},
		{"a suffix that is no label", "xfoo-bar.ts.net.", "A", tableOutside, nil},
		{"the root", ".", "NS", tableOutside, nil},
	}
	table := oddTable(t)
	for _, tt := range tests {
		t.Run(tt.odd, func(t *testing.T) {
			got := askTable(t, table, query(t, absolute(tt.name), dns.StringToType[tt.qtype]), dns.MaxMsgSize, 0)
			m := got.unpack(t)
			if got.hit.outcome != tt.outcome {
				t.Errorf("outcome %d, want %d", got.hit.outcome, tt.outcome)
			}
			have := lines(append(m.Answer, m.Ns...))
			for i, l := range have {
				have[i] = strings.ReplaceAll(l, "\t", " ")
			}
			if !slices.Equal(have, tt.want) {
				t.Errorf("records\n got %q\nwant %q", have, tt.want)
			}
			if want := tt.outcome == tableNXDomain; (m.Rcode == dns.RcodeNameError) != want {
				t.Errorf("rcode %d for outcome %d", m.Rcode, tt.outcome)
			}
		})
	}
}

// absolute completes a name of the zone in oddTable.
func absolute(name string) string {
	switch {
	case name == "":
		return "foo-bar.ts.net."
	case strings.HasSuffix(name, "."):
		return name
	}
	return name + ".foo-bar.ts.net."
}

func TestTableTellsTheTargetThatLeadsAway(t *testing.T) {
	got := askTable(t, oddTable(t), query(t, "lost.foo-bar.ts.net", dns.TypeA), dns.MaxMsgSize, 0)
	if target := presentName(got.hit.target); target != "gone.to.example.org." || got.hit.answer != 1 {
		t.Errorf("target %q behind %d records, want gone.to.example.org. behind 1", target, got.hit.answer)
	}
}

func TestTableGivesTheQuestionsCaseBack(t *testing.T) {
	m := askTable(t, oddTable(t), query(t, "nAs.FOO-bar.ts.net", dns.TypeA), dns.MaxMsgSize, 0).unpack(t)
	if got := m.Answer[0].Header().Name; got != "nAs.FOO-bar.ts.net." {
		t.Errorf("owner %s, want nAs.FOO-bar.ts.net.", got)
	}
}

func TestTableRotatesAddresses(t *testing.T) {
	table := oddTable(t)
	for rotate, want := range map[uint32]string{0: "1 2 3", 1: "2 3 1", 2: "3 1 2", 3: "1 2 3", 1<<32 - 1: "1 2 3"} {
		m := askTable(t, table, query(t, "many.foo-bar.ts.net", dns.TypeA), dns.MaxMsgSize, rotate).unpack(t)
		var got []string
		for _, r := range m.Answer {
			got = append(got, strings.TrimPrefix(r.(*dns.A).A.String(), "100.64.1."))
		}
		if strings.Join(got, " ") != want {
			t.Errorf("rotated by %d: %v, want %s", rotate, got, want)
		}
	}
}

func TestTableKeepsTheOrderOfOtherTypes(t *testing.T) {
	table := oddTable(t)
	for rotate := range uint32(3) {
		m := askTable(t, table, query(t, "mail.foo-bar.ts.net", dns.TypeMX), dns.MaxMsgSize, rotate).unpack(t)
		if got := m.Answer[0].(*dns.MX).Preference; got != 10 {
			t.Errorf("rotated by %d: preference %d comes first, want 10", rotate, got)
		}
	}
}

func TestTableExplains(t *testing.T) {
	table := oddTable(t)
	for name, want := range map[string]string{
		"nas": "exact", "q.nas": "wildcard *.nas", "y.nas": "empty non-terminal", "nope": "no such name",
		"example.org.": "not in table", "net.": "not in table", "foo-baz.ts.net.": "not in table",
	} {
		var q question
		q.parse(query(t, absolute(name), dns.TypeA))
		zone := ""
		if !strings.HasSuffix(name, ".") {
			zone = "foo-bar.ts.net."
		}
		if got := table.explain(&q); got != want || table.zoneOf(&q) != zone {
			t.Errorf("%s: %q in zone %q, want %q in %q", name, got, table.zoneOf(&q), want, zone)
		}
	}
}

func TestTheZeroTableHoldsNothing(t *testing.T) {
	table := new(Table)
	got := askTable(t, table, query(t, "nas.foo-bar.ts.net", dns.TypeA), dns.MaxMsgSize, 0)
	if got.hit.outcome != tableOutside || table.Names() != 0 || table.zoneOf(&got.q) != "" {
		t.Errorf("got %+v with %d names", got.hit, table.Names())
	}
}

func TestTableAppendsOneRecordBeyondTheLimit(t *testing.T) {
	var records []dns.RR
	for i := range 1000 {
		records = append(records, mustRR(fmt.Sprintf("many.mesh. A 10.0.%d.%d", i/256, i%256)))
	}
	table, err := NewTable(TableConfig{Zone: "mesh", Records: records})
	if err != nil {
		t.Fatal(err)
	}
	for _, limit := range []int{12, 40, 512, 1232, 4096} {
		got := askTable(t, table, query(t, "many.mesh", dns.TypeA), limit, 999)
		got.unpack(t)
		if over := len(got.msg) - limit; over <= 0 || over > max(16, 12+11-limit+16) {
			t.Errorf("limit %d: %d octets beyond it, want 1 to 16", limit, over)
		}
	}
}

func TestTableAgreesWithTheModel(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	made := 0
	for range 1500 {
		c, zones, labels := randomTable(rng)
		model := newTableModel(zones, c)
		table, err := NewTable(c)
		if (err == nil) != model.valid() {
			t.Fatalf("error %v, but the model says valid: %v\n%s", err, model.valid(), c.Records)
		}
		if err != nil {
			continue
		}
		made++
		for range 60 {
			name := randomName(rng, append(slices.Clone(zones), "ts.net.", "example.org.", "7.10.in-addr.arpa."), labels)
			model.check(t, table, query(t, name, randomType(rng.Uint32())), rng.Uint32())
		}
	}
	if made < 300 {
		t.Errorf("only %d tables were compared", made)
	}
}

// randomType draws a type, mostly one that the random tables have.
func randomType(n uint32) uint16 {
	types := []uint16{
		dns.TypeA, dns.TypeAAAA, dns.TypeCNAME, dns.TypeNS, dns.TypeMX, dns.TypeTXT, dns.TypeSOA, dns.TypeANY,
		dns.TypeHINFO, dns.TypeDS,
	}
	return types[n%uint32(len(types))]
}

func FuzzTableLookup(f *testing.F) {
	type pair struct {
		table *Table
		model *tableModel
	}
	var pairs []pair
	rng := rand.New(rand.NewPCG(3, 4))
	for len(pairs) < 16 {
		c, zones, _ := randomTable(rng)
		if table, err := NewTable(c); err == nil {
			pairs = append(pairs, pair{table, newTableModel(zones, c)})
		}
	}
	f.Add(uint8(0), []byte("\x03nas\x07foo-bar\x02ts\x03net\x00"), uint32(0), uint32(0), uint16(512))
	f.Add(uint8(1), []byte("\x01a\x01*\x04mesh\x00"), uint32(7), uint32(9), uint16(40))
	f.Add(uint8(2), []byte("\x01a\x01*\x018\x0210\x07in-addr\x04arpa\x00"), uint32(3), uint32(9), uint16(80))
	f.Fuzz(func(t *testing.T, which uint8, name []byte, rtype, rotate uint32, limit uint16) {
		p := pairs[int(which)%len(pairs)]
		msg := appendQuestion(nil, name, randomType(rtype))
		if new(question).parse(msg) != verdictOK {
			return
		}
		p.model.check(t, p.table, msg, rotate)
		cut := askTable(t, p.table, msg, int(limit), rotate)
		cut.msg = truncate(cut.msg, int(limit))
		cut.unpack(t)
		if len(cut.msg) > max(int(limit), headerSize) {
			t.Errorf("%d octets, limit %d", len(cut.msg), limit)
		}
	})
}

func TestTableLookupAllocatesNothing(t *testing.T) {
	table := oddTable(t)
	buf := make([]byte, 0, 4096)
	for _, tt := range []struct {
		name  string
		qtype uint16
	}{
		{"nas", dns.TypeA},
		{"a.b.nas", dns.TypeA},
		{"www2", dns.TypeA},
		{"nope", dns.TypeA},
		{"y.nas", dns.TypeA},
		{"lost2", dns.TypeA},
		{"nas", dns.TypeANY},
		{"example.org.", dns.TypeA},
		{"foo-baz.ts.net.", dns.TypeA},
	} {
		msg := query(t, absolute(tt.name), tt.qtype)
		var q question
		got := testing.AllocsPerRun(100, func() {
			q.parse(msg)
			_, _ = table.lookup(&q, append(buf, msg...), 1232, 1)
		})
		if got != 0 {
			t.Errorf("%s %s: %v allocations", tt.name, dns.Type(tt.qtype), got)
		}
	}
}

// manyRecords are the addresses of n nodes, an A and an AAAA each.
func manyRecords(n int) []dns.RR {
	rrs := make([]dns.RR, 0, 2*n)
	for i := range n {
		name := fmt.Sprintf("node-%d.foo-bar.ts.net.", i)
		a := netip.AddrFrom4([4]byte(binary.BigEndian.AppendUint32(nil, 100<<24|64<<16|uint32(i))))
		aaaa := netip.AddrFrom16([16]byte(append([]byte("\xfd\x7a\x11\x5c\xa1\xe0\x00\x00\x00\x00\x00\x00"), a.AsSlice()...)))
		header := dns.RR_Header{Name: name, Rrtype: dns.TypeA, Class: dns.ClassINET, Ttl: 60}
		rrs = append(rrs, &dns.A{Hdr: header, A: a.AsSlice()})
		header.Rrtype = dns.TypeAAAA
		rrs = append(rrs, &dns.AAAA{Hdr: header, AAAA: aaaa.AsSlice()})
	}
	return rrs
}

func BenchmarkTableLookup(b *testing.B) {
	small, err := NewTable(TableConfig{Zone: "foo-bar.ts.net", Ranges: prefixes("100.64.0.0/10"), Records: manyRecords(1000)})
	if err != nil {
		b.Fatal(err)
	}
	large, err := NewTable(TableConfig{Zone: "foo-bar.ts.net", Ranges: prefixes("100.64.0.0/10"), Records: manyRecords(100000)})
	if err != nil {
		b.Fatal(err)
	}
	for _, bb := range []struct {
		name  string
		table *Table
		names func(i int) string
		want  tableOutcome
	}{
		{"local", small, func(i int) string { return fmt.Sprintf("node-%d.foo-bar.ts.net.", i%1000) }, tableAnswer},
		{"local100k", large, func(i int) string { return fmt.Sprintf("node-%d.foo-bar.ts.net.", i*97%100000) }, tableAnswer},
		{"nxdomain", small, func(i int) string { return fmt.Sprintf("nope-%d.foo-bar.ts.net.", i) }, tableNXDomain},
		{"outside", small, func(i int) string { return fmt.Sprintf("www-%d.example.org.", i) }, tableOutside},
		{"sibling", small, func(i int) string { return fmt.Sprintf("www-%d.foo-baz.ts.net.", i) }, tableOutside},
	} {
		b.Run(bb.name, func(b *testing.B) {
			queries := make([]question, 1024)
			for i := range queries {
				queries[i].parse(query(b, bb.names(i), dns.TypeA))
			}
			buf := make([]byte, 64, 4096)
			b.ReportAllocs()
			i := 0
			for b.Loop() {
				q := &queries[i%len(queries)]
				if _, hit := bb.table.lookup(q, buf[:q.end], 1232, uint32(i)); hit.outcome != bb.want {
					b.Fatalf("outcome %d", hit.outcome)
				}
				i++
			}
		})
	}
}

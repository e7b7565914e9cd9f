package resolver

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"runtime"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/miekg/dns"
)

// zonesOf lists the zones of a table.
func zonesOf(t *Table) []string {
	var out []string
	t.each(func(e tableEntry) {
		if t.flags(e)&nameTop != 0 {
			out = append(out, presentName(t.name(e)))
		}
	})
	slices.Sort(out)
	return out
}

// numbered fills the numbers from first to last into a pattern.
func numbered(pattern string, first, last int) []string {
	var out []string
	for i := first; i <= last; i++ {
		out = append(out, fmt.Sprintf(pattern, i))
	}
	slices.Sort(out)
	return out
}

func TestRangesBecomeReverseZones(t *testing.T) {
	ula := "0.0.0.0.0.e.1.a.c.5.1.1.a.7.d.f.ip6.arpa."
	tests := []struct {
		odd    string
		ranges []string
		want   []string
	}{
		{"none", nil, nil},
		{"inside an octet", []string{"100.64.0.0/10"}, numbered("%d.100.in-addr.arpa.", 64, 127)},
		{"whole octets", []string{"10.8.0.0/24"}, []string{"0.8.10.in-addr.arpa."}},
		{"host bits set", []string{"10.8.0.77/24"}, []string{"0.8.10.in-addr.arpa."}},
		{"smaller than an octet", []string{"10.8.0.16/28"}, numbered("%d.0.8.10.in-addr.arpa.", 16, 31)},
		{"one address", []string{"192.0.2.1/32"}, []string{"1.2.0.192.in-addr.arpa."}},
		{"half of all", []string{"128.0.0.0/1"}, numbered("%d.in-addr.arpa.", 128, 255)},
		{"whole nibbles", []string{"fd7a:115c:a1e0::/64"}, []string{ula}},
		{"inside a nibble", []string{"fd7a:115c:a1e0::/63"}, []string{ula, "1" + ula[1:]}},
		{"inside a high nibble", []string{"fd00::/7"}, []string{"c.f.ip6.arpa.", "d.f.ip6.arpa."}},
		{"an IPv4 range in IPv6 clothes", []string{"::ffff:10.8.0.0/120"}, []string{"0.8.10.in-addr.arpa."}},
		{"overlapping", []string{"10.8.1.0/24", "10.8.0.0/16", "10.8.0.0/24", "10.8.0.0/16"}, []string{"8.10.in-addr.arpa."}},
		{"beside each other", []string{"10.9.0.0/16", "10.8.0.0/16"}, []string{"8.10.in-addr.arpa.", "9.10.in-addr.arpa."}},
	}
	for _, tt := range tests {
		t.Run(tt.odd, func(t *testing.T) {
			table := zoneTable(t, TableConfig{Zone: "mesh.internal", Ranges: prefixes(tt.ranges...)}, "")
			want := append(slices.Clone(tt.want), "mesh.internal.")
			slices.Sort(want)
			if diff := cmp.Diff(want, zonesOf(table)); diff != "" {
				t.Errorf("zones (-want +got):\n%s", diff)
			}
		})
	}
}

func TestAZoneThatIsAReverseZoneStandsOnce(t *testing.T) {
	table := zoneTable(t, TableConfig{Zone: "8.10.IN-ADDR.arpa", Ranges: prefixes("10.8.0.0/16")}, "")
	if got := zonesOf(table); !slices.Equal(got, []string{"8.10.in-addr.arpa."}) {
		t.Errorf("zones %q", got)
	}
}

func TestZonesNestWhateverTheirOrder(t *testing.T) {
	// The tailnet's zone lies two labels below a reverse zone of its range.
	table := zoneTable(t, TableConfig{Zone: "a.b.8.10.in-addr.arpa", Ranges: prefixes("10.8.0.0/16")},
		"nas.a.b.8.10.in-addr.arpa. A 10.8.0.1\n*.8.10.in-addr.arpa. TXT outer\n")
	for name, want := range map[string]string{
		"nas.a.b.8.10.in-addr.arpa": "exact",
		"b.8.10.in-addr.arpa":       "empty non-terminal",
		"x.a.b.8.10.in-addr.arpa":   "no such name",
		"x.b.8.10.in-addr.arpa":     "no such name",
		"x.8.10.in-addr.arpa":       "wildcard *",
	} {
		var q question
		q.parse(query(t, name, dns.TypeTXT))
		if got := table.explain(&q); got != want {
			t.Errorf("%s: %s, want %s", name, got, want)
		}
	}
}

func TestTableRefusesWhatMakesNoZone(t *testing.T) {
	for _, zone := range []string{"", ".", "*.example.org", "a..b", strings.Repeat("x", 64) + ".net"} {
		if _, err := NewTable(TableConfig{Zone: zone}); !errors.Is(err, errName) || !strings.Contains(err.Error(), fmt.Sprintf("%q", zone)) {
			t.Errorf("zone %q: error %v", zone, err)
		}
	}
	_, err := NewTable(TableConfig{Zone: "", Ranges: append(prefixes("0.0.0.0/0", "::/0", "::ffff:0.0.0.0/90"), netip.Prefix{})})
	for _, want := range []string{`""`, "0.0.0.0/0", "::/0", "::ffff:0.0.0.0/90", "invalid Prefix"} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("error %v does not name %s", err, want)
		}
	}
}

func TestTableNamesEveryBadRecord(t *testing.T) {
	long := strings.Repeat(strings.Repeat("l", 60)+".", 4)
	tests := []struct {
		odd     string
		records string
		rrs     []dns.RR
		want    string // "" if it is none
	}{
		{"outside the zone", "nas.example.org. A 10.0.0.1", nil, "nas.example.org."},
		{"above the zone", "org. A 10.0.0.1", nil, "outside the zone"},
		{"outside the range", "1.0.9.10.in-addr.arpa. PTR nas.mesh.", nil, "outside the zone"},
		{"another class", "nas.mesh. CH TXT x", nil, "class CH"},
		{"no record", "", []dns.RR{nil}, "nil"},
		{"a type that is no data", "", []dns.RR{&dns.OPT{Hdr: dns.RR_Header{Name: "nas.mesh.", Rrtype: dns.TypeOPT, Class: dns.ClassINET}}}, "type OPT"},
		{"an owner that is relative", "", []dns.RR{&dns.A{Hdr: header("nas.mesh", dns.TypeA), A: net.IP{10, 0, 0, 1}}}, "nas.mesh"},
		{"an owner that is empty", "", []dns.RR{&dns.A{Hdr: header("", dns.TypeA), A: net.IP{10, 0, 0, 1}}}, "not a domain name"},
		{"an owner that is too long", "", []dns.RR{&dns.A{Hdr: header(long+"mesh.", dns.TypeA), A: net.IP{10, 0, 0, 1}}}, ""},
		{"an owner that is far too long", "", []dns.RR{&dns.A{Hdr: header(long+long+"mesh.", dns.TypeA), A: net.IP{10, 0, 0, 1}}}, "not a domain name"},
		{"a target that is too long", "", []dns.RR{&dns.CNAME{Hdr: header("nas.mesh.", dns.TypeCNAME), Target: long + long}}, "nas.mesh."},
		{"a target that is missing", "", []dns.RR{&dns.CNAME{Hdr: header("nas.mesh.", dns.TypeCNAME)}}, "no data"},
		{"an address that is missing", "", []dns.RR{&dns.A{Hdr: header("nas.mesh.", dns.TypeA)}}, "no data"},
		{"an address of the other family", "", []dns.RR{&dns.A{Hdr: header("nas.mesh.", dns.TypeA), A: net.ParseIP("fd00::1")}}, "no data"},
		{"an address as another type", "", []dns.RR{&dns.A{Hdr: header("nas.mesh.", dns.TypeTXT), A: net.IP{10, 0, 0, 1}}}, "no data"},
		{"an address in raw data", "", []dns.RR{&dns.RFC3597{Hdr: header("nas.mesh.", dns.TypeA), Rdata: "0a00"}}, "nas.mesh."},
		{"a pointer in raw data", "", []dns.RR{&dns.RFC3597{Hdr: header("nas.mesh.", dns.TypeCNAME), Rdata: "c000"}}, "nas.mesh."},
		{"an SOA without names that reads like one with", "", []dns.RR{&dns.SOA{Hdr: header("mesh.", dns.TypeSOA), Serial: 0x00016100}}, "no data"},
		{"data that is too long", "", []dns.RR{&dns.TXT{Hdr: header("nas.mesh.", dns.TypeTXT), Txt: slices.Repeat([]string{strings.Repeat("x", 255)}, 257)}}, "nas.mesh."},
		{"an RRset that is too long", "", slices.Repeat([]dns.RR{ // equal ones are one
			&dns.NULL{Hdr: header("nas.mesh.", dns.TypeNULL), Data: strings.Repeat("x", 40000)},
			&dns.NULL{Hdr: header("nas.mesh.", dns.TypeNULL), Data: strings.Repeat("y", 40000)}}, 2), "do not fit"},
		{"raw data of a type that is known", "", []dns.RR{&dns.RFC3597{Hdr: header("nas.mesh.", dns.TypeA), Rdata: "0a000001"}}, ""},
		{"no data of a type that is unknown", "", []dns.RR{&dns.RFC3597{Hdr: header("nas.mesh.", 65280)}}, ""},
		{"a CNAME beside data", "nas.mesh. A 10.0.0.1\nnas.mesh. CNAME www.mesh.", nil, "CNAME www.mesh.: a CNAME cannot stand beside other data: the name has A too"},
		{"a CNAME beside a signature", "nas.mesh. CNAME www.mesh.\nnas.mesh. NSEC a.mesh. CNAME NSEC", nil, ""},
		{"two CNAMEs", "nas.mesh. CNAME www.mesh.\nnas.mesh. CNAME ftp.mesh.", nil, "CNAME ftp.mesh.: a name has one CNAME"},
		{"the same CNAME in other letters", "nas.mesh. CNAME www.mesh.\nNAS.mesh. CNAME WWW.mesh.", nil, ""},
		{"a CNAME at the top", "mesh. CNAME nas.example.", nil, "CNAME nas.example.: a CNAME cannot stand at the top"},
		{"a CNAME at the top of a reverse zone", "8.10.in-addr.arpa. CNAME nas.example.", nil, "cannot stand at the top"},
		{"a CNAME of itself", "nas.mesh. CNAME NAS.mesh.", nil, "leads back to itself"},
		{"a CNAME of itself by wildcard", "*.nas.mesh. CNAME a.b.nas.mesh.", nil, "leads back to itself"},
		{"CNAMEs in a ring", "a.mesh. CNAME b.mesh.\nb.mesh. CNAME c.mesh.\nc.mesh. CNAME a.mesh.", nil, "CNAME c.mesh.: the CNAME leads back to itself"},
		{"a CNAME that leads into a ring", "a.mesh. CNAME b.mesh.\nb.mesh. CNAME b.mesh.", nil, "CNAME b.mesh.: the CNAME leads to more than 15 others"},
		{"sixteen CNAMEs in a row", cnames(16), nil, ""},
		{"seventeen CNAMEs in a row", cnames(17), nil, "c0.mesh. 3600 IN CNAME c1.mesh.: the CNAME leads to more than 15 others"},
		{"sixteen CNAMEs that lead out", cnames(16) + "c15.mesh. 3600 CNAME example.org.", nil, "a name has one CNAME"},
		{"an SOA below the top", "nas.mesh. SOA ns.mesh. host.mesh. 1 2 3 4 5", nil, "an SOA belongs at the top"},
		{"two SOAs", "mesh. SOA ns.mesh. host.mesh. 1 2 3 4 5\nmesh. SOA ns.mesh. host.mesh. 6 2 3 4 5", nil, "a zone has one SOA"},
	}
	for _, tt := range tests {
		t.Run(tt.odd, func(t *testing.T) {
			records := append(parseZone(t, tt.records), tt.rrs...)
			_, err := NewTable(TableConfig{Zone: "mesh", Ranges: prefixes("10.8.0.0/16"), Records: records})
			switch {
			case tt.want == "" && err != nil:
				t.Errorf("error %v, want none", err)
			case tt.want != "" && (err == nil || !strings.Contains(err.Error(), tt.want)):
				t.Errorf("error %v, want one with %q", err, tt.want)
			}
		})
	}
}

func header(name string, rtype uint16) dns.RR_Header {
	return dns.RR_Header{Name: name, Rrtype: rtype, Class: dns.ClassINET, Ttl: 60}
}

// cnames are n CNAMEs, each of the next; the last leads to an address.
func cnames(n int) string {
	var s strings.Builder
	for i := range n {
		fmt.Fprintf(&s, "c%d.mesh. CNAME c%d.mesh.\n", i, i+1)
	}
	fmt.Fprintf(&s, "c%d.mesh. A 10.0.0.1\n", n)
	return s.String()
}

func TestTableReportsAllProblemsAtOnce(t *testing.T) {
	_, err := NewTable(TableConfig{Zone: "mesh", Records: parseZone(t,
		"a.example. A 10.0.0.1\nb.mesh. CNAME b.mesh.\nc.mesh. CNAME d.mesh.\nc.mesh. A 10.0.0.1\nmesh. CNAME d.mesh.\n")})
	if err == nil {
		t.Fatal("no error")
	}
	if got := strings.Split(err.Error(), "\n"); len(got) != 4 {
		t.Errorf("%d problems, want 4:\n%v", len(got), err)
	}
}

func TestAnErrorShowsOnlyTheBeginningOfALongRecord(t *testing.T) {
	_, err := NewTable(TableConfig{Zone: "mesh", Records: []dns.RR{
		&dns.TXT{Hdr: header("nas.example.", dns.TypeTXT), Txt: slices.Repeat([]string{"0123456789"}, 1000)}}})
	if err == nil || len(err.Error()) > 300 {
		t.Errorf("error %v", err)
	}
}

func TestTableFollowsSixteenAliases(t *testing.T) {
	table := zoneTable(t, TableConfig{Zone: "mesh"}, cnames(16))
	m := askTable(t, table, query(t, "c0.mesh", dns.TypeA), dns.MaxMsgSize, 0).unpack(t)
	if len(m.Answer) != 17 || m.Answer[16].Header().Rrtype != dns.TypeA {
		t.Errorf("answers %v, want 16 aliases and an address", m.Answer)
	}
}

func TestTableKeepsTheTopRecordsThatItIsGiven(t *testing.T) {
	table := zoneTable(t, TableConfig{Zone: "mesh", TTL: 1000, Serial: 9},
		"mesh. 500 SOA a.mesh. b.mesh. 1 2 3 4 20\nmesh. 40 NS c.mesh.\n")
	top := askTable(t, table, query(t, "mesh", dns.TypeSOA), dns.MaxMsgSize, 0).unpack(t)
	if soa := top.Answer[0].(*dns.SOA); len(top.Answer) != 1 || soa.Ns != "a.mesh." || soa.Hdr.Ttl != 500 {
		t.Errorf("SOA %v", top.Answer)
	}
	negative := askTable(t, table, query(t, "x.mesh", dns.TypeA), dns.MaxMsgSize, 0).unpack(t)
	if soa := negative.Ns[0].(*dns.SOA); soa.Hdr.Ttl != 20 {
		t.Errorf("TTL of a negative answer %d, want the minimum, 20", soa.Hdr.Ttl)
	}
	ns := askTable(t, table, query(t, "mesh", dns.TypeNS), dns.MaxMsgSize, 0).unpack(t)
	if got := ns.Answer[0].(*dns.NS); len(ns.Answer) != 1 || got.Ns != "c.mesh." {
		t.Errorf("NS %v", ns.Answer)
	}
}

func TestTimesToLive(t *testing.T) {
	for _, tt := range []struct {
		odd            string
		configured     uint32
		record         uint32
		want, negative uint32
	}{
		{"nothing configured", 0, 0, 60, 60},
		{"the record's own", 0, 5, 5, 60},
		{"the default of the map", 300, 0, 300, 60},
		{"a short default", 10, 0, 10, 10},
		{"beyond the longest", 0, 1 << 31, 1<<31 - 1, 60},
	} {
		t.Run(tt.odd, func(t *testing.T) {
			h := header("nas.mesh.", dns.TypeA)
			h.Ttl = tt.record
			table, err := NewTable(TableConfig{Zone: "mesh", TTL: tt.configured, Records: []dns.RR{&dns.A{Hdr: h, A: net.IP{10, 0, 0, 1}}}})
			if err != nil {
				t.Fatal(err)
			}
			a := askTable(t, table, query(t, "nas.mesh", dns.TypeA), dns.MaxMsgSize, 0).unpack(t)
			if got := a.Answer[0].Header().Ttl; got != tt.want {
				t.Errorf("TTL %d, want %d", got, tt.want)
			}
			no := askTable(t, table, query(t, "nope.mesh", dns.TypeA), dns.MaxMsgSize, 0).unpack(t)
			if got := no.Ns[0].Header().Ttl; got != tt.negative {
				t.Errorf("TTL of a negative answer %d, want %d", got, tt.negative)
			}
		})
	}
}

func TestNewTableLeavesTheRecordsAlone(t *testing.T) {
	records := parseZone(t, "NAS.mesh. 0 A 10.0.0.1\nnas.mesh. 9 A 10.0.0.1\nnas.mesh. MX 1 Mail.mesh.\n")
	var before []dns.RR
	for _, r := range records {
		r.Header().Rdlength = 77
		before = append(before, dns.Copy(r))
	}
	if _, err := NewTable(TableConfig{Zone: "mesh", Records: records}); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(before, records); diff != "" {
		t.Errorf("records changed (-before +after):\n%s", diff)
	}
}

func TestNamesCountsThoseWithRecords(t *testing.T) {
	table := zoneTable(t, TableConfig{Zone: "mesh"}, "a.b.c.mesh. A 10.0.0.1\nx.mesh. A 10.0.0.1\nx.mesh. AAAA fd00::1\n")
	if got := table.Names(); got != 3 { // and the top
		t.Errorf("%d names, want 3", got)
	}
}

func TestAHundredThousandNamesAreSmall(t *testing.T) {
	records := manyRecords(100_000)
	before := liveHeap()
	table, err := NewTable(TableConfig{Zone: "foo-bar.ts.net", Ranges: prefixes("100.64.0.0/10"), Records: records})
	if err != nil {
		t.Fatal(err)
	}
	grown := liveHeap() - before
	runtime.KeepAlive(records)
	if table.Names() != 100_000+65 || grown > 20<<20 {
		t.Errorf("%d names in %d octets, want 100065 in at most 20 MiB", table.Names(), grown)
	}
}

// liveHeap is the size of what is still reachable.
func liveHeap() int64 {
	var m runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc)
}

func BenchmarkNewTable(b *testing.B) {
	records := manyRecords(100_000)
	var table *Table
	before := liveHeap()
	b.ReportAllocs()
	for b.Loop() {
		var err error
		if table, err = NewTable(TableConfig{Zone: "foo-bar.ts.net", Ranges: prefixes("100.64.0.0/10"), Records: records}); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportMetric(float64(liveHeap()-before)/float64(table.Names()), "live-B/name")
	runtime.KeepAlive(records)
}

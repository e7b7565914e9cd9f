package resolver

import (
	"encoding/binary"
	"fmt"
	"strings"
	"testing"

	"github.com/miekg/dns"
)

// specialAnswer asks specialUse and returns the whole response.
func specialAnswer(t testing.TB, name string, qtype uint16) (*dns.Msg, specialHit) {
	t.Helper()
	packed, err := new(dns.Msg).SetQuestion(name, qtype).Pack()
	if err != nil {
		t.Fatal(err)
	}
	var q question
	if v := q.parse(packed); v != verdictOK {
		t.Fatalf("parsing the query for %s: verdict %d", name, v)
	}
	out, hit := specialUse(&q, packed)
	binary.BigEndian.PutUint16(out[2:], flagQR|hit.rcode)
	binary.BigEndian.PutUint16(out[6:], hit.answer)
	binary.BigEndian.PutUint16(out[8:], hit.authority)
	m := new(dns.Msg)
	if err := m.Unpack(out); err != nil {
		t.Fatalf("answer to %s does not parse: %v", name, err)
	}
	return m, hit
}

const (
	zeroAddress6  = "0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.ip6.arpa."
	loopAddress6  = "1.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.ip6.arpa."
	otherAddress6 = "2.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.ip6.arpa."
)

// registry is every zone that is special, whether its own name exists, and whether a network may define it.
func registry() []struct {
	zone            string
	exists, private bool
} {
	type row = struct {
		zone            string
		exists, private bool
	}
	rows := []row{
		{"invalid.", false, false}, {"test.", false, false}, {"onion.", false, false}, {"local.", false, true},
		{"alt.", false, false}, {"internal.", false, true}, {"use-application-dns.net.", false, false},
		{"eap-noob.arpa.", false, false}, {"6tisch.arpa.", false, false},
		{"home.arpa.", true, true}, {"service.arpa.", true, true},
		{"10.in-addr.arpa.", true, true}, {"168.192.in-addr.arpa.", true, true}, {"254.169.in-addr.arpa.", true, true},
		{"0.in-addr.arpa.", true, false}, {"127.in-addr.arpa.", true, false}, {"2.0.192.in-addr.arpa.", true, false},
		{"100.51.198.in-addr.arpa.", true, false}, {"113.0.203.in-addr.arpa.", true, false},
		{"255.255.255.255.in-addr.arpa.", true, false}, {"d.f.ip6.arpa.", true, true},
		{"8.b.d.0.1.0.0.2.ip6.arpa.", true, false}, {zeroAddress6, true, false}, {loopAddress6, true, false},
	}
	for i := 16; i <= 31; i++ {
		rows = append(rows, row{fmt.Sprintf("%d.172.in-addr.arpa.", i), true, true})
	}
	for i := 64; i <= 127; i++ {
		rows = append(rows, row{fmt.Sprintf("%d.100.in-addr.arpa.", i), true, true})
	}
	for _, c := range "89ab" {
		rows = append(rows, row{string(c) + ".e.f.ip6.arpa.", true, true})
	}
	return rows
}

func TestEverySpecialZoneIsAnsweredHere(t *testing.T) {
	for _, row := range registry() {
		t.Run(row.zone, func(t *testing.T) {
			want := dns.RcodeNameError
			if row.exists {
				want = dns.RcodeSuccess
			}
			checkNegative(t, row.zone, row.zone, want, row.private)
			checkNegative(t, "lb._dns-sd._udp.x."+row.zone, row.zone, dns.RcodeNameError, row.private)
			checkNegative(t, strings.ToUpper("a."+row.zone), row.zone, dns.RcodeNameError, row.private)
		})
	}
}

// checkNegative checks a name for a negative answer with the zone's SOA.
func checkNegative(t *testing.T, name, zone string, rcode int, private bool) {
	t.Helper()
	m, hit := specialAnswer(t, name, dns.TypeTXT)
	if !hit.special() || m.Rcode != rcode || len(m.Answer) != 0 || len(m.Ns) != 1 || hit.private != private {
		t.Fatalf("%s: hit %+v, got %s", name, hit, m)
	}
	soa, ok := m.Ns[0].(*dns.SOA)
	if !ok || !strings.EqualFold(soa.Hdr.Name, zone) || !strings.EqualFold(soa.Ns, zone) || soa.Mbox != "nobody.invalid." ||
		soa.Minttl != specialTTL || soa.Hdr.Ttl != specialTTL || soa.Refresh != 3600 || soa.Retry != 1200 || soa.Expire != 604800 {
		t.Errorf("%s: SOA %v", name, m.Ns[0])
	}
}

func TestNeighboursOfSpecialZonesAreOrdinary(t *testing.T) {
	names := []string{
		".", "com.", "example.", "example.com.", "notlocalhost.", "mylocal.", "localhost.example.com.", "xn--local.", "net.",
		"x.use-application-dns.org.", "application-dns.net.", "my-use-application-dns.net.", "onion.example.org.",
		"arpa.", "in-addr.arpa.", "ip6.arpa.", "ipv4only.arpa.", "as112.arpa.", "athome.arpa.", "x.ipv4only.arpa.",
		"170.0.0.192.in-addr.arpa.", "171.0.0.192.in-addr.arpa.", "172.in-addr.arpa.", "192.in-addr.arpa.", "100.in-addr.arpa.",
		"15.172.in-addr.arpa.", "32.172.in-addr.arpa.", "63.100.in-addr.arpa.", "128.100.in-addr.arpa.", "11.in-addr.arpa.",
		"010.in-addr.arpa.", "00.in-addr.arpa.", "1000.in-addr.arpa.", "266.in-addr.arpa.", "1x.in-addr.arpa.", "128.in-addr.arpa.",
		"167.192.in-addr.arpa.", "253.169.in-addr.arpa.", "0.192.in-addr.arpa.", "3.0.192.in-addr.arpa.", "254.255.255.255.in-addr.arpa.",
		"255.255.255.in-addr.arpa.", "255.in-addr.arpa.", "8.8.8.8.in-addr.arpa.",
		"c.f.ip6.arpa.", "f.ip6.arpa.", "e.f.ip6.arpa.", "7.e.f.ip6.arpa.", "c.e.f.ip6.arpa.", "dd.f.ip6.arpa.", "b.d.0.1.0.0.2.ip6.arpa.",
		"9.b.d.0.1.0.0.2.ip6.arpa.", "0.ip6.arpa.", otherAddress6, strings.TrimPrefix(loopAddress6, "1."),
	}
	for _, name := range names {
		t.Run(name, func(t *testing.T) {
			m, hit := specialAnswer(t, name, dns.TypePTR)
			if hit != (specialHit{}) || len(m.Answer)+len(m.Ns) != 0 {
				t.Errorf("%s is special: %+v", name, hit)
			}
		})
	}
}

func TestSpecialRecords(t *testing.T) {
	tests := []struct {
		name, query string
		qtype       uint16
		want        string // "": no data
	}{
		{"localhost, IPv4", "localhost.", dns.TypeA, "localhost.\t600\tIN\tA\t127.0.0.1"},
		{"localhost, IPv6", "localhost.", dns.TypeAAAA, "localhost.\t600\tIN\tAAAA\t::1"},
		{"localhost, other type", "localhost.", dns.TypeMX, ""},
		{"localhost, any type", "localhost.", dns.TypeANY, "localhost.\t600\tIN\tA\t127.0.0.1"},
		{"below localhost, in capitals", "App.LOCALHOST.", dns.TypeA, "App.LOCALHOST.\t600\tIN\tA\t127.0.0.1"},
		{"far below localhost", "a.b.c.localhost.", dns.TypeAAAA, "a.b.c.localhost.\t600\tIN\tAAAA\t::1"},
		{"below localhost, other type", "a.localhost.", dns.TypeHTTPS, ""},
		{"reverse of 127.0.0.1", "1.0.0.127.in-addr.arpa.", dns.TypePTR, "1.0.0.127.in-addr.arpa.\t600\tIN\tPTR\tlocalhost."},
		{"reverse of 127.0.0.1, other type", "1.0.0.127.in-addr.arpa.", dns.TypeA, ""},
		{"between 127.0.0.1 and its zone", "0.127.in-addr.arpa.", dns.TypePTR, ""},
		{"reverse of ::1", loopAddress6, dns.TypePTR, loopAddress6 + "\t600\tIN\tPTR\tlocalhost."},
		{"reverse of ::1, other type", loopAddress6, dns.TypeAAAA, ""},
		{"reverse of ::", zeroAddress6, dns.TypePTR, ""},
		{"SOA of a served zone", "10.in-addr.arpa.", dns.TypeSOA, "10.in-addr.arpa.\t600\tIN\tSOA\t10.in-addr.arpa. nobody.invalid. 1 3600 1200 604800 600"},
		{"NS of a served zone", "home.arpa.", dns.TypeNS, "home.arpa.\t600\tIN\tNS\thome.arpa."},
		{"discovery of designated resolvers", "_dns.resolver.arpa.", dns.TypeSVCB, ""},
		{"anything below resolver.arpa", "a.b.resolver.arpa.", dns.TypeA, ""},
		{"DS of resolver.arpa", "resolver.arpa.", dns.TypeDS, ""},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			m, hit := specialAnswer(t, tt.query, tt.qtype)
			if !hit.special() || m.Rcode != dns.RcodeSuccess {
				t.Fatalf("hit %+v, got %s", hit, m)
			}
			if tt.want == "" {
				if len(m.Answer) != 0 || len(m.Ns) != 1 || m.Ns[0].Header().Rrtype != dns.TypeSOA {
					t.Errorf("got %s, want no data and an SOA", m)
				}
				return
			}
			if len(m.Answer) != 1 || len(m.Ns) != 0 || m.Answer[0].String() != tt.want {
				t.Errorf("got %v, want %s", m.Answer, tt.want)
			}
		})
	}
}

func TestOtherLoopbackAddressesHaveNoName(t *testing.T) {
	for _, name := range []string{"2.0.0.127.in-addr.arpa.", "1.1.0.127.in-addr.arpa.", "x.1.0.0.127.in-addr.arpa.", "x." + loopAddress6} {
		if m, _ := specialAnswer(t, name, dns.TypePTR); m.Rcode != dns.RcodeNameError {
			t.Errorf("%s: got %s, want NXDOMAIN", name, dns.RcodeToString[m.Rcode])
		}
	}
}

func TestTheParentTellsTheDSOfAServedZone(t *testing.T) {
	if _, hit := specialAnswer(t, "home.arpa.", dns.TypeDS); hit.special() {
		t.Errorf("DS of home.arpa is answered here: %+v", hit)
	}
	if _, hit := specialAnswer(t, "x.home.arpa.", dns.TypeDS); !hit.special() {
		t.Error("DS below home.arpa leaves the machine")
	}
}

func TestSpecialNamesAreOfClassIN(t *testing.T) {
	var q question
	q.setName([]byte(loopback4))
	q.qclass = dns.ClassCHAOS
	if _, hit := specialUse(&q, nil); hit.special() {
		t.Errorf("special in class CHAOS: %+v", hit)
	}
}

func TestSpecialReasonsNameTheirSource(t *testing.T) {
	for _, row := range registry() {
		_, hit := specialAnswer(t, row.zone, dns.TypeA)
		if !strings.Contains(hit.reason, ": ") || len(hit.reason) > 90 {
			t.Errorf("%s: reason %q", row.zone, hit.reason)
		}
	}
	_, hit := specialAnswer(t, "abc.onion.", dns.TypeA)
	if want := "RFC 7686: .onion never leaves the machine"; hit.reason != want {
		t.Errorf("got %q, want %q", hit.reason, want)
	}
}

func TestSpecialUseAllocatesNothing(t *testing.T) {
	for _, name := range []string{"www.example.com.", "x.localhost.", "4.3.2.10.in-addr.arpa.", loopAddress6, "9.9.9.9.in-addr.arpa.", "a.onion."} {
		packed, err := new(dns.Msg).SetQuestion(name, dns.TypePTR).Pack()
		if err != nil {
			t.Fatal(err)
		}
		msg := append(make([]byte, 0, 512), packed...)
		var q question
		q.parse(msg)
		if n := testing.AllocsPerRun(100, func() { specialUse(&q, msg) }); n != 0 {
			t.Errorf("%s: %v allocations", name, n)
		}
	}
}

// Any special question gets one record and a response that parses; any other is left as it was.
func FuzzSpecialUse(f *testing.F) {
	for _, row := range registry()[:24] {
		wire, err := wireName("a." + row.zone)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(wire, uint16(dns.TypePTR))
	}
	f.Fuzz(func(t *testing.T, name []byte, qtype uint16) {
		packed := appendQuestion(nil, name, qtype)
		var q question
		if q.parse(packed) != verdictOK {
			return
		}
		out, hit := specialUse(&q, packed[:q.end:q.end])
		if !hit.special() {
			if len(out) != q.end || hit != (specialHit{}) {
				t.Fatalf("%x: not special, yet %d octets and %+v", name, len(out)-q.end, hit)
			}
			return
		}
		if hit.answer+hit.authority != 1 || hit.answer == 1 && hit.rcode != 0 {
			t.Fatalf("%x: %+v", name, hit)
		}
		binary.BigEndian.PutUint16(out[6:], hit.answer)
		binary.BigEndian.PutUint16(out[8:], hit.authority)
		if err := new(dns.Msg).Unpack(out); err != nil {
			t.Fatalf("%x: answer does not parse: %v", name, err)
		}
	})
}

package resolver

import (
	"encoding/binary"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/miekg/dns"
)

// shape builds a response to "name type" with records in zone-file syntax. A line "|" ends a section; "OPT" is
// an OPT record, "OPT n" one with an Extended DNS Error.
func shape(t testing.TB, question string, rcode int, lines ...string) *dns.Msg {
	t.Helper()
	name, qtype, _ := strings.Cut(question, " ")
	m := new(dns.Msg).SetQuestion(name, dns.StringToType[qtype])
	m.Response, m.RecursionAvailable, m.Compress, m.Rcode = true, true, true, rcode
	sections := []*[]dns.RR{&m.Answer, &m.Ns, &m.Extra}
	for _, line := range lines {
		switch line {
		case "|":
			sections = sections[1:]
			continue
		case "OPT", "OPT 22":
			opt := &dns.OPT{Hdr: dns.RR_Header{Name: ".", Rrtype: dns.TypeOPT, Class: 1232}}
			if line != "OPT" {
				opt.Option = append(opt.Option, &dns.EDNS0_NSID{Code: dns.EDNS0NSID, Nsid: "aa"},
					&dns.EDNS0_EDE{InfoCode: dns.ExtendedErrorCodeNoReachableAuthority, ExtraText: "text"}, &dns.EDNS0_EDE{InfoCode: 1})
			}
			*sections[0] = append(*sections[0], opt)
			continue
		}
		record, err := dns.NewRR(line)
		if err != nil {
			t.Fatalf("%q: %v", line, err)
		}
		*sections[0] = append(*sections[0], record)
	}
	return m
}

func packed(t testing.TB, m *dns.Msg) []byte {
	t.Helper()
	msg, err := m.Pack()
	if err != nil {
		t.Fatal(err)
	}
	return msg
}

const soaLine = "example.org. 900 SOA ns.example.org. root.example.org. 1 7200 900 1209600 300"

// shapes are responses as servers send them.
var shapes = map[string]struct { //nolint:gochecknoglobals // test cases, also the fuzz target's seeds
	question string
	rcode    int
	lines    []string
	want     outcome
	ttl      uint32
}{
	"an address":                    {"www.example.org. A", 0, []string{"www.example.org. 60 A 192.0.2.1"}, gotAnswer, 60},
	"two addresses, OPT":            {"www.example.org. A", 0, []string{"www.example.org. 60 A 192.0.2.1", "www.example.org. 60 A 192.0.2.2", "|", "|", "OPT"}, gotAnswer, 60},
	"an alias chain":                {"www.example.org. A", 0, []string{"www.example.org. 600 CNAME a.cdn.example.", "a.cdn.example. 300 CNAME b.cdn.example.", "b.cdn.example. 20 A 192.0.2.1", "|", "|", "OPT"}, gotAnswer, 20},
	"an alias to nothing":           {"www.example.org. AAAA", 0, []string{"www.example.org. 60 CNAME a.example.org.", "|", soaLine}, gotNoData, 60},
	"an alias alone":                {"www.example.org. AAAA", 0, []string{"www.example.org. 60 CNAME a.example.org."}, gotNoData, 0},
	"the alias itself":              {"www.example.org. CNAME", 0, []string{"www.example.org. 60 CNAME a.example.org."}, gotAnswer, 60},
	"any type":                      {"www.example.org. ANY", 0, []string{`www.example.org. 60 HINFO "RFC8482" ""`}, gotAnswer, 60},
	"name servers that expire soon": {"www.example.org. A", 0, []string{"www.example.org. 60 A 192.0.2.1", "|", "example.org. 40 NS ns.example.org.", "|", "ns.example.org. 30 A 192.0.2.53"}, gotAnswer, 30},
	"TTL zero":                      {"www.example.org. A", 0, []string{"www.example.org. 0 A 192.0.2.1"}, gotAnswer, 0},
	"no data":                       {"www.example.org. AAAA", 0, []string{"|", soaLine, "|", "OPT"}, gotNoData, 300},
	"no data without an SOA":        {"www.example.org. AAAA", 0, nil, gotNoData, 0},
	"no such name":                  {"no.example.org. A", dns.RcodeNameError, []string{"|", soaLine}, gotNXDomain, 300},
	"no such name, short SOA TTL":   {"no.example.org. A", dns.RcodeNameError, []string{"|", "org. 7 SOA a. b. 1 2 3 4 300"}, gotNXDomain, 7},
	"no such name without an SOA":   {"no.example.org. A", dns.RcodeNameError, nil, gotNXDomain, 0},
	"a referral":                    {"www.example.org. A", 0, []string{"|", "org. 86400 NS a0.org.afilias-nst.info.", "|", "a0.org.afilias-nst.info. 60 A 192.0.2.9"}, gotReferral, 0},
	"SERVFAIL with a reason":        {"www.example.org. A", dns.RcodeServerFailure, []string{"|", "|", "OPT 22"}, gotError, 0},
	"REFUSED":                       {"www.example.org. A", dns.RcodeRefused, nil, gotError, 0},
	"BADVERS":                       {"www.example.org. A", dns.RcodeBadVers, []string{"|", "|", "OPT"}, gotError, 0},
	"the root":                      {". NS", 0, []string{". 86400 NS a.root-servers.net.", ". 86400 NS b.root-servers.net.", "|", "|", "a.root-servers.net. 3600 AAAA 2001:503:ba3e::2:30", "OPT"}, gotAnswer, 3600},
	"mail": {"example.org. MX", 0, []string{"example.org. 300 MX 10 mx1.example.org.", "example.org. 300 MX 20 mx2.example.org.", "|", "|",
		"mx1.example.org. 300 A 192.0.2.1", "mx2.example.org. 300 A 192.0.2.2"}, gotAnswer, 300},
	"OPT in the middle": {"example.org. MX", 0, []string{"example.org. 300 MX 10 mx1.example.org.", "|", "|", "mx1.example.org. 30 A 192.0.2.1", "OPT 22", "mx1.example.org. 20 AAAA 2001:db8::1"}, gotAnswer, 20},
	"OPT before names that point at each other": {"example.org. MX", 0, []string{"example.org. 300 MX 10 a.example.net.", "|", "|",
		"a.example.net. 30 A 192.0.2.1", "OPT", "b.example.com. 20 A 192.0.2.2", "b.example.com. 20 AAAA 2001:db8::1"}, gotAnswer, 20},
	"services":         {"_x._tcp.example.org. SRV", 0, []string{"_x._tcp.example.org. 120 SRV 0 5 5060 a.example.org.", "|", "|", "a.example.org. 120 A 192.0.2.1"}, gotAnswer, 120},
	"HTTPS with hints": {"example.org. HTTPS", 0, []string{`example.org. 300 HTTPS 1 . alpn="h3,h2" ipv4hint="192.0.2.1" ipv6hint="2001:db8::1"`}, gotAnswer, 300},
	"signed": {"example.org. A", 0, []string{"example.org. 300 A 192.0.2.1",
		"example.org. 300 RRSIG A 13 2 300 20300101000000 20200101000000 1 example.org. AAAA", "|", "|", "OPT"}, gotAnswer, 300},
	"signed denial": {"no.example.org. A", dns.RcodeNameError, []string{"|", soaLine, "m.example.org. 300 NSEC o.example.org. A RRSIG NSEC",
		"m.example.org. 300 RRSIG NSEC 13 2 300 20300101000000 20200101000000 1 example.org. AAAA"}, gotNXDomain, 300},
	"rare types": {"example.org. ANY", 0, []string{`example.org. 9 NAPTR 1 1 "u" "E2U+sip" "!^.*$!sip:x@y!" r.example.org.`, "example.org. 9 RP a.example.org. b.example.org.",
		"example.org. 9 PX 1 a.example.org. b.example.org.", "example.org. 9 DNAME example.net.", `example.org. 9 TXT "a" "b"`, `example.org. 9 CAA 0 issue "x"`}, gotAnswer, 9},
}

func TestResponseTellsWhatItAmountsTo(t *testing.T) {
	for name, tt := range shapes {
		t.Run(name, func(t *testing.T) {
			m := shape(t, tt.question, tt.rcode, tt.lines...)
			m.Id = 0x1234
			msg := packed(t, m)
			var r response
			if !r.parse(msg) {
				t.Fatal("a valid response does not parse")
			}
			if r.got != tt.want || r.ttl != tt.ttl {
				t.Errorf("got outcome %d, TTL %d; want %d, %d", r.got, r.ttl, tt.want, tt.ttl)
			}
			if r.id != 0x1234 || int(r.rcode) != tt.rcode || r.size != len(msg) || r.qtype != m.Question[0].Qtype {
				t.Errorf("got id %#x, rcode %d, size %d, type %d; want 0x1234, %d, %d, %d", r.id, r.rcode, r.size, r.qtype, tt.rcode, len(msg), m.Question[0].Qtype)
			}
			if want := m.IsEdns0() != nil; r.edns != want {
				t.Errorf("got EDNS %t, want %t", r.edns, want)
			}
			ede := uint16(noEDE)
			if slices.Contains(tt.lines, "OPT 22") {
				ede = dns.ExtendedErrorCodeNoReachableAuthority
			}
			if r.ede != ede {
				t.Errorf("got EDE %d, want the first one, %d", r.ede, ede)
			}
			checkResponse(t, msg)
		})
	}
}

func TestTruncatedResponseIsNotKept(t *testing.T) {
	m := shape(t, "www.example.org. A", 0, "www.example.org. 60 A 192.0.2.1")
	m.Truncated = true
	var r response
	if !r.parse(packed(t, m)) || r.ttl != 0 {
		t.Errorf("got TTL %d, want 0", r.ttl)
	}
}

func TestResponseWithTooManyRecordsIsNotKept(t *testing.T) {
	m := shape(t, "www.example.org. A", 0)
	for range maxTTLs {
		m.Answer = append(m.Answer, shape(t, "www.example.org. A", 0, "www.example.org. 60 A 192.0.2.1").Answer...)
	}
	var r response
	if !r.parse(packed(t, m)) || r.ttl != 60 || r.nttl != maxTTLs {
		t.Errorf("%d records: got TTL %d, %d places; want 60, all", maxTTLs, r.ttl, r.nttl)
	}
	m.Answer = append(m.Answer, m.Answer[0])
	if !r.parse(packed(t, m)) || r.ttl != 0 {
		t.Errorf("%d records: got TTL %d, want 0", maxTTLs+1, r.ttl)
	}
}

func TestHugeTTLCountsAsLong(t *testing.T) {
	// RFC 8767, 4: the top bit does not make it zero.
	msg := packed(t, shape(t, "www.example.org. A", 0, "www.example.org. 4294967295 A 192.0.2.1"))
	var r response
	if !r.parse(msg) || r.ttl != 1<<32-1 {
		t.Errorf("got TTL %d, want 4294967295", r.ttl)
	}
}

// message is a header with these counts and the question a. IN A, which ends at offset 19, and then more.
func message(an, ns, ar byte, more ...byte) []byte {
	return append([]byte{0, 1, 0x81, 0x80, 0, 1, 0, an, 0, ns, 0, ar, 1, 'a', 0, 0, 1, 0, 1}, more...)
}

// record is a record of class IN with TTL 1.
func record(owner string, rtype uint16, data string) []byte {
	b := binary.BigEndian.AppendUint16([]byte(owner), rtype)
	b = append(b, 0, 1, 0, 0, 0, 1)
	return append(binary.BigEndian.AppendUint16(b, uint16(len(data))), data...)
}

func TestMalformedResponseIsRefused(t *testing.T) {
	long := strings.Repeat("\x3f"+strings.Repeat("x", 63), 3)
	tests := map[string][]byte{
		"nothing":                            {},
		"eleven octets":                      message(0, 0, 0)[:11],
		"a query":                            append([]byte{0, 1, 0x01, 0x80}, message(0, 0, 0)[4:]...),
		"a response to an update":            append([]byte{0, 1, 0xa9, 0x80}, message(0, 0, 0)[4:]...),
		"no question":                        {0, 1, 0x81, 0x80, 0, 0, 0, 0, 0, 0, 0, 0},
		"two questions":                      {0, 1, 0x81, 0x80, 0, 2, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 1, 0, 0, 1, 0, 1},
		"a question cut short":               message(0, 0, 0)[:18],
		"a question that points at itself":   append(slices.Clone(message(0, 0, 0)[:12]), 0xc0, 12, 0, 1, 0, 1),
		"a question that points at a header": append(slices.Clone(message(0, 0, 0)[:12]), 0xc0, 4, 0, 1, 0, 1),
		"a record that is announced only":    message(1, 0, 0),
		"a record cut in its header":         message(1, 0, 0, 0xc0, 12, 0, 1, 0, 1, 0, 0, 0),
		"a record cut in its data":           message(1, 0, 0, record("\xc0\x0c", dns.TypeA, "abcd")[:15]...),
		"a pointer at itself":                message(1, 0, 0, record("\xc0\x13", dns.TypeA, "abcd")...),
		"a pointer into its own name":        message(1, 0, 0, record("\x01b\xc0\x13", dns.TypeA, "abcd")...),
		"a pointer forward":                  message(1, 0, 0, record("\xc0\x20", dns.TypeA, "abcd")...),
		"a pointer to the header":            message(1, 0, 0, record("\xc0\x02", dns.TypeA, "abcd")...),
		"a pointer to the question's type":   message(1, 0, 0, record("\xc0\x0f", dns.TypeA, "abcd")...),
		"a pointer to a TTL":                 message(2, 0, 0, slices.Concat(record("\xc0\x0c", dns.TypeA, "abcd"), record("\xc0\x19", dns.TypeA, "abcd"))...),
		"a pointer to data of no known form": message(2, 0, 0, slices.Concat(record("\xc0\x0c", dns.TypeTXT, "\x01b\x00"), record("\xc0\x1f", dns.TypeA, "abcd"))...),
		"half a pointer":                     message(1, 0, 0, 0xc0),
		"a label of reserved kind":           message(1, 0, 0, record("\x41b\x00", dns.TypeA, "abcd")...),
		"a name of 256 octets":               message(1, 0, 0, record(long+"\x3e"+strings.Repeat("x", 62)+"\x00", dns.TypeA, "abcd")...),
		"256 octets through a pointer":       message(1, 0, 0, record(long+"\x3c"+strings.Repeat("x", 60)+"\xc0\x0c", dns.TypeA, "abcd")...),
		"an address of three octets":         message(1, 0, 0, record("\xc0\x0c", dns.TypeA, "abc")...),
		"an address of no octets":            message(1, 0, 0, record("\xc0\x0c", dns.TypeA, "")...),
		"an AAAA of four octets":             message(1, 0, 0, record("\xc0\x0c", dns.TypeAAAA, "abcd")...),
		"an alias with a tail":               message(1, 0, 0, record("\xc0\x0c", dns.TypeCNAME, "\xc0\x0cx")...),
		"an alias beyond its data":           message(1, 0, 0, append(record("\xc0\x0c", dns.TypeCNAME, "\x02b"), "bbbbb"...)...),
		"a short SOA":                        message(1, 0, 0, record("\xc0\x0c", dns.TypeSOA, "\xc0\x0c\xc0\x0c1234567890123456789")...),
		"an SRV without a name":              message(1, 0, 0, record("\xc0\x0c", dns.TypeSRV, "123456")...),
		"a short RRSIG":                      message(1, 0, 0, record("\xc0\x0c", dns.TypeRRSIG, "1234")...),
		"a NAPTR cut in a string":            message(1, 0, 0, record("\xc0\x0c", dns.TypeNAPTR, "1234\x01a\x09")...),
		"an SVCB parameter beyond its data":  message(1, 0, 0, record("\xc0\x0c", dns.TypeSVCB, "\x00\x01\x00\x00\x04\x00\x05abcd")...),
		"OPT as an answer":                   message(1, 0, 0, record("\x00", dns.TypeOPT, "")...),
		"OPT with an owner":                  message(0, 0, 1, record("\xc0\x0c", dns.TypeOPT, "")...),
		"two OPT":                            message(0, 0, 2, slices.Concat(record("\x00", dns.TypeOPT, ""), record("\x00", dns.TypeOPT, ""))...),
		"OPT with half an option":            message(0, 0, 1, record("\x00", dns.TypeOPT, "\x00\x0f\x00\x02")...),
		"a pointer to OPT's owner":           message(0, 0, 2, slices.Concat(record("\x00", dns.TypeOPT, ""), record("\xc0\x13", dns.TypeA, "abcd"))...),
	}
	for name, msg := range tests {
		t.Run(name, func(t *testing.T) {
			var r response
			if r.parse(msg) {
				t.Errorf("%q parses", msg)
			}
		})
	}
	var r response
	if r.parse(append(message(0, 0, 0), make([]byte, dns.MaxMsgSize)...)) {
		t.Error("a message of more than 65535 octets parses")
	}
}

func TestNameThroughManyPointersIsRefused(t *testing.T) {
	for _, tt := range []struct {
		records int
		want    bool
	}{{maxPointers, true}, {maxPointers + 1, false}} {
		msg := message(byte(tt.records), 0, 0)
		at := headerSize
		for range tt.records { // each owner points to the one before
			next := len(msg)
			msg = append(msg, record(string([]byte{0xc0 | byte(at>>8), byte(at)}), dns.TypeA, "abcd")...)
			at = next
		}
		var r response
		if got := r.parse(msg); got != tt.want {
			t.Errorf("%d pointers in a row: got %t, want %t", tt.records, got, tt.want)
		}
	}
}

func TestWhatTrailsAResponseIsCut(t *testing.T) {
	msg := packed(t, shape(t, "www.example.org. A", 0, "www.example.org. 60 A 192.0.2.1", "|", "|", "OPT"))
	var r response
	if !r.parse(append(slices.Clone(msg), "garbage"...)) {
		t.Fatal("does not parse")
	}
	if r.size != len(msg) {
		t.Errorf("got size %d, want %d", r.size, len(msg))
	}
}

func TestStripOPTKeepsTheOtherRecords(t *testing.T) {
	for name, drops := range map[string]bool{"two addresses, OPT": false, "OPT in the middle": false, "OPT before names that point at each other": true} {
		t.Run(name, func(t *testing.T) {
			m := shape(t, shapes[name].question, shapes[name].rcode, shapes[name].lines...)
			msg := packed(t, m)
			var r response
			if !r.parse(msg) {
				t.Fatal("does not parse")
			}
			if r.tangled != drops {
				t.Errorf("got tangled %t, want %t", r.tangled, drops)
			}
			msg = r.stripOPT(msg)
			var got dns.Msg
			if err := got.Unpack(msg); err != nil {
				t.Fatal(err)
			}
			at := slices.IndexFunc(m.Extra, func(rr dns.RR) bool { return rr.Header().Rrtype == dns.TypeOPT })
			want := slices.Concat(m.Extra[:at], m.Extra[at+1:])
			if drops {
				want = m.Extra[:at]
			}
			if diff := cmp.Diff(texts(want), texts(got.Extra)); diff != "" {
				t.Errorf("additional records (-want +got):\n%s", diff)
			}
			if again := r.stripOPT(msg); string(again) != string(msg) {
				t.Error("a second stripOPT changes the message")
			}
		})
	}
}

func texts(rrs []dns.RR) []string {
	out := []string{}
	for _, rr := range rrs {
		out = append(out, rr.String())
	}
	return out
}

func TestRandomCaseOfOwnersIsRemoved(t *testing.T) {
	m := shape(t, "wWw.eXample.oRg. A", 0,
		"eXample.oRg. 60 DNAME Example.NET.", "wWw.eXample.oRg. 60 CNAME wWw.Example.NET.", "wWw.Example.NET. 60 CNAME Kept.example.net.", "Kept.example.net. 60 A 192.0.2.1",
		"|", "eXample.oRg. 60 NS NS.example.org.", "|", "NS.example.org. 60 A 192.0.2.2", "OPT")
	want := shape(t, "wWw.eXample.oRg. A", 0,
		"example.org. 60 DNAME Example.NET.", "www.example.org. 60 CNAME www.example.net.", "www.example.net. 60 CNAME kept.example.net.", "kept.example.net. 60 A 192.0.2.1",
		"|", "example.org. 60 NS NS.example.org.", "|", "ns.example.org. 60 A 192.0.2.2", "OPT")
	// The second alias is the zone's own spelling: only what a DNAME may have made is lower-cased, and since the
	// two cannot be told apart, all aliases behind one.
	m.Compress, want.Compress, want.Id = false, false, m.Id
	msg := packed(t, m)
	var r response
	if !r.parse(msg) {
		t.Fatal("does not parse")
	}
	r.lowerOwners(msg)
	if got, want := string(msg), string(packed(t, want)); got != want {
		t.Errorf("got\n%q, want\n%q", got, want)
	}
}

func TestOwnerThatPointsToTheQuestionIsLeftAlone(t *testing.T) {
	m := shape(t, "wWw.eXample.oRg. A", 0, "wWw.eXample.oRg. 60 A 192.0.2.1")
	msg := packed(t, m)
	want := slices.Clone(msg)
	var r response
	if !r.parse(msg) {
		t.Fatal("does not parse")
	}
	r.lowerOwners(msg)
	if string(msg) != string(want) {
		t.Errorf("got %q, want %q", msg, want)
	}
}

// known returns a copy of msg, which r has parsed, in which miekg/dns finds nothing to check that parse does not
// check: records of types whose data parse takes as it comes get one type that both take so, OPT another.
func known(msg []byte, r *response) []byte {
	msg = slices.Clone(msg[:r.size])
	for off := r.end; off < r.size; off = recordEnd(msg, off) {
		at := skipName(msg, off)
		switch rtype := binary.BigEndian.Uint16(msg[at:]); {
		case rtype == dns.TypeOPT:
			binary.BigEndian.PutUint16(msg[at:], retypedOPT)
		case layoutOf(rtype).open && rtype != dns.TypeRRSIG && rtype != dns.TypeSIG:
			binary.BigEndian.PutUint16(msg[at:], retypedOpen)
		}
	}
	return msg
}

// Types for private use (RFC 6895, 3.1).
const (
	retypedOpen = 65281
	retypedOPT  = 65282
)

// checkResponse holds the properties of response against any octets.
func checkResponse(t *testing.T, msg []byte) {
	var r response
	if !r.parse(msg) {
		return
	}
	var whole dns.Msg
	if err := whole.Unpack(known(msg, &r)); err != nil {
		t.Fatalf("parse accepts what does not unpack: %v", err)
	}
	checkTTLs(t, msg, &r, &whole)
	msg = slices.Clone(msg)
	r.rebinds(msg, nil, true)
	r.lowerOwners(msg)
	tangled := r.tangled
	msg = r.stripOPT(msg)
	var bare dns.Msg
	if err := bare.Unpack(known(msg, &r)); err != nil {
		t.Fatalf("what stripOPT leaves does not unpack: %v", err)
	}
	opt := slices.IndexFunc(whole.Extra, func(rr dns.RR) bool { return rr.Header().Rrtype == retypedOPT })
	extra := whole.Extra
	if opt >= 0 && tangled {
		extra = extra[:opt]
	} else if opt >= 0 {
		extra = slices.Concat(extra[:opt], extra[opt+1:])
	}
	for _, s := range []struct{ want, got []dns.RR }{{whole.Answer, bare.Answer}, {whole.Ns, bare.Ns}, {extra, bare.Extra}} {
		want, got := strings.Join(texts(s.want), "\n"), strings.Join(texts(s.got), "\n")
		if !strings.EqualFold(want, got) {
			t.Fatalf("stripOPT: got\n%s\nwant\n%s", got, want)
		}
	}
	checkTTLs(t, msg, &r, &bare)
	checkCached(t, msg, &r)
}

// checkTTLs compares the TTLs at the places that r noted with those of the records.
func checkTTLs(t *testing.T, msg []byte, r *response, m *dns.Msg) {
	t.Helper()
	var want []uint32
	for _, rr := range slices.Concat(m.Answer, m.Ns, m.Extra) {
		if rr.Header().Rrtype != retypedOPT {
			want = append(want, rr.Header().Ttl)
		}
	}
	var got []uint32
	for _, at := range r.ttls[:r.nttl] {
		got = append(got, binary.BigEndian.Uint32(msg[at:]))
	}
	if len(want) > maxTTLs {
		if r.ttl != 0 {
			t.Fatalf("%d records: got TTL %d, want 0", len(want), r.ttl)
		}
		want = want[:maxTTLs]
	}
	if !slices.Equal(got, want) {
		t.Fatalf("got TTLs %d, want %d", got, want)
	}
}

// checkCached puts the response into a cache and takes it out for an asker with another case.
func checkCached(t *testing.T, msg []byte, r *response) {
	var q question
	query := slices.Clone(msg[:r.end])
	copy(query[2:], []byte{1, 0, 0, 1, 0, 0, 0, 0, 0, 0})
	if v := q.parse(query); v != verdictOK {
		t.Fatalf("the question of a valid response does not parse: verdict %d", v)
	}
	c := newCache(64 << 10)
	if !c.put(&q, origin{}, 1, r, msg) {
		return
	}
	for i, b := range query[headerSize : headerSize+q.nameLen] {
		if b-'a' < 26 {
			query[headerSize+i] -= 'a' - 'A'
		}
	}
	out, hit := c.get(&q, origin{}, 1, append(make([]byte, 0, len(msg)), query...))
	if hit.state != cacheFresh || len(out) != r.size || hit.rcode != r.rcode {
		t.Fatalf("got state %d, %d octets, rcode %d; want fresh, %d, %d", hit.state, len(out), hit.rcode, r.size, r.rcode)
	}
	copy(out[:headerSize], msg)
	var again response
	if !again.parse(out) || again.nttl != r.nttl || again.got != r.got {
		t.Fatal("what was cached does not parse any more")
	}
}

func FuzzResponse(f *testing.F) {
	for _, s := range shapes {
		m := shape(f, s.question, s.rcode, s.lines...)
		f.Add(packed(f, m))
		m.Compress = false
		f.Add(packed(f, m))
	}
	f.Add(message(1, 0, 1, slices.Concat(record("\xc0\x0c", dns.TypeA, "abcd"), record("\x00", dns.TypeOPT, ""))...))
	f.Fuzz(checkResponse)
}

func TestParsingAResponseAllocatesNothing(t *testing.T) {
	s := shapes["OPT in the middle"]
	msg := packed(t, shape(t, s.question, s.rcode, s.lines...))
	buf := make([]byte, len(msg))
	r := new(response)
	if n := testing.AllocsPerRun(100, func() {
		copy(buf, msg)
		r.parse(buf)
		r.rebinds(buf, nil, true)
		r.lowerOwners(buf)
		r.stripOPT(buf)
	}); n != 0 {
		t.Errorf("got %g allocations, want none", n)
	}
}

func BenchmarkParseResponse(b *testing.B) {
	for _, name := range []string{"an address", "an alias chain", "mail"} {
		b.Run(name, func(b *testing.B) {
			s := shapes[name]
			msg := packed(b, shape(b, s.question, s.rcode, s.lines...))
			r := new(response)
			b.ReportAllocs()
			for b.Loop() {
				if !r.parse(msg) {
					b.Fatal("does not parse")
				}
			}
		})
	}
}

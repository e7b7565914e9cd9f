package resolver

import (
	"bytes"
	"strings"
	"testing"

	"github.com/miekg/dns"
)

// pack returns m in wire form.
func pack(t testing.TB, m *dns.Msg) []byte {
	t.Helper()
	b, err := m.Pack()
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// query returns a recursive query in wire form.
func query(t testing.TB, name string, qtype uint16) []byte {
	t.Helper()
	return pack(t, new(dns.Msg).SetQuestion(dns.Fqdn(name), qtype))
}

func TestParseReadsWhatAServerNeeds(t *testing.T) {
	m := new(dns.Msg).SetQuestion("Nas.Foo-Bar.TS.net.", dns.TypeAAAA)
	m.SetEdns0(1400, true)
	m.CheckingDisabled = true
	var q question
	if v := q.parse(pack(t, m)); v != verdictOK {
		t.Fatalf("verdict %d, want OK", v)
	}
	if got, want := string(q.name()), "\x03nas\x07foo-bar\x02ts\x03net\x00"; got != want {
		t.Errorf("name %q, want %q", got, want)
	}
	if q.labels != 4 || string(q.suffix(2)) != "\x02ts\x03net\x00" || string(q.suffix(0)) != "\x00" {
		t.Errorf("labels %d, suffix(2) %q, suffix(0) %q", q.labels, q.suffix(2), q.suffix(0))
	}
	if !q.edns || !q.do || q.udpSize != 1400 || q.qtype != dns.TypeAAAA || q.flags&flagCD == 0 {
		t.Errorf("edns %v do %v size %d type %d flags %x", q.edns, q.do, q.udpSize, q.qtype, q.flags)
	}
}

func TestParseVerdicts(t *testing.T) {
	base := query(t, "a.example", dns.TypeA)
	edit := func(f func([]byte) []byte) []byte { return f(bytes.Clone(base)) }
	withOPT := func(f func(*dns.Msg)) []byte {
		m := new(dns.Msg).SetQuestion("a.example.", dns.TypeA)
		m.SetEdns0(1232, false)
		f(m)
		return pack(t, m)
	}
	rows := []struct {
		name string
		msg  []byte
		want verdict
	}{
		{"nothing", nil, verdictDrop},
		{"eleven octets", base[:11], verdictDrop},
		{"a response", edit(func(b []byte) []byte { b[2] |= 0x80; return b }), verdictDrop},
		{"NOTIFY", edit(func(b []byte) []byte { b[2] |= 4 << 3; return b }), verdictNotImp},
		{"UPDATE", edit(func(b []byte) []byte { b[2] |= 5 << 3; return b }), verdictNotImp},
		{"no question", edit(func(b []byte) []byte { b[5] = 0; return b[:12] }), verdictFormErr},
		{"two questions", edit(func(b []byte) []byte { b[5] = 2; return append(b, b[12:]...) }), verdictFormErr},
		{"question cut off", base[:len(base)-1], verdictFormErr},
		{"name cut off", base[:14], verdictFormErr},
		{"a label of 64 octets", edit(func(b []byte) []byte { b[12] = 64; return append(b, make([]byte, 80)...) }), verdictFormErr},
		{"a compressed question", edit(func(b []byte) []byte { return append(b[:12], 0xc0, 12, 0, 1, 0, 1) }), verdictFormErr},
		{"a name of 256 octets", append(append(bytes.Clone(base[:12]), strings.Repeat("\x3f"+strings.Repeat("a", 63), 4)+"\x00"...), 0, 1, 0, 1), verdictFormErr},
		{"more records announced than there are", edit(func(b []byte) []byte { b[11] = 1; return b }), verdictFormErr},
		{"EDNS version 1", withOPT(func(m *dns.Msg) { m.IsEdns0().SetVersion(1) }), verdictBadVers},
		{"two OPT records", withOPT(func(m *dns.Msg) { m.Extra = append(m.Extra, m.Extra[0]) }), verdictFormErr},
		{"OPT in the answer", withOPT(func(m *dns.Msg) { m.Answer, m.Extra = m.Extra, nil }), verdictFormErr},
		{"an unknown EDNS option", withOPT(func(m *dns.Msg) {
			m.IsEdns0().Option = []dns.EDNS0{&dns.EDNS0_LOCAL{Code: 65001, Data: []byte("x")}}
		}), verdictOK},
		{"the root", query(t, ".", dns.TypeNS), verdictOK},
		{"a name of 255 octets", query(t, strings.Repeat(strings.Repeat("a", 63)+".", 3)+strings.Repeat("b", 61)+".", dns.TypeA), verdictOK},
		{"trailing octets", append(bytes.Clone(base), 1, 2, 3), verdictOK},
	}
	for _, row := range rows {
		t.Run(row.name, func(t *testing.T) {
			var q question
			if got := q.parse(row.msg); got != row.want {
				t.Errorf("got %d, want %d", got, row.want)
			}
		})
	}
}

func TestParseAllocatesNothing(t *testing.T) {
	msg := query(t, "nas.foo-bar.ts.net", dns.TypeA)
	var q question
	if n := testing.AllocsPerRun(100, func() { q.parse(msg) }); n != 0 {
		t.Errorf("%v allocations, want 0", n)
	}
}

func FuzzParse(f *testing.F) {
	f.Add(query(f, "Nas.foo-bar.ts.net", dns.TypeA))
	m := new(dns.Msg).SetQuestion("x.example.", dns.TypeTXT)
	m.SetEdns0(4096, true)
	f.Add(pack(f, m))
	f.Fuzz(func(t *testing.T, msg []byte) {
		var q question
		v := q.parse(msg)
		if v != verdictOK {
			return
		}
		if q.end > len(msg) || q.nameLen < 1 || q.lower[q.nameLen-1] != 0 {
			t.Fatalf("end %d of %d, name %q", q.end, len(msg), q.name())
		}
		var again question
		again.setName(q.name())
		if again.hash != q.hash || again.labels != q.labels || string(again.suffix(q.labels)) != string(q.suffix(q.labels)) {
			t.Fatalf("setName differs from parse for %q", q.name())
		}
		// The question alone is a message that other software reads the same way.
		alone := bytes.Clone(msg[:q.end])
		copy(alone[6:12], make([]byte, 6))
		var d dns.Msg
		if err := d.Unpack(alone); err != nil {
			t.Fatalf("accepted what miekg/dns refuses: %v", err)
		}
		if d.Question[0].Qtype != q.qtype {
			t.Fatalf("type %d, want %d", q.qtype, d.Question[0].Qtype)
		}
	})
}

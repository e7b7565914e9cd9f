package resolver

import (
	"encoding/binary"
	"fmt"
	"testing"

	"github.com/miekg/dns"
)

// sectioned makes a reply with the records given for each section.
func sectioned(t testing.TB, answer, authority, additional []string) []byte {
	t.Helper()
	m := new(dns.Msg).SetQuestion("nas.mesh.", dns.TypeA)
	m.Response = true
	for section, texts := range [][]string{answer, authority, additional} {
		for _, text := range texts {
			r := mustRR(text)
			switch section {
			case sectionAnswer:
				m.Answer = append(m.Answer, r)
			case sectionAuthority:
				m.Ns = append(m.Ns, r)
			case sectionAdditional:
				m.Extra = append(m.Extra, r)
			}
		}
	}
	m.Compress = true
	return pack(t, m)
}

// repeated fills 0 to n-1 into a record.
func repeated(n int, pattern string) []string {
	var out []string
	for i := range n {
		out = append(out, fmt.Sprintf(pattern, i))
	}
	return out
}

func counted(msg []byte) (counts [sections]int) {
	for section := range counts {
		counts[section] = int(binary.BigEndian.Uint16(msg[countAt(section):]))
	}
	return counts
}

func TestTruncateAtEveryLimit(t *testing.T) {
	full := sectioned(t, repeated(12, "nas.mesh. A 10.0.0.%d"), repeated(3, "mesh. NS ns%d.mesh."), repeated(5, "ns%d.mesh. AAAA fd00::1"))
	all := counted(full)
	for limit := range len(full) + 2 {
		got := truncate(append([]byte(nil), full...), limit)
		checkCounts(t, got)
		m := new(dns.Msg)
		if err := m.Unpack(got); err != nil {
			t.Fatalf("limit %d: %v", limit, err)
		}
		if len(got) > max(limit, headerSize) {
			t.Errorf("limit %d: %d octets", limit, len(got))
		}
		counts := counted(got)
		if m.Truncated != (counts[sectionAnswer] < all[sectionAnswer]) {
			t.Errorf("limit %d: TC is %v with %d of %d answers", limit, m.Truncated, counts[sectionAnswer], all[sectionAnswer])
		}
		if next := recordEnd(full, len(got)); len(got) > headerSize && next > 0 && next <= limit {
			t.Errorf("limit %d: the record that ends at %d was cut too", limit, next)
		}
		for i := range sectionAdditional {
			if counts[i] < all[i] && counts[i+1] > 0 {
				t.Errorf("limit %d: section %d was cut before section %d: %v", limit, i, i+1, counts)
			}
		}
	}
}

func TestTruncateSetsTCForWhatIsNeeded(t *testing.T) {
	const (
		a      = "nas.mesh. A 10.0.0.1"
		alias  = "nas.mesh. CNAME gone.mesh."
		soa    = "mesh. SOA ns.mesh. host.mesh. 1 2 3 4 5"
		ns     = "mesh. NS ns.mesh."
		nsec   = "mesh. NSEC a.mesh. NS SOA"
		nsSig  = "mesh. RRSIG NS 13 4 300 20300101000000 20200101000000 1 mesh. AAAA"
		nsecBy = "mesh. RRSIG NSEC 13 4 300 20300101000000 20200101000000 1 mesh. AAAA"
	)
	tests := []struct {
		odd                           string
		answer, authority, additional []string
		want                          bool
	}{
		{"only additional records", []string{a}, nil, []string{"ns.mesh. A 10.0.0.1"}, false},
		{"the servers of the zone beside an answer", []string{a}, []string{ns}, nil, false},
		{"and their signature", []string{a}, []string{ns, nsSig}, nil, false},
		{"a referral", nil, []string{ns}, nil, true},
		{"the SOA that says no", nil, []string{soa}, nil, true},
		{"the SOA behind an alias", []string{alias}, []string{soa}, nil, true},
		{"the proof that a wildcard may answer", []string{a}, []string{ns, nsec}, nil, true},
		{"the signature of that proof", []string{a}, []string{nsecBy}, nil, true},
		{"an answer", []string{a, a}, nil, nil, true},
	}
	for _, tt := range tests {
		t.Run(tt.odd, func(t *testing.T) {
			full := sectioned(t, tt.answer, tt.authority, tt.additional)
			keep := len(full) - 1
			if len(tt.answer) == 1 {
				keep = recordEnd(full, skipQuestions(full, len(full)))
			}
			got := truncate(full, keep)
			if tc := binary.BigEndian.Uint16(got[2:])&flagTC != 0; tc != tt.want {
				t.Errorf("TC %v, want %v", tc, tt.want)
			}
		})
	}
}

func TestTruncateKeepsWhatFits(t *testing.T) {
	full := sectioned(t, []string{"nas.mesh. A 10.0.0.1"}, nil, nil)
	for _, limit := range []int{len(full), len(full) + 1, dns.MaxMsgSize} {
		if got := truncate(append([]byte(nil), full...), limit); string(got) != string(full) {
			t.Errorf("limit %d: got %x, want %x", limit, got, full)
		}
	}
}

func FuzzTruncate(f *testing.F) {
	f.Add(sectioned(f, []string{"nas.mesh. A 10.0.0.1"}, []string{"mesh. NS ns.mesh."}, []string{"ns.mesh. A 10.0.0.1"}), uint16(40))
	f.Add([]byte("\x00\x00\x80\x00\x00\x01\x00\x02\x00\x00\x00\x00\x00\x00\x01\x00\x01\xc0"), uint16(17))
	f.Add(make([]byte, 13), uint16(12))
	f.Fuzz(func(t *testing.T, msg []byte, limit uint16) {
		// The codec reads names that point forwards, which no cut survives; what it writes has none. It also
		// writes data that it cannot read back.
		m := new(dns.Msg)
		if m.Unpack(msg) == nil {
			m.Compress = true
			if tidy, err := m.Pack(); err == nil && new(dns.Msg).Unpack(tidy) == nil {
				if got := truncate(tidy, int(limit)); new(dns.Msg).Unpack(got) != nil {
					t.Fatalf("cut to %x, which does not parse", got)
				}
			}
		}
		before := len(msg)
		got := truncate(msg, int(limit))
		switch {
		case before <= int(limit) || before <= headerSize:
			if len(got) != before {
				t.Fatalf("%d octets were cut to %d, limit %d", before, len(got), limit)
			}
			return
		case len(got) > max(int(limit), headerSize):
			t.Fatalf("%d octets, limit %d", len(got), limit)
		}
		checkCounts(t, got)
	})
}

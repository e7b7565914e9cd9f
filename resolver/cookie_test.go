package resolver

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"net/netip"
	"testing"

	"github.com/miekg/dns"
)

func unhex(t testing.TB, s string) []byte {
	t.Helper()
	b, err := hex.DecodeString(s)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// TestSipHashIsSipHash uses the vectors of its authors: key and data count up from zero.
func TestSipHashIsSipHash(t *testing.T) {
	var key [16]byte
	for i := range key {
		key[i] = byte(i)
	}
	data := make([]byte, 64)
	for i := range data {
		data[i] = byte(i)
	}
	for n, want := range map[int]uint64{0: 0x726fdb47dd0e0e31, 1: 0x74f839c593dc67fd, 7: 0xab0200f58b01d137, 8: 0x93f5f5799a932462, 15: 0xa129ca6149be45e5} {
		if got := sipHash(&key, data[:n]); got != want {
			t.Errorf("of %d octets: got %x, want %x", n, got, want)
		}
	}
}

// option is an EDNS option in wire form.
func option(code uint16, data []byte) []byte {
	b := binary.BigEndian.AppendUint16(nil, code)
	return append(binary.BigEndian.AppendUint16(b, uint16(len(data))), data...)
}

func TestCookiesFromTheFutureAreNotTaken(t *testing.T) {
	j := newCookieJar([16]byte{1}, 0)
	var c cookie
	from := netip.MustParseAddr("198.51.100.100")
	j.judge(&c, option(dns.EDNS0COOKIE, []byte("clientco")), from, 10_301)
	if j.judge(&c, c.append(nil), from, 10_000); c.state != cookieClient {
		t.Errorf("state %d, want %d", c.state, cookieClient)
	}
}

// TestCookiesAreThoseOfTheStandard has the examples of RFC 9018, appendix A.
func TestCookiesAreThoseOfTheStandard(t *testing.T) {
	const secret, rolled, before = "e5e973e5a6b2a43f48e7dc849e37bfcf", "445536bcd2513298075a5d379663c962", "dd3bdf9344b678b185a6f5cb60fca715"
	for name, row := range map[string]struct {
		secret, before, from, query string
		now                         uint32
		want                        string
		state                       cookieState
	}{
		"first":                         {secret, secret, "198.51.100.100", "2464c4abcf10c957", 1559731985, "2464c4abcf10c957010000005cf79f111f8130c3eee29480", cookieClient},
		"renewed":                       {secret, secret, "198.51.100.100", "2464c4abcf10c957010000005cf79f111f8130c3eee29480", 1559734385, "2464c4abcf10c957010000005cf7a871d4a564a1442aca77", cookieValid},
		"reserved octets":               {secret, secret, "203.0.113.203", "fc93fc62807ddb8601abcdef5cf78f71a314227b6679ebf5", 0x5cf78f71 + 1800, "fc93fc62807ddb8601abcdef5cf78f71a314227b6679ebf5", cookieValid},
		"too old":                       {secret, secret, "203.0.113.203", "fc93fc62807ddb8601abcdef5cf78f71a314227b6679ebf5", 1559734700, "fc93fc62807ddb86010000005cf7a9acf73a7810aca2381e", cookieClient},
		"of a clock five minutes ahead": {secret, secret, "198.51.100.100", "2464c4abcf10c957010000005cf79f111f8130c3eee29480", 1559731985 - 300, "2464c4abcf10c957010000005cf79f111f8130c3eee29480", cookieValid},
		"old secret":                    {rolled, before, "2001:db8:220:1:59de:d0f4:8769:82b8", "22681ab97d52c298010000005cf7c57926556bd0934c72f8", 1559741961, "22681ab97d52c298010000005cf7c609a6bb79d16625507a", cookieValid},
	} {
		t.Run(name, func(t *testing.T) {
			j := &cookieJar{drawn: true}
			k := &cookieKeys{since: row.now - 10}
			copy(k.now[:], unhex(t, row.secret))
			copy(k.before[:], unhex(t, row.before))
			j.keys.Store(k)
			var c cookie
			j.judge(&c, option(dns.EDNS0COOKIE, unhex(t, row.query)), netip.MustParseAddr(row.from), row.now)
			if got := c.append(nil); !bytes.Equal(got, option(dns.EDNS0COOKIE, unhex(t, row.want))) || c.state != row.state {
				t.Errorf("state %d, got %x, want %d, %s", c.state, got[4:], row.state, row.want)
			}
		})
	}
}

package resolver

import (
	"encoding/binary"
	"math/rand/v2"
	"net/netip"
	"testing"
	"testing/synctest"
	"time"

	"github.com/miekg/dns"
)

func TestNetworksOfAddresses(t *testing.T) {
	for _, row := range [][3]string{
		{"198.51.100.1", "198.51.100.254", "same"},
		{"198.51.100.1", "198.51.101.1", "other"},
		{"198.51.100.1", "198.50.100.1", "other"},
		{"2001:db8:1:200::1", "2001:db8:1:2ff:ffff::1", "same"},
		{"2001:db8:1:200::1", "2001:db8:1:300::1", "other"},
		{"0.0.0.0", "::", "other"},
		{"1.2.3.4", "::102:304", "other"},
	} {
		same := networkOf(netip.MustParseAddr(row[0])) == networkOf(netip.MustParseAddr(row[1]))
		if same != (row[2] == "same") {
			t.Errorf("%s and %s share a bucket: %t", row[0], row[1], same)
		}
	}
	if networkOf(netip.MustParseAddr("0.0.0.0")) == 0 || networkOf(netip.MustParseAddr("::")) == 0 {
		t.Error("a network is that of the zero bucket")
	}
}

// flood asks n times from an address over UDP and counts the answers that say something. The others must be short,
// truncated and empty, never missing.
func flood(t *testing.T, a *Authority, from string, n int, m *dns.Msg) (told int) {
	t.Helper()
	msg := pack(t, m)
	for range n {
		reply := a.Answer(msg, netip.MustParseAddr(from), UDP)
		if reply == nil {
			t.Fatal("no answer")
		}
		if reply[2]&(flagTC>>8) == 0 {
			told++
			continue
		}
		if len(reply) > len(msg)+serverCookieSize || binary.BigEndian.Uint16(reply[6:])+binary.BigEndian.Uint16(reply[8:]) != 0 || reply[3]&rcodeMask != 0 {
			t.Fatalf("truncated reply %x", reply)
		}
	}
	return told
}

func TestTooManyAnswersAreTruncated(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := newPublic(t, func(c *AuthorityConfig) { c.Rate = 10 })
		const name = "photos." + publicZone
		if got := flood(t, a, "198.51.100.7", 100, questionFor(name, dns.TypeA)); got != 20 {
			t.Errorf("%d answers at once, want two seconds' worth", got)
		}
		if got := flood(t, a, "198.51.100.200", 10, questionFor(name, dns.TypeA)); got != 0 {
			t.Errorf("%d answers to a neighbour in the same /24, want none", got)
		}
		if got := flood(t, a, "198.51.101.7", 10, questionFor(name, dns.TypeA)); got != 10 {
			t.Errorf("%d answers to another network, want all", got)
		}
		// What exists and what does not, inside and under it, are cut alike (S11).
		for _, other := range []string{"no." + publicZone, publicZone, "under." + publicZone} {
			if got := flood(t, a, "198.51.100.7", 1, questionFor(other, dns.TypeA)); got != 0 {
				t.Errorf("%s is answered over the limit", other)
			}
		}
		for range 3 {
			if got := a.Answer(query(t, name, dns.TypeA), netip.MustParseAddr("198.51.100.7"), TCP); got[2]&(flagTC>>8) != 0 {
				t.Error("truncated over TCP")
			}
		}
		if got := a.Answer(query(t, "example.com", dns.TypeA), netip.MustParseAddr("198.51.100.7"), UDP); got[3]&rcodeMask != dns.RcodeRefused {
			t.Error("an error, which is no longer than the query, is held back")
		}
		time.Sleep(time.Second)
		if got := flood(t, a, "198.51.100.7", 100, questionFor(name, dns.TypeA)); got != 10 {
			t.Errorf("%d answers after a second, want 10", got)
		}
		time.Sleep(time.Hour)
		if got := flood(t, a, "198.51.100.7", 100, questionFor(name, dns.TypeA)); got != 20 {
			t.Errorf("%d answers after an hour, want 20", got)
		}
		if s := a.Stats(); s.Truncated != 80+10+3+90+80 {
			t.Errorf("%d counted as truncated", s.Truncated)
		}
	})
}

func withCookie(c []byte) func(*dns.Msg) {
	return func(m *dns.Msg) {
		if m.IsEdns0() == nil {
			m.SetEdns0(1232, false)
		}
		m.IsEdns0().Option = []dns.EDNS0{&dns.EDNS0_LOCAL{Code: dns.EDNS0COOKIE, Data: c}}
	}
}

// cookieOf is the cookie in the answer to a query from an address with a cookie.
func cookieOf(t *testing.T, a *Authority, from string, c []byte) []byte {
	t.Helper()
	reply := a.Answer(pack(t, questionFor("photos."+publicZone, dns.TypeA, withCookie(c))), netip.MustParseAddr(from), UDP)
	data := reply[len(reply)-clientCookieSize-serverCookieSize:]
	if string(data[:clientCookieSize]) != string(c[:clientCookieSize]) {
		t.Fatalf("reply %x has not the client's cookie %x", reply, c[:clientCookieSize])
	}
	return append([]byte(nil), data...)
}

func TestWhoHasACookieIsNotLimited(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := newPublic(t, func(c *AuthorityConfig) { c.Rate = 10 })
		const name, from = "photos." + publicZone, "198.51.100.7"
		// One is learnt from a truncated answer too.
		flood(t, a, from, 100, questionFor(name, dns.TypeA))
		c := cookieOf(t, a, from, []byte("clientco"))
		if got := flood(t, a, from, 100, questionFor(name, dns.TypeA, withCookie(c))); got != 100 {
			t.Errorf("%d of 100 answers to a valid cookie", got)
		}
		flood(t, a, "203.0.113.9", 20, questionFor(name, dns.TypeA))
		forged := append([]byte(nil), c...)
		forged[23] ^= 1
		for what, row := range map[string]struct {
			from   string
			cookie []byte
		}{
			"of another address":  {"203.0.113.9", c},
			"a client's alone":    {from, c[:8]},
			"forged":              {from, forged},
			"of another client":   {from, append([]byte("othercli"), c[8:]...)},
			"of another version":  {from, append(append([]byte("clientco"), 2), c[9:]...)},
			"longer":              {from, append(append([]byte(nil), c...), 0)},
			"of another server":   {from, append([]byte("clientco"), "12345678"...)},
			"of zeros":            {from, make([]byte, 24)},
			"with a changed time": {from, append(append(append([]byte(nil), c[:15]...), c[15]+1), c[16:]...)},
		} {
			if got := flood(t, a, row.from, 1, questionFor(name, dns.TypeA, withCookie(row.cookie))); got != 0 {
				t.Errorf("a cookie %s counts", what)
			}
		}
		if s := a.Stats(); s.Verified != 100 {
			t.Errorf("%d counted as verified, want 100", s.Verified)
		}
	})
}

func TestCookiesAgeAndAreReplaced(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := newPublic(t)
		a.limiter.burst = 0
		const name, from = "photos." + publicZone, "2001:db8::7"
		valid := func(c []byte) bool { return flood(t, a, from, 1, questionFor(name, dns.TypeA, withCookie(c))) == 1 }
		c := cookieOf(t, a, from, []byte("clientco"))
		time.Sleep(cookieOld * time.Second)
		if got := cookieOf(t, a, from, c); string(got) != string(c) || !valid(c) {
			t.Error("not kept for half an hour")
		}
		time.Sleep(time.Second)
		next := cookieOf(t, a, from, c)
		if string(next) == string(c) || !valid(c) || !valid(next) {
			t.Error("not replaced after half an hour, or not taken any more")
		}
		time.Sleep((cookieDead - cookieOld) * time.Second)
		if valid(c) || !valid(next) {
			t.Error("taken after an hour, or the next one not")
		}
		// The secret changes daily; what was made with the one before is taken for an hour, and replaced.
		time.Sleep(secretLife*time.Second - (cookieDead+1+60)*time.Second)
		old := cookieOf(t, a, from, []byte("clientco"))
		before := a.cookies.keys.Load()
		time.Sleep(2 * time.Minute)
		fresh := cookieOf(t, a, from, old)
		if k := a.cookies.keys.Load(); k == before || k.before != before.now || k.now == before.now {
			t.Fatal("the secret is not replaced")
		}
		if !valid(old) || string(fresh) == string(old) || !valid(fresh) {
			t.Error("a cookie of the secret before is not taken, or not replaced")
		}
	})
}

func TestGatewaysWithOneSecretTakeEachOthersCookies(t *testing.T) {
	synctest.Test(t, testSharedSecret)
}

func testSharedSecret(t *testing.T) {
	shared := func(c *AuthorityConfig) { c.CookieSecret = [16]byte{1, 2, 3} }
	a, b, other := newPublic(t, shared), newPublic(t, shared), newPublic(t)
	time.Sleep(2 * secretLife * time.Second) // what was configured stays
	c := cookieOf(t, a, "198.51.100.7", []byte("clientco"))
	for _, row := range []struct {
		a    *Authority
		want int
	}{{b, 5}, {other, 0}} {
		row.a.limiter.burst = 0
		if got := flood(t, row.a, "198.51.100.7", 5, questionFor("photos."+publicZone, dns.TypeA, withCookie(c))); got != row.want {
			t.Errorf("%d answers, want %d", got, row.want)
		}
	}
}

// TestAnotherNetworkTakesTheFullestBucket has two networks meet in a set that has room.
func TestAnotherNetworkTakesTheFullestBucket(t *testing.T) {
	l := newLimiter(10)
	place := func(a netip.Addr) uint64 {
		var key [8]byte
		binary.LittleEndian.PutUint64(key[:], networkOf(a))
		return hashName(key[:]) % (limiterShards * limiterSets)
	}
	other := netip.AddrFrom4([4]byte{10, 0, 0, 1})
	for place(other) != place(somebody()) {
		b := other.As4()
		binary.BigEndian.PutUint32(b[:], binary.BigEndian.Uint32(b[:])+256)
		other = netip.AddrFrom4(b)
	}
	now := int64(time.Hour)
	for l.allow(somebody(), now) {
	}
	if !l.allow(other, now) {
		t.Error("another network is held to what the first has used up")
	}
	if l.allow(somebody(), now) {
		t.Error("the first is forgotten")
	}
}

// TestFloodsFromManyNetworksGetNoMore fills all buckets from more networks than there are, as a forger can: the answers
// stay bounded, and once it is over those who asked before are answered as before.
func TestFloodsFromManyNetworksGetNoMore(t *testing.T) {
	l := newLimiter(10)
	random := rand.New(rand.NewPCG(1, 2))
	const buckets = limiterShards * limiterSets * limiterWays
	now, allowed, asked := int64(time.Hour), 0, 0
	for range 60 * buckets {
		asked++
		if l.allow(netip.AddrFrom4([4]byte{byte(random.Uint32()), byte(random.Uint32()), byte(random.Uint32()), 1}), now) {
			allowed++
		}
	}
	if most := buckets * burstSeconds * 10; allowed > most {
		t.Errorf("%d of %d answers at one moment, want %d at most", allowed, asked, most)
	}
	now += int64(burstSeconds * time.Second)
	for i := range burstSeconds * 10 {
		if !l.allow(somebody(), now) {
			t.Fatalf("only %d answers after the flood", i)
		}
	}
	if l.allow(somebody(), now) {
		t.Error("more than the burst")
	}
}

package resolver

import (
	"bytes"
	"context"
	"encoding/binary"
	"net"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/miekg/dns"
)

const publicZone = "foo-bar.example.org"

// publicConfig has a gateway at two addresses and one that lies in another zone, three funnelled names, and a certificate
// of a name that is not.
func publicConfig(t testing.TB) AuthorityConfig {
	return AuthorityConfig{Zone: publicZone, View: PublicView{
		Servers: map[string][]netip.Addr{
			"NS.foo-bar.example.org": {netip.MustParseAddr("203.0.113.5"), netip.MustParseAddr("2001:db8::5")},
			"ns2.example.net":        nil,
		},
		Records: rr(t,
			"photos.foo-bar.example.org. 60 A 203.0.113.5",
			"photos.foo-bar.example.org. 60 AAAA 2001:db8::5",
			"deep.under.foo-bar.example.org. 60 A 203.0.113.5",
			"www.foo-bar.example.org. 60 CNAME photos.foo-bar.example.org.",
			"away.foo-bar.example.org. 60 CNAME www.example.com.",
			"*.wild.foo-bar.example.org. 60 A 203.0.113.5",
			`nas.foo-bar.example.org. 60 CAA 0 issue "letsencrypt.org"`,
		),
	}}
}

func newPublic(t testing.TB, edit ...func(*AuthorityConfig)) *Authority {
	t.Helper()
	c := publicConfig(t)
	for _, f := range edit {
		f(&c)
	}
	a, err := NewAuthority(c)
	if err != nil {
		t.Fatal(err)
	}
	return a
}

// somebody asks from the internet.
func somebody() netip.Addr { return netip.MustParseAddr("198.51.100.7") }

// askPublic asks as somebody does.
func askPublic(t testing.TB, a *Authority, m *dns.Msg, via Transport) *dns.Msg {
	t.Helper()
	raw := a.Answer(pack(t, m), somebody(), via)
	if raw == nil {
		t.Fatal("no answer")
	}
	var out dns.Msg
	if err := out.Unpack(raw); err != nil {
		t.Fatalf("%v: %x", err, raw)
	}
	return &out
}

// shown is a reply in one line: rcode, flags, and the sections as owner, type and data, with "|" between.
func shown(m *dns.Msg) string {
	out := []string{dns.RcodeToString[m.Rcode]}
	for name, set := range map[string]bool{"AA": m.Authoritative, "TC": m.Truncated, "RA": m.RecursionAvailable, "AD": m.AuthenticatedData} {
		if set {
			out = append(out, name)
		}
	}
	slices.Sort(out[1:])
	for _, section := range [][]dns.RR{m.Answer, m.Ns, m.Extra} {
		out = append(out, "|")
		var lines []string
		for _, rr := range section {
			if h := rr.Header(); h.Rrtype == dns.TypeSOA {
				lines = append(lines, h.Name+" SOA")
			} else if h.Rrtype != dns.TypeOPT {
				lines = append(lines, h.Name+" "+dns.Type(h.Rrtype).String()+" "+strings.TrimPrefix(rr.String(), h.String()))
			}
		}
		slices.Sort(lines) // sets have no order
		out = append(out, strings.Join(lines, ", "))
	}
	return strings.Join(strings.Fields(strings.Join(out, " ")), " ")
}

const soaShown = "foo-bar.example.org. SOA"

func TestAuthorityAnswersForItsZoneAlone(t *testing.T) {
	a := newPublic(t)
	if err := a.SetTXT("_acme-challenge.git."+publicZone, "token"); err != nil {
		t.Fatal(err)
	}
	const glue = "ns.foo-bar.example.org. A 203.0.113.5, ns.foo-bar.example.org. AAAA 2001:db8::5"
	for name, row := range map[string]struct {
		qname string
		qtype uint16
		want  string
	}{
		"a funnelled name":       {"photos.foo-bar.example.org", dns.TypeA, "NOERROR AA | photos.foo-bar.example.org. A 203.0.113.5 | |"},
		"its other address":      {"photos.foo-bar.example.org", dns.TypeAAAA, "NOERROR AA | photos.foo-bar.example.org. AAAA 2001:db8::5 | |"},
		"a type that it has not": {"photos.foo-bar.example.org", dns.TypeMX, "NOERROR AA | | " + soaShown + " |"},
		"ANY is one record":      {"photos.foo-bar.example.org", dns.TypeANY, `NOERROR AA | photos.foo-bar.example.org. HINFO "RFC8482" "" | |`},
		"below a funnelled name": {"x.photos.foo-bar.example.org", dns.TypeA, "NXDOMAIN AA | | " + soaShown + " |"},
		"an alias":               {"www.foo-bar.example.org", dns.TypeA, "NOERROR AA | photos.foo-bar.example.org. A 203.0.113.5, www.foo-bar.example.org. CNAME photos.foo-bar.example.org. | |"},
		"an alias that leads away, which is not followed": {"away.foo-bar.example.org", dns.TypeA, "NOERROR AA | away.foo-bar.example.org. CNAME www.example.com. | |"},
		"a wildcard":               {"any.thing.wild.foo-bar.example.org", dns.TypeA, "NOERROR AA | any.thing.wild.foo-bar.example.org. A 203.0.113.5 | |"},
		"above a public name":      {"under.foo-bar.example.org", dns.TypeA, "NOERROR AA | | " + soaShown + " |"},
		"above a live TXT":         {"git.foo-bar.example.org", dns.TypeA, "NOERROR AA | | " + soaShown + " |"},
		"a live TXT":               {"_acme-challenge.git.foo-bar.example.org", dns.TypeTXT, `NOERROR AA | _acme-challenge.git.foo-bar.example.org. TXT "token" | |`},
		"a TXT name's address":     {"_acme-challenge.git.foo-bar.example.org", dns.TypeA, "NOERROR AA | | " + soaShown + " |"},
		"a name with CAA alone":    {"nas.foo-bar.example.org", dns.TypeA, "NOERROR AA | | " + soaShown + " |"},
		"its CAA":                  {"nas.foo-bar.example.org", dns.TypeCAA, `NOERROR AA | nas.foo-bar.example.org. CAA 0 issue "letsencrypt.org" | |`},
		"NS at the top, and glue":  {"foo-bar.example.org", dns.TypeNS, "NOERROR AA | foo-bar.example.org. NS ns.foo-bar.example.org., foo-bar.example.org. NS ns2.example.net. | | " + glue},
		"the server's address":     {"ns.foo-bar.example.org", dns.TypeA, "NOERROR AA | ns.foo-bar.example.org. A 203.0.113.5 | |"},
		"SOA":                      {"foo-bar.example.org", dns.TypeSOA, "NOERROR AA | foo-bar.example.org. SOA | |"},
		"DS is the parent's":       {"foo-bar.example.org", dns.TypeDS, "NOERROR AA | | " + soaShown + " |"},
		"DNSKEY of no signed zone": {"foo-bar.example.org", dns.TypeDNSKEY, "NOERROR AA | | " + soaShown + " |"},
		"nobody may issue at the top": {"foo-bar.example.org", dns.TypeCAA,
			`NOERROR AA | foo-bar.example.org. CAA 0 issue ";", foo-bar.example.org. CAA 0 issuewild ";" | |`},
		"the top has no address": {"foo-bar.example.org", dns.TypeA, "NOERROR AA | | " + soaShown + " |"},
		"ANY at the top":         {"foo-bar.example.org", dns.TypeANY, `NOERROR AA | foo-bar.example.org. HINFO "RFC8482" "" | |`},
		"the parent":             {"example.org", dns.TypeNS, "REFUSED | | |"},
		"a sibling":              {"xfoo-bar.example.org", dns.TypeA, "REFUSED | | |"},
		"the root":               {".", dns.TypeNS, "REFUSED | | |"},
		"a name elsewhere":       {"www.example.com", dns.TypeA, "REFUSED | | |"},
		"a loopback name":        {"localhost", dns.TypeA, "REFUSED | | |"},
		"a reverse name":         {"5.113.0.203.in-addr.arpa", dns.TypePTR, "REFUSED | | |"},
		"a meta type":            {"photos.foo-bar.example.org", dns.TypeMAILB, "NOTIMP | | |"},
	} {
		t.Run(name, func(t *testing.T) {
			for _, edit := range []func(*dns.Msg){func(*dns.Msg) {}, withEDNS(4096, true)} {
				for _, via := range []Transport{UDP, TCP} {
					m := questionFor(row.qname, row.qtype, edit)
					got := askPublic(t, a, m, via)
					if s := shown(got); s != row.want {
						t.Errorf("got  %s\nwant %s", s, row.want)
					}
					if (got.IsEdns0() != nil) != (m.IsEdns0() != nil) {
						t.Error("EDNS is not answered as it was asked")
					}
				}
			}
		})
	}
}

// TestPublicNeverTellsWhatIsInTheTailnet asks, for each kind of name that only the tailnet has, and for one as long that
// nobody has, all that may be asked: the replies are the same octets, but for ID and name (S11).
func TestPublicNeverTellsWhatIsInTheTailnet(t *testing.T) {
	a := newPublic(t)
	const gone = "_acme-challenge.git.foo-bar.example.org"
	if err := a.SetTXT(gone, "token"); err != nil {
		t.Fatal(err)
	}
	if err := a.ClearTXT(gone, "token"); err != nil {
		t.Fatal(err)
	}
	types := []uint16{dns.TypeA, dns.TypeAAAA, dns.TypeTXT, dns.TypeCAA, dns.TypeANY, dns.TypeNS, dns.TypeSOA, dns.TypeDS, dns.TypeCNAME,
		dns.TypeHTTPS, dns.TypeAXFR, dns.TypeTKEY, dns.TypeRRSIG, 0, 65280}
	for hidden, nobody := range map[string]string{
		"printer.foo-bar.example.org": "qqqqqqq.foo-bar.example.org",
		"db.foo-bar.example.org":      "qq.foo-bar.example.org",
		"x.db.foo-bar.example.org":    "q.qq.foo-bar.example.org",
		"git.foo-bar.example.org":     "qqq.foo-bar.example.org",
		gone:                          "qqqqqqqqqqqqqqq.git.foo-bar.example.org",
		"_acme-challenge.printer.foo-bar.example.org": "_acme-challenge.qqqqqqq.foo-bar.example.org",
		"ssh.nas.foo-bar.example.org":                 "qqq.nas.foo-bar.example.org",
	} {
		for _, qtype := range types {
			for _, edit := range []func(*dns.Msg){func(*dns.Msg) {}, withEDNS(1232, true)} {
				for _, via := range []Transport{UDP, TCP} {
					replies := [2][]byte{}
					for i, name := range []string{hidden, nobody} {
						m := questionFor(name, qtype, edit)
						m.Id = 1
						// Another network each time: else the limit cuts them all.
						reply := a.Answer(pack(t, m), netip.AddrFrom4([4]byte{192, 0, byte(qtype), 7}), via)
						wire, err := wireName(name)
						if err != nil {
							t.Fatal(err)
						}
						replies[i] = bytes.Replace(reply, wire, make([]byte, len(wire)), 1)
					}
					if !bytes.Equal(replies[0], replies[1]) {
						t.Fatalf("%s, type %d: %x\n%s: %x", hidden, qtype, replies[0], nobody, replies[1])
					}
					if qtype == dns.TypeA && replies[0][3]&rcodeMask != dns.RcodeNameError {
						t.Errorf("%s: rcode %d, want NXDOMAIN", hidden, replies[0][3]&rcodeMask)
					}
				}
			}
		}
	}
}

// TestPublicRefusesTransfersUpdatesAndNotifies tries them over both transports (S11).
func TestPublicRefusesTransfersUpdatesAndNotifies(t *testing.T) {
	a := newPublic(t)
	zone := dns.Fqdn(publicZone)
	update := new(dns.Msg).SetUpdate(zone)
	update.Insert(rr(t, "evil.foo-bar.example.org. 60 A 192.0.2.66"))
	bare := new(dns.Msg).SetNotify(zone)
	bare.Question = nil
	for name, m := range map[string]*dns.Msg{
		"AXFR": new(dns.Msg).SetAxfr(zone), "IXFR": new(dns.Msg).SetIxfr(zone, 1, "ns."+zone, "h."+zone), "UPDATE": update,
		"NOTIFY": new(dns.Msg).SetNotify(zone), "NOTIFY without a question": bare, "AXFR of a name": new(dns.Msg).SetAxfr("photos." + zone),
	} {
		for _, via := range []Transport{UDP, TCP} {
			before := a.Stats().Serial
			got := askPublic(t, a, m, via)
			if got.Rcode != dns.RcodeRefused || len(got.Answer)+len(got.Ns) > 0 || got.Opcode != m.Opcode || got.Id != m.Id {
				t.Errorf("%s: %s", name, got)
			}
			if a.Stats().Serial != before {
				t.Errorf("%s changed the zone", name)
			}
		}
	}
	if got := askPublic(t, a, questionFor("evil."+publicZone, dns.TypeA), UDP); got.Rcode != dns.RcodeNameError {
		t.Errorf("the update was taken: %s", got)
	}
}

func TestPublicTellsNothingOfItself(t *testing.T) {
	a := newPublic(t)
	for _, name := range []string{"version.bind", "version.server", "hostname.bind", "id.server", "authors.bind", publicZone} {
		for _, class := range []uint16{dns.ClassCHAOS, dns.ClassHESIOD, dns.ClassANY, dns.ClassNONE} {
			m := questionFor(name, dns.TypeTXT)
			m.Question[0].Qclass = class
			if got := askPublic(t, a, m, UDP); shown(got) != "REFUSED | | |" {
				t.Errorf("%s, class %d: %s", name, class, shown(got))
			}
		}
	}
	m := questionFor("photos."+publicZone, dns.TypeA, withEDNS(1232, false))
	opt := m.IsEdns0()
	opt.Option = append(opt.Option, &dns.EDNS0_NSID{Code: dns.EDNS0NSID}, &dns.EDNS0_EXPIRE{Code: dns.EDNS0EXPIRE},
		&dns.EDNS0_SUBNET{Code: dns.EDNS0SUBNET, Family: 1, SourceNetmask: 24, Address: net.IPv4(192, 0, 2, 0)}, &dns.EDNS0_PADDING{Padding: make([]byte, 50)})
	if got := askPublic(t, a, m, UDP).IsEdns0(); got == nil || len(got.Option) != 0 {
		t.Errorf("options in the answer: %v", got)
	}
}

func TestPublicRepliesToBadQueries(t *testing.T) {
	a := newPublic(t)
	good := query(t, "photos."+publicZone, dns.TypeA)
	edit := func(f func([]byte) []byte) []byte { return f(bytes.Clone(good)) }
	cookies := func(n int) []byte {
		m := questionFor("photos."+publicZone, dns.TypeA, withEDNS(1232, false))
		m.IsEdns0().Option = []dns.EDNS0{&dns.EDNS0_COOKIE{Code: dns.EDNS0COOKIE, Cookie: strings.Repeat("ab", n)}}
		return pack(t, m)
	}
	for name, row := range map[string]struct {
		msg  []byte
		want int // -1: silence
	}{
		"a response":           {edit(func(b []byte) []byte { b[2] |= 0x80; return b }), -1},
		"a header cut short":   {good[:11], -1},
		"nothing":              {nil, -1},
		"no question":          {edit(func(b []byte) []byte { b[5] = 0; return b[:headerSize] }), dns.RcodeFormatError},
		"two questions":        {edit(func(b []byte) []byte { b[5] = 2; return append(b, b[headerSize:]...) }), dns.RcodeFormatError},
		"a pointer as name":    {edit(func(b []byte) []byte { b[headerSize] = 0xc0; return b }), dns.RcodeFormatError},
		"a record cut short":   {edit(func(b []byte) []byte { b[11] = 1; return append(b, 0, 0) }), dns.RcodeFormatError},
		"STATUS":               {edit(func(b []byte) []byte { b[2] = 2 << 3; return b }), dns.RcodeNotImplemented},
		"DSO":                  {edit(func(b []byte) []byte { b[2] = 6 << 3; return b }), dns.RcodeNotImplemented},
		"an EDNS of tomorrow":  {pack(t, questionFor("photos."+publicZone, dns.TypeA, withEDNS(1232, false), func(m *dns.Msg) { m.IsEdns0().SetVersion(1) })), dns.RcodeBadVers},
		"half a client cookie": {cookies(4), dns.RcodeFormatError},
		"a cookie of 9 octets": {cookies(9), dns.RcodeFormatError},
		"one of 41":            {cookies(41), dns.RcodeFormatError},
		"one of 8":             {cookies(8), dns.RcodeSuccess},
		"one of 40":            {cookies(40), dns.RcodeSuccess},
	} {
		t.Run(name, func(t *testing.T) {
			for _, via := range []Transport{UDP, TCP} {
				reply := a.Answer(row.msg, somebody(), via)
				if (reply == nil) != (row.want < 0) {
					t.Fatalf("got reply %x", reply)
				}
				if reply == nil {
					continue
				}
				checkReply(t, row.msg, reply, via)
				var m dns.Msg
				if err := m.Unpack(reply); err != nil || m.Rcode != row.want {
					t.Errorf("got %s (%v), want %s", dns.RcodeToString[m.Rcode], err, dns.RcodeToString[row.want])
				}
			}
		})
	}
}

func TestPublicKeepsTheCaseOfTheQuestion(t *testing.T) {
	a := newPublic(t)
	for _, name := range []string{"pHoToS.FOO-bar.example.ORG.", "aNy.WILD.fOO-bar.example.ORG.", "nO.FOO-bar.eXample.ORG.", "FOO-bar.eXample.ORG."} {
		got := askPublic(t, a, questionFor(name, dns.TypeNS), UDP)
		got.Answer = append(got.Answer, askPublic(t, a, questionFor(name, dns.TypeA), UDP).Answer...)
		if got.Question[0].Name != name {
			t.Errorf("question %s, want %s", got.Question[0].Name, name)
		}
		for _, rr := range append(got.Answer, got.Ns...) {
			if !strings.HasSuffix(name, rr.Header().Name) {
				t.Errorf("%s: owner %s", name, rr.Header().Name)
			}
		}
	}
}

func TestPublicAnswersFitTheClient(t *testing.T) {
	var long []dns.RR
	for i := range 12 {
		long = append(long, rr(t, "long.foo-bar.example.org. 60 TXT "+strings.Repeat(string(rune('a'+i)), 180))...)
	}
	long = append(long, rr(t, "short.foo-bar.example.org. 60 TXT "+strings.Repeat("x", 250)+" "+strings.Repeat("y", 240))...)
	a := newPublic(t, func(c *AuthorityConfig) { c.View.Records = append(c.View.Records, long...) })
	cookie := func(m *dns.Msg) {
		m.IsEdns0().Option = []dns.EDNS0{&dns.EDNS0_COOKIE{Code: dns.EDNS0COOKIE, Cookie: "0123456789abcdef"}}
	}
	for name, row := range map[string]struct {
		qname string
		edit  []func(*dns.Msg)
		via   Transport
		limit int
		cut   bool
	}{
		"no EDNS":                   {"long", nil, UDP, 512, true},
		"no EDNS, 540 octets":       {"short", nil, UDP, 512, true},
		"EDNS of too little":        {"long", []func(*dns.Msg){withEDNS(100, false)}, UDP, 512, true},
		"EDNS of more than we send": {"long", []func(*dns.Msg){withEDNS(4096, false)}, UDP, 1232, true},
		"with a cookie":             {"long", []func(*dns.Msg){withEDNS(4096, false), cookie}, UDP, 1232, true},
		"EDNS that is enough":       {"short", []func(*dns.Msg){withEDNS(1232, false), cookie}, UDP, 1232, false},
		"TCP":                       {"long", nil, TCP, dns.MaxMsgSize, false},
		"TCP with EDNS":             {"long", []func(*dns.Msg){withEDNS(512, false), cookie}, TCP, dns.MaxMsgSize, false},
	} {
		t.Run(name, func(t *testing.T) {
			m := questionFor(row.qname+"."+publicZone, dns.TypeTXT, row.edit...)
			reply := a.Answer(pack(t, m), somebody(), row.via)
			var got dns.Msg
			if err := got.Unpack(reply); err != nil || len(reply) > row.limit || got.Truncated != row.cut {
				t.Errorf("%d octets (%d at most), truncated %t, %v", len(reply), row.limit, got.Truncated, err)
			}
			if opt := got.IsEdns0(); (opt != nil) != (m.IsEdns0() != nil) || len(row.edit) > 1 && len(opt.Option) != 1 {
				t.Errorf("OPT %v", opt)
			}
		})
	}
}

// serving runs an Authority on loopback ports until the test ends.
func serving(t testing.TB, a *Authority) netip.AddrPort {
	t.Helper()
	pc, ln := listenBoth(t)
	run(t, func(ctx context.Context) error { return a.ServeUDP(ctx, pc.(*net.UDPConn)) })
	run(t, func(ctx context.Context) error { return a.ServeTCP(ctx, ln) })
	return netip.MustParseAddrPort(pc.LocalAddr().String())
}

func TestPublicServesSockets(t *testing.T) {
	a := newPublic(t)
	addr := serving(t, a)
	for _, network := range []string{"udp", "tcp"} {
		c := dns.Client{Net: network, Timeout: 10 * time.Second}
		for range 3 {
			m := questionFor("photos."+publicZone, dns.TypeA, withEDNS(1232, false))
			got, _, err := c.Exchange(m, addr.String())
			if err != nil {
				t.Fatal(err)
			}
			wantA(t, got, "203.0.113.5")
		}
	}
	if s := a.Stats(); s.Answered != 6 || s.TCP.Accepted != 3 || s.Dropped != 0 {
		t.Errorf("stats %+v", s)
	}
}

// TestACookieLearntOverTCPCountsOverUDP needs the client's address on both ways.
func TestACookieLearntOverTCPCountsOverUDP(t *testing.T) {
	a := newPublic(t)
	a.limiter.burst = 0
	addr := serving(t, a).String()
	m := questionFor("photos."+publicZone, dns.TypeA, withCookie([]byte("clientco")))
	for i, network := range []string{"tcp", "udp", "tcp"} {
		got, _, err := (&dns.Client{Net: network, Timeout: 10 * time.Second}).Exchange(m, addr)
		if err != nil || got.Truncated || a.Stats().Verified != uint64(i) {
			t.Fatalf("over %s: %v, %d verified: %s", network, err, a.Stats().Verified, got)
		}
		wantA(t, got, "203.0.113.5")
		m.IsEdns0().Option = got.IsEdns0().Option
	}
}

func TestPublicKnowsWhoAsks(t *testing.T) {
	for _, ip := range []string{"127.0.0.1", "::1"} {
		pc, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(netip.AddrPortFrom(netip.MustParseAddr(ip), 0)))
		if err != nil {
			t.Logf("no %s here: %v", ip, err)
			continue
		}
		t.Cleanup(func() { _ = pc.Close() })
		client, err := net.DialUDP("udp", nil, pc.LocalAddr().(*net.UDPAddr))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = client.Close() })
		send(t, client, []byte("hello"))
		c, err := newUDPConn(pc)
		if err != nil {
			t.Fatal(err)
		}
		in := newReceiver(64)
		if n, err := in.recv(c); n != 1 || err != nil {
			t.Fatal(n, err)
		}
		if got, want := in.peer(0).source(), client.LocalAddr().(*net.UDPAddr).AddrPort(); got != want {
			t.Errorf("got %s, want %s", got, want)
		}
	}
}

func TestPublicCountsConnectionsByNetwork(t *testing.T) {
	for _, row := range [][3]string{
		{"198.51.100.7", "198.51.100.8", "apart"},
		{"2001:db8:0:1::1", "2001:db8:0:ff::2", "together"},
		{"2001:db8:0:1::1", "2001:db8:0:100::1", "apart"},
	} {
		same := network(netip.MustParseAddr(row[0])) == network(netip.MustParseAddr(row[1]))
		if same != (row[2] == "together") {
			t.Errorf("%s and %s are counted together: %t", row[0], row[1], same)
		}
	}
	if got := newPublic(t).tcp.limits.PerClient; got != defaultPerNetwork {
		t.Errorf("%d connections, want %d", got, defaultPerNetwork)
	}
}

// TestPublicAnswersAllocateNothing takes the paths that a flood takes.
func TestPublicAnswersAllocateNothing(t *testing.T) {
	a := newPublic(t, func(c *AuthorityConfig) { c.Rate = maxRate })
	withCookie := func(m *dns.Msg) {
		m.SetEdns0(1232, true)
		m.IsEdns0().Option = []dns.EDNS0{&dns.EDNS0_COOKIE{Code: dns.EDNS0COOKIE, Cookie: "0123456789abcdef"}}
	}
	w := &authorityWorker{a: a}
	buf := make([]byte, 0, authorityBuffer)
	for name, m := range map[string]*dns.Msg{
		"an answer": questionFor("photos."+publicZone, dns.TypeA), "with a cookie": questionFor("photos."+publicZone, dns.TypeA, withCookie),
		"NXDOMAIN": questionFor("no."+publicZone, dns.TypeA), "NS and glue": questionFor(publicZone, dns.TypeNS, withCookie),
		"elsewhere": questionFor("example.com", dns.TypeA), "version": questionFor("version.bind", dns.TypeTXT, func(m *dns.Msg) { m.Question[0].Qclass = dns.ClassCHAOS }),
	} {
		msg, now := pack(t, m), time.Now()
		if n := testing.AllocsPerRun(1000, func() { w.answer(append(buf, msg...), somebody(), UDP, now) }); n != 0 {
			t.Errorf("%s: %v allocations", name, n)
		}
	}
}

func BenchmarkAuthority(b *testing.B) {
	for name, cookie := range map[string]bool{"plain": false, "cookie": true} {
		b.Run(name, func(b *testing.B) {
			a := newPublic(b, func(c *AuthorityConfig) { c.Rate = maxRate })
			m := questionFor("photos."+publicZone, dns.TypeA, withEDNS(1232, true))
			if cookie {
				m.IsEdns0().Option = []dns.EDNS0{&dns.EDNS0_COOKIE{Code: dns.EDNS0COOKIE, Cookie: "0123456789abcdef"}}
				m.IsEdns0().Option = askPublic(b, a, m, UDP).IsEdns0().Option
			}
			w, msg, buf, now := &authorityWorker{a: a}, pack(b, m), make([]byte, 0, authorityBuffer), time.Now()
			b.ReportAllocs()
			for b.Loop() {
				w.answer(append(buf, msg...), somebody(), UDP, now)
			}
		})
	}
}

// FuzzAuthority sends anything at all, from a network that still may be answered and from one that may not.
func FuzzAuthority(f *testing.F) {
	open := newPublic(f, func(c *AuthorityConfig) { c.Rate = maxRate })
	shut := newPublic(f)
	shut.limiter.burst = 0
	for _, name := range []string{publicZone, "photos." + publicZone, "no." + publicZone, "x.wild." + publicZone, "away." + publicZone, "example.org", "."} {
		for _, qtype := range []uint16{dns.TypeA, dns.TypeNS, dns.TypeANY, dns.TypeCAA, dns.TypeAXFR} {
			f.Add(query(f, name, qtype), false)
			m := questionFor(name, qtype, withEDNS(700, true))
			m.IsEdns0().Option = []dns.EDNS0{&dns.EDNS0_NSID{Code: dns.EDNS0NSID}, &dns.EDNS0_COOKIE{Code: dns.EDNS0COOKIE, Cookie: "2464c4abcf10c957010000005cf79f111f8130c3eee29480"}}
			f.Add(pack(f, m), true)
		}
	}
	f.Add(pack(f, new(dns.Msg).SetNotify(dns.Fqdn(publicZone))), false)
	f.Add(pack(f, new(dns.Msg).SetUpdate(dns.Fqdn(publicZone))), true)
	f.Fuzz(func(t *testing.T, msg []byte, tcp bool) {
		via := UDP
		if tcp {
			via = TCP
		}
		sent := slices.Clone(msg)
		reply, cut := open.Answer(msg, somebody(), via), shut.Answer(msg, somebody(), UDP)
		if !bytes.Equal(msg, sent) {
			t.Error("the query was written to")
		}
		if silent := len(msg) < headerSize || msg[2]&(flagQR>>8) != 0; silent != (reply == nil) || silent != (cut == nil) {
			t.Fatalf("got replies %x and %x to %x", reply, cut, msg)
		}
		if reply == nil {
			return
		}
		checkReply(t, msg, reply, via)
		checkReply(t, msg, cut, UDP)
		if via == UDP && len(reply) > advertisedSize {
			t.Errorf("a datagram of %d octets", len(reply))
		}
		if reply[3]&(flagRA&0xff) != 0 || cut[3]&(flagRA&0xff) != 0 {
			t.Error("recursion is offered")
		}
		// Who is not known to be where the query says gets no more than was sent, and the rest of the cookie.
		if len(cut) > len(msg)+serverCookieSize {
			t.Errorf("%d octets for %d: %x", len(cut), len(msg), cut)
		}
		if binary.BigEndian.Uint16(cut[6:])+binary.BigEndian.Uint16(cut[8:]) != 0 {
			t.Errorf("records over the limit: %x", cut)
		}
	})
}

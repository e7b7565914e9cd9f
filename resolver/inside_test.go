package resolver

import (
	"net/netip"
	"testing"

	"github.com/miekg/dns"
)

func TestAddressesThatPointInsideAreFound(t *testing.T) {
	refuse := []netip.Prefix{netip.MustParsePrefix("100.64.0.0/20"), netip.MustParsePrefix("fd7a:115c:a1e0::/48")}
	tests := map[string]struct {
		lines   []string
		want    string // what is found; empty: nothing
		private string // what is found if private ranges are refused too
	}{
		"a public address":               {[]string{"a. 1 A 192.0.2.1", "a. 1 AAAA 2001:db8::1"}, "", ""},
		"no address":                     {[]string{"a. 1 TXT 127.0.0.1"}, "", ""},
		"loopback":                       {[]string{"a. 1 A 192.0.2.1", "a. 1 A 127.99.0.1"}, "127.99.0.1", "127.99.0.1"},
		"loopback, v6":                   {[]string{"a. 1 AAAA ::1"}, "::1", "::1"},
		"unspecified":                    {[]string{"a. 1 A 0.0.0.0"}, "0.0.0.0", "0.0.0.0"},
		"this network":                   {[]string{"a. 1 A 0.1.2.3"}, "0.1.2.3", "0.1.2.3"},
		"unspecified, v6":                {[]string{"a. 1 AAAA ::"}, "::", "::"},
		"the tailnet":                    {[]string{"a. 1 A 100.64.15.255"}, "100.64.15.255", "100.64.15.255"},
		"beside the tailnet":             {[]string{"a. 1 A 100.64.16.0"}, "", "100.64.16.0"},
		"the tailnet, v6":                {[]string{"a. 1 AAAA fd7a:115c:a1e0::7"}, "fd7a:115c:a1e0::7", "fd7a:115c:a1e0::7"},
		"shared space":                   {[]string{"a. 1 A 100.127.255.255"}, "", "100.127.255.255"},
		"beside shared space":            {[]string{"a. 1 A 100.128.0.0", "a. 1 A 100.63.255.255"}, "", ""},
		"ten":                            {[]string{"a. 1 A 10.1.2.3"}, "", "10.1.2.3"},
		"172.16":                         {[]string{"a. 1 A 172.31.255.255"}, "", "172.31.255.255"},
		"beside 172.16":                  {[]string{"a. 1 A 172.32.0.0"}, "", ""},
		"192.168":                        {[]string{"a. 1 A 192.168.0.1"}, "", "192.168.0.1"},
		"link-local":                     {[]string{"a. 1 A 169.254.169.254"}, "", "169.254.169.254"},
		"link-local, v6":                 {[]string{"a. 1 AAAA fe80::1"}, "", "fe80::1"},
		"unique local":                   {[]string{"a. 1 AAAA fd00::1"}, "", "fd00::1"},
		"mapped loopback":                {[]string{"a. 1 AAAA ::ffff:127.0.0.1"}, "::ffff:127.0.0.1", "::ffff:127.0.0.1"},
		"mapped tailnet":                 {[]string{"a. 1 AAAA ::ffff:100.64.0.1"}, "::ffff:100.64.0.1", "::ffff:100.64.0.1"},
		"mapped private":                 {[]string{"a. 1 AAAA ::ffff:10.0.0.1"}, "", "::ffff:10.0.0.1"},
		"mapped public":                  {[]string{"a. 1 AAAA ::ffff:192.0.2.1"}, "", ""},
		"compatible":                     {[]string{"a. 1 AAAA ::100.64.0.1"}, "::6440:1", "::6440:1"},
		"NAT64":                          {[]string{"a. 1 AAAA 64:ff9b::127.0.0.1"}, "64:ff9b::7f00:1", "64:ff9b::7f00:1"},
		"NAT64 to the tailnet":           {[]string{"a. 1 AAAA 64:ff9b::100.64.0.1"}, "64:ff9b::6440:1", "64:ff9b::6440:1"},
		"NAT64 to a public address":      {[]string{"a. 1 AAAA 64:ff9b::192.0.2.1"}, "", ""},
		"6to4":                           {[]string{"a. 1 AAAA 2002:7f00:1::1"}, "2002:7f00:1::1", "2002:7f00:1::1"},
		"6to4 from a public address":     {[]string{"a. 1 AAAA 2002:c000:201::1"}, "", ""},
		"behind an alias":                {[]string{"a. 1 CNAME b.", "b. 1 A 127.0.0.1"}, "127.0.0.1", "127.0.0.1"},
		"an additional record":           {[]string{"a. 1 MX 1 b.", "|", "|", "OPT", "b. 1 A 127.0.0.1"}, "127.0.0.1", "127.0.0.1"},
		"glue of the authority section":  {[]string{"a. 1 A 192.0.2.1", "|", "b. 1 A 127.0.0.1"}, "", ""},
		"a hint":                         {[]string{`a. 1 HTTPS 1 . alpn="h2" ipv4hint="192.0.2.1,127.0.0.1"`}, "127.0.0.1", "127.0.0.1"},
		"a v6 hint":                      {[]string{`a. 1 SVCB 1 b.example.net. port="443" ipv6hint="2001:db8::1,::1"`}, "::1", "::1"},
		"public hints":                   {[]string{`a. 1 HTTPS 1 . ipv4hint="192.0.2.1" ipv6hint="2001:db8::1"`}, "", ""},
		"an alias service without hints": {[]string{`a. 1 HTTPS 0 b.example.net.`}, "", ""},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			msg := packed(t, shape(t, "a. ANY", 0, tt.lines...))
			var r response
			if !r.parse(msg) {
				t.Fatal("does not parse")
			}
			for private, want := range map[bool]string{false: tt.want, true: tt.private} {
				addr, bad := r.rebinds(msg, refuse, private)
				if bad != (want != "") || bad && addr != netip.MustParseAddr(want) {
					t.Errorf("private %t: got %s, %t; want %q", private, addr, bad, want)
				}
			}
		})
	}
}

func TestOddHintsDoNotHideAnAddress(t *testing.T) {
	// ipv4hint twice, and with a tail of three octets: clients may read it their own way.
	msg := message(1, 0, 0, record("\xc0\x0c", dns.TypeHTTPS, "\x00\x01\x00\x00\x04\x00\x04\xc0\x00\x02\x01\x00\x04\x00\x07\x7f\x00\x00\x01abc")...)
	var r response
	if !r.parse(msg) {
		t.Fatal("does not parse")
	}
	if addr, bad := r.rebinds(msg, nil, false); !bad || addr.String() != "127.0.0.1" {
		t.Errorf("got %s, %t; want 127.0.0.1", addr, bad)
	}
}

func BenchmarkRebinds(b *testing.B) {
	refuse := []netip.Prefix{netip.MustParsePrefix("100.64.0.0/10"), netip.MustParsePrefix("fd7a:115c:a1e0::/48")}
	s := shapes["two addresses, OPT"]
	msg := packed(b, shape(b, s.question, s.rcode, s.lines...))
	r := new(response)
	r.parse(msg)
	b.ReportAllocs()
	for b.Loop() {
		if _, bad := r.rebinds(msg, refuse, true); bad {
			b.Fatal("a public address is refused")
		}
	}
}

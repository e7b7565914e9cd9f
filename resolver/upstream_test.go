package resolver

import (
	"errors"
	"net/netip"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
)

func TestParseUpstreamUnderstandsEverySpelling(t *testing.T) {
	type want struct {
		kind       upstreamKind
		addr       string // of the first known address, with port
		serverName string
		url        string // DoH only
		canonical  string // empty: as given
	}
	tests := []struct {
		name, in string
		want     want
	}{
		{"IPv4 address", "192.0.2.1", want{upstreamUDP, "192.0.2.1:53", "192.0.2.1", "", ""}},
		{"IPv4 with port", "192.0.2.1:5353", want{upstreamUDP, "192.0.2.1:5353", "192.0.2.1", "", ""}},
		{"default port spelt out", "192.0.2.1:53", want{upstreamUDP, "192.0.2.1:53", "192.0.2.1", "", "192.0.2.1"}},
		{"IPv6 with brackets and port", "[2001:db8::1]:53", want{upstreamUDP, "[2001:db8::1]:53", "2001:db8::1", "", "2001:db8::1"}},
		{"IPv6 bare", "2001:DB8:0::1", want{upstreamUDP, "[2001:db8::1]:53", "2001:db8::1", "", "2001:db8::1"}},
		{"IPv6 in brackets only", "[2001:db8::1]", want{upstreamUDP, "[2001:db8::1]:53", "2001:db8::1", "", "2001:db8::1"}},
		{"link-local with its link", "fe80::1%eth0", want{upstreamUDP, "[fe80::1%eth0]:53", "fe80::1", "", ""}},
		{"link-local with port", "[fe80::1%eth0.7]:5353", want{upstreamUDP, "[fe80::1%eth0.7]:5353", "fe80::1", "", ""}},
		{"IPv4 in IPv6", "::ffff:192.0.2.1", want{upstreamUDP, "192.0.2.1:53", "192.0.2.1", "", "192.0.2.1"}},
		{"loopback", "127.0.0.1:5335", want{upstreamUDP, "127.0.0.1:5335", "127.0.0.1", "", ""}},
		{"udp scheme", "udp://192.0.2.1", want{upstreamUDP, "192.0.2.1:53", "192.0.2.1", "", "192.0.2.1"}},
		{"scheme in capitals", "TCP://192.0.2.1:53", want{upstreamTCP, "192.0.2.1:53", "192.0.2.1", "", "tcp://192.0.2.1"}},
		{"tcp, IPv6 without brackets", "tcp://2001:db8::1", want{upstreamTCP, "[2001:db8::1]:53", "2001:db8::1", "", "tcp://[2001:db8::1]"}},
		{"DoT by address", "tls://10.9.0.1", want{upstreamTLS, "10.9.0.1:853", "10.9.0.1", "", ""}},
		{"DoT, name pinned", "tls://10.9.0.1#dns.lab", want{upstreamTLS, "10.9.0.1:853", "dns.lab", "", ""}},
		{"DoT, name with final dot and capitals", "tls://10.9.0.1:8853#DNS.lab.", want{upstreamTLS, "10.9.0.1:8853", "dns.lab", "", "tls://10.9.0.1:8853#dns.lab"}},
		{"DoT by name", "tls://dns.lab", want{upstreamTLS, "", "dns.lab", "", ""}},
		{"DoT by name and addresses", "tls://dns.lab#10.9.0.1,10.9.0.2", want{upstreamTLS, "10.9.0.1:853", "dns.lab", "", ""}},
		{"address twice", "tls://dns.lab:99#10.9.0.1,2001:db8::1,10.9.0.1", want{upstreamTLS, "10.9.0.1:99", "dns.lab", "", "tls://dns.lab:99#10.9.0.1,2001:db8::1"}},
		{"DoT, link-local", "tls://[fe80::1%eth0]#dns.lab", want{upstreamTLS, "[fe80::1%eth0]:853", "dns.lab", "", ""}},
		{"DoH by name", "https://dns.lab/dns-query", want{upstreamHTTPS, "", "dns.lab", "https://dns.lab/dns-query", ""}},
		{"DoH, name pinned", "https://10.9.0.1/dns-query#dns.lab", want{upstreamHTTPS, "10.9.0.1:443", "dns.lab", "https://dns.lab/dns-query", ""}},
		{"DoH, addresses", "https://dns.lab/dns-query#10.9.0.1,10.9.0.2", want{upstreamHTTPS, "10.9.0.1:443", "dns.lab", "https://dns.lab/dns-query", ""}},
		{"DoH with query", "https://dns.lab/q?token=a%2Fb", want{upstreamHTTPS, "", "dns.lab", "https://dns.lab/q?token=a%2Fb", ""}},
		{"DoH, URI template", "https://dns.lab/q{?dns}", want{upstreamHTTPS, "", "dns.lab", "https://dns.lab/q", "https://dns.lab/q"}},
		{"DoH without path", "https://dns.lab", want{upstreamHTTPS, "", "dns.lab", "https://dns.lab/dns-query", "https://dns.lab/dns-query"}},
		{"DoH at the root", "https://dns.lab:8443/", want{upstreamHTTPS, "", "dns.lab", "https://dns.lab:8443/", ""}},
		{"DoH by IPv6", "https://[2001:db8::1]:444/dns-query", want{upstreamHTTPS, "[2001:db8::1]:444", "2001:db8::1", "https://[2001:db8::1]:444/dns-query", ""}},
		{"DoH by IPv6, default port", "https://[2001:db8::1]/dns-query", want{upstreamHTTPS, "[2001:db8::1]:443", "2001:db8::1", "https://[2001:db8::1]/dns-query", ""}},
		{"DoH, link escaped as in URLs", "https://[fe80::1%25eth0]/dns-query", want{upstreamHTTPS, "[fe80::1%eth0]:443", "fe80::1", "https://[fe80::1]/dns-query", ""}},
		{"host with underscore", "tls://my_router.lan", want{upstreamTLS, "", "my_router.lan", "", ""}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			u, err := ParseUpstream(tt.in)
			if err != nil {
				t.Fatal(err)
			}
			got := want{kind: u.kind, serverName: u.serverName(), canonical: u.String()}
			if addrs := u.addrs(); len(addrs) > 0 {
				got.addr = netip.AddrPortFrom(addrs[0], u.addr.Port()).String()
			}
			if u.kind == upstreamHTTPS {
				got.url = u.url()
			}
			if tt.want.canonical == "" {
				tt.want.canonical = tt.in
			}
			if diff := cmp.Diff(tt.want, got, cmp.AllowUnexported(want{})); diff != "" {
				t.Errorf("ParseUpstream(%q) (-want +got):\n%s", tt.in, diff)
			}
			if again, err := ParseUpstream(u.String()); again != u {
				t.Errorf("ParseUpstream(%q) = %+v, %v, want %+v", u.String(), again, err, u)
			}
		})
	}
}

func TestParseUpstreamNamesWhatIsWrong(t *testing.T) {
	tests := []struct{ name, in, part, want string }{
		{"empty", "", "host", "there is none"},
		{"no host behind the scheme", "tls://", "host", "there is none"},
		{"scheme unknown", "quic://192.0.2.1", "scheme", "want udp, tcp, tls or https"},
		{"plain host name", "dns.lab", "host", "would have to be resolved first"},
		{"tcp host name", "tcp://dns.lab", "host", "would have to be resolved first"},
		{"nearly an address", "192.0.2.256", "address", "not an IP address"},
		{"nearly an address, encrypted", "tls://10.9.0.1.1", "address", "not an IP address"},
		{"too many colons", "192.0.2.1:53:53", "address", "not an IP address"},
		{"brackets not closed", "[2001:db8::1", "host", "want [IPv6 address]"},
		{"text behind brackets", "[2001:db8::1]53", "host", "want [IPv6 address]"},
		{"IPv4 in brackets", "[192.0.2.1]:53", "host", "want [IPv6 address]"},
		{"port zero", "192.0.2.1:0", "port", "from 1 to 65535"},
		{"port missing", "192.0.2.1:", "port", "from 1 to 65535"},
		{"port too high", "tls://10.9.0.1:65536#dns.lab", "port", "from 1 to 65535"},
		{"port signed", "192.0.2.1:+53", "port", "from 1 to 65535"},
		{"port by name", "192.0.2.1:domain", "port", "from 1 to 65535"},
		{"unspecified", "0.0.0.0", "address", "unspecified"},
		{"unspecified, IPv6", "tls://[::]#dns.lab", "address", "unspecified"},
		{"multicast", "224.0.0.251:5353", "address", "of a group"},
		{"multicast, IPv6", "ff02::fb%eth0", "address", "of a group"},
		{"broadcast", "255.255.255.255", "address", "of a group"},
		{"link-local without link", "fe80::1", "address", "needs its link"},
		{"link with a slash", "tls://[fe80::1%a?b]", "host", "want [IPv6 address]"},
		{"link with a colon", "[fe80::1%a:b]:53", "link", "not a link's name"},
		{"user", "https://me:secret@dns.lab/dns-query", "user", "takes none"},
		{"path without https", "tls://dns.lab/dns-query", "path", "only https:// takes one"},
		{"prefix", "192.0.2.0/24", "path", "only https:// takes one"},
		{"path with a bad escape", "https://dns.lab/%zz", "path", "not the path of a URL"},
		{"path is a template", "https://dns.lab/{user}", "path", "not the path of a URL"},
		{"path that reads as a host", "https://dns.lab//evil", "path", "two slashes"},
		{"name for a plain upstream", "192.0.2.1#dns.lab", "name", "only tls:// and https://"},
		{"nothing behind #", "tls://10.9.0.1#", "name", "host name of the certificate"},
		{"address behind an address", "tls://10.9.0.1#10.9.0.2", "name", "host name of the certificate"},
		{"name behind a name", "tls://dns.lab#other.lab", "address", "parted by commas"},
		{"empty list", "tls://dns.lab#", "address", "parted by commas"},
		{"list ends in a comma", "tls://dns.lab#10.9.0.1,", "address", "parted by commas"},
		{"bootstrap with port", "tls://dns.lab#10.9.0.1:853", "address", "not an IP address"},
		{"bootstrap unspecified", "https://dns.lab/#10.9.0.1,0.0.0.0", "address", "unspecified"},
		{"too many addresses", "tls://dns.lab#10.0.0.1,10.0.0.2,10.0.0.3,10.0.0.4,10.0.0.5,10.0.0.6,10.0.0.7,10.0.0.8,10.0.0.9", "addresses", "more than 8"},
		{"label begins with a dash", "tls://-dns.lab", "host", "neither an address nor a host name"},
		{"empty label", "tls://dns..lab", "host", "neither an address nor a host name"},
		{"label too long", "tls://" + strings.Repeat("a", 64) + ".lab", "host", "neither an address nor a host name"},
		{"name too long", "tls://" + strings.Repeat("a.", 127) + "lab", "host", "neither an address nor a host name"},
		{"other script", "tls://dns.läb", "character", "not allowed"},
		{"space", "192.0.2.1 ", "character", "not allowed"},
		{"line break", "tls://10.9.0.1#dns.lab\nx", "character", "not allowed"},
		{"far too long", "https://dns.lab/" + strings.Repeat("a", maxSpelling), "length", "more than 1024"},
		{"too long once escaped", "https://dns.lab/" + strings.Repeat("^", 900), "path", "too long"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			u, err := ParseUpstream(tt.in)
			var bad *upstreamError
			if !errors.As(err, &bad) || u != (Upstream{}) {
				t.Fatalf("ParseUpstream(%q) = %v, %v, want an error and no upstream", tt.in, u, err)
			}
			if bad.part != tt.part || !strings.Contains(bad.reason, tt.want) {
				t.Errorf("part %q, reason %q, want part %q and %q", bad.part, bad.reason, tt.part, tt.want)
			}
			if strings.Contains(err.Error(), "secret") {
				t.Errorf("error repeats a password: %v", err)
			}
			if bad.Hint() == "" {
				t.Error("no hint")
			}
		})
	}
}

func TestUpstreamErrorNamesTheValue(t *testing.T) {
	_, err := ParseUpstream("192.0.2.1:0")
	want := `reading upstream "192.0.2.1:0": port "0": want a number from 1 to 65535`
	if err == nil || err.Error() != want {
		t.Errorf("got %v, want %s", err, want)
	}
}

func TestUpstreamListsItsBootstrapAddresses(t *testing.T) {
	u, err := ParseUpstream("https://dns.lab/dns-query#10.9.0.1,2001:db8::1")
	if err != nil {
		t.Fatal(err)
	}
	want := []netip.Addr{netip.MustParseAddr("10.9.0.1"), netip.MustParseAddr("2001:db8::1")}
	if diff := cmp.Diff(want, u.addrs(), cmpopts.EquateComparable(netip.Addr{})); diff != "" {
		t.Errorf("addrs (-want +got):\n%s", diff)
	}
}

// Whatever is accepted has a canonical spelling that means the same, and an address or a name to verify.
func FuzzParseUpstream(f *testing.F) {
	for _, s := range []string{
		"192.0.2.1:5353", "[fe80::1%eth0]:53", "tcp://2001:db8::1", "tls://10.9.0.1#dns.lab", "tls://dns.lab#10.9.0.1,::1",
		"https://dns.lab/dns-query{?dns}#10.9.0.1", "https://[fe80::1%25eth0]:444/a%2Fb?c=d^e#x", "https://u:p@h/", "::ffff:1.2.3.4%x",
	} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		u, err := ParseUpstream(s)
		if err != nil {
			if err.Error() == "" || u != (Upstream{}) {
				t.Fatalf("ParseUpstream(%q) = %+v, %q", s, u, err)
			}
			return
		}
		again, err := ParseUpstream(u.String())
		if err != nil || again != u || again.String() != u.String() {
			t.Fatalf("%q reads as %+v, spelt %q, which reads as %+v, %v", s, u, u, again, err)
		}
		if u.addr.Port() == 0 || u.serverName() == "" || len(u.addrs()) > maxBootstrap {
			t.Fatalf("%q reads as %+v", s, u)
		}
		if !u.kind.encrypted() && !u.addr.Addr().IsValid() {
			t.Fatalf("%q is plain and has no address", s)
		}
	})
}

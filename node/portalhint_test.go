package node

import (
	"net/url"
	"strings"
	"testing"
	"time"
)

func TestPortalAddressesAreOfTheWebAndPrintable(t *testing.T) {
	for _, good := range []string{"https://portal.example/", "http://10.0.0.1:8080/login?id=1#a", "https://[2001:db8::1]/x", "https://portal.example/\x00"} {
		if got, ok := portalURI(good); !ok || got != strings.TrimRight(good, "\x00") {
			t.Errorf("%q: got %q, %t; want it", good, got, ok)
		}
	}
	for _, bad := range []string{
		"", "portal.example", "//portal.example/", "http://", "http:///login", "ftp://portal.example/", "javascript:alert(1)", "file:///etc/passwd",
		"urn:ietf:params:capport:unrestricted", "http://user:pass@portal.example/", "http://portal.example/\x1b[2J", "http://portal.example/\nproblem",
		"http://pörtal.example/", "http://portal.example/\"", "http://portal.example/" + strings.Repeat("x", maxPortalURI), "http://a b/",
	} {
		if got, ok := portalURI(bad); ok {
			t.Errorf("%q: got %q, want nothing", bad, got)
		}
	}
}

func TestNetworkdTellsThePortal(t *testing.T) {
	tests := []struct{ name, data, uri string }{
		{"a lease", "# This is private data. Do not parse.\nADDRESS=10.0.0.7\nCAPTIVE_PORTAL=https://portal.example/api\nDNS=10.0.0.1\n", "https://portal.example/api"},
		{"quoted", "CAPTIVE_PORTAL=\"https://portal.example/\"\n", "https://portal.example/"},
		{"none", "ADDRESS=10.0.0.7\n", ""},
		{"empty", "CAPTIVE_PORTAL=\n", ""},
		{"cut off", "ADDRESS=10.0.0.7\nCAPTIVE_POR", ""},
		{"no portal, says RFC 8910", "CAPTIVE_PORTAL=urn:ietf:params:capport:unrestricted\n", ""},
		{"another name that ends so", "NO_CAPTIVE_PORTAL=https://portal.example/\n", ""},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) { wantHint(t, parseNetworkd([]byte(tt.data)), tt.uri) })
	}
}

func wantHint(t *testing.T, got portalHint, uri string) {
	t.Helper()
	if got.uri != uri || got.announced != (uri != "") {
		t.Errorf("got %+v, want %q", got, uri)
	}
}

func TestDhclientTellsThePortal(t *testing.T) {
	now := time.Date(2026, 11, 25, 12, 0, 0, 0, time.UTC)
	lease := func(lines ...string) string {
		return "lease {\n  interface \"wlan0\";\n  fixed-address 10.0.0.7;\n  " + strings.Join(lines, "\n  ") + "\n}\n"
	}
	const fresh, old = "expire 3 2026/11/25 14:00:00;", "expire 3 2026/11/25 11:00:00;"
	tests := []struct{ name, data, uri string }{
		{"a new version's name", lease(`option v4-captive-portal "https://portal.example/";`, fresh), "https://portal.example/"},
		{"an old version's name", lease(`option default-url "https://portal.example/";`, fresh), "https://portal.example/"},
		{"by number", lease(`option unknown-114 68:74:74:70:3a:2f:2f:61:2f;`, fresh), "http://a/"},
		{"by number, printable", lease(`option unknown-114 "http://a/";`, fresh), "http://a/"},
		{"without an end", lease(`option default-url "http://a/";`), "http://a/"},
		{"that lasts for ever", lease(`option default-url "http://a/";`, "expire never;"), "http://a/"},
		{"expired", lease(`option default-url "http://a/";`, old), ""},
		{"the last one counts", lease(`option default-url "http://old/";`, fresh) + lease(`option default-url "http://new/";`, fresh), "http://new/"},
		{"the last one has none", lease(`option default-url "http://old/";`, fresh) + lease(fresh), ""},
		{"another link's", strings.ReplaceAll(lease(`option default-url "http://a/";`, fresh), "wlan0", "eth0"), ""},
		{"cut off at the start", `efault-url "http://b/";` + "\n}\n" + lease(`option default-url "http://a/";`, fresh), "http://a/"},
		{"cut off at the end", "lease {\n  interface \"wlan0\";\n  option default-url \"http://a/\";\n", ""},
		{"hex that is none", lease(`option unknown-114 68:zz;`, fresh), ""},
		{"nothing", "", ""},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) { wantHint(t, parseDhclient([]byte(tt.data), "wlan0", now), tt.uri) })
	}
}

func FuzzPortalHint(f *testing.F) {
	f.Add([]byte("CAPTIVE_PORTAL=https://portal.example/api\n"))
	f.Add([]byte("lease {\n  interface \"wlan0\";\n  option v4-captive-portal \"https://portal.example/\";\n  expire 3 2026/11/25 14:00:00;\n}\n"))
	f.Add([]byte("lease {\n  interface \"wlan0\";\n  option unknown-114 68:74:74:70:3a:2f:2f:61;\n}\n"))
	f.Fuzz(func(t *testing.T, data []byte) {
		for _, h := range []portalHint{parseNetworkd(data), parseDhclient(data, "wlan0", time.Unix(0, 0))} {
			if !h.announced {
				if h.uri != "" {
					t.Errorf("%+v: an address of what is not there", h)
				}
				continue
			}
			u, err := url.Parse(h.uri)
			if err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Host == "" || len(h.uri) > maxPortalURI || onOneLine(h.uri) != h.uri {
				t.Errorf("%q is not for showing: %v", h.uri, err)
			}
		}
	})
}

package node

import (
	"bytes"
	"crypto/rand"
	"errors"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// prefixes parses ranges.
func prefixes(words ...string) []netip.Prefix {
	list := make([]netip.Prefix, len(words))
	for i, w := range words {
		list[i] = netip.MustParsePrefix(w)
	}
	return list
}

func TestDrawnRangesOverlapNoRoute(t *testing.T) {
	tests := []struct {
		name  string
		taken []netip.Prefix
		in    string // where the IPv4 range has to lie; empty: nowhere
	}{
		{"an empty machine", nil, "10.0.0.0/8"},
		{"a home network", prefixes("192.168.1.0/24", "fd12:3456:789a::/64", "172.17.0.0/16"), "10.0.0.0/8"},
		{"nearly all of 10", prefixes("10.0.0.0/9", "10.128.0.0/10", "10.192.0.0/11", "10.224.0.0/12", "10.240.0.0/13"), "10.248.0.0/13"},
		{"one host in each but one", allBut("10.77.16.0/20"), "10.77.16.0/20"},
		{"a company's 10", prefixes("10.0.0.0/8"), "172.16.0.0/12"},
		{"a company's 10 and containers", prefixes("10.0.0.0/8", "172.16.0.0/12"), "192.168.0.0/16"},
		{"everything", prefixes("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16"), ""},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			r, err := drawRanges(rand.Reader, tt.taken)
			if tt.in == "" {
				if err == nil || hintOf(err) == "" {
					t.Errorf("got %v, %v; want an error with a hint", r, err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			in := netip.MustParsePrefix(tt.in)
			if !r.valid() || !in.Contains(r.V4.Addr()) || r.V4.Bits() != 20 || r.V6.Bits() != 48 || r.V6.Addr().As16()[0] != 0xfd {
				t.Errorf("got %+v, want a /20 in %s and a /48 of fd00::/8", r, in)
			}
			for _, p := range tt.taken {
				if p.Overlaps(r.V4) || p.Overlaps(r.V6) {
					t.Errorf("%+v overlaps %s", r, p)
				}
			}
		})
	}
}

// allBut is a host in each /20 of 10.0.0.0/8 but one.
func allBut(free string) []netip.Prefix {
	var list []netip.Prefix
	for _, p := range freeRanges(netip.MustParsePrefix("10.0.0.0/8"), nil) {
		if p != netip.MustParsePrefix(free) {
			list = append(list, netip.PrefixFrom(p.Addr().Next(), 32))
		}
	}
	return list
}

func TestDrawnRangesAreSpread(t *testing.T) {
	v4, v6 := map[netip.Prefix]bool{}, map[netip.Prefix]bool{}
	for range 50 {
		r, err := drawRanges(rand.Reader, nil)
		if err != nil {
			t.Fatal(err)
		}
		v4[r.V4], v6[r.V6] = true, true
	}
	if len(v4) < 40 || len(v6) != 50 {
		t.Errorf("50 draws gave %d and %d ranges", len(v4), len(v6))
	}
}

func TestDrawingFailsWithoutRandomness(t *testing.T) {
	if _, err := drawRanges(strings.NewReader(""), nil); err == nil {
		t.Error("no error without any randomness")
	}
	// The same answer again and again, and it is taken.
	stuck := bytes.NewReader(make([]byte, 4096))
	if _, err := drawULA(stuck, prefixes("fd00::/48")); err == nil {
		t.Error("no error with a taken range again and again")
	}
}

func TestRangesAreDrawnOnceAndKept(t *testing.T) {
	path := filepath.Join(t.TempDir(), "state", "ranges.json")
	draws := 0
	draw := func() (drawnRanges, error) { draws++; return drawRanges(rand.Reader, nil) }
	first, err := keptRanges(path, draw)
	if err != nil {
		t.Fatal(err)
	}
	again, err := keptRanges(path, draw)
	if err != nil || again != first || draws != 1 {
		t.Errorf("got %v, %v after %d draws; want %v again", again, err, draws, first)
	}
	for _, tt := range []struct {
		path string
		want os.FileMode
	}{{path, 0o600}, {filepath.Dir(path), 0o700}} {
		if info, err := os.Stat(tt.path); err != nil || info.Mode().Perm() != tt.want {
			t.Errorf("%s: got %v, %v; want mode %o", tt.path, info.Mode(), err, tt.want)
		}
	}
	if left, _ := filepath.Glob(filepath.Join(filepath.Dir(path), ".*")); len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
}

func TestRangesThatCannotBeDrawnAreNotWritten(t *testing.T) {
	path := filepath.Join(t.TempDir(), "ranges.json")
	broken := errors.New("no routes")
	if _, err := keptRanges(path, func() (drawnRanges, error) { return drawnRanges{}, broken }); !errors.Is(err, broken) {
		t.Errorf("got %v, want %v", err, broken)
	}
	if _, err := os.Stat(path); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the file is there: %v", err)
	}
}

func TestSpoiltRangesAreNotDrawnAnew(t *testing.T) {
	// New ones would change this machine's addresses without a word.
	for name, text := range map[string]string{
		"empty": "", "no JSON": "{", "nothing": "{}", "IPv6 alone": `{"v6":"fd00::/48"}`, "public": `{"v4":"8.8.8.0/24","v6":"2001:db8::/48"}`,
		"host bits": `{"v4":"10.0.0.1/20","v6":"fd00::/48"}`, "too small": `{"v4":"10.0.0.0/32","v6":"fd00::/48"}`, "swapped": `{"v4":"fd00::/48","v6":"10.0.0.0/20"}`,
		"long": `{"v4":"10.0.0.0/20","v6":"fd00::/48"}` + strings.Repeat(" ", 5000),
	} {
		t.Run(name, func(t *testing.T) {
			path := writeFileT(t, "ranges.json", text)
			_, err := keptRanges(path, func() (drawnRanges, error) { t.Error("drawn anew"); return drawnRanges{}, nil })
			if err == nil || !strings.Contains(err.Error(), path) {
				t.Errorf("got %v, want an error that names the file", err)
			}
			if got, _ := os.ReadFile(path); string(got) != text {
				t.Error("the file was changed")
			}
		})
	}
}

func TestThisMachinesNetworksAreKnown(t *testing.T) {
	networks, err := knownNetworks()
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range networks {
		if p.Bits() == 0 {
			t.Errorf("%s takes everything", p)
		}
	}
	loopback := netip.MustParseAddr("127.0.0.1")
	for _, p := range networks {
		if p.Contains(loopback) {
			return
		}
	}
	t.Errorf("loopback is not among %v", networks)
}

func TestTailscaleIsKnownByItsLink(t *testing.T) {
	tailscale := link{"tailscale0", prefixes("100.101.102.103/32", "fd7a:115c:a1e0::1/128")}
	utun := link{"utun4", prefixes("100.101.102.103/32", "fd7a:115c:a1e0::1/128")}
	wg := link{"wg0", prefixes("100.64.0.1/10", "fd00::1/48")}
	down := link{"tailscale0", nil}
	tests := []struct {
		name   string
		ranges []netip.Prefix
		links  []link
		want   string
	}{
		{"none", prefixes("100.64.0.0/10"), []link{wg, down}, ""},
		{"Linux", prefixes("fd00::/48", "100.64.0.0/10"), []link{wg, tailscale}, "the range 100.64.0.0/10 is Tailscale's, which runs on tailscale0"},
		{"macOS", prefixes("100.64.0.0/16"), []link{utun}, "the range 100.64.0.0/16 is Tailscale's, which runs on utun4"},
		{"other ranges", prefixes("10.8.0.0/24", "fd7a:115c:a1e0::/48"), []link{tailscale}, ""},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got := tailscaleConflict(tt.ranges, tt.links)
			if !strings.HasPrefix(got, tt.want) || tt.want == "" && got != "" {
				t.Errorf("got %q, want %q", got, tt.want)
			}
		})
	}
}

func TestDefaultMapIsThisHostAlone(t *testing.T) {
	r := drawnRanges{V4: netip.MustParsePrefix("10.77.16.0/20"), V6: netip.MustParsePrefix("fd12:3456:789a::/48")}
	m := defaultMap("Ann's Laptop.lan", "", r)
	if m.Zone() != "mesh.internal" || m.TTL() != defaultTTL || len(m.Nodes()) != 1 {
		t.Fatalf("got %+v", m)
	}
	n := m.Nodes()[0]
	if n.Name != "ann-s-laptop" || n.Addresses[0].String() != "10.77.16.1" || n.Addresses[1].String() != "fd12:3456:789a::1" {
		t.Errorf("got %+v", n)
	}
	if got := len(m.Records()); got != 4 {
		t.Errorf("got %d records, want 4", got)
	}
	if m := defaultMap("x", "Other.Example.", drawnRanges{}); m.Zone() != "other.example" || len(m.Nodes()[0].Addresses) != 0 {
		t.Errorf("without ranges: got %+v", m)
	}
}

func TestAnyHostNameBecomesALabel(t *testing.T) {
	for host, want := range map[string]string{
		"nas": "nas", "NAS": "nas", "nas.lan": "nas", "Jürgen's PC": "xn--jrgen-s-pc-9db", "büro": "xn--bro-hoa", "my_host": "my-host",
		"": "node", ".": "node", "---": "node", "wpad": "node", "LOCALHOST.localdomain": "node", "_x": "x", "日本": "xn--wgv71a",
		strings.Repeat("a", 80): strings.Repeat("a", 63), "a--b": "a--b", "ab--cd": "ab-cd", "xn--\u00fc": "xn--xn--joa", "-edge-": "edge",
		strings.Repeat("ü", 80) + "b": "b",
	} {
		got := hostLabel(host)
		if got != want {
			t.Errorf("%q: got %q, want %q", host, got, want)
		}
		if label, msg := checkLabel(got); msg != "" || label != got {
			t.Errorf("%q: %q is no canonical label: %s", host, got, msg)
		}
	}
}

func TestLabelsAreMadeCanonical(t *testing.T) {
	for in, want := range map[string]string{
		"nas": "nas", "NaS": "nas", "a1-2": "a1-2", "0": "0", "BÜRO": "xn--bro-hoa", "xn--bro-hoa": "xn--bro-hoa", "XN--BRO-HOA": "xn--bro-hoa",
		"xn--ü": "", "ab--ü": "", "straße": "xn--strae-oqa", "": "", "a.b": "", "-a": "", "a-": "", "a_b": "", "_a": "", "a b": "", "ab--c": "", "xn--": "", "xn--a": "", "a\n": "",
		"a。b": "", strings.Repeat("a", 63): strings.Repeat("a", 63), strings.Repeat("a", 64): "", strings.Repeat("ü", 60): "",
	} {
		got, msg := checkLabel(in)
		if msg != "" {
			got = ""
		}
		if got != want || (msg == "") != (want != "") {
			t.Errorf("%q: got %q (%s), want %q", in, got, msg, want)
		}
	}
}

func TestDomainsAreMadeCanonical(t *testing.T) {
	for in, want := range map[string]string{
		"Corp.Example.": "corp.example", "_sip._tcp.example": "_sip._tcp.example", "bücher.example": "xn--bcher-kva.example", "example": "example",
		"": "", ".": "", "a..b": "", ".a": "", "a b.c": "", "*.example": "", strings.Repeat("a.", 127) + "b": "",
	} {
		got, msg := checkDomain(in)
		if got != want || (msg == "") != (want != "") {
			t.Errorf("%q: got %q (%s), want %q", in, got, msg, want)
		}
	}
}

func TestZonesAreNobodyElses(t *testing.T) {
	for zone, ok := range map[string]bool{
		"mesh.internal": true, "internal": true, "home.arpa": true, "x.home.arpa": true, "foo-bar.ts.net": true, "example.org": true, "lan": true, "Büro.example.": true,
		"org": false, "co.uk": false, "github.io": false, "local": false, "a.local": false, "localhost": false, "x.invalid": false, "onion": false, "in-addr.arpa": false, "arpa": false,
		"": false, "a_b.c-": false,
	} {
		if _, msg, _ := checkZone(zone); (msg == "") != ok {
			t.Errorf("%q: got %q, want it accepted: %t", zone, msg, ok)
		}
	}
}

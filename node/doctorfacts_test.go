package node

import (
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"testing"
)

func TestDoctorReadsResolvConf(t *testing.T) {
	path := filepath.Join(t.TempDir(), "resolv.conf")
	const text = "# nameserver 192.0.2.9\nsearch Corp.Example. foo-bar.ts.net\nnameserver 127.0.0.77\nnameserver fe80::1%eth0\nnameserver x\n"
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	got := readConf(path)
	if got.err != nil || len(got.servers) != 2 || got.servers[0] != netip.MustParseAddr("127.0.0.77") {
		t.Errorf("servers %v, %v", got.servers, got.err)
	}
	if want := []string{"corp.example", "foo-bar.ts.net"}; !slices.Equal(got.search, want) {
		t.Errorf("search %v, want %v", got.search, want)
	}
	if got := readConf(path + "x"); got.err == nil {
		t.Error("a missing file is no error")
	}
}

func TestDoctorLooksUpThisMachineFirst(t *testing.T) {
	a, b := []netip.Addr{netip.MustParseAddr("10.0.0.1")}, []netip.Addr{netip.MustParseAddr("10.0.0.2")}
	for name, test := range map[string]struct {
		nodes []nodeStatus
		want  string
	}{
		"itself":               {[]nodeStatus{{Name: "a", Addresses: a}, {Name: "b", Addresses: b, Self: true}}, "b.zone"},
		"itself has no place":  {[]nodeStatus{{Name: "a", Addresses: a}, {Name: "b", Addresses: b}}, "a.zone"},
		"itself has no adress": {[]nodeStatus{{Name: "a", Self: true}, {Name: "b", Addresses: b}}, "b.zone"},
		"nobody":               {nil, ""},
	} {
		t.Run(name, func(t *testing.T) {
			if got := findTarget(Status{Zone: "zone", Nodes: test.nodes}); got.name != test.want {
				t.Errorf("got %q, want %q", got.name, test.want)
			}
		})
	}
}

func TestDoctorReadsGetent(t *testing.T) {
	const out = "10.77.0.2       STREAM nas.foo-bar.ts.net\n10.77.0.2       DGRAM  \n10.77.0.2       RAW    \nfd00::2         STREAM \n\nx y\n"
	want := []netip.Addr{netip.MustParseAddr("10.77.0.2"), netip.MustParseAddr("fd00::2")}
	if got := parseGetent([]byte(out)); !slices.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
}

func TestDoctorReadsWireGuardsFiles(t *testing.T) {
	for name, test := range map[string]struct {
		text string
		want []string
	}{
		"none":          {"[Interface]\nPrivateKey = x\nAddress = 10.0.0.2/32\n", nil},
		"two":           {"[Interface]\nDNS = 10.0.0.1, fd00::1\n", []string{"10.0.0.1", "fd00::1"}},
		"with a domain": {"dns=10.0.0.1,corp.example # ours\n", []string{"10.0.0.1"}},
		"several lines": {"DNS = 10.0.0.1\nDNS = 10.0.0.2\n", []string{"10.0.0.1", "10.0.0.2"}},
		"commented out": {"#DNS = 10.0.0.1\n", nil},
		"domains alone": {"DNS = corp.example\n", nil},
	} {
		t.Run(name, func(t *testing.T) {
			if got := quickServers([]byte(test.text)); !slices.Equal(got, test.want) {
				t.Errorf("got %v, want %v", got, test.want)
			}
		})
	}
}

func FuzzDoctorReads(f *testing.F) {
	for _, s := range []string{"10.77.0.2 STREAM nas\n", "DNS = 10.0.0.1, corp.example\n", "nameserver ::1%lo\n", "=\n", "DNS="} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		for _, addr := range parseGetent(data) {
			if !addr.IsValid() {
				t.Error("getent: no address")
			}
		}
		for _, server := range quickServers(data) {
			if _, err := netip.ParseAddr(server); err != nil {
				t.Errorf("wg-quick: %v", err)
			}
		}
	})
}

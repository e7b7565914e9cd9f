package node

import (
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/net/bpf"
)

func TestBridgesWhoseContainersAreAnswered(t *testing.T) {
	prefixes := func(words ...string) (list []netip.Prefix) {
		for _, w := range words {
			list = append(list, netip.MustParsePrefix(w))
		}
		return list
	}
	veths := []string{"veth", "veth"}
	for name, row := range map[string]struct {
		bridge bridge
		more   []string
		want   string // prefixes; "": it is none
	}{
		"Docker's":                  {bridge{name: "docker0", addrs: prefixes("172.17.0.1/16"), ports: veths}, nil, "172.17.0.0/16"},
		"a network of Docker's":     {bridge{name: "br-0123456789ab", addrs: prefixes("172.18.0.1/16", "fd00::1/64")}, nil, "172.18.0.0/16"},
		"a router's":                {bridge{name: "br-lan", addrs: prefixes("192.168.1.1/24")}, nil, ""},
		"13 digits":                 {bridge{name: "br-0123456789abc", addrs: prefixes("172.18.0.1/16")}, nil, ""},
		"Podman's":                  {bridge{name: "podman0", addrs: prefixes("10.88.0.1/16"), ports: veths}, nil, "10.88.0.0/16"},
		"Podman's with CNI":         {bridge{name: "cni-podman1", addrs: prefixes("10.89.0.1/24")}, nil, "10.89.0.0/24"},
		"k3s's":                     {bridge{name: "cni0", addrs: prefixes("10.42.0.1/24")}, nil, "10.42.0.0/24"},
		"libvirt's":                 {bridge{name: "virbr0", addrs: prefixes("192.168.122.1/24")}, nil, ""},
		"libvirt's, by wish":        {bridge{name: "virbr0", addrs: prefixes("192.168.122.1/24"), ports: []string{"tuntap"}}, []string{"virbr0"}, "192.168.122.0/24"},
		"LXC's with a card in it":   {bridge{name: "lxcbr0", addrs: prefixes("192.168.1.5/24"), ports: []string{"veth", "device"}}, nil, ""},
		"the same, by wish":         {bridge{name: "lxcbr0", addrs: prefixes("192.168.1.5/24"), ports: []string{"device"}}, []string{"lxcbr0"}, "192.168.1.0/24"},
		"one that spans machines":   {bridge{name: "docker0", addrs: prefixes("172.17.0.1/16"), ports: []string{"vxlan"}}, nil, ""},
		"one of everybody":          {bridge{name: "docker0", addrs: prefixes("10.0.0.1/0")}, nil, ""},
		"one without a network":     {bridge{name: "docker0", addrs: prefixes("172.17.0.1/32", "fd00::1/64")}, nil, ""},
		"one with a name like it":   {bridge{name: "xdocker0", addrs: prefixes("172.17.0.1/16")}, nil, ""},
		"one with several, bounded": {bridge{name: "docker0", addrs: prefixes("10.1.0.1/24", "10.2.0.1/24", "10.3.0.1/24", "10.4.0.1/24", "10.5.0.1/24", "10.1.0.2/24")}, nil, "10.1.0.0/24, 10.2.0.0/24, 10.3.0.0/24, 10.4.0.0/24"},
	} {
		var got strings.Builder
		for _, n := range findContainerNets([]bridge{row.bridge}, row.more) {
			got.WriteString(listPrefixes(n.prefixes))
		}
		if got.String() != row.want {
			t.Errorf("%s: got %q, want %q", name, got.String(), row.want)
		}
	}
}

func TestFilterOfEveryBridgeThereMayBeIsOneTheKernelTakes(t *testing.T) {
	var bridges []bridge
	for i := range 2 * maxContainerNets {
		b := bridge{name: fmt.Sprintf("br-%012x", i), index: i + 2}
		for j := range 2 * maxContainerSubnets {
			b.addrs = append(b.addrs, netip.PrefixFrom(netip.AddrFrom4([4]byte{10, byte(i), byte(j), 1}), 24))
		}
		bridges = append(bridges, b)
	}
	const most = 4096 // BPF_MAXINSNS
	program, err := bpf.Assemble(containerFilter(findContainerNets(bridges, nil)))
	if err != nil || len(program) > most {
		t.Errorf("%d instructions, at most %d: %v", len(program), most, err)
	}
	if last := program[len(program)-1]; last.K != filterNothing {
		t.Error("what no bridge takes is let through")
	}
}

func TestEnginesAreKnownByWhatTheyLeave(t *testing.T) {
	for path, want := range map[string]string{
		"/run/docker.sock": "docker", "/usr/bin/podman": "podman", "/run/k3s/containerd/containerd.sock": "k3s", "/usr/bin/dockerless": "",
	} {
		if got := strings.Join(containerEngines(func(p string) bool { return p == path }), " "); got != want {
			t.Errorf("with %s there: got %q, want %q", path, got, want)
		}
	}
}

func TestServiceAddressIsFreeOrTheConfiguredOne(t *testing.T) {
	m := mustParse(t, `
zone: foo-bar.ts.net
ranges: ["fd7a:115c:a1e0::/48", 10.8.0.0/29, 10.9.0.0/24]
nodes:
  a: {addresses: [10.8.0.6]}
  b: {addresses: [10.8.0.4]}
`)
	addr := netip.MustParseAddr
	full := []netip.Addr{addr("10.8.0.5"), addr("10.8.0.3"), addr("10.8.0.2"), addr("10.8.0.1")}
	for name, row := range map[string]struct {
		configured string
		taken      []netip.Addr
		want       string // an error if it is no address
	}{
		"below the broadcast address and a node": {"", nil, "10.8.0.5"},
		"below what the machine has":             {"", full[:1], "10.8.0.3"},
		"none is free":                           {"", full, "no IPv4 range with a free address"},
		"configured":                             {"192.168.7.7", full, "192.168.7.7"},
		"configured, and a node's":               {"10.8.0.4", nil, "the node b has that address"},
	} {
		var configured netip.Addr
		if row.configured != "" {
			configured = addr(row.configured)
		}
		got, err := serviceAddress(configured, m, row.taken)
		if err != nil {
			if !strings.Contains(err.Error(), row.want) || hintOf(err) == "" {
				t.Errorf("%s: %v, want %s and a hint", name, err, row.want)
			}
			continue
		}
		if got.String() != row.want {
			t.Errorf("%s: got %s, want %s", name, got, row.want)
		}
	}
	for a, keeps := range map[string]bool{"10.8.0.5": true, "10.8.0.4": false, "10.9.0.1": true, "10.7.0.1": false} {
		if got := keepsAddress(addr(a), netip.Addr{}, m); got != keeps {
			t.Errorf("%s is kept: %v, want %v", a, got, keeps)
		}
	}
	if keepsAddress(addr("10.8.0.5"), addr("10.8.0.3"), m) || !keepsAddress(addr("10.7.0.1"), addr("10.7.0.1"), m) {
		t.Error("what is configured is not what counts")
	}
}

func TestServiceNoteOfNobodyIsTakenBack(t *testing.T) {
	dir := t.TempDir()
	if got, err := takeServiceBack(dir); err != nil || got.IsValid() {
		t.Errorf("without a note: %v, %v", got, err)
	}
	must(t, noteService(dir, netip.MustParseAddr("192.0.2.254")))
	if got, err := takeServiceBack(dir); err != nil || got.String() != "192.0.2.254" {
		t.Errorf("got %v, %v", got, err) // lo does not have it: what was noted never came to be
	}
	path := filepath.Join(dir, "service-address.json")
	for _, torn := range []string{"", `{"addr`, `{"address":"::1"}`, `[]`} {
		must(t, os.WriteFile(path, []byte(torn), 0o600))
		if _, err := takeServiceBack(dir); err != nil {
			t.Errorf("%q: %v", torn, err)
		}
		if _, err := os.Stat(path); err == nil {
			t.Errorf("%q is left", torn)
		}
	}
}

func TestWhoseContainersAreAnswered(t *testing.T) {
	for name, row := range map[string]struct {
		opt  Options
		edit func(*Config)
		want bool
	}{
		"root":               {Options{Root: true}, func(*Config) {}, true},
		"without root":       {Options{}, func(*Config) {}, false},
		"a first look":       {Options{Root: true, Try: true}, func(*Config) {}, false},
		"dns.os off":         {Options{Root: true}, func(c *Config) { c.DNS.OS = "off" }, false},
		"containers off":     {Options{Root: true}, func(c *Config) { c.DNS.Containers = containersOff }, false},
		"forwarding to them": {Options{Root: true}, func(c *Config) { c.DNS.Containers = containersForward }, true},
	} {
		cfg := DefaultConfig()
		row.edit(&cfg)
		if got := (&Node{cfg: cfg, opt: row.opt}).wantsContainers(); got != row.want {
			t.Errorf("%s: got %v", name, got)
		}
	}
}

func TestServiceAddressIsProtectedAndNeverAsked(t *testing.T) {
	cfg := testConfig()
	cfg.DNS.Service = netip.MustParseAddr("192.168.7.7")
	cfg.DNS.Upstreams = nil
	n, _ := apiNode(t, cfg, &fakeSystem{})
	m, _ := n.tailnet.current()
	if got := n.rebind(m).Refuse; !slices.Contains(got, netip.MustParsePrefix("192.168.7.7/32")) || len(got) != len(m.Ranges())+1 {
		t.Errorf("answers from outside may not hold %v", got)
	}
	n.useBase(baseOf([]string{"192.168.7.7", "192.0.2.53"}))
	if got := n.upstreams(); len(got) != 1 || got[0].Upstream != "192.0.2.53" {
		t.Errorf("asked are %+v", got)
	}
	n.containers.open = &openService{addr: netip.MustParseAddr("10.8.0.9")} // where a new map has it
	n.useBase(baseOf([]string{"10.8.0.9", "192.0.2.54"}))
	if got := n.upstreams(); len(got) != 1 || got[0].Upstream != "192.0.2.54" {
		t.Errorf("asked are %+v", got)
	}
	if got := n.systemConfig().Service; got != netip.MustParseAddr("10.8.0.9") {
		t.Errorf("the machine is told %v", got)
	}
}

func TestContainersKeysAreChecked(t *testing.T) {
	for text, want := range map[string]string{
		"containers: some":            "dns.containers",
		"service: 127.0.0.99":         "dns.service",
		`service: "fd00::1"`:          "dns.service",
		"service: 224.0.0.1":          "dns.service",
		`bridges: [docker0/x]`:        "dns.bridges[0]",
		`bridges: [""]`:               "dns.bridges[0]",
		`bridges: [abcdefghijklmnop]`: "dns.bridges[0]",
		"{containers: forward, service: 10.0.0.9, bridges: [virbr0]}": "",
	} {
		c := loadText(t, "dns:\n  "+text+"\n")
		if strings.HasPrefix(text, "{") {
			c = loadText(t, "dns: "+text+"\n")
		}
		err := c.Validate()
		if got := fmt.Sprint(err); want == "" && err != nil || !strings.Contains(got, want) {
			t.Errorf("%s: %v, want a problem of %q", text, err, want)
		}
	}
}

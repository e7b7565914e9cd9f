package osconfig

import (
	"net/netip"
	"slices"
	"testing"
)

// serversAt are servers at these addresses, on port 53.
func serversAt(words ...string) (list []Server) {
	for _, w := range words {
		list = append(list, Server{AddrPort: netip.AddrPortFrom(netip.MustParseAddr(w), 53)})
	}
	return list
}

func TestWhoIsAskedBesideVPNs(t *testing.T) {
	lan := source{all: true, servers: serversAt("192.0.2.53"), search: []string{"lan.example"}}
	vpn := source{link: "wg0", all: true, servers: serversAt("10.9.0.1"), search: []string{"Corp.test"}}
	with := func(s source, change func(*source)) source { change(&s); return s }
	tests := []struct {
		name    string
		sources []source
		base    []string
		routes  map[string]string
		tunnels int
	}{
		{"none", []source{lan}, []string{"192.0.2.53:53"}, nil, 0},
		{"one that comes last in the list", []source{lan, vpn}, []string{"10.9.0.1:53"}, map[string]string{"lan.example": "192.0.2.53:53"}, 1},
		{"one for its own domains alone", []source{lan, with(vpn, func(s *source) { s.all, s.match = false, []string{"9.10.in-addr.arpa"} })},
			[]string{"192.0.2.53:53"}, map[string]string{"corp.test": "10.9.0.1:53", "9.10.in-addr.arpa": "10.9.0.1:53"}, 1},
		{"one that wants to be the only one", []source{lan, with(vpn, func(s *source) { s.only = true }), with(vpn, func(s *source) { s.link, s.servers = "tun1", serversAt("10.8.0.1") })},
			[]string{"10.9.0.1:53"}, map[string]string{"lan.example": "192.0.2.53:53"}, 2},
		{"two", []source{vpn, with(vpn, func(s *source) { s.link, s.servers = "tun1", serversAt("10.8.0.1") })},
			[]string{"10.9.0.1:53", "10.8.0.1:53"}, map[string]string{"corp.test": "10.9.0.1:53"}, 2},
		{"one without servers", []source{lan, {link: "tun1", all: true, search: []string{"x.example"}}}, []string{"192.0.2.53:53"}, nil, 0},
		{"nothing at all", nil, nil, nil, 0},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			b := combine(tt.sources)
			if got := serverWords(b.Servers); !slices.Equal(got, tt.base) {
				t.Errorf("base %q, want %q", got, tt.base)
			}
			if len(b.Routes) != len(tt.routes) {
				t.Errorf("routes %v, want %v", b.Routes, tt.routes)
			}
			for domain, want := range tt.routes {
				if got := serverWords(b.Routes[domain]); !slices.Equal(got, []string{want}) {
					t.Errorf("%s is asked at %q, want %s", domain, got, want)
				}
			}
			if len(b.tunnels) != tt.tunnels {
				t.Errorf("tunnels %+v, want %d", b.tunnels, tt.tunnels)
			}
		})
	}
}

func TestARecordIsKnownByItsLink(t *testing.T) {
	r := newRig(t)
	for name, kind := range map[string]string{"wg0": "65534", "tun0": "65534", "ppp0": "512", "eth0": "1", "eth0.100": "1", "vpn": "1"} {
		r.write("sys/class/net/"+name+"/type", kind+"\n")
	}
	for record, want := range map[string]string{
		"wg0": "wg0", "tun.wg0": "wg0", "tun0.openvpn": "tun0", "ppp0": "ppp0",
		"eth0": "", "eth0.dhclient": "", "eth0.100": "", "gone": "", "gone.inet": "", "": "", "..": "", "../net/wg0": "",
		"vpn.wg0": "", // about the link that is called vpn
	} {
		if got := r.opt.machine.tunnelOf(record); got != want {
			t.Errorf("%q: got %q, want %q", record, got, want)
		}
	}
}

func TestOpenresolvsOnlyRecordIsTheBase(t *testing.T) {
	r := newRig(t)
	r.program("sbin/resolvconf", `#!/bin/sh
case $1 in
-i) echo wg0 tun0 eth0 meshdns ;;
-l) case $2 in wg0) echo nameserver 10.9.0.1 ;; tun0) echo nameserver 10.8.0.1 ;; eth0) echo nameserver 192.0.2.53; echo search lan.example ;; esac ;;
esac
`)
	for _, name := range []string{"eth0", "wg0", "tun0"} {
		kind := "65534"
		if name == "eth0" {
			kind = "1"
		}
		r.write("sys/class/net/"+name+"/type", kind)
	}
	x := &record{machine: r.opt.machine, kind: modeOpenresolv, program: r.path("sbin/resolvconf")}
	want := func(what, routed string, servers ...string) {
		t.Helper()
		b, err := x.base(t.Context())
		if err != nil || !slices.Equal(serverWords(b.Servers), servers) {
			t.Errorf("%s: base %q, %v, want %q", what, serverWords(b.Servers), err, servers)
		}
		if _, ok := b.Routes["lan.example"]; ok != (routed != "") {
			t.Errorf("%s: routes %v", what, b.Routes)
		}
	}
	want("two VPNs that are not alone", "lan.example", "10.9.0.1:53", "10.8.0.1:53")
	for _, name := range []string{"9999997 meshdns", "9999998 tun0", "9999999 wg0", "stray"} {
		r.write("run/resolvconf/exclusive/"+name, "")
	}
	want("two that are, the newest first", "", "10.8.0.1:53")
}

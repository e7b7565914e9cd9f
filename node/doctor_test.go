package node

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// healthy are the facts of a machine on which all is well, with a node that has taken its DNS over.
func healthy() doctorFacts {
	at := netip.MustParseAddr
	nas := []netip.Addr{at("10.77.0.2"), at("fd00::2")}
	return doctorFacts{
		now:   time.Date(2026, 11, 25, 12, 0, 0, 0, time.UTC),
		built: time.Date(2026, 11, 1, 0, 0, 0, 0, time.UTC),
		status: Status{
			PID: 77, Version: "v1", State: "ok", Node: "nas.foo-bar.ts.net", Zone: "foo-bar.ts.net",
			Map: mapStatus{Source: "map.yaml", Nodes: 1, Records: 3},
			DNS: DNSStatus{
				Search:   []string{"foo-bar.ts.net"},
				Takeover: Takeover{State: takeoverOn, Mode: "direct"},
				Base:     []string{"192.0.2.53"},
				Upstreams: []upstreamStatus{
					{Upstream: "192.0.2.53", Routes: []string{"."}, State: "ok"},
					{Upstream: "10.0.0.53", Routes: []string{"corp.example."}, State: "new"},
				},
			},
		},
		plan:    PlanResult{Possible: true, Mode: "direct", Trace: []string{"a fact"}},
		stub:    netip.MustParseAddrPort("127.0.0.77:53"),
		servers: []dnsServer{{program: "meshdns", pid: 77, addrs: []netip.Addr{at("127.0.0.77")}}},
		conf:    confFile{servers: []netip.Addr{at("127.0.0.77")}, search: []string{"foo-bar.ts.net"}},
		target:  lookupTarget{name: "nas.foo-bar.ts.net", addrs: nas},
		lookups: []lookup{
			{by: byGo, name: "nas.foo-bar.ts.net", addrs: nas},
			{by: byGo, name: "nas", short: true, addrs: nas},
			{by: byLibc, name: "nas.foo-bar.ts.net", addrs: nas[:1]},
			{by: byLibc, name: "nas", short: true, addrs: nas[:1]},
		},
		viaStub: stubAnswer{result: QueryResult{Rcode: "NOERROR"}},
		uplink:  uplink{name: "eth0", mtu: 1500},
	}
}

// idle are the facts of a machine on which no node runs.
func idleFacts() doctorFacts {
	f := healthy()
	f.daemonErr = hinted(ErrNoDaemon, errors.New("none answers"), "start it with: meshdns up")
	f.status, f.lookups, f.viaStub = Status{}, nil, stubAnswer{}
	f.servers = []dnsServer{}
	f.conf.servers = []netip.Addr{netip.MustParseAddr("192.0.2.53")}
	return f
}

// notOK are the findings that are not ok, a line each.
func notOK(d diagnosis) []string {
	var lines []string
	for _, f := range d.Findings {
		if f.State != findingOK {
			lines = append(lines, fmt.Sprintf("%s %s: %s [%s]", f.State, f.Name, f.Detail, f.Mend))
		}
	}
	return lines
}

func TestAHealthyMachineHasNoFindings(t *testing.T) {
	d := diagnose(healthy())
	if lines := notOK(d); len(lines) > 0 || d.State != findingOK {
		t.Errorf("state %s, got %s", d.State, strings.Join(lines, "\n"))
	}
	var names []string
	for _, f := range d.Findings {
		names = append(names, f.Name)
	}
	want := []string{"daemon", "map", "port", "owner", "takeover", "stub", "go", "libc", "search", "outside", "upstream", "clock", "mtu"}
	if !slices.Equal(names, want) {
		t.Errorf("looked at %v, want %v", names, want)
	}
}

// doctorCase is a machine on which something is not as it should be.
type doctorCase struct {
	name   string
	change func(f *doctorFacts)
	want   []string // of each finding that is not ok, in order: how its line begins, or a part of it after "…"
}

func runDoctorCases(t *testing.T, base func() doctorFacts, cases []doctorCase) {
	t.Helper()
	for _, tt := range cases {
		t.Run(tt.name, func(t *testing.T) {
			f := base()
			tt.change(&f)
			got := notOK(diagnose(f))
			same := len(got) == len(tt.want)
			for i := 0; same && i < len(got); i++ {
				start, part, _ := strings.Cut(tt.want[i], "…")
				same = strings.HasPrefix(got[i], start) && strings.Contains(got[i], part)
			}
			if !same {
				t.Errorf("got\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(tt.want, "\n"))
			}
		})
	}
}

func TestDoctorBesideARunningNode(t *testing.T) {
	at := netip.MustParseAddr
	timeout := &net.DNSError{Err: "i/o timeout", IsTimeout: true}
	runDoctorCases(t, healthy, []doctorCase{
		{"the map is broken", func(f *doctorFacts) { f.status.Map.Problems = []string{"map.yaml:3:1: no such key"} },
			[]string{"problem map: map.yaml:3:1: no such key [meshdns config check]"}},
		{"not in the map", func(f *doctorFacts) { f.status.Node = "" },
			[]string{"warning map: this machine is not in the map [set node:"}},
		{"the node knows of a problem", func(f *doctorFacts) { f.status.Problems = []string{"the range is Tailscale's"} },
			[]string{"problem node: the range is Tailscale's"}},
		{"refused, told once", func(f *doctorFacts) {
			f.status.DNS.Takeover = Takeover{State: takeoverRefused, Mode: "direct", Reason: "/etc is read-only"}
			f.status.Problems = []string{"the machine's DNS is not taken over: /etc is read-only"}
			f.plan = PlanResult{Mode: "direct", Hint: "mount it writable"}
			f.lookups = nil
		}, []string{"problem takeover: the machine's DNS is not taken over: /etc is read-only [mount it writable]"}},
		{"given back", func(f *doctorFacts) {
			f.status.DNS.Takeover = Takeover{State: takeoverOff, Reason: "somebody asked for that"}
			f.lookups = nil
		}, []string{"warning takeover: only programs that ask 127.0.0.77:53 find…[sudo meshdns dns apply]"}},
		{"not wanted", func(f *doctorFacts) {
			f.status.DNS.Takeover = Takeover{State: takeoverOff, Reason: "dns.os is off"}
			f.lookups = nil
		}, nil},
		{"pending", func(f *doctorFacts) { f.status.DNS.Takeover.State = takeoverPending },
			[]string{"warning takeover: on (direct), and undone soon unless confirmed [meshdns dns confirm]"}},
		{"overwritten", func(f *doctorFacts) {
			f.conf = confFile{servers: []netip.Addr{at("192.0.2.1")}}
			f.lookups[0].err = &net.DNSError{Err: "no such host", Server: "192.0.2.1:53", IsNotFound: true}
		}, []string{
			"problem takeover: another program overwrote /etc/resolv.conf: its first nameserver is 192.0.2.1, not 127.0.0.77 [sudo meshdns dns apply]",
			"problem go: …do not find nas.foo-bar.ts.net: no such host (192.0.2.1:53) [sudo meshdns dns apply]",
		}},
		{"emptied", func(f *doctorFacts) { f.conf = confFile{} },
			[]string{"problem takeover: …its first nameserver is none"}},
		{"a manager's address stands there", func(f *doctorFacts) {
			f.status.DNS.Takeover.Mode, f.conf.servers = "networkmanager", []netip.Addr{at("127.0.0.1")}
		}, nil},
		{"a further address stands there", func(f *doctorFacts) {
			f.status.DNS.Listen, f.conf.servers = []string{"10.77.0.254:53"}, []netip.Addr{at("10.77.0.254")}
		}, nil},
		{"the file leads past systemd-resolved", func(f *doctorFacts) {
			f.status.DNS.Takeover.Mode, f.conf.servers = "resolved", []netip.Addr{at("192.0.2.1")}
			f.lookups[0].err = errors.New("no such host")
		}, []string{"problem go: …[sudo ln -sf ../run/systemd/resolve/stub-resolv.conf /etc/resolv.conf]"}},
		{"glibc does not ask DNS", func(f *doctorFacts) { f.lookups[2].err = errors.New("no such host") },
			[]string{"problem libc: …[have dns stand among hosts: in /etc/nsswitch.conf]"}},
		{"the hosts file has the name", func(f *doctorFacts) { f.lookups[2].addrs = []netip.Addr{at("127.0.1.1")} },
			[]string{"warning libc: …find nas.foo-bar.ts.net at 127.0.1.1, and the map says 10.77.0.2 fd00::2"}},
		{"another server answers", func(f *doctorFacts) { f.lookups[0].addrs = []netip.Addr{at("198.51.100.1")} },
			[]string{"problem go: …at 198.51.100.1, and the map says 10.77.0.2 fd00::2: another server or the hosts file answered [meshdns dns explain"}},
		{"short names alone are not found", func(f *doctorFacts) { f.lookups[1].err = timeout },
			[]string{"problem search: go finds nas.foo-bar.ts.net, and not nas: no answer within"}},
		{"another domain is searched first", func(f *doctorFacts) { f.conf.search = []string{"corp.example", "foo-bar.ts.net"} },
			[]string{"warning search: short names are looked for in corp.example before foo-bar.ts.net"}},
		{"a long search list", func(f *doctorFacts) { f.conf.search = strings.Fields("foo-bar.ts.net a b c d e f") },
			[]string{"warning search: older C libraries read 6 domains"}},
		{"the stub does not answer", func(f *doctorFacts) { f.stubErr = errors.New("asking our own stub: refused") },
			[]string{"problem stub: asking our own stub: refused [see what filters"}},
		{"nothing answers outside", func(f *doctorFacts) {
			f.viaStub.result = QueryResult{Rcode: "SERVFAIL", Extended: "No Reachable Authority"}
		},
			[]string{"problem outside: …No Reachable Authority, SERVFAIL [meshdns dns status]"}},
		{"the stub hangs outside", func(f *doctorFacts) { f.viaStub.err = timeout },
			[]string{"problem outside: the stub does not answer"}},
		{"the path hangs outside", func(f *doctorFacts) { f.outside.err = timeout },
			[]string{"warning outside: the upstreams answer the stub"}},
		{"a poor answer from outside is one", func(f *doctorFacts) { f.outside.err = &net.DNSError{IsNotFound: true} }, nil},
		{"a refusal from outside is one", func(f *doctorFacts) {
			f.outside.err, f.viaStub.result.Rcode = &net.DNSError{Err: "server misbehaving", IsTemporary: true}, "REFUSED"
		}, nil},
		{"no upstream", func(f *doctorFacts) { f.status.DNS.Base, f.status.DNS.Upstreams = nil, nil },
			[]string{"problem upstream: there is no upstream"}},
		{"one upstream of two is dead", func(f *doctorFacts) {
			f.status.DNS.Upstreams[0].State = upstreamDead
			f.status.DNS.Upstreams = append(f.status.DNS.Upstreams, upstreamStatus{Upstream: "192.0.2.54", Routes: []string{"."}, State: "ok"})
		}, []string{"warning upstream: 192.0.2.53 does not answer; others do"}},
		{"the only upstream is dead", func(f *doctorFacts) { f.status.DNS.Upstreams[0].State = upstreamDead },
			[]string{"problem upstream: 192.0.2.53 does not answer, nor does any other for everything else"}},
		{"a loop, told once", func(f *doctorFacts) {
			f.status.DNS.Upstreams[1].State = upstreamLoop
			f.status.Problems = []string{"upstream 10.0.0.53 sends our questions back to us"}
		}, []string{"problem upstream: 10.0.0.53 sends our questions back to us"}},
		{"who owns DNS is not known", func(f *doctorFacts) { f.planErr = errors.New("planning: permission denied") },
			[]string{"problem owner: who owns the machine's DNS is not known: planning: permission denied [meshdns dns plan]"}},
	})
}

func TestDoctorSeesOthers(t *testing.T) {
	at := netip.MustParseAddr
	dnsmasq := dnsServer{program: "dnsmasq", pid: 5, addrs: []netip.Addr{at("0.0.0.0")}}
	tailscale := link{name: "tailscale0", addrs: []netip.Prefix{netip.MustParsePrefix("100.70.1.2/32")}}
	runDoctorCases(t, healthy, []doctorCase{
		{"another holds port 53", func(f *doctorFacts) {
			f.stub, f.servers = netip.MustParseAddrPort("127.0.0.77:5335"), []dnsServer{dnsmasq}
			f.status.DNS.Takeover = Takeover{State: takeoverOff, Reason: "dns.os is off"}
		}, []string{"problem port: 127.0.0.77:53 is held by dnsmasq (pid 5), so the stub is 127.0.0.77:5335 [end that program"}},
		{"another holds it, and the manager carries ports", func(f *doctorFacts) {
			f.stub, f.servers = netip.MustParseAddrPort("127.0.0.77:5335"), []dnsServer{dnsmasq}
			f.status.DNS.Takeover.Mode = "resolved"
		}, nil},
		{"another holds it too", func(f *doctorFacts) { f.servers = append(f.servers, dnsmasq) },
			[]string{"problem port: 127.0.0.77:53 is held by the node and by dnsmasq (pid 5)"}},
		{"another holds it elsewhere", func(f *doctorFacts) {
			f.servers = append(f.servers, dnsServer{program: "resolved", pid: 6, addrs: []netip.Addr{at("127.0.0.53")}})
		}, nil},
		{"whose the sockets are is not seen", func(f *doctorFacts) {
			f.servers = []dnsServer{{addrs: []netip.Addr{at("127.0.0.77")}}}
		}, nil},
		{"Tailscale", func(f *doctorFacts) { f.links = []link{tailscale} }, nil},
		{"Tailscale's resolver beside ours", func(f *doctorFacts) {
			f.links, f.conf.servers = []link{tailscale}, append(f.conf.servers, at("100.100.100.100"))
		}, []string{"warning tailscale: Tailscale runs on tailscale0 (100.70.1.2), and has 100.64.0.0/10 for itself; …[sudo tailscale set --accept-dns=false]"}},
		{"WireGuard", func(f *doctorFacts) { f.tunnels = []tunnelLink{{name: "wg0", kind: "WireGuard"}} }, nil},
		{"wg-quick with nameservers", func(f *doctorFacts) {
			f.tunnels = []tunnelLink{{name: "wg0", kind: "WireGuard", file: "/etc/wireguard/wg0.conf", dns: []string{"10.0.0.1"}}}
		}, nil},
		{"Tailscale that asks the node", func(f *doctorFacts) {
			f.links, f.conf.servers = []link{tailscale}, append(f.conf.servers, at("100.100.100.100"))
			f.status.VPNs = []vpnStatus{{Link: "tailscale0", Program: "Tailscale", Asks: true, DNS: "answers"}}
		}, nil},
		{"a name that writes to the terminal", func(f *doctorFacts) {
			f.stub = netip.MustParseAddrPort("127.0.0.77:5335")
			f.status.DNS.Takeover = Takeover{State: takeoverOff, Reason: "dns.os is off"}
			f.servers = []dnsServer{{program: "x\x1b[2J", pid: 5, addrs: []netip.Addr{at("127.0.0.77")}}}
		}, []string{"problem port: 127.0.0.77:53 is held by x·[2J (pid 5)"}},
	})
}

// aheadOf is a gateway whose clock this machine's is ahead of.
func aheadOf(seconds int) *contactStatus { return &contactStatus{Name: "edge", Ahead: &seconds} }

func TestDoctorOfClockAndLink(t *testing.T) {
	runDoctorCases(t, healthy, []doctorCase{
		{"1970", func(f *doctorFacts) { f.now, f.built = time.Unix(100, 0), time.Time{} },
			[]string{"problem clock: it says 1970-01-01 00:01:40 UTC, before this program was written [sudo timedatectl"}},
		{"before the build", func(f *doctorFacts) { f.now = f.built.Add(-48 * time.Hour) },
			[]string{"problem clock: it says 2026-10-30 00:00:00 UTC, and this program is of 2026-11-01 00:00:00"}},
		{"an hour before the build", func(f *doctorFacts) { f.now = f.built.Add(-time.Hour) }, nil},
		{"the gateway's", func(f *doctorFacts) { f.status.Tunnel.Gateway = aheadOf(0) }, nil},
		{"a minute off", func(f *doctorFacts) { f.status.Tunnel.Gateway = aheadOf(-60) }, nil},
		{"an hour ahead of the gateway", func(f *doctorFacts) { f.status.Tunnel.Gateway = aheadOf(3600) },
			[]string{"warning clock: it says 2026-11-25 12:00:00 UTC, 1h0m0s ahead of that of the gateway edge"}},
		{"an hour behind it", func(f *doctorFacts) { f.status.Tunnel.Gateway = aheadOf(-3600) },
			[]string{"warning clock: it says 2026-11-25 12:00:00 UTC, 1h0m0s behind that of the gateway edge"}},
		{"a gateway that was never reached", func(f *doctorFacts) { f.status.Tunnel.Gateway = &contactStatus{Name: "edge"} }, nil},
		{"a small link", func(f *doctorFacts) { f.uplink.mtu = 1279 },
			[]string{"problem mtu: packets on eth0, which leads outside, are at most 1279 bytes; IPv6 needs 1280 [sudo ip link set dev eth0 mtu 1280]"}},
		{"just large enough", func(f *doctorFacts) { f.uplink.mtu = 1280 }, nil},
		{"no default route", func(f *doctorFacts) { f.uplink = uplink{} }, []string{"warning mtu: there is no default route"}},
		{"a system that does not tell", func(f *doctorFacts) { f.uplink, f.noUplink, f.servers = uplink{}, errors.ErrUnsupported, nil }, nil},
	})
}

func TestDoctorWithoutANode(t *testing.T) {
	at := netip.MustParseAddr
	none := "warning daemon: no node runs"
	runDoctorCases(t, idleFacts, []doctorCase{
		{"nothing is wrong", func(*doctorFacts) {}, []string{none}},
		{"the machine asks a dead stub", func(f *doctorFacts) {
			f.conf.servers, f.outside.err = []netip.Addr{at("127.0.0.77")}, errors.New("refused")
		}, []string{"problem takeover: /etc/resolv.conf names 127.0.0.77, where no node answers [sudo meshdns dns restore]", none}},
		{"a journal is left", func(f *doctorFacts) { f.left = true },
			[]string{"problem takeover: a node that died has left the machine's DNS changed [sudo meshdns dns restore]", none}},
		{"the configuration is broken", func(f *doctorFacts) {
			f.idleErr = Problems{{File: "m.yaml", Line: 1, Msg: "no such key"}, {File: "m.yaml", Line: 2, Msg: "no such mode"}}
			f.planErr, f.stub = f.idleErr, netip.AddrPort{}
		}, []string{
			"problem configuration: a node would not start: m.yaml:1: no such key [meshdns config check]",
			"problem configuration: a node would not start: m.yaml:2: no such mode",
			none,
		}},
		{"Tailscale has the range", func(f *doctorFacts) { f.conflict = "the range is Tailscale's" },
			[]string{"problem node: the range is Tailscale's", none}},
		{"port 53 is held", func(f *doctorFacts) {
			f.servers = []dnsServer{{program: "dnsmasq", pid: 5, addrs: []netip.Addr{at("::")}}}
		},
			[]string{"problem port: 127.0.0.77:53 is held by dnsmasq (pid 5) [end that program", none}},
		{"port 53 is held, and we are not root", func(f *doctorFacts) {
			f.stub = netip.MustParseAddrPort("127.0.0.77:5335")
			f.servers = []dnsServer{{addrs: []netip.Addr{at("0.0.0.0")}}}
		}, []string{none, "warning port: 127.0.0.77:53 is held by a program that only root may know; without root the stub is"}},
		{"DNS is not ours to change", func(f *doctorFacts) {
			f.plan = PlanResult{Mode: "direct", Reason: "/etc/resolv.conf is immutable", Hint: "chattr -i"}
		}, []string{none, "warning owner: the mode is direct; a node would leave the machine's DNS alone: /etc/resolv.conf is immutable [chattr -i]"}},
		{"it is not wanted", func(f *doctorFacts) { f.plan = PlanResult{Mode: "direct", Reason: "dns.os is off"} }, []string{none}},
		{"the machine is offline", func(f *doctorFacts) { f.outside.err = errors.New("network is unreachable") },
			[]string{none, "warning outside: the machine's own nameservers do not answer: network is unreachable"}},
		{"the machine's nameserver is in trouble", func(f *doctorFacts) {
			f.outside.err = &net.DNSError{Err: "server misbehaving", Server: "192.0.2.53:53", IsTemporary: true}
		}, []string{none, "warning outside: the machine's own nameservers answer a simple question with an error: server misbehaving (192.0.2.53:53)"}},
		{"a node hangs", func(f *doctorFacts) {
			f.daemonErr = hinted(ErrTimeout, errors.New("no answer in time"), "try again")
			f.conf.servers, f.outside.err = []netip.Addr{at("127.0.0.77")}, errors.New("timeout")
			f.servers = healthy().servers
		}, []string{
			"problem daemon: no answer in time [try again]",
			"problem takeover: /etc/resolv.conf names 127.0.0.77, where the node does not answer [end that node, then: sudo meshdns dns restore]",
		}},
	})
}

// Private names must not go to whoever else is asked.
func TestDoctorAsksForPrivateNamesOnlyWhereTheyBelong(t *testing.T) {
	f := healthy()
	for _, state := range []string{takeoverOff, takeoverRefused} {
		f.status.DNS.Takeover.State, f.lookups = state, nil
		ctx, cancel := context.WithCancel(t.Context())
		cancel() // what would be asked for all the same is not
		f.lookUp(ctx)
		if len(f.lookups) > 0 {
			t.Errorf("%s: looked up %v", state, f.lookups)
		}
	}
}

func TestDoctorWaitsForWhatTheNodeMends(t *testing.T) {
	for name, test := range map[string]struct {
		reads int // after which the file is the node's again; 0: never
		took  time.Duration
	}{
		"as it should be": {1, 0},
		"mended":          {4, 300 * time.Millisecond},
		"not mended":      {0, doctorSettleTime},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				f, reads, start := healthy(), 0, time.Now()
				f.settle(t.Context(), func() confFile {
					if reads++; reads == test.reads {
						return healthy().conf
					}
					return confFile{}
				})
				if took := time.Since(start); took != test.took || f.overwritten() != (test.reads == 0) {
					t.Errorf("took %s, overwritten %t; want %s", took, f.overwritten(), test.took)
				}
			})
		})
	}
}

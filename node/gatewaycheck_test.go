package node

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/miekg/dns"

	"github.com/meshdns/meshdns/resolver"
)

func addrs(words ...string) []netip.Addr {
	var list []netip.Addr
	for _, w := range words {
		list = append(list, netip.MustParseAddr(w))
	}
	return list
}

// wellFacts are those of a gateway that nothing is wrong with.
func wellFacts() gatewayFacts {
	const ns1, ns2 = "ns1.mesh.example.org.", "ns2.mesh.example.org."
	servers := []nameServer{{ns1, addrs("203.0.113.5")}, {ns2, addrs("2001:db8::5")}}
	good := answerFacts{auth: true, soa: true, serial: 7, exact: true, edns: true, size: 90}
	f := gatewayFacts{
		zone: "mesh.example.org", public: addrs("203.0.113.5", "2001:db8::5"), from: fromOutside, ports: [2]uint16{41642, 41643}, now: time.Unix(1_800_000_000, 0),
		parent: parentFacts{zone: "example.org", servers: []delegating{{server: "a.example.", ns: servers}, {server: "b.example.", ns: []nameServer{servers[1], servers[0]}}}},
		clocks: []clockFact{{"192.0.2.1", 0}, {"192.0.2.2", time.Second}, {"192.0.2.3", 9 * time.Hour}},
	}
	for i, s := range servers {
		f.servers = append(f.servers, serverFacts{name: s.name, addr: s.addrs[0], udp: good, tcp: good, ahead: time.Second, timed: true, ns: servers})
		f.fronts = append(f.fronts, frontFacts{addr: s.addrs[0], key: "key"})
		f.silent = append(f.silent, udpFacts{use: "wireguard", at: netip.AddrPortFrom(f.public[i], 41642)}, udpFacts{use: "relay", at: netip.AddrPortFrom(f.public[i], 41643)})
	}
	return f
}

// shownFindings are the findings of a state, each in one line.
func shownFindings(r checkReply, state string) []string {
	var list []string
	for _, f := range r.Findings {
		if f.State == state {
			var line strings.Builder
			line.WriteString(f.Name + ": " + f.Detail + " [" + f.Hint)
			for _, r := range f.Records {
				line.WriteString("; " + r.Name + " " + r.Type + " " + r.Data)
			}
			list = append(list, line.String()+"]")
		}
	}
	return list
}

var errSilent = fmt.Errorf("reading: %w", os.ErrDeadlineExceeded)

// Every failure names what it is about, and what mends it; nothing else is blamed for it.
func TestACheckNamesWhatFails(t *testing.T) {
	for name, test := range map[string]struct {
		change func(*gatewayFacts)
		fail   []string // beginnings
		warn   []string
	}{
		"nothing": {change: func(*gatewayFacts) {}},
		"nothing, and the addresses are not known": {change: func(f *gatewayFacts) { f.public = nil }},
		"no delegation": {
			change: func(f *gatewayFacts) { f.parent.servers = []delegating{{server: "a.example."}} },
			fail:   []string{"delegation: example.org does not delegate mesh.example.org [add to the zone example.org, at its DNS provider; mesh NS ns1.mesh.example.org.; mesh NS ns2.mesh.example.org.; ns1.mesh A 203.0.113.5; ns2.mesh AAAA 2001:db8::5]"},
		},
		"no delegation, of a gateway that is not known": {
			change: func(f *gatewayFacts) {
				f.parent.servers, f.public, f.servers = []delegating{{server: "a.example."}}, nil, nil
			},
			fail: []string{"delegation: example.org does not delegate mesh.example.org [the records to add are printed by: meshdns gateway check mesh.example.org --public ADDRESS"},
		},
		"nobody has the domain": {
			change: func(f *gatewayFacts) { f.parent.zone, f.parent.servers = "org", []delegating{{server: "a.example."}} },
			fail:   []string{"delegation: example.org does not exist: org does not know it [register it"},
		},
		"no parent": {
			change: func(f *gatewayFacts) { f.parent = parentFacts{err: errors.New("no way")} },
			fail:   []string{"delegation: which zone delegates mesh.example.org could not be found out: no way [ask another way: --resolver"},
		},
		"one server of two is missing": {
			change: func(f *gatewayFacts) {
				f.parent.servers = []delegating{{server: "a.example.", ns: []nameServer{{"ns1.mesh.example.org.", addrs("203.0.113.5")}}}}
			},
			warn: []string{"delegation: example.org does not name ns2.mesh.example.org. [add to the zone example.org, at its DNS provider; mesh NS ns2.mesh.example.org.; ns2.mesh AAAA 2001:db8::5]"},
		},
		"all servers are others, which serve the zone": {
			change: func(f *gatewayFacts) {
				f.public = addrs("203.0.113.5")
				f.servers = f.servers[:1]
				f.servers[0].name = "gw.example.net."
				f.parent.servers = []delegating{{server: "a.example.", ns: []nameServer{{"gw.example.net.", nil}}}}
			},
			fail: []string{"delegation: example.org does not name ns1.mesh.example.org."},
			warn: []string{"delegation: example.org names gw.example.net., and the zone itself ns1.mesh.example.org"},
		},
		"a lame server": {
			change: func(f *gatewayFacts) {
				f.parent.servers[0].ns = append(slices.Clone(f.parent.servers[0].ns), nameServer{"old.example.net.", nil})
				f.parent.servers = f.parent.servers[:1]
			},
			fail: []string{"delegation: example.org names old.example.net., which does not serve mesh.example.org: a part of all lookups fails or is slow [remove from the zone example.org, at its DNS provider; mesh NS old.example.net.]"},
		},
		"the parent's servers do not agree": {
			change: func(f *gatewayFacts) { f.parent.servers[1].ns = nil },
			warn:   []string{"parent: the servers of example.org do not agree: a.example. has ns1.mesh.example.org, ns2.mesh.example.org, b.example. has nothing"},
		},
		"the provider has the zone itself": {
			change: func(f *gatewayFacts) { f.parent.servers[1].serves = true },
			fail:   []string{"parent: b.example. (invalid IP), a server of example.org, answers for mesh.example.org itself [remove the zone mesh.example.org at the DNS provider"},
		},
		"a server of the parent is dead": {
			change: func(f *gatewayFacts) { f.parent.servers[1] = delegating{server: "b.example.", err: errSilent} },
			warn:   []string{"parent: b.example."},
		},
		"wrong glue": {
			change: func(f *gatewayFacts) {
				f.parent.servers = []delegating{{server: "a.example.", ns: []nameServer{{"ns1.mesh.example.org.", addrs("203.0.113.9")}, {"ns2.mesh.example.org.", addrs("2001:db8::5")}}}}
			},
			fail: []string{"glue: example.org has ns1.mesh.example.org. at 203.0.113.9, and it is at 203.0.113.5 [set in the zone example.org, at its DNS provider, instead of 203.0.113.9; ns1.mesh A 203.0.113.5]"},
		},
		"glue of the past beside the right one": {
			change: func(f *gatewayFacts) {
				f.parent.servers = []delegating{{server: "a.example.", ns: []nameServer{{"ns1.mesh.example.org.", addrs("203.0.113.5", "203.0.113.9")}, {"ns2.mesh.example.org.", addrs("2001:db8::5")}}}}
			},
			fail: []string{"glue: example.org has ns1.mesh.example.org. at 203.0.113.9 too, which is not the gateway [remove from the zone example.org, at its DNS provider; ns1.mesh A 203.0.113.9]"},
		},
		"DS": {
			change: func(f *gatewayFacts) { f.parent.ds = []string{"1 13 2 AB"} },
			fail:   []string{"ds: example.org has a DS record for mesh.example.org, which is not signed: resolvers that validate find no name in it [remove from the zone example.org, at its DNS provider or registrar; mesh DS 1 13 2 AB]"},
		},
		"no UDP": {
			change: func(f *gatewayFacts) { f.servers[0].udp = answerFacts{err: errSilent} },
			fail:   []string{"udp: 203.0.113.5 port 53/udp: no answer [open 53/udp in the firewalls of the gateway and of its provider]"},
		},
		"no TCP": {
			change: func(f *gatewayFacts) { f.servers[0].tcp = answerFacts{err: errSilent} },
			fail:   []string{"tcp: 203.0.113.5 port 53/tcp: no answer [open 53/tcp in the firewalls of the gateway and of its provider]"},
		},
		"another server": {
			change: func(f *gatewayFacts) {
				f.servers[0].udp = answerFacts{rcode: dns.RcodeRefused, exact: true, edns: true}
				f.servers[0].open = true
			},
			fail: []string{"udp: 203.0.113.5 does not serve mesh.example.org (udp): the answer is REFUSED", "recursion: 203.0.113.5 answers for other people's names"},
		},
		"a box in between": {
			change: func(f *gatewayFacts) { f.servers[0].udp.exact, f.servers[0].tcp.edns = false, false },
			warn:   []string{"udp: 203.0.113.5 gives names back in another case", "tcp: 203.0.113.5 answers without EDNS"},
		},
		"two gateways": {
			change: func(f *gatewayFacts) { f.servers[1].tcp.serial = 8 },
			warn:   []string{"serial: the servers have different versions of the zone: 7 at 203.0.113.5, 8 at 2001:db8::5"},
		},
		"443 is filtered": {
			change: func(f *gatewayFacts) { f.fronts[0] = frontFacts{addr: f.public[0], err: errSilent} },
			fail:   []string{"443: 203.0.113.5 port 443/tcp: no answer [open 443/tcp in the firewalls"},
		},
		"443 is another's": {
			change: func(f *gatewayFacts) { f.fronts[0] = frontFacts{addr: f.public[0], tlsErr: errors.New("no TLS")} },
			fail:   []string{"443: 203.0.113.5 port 443/tcp: what answers is not the gateway: no TLS [on the gateway: meshdns status names the program"},
		},
		"80 is another's": {
			change: func(f *gatewayFacts) { f.plains = []plainFacts{{addr: f.public[0], status: 200}} },
			warn:   []string{"80: 203.0.113.5 port 80/tcp: another program answers"},
		},
		"80 is ours": {change: func(f *gatewayFacts) { f.plains = []plainFacts{{addr: f.public[0], status: 404}} }},
		"80 is filtered, and nothing is shown": {
			change: func(f *gatewayFacts) { f.plains = []plainFacts{{addr: f.public[0], err: errSilent}} },
		},
		"80 is filtered": {
			change: func(f *gatewayFacts) {
				f.from, f.listen, f.plains = fromGateway, f.public, []plainFacts{{addr: f.public[0], err: errSilent}}
				f.status.Funnels = []funnelStatus{{Name: "nas.mesh.example.org", Port: 443, Kind: kindHTTPS, Open: true}}
			},
			warn: []string{"80: 203.0.113.5 port 80/tcp: no answer: a visitor has to write https://"},
		},
		"443 is another gateway's": {
			change: func(f *gatewayFacts) { f.control = "other" },
			fail:   []string{"443: 203.0.113.5 port 443/tcp: another gateway answers, with the key key", "443: 2001:db8::5"},
		},
		"a UDP port is shut": {
			change: func(f *gatewayFacts) { f.silent[1].shut = true },
			fail:   []string{"relay: 203.0.113.5 port 41643/udp: nothing listens there"},
		},
		"UDP is blocked": {
			change: func(f *gatewayFacts) {
				f.from, f.silent = fromNode, f.silent[:1]
				f.status.Tunnel.Gateway = &contactStatus{Name: "edge"}
				f.status.Problems = []string{overTLSTold}
			},
			fail: []string{"wireguard: 203.0.113.5 port 41642/udp: nothing comes back, so this node's packets go over TLS [open 41642/udp"},
		},
		"the gateway's clock": {
			change: func(f *gatewayFacts) { f.servers[0].ahead = time.Second - time.Hour },
			fail:   []string{"clock: the gateway's clock (203.0.113.5) is 1h0m0s behind [on the gateway: sudo timedatectl set-ntp true]"},
		},
		"this machine's clock": {
			change: func(f *gatewayFacts) {
				f.clocks = []clockFact{{"192.0.2.1", time.Hour}}
				f.servers[0].ahead, f.servers[1].ahead = time.Hour, time.Hour
			},
			fail: []string{"clock: this machine's clock is 1h0m0s behind, by what 1 name server say"},
		},
		"clocks, and nobody to ask which is right": {
			change: func(f *gatewayFacts) { f.clocks, f.servers[0].ahead = nil, time.Hour },
			fail:   []string{"clock: the gateway's clock (203.0.113.5) and this machine's differ: it is 1h0m0s ahead [there or here:"},
		},
		"the gateway itself lacks something": {
			change: func(f *gatewayFacts) { f.from, f.status.Problems = fromGateway, []string{"the public port: held"} },
			fail:   []string{"node: the public port: held"},
		},
		"the gateway itself does not run": {
			change: func(f *gatewayFacts) { f.from, f.statusErr = fromGateway, errors.New("none runs") },
			warn:   []string{"node: none runs [meshdns up]"},
		},
		"behind a NAT the gateway does not see itself": {
			change: func(f *gatewayFacts) {
				f.from, f.listen = fromGateway, addrs("10.0.0.5")
				silent := answerFacts{err: errSilent}
				f.servers[0].udp, f.servers[0].tcp, f.fronts[0].err = silent, silent, errSilent
			},
		},
		"a machine without IPv6": {
			change: func(f *gatewayFacts) {
				none := &net.OpError{Op: "dial", Err: os.NewSyscallError("connect", unreachable())}
				f.servers[1].udp, f.servers[1].tcp, f.fronts[1].err = answerFacts{err: none}, answerFacts{err: none}, none
			},
		},
		"for private use": {change: func(f *gatewayFacts) {
			f.zone, f.parent = "mesh.internal", parentFacts{}
		}},
	} {
		t.Run(name, func(t *testing.T) {
			f := wellFacts()
			test.change(&f)
			r := f.judge()
			for state, want := range map[string][]string{checkFail: test.fail, checkWarn: test.warn} {
				got := shownFindings(r, state)
				if !slices.EqualFunc(got, want, strings.HasPrefix) {
					t.Errorf("%s:\n%s\nwant\n%s", state, strings.Join(got, "\n"), strings.Join(want, "\n"))
				}
			}
			want := checkOK
			if len(test.warn) > 0 {
				want = checkWarn
			}
			if len(test.fail) > 0 {
				want = checkFail
			}
			if r.State != want {
				t.Errorf("state %s, want %s", r.State, want)
			}
			for _, f := range r.Findings {
				if f.State == checkFail && f.Hint == "" || f.Records == nil {
					t.Errorf("%+v has no hint, or records that are null", f)
				}
			}
		})
	}
}

// What strangers cannot be told is no failure, and says so; a node and the gateway know better.
func TestACheckKnowsWhatItCannotTell(t *testing.T) {
	f := wellFacts()
	if got := shownFindings(f.judge(), checkSkip); len(got) != 4 || !strings.HasPrefix(got[0], "wireguard: 203.0.113.5 port 41642/udp: it answers only nodes of the tailnet, so from here nothing can be told [on a node that has joined:") {
		t.Errorf("from outside: %q", got)
	}
	at := f.now.Add(-40 * time.Second)
	f.from, f.status.Tunnel = fromNode, tunnelStatus{Gateway: &contactStatus{Name: "edge", Relay: &at}, Peers: []peerStatus{{Node: "edge", Handshake: &at}}}
	r := f.judge()
	if got := shownFindings(r, checkSkip); len(got) != 0 {
		t.Errorf("on a node: %q", got)
	}
	if got := shownFindings(r, checkOK); !slices.ContainsFunc(got, func(l string) bool {
		return strings.Contains(l, "relay: 203.0.113.5 port 41643/udp: this node's last handshake was 40s ago")
	}) {
		t.Errorf("on a node: %q", got)
	}
	f = wellFacts()
	f.from, f.nodes = fromGateway, []gatewayPeer{{Name: "near", Seen: &at, Endpoint: "10.0.0.9:7"}, {Name: "nas", Seen: &at, Endpoint: "198.51.100.7:1234"}}
	if got := shownFindings(f.judge(), checkOK); !slices.ContainsFunc(got, func(l string) bool {
		return strings.Contains(l, "wireguard: 203.0.113.5 port 41642/udp: nas was heard from 198.51.100.7:1234")
	}) {
		t.Errorf("on the gateway: %q", got)
	}
}

func TestACheckIsAimed(t *testing.T) {
	own := DefaultConfig()
	own.Gateway = gatewayConfig{Zone: "Mesh.Example.org.", Public: addrs("203.0.113.5"), Listen: addrs("10.0.0.5")}
	own.Tunnel.Port = 5000
	empty := Paths{State: t.TempDir()}
	for name, test := range map[string]struct {
		cfg    Config
		zone   string
		public []string
		want   string
		err    string
	}{
		"the gateway":              {cfg: own, want: "mesh.example.org gateway [203.0.113.5] [5000 5001]"},
		"the gateway, of another":  {cfg: own, zone: "other.example.org", want: "other.example.org outside [] [41642 41643]"},
		"the gateway, other words": {cfg: own, zone: "mesh.example.org.", public: []string{"203.0.113.6"}, want: "mesh.example.org gateway [203.0.113.6] [5000 5001]"},
		"outside":                  {cfg: DefaultConfig(), zone: "mesh.example.org", public: []string{"::ffff:203.0.113.6"}, want: "mesh.example.org outside [203.0.113.6] [41642 41643]"},
		"nothing":                  {cfg: DefaultConfig(), err: "which zone is not known"},
		"no zone":                  {cfg: DefaultConfig(), zone: "co.uk", err: "zone co.uk: a public suffix"},
		"no address":               {cfg: DefaultConfig(), zone: "mesh.example.org", public: []string{"fe80::1%eth0"}, err: "--public fe80::1%eth0: not an address"},
	} {
		t.Run(name, func(t *testing.T) {
			f, err := empty.aimCheck(test.cfg, test.zone, test.public)
			if test.err != "" {
				if err == nil || !strings.HasPrefix(err.Error(), test.err) || !errors.Is(err, ErrBadRequest) {
					t.Errorf("error %v, want %s", err, test.err)
				}
				return
			}
			if got := fmt.Sprint(f.zone, " ", f.from, " ", f.public, " ", f.ports); err != nil || got != test.want {
				t.Errorf("%s, %v; want %s", got, err, test.want)
			}
		})
	}
}

// dnsAt serves at an address of loopback until the test ends.
func dnsAt(t *testing.T, at string, handle dns.HandlerFunc) {
	t.Helper()
	conn, err := net.ListenPacket("udp", at)
	if err != nil {
		t.Fatal(err)
	}
	s := &dns.Server{PacketConn: conn, Handler: handle}
	go func() { _ = s.ActivateAndServe() }()
	t.Cleanup(func() { _ = s.Shutdown() })
}

// A name server tells its clock with a cookie: here the real one, and a checker whose own clock is an hour ahead.
func TestAnHourShowsInACookie(t *testing.T) {
	a, err := resolver.NewAuthority(resolver.AuthorityConfig{Zone: "mesh.example.org", View: resolver.PublicView{
		Servers: map[string][]netip.Addr{"ns1.mesh.example.org.": addrs("127.80.9.20")},
	}})
	if err != nil {
		t.Fatal(err)
	}
	port := freePorts(t, "127.80.9.20")
	at := netip.AddrPortFrom(netip.MustParseAddr("127.80.9.20"), port)
	conn, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(at))
	if err != nil {
		t.Fatal(err)
	}
	ln, err := net.Listen("tcp", at.String())
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 2)
	go func() { done <- a.ServeUDP(ctx, conn) }()
	go func() { done <- a.ServeTCP(ctx, ln) }()
	defer func() { cancel(); <-done; <-done }()
	for _, off := range []time.Duration{0, time.Hour, -time.Hour} {
		w := &walker{port: port, left: maxWalk, now: func() time.Time { return time.Now().Add(off) }}
		s := serverFacts{addr: at.Addr()}
		s.ask(ctx, w, "mesh.example.org")
		if !s.udp.good() || !s.tcp.good() || !s.udp.exact || !s.udp.edns || s.open || len(s.ns) != 1 {
			t.Fatalf("%+v", s)
		}
		if diff := s.ahead + off; !s.timed || abs(diff) > 30*time.Second {
			t.Errorf("with this machine's clock off by %s the server's is ahead by %s", off, s.ahead)
		}
	}
}

// A walk ends, whatever servers say.
func TestAWalkEnds(t *testing.T) {
	const at = "127.80.9.21"
	port := freePorts(t, at)
	var asked atomic.Int64
	depth := 0
	dnsAt(t, netip.AddrPortFrom(netip.MustParseAddr(at), port).String(), func(w dns.ResponseWriter, q *dns.Msg) {
		asked.Add(1)
		m := new(dns.Msg).SetReply(q)
		name := q.Question[0].Name
		depth++
		owner := name
		if labels := dns.SplitDomainName(name); len(labels) > depth%4 {
			owner = dns.Fqdn(strings.Join(labels[len(labels)-1-depth%4:], "."))
		}
		for i := range 40 { // to servers that nobody has the address of, and that lie below more such
			m.Ns = append(m.Ns, &dns.NS{Hdr: dns.RR_Header{Name: owner, Rrtype: dns.TypeNS, Class: dns.ClassINET}, Ns: fmt.Sprintf("ns%d-%d.a.b.c.example.", depth, i)})
		}
		_ = w.WriteMsg(m)
	})
	w := &walker{port: port, roots: addrs(at), left: maxWalk, now: time.Now}
	f := w.parentOf(t.Context(), "x.y.z.example.org")
	if f.err == nil && len(f.servers) > maxParents || asked.Load() > 2*maxWalk {
		t.Errorf("%d questions; %+v", asked.Load(), f)
	}
}

// The walk copes with a parent whose servers serve what is above as well, and with what answers nonsense.
func TestAWalkFindsTheParent(t *testing.T) {
	const root, org = "127.80.9.22", "127.80.9.23"
	port := freePorts(t, root)
	rr := func(text string) dns.RR {
		r, err := dns.NewRR(text)
		if err != nil {
			t.Fatal(err)
		}
		return r
	}
	dnsAt(t, netip.AddrPortFrom(netip.MustParseAddr(root), port).String(), func(w dns.ResponseWriter, q *dns.Msg) {
		m := new(dns.Msg).SetReply(q)
		m.Ns, m.Extra = []dns.RR{rr("org. 60 NS ns.org.")}, []dns.RR{rr("ns.org. 60 A " + org)}
		_ = w.WriteMsg(m)
	})
	dnsAt(t, netip.AddrPortFrom(netip.MustParseAddr(org), port).String(), func(w dns.ResponseWriter, q *dns.Msg) {
		m := new(dns.Msg).SetReply(q)
		soa := rr("example.org. 60 SOA ns.org. h.org. 1 1 1 1 1")
		opt := q.IsEdns0()
		m.SetEdns0(1232, false)
		if c := opt.Option[0].(*dns.EDNS0_COOKIE); len(c.Cookie) == 16 { // it first wants to see that the address is real
			m.Rcode = dns.RcodeBadCookie
			m.IsEdns0().Option = []dns.EDNS0{&dns.EDNS0_COOKIE{Code: dns.EDNS0COOKIE, Cookie: c.Cookie + fmt.Sprintf("01000000%08x", time.Now().Unix()) + strings.Repeat("02", 8)}}
			_ = w.WriteMsg(m)
			return
		}
		switch name, qtype := q.Question[0].Name, q.Question[0].Qtype; {
		case name == "mesh.example.org." && qtype == dns.TypeNS:
			m.Ns, m.Extra = []dns.RR{rr("mesh.example.org. 60 NS NS1.mesh.example.org.")}, []dns.RR{rr("ns1.mesh.example.org. 60 A 203.0.113.5")}
		case name == "mesh.example.org." && qtype == dns.TypeDS:
			m.Authoritative, m.Answer = true, []dns.RR{rr("mesh.example.org. 60 DS 1 13 2 " + strings.Repeat("ab", 32))}
		case name == "example.org." && qtype == dns.TypeNS:
			m.Authoritative, m.Answer, m.Extra = true, []dns.RR{rr("example.org. 60 NS ns.org.")}, []dns.RR{rr("ns.org. 60 A " + org)}
		default:
			m.Authoritative, m.Ns = true, []dns.RR{soa}
		}
		_ = w.WriteMsg(m)
	})
	w := &walker{port: port, roots: addrs("127.80.9.24", root), left: maxWalk, now: time.Now} // at the first of which nobody is
	f := w.parentOf(t.Context(), "mesh.example.org")
	if f.err != nil || f.zone != "example.org" || len(f.servers) != 1 || len(f.ds) != 1 || f.servers[0].err != nil {
		t.Fatalf("%+v", f)
	}
	given := f.delegated()
	if got := serverNames(given) + " " + listAddrs(given[0].addrs); got != "ns1.mesh.example.org 203.0.113.5" || f.servers[0].serves {
		t.Errorf("%s, %+v", got, f.servers[0])
	}
}

// Many networks answer questions to port 53 themselves, whoever they were for: that is no word of the parent's.
func TestANetworkThatAnswersItselfIsNotBelieved(t *testing.T) {
	const at = "127.80.9.25"
	port := freePorts(t, at)
	dnsAt(t, netip.AddrPortFrom(netip.MustParseAddr(at), port).String(), func(w dns.ResponseWriter, q *dns.Msg) {
		m := new(dns.Msg).SetReply(q)
		m.RecursionAvailable = true
		if q.Question[0].Name == "mesh.example.org." {
			m.Answer = []dns.RR{&dns.NS{Hdr: dns.RR_Header{Name: "mesh.example.org.", Rrtype: dns.TypeNS, Class: dns.ClassINET}, Ns: "ns1.mesh.example.org."}}
		}
		_ = w.WriteMsg(m)
	})
	w := &walker{port: port, roots: addrs(at), left: maxWalk, now: time.Now}
	if f := w.parentOf(t.Context(), "mesh.example.org"); !errors.Is(f.err, errRedirected) {
		t.Errorf("%+v", f)
	}
	if d := w.delegation(t.Context(), netip.MustParseAddr(at), "mesh.example.org."); !errors.Is(d.err, errRedirected) || len(d.ns) > 0 {
		t.Errorf("%+v", d)
	}
}

// FuzzCheckReplies reads what servers answer that are not ours.
func FuzzCheckReplies(f *testing.F) {
	m := probeOf("mesh.example.org", dns.TypeNS)
	m.Response = true
	for i := range 3 {
		m.Ns = append(m.Ns, &dns.NS{Hdr: dns.RR_Header{Name: "example.org.", Rrtype: dns.TypeNS, Class: dns.ClassINET}, Ns: fmt.Sprintf("ns%d.example.org.", i)})
	}
	m.IsEdns0().Option = []dns.EDNS0{&dns.EDNS0_COOKIE{Code: dns.EDNS0COOKIE, Cookie: strings.Repeat("01", 8) + "010000006553f100" + strings.Repeat("02", 8)}}
	data, err := m.Pack()
	if err != nil {
		f.Fatal(err)
	}
	f.Add(data)
	now := time.Unix(1_700_000_000, 0)
	f.Fuzz(func(t *testing.T, data []byte) {
		r := new(dns.Msg)
		if r.Unpack(data) != nil {
			return
		}
		if at, ok := cookieTime(m, r, now); ok && abs(at.Sub(now)) > 70*365*24*time.Hour {
			t.Errorf("a cookie of %s", at)
		}
		next, ok := referral(r, "org.", "mesh.example.org")
		if ok && (len(next.servers) == 0 || len(next.servers) > maxServerNames || !dns.IsSubDomain(next.zone, "mesh.example.org.") || next.zone == "org.") {
			t.Errorf("%+v", next)
		}
		apexIn(r)
		p := parentFacts{zone: "org", servers: []delegating{{ns: serversIn(r.Ns, r.Extra, "mesh.example.org.")}}}
		c := gatewayFacts{zone: "mesh.example.org", public: addrs("203.0.113.5"), parent: p}
		for _, one := range c.judge().Findings {
			if strings.ContainsAny(one.Detail+one.Hint, "\n\x1b") {
				t.Errorf("%q", one)
			}
		}
	})
}

// A machine that may not read what root keeps still checks from outside, if it names the zone.
func TestACheckWithoutStateLooksFromOutside(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, membershipFile), []byte("nonsense"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := (Paths{State: dir}).aimCheck(DefaultConfig(), "", nil); err == nil {
		t.Error("a membership that is damaged was taken for none")
	}
	if f, err := (Paths{State: dir}).aimCheck(DefaultConfig(), "mesh.example.org", nil); err != nil || f.from != fromOutside {
		t.Errorf("%+v, %v", f, err)
	}
}

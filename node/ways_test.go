package node

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/netip"
	"testing"
	"time"

	"github.com/meshdns/meshdns/node/tunnel"
)

func TestWhereANodeIsTried(t *testing.T) {
	links := []link{{name: "eth0", addrs: []netip.Prefix{netip.MustParsePrefix("192.168.1.7/24"), netip.MustParsePrefix("fd00:1::7/64")}}}
	ranges := []netip.Prefix{netip.MustParsePrefix("10.9.0.0/20")}
	for name, tt := range map[string]struct {
		endpoint string
		local    bool
		tried    bool
	}{
		"public":                     {"198.51.100.1:41642", false, true},
		"on our link":                {"192.168.1.9:41642", false, true},
		"on our link, v6":            {"[fd00:1::9]:41642", false, true},
		"on another private link":    {"192.168.2.9:41642", false, false},
		"in the tailnet":             {"10.9.0.2:41642", false, false},
		"loopback":                   {"127.0.0.1:41642", false, false},
		"loopback, like the gateway": {"127.0.0.1:41642", true, true},
		"a port of a system service": {"198.51.100.1:53", false, false},
		"multicast":                  {"224.0.0.251:5353", false, false},
		"link-local":                 {"[fe80::1]:41642", false, false},
		"nowhere":                    {"0.0.0.0:41642", false, false},
		"broadcast":                  {"255.255.255.255:41642", false, false},
	} {
		got := candidatesOf([]netip.AddrPort{netip.MustParseAddrPort(tt.endpoint)}, links, ranges, tt.local)
		if (len(got) == 1) != tt.tried {
			t.Errorf("%s: %v", name, got)
		}
	}
	var many []netip.AddrPort
	for i := range 100 {
		many = append(many, netip.AddrPortFrom(netip.AddrFrom4([4]byte{198, 51, 100, byte(i)}), 41642))
	}
	many = append([]netip.AddrPort{many[0]}, append(many, netip.MustParseAddrPort("192.168.1.9:41642"))...)
	if got := candidatesOf(many, links, ranges, false); len(got) != maxEndpoints || got[1] == got[0] {
		t.Errorf("%d are tried: %v", len(got), got)
	}
}

// chatter is a connection between two nodes that never rests.
type chatter struct {
	conn net.Conn
	read *bufio.Reader
}

// startChatter has a node serve one connection of another one's, which repeats lines.
func startChatter(t *testing.T, server, client *testNode, name string) *chatter {
	t.Helper()
	m, _ := client.node.tailnet.current()
	node, _ := m.Node(name)
	at := netip.AddrPortFrom(node.Addresses[0], 7)
	ln, err := server.node.carrier.tunnel.Listen(t.Context(), "tcp", at)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ln.Close() })
	go func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				_, _ = io.Copy(c, c)
			}()
		}
	}()
	c, err := client.node.carrier.tunnel.Dial(t.Context(), "tcp", at)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return &chatter{c, bufio.NewReader(c)}
}

// say sends a line and waits for it to come back.
func (c *chatter) say(t *testing.T, line string) {
	t.Helper()
	c.sayWithin(t, line, time.Minute)
}

func (c *chatter) sayWithin(t *testing.T, line string, d time.Duration) {
	t.Helper()
	_ = c.conn.SetDeadline(time.Now().Add(d))
	if _, err := fmt.Fprintln(c.conn, line); err != nil {
		t.Fatal(err)
	}
	if got, err := c.read.ReadString('\n'); err != nil || got != line+"\n" {
		t.Fatalf("%q: %q, %v", line, got, err)
	}
}

// pathTo is how a node reaches another one.
func (n *testNode) pathTo(t *testing.T, name string) (state pathState, stats tunnel.PeerStats) {
	t.Helper()
	m, _ := n.node.tailnet.current()
	node, _ := m.Node(name)
	key, err := tunnel.ParseKey(node.Key)
	if err != nil {
		t.Fatal(err)
	}
	all, err := n.node.carrier.tunnel.Stats()
	if err != nil {
		t.Fatal(err)
	}
	n.node.paths.mu.Lock()
	defer n.node.paths.mu.Unlock()
	for _, s := range all {
		if p := n.node.paths.peers[key]; p != nil && s.Key == key {
			return p.state, s
		}
	}
	return "", tunnel.PeerStats{}
}

func (n *testNode) isDirect(t *testing.T, name string) bool {
	t.Helper()
	state, _ := n.pathTo(t, name)
	return state == direct
}

// A pair begins through the gateway and goes on directly, and goes on without the gateway; no connection is lost.
func TestAPairFindsItsDirectPath(t *testing.T) {
	g := startGateway(t)
	nas, tv := g.invited(t, "nas"), g.invited(t, "tv")
	soon(t, "names", func() bool { return nas.knows(t, "tv") && tv.knows(t, "nas") })
	c := startChatter(t, nas, tv, "nas")
	areDirect := func() bool { return tv.isDirect(t, "nas") && nas.isDirect(t, "tv") }
	soon(t, "the direct path", func() bool {
		c.say(t, "word")
		return areDirect()
	})
	// A machine that does much else may leave the path for a moment.
	soon(t, "a hundred words past the gateway", func() bool {
		relayed := g.node.gateway.relay.Stats().Passed
		for range 100 {
			c.say(t, "directly")
		}
		return g.node.gateway.relay.Stats().Passed-relayed <= 20 && areDirect()
	})
	if err := g.end(); err != nil {
		t.Fatal(err)
	}
	for range 20 {
		c.say(t, "without the gateway")
	}
	startGatewayWith(t, g.cfg, g.paths)
	soon(t, "the gateway to be back", func() bool {
		c.say(t, "while it comes back")
		return nas.hasStream() && tv.hasStream()
	})
}

// hasStream reports whether the gateway's stream is open.
func (n *testNode) hasStream() bool {
	n.node.member.mu.Lock()
	defer n.node.member.mu.Unlock()
	return !n.node.member.stream.IsZero()
}

// A relay that does not know a node any more is made to know it while nobody answers who is reached through it, and not more often
// than that.
func TestARelayThatDropsAllIsMetAgain(t *testing.T) {
	now := time.Now()
	s := paths{peers: map[tunnel.Key]*path{pathKey(1): newPath(nil, now), pathKey(2): newPath(nil, now)}}
	if s.waiting(now, refusedTime) {
		t.Error("nothing was sent")
	}
	s.peers[pathKey(2)].unanswered = now
	if s.waiting(now.Add(refusedTime-time.Second), refusedTime) {
		t.Error("a moment's silence counts")
	}
	if !s.waiting(now.Add(refusedTime), refusedTime) {
		t.Error("silence does not count")
	}
	s.peers[pathKey(2)].to(direct, now)
	if s.waiting(now.Add(refusedTime), refusedTime) {
		t.Error("silence on a direct path counts")
	}
}

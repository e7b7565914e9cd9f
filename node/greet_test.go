package node

import (
	"net/netip"
	"testing"
	"time"

	"github.com/meshdns/meshdns/node/control"
	"github.com/meshdns/meshdns/node/tunnel"
)

func TestWhoseGreetingOpensTheStreamAgain(t *testing.T) {
	server := netip.MustParseAddr("10.9.0.1")
	for name, tt := range map[string]struct {
		from   string
		stream time.Duration // since when it is open; 0: it is not
		joined bool
		again  bool
	}{
		"the gateway's":                         {"10.9.0.1", time.Hour, true, true},
		"the gateway's, while it is looked for": {"10.9.0.1", 0, true, true},
		"the gateway's, that knows us":          {"10.9.0.1", time.Second, true, false},
		"another node's":                        {"10.9.0.2", time.Hour, true, false},
		"to a node that has joined nothing":     {"10.9.0.1", time.Hour, false, false},
	} {
		n, ended := new(Node), false
		n.member.again, n.member.hangUp = make(chan struct{}, 1), func() { ended = true }
		if tt.joined {
			n.member.keeps = &membership{Gateways: []gatewayContact{{Server: server}}}
		}
		if tt.stream > 0 {
			n.member.stream = time.Now().Add(-tt.stream)
		}
		n.gatewayGreets(netip.MustParseAddr(tt.from))
		n.gatewayGreets(netip.MustParseAddr(tt.from))
		if ended != tt.again || len(n.member.again) == 1 != tt.again {
			t.Errorf("%s: the stream ends: %t, and is opened at once: %d", name, ended, len(n.member.again))
		}
	}
	new(Node).gatewayGreets(server) // before anything was opened
}

func TestAGreetingIsNotAnswered(t *testing.T) {
	var from []string
	e := testEcho("10.9.0.1")
	e.greeted = func(a netip.Addr) { from = append(from, a.String()) }
	for _, source := range []string{"10.9.0.1:41445", "10.9.0.3:41445"} {
		if got := e.take(netip.MustParseAddrPort(source), echoMessage(echoGreet, 0), time.Now()); got != nil {
			t.Errorf("%s: answered %q", source, got)
		}
	}
	if len(from) != 1 || from[0] != "10.9.0.1" {
		t.Errorf("greetings of %v are taken, want the peer's alone", from)
	}
}

func TestAGatewayKeepsWhereItsNodesAre(t *testing.T) {
	now, at := time.Now(), netip.MustParseAddrPort("198.51.100.1:41642")
	key := func(i int) control.WireGuardKey { return control.WireGuardKey(pathKey(i)) }
	s := paths{last: map[tunnel.Key]lastPath{pathKey(1): lastAt(1, "192.0.2.1:41642", now), pathKey(2): lastAt(2, "192.0.2.2:41642", now), pathKey(3): lastAt(3, "192.0.2.3:41642", now)}}
	s.noteNodes(map[control.WireGuardKey]netip.AddrPort{key(1): at}, map[control.WireGuardKey]string{key(1): "nas", key(2): "tv"}, now)
	if len(s.last) != 2 || s.last[pathKey(1)].At != at || s.last[pathKey(2)].At == at || !s.unsaved {
		t.Errorf("got %v, want a new place, one of before, and nothing of who was removed", s.last)
	}
}

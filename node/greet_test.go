package node

import (
	"net/netip"
	"testing"
	"testing/synctest"
	"time"

	"github.com/meshdns/meshdns/node/control"
	"github.com/meshdns/meshdns/node/tunnel"
)

func TestWhoseGreetingOpensTheStreamAgain(t *testing.T) {
	server := netip.MustParseAddr("10.9.0.1")
	for name, tt := range map[string]struct {
		from   string
		epoch  uint64
		open   bool          // the stream is
		begun  time.Duration // since when it is tried
		joined bool
		again  bool
	}{
		"the gateway's":                         {"10.9.0.1", 8, true, time.Second, true, true},
		"the gateway's, while it is looked for": {"10.9.0.1", 8, false, time.Minute, true, true},
		"the gateway's, which is found":         {"10.9.0.1", 8, false, time.Second, true, false},
		"the gateway's, that knows us":          {"10.9.0.1", 7, true, time.Hour, true, false},
		"of a gateway before":                   {"10.9.0.1", 6, true, time.Hour, true, false},
		"another node's":                        {"10.9.0.2", 8, true, time.Hour, true, false},
		"to a node that has joined nothing":     {"10.9.0.1", 8, true, time.Hour, false, false},
	} {
		n, ended := new(Node), false
		n.member.again, n.member.hangUp = make(chan struct{}, 1), func() { ended = true }
		if tt.joined {
			n.member.keeps = &membership{Gateways: []gatewayContact{{Server: server}}, Map: &control.Map{Epoch: 7}}
		}
		n.member.begun = time.Now().Add(-tt.begun)
		if tt.open {
			n.member.stream = n.member.begun
		}
		n.gatewayGreets(netip.MustParseAddr(tt.from), tt.epoch)
		n.gatewayGreets(netip.MustParseAddr(tt.from), tt.epoch)
		n.member.mu.Lock() // a greeting that is left for now is looked at again
		if ended != tt.again || len(n.member.again) == 1 != tt.again {
			t.Errorf("%s: the stream ends: %t, and is opened at once: %d", name, ended, len(n.member.again))
		}
		n.member.mu.Unlock()
	}
	new(Node).gatewayGreets(server, 8) // before anything was opened
}

// A try of the stream that was begun with the gateway that is gone is found by a look a moment later.
func TestAGreetedTryThatFindsNobodyEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		server := netip.MustParseAddr("10.9.0.1")
		for found, want := range map[bool]int{true: 0, false: 1} {
			n, ended := new(Node), 0
			n.member.again, n.member.hangUp = make(chan struct{}, 1), func() { ended++ }
			n.member.keeps = &membership{Gateways: []gatewayContact{{Server: server}}, Map: &control.Map{Epoch: 7}}
			n.member.begun = time.Now()
			n.gatewayGreets(server, 8)
			if found {
				n.member.mu.Lock()
				n.member.stream, n.member.keeps.Map = time.Now(), &control.Map{Epoch: 8}
				n.member.mu.Unlock()
			}
			time.Sleep(2 * greetSoon)
			n.member.mu.Lock()
			if ended != want {
				t.Errorf("found: %t, and ended %d times", found, ended)
			}
			n.member.mu.Unlock()
		}
	})
}

func TestAGreetingIsNotAnswered(t *testing.T) {
	var from []string
	e := testEcho("10.9.0.1")
	e.greeted = func(a netip.Addr, _ uint64) { from = append(from, a.String()) }
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

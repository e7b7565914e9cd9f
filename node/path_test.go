package node

import (
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/meshdns/meshdns/node/tunnel"
)

// pair is two nodes that speak to each other, with WireGuard, NATs and a relay as far as paths have to do with them.
type pair struct {
	now     time.Time
	nodes   [2]*pairNode
	flying  []pairPacket
	relay   time.Duration // how long a packet takes
	direct  time.Duration
	late    time.Duration // by how much each look is
	gateway bool
	unaware bool              // the nodes have not noticed that it is dead
	known   map[int]bool      // sessions that the relay knows
	last    int               // session that was made
	blocked [2]bool           // what a node sends directly is lost
	each    time.Duration     // between packets of each to the other, about; 0: there are none
	lost    int               // packets of traffic
	got     map[pathState]int // packets of traffic by how they came
	changes []pathState       // of the first node
	random  *rand.Rand
}

type pairNode struct {
	path    *path
	last    netip.AddrPort // where it has reached the other one
	stats   tunnel.PeerStats
	public  netip.AddrPort
	nat     string // "", "restricted" or "symmetric"
	opened  time.Time
	look    time.Time
	speak   time.Time
	session int // 0: none
	before  int // the session before
	next    int // one that we answered to, and that is not confirmed
	asked   time.Time
	asks    int
}

type pairPacket struct {
	at      time.Time
	to      int
	from    netip.AddrPort
	kind    byte // 'd' traffic, 'q' question, 'a' answer, 'i' initiation, 'r' response, 'k' keepalive
	session int
}

var pairRelay = netip.MustParseAddrPort("203.0.113.5:41643")

func newPair() *pair {
	p := &pair{
		now: time.Unix(1e9, 0), relay: 20 * time.Millisecond, direct: 5 * time.Millisecond, gateway: true, each: 10 * time.Millisecond,
		got: map[pathState]int{}, known: map[int]bool{1: true}, last: 1, random: rand.New(rand.NewPCG(1, 2)),
	}
	for i, public := range []string{"192.0.2.1:41642", "198.51.100.1:41642"} {
		p.nodes[i] = &pairNode{
			path: newPath([]netip.AddrPort{pairRelay}, p.now), public: netip.MustParseAddrPort(public), session: 1,
			stats: tunnel.PeerStats{Endpoint: pairRelay, Handshake: p.now},
		}
	}
	return p
}

// introduce tells nodes where the other one may be.
func (p *pair) introduce(who ...int) {
	for _, i := range who {
		p.nodes[i].path.introduce([]netip.AddrPort{netip.MustParseAddrPort("10.1.1.1:41642"), p.nodes[1-i].public}, p.now, false)
		p.nodes[i].look = p.now
	}
}

// send sends in the session, and begins one where there is none or, by the first node, where it is old.
func (p *pair) send(i int, kind byte) {
	n := p.nodes[i]
	old := i == 0 && p.now.Sub(n.stats.Handshake) > 2*time.Minute
	if (n.session == 0 || old) && p.now.Sub(n.asked) > 5*time.Second {
		n.asked = p.now
		p.pass(i, 'i', 0)
	}
	if n.session != 0 {
		p.pass(i, kind, n.session)
	} else if kind == 'd' {
		p.lost++
	}
}

// pass puts a packet on its way.
func (p *pair) pass(i int, kind byte, session int) {
	n, other := p.nodes[i], p.nodes[1-i]
	n.stats.Sent += 100
	packet := pairPacket{to: 1 - i, kind: kind, from: n.public, session: session}
	switch {
	case n.stats.Endpoint == pairRelay && p.gateway && (session == 0 || kind == 'r' || p.known[session]):
		packet.from, packet.at = pairRelay, p.now.Add(p.relay)
		p.known[session] = true
	case n.stats.Endpoint == other.public || n.stats.Endpoint == changedPort(other.public):
		n.opened = p.now
		if n.nat == "symmetric" {
			packet.from = changedPort(n.public)
		}
		packet.at = p.now.Add(p.direct)
		shut := other.nat != "" && p.now.Sub(other.opened) > 30*time.Second || other.nat == "symmetric" && n.stats.Endpoint == other.public ||
			other.nat == "restricted" && n.nat == "symmetric"
		if shut || p.blocked[i] {
			packet.at = time.Time{}
		}
	}
	if !packet.at.IsZero() {
		p.flying = append(p.flying, packet)
	} else if kind == 'd' {
		p.lost++
	}
}

func changedPort(a netip.AddrPort) netip.AddrPort { return netip.AddrPortFrom(a.Addr(), a.Port()+1000) }

func (p *pair) arrive() {
	flying := p.flying
	p.flying = nil
	for _, f := range flying {
		if f.at.After(p.now) {
			p.flying = append(p.flying, f)
		} else {
			p.take(f)
		}
	}
}

// take is what WireGuard does with a packet.
func (p *pair) take(f pairPacket) {
	n := p.nodes[f.to]
	fresh := f.session != 0 && f.session == n.next
	authentic := f.kind == 'i' || f.kind == 'r' && !n.asked.IsZero() || fresh || f.session != 0 && (f.session == n.session || f.session == n.before)
	if !authentic {
		if f.kind == 'd' {
			p.lost++
		}
		return
	}
	n.stats.Received += 100
	n.stats.Endpoint = f.from
	if fresh || f.kind == 'r' {
		n.before = n.session
		if !fresh && n.next != 0 {
			n.before = n.next // both have begun one at once
		}
		n.session, n.next, n.stats.Handshake = f.session, 0, p.now
	}
	switch f.kind {
	case 'i':
		p.last++
		n.next = p.last
		p.pass(f.to, 'r', n.next)
	case 'r':
		n.asked = time.Time{}
		p.pass(f.to, 'k', n.session)
	case 'q':
		p.send(f.to, 'a')
	case 'd':
		if f.from == pairRelay {
			p.got[relayed]++
		} else {
			p.got[direct]++
		}
	}
}

func (p *pair) step(i int) {
	n := p.nodes[i]
	if n.look.After(p.now) {
		return
	}
	was := n.path.state
	m := n.path.step(pathFacts{now: p.now, stats: n.stats, gateway: p.gateway || p.unaware, room: true, last: n.last})
	if m.to.IsValid() {
		n.stats.Endpoint = m.to
		if m.renew {
			n.stats.Received, n.stats.Sent, n.stats.Handshake = 0, 0, time.Time{}
			n.session, n.before, n.next, n.asked = 0, 0, 0, time.Time{}
		}
		n.path.based(n.stats.Received)
	}
	if m.nudge {
		p.send(i, 'q')
	}
	if m.ask {
		n.asks++
		p.introduce(1 - i)
		n.path.introduce([]netip.AddrPort{netip.MustParseAddrPort("10.1.1.1:41642"), p.nodes[1-i].public}, p.now, true)
	}
	n.look = p.now.Add(m.wait + p.late)
	if i == 0 && n.path.state != was {
		p.changes = append(p.changes, n.path.state)
	}
}

func (p *pair) run(d time.Duration) {
	for end := p.now.Add(d); p.now.Before(end); p.now = p.now.Add(time.Millisecond) {
		p.arrive()
		for i, n := range p.nodes {
			if p.each > 0 && !n.speak.After(p.now) {
				n.speak = p.now.Add(time.Duration(p.random.Int64N(2 * int64(p.each))))
				p.send(i, 'd')
			}
			p.step(i)
		}
	}
}

func (p *pair) both(s pathState) bool {
	return p.nodes[0].path.state == s && p.nodes[1].path.state == s
}

func TestPathsBetweenTwo(t *testing.T) {
	for name, tt := range map[string]struct {
		set      func(*pair)
		tell     []int
		direct   bool
		maxLost  float64 // of traffic
		maxMoves int
	}{
		"no NAT":                     {func(*pair) {}, []int{0, 1}, true, 0.01, 3},
		"one is told only":           {func(*pair) {}, []int{1}, true, 0.01, 3},
		"nobody is told, one asks":   {func(*pair) {}, nil, true, 0.01, 3},
		"both behind a NAT":          {func(p *pair) { p.nodes[0].nat, p.nodes[1].nat = "restricted", "restricted" }, []int{0, 1}, true, 0.01, 3},
		"one behind a symmetric NAT": {func(p *pair) { p.nodes[0].nat = "symmetric" }, []int{0, 1}, true, 0.01, 3},
		"a slow direct path":         {func(p *pair) { p.direct = 150 * time.Millisecond }, []int{0, 1}, true, 0.01, 3},
		"much traffic":               {func(p *pair) { p.each = time.Millisecond }, []int{0, 1}, true, 0.01, 5},
		"much traffic, behind NATs":  {func(p *pair) { p.each = time.Millisecond; p.nodes[0].nat, p.nodes[1].nat = "restricted", "restricted" }, []int{0, 1}, true, 0.01, 5},
		"a busy machine":             {func(p *pair) { p.late = 300 * time.Millisecond }, []int{0, 1}, true, 0.03, 5},
		"a busy machine, behind NATs": {func(p *pair) {
			p.late = 300 * time.Millisecond
			p.nodes[0].nat, p.nodes[1].nat = "restricted", "restricted"
		}, []int{0, 1}, true, 0.03, 5},
		"a very slow gateway":            {func(p *pair) { p.relay = 400 * time.Millisecond }, []int{0, 1}, true, 0.01, 5},
		"no direct path":                 {func(p *pair) { p.nodes[0].nat, p.nodes[1].nat = "symmetric", "symmetric" }, []int{0, 1}, false, 0.02, 16},
		"a direct path of one direction": {func(p *pair) { p.blocked[1] = true }, []int{0, 1}, false, 0.05, 24},
	} {
		t.Run(name, func(t *testing.T) {
			p := newPair()
			tt.set(p)
			p.run(time.Second)
			p.introduce(tt.tell...)
			p.run(6 * time.Minute)
			if !tt.direct {
				p.run(9 * time.Minute)
			}
			total := float64(p.got[relayed] + p.got[direct] + p.lost)
			want := relayed
			if tt.direct {
				want = direct
			}
			if float64(p.got[want]) < 0.9*total || tt.direct && !p.both(direct) {
				t.Errorf("came by %v of %.0f; states %s, %s", p.got, total, p.nodes[0].path.state, p.nodes[1].path.state)
			}
			if part := float64(p.lost) / total; part > tt.maxLost {
				t.Errorf("%.3f of the traffic was lost", part)
			}
			if len(p.changes) > tt.maxMoves {
				t.Errorf("%d changes: %v", len(p.changes), p.changes)
			}
			if p.nodes[0].asks+p.nodes[1].asks > 20 {
				t.Errorf("the gateway was asked %d and %d times in a quarter of an hour", p.nodes[0].asks, p.nodes[1].asks)
			}
		})
	}
}

func TestADirectPathThatDiesIsLeft(t *testing.T) {
	p := newPair()
	p.introduce(0, 1)
	p.run(4 * time.Minute) // the session is one that the relay does not know
	if !p.both(direct) {
		t.Fatal(p.nodes[0].path.state, p.nodes[1].path.state)
	}
	p.blocked = [2]bool{true, true}
	p.lost, p.got = 0, map[pathState]int{}
	p.run(10 * time.Second)
	if got := p.got[relayed]; got < 2*300 {
		t.Errorf("%v came within 10 s, %d were lost", p.got, p.lost)
	}
	p.run(time.Minute)
	if p.nodes[0].path.state == direct || p.nodes[1].path.state == direct {
		t.Error("the path is still taken for a direct one")
	}
	p.blocked = [2]bool{}
	p.run(2 * time.Minute)
	if !p.both(direct) {
		t.Errorf("it is not taken again: %s, %s", p.nodes[0].path.state, p.nodes[1].path.state)
	}
}

func TestDirectPathsOutliveTheGateway(t *testing.T) {
	p := newPair()
	p.introduce(0, 1)
	p.run(5 * time.Second)
	p.gateway = false
	p.lost, p.got = 0, map[pathState]int{}
	p.run(20 * time.Minute)
	if !p.both(direct) || p.lost != 0 {
		t.Errorf("%s, %s, %d lost", p.nodes[0].path.state, p.nodes[1].path.state, p.lost)
	}
}

// Once nothing is said for long the next word goes to the gateway, which knows where the peer is by then.
func TestAQuietPathEndsInTheGatewaysHands(t *testing.T) {
	p := newPair()
	p.introduce(0, 1)
	p.run(10 * time.Second)
	if got := p.nodes[0].path.keepalive(p.now); got != gatewayKeepalive {
		t.Errorf("keepalive %s on a path in use", got)
	}
	p.each = 0
	p.run(10 * time.Minute)
	if !p.both(relayed) || p.nodes[0].stats.Endpoint != pairRelay || p.nodes[0].path.keepalive(p.now) != 0 || p.nodes[0].asks > 2 {
		t.Errorf("%s, %s, %s, asked %d times", p.nodes[0].path.state, p.nodes[1].path.state, p.nodes[0].stats.Endpoint, p.nodes[0].asks)
	}
}

func TestANewNetworkIsTriedAtOnce(t *testing.T) {
	p := newPair()
	p.blocked = [2]bool{true, true}
	p.introduce(0, 1)
	p.run(10 * time.Minute)
	asked := p.nodes[0].asks
	p.blocked = [2]bool{}
	for _, n := range p.nodes {
		n.path.moved(p.now)
	}
	p.run(5 * time.Second)
	if !p.both(direct) || asked == 0 {
		t.Errorf("%s, %s, asked %d times", p.nodes[0].path.state, p.nodes[1].path.state, asked)
	}
}

// A gateway that was started anew knows no session. One that was made through it since is not made once more: WireGuard
// takes two that follow each other closely for a replay.
func TestASessionOfNowIsNotForgotten(t *testing.T) {
	for name, tt := range map[string]struct {
		handshake time.Duration // after the gateway's start
		renew     bool
	}{"from before": {-time.Minute, true}, "from afterwards": {time.Second, false}} {
		now := time.Unix(1e9, 0)
		p := newPath([]netip.AddrPort{pairRelay}, now)
		p.relayRestarted(now)
		f := pathFacts{now: now.Add(2 * time.Second), gateway: true, stats: tunnel.PeerStats{Endpoint: pairRelay, Handshake: now.Add(tt.handshake)}}
		if m := p.step(f); m.renew != tt.renew || !p.forgotten.IsZero() {
			t.Errorf("%s: %+v", name, m)
		}
	}
}

// restart has a node begin anew with what it kept.
func (p *pair) restart(i int) {
	old := p.nodes[i]
	p.nodes[i] = &pairNode{
		path: newPath([]netip.AddrPort{pairRelay}, p.now), last: p.nodes[1-i].public, public: old.public, nat: old.nat, opened: old.opened,
		look: p.now, stats: tunnel.PeerStats{Endpoint: pairRelay},
	}
}

// A node that boots while the gateway is down goes to where it has reached others, once somebody wants to.
func TestALastPathIsRecalledWithoutTheGateway(t *testing.T) {
	for name, tt := range map[string]struct {
		nat     string
		restart []int
		quiet   time.Duration
	}{
		"one starts anew":                   {"", []int{0}, 0},
		"one starts anew, behind NATs":      {"restricted", []int{1}, 0},
		"both start anew":                   {"", []int{0, 1}, 0},
		"both start anew, behind NATs":      {"restricted", []int{0, 1}, 0},
		"a path that was quiet for an hour": {"restricted", nil, time.Hour},
		"unaware":                           {"restricted", []int{0}, 0},
		"unaware, both":                     {"", []int{0, 1}, 0},
		"unaware, after an hour":            {"restricted", nil, time.Hour},
	} {
		t.Run(name, func(t *testing.T) {
			p := newPair()
			p.nodes[0].nat, p.nodes[1].nat = tt.nat, tt.nat
			p.introduce(0, 1)
			p.run(5 * time.Second)
			if !p.both(direct) {
				t.Fatal(p.nodes[0].path.state, p.nodes[1].path.state)
			}
			if tt.quiet > 0 {
				p.each = 0
				p.run(tt.quiet)
				p.each = 10 * time.Millisecond
			}
			p.gateway, p.unaware = false, strings.HasPrefix(name, "unaware")
			for i, n := range p.nodes {
				n.last = p.nodes[1-i].public
			}
			for _, i := range tt.restart {
				p.restart(i)
			}
			p.run(40 * time.Second)
			if !p.both(direct) {
				t.Errorf("%s, %s", p.nodes[0].path.state, p.nodes[1].path.state)
			}
		})
	}
}

// A last path that is none any more costs nothing once the gateway is back.
func TestALastPathThatIsNoneGivesWayToTheGateway(t *testing.T) {
	p := newPair()
	p.introduce(0, 1)
	p.run(5 * time.Second)
	p.gateway, p.blocked, p.changes = false, [2]bool{true, true}, nil
	p.restart(0)
	p.restart(1)
	p.run(10 * time.Minute)
	p.gateway, p.known = true, map[int]bool{}
	p.got = map[pathState]int{}
	p.run(12 * time.Second)
	if p.got[relayed] == 0 || slices.Contains(p.changes, settling) || p.nodes[0].path.state == recalled || p.nodes[1].path.state == recalled {
		t.Errorf("%v came; %s, %s", p.got, p.nodes[0].path.state, p.nodes[1].path.state)
	}
}

// Nobody who is not wanted is called.
func TestALastPathIsRecalledOnDemand(t *testing.T) {
	p := newPair()
	p.each, p.gateway = 0, false
	p.restart(0)
	p.restart(1)
	p.run(10 * time.Minute)
	if len(p.changes) > 0 || p.nodes[0].stats.Sent > 0 {
		t.Errorf("%v, %d bytes were sent", p.changes, p.nodes[0].stats.Sent)
	}
}

// A gateway that was started anew knows fewer places, or none, and says so in the midst of a trial.
func TestPlacesBecomeFewerInATrial(t *testing.T) {
	for after := range 200 {
		p := newPair()
		p.blocked = [2]bool{true, true}
		p.introduce(0, 1)
		p.run(time.Duration(after) * 10 * time.Millisecond)
		for _, n := range p.nodes {
			n.path.introduce([]netip.AddrPort{n.public}[:after%2], p.now, false)
		}
		p.run(3 * time.Second)
		if p.both(trying) {
			t.Fatalf("after %d looks: a trial without end", after)
		}
	}
}

// A relay that has begun anew drops handshakes until it knows both nodes: they are sent again soon, on demand, and not for ever.
func TestAHandshakeThatANewRelayDroppedIsSentAgain(t *testing.T) {
	now := time.Unix(1e9, 0)
	p := newPath([]netip.AddrPort{pairRelay}, now)
	p.relayRestarted(now)
	f := pathFacts{now: now, gateway: true, stats: tunnel.PeerStats{Endpoint: pairRelay}}
	if m := p.step(f); m.renew {
		t.Error("one is sent that nobody wants")
	}
	sent := 0
	for range 60 {
		f.now = f.now.Add(time.Second)
		f.stats.Sent += 148
		if m := p.step(f); m.renew {
			f.stats.Sent = 0
			p.based(0)
			sent++
		}
	}
	if sent != handshakesAgain {
		t.Errorf("%d are sent, want %d", sent, handshakesAgain)
	}
	p.relayRestarted(f.now)
	f.stats.Handshake = f.now.Add(time.Second)
	for range 10 {
		f.now = f.now.Add(time.Second)
		f.stats.Sent += 148
		if m := p.step(f); m.renew {
			t.Error("a session is made anew that there is")
		}
	}
}

// Where both sides could begin after the relay was started anew, one does, and the other one only if nothing came of that.
func TestOneSideBegins(t *testing.T) {
	now := time.Now()
	shook := now.Add(-time.Minute)
	for second, want := range map[bool]bool{false: true, true: false} {
		p := newPath([]netip.AddrPort{netip.MustParseAddrPort("192.0.2.1:1")}, now)
		p.second = second
		p.relayRestarted(now)
		if m := p.step(pathFacts{now: now, gateway: true, stats: tunnel.PeerStats{Handshake: shook}}); m.renew != want {
			t.Errorf("second: %t, and it begins: %t", second, m.renew)
		}
		if m := p.step(pathFacts{now: now.Add(secondBegins), gateway: true, stats: tunnel.PeerStats{Handshake: shook}}); m.renew == want {
			t.Errorf("second: %t, and later it begins: %t", second, m.renew)
		}
	}
	p := newPath([]netip.AddrPort{netip.MustParseAddrPort("192.0.2.1:1")}, now)
	p.second = true
	p.relayRestarted(now)
	if m := p.step(pathFacts{now: now.Add(secondBegins), gateway: true, stats: tunnel.PeerStats{Handshake: now.Add(time.Millisecond)}}); m.renew {
		t.Error("it begins although the other side has")
	}
}

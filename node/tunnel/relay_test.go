package tunnel

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/crypto/blake2s"
)

// startRelay has a relay serve a port of loopback until the test ends.
func startRelay(t *testing.T, cfg RelayConfig) (r *Relay, at netip.AddrPort) {
	t.Helper()
	if cfg.Key.IsZero() {
		cfg.Key = NewSecret()
	}
	r, err := NewRelay(cfg)
	if err != nil {
		t.Fatal(err)
	}
	conn, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- r.Serve(ctx, conn) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error("Serve: ", err)
		}
	})
	return r, conn.LocalAddr().(*net.UDPAddr).AddrPort()
}

// byRelay has nodes reach each other through the relay alone. Each makes a handshake with it first: what comes before that
// is from nobody, and sent again after 5 s only.
func byRelay(t *testing.T, r *Relay, at netip.AddrPort, nodes ...*testNode) {
	t.Helper()
	var keys []Key
	for _, n := range nodes {
		keys = append(keys, n.key.Public())
	}
	if err := r.SetPeers(keys); err != nil {
		t.Fatal(err)
	}
	set := func(n *testNode, others ...*testNode) {
		t.Helper()
		peers := []Peer{{Key: r.cfg.Key.Public(), Endpoint: at, Keepalive: 25 * time.Second}}
		for _, other := range others {
			if other != n {
				p := other.peer()
				p.Endpoint = at
				peers = append(peers, p)
			}
		}
		if err := n.SetPeers(peers); err != nil {
			t.Fatal(err)
		}
	}
	for _, n := range nodes {
		set(n)
	}
	until(t, "all nodes to be known", func() bool { return r.Stats().Nodes == len(nodes) })
	for _, n := range nodes {
		set(n, nodes...)
	}
}

func TestNodesSpeakThroughTheRelay(t *testing.T) {
	var mu sync.Mutex
	var wire bytes.Buffer // all that went out
	tap := func(c *Config) {
		c.Outgoing = func(_ netip.AddrPort, datagram []byte) bool {
			mu.Lock()
			defer mu.Unlock()
			wire.Write(datagram)
			return false
		}
	}
	met := make(chan [2]Key, 16)
	r, at := startRelay(t, RelayConfig{Met: func(a, b Key) {
		select {
		case met <- [2]Key{a, b}:
		default:
		}
	}})
	a, b, c := startNode(t, 1, tap), startNode(t, 2, tap), startNode(t, 3, nil)
	byRelay(t, r, at, a, b, c)
	echo(t, b.Tunnel, netip.AddrPortFrom(b.v4, 7))
	echo(t, c.Tunnel, netip.AddrPortFrom(c.v6, 7))

	const marker = "the quick brown fox of a marked transfer"
	conn := dial(t, a.Tunnel, netip.AddrPortFrom(b.v4, 7))
	defer conn.Close()
	for range 100 {
		if err := exchange(conn, marker); err != nil {
			t.Fatal(err)
		}
	}
	other := dial(t, a.Tunnel, netip.AddrPortFrom(c.v6, 7))
	defer other.Close()
	if err := exchange(other, "x"); err != nil {
		t.Fatal(err)
	}
	mu.Lock()
	defer mu.Unlock()
	if bytes.Contains(wire.Bytes(), []byte(marker)) || wire.Len() < 100*len(marker) {
		t.Errorf("the marker is among the %d bytes that were relayed", wire.Len())
	}
	if s := r.Stats(); s.Sessions < 4 || s.Sessions%2 != 0 || s.Passed < 200 || s.BytesTotal < 100*uint64(len(marker)) {
		t.Errorf("%+v", s)
	}
	if pair := <-met; pair[0] != b.key.Public() && pair[0] != a.key.Public() && pair[0] != c.key.Public() || pair[0] == pair[1] {
		t.Error("who has met is nobody")
	}
}

// A node with a new key speaks from the place that the old one had. Its handshake is completed by the first packet in the
// session, which on a long way comes when the rest of it was looked at long ago.
func TestANewKeyIsKnownAtTheSamePlace(t *testing.T) {
	var a *testNode
	var slow atomic.Bool
	a = startNode(t, 1, func(c *Config) {
		c.Outgoing = func(to netip.AddrPort, datagram []byte) bool {
			if datagram[0] != typeData || !slow.Load() {
				return false
			}
			late := bytes.Clone(datagram)
			time.AfterFunc(20*lookSoon, func() { _ = a.Send(to, late) }) // else it is lost
			return true
		}
	})
	b := startNode(t, 2, nil)
	r, at := startRelay(t, RelayConfig{})
	byRelay(t, r, at, a, b)
	next := NewSecret()
	if err := r.SetPeers([]Key{a.key.Public(), next.Public(), b.key.Public()}); err != nil {
		t.Fatal(err)
	}
	slow.Store(true)
	if err := errors.Join(a.SetKey(next), a.Renew(r.cfg.Key.Public(), at)); err != nil {
		t.Fatal(err)
	}
	until(t, "the new key to be known", func() bool {
		r.mu.Lock()
		defer r.mu.Unlock()
		n := r.table.byAddr[a.at]
		return n != nil && n.key == next.Public()
	})
}

func TestWhatPolicyForbidsIsNotRelayed(t *testing.T) {
	var a, b *testNode
	ready := make(chan struct{})
	r, at := startRelay(t, RelayConfig{Allow: func(from, to Key) bool { <-ready; return false }})
	a, b = startNode(t, 1, nil), startNode(t, 2, nil)
	close(ready)
	byRelay(t, r, at, a, b)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	go func() {
		if c, err := a.Dial(ctx, "tcp", netip.AddrPortFrom(b.v4, 7)); err == nil {
			c.Close()
		}
	}()
	until(t, "an initiation to be dropped", func() bool { return r.Stats().Dropped > 0 })
	if s := r.Stats(); s.Passed != 0 || s.Sessions != 0 {
		t.Errorf("%+v", s)
	}
}

// S5: a node that was removed has no way through the relay any more.
func TestARemovedNodeIsNotRelayed(t *testing.T) {
	r, at := startRelay(t, RelayConfig{})
	a, b := startNode(t, 1, nil), startNode(t, 2, nil)
	byRelay(t, r, at, a, b)
	echo(t, b.Tunnel, netip.AddrPortFrom(b.v4, 7))
	conn := dial(t, a.Tunnel, netip.AddrPortFrom(b.v4, 7))
	defer conn.Close()
	if err := exchange(conn, "x"); err != nil {
		t.Fatal(err)
	}
	if err := r.SetPeers([]Key{b.key.Public()}); err != nil {
		t.Fatal(err)
	}
	passed := r.Stats().Passed
	if _, err := io.WriteString(conn, "y"); err != nil {
		t.Fatal(err)
	}
	until(t, "its packets to be dropped", func() bool { return r.Stats().Dropped > 0 })
	if s := r.Stats(); s.Passed != passed || s.Sessions != 0 || s.Nodes != 1 {
		t.Errorf("%+v", s)
	}
}

// S7: whoever replays a node's packets from elsewhere has nothing passed on, and moves nobody.
func TestPacketsFromElsewhereAreDropped(t *testing.T) {
	var mu sync.Mutex
	var captured [][]byte
	r, at := startRelay(t, RelayConfig{})
	a := startNode(t, 1, func(c *Config) {
		c.Outgoing = func(_ netip.AddrPort, datagram []byte) bool {
			mu.Lock()
			defer mu.Unlock()
			captured = append(captured, bytes.Clone(datagram))
			return false
		}
	})
	b := startNode(t, 2, nil)
	byRelay(t, r, at, a, b)
	echo(t, b.Tunnel, netip.AddrPortFrom(b.v4, 7))
	conn := dial(t, a.Tunnel, netip.AddrPortFrom(b.v4, 7))
	defer conn.Close()
	if err := exchange(conn, "x"); err != nil {
		t.Fatal(err)
	}
	attacker, err := net.Dial("udp4", at.String())
	if err != nil {
		t.Fatal(err)
	}
	defer attacker.Close()
	before := r.Stats()
	mu.Lock()
	replayed := captured
	captured = nil
	mu.Unlock()
	kinds := map[byte]bool{}
	for _, datagram := range replayed {
		kinds[datagram[0]] = true
		if _, err := attacker.Write(datagram); err != nil {
			t.Fatal(err)
		}
	}
	if !kinds[typeInitiation] || !kinds[typeData] {
		t.Fatalf("captured %v", kinds)
	}
	// Those for the relay's own endpoint go there, which knows them for replayed; all others are dropped.
	until(t, "them to be dropped", func() bool { return r.Stats().Dropped > before.Dropped })
	if err := exchange(conn, "still here"); err != nil {
		t.Error(err)
	}
	if s := r.Stats(); s.Nodes != 2 || s.Sessions != before.Sessions {
		t.Errorf("%+v, before %+v", s, before)
	}
}

// tableRig is a relay's table with nodes a, b and c at 192.0.2.1 to .3.
type tableRig struct {
	relayTable

	now     time.Time
	a, b, c Key
	refused map[Key]bool
}

func newTableRig() *tableRig {
	g := &tableRig{now: time.Unix(1_000_000, 0), refused: map[Key]bool{}}
	g.relayTable = newRelayTable(func(_, to Key) bool { return !g.refused[to] })
	g.a, g.b, g.c = NewSecret().Public(), NewSecret().Public(), NewSecret().Public()
	g.setNodes([]Key{g.a, g.b, g.c})
	for i, k := range []Key{g.a, g.b, g.c} {
		g.move(k, placeOf(i+1), g.now)
	}
	return g
}

func placeOf(n int) relayPlace {
	return relayPlace{addr: netip.AddrPortFrom(netip.AddrFrom4([4]byte{192, 0, 2, byte(n)}), 41642)}
}

// wgMessage is a message of WireGuard's shape, with a mac1 for a key.
func wgMessage(kind byte, to Key, indices ...uint32) []byte {
	m := make([]byte, map[byte]int{typeInitiation: initiationLength, typeResponse: responseLength, typeCookie: cookieLength, typeData: 64}[kind])
	_, _ = rand.Read(m) // which never fails
	copy(m, []byte{kind, 0, 0, 0})
	for i, index := range indices {
		binary.LittleEndian.PutUint32(m[4+4*i:], index)
	}
	if kind == typeInitiation || kind == typeResponse {
		mac := newMAC1(to)
		h, _ := blake2s.New128(mac[:])
		h.Write(m[:len(m)-32])
		copy(m[len(m)-32:], h.Sum(nil))
	}
	return m
}

// pass is the number of the node that a datagram is passed to; 0: nobody.
func (g *tableRig) pass(from int, datagram []byte) int {
	to, _ := g.route(placeOf(from), datagram, g.now)
	for i, k := range []Key{g.a, g.b, g.c} {
		if to != nil && to.key == k {
			return i + 1
		}
	}
	return 0
}

func (g *tableRig) want(t *testing.T, what string, from int, datagram []byte, to int) {
	t.Helper()
	if got := g.pass(from, datagram); got != to {
		t.Errorf("%s: from %d to %d, want %d", what, from, got, to)
	}
}

// session makes one between nodes 1 and 2, with the indices 11 and 22.
func (g *tableRig) session(t *testing.T) {
	t.Helper()
	g.want(t, "an initiation", 1, wgMessage(typeInitiation, g.b, 11), 2)
	g.want(t, "its response", 2, wgMessage(typeResponse, g.a, 22, 11), 1)
}

func TestSessionsAreSendersAndIndices(t *testing.T) {
	g := newTableRig()
	g.want(t, "data without a session", 1, wgMessage(typeData, Key{}, 22), 0)
	g.session(t)
	g.want(t, "data", 1, wgMessage(typeData, Key{}, 22), 2)
	g.want(t, "as long as the MTU", 1, append(wgMessage(typeData, Key{}, 22), make([]byte, maxMTU)...), 2)
	g.want(t, "data back", 2, wgMessage(typeData, Key{}, 11), 1)
	g.want(t, "a third node's", 3, wgMessage(typeData, Key{}, 22), 0)
	g.want(t, "one's own index", 1, wgMessage(typeData, Key{}, 11), 0)
	g.want(t, "a second response", 2, wgMessage(typeResponse, g.a, 23, 11), 0)
	g.now = g.now.Add(sessionTime)
	g.want(t, "data after 180 s", 1, wgMessage(typeData, Key{}, 22), 0)
	g.forget(g.now)
	if len(g.sessions) != 0 || g.nodes[g.a].sessions != 0 || g.nodes[g.b].sessions != 0 {
		t.Errorf("%d sessions are left", len(g.sessions))
	}
}

func TestWhatIsPassedTowardsAnInitiation(t *testing.T) {
	g := newTableRig()
	g.want(t, "a cookie reply to nobody", 2, wgMessage(typeCookie, Key{}, 11), 0)
	g.want(t, "a response to nobody", 2, wgMessage(typeResponse, g.a, 22, 11), 0)
	g.want(t, "an initiation", 1, wgMessage(typeInitiation, g.b, 11), 2)
	g.want(t, "a third node's response", 3, wgMessage(typeResponse, g.a, 33, 11), 0)
	g.want(t, "a third node's cookie reply", 3, wgMessage(typeCookie, Key{}, 11), 0)
	g.want(t, "a cookie reply", 2, wgMessage(typeCookie, Key{}, 11), 1)
	g.now = g.now.Add(pendingTime)
	g.want(t, "a response that is late", 2, wgMessage(typeResponse, g.a, 22, 11), 0)
	g.forget(g.now)
	if len(g.nodes[g.a].pending) != 0 {
		t.Error("an initiation is remembered for ever")
	}
}

func TestWhoMayNotBePassedTo(t *testing.T) {
	g := newTableRig()
	g.want(t, "a stranger's address", 9, wgMessage(typeInitiation, g.b, 11), 0)
	g.want(t, "to oneself", 1, wgMessage(typeInitiation, g.a, 11), 0)
	g.want(t, "to nobody's key", 1, wgMessage(typeInitiation, NewSecret().Public(), 11), 0)
	g.refused[g.b] = true
	g.want(t, "what policy forbids", 1, wgMessage(typeInitiation, g.b, 11), 0)
	delete(g.refused, g.b)
	late := NewSecret().Public()
	g.setNodes([]Key{g.a, g.b, g.c, late})
	g.want(t, "to a node that is not there", 1, wgMessage(typeInitiation, late, 11), 0)
	for name, change := range map[string]func(m []byte) []byte{
		"cut short":      func(m []byte) []byte { return m[:len(m)-1] },
		"longer":         func(m []byte) []byte { return append(m, 0) },
		"reserved bytes": func(m []byte) []byte { m[2] = 1; return m },
		"another type":   func(m []byte) []byte { m[0] = 5; return m },
		"a wrong mac1":   func(m []byte) []byte { m[20]++; return m },
	} {
		g.want(t, name, 1, change(wgMessage(typeInitiation, g.b, 11)), 0)
	}
	for _, n := range []int{0, 1, 4, 8, 31} {
		g.want(t, "a datagram of few bytes", 1, make([]byte, n), 0)
	}
}

func TestInitiationsAreLimited(t *testing.T) {
	g := newTableRig()
	count := func(to Key, n int) (passed int) {
		for i := range n {
			if g.pass(1, wgMessage(typeInitiation, to, uint32(i))) != 0 {
				passed++
			}
		}
		return passed
	}
	if got := count(g.b, 50); got != initiationBurst {
		t.Errorf("%d initiations to one node, want %d", got, initiationBurst)
	}
	if got := count(g.c, 50); got != initiationBurst {
		t.Errorf("%d initiations to another, want %d", got, initiationBurst)
	}
	g.now = g.now.Add(2 * initiationEvery)
	if got := count(g.b, 50); got != 2 {
		t.Errorf("%d initiations after a while, want 2", got)
	}
	// Those that are for nobody cost a look at every key.
	nobody := wgMessage(typeInitiation, NewSecret().Public(), 1)
	for range 2 * trialBurst {
		g.pass(1, nobody)
	}
	if g.nodes[g.a].trials.left != 0 {
		t.Error("keys are tried without end")
	}
	g.want(t, "another node", 2, wgMessage(typeInitiation, g.c, 22), 3)
}

func TestStateIsBounded(t *testing.T) {
	g := newTableRig()
	for i := range 10 * maxPending {
		g.now = g.now.Add(initiationEvery / 8)
		g.pass(1, wgMessage(typeInitiation, g.b, uint32(i)))
		if len(g.nodes[g.a].pending) > maxPending {
			t.Fatalf("%d initiations are remembered", len(g.nodes[g.a].pending))
		}
	}
}

func TestOnlyANewerHandshakeMovesANode(t *testing.T) {
	g := newTableRig()
	g.session(t)
	g.move(g.a, placeOf(9), g.now)                  // no newer one
	g.move(NewSecret().Public(), placeOf(8), g.now) // nobody's
	g.want(t, "from elsewhere", 9, wgMessage(typeData, Key{}, 22), 0)
	g.move(g.a, placeOf(9), g.now.Add(time.Second))
	g.want(t, "from where it was", 1, wgMessage(typeData, Key{}, 22), 0)
	g.want(t, "from where it is", 9, wgMessage(typeData, Key{}, 22), 2)
	if to, _ := g.route(placeOf(2), wgMessage(typeData, Key{}, 11), g.now); to == nil || to.place != placeOf(9) {
		t.Error("packets to it go where it was")
	}
	// Two nodes behind one address: the newer one has it.
	g.move(g.c, placeOf(9), g.now.Add(2*time.Second))
	g.want(t, "who had the address", 9, wgMessage(typeData, Key{}, 22), 0)
	g.setNodes([]Key{g.a, g.b})
	if len(g.byAddr) != 1 {
		t.Errorf("%d addresses are left", len(g.byAddr))
	}
}

// A datagram that is passed on is WireGuard's, from a node, and to another node.
func FuzzRelay(f *testing.F) {
	g := newTableRig()
	for _, kind := range []byte{typeInitiation, typeResponse, typeCookie, typeData} {
		f.Add(byte(1), wgMessage(kind, g.b, 11, 22))
	}
	f.Fuzz(func(t *testing.T, from byte, datagram []byte) {
		g := newTableRig()
		g.session(t)
		own := newMAC1(g.c)
		_ = g.isOwn(own, placeOf(int(from)), datagram, g.now)
		to, met := g.route(placeOf(int(from)), datagram, g.now)
		if to == nil {
			return
		}
		if from < 1 || from > 3 || to == g.byAddr[placeOf(int(from)).addr] || messageType(datagram) == 0 || met != nil && datagram[0] != typeResponse {
			t.Errorf("from %d: %x is passed on", from, datagram)
		}
	})
}

package node

import (
	"crypto/ecdh"
	"crypto/hmac"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"hash"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"golang.org/x/crypto/blake2s"
	"golang.org/x/crypto/chacha20poly1305"

	"github.com/meshdns/meshdns/node/control"
	"github.com/meshdns/meshdns/node/tunnel"
)

// noise is one side of WireGuard's handshake, as far as its first message goes (the WireGuard paper, section 5.4.2).
type noise struct {
	t           *testing.T
	chain, hash [blake2s.Size]byte
}

func (n *noise) mix(b []byte) { n.hash = blake2s.Sum256(append(n.hash[:], b...)) }

// kdf takes something into the chaining key, and returns a key made with it.
func (n *noise) kdf(b []byte) []byte {
	sum := func(key, b []byte) []byte {
		h := hmac.New(func() hash.Hash {
			h, err := blake2s.New256(nil)
			if err != nil {
				n.t.Fatal(err)
			}
			return h
		}, key)
		h.Write(b)
		return h.Sum(nil)
	}
	first := sum(n.chain[:], b)
	next := sum(first, []byte{1})
	n.chain = [blake2s.Size]byte(next)
	return sum(first, append(next, 2))
}

func (n *noise) seal(key, b []byte) []byte {
	aead, err := chacha20poly1305.New(key)
	if err != nil {
		n.t.Fatal(err)
	}
	sealed := aead.Seal(nil, make([]byte, aead.NonceSize()), b, n.hash[:])
	n.mix(sealed)
	return sealed
}

// initiation is the message that a machine with a clock of its own begins a handshake with.
func initiation(t *testing.T, from tunnel.Secret, to tunnel.Key, now time.Time) []byte {
	t.Helper()
	key := func(b []byte, err error) *ecdh.PrivateKey {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		k, err := ecdh.X25519().NewPrivateKey(b)
		if err != nil {
			t.Fatal(err)
		}
		return k
	}
	own := key(from[:], nil)
	ephemeral := key(func() ([]byte, error) { b := make([]byte, 32); _, err := rand.Read(b); return b, err }())
	theirs, err := ecdh.X25519().NewPublicKey(to[:])
	if err != nil {
		t.Fatal(err)
	}
	shared := func(k *ecdh.PrivateKey) []byte {
		b, err := k.ECDH(theirs)
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	n := &noise{t: t, chain: blake2s.Sum256([]byte("Noise_IKpsk2_25519_ChaChaPoly_BLAKE2s"))}
	n.hash = n.chain
	n.mix([]byte("WireGuard v1 zx2c4 Jason@zx2c4.com"))
	n.mix(to[:])
	m := []byte{1, 0, 0, 0, 9, 9, 9, 9}
	m = append(m, ephemeral.PublicKey().Bytes()...)
	n.kdf(ephemeral.PublicKey().Bytes())
	n.mix(ephemeral.PublicKey().Bytes())
	m = append(m, n.seal(n.kdf(shared(ephemeral)), own.PublicKey().Bytes())...)
	stamp := binary.BigEndian.AppendUint64(nil, 0x400000000000000a+uint64(now.Unix())) // TAI64N
	m = append(m, n.seal(n.kdf(shared(own)), append(stamp, 0, 0, 0, 0))...)
	label := blake2s.Sum256(append([]byte("mac1----"), to[:]...))
	mac, err := blake2s.New128(label[:])
	if err != nil {
		t.Fatal(err)
	}
	mac.Write(m)
	return append(mac.Sum(m), make([]byte, 16)...)
}

// shaker is a machine with a clock of its own that makes handshakes with a peer.
type shaker struct {
	own  tunnel.Secret
	peer tunnel.Key
	at   netip.AddrPort
}

// try makes one, and reports whether it is answered.
func (s shaker) try(t *testing.T, now time.Time, patience time.Duration) bool {
	t.Helper()
	// Not connected: WireGuard answers from another address of loopback than it was asked at.
	c, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(netip.AddrPortFrom(s.at.Addr(), 0)))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if _, err := c.WriteToUDPAddrPort(initiation(t, s.own, s.peer, now), s.at); err != nil {
		t.Fatal(err)
	}
	_ = c.SetReadDeadline(time.Now().Add(patience))
	b := make([]byte, 200)
	n, err := c.Read(b)
	return err == nil && n == 92 && b[0] == 2
}

// shake makes one that is answered. Two within 20 ms are one too many for WireGuard, so it tries again.
func (s shaker) shake(t *testing.T, now time.Time) {
	t.Helper()
	for i := range 20 {
		if s.try(t, now.Add(time.Duration(i)*time.Second), 2*time.Second) {
			return
		}
	}
	t.Fatalf("%s answers no handshake", s.at)
}

// shakers are a node towards its gateway's two ports.
func (g *testGateway) shakers(own tunnel.Secret) []shaker {
	at := netip.MustParseAddr(gatewayAddress)
	return []shaker{
		{own, g.node.carrier.secrets.wireGuard.Public(), netip.AddrPortFrom(at, g.cfg.Tunnel.Port)},
		{own, g.node.gateway.relayKey.Public(), netip.AddrPortFrom(at, g.cfg.Tunnel.Port+relayPort)},
	}
}

// A gateway takes handshakes from before the last one once it is told that their sender is there, and those of nobody else.
func TestAGatewayForgetsATimeThatWasWrong(t *testing.T) {
	g := startGateway(t)
	nas, tv := g.invited(t, "nas"), g.invited(t, "tv")
	soon(t, "nodes", func() bool { return g.isNode(t, "nas") && g.isNode(t, "tv") })
	own, other := nas.node.carrier.own(), tv.node.carrier.own()
	if err := errors.Join(nas.end(), tv.end()); err != nil {
		t.Fatal(err)
	}
	now := time.Now()
	for _, s := range append(g.shakers(own.wireGuard), g.shakers(other.wireGuard)...) {
		s.shake(t, now.Add(time.Hour))
		if s.try(t, now, time.Second/2) {
			t.Fatalf("%s takes a handshake of before the last one", s.at)
		}
	}
	g.node.clockWentBack(own.control.Public())
	for _, s := range g.shakers(own.wireGuard) {
		s.shake(t, now)
	}
	for _, s := range g.shakers(other.wireGuard) {
		if s.try(t, now.Add(time.Minute), time.Second/2) {
			t.Errorf("%s takes an old handshake of a node that has not asked for it", s.at)
		}
	}
}

func TestWhichHandshakesAreRefused(t *testing.T) {
	begin, data := make([]byte, 148), make([]byte, 148)
	begin[0], data[0] = 1, 4
	for name, tt := range map[string]struct {
		steps []any // a port that something comes from, or what goes to WireGuard's
		want  int
	}{
		"one that is answered late":      {[]any{begin, portWireGuard, begin, portWireGuard}, 0},
		"one without an answer":          {[]any{begin, data, data}, 0},
		"two without an answer":          {[]any{begin, begin}, 1},
		"and two more":                   {[]any{begin, begin, begin, begin}, 2},
		"an answer of the relay's":       {[]any{begin, portRelay, begin}, 1},
		"data, which looks like nothing": {[]any{data, data, data}, 0},
	} {
		got := 0
		h := handshakes{refused: func() { got++ }}
		for _, step := range tt.steps {
			switch step := step.(type) {
			case int:
				h.down(step)
			case []byte:
				h.up(portWireGuard, step)
				h.up(portRelay, step) // whose answer may be another node's, and not come
			}
		}
		if got != tt.want {
			t.Errorf("%s: refused %d times, want %d", name, got, tt.want)
		}
	}
	strange := handshakes{}
	strange.up(portWireGuard, begin)
	strange.up(portWireGuard, begin) // an invite's, and nobody asks
}

// A peer that answers no handshake is asked to begin one, by the gateway, and less and less often.
func TestAPeerThatRefusesIsToBegin(t *testing.T) {
	start := time.Now()
	for name, tt := range map[string]struct {
		gateway, answers, quiet bool
		min, max                int
	}{
		"refused":                 {gateway: true, min: 4, max: 6},
		"the gateway is away too": {},
		"answered":                {gateway: true, answers: true},
		"nothing was sent":        {gateway: true, quiet: true},
	} {
		p, asks := newPath([]netip.AddrPort{netip.MustParseAddrPort("203.0.113.5:2")}, start), 0
		var stats tunnel.PeerStats
		for s := range 300 {
			now := start.Add(time.Duration(s) * time.Second)
			if s%5 == 0 && !tt.quiet {
				stats.Sent += 148
			}
			if tt.answers {
				stats.Received += 92
			}
			if p.step(pathFacts{now: now, stats: stats, gateway: tt.gateway}).ask {
				asks++
			}
		}
		if asks < tt.min || asks > tt.max {
			t.Errorf("%s: the gateway was asked %d times", name, asks)
		}
	}
}

// A machine whose clock was an hour ahead, and is right again, is refused by every WireGuard that it has spoken to, for an hour. It
// is back in seconds: the gateway forgets the old time when it is asked under the machine's control key, and other nodes begin.
func TestAClockThatGoesBackKeepsNobodyOut(t *testing.T) {
	g, box := startBehindBox(t)
	defer box.close()
	box.open.Store(true)
	nas, _ := g.joinBlocked(t, "nas")
	tv, _ := g.joinBlocked(t, "tv")
	soon(t, "names", func() bool { return nas.knows(t, "tv") && tv.knows(t, "nas") && nas.hasStream() && tv.hasStream() })
	if err := nas.end(); err != nil {
		t.Fatal(err)
	}
	own, err := loadSecrets(nas.paths.State)
	if err != nil {
		t.Fatal(err)
	}
	ahead := time.Now().Add(time.Hour)
	port, err := tv.node.carrier.tunnel.Port()
	if err != nil {
		t.Fatal(err)
	}
	to := shaker{own.wireGuard, tv.node.carrier.own().wireGuard.Public(), netip.AddrPortFrom(machineAddress(), port)}
	for _, s := range append(g.shakers(own.wireGuard), to) {
		s.shake(t, ahead)
	}
	started := time.Now()
	cfg := testConfig()
	cfg.Node, cfg.Tunnel = "", tunnelConfig{Mode: "userspace"}
	nas = startNodeWith(t, cfg, Options{Paths: nas.paths, probe: 2 * time.Second, relayed: true})
	if !nas.knows(t, "tv") {
		t.Error("names do not resolve meanwhile")
	}
	waitFor(t, 2*time.Minute, "the stream", nas.hasStream)
	t.Logf("back at the gateway after %s", time.Since(started).Round(time.Second))
	web := program(t, "web")
	waitFor(t, 2*time.Minute, "an answer", func() bool {
		got, err := nas.reach(t, "tv", web)
		return err == nil && got == "web?"
	})
	t.Logf("back at the other node after %s", time.Since(started).Round(time.Second))
	waitFor(t, 2*time.Minute, "UDP", func() bool { return !nas.overTLS(t) })
}

// startMemberAt starts a node whose clock is off.
func startMemberAt(t *testing.T, paths Paths, off time.Duration) *testNode {
	t.Helper()
	cfg := testConfig()
	cfg.Node, cfg.Tunnel = "", tunnelConfig{Mode: "userspace"}
	return startNodeWith(t, cfg, Options{Paths: paths, clock: func() time.Time { return time.Now().Add(off) }})
}

// since1970 is how far behind a clock is that was never set.
func since1970() time.Duration { return -time.Since(time.Unix(1000, 0)) }

// isRight reports whether a node works although a clock is off by so much from its gateway's: it has the stream, trusts the map, reaches
// its peers, and knows by how much.
func (n *testNode) isRight(t *testing.T, peers int, ahead time.Duration) bool {
	t.Helper()
	s, err := n.Status(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	g := s.Tunnel.Gateway
	if g == nil || g.Since == nil || g.Ahead == nil || len(s.Tunnel.Peers) != peers || strings.Contains(strings.Join(s.Problems, "\n"), "confirmed the map") {
		return false
	}
	return (time.Duration(*g.Ahead)*time.Second - ahead).Abs() < time.Minute
}

// A node whose clock is wrong works as any other: the gateway said until when the map is trusted, and its clock is what that is
// measured by once it is reached.
func TestNodesWhoseClockIsOff(t *testing.T) {
	g := startGateway(t)
	web := program(t, "web")
	nas, peers := g.invited(t, "nas"), 1
	for name, off := range map[string]time.Duration{"ahead": time.Hour, "behind": -time.Hour, "year": 400 * 24 * time.Hour, "old": since1970()} {
		paths := testPaths(t)
		if _, err := paths.Join(t.Context(), g.invite(t, name), "", nil); err != nil {
			t.Fatal(err)
		}
		n := startMemberAt(t, paths, off)
		peers++
		soon(t, name, func() bool {
			return g.isNode(t, name) && n.knows(t, "nas") && nas.knows(t, name) && n.isRight(t, peers, off)
		})
		if got, err := n.reach(t, "nas", web); err != nil || got != "web?" {
			t.Errorf("%s: %q, %v", name, got, err)
		}
	}
}

// A gateway whose clock is wrong lets nodes join, which see that, and trust its map by it.
func TestAGatewayWhoseClockIsOff(t *testing.T) {
	for name, off := range map[string]time.Duration{"ahead": time.Hour, "behind": -time.Hour, "old": since1970()} {
		cfg, paths := gatewayTestConfig(t), testPaths(t)
		opt := Options{Paths: paths, reached: []netip.Addr{netip.MustParseAddr(gatewayAddress)}}
		opt.clock = func() time.Time { return time.Now().Add(off) }
		g := &testGateway{startNodeWith(t, cfg, opt), cfg}
		nas, tv := g.invited(t, "nas"), g.invited(t, "tv")
		soon(t, name, func() bool { return nas.isRight(t, 2, -off) && tv.isRight(t, 2, -off) })
		if got, err := nas.reach(t, "tv", program(t, "web")); err != nil || got != "web?" {
			t.Errorf("%s: %q, %v", name, got, err)
		}
		epoch := nas.node.member.status().Epoch
		if err := g.end(); err != nil {
			t.Fatal(err)
		}
		opt.clock = nil // it is set
		again := &testGateway{startNodeWith(t, cfg, opt), cfg}
		soon(t, name+", set", func() bool { return nas.isRight(t, 2, 0) && nas.node.member.status().Epoch > epoch })
		for _, n := range []*testNode{nas, tv, again.testNode} {
			if err := n.end(); err != nil {
				t.Error(err)
			}
		}
	}
}

func TestInvitesThatAreOverByAClock(t *testing.T) {
	now := time.Date(2026, 11, 25, 12, 0, 0, 0, time.UTC)
	if err := inviteOver(now.Add(time.Second), now); err != nil {
		t.Error(err)
	}
	err := inviteOver(now.Add(-time.Hour), now)
	if err == nil || !strings.Contains(err.Error(), "ended at 2026-11-25 11:00:00 UTC, and this machine's clock says 2026-11-25 12:00:00 UTC") || hintOf(err) == "" {
		t.Error(err)
	}
	// An invite that ended long ago is not tried: nobody would answer.
	i := control.Invite{Address: machineAddress(), Server: machineAddress(), Expires: time.Now().Add(-2 * inviteSlack)}
	if _, err := testPaths(t).Join(t.Context(), i.Encode(), "", nil); err == nil || !strings.Contains(err.Error(), "ended at") {
		t.Error(err)
	}
}

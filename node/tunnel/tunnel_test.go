package tunnel

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"net/netip"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
)

var testRanges = prefixes("10.8.0.0/24", "fd00::/64")

// until waits for a condition; it fails the test when that does not come.
func until(t *testing.T, what string, ok func() bool) {
	t.Helper()
	deadline := time.Now().Add(20 * time.Second)
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for !ok() {
		if time.Now().After(deadline) {
			t.Fatalf("%s: not within 20 s", what)
		}
		<-tick.C
	}
}

// testNode is a started userspace tunnel with the addresses 10.8.0.N and fd00::N.
type testNode struct {
	*Tunnel
	key    Secret
	v4, v6 netip.Addr
	at     netip.AddrPort // its UDP socket
}

func startNode(t *testing.T, n byte, change func(*Config)) *testNode {
	t.Helper()
	node := &testNode{key: NewSecret(), v4: netip.AddrFrom4([4]byte{10, 8, 0, n}), v6: netip.AddrFrom16([16]byte{0xfd, 15: n})}
	c := Config{Mode: Userspace, Key: node.key, Addresses: []netip.Addr{node.v4, node.v6}, Ranges: testRanges}
	if change != nil {
		change(&c)
	}
	tunnel, err := New(c)
	if err != nil {
		t.Fatal(err)
	}
	if err := tunnel.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := tunnel.Close(); err != nil {
			t.Error(err)
		}
	})
	port, err := tunnel.Port()
	if err != nil || port == 0 {
		t.Fatalf("port %d, %v", port, err)
	}
	node.Tunnel, node.at = tunnel, netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), port)
	return node
}

// peer is the node as others know it.
func (n *testNode) peer() Peer {
	return Peer{Key: n.key.Public(), Endpoint: n.at,
		AllowedIPs: []netip.Prefix{netip.PrefixFrom(n.v4, 32), netip.PrefixFrom(n.v6, 128)}}
}

func introduce(t *testing.T, nodes ...*testNode) {
	t.Helper()
	for _, n := range nodes {
		var peers []Peer
		for _, other := range nodes {
			if other != n {
				peers = append(peers, other.peer())
			}
		}
		if err := n.SetPeers(peers); err != nil {
			t.Fatal(err)
		}
	}
}

// echo serves TCP echoes on an address until the test ends.
func echo(t *testing.T, n *Tunnel, on netip.AddrPort) {
	t.Helper()
	l, err := n.Listen(t.Context(), "tcp", on)
	if err != nil {
		t.Fatal(err)
	}
	serveEcho(t, l)
}

func serveEcho(t *testing.T, l net.Listener) {
	var ended sync.WaitGroup
	ended.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			ended.Go(func() {
				defer c.Close()
				_, _ = io.Copy(c, c)
			})
		}
	})
	t.Cleanup(func() { _ = l.Close() }) // connections end with the tunnel
}

// exchange sends text on a connection and wants it back.
func exchange(c net.Conn, text string) error {
	if err := c.SetDeadline(time.Now().Add(20 * time.Second)); err != nil {
		return err
	}
	if _, err := io.WriteString(c, text); err != nil {
		return err
	}
	got := make([]byte, len(text))
	if _, err := io.ReadFull(c, got); err != nil {
		return err
	}
	if string(got) != text {
		return errors.New("got " + string(got))
	}
	return nil
}

func dial(t *testing.T, n *Tunnel, to netip.AddrPort) net.Conn {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	c, err := n.Dial(ctx, "tcp", to)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	return c
}

func TestUserspaceNodesTalk(t *testing.T) {
	a, b := startNode(t, 1, nil), startNode(t, 2, nil)
	introduce(t, a, b)
	for _, on := range []netip.Addr{b.v4, b.v6} {
		at := netip.AddrPortFrom(on, 80)
		echo(t, b.Tunnel, at)
		c := dial(t, a.Tunnel, at)
		if err := exchange(c, strings.Repeat("hello ", 20000)); err != nil {
			t.Errorf("%s: %v", at, err)
		}
	}
	packets, err := b.ListenPacket(t.Context(), "udp", netip.AddrPortFrom(b.v4, 53))
	if err != nil {
		t.Fatal(err)
	}
	defer packets.Close()
	c, err := a.Dial(t.Context(), "udp", netip.AddrPortFrom(b.v4, 53))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if _, err := c.Write([]byte("query")); err != nil {
		t.Fatal(err)
	}
	buf := make([]byte, 100)
	_ = packets.SetReadDeadline(time.Now().Add(20 * time.Second))
	n, from, err := packets.ReadFrom(buf)
	if err != nil || string(buf[:n]) != "query" || !strings.HasPrefix(from.String(), "10.8.0.1:") {
		t.Errorf("got %q from %v, %v", buf[:n], from, err)
	}
	stats, err := a.Stats()
	if err != nil || len(stats) != 1 {
		t.Fatalf("%v, %v", stats, err)
	}
	if s := stats[0]; s.Key != b.key.Public() || s.Endpoint != b.at || s.Handshake.IsZero() || s.Sent < 100000 || s.Received < 100000 {
		t.Errorf("%+v", s)
	}
	if owner, ok := b.Whose(a.v6); !ok || owner != a.key.Public() {
		t.Errorf("%s is %s's", a.v6, owner)
	}
	if a.Mode() != Userspace || !slices.Equal(a.Why(), []string{"userspace: configured"}) {
		t.Errorf("mode %s, %q", a.Mode(), a.Why())
	}
	if _, _, ok := a.Link(); ok {
		t.Error("a network inside the process has a link")
	}
}

func TestANodeReachesItself(t *testing.T) {
	a := startNode(t, 1, nil)
	at := netip.AddrPortFrom(a.v4, 80)
	echo(t, a.Tunnel, at)
	if err := exchange(dial(t, a.Tunnel, at), "hello"); err != nil {
		t.Error(err)
	}
}

func TestAPeerIsHeldToItsAddresses(t *testing.T) {
	a, b, victim := startNode(t, 1, nil), startNode(t, 2, nil), startNode(t, 3, nil)
	introduce(t, a, b, victim)
	// b claims another's address for itself, and takes the victim for one that has everything.
	thief := startNode(t, 2, func(c *Config) { c.Addresses = addrs("10.8.0.3", "10.8.0.2") })
	if err := thief.SetPeers([]Peer{a.peer()}); err != nil {
		t.Fatal(err)
	}
	if err := a.SetPeers([]Peer{victim.peer(), {Key: thief.key.Public(), AllowedIPs: prefixes("10.8.0.2/32"), Endpoint: thief.at}}); err != nil {
		t.Fatal(err)
	}
	packets, err := a.ListenPacket(t.Context(), "udp", netip.AddrPortFrom(a.v4, 53))
	if err != nil {
		t.Fatal(err)
	}
	defer packets.Close()
	for _, from := range []string{"10.8.0.3", "10.8.0.2"} {
		c, err := thief.carrier.network.dial(t.Context(), "udp", netip.MustParseAddr(from), netip.AddrPortFrom(a.v4, 53))
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		if _, err := io.WriteString(c, "from "+from); err != nil {
			t.Fatal(err)
		}
	}
	buf := make([]byte, 100)
	_ = packets.SetReadDeadline(time.Now().Add(20 * time.Second))
	n, _, err := packets.ReadFrom(buf)
	if got := string(buf[:n]); err != nil || got != "from 10.8.0.2" {
		t.Errorf("the first that came in is %q, %v", got, err)
	}
}

func TestWhatCannotBeReachedIsRefusedAtOnce(t *testing.T) {
	a, b := startNode(t, 1, nil), startNode(t, 2, nil)
	introduce(t, a, b)
	at := func(text string) netip.AddrPort { return netip.MustParseAddrPort(text) }
	if _, err := a.Dial(t.Context(), "tcp", at("10.8.0.77:80")); !errors.Is(err, syscall.EHOSTUNREACH) {
		t.Errorf("an address of nobody: %v", err)
	}
	if _, err := a.Dial(t.Context(), "tcp6", at("10.8.0.2:80")); err == nil {
		t.Error("tcp6 to an IPv4 address")
	}
	if _, err := a.Dial(t.Context(), "ip", at("10.8.0.2:80")); err == nil {
		t.Error("network ip")
	}
	for _, on := range []string{"0.0.0.0:80", "10.8.0.2:80", "127.0.0.1:80", "[::]:80"} {
		if l, err := a.Listen(t.Context(), "tcp", at(on)); err == nil {
			t.Errorf("listens on %s", l.Addr())
		}
	}
	if _, err := a.Listen(t.Context(), "udp", at("10.8.0.1:80")); err == nil {
		t.Error("TCP listener on udp")
	}
	if _, err := a.ListenPacket(t.Context(), "tcp", at("10.8.0.1:80")); err == nil {
		t.Error("UDP listener on tcp")
	}
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	if _, err := a.Dial(ctx, "tcp", at("10.8.0.2:81")); err == nil || ctx.Err() != nil {
		t.Errorf("a port without a listener: %v", err)
	}
}

func TestPolicyHoldsInUserspace(t *testing.T) {
	a, b := startNode(t, 1, nil), startNode(t, 2, nil)
	introduce(t, a, b)
	for _, port := range []uint16{80, 81} {
		echo(t, b.Tunnel, netip.AddrPortFrom(b.v4, port))
	}
	echo(t, a.Tunnel, netip.AddrPortFrom(a.v4, 80))
	open := dial(t, a.Tunnel, netip.AddrPortFrom(b.v4, 81))
	if err := b.SetPolicy([]Rule{{Source: netip.PrefixFrom(a.v4, 32), Protocol: protoTCP, First: 80, Last: 80}}); err != nil {
		t.Fatal(err)
	}
	if err := exchange(dial(t, a.Tunnel, netip.AddrPortFrom(b.v4, 80)), "allowed"); err != nil {
		t.Error(err)
	}
	if err := exchange(open, "goes on"); err != nil {
		t.Error(err)
	}
	if err := exchange(dial(t, b.Tunnel, netip.AddrPortFrom(a.v4, 80)), "the other way"); err != nil {
		t.Error(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	if c, err := a.Dial(ctx, "tcp", netip.AddrPortFrom(b.v4, 81)); err == nil {
		c.Close()
		t.Error("a port that the policy does not list is open")
	}
	if err := b.SetPolicy([]Rule{{}}); err == nil {
		t.Error("a rule without a source is taken")
	}
	if err := b.SetPolicy(nil); err != nil {
		t.Fatal(err)
	}
	if err := exchange(dial(t, a.Tunnel, netip.AddrPortFrom(b.v4, 81)), "again"); err != nil {
		t.Error(err)
	}
}

func TestAKeyIsReplacedUnderAConnection(t *testing.T) {
	shared := NewSecret()
	a, b := startNode(t, 1, nil), startNode(t, 2, nil)
	toA, toB := a.peer(), b.peer()
	toA.Preshared, toB.Preshared = shared, shared
	if err := errors.Join(a.SetPeers([]Peer{toB}), b.SetPeers([]Peer{toA})); err != nil {
		t.Fatal(err)
	}
	echo(t, b.Tunnel, netip.AddrPortFrom(b.v4, 80))
	c := dial(t, a.Tunnel, netip.AddrPortFrom(b.v4, 80))
	if err := exchange(c, "before"); err != nil {
		t.Fatal(err)
	}

	next := NewSecret()
	successor := toA
	successor.Key, successor.Replaces = next.Public(), toA.Key
	if err := b.SetPeers([]Peer{toA, successor}); err != nil {
		t.Fatal(err)
	}
	if err := exchange(c, "both are known"); err != nil {
		t.Fatal(err)
	}
	if owner, _ := b.Whose(a.v4); owner != toA.Key {
		t.Errorf("before the handshake %s is %s's", a.v4, owner)
	}
	if err := a.SetKey(next); err != nil {
		t.Fatal(err)
	}
	if err := exchange(c, "under the new key"); err != nil {
		t.Fatal(err)
	}
	until(t, "the address is the new key's", func() bool { owner, _ := b.Whose(a.v4); return owner == successor.Key })
	successor.Replaces = Key{}
	if err := b.SetPeers([]Peer{successor}); err != nil {
		t.Fatal(err)
	}
	if err := exchange(c, "the old one is gone"); err != nil {
		t.Fatal(err)
	}
	if stats, err := b.Stats(); err != nil || len(stats) != 1 || stats[0].Key != next.Public() {
		t.Errorf("%+v, %v", stats, err)
	}
}

func TestAWrongPresharedKeyIsNoSession(t *testing.T) {
	a, b := startNode(t, 1, nil), startNode(t, 2, nil)
	toA, toB := a.peer(), b.peer()
	toA.Preshared, toB.Preshared = NewSecret(), NewSecret()
	if err := errors.Join(a.SetPeers([]Peer{toB}), b.SetPeers([]Peer{toA})); err != nil {
		t.Fatal(err)
	}
	echo(t, b.Tunnel, netip.AddrPortFrom(b.v4, 80))
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	if _, err := a.Dial(ctx, "tcp", netip.AddrPortFrom(b.v4, 80)); err == nil {
		t.Error("connected")
	}
	if stats, _ := a.Stats(); len(stats) != 1 || !stats[0].Handshake.IsZero() {
		t.Errorf("%+v", stats)
	}
}

// A machine with a thousand peers must not ask all of them for a handshake when it starts.
func TestOnlyWhoIsKeptAliveIsAskedAtOnce(t *testing.T) {
	a, kept, quiet := startNode(t, 1, nil), startNode(t, 2, nil), startNode(t, 3, nil)
	for _, n := range []*testNode{kept, quiet} {
		if err := n.SetPeers([]Peer{a.peer()}); err != nil {
			t.Fatal(err)
		}
	}
	one := kept.peer()
	one.Keepalive = 25 * time.Second
	if err := a.SetPeers([]Peer{one, quiet.peer()}); err != nil {
		t.Fatal(err)
	}
	sent := func(k Key) uint64 {
		stats, err := a.Stats()
		if err != nil {
			t.Fatal(err)
		}
		return stats[slices.IndexFunc(stats, func(s PeerStats) bool { return s.Key == k })].Sent
	}
	until(t, "a handshake", func() bool { return sent(one.Key) > initiationLength })
	if got := sent(quiet.key.Public()); got != 0 {
		t.Errorf("%d bytes were sent to a peer that nothing is for", got)
	}
}

func TestAPeerIsFoundWhereItIsNow(t *testing.T) {
	a, b := startNode(t, 1, nil), startNode(t, 2, nil)
	relay, err := net.ListenUDP("udp4", net.UDPAddrFromAddrPort(netip.MustParseAddrPort("127.0.0.1:0")))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = relay.Close() })
	via := relay.LocalAddr().(*net.UDPAddr).AddrPort()
	var relayed atomic.Int64
	go func() {
		buf := make([]byte, 2000)
		for {
			n, from, err := relay.ReadFromUDPAddrPort(buf)
			if err != nil {
				return
			}
			to := a.at
			if from == a.at {
				to = b.at
			}
			relayed.Add(1)
			_, _ = relay.WriteToUDPAddrPort(buf[:n], to)
		}
	}()
	// a knows b through the relay only; b waits to be come to.
	toA, toB := a.peer(), b.peer()
	toA.Endpoint, toB.Endpoint = netip.AddrPort{}, via
	if err := errors.Join(a.SetPeers([]Peer{toB}), b.SetPeers([]Peer{toA})); err != nil {
		t.Fatal(err)
	}
	echo(t, b.Tunnel, netip.AddrPortFrom(b.v4, 80))
	c := dial(t, a.Tunnel, netip.AddrPortFrom(b.v4, 80))
	if err := exchange(c, "through the relay"); err != nil || relayed.Load() < 4 {
		t.Fatalf("%d relayed, %v", relayed.Load(), err)
	}
	if stats, _ := b.Stats(); len(stats) != 1 || stats[0].Endpoint != via {
		t.Errorf("b sees a at %+v", stats)
	}
	if err := a.SetEndpoint(b.key.Public(), b.at); err != nil {
		t.Fatal(err)
	}
	if err := exchange(c, "directly"); err != nil {
		t.Fatal(err)
	}
	until(t, "b sees a at its own socket", func() bool {
		stats, _ := b.Stats()
		return len(stats) == 1 && stats[0].Endpoint == a.at
	})
	before := relayed.Load()
	if err := exchange(c, "still directly"); err != nil || relayed.Load() != before {
		t.Errorf("%d more were relayed, %v", relayed.Load()-before, err)
	}
	// The same peers again do not undo it.
	if err := a.SetPeers([]Peer{toB}); err != nil {
		t.Fatal(err)
	}
	if stats, _ := a.Stats(); len(stats) != 1 || stats[0].Endpoint != b.at {
		t.Errorf("a sends to %+v", stats)
	}
	if err := a.SetEndpoint(a.key.Public(), b.at); err == nil {
		t.Error("an endpoint of no peer is set")
	}
	if err := a.SetEndpoint(b.key.Public(), netip.AddrPort{}); err == nil {
		t.Error("no endpoint is set")
	}
}

func TestOtherDatagramsShareTheSocket(t *testing.T) {
	type datagram struct {
		from netip.AddrPort
		data string
	}
	got := make(chan datagram, 10)
	a := startNode(t, 1, nil)
	b := startNode(t, 2, func(c *Config) {
		c.Incoming = func(from netip.AddrPort, data []byte) bool {
			if !bytes.HasPrefix(data, []byte("probe")) {
				return false
			}
			got <- datagram{from, string(data)}
			return true
		}
	})
	introduce(t, a, b)
	if err := a.Send(b.at, []byte("probe 1")); err != nil {
		t.Fatal(err)
	}
	if d := <-got; d.from != a.at || d.data != "probe 1" {
		t.Errorf("%+v", d)
	}
	echo(t, b.Tunnel, netip.AddrPortFrom(b.v4, 80))
	if err := exchange(dial(t, a.Tunnel, netip.AddrPortFrom(b.v4, 80)), "WireGuard beside it"); err != nil {
		t.Error(err)
	}
	if err := a.Send(b.at, nil); err == nil {
		t.Error("an empty datagram is sent")
	}
	if err := a.Send(b.at, make([]byte, maxDatagram+1)); err == nil {
		t.Error("a datagram that is none is sent")
	}
}

func TestAnotherWayThanUDP(t *testing.T) {
	// Each hands the other what WireGuard sends to a made-up address; no UDP is sent.
	var a, b *testNode
	ready := make(chan struct{})
	carry := func(to **testNode, from netip.AddrPort) func(*Config) {
		return func(c *Config) {
			c.Outgoing = func(_ netip.AddrPort, data []byte) bool {
				<-ready
				_ = (*to).Deliver(from, data)
				return true
			}
		}
	}
	atA, atB := netip.MustParseAddrPort("[100::1]:1"), netip.MustParseAddrPort("[100::2]:1")
	a, b = startNode(t, 1, carry(&b, atA)), startNode(t, 2, carry(&a, atB))
	close(ready)
	toA, toB := a.peer(), b.peer()
	toA.Endpoint, toB.Endpoint = netip.AddrPort{}, atB
	if err := errors.Join(a.SetPeers([]Peer{toB}), b.SetPeers([]Peer{toA})); err != nil {
		t.Fatal(err)
	}
	echo(t, b.Tunnel, netip.AddrPortFrom(b.v4, 80))
	if err := exchange(dial(t, a.Tunnel, netip.AddrPortFrom(b.v4, 80)), strings.Repeat("x", 100000)); err != nil {
		t.Fatal(err)
	}
	if stats, _ := b.Stats(); len(stats) != 1 || stats[0].Endpoint != atA {
		t.Errorf("%+v", stats)
	}
	if err := a.Deliver(netip.AddrPort{}, []byte("x")); err == nil {
		t.Error("a datagram from nowhere is taken")
	}
}

func TestConfigIsChecked(t *testing.T) {
	good := Config{Key: NewSecret(), Addresses: addrs("10.8.0.1"), Ranges: testRanges}
	for name, test := range map[string]struct {
		change func(*Config)
		want   string
	}{
		"good":             {func(*Config) {}, ""},
		"mode":             {func(c *Config) { c.Mode = "fast" }, "tunnel mode"},
		"no key":           {func(c *Config) { c.Key = Secret{} }, "no private key"},
		"no key, off":      {func(c *Config) { c.Key, c.Mode = Secret{}, Off }, ""},
		"no address":       {func(c *Config) { c.Addresses = nil }, "0 addresses"},
		"no range":         {func(c *Config) { c.Ranges = nil }, "0 ranges"},
		"whole internet":   {func(c *Config) { c.Ranges = prefixes("0.0.0.0/0") }, "range 0.0.0.0/0"},
		"foreign address":  {func(c *Config) { c.Addresses = addrs("192.0.2.1") }, "in none of the ranges"},
		"small MTU":        {func(c *Config) { c.MTU = 1279 }, "MTU 1279"},
		"large MTU":        {func(c *Config) { c.MTU = 1421 }, "MTU 1421"},
		"long link":        {func(c *Config) { c.Link = "abcdefghijklmnop" }, "link name"},
		"link with a path": {func(c *Config) { c.Link = "../all" }, "link name"},
	} {
		c := good
		test.change(&c)
		if _, err := New(c); (err == nil) != (test.want == "") || err != nil && !strings.Contains(err.Error(), test.want) {
			t.Errorf("%s: %v, want %q", name, err, test.want)
		}
	}
}

func TestAutoTakesTheFirstModeThatWorks(t *testing.T) {
	works := func(context.Context, Config) (*carrier, error) { return &carrier{notes: []string{"a note"}}, nil }
	lacks := func(context.Context, Config) (*carrier, error) {
		return nil, &missing{"no wireguard module", syscall.EOPNOTSUPP}
	}
	fails := func(context.Context, Config) (*carrier, error) { return nil, portError(5, syscall.EADDRINUSE) }
	for name, test := range map[string]struct {
		mode    Mode
		openers []opener
		want    Mode
		why     string
	}{
		"the first":          {Auto, []opener{{Kernel, works}, {TUN, works}}, Kernel, "kernel: chosen; a note"},
		"the second":         {Auto, []opener{{Kernel, lacks}, {TUN, works}}, TUN, "kernel: no wireguard module (operation not supported); tun: chosen; a note"},
		"never off":          {Auto, []opener{{Kernel, lacks}, {Off, works}}, "", "kernel: no wireguard module (operation not supported)"},
		"an error is final":  {Auto, []opener{{Kernel, fails}, {TUN, works}}, "", "kernel: listening on UDP port 5: address already in use"},
		"configured":         {TUN, []opener{{Kernel, works}, {TUN, works}}, TUN, "tun: configured; a note"},
		"configured, absent": {Kernel, []opener{{Kernel, lacks}, {TUN, works}}, "", "kernel: no wireguard module (operation not supported)"},
	} {
		c, why, err := chooseFrom(t.Context(), Config{Mode: test.mode}, test.openers)
		if got := strings.Join(why, "; "); got != test.why || (err == nil) != (test.want != "") || err == nil && c.mode != test.want {
			t.Errorf("%s: %v, %q, %v", name, c, got, err)
		}
	}
	var hint interface{ Hint() string }
	if !errors.As(portError(5, syscall.EADDRINUSE), &hint) || !strings.Contains(hint.Hint(), "tunnel.port") {
		t.Error("a port that is taken has no hint")
	}
}

func TestAPortThatIsTakenIsNamed(t *testing.T) {
	a := startNode(t, 1, nil)
	tunnel, err := New(Config{Mode: Userspace, Key: NewSecret(), Addresses: addrs("10.8.0.2"), Ranges: testRanges, Port: a.at.Port()})
	if err != nil {
		t.Fatal(err)
	}
	if err := tunnel.Start(t.Context()); !errors.Is(err, syscall.EADDRINUSE) {
		t.Errorf("%v", err)
	}
}

func TestCloseLeavesNothing(t *testing.T) {
	before := runtime.NumGoroutine()
	for range 3 {
		a := startNode(t, 1, nil)
		b := startNode(t, 2, nil)
		introduce(t, a, b)
		echo(t, b.Tunnel, netip.AddrPortFrom(b.v4, 80))
		if err := exchange(dial(t, a.Tunnel, netip.AddrPortFrom(b.v4, 80)), "hello"); err != nil {
			t.Fatal(err)
		}
		for _, n := range []*testNode{a, b} {
			if err := errors.Join(n.Close(), n.Close()); err != nil {
				t.Error(err)
			}
			if _, err := n.Dial(t.Context(), "tcp", netip.AddrPortFrom(b.v4, 80)); !errors.Is(err, net.ErrClosed) {
				t.Errorf("dial after close: %v", err)
			}
			if err := n.SetPeers(nil); !errors.Is(err, net.ErrClosed) {
				t.Errorf("peers after close: %v", err)
			}
		}
	}
	until(t, "the goroutines end", func() bool { return runtime.NumGoroutine() <= before+2 })
}

func TestOffUsesAnotherProgramsLink(t *testing.T) {
	c := Config{Mode: Off, Addresses: addrs("127.0.0.1"), Ranges: prefixes("127.0.0.0/8")}
	tunnel, err := New(c)
	if err != nil {
		t.Fatal(err)
	}
	if err := tunnel.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	defer tunnel.Close()
	name, index, ok := tunnel.Link()
	if !ok || index == 0 || !strings.HasPrefix(name, "lo") {
		t.Errorf("link %s %d %t", name, index, ok)
	}
	l, err := tunnel.Listen(t.Context(), "tcp", netip.MustParseAddrPort("127.0.0.1:0"))
	if err != nil {
		t.Fatal(err)
	}
	serveEcho(t, l)
	if err := exchange(dial(t, tunnel, netip.MustParseAddrPort(l.Addr().String())), "hello"); err != nil {
		t.Error(err)
	}
	for what, err := range map[string]error{
		"peers": tunnel.SetPeers(nil), "key": tunnel.SetKey(NewSecret()), "policy": tunnel.SetPolicy(nil),
		"datagram": tunnel.Send(netip.MustParseAddrPort("127.0.0.1:9"), []byte("x")),
	} {
		if !errors.Is(err, errors.ErrUnsupported) {
			t.Errorf("%s: %v", what, err)
		}
	}
	if k, ok := tunnel.Whose(netip.MustParseAddr("127.0.0.2")); ok {
		t.Errorf("127.0.0.2 is %s's", k)
	}
	c.Addresses = addrs("127.77.0.1")
	tunnel, err = New(c)
	if err != nil {
		t.Fatal(err)
	}
	var hint interface{ Hint() string }
	if err := tunnel.Start(t.Context()); !errors.As(err, &hint) {
		t.Errorf("addresses that no link has: %v", err)
	}
}

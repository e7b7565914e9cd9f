package node

import (
	"errors"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/meshdns/meshdns/node/tunnel"
)

// udpBox stands before a gateway's two UDP ports, as a network does: it lets nothing through until it is opened.
type udpBox struct {
	port uint16
	open atomic.Bool
	seen atomic.Int64

	close func()
}

func startBox(t *testing.T, address string, to uint16) *udpBox {
	t.Helper()
	b := &udpBox{port: freePorts(t, address)}
	var ended sync.WaitGroup
	b.close = ended.Wait
	for i := range uint16(relayPort + 1) {
		in, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(netip.AddrPortFrom(netip.MustParseAddr(address), b.port+i)))
		if err != nil {
			t.Fatal(err)
		}
		after := b.close
		b.close = func() {
			in.Close()
			after()
		}
		ended.Go(func() { b.pass(in, netip.AddrPortFrom(netip.MustParseAddr(address), to+i), &ended) })
	}
	return b
}

// pass is one port of the box, with a socket on the other side for each source.
func (b *udpBox) pass(in *net.UDPConn, to netip.AddrPort, ended *sync.WaitGroup) {
	out := map[netip.AddrPort]*net.UDPConn{}
	defer func() {
		for _, c := range out {
			c.Close()
		}
	}()
	buf := make([]byte, 4096)
	for {
		n, from, err := in.ReadFromUDPAddrPort(buf)
		if err != nil {
			return
		}
		b.seen.Add(1)
		if !b.open.Load() {
			continue
		}
		c := out[from]
		if c == nil {
			// Not connected: WireGuard answers from another address of loopback than it was asked at.
			if c, err = net.ListenUDP("udp", net.UDPAddrFromAddrPort(netip.AddrPortFrom(to.Addr(), 0))); err != nil {
				return
			}
			out[from] = c
			ended.Go(func() {
				back := make([]byte, 4096)
				for {
					n, err := c.Read(back)
					if err != nil {
						return
					}
					if b.open.Load() {
						_, _ = in.WriteToUDPAddrPort(back[:n], from)
					}
				}
			})
		}
		_, _ = c.WriteToUDPAddrPort(buf[:n], to)
	}
}

// freeTCP is a TCP port that nothing uses.
func freeTCP(t *testing.T, address string) uint16 {
	t.Helper()
	ln, err := net.Listen("tcp", net.JoinHostPort(address, "0"))
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	return addrPortOf(ln.Addr()).Port()
}

// startBehindBox is a gateway that is reached through a box.
func startBehindBox(t *testing.T) (*testGateway, *udpBox) {
	t.Helper()
	cfg := gatewayTestConfig(t)
	box := startBox(t, gatewayAddress, cfg.Tunnel.Port)
	cfg.Gateway.Ports.HTTPS = freeTCP(t, gatewayAddress)
	opt := Options{Paths: testPaths(t), reached: []netip.Addr{netip.MustParseAddr(gatewayAddress)}, udp: box.port}
	return &testGateway{startNodeWith(t, cfg, opt), cfg}, box
}

// join joins a machine.
func (g *testGateway) join(t *testing.T, name string) (paths Paths, steps []string) {
	t.Helper()
	reply, err := g.Invite(t.Context(), name, nil, 0, false)
	if err != nil {
		t.Fatal(err)
	}
	paths = testPaths(t)
	if _, err := paths.Join(t.Context(), reply.Invite, "", func(line string) { steps = append(steps, line) }); err != nil {
		t.Fatal(err)
	}
	return paths, steps
}

// joinBlocked joins a machine, and starts its node.
func (g *testGateway) joinBlocked(t *testing.T, name string) (*testNode, []string) {
	t.Helper()
	paths, steps := g.join(t, name)
	return startBlocked(t, paths), steps
}

// startBlocked starts the node of a machine that has joined, and tries UDP often.
func startBlocked(t *testing.T, paths Paths) *testNode {
	t.Helper()
	cfg := testConfig()
	cfg.Node, cfg.Tunnel = "", tunnelConfig{Mode: "userspace"}
	return startNodeWith(t, cfg, Options{Paths: paths, probe: 2 * time.Second})
}

func (n *testNode) overTLS(t *testing.T) bool {
	t.Helper()
	s, err := n.Status(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return strings.Contains(strings.Join(s.Problems, "\n"), "over TLS on 443: UDP is blocked")
}

// Where no UDP gets through a machine joins, resolves and reaches others all the same, and changes its keys; when it does, it
// goes back to that, and no connection is lost.
func TestATailnetWithoutUDP(t *testing.T) {
	g, box := startBehindBox(t)
	defer box.close()
	box.open.Store(true)
	free, _ := g.join(t, "tv")
	box.open.Store(false)
	nas, steps := g.joinBlocked(t, "nas")
	if !strings.Contains(strings.Join(steps, "\n"), "over TLS") || box.seen.Load() == 0 {
		t.Errorf("joined by %q", steps)
	}
	tv := startBlocked(t, free)
	soon(t, "TLS", func() bool { return nas.overTLS(t) && tv.overTLS(t) })
	soon(t, "names", func() bool { return nas.knows(t, "tv") && tv.knows(t, "nas") })
	port := program(t, "web")
	soon(t, "an answer", func() bool {
		got, err := tv.reach(t, "nas", port)
		return err == nil && got == "web?"
	})
	nodes, err := g.Nodes(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, n := range nodes.Nodes {
		if n.Endpoint != "" {
			t.Errorf("%s is told to others as %s", n.Name, n.Endpoint)
		}
	}
	c := tv.hold(t, "nas", port)
	if _, err := tv.RotateKey(t.Context(), true); err != nil && !errors.Is(err, ErrTimeout) { // after which it goes on
		t.Error(err)
	}
	soon(t, "the new keys to be kept", func() bool {
		_, err := os.Stat(filepath.Join(tv.paths.State, nextSecretsFile))
		return errors.Is(err, fs.ErrNotExist)
	})
	box.open.Store(true)
	soon(t, "UDP", func() bool { return !nas.overTLS(t) && !tv.overTLS(t) })
	if got, err := converse(c, "still here"); err != nil || got != "webstill here" {
		t.Errorf("the connection from before: %q, %v", got, err)
	}
	soon(t, "an answer over UDP", func() bool {
		got, err := tv.reach(t, "nas", port)
		return err == nil && got == "web?"
	})
	soon(t, "the end of TLS", func() bool { return g.node.gateway.overTLS.count() == 0 })
}

// A gateway that does not know this machine's key takes its connection and ends it, since TLS 1.3 names the key last: that is
// no way. The other one of two keys is tried next.
func TestAWayThatIsRefusedIsNone(t *testing.T) {
	g := openTestGate(t)
	key := newControlKey(t)
	g.set(memberState(key))
	own, err := net.ListenUDP("udp4", net.UDPAddrFromAddrPort(netip.AddrPortFrom(machineAddress(), 0)))
	if err != nil {
		t.Fatal(err)
	}
	defer own.Close()
	o, err := openOverTLS(overTLSConfig{
		gateway: netip.MustParseAddrPort(g.at), pinned: g.key.Public(), key: newControlKey(t),
		port: func() (uint16, error) { return addrPortOf(own.LocalAddr()).Port(), nil },
	})
	if err != nil {
		t.Fatal(err)
	}
	defer o.close()
	pass := func(during func(stop func() error)) error {
		conn, err := o.dial(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		done := make(chan error, 1)
		go func() { done <- o.pass(t.Context(), conn) }()
		during(conn.NetConn().Close)
		return <-done
	}
	if err := pass(func(func() error) {}); err == nil || o.heard {
		t.Errorf("a key that is not known: %v, heard %t", err, o.heard)
	}
	if err := o.use(key); err != nil {
		t.Fatal(err)
	}
	err = pass(func(stop func() error) {
		_, err := own.WriteToUDPAddrPort([]byte("word"), o.places()[portRelay])
		if err == nil {
			err = own.SetReadDeadline(time.Now().Add(30 * time.Second))
		}
		if err == nil {
			_, err = own.Read(make([]byte, 9))
		}
		if err != nil {
			t.Error(err)
		}
		if err := stop(); err != nil {
			t.Error(err)
		}
	})
	if err == nil || !o.heard {
		t.Errorf("the right one: %v, heard %t", err, o.heard)
	}
}

// count is how many connections there are.
func (g *tlsGate) count() int {
	g.mu.Lock()
	defer g.mu.Unlock()
	return len(g.open)
}

func waitFor(t *testing.T, d time.Duration, what string, so func() bool) {
	t.Helper()
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for over := time.After(d); !so(); {
		select {
		case <-tick.C:
		case <-over:
			t.Fatalf("waited for %s for %s", what, d)
		}
	}
}

// hold connects, and leaves the connection open.
func (n *testNode) hold(t *testing.T, name string, port uint16) net.Conn {
	t.Helper()
	m, _ := n.node.tailnet.current()
	to, _ := m.Node(name)
	c, err := n.node.carrier.tunnel.Dial(t.Context(), "tcp", netip.AddrPortFrom(to.Addresses[0], port))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

func TestUDPIsBlockedWhenNothingIsHeard(t *testing.T) {
	start := time.Now()
	keepalives := make([]tunnel.PeerStats, 20) // 50 s
	for i := range keepalives {
		keepalives[i].Sent = uint64(32 * i)
	}
	heard := slices.Clone(keepalives)
	for i := range heard {
		heard[i].Received = uint64(100 * (i / 5)) // every 12.5 s: half a second after the gateway is asked
	}
	for name, tt := range map[string]struct {
		steps   []tunnel.PeerStats
		open    bool // the stream is
		waiting bool
		want    int // at the end
	}{
		"nothing was sent":                {steps: []tunnel.PeerStats{{}, {}, {}}},
		"sent, and nothing heard":         {steps: []tunnel.PeerStats{{}, {Sent: 148}, {Sent: 296}, {Sent: 444}}, want: udpBlocked},
		"not for long":                    {steps: []tunnel.PeerStats{{}, {Sent: 148}}, want: udpAsked},
		"heard":                           {steps: []tunnel.PeerStats{{}, {Sent: 148}, {Sent: 296}, {Sent: 444, Received: 92}}},
		"keepalives under the stream":     {steps: keepalives[:4], open: true},
		"and an answer in time":           {steps: heard, open: true},
		"nothing comes of the stream":     {steps: keepalives, open: true, want: udpBlocked},
		"a peer waits":                    {steps: keepalives[:3], open: true, waiting: true, want: udpAsked},
		"and waits":                       {steps: keepalives[:5], open: true, waiting: true, want: udpBlocked},
		"a peer waits that is not there":  {steps: append(slices.Clone(keepalives[:3]), tunnel.PeerStats{Received: 9}), open: true, waiting: true},
		"the counters have begun anew":    {steps: []tunnel.PeerStats{{Received: 900}, {Sent: 148}}},
		"and nothing is heard after that": {steps: []tunnel.PeerStats{{Received: 900}, {}, {Sent: 148}, {Sent: 148}, {Sent: 148}}, want: udpBlocked},
	} {
		var w udpWatch
		got := udpPasses
		for i, s := range tt.steps {
			got = w.look(start.Add(time.Duration(i)*udpPatience/2), s, tt.open, tt.waiting)
		}
		if got != tt.want {
			t.Errorf("%s: got %d, want %d", name, got, tt.want)
		}
	}
}

// Datagrams of others on the machine do not get to the gateway, nor past it to WireGuard.
func TestOnlyWireGuardGoesOverTLS(t *testing.T) {
	g := openTestGate(t)
	key := newControlKey(t)
	g.set(memberState(key))
	own, err := net.ListenUDP("udp4", net.UDPAddrFromAddrPort(netip.AddrPortFrom(machineAddress(), 0)))
	if err != nil {
		t.Fatal(err)
	}
	defer own.Close()
	o, err := openOverTLS(overTLSConfig{
		gateway: netip.MustParseAddrPort(g.at), pinned: g.key.Public(), key: key,
		port: func() (uint16, error) { return addrPortOf(own.LocalAddr()).Port(), nil },
	})
	if err != nil {
		t.Fatal(err)
	}
	defer o.close()
	conn, err := o.dial(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { done <- o.pass(t.Context(), conn) }()
	other, err := net.ListenUDP("udp4", net.UDPAddrFromAddrPort(netip.AddrPortFrom(machineAddress(), 0)))
	if err != nil {
		t.Fatal(err)
	}
	defer other.Close()
	for _, at := range o.places() {
		if _, err := other.WriteToUDPAddrPort([]byte("stranger"), at); err != nil {
			t.Fatal(err)
		}
		if _, err := own.WriteToUDPAddrPort([]byte("own"), at); err != nil {
			t.Fatal(err)
		}
		b := make([]byte, 100)
		if err := own.SetReadDeadline(time.Now().Add(10 * time.Second)); err != nil {
			t.Fatal(err)
		}
		n, from, err := own.ReadFromUDPAddrPort(b)
		if err != nil || string(b[:n]) != "own" || from != at {
			t.Errorf("%q from %s, %v", b[:n], from, err)
		}
	}
	_ = conn.NetConn().Close()
	if err := <-done; err == nil {
		t.Error("the end of the connection is no error")
	}
	// A gateway with another key is not spoken to.
	o.config, err = key.TLSFor(overTLSProtocol, newControlKey(t).Public().Is)
	if err != nil {
		t.Fatal(err)
	}
	if c, err := o.dial(t.Context()); err == nil {
		c.Close()
		t.Error("another gateway's key is taken")
	}
}

package node

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/meshdns/meshdns/funnel"
	"github.com/meshdns/meshdns/node/control"
)

// testGate is a gateway's public port whose WireGuard and relay send back what they are sent.
type testGate struct {
	*tlsGate
	at string

	mu      sync.Mutex
	states  []control.NodeState
	sources []netip.AddrPort
}

func (g *testGate) set(states ...control.NodeState) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.states = states
}

func newControlKey(t *testing.T) control.PrivateKey {
	t.Helper()
	key, err := control.NewPrivateKey()
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func memberState(key control.PrivateKey) control.NodeState {
	return control.NodeState{Node: control.Node{Name: "nas", Control: key.Public()}}
}

func openInvite() control.NodeState {
	return control.NodeState{Invited: true, Joined: time.Now().Add(time.Hour)}
}

func openTestGate(t *testing.T) *testGate {
	t.Helper()
	checkGoroutines(t)
	g := &testGate{}
	g.tlsGate = &tlsGate{
		key: newControlKey(t), open: map[control.ControlKey]*carried{}, tokens: strangerBurst, refilled: time.Now(),
		nodes: func() []control.NodeState {
			g.mu.Lock()
			defer g.mu.Unlock()
			return slices.Clone(g.states)
		},
	}
	for i := range g.targets {
		echo, err := net.ListenUDP("udp", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { echo.Close() })
		g.targets[i] = addrPortOf(echo.LocalAddr())
		go func() {
			b := make([]byte, 4096)
			for {
				n, from, err := echo.ReadFromUDPAddrPort(b)
				if err != nil {
					return
				}
				g.mu.Lock()
				g.sources = append(g.sources, from)
				g.mu.Unlock()
				_, _ = echo.WriteToUDPAddrPort(b[:n], from)
			}
		}()
	}
	front := funnel.NewFront(funnel.FrontConfig{})
	handle := g.handle(&Node{log: slog.New(slog.DiscardHandler)})
	if err := front.SetRoutes([]funnel.Route{{Protocol: overTLSProtocol, Handle: handle}}); err != nil {
		t.Fatal(err)
	}
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	g.at = ln.Addr().String()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- front.Serve(ctx, ln) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return g
}

// dial connects as the holder of a key, and returns once the gateway has said whether it may.
func (g *testGate) dial(t *testing.T, key control.PrivateKey) (*tls.Conn, error) {
	t.Helper()
	config, err := key.TLSFor(overTLSProtocol, g.key.Public().Is)
	if err != nil {
		t.Fatal(err)
	}
	conn, err := (&tls.Dialer{Config: config}).DialContext(t.Context(), "tcp", g.at)
	if err != nil {
		return nil, err
	}
	t.Cleanup(func() { conn.Close() })
	secure := conn.(*tls.Conn)
	if err := secure.SetDeadline(time.Now().Add(10 * time.Second)); err != nil {
		t.Fatal(err)
	}
	return secure, roundTrip(secure, portWireGuard, "are you there")
}

// roundTrip sends a datagram and wants it back from the same port.
func roundTrip(c *tls.Conn, port int, text string) error {
	if err := (&frameWriter{conn: c}).write(port, append(make([]byte, frameHead), text...)); err != nil {
		return err
	}
	from, got, err := readFrame(c, make([]byte, maxDatagram))
	if err == nil && (from != port || string(got) != text) {
		err = errors.New("another datagram came back: " + string(got))
	}
	return err
}

func TestPacketsGoOverTLS(t *testing.T) {
	g := openTestGate(t)
	nas, tv := newControlKey(t), newControlKey(t)
	g.set(memberState(nas), memberState(tv))
	a, err := g.dial(t, nas)
	if err != nil {
		t.Fatal(err)
	}
	b, err := g.dial(t, tv)
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []*tls.Conn{a, b} {
		for port := range carriedPorts {
			if err := roundTrip(c, port, string(bytes.Repeat([]byte{byte(port + 1)}, 1500))); err != nil {
				t.Errorf("port %d: %v", port, err)
			}
		}
	}
	g.mu.Lock()
	seen := map[netip.AddrPort]bool{}
	for _, s := range g.sources {
		seen[s] = true
		if !g.isSource(s) {
			t.Errorf("%s would be told to other nodes", s)
		}
	}
	g.mu.Unlock()
	if len(seen) != 4 {
		t.Errorf("%d sources for two nodes at two ports", len(seen))
	}
	// A node's newer connection ends its older one.
	if _, err := g.dial(t, nas); err != nil {
		t.Fatal(err)
	}
	if _, err := a.Read(make([]byte, 1)); err == nil {
		t.Error("the older connection stays")
	}
	// S5: so does its removal.
	g.set(memberState(nas))
	g.sweep()
	if _, err := b.Read(make([]byte, 1)); err == nil {
		t.Error("a removed node's connection stays")
	}
	if _, err := g.dial(t, tv); err == nil {
		t.Error("a removed node comes back")
	}
}

func TestStrangersDoNotComeOverTLS(t *testing.T) {
	g := openTestGate(t)
	g.set(memberState(newControlKey(t)))
	if _, err := g.dial(t, newControlKey(t)); err == nil {
		t.Error("a stranger's key is taken")
	}
	config := &tls.Config{InsecureSkipVerify: true, NextProtos: []string{overTLSProtocol}}
	if c, err := tls.Dial("tcp", g.at, config); err == nil {
		defer c.Close()
		if err := roundTrip(c, portWireGuard, "x"); err == nil {
			t.Error("nobody's key is taken")
		}
	}
	config.NextProtos = []string{"h2"}
	if c, err := tls.Dial("tcp", g.at, config); err == nil {
		c.Close()
		t.Error("another protocol is taken")
	}
	g.set(control.NodeState{Invited: true, Joined: time.Now().Add(-time.Second)})
	if _, err := g.dial(t, newControlKey(t)); err == nil {
		t.Error("an invite that has ended lets strangers in")
	}
	// While there is an invite its holder's key cannot be known: a few come in.
	g.set(openInvite())
	for i := range maxStrangers + 2 {
		if _, err := g.dial(t, newControlKey(t)); (err == nil) != (i < maxStrangers) {
			t.Errorf("stranger %d: %v", i+1, err)
		}
	}
}

func TestStrangersComeOverTLSSlowly(t *testing.T) {
	g := openTestGate(t).tlsGate
	now := time.Now()
	g.refilled = now
	took := 0
	for range 100 {
		key, one := newControlKey(t).Public(), &carried{stranger: true, cancel: func() {}}
		if g.enter(key, one, now) {
			took++
			g.leave(key, one)
		}
	}
	if took != strangerBurst {
		t.Errorf("%d at once, want %d", took, strangerBurst)
	}
	if one := (&carried{stranger: true, cancel: func() {}}); !g.enter(newControlKey(t).Public(), one, now.Add(2*strangerPause)) {
		t.Error("none later")
	}
}

func TestFramesThatAreNoneEndTheConnection(t *testing.T) {
	g := openTestGate(t)
	key := newControlKey(t)
	g.set(memberState(key))
	for name, data := range map[string][]byte{
		"longer than a datagram": append([]byte{0x08, 0x01}, make([]byte, 4000)...),
		"as long as can be said": append([]byte{0x7f, 0xff}, make([]byte, 40000)...),
		"empty":                  {0, 0, 0, 0},
	} {
		c, err := g.dial(t, key)
		if err != nil {
			t.Fatal(err)
		}
		_, _ = c.Write(data) // which may be closed by then
		if _, err := c.Read(make([]byte, 1)); err == nil {
			t.Errorf("%s: taken", name)
		}
	}
}

// Who sends without end and takes nothing costs a few buffers, and others go on.
func TestAFloodOverTLSIsDropped(t *testing.T) {
	g := openTestGate(t)
	flooder, other := newControlKey(t), newControlKey(t)
	g.set(memberState(flooder), memberState(other))
	c, err := g.dial(t, flooder)
	if err != nil {
		t.Fatal(err)
	}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		frames := bytes.Repeat(append([]byte{0x05, 0xdc}, make([]byte, 1500)...), 64)
		for range 500 { // 48 MB
			if _, err := c.Write(frames); err != nil {
				return
			}
		}
	}()
	for range 20 {
		one, err := g.dial(t, other)
		if err != nil {
			t.Fatalf("another node: %v", err)
		}
		one.Close()
	}
	<-ended
}

func FuzzReadFrame(f *testing.F) {
	f.Add([]byte{0, 1, 'x', 0x80, 2, 'y', 'z'})
	f.Add([]byte{0x08, 0, 1})
	f.Fuzz(func(t *testing.T, data []byte) {
		in, b := bytes.NewReader(data), make([]byte, maxDatagram)
		var again bytes.Buffer
		for {
			port, datagram, err := readFrame(in, b)
			if err != nil {
				return
			}
			if len(datagram) == 0 || len(datagram) > maxDatagram || port < 0 || port >= carriedPorts {
				t.Fatalf("port %d, %d bytes", port, len(datagram))
			}
			w := &frameWriter{conn: bufferConn{w: &again}}
			if err := w.write(port, append(make([]byte, frameHead), datagram...)); err != nil {
				t.Fatal(err)
			}
			if !bytes.HasPrefix(data, again.Bytes()) {
				t.Fatalf("%x is written as %x", data, again.Bytes())
			}
		}
	})
}

// bufferConn is a connection that keeps what is written.
type bufferConn struct {
	net.Conn
	w io.Writer
}

func (c bufferConn) SetWriteDeadline(time.Time) error { return nil }

func (c bufferConn) Write(b []byte) (int, error) { return c.w.Write(b) }

package funnel

import (
	"bytes"
	"context"
	"fmt"
	"net"
	"net/netip"
	"testing"
	"time"
)

// serveUDP has a relay show port 5300, which these nodes answer.
func serveUDP(t *testing.T, cfg RelayConfig, nodes ...*testNode) (*Relay, net.Addr) {
	t.Helper()
	p := Public{Port: 5300, Kind: kindUDP}
	for _, n := range nodes {
		p.Backends = append(p.Backends, n.backend())
	}
	r := NewRelay(cfg)
	if err := r.Set([]Public{p}); err != nil {
		t.Fatal(err)
	}
	pc, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- r.ServeUDP(ctx, pc, 5300) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return r, pc.LocalAddr()
}

// ping sends a datagram until this comes back, as those who use UDP do. What comes twice since it was sent twice is passed
// over.
func ping(t *testing.T, conn net.Conn, data, want []byte) {
	t.Helper()
	buf := make([]byte, maxDatagram)
	for range 30 {
		if _, err := conn.Write(data); err != nil {
			t.Fatal(err)
		}
		_ = conn.SetReadDeadline(time.Now().Add(time.Second))
		for {
			n, err := conn.Read(buf)
			if err != nil {
				break
			}
			if bytes.Equal(buf[:n], want) {
				return
			}
		}
	}
	t.Fatalf("%d bytes come back never", len(want))
}

func TestDatagramsArePassed(t *testing.T) {
	nas := newNode(t, "nas", func(v *Visit) {
		if v.RemoteAddr().Network() != "udp" || v.Port != 5300 {
			t.Errorf("%s %+v", v.RemoteAddr().Network(), v)
		}
		buf := make([]byte, maxDatagram)
		for {
			n, err := v.Read(buf)
			if err != nil {
				return
			}
			if string(buf[:n]) == "who" {
				n = copy(buf, v.RemoteAddr().String())
			}
			if _, err := v.Write(buf[:n]); err != nil {
				return
			}
		}
	})
	r, addr := serveUDP(t, RelayConfig{}, nas)
	for range 3 {
		conn, err := net.Dial("udp", addr.String())
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		ping(t, conn, []byte("who"), []byte(conn.LocalAddr().String()))
		for _, size := range []int{0, 1, 1200, 1500, 9000, 60000} {
			sent := bytes.Repeat([]byte{byte(size)}, size)
			ping(t, conn, sent, sent)
		}
	}
	if s := r.Stats(); s.Open != 3 || s.Begun != 3 {
		t.Errorf("%+v", s)
	}
}

// Anybody can send datagrams from any number of addresses: those that are too many are lost, and take nothing up.
func TestDatagramsAreBounded(t *testing.T) {
	nas := newNode(t, "nas", func(v *Visit) { echo(v) })
	r, addr := serveUDP(t, RelayConfig{Name: Limits{Connections: 5}}, nas)
	pc, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer pc.Close()
	for i := range 50 {
		conn, err := net.Dial("udp", addr.String())
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		if i < 5 {
			ping(t, conn, []byte("hello"), []byte("hello"))
			continue
		}
		fmt.Fprint(conn, "one too many")
	}
	until(t, "the end of those too many", func() bool { return r.Stats().Refused > 40 })
	if s := r.Stats(); s.Open != 5 {
		t.Errorf("%+v", s)
	}
}

// What waits for nodes is bounded in bytes, for a visitor and for all.
func TestDatagramsThatWaitAreBounded(t *testing.T) {
	r := NewRelay(RelayConfig{})
	blocked := Backend{
		Node: "nas", Key: func() ([]byte, bool) { return testKey("nas"), true },
		Dial: func(ctx context.Context) (net.Conn, error) { <-ctx.Done(); return nil, ctx.Err() },
	}
	off := Limits{Connections: -1, PerSecond: -1}
	r.cfg.Source, r.cfg.Node = off, off
	if err := r.Set([]Public{{Port: 5300, Kind: kindUDP, Backends: []Backend{blocked}, Limits: off}}); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	u := &udpPort{relay: r, port: 5300, visitors: map[netip.AddrPort]*udpVisitor{}}
	u.pc, _ = net.ListenPacket("udp", "127.0.0.1:0")
	defer u.pc.Close()
	from := &net.UDPAddr{IP: net.IPv4(192, 0, 2, 1)}
	for i := range 4000 {
		from := *from
		from.Port = 1 + i/10
		u.take(ctx, &from, make([]byte, 60000))
		if n := u.queued.Load(); n > udpQueuedAll {
			t.Fatalf("%d bytes wait", n)
		}
	}
	first := u.visitors[addrOf(&net.UDPAddr{IP: from.IP, Port: 1})]
	if n := first.queued.Load(); n > udpQueued || n < udpQueued/2 || u.queued.Load() < udpQueuedAll/2 {
		t.Errorf("%d bytes of one visitor wait, and %d of all", n, u.queued.Load())
	}
	cancel()
	u.running.Wait()
	if n := u.queued.Load(); n != 0 || len(u.visitors) != 0 {
		t.Errorf("%d bytes are left, of %d visitors", n, len(u.visitors))
	}
}

func TestANodeCannotSendDatagramsThatAreNone(t *testing.T) {
	pc, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer pc.Close()
	v := &udpVisitor{port: &udpPort{pc: pc}, addr: pc.LocalAddr(), ended: make(chan struct{})}
	// In pieces, as a stream may bring them.
	for _, piece := range []string{"\x00", "\x03o", "ne\x00\x03tw", "o\x00", "\x00\xff\xff" + string(make([]byte, 1000))} {
		if n, err := v.Write([]byte(piece)); err != nil || n != len(piece) {
			t.Fatal(n, err)
		}
	}
	if len(v.part) > 2+maxDatagram {
		t.Errorf("%d bytes wait", len(v.part))
	}
	buf := make([]byte, 100)
	_ = pc.SetReadDeadline(time.Now().Add(soon))
	for _, want := range []string{"one", "two", ""} {
		n, _, err := pc.ReadFrom(buf)
		if err != nil || string(buf[:n]) != want {
			t.Errorf("%q, %v; want %q", buf[:n], err, want)
		}
	}
}

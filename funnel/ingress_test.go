package funnel

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"net/netip"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// fakeConn is one end of a pipe, with addresses.
type fakeConn struct {
	net.Conn

	local, remote netip.AddrPort
}

func (c *fakeConn) LocalAddr() net.Addr  { return net.TCPAddrFromAddrPort(c.local) }
func (c *fakeConn) RemoteAddr() net.Addr { return net.TCPAddrFromAddrPort(c.remote) }

// fakePair is a connection from one address to another.
func fakePair(from, to string) (client, server *fakeConn) {
	a, b := net.Pipe()
	f, t := netip.MustParseAddrPort(from), netip.MustParseAddrPort(to)
	return &fakeConn{a, f, t}, &fakeConn{b, t, f}
}

// fakeListener is a listener of such connections, for tests in which time is not the clock's.
type fakeListener struct {
	conns chan net.Conn
	once  sync.Once
	ended chan struct{}
}

func newFakeListener() *fakeListener {
	return &fakeListener{conns: make(chan net.Conn), ended: make(chan struct{})}
}

func (l *fakeListener) Accept() (net.Conn, error) {
	select {
	case c := <-l.conns:
		return c, nil
	case <-l.ended:
		return nil, net.ErrClosed
	}
}

func (l *fakeListener) Close() error {
	l.once.Do(func() { close(l.ended) })
	return nil
}

func (l *fakeListener) Addr() net.Addr { return &net.TCPAddr{} }

// dial connects from an address.
func (l *fakeListener) dial(ctx context.Context, from string) (net.Conn, error) {
	client, server := fakePair(from, nasIngress)
	select {
	case l.conns <- server:
		return client, nil
	case <-l.ended:
		return nil, errors.New("connection refused")
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

const (
	edge       = "10.8.0.1:50000" // the gateway, in the tailnet
	nasIngress = "10.8.0.2:41444"
)

// nasKeys are the keys of nas's only gateway.
func nasKeys(gateway netip.Addr) [][]byte {
	if gateway != netip.MustParseAddr("10.8.0.1") {
		return nil
	}
	return [][]byte{testKey("older"), testKey("nas")}
}

// fakeIngress is an ingress, and where its visits come out.
func fakeIngress(t *testing.T, cfg IngressConfig) (*fakeListener, chan *Visit) {
	t.Helper()
	return fakeIngressAt(t, cfg, time.Now)
}

// fakeIngressAt is one with a clock of its own.
func fakeIngressAt(t *testing.T, cfg IngressConfig, now func() time.Time) (*fakeListener, chan *Visit) {
	t.Helper()
	if cfg.Keys == nil {
		cfg.Keys = nasKeys
	}
	ln, visits := newFakeListener(), make(chan *Visit, 100)
	in := Ingress(ln, cfg)
	in.(*ingress).now = now
	var running sync.WaitGroup
	running.Go(func() {
		for {
			conn, err := in.Accept()
			if err != nil {
				return
			}
			visits <- conn.(*Visit)
		}
	})
	t.Cleanup(func() { in.Close(); running.Wait() })
	return ln, visits
}

// offer sends bytes to an ingress, and returns all that it answers before it closes or takes the visit.
func offer(t *testing.T, ln *fakeListener, from string, raw []byte) []byte {
	t.Helper()
	conn, err := ln.dial(t.Context(), from)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	go func() { _, _ = conn.Write(raw) }()
	reply := make([]byte, 9)
	_ = conn.SetReadDeadline(time.Now().Add(headerTime + time.Second))
	n, _ := io.ReadAtLeast(conn, reply, 1)
	if n > 0 && reply[0] == replyLate {
		m, _ := io.ReadFull(conn, reply[n:])
		n += m
	}
	return reply[:n]
}

func TestOnlyAGatewaysHeaderMakesAVisit(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ln, visits := fakeIngress(t, IngressConfig{})
		good := func() []byte { return sealed(t, aHeader()) }
		forged, err := aHeader().seal(testKey("a guess"))
		if err != nil {
			t.Fatal(err)
		}
		changed := good()
		changed[16] ^= 1 // the visitor's address
		for name, tt := range map[string]struct {
			from string
			raw  []byte
		}{
			"a ClientHello":                    {edge, helloOf(t, configFor("nas.example"))},
			"a header of PROXY without a MAC":  {edge, []byte("PROXY TCP4 192.0.2.7 203.0.113.5 40000 443\r\n")},
			"a header under another key":       {edge, forged},
			"a header that was changed":        {edge, changed},
			"a header cut short":               {edge, good()[:60]},
			"nothing at all":                   {edge, nil},
			"a good one from another node":     {"10.8.0.3:50000", good()},
			"a good one from this machine":     {"127.0.0.1:50000", good()},
			"a good one from the node itself":  {"10.8.0.2:50000", good()},
			"a good one from the world":        {"192.0.2.7:50000", good()},
			"a good one from an IPv6 stranger": {"[fd00::1]:50000", good()},
		} {
			begun := time.Now()
			if got := offer(t, ln, tt.from, tt.raw); len(got) > 0 {
				t.Errorf("%s: it was answered %v", name, got)
			}
			if waited := time.Since(begun); waited > headerTime {
				t.Errorf("%s: it was let go after %v", name, waited)
			}
		}
		if synctest.Wait(); len(visits) != 0 {
			t.Errorf("%d visits", len(visits))
		}
		if got := offer(t, ln, edge, good()); !bytes.Equal(got, []byte{replyTaken}) {
			t.Fatalf("a good one: %v", got)
		}
		if v := <-visits; v.RemoteAddr().String() != "192.0.2.7:40000" || v.Name != "nas.example" || v.Gateway.String() != "10.8.0.1" {
			t.Errorf("%+v", v)
		}
	})
}

func TestAHeaderIsTakenOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ln, visits := fakeIngress(t, IngressConfig{})
		h := aHeader()
		raw := sealed(t, h)
		for i, want := range [][]byte{{replyTaken}, {replyRefused}} {
			if got := offer(t, ln, edge, raw); !bytes.Equal(got, want) {
				t.Errorf("time %d: %v, want %v", i+1, got, want)
			}
		}
		// The same for another visitor, by who can make headers but not nonces.
		h.visitor = netip.MustParseAddrPort("192.0.2.8:40000")
		if got := offer(t, ln, edge, sealed(t, h)); !bytes.Equal(got, []byte{replyRefused}) {
			t.Errorf("its nonce again: %v", got)
		}
		// Another one, kept until it is old.
		raw = sealed(t, aHeader())
		time.Sleep(nonceTime + time.Second)
		want := binary.BigEndian.AppendUint64([]byte{replyLate}, uint64(time.Now().UnixMilli()))
		if got := offer(t, ln, edge, raw); !bytes.Equal(got, want) {
			t.Errorf("an old one: %v, want %v", got, want)
		}
		ahead := aHeader()
		ahead.nonce = newNonce(time.Now().Add(nonceTime + time.Second))
		if got := offer(t, ln, edge, sealed(t, ahead)); len(got) == 0 || got[0] != replyLate {
			t.Errorf("one of the future: %v", got)
		}
		if synctest.Wait(); len(visits) != 1 {
			t.Errorf("%d visits", len(visits))
		}
	})
}

func TestNoVisitorComesFromInside(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		tailnet := []netip.Prefix{netip.MustParsePrefix("10.8.0.0/24"), netip.MustParsePrefix("fd7a:115c:a1e0::/48")}
		ln, _ := fakeIngress(t, IngressConfig{Tailnet: tailnet})
		local, _ := fakeIngress(t, IngressConfig{Tailnet: tailnet, Loopback: true})
		for from, want := range map[string]byte{
			"192.0.2.7": replyTaken, "192.168.1.7": replyTaken, "2001:db8::7": replyTaken, "10.8.1.1": replyTaken,
			"10.8.0.3": replyRefused, "::ffff:10.8.0.3": replyRefused, "fd7a:115c:a1e0::3": replyRefused,
			"127.0.0.1": replyRefused, "127.255.0.1": replyRefused, "::ffff:127.0.0.1": replyRefused, "::1": replyRefused,
			"169.254.169.254": replyRefused, "fe80::1": replyRefused, "0.0.0.0": replyRefused, "::": replyRefused,
			"224.0.0.1": replyRefused, "ff02::1": replyRefused,
		} {
			h := aHeader()
			h.visitor = netip.AddrPortFrom(netip.MustParseAddr(from), 40000)
			if h.visitor.Addr().Unmap().Is6() {
				h.gateway = netip.MustParseAddrPort("[2001:db8::5]:443")
			}
			if got := offer(t, ln, edge, sealed(t, h)); !bytes.Equal(got, []byte{want}) {
				t.Errorf("%s: %v, want %v", from, got, want)
			}
			h.nonce = newNonce(time.Now())
			if h.visitor.Addr().Unmap().IsLoopback() {
				want = replyTaken
			}
			if got := offer(t, local, edge, sealed(t, h)); !bytes.Equal(got, []byte{want}) {
				t.Errorf("%s, with a gateway of this machine: %v, want %v", from, got, want)
			}
		}
	})
}

// IPv4 in IPv6 is IPv4, whoever writes it so.
func TestAMappedVisitorIsFromInsideToo(t *testing.T) {
	mapped := net.IPv4(127, 0, 0, 1).To16()
	h := aHeader()
	h.visitor, h.gateway = netip.MustParseAddrPort("[2001:db8::7]:1"), netip.MustParseAddrPort("[2001:db8::5]:443")
	raw := sealed(t, h)
	copy(raw[16:], mapped)
	copy(raw[len(raw)-32:], macOf(testKey("nas"), raw))
	got, err := parseHeader(raw)
	if err != nil || got.visitor.Addr().String() != "127.0.0.1" {
		t.Errorf("%v, %v", got.visitor, err)
	}
}

func TestNoncesAreForgottenWhenTheyCountNoMore(t *testing.T) {
	s := nonces{seen: map[nonce]bool{}}
	now := time.Now()
	first := newNonce(now)
	if !s.spend(first, now) || s.spend(first, now.Add(2*nonceTime)) {
		t.Fatal("once is not once")
	}
	for range maxNonces - 1 {
		if !s.spend(newNonce(now), now) {
			t.Fatal("there is no room")
		}
	}
	if s.spend(newNonce(now), now) {
		t.Error("there is no bound")
	}
	later := now.Add(2*nonceTime + 2*time.Second)
	if !s.spend(newNonce(later), later) || len(s.seen) != 1 || len(s.line) != 1 {
		t.Errorf("%d are kept", len(s.seen))
	}
}

// What has not said who it is takes up a bounded room, and whoever comes next is heard once it is let go.
func TestAnIngressThatIsFlooded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ln, visits := fakeIngress(t, IngressConfig{})
		for range maxArrived {
			conn, err := ln.dial(t.Context(), edge)
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
		}
		if got := offer(t, ln, edge, sealed(t, aHeader())); len(got) > 0 {
			t.Errorf("one too many: %v", got)
		}
		time.Sleep(headerTime)
		synctest.Wait()
		if got := offer(t, ln, edge, sealed(t, aHeader())); !bytes.Equal(got, []byte{replyTaken}) {
			t.Errorf("afterwards: %v", got)
		}
		<-visits
	})
}

func TestPulses(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ln, visits := fakeIngress(t, IngressConfig{})
		conn, err := ln.dial(t.Context(), edge)
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		reply := make([]byte, 1)
		for i, p := range [][]byte{sealed(t, header{pulse: true, nonce: newNonce(time.Now())}), {7}, {8}} {
			if _, err := conn.Write(p); err != nil {
				t.Fatal(err)
			}
			if _, err := io.ReadFull(conn, reply); err != nil || i > 0 && reply[0] != p[0] || i == 0 && reply[0] != replyTaken {
				t.Fatalf("%v, %v", reply, err)
			}
		}
		begun := time.Now()
		if _, err := io.ReadFull(conn, reply); err == nil || time.Since(begun) != pulseTime {
			t.Errorf("it ends after %v, %v", time.Since(begun), err)
		}
		if len(visits) != 0 {
			t.Error("a pulse is a visit")
		}
	})
}

func TestAnIngressEnds(t *testing.T) {
	in := Ingress(listen(t), IngressConfig{Keys: nasKeys})
	if err := in.Close(); err != nil {
		t.Error(err)
	}
	if _, err := in.Accept(); !errors.Is(err, net.ErrClosed) {
		t.Errorf("never started: %v", err)
	}
	synctest.Test(t, func(t *testing.T) {
		ln := newFakeListener()
		in := Ingress(ln, IngressConfig{Keys: nasKeys})
		var accepted sync.WaitGroup
		accepted.Go(func() { _, _ = in.Accept() })
		offer(t, ln, edge, sealed(t, aHeader()))
		accepted.Wait()
		conn, err := ln.dial(t.Context(), edge) // one that says nothing, and one that nobody accepts
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		offer(t, ln, edge, sealed(t, aHeader()))
		in.Close()
		for range 2 {
			if _, err := in.Accept(); !errors.Is(err, net.ErrClosed) {
				t.Error(err)
			}
		}
	}) // which also fails if anything runs still
}

func TestDatagramsOnAStream(t *testing.T) {
	a, b := net.Pipe()
	from, to := &datagrams{Conn: a}, &datagrams{Conn: b}
	sent := [][]byte{[]byte("one"), {}, bytes.Repeat([]byte("x"), maxDatagram), []byte("the last")}
	go func() {
		for _, p := range sent {
			_, _ = from.Write(p)
		}
		_, _ = from.Write([]byte("longer than there is room for"))
		_, _ = from.Write([]byte("end"))
		from.Close()
	}()
	buf := make([]byte, maxDatagram)
	for i, want := range sent {
		if n, err := to.Read(buf); err != nil || !slices.Equal(buf[:n], want) {
			t.Errorf("%d: %d bytes, %v", i, n, err)
		}
	}
	for _, want := range []string{"long", "end"} {
		if n, err := to.Read(buf[:4]); err != nil || string(buf[:n]) != want {
			t.Errorf("%q, %v; want %q", buf[:n], err, want)
		}
	}
	if _, err := to.Read(buf); !errors.Is(err, io.EOF) {
		t.Error(err)
	}
	if _, err := from.Write(make([]byte, maxDatagram+1)); err == nil {
		t.Error("one of 64 KiB is taken")
	}
}

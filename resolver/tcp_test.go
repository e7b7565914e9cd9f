package resolver

import (
	"bufio"
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/miekg/dns"
)

// frameOf is a message as it goes over TCP.
func frameOf(t testing.TB, msg []byte) []byte {
	t.Helper()
	out, err := appendFrame(nil, msg)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// bounce answers a query with itself, as a response.
func bounce(_ context.Context, query []byte) ([]byte, error) {
	out := bytes.Clone(query)
	out[2] |= flagQR >> 8
	return out, nil
}

// serveTCP runs a server on a loopback port until the test ends.
func serveTCP(t *testing.T, limits TCPLimits, answer func(context.Context, []byte) ([]byte, error)) (*tcpServer, string) {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := newTCPServer(limits, answer)
	run(t, func(ctx context.Context) error { return s.serve(ctx, ln) })
	return s, ln.Addr().String()
}

// run runs f until the test ends, and checks that it then ends too, and well.
func run(t testing.TB, f func(context.Context) error) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- f(ctx) }()
	t.Cleanup(func() {
		cancel()
		select {
		case err := <-done:
			if err != nil {
				t.Error(err)
			}
		case <-time.After(10 * time.Second):
			t.Error("does not end")
		}
	})
}

// dialTCP connects until the test ends. Nothing takes longer than ten seconds.
func dialTCP(t *testing.T, addr string) *net.TCPConn {
	t.Helper()
	conn, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	_ = conn.SetDeadline(time.Now().Add(10 * time.Second))
	return conn.(*net.TCPConn)
}

func send(t *testing.T, conn io.Writer, b []byte) {
	t.Helper()
	if _, err := conn.Write(b); err != nil {
		t.Fatal(err)
	}
}

// nextID reads a message and returns its ID.
func nextID(t *testing.T, r *bufio.Reader) uint16 {
	t.Helper()
	msg, err := readFrame(r)
	if err != nil {
		t.Fatal(err)
	}
	return binary.BigEndian.Uint16(msg)
}

// numberedQuery is a query with an ID.
func numberedQuery(t testing.TB, id uint16) []byte {
	msg := query(t, "www.example", dns.TypeA)
	binary.BigEndian.PutUint16(msg, id)
	return msg
}

func TestPipelinedQueriesAreAnsweredInAnyOrder(t *testing.T) {
	second := make(chan struct{})
	_, addr := serveTCP(t, TCPLimits{}, func(ctx context.Context, q []byte) ([]byte, error) {
		switch binary.BigEndian.Uint16(q) {
		case 1:
			<-second
		case 2:
			defer close(second)
		}
		return bounce(ctx, q)
	})
	conn := dialTCP(t, addr)
	send(t, conn, append(frameOf(t, numberedQuery(t, 1)), frameOf(t, numberedQuery(t, 2))...))
	r := bufio.NewReader(conn)
	got := map[uint16]bool{nextID(t, r): true, nextID(t, r): true}
	if !got[1] || !got[2] {
		t.Errorf("answers to %v, want 1 and 2", got)
	}
}

func TestAQueryMayArriveOctetByOctet(t *testing.T) {
	_, addr := serveTCP(t, TCPLimits{}, bounce)
	conn := dialTCP(t, addr)
	_ = conn.SetNoDelay(true)
	for _, c := range frameOf(t, numberedQuery(t, 7)) {
		send(t, conn, []byte{c})
	}
	if id := nextID(t, bufio.NewReader(conn)); id != 7 {
		t.Errorf("answer to %d, want 7", id)
	}
}

func TestAClientThatOnlyStopsSendingGetsItsAnswers(t *testing.T) {
	release := make(chan struct{})
	_, addr := serveTCP(t, TCPLimits{}, func(ctx context.Context, q []byte) ([]byte, error) {
		<-release
		return bounce(ctx, q)
	})
	conn := dialTCP(t, addr)
	send(t, conn, append(frameOf(t, numberedQuery(t, 1)), frameOf(t, numberedQuery(t, 2))...))
	if err := conn.CloseWrite(); err != nil {
		t.Fatal(err)
	}
	close(release)
	r := bufio.NewReader(conn)
	nextID(t, r)
	nextID(t, r)
	if _, err := readFrame(r); !errors.Is(err, io.EOF) {
		t.Errorf("got %v behind the answers, want EOF", err)
	}
}

func TestWhatIsNoQueryEndsTheConnection(t *testing.T) {
	for name, bytes := range map[string][]byte{
		"a response":            func() []byte { q := numberedQuery(t, 1); q[2] |= 0x80; return frameOf(t, q) }(),
		"no header":             frameOf(t, []byte("short")),
		"an empty frame":        {0, 0},
		"TLS instead":           []byte("\x16\x03\x01\x00\x05hello"),
		"a frame that ends":     frameOf(t, numberedQuery(t, 1))[:9],
		"one octet of a length": {0},
	} {
		t.Run(name, func(t *testing.T) {
			asked := false
			_, addr := serveTCP(t, TCPLimits{}, func(context.Context, []byte) ([]byte, error) { asked = true; return nil, nil })
			conn := dialTCP(t, addr)
			send(t, conn, bytes)
			_ = conn.CloseWrite()
			if got, _ := io.ReadAll(conn); len(got) != 0 || asked {
				t.Errorf("got %x, asked %t", got, asked)
			}
		})
	}
}

func TestNoMoreQueriesAreReadThanMayBeUnderWay(t *testing.T) {
	release := make(chan struct{})
	var mu sync.Mutex
	now, most := 0, 0
	_, addr := serveTCP(t, TCPLimits{InFlight: 3}, func(ctx context.Context, q []byte) ([]byte, error) {
		mu.Lock()
		now++
		most = max(most, now)
		mu.Unlock()
		<-release
		mu.Lock()
		now--
		mu.Unlock()
		return bounce(ctx, q)
	})
	conn := dialTCP(t, addr)
	var all []byte
	for id := range uint16(10) {
		all = append(all, frameOf(t, numberedQuery(t, id))...)
	}
	send(t, conn, all)
	waitUntil(t, func() bool { mu.Lock(); defer mu.Unlock(); return now == 3 })
	close(release)
	r := bufio.NewReader(conn)
	for range 10 {
		nextID(t, r)
	}
	if most != 3 {
		t.Errorf("%d queries were under way at once, want 3", most)
	}
}

// pipes is a listener whose connections are pipes, which live in a bubble of synctest.
type pipes struct {
	conns chan net.Conn
	once  sync.Once
	done  chan struct{}
}

func newPipes() *pipes { return &pipes{conns: make(chan net.Conn), done: make(chan struct{})} }

func (p *pipes) Accept() (net.Conn, error) {
	select {
	case c := <-p.conns:
		return c, nil
	case <-p.done:
		return nil, net.ErrClosed
	}
}

func (p *pipes) Close() error { p.once.Do(func() { close(p.done) }); return nil }

func (p *pipes) Addr() net.Addr { return pipeAddr("listener") }

// dial connects from an address, if it is one.
func (p *pipes) dial(from string) net.Conn {
	client, server := net.Pipe()
	p.conns <- &pipeConn{server, pipeAddr(from)}
	synctest.Wait()
	return client
}

type pipeConn struct {
	net.Conn
	from pipeAddr
}

func (c *pipeConn) RemoteAddr() net.Addr { return c.from }

type pipeAddr string

func (a pipeAddr) Network() string { return "pipe" }
func (a pipeAddr) String() string  { return string(a) }

// bubble runs a server on pipes in a bubble of synctest, and f.
func bubble(t *testing.T, limits TCPLimits, answer func(context.Context, []byte) ([]byte, error), f func(*testing.T, *tcpServer, *pipes)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		s, ln := newTCPServer(limits, answer), newPipes()
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error)
		go func() { done <- s.serve(ctx, ln) }()
		f(t, s, ln)
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
		if got := s.stats().Open; got != 0 || len(s.clients) != 0 {
			t.Errorf("%d connections and %d clients are left", got, len(s.clients))
		}
	})
}

// lifetime is how long a connection lasts from now on.
func lifetime(t *testing.T, conn net.Conn) time.Duration {
	t.Helper()
	began := time.Now()
	if n, err := io.Copy(io.Discard, conn); err != nil || n != 0 {
		t.Errorf("got %d octets, %v", n, err)
	}
	return time.Since(began)
}

func TestASilentConnectionIsClosed(t *testing.T) {
	bubble(t, TCPLimits{Idle: 10 * time.Second}, bounce, func(t *testing.T, _ *tcpServer, ln *pipes) {
		conn := ln.dial("192.0.2.1:1")
		time.Sleep(6 * time.Second)
		send(t, conn, frameOf(t, numberedQuery(t, 1)))
		nextID(t, bufio.NewReader(conn))
		if d := lifetime(t, conn); d < 10*time.Second || d > 11*time.Second {
			t.Errorf("closed %s after its last answer, want 10 s", d)
		}
	})
}

func TestAConnectionIsNotIdleWhileAQueryIsUnderWay(t *testing.T) {
	slow := func(ctx context.Context, q []byte) ([]byte, error) {
		time.Sleep(25 * time.Second)
		return bounce(ctx, q)
	}
	bubble(t, TCPLimits{Idle: 10 * time.Second}, slow, func(t *testing.T, _ *tcpServer, ln *pipes) {
		conn := ln.dial("192.0.2.1:1")
		send(t, conn, frameOf(t, numberedQuery(t, 1)))
		if id := nextID(t, bufio.NewReader(conn)); id != 1 {
			t.Errorf("got %d", id)
		}
		if d := lifetime(t, conn); d < 10*time.Second || d > 21*time.Second {
			t.Errorf("closed %s after its last answer, want 10 s to 20 s", d)
		}
	})
}

func TestConnectionsAreClosedSoonerWhenManyAreOpen(t *testing.T) {
	bubble(t, TCPLimits{Conns: 4, PerClient: 4, Idle: 10 * time.Second, BusyIdle: 2 * time.Second}, bounce, func(t *testing.T, _ *tcpServer, ln *pipes) {
		ln.dial("192.0.2.1:1")
		ln.dial("192.0.2.1:2")
		if d := lifetime(t, ln.dial("192.0.2.1:3")); d != 2*time.Second {
			t.Errorf("closed after %s, want 2 s", d)
		}
	})
}

func TestAMessageMustArriveInTime(t *testing.T) {
	bubble(t, TCPLimits{Message: 2 * time.Second}, bounce, func(t *testing.T, _ *tcpServer, ln *pipes) {
		conn := ln.dial("192.0.2.1:1")
		send(t, conn, frameOf(t, numberedQuery(t, 1))[:5])
		if d := lifetime(t, conn); d != 2*time.Second {
			t.Errorf("closed after %s, want 2 s", d)
		}
	})
}

func TestAClientThatDoesNotReadLosesTheConnection(t *testing.T) {
	bubble(t, TCPLimits{Message: 2 * time.Second, Idle: time.Hour}, bounce, func(t *testing.T, s *tcpServer, ln *pipes) {
		conn := ln.dial("192.0.2.1:1")
		send(t, conn, frameOf(t, numberedQuery(t, 1)))
		time.Sleep(2*time.Second + time.Millisecond)
		synctest.Wait()
		if open := s.stats().Open; open != 0 {
			t.Errorf("%d connections are open, want none", open)
		}
	})
}

func TestConnectionsAreBounded(t *testing.T) {
	busy := func(ctx context.Context, q []byte) ([]byte, error) { <-ctx.Done(); return nil, ctx.Err() }
	alive := func(c net.Conn) bool {
		_ = c.SetReadDeadline(time.Now().Add(time.Millisecond))
		_, err := c.Read(make([]byte, 1))
		return !errors.Is(err, io.EOF) && !errors.Is(err, io.ErrClosedPipe)
	}
	bubble(t, TCPLimits{Conns: 3, PerClient: 2}, busy, func(t *testing.T, s *tcpServer, ln *pipes) {
		old := ln.dial("192.0.2.1:1")
		time.Sleep(time.Millisecond)
		kept := ln.dial("192.0.2.1:2")
		third := ln.dial("192.0.2.1:3") // of one client: the one idle for longest goes
		if alive(old) || !alive(kept) || !alive(third) {
			t.Error("of three connections of a client that may have two, not the oldest was closed")
		}
		ln.dial("192.0.2.2:1")
		if got := s.stats(); got.Open != 3 || got.Shed != 1 {
			t.Errorf("%+v, want 3 open and 1 shed", got)
		}
		for _, c := range []net.Conn{kept, third} {
			send(t, c, frameOf(t, numberedQuery(t, 1)))
		}
		synctest.Wait()
		if late := ln.dial("192.0.2.1:4"); alive(late) { // nothing of this client is idle
			t.Error("a connection beyond the limit was taken although all others are busy")
		}
		if c := ln.dial("192.0.2.3:1"); !alive(c) {
			t.Error("an idle connection of another client was not given up")
		}
		if got := s.stats(); got.Open != 3 || got.Shed != 3 || got.Accepted != 6 {
			t.Errorf("%+v, want 3 open, 3 shed of 6", got)
		}
	})
}

func TestTheMachineItselfMayHaveTwiceAsManyConnections(t *testing.T) {
	bubble(t, TCPLimits{Conns: 10, PerClient: 2}, bounce, func(t *testing.T, s *tcpServer, ln *pipes) {
		for range 5 {
			ln.dial("127.0.0.1:1")
		}
		if got := s.stats(); got.Open != 4 || got.Shed != 1 {
			t.Errorf("%+v, want 4 open and 1 shed", got)
		}
	})
}

func TestClientsAreToldApartByAddressAlone(t *testing.T) {
	for from, want := range map[string]string{
		"192.0.2.1:99":          "192.0.2.1",
		"[::ffff:192.0.2.1]:99": "192.0.2.1",
		"[2001:db8::1]:99":      "2001:db8::1",
	} {
		if got := clientAddr(&pipeConn{from: pipeAddr(from)}); got != netip.MustParseAddr(want) {
			t.Errorf("%s: got %s, want %s", from, got, want)
		}
	}
	if got := clientAddr(&pipeConn{from: "pipe"}); got.IsValid() {
		t.Errorf("no address: got %s", got)
	}
}

// failing is a listener that fails before it does anything else.
type failing struct {
	*pipes
	errs chan error
}

func (f *failing) Accept() (net.Conn, error) {
	select {
	case err := <-f.errs:
		return nil, err
	default:
		return f.pipes.Accept()
	}
}

// passingError is what a process without descriptors gets.
type passingError struct{}

func (passingError) Error() string   { return "too many open files" }
func (passingError) Temporary() bool { return true }

func TestErrorsThatPassAreWaitedOut(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ln := &failing{newPipes(), make(chan error, 1000)}
		for range 500 {
			ln.errs <- passingError{}
		}
		s := newTCPServer(TCPLimits{}, bounce)
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error)
		go func() { done <- s.serve(ctx, ln) }()
		time.Sleep(10 * time.Minute)
		conn := ln.dial("192.0.2.1:1")
		send(t, conn, frameOf(t, numberedQuery(t, 1)))
		nextID(t, bufio.NewReader(conn))
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}

func TestAListenerThatIsBrokenIsGivenUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ln := &failing{newPipes(), make(chan error, 1000)}
		for range maxErrors {
			ln.errs <- errors.New("broken")
		}
		err := newTCPServer(TCPLimits{}, bounce).serve(t.Context(), ln)
		if err == nil || !strings.Contains(err.Error(), "accepting connections: broken") {
			t.Errorf("got %v", err)
		}
	})
}

func TestTheEndOfTheServerEndsItsConnections(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := newTCPServer(TCPLimits{}, func(ctx context.Context, _ []byte) ([]byte, error) { <-ctx.Done(); return nil, ctx.Err() })
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	go func() { done <- s.serve(ctx, ln) }()
	idle, busy := dialTCP(t, ln.Addr().String()), dialTCP(t, ln.Addr().String())
	send(t, busy, frameOf(t, numberedQuery(t, 1)))
	waitUntil(t, func() bool { return s.stats().Open == 2 })
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
	for _, c := range []*net.TCPConn{idle, busy} {
		if n, _ := c.Read(make([]byte, 1)); n != 0 {
			t.Error("got an answer")
		}
	}
	if _, err := net.Dial("tcp", ln.Addr().String()); err == nil {
		t.Error("the listener is still open")
	}
}

func TestNoMessageIsLongerThanAFrame(t *testing.T) {
	if _, err := appendFrame(nil, make([]byte, dns.MaxMsgSize+1)); err == nil {
		t.Error("got no error")
	}
	if got, err := appendFrame(nil, make([]byte, dns.MaxMsgSize)); err != nil || len(got) != 2+dns.MaxMsgSize {
		t.Errorf("got %d octets, %v", len(got), err)
	}
}

// FuzzReadFrame: what appendFrame has written, readFrame reads; anything else ends in an error or a whole message, and
// never takes more memory than has arrived.
func FuzzReadFrame(f *testing.F) {
	f.Add([]byte{0, 3, 'a', 'b', 'c', 0, 0})
	f.Add([]byte{0xff, 0xff, 1})
	f.Fuzz(func(t *testing.T, stream []byte) {
		stream = stream[:min(len(stream), 4096)]
		r := bufio.NewReaderSize(bytes.NewReader(stream), 16)
		var again []byte
		for {
			msg, err := readFrame(r)
			if err != nil {
				if rest := len(stream) - len(again); rest == 0 != errors.Is(err, io.EOF) {
					t.Errorf("%v with %d octets left", err, rest)
				}
				return
			}
			again = append(again, frameOf(t, msg)...)
			if !bytes.HasPrefix(stream, again) {
				t.Fatalf("read %x of %x", again, stream)
			}
		}
	})
}

package funnel

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"net/netip"
	"os"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// soon is far more than anything here takes.
const soon = 30 * time.Second

// testKey is the key of a node's name.
func testKey(node string) []byte { return []byte(strings.Repeat(node+".", 32)[:32]) }

// listen is a listener on loopback, which is closed in the end.
func listen(t testing.TB) net.Listener {
	t.Helper()
	ln := listenTest(t)
	t.Cleanup(func() { ln.Close() })
	return ln
}

// testNode is a node with an ingress.
type testNode struct {
	name    string
	addr    string
	ingress net.Listener
}

// newNode starts a node that does this with its visits.
func newNode(t testing.TB, name string, do func(*Visit)) *testNode {
	t.Helper()
	return newNodeOn(t, name, listen(t), do)
}

func newNodeOn(t testing.TB, name string, ln net.Listener, do func(*Visit)) *testNode {
	t.Helper()
	n := &testNode{name: name, addr: ln.Addr().String()}
	n.ingress = Ingress(ln, IngressConfig{
		Keys: func(netip.Addr) [][]byte { return [][]byte{testKey(name)} }, Loopback: true,
	})
	var running sync.WaitGroup
	running.Go(func() {
		for {
			conn, err := n.ingress.Accept()
			if err != nil {
				return
			}
			running.Go(func() {
				defer conn.Close()
				do(conn.(*Visit))
			})
		}
	})
	t.Cleanup(func() { n.ingress.Close(); running.Wait() })
	return n
}

// backend is the way to it.
func (n *testNode) backend() Backend {
	return Backend{
		Node: n.name,
		Dial: func(ctx context.Context) (net.Conn, error) { return new(net.Dialer).DialContext(ctx, "tcp", n.addr) },
		Key:  func() ([]byte, bool) { return testKey(n.name), true },
	}
}

// shown is a name on port 443 that nodes have.
func shown(name string, nodes ...*testNode) Public {
	p := Public{Names: []string{name}, Port: 443, Kind: "https"}
	for _, n := range nodes {
		p.Backends = append(p.Backends, n.backend())
	}
	return p
}

// newRelay has a Relay behind a Front.
func newRelay(t testing.TB, cfg RelayConfig, list ...Public) (r *Relay, addr string) {
	t.Helper()
	r = NewRelay(cfg)
	if err := r.Set(list); err != nil {
		t.Fatal(err)
	}
	f := NewFront(FrontConfig{MaxEach: 1 << 20})
	var routes []Route
	for _, p := range list {
		for _, name := range p.Names {
			if p.Port != 443 {
				continue
			}
			routes = append(routes, Route{Name: name, Handle: r.Handler(443)})
		}
	}
	if err := f.SetRoutes(routes); err != nil {
		t.Fatal(err)
	}
	ln := listen(t)
	var running sync.WaitGroup
	ctx, cancel := context.WithCancel(context.Background())
	running.Go(func() { _ = f.Serve(ctx, ln) })
	t.Cleanup(func() { cancel(); running.Wait() })
	return r, ln.Addr().String()
}

// echo gives back what comes, until its end.
func echo(v *Visit) {
	_, _ = io.Copy(v, v)
	_ = v.CloseWrite()
}

func TestAVisitorIsPassedToItsNode(t *testing.T) {
	visits := make(chan *Visit, 1)
	nas := newNode(t, "nas", func(v *Visit) {
		visits <- v
		echo(v)
	})
	_, addr := newRelay(t, RelayConfig{}, shown("NAS.example.", nas))
	conn, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	said := append(helloOf(t, configFor("nas.example")), bytes.Repeat([]byte("and a lot more "), 100_000)...)
	go func() {
		_, _ = conn.Write(said)
		_ = conn.(*net.TCPConn).CloseWrite()
	}()
	heard, err := io.ReadAll(conn)
	if err != nil || !bytes.Equal(heard, said) {
		t.Fatalf("%d of %d bytes came back, %v", len(heard), len(said), err)
	}
	v := <-visits
	if v.RemoteAddr().String() != conn.LocalAddr().String() || v.Name != "nas.example" || v.Port != 443 || v.Kind != "https" ||
		v.Gateway.String() != "127.0.0.1" {
		t.Errorf("the node was told %s %+v", v.RemoteAddr(), v)
	}
}

func TestTLSEndsOnTheNode(t *testing.T) {
	pair := selfSigned(t)
	nas := newNode(t, "nas", func(v *Visit) {
		secure := tls.Server(v, &tls.Config{Certificates: []tls.Certificate{pair}})
		_, _ = io.WriteString(secure, "hello")
		secure.Close()
	})
	_, addr := newRelay(t, RelayConfig{}, shown("a.example", nas))
	conn, err := tls.Dial("tcp", addr, configFor("a.example"))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if data, err := io.ReadAll(conn); err != nil || string(data) != "hello" {
		t.Errorf("%q, %v", data, err)
	}
}

// come opens a connection for a name, and says hello.
func come(t testing.TB, addr, name string, protocols ...string) *net.TCPConn {
	t.Helper()
	conn, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	if _, err := conn.Write(helloOf(t, configFor(name, protocols...))); err != nil {
		t.Fatal(err)
	}
	_ = conn.SetDeadline(time.Now().Add(soon))
	return conn.(*net.TCPConn)
}

// all is what comes until the end.
func all(t testing.TB, conn net.Conn) string {
	t.Helper()
	data, err := io.ReadAll(conn)
	if err != nil {
		return err.Error()
	}
	return string(data)
}

// until waits for a condition.
func until(t testing.TB, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(soon); !ok(); runtime.Gosched() {
		if time.Now().After(end) {
			t.Fatal("it does not come about: ", what)
		}
	}
}

func TestEitherSideCanEndFirst(t *testing.T) {
	nas := newNode(t, "nas", func(v *Visit) {
		_, _ = io.WriteString(v, "first ")
		_ = v.CloseWrite()
		data, _ := io.ReadAll(v) // which ends when the visitor does
		if !bytes.HasSuffix(data, []byte("afterwards")) {
			t.Errorf("the node got %d bytes", len(data))
		}
	})
	tv := newNode(t, "tv", func(v *Visit) {
		data, _ := io.ReadAll(v)
		_, _ = io.WriteString(v, "after "+string(data[len(data)-5:]))
	})
	_, addr := newRelay(t, RelayConfig{}, shown("nas.example", nas), shown("tv.example", tv))
	conn := come(t, addr, "nas.example")
	if got := all(t, conn); got != "first " {
		t.Errorf("%q", got)
	}
	if _, err := io.WriteString(conn, "afterwards"); err != nil {
		t.Error("the other way has ended too: ", err)
	}
	if err := conn.CloseWrite(); err != nil {
		t.Error(err)
	}
	conn = come(t, addr, "tv.example")
	if _, err := io.WriteString(conn, "a end"); err != nil {
		t.Fatal(err)
	}
	_ = conn.CloseWrite()
	if got := all(t, conn); got != "after a end" {
		t.Errorf("%q", got)
	}
}

// Whoever does not read stops the other side after what the kernel's buffers hold, and the relay holds nothing.
func TestASlowSideStopsTheOther(t *testing.T) {
	var sent atomic.Int64
	flood := func(w io.Writer) {
		buf := make([]byte, 64<<10)
		for {
			n, err := w.Write(buf)
			if sent.Add(int64(n)); err != nil {
				return
			}
		}
	}
	release := make(chan struct{})
	down := newNode(t, "down", func(v *Visit) { flood(v) })
	up := newNode(t, "up", func(v *Visit) { <-release })
	_, addr := newRelay(t, RelayConfig{}, shown("down.example", down), shown("up.example", up))
	// stopped waits until no more is sent for a while.
	stopped := func() int64 {
		last, since := int64(-1), time.Now()
		until(t, "back-pressure", func() bool {
			if now := sent.Load(); now != last {
				last, since = now, time.Now()
			}
			return last > 0 && time.Since(since) > 500*time.Millisecond
		})
		return last
	}
	conn := come(t, addr, "down.example")
	if n := stopped(); n > 64<<20 {
		t.Errorf("%d MiB were taken from the node", n>>20)
	}
	conn.Close()
	sent.Store(0)
	conn = come(t, addr, "up.example")
	var flooding sync.WaitGroup
	flooding.Go(func() { flood(conn) })
	if n := stopped(); n > 64<<20 {
		t.Errorf("%d MiB were taken from the visitor", n>>20)
	}
	conn.Close()
	close(release)
	flooding.Wait()
}

// Much at once goes through the kernel, and little through a buffer; either comes right after the other.
func TestMuchAndLittleByTurns(t *testing.T) {
	nas := newNode(t, "nas", echo)
	r, addr := newRelay(t, RelayConfig{}, shown("nas.example", nas))
	conn := come(t, addr, "nas.example")
	hello := make([]byte, len(helloOf(t, configFor("nas.example"))))
	if _, err := io.ReadFull(conn, hello); err != nil {
		t.Fatal(err)
	}
	moved := len(hello)
	for i, n := range []int{1, 8 << 20, 3, 100_000, 1, 3 << 20, 7} {
		sent := make([]byte, n)
		for j := range sent {
			sent[j] = byte(i + j*7)
		}
		var writing sync.WaitGroup
		writing.Go(func() { _, _ = conn.Write(sent) })
		got := make([]byte, n)
		if _, err := io.ReadFull(conn, got); err != nil || !bytes.Equal(got, sent) {
			t.Fatalf("%d bytes: %v", n, err)
		}
		writing.Wait()
		moved += n
	}
	conn.Close()
	until(t, "the end of the visit", func() bool { return r.Stats().Open == 0 })
	if got := r.Stats().Bytes; got != uint64(2*moved)-uint64(len(hello)) { // the hello is not counted on its way in
		t.Errorf("%d bytes were counted, want %d", got, 2*moved-len(hello))
	}
}

func TestANodeThatEndsWithoutAWord(t *testing.T) {
	nas := newNode(t, "nas", func(v *Visit) {})
	_, addr := newRelay(t, RelayConfig{}, shown("nas.example", nas))
	if got := all(t, come(t, addr, "nas.example")); got != alertOf(alertInternalError) {
		t.Errorf("%q", got)
	}
	nas.ingress.Close()
	if got := all(t, come(t, addr, "nas.example")); got != alertOf(alertInternalError) {
		t.Errorf("no ingress: %q", got)
	}
	// An alert arrives although the visitor has said more by then, which nobody reads.
	for name, want := range map[string]byte{"nas.example": alertInternalError, "unknown.example": alertUnrecognizedName} {
		conn, err := net.Dial("tcp", addr)
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		_, _ = conn.Write(append(helloOf(t, configFor(name)), make([]byte, 8<<10)...))
		if got := all(t, conn); got != alertOf(want) {
			t.Errorf("with early data, to %s: %q", name, got)
		}
	}
}

func TestWhenAVisitIsOverdue(t *testing.T) {
	begun := time.Unix(1_800_000_000, 0)
	for name, tt := range map[string]struct {
		age, touched time.Duration
		half         bool
		want         error
	}{
		"new":                     {age: time.Second},
		"idle":                    {age: 10 * time.Minute, want: errIdle},
		"not idle":                {age: 10 * time.Minute, touched: time.Second},
		"half closed":             {age: time.Minute, half: true, want: errIdle},
		"half closed, and busy":   {age: 3 * time.Hour, touched: 3*time.Hour - time.Second, half: true},
		"busy until it is old":    {age: 24 * time.Hour, touched: 24*time.Hour - 1, want: errOld},
		"busy and not quite that": {age: 24*time.Hour - 1, touched: 24*time.Hour - 2},
	} {
		v := &visit{began: begun}
		v.touched.Store(int64(tt.touched))
		v.half.Store(tt.half)
		if got := v.overdue(begun.Add(tt.age), idleTime, lifeTime); got != tt.want {
			t.Errorf("%s: %v, want %v", name, got, tt.want)
		}
	}
}

func TestWhoAVisitorComesTo(t *testing.T) {
	named := func(n string) *testNode {
		return newNode(t, n, func(v *Visit) { _, _ = io.WriteString(v, n+" for "+v.Name) })
	}
	nas, tv := named("nas"), named("tv")
	elsewhere := shown("sole.example", nas)
	elsewhere.Port = 8443
	split := shown("split.example", tv)
	split.Port = 8443
	_, addr := newRelay(t, RelayConfig{}, shown("sole.example", nas), shown("*.wild.example", tv), shown("x.wild.example", nas),
		shown("both.example", nas, tv), shown("split.example", nas), shown("none.example"), elsewhere, split)
	for _, tt := range []struct{ name, protocol, want string }{
		{"sole.example", "", "nas for sole.example"},
		{"SOLE.example", "h2", "nas for sole.example"},
		{"a.wild.example", "", "tv for a.wild.example"},
		{"x.wild.example", "", "nas for x.wild.example"},
		{"a.b.wild.example", "", alertOf(alertUnrecognizedName)},
		{"none.example", "", alertOf(alertUnrecognizedName)},
		{"other.example", "", alertOf(alertUnrecognizedName)},
		// A check of who has a name goes to the one who has it, and to nobody where that is in question.
		{"sole.example", acmeProtocol, "nas for sole.example"},
		{"a.wild.example", acmeProtocol, "tv for a.wild.example"},
		{"both.example", acmeProtocol, alertOf(alertNoProtocol)},
		{"split.example", acmeProtocol, alertOf(alertNoProtocol)},
		{"other.example", acmeProtocol, alertOf(alertUnrecognizedName)},
	} {
		var protocols []string
		if tt.protocol != "" {
			protocols = []string{tt.protocol, "http/1.1"}
		}
		if got := all(t, come(t, addr, tt.name, protocols...)); got != tt.want {
			t.Errorf("%s %s: %q, want %q", tt.name, tt.protocol, got, tt.want)
		}
	}
}

func TestSetDropsNothing(t *testing.T) {
	nas, tv := newNode(t, "nas", echo), newNode(t, "tv", echo)
	r, addr := newRelay(t, RelayConfig{}, shown("nas.example", nas), shown("tv.example", tv))
	nasConn, tvConn := come(t, addr, "nas.example"), come(t, addr, "tv.example")
	hello := make([]byte, len(helloOf(t, configFor("nas.example"))))
	heard := func(conn net.Conn) error {
		_, err := io.ReadFull(conn, hello)
		return err
	}
	if err := heard(nasConn); err != nil {
		t.Fatal(err)
	}
	// Changes of all sorts, made anew each time as a reload makes them, while bytes flow.
	more := shown("nas.example", nas)
	more.Names, more.Limits = append(more.Names, "also.example"), Limits{Connections: 1, BytesPerMonth: 1 << 40}
	shared := shown("nas.example", tv, nas)
	lists := [][]Public{{more, shown("tv.example", tv)}, {shared}, {shown("nas.example", nas)}, {shown("new.example", tv), shown("nas.example", nas)}}
	ping := make([]byte, 1000)
	for i := range 200 {
		if err := r.Set(lists[i%len(lists)]); err != nil {
			t.Fatal(err)
		}
		if _, err := nasConn.Write(ping); err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadFull(nasConn, ping); err != nil {
			t.Fatalf("after %d changes: %v", i+1, err)
		}
	}
	// What is not shown any more has ended.
	if _, err := io.Copy(io.Discard, tvConn); errors.Is(err, os.ErrDeadlineExceeded) {
		t.Error("tv shows nothing at times, and its visit goes on")
	}
	bad := map[string]Public{
		"twice":      {Names: []string{"a.example", "A.example."}, Port: 443, Kind: kindHTTPS, Backends: []Backend{nas.backend()}},
		"no name":    {Port: 443, Kind: kindHTTPS, Backends: []Backend{nas.backend()}},
		"no way":     {Names: []string{"a.example"}, Port: 443, Kind: kindHTTPS, Backends: []Backend{{Node: "nas"}}},
		"plain HTTP": {Names: []string{"a.example"}, Port: 80, Kind: kindHTTP},
	}
	for name, p := range bad {
		if r.Set([]Public{p}) == nil {
			t.Errorf("%s: taken", name)
		}
	}
	if r.Set([]Public{{Port: 1, Kind: kindTCP}, {Port: 1, Kind: kindTCP}}) == nil {
		t.Error("two for one port: taken")
	}
	if _, err := nasConn.Write(ping); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(nasConn, ping); err != nil {
		t.Error("after lists that are refused: ", err)
	}
	// Neither is what another node shows now.
	if err := r.Set([]Public{shown("nas.example", tv)}); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(nasConn, ping); err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
		t.Error("nas shows it no more, and the visit goes on")
	}
}

func TestARefusedListChangesNoLimit(t *testing.T) {
	nas, tv := newNode(t, "nas", echo), newNode(t, "tv", echo)
	r, _ := newRelay(t, RelayConfig{}, shown("nas.example", nas, tv))
	tight := shown("nas.example", nas)
	tight.Backends[0].Limits.Connections = 1
	if r.Set([]Public{tight, {Port: 443, Kind: kindHTTPS}}) == nil {
		t.Fatal("a list with an entry that has no name is taken")
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if n := r.nodes["nas"]; n.meter.limits.Load().Connections != maxOfNode || !n.shares {
		t.Errorf("nas has %+v, and another node does its work: %v", *n.meter.limits.Load(), n.shares)
	}
}

func TestAWholePort(t *testing.T) {
	nas := newNode(t, "nas", func(v *Visit) {
		if v.Name != "" || v.Port != 2222 || v.Kind != kindTCP {
			t.Errorf("%+v", v)
		}
		_, _ = io.WriteString(v, "SSH-2.0-x\r\n") // before the visitor has said anything
		line := make([]byte, 4)
		if _, err := io.ReadFull(v, line); err != nil || string(line) == "fail" {
			_ = v.Conn.(*net.TCPConn).SetLinger(0)
			return
		}
		echo(v)
	})
	r, _ := newRelay(t, RelayConfig{}, Public{Port: 2222, Kind: kindTCP, Backends: []Backend{nas.backend()}})
	ln := listen(t)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- r.ServeTCP(ctx, ln, 2222) }()
	talk := func(word string) (string, error) {
		conn, err := net.Dial("tcp", ln.Addr().String())
		if err != nil {
			return "", err // it can be reset that fast
		}
		defer conn.Close()
		_ = conn.SetDeadline(time.Now().Add(soon))
		banner := make([]byte, 11)
		if _, err := io.ReadFull(conn, banner); err != nil {
			return "", err
		}
		_, _ = io.WriteString(conn, word)
		_ = conn.(*net.TCPConn).CloseWrite()
		data, err := io.ReadAll(conn)
		return string(data), err
	}
	if got, err := talk("okay and more"); err != nil || got != " and more" {
		t.Errorf("%q, %v", got, err)
	}
	// What was cut short must not look whole.
	if got, err := talk("fail"); err == nil {
		t.Errorf("a reset of the node's: %q, and an end as if that were all", got)
	}
	nas.ingress.Close()
	if got, err := talk("okay"); err == nil || got != "" {
		t.Errorf("no node: %q, %v", got, err)
	}
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
}

// An idle visitor takes two goroutines, their stacks and some structures, and no buffers: about 16 KiB, or 250 MiB for
// the 16,000 that a gateway takes. The race detector makes stacks larger, and one buffer for each way would be 64 KiB more. The clients and the node of this test, which hold a descriptor each and nothing else, are left out by
// measuring them without a relay first.
func TestAnIdleVisitorIsSmall(t *testing.T) {
	const crowd, most = 200, 64 << 10
	nodeLn := listen(t)
	var held sync.Map
	var nodes sync.WaitGroup
	nodes.Go(func() {
		for {
			conn, err := nodeLn.Accept()
			if err != nil {
				return
			}
			held.Store(conn, nil)
			if raw, err := readHeader(conn); err != nil || !sealedBy(testKey("nas"), raw) {
				conn.Close()
			}
			_, _ = conn.Write([]byte{replyTaken, 'x'})
		}
	})
	defer func() {
		nodeLn.Close()
		nodes.Wait()
		held.Range(func(conn, _ any) bool { conn.(net.Conn).Close(); return true })
	}()
	memory := func() int64 {
		runtime.GC()
		runtime.GC() // what pools hold is freed by the second one
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return int64(m.HeapAlloc + m.StackInuse)
	}
	measure := func(open func() net.Conn) int64 {
		before := memory()
		for range crowd {
			conn := open()
			if _, err := io.ReadFull(conn, make([]byte, 1)); err != nil {
				t.Fatal(err)
			}
			_ = conn.SetDeadline(time.Time{})
		}
		return (memory() - before) / crowd
	}
	raw := sealed(t, aHeader())
	direct := measure(func() net.Conn {
		conn, err := net.Dial("tcp", nodeLn.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { conn.Close() })
		_, _ = conn.Write(raw)
		_, _ = io.ReadFull(conn, make([]byte, 1))
		return conn
	})
	nas := testNode{name: "nas", addr: nodeLn.Addr().String()}
	r, addr := newRelay(t, RelayConfig{Source: Limits{Connections: -1, PerSecond: -1}, Node: Limits{PerSecond: -1}, Name: Limits{PerSecond: -1}}, shown("nas.example", &nas))
	relayed := measure(func() net.Conn { return come(t, addr, "nas.example") })
	if open := r.Stats().Open; open != crowd {
		t.Fatalf("%d visits are open", open)
	}
	t.Logf("%d bytes for each visitor, without what client and node take (%d)", relayed-direct, direct)
	if relayed-direct > most {
		t.Errorf("%d bytes for each idle visitor, more than %d", relayed-direct, most)
	}
}

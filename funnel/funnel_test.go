package funnel

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"math/big"
	"net"
	"runtime"
	"strings"
	"testing"
	"time"
)

// serve has a Front listen, and waits for its end when the test does.
func serve(t *testing.T, f *Front) (addr string, stop func()) {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- f.Serve(ctx, ln) }()
	ended := false
	stop = func() {
		if ended {
			return
		}
		ended = true
		cancel()
		select {
		case err := <-done:
			if err != nil {
				t.Error("Serve: ", err)
			}
		case <-time.After(10 * time.Second):
			t.Error("Serve does not end")
		}
	}
	t.Cleanup(stop)
	return ln.Addr().String(), stop
}

// naming answers with its own name, and with what it was given first.
func naming(name string) Handler {
	return func(_ context.Context, conn net.Conn, hello Hello) {
		head := make([]byte, recordHeader)
		if _, err := io.ReadFull(conn, head); err == nil && head[0] == recordHandshake {
			_, _ = io.WriteString(conn, name+" got "+hello.ServerName)
		}
	}
}

// ask sends bytes, and returns what comes back.
func ask(t *testing.T, addr string, data []byte) string {
	t.Helper()
	conn, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if _, err := conn.Write(data); err != nil {
		t.Fatal(err)
	}
	answer, err := io.ReadAll(conn)
	if err != nil && !strings.Contains(err.Error(), "reset") { // by a close with bytes that nobody has read
		t.Fatal(err)
	}
	return string(answer)
}

// selfSigned is a certificate that nobody checks.
func selfSigned(t *testing.T) tls.Certificate {
	t.Helper()
	public, private, err := ed25519.GenerateKey(nil)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), DNSNames: []string{"a.example"}}
	der, err := x509.CreateCertificate(rand.Reader, template, template, public, private)
	if err != nil {
		t.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: private}
}

func alertOf(description byte) string { return string([]byte{recordAlert, 3, 1, 0, 2, 2, description}) }

func TestARouteTakesWhatItNames(t *testing.T) {
	f := NewFront(FrontConfig{})
	addr, _ := serve(t, f)
	if got := ask(t, addr, helloOf(t, configFor("a.example"))); got != alertOf(alertUnrecognizedName) {
		t.Errorf("without routes: %q", got)
	}
	err := f.SetRoutes([]Route{
		{Name: "A.example", Handle: naming("a")},
		{Name: "a.example", Protocol: "acme-tls/1", Handle: naming("acme")},
		{Name: "*.b.example", Handle: naming("wildcard")},
		{Name: "c.b.example", Handle: naming("c")},
		{Protocol: "carrier/1", Handle: naming("carrier")},
	})
	if err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		name      string
		protocols []string
		want      string
	}{
		{"a.example", nil, "a got a.example"},
		{"a.example", []string{"h2", "http/1.1"}, "a got a.example"},
		{"a.example", []string{"acme-tls/1"}, "acme got a.example"},
		{"x.b.example", nil, "wildcard got x.b.example"},
		{"c.b.example", nil, "c got c.b.example"},
		{"b.example", nil, alertOf(alertUnrecognizedName)},
		{"y.x.b.example", nil, alertOf(alertUnrecognizedName)},
		{"elsewhere.example", []string{"carrier/1"}, "carrier got elsewhere.example"},
		{"a.example", []string{"carrier/1"}, "carrier got a.example"},
	} {
		if got := ask(t, addr, helloOf(t, configFor(tt.name, tt.protocols...))); got != tt.want {
			t.Errorf("%s %v: %q, want %q", tt.name, tt.protocols, got, tt.want)
		}
	}
	for name, data := range map[string][]byte{"HTTP": []byte("GET / HTTP/1.1\r\n\r\n"), "a damaged hello": craft("\x00\x00\x00\xff")} {
		if got := ask(t, addr, data); got != alertOf(alertDecodeError) {
			t.Errorf("%s: %q", name, got)
		}
	}
	if s := f.Stats(); s.Unknown != 3 || s.Mute != 2 || s.Accepted != 12 {
		t.Errorf("%+v", s)
	}
}

func TestRoutesThatClashChangeNothing(t *testing.T) {
	f := NewFront(FrontConfig{})
	if err := f.SetRoutes([]Route{{Name: "a.example", Handle: naming("a")}}); err != nil {
		t.Fatal(err)
	}
	for name, routes := range map[string][]Route{
		"twice":      {{Name: "b.example", Handle: naming("b")}, {Name: "B.example.", Handle: naming("b")}},
		"no handler": {{Name: "b.example"}},
	} {
		if err := f.SetRoutes(routes); err == nil {
			t.Errorf("%s: taken", name)
		}
	}
	if f.route(Hello{ServerName: "a.example"}) == nil || f.route(Hello{ServerName: "b.example"}) != nil {
		t.Error("the routes have changed")
	}
}

// A site that the machine serves already goes on being served, whatever the client says first.
func TestTheFallbackGetsEveryByte(t *testing.T) {
	got := make(chan []byte, 1)
	f := NewFront(FrontConfig{Fallback: func(_ context.Context, conn net.Conn, _ Hello) {
		data, _ := io.ReadAll(conn)
		got <- data
	}})
	addr, _ := serve(t, f)
	for name, data := range map[string][]byte{
		"a hello":     append(helloOf(t, configFor("site.example")), "and more"...),
		"HTTP":        []byte("GET / HTTP/1.1\r\nHost: site.example\r\n\r\n"),
		"a half word": {recordHandshake, 3},
	} {
		conn, err := net.Dial("tcp", addr)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := conn.Write(data); err != nil {
			t.Fatal(err)
		}
		if err := conn.(*net.TCPConn).CloseWrite(); err != nil {
			t.Fatal(err)
		}
		if passed := <-got; !bytes.Equal(passed, data) {
			t.Errorf("%s: %q", name, passed)
		}
		conn.Close()
	}
}

// A handshake through the replayed bytes is a whole one: the client and the server behind agree on every byte of it.
func TestTLSEndsBehindTheFront(t *testing.T) {
	pair := selfSigned(t)
	f := NewFront(FrontConfig{})
	err := f.SetRoutes([]Route{{Name: "a.example", Handle: func(ctx context.Context, conn net.Conn, _ Hello) {
		secure := tls.Server(conn, &tls.Config{Certificates: []tls.Certificate{pair}, NextProtos: []string{"h2"}})
		if err := secure.HandshakeContext(ctx); err != nil {
			t.Error(err)
			return
		}
		_, _ = io.WriteString(secure, "hello")
		secure.Close()
	}}})
	if err != nil {
		t.Fatal(err)
	}
	addr, _ := serve(t, f)
	conn, err := tls.Dial("tcp", addr, configFor("a.example", "h2"))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if data, err := io.ReadAll(conn); err != nil || string(data) != "hello" || conn.ConnectionState().NegotiatedProtocol != "h2" {
		t.Errorf("%q, %v", data, err)
	}
}

func TestWhoSaysNothingIsLetGo(t *testing.T) {
	called := make(chan struct{}, 10)
	f := NewFront(FrontConfig{HelloTime: 50 * time.Millisecond, Fallback: func(context.Context, net.Conn, Hello) { called <- struct{}{} }})
	addr, _ := serve(t, f)
	for name, data := range map[string][]byte{"nothing": nil, "a half hello": helloOf(t, configFor("a.example"))[:40]} {
		if got := ask(t, addr, data); got != "" {
			t.Errorf("%s: %q", name, got)
		}
	}
	if s := f.Stats(); s.Mute != 2 || len(called) != 0 {
		t.Errorf("%+v, %d passed on", s, len(called))
	}
}

func TestConnectionsAreBounded(t *testing.T) {
	release := make(chan struct{})
	f := NewFront(FrontConfig{MaxEach: 3})
	err := f.SetRoutes([]Route{{Name: "a.example", Handle: func(_ context.Context, conn net.Conn, _ Hello) {
		_, _ = conn.Write([]byte("x"))
		<-release
	}}})
	if err != nil {
		t.Fatal(err)
	}
	addr, _ := serve(t, f)
	hello := helloOf(t, configFor("a.example"))
	open := func() (net.Conn, error) {
		conn, err := net.Dial("tcp", addr)
		if err != nil {
			t.Fatal(err)
		}
		_, _ = conn.Write(hello)
		_, err = conn.Read(make([]byte, 1))
		return conn, err
	}
	for range 3 {
		conn, err := open()
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
	}
	conn, err := open()
	conn.Close()
	if err == nil || f.Stats().Shed != 1 || f.Stats().Open != 3 {
		t.Errorf("the fourth: %v, %+v", err, f.Stats())
	}
	close(release)
	for f.Stats().Open > 0 {
		runtime.Gosched() // until the handlers have returned
	}
	conn, err = open()
	conn.Close()
	if err != nil {
		t.Errorf("when there is room again: %v", err)
	}
}

func TestHellosInFlightAreBounded(t *testing.T) {
	f := NewFront(FrontConfig{MaxHellos: 1, HelloTime: soon})
	addr, stop := serve(t, f)
	open := func() net.Conn {
		conn, err := net.Dial("tcp", addr)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { conn.Close() })
		return conn
	}
	first := open()
	for f.Stats().Open == 0 {
		runtime.Gosched()
	}
	// Who says at once what it wants is heard; who has said nothing makes room.
	if got := ask(t, addr, helloOf(t, configFor("a.example"))); got != alertOf(alertUnrecognizedName) || f.Stats().Shed != 1 {
		t.Errorf("%q, %+v", got, f.Stats())
	}
	if _, err := first.Read(make([]byte, 1)); err == nil {
		t.Error("the first is still open")
	}
	last := open()
	for f.Stats().Accepted < 3 {
		runtime.Gosched()
	}
	stop() // which ends the one that waits
	if _, err := last.Read(make([]byte, 1)); err == nil {
		t.Error("it is still open")
	}
}

// failing is a listener that cannot take connections for a while.
type failing struct {
	net.Listener

	left int
}

func (l *failing) Accept() (net.Conn, error) {
	if l.left > 0 {
		l.left--
		return nil, errors.New("too many open files")
	}
	return l.Listener.Accept()
}

func TestAListenerThatFailsForAWhileIsAskedAgain(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	f := NewFront(FrontConfig{})
	done := make(chan error, 1)
	go func() { done <- f.Serve(t.Context(), &failing{ln, 3}) }()
	if got := ask(t, ln.Addr().String(), helloOf(t, configFor("a.example"))); got != alertOf(alertUnrecognizedName) {
		t.Errorf("%q", got)
	}
	ln.Close()
	if err := <-done; err == nil {
		t.Error("a listener that is closed is no error")
	}
}

func TestWhatConnectionsAreCountedBy(t *testing.T) {
	for addr, want := range map[string]string{
		"192.0.2.1:5":            "192.0.2.1/32",
		"[::ffff:192.0.2.1]:5":   "192.0.2.1/32",
		"[2001:db8:1:2:3::4]:5":  "2001:db8:1:2::/64",
		"[fe80::1%lo]:5":         "fe80::/64",
		"[2001:db8:1:2:ff::1]:1": "2001:db8:1:2::/64",
	} {
		tcp, err := net.ResolveTCPAddr("tcp", addr)
		if err != nil {
			t.Fatal(err)
		}
		if got := sourceOf(tcp).String(); got != want {
			t.Errorf("%s: %s, want %s", addr, got, want)
		}
	}
	if got := sourceOf(&net.UnixAddr{Name: "x"}); got.IsValid() {
		t.Errorf("a Unix socket: %s", got)
	}
}

// A crowd that connects and says nothing is bounded by MaxHellos, and whoever says at once what it wants is served all the
// while. The figures are a hundredth of the real ones: of 100,000 half-open connections, 1024 are kept, for 3 s at most; each
// has a goroutine and at most 16 KiB of a hello, together under 32 MiB. Nobody can keep the others out with less than 1024
// connections in the time that a hello takes, some 100 ms: 10,000 a second, from 40 sources with 256 each.
func TestACrowdThatSaysNothing(t *testing.T) {
	const crowd, most = 1000, 10
	f := NewFront(FrontConfig{MaxHellos: most, MaxEach: crowd, HelloTime: soon})
	if err := f.SetRoutes([]Route{{Name: "a.example", Handle: naming("a")}}); err != nil {
		t.Fatal(err)
	}
	addr, _ := serve(t, f)
	hello := helloOf(t, configFor("a.example"))
	before := runtime.NumGoroutine()
	for i := range crowd {
		conn, err := net.Dial("tcp", addr)
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		_, _ = conn.Write(hello[:i%len(hello)]) // some have begun
		if i%100 == 0 {
			if got := ask(t, addr, hello); got != "a got a.example" {
				t.Fatalf("after %d: %q", i, got)
			}
		}
	}
	until(t, "the end of those too many", func() bool {
		s := f.Stats()
		return s.Accepted == crowd+crowd/100 && s.Open <= most && s.Shed >= crowd-most // what was accepted last may not be either yet
	})
	if n := runtime.NumGoroutine() - before; n > 2*most {
		t.Errorf("%d goroutines for %d connections that wait", n, most)
	}
	if s := f.Stats(); s.Shed > crowd {
		t.Errorf("%+v", s)
	}
}

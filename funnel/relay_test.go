package funnel

import (
	"bytes"
	"context"
	"crypto/tls"
	"io"
	"net"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"
)

// soon is far more than anything here takes.
const soon = 30 * time.Second

// testKey is the key of a node's name.
func testKey(node string) []byte { return []byte(strings.Repeat(node+".", 32)[:32]) }

// listen is a listener on loopback.
func listen(t testing.TB) net.Listener {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
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

package resolver

import (
	"encoding/binary"
	"net"
	"runtime"
	"testing"

	"github.com/miekg/dns"
)

// echo is an upstream that answers every question with one address and allocates nothing.
func echo(t testing.TB) Upstream {
	t.Helper()
	pc, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	_ = pc.SetReadBuffer(receiveBuffer)
	done := make(chan struct{})
	t.Cleanup(func() { _ = pc.Close(); <-done })
	go func() {
		defer close(done)
		buf := make([]byte, 2048)
		var q question
		for {
			n, from, err := pc.ReadFromUDPAddrPort(buf)
			if err != nil {
				return
			}
			if q.parse(buf[:n]) != verdictOK {
				continue
			}
			binary.BigEndian.PutUint16(buf[2:], flagQR|flagRD|flagRA)
			binary.BigEndian.PutUint16(buf[6:], 1)
			binary.BigEndian.PutUint16(buf[10:], 0)
			msg := append(buf[:q.end], 0xc0, headerSize, 0, byte(dns.TypeA), 0, 1, 0, 0, 1, 0, 0, 4, 192, 0, 2, 1)
			_, _ = pc.WriteToUDPAddrPort(msg, from)
		}
	}()
	u, err := ParseUpstream(pc.LocalAddr().String())
	if err != nil {
		t.Fatal(err)
	}
	return u
}

// client asks one question after the other and allocates nothing either.
type client struct {
	conn *net.UDPConn
	buf  [4096]byte
}

func (g *rig) client() *client {
	conn, err := net.DialUDP("udp4", nil, net.UDPAddrFromAddrPort(g.addr))
	if err != nil {
		g.t.Fatal(err)
	}
	g.t.Cleanup(func() { _ = conn.Close() })
	return &client{conn: conn}
}

func (c *client) ask(t testing.TB, msg []byte) []byte {
	if _, err := c.conn.Write(msg); err != nil {
		t.Fatal(err)
	}
	n, err := c.conn.Read(c.buf[:])
	if err != nil {
		t.Fatal(err)
	}
	return c.buf[:n]
}

// mallocs counts allocations of the whole process while f runs.
func mallocs(f func()) uint64 {
	var before, after runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	f()
	runtime.ReadMemStats(&after)
	return after.Mallocs - before.Mallocs
}

// TestAnswersAllocateNothing counts over real sockets, from the client to the upstream and back.
func TestAnswersAllocateNothing(t *testing.T) {
	const n = 2000
	g := newRig(t, Config{Base: Base{Upstreams: []Upstream{echo(t)}}, Table: mustTable(t, "foo-bar.ts.net", "nas.foo-bar.ts.net. 60 A 100.64.0.2")})
	c := g.client()
	local, missing, cached := query(t, "nas.foo-bar.ts.net", dns.TypeA), query(t, "no.foo-bar.ts.net", dns.TypeA), query(t, "cached.example", dns.TypeA)
	c.ask(t, cached)
	fresh := query(t, "00000000.example", dns.TypeA)
	serial := 0
	ask := func(msg []byte) func() []byte { return func() []byte { return c.ask(t, msg) } }
	for name, f := range map[string]func() []byte{
		"local": ask(local), "NXDOMAIN in the zone": ask(missing), "cached": ask(cached),
		"forwarded": func() []byte {
			for i, v := headerSize+8, serial; i > headerSize; i, v = i-1, v/10 {
				fresh[i] = byte('0' + v%10)
			}
			serial++
			return c.ask(t, fresh)
		},
	} {
		t.Run(name, func(t *testing.T) {
			for range n { // everything that grows has grown
				f()
			}
			got := mallocs(func() {
				for range n {
					if r := f(); len(r) < headerSize || r[3]&rcodeMask == dns.RcodeServerFailure {
						t.Fatalf("reply %x", r)
					}
				}
			})
			// Sockets towards upstreams are replaced now and then, and the cache grows in steps.
			if got > n/20 {
				t.Errorf("%d allocations for %d queries, want almost none", got, n)
			}
		})
	}
}

func BenchmarkLocal(b *testing.B) {
	r, err := New(Config{Table: mustTable(b, "foo-bar.ts.net", "nas.foo-bar.ts.net. 60 A 100.64.0.2")})
	if err != nil {
		b.Fatal(err)
	}
	w := r.makeWorker()
	msg := append(make([]byte, 0, 512), query(b, "nas.foo-bar.ts.net", dns.TypeA)...)
	head := append([]byte(nil), msg[:headerSize]...)
	b.ReportAllocs()
	for b.Loop() {
		copy(msg, head)
		w.local(msg, UDP, maxLoopback)
	}
}

func BenchmarkForwarded(b *testing.B) {
	g := newRig(b, Config{Base: Base{Upstreams: []Upstream{echo(b)}}})
	c := g.client()
	fresh := query(b, "00000000.example", dns.TypeA)
	serial := 0
	b.ReportAllocs()
	for b.Loop() {
		for i, v := headerSize+8, serial; i > headerSize; i, v = i-1, v/10 {
			fresh[i] = byte('0' + v%10)
		}
		serial++
		c.ask(b, fresh)
	}
}

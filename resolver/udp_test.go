package resolver

import (
	"context"
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/miekg/dns"
)

func TestAWildcardSocketAnswersFromTheAddressThatWasAsked(t *testing.T) {
	r, err := New(Config{Table: bigTable(t)})
	if err != nil {
		t.Fatal(err)
	}
	ports := map[string]int{}
	for _, wildcard := range []string{"0.0.0.0", "::"} {
		conns, err := ListenUDP(t.Context(), netip.AddrPortFrom(netip.MustParseAddr(wildcard), 0), 1)
		if err != nil {
			t.Skip(err) // no IPv6
		}
		run(t, func(ctx context.Context) error { return r.ServeUDP(ctx, conns[0]) })
		ports[wildcard] = conns[0].LocalAddr().(*net.UDPAddr).Port
	}
	for addr, wildcard := range map[string]string{"127.0.0.1": "0.0.0.0", "127.0.0.77": "0.0.0.0", "127.3.2.1": "0.0.0.0", "::1": "::"} {
		// A connected socket takes nothing from another address.
		conn, err := net.Dial("udp", net.JoinHostPort(addr, strconv.Itoa(ports[wildcard])))
		if err != nil {
			t.Skipf("%s: %v", addr, err)
		}
		_ = conn.SetDeadline(time.Now().Add(5 * time.Second))
		send(t, conn, query(t, "nas.foo-bar.ts.net", dns.TypeA))
		buf := make([]byte, 512)
		if n, err := conn.Read(buf); err != nil || binary.BigEndian.Uint16(buf[6:]) != 1 {
			t.Errorf("%s: %x, %v", addr, buf[:n], err)
		}
		_ = conn.Close()
	}
}

func TestListeningTellsWhatIsInTheWay(t *testing.T) {
	conns, err := ListenUDP(t.Context(), netip.MustParseAddrPort("127.0.0.1:0"), 4)
	if err != nil {
		t.Fatal(err)
	}
	port := conns[0].LocalAddr().(*net.UDPAddr).AddrPort()
	for _, c := range conns {
		if c.LocalAddr().(*net.UDPAddr).AddrPort() != port {
			t.Errorf("bound to %s and %s", port, c.LocalAddr())
		}
	}
	if _, err := ListenUDP(t.Context(), port, 2); err == nil || !strings.Contains(err.Error(), port.String()) {
		t.Errorf("a second time: got %v", err)
	}
	for _, c := range conns {
		_ = c.Close()
	}
	again, err := ListenUDP(t.Context(), port, 1)
	if err != nil {
		t.Fatal(err)
	}
	_ = again[0].Close()
	r, err := New(Config{})
	if err != nil {
		t.Fatal(err)
	}
	if err := r.ServeUDP(t.Context(), again[0]); err == nil {
		t.Error("serving a closed socket: got no error")
	}
}

func TestManyDatagramsAtOnceAreAllAnswered(t *testing.T) {
	u := newUpstream(t, answering(t))
	g := newRig(t, Config{Base: base(u), Table: bigTable(t)})
	conn, err := net.Dial("udp", g.addr.String())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(10 * time.Second))
	const n = 3 * batchSize
	for i := range n {
		q := query(t, []string{"nas.foo-bar.ts.net", fmt.Sprintf("n%d.example", i), "no.foo-bar.ts.net"}[i%3], dns.TypeA)
		binary.BigEndian.PutUint16(q, uint16(i))
		send(t, conn, q)
	}
	send(t, conn, make([]byte, maxLoopback+100)) // too long for a query: ignored
	seen := map[uint16]bool{}
	buf := make([]byte, 4096)
	for len(seen) < n {
		if _, err := conn.Read(buf); err != nil {
			t.Fatalf("%d of %d answers, then %v", len(seen), n, err)
		}
		seen[binary.BigEndian.Uint16(buf)] = true
	}
	waitUntil(t, func() bool { return g.Stats().Ignored == 1 })
}

func TestTheResolverAnswersOverTCP(t *testing.T) {
	u := newUpstream(t, answering(t))
	g := newRig(t, Config{Base: base(u), Table: bigTable(t)})
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	run(t, func(ctx context.Context) error { return g.ServeTCP(ctx, ln) })
	c := dns.Client{Net: "tcp", Timeout: 10 * time.Second}
	conn, err := c.Dial(ln.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	for name, n := range map[string]int{"big.foo-bar.ts.net.": 100, "www.example.": 1, "localhost.": 1} {
		m, _, err := c.ExchangeWithConn(questionFor(name, dns.TypeA), conn)
		if err != nil || len(m.Answer) != n {
			t.Errorf("%s: %v\n%v", name, err, m)
		}
	}
	if got := g.Stats().TCP; got.Accepted != 1 || got.Open != 1 {
		t.Errorf("%+v", got)
	}
}

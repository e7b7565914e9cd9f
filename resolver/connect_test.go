package resolver

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/miekg/dns"
)

func TestLookedUpAddressesAreUsedForAWhile(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		u, err := ParseUpstream("tls://dns.example")
		if err != nil {
			t.Fatal(err)
		}
		asked := 0
		var fails error
		found := []netip.Addr{netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("192.0.2.2")}
		c := connector{upstream: u, resolve: func(_ context.Context, name string) ([]netip.Addr, error) {
			if asked++; name != "dns.example" {
				t.Errorf("looked up %q", name)
			}
			return found, fails
		}}
		want := func(asks int, addrs string) {
			t.Helper()
			got, err := c.addrs(t.Context())
			if err != nil || fmt.Sprint(got) != addrs || asked != asks {
				t.Errorf("got %v, %v after %d lookups; want %s after %d", got, err, asked, addrs, asks)
			}
		}
		want(1, "[192.0.2.1 192.0.2.2]")
		time.Sleep(addressLife - 1)
		want(1, "[192.0.2.1 192.0.2.2]")
		c.reached(found[1])
		want(1, "[192.0.2.2 192.0.2.1]") // what worked comes first
		fails = errors.New("no network")
		time.Sleep(time.Nanosecond)
		want(2, "[192.0.2.2 192.0.2.1]") // old addresses are better than none
		fails, found = nil, []netip.Addr{netip.MustParseAddr("192.0.2.3"), netip.MustParseAddr("ff02::1"), {}}
		want(3, "[192.0.2.3]") // what no server can have is left out
		c.forget()
		want(4, "[192.0.2.3]")
		found = make([]netip.Addr, 2*maxBootstrap)
		for i := range found {
			found[i] = netip.AddrFrom4([4]byte{192, 0, 2, byte(i)})
		}
		c.forget()
		if got, err := c.addrs(t.Context()); err != nil || len(got) != maxBootstrap {
			t.Errorf("%d addresses, %v; want %d at most", len(got), err, maxBootstrap)
		}
	})
}

func TestAllAddressesThatFailAreNamed(t *testing.T) {
	u, err := ParseUpstream("tls://dns.example:1#127.0.0.1,127.0.0.2")
	if err != nil {
		t.Fatal(err)
	}
	c := connector{upstream: u}
	_, err = c.connect(t.Context())
	for _, want := range []string{"connecting: ", "127.0.0.1:1", "127.0.0.2:1"} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("got %v, want %q in it", err, want)
		}
	}
}

func TestAnUpstreamsNameIsLookedUpAtEachPlainServer(t *testing.T) {
	bad := newUpstream(t, func(_ dns.ResponseWriter, _, reply *dns.Msg) bool { reply.Rcode = dns.RcodeServerFailure; return true })
	odd := newUpstream(t, func(w dns.ResponseWriter, req, reply *dns.Msg) bool {
		reply.Question[0].Name = "other.example."
		_ = w.WriteMsg(reply)
		reply.Id++
		return true
	})
	good := newUpstream(t, func(w dns.ResponseWriter, req, reply *dns.Msg) bool {
		udp := w.LocalAddr().Network() == "udp"
		if udp {
			forged := reply.Copy()
			forged.Question[0].Name = "forged.example."
			forged.Answer = rr(t, "forged.example. 60 A 203.0.113.66")
			_ = w.WriteMsg(forged)
		}
		switch a := req.Question[0].Qtype == dns.TypeA; {
		case a && udp:
			reply.Truncated = true
		case a:
			reply.Answer = rr(t, req.Question[0].Name+" 60 CNAME host.example.", "host.example. 60 A 192.0.2.7")
		default:
			reply.Answer = rr(t, req.Question[0].Name+" 60 AAAA 2001:db8::7")
		}
		return true
	})
	encrypted, err := ParseUpstream("tls://127.0.0.1:1")
	if err != nil {
		t.Fatal(err)
	}
	loop := newUpstream(t, answering(t))
	g := newRig(t, Config{Base: Base{Upstreams: []Upstream{encrypted, loop.Upstream, bad.Upstream, good.Upstream}}})
	waitUntil(t, func() bool { return loop.loops.Load() > 0 })
	waitUntil(t, func() bool { g.loops.mu.Lock(); defer g.loops.mu.Unlock(); return len(g.loops.nonces) == 0 })
	g.servers.get(loop.Upstream).looping.Store(true)
	got, err := g.resolve(t.Context(), "dns.example")
	if err != nil || fmt.Sprint(got) != "[192.0.2.7 2001:db8::7]" {
		t.Errorf("got %v, %v", got, err)
	}
	if loop.asked.Load() != 0 {
		t.Error("a server that loops was asked")
	}
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if err := g.SetBase(base(odd)); err != nil {
		t.Fatal(err)
	}
	if got, err := g.resolve(ctx, "dns.example"); err == nil {
		t.Errorf("answers to other questions: got %v", got)
	}
	if err := g.SetBase(Base{}); err != nil {
		t.Fatal(err)
	}
	if _, err := g.resolve(t.Context(), "dns.example"); !errors.Is(err, errNoBootstrap) {
		t.Errorf("without a plain server: got %v", err)
	}
	if _, err := g.resolve(t.Context(), "a..b"); err == nil {
		t.Error("a name that is none: got no error")
	}
}

func TestQueriesWaitForAConnectionOfTheirOwn(t *testing.T) {
	s := newScripted(t, func(_ int, c *scriptedConn) {
		c.answer(c.next())
		c.next()
	})
	x := testStream(t, s, func(l *streamLimits) { l.conns = 2 })
	x.alone = time.Now().Add(time.Hour) // it is known to answer one query a connection
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Go(func() { mustExchange(t, x, fmt.Sprintf("n%d.example", i)) })
	}
	wg.Wait()
	if s.conns.Load() != 8 {
		t.Errorf("%d connections for eight queries, want 8", s.conns.Load())
	}
}

func TestAQueryThatFindsNoRoomEndsWithItsContext(t *testing.T) {
	s := newScripted(t, func(_ int, c *scriptedConn) {
		for c.next() != nil {
		}
	})
	x := testStream(t, s, func(l *streamLimits) { l.conns = 1 })
	x.alone = time.Now().Add(time.Hour)
	first, stop := context.WithCancel(t.Context())
	done := make(chan error, 2)
	ask := func(ctx context.Context) {
		_, err := x.exchange(ctx, query(t, "www.example", dns.TypeA))
		done <- err
	}
	go ask(first)
	waitUntil(t, func() bool { return s.conns.Load() == 1 })
	second, cancel := context.WithCancel(t.Context())
	go ask(second)
	waitUntil(t, func() bool { x.mu.Lock(); defer x.mu.Unlock(); return x.room != nil })
	cancel()
	if err := <-done; !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
	stop()
	<-done
}

func TestManyLongQueriesLeaveInAFewWrites(t *testing.T) {
	s := newScripted(t, echoAll)
	x := testStream(t, s)
	var wg sync.WaitGroup
	for i := range 100 {
		wg.Go(func() {
			m := new(dns.Msg).SetQuestion(fmt.Sprintf("n%d.example.", i), dns.TypeA)
			m.Extra = rr(t, "a. 1 TXT "+strings.Repeat("x", 250))
			raw, err := x.exchange(t.Context(), pack(t, m))
			if err != nil || len(raw) < 250 {
				t.Errorf("%d octets, %v", len(raw), err)
			}
		})
	}
	wg.Wait()
	if n := s.conns.Load(); n != 1 {
		t.Errorf("%d connections, want 1", n)
	}
}

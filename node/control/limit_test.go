package control

import (
	"net"
	"net/netip"
	"testing"
	"time"
)

func testLimit(t *testing.T) {
	l := newLimiter(3, 1)
	a, b := netip.MustParseAddr("10.0.0.1"), netip.MustParseAddr("10.0.0.2")
	taken := func(of netip.Addr) int {
		n := 0
		for l.allow(of, time.Now()) {
			n++
		}
		return n
	}
	if got := taken(a); got != 3 {
		t.Errorf("%d calls at once, want 3", got)
	}
	if got := taken(b); got != 3 {
		t.Errorf("another's: %d calls, want 3", got)
	}
	time.Sleep(2 * time.Second)
	if got := taken(a); got != 2 {
		t.Errorf("%d calls after 2 s, want 2", got)
	}
	time.Sleep(time.Minute)
	l.forget(time.Now())
	if len(l.buckets) != 0 {
		t.Errorf("%d buckets are kept that are full", len(l.buckets))
	}
}

func TestConnectionsAreBounded(t *testing.T) {
	ln, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	limited := limitListener(ln)
	accepted := make(chan net.Conn)
	go func() {
		for {
			c, err := limited.Accept()
			if err != nil {
				close(accepted)
				return
			}
			accepted <- c
		}
	}()
	dial := func() net.Conn {
		c, err := net.Dial("tcp", ln.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		return c
	}
	var held []net.Conn
	for range maxConnsEach {
		defer dial().Close()
		held = append(held, <-accepted)
	}
	over := dial()
	defer over.Close()
	if _, err := over.Read(make([]byte, 1)); err == nil {
		t.Error("one more than there may be was not closed")
	}
	held[0].Close()
	held[0].Close() // counts once
	defer dial().Close()
	held[0] = <-accepted
	for _, c := range held {
		c.Close()
	}
}

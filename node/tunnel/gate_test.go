package tunnel

import (
	"context"
	"net/netip"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// passes reports whether more packets may go in before so much time is over.
func (g *gate) passes(t *testing.T, within time.Duration) bool {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), within)
	defer cancel()
	in := make(chan struct{})
	go func() {
		g.wait()
		close(in)
	}()
	select {
	case <-in:
		return true
	case <-ctx.Done():
		g.done(1 << 20)
		<-in
		return false
	}
}

func TestPacketsInsideAreBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newGate()
		g.add(g.most - 1)
		if !g.passes(t, 1) {
			t.Fatal("closed before its bound")
		}
		g.add(1)
		if g.passes(t, patienceMost/2) {
			t.Fatal("open at its bound")
		}
		g.add(g.most)
		time.AfterFunc(patienceMost/2, func() { g.done(1) })
		if !g.passes(t, patienceMost/2+1) {
			t.Error("closed although one has come out")
		}
	})
}

func TestTheGateWaitsAsLongAsPacketsComeOut(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newGate()
		g.add(g.most + 100)
		for i := range 50 {
			time.AfterFunc(time.Duration(i)*patienceMost/2, func() { g.done(1) })
		}
		if g.passes(t, 20*patienceMost) {
			t.Error("open while there are too many inside, and others come out")
		}
	})
}

func TestPacketsThatAreLostCloseNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newGate()
		start := time.Now()
		for range 100 {
			g.add(g.most) // none of which comes out, as of those to a peer without a session
			g.wait()
		}
		if took := time.Since(start); took > 2*patienceMost+100*patienceLeast {
			t.Errorf("%d packets that were lost took %s", 100*g.most, took)
		}
		for range 100 {
			g.add(g.most)
			time.AfterFunc(patienceLeast/2, func() { g.done(g.most) })
			g.wait()
		}
		if g.patience != patienceMost {
			t.Errorf("after packets that came out again the patience is %s", g.patience)
		}
	})
}

func TestBuffersThatAreNotKeptAreCounted(t *testing.T) {
	bufs := [][]byte{make([]byte, 10), make([]byte, 10), make([]byte, 10)}
	var given tally
	given.add(bufs[0])
	given.add(nil)
	given.add(bufs[2])
	bufs[0] = make([]byte, 10)
	if n := given.left(bufs); n != 1 {
		t.Errorf("%d buffers are here yet, want 1: one was kept, and one is not counted", n)
	}
	if n := given.left(bufs); n != 0 {
		t.Errorf("%d buffers are here yet of a call that gave none", n)
	}
}

func TestNothingIsInsideOnceATransferIsOver(t *testing.T) {
	a, b := startNode(t, 1, nil), startNode(t, 2, nil)
	introduce(t, a, b)
	echo(t, b.Tunnel, netip.AddrPortFrom(b.v4, 7))
	conn := dial(t, a.Tunnel, netip.AddrPortFrom(b.v4, 7))
	defer conn.Close()
	for range 20 {
		if err := exchange(conn, strings.Repeat("x", 50000)); err != nil {
			t.Fatal(err)
		}
	}
	for _, n := range []*testNode{a, b} {
		s := n.Tunnel.carrier.engine.(*wgdevice).socket
		until(t, "packets to come out", func() bool {
			s.in.mu.Lock()
			defer s.in.mu.Unlock()
			return s.in.inside < 8 && s.in.out > 300
		})
		until(t, "packets to be sent", func() bool {
			s.out.mu.Lock()
			defer s.out.mu.Unlock()
			return s.out.inside < 8 && s.out.out > 300
		})
	}
}

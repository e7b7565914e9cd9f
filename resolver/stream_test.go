package resolver

import (
	"bufio"
	"context"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/miekg/dns"
)

// scripted is a TCP server that does with each connection what a test says.
type scripted struct {
	Upstream
	conns atomic.Int64
}

// newScripted calls serve for each connection, with its number from 1, until the test ends.
func newScripted(t *testing.T, serve func(n int, c *scriptedConn)) *scripted {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := &scripted{}
	if s.Upstream, err = ParseUpstream("tcp://" + ln.Addr().String()); err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			conn, err := ln.Accept()
			if err != nil {
				return
			}
			n := int(s.conns.Add(1))
			stop := context.AfterFunc(t.Context(), func() { _ = conn.Close() })
			wg.Go(func() {
				defer stop()
				defer conn.Close()
				serve(n, &scriptedConn{conn, bufio.NewReader(conn)})
			})
		}
	})
	t.Cleanup(func() { _ = ln.Close(); wg.Wait() })
	return s
}

type scriptedConn struct {
	net.Conn
	r *bufio.Reader
}

// next reads a query; nil at the end.
func (c *scriptedConn) next() []byte {
	q, _ := readFrame(c.r)
	return q
}

// answer answers a query with no records.
func (c *scriptedConn) answer(q []byte) {
	msg, _ := bounce(context.Background(), q)
	c.sendMsg(msg)
}

func (c *scriptedConn) sendMsg(msg []byte) {
	frame, _ := appendFrame(nil, msg)
	_, _ = c.Write(frame)
}

// echoAll answers every query at once.
func echoAll(_ int, c *scriptedConn) {
	for q := c.next(); q != nil; q = c.next() {
		c.answer(q)
	}
}

// testStream is a stream to the server. When the test ends it is closed, and nothing may be left of it.
func testStream(t *testing.T, s *scripted, edit ...func(*streamLimits)) *stream {
	t.Helper()
	x := newStream(s.Upstream, nil, nil)
	for _, f := range edit {
		f(&x.limits)
	}
	t.Cleanup(func() {
		x.close()
		if len(x.conns) != 0 || x.asking != 0 {
			t.Errorf("%d connections and %d queries are left", len(x.conns), x.asking)
		}
		if _, err := x.exchange(context.Background(), query(t, "late.example", dns.TypeA)); !errors.Is(err, net.ErrClosed) {
			t.Errorf("after the end: got %v", err)
		}
	})
	return x
}

// mustExchange asks for a name and checks that the answer is its own.
func mustExchange(t *testing.T, x exchanger, name string) []byte {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	q := query(t, name, dns.TypeA)
	msg, err := x.exchange(ctx, q)
	if err != nil {
		t.Errorf("asking for %s: %v", name, err)
		return nil
	}
	end, err := questionEnd(q)
	if err != nil || len(msg) < end || string(msg[:2]) != string(q[:2]) || string(msg[headerSize:end]) != string(q[headerSize:end]) {
		t.Errorf("%s: got %x", name, msg)
	}
	return msg
}

func TestQueriesShareAConnection(t *testing.T) {
	s := newScripted(t, echoAll)
	x := testStream(t, s)
	for i := range 10 {
		mustExchange(t, x, strings.Repeat("a", i+1)+".example")
	}
	if n := s.conns.Load(); n != 1 {
		t.Errorf("%d connections for ten queries, want 1", n)
	}
}

func TestAnswersFindTheirQueriesInAnyOrder(t *testing.T) {
	s := newScripted(t, func(_ int, c *scriptedConn) {
		var all [][]byte
		for range 3 {
			all = append(all, c.next())
		}
		for i := range all {
			c.answer(all[len(all)-1-i])
		}
		c.next()
	})
	x := testStream(t, s)
	var wg sync.WaitGroup
	for _, name := range []string{"one.example", "two.example", "three.example"} {
		wg.Go(func() { mustExchange(t, x, name) })
	}
	wg.Wait()
	if n := s.conns.Load(); n != 1 {
		t.Errorf("%d connections, want 1", n)
	}
}

func TestIDsOnAStreamAreItsOwn(t *testing.T) {
	seen := make(chan uint16, 64)
	s := newScripted(t, func(_ int, c *scriptedConn) {
		for q := c.next(); q != nil; q = c.next() {
			seen <- binary.BigEndian.Uint16(q)
			c.answer(q)
		}
	})
	x := testStream(t, s)
	ids := map[uint16]bool{}
	for range 20 {
		q := numberedQuery(t, 42)
		msg, err := x.exchange(t.Context(), q)
		if err != nil || binary.BigEndian.Uint16(msg) != 42 {
			t.Fatalf("got %x, %v", msg, err)
		}
		ids[<-seen] = true
	}
	if len(ids) < 15 {
		t.Errorf("%d IDs for twenty queries: not random", len(ids))
	}
}

func TestAQueryThatAClosedConnectionLostIsAskedAgain(t *testing.T) {
	s := newScripted(t, func(n int, c *scriptedConn) {
		c.answer(c.next())
		if n == 1 {
			c.next() // and close
			return
		}
		echoAll(n, c)
	})
	x := testStream(t, s)
	mustExchange(t, x, "one.example")
	mustExchange(t, x, "two.example")
	if n := s.conns.Load(); n != 2 {
		t.Errorf("%d connections, want 2", n)
	}
}

func TestAConnectionThatTheServerClosedIsReplaced(t *testing.T) {
	s := newScripted(t, func(_ int, c *scriptedConn) { c.answer(c.next()) })
	x := testStream(t, s)
	for range 3 {
		mustExchange(t, x, "www.example")
	}
}

func TestAServerThatAnswersOneQueryAConnectionGetsOneEach(t *testing.T) {
	s := newScripted(t, func(n int, c *scriptedConn) {
		if n == 1 {
			first := c.next()
			c.next()
			c.answer(first)
			return
		}
		c.answer(c.next())
	})
	x := testStream(t, s)
	var wg sync.WaitGroup
	for _, name := range []string{"a.example", "b.example"} {
		wg.Go(func() { mustExchange(t, x, name) })
	}
	wg.Wait()
	for range 3 {
		mustExchange(t, x, "c.example")
	}
	if !time.Now().Before(x.alone) {
		t.Error("it was not remembered")
	}
	if n := s.conns.Load(); n != 5 {
		t.Errorf("%d connections for five answers, want 5", n)
	}
}

func TestWhatAServerMustNotSend(t *testing.T) {
	for name, row := range map[string]struct {
		send func(c *scriptedConn, q []byte)
		want error
	}{
		"another ID":       {func(c *scriptedConn, q []byte) { q[0] ^= 0xff; c.answer(q) }, errUnasked},
		"another question": {func(c *scriptedConn, q []byte) { q[headerSize+1] = 'x'; c.answer(q) }, errMismatch},
		"another type":     {func(c *scriptedConn, q []byte) { q[len(q)-3] = 28; c.answer(q) }, errMismatch},
		"the query itself": {func(c *scriptedConn, q []byte) { c.sendMsg(q) }, errNoResponse},
		"a short message":  {func(c *scriptedConn, _ []byte) { c.sendMsg([]byte("short")) }, errNoResponse},
		"half a message":   {func(c *scriptedConn, q []byte) { _, _ = c.Write([]byte{0, 99, 1}) }, io.ErrUnexpectedEOF},
		"nothing":          {func(*scriptedConn, []byte) {}, io.EOF},
	} {
		t.Run(name, func(t *testing.T) {
			s := newScripted(t, func(_ int, c *scriptedConn) { row.send(c, c.next()) })
			x := testStream(t, s)
			_, err := x.exchange(t.Context(), query(t, "www.example", dns.TypeA))
			if !errors.Is(err, row.want) || !strings.Contains(err.Error(), s.String()) {
				t.Errorf("got %v, want %v", err, row.want)
			}
			if n := s.conns.Load(); n != 1 {
				t.Errorf("asked %d times: a server that breaks the protocol, or was never of use, is not asked again", n)
			}
		})
	}
}

func TestOtherCaseOverAStreamIsTheSameQuestion(t *testing.T) {
	s := newScripted(t, func(_ int, c *scriptedConn) {
		q := c.next()
		lowerName(q[headerSize:])
		c.answer(q)
	})
	x := testStream(t, s)
	if _, err := x.exchange(t.Context(), query(t, "WWW.Example", dns.TypeA)); err != nil {
		t.Error(err)
	}
}

func TestAnErrorWithoutAQuestionGetsTheOneThatWasAsked(t *testing.T) {
	s := newScripted(t, func(_ int, c *scriptedConn) {
		q := c.next()
		c.sendMsg([]byte{q[0], q[1], 0x80, dns.RcodeRefused, 0, 0, 0, 0, 0, 0, 0, 0})
		c.next()
	})
	msg := mustExchange(t, testStream(t, s), "www.example")
	if len(msg) < headerSize || msg[3]&rcodeMask != dns.RcodeRefused {
		t.Errorf("got %x", msg)
	}
}

func TestAnAnswerThatNobodyWaitsForHarmsNothing(t *testing.T) {
	release := make(chan struct{})
	s := newScripted(t, func(_ int, c *scriptedConn) {
		late := c.next()
		<-release
		c.answer(late)
		echoAll(0, c)
	})
	x := testStream(t, s)
	ctx, cancel := context.WithCancel(t.Context())
	waitForIt := make(chan error)
	go func() {
		_, err := x.exchange(ctx, query(t, "late.example", dns.TypeA))
		waitForIt <- err
	}()
	waitUntil(t, func() bool { return s.conns.Load() == 1 })
	cancel()
	if err := <-waitForIt; !errors.Is(err, context.Canceled) {
		t.Errorf("got %v, want canceled", err)
	}
	close(release)
	mustExchange(t, x, "www.example")
}

func TestAConnectionThatBringsNothingIsGivenUp(t *testing.T) {
	s := newScripted(t, func(n int, c *scriptedConn) {
		if n == 1 {
			for c.next() != nil {
			}
			return
		}
		echoAll(n, c)
	})
	x := testStream(t, s, func(l *streamLimits) { l.stall = time.Nanosecond })
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if _, err := x.exchange(ctx, query(t, "www.example", dns.TypeA)); !errors.Is(err, context.DeadlineExceeded) {
		t.Fatalf("got %v", err)
	}
	mustExchange(t, x, "www.example")
	if n := s.conns.Load(); n != 2 {
		t.Errorf("%d connections, want 2", n)
	}
}

func TestQueriesBeyondABoundAreRefusedAtOnce(t *testing.T) {
	release := make(chan struct{})
	s := newScripted(t, func(n int, c *scriptedConn) { <-release; echoAll(n, c) })
	x := testStream(t, s, func(l *streamLimits) { l.conns, l.inFlight = 2, 2 })
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() { mustExchange(t, x, "www.example") })
	}
	waitUntil(t, func() bool { x.mu.Lock(); defer x.mu.Unlock(); return x.asking == 4 && len(x.conns) == 2 })
	if _, err := x.exchange(t.Context(), query(t, "one-too-many.example", dns.TypeA)); !errors.Is(err, errBusy) {
		t.Errorf("got %v, want %v", err, errBusy)
	}
	close(release)
	wg.Wait()
}

func TestAnIdleConnectionIsClosed(t *testing.T) {
	closed := make(chan struct{})
	s := newScripted(t, func(n int, c *scriptedConn) {
		echoAll(n, c)
		close(closed)
	})
	x := testStream(t, s, func(l *streamLimits) { l.idle = 10 * time.Millisecond })
	mustExchange(t, x, "www.example")
	<-closed
	waitUntil(t, func() bool { x.mu.Lock(); defer x.mu.Unlock(); return len(x.conns) == 0 })
}

func TestAServerThatIsNotThereFailsAtOnce(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	u, err := ParseUpstream("tcp://" + ln.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	_ = ln.Close()
	x := newStream(u, nil, nil)
	defer x.close()
	if _, err := x.exchange(t.Context(), query(t, "www.example", dns.TypeA)); err == nil || !strings.Contains(err.Error(), "refused") {
		t.Errorf("got %v", err)
	}
}

func TestClosingAStreamFailsWhatIsUnderWay(t *testing.T) {
	s := newScripted(t, func(_ int, c *scriptedConn) {
		for c.next() != nil {
		}
	})
	x := testStream(t, s)
	failed := make(chan error)
	go func() {
		_, err := x.exchange(context.Background(), query(t, "www.example", dns.TypeA))
		failed <- err
	}()
	waitUntil(t, func() bool { return s.conns.Load() == 1 })
	x.close()
	if err := <-failed; !errors.Is(err, net.ErrClosed) {
		t.Errorf("got %v", err)
	}
}

func TestWhatIsNoQueryIsNotSent(t *testing.T) {
	s := newScripted(t, echoAll)
	x := testStream(t, s)
	long := append(query(t, "www.example", dns.TypeA), make([]byte, dns.MaxMsgSize)...)
	for name, q := range map[string][]byte{"nothing": nil, "a header": make([]byte, headerSize), "64 KiB": long} {
		if _, err := x.exchange(t.Context(), q); err == nil {
			t.Errorf("%s: got no error", name)
		}
	}
	if n := s.conns.Load(); n != 0 {
		t.Errorf("%d connections", n)
	}
}

func TestMatchResponseTellsCaseFromDifference(t *testing.T) {
	sent := query(t, "wWw.eXample-[1].org", dns.TypeA)
	for name, row := range map[string]struct {
		msg  []byte
		want bool
	}{
		"the same":              {query(t, "wWw.eXample-[1].org", dns.TypeA), true},
		"another case":          {query(t, "www.example-[1].org", dns.TypeA), true},
		"brackets are no case":  {query(t, "wWw.eXample-{1}.org", dns.TypeA), false},
		"another type":          {query(t, "wWw.eXample-[1].org", dns.TypeAAAA), false},
		"a type of other case":  {query(t, "wWw.eXample-[1].org", 0x21), false},
		"another name":          {query(t, "wWw.eXamples-[1].org", dns.TypeA), false},
		"another cut of labels": {query(t, "wWw-eXample-[1].org", dns.TypeA), false},
		"a name that goes on":   {query(t, "wWw.eXample-[1].org.more", dns.TypeA), false},
		"cut short":             {sent[:len(sent)-1], false},
	} {
		t.Run(name, func(t *testing.T) {
			msg, _ := bounce(t.Context(), row.msg)
			if _, err := matchResponse(sent[headerSize:], msg); err == nil != row.want {
				t.Errorf("got %v, want a match: %t", err, row.want)
			}
		})
	}
}

func TestEncryptedQueriesArePadded(t *testing.T) {
	with := func(f func(*dns.OPT)) []byte {
		m := new(dns.Msg).SetQuestion("www.example.", dns.TypeA)
		f(m.SetEdns0(1232, true).IsEdns0())
		return pack(t, m)
	}
	plain := with(func(*dns.OPT) {})
	got := padQuery(append([]byte(nil), plain...))
	var m dns.Msg
	if err := m.Unpack(got); err != nil || len(got)%paddingBlock != 0 || m.IsEdns0().Option[0].Option() != dns.EDNS0PADDING || !m.IsEdns0().Do() {
		t.Errorf("%d octets, %v:\n%v", len(got), err, &m)
	}
	for name, msg := range map[string][]byte{
		"no OPT":            query(t, "www.example", dns.TypeA),
		"padded already":    with(func(o *dns.OPT) { o.Option = []dns.EDNS0{&dns.EDNS0_PADDING{Padding: make([]byte, 3)}} }),
		"something behind":  append(append([]byte(nil), plain...), 0),
		"an option cut off": append(append([]byte(nil), plain[:len(plain)-1]...), 9),
		"nothing":           nil,
	} {
		if got := padQuery(append([]byte(nil), msg...)); string(got) != string(msg) {
			t.Errorf("%s: %x became %x", name, msg, got)
		}
	}
}

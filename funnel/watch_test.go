package funnel

import (
	"context"
	"errors"
	"io"
	"net"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

// fakeNode is a node in a test without a clock: one that can fall silent, as a machine without power does.
type fakeNode struct {
	name   string
	ln     *fakeListener
	silent atomic.Bool
	closed atomic.Bool  // it refuses connections
	ahead  atomic.Int64 // its clock, in nanoseconds
	dials  atomic.Int64
	visits chan *Visit
}

// mutable is a connection to a node, with some room for what is written. Once the node is silent, that is lost, and nobody
// is told.
type mutable struct {
	net.Conn

	node  *fakeNode
	room  chan []byte
	once  sync.Once
	ended chan struct{}
}

func (c *mutable) Write(p []byte) (int, error) {
	if !c.node.silent.Load() {
		select {
		case c.room <- slices.Clone(p):
		case <-c.ended:
			return 0, net.ErrClosed
		}
	}
	return len(p), nil
}

// send writes what there is room for, until the connection ends.
func (c *mutable) send() {
	for {
		select {
		case p := <-c.room:
			if _, err := c.Conn.Write(p); err != nil {
				return
			}
		case <-c.ended:
			return
		}
	}
}

func (c *mutable) Close() error {
	c.once.Do(func() { close(c.ended) })
	return c.Conn.Close()
}

func (n *fakeNode) backend() Backend {
	return Backend{
		Node: n.name,
		Dial: func(ctx context.Context) (net.Conn, error) {
			n.dials.Add(1)
			if n.closed.Load() {
				return nil, errors.New("connection refused")
			}
			if n.silent.Load() {
				<-ctx.Done()
				return nil, ctx.Err()
			}
			conn, err := n.ln.dial(ctx, edge)
			if err != nil {
				return nil, err
			}
			c := &mutable{Conn: conn, node: n, room: make(chan []byte, 1000), ended: make(chan struct{})}
			go c.send()
			return c, nil
		},
		Key: func() ([]byte, bool) { return testKey("nas"), true },
	}
}

// newFakeNode starts a node whose visits come out of a channel.
func newFakeNode(t *testing.T, name string) *fakeNode {
	t.Helper()
	n := &fakeNode{name: name}
	n.ln, n.visits = fakeIngressAt(t, IngressConfig{}, func() time.Time { return time.Now().Add(time.Duration(n.ahead.Load())) })
	return n
}

// shownBy is a name on port 443.
func shownBy(name string, nodes ...*fakeNode) Public {
	p := Public{Names: []string{name}, Port: 443, Kind: kindHTTPS}
	for _, n := range nodes {
		p.Backends = append(p.Backends, n.backend())
	}
	return p
}

// fakeRelay is a relay that runs.
type fakeRelay struct {
	*Relay

	t       *testing.T
	ctx     context.Context
	running sync.WaitGroup
}

func newFakeRelay(t *testing.T, cfg RelayConfig, list ...Public) *fakeRelay {
	t.Helper()
	r := newStillRelay(t, cfg, list...)
	r.running.Go(func() { _ = r.Run(r.ctx) })
	return r
}

// newStillRelay is one that does not watch over anything.
func newStillRelay(t *testing.T, cfg RelayConfig, list ...Public) *fakeRelay {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	r := &fakeRelay{Relay: NewRelay(cfg), t: t, ctx: ctx}
	if err := r.Set(list); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { cancel(); r.running.Wait() })
	return r
}

// visitor is somebody who came.
type visitor struct {
	net.Conn

	done chan struct{} // is closed when the relay is done with it
}

// visit has somebody come from an address, for a name.
func (r *fakeRelay) visit(from, name string, protocols ...string) *visitor {
	client, server := fakePair(from, "203.0.113.5:443")
	v := &visitor{client, make(chan struct{})}
	r.t.Cleanup(func() { client.Close() })
	r.running.Go(func() {
		defer close(v.done)
		defer server.Close()
		hello := &replayed{Conn: server, head: []byte("hello of " + name)}
		r.Handler(443)(r.ctx, hello, Hello{ServerName: name, Protocols: protocols})
	})
	return v
}

// heard is all that a visitor still hears, and how long that took.
func (v *visitor) heard() (string, time.Duration) {
	begun := time.Now()
	data, _ := io.ReadAll(v)
	return string(data), time.Since(begun)
}

// say has a visit's node send something, which the visitor has to get.
func say(t *testing.T, from io.Writer, to io.Reader, what string) {
	t.Helper()
	go func() { _, _ = io.WriteString(from, what) }()
	buf := make([]byte, len(what))
	if _, err := io.ReadFull(to, buf); err != nil || string(buf) != what {
		t.Errorf("%q, %v; want %q", buf, err, what)
	}
}

const visitorA, visitorB = "192.0.2.7:40000", "198.51.100.9:40000"

func TestANodeThatDoesNotAnswerIsNoticed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		nas := newFakeNode(t, "nas")
		r := newFakeRelay(t, RelayConfig{}, shownBy("nas.example", nas))
		nas.silent.Store(true)
		got, took := r.visit(visitorA, "nas.example").heard()
		if got != alertOf(alertInternalError) || took > 5*time.Second {
			t.Errorf("no power: %q after %v", got, took)
		}
		nas.silent.Store(false)
		nas.closed.Store(true)
		got, took = r.visit(visitorA, "nas.example").heard()
		if got != alertOf(alertInternalError) || took > 0 {
			t.Errorf("no daemon: %q after %v", got, took)
		}
		nas.closed.Store(false)
		v := r.visit(visitorA, "nas.example")
		inner := <-nas.visits
		say(t, inner, v, "it is back")
		if s := r.Stats(); s.Begun != 3 || s.Unreached != 2 || s.Open != 1 {
			t.Errorf("%+v", s)
		}
	})
}

func TestANodeThatFallsSilentIsNoticed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		nas := newFakeNode(t, "nas")
		r := newFakeRelay(t, RelayConfig{}, shownBy("nas.example", nas))
		waiting, talking := r.visit(visitorA, "nas.example"), r.visit(visitorB, "nas.example")
		for range 2 {
			if inner := <-nas.visits; inner.Visitor.String() == visitorB {
				say(t, inner, talking, "so far")
			}
		}
		time.Sleep(time.Hour / 12) // in which it is there, and says nothing to the visitors
		if s := r.Stats(); s.Open != 2 {
			t.Fatalf("%+v", s)
		}
		nas.silent.Store(true)
		begun := time.Now()
		got, _ := waiting.heard()
		// In the middle of TLS an alert in clear would be noise.
		rest, _ := talking.heard()
		if took := time.Since(begun); got != alertOf(alertInternalError) || rest != "" || took > 5*time.Second || took < 2*time.Second {
			t.Errorf("%q, %q after %v", got, rest, took)
		}
	})
}

// A line that is full delays a node's pulse, and not what it says to visitors.
func TestANodeThatTalksIsNotGivenUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		nas := newFakeNode(t, "nas")
		r := newFakeRelay(t, RelayConfig{}, shownBy("nas.example", nas))
		v := r.visit(visitorA, "nas.example")
		inner := <-nas.visits
		nas.silent.Store(true) // towards the node; from there bytes come
		for range 30 {
			time.Sleep(time.Second)
			say(t, inner, v, "more")
		}
	})
}

func TestVisitsEndWhenTheyAreIdleOrOld(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		nas := newFakeNode(t, "nas")
		r := newFakeRelay(t, RelayConfig{Idle: time.Minute, Lifetime: time.Hour}, shownBy("nas.example", nas))
		idle, busy := r.visit(visitorA, "nas.example"), r.visit(visitorB, "nas.example")
		var inner net.Conn
		for range 2 {
			v := <-nas.visits
			if v.Visitor.String() == visitorB {
				inner = v
			}
			say(t, v, map[string]*visitor{visitorA: idle, visitorB: busy}[v.Visitor.String()], "hello")
		}
		begun := time.Now()
		var ended atomic.Int64
		r.running.Go(func() {
			<-idle.done
			ended.Store(int64(time.Since(begun)))
		})
		go func() { _, _ = idle.heard() }()
		for time.Since(begun) < 59*time.Minute {
			time.Sleep(50 * time.Second)
			say(t, inner, busy, "ping")
		}
		if d := time.Duration(ended.Load()); d < time.Minute || d > time.Minute+2*watchPause {
			t.Errorf("the idle one has ended after %v", d)
		}
		_, _ = busy.heard()
		if d := time.Since(begun); d < time.Hour || d > time.Hour+2*watchPause {
			t.Errorf("the old one has ended after %v", d)
		}
	})
}

func TestVisitorsGoWhereThereAreFewest(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b := newFakeNode(t, "a"), newFakeNode(t, "b")
		r := newFakeRelay(t, RelayConfig{}, shownBy("nas.example", a, b))
		come := func(n int) (list []*visitor) {
			for range n {
				list = append(list, r.visit(visitorA, "nas.example"))
				synctest.Wait()
			}
			return list
		}
		open := func() [2]int {
			synctest.Wait()
			r.mu.Lock()
			defer r.mu.Unlock()
			return [2]int{r.nodes["a"].meter.open, r.nodes["b"].meter.open}
		}
		come(10)
		if open() != [2]int{5, 5} {
			t.Errorf("ten: %v", open())
		}
		for range 4 {
			(<-a.visits).Close()
		}
		come(3)
		if open() != [2]int{4, 5} {
			t.Errorf("after four of a's have gone, three: %v", open())
		}
		// One that dies is left, and its visitors are let go; nobody waits for it while the other one is there.
		a.silent.Store(true)
		time.Sleep(5 * time.Second)
		if open() != [2]int{0, 5} {
			t.Errorf("a is dead: %v", open())
		}
		come(3)
		if open() != [2]int{0, 8} {
			t.Errorf("three more, at once: %v", open())
		}
		a.silent.Store(false)
		time.Sleep(5 * time.Second)
		come(6)
		if open() != [2]int{6, 8} {
			t.Errorf("it is back: %v", open())
		}
	})
}

// Nobody has been to either node lately, so that nothing is known but by the health checks.
func TestNodesThatShareAreWatchedWithoutVisitors(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b := newFakeNode(t, "a"), newFakeNode(t, "b")
		r := newFakeRelay(t, RelayConfig{}, shownBy("nas.example", a, b))
		time.Sleep(time.Minute)
		a.silent.Store(true)
		time.Sleep(5 * time.Second)
		for range 4 {
			v, begun := r.visit(visitorA, "nas.example"), time.Now()
			say(t, <-b.visits, v, "from b")
			if took := time.Since(begun); took > 0 {
				t.Errorf("after %v", took)
			}
		}
		// While it has died only now, a visitor waits for the first one a little, and gets to the other.
		a.silent.Store(false)
		time.Sleep(5 * time.Second)
		a.silent.Store(true)
		v := r.visit(visitorA, "nas.example")
		say(t, <-b.visits, v, "from b")
	})
}

func TestANodeWithAnotherClockIsReached(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		nas := newFakeNode(t, "nas")
		r := newFakeRelay(t, RelayConfig{}, shownBy("nas.example", nas))
		for _, ahead := range []time.Duration{-time.Hour, time.Hour, time.Hour + time.Minute} { // it is set meanwhile
			nas.ahead.Store(int64(ahead))
			for range 2 {
				v, begun := r.visit(visitorA, "nas.example"), time.Now()
				say(t, <-nas.visits, v, "hello")
				if took := time.Since(begun); took > 0 {
					t.Errorf("%v ahead: after %v", ahead, took)
				}
			}
		}
		if n := nas.dials.Load(); n > 6+3+3 { // the second one is by the node's clock at once; and pulses
			t.Errorf("%d connections for six visits", n)
		}
	})
}

func TestDraining(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		nas := newFakeNode(t, "nas")
		r := newFakeRelay(t, RelayConfig{}, shownBy("nas.example", nas))
		short, long := r.visit(visitorA, "nas.example"), r.visit(visitorB, "nas.example")
		inner := map[string]*Visit{}
		for range 2 {
			v := <-nas.visits
			inner[v.Visitor.String()] = v
			say(t, v, map[string]*visitor{visitorA: short, visitorB: long}[v.Visitor.String()], "begun")
		}
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
		defer cancel()
		begun := time.Now()
		drained := make(chan time.Duration)
		go func() {
			r.Drain(ctx)
			drained <- time.Since(begun)
		}()
		synctest.Wait()
		if got, _ := r.visit(visitorA, "nas.example").heard(); got != alertOf(alertInternalError) {
			t.Errorf("a new one: %q", got)
		}
		time.Sleep(10 * time.Second)
		say(t, inner[visitorA], short, "and goes on")
		go func() { _, _ = io.WriteString(inner[visitorA], "end"); inner[visitorA].Close() }()
		if got, _ := short.heard(); got != "end" {
			t.Errorf("%q", got)
		}
		if got, _ := long.heard(); got != "" {
			t.Errorf("%q", got)
		}
		if d := <-drained; d != 20*time.Second {
			t.Errorf("it took %v", d)
		}
	})
}

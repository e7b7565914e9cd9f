package node

import (
	"context"
	"errors"
	"net"
	"sync"
	"sync/atomic"
	"time"
)

// deafTime is how long after a gateway may have heard of this node it says to CAs that it may lack some of the node's values,
// and no longer that there are none.
const deafTime = 11 * time.Second

// ears is what gateways may have heard. A gateway that lacks a value must not be asked by the CA in vain: it says that it may
// lack some by itself once it has not heard of the node for ten seconds, so that one which does not answer is not spoken to
// while an order goes on, and only one that has heard of the node just before is waited for.
type ears struct {
	since time.Time // nothing is known of what they heard before

	mu sync.Mutex
	of map[string]ear // by the gateway's name
}

// ear is one gateway's.
type ear struct {
	orders int       // that go on without it
	spoken time.Time // when it may have heard of this node last
}

// errQuiet is a call that is not made.
var errQuiet = errors.New("it does not answer, and must not hear of this node while an order goes on without it")

// with changes what is known of a gateway.
func (e *ears) with(name string, change func(*ear)) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.of == nil {
		e.of = map[string]ear{}
	}
	one, known := e.of[name]
	if !known {
		one.spoken = e.since
	}
	change(&one)
	e.of[name] = one
}

// silence has gateways not be spoken to; release takes that back.
func (e *ears) silence(list []textGateway) {
	for _, g := range list {
		e.with(g.name, func(one *ear) { one.orders++ })
	}
}

func (e *ears) release(list []textGateway) {
	for _, g := range list {
		e.with(g.name, func(one *ear) { one.orders-- })
	}
}

// quiet reports whether a gateway is not to be spoken to.
func (e *ears) quiet(name string) (is bool) {
	e.with(name, func(one *ear) { is = one.orders > 0 })
	return is
}

// speak reports whether a gateway may hear of this node now, and takes note that it does.
func (e *ears) speak(name string) (may bool) {
	e.with(name, func(one *ear) {
		if may = one.orders == 0; may {
			one.spoken = time.Now()
		}
	})
	return may
}

// spoke takes note that a gateway may have heard of this node until now.
func (e *ears) spoke(name string) { e.with(name, func(one *ear) { one.spoken = time.Now() }) }

// outlast waits until gateways that are silenced speak no longer of what they heard.
func (e *ears) outlast(ctx context.Context, silent []textGateway) error {
	for {
		var last time.Time
		for _, g := range silent {
			e.with(g.name, func(one *ear) { last = later(last, one.spoken) })
		}
		wait := time.Until(last.Add(deafTime))
		if wait <= 0 || ctx.Err() != nil {
			return ctx.Err()
		}
		sleep(ctx, wait) // a call that was on its way may have ended meanwhile
	}
}

type dialer func(ctx context.Context, network, address string) (net.Conn, error)

// listening is a dialer whose connections take note of what the gateway may hear.
func (e *ears) listening(name string, dial dialer) dialer {
	return func(ctx context.Context, network, address string) (net.Conn, error) {
		conn, err := dial(ctx, network, address)
		if err != nil {
			return nil, err
		}
		return &heardConn{Conn: conn, ears: e, name: name}, nil
	}
}

// heardConn is a connection that carries a call. Until the gateway's part of the handshake is there nothing of the call is on
// its way.
type heardConn struct {
	net.Conn
	ears *ears
	name string

	answered, spoken atomic.Bool
}

func (c *heardConn) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	if n > 0 {
		c.answered.Store(true)
	}
	return n, err
}

func (c *heardConn) Write(p []byte) (int, error) {
	if c.answered.Load() {
		if !c.ears.speak(c.name) {
			return 0, errQuiet
		}
		c.spoken.Store(true)
	}
	return c.Conn.Write(p)
}

// Close ends the connection: until then what was written may have been on its way.
func (c *heardConn) Close() error {
	if c.spoken.Load() {
		c.ears.spoke(c.name)
	}
	return c.Conn.Close()
}

// heardTexts lets a gateway hear of this node for as long as it holds values that a program on this node has written there.
type heardTexts struct {
	mu    sync.Mutex
	until time.Time
	wake  chan struct{}
}

// tell takes note until when a gateway wants to hear of this node.
func (h *heardTexts) tell(until time.Time) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.until = later(h.until, until)
	if limit := time.Now().Add(2 * textLife); h.until.After(limit) {
		h.until = limit // whatever the gateway says
	}
	select {
	case h.wake <- struct{}{}:
	default:
	}
}

func (h *heardTexts) wanted() bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	return time.Now().Before(h.until)
}

// tendHeard lets the gateway whose stream this node holds hear of it while it wants to.
func (n *Node) tendHeard(ctx context.Context) error {
	h := &n.heard
	for ctx.Err() == nil {
		if !h.wanted() {
			select {
			case <-h.wake:
			case <-ctx.Done():
			}
			continue
		}
		n.member.mu.Lock()
		contact := n.member.keeps.Gateways[0]
		n.member.mu.Unlock()
		n.texts.tell(ctx, n.textsOf(contact))
		sleep(ctx, textPulse)
	}
	return nil
}

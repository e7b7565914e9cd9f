package funnel

import (
	"cmp"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"sync/atomic"
	"time"
)

// node is what a Relay knows of a node.
type node struct {
	name  string
	skew  atomic.Int64 // how far its clock is ahead of ours, in nanoseconds
	until atomic.Int64 // when it counts as there again, in nanoseconds since 1970
	heard atomic.Int64 // when something came from it last, in nanoseconds since 1970

	// Relay.mu guards these.
	meter   *meter
	backend Backend // the one that was set last
	shares  bool    // another node does its work too
	watched bool
}

// downTime is how long a node that did not answer comes last, unless it answers sooner. Who watches it asks again after pulsePause +
// pulseWait: until then it must not count as there.
const downTime = 2 * (pulsePause + pulseWait)

func (n *node) failed(now time.Time) { n.until.Store(now.Add(downTime).UnixNano()) }

// hears notes that something has come from a node.
func (n *node) hears(now time.Time) {
	n.heard.Store(now.UnixNano())
	n.until.Store(0)
}

func (n *node) up(now time.Time) bool { return now.UnixNano() >= n.until.Load() }

// errRefused says that a node does not take what it was offered.
var errRefused = errors.New("the node refuses the visit")

// reach connects a visit to a node: the one with the fewest visits of those that are there, then the others.
func (r *Relay) reach(ctx context.Context, v *visit, p *public) (net.Conn, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, reachTime, errDead)
	defer cancel()
	order := r.order(p)
	var errs []error
	for i, at := range order {
		b, n := p.Backends[at], p.nodes[at]
		if err := r.join(v, n); err != nil {
			errs = append(errs, err)
			continue
		}
		limit := reachTime
		if i < len(order)-1 {
			limit = tryTime
		}
		tctx, done := context.WithTimeout(ctx, limit)
		inner, err := r.connect(tctx, v, b, n)
		done()
		if err == nil {
			n.hears(time.Now())
			v.linked.Store(true)
			v.head = nil
			return inner, nil
		}
		errs = append(errs, fmt.Errorf("reaching %s: %w", b.Node, err))
		if !errors.Is(err, errRefused) && (ctx.Err() == nil || errors.Is(context.Cause(ctx), errDead)) {
			n.failed(time.Now())
		}
		if ctx.Err() != nil {
			break
		}
	}
	return nil, errors.Join(errs...)
}

// order has the backends that a visit tries, the best first.
func (r *Relay) order(p *public) []int {
	now := time.Now()
	r.mu.Lock()
	defer r.mu.Unlock()
	list := make([]int, 0, len(p.Backends))
	for i := range p.Backends {
		list = append(list, (i+r.turn)%len(p.Backends))
	}
	r.turn++
	slices.SortStableFunc(list, func(a, b int) int {
		one, other := p.nodes[a], p.nodes[b]
		if one.up(now) != other.up(now) {
			if one.up(now) {
				return -1
			}
			return 1
		}
		return cmp.Compare(one.meter.open, other.meter.open)
	})
	return list
}

// connect opens a connection to a node that has taken the visit.
func (r *Relay) connect(ctx context.Context, v *visit, b Backend, n *node) (net.Conn, error) {
	h := header{visitor: v.from, gateway: v.to, name: v.name, port: v.port, kind: v.kind}
	inner, err := greet(ctx, b, n, h, v.head)
	if errors.Is(err, errLate) {
		inner, err = greet(ctx, b, n, h, v.head) // by the node's clock
	}
	return inner, err
}

// errLate says that a node's clock is not the one that was thought.
var errLate = errors.New("the node's clock differs")

// greet dials a node's ingress and says what for. The first bytes go with it, so that no time is lost.
func greet(ctx context.Context, b Backend, n *node, h header, head []byte) (net.Conn, error) {
	key, ok := b.Key()
	if !ok {
		return nil, errDead
	}
	conn, err := b.Dial(ctx)
	if err != nil {
		return nil, err
	}
	stop := context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Unix(1, 0)) })
	h.nonce = newNonce(time.Now().Add(time.Duration(n.skew.Load())))
	raw, err := h.seal(key)
	if err == nil {
		_, err = conn.Write(append(raw, head...))
	}
	if err == nil {
		err = n.hear(conn)
	}
	if !stop() && err == nil {
		err = context.Cause(ctx)
	}
	if err != nil {
		conn.Close()
		return nil, err
	}
	return conn, nil
}

// hear reads a node's answer to a header.
func (n *node) hear(r io.Reader) error {
	reply := make([]byte, 1, 8)
	if _, err := io.ReadFull(r, reply); err != nil {
		return fmt.Errorf("waiting for its answer: %w", err)
	}
	switch reply[0] {
	case replyTaken:
		return nil
	case replyLate:
		if _, err := io.ReadFull(r, reply[:8]); err != nil {
			return fmt.Errorf("waiting for its time: %w", err)
		}
		theirs := time.UnixMilli(int64(binary.BigEndian.Uint64(reply[:8])))
		n.skew.Store(int64(time.Until(theirs)))
		return errLate
	}
	return errRefused
}

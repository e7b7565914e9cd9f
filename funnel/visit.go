package funnel

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"
)

// reachTime is how long a visitor waits for a node, all tries together.
const (
	reachTime = 4500 * time.Millisecond
	tryTime   = 1500 * time.Millisecond // for a node, where there is another one
)

// visit is a visitor's connection, and the one to the node.
type visit struct {
	asked
	visitor net.Conn
	head    []byte // of the visitor's bytes, read already
	secure  bool   // it starts with TLS, so that an alert can end it
	acme    bool   // it starts a check of acme-tls/1

	from, to netip.AddrPort
	began    time.Time
	touched  atomic.Int64 // when a byte came last, in nanoseconds since began
	half     atomic.Bool  // one side has ended
	answered atomic.Bool  // the visitor has got something from the node
	linked   atomic.Bool  // a node has taken it
	meters   [classes]*meter

	// Relay.mu guards these.
	node *node
	kind string
	cut  context.CancelCauseFunc
}

// serve does all that is done for a visitor. The connection is the caller's to close.
func (r *Relay) serve(ctx context.Context, v *visit) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	v.cut = cancel
	v.from, v.to = addrOf(v.visitor.RemoteAddr()), addrOf(v.visitor.LocalAddr())
	v.began = time.Now()
	err := r.pass(ctx, v)
	if err == nil {
		return
	}
	if cause := context.Cause(ctx); cause != nil {
		err = cause
	}
	r.log.Debug("a visit has ended", "node", v.nodeName(), "err", err)
	switch tcp, _ := v.visitor.(*net.TCPConn); {
	case v.secure && !v.answered.Load():
		farewell(v.visitor, alertFor(err))
	case !v.secure && tcp != nil:
		// Without TLS only this tells the visitor that what came is not all.
		_ = tcp.SetLinger(0)
	}
}

func (v *visit) nodeName() string {
	if v.node == nil {
		return ""
	}
	return v.node.name
}

// alertFor says in TLS why nothing came of a visit.
func alertFor(err error) byte {
	switch {
	case errors.Is(err, errAcme):
		return alertNoProtocol
	case errors.Is(err, errNobody), errors.Is(err, errWithdrawn):
		return alertUnrecognizedName
	}
	return alertInternalError
}

// pass finds a node for a visitor, and copies until both are done.
func (r *Relay) pass(ctx context.Context, v *visit) error {
	p, err := r.enter(v)
	if err != nil {
		return err
	}
	defer r.leave(v)
	inner, err := r.reach(ctx, v, p)
	if err != nil {
		return err
	}
	defer inner.Close()
	interrupted := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		defer close(interrupted)
		inner.Close()
		_ = v.visitor.SetDeadline(time.Unix(1, 0)) // it can still be told why
	})
	defer func() {
		if !stop() {
			<-interrupted // or its deadline would come after the one for telling
		}
	}()
	return r.copyBoth(ctx, v, inner)
}

// copyBoth copies both ways until both sides have ended, or one fails.
func (r *Relay) copyBoth(ctx context.Context, v *visit, inner net.Conn) error {
	passed := func(n int) error {
		r.bytes.Add(uint64(n))
		return v.spend(ctx, n)
	}
	up := flow{dst: inner, src: v.visitor, chunks: r.chunks, most: v.most(), passed: passed}
	down := flow{dst: v.visitor, src: inner, chunks: r.chunks, most: v.most(), passed: passed, came: func() {
		v.answered.Store(true)
		v.node.hears(time.Now())
	}}
	run := func(f *flow) {
		err := f.run()
		if err == nil {
			err = closeWrite(f.dst)
			v.half.Store(true)
		}
		if err != nil {
			v.cut(err)
		}
	}
	var other sync.WaitGroup
	other.Go(func() { run(&up) })
	run(&down)
	if v.secure && !v.answered.Load() {
		v.cut(errDead) // it has ended without a word
	}
	other.Wait()
	return context.Cause(ctx)
}

// most is how many bytes of a visit may be moved at once, so that those who share a limit take turns.
func (v *visit) most() int {
	most := 0
	for _, m := range v.meters {
		if rate := m.limits.Load().BytesPerSecond; rate > 0 {
			n := int(max(512, min(copyBuffer, rate/8)))
			if most == 0 || n < most {
				most = n
			}
		}
	}
	return most
}

// spend counts bytes of a visit, and waits where they were too many.
func (v *visit) spend(ctx context.Context, n int) error {
	now := time.Now()
	if n > 0 {
		v.touched.Store(int64(now.Sub(v.began)))
	}
	var wait time.Duration
	for _, m := range v.meters {
		d, err := m.spend(int64(n), now)
		if err != nil {
			v.cut(err)
		}
		wait = max(wait, d)
	}
	if wait > 0 {
		rest(ctx, wait)
		v.touched.Store(int64(time.Since(v.began)))
	}
	return context.Cause(ctx)
}

// overdue says why a visit has to end.
func (v *visit) overdue(now time.Time, idle, life time.Duration) error {
	age := now.Sub(v.began)
	if v.half.Load() {
		idle = min(idle, halfIdleTime)
	}
	switch {
	case age >= life:
		return errOld
	case age-time.Duration(v.touched.Load()) >= idle:
		return errIdle
	}
	return nil
}

// enter finds what a visitor asks for, and takes up room for the visit.
func (r *Relay) enter(v *visit) (*public, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	p, err := r.admitLocked(v)
	if err != nil {
		r.stats.Refused++
		return nil, err
	}
	r.stats.Begun++
	v.kind = p.Kind
	r.visits[v] = struct{}{}
	return p, nil
}

// admitLocked finds what a visitor asks for, and counts the visit for its name and source.
func (r *Relay) admitLocked(v *visit) (*public, error) {
	t := r.table.Load()
	p, by := t.find(v.asked)
	switch {
	case r.draining:
		return nil, errDraining
	case p == nil || len(p.Backends) == 0:
		return nil, errNobody
	case v.acme && len(t.owners[by]) != 1:
		return nil, errAcme
	case len(r.visits) >= r.cfg.MaxVisits:
		return nil, fmt.Errorf("%w: %d visits", errBusy, r.cfg.MaxVisits)
	}
	name := r.meter(meterKey{class: ofName, name: fmt.Sprintf("%s:%d", by, v.port)}, p.Limits, r.cfg.Name)
	source := r.meter(meterKey{class: ofSource, source: clientOf(v.from.Addr())}, r.cfg.Source, Limits{})
	for _, m := range []*meter{name, source} {
		if err := r.mayStart(m, len(r.visits), v.began); err != nil {
			return nil, err
		}
	}
	for _, m := range []*meter{name, source} {
		r.start(v, m)
	}
	return p, nil
}

// leave gives the room of a visit back.
func (r *Relay) leave(v *visit) {
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.visits, v)
	if !v.linked.Load() {
		r.stats.Unreached++
	}
	for _, m := range v.meters {
		r.stop(m)
	}
	close(r.gone)
	r.gone = make(chan struct{})
}

package resolver

import (
	"context"
	"sync"
	"sync/atomic"
	"time"
)

// clock counts nanoseconds. Time that the machine slept counts too, unlike on Go's monotonic clock: an answer
// that was cached before the lid was closed is old when it is opened.
type clock struct {
	begin  time.Time
	offset atomic.Int64 // added to the monotonic clock
	wall   atomic.Int64 // wall minus monotonic, as last seen
}

// clockBase keeps all times well above zero, which stands for "never".
const clockBase = int64(time.Hour)

// jump is how far the wall clock must run ahead of the monotonic one to count as sleep.
const jump = int64(10 * time.Second)

func (c *clock) start() { c.begin = time.Now() }

func (c *clock) now() int64 {
	t := time.Now()
	mono := int64(t.Sub(c.begin))
	wall := t.UnixNano() - c.begin.UnixNano() - mono
	switch seen := c.wall.Load(); {
	case wall-seen > jump:
		if c.wall.CompareAndSwap(seen, wall) {
			c.offset.Add(wall - seen)
		}
	case seen-wall > jump:
		c.wall.CompareAndSwap(seen, wall) // the clock was set back: nobody slept
	}
	return clockBase + mono + c.offset.Load()
}

// group counts goroutines that are waited for. Unlike a sync.WaitGroup it may be started from while it is being
// waited for; then nothing starts.
type group struct {
	mu     sync.Mutex
	closed bool
	wg     sync.WaitGroup
}

func (g *group) start(life context.Context, f func()) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.closed || life.Err() != nil {
		return false
	}
	g.wg.Go(f)
	return true
}

func (g *group) wait() {
	g.mu.Lock()
	g.closed = true
	g.mu.Unlock()
	g.wg.Wait()
}

// maxSpare is how many workers and receivers are kept for later; under load few more are in use than there are cores.
const maxSpare = 8

// spareWorkers keeps workers for reuse, the last one first, so that its memory is still in the CPU's cache.
type spareWorkers struct {
	make func() *worker

	mu   sync.Mutex
	list []*worker
}

func (s *spareWorkers) get() *worker {
	s.mu.Lock()
	defer s.mu.Unlock()
	if n := len(s.list); n > 0 {
		w := s.list[n-1]
		s.list = s.list[:n-1]
		return w
	}
	return s.make()
}

func (s *spareWorkers) put(w *worker) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.list) < maxSpare {
		s.list = append(s.list, w)
		return
	}
	w.r.totals.retire(w.counts)
}

func (r *Resolver) makeWorker() *worker {
	return &worker{r: r, table: &r.table, out: newSender(), box: outbox{sender: newSender()}, counts: r.totals.join()}
}

// spareReceivers keeps the buffers for upstreams' answers: one set for each that is being read just now, not one
// for each socket.
type spareReceivers struct {
	mu   sync.Mutex
	list []*receiver
}

// upstreamSize is the longest datagram taken from an upstream, in octets; it was told advertisedSize.
const upstreamSize = 2048

func (s *spareReceivers) get() *receiver {
	s.mu.Lock()
	defer s.mu.Unlock()
	if n := len(s.list); n > 0 {
		r := s.list[n-1]
		s.list = s.list[:n-1]
		return r
	}
	return newReceiver(upstreamSize)
}

func (s *spareReceivers) put(r *receiver) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.list) < maxSpare {
		s.list = append(s.list, r)
	}
}

// Pauses of Run.
const (
	tickPause = time.Duration(1) << tickShift
	tidyPause = time.Second
	idlePause = time.Hour
	lazyTicks = 60 // ticks without a flight before the wheel rests: about a second
)

// wake makes Run look after flights. It costs one atomic load while Run is awake.
func (r *Resolver) wake() {
	if r.idle.Load() && r.idle.CompareAndSwap(true, false) {
		select {
		case r.kick <- struct{}{}:
		default:
		}
	}
}

// housekeep does what is due once a second or less, and returns how long Run may rest.
func (r *Resolver) housekeep(now int64) time.Duration {
	h := &r.keeper
	if r.flights.active.Load() > 0 {
		h.quiet = 0
	} else {
		h.quiet++
	}
	if now-h.last >= int64(tidyPause) {
		h.last = now
		h.busy = r.tidy(now)
	}
	switch {
	case h.quiet < lazyTicks:
		return tickPause
	case h.busy:
		h.rest(r)
		return tidyPause
	}
	h.rest(r)
	return idlePause
}

// keeper is Run's own memory.
type keeper struct {
	quiet int
	last  int64
	busy  bool // sockets are open or servers quarantined
}

// rest lets the next flight wake Run. One that began just before is seen here.
func (h *keeper) rest(r *Resolver) {
	r.idle.Store(true)
	if r.flights.active.Load() > 0 {
		h.quiet = 0
		r.wake()
	}
}

// tidy looks after all servers, and reports whether it has to be called again in a second.
func (r *Resolver) tidy(now int64) bool {
	busy := r.loops.check(r, now)
	for _, s := range r.servers.list() {
		if s.plain() && s.pool.tidy(now) {
			busy = true
		}
		if till := s.deadTill.Load(); till != 0 {
			busy = true
			if now >= till && s.probing.CompareAndSwap(false, true) && !r.goBackground(func() { r.revive(s) }) {
				s.probing.Store(false)
			}
		}
	}
	return busy
}

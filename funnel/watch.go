package funnel

import (
	"context"
	"io"
	"net"
	"strings"
	"sync"
	"time"
)

// How a node is watched. One that falls silent is given up within pulsePause + pulseWait + pulseWait = 4 s.
const (
	watchPause = time.Second
	pulsePause = time.Second // between two bytes
	pulseWait  = 1500 * time.Millisecond
	pulseRetry = 250 * time.Millisecond
	deadTime   = 3500 * time.Millisecond // without anything heard, before visits to a node are ended
)

// Run ends visits that are idle or old, and those to nodes that have fallen silent, until ctx ends.
func (r *Relay) Run(ctx context.Context) error {
	var running sync.WaitGroup
	defer running.Wait()
	tick := time.NewTicker(watchPause)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case now := <-tick.C:
			r.sweep(now)
			for _, n := range r.unwatched() {
				running.Go(func() { r.watch(ctx, n) })
			}
		}
	}
}

// sweep ends visits whose time is up.
func (r *Relay) sweep(now time.Time) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for v := range r.visits {
		idle := r.cfg.Idle
		if v.protocol == kindUDP {
			idle = min(idle, udpIdleTime)
		}
		if err := v.overdue(now, idle, r.cfg.Lifetime); err != nil {
			v.cut(err)
		}
	}
}

// unwatched are nodes that need to be watched and are not. They count as watched from now on.
func (r *Relay) unwatched() []*node {
	r.mu.Lock()
	defer r.mu.Unlock()
	var list []*node
	for _, n := range r.nodes {
		if !n.watched && n.neededLocked() {
			n.watched = true
			list = append(list, n)
		}
	}
	return list
}

// neededLocked reports whether it matters that a node is there: somebody visits it, or others could do its work.
func (n *node) neededLocked() bool { return n.meter.open > 0 || n.shares }

// watch asks a node every second whether it is there, until nobody needs to know.
func (r *Relay) watch(ctx context.Context, n *node) {
	for {
		r.mu.Lock()
		backend := n.backend
		if n.watched = ctx.Err() == nil && n.neededLocked() && r.nodes[n.name] == n; !n.watched {
			r.mu.Unlock()
			return
		}
		r.mu.Unlock()
		if conn, err := n.call(ctx, backend); err == nil {
			r.pulse(ctx, n, conn)
			continue // at once: it has fallen silent just now, or is not needed
		}
		n.failed(time.Now())
		if time.Since(time.Unix(0, n.heard.Load())) >= deadTime {
			r.giveUp(n)
		}
		r.mu.Lock()
		pause := pulsePause
		if n.meter.open > 0 {
			pause = pulseRetry
		}
		r.mu.Unlock()
		rest(ctx, pause)
	}
}

// call opens a connection to a node for its pulse.
func (n *node) call(ctx context.Context, b Backend) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, pulseWait)
	defer cancel()
	conn, err := greet(ctx, b, n, header{pulse: true}, nil)
	if err == nil {
		n.hears(time.Now())
	}
	return conn, err
}

// pulse sends a byte every second, for as long as each comes back.
func (r *Relay) pulse(ctx context.Context, n *node, conn net.Conn) {
	defer conn.Close()
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	defer stop()
	beat := []byte{1}
	for {
		rest(ctx, pulsePause)
		r.mu.Lock()
		needed := n.neededLocked() && r.nodes[n.name] == n
		r.mu.Unlock()
		if !needed || conn.SetDeadline(time.Now().Add(pulseWait)) != nil {
			return
		}
		if _, err := conn.Write(beat); err != nil {
			return
		}
		if _, err := io.ReadFull(conn, beat); err != nil {
			return
		}
		n.hears(time.Now())
	}
}

// giveUp ends the visits that a node has taken.
func (r *Relay) giveUp(n *node) {
	r.mu.Lock()
	defer r.mu.Unlock()
	given := 0
	for v := range r.visits {
		if v.node == n && v.linked.Load() {
			v.cut(errDead)
			given++
		}
	}
	if given > 0 {
		r.log.Info("a node has fallen silent, its visitors are let go", "node", n.name, "visits", given)
	}
}

// Drain takes no visits any more, and waits until those that are open have ended. When ctx ends, it ends them.
func (r *Relay) Drain(ctx context.Context) {
	for {
		r.mu.Lock()
		r.draining = true
		gone, left := r.gone, len(r.visits)
		if ctx.Err() != nil {
			for v := range r.visits {
				v.cut(errDraining)
			}
		}
		r.mu.Unlock()
		if left == 0 {
			return
		}
		if ctx.Err() != nil {
			<-gone
			continue
		}
		select {
		case <-gone:
		case <-ctx.Done():
		}
	}
}

// RelayStats count since the start.
type RelayStats struct {
	Begun     uint64 // visits that were let in
	Refused   uint64 // that were not: nothing is shown there, or a limit is reached
	Unreached uint64 // that came to no node
	Bytes     uint64 // both ways
	Open      int    // visits at this moment
}

// Stats are the counts.
func (r *Relay) Stats() RelayStats {
	r.mu.Lock()
	defer r.mu.Unlock()
	s := r.stats
	s.Bytes, s.Open = r.bytes.Load(), len(r.visits)
	return s
}

// Usage is what was moved in a month, both ways, for each node ("node nas") and name ("name nas.example:443"). It is data,
// so that it can be kept while no gateway runs.
type Usage struct {
	Month string           `json:"month"` // of UTC: "2006-01"
	Bytes map[string]int64 `json:"bytes"`
}

const monthFormat = "2006-01"

var usageWords = map[int]string{ofNode: "node ", ofName: "name "}

// Usage is that of this month.
func (r *Relay) Usage() Usage {
	now := time.Now()
	u := Usage{Month: now.UTC().Format(monthFormat), Bytes: map[string]int64{}}
	r.mu.Lock()
	defer r.mu.Unlock()
	for key, m := range r.meters {
		if word := usageWords[key.class]; word != "" {
			if n := m.monthly(0, now); n > 0 {
				u.Bytes[word+key.name] = n
			}
		}
	}
	return u
}

// Resume counts on from what was kept, if it is of this month.
func (r *Relay) Resume(u Usage) {
	now := time.Now()
	if u.Month != now.UTC().Format(monthFormat) {
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	for text, n := range u.Bytes {
		for class, word := range usageWords {
			name, ok := strings.CutPrefix(text, word)
			if !ok || n <= 0 || len(r.meters) >= maxMeters {
				continue
			}
			key := meterKey{class: class, name: name}
			m := r.meters[key]
			if m == nil {
				m = r.meter(key, Limits{}, Limits{})
			}
			m.monthly(n, now)
		}
	}
}

package funnel

import (
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// The defaults of Limits.
const (
	maxOfNode      = 4000
	maxOfSource    = 256
	perSecond      = 400
	perSecondEach  = 100
	maxMeters      = 100_000
	burstTime      = time.Second // of bytes that may come at once
	overloadedFrom = 4           // above all but one of so many parts of MaxVisits, fair shares count
)

// errBusy says that a limit is reached.
var errBusy = errors.New("too much at once")

// The classes of meters.
const (
	ofNode = iota
	ofName
	ofSource
	classes
)

// meterKey is what a meter counts for: a node, a name or port, a source.
type meterKey struct {
	class  int
	name   string
	source netip.Prefix
}

// meter counts what is done for one node, name or source.
type meter struct {
	key    meterKey
	limits atomic.Pointer[Limits]

	// Relay.mu guards these.
	open   int
	starts bucket

	mu    sync.Mutex
	bytes bucket
	month int
	spent int64
}

// bucket is what may be done at once; it fills up with time. It may be overdrawn, and then who comes next waits longer: so
// those who share one come by turns.
type bucket struct {
	left float64
	at   time.Time
}

// fill is what the bucket holds now.
func (b *bucket) fill(rate, most float64, now time.Time) {
	if b.at.IsZero() {
		b.left = most
	} else {
		b.left = min(most, b.left+rate*max(0, now.Sub(b.at).Seconds()))
	}
	b.at = now
}

// orDefault is a limit: the first that is not zero, and 0 for none.
func orDefault[N int | int64](limits ...N) N {
	for _, n := range limits {
		if n != 0 {
			return max(n, 0)
		}
	}
	return 0
}

// over are limits with the defaults of others where they are zero. Afterwards zero is no limit.
func (l Limits) over(defaults, builtin Limits) Limits {
	return Limits{
		Connections:    orDefault(l.Connections, defaults.Connections, builtin.Connections),
		PerSecond:      orDefault(l.PerSecond, defaults.PerSecond, builtin.PerSecond),
		BytesPerSecond: orDefault(l.BytesPerSecond, defaults.BytesPerSecond, builtin.BytesPerSecond),
		BytesPerMonth:  orDefault(l.BytesPerMonth, defaults.BytesPerMonth, builtin.BytesPerMonth),
	}
}

// mayStart reports whether one more visit may begin. Relay.mu is held.
func (m *meter) mayStart(now time.Time) error {
	l := m.limits.Load()
	if n := l.Connections; n > 0 && m.open >= n {
		return fmt.Errorf("%w: %d connections", errBusy, n)
	}
	if n := l.PerSecond; n > 0 {
		if m.starts.fill(float64(n), float64(n), now); m.starts.left < 1 {
			return fmt.Errorf("%w: %d new connections a second", errBusy, n)
		}
	}
	if n := l.BytesPerMonth; n > 0 && m.monthly(0, now) >= n {
		return fmt.Errorf("%w: %d bytes a month", errBusy, n)
	}
	return nil
}

// monthly counts bytes, and returns those of this month.
func (m *meter) monthly(n int64, now time.Time) int64 {
	m.mu.Lock()
	defer m.mu.Unlock()
	if month := monthOf(now); m.month != month {
		m.month, m.spent = month, 0
	}
	m.spent += n
	return m.spent
}

func monthOf(t time.Time) int {
	t = t.UTC()
	return t.Year()*12 + int(t.Month()) - 1
}

// spend counts bytes, and returns how long to wait before there are more. An error says that there are none left.
func (m *meter) spend(n int64, now time.Time) (wait time.Duration, err error) {
	l, month := m.limits.Load(), m.monthly(n, now)
	if most := l.BytesPerMonth; most > 0 && month > most {
		return 0, fmt.Errorf("%w: %d bytes a month", errBusy, most)
	}
	rate := float64(l.BytesPerSecond)
	if rate <= 0 {
		return 0, nil
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.bytes.fill(rate, rate*burstTime.Seconds(), now)
	if m.bytes.left -= float64(n); m.bytes.left >= 0 {
		return 0, nil
	}
	return time.Duration(-m.bytes.left / rate * float64(time.Second)), nil
}

// meter is the one for a key. Relay.mu is held.
func (r *Relay) meter(key meterKey, limits, defaults Limits) *meter {
	m := r.meters[key]
	if m == nil {
		r.tidyLocked(time.Now())
		m = &meter{key: key}
		r.meters[key] = m
	}
	builtin := Limits{Connections: maxOfNode, PerSecond: perSecond}
	switch {
	case key.class == ofSource:
		builtin = Limits{Connections: maxOfSource, PerSecond: perSecondEach}
	case key.class == ofName && strings.HasPrefix(key.name, kindUDP+":"):
		builtin = Limits{Connections: maxUDP, PerSecond: perSecondUDP}
	}
	all := limits.over(defaults, builtin)
	m.limits.Store(&all)
	return m
}

// tidyLocked forgets what has nothing open, where there is too much: sources, and what has moved nothing this month; and if
// that is too little, all of it.
func (r *Relay) tidyLocked(now time.Time) {
	for _, all := range []bool{false, true} {
		if len(r.meters) < maxMeters {
			return
		}
		for key, m := range r.meters {
			if m.open == 0 && (all || key.class == ofSource || m.monthly(0, now) == 0) {
				delete(r.meters, key)
			}
		}
	}
}

// mayStart reports whether a meter, and what is fair where there is little room, let a visit begin beside so many others.
// Relay.mu is held.
func (r *Relay) mayStart(m *meter, others int, now time.Time) error {
	if err := m.mayStart(now); err != nil {
		return err
	}
	room := r.cfg.MaxVisits
	if others < room-room/overloadedFrom {
		return nil
	}
	// Names are no class of their own here: a node may have any number of them.
	if share := max(1, room/max(1, r.active[m.key.class])); m.key.class != ofName && m.open >= share {
		return fmt.Errorf("%w: more than a fair share, %d", errBusy, share)
	}
	return nil
}

// start counts a visit that begins. Relay.mu is held.
func (r *Relay) start(v *visit, m *meter) {
	if m.open == 0 {
		r.active[m.key.class]++
	}
	m.open++
	m.starts.left--
	v.meters[m.key.class] = m
}

// stop counts a visit that ends. Relay.mu is held.
func (r *Relay) stop(m *meter) {
	if m == nil {
		return
	}
	if m.open--; m.open == 0 {
		r.active[m.key.class]--
	}
}

// join has a visit count for this node, and for none else.
func (r *Relay) join(v *visit, n *node) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.stop(v.meters[ofNode])
	v.meters[ofNode], v.node = nil, nil
	if err := r.mayStart(n.meter, len(r.visits)-1, time.Now()); err != nil {
		return err
	}
	v.node = n
	if !r.table.Load().shows(v) {
		v.node = nil
		return errWithdrawn
	}
	r.start(v, n.meter)
	return nil
}

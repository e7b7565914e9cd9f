package control

import (
	"maps"
	"net"
	"net/netip"
	"slices"
	"sync"
	"time"
)

// limiter gives every address a bucket of tokens. Addresses are those of nodes and invites, whose packets WireGuard has
// authenticated, so there are no more of them than that.
type limiter struct {
	mu      sync.Mutex
	burst   float64
	refill  float64 // a second
	buckets map[netip.Addr]bucketState
}

type bucketState struct {
	tokens float64
	at     time.Time
}

func newLimiter(burst, refill float64) limiter {
	return limiter{burst: burst, refill: refill, buckets: map[netip.Addr]bucketState{}}
}

// allow takes a token of an address, if it has one.
func (l *limiter) allow(a netip.Addr, now time.Time) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	b, ok := l.buckets[a]
	if !ok {
		if len(l.buckets) >= maxNodes {
			l.forget(now)
		}
		b.tokens = l.burst
	} else {
		b.tokens = min(l.burst, b.tokens+max(0, now.Sub(b.at).Seconds())*l.refill)
	}
	b.at = now
	ok = b.tokens >= 1
	if ok {
		b.tokens--
	}
	l.buckets[a] = b
	return ok
}

// forget drops the buckets that are full again.
func (l *limiter) forget(now time.Time) {
	for a, b := range l.buckets {
		if b.tokens+now.Sub(b.at).Seconds()*l.refill >= l.burst {
			delete(l.buckets, a)
		}
	}
}

// window lets every address do something so many times in any minute.
type window struct {
	mu   sync.Mutex
	most int
	at   map[netip.Addr][]time.Time // of the last minute
}

func newWindow(most int) window { return window{most: most, at: map[netip.Addr][]time.Time{}} }

// allow counts once more for an address, if it may.
func (w *window) allow(a netip.Addr, now time.Time) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	old := func(t time.Time) bool { return now.Sub(t) >= time.Minute }
	if len(w.at) >= maxNodes {
		maps.DeleteFunc(w.at, func(_ netip.Addr, times []time.Time) bool {
			return !slices.ContainsFunc(times, func(t time.Time) bool { return !old(t) })
		})
	}
	times := slices.DeleteFunc(w.at[a], old)
	if len(times) < w.most {
		w.at[a] = append(times, now)
		return true
	}
	w.at[a] = times
	return false
}

// limited is a listener that holds maxConns connections at most, and maxConnsEach of one address. Those above are closed
// at once.
type limited struct {
	net.Listener

	mu    sync.Mutex
	all   int
	conns map[netip.Addr]int
}

func limitListener(ln net.Listener) net.Listener {
	return &limited{Listener: ln, conns: map[netip.Addr]int{}}
}

func (l *limited) Accept() (net.Conn, error) {
	for {
		c, err := l.Listener.Accept()
		if err != nil {
			return nil, err
		}
		a := sourceOf(c.RemoteAddr())
		if l.take(a) {
			return &limitedConn{Conn: c, done: sync.OnceFunc(func() { l.give(a) })}, nil
		}
		c.Close()
	}
}

func (l *limited) take(a netip.Addr) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.all >= maxConns || l.conns[a] >= maxConnsEach {
		return false
	}
	l.all++
	l.conns[a]++
	return true
}

func (l *limited) give(a netip.Addr) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.all--
	if l.conns[a]--; l.conns[a] == 0 {
		delete(l.conns, a)
	}
}

type limitedConn struct {
	net.Conn

	done func()
}

func (c *limitedConn) Close() error {
	c.done()
	return c.Conn.Close()
}

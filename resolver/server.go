package resolver

import (
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

// Health of an upstream server. Times are in nanoseconds.
const (
	// minRTO and maxRTO bound how long one server is waited for before the next is tried too.
	minRTO = 120 * int64(time.Millisecond)
	maxRTO = 800 * int64(time.Millisecond)
	// firstRTO holds for a server of which nothing is known.
	firstRTO = 400 * int64(time.Millisecond)

	// deadAfter is how many attempts in a row go unanswered before a server is quarantined.
	deadAfter = 3
	// minQuarantine doubles with each failed probe, up to maxQuarantine.
	minQuarantine = int64(time.Second)
	maxQuarantine = 60 * int64(time.Second)
)

// server is one upstream with all that is known of it. It is shared by the targets that name it and outlives
// changes of routing, so that what was learnt of it is not lost.
type server struct {
	upstream Upstream
	exchange exchanger // nil for plain servers; for those tcp is used when an answer was cut
	tcp      exchanger
	pool     pool

	srtt     atomic.Int64 // smoothed round trip time; 0: unknown
	rttvar   atomic.Int64
	misses   atomic.Int32 // attempts in a row without an answer
	deadTill atomic.Int64 // quarantined until then; 0: alive
	backoff  atomic.Int64 // length of the last quarantine
	probing  atomic.Bool
	noCase   quirk       // alters the case of names: 0x20 is no use
	noEDNS   quirk       // fails on OPT records
	looping  atomic.Bool // sends our questions back to us

	queries  atomic.Uint64
	failures atomic.Uint64
	latency  histogram
	used     bool // guarded by servers.mu: named by the present routing
}

// quirkLife is how long a server's quirk is remembered. It may have been mended, or have been a forger's.
const quirkLife = int64(time.Hour)

// quirk is something odd about a server.
type quirk struct{ until atomic.Int64 }

func (q *quirk) begin(now int64)      { q.until.Store(now + quirkLife) }
func (q *quirk) holds(now int64) bool { return now < q.until.Load() }

func (s *server) plain() bool { return s.exchange == nil }

// rto is how long this server is waited for before the next one is tried (after RFC 6298, with other bounds).
func (s *server) rto() int64 {
	srtt := s.srtt.Load()
	if srtt == 0 {
		return firstRTO
	}
	return min(max(srtt+4*s.rttvar.Load(), minRTO), maxRTO)
}

// answered takes note of an answer that took rtt.
func (s *server) answered(rtt int64) {
	s.latency.observe(rtt)
	s.misses.Store(0)
	s.backoff.Store(0)
	s.deadTill.Store(0)
	old := s.srtt.Load()
	if old == 0 {
		s.srtt.Store(max(rtt, 1))
		s.rttvar.Store(rtt / 2)
		return
	}
	diff := max(old-rtt, rtt-old)
	s.rttvar.Store(s.rttvar.Load() + (diff-s.rttvar.Load())/4)
	s.srtt.Store(max(old+(rtt-old)/8, 1))
}

// missed takes note of an attempt that nobody answered, or that failed at once. It reports whether the server
// was quarantined by it.
func (s *server) missed(now int64) bool {
	s.failures.Add(1)
	if s.misses.Add(1) < deadAfter {
		return false
	}
	pause := min(max(2*s.backoff.Load(), minQuarantine), maxQuarantine)
	if till := s.deadTill.Load(); till > now {
		return false
	}
	s.backoff.Store(pause)
	return s.deadTill.Swap(now+pause) == 0
}

// dead reports whether the server is quarantined: it is, until a probe was answered.
func (s *server) dead() bool { return s.deadTill.Load() != 0 }

// maxServers is the most servers that one target uses.
const maxServers = 8

// tryOther is how often a query goes to another server than the best, so that a better one is noticed.
const tryOther = 64

// choose returns the index of the best server that is not in tried, or -1 if all were: alive before
// quarantined, then by smoothed latency, an unknown one counting as fast so that it gets known. One that loops
// is never used.
func (t *target) choose(tried uint32) int {
	best, bestCost := -1, int64(0)
	for i, s := range t.servers {
		if tried>>i&1 != 0 || s.looping.Load() {
			continue
		}
		cost := s.srtt.Load()
		if s.dead() {
			cost += int64(time.Hour)
		}
		if best < 0 || cost < bestCost {
			best, bestCost = i, cost
		}
	}
	return best
}

// chooseFirst is choose for the first attempt of a query.
func (t *target) chooseFirst() int {
	if n := uint32(len(t.servers)); n > 1 {
		if turn := t.next.Add(1); turn%tryOther == 0 {
			i := turn / tryOther % n
			if s := t.servers[i]; !s.dead() && !s.looping.Load() {
				return int(i)
			}
		}
	}
	return t.choose(0)
}

// servers holds one server for each upstream in use.
type servers struct {
	make func(Upstream) *server

	mu  sync.Mutex
	all map[Upstream]*server
}

func (s *servers) get(u Upstream) *server {
	s.mu.Lock()
	defer s.mu.Unlock()
	srv := s.all[u]
	if srv == nil {
		srv = s.make(u)
		s.all[u] = srv
	}
	srv.used = true
	return srv
}

// list returns all servers, in a fixed order.
func (s *servers) list() []*server {
	s.mu.Lock()
	defer s.mu.Unlock()
	out := make([]*server, 0, len(s.all))
	for _, srv := range s.all {
		out = append(out, srv)
	}
	slices.SortFunc(out, func(a, b *server) int {
		switch as, bs := a.upstream.String(), b.upstream.String(); {
		case as < bs:
			return -1
		case as > bs:
			return 1
		}
		return 0
	})
	return out
}

// keep drops the servers that the routing does not name and returns them, to be closed.
func (s *servers) keep(rt *routing) []*server {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, srv := range s.all {
		srv.used = false
	}
	rt.each(func(t *target) {
		for _, srv := range t.servers {
			srv.used = true
		}
	})
	var gone []*server
	for u, srv := range s.all {
		if !srv.used {
			delete(s.all, u)
			gone = append(gone, srv)
		}
	}
	return gone
}

// close ends the server's connections and waits for them.
func (s *server) close() {
	s.pool.close()
	for _, x := range []exchanger{s.exchange, s.tcp} {
		if x != nil {
			x.close()
		}
	}
}

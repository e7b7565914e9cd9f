package resolver

import (
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/miekg/dns"
)

// source says where a reply came from.
type source uint8

const (
	sourceLocal source = iota
	sourceCache
	sourceStale
	sourceUpstream
	sourceSpecial
	sourceRefused
	sources
)

func (s source) String() string {
	return [...]string{"local", "cache", "stale", "upstream", "special", "refused"}[s]
}

// countedTypes are the query types that are counted by name; the others are counted together.
var countedTypes = [...]uint16{dns.TypeA, dns.TypeAAAA, dns.TypePTR, dns.TypeHTTPS, dns.TypeTXT, dns.TypeSRV, dns.TypeMX, //nolint:gochecknoglobals // a constant
	dns.TypeCNAME, dns.TypeNS, dns.TypeSOA, dns.TypeCAA, dns.TypeSVCB, dns.TypeANY}

// countedRcodes likewise.
var countedRcodes = [...]uint16{dns.RcodeSuccess, dns.RcodeNameError, dns.RcodeServerFailure, dns.RcodeRefused, dns.RcodeFormatError, dns.RcodeNotImplemented} //nolint:gochecknoglobals // a constant

const (
	typeSlots  = len(countedTypes) + 1
	rcodeSlots = len(countedRcodes) + 1
)

// counters count replies. Each worker has its own, so that counting costs no cache line between cores.
type counters [int(sources) * typeSlots * rcodeSlots]atomic.Uint64

func (w *worker) count(src source, rcode uint16) {
	t := slices.Index(countedTypes[:], w.q.qtype)
	if t < 0 {
		t = typeSlots - 1
	}
	c := slices.Index(countedRcodes[:], rcode)
	if c < 0 {
		c = rcodeSlots - 1
	}
	w.counts[(int(src)*typeSlots+t)*rcodeSlots+c].Add(1)
}

// totals holds the counters of all workers, and the sum of those that are gone.
type totals struct {
	mu   sync.Mutex
	live []*counters
	gone counters
}

func (t *totals) join() *counters {
	c := new(counters)
	t.mu.Lock()
	defer t.mu.Unlock()
	t.live = append(t.live, c)
	return c
}

func (t *totals) retire(c *counters) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for i := range c {
		t.gone[i].Add(c[i].Load())
	}
	t.live = slices.DeleteFunc(t.live, func(l *counters) bool { return l == c })
}

// QueryCount is the number of replies of one kind.
type QueryCount struct {
	Type   string `json:"type"`   // of the question; "other" for the rare ones
	Source string `json:"source"` // local, cache, stale, upstream, special or refused
	Rcode  string `json:"rcode"`
	N      uint64 `json:"n"`
}

// CacheStats describes the cache.
type CacheStats struct {
	Entries   int    `json:"entries"`
	Bytes     int    `json:"bytes"`
	Hits      uint64 `json:"hits"`
	Misses    uint64 `json:"misses"`
	Evictions uint64 `json:"evictions"`
}

// Stats counts what a Resolver has done since it was made.
type Stats struct {
	Queries  []QueryCount `json:"queries"`
	Cache    CacheStats   `json:"cache"`
	Names    int          `json:"names"`     // in the table
	InFlight int          `json:"in_flight"` // questions that upstreams have not answered yet
	Ignored  uint64       `json:"ignored"`   // datagrams that are no queries
	Stray    uint64       `json:"stray"`     // answers that nobody had asked for, or not so
	Dropped  uint64       `json:"dropped"`   // replies that the kernel did not take
	Shed     uint64       `json:"shed"`      // queries refused because a bound was reached
	Rebound  uint64       `json:"rebound"`   // answers refused since they point inside
	TCP      TCPStats     `json:"tcp"`
}

// Stats returns the counts so far.
func (r *Resolver) Stats() Stats {
	s := Stats{
		Queries:  r.totals.sum(),
		Cache:    r.cache.stats(),
		Names:    r.table.Load().Names(),
		InFlight: int(r.flights.active.Load()),
		Ignored:  r.ignored.Load(),
		Stray:    r.stray.Load(),
		Dropped:  r.dropped.Load(),
		Shed:     r.shed.Load(),
		Rebound:  r.rebound.Load(),
		TCP:      r.tcp.stats().plus(r.guest.tcp.stats()),
	}
	return s
}

func (t *totals) sum() []QueryCount {
	t.mu.Lock()
	defer t.mu.Unlock()
	out := []QueryCount{}
	for i := range t.gone {
		n := t.gone[i].Load()
		for _, c := range t.live {
			n += c[i].Load()
		}
		if n == 0 {
			continue
		}
		q := QueryCount{Type: "other", Rcode: "other", N: n, Source: source(i / rcodeSlots / typeSlots).String()}
		if ti := i / rcodeSlots % typeSlots; ti < len(countedTypes) {
			q.Type = dns.TypeToString[countedTypes[ti]]
		}
		if ri := i % rcodeSlots; ri < len(countedRcodes) {
			q.Rcode = dns.RcodeToString[int(countedRcodes[ri])]
		}
		out = append(out, q)
	}
	return out
}

// UpstreamStatus is what is known of one upstream server.
type UpstreamStatus struct {
	Upstream string        `json:"upstream"`
	Routes   []string      `json:"routes"` // the suffixes that it answers for; "." is everything else
	State    string        `json:"state"`  // ok, new, quarantined or loop
	SRTT     time.Duration `json:"srtt_ns"`
	Queries  uint64        `json:"queries"`
	Failures uint64        `json:"failures"`
	Latency  Histogram     `json:"latency"`
}

// Upstreams describes the servers of the present routing, in alphabetical order.
func (r *Resolver) Upstreams() []UpstreamStatus {
	routes := map[*server][]string{}
	r.routing.Load().each(func(t *target) {
		for _, s := range t.servers {
			routes[s] = append(routes[s], presentName(t.suffix))
		}
	})
	out := make([]UpstreamStatus, 0, len(routes))
	for s, names := range routes {
		slices.Sort(names)
		out = append(out, UpstreamStatus{Upstream: s.upstream.String(), Routes: names, State: s.state(), SRTT: time.Duration(s.srtt.Load()),
			Queries: s.queries.Load(), Failures: s.failures.Load(), Latency: s.latency.snapshot()})
	}
	slices.SortFunc(out, func(a, b UpstreamStatus) int { return strings.Compare(a.Upstream, b.Upstream) })
	return out
}

func (s *server) state() string {
	switch {
	case s.looping.Load():
		return "loop"
	case s.dead():
		return "quarantined"
	case s.srtt.Load() == 0:
		return "new"
	}
	return "ok"
}

// latencyBounds are the upper ends of a Histogram's buckets.
var latencyBounds = [...]time.Duration{time.Millisecond, 2 * time.Millisecond, 5 * time.Millisecond, 10 * time.Millisecond, 20 * time.Millisecond, //nolint:gochecknoglobals // a constant
	50 * time.Millisecond, 100 * time.Millisecond, 200 * time.Millisecond, 500 * time.Millisecond, time.Second, 2 * time.Second}

type histogram struct {
	buckets [len(latencyBounds) + 1]atomic.Uint64
	sum     atomic.Int64
}

func (h *histogram) observe(rtt int64) {
	i := 0
	for i < len(latencyBounds) && rtt > int64(latencyBounds[i]) {
		i++
	}
	h.buckets[i].Add(1)
	h.sum.Add(rtt)
}

// Histogram counts answers by how long they took.
type Histogram struct {
	Bounds []time.Duration `json:"bounds_ns"` // upper ends of the buckets but the last
	Counts []uint64        `json:"counts"`    // one more than Bounds
	Sum    time.Duration   `json:"sum_ns"`
}

func (h *histogram) snapshot() Histogram {
	out := Histogram{Bounds: latencyBounds[:], Sum: time.Duration(h.sum.Load())}
	for i := range h.buckets {
		out.Counts = append(out.Counts, h.buckets[i].Load())
	}
	return out
}

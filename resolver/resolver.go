// Package resolver answers DNS queries: tailnet names from a table in memory, everything else from upstream
// servers, with a cache between. It serves UDP and TCP sockets that it is handed; it neither reads
// configuration nor touches the operating system's.
package resolver

import (
	"cmp"
	"context"
	"crypto/rand"
	"crypto/x509"
	"fmt"
	"log/slog"
	mrand "math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// Transport is how a query came.
type Transport uint8

// The transports of queries.
const (
	UDP Transport = iota
	TCP
)

// Config says what a Resolver answers from. All fields may be zero.
type Config struct {
	Table       *Table           // nil: no local names
	Routes      []Route          // split routes; the longest suffix wins
	Base        Base             // for everything else
	Rebind      Rebind           // protection against rebinding
	Self        []netip.AddrPort // our own listeners, never forwarded to
	CacheBytes  int              // bound of the cache, 8 MiB if zero
	MaxInFlight int              // questions that are forwarded at once, 4096 if zero
	TCP         TCPLimits        // of clients' connections
	RootCAs     *x509.CertPool   // for DoT and DoH; nil: the system's
	Logger      *slog.Logger     // nil: nothing is logged
}

// Route sends the names at and below Suffix to Upstreams.
type Route struct {
	Suffix    string
	Upstreams []Upstream
}

// Base is what the network offers: the upstreams for all names, and the domains that only some of them know.
type Base struct {
	Upstreams []Upstream
	Learnt    []Route
	Brief     bool // what Upstreams answer holds for a moment only: it is not cached, nor kept by who asked
}

// Rebind says which addresses an outside name may not have. Loopback and unspecified addresses are always
// refused. Split routes are exempt: who configures one trusts it.
type Rebind struct {
	Refuse  []netip.Prefix // the tailnet's ranges, the service address
	Private bool           // refuse all private ranges too, but for the domains that the network named as its own
	Allow   []string       // suffixes that are exempt
}

const (
	defaultCacheBytes  = 8 << 20
	defaultMaxInFlight = 4096
	// maxStreams bounds the queries under way over TCP, TLS and HTTPS.
	maxStreams = 512
)

// Resolver answers DNS queries. Its methods may be called at the same time.
type Resolver struct {
	log       *slog.Logger
	table     atomic.Pointer[Table]
	guest     guests
	routing   atomic.Pointer[routing]
	servers   servers
	cache     *cache
	flights   flights
	loops     loops
	spare     spareWorkers
	receivers spareReceivers
	streams   chan struct{}
	chases    chan struct{}
	rebind    atomic.Pointer[rebind]
	self      []netip.AddrPort
	rootCAs   *x509.CertPool
	tcp       *tcpServer
	time      clock

	life       context.Context // ends with Run; queries in the background live in it
	end        context.CancelFunc
	background group
	kick       chan struct{}
	idle       atomic.Bool
	keeper     keeper // Run's alone

	setMu       sync.Mutex // serialises changes of routing
	generations [kinds]atomic.Uint32

	ignored, stray, dropped, shed, rebound atomic.Uint64
	totals                                 totals
}

// New returns a Resolver. It does not forward until Run runs.
func New(c Config) (*Resolver, error) {
	r := &Resolver{
		log:     c.Logger,
		self:    slices.Clone(c.Self),
		rootCAs: c.RootCAs,
		streams: make(chan struct{}, maxStreams),
		chases:  make(chan struct{}, maxChases),
		kick:    make(chan struct{}, 1),
	}
	if r.log == nil {
		r.log = slog.New(slog.DiscardHandler)
	}
	var err error
	if err = r.SetRebind(c.Rebind); err != nil {
		return nil, err
	}
	r.time.start()
	r.life, r.end = context.WithCancel(context.Background())
	r.cache = newCache(cmp.Or(c.CacheBytes, defaultCacheBytes))
	r.flights.init(cmp.Or(c.MaxInFlight, defaultMaxInFlight), randomSeed)
	r.loops.init()
	r.spare.make = r.makeWorker
	r.servers.all = make(map[Upstream]*server)
	r.servers.make = r.makeServer
	r.tcp = newTCPServer(c.TCP, func(ctx context.Context, q []byte) ([]byte, error) { return r.Answer(ctx, q, TCP) })
	r.guest.tcp = newTCPServer(c.TCP, func(ctx context.Context, q []byte) ([]byte, error) {
		return r.answer(ctx, q, TCP, &r.guest.table)
	})
	r.idle.Store(true)
	r.SetTable(c.Table)
	r.SetGuestTable(c.Table)
	r.routing.Store(&routing{base: &target{suffix: []byte{0}, kind: kindBase}})
	if err := r.SetRoutes(c.Routes); err != nil {
		return nil, err
	}
	return r, r.SetBase(c.Base)
}

func randomSeed() (seed [32]byte) {
	_, _ = rand.Read(seed[:]) // never fails (crypto/rand)
	return seed
}

// SetTable replaces the local names, whole. Queries under way see the old table or the new one.
func (r *Resolver) SetTable(t *Table) {
	if t == nil {
		t = &Table{}
	}
	r.table.Store(t)
}

// SetRoutes replaces the split routes. If they differ from the ones before, what was cached is forgotten.
func (r *Resolver) SetRoutes(routes []Route) error {
	r.setMu.Lock()
	defer r.setMu.Unlock()
	targets, err := r.targets(routes, kindExplicit)
	if err != nil {
		return err
	}
	old := r.routing.Load()
	next := *old
	next.explicit = newSuffixes(targets)
	r.install(&next)
	if !old.explicit.equal(&next.explicit) {
		r.forgetAll() // names may have moved between routes and base
		r.retarget()
	}
	return nil
}

// forgetAll makes a new generation of all that is cached.
func (r *Resolver) forgetAll() {
	for k := range r.generations {
		r.generations[k].Add(1)
	}
}

// SetBase replaces the upstreams for all other names. If they differ from the ones before, what the old network
// said is forgotten; its own addresses and listeners are left out.
func (r *Resolver) SetBase(b Base) error {
	r.setMu.Lock()
	defer r.setMu.Unlock()
	var domains []Route
	upstreams := slices.Clone(b.Upstreams)
	for _, d := range b.Learnt {
		if strings.Trim(d.Suffix, ".") == "" { // a domain for all names, as some networks have it, is the base
			upstreams = append(upstreams, d.Upstreams...)
			continue
		}
		domains = append(domains, d)
	}
	learnt, err := r.targets(domains, kindLearnt)
	if err != nil {
		return err
	}
	all, err := r.targets([]Route{{Suffix: ".", Upstreams: upstreams}}, kindBase)
	if err != nil {
		return err
	}
	all[0].brief = b.Brief
	old := r.routing.Load()
	next := &routing{explicit: old.explicit, learnt: newSuffixes(learnt), base: all[0]}
	r.install(next)
	if old.base.brief != b.Brief || !slices.Equal(old.base.servers, next.base.servers) || !old.learnt.equal(&next.learnt) {
		r.generations[kindBase].Add(1)
		r.generations[kindLearnt].Add(1)
		r.retarget()
	}
	return nil
}

// install makes rt the routing and closes the servers that it no longer names.
func (r *Resolver) install(rt *routing) {
	r.routing.Store(rt)
	for _, s := range r.servers.keep(rt) {
		if !r.goBackground(s.close) {
			s.close()
		}
	}
	r.loops.suspect()
	r.wake()
}

// makeServer makes the state of one upstream; it opens nothing.
func (r *Resolver) makeServer(u Upstream) *server {
	s := &server{upstream: u}
	if u.kind != upstreamUDP {
		s.exchange = r.newExchanger(u)
		return s
	}
	s.tcp = r.newExchanger(u)
	s.pool.rng = mrand.NewChaCha8(randomSeed())
	s.pool.open = func() (*upstreamSocket, error) {
		c, err := dialPlain(u)
		if err != nil {
			return nil, fmt.Errorf("opening a socket to %s: %w", u, err)
		}
		return &upstreamSocket{udpConn: c, server: s}, nil
	}
	s.pool.start = func(sock *upstreamSocket) bool { return r.goBackground(func() { r.readUpstream(sock) }) }
	return s
}

// Run keeps the resolver going until ctx ends: it repeats questions that were lost, gives up those that nobody
// answers, and looks after upstream servers. When it returns, all that the resolver started has ended.
func (r *Resolver) Run(ctx context.Context) error {
	stop := context.AfterFunc(ctx, r.end)
	defer stop()
	w := r.spare.get()
	timer := time.NewTimer(0)
	defer timer.Stop()
	for ctx.Err() == nil {
		w.now = r.clock()
		w.tick()
		timer.Reset(r.housekeep(w.now))
		select {
		case <-ctx.Done():
		case <-r.kick:
		case <-timer.C:
		}
	}
	r.end()
	for _, s := range r.servers.list() {
		s.close()
	}
	r.background.wait()
	return nil
}

// goBackground runs f in a goroutine that Run waits for. It reports false, and runs nothing, after the end.
func (r *Resolver) goBackground(f func()) bool { return r.background.start(r.life, f) }

func (r *Resolver) deadline(d time.Duration) (context.Context, context.CancelFunc) {
	return context.WithTimeout(r.life, d)
}

// clock is the present in nanoseconds, for TTLs and timers.
func (r *Resolver) clock() int64 { return r.time.now() }

package resolver

import "time"

// The cache keeps responses as octets in memory that it allocates itself and that holds no pointers: nothing for
// the garbage collector to walk, no allocation per entry, and a bound on bytes that is one on memory.
//
// It is split into shards by the key's hash, each with a lock of its own. A shard (ring.go) is a log of entries
// (entry.go) in a ring, the oldest overwritten first, and an index from the key's hash to places in the ring. An
// entry that was used since it was written is moved to the front once when its turn comes, so that a flood of
// names that are asked once does not wash out those that are asked all the time (a CLOCK, or second chance).
// Nothing is ever scanned but for flush.
//
// An entry's body is the response behind its question, with the compression pointers as they were: they count
// from the start of the message, and whoever asks the same question has a question of the same length.
//
// There is no clock inside: now is in nanoseconds, on any scale that does not run backward much.

const (
	maxCacheShards = 16
	// minShard is the least share of a shard, so that a small cache has fewer shards instead.
	minShard = 64 << 10
	// maxShard bounds a shard where offsets in it must fit 32 bits.
	maxShard = 1 << 30
	// maxBody is the longest body that is cached. Longer ones are rare, and each would displace a hundred others.
	maxBody = 8 << 10
)

// Times of the cache, in seconds.
const (
	// minTTL spares upstreams those names that change by the second. What has a TTL of zero is not kept at all.
	minTTL          = 5
	positiveCeiling = 86400
	negativeCeiling = 3600 // RFC 2308, 5: one to three hours
	failureTTL      = 5    // RFC 9520, 3.2: at least 1 s, at most 5 minutes
	staleTTL        = 30   // what stale records say of themselves (RFC 8767, 5)
)

// Times of the cache, in nanoseconds.
const (
	// staleWindow is for how long after its end an answer is still better than none (RFC 8767, 5: one to three days).
	staleWindow = int64(24 * time.Hour)
	// recheckAfter is for how long, once upstreams have failed, a stale answer is given without asking them again.
	recheckAfter = int64(30 * time.Second)
)

// An entry is refreshed ahead of its end if it was used prefetchHits times, lives for prefetchTTL seconds at
// least and has less than one part in prefetchPart of that left.
const (
	prefetchHits = 2
	prefetchTTL  = 10
	prefetchPart = 10
)

// origin says where an answer came from: a source and its generation. When the generation moves on, all that was
// cached of the source is gone at once.
type origin struct {
	source     uint8
	generation uint32
}

// freshness is the state of a cached answer.
type freshness uint8

const (
	cacheMiss  freshness = iota // there is none that may be given
	cacheFresh                  // it may be given
	cacheStale                  // it has expired, but is better than none
)

// cached describes what get found.
type cached struct {
	state    freshness
	held     bool // stale, and an upstream has failed lately: it may be given without asking
	failure  bool // it remembers that upstreams failed
	noRoom   bool // a miss only because dst was too small
	prefetch bool // whoever sees this should ask upstream again; it is told once an entry

	source     uint8
	rcode      uint16
	flags      uint16 // of the response's header
	ede        uint16 // noEDE: none
	answer     uint16 // numbers of records
	authority  uint16
	additional uint16
	hits       uint16
	age        uint32 // seconds
	left       uint32 // seconds until it expires; staleTTL if it has
}

// cache is a bounded cache of responses. Its methods may be called at the same time. The keys are a question's
// name, type, DO and CD.
type cache struct {
	shards []cacheShard
	// Bounds of TTLs, in seconds. Fixed once the cache is used.
	floor, ceiling, negativeCeiling uint32
}

// newCache returns a cache that takes at most bytes of memory, indexes included. It takes it as it fills. One
// that is too small for anything keeps nothing.
func newCache(bytes int) *cache {
	n := maxCacheShards
	for n > 1 && bytes/n < minShard {
		n /= 2
	}
	c := &cache{shards: make([]cacheShard, n), floor: minTTL, ceiling: positiveCeiling, negativeCeiling: negativeCeiling}
	for i := range c.shards {
		c.shards[i].init(min(bytes/n, maxShard))
	}
	return c
}

// keyBits is the part of the key that stands in the query's flags.
func keyBits(q *question) uint8 {
	bits := uint8(0)
	if q.do {
		bits |= 1
	}
	if q.flags&flagCD != 0 {
		bits |= 2
	}
	return bits
}

// locate returns the shard and the rest of the hash of q's key. The top bits choose the shard.
func (c *cache) locate(q *question) (*cacheShard, uint32) {
	hash := q.hash ^ (uint64(q.qtype)<<2|uint64(keyBits(q)))*0x9e3779b97f4a7c15
	return &c.shards[hash>>60%uint64(len(c.shards))], uint32(hash)
}

// get looks for the answer to q of origin o. dst holds a header and the question; the answer's records are
// appended to it, their TTLs counted down, if cap(dst) has room for them. It counts as a use of the entry, and as
// a hit if the entry is fresh or held.
func (c *cache) get(q *question, o origin, now int64, dst []byte) ([]byte, cached) {
	s, hash := c.locate(q)
	s.mu.Lock()
	defer s.mu.Unlock()
	e := s.findLocked(hash, q)
	hit := c.judge(e, o, now)
	if hit.state != cacheMiss && len(e.body()) > cap(dst)-len(dst) {
		hit = cached{noRoom: true}
	}
	if hit.state == cacheFresh || hit.held {
		s.hits++
		hit.prefetch = e.touch(hit)
	} else {
		s.misses++
	}
	if hit.state == cacheMiss {
		return dst, hit
	}
	return e.appendBody(dst, hit), hit
}

// rescue is get for when upstreams are slow or have failed: a stale answer is as good as a fresh one, and
// nothing is counted.
func (c *cache) rescue(q *question, o origin, now int64, dst []byte) ([]byte, cached) {
	s, hash := c.locate(q)
	s.mu.Lock()
	defer s.mu.Unlock()
	e := s.findLocked(hash, q)
	hit := c.judge(e, o, now)
	if hit.state == cacheMiss {
		return dst, hit
	}
	if len(e.body()) > cap(dst)-len(dst) {
		return dst, cached{noRoom: true}
	}
	return e.appendBody(dst, hit), hit
}

// peek describes what get would find, and leaves no trace.
func (c *cache) peek(q *question, o origin, now int64) cached {
	s, hash := c.locate(q)
	s.mu.Lock()
	defer s.mu.Unlock()
	return c.judge(s.findLocked(hash, q), o, now)
}

// hold notes that upstreams failed to refresh the stale answer to q: for recheckAfter it is held (RFC 8767, 5, the
// failure recheck timer). It reports whether there is one.
func (c *cache) hold(q *question, o origin, now int64) bool {
	s, hash := c.locate(q)
	s.mu.Lock()
	defer s.mu.Unlock()
	e := s.findLocked(hash, q)
	if c.judge(e, o, now).state != cacheStale {
		return false
	}
	e.setHeld(now + recheckAfter)
	return true
}

// judge describes the entry e, which may be nil.
func (c *cache) judge(e entry, o origin, now int64) cached {
	if e == nil || e.origin() != o {
		return cached{}
	}
	ttl := e.ttl()
	age := max(now-e.stored(), 0)
	over := age - int64(ttl)*int64(time.Second)
	hit := cached{state: cacheFresh, failure: e.is(markFailure), source: o.source, rcode: e.rcode(), flags: e.flags(), ede: e.ede(), hits: e.hits()}
	hit.answer, hit.authority, hit.additional = e.counts()
	hit.age = uint32(age / int64(time.Second))
	switch {
	case over < 0:
		hit.left = ttl - hit.age
	case hit.failure || over >= staleWindow:
		return cached{}
	default:
		hit.state, hit.left = cacheStale, staleTTL
		hit.held = now < e.held()
	}
	return hit
}

// put keeps the response in msg, which r has parsed and stripped of OPT, as the answer to q from origin o. It
// reports false, and leaves what there was, if the response may not be kept or is too big.
func (c *cache) put(q *question, o origin, now int64, r *response, msg []byte) bool {
	ttl, ceiling := c.lifetime(r)
	body := msg[r.end:r.size]
	if ttl == 0 || len(body) > maxBody || r.end != headerSize+q.nameLen+4 {
		return false
	}
	s, hash := c.locate(q)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.dropLocked(hash, q)
	e := s.addLocked(hash, q, now, r.nttl, len(body))
	if e == nil {
		return false
	}
	e.setOrigin(o)
	e.setTimes(now, ttl)
	e.setReply(r.rcode, r.flags, r.ede)
	e.setCounts(r.answer, r.authority, r.additional)
	e.setBody(body, r.ttls[:r.nttl], r.end)
	e.clampTTLs(min(c.floor, ceiling), ceiling)
	return true
}

// lifetime is for how many seconds a response is kept, and the most that one of its TTLs may say.
func (c *cache) lifetime(r *response) (ttl, ceiling uint32) {
	if r.ttl == 0 {
		return 0, 0
	}
	if r.got == gotAnswer {
		return min(max(r.ttl, c.floor), c.ceiling), c.ceiling
	}
	// The SOA record's own TTL may be longer than the time for which it denies something (RFC 2308, 3 and 5).
	ttl = min(max(r.ttl, c.floor), c.negativeCeiling)
	return ttl, ttl
}

// fail notes that upstreams failed to answer q (RFC 9520), so that for failureTTL nobody asks them again. It
// reports false where it is not noted because there is something better, if only a stale answer.
func (c *cache) fail(q *question, o origin, now int64, rcode, ede uint16) bool {
	s, hash := c.locate(q)
	s.mu.Lock()
	defer s.mu.Unlock()
	if old := c.judge(s.findLocked(hash, q), o, now); old.state != cacheMiss && !old.failure {
		return false
	}
	s.dropLocked(hash, q)
	e := s.addLocked(hash, q, now, 0, 0)
	if e == nil {
		return false
	}
	e.setOrigin(o)
	e.setTimes(now, failureTTL)
	e.setReply(rcode, 0, ede)
	e.set(markFailure)
	return true
}

// flush forgets all answers for names at or below name, a lower-cased wire name, whatever their type, and returns
// their number. It looks at every entry, shard by shard.
func (c *cache) flush(name []byte) int {
	n := 0
	for i := range c.shards {
		n += c.shards[i].flush(name)
	}
	return n
}

// flushAll forgets everything, gives the memory back and returns the number of entries.
func (c *cache) flushAll() int {
	n := 0
	for i := range c.shards {
		n += c.shards[i].reset()
	}
	return n
}

// stats sums up the shards. Bytes is the memory taken; it never shrinks but by flushAll.
func (c *cache) stats() CacheStats {
	var sum CacheStats
	for i := range c.shards {
		c.shards[i].addTo(&sum)
	}
	return sum
}

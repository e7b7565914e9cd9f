package resolver

import (
	"encoding/binary"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"time"
)

// A flight is one question that upstreams were asked, with everybody who waits for its answer. There is no
// goroutine, context or timer to a flight: it is a slot in a table, found again by the answer's question, and
// one wheel of buckets says which slots are due. A question that comes back to us through a forwarding loop
// joins its own flight, so a loop ends where it began.

const (
	flightShards = 8
	flightChunk  = 64  // slots, and waiters, are allocated so many at a time
	flightHeads  = 512 // hash chains of a shard
	wheelSize    = 256
	// tickShift makes a tick of nanoseconds: 2^24 ns, 16.8 ms; the wheel spans 4.3 s, longer than a flight.
	tickShift = 24

	maxAttempts = 6
	// maxWaiters bounds those that wait for one answer.
	maxWaiters = 256
)

// Times of a flight, in nanoseconds since its start.
const (
	// staleAfter is when a stale answer is given in place of none: RFC 8767, 5, before a client's own 2 s.
	staleAfter = 1800 * int64(time.Millisecond)
	// giveUpAfter is when a clear error is given: before glibc's 5 s and most browsers'.
	giveUpAfter = 3800 * int64(time.Millisecond)
)

// attempt is one question to one server.
type attempt struct {
	server *server
	sock   *upstreamSocket // nil: over a stream
	sent   int64
	id     uint16
	edns   bool
	cased  bool // the question's case was drawn and must come back
	open   bool // unanswered
	missed bool // counted against the server
}

// slot is a flight.
type slot struct {
	generation uint32 // tells a slot's use from the ones before it
	chain      int32  // next with the same hash head; also the free list
	before     int32  // in the wheel's bucket
	after      int32
	bucket     int32 // -1: not in the wheel
	tick       int64 // when it is due

	hash     uint64
	lower    [maxName]byte
	nameLen  uint8
	qtype    uint16
	do, cd   bool
	caseBits caseBits // the capitals of the question as it is sent

	target   *target
	origin   origin // of the answer, as it was at the start
	started  int64
	next     int64  // when the next attempt is due
	round    uint8  // how often all servers were gone through
	tried    uint32 // servers asked in this round
	failed   uint32 // servers that answered with an error, or could not be reached
	offended uint32 // servers that answered so to an OPT record
	rcode    uint16 // of the last error; 0: none yet
	ede      uint16 // of the last error that had one; noEDE: none
	staleOut bool   // a stale answer was looked for
	attempts [maxAttempts]attempt
	n        int

	waiters int32 // the first; -1: none
	waiting int
}

// waiter is somebody who waits for a flight's answer.
type waiter struct {
	next int32
	asker
	caseBits caseBits
	srv      *udpServer
	peer     peer
	reply    chan<- []byte // instead of srv, with room for one
}

// ref names a use of a slot.
type ref struct {
	shard      *flightShard
	slot       int32
	generation uint32
}

// flights is the table of all flights.
type flights struct {
	shards [flightShards]flightShard
	limit  int64
	active atomic.Int64
}

type flightShard struct {
	mu          sync.Mutex
	slots       []*[flightChunk]slot
	waiters     []*[flightChunk]waiter
	freeSlot    int32
	freeWaiter  int32
	slotChunks  int
	waitChunks  int
	heads       [flightHeads]int32
	wheel       [wheelSize]int32
	tick        int64 // the last one that was worked off
	outstanding int
	rng         *rand.ChaCha8
}

func (f *flights) init(limit int, seed func() [32]byte) {
	f.limit = int64(limit)
	chunks := (limit + flightChunk - 1) / flightChunk
	for i := range f.shards {
		sh := &f.shards[i]
		sh.slots = make([]*[flightChunk]slot, chunks)
		sh.waiters = make([]*[flightChunk]waiter, 2*chunks)
		sh.freeSlot, sh.freeWaiter = -1, -1
		for j := range sh.heads {
			sh.heads[j] = -1
		}
		for j := range sh.wheel {
			sh.wheel[j] = -1
		}
		sh.rng = rand.NewChaCha8(seed())
	}
}

// flightHash is the key under which a question's flights are found. DO and CD are no part of it, since an
// answer does not tell them.
func flightHash(q *question) uint64 { return q.hash ^ uint64(q.qtype)*0x9e3779b97f4a7c15 }

func (f *flights) shard(hash uint64) *flightShard { return &f.shards[hash>>61%flightShards] }

func (sh *flightShard) slot(i int32) *slot { return &sh.slots[i/flightChunk][i%flightChunk] }

func (sh *flightShard) waiter(i int32) *waiter { return &sh.waiters[i/flightChunk][i%flightChunk] }

// asks reports whether the slot is a flight of q's name and type.
func (s *slot) asks(hash uint64, q *question) bool {
	return s.hash == hash && s.qtype == q.qtype && string(s.lower[:s.nameLen]) == string(q.name())
}

// findLocked returns the flight of q with the same DO and CD whose answer will be of origin o, or -1. A flight that began
// before the network changed is left alone: nobody may answer it any more.
func (sh *flightShard) findLocked(hash uint64, q *question, o origin) int32 {
	cd := q.flags&flagCD != 0
	for i := sh.heads[hash%flightHeads]; i >= 0; i = sh.slot(i).chain {
		if s := sh.slot(i); s.do == q.do && s.cd == cd && s.origin == o && s.asks(hash, q) {
			return i
		}
	}
	return -1
}

// matchLocked returns the flight and the attempt that a datagram with q's question, received at sock, answers.
func (sh *flightShard) matchLocked(hash uint64, q *question, sock *upstreamSocket) (int32, *attempt) {
	for i := sh.heads[hash%flightHeads]; i >= 0; i = sh.slot(i).chain {
		s := sh.slot(i)
		if !s.asks(hash, q) {
			continue
		}
		if a := s.attempt(sock, q.id); a != nil {
			return i, a
		}
	}
	return -1, nil
}

func (s *slot) attempt(sock *upstreamSocket, id uint16) *attempt {
	for j := range s.n {
		if a := &s.attempts[j]; a.open && a.sock == sock && a.id == id {
			return a
		}
	}
	return nil
}

// beginLocked makes a flight of q to t, of origin o, or returns -1 at the bound.
func (f *flights) beginLocked(sh *flightShard, q *question, t *target, o origin, now int64) int32 {
	hash := flightHash(q)
	if f.active.Add(1) > f.limit {
		f.active.Add(-1)
		return -1
	}
	i := sh.freeSlot
	if i < 0 {
		if i = sh.growSlotsLocked(); i < 0 {
			f.active.Add(-1)
			return -1
		}
	}
	s := sh.slot(i)
	sh.freeSlot = s.chain
	*s = slot{generation: s.generation + 1, bucket: -1, waiters: -1, ede: noEDE, hash: hash, nameLen: uint8(q.nameLen), qtype: q.qtype,
		do: q.do, cd: q.flags&flagCD != 0, target: t, origin: o, started: now}
	copy(s.lower[:], q.name())
	sh.drawCaseLocked(s)
	head := &sh.heads[hash%flightHeads]
	s.chain = *head
	*head = i
	sh.outstanding++
	return i
}

// drawCaseLocked draws the case of the question's letters (draft-vixie-dnsext-dns0x20).
func (sh *flightShard) drawCaseLocked(s *slot) {
	for off := 0; off < int(s.nameLen); off += 64 {
		binary.LittleEndian.PutUint64(s.caseBits[off/8:], sh.rng.Uint64())
	}
}

func (sh *flightShard) growSlotsLocked() int32 {
	if sh.slotChunks == len(sh.slots) {
		return -1
	}
	chunk := new([flightChunk]slot)
	first := int32(sh.slotChunks * flightChunk)
	for i := range chunk {
		chunk[i].chain = first + int32(i) + 1
		chunk[i].bucket = -1
	}
	chunk[flightChunk-1].chain = -1
	sh.slots[sh.slotChunks] = chunk
	sh.slotChunks++
	sh.freeSlot = first
	return first
}

// endLocked takes the flight out of the table and returns its waiters.
func (f *flights) endLocked(sh *flightShard, i int32) int32 {
	s := sh.slot(i)
	sh.unscheduleLocked(i)
	for p := &sh.heads[s.hash%flightHeads]; *p >= 0; p = &sh.slot(*p).chain {
		if *p == i {
			*p = s.chain
			break
		}
	}
	waiters := s.waiters
	s.waiters, s.waiting = -1, 0
	s.generation++
	s.target = nil
	clear(s.attempts[:s.n]) // nothing may keep a closed socket alive
	s.chain = sh.freeSlot
	sh.freeSlot = i
	sh.outstanding--
	f.active.Add(-1)
	return waiters
}

// joinLocked adds a copy of w to the flight's waiters. It reports false at a bound.
func (sh *flightShard) joinLocked(s *slot, w *waiter) bool {
	if s.waiting == maxWaiters {
		return false
	}
	i := sh.freeWaiter
	if i < 0 {
		if i = sh.growWaitersLocked(); i < 0 {
			return false
		}
	}
	dst := sh.waiter(i)
	sh.freeWaiter = dst.next
	*dst = *w
	dst.next = s.waiters
	s.waiters = i
	s.waiting++
	return true
}

func (sh *flightShard) growWaitersLocked() int32 {
	if sh.waitChunks == len(sh.waiters) {
		return -1
	}
	chunk := new([flightChunk]waiter)
	first := int32(sh.waitChunks * flightChunk)
	for i := range chunk {
		chunk[i].next = first + int32(i) + 1
	}
	chunk[flightChunk-1].next = -1
	sh.waiters[sh.waitChunks] = chunk
	sh.waitChunks++
	sh.freeWaiter = first
	return first
}

// release gives a chain of waiters back.
func (sh *flightShard) release(first int32) {
	if first < 0 {
		return
	}
	last := first
	for {
		w := sh.waiter(last)
		w.reply, w.srv = nil, nil
		if w.next < 0 {
			break
		}
		last = w.next
	}
	sh.mu.Lock()
	sh.waiter(last).next = sh.freeWaiter
	sh.freeWaiter = first
	sh.mu.Unlock()
}

// scheduleLocked puts the slot into the bucket of the time due.
func (sh *flightShard) scheduleLocked(i int32, due int64) {
	sh.unscheduleLocked(i)
	tick := max(due>>tickShift+1, sh.tick+1)
	s := sh.slot(i)
	s.tick, s.bucket = tick, int32(tick%wheelSize)
	head := &sh.wheel[s.bucket]
	s.before, s.after = -1, *head
	if *head >= 0 {
		sh.slot(*head).before = i
	}
	*head = i
}

func (sh *flightShard) unscheduleLocked(i int32) {
	s := sh.slot(i)
	if s.bucket < 0 {
		return
	}
	if s.before >= 0 {
		sh.slot(s.before).after = s.after
	} else {
		sh.wheel[s.bucket] = s.after
	}
	if s.after >= 0 {
		sh.slot(s.after).before = s.before
	}
	s.bucket = -1
}

// dueLocked returns a slot that is due at now, out of the wheel, or -1.
func (sh *flightShard) dueLocked(now int64) int32 {
	limit := now >> tickShift
	// After a long sleep one turn of the wheel finds all there is.
	for sh.tick = max(sh.tick, limit-wheelSize); ; sh.tick++ {
		for i := sh.wheel[sh.tick%wheelSize]; i >= 0; i = sh.slot(i).after {
			if sh.slot(i).tick <= limit {
				sh.unscheduleLocked(i)
				return i
			}
		}
		if sh.tick >= limit {
			return -1
		}
	}
}

package resolver

import "sync"

// segmentSize is the piece in which a shard takes memory. The longest entry fits twice.
const segmentSize = 16 << 10

const (
	// minEntry is the size of the smallest entry, one without a body.
	minEntry = (entryHeader + 1 + entryAlign - 1) &^ (entryAlign - 1)
	// slotSize is the size of a slot.
	slotSize = 8
	// segmentCost is what a segment costs: itself, its place in segments and in ends, rounded up.
	segmentCost = segmentSize + 16
	// shardCost is what a shard costs without segments and slots, rounded up.
	shardCost = 1 << 10
	// firstSlots is where an index begins.
	firstSlots = 64
	// maxMoves bounds the second chances that one new entry gives to old ones.
	maxMoves = 8
)

// slot of the index: where in the ring an entry is, and the part of its hash that places it in the index, so that
// neither a search nor a deletion has to look at entries that it does not want.
type cacheSlot struct {
	hash uint32
	at   uint32 // position in the ring plus one; 0: free
}

// cacheShard is a log of entries in a ring of segments, and an index to it. No entry crosses from one segment to
// the next. The ring grows at its end, as long as the oldest entry is still good, up to maxSegments.
//
// In the ring, entries lie from the tail, the oldest, to the head, where the next one goes; the head wraps around
// and then pushes the tail along.
type cacheShard struct {
	maxSlots, maxSegments int // fixed

	mu       sync.Mutex
	segments []*[segmentSize]byte
	ends     []uint32 // behind the last entry of each segment, once the head has left it
	head     place
	tail     place
	entries  int         // in the ring, dead ones included
	slots    []cacheSlot // open addressing with linear probing
	live     int         // slots in use

	hits, misses, evictions uint64
}

// place is a place in the ring.
type place struct{ segment, off uint32 }

func (p place) position() uint32 { return p.segment*segmentSize + p.off }

// init sets the bounds of a shard that may take so many bytes. The index gets a seventh: so many slots that one in
// seven stays free even if the smallest of entries fill all the rest.
func (s *cacheShard) init(bytes int) {
	s.maxSlots = bytes / minEntry
	if room := bytes - s.maxSlots*slotSize - shardCost; room > 0 {
		s.maxSegments = room / segmentCost
	}
}

func (s *cacheShard) entry(position uint32) entry {
	segment, off := s.segments[position/segmentSize], position%segmentSize
	e := entry(segment[off:])
	return e[:e.u16(atSize)]
}

// home is the slot where the search for a hash begins.
func (s *cacheShard) home(hash uint32) int { return int(uint64(hash) * uint64(len(s.slots)) >> 32) }

// next is the slot after i.
func (s *cacheShard) next(i int) int {
	if i++; i < len(s.slots) {
		return i
	}
	return 0
}

// searchLocked returns the slot of q's entry, or -1.
func (s *cacheShard) searchLocked(hash uint32, q *question) int {
	if s.live == 0 {
		return -1
	}
	for i := s.home(hash); s.slots[i].at != 0; i = s.next(i) {
		if s.slots[i].hash == hash && s.entry(s.slots[i].at-1).matches(q) {
			return i
		}
	}
	return -1
}

// findLocked returns q's entry, or nil.
func (s *cacheShard) findLocked(hash uint32, q *question) entry {
	i := s.searchLocked(hash, q)
	if i < 0 {
		return nil
	}
	return s.entry(s.slots[i].at - 1)
}

// dropLocked forgets q's entry if there is one. Its octets stay in the ring until their turn comes.
func (s *cacheShard) dropLocked(hash uint32, q *question) {
	if i := s.searchLocked(hash, q); i >= 0 {
		s.entry(s.slots[i].at - 1).set(markDead)
		s.freeLocked(i)
	}
}

// slotOfLocked returns the slot of the live entry at a position.
func (s *cacheShard) slotOfLocked(hash, position uint32) int {
	i := s.home(hash)
	for s.slots[i].at != position+1 {
		i = s.next(i)
	}
	return i
}

// freeLocked frees slot i. Those behind it move up as far as their homes allow, so that no search ends at the gap
// (Knuth, vol. 3, 6.4, algorithm R).
func (s *cacheShard) freeLocked(i int) {
	s.live--
	for j := s.next(i); s.slots[j].at != 0; j = s.next(j) {
		home := s.home(s.slots[j].hash)
		// Slot j may move to i unless its home lies behind i, up to j, round the end.
		if i <= j && i < home && home <= j || i > j && (i < home || home <= j) {
			continue
		}
		s.slots[i] = s.slots[j]
		i = j
	}
	s.slots[i] = cacheSlot{}
}

// indexLocked adds an entry to the index.
func (s *cacheShard) indexLocked(slot cacheSlot) {
	i := s.home(slot.hash)
	for s.slots[i].at != 0 {
		i = s.next(i)
	}
	s.slots[i] = slot
	s.live++
}

// growIndexLocked makes room in the index for one entry more.
func (s *cacheShard) growIndexLocked() {
	if n := len(s.slots); n >= s.maxSlots || s.live < n*3/4 {
		return
	}
	old := s.slots
	s.slots = make([]cacheSlot, min(max(2*len(old), firstSlots), s.maxSlots))
	s.live = 0
	for _, slot := range old {
		if slot.at != 0 {
			s.indexLocked(slot)
		}
	}
}

// addLocked adds an empty entry for q, which must not have one, and returns it; nil if the cache is too small.
func (s *cacheShard) addLocked(hash uint32, q *question, now int64, ttls, body int) entry {
	if s.maxSegments == 0 {
		return nil
	}
	size := uint32(entryLen(q.nameLen, ttls, body))
	at := s.roomLocked(size, now)
	e := entry(s.segments[at.segment][at.off:][:size])
	e.begin(hash, q, ttls, body)
	s.growIndexLocked()
	s.indexLocked(cacheSlot{hash, at.position() + 1})
	return e
}

// roomLocked takes size octets at the head, for which old entries may have to go.
func (s *cacheShard) roomLocked(size uint32, now int64) place {
	if len(s.segments) == 0 {
		s.growRingLocked()
	}
	for moves := maxMoves; ; {
		blocked := s.blockedLocked()
		limit := uint32(segmentSize)
		if blocked {
			limit = s.tail.off
		}
		if s.head.off+size <= limit {
			return s.takeLocked(size)
		}
		if !blocked {
			s.turnLocked(now)
		} else if s.retireLocked(moves > 0, now) {
			moves--
		}
	}
}

// blockedLocked reports whether the tail lies before the head in the same segment.
func (s *cacheShard) blockedLocked() bool {
	return s.entries > 0 && s.tail.segment == s.head.segment && s.tail.off >= s.head.off
}

// takeLocked moves the head on by size octets and returns where it was.
func (s *cacheShard) takeLocked(size uint32) place {
	at := s.head
	if s.entries == 0 {
		s.tail = at
	}
	s.head.off += size
	s.entries++
	return at
}

// turnLocked moves the head from the end of its segment to the next one. At the end of the ring that is a new one,
// unless the ring is as long as it may be or the oldest entry is of no use any more.
func (s *cacheShard) turnLocked(now int64) {
	s.ends[s.head.segment] = s.head.off
	s.head = place{segment: s.head.segment + 1}
	if int(s.head.segment) < len(s.segments) {
		return
	}
	if len(s.segments) < s.maxSegments && s.entries > 0 && s.entry(s.tail.position()).useful(now) {
		s.growRingLocked()
		return
	}
	s.head.segment = 0
}

func (s *cacheShard) growRingLocked() {
	if s.segments == nil {
		s.segments = make([]*[segmentSize]byte, 0, s.maxSegments)
		s.ends = make([]uint32, 0, s.maxSegments)
	}
	s.segments = append(s.segments, new([segmentSize]byte))
	s.ends = append(s.ends, 0)
}

// retireLocked takes the oldest entry out of the ring, which must be blocked. One that is fresh and was used is
// moved to the head instead, if move is set, and has to be used again to be moved again. It reports whether it
// was moved; then no room was made.
func (s *cacheShard) retireLocked(move bool, now int64) bool {
	old := s.tail
	e := s.entry(old.position())
	s.tail.off += uint32(len(e))
	if s.tail.off == s.ends[s.tail.segment] {
		s.tail = place{segment: (s.tail.segment + 1) % uint32(len(s.segments))}
	}
	s.entries--
	if e.is(markDead) {
		return false
	}
	i := s.slotOfLocked(e.hash(), old.position())
	if !move || !e.is(markUsed) || !e.fresh(now) {
		if e.useful(now) {
			s.evictions++
		}
		s.freeLocked(i)
		return false
	}
	e.unset(markUsed)
	// The head is behind the entry in the same segment: there is room up to its end, and copy minds the overlap.
	at := s.takeLocked(uint32(len(e)))
	copy(s.segments[at.segment][at.off:], e)
	s.slots[i].at = at.position() + 1
	return true
}

// flush forgets the entries at or below name and returns their number.
func (s *cacheShard) flush(name []byte) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	n := 0
	for i := 0; i < len(s.slots); {
		if at := s.slots[i].at; at != 0 {
			if e := s.entry(at - 1); hasSuffix(e.name(), name) {
				e.set(markDead)
				s.freeLocked(i) // may bring another entry here
				n++
				continue
			}
		}
		i++
	}
	return n
}

// reset forgets everything and returns the number of entries.
func (s *cacheShard) reset() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	n := s.live
	s.segments, s.ends, s.slots = nil, nil, nil
	s.head, s.tail, s.entries, s.live = place{}, place{}, 0, 0
	return n
}

// addTo adds the shard's figures to sum.
func (s *cacheShard) addTo(sum *CacheStats) {
	s.mu.Lock()
	defer s.mu.Unlock()
	sum.Entries += s.live
	sum.Bytes += len(s.segments)*segmentCost + len(s.slots)*slotSize + shardCost
	sum.Hits += s.hits
	sum.Misses += s.misses
	sum.Evictions += s.evictions
}

package resolver

import (
	"encoding/binary"
	"math"
	"time"
)

// entry is a cached answer as it stands in the ring: a header of entryHeader octets, the name, the offsets of the
// TTLs in the body, two octets each, and the body.
type entry []byte

// Where an entry's fields are; the comments give their sizes in octets.
const (
	atSize       = 0  // 2: all of it, a multiple of entryAlign
	atMarks      = 2  // 1
	atSource     = 3  // 1
	atGeneration = 4  // 4
	atHash       = 8  // 4
	atTTL        = 12 // 4: seconds
	atStored     = 16 // 8: nanoseconds
	atHeld       = 24 // 8: nanoseconds
	atHits       = 32 // 2
	atRcode      = 34 // 2
	atFlags      = 36 // 2
	atEDE        = 38 // 2
	atCounts     = 40 // 6
	atType       = 46 // 2
	atBits       = 48 // 1
	atNameLen    = 49 // 1
	atTTLs       = 50 // 2: their number
	atBodyLen    = 52 // 2
	entryHeader  = 54

	entryAlign = 8
)

// Marks of an entry.
const (
	markDead       = 1 << iota // no longer in the index
	markUsed                   // since it was written or moved
	markFailure                // see cache.fail
	markPrefetched             // somebody was told to refresh it
)

// entryLen is the size of an entry with so long a name and body.
func entryLen(name, ttls, body int) int {
	return (entryHeader + name + 2*ttls + body + entryAlign - 1) &^ (entryAlign - 1)
}

func (e entry) u16(at int) uint16      { return binary.LittleEndian.Uint16(e[at:]) }
func (e entry) u32(at int) uint32      { return binary.LittleEndian.Uint32(e[at:]) }
func (e entry) u64(at int) uint64      { return binary.LittleEndian.Uint64(e[at:]) }
func (e entry) put16(at int, v uint16) { binary.LittleEndian.PutUint16(e[at:], v) }
func (e entry) put32(at int, v uint32) { binary.LittleEndian.PutUint32(e[at:], v) }
func (e entry) put64(at int, v uint64) { binary.LittleEndian.PutUint64(e[at:], v) }
func (e entry) is(mark uint8) bool     { return e[atMarks]&mark != 0 }
func (e entry) set(mark uint8)         { e[atMarks] |= mark }
func (e entry) unset(mark uint8)       { e[atMarks] &^= mark }
func (e entry) hash() uint32           { return e.u32(atHash) }
func (e entry) origin() origin         { return origin{e[atSource], e.u32(atGeneration)} }
func (e entry) ttl() uint32            { return e.u32(atTTL) }
func (e entry) stored() int64          { return int64(e.u64(atStored)) }
func (e entry) held() int64            { return int64(e.u64(atHeld)) }
func (e entry) setHeld(until int64)    { e.put64(atHeld, uint64(until)) }
func (e entry) hits() uint16           { return e.u16(atHits) }
func (e entry) rcode() uint16          { return e.u16(atRcode) }
func (e entry) flags() uint16          { return e.u16(atFlags) }
func (e entry) ede() uint16            { return e.u16(atEDE) }
func (e entry) fresh(now int64) bool   { return now < e.stored()+int64(e.ttl())*int64(time.Second) }
func (e entry) name() []byte           { return e[entryHeader : entryHeader+int(e[atNameLen])] }
func (e entry) matches(q *question) bool {
	return e.u16(atType) == q.qtype && e[atBits] == keyBits(q) && string(e.name()) == string(q.name())
}

// useful reports whether the entry might still be given out, if only as a stale answer.
func (e entry) useful(now int64) bool {
	return !e.is(markDead) && (e.fresh(now) || !e.is(markFailure) && e.fresh(now-staleWindow))
}

// begin makes e the entry of q, empty as yet.
func (e entry) begin(hash uint32, q *question, ttls, body int) {
	clear(e[:entryHeader])
	e.put16(atSize, uint16(len(e)))
	e.put32(atHash, hash)
	e.put16(atType, q.qtype)
	e[atBits] = keyBits(q)
	e[atNameLen] = uint8(q.nameLen)
	e.put16(atTTLs, uint16(ttls))
	e.put16(atBodyLen, uint16(body))
	copy(e[entryHeader:], q.name())
}

func (e entry) setOrigin(o origin) {
	e[atSource] = o.source
	e.put32(atGeneration, o.generation)
}

func (e entry) setTimes(stored int64, ttl uint32) {
	e.put64(atStored, uint64(stored))
	e.put32(atTTL, ttl)
}

func (e entry) setReply(rcode, flags, ede uint16) {
	e.put16(atRcode, rcode)
	e.put16(atFlags, flags)
	e.put16(atEDE, ede)
}

func (e entry) counts() (answer, authority, additional uint16) {
	return e.u16(atCounts), e.u16(atCounts + 2), e.u16(atCounts + 4)
}

func (e entry) setCounts(answer, authority, additional uint16) {
	e.put16(atCounts, answer)
	e.put16(atCounts+2, authority)
	e.put16(atCounts+4, additional)
}

// places holds the offsets of the TTLs in the body.
func (e entry) places() []byte {
	at := entryHeader + int(e[atNameLen])
	return e[at : at+2*int(e.u16(atTTLs))]
}

func (e entry) body() []byte {
	at := entryHeader + int(e[atNameLen]) + 2*int(e.u16(atTTLs))
	return e[at : at+int(e.u16(atBodyLen))]
}

// setBody copies the body; ttls are offsets in a message whose body begins at start.
func (e entry) setBody(body []byte, ttls []uint16, start int) {
	places := e.places()
	for i, at := range ttls {
		binary.LittleEndian.PutUint16(places[2*i:], at-uint16(start))
	}
	copy(e.body(), body)
}

// clampTTLs brings the TTLs in the body between floor and ceiling.
func (e entry) clampTTLs(floor, ceiling uint32) {
	body := e.body()
	for places := e.places(); len(places) >= 2; places = places[2:] {
		ttl := body[binary.LittleEndian.Uint16(places):]
		binary.BigEndian.PutUint32(ttl, max(min(binary.BigEndian.Uint32(ttl), ceiling), floor))
	}
}

// appendBody appends the body with the TTLs that hit gives them.
func (e entry) appendBody(dst []byte, hit cached) []byte {
	start := len(dst)
	dst = append(dst, e.body()...)
	body := dst[start:]
	for places := e.places(); len(places) >= 2; places = places[2:] {
		ttl := body[binary.LittleEndian.Uint16(places):]
		left := uint32(staleTTL)
		if hit.state == cacheFresh {
			left = binary.BigEndian.Uint32(ttl)
			left -= min(left, hit.age)
		}
		binary.BigEndian.PutUint32(ttl, left)
	}
	return dst
}

// touch notes a use of the entry, which hit describes, and reports whether it should be refreshed now.
func (e entry) touch(hit cached) bool {
	e.set(markUsed)
	hits := e.hits()
	if hits < math.MaxUint16 {
		hits++
		e.put16(atHits, hits)
	}
	ttl := e.ttl()
	if hit.state != cacheFresh || hits < prefetchHits || ttl < prefetchTTL || hit.left*prefetchPart >= ttl || e.is(markPrefetched) {
		return false
	}
	e.set(markPrefetched)
	return true
}

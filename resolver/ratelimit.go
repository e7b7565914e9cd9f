package resolver

import (
	"encoding/binary"
	"net/netip"
	"sync"
	"time"
)

// limiter bounds the answers to networks that have not shown their addresses to be their own, so that nobody can have
// us send to a third party more than a little. Its memory is fixed: limiterShards x limiterSets x limiterWays buckets of
// 16 octets, half a MiB.
//
// A bucket is the time at which it will be full again (the generic cell rate algorithm), so it takes one number. Where
// no bucket is free, the fullest of a set goes to the new network as it is: a flood from many networks makes others'
// answers truncated, so that they ask over TCP; it does not get itself more of them.
type limiter struct {
	interval int64 // between answers, in nanoseconds
	burst    int64 // how far ahead a bucket may be drawn, in nanoseconds
	shards   [limiterShards]limiterShard
}

const (
	limiterShards = 32
	limiterSets   = 256
	limiterWays   = 4

	defaultRate = 50 // answers a second
	maxRate     = 1_000_000
	// burstSeconds is how many seconds' worth may come at once: a resolver that starts cold asks for many names.
	burstSeconds = 2
)

type limiterShard struct {
	mu   sync.Mutex
	sets [limiterSets][limiterWays]bucket
}

// bucket is that of one network. The zero bucket is full and no network's.
type bucket struct {
	network uint64
	full    int64 // when
}

func newLimiter(rate int) *limiter {
	interval := int64(time.Second) / int64(rate)
	return &limiter{interval: interval, burst: burstSeconds * int64(rate) * interval}
}

// networkOf is the /24 or /56 that an address lies in, as one number that is never zero.
func networkOf(a netip.Addr) uint64 {
	if a.Is4() {
		b := a.As4()
		return uint64(binary.BigEndian.Uint32(b[:]))<<8&^0xffff | 1
	}
	b := a.As16()
	return binary.BigEndian.Uint64(b[:])&^0xff | 2
}

// allow takes one answer to an address out of its network's bucket, and reports whether there was one.
func (l *limiter) allow(to netip.Addr, now int64) bool {
	network := networkOf(to)
	var key [8]byte
	binary.LittleEndian.PutUint64(key[:], network)
	hash := hashName(key[:])
	shard := &l.shards[hash%limiterShards]
	set := &shard.sets[hash/limiterShards%limiterSets]
	shard.mu.Lock()
	defer shard.mu.Unlock()
	b := &set[0]
	for i := range set {
		if set[i].network == network {
			b = &set[i]
			break
		}
		if set[i].full < b.full {
			b = &set[i]
		}
	}
	b.network = network
	full := max(b.full, now) + l.interval
	if full > now+l.burst {
		return false
	}
	b.full = full
	return true
}

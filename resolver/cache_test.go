package resolver

import (
	"fmt"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/miekg/dns"
)

// cacheBench is a cache with a clock that stands still.
type cacheBench struct {
	*cache
	t    testing.TB
	now  int64
	from origin
}

func newCacheBench(t testing.TB, bytes int) *cacheBench {
	return &cacheBench{cache: newCache(bytes), t: t, now: clockBase}
}

func (b *cacheBench) sleep(d time.Duration) { b.now += int64(d) }

// asking is a parsed question.
func asking(t testing.TB, name string, qtype uint16, flags ...uint16) *question {
	t.Helper()
	wire, err := wireName(name)
	if err != nil {
		t.Fatal(err)
	}
	q := &question{}
	q.setName(wire)
	q.qtype = qtype
	for _, f := range flags {
		q.flags |= f
	}
	return q
}

// keep puts a response with these records as the answer to q.
func (b *cacheBench) keep(q *question, rcode int, lines ...string) bool {
	b.t.Helper()
	m := shape(b.t, presentName(q.name())+" "+dns.Type(q.qtype).String(), rcode, lines...)
	msg := packed(b.t, m)
	var r response
	if !r.parse(msg) {
		b.t.Fatal("does not parse")
	}
	return b.put(q, b.from, b.now, &r, r.stripOPT(msg))
}

// ask is the answer to q, unpacked; nil if there is none.
func (b *cacheBench) ask(q *question) (*dns.Msg, cached) {
	b.t.Helper()
	dst := appendQuestion(make([]byte, 0, dns.MaxMsgSize), q.name(), q.qtype)
	out, hit := b.get(q, b.from, b.now, dst)
	if hit.state == cacheMiss {
		return nil, hit
	}
	a := asker{limit: dns.MaxMsgSize}
	var m dns.Msg
	_, rep := hit.reply()
	if err := m.Unpack(a.finish(out, rep)); err != nil {
		b.t.Fatal(err)
	}
	return &m, hit
}

// ttls are the TTLs of all records.
func ttls(m *dns.Msg) []uint32 {
	var out []uint32
	for _, rrs := range [][]dns.RR{m.Answer, m.Ns, m.Extra} {
		for _, r := range rrs {
			out = append(out, r.Header().Ttl)
		}
	}
	return out
}

func TestCachedAnswersCountDown(t *testing.T) {
	b := newCacheBench(t, 1<<20)
	q := asking(t, "www.example.org", dns.TypeA)
	b.keep(q, 0, "www.example.org. 300 CNAME a.example.org.", "a.example.org. 60 A 192.0.2.1", "|", "example.org. 900 NS ns.example.org.", "|", "ns.example.org. 80 A 192.0.2.2")
	for _, row := range []struct {
		after time.Duration
		want  string
	}{
		{0, "[300 60 900 80]"}, {10 * time.Second, "[290 50 890 70]"}, {49*time.Second + 999*time.Millisecond, "[241 1 841 21]"},
	} {
		b.sleep(row.after)
		m, hit := b.ask(q)
		if m == nil || hit.state != cacheFresh || fmt.Sprint(ttls(m)) != row.want {
			t.Fatalf("after %s more: %v, %+v; want %s", row.after, m, hit, row.want)
		}
	}
	b.sleep(time.Second)
	if m, hit := b.ask(q); hit.state != cacheStale || fmt.Sprint(ttls(m)) != "[30 30 30 30]" {
		t.Errorf("after its end: %v, %+v; want stale, and 30 s", m, hit)
	}
	b.sleep(24 * time.Hour)
	if _, hit := b.ask(q); hit.state != cacheMiss {
		t.Errorf("a day after its end: %+v, want nothing", hit)
	}
}

func TestBoundsOfTTLs(t *testing.T) {
	for name, row := range map[string]struct {
		rcode int
		lines []string
		life  time.Duration // 0: not kept
		shown string        // the TTLs at once
	}{
		"a short one is lengthened":       {0, []string{"a. 1 A 192.0.2.1"}, 5 * time.Second, "[5]"},
		"a zero is not kept":              {0, []string{"a. 0 A 192.0.2.1"}, 0, ""},
		"a zero anywhere is not kept":     {0, []string{"a. 60 A 192.0.2.1", "|", "a. 0 NS b."}, 0, ""},
		"a long one is shortened":         {0, []string{"a. 2000000000 A 192.0.2.1"}, 24 * time.Hour, "[86400]"},
		"the least of them counts":        {0, []string{"a. 60 A 192.0.2.1", "a. 30 A 192.0.2.2"}, 30 * time.Second, "[60 30]"},
		"NXDOMAIN: the SOA's minimum":     {3, []string{"|", "a. 900 SOA b. c. 1 2 3 4 300"}, 300 * time.Second, "[300]"},
		"NXDOMAIN: the SOA's own TTL":     {3, []string{"|", "a. 90 SOA b. c. 1 2 3 4 300"}, 90 * time.Second, "[90]"},
		"NXDOMAIN: an hour at most":       {3, []string{"|", "a. 86400 SOA b. c. 1 2 3 4 86400"}, time.Hour, "[3600]"},
		"NXDOMAIN: five seconds at least": {3, []string{"|", "a. 900 SOA b. c. 1 2 3 4 1"}, 5 * time.Second, "[5]"},
		"NXDOMAIN without SOA":            {3, nil, 0, ""},
		"NODATA":                          {0, []string{"|", "a. 900 SOA b. c. 1 2 3 4 300"}, 300 * time.Second, "[300]"},
		"NODATA without SOA":              {0, nil, 0, ""},
		"SERVFAIL":                        {2, nil, 0, ""},
	} {
		t.Run(name, func(t *testing.T) {
			b := newCacheBench(t, 1<<20)
			q := asking(t, "a", dns.TypeA)
			if kept := b.keep(q, row.rcode, row.lines...); kept != (row.life > 0) {
				t.Fatalf("kept: %t", kept)
			}
			if row.life == 0 {
				return
			}
			if m, _ := b.ask(q); fmt.Sprint(ttls(m)) != row.shown || m.Rcode != row.rcode {
				t.Errorf("TTLs %v, want %s", ttls(m), row.shown)
			}
			b.sleep(row.life - 1)
			if _, hit := b.ask(q); hit.state != cacheFresh {
				t.Errorf("just before %s: %+v", row.life, hit)
			}
			b.sleep(1)
			if _, hit := b.ask(q); hit.state != cacheStale {
				t.Errorf("after %s: %+v", row.life, hit)
			}
		})
	}
}

func TestDOAndCDAreKeptApart(t *testing.T) {
	b := newCacheBench(t, 1<<20)
	keys := map[string]*question{"plain": asking(t, "a", 1), "CD": asking(t, "a", 1, flagCD), "DO": asking(t, "a", 1), "both": asking(t, "a", 1, flagCD), "type": asking(t, "a", 28), "name": asking(t, "b", 1)}
	keys["DO"].do, keys["both"].do = true, true
	for name, q := range keys {
		for other, p := range keys {
			if m, _ := b.ask(p); m != nil {
				t.Errorf("%s is in the cache before it was kept", other)
			}
		}
		b.keep(q, 0, fmt.Sprintf("%s 60 TXT %s", presentName(q.name()), name), fmt.Sprintf("%s 60 %s", presentName(q.name()), map[uint16]string{1: "A 192.0.2.1", 28: "AAAA ::9"}[q.qtype]))
		for other, p := range keys {
			if m, _ := b.ask(p); (m != nil) != (other == name) {
				t.Errorf("kept %s, asked %s: got %v", name, other, m)
			}
		}
		b.flushAll()
	}
}

func TestAnotherGenerationOrSourceIsForgotten(t *testing.T) {
	b := newCacheBench(t, 1<<20)
	q := asking(t, "a", 1)
	b.from = origin{1, 7}
	b.keep(q, 0, "a. 60 A 192.0.2.1")
	for _, o := range []origin{{1, 8}, {0, 7}, {2, 7}} {
		if _, hit := b.get(q, o, b.now, nil); hit.state != cacheMiss || hit.noRoom {
			t.Errorf("%v: %+v", o, hit)
		}
	}
	if m, _ := b.ask(q); m == nil {
		t.Error("its own is gone too")
	}
}

func TestAFailureIsRememberedForAWhile(t *testing.T) {
	b := newCacheBench(t, 1<<20)
	q := asking(t, "a", 1)
	if !b.fail(q, b.from, b.now, dns.RcodeServerFailure, dns.ExtendedErrorCodeNetworkError) {
		t.Fatal("not noted")
	}
	if m, hit := b.ask(q); m.Rcode != dns.RcodeServerFailure || !hit.failure || hit.ede != dns.ExtendedErrorCodeNetworkError {
		t.Errorf("got %v, %+v", m, hit)
	}
	b.sleep(failureTTL * time.Second)
	if _, hit := b.ask(q); hit.state != cacheMiss {
		t.Errorf("after %d s: %+v", failureTTL, hit)
	}
	b.keep(q, 0, "a. 60 A 192.0.2.1")
	b.sleep(time.Hour)
	if b.fail(q, b.from, b.now, dns.RcodeServerFailure, noEDE) {
		t.Error("a failure took the place of a stale answer")
	}
}

func TestAStaleAnswerIsHeldOnceUpstreamsHaveFailed(t *testing.T) {
	b := newCacheBench(t, 1<<20)
	q := asking(t, "a", 1)
	b.keep(q, 0, "a. 60 A 192.0.2.1")
	if b.hold(q, b.from, b.now) {
		t.Error("a fresh answer was held")
	}
	b.sleep(61 * time.Second)
	if _, hit := b.ask(q); hit.held {
		t.Error("held before anything failed")
	}
	if !b.hold(q, b.from, b.now) {
		t.Error("not held")
	}
	b.sleep(time.Duration(recheckAfter) - 1)
	if _, hit := b.ask(q); !hit.held {
		t.Error("not held for long enough")
	}
	b.sleep(1)
	if _, hit := b.ask(q); hit.held {
		t.Error("held for too long")
	}
}

func TestHotNamesAreRefreshedAheadOnce(t *testing.T) {
	b := newCacheBench(t, 1<<20)
	hot, cold, short := asking(t, "hot", 1), asking(t, "cold", 1), asking(t, "short", 1)
	b.keep(hot, 0, "hot. 100 A 192.0.2.1")
	b.keep(cold, 0, "cold. 100 A 192.0.2.1")
	b.keep(short, 0, "short. 9 A 192.0.2.1")
	for range 3 {
		b.ask(hot)
		b.ask(short)
	}
	b.sleep(8500 * time.Millisecond)
	if _, hit := b.ask(short); hit.prefetch {
		t.Error("one that lives for seconds is refreshed")
	}
	b.sleep(83 * time.Second)
	var told []string
	for range 3 {
		if _, hit := b.ask(hot); hit.prefetch {
			told = append(told, "hot")
		}
	}
	if _, hit := b.ask(cold); hit.prefetch {
		told = append(told, "cold")
	}
	if fmt.Sprint(told) != "[hot]" {
		t.Errorf("to be refreshed: %v, want hot once", told)
	}
}

func TestFlushForgetsANameAndThoseBelow(t *testing.T) {
	b := newCacheBench(t, 1<<20)
	names := []string{"example.org", "www.example.org", "a.b.example.org", "xample.org", "notexample.org", "org"}
	for _, name := range names {
		for _, qtype := range []uint16{1, 28} {
			b.keep(asking(t, name, qtype), 0, fmt.Sprintf("%s. 60 %s", name, map[uint16]string{1: "A 192.0.2.1", 28: "AAAA ::9"}[qtype]))
		}
	}
	if n := b.flush([]byte("\x07example\x03org\x00")); n != 6 {
		t.Errorf("%d forgotten, want 6", n)
	}
	for i, name := range names {
		if m, _ := b.ask(asking(t, name, 1)); (m == nil) != (i < 3) {
			t.Errorf("%s: %v", name, m)
		}
	}
	if n, left := b.flushAll(), b.stats(); n != 6 || left.Entries != 0 || left.Bytes > 16*shardCost {
		t.Errorf("%d forgotten, want 6; %+v", n, left)
	}
}

func TestTooLongAnAnswerIsNotKept(t *testing.T) {
	b := newCacheBench(t, 1<<20)
	q := asking(t, "a", dns.TypeTXT)
	var lines []string
	for i := range 40 {
		lines = append(lines, fmt.Sprintf("a. 60 TXT %0240d", i))
	}
	if b.keep(q, 0, lines...) {
		t.Error("kept")
	}
	if !b.keep(q, 0, lines[:30]...) {
		t.Error("a shorter one is not kept")
	}
	if _, hit := b.get(q, b.from, b.now, make([]byte, 0, 100)); !hit.noRoom || hit.state != cacheMiss {
		t.Errorf("no room: %+v", hit)
	}
}

func TestACacheTooSmallForAnythingKeepsNothing(t *testing.T) {
	for _, size := range []int{-1, 1, 100, 10000} {
		b := newCacheBench(t, size)
		q := asking(t, "a", 1)
		if b.keep(q, 0, "a. 60 A 192.0.2.1") || b.fail(q, b.from, b.now, 2, noEDE) {
			t.Errorf("%d bytes: kept something", size)
		}
	}
}

func TestTheCacheStaysWithinItsBound(t *testing.T) {
	for _, size := range []int{64 << 10, 1 << 20, 3 << 20} {
		b := newCacheBench(t, size)
		for i := range size / 40 {
			name := fmt.Sprintf("n%d.example", i)
			b.keep(asking(t, name, 1), 0, name+". 3600 A 192.0.2.1")
		}
		got := b.stats()
		if got.Bytes > size || got.Bytes < size*8/10 || got.Evictions == 0 {
			t.Errorf("%d bytes: %+v", size, got)
		}
		if per := got.Bytes / max(got.Entries, 1); per > 160 {
			t.Errorf("%d bytes: %d an entry", size, per)
		}
	}
}

func TestAFloodOfNamesDoesNotWashOutThoseInUse(t *testing.T) {
	b := newCacheBench(t, 256<<10)
	var hot []*question
	for i := range 50 {
		q := asking(t, fmt.Sprintf("hot%d.example", i), 1)
		b.keep(q, 0, fmt.Sprintf("hot%d.example. 86400 A 192.0.2.1", i))
		hot = append(hot, q)
	}
	for i := range 8000 {
		name := fmt.Sprintf("once%d.example", i)
		b.keep(asking(t, name, 1), 0, name+". 86400 A 192.0.2.1")
		b.ask(hot[i%len(hot)])
	}
	lost := 0
	for _, q := range hot {
		if m, _ := b.ask(q); m == nil {
			lost++
		}
	}
	// One in eight may go where they lie side by side: a new entry gives no more than maxMoves second chances.
	if lost > len(hot)/4 {
		t.Errorf("%d of %d names in constant use were lost", lost, len(hot))
	}
}

// TestTheCacheAgreesWithAModel does at random all that can be done to a cache, and compares each answer with what a map
// would say. The cache may have forgotten; it may never be wrong.
func TestTheCacheAgreesWithAModel(t *testing.T) {
	type known struct {
		text   string
		from   origin
		stored int64
	}
	rng := rand.New(rand.NewPCG(3, 4))
	b := newCacheBench(t, 128<<10)
	model := map[string]known{}
	kept, found := 0, 0
	for step := range 30000 {
		name := fmt.Sprintf("n%d.example.", rng.IntN(2500))
		q := asking(t, name, dns.TypeTXT)
		switch op := rng.IntN(1000); {
		case op < 500:
			text := fmt.Sprintf("%d-%0*d", step, 1+rng.IntN(200), 0)
			if b.keep(q, 0, name+" 60 TXT "+text) {
				kept++
				model[name] = known{text, b.from, b.now}
			}
		case op < 990:
			m, hit := b.ask(q)
			want, ok := model[name]
			if m == nil {
				break
			}
			found++
			if !ok || want.from != b.from || m.Answer[0].(*dns.TXT).Txt[0] != want.text {
				t.Fatalf("step %d, %s: got %v, want %+v", step, name, m, want)
			}
			if fresh := b.now-want.stored < int64(time.Minute); fresh != (hit.state == cacheFresh) {
				t.Fatalf("step %d, %s: fresh %t, got %+v", step, name, fresh, hit)
			}
		case op < 995:
			b.sleep(time.Duration(rng.IntN(40)) * time.Second)
		case op < 998:
			b.flush(q.name())
			delete(model, name)
		case op < 999:
			b.from.generation++
		default:
			if rng.IntN(10) == 0 {
				b.flushAll()
				clear(model)
			}
		}
		if step%1000 == 0 {
			b.checkIndex(t)
		}
	}
	if found < 1000 || b.stats().Evictions == 0 {
		t.Errorf("%d kept, %d found, %+v: this has tested little", kept, found, b.stats())
	}
}

// checkIndex checks that every slot leads to a live entry that can be found again, and that none is counted wrongly.
func (b *cacheBench) checkIndex(t *testing.T) {
	t.Helper()
	for i := range b.shards {
		s := &b.shards[i]
		live := 0
		for j, slot := range s.slots {
			if slot.at == 0 {
				continue
			}
			live++
			e := s.entry(slot.at - 1)
			if e.is(markDead) || e.hash() != slot.hash || s.slotOfLocked(slot.hash, slot.at-1) != j {
				t.Fatalf("slot %d leads to %x", j, e)
			}
		}
		if live != s.live || s.live > s.entries {
			t.Fatalf("%d slots in use, counted %d; %d entries", live, s.live, s.entries)
		}
	}
}

func TestACacheHitAllocatesNothing(t *testing.T) {
	b := newCacheBench(t, 1<<20)
	q := asking(t, "a", 1)
	b.keep(q, 0, "a. 60 A 192.0.2.1")
	dst := appendQuestion(make([]byte, 0, 512), q.name(), q.qtype)
	if n := testing.AllocsPerRun(100, func() { b.get(q, b.from, b.now, dst) }); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

func BenchmarkCacheGet(b *testing.B) {
	c := newCacheBench(b, 8<<20)
	q := asking(b, "www.example.org", 1)
	c.keep(q, 0, "www.example.org. 60 A 192.0.2.1")
	dst := appendQuestion(make([]byte, 0, 512), q.name(), q.qtype)
	b.ReportAllocs()
	for b.Loop() {
		c.get(q, c.from, c.now, dst)
	}
}

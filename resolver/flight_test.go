package resolver

import (
	"math/bits"
	"math/rand/v2"
	"slices"
	"testing"
)

func newFlights(limit int) *flights {
	f := &flights{}
	f.init(limit, randomSeed)
	return f
}

// begin makes a flight of name in its shard.
func (f *flights) begin(name string, now int64) (*flightShard, int32) {
	var q question
	wire, _ := wireName(name)
	q.setName(wire)
	q.qtype = 1
	sh := f.shard(flightHash(&q))
	return sh, f.beginLocked(sh, &q, &target{}, origin{}, now)
}

// TestWheelMeetsEveryDate moves the clock in steps of all sizes and checks that no flight is handed out early,
// late, twice or never.
func TestWheelMeetsEveryDate(t *testing.T) {
	const tick = int64(1) << tickShift
	rng := rand.New(rand.NewPCG(1, 2))
	f := newFlights(1024)
	sh := &f.shards[0]
	sh.growSlotsLocked()
	due := map[int32]int64{}
	now := clockBase
	free := []int32{}
	for i := range int32(flightChunk) {
		free = append(free, i)
	}
	for step := range 20000 {
		if len(free) > 0 && rng.IntN(3) > 0 {
			i := free[0]
			free = free[1:]
			due[i] = now + rng.Int64N(giveUpAfter)
			sh.scheduleLocked(i, due[i])
		}
		if rng.IntN(10) == 0 {
			for i := range due { // one is taken out, as if it had been answered
				sh.unscheduleLocked(i)
				delete(due, i)
				free = append(free, i)
				break
			}
		}
		now += []int64{0, tick / 3, tick, 7 * tick, 300 * tick, 10000 * tick}[rng.IntN(6)]
		for i := sh.dueLocked(now); i >= 0; i = sh.dueLocked(now) {
			at, ok := due[i]
			if !ok || at > now {
				t.Fatalf("step %d: slot %d handed out at %d, due %d (known %v)", step, i, now, at, ok)
			}
			delete(due, i)
			free = append(free, i)
		}
		for i, at := range due {
			if at+2*tick < now {
				t.Fatalf("step %d: slot %d was due at %d, now %d", step, i, at, now)
			}
		}
	}
}

func TestFlightsAreFoundAndEndWhole(t *testing.T) {
	f := newFlights(64)
	sh, i := f.begin("www.example.com", 1)
	s := sh.slot(i)
	w := &waiter{}
	for range 3 {
		if !sh.joinLocked(s, w) {
			t.Fatal("no room for a waiter")
		}
	}
	generation := s.generation
	n := 0
	chain := f.endLocked(sh, i)
	for j := chain; j >= 0; j = sh.waiter(j).next {
		n++
	}
	if n != 3 || s.generation == generation || f.active.Load() != 0 {
		t.Errorf("%d waiters, generation %d, %d active", n, s.generation, f.active.Load())
	}
	sh.release(chain)
	var q question
	wire, _ := wireName("www.example.com")
	q.setName(wire)
	q.qtype = 1
	if got := sh.findLocked(flightHash(&q), &q, origin{}); got >= 0 {
		t.Errorf("found the ended flight %d", got)
	}
}

func TestFlightsAreBounded(t *testing.T) {
	f := newFlights(10)
	begun := 0
	for i := range 30 {
		if _, slot := f.begin(string(rune('a'+i%26))+string(rune('a'+i/26))+".example", 1); slot >= 0 {
			begun++
		}
	}
	if begun != 10 || f.active.Load() != 10 {
		t.Errorf("%d flights begun, %d active, want 10", begun, f.active.Load())
	}
}

// TestIDsAndCaseAreEvenlyDistributed looks at what a forger would have to guess: the IDs and the capitals of
// many questions of one name. With 2^16 draws each bit is set in half of them, within five sigma.
func TestIDsAndCaseAreEvenlyDistributed(t *testing.T) {
	const draws = 1 << 16
	f := newFlights(16)
	var ids [16]int
	var letters [17]int
	seen := make([]bool, 1<<16)
	for range draws {
		sh, i := f.begin("abcdefghijklmnop.example", 1)
		id := uint16(sh.rng.Uint64())
		seen[id] = true
		for b := range ids {
			ids[b] += int(id >> b & 1)
		}
		for l := range letters {
			letters[l] += int(sh.slot(i).caseBits[l/8] >> (l % 8) & 1)
		}
		f.endLocked(sh, i)
	}
	for what, counts := range map[string][]int{"ID bit": ids[:], "letter": letters[:]} {
		for i, n := range counts {
			if n < draws/2-640 || n > draws/2+640 {
				t.Errorf("%s %d was set %d times of %d", what, i, n, draws)
			}
		}
	}
	distinct := 0
	for _, s := range seen {
		if s {
			distinct++
		}
	}
	if distinct < 40000 || distinct > 43000 { // (1 - 1/e) of 2^16 is 41,427
		t.Errorf("%d distinct IDs in 2^16 draws: not uniform", distinct)
	}
}

// TestSourcePortsAreSpread draws sockets as queries do. Each is on a port of its own and all are used alike; a
// worn one is replaced by one on another port.
func TestSourcePortsAreSpread(t *testing.T) {
	u := blackHole(t)
	g := newRig(t, Config{Base: base(u)})
	s := g.servers.get(u.Upstream)
	uses := map[string]int{}
	for range poolSize * 1000 {
		sock, err := s.pool.pick(clockBase)
		if err != nil {
			t.Fatal(err)
		}
		uses[sock.conn.LocalAddr().String()]++
	}
	if len(uses) != poolSize {
		t.Fatalf("%d ports, want %d", len(uses), poolSize)
	}
	for port, n := range uses {
		if n < 800 || n > 1200 {
			t.Errorf("%s was used %d times of %d", port, n, poolSize*1000)
		}
	}
	var ports []string
	for p := range uses {
		ports = append(ports, p)
	}
	for range poolSize * 20 {
		sock, err := s.pool.pick(clockBase + maxAge)
		if err != nil {
			t.Fatal(err)
		}
		if slices.Contains(ports, sock.conn.LocalAddr().String()) {
			t.Fatalf("%s outlived its time", sock.conn.LocalAddr())
		}
	}
	s.pool.tidy(clockBase + maxAge + linger)
	s.pool.mu.Lock() // the resolver tidies too
	defer s.pool.mu.Unlock()
	if len(s.pool.retired) != 0 {
		t.Errorf("%d sockets linger", len(s.pool.retired))
	}
}

// TestCaseBitsRoundTrip: what read records, apply gives back.
func TestCaseBitsRoundTrip(t *testing.T) {
	msg := query(t, "MiXed.CASE.eXample", 1)
	var q question
	q.parse(msg)
	var c caseBits
	c.read(msg, q.nameLen)
	name := append([]byte(nil), q.name()...)
	c.apply(name)
	if got, want := string(name), string(msg[headerSize:headerSize+q.nameLen]); got != want {
		t.Errorf("got %q, want %q", got, want)
	}
	n := 0
	for _, b := range c {
		n += bits.OnesCount8(b)
	}
	if n != 7 {
		t.Errorf("%d capitals recorded, want 7", n)
	}
}

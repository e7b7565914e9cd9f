package resolver

import (
	"fmt"
	"math/rand/v2"
	"net"
	"slices"
	"testing"
	"time"

	"github.com/miekg/dns"
)

const ms = int64(time.Millisecond)

func TestHowLongAServerIsWaitedFor(t *testing.T) {
	for name, row := range map[string]struct {
		rtts []int64
		want func(rto int64) bool
	}{
		"unknown":           {nil, func(rto int64) bool { return rto == firstRTO }},
		"very fast":         {[]int64{ms, ms, ms}, func(rto int64) bool { return rto == minRTO }},
		"very slow":         {[]int64{3000 * ms, 3000 * ms}, func(rto int64) bool { return rto == maxRTO }},
		"steady at 200 ms":  {slices.Repeat([]int64{200 * ms}, 50), func(rto int64) bool { return rto > 200*ms && rto < 220*ms }},
		"between 50 and 90": {slices.Repeat([]int64{50 * ms, 90 * ms}, 50), func(rto int64) bool { return rto > 130*ms && rto < 200*ms }},
		"no time at all":    {[]int64{0, 0}, func(rto int64) bool { return rto == minRTO }},
	} {
		t.Run(name, func(t *testing.T) {
			s := &server{}
			for _, rtt := range row.rtts {
				s.answered(rtt)
			}
			if got := s.rto(); !row.want(got) {
				t.Errorf("got %s", time.Duration(got))
			}
			if known := len(row.rtts) > 0; known != (s.srtt.Load() > 0) {
				t.Errorf("smoothed time %d", s.srtt.Load())
			}
		})
	}
}

func TestAServerThatDoesNotAnswerIsQuarantinedForLongerAndLonger(t *testing.T) {
	s, now := &server{}, clockBase
	for range deadAfter - 1 {
		if s.missed(now) || s.dead() {
			t.Fatal("quarantined too soon")
		}
	}
	if !s.missed(now) || !s.dead() {
		t.Fatal("not quarantined")
	}
	if s.missed(now) || s.deadTill.Load() != now+minQuarantine {
		t.Errorf("until %d, want %s", s.deadTill.Load()-now, time.Duration(minQuarantine))
	}
	want := minQuarantine
	for range 10 {
		now = s.deadTill.Load()
		s.requarantine(now)
		want = min(2*want, maxQuarantine)
		if got := s.deadTill.Load() - now; got != want {
			t.Fatalf("got %s, want %s", time.Duration(got), time.Duration(want))
		}
	}
	s.answered(20 * ms)
	if s.dead() || s.misses.Load() != 0 || s.backoff.Load() != 0 {
		t.Error("an answer does not end the quarantine")
	}
}

func TestQuirksAreForgotten(t *testing.T) {
	var q quirk
	if q.holds(clockBase) {
		t.Error("holds from the start")
	}
	q.begin(clockBase)
	if !q.holds(clockBase+quirkLife-1) || q.holds(clockBase+quirkLife) {
		t.Error("does not hold for its life")
	}
}

// withServers is a target of servers that are made by f.
func withServers(n int, f func(i int, s *server)) *target {
	t := &target{}
	for i := range n {
		s := &server{}
		f(i, s)
		t.servers = append(t.servers, s)
	}
	return t
}

func TestTheBestServerIsChosen(t *testing.T) {
	srtt := func(times ...int64) *target {
		return withServers(len(times), func(i int, s *server) { s.srtt.Store(times[i] * ms) })
	}
	with := func(tg *target, f func(*target)) *target { f(tg); return tg }
	for name, row := range map[string]struct {
		target *target
		tried  uint32
		want   int
	}{
		"none":                         {srtt(), 0, -1},
		"the fastest":                  {srtt(30, 10, 20), 0, 1},
		"the next fastest":             {srtt(30, 10, 20), 1 << 1, 2},
		"the last":                     {srtt(30, 10, 20), 1<<1 | 1<<2, 0},
		"all were tried":               {srtt(30, 10), 3, -1},
		"unknown ones in order":        {srtt(0, 0), 0, 0},
		"an unknown one gets known":    {srtt(5, 0), 0, 1},
		"alive before dead":            {with(srtt(1, 90), func(t *target) { t.servers[0].deadTill.Store(1) }), 0, 1},
		"a dead one before none":       {with(srtt(1, 90), func(t *target) { t.servers[0].deadTill.Store(1) }), 2, 0},
		"the better of two dead ones":  {with(srtt(9, 3), func(t *target) { t.servers[0].deadTill.Store(1); t.servers[1].deadTill.Store(1) }), 0, 1},
		"never one that loops":         {with(srtt(1, 90), func(t *target) { t.servers[0].looping.Store(true) }), 0, 1},
		"not even if it is alone":      {with(srtt(1), func(t *target) { t.servers[0].looping.Store(true) }), 0, -1},
		"a loop before a dead one not": {with(srtt(1, 9), func(t *target) { t.servers[0].looping.Store(true); t.servers[1].deadTill.Store(1) }), 0, 1},
	} {
		t.Run(name, func(t *testing.T) {
			if got := row.target.choose(row.tried); got != row.want {
				t.Errorf("got %d, want %d", got, row.want)
			}
		})
	}
}

func TestNowAndThenAnotherServerThanTheBestIsAsked(t *testing.T) {
	tg := withServers(4, func(i int, s *server) { s.srtt.Store(int64(i+1) * ms) })
	tg.servers[2].deadTill.Store(1)
	tg.servers[3].looping.Store(true)
	counts := make([]int, 4)
	const n = tryOther * 40
	for range n {
		counts[tg.chooseFirst()]++
	}
	if counts[1] != n/tryOther/4 || counts[2] != 0 || counts[3] != 0 {
		t.Errorf("chosen %v: want the second one in %d, and never a dead or looping one", counts, 4*tryOther)
	}
	if alone := withServers(1, func(int, *server) {}); alone.chooseFirst() != 0 {
		t.Error("the only one is not chosen")
	}
}

func TestServersOutliveARoutingThatStillNamesThem(t *testing.T) {
	one, two := blackHole(t), blackHole(t)
	g := newRig(t, Config{Base: base(one, two)})
	s := g.servers.get(one.Upstream)
	s.answered(7 * ms)
	if err := g.SetBase(Base{Upstreams: []Upstream{one.Upstream}, Learnt: []Route{{Suffix: "lan", Upstreams: []Upstream{one.Upstream}}}}); err != nil {
		t.Fatal(err)
	}
	if got := g.servers.list(); len(got) != 1 || got[0] != s || got[0].srtt.Load() != 7*ms {
		t.Errorf("%d servers", len(got))
	}
	if st := g.Upstreams(); len(st) != 1 || fmt.Sprint(st[0].Routes) != "[. lan.]" || st[0].State != "ok" || st[0].SRTT != 7*time.Millisecond {
		t.Errorf("%+v", st)
	}
}

func TestADeadServerIsLeftOutUntilAProbeIsAnswered(t *testing.T) {
	dying, good := newUpstream(t, answering(t)), newUpstream(t, answering(t))
	g := newRig(t, Config{Base: base(dying, good)})
	state := func(u *upstreamServer) string {
		for _, s := range g.Upstreams() {
			if s.Upstream == u.String() {
				return s.State
			}
		}
		return ""
	}
	dying.mute.Store(true)
	for i := 0; state(dying) != "quarantined"; i++ {
		if i > 100 {
			t.Fatalf("still %s", state(dying))
		}
		wantA(t, g.ask(fmt.Sprintf("n%d.example", i), dns.TypeA), "192.0.2.1")
		g.sleep(500 * time.Millisecond)
	}
	waitUntil(t, func() bool { return g.flights.active.Load() == 0 })
	asked := good.asked.Load()
	for i := range 2 * tryOther {
		wantA(t, g.ask(fmt.Sprintf("m%d.example", i), dns.TypeA), "192.0.2.1")
	}
	if n := good.asked.Load() - asked; n != 2*tryOther {
		t.Errorf("of %d questions the server that is alive got %d", 2*tryOther, n)
	}
	dying.mute.Store(false)
	waitUntil(t, func() bool { g.sleep(100 * time.Millisecond); g.wake(); return state(dying) != "quarantined" })
}

func TestAServerThatIsNotThereIsNotWaitedFor(t *testing.T) {
	pc, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	gone, err := ParseUpstream(pc.LocalAddr().String())
	if err != nil {
		t.Fatal(err)
	}
	_ = pc.Close()
	good := newUpstream(t, answering(t))
	g := newRig(t, Config{Base: Base{Upstreams: []Upstream{gone, good.Upstream}}})
	g.servers.get(gone).answered(ms) // known to be the faster one
	g.servers.get(good.Upstream).answered(50 * ms)
	began := time.Now()
	wantA(t, g.ask("www.example", dns.TypeA), "192.0.2.1")
	if d := time.Since(began); d > 100*time.Millisecond {
		t.Errorf("took %s: the kernel's word that nobody listens was not heard", d)
	}
	if err := g.SetBase(Base{Upstreams: []Upstream{gone}}); err != nil {
		t.Fatal(err)
	}
	if m := g.ask("www2.example", dns.TypeA); m.Rcode != dns.RcodeServerFailure {
		t.Errorf("got\n%v", m)
	}
}

// newPool is a pool whose sockets lead nowhere.
func newPool(t *testing.T) (*pool, *int) {
	t.Helper()
	u := blackHole(t)
	opened := 0
	p := &pool{rng: rand.NewChaCha8(randomSeed()), start: func(*upstreamSocket) bool { return true }}
	p.open = func() (*upstreamSocket, error) {
		opened++
		c, err := dialPlain(u.Upstream)
		if err != nil {
			return nil, err
		}
		return &upstreamSocket{udpConn: c}, nil
	}
	t.Cleanup(p.close)
	return p, &opened
}

// open counts the sockets in use.
func (p *pool) count() (n int) {
	for _, s := range p.socks {
		if s != nil {
			n++
		}
	}
	return n
}

// pickAll picks often enough to meet every place of the pool.
func pickAll(t *testing.T, p *pool, now int64) map[*upstreamSocket]bool {
	t.Helper()
	seen := map[*upstreamSocket]bool{}
	for range poolSize * 20 {
		s, err := p.pick(now)
		if err != nil {
			t.Fatal(err)
		}
		seen[s] = true
	}
	return seen
}

func TestSocketsAreReplacedWhenTheyAreWorn(t *testing.T) {
	p, opened := newPool(t)
	first := pickAll(t, p, clockBase)
	if len(first) != poolSize || *opened != poolSize {
		t.Fatalf("%d sockets, %d opened, want %d", len(first), *opened, poolSize)
	}
	for s := range first {
		s.uses.Store(maxUses)
	}
	for s := range pickAll(t, p, clockBase) {
		if first[s] {
			t.Fatal("a socket was used more than maxUses times")
		}
	}
	if len(p.retired) != poolSize {
		t.Errorf("%d retired sockets wait for answers, want %d", len(p.retired), poolSize)
	}
	if busy := p.tidy(clockBase + linger - 1); !busy || len(p.retired) != poolSize {
		t.Errorf("closed before their answers can have come: %d", len(p.retired))
	}
	if p.tidy(clockBase + linger); len(p.retired) > poolSize {
		t.Errorf("%d linger", len(p.retired))
	}
}

func TestAnIdlePoolEndsUpEmpty(t *testing.T) {
	p, _ := newPool(t)
	pickAll(t, p, clockBase)
	if busy := p.tidy(clockBase + maxAge); !busy || p.count() != 0 {
		t.Errorf("%d sockets are not retired", p.count())
	}
	if p.tidy(clockBase+maxAge+linger) || len(p.retired) != 0 {
		t.Errorf("%d sockets are left", len(p.retired))
	}
}

func TestASocketThatIsDroppedIsNotPickedAgain(t *testing.T) {
	p, _ := newPool(t)
	s, err := p.pick(clockBase)
	if err != nil {
		t.Fatal(err)
	}
	others := pickAll(t, p, clockBase)
	p.drop(s, clockBase)
	for again := range pickAll(t, p, clockBase) {
		if others[again] {
			t.Error("it, or one of the same age, was picked again")
		}
	}
	if len(p.retired) != poolSize-1 {
		t.Errorf("%d wait for answers, want %d", len(p.retired), poolSize-1)
	}
	if _, err := s.conn.Write([]byte{1}); err == nil {
		t.Error("still open")
	}
}

func TestAClosedPoolOpensNothing(t *testing.T) {
	p, opened := newPool(t)
	pickAll(t, p, clockBase)
	n := *opened
	p.close()
	if _, err := p.pick(clockBase); err == nil || *opened != n {
		t.Errorf("got %v, opened %d", err, *opened-n)
	}
	late, _ := newPool(t)
	late.start = func(*upstreamSocket) bool { return false } // the resolver has ended
	if _, err := late.pick(clockBase); err == nil || late.count() != 0 {
		t.Errorf("got %v, %d sockets", err, late.count())
	}
}

func TestASocketThatDoesNotSendAnyMoreIsReplaced(t *testing.T) {
	u := newUpstream(t, answering(t))
	g := newRig(t, Config{Base: base(u)})
	s := g.servers.get(u.Upstream)
	for i := range 4 * poolSize {
		wantA(t, g.ask(fmt.Sprintf("n%d.example", i), dns.TypeA), "192.0.2.1")
	}
	// Sockets that cannot send, as those whose own address has gone with the network: these are not connected.
	s.pool.mu.Lock()
	for i, sock := range s.pool.socks {
		if sock == nil {
			continue
		}
		_ = sock.conn.Close()
		conn, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
		if err != nil {
			t.Fatal(err)
		}
		c, err := newUDPConn(conn)
		if err != nil {
			t.Fatal(err)
		}
		s.pool.socks[i] = &upstreamSocket{udpConn: c, server: s, until: sock.until}
	}
	s.pool.mu.Unlock()
	began := time.Now()
	for i := range 20 {
		wantA(t, g.ask(fmt.Sprintf("m%d.example", i), dns.TypeA), "192.0.2.1")
	}
	if d := time.Since(began); d > 3*time.Second {
		t.Errorf("twenty questions took %s", d)
	}
}

func TestAnswersFromElsewhereAreIgnored(t *testing.T) {
	elsewhere, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer elsewhere.Close()
	u := newUpstream(t, func(w dns.ResponseWriter, req, reply *dns.Msg) bool {
		forged := reply.Copy()
		forged.Answer = rr(t, req.Question[0].Name+" 60 A 203.0.113.66")
		raw, err := forged.Pack()
		if err != nil {
			t.Error(err)
		}
		_, _ = elsewhere.WriteTo(raw, w.RemoteAddr())
		return answering(t)(w, req, reply)
	})
	g := newRig(t, Config{Base: base(u)})
	for i := range 20 {
		wantA(t, g.ask(fmt.Sprintf("n%d.example", i), dns.TypeA), "192.0.2.1")
	}
}

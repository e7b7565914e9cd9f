package resolver

import (
	"context"
	"encoding/hex"
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/miekg/dns"
)

func TestTimeAsleepCounts(t *testing.T) {
	var c clock
	c.start()
	before := c.now()
	if before < clockBase {
		t.Errorf("it is %d, want at least %d: zero means never", before, clockBase)
	}
	// As if the wall clock had gone on for an hour while the monotonic one stood still.
	c.wall.Store(-int64(time.Hour))
	if d := time.Duration(c.now() - before); d < time.Hour || d > time.Hour+time.Minute {
		t.Errorf("%s have passed, want an hour", d)
	}
	again := c.now()
	c.wall.Store(int64(time.Hour)) // the clock was set back by an hour
	if d := time.Duration(c.now() - again); d < 0 || d > time.Minute {
		t.Errorf("%s have passed, want nothing", d)
	}
	if d := time.Duration(c.now() - again); d < 0 || d > time.Minute {
		t.Errorf("%s have passed in the end, want nothing", d)
	}
}

func TestNothingStartsAfterTheEnd(t *testing.T) {
	var g group
	ctx, cancel := context.WithCancel(t.Context())
	ran := make(chan bool, 1)
	if !g.start(ctx, func() { ran <- true }) || !<-ran {
		t.Error("did not run")
	}
	cancel()
	if g.start(ctx, func() { t.Error("ran after its life") }) {
		t.Error("started after its life")
	}
	g.wait()
	if g.start(t.Context(), func() { t.Error("ran after the end") }) {
		t.Error("started after the end")
	}
}

func TestSpareWorkersAreBoundedAndTheirCountsKept(t *testing.T) {
	r := quiet(t)
	var all []*worker
	for range maxSpare + 4 {
		w := r.spare.get()
		w.q.qtype = dns.TypeA
		w.count(sourceLocal, dns.RcodeSuccess)
		all = append(all, w)
	}
	for _, w := range all {
		r.spare.put(w)
	}
	if n := len(r.spare.list); n != maxSpare || len(r.totals.live) != maxSpare {
		t.Errorf("%d spare, %d counted, want %d", n, len(r.totals.live), maxSpare)
	}
	if got := fmt.Sprint(r.Stats().Queries); got != fmt.Sprintf("[{A local NOERROR %d}]", maxSpare+4) {
		t.Errorf("counts %s", got)
	}
	if w := r.spare.get(); w != all[maxSpare-1] {
		t.Error("the one that was used last is not reused first")
	}
}

func TestRunRestsWhenThereIsNothingToDo(t *testing.T) {
	r, err := New(Config{})
	if err != nil {
		t.Fatal(err)
	}
	now := r.clock()
	for range lazyTicks - 1 {
		if d := r.housekeep(now); d != tickPause {
			t.Fatalf("rests for %s too soon", d)
		}
		now += int64(tickPause)
	}
	if d := r.housekeep(now); d != idlePause || !r.idle.Load() {
		t.Errorf("rests for %s, want %s", d, idlePause)
	}
	r.wake()
	select {
	case <-r.kick:
	default:
		t.Error("a flight does not wake it")
	}
	if r.wake(); len(r.kick) != 0 || r.idle.Load() {
		t.Error("woken twice")
	}
}

func TestRunLooksAfterSocketsOnceASecond(t *testing.T) {
	b := newUpstreamBench(t)
	b.ask(t, query(t, "www.example", dns.TypeA), UDP)
	b.unsent()
	if d := b.housekeep(b.w.now); d != tickPause {
		t.Errorf("with a question under way it rests for %s", d)
	}
	b.later(5 * time.Second)
	now := b.w.now
	for range lazyTicks {
		b.housekeep(now)
	}
	if d := b.housekeep(now + int64(tidyPause)); d != tidyPause {
		t.Errorf("with sockets open it rests for %s, want %s", d, tidyPause)
	}
	b.server.deadTill.Store(0)
	for range 3 {
		now += maxAge + linger
		b.housekeep(now)
	}
	if d := b.housekeep(now + int64(tidyPause)); d != idlePause {
		t.Errorf("without sockets it rests for %s, want %s", d, idlePause)
	}
}

func TestAProbeThatComesBackPutsTheServerAside(t *testing.T) {
	r := quiet(t)
	s := &server{}
	nonce := strings.Repeat("ab", nonceSize/2)
	r.loops.nonces[nonce] = s
	ask := func(name string) uint16 {
		reply, err := r.Answer(t.Context(), query(t, name, dns.TypeTXT), UDP)
		if err != nil {
			t.Fatal(err)
		}
		return uint16(reply[3] & rcodeMask)
	}
	for _, name := range []string{
		hex.EncodeToString(make([]byte, nonceSize/2)) + ".meshdns-loop.test", // another's
		nonce + ".meshdns-loop.example", nonce + "x.meshdns-loop.test", "x." + nonce + ".meshdns-loop.test", "meshdns-loop.test",
	} {
		if ask(name); s.looping.Load() {
			t.Errorf("%s was taken for the probe", name)
		}
	}
	if rcode := ask(strings.ToUpper(nonce) + ".Meshdns-LOOP.test"); rcode != dns.RcodeNameError || !s.looping.Load() {
		t.Errorf("rcode %d, looping %t", rcode, s.looping.Load())
	}
}

func TestALoopThatIsMendedIsFoundOut(t *testing.T) {
	u := newUpstream(t, answering(t))
	g := newRig(t, Config{Base: base(u)})
	s := g.servers.get(u.Upstream)
	waitUntil(t, func() bool {
		g.loops.mu.Lock()
		defer g.loops.mu.Unlock()
		return u.loops.Load() > 0 && len(g.loops.nonces) == 0
	})
	s.looping.Store(true)
	if m := g.ask("www.example", dns.TypeA); m.Rcode != dns.RcodeServerFailure {
		t.Errorf("a server that loops was asked:\n%v", m)
	}
	g.sleep(time.Duration(loopPause))
	waitUntil(t, func() bool { g.wake(); return !s.looping.Load() })
	wantA(t, g.ask("www2.example", dns.TypeA), "192.0.2.1")
}

func TestWeNeverForwardToOurself(t *testing.T) {
	u := newUpstream(t, answering(t))
	g := newRig(t, Config{Base: base(u), Self: []netip.AddrPort{u.addr}})
	m := g.exchange(questionFor("www.example", dns.TypeA, withEDNS(1232, false)))
	if m.Rcode != dns.RcodeServerFailure || u.asked.Load() != 0 || len(g.Upstreams()) != 0 {
		t.Errorf("asked %d times\n%v", u.asked.Load(), m)
	}
}

func TestStatsCountEveryReplyBySource(t *testing.T) {
	u := newUpstream(t, answering(t))
	g := newRig(t, Config{Base: base(u), Table: bigTable(t)})
	for _, q := range []*dns.Msg{
		questionFor("nas.foo-bar.ts.net", dns.TypeA), questionFor("no.foo-bar.ts.net", dns.TypeMX), questionFor("localhost", dns.TypeAAAA),
		questionFor("www.example", dns.TypeA), questionFor("www.example", dns.TypeA), questionFor("www.example", dns.TypeAXFR), questionFor("localhost", 999),
	} {
		g.exchange(q)
	}
	got := map[string]uint64{}
	for _, c := range g.Stats().Queries {
		got[c.Source+" "+c.Type+" "+c.Rcode] = c.N
	}
	want := map[string]uint64{"local A NOERROR": 1, "local MX NXDOMAIN": 1, "special AAAA NOERROR": 1, "upstream A NOERROR": 1, "cache A NOERROR": 1,
		"refused other REFUSED": 1, "special other NOERROR": 1}
	if fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("got %v\nwant %v", got, want)
	}
	s := g.Stats()
	if s.Cache.Hits != 1 || s.Cache.Misses != 1 || s.Cache.Entries != 1 || s.Names < 2 || s.InFlight != 0 {
		t.Errorf("%+v", s)
	}
	up := g.Upstreams()[0]
	var n uint64
	for _, c := range up.Latency.Counts {
		n += c
	}
	if up.Queries != 1 || n != 1 || up.Failures != 0 || len(up.Latency.Counts) != len(up.Latency.Bounds)+1 || up.Latency.Sum <= 0 || up.State != "ok" {
		t.Errorf("%+v", up)
	}
}

func TestHistogramBuckets(t *testing.T) {
	var h histogram
	for _, d := range []time.Duration{0, time.Millisecond, time.Millisecond + 1, 2 * time.Second, 2*time.Second + 1, time.Hour} {
		h.observe(int64(d))
	}
	got := h.snapshot()
	if fmt.Sprint(got.Counts) != "[2 1 0 0 0 0 0 0 0 0 1 2]" || got.Sum != time.Hour+4*time.Second+2*time.Millisecond+2 {
		t.Errorf("%+v", got)
	}
}

func TestExplanations(t *testing.T) {
	u, lan := newUpstream(t, answering(t)), newUpstream(t, answering(t))
	g := newRig(t, Config{
		Table:  mustTable(t, "foo-bar.ts.net", "nas.foo-bar.ts.net. 60 A 100.64.0.2", "*.nas.foo-bar.ts.net. 60 A 100.64.0.2", "blog.foo-bar.ts.net. 60 CNAME www.example."),
		Routes: []Route{{Suffix: "corp.example", Upstreams: []Upstream{u.Upstream}}, {Suffix: "empty.example"}},
		Base:   Base{Upstreams: []Upstream{u.Upstream}, Learnt: []Route{{Suffix: "home.arpa", Upstreams: []Upstream{lan.Upstream}}}},
	})
	g.ask("cached.example", dns.TypeA)
	g.sleep(10 * time.Second)
	for name, row := range map[string]struct {
		source string
		want   []string // found in the steps, in this order
	}{
		"nas.foo-bar.ts.net":      {"local", []string{"table: ", "in the zone foo-bar.ts.net., which is never forwarded: exact", "table: answers with 1 records of type A"}},
		"x.y.nas.foo-bar.ts.net":  {"local", []string{"wildcard *.nas", "answers with 1"}},
		"foo-bar.ts.net":          {"local", []string{"exact", "no records of type A (NODATA)"}},
		"no.foo-bar.ts.net":       {"local", []string{"no such name", "NXDOMAIN"}},
		"blog.foo-bar.ts.net":     {"upstream", []string{"an alias leads out of the zone, to www.example.", "route: no split route matches", "upstream: " + u.String()}},
		"7.0.64.100.in-addr.arpa": {"local", []string{"64.100.in-addr.arpa., which is never forwarded", "NXDOMAIN"}},
		"a.corp.example":          {"upstream", []string{"in no zone of the tailnet", "split route corp.example. is the longest", "cache: holds no answer", u.String() + ", first to be asked"}},
		"x.empty.example":         {"upstream", []string{"split route empty.example.", "upstream: none is known: the answer is SERVFAIL"}},
		"printer.home.arpa":       {"upstream", []string{"the network itself named the domain home.arpa.", lan.String()}},
		"printer.local":           {"special", []string{"special: RFC 6762"}},
		"cached.example":          {"cache", []string{"base upstreams", "cache: holds an answer (NOERROR) that is 10s old and good for 50 s more", "answers in"}},
	} {
		t.Run(name, func(t *testing.T) {
			e, err := g.Explain(name, dns.TypeA, true)
			if err != nil {
				t.Fatal(err)
			}
			var text strings.Builder
			for _, s := range e.Steps {
				fmt.Fprintf(&text, "%s: %s\n", s.What, s.Detail)
			}
			rest := text.String()
			for _, want := range row.want {
				_, after, found := strings.Cut(rest, want)
				if !found {
					t.Errorf("no %q, in this order, in\n%s", want, text.String())
				}
				rest = after
			}
			if e.Source != row.source || e.Name != name+"." || e.Type != "A" {
				t.Errorf("%s %s from %s, want from %s", e.Name, e.Type, e.Source, row.source)
			}
		})
	}
	g.sleep(time.Minute)
	e, err := g.Explain("cached.example", dns.TypeA, true)
	if err != nil || e.Source != "upstream" || !strings.Contains(fmt.Sprint(e.Steps), "has expired") {
		t.Errorf("%v, %+v", err, e)
	}
	if e, err = g.Explain("cached.example", dns.TypeA, false); err != nil || strings.Contains(fmt.Sprint(e.Steps), "{cache ") {
		t.Errorf("without the cache: %v, %+v", err, e)
	}
	if _, err := g.Explain("a..b", dns.TypeA, true); err == nil {
		t.Error("a name that is none: got no error")
	}
}

func TestFlushTellsHowManyAnswersItForgot(t *testing.T) {
	u := newUpstream(t, answering(t))
	g := newRig(t, Config{Base: base(u)})
	for _, name := range []string{"a.example", "b.a.example", "c.example"} {
		g.ask(name, dns.TypeA)
	}
	for _, row := range []struct {
		name string
		want int
	}{{"A.Example.", 2}, {"a.example", 0}, {"", 1}, {".", 0}} {
		if n, err := g.Flush(row.name); err != nil || n != row.want {
			t.Errorf("%q: %d forgotten, %v; want %d", row.name, n, err, row.want)
		}
	}
	if _, err := g.Flush("a..b"); err == nil {
		t.Error("a name that is none: got no error")
	}
}

func TestALoopThroughAnotherResolverIsFoundOut(t *testing.T) {
	good := newUpstream(t, answering(t))
	one, two := newRig(t, Config{}), newRig(t, Config{})
	spelt := func(g *rig) Upstream {
		u, err := ParseUpstream(g.addr.String())
		if err != nil {
			t.Fatal(err)
		}
		return u
	}
	if err := two.SetBase(Base{Upstreams: []Upstream{spelt(one)}}); err != nil {
		t.Fatal(err)
	}
	if err := one.SetBase(Base{Upstreams: []Upstream{spelt(two), good.Upstream}}); err != nil {
		t.Fatal(err)
	}
	loops := func(g *rig, u Upstream) bool { return g.servers.get(u).looping.Load() }
	// Whoever finds it first leaves the other one out; then there is no loop any more.
	waitUntil(t, func() bool { return loops(one, spelt(two)) || loops(two, spelt(one)) })
	wantA(t, one.ask("www.example", dns.TypeA), "192.0.2.1")
}

func TestADomainForAllNamesIsTheBase(t *testing.T) {
	u := newUpstream(t, answering(t))
	g := newRig(t, Config{Base: Base{Learnt: []Route{{Suffix: ".", Upstreams: []Upstream{u.Upstream}}}}})
	wantA(t, g.ask("www.example", dns.TypeA), "192.0.2.1")
	wantA(t, g.ask("localhost", dns.TypeA), "127.0.0.1")
}

package resolver

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/miekg/dns"
)

// rig is a resolver that runs, with real sockets on loopback.
type rig struct {
	*Resolver
	addr netip.AddrPort
	t    testing.TB
}

// rigs counts those that run: nothing may be left of the last one.
var rigs atomic.Int32

// newRig runs a resolver until the test ends, and then checks that it ended.
func newRig(t testing.TB, c Config) *rig {
	t.Helper()
	conns, err := ListenUDP(t.Context(), netip.MustParseAddrPort("127.0.0.1:0"), 2)
	if err != nil {
		t.Fatal(err)
	}
	addr := conns[0].LocalAddr().(*net.UDPAddr).AddrPort()
	r, err := New(c)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() {
		if err := r.Run(ctx); err != nil {
			t.Error(err)
		}
	})
	for _, c := range conns {
		wg.Go(func() {
			if err := r.ServeUDP(ctx, c); err != nil {
				t.Error(err)
			}
		})
	}
	rigs.Add(1)
	t.Cleanup(func() {
		if rigs.Add(-1) == 0 {
			nothingLeft(t)
		}
	})
	t.Cleanup(func() {
		cancel()
		done := make(chan struct{})
		go func() { wg.Wait(); close(done) }()
		select {
		case <-done:
		case <-time.After(10 * time.Second):
			t.Error("the resolver does not end")
		}
	})
	return &rig{r, addr, t}
}

// nothingLeft checks that no goroutine of a resolver is left.
func nothingLeft(t testing.TB) {
	t.Helper()
	var stacks string
	left := func() bool {
		buf := make([]byte, 1<<20)
		stacks = string(buf[:runtime.Stack(buf, true)])
		for _, f := range []string{"resolver.(*Resolver).", "resolver.(*stream).", "resolver.(*streamConn).", "resolver.(*doh).", "resolver.(*tcp"} {
			if strings.Contains(stacks, f) {
				return true
			}
		}
		return false
	}
	for range 100 {
		if !left() {
			return
		}
		runtime.Gosched() // it has said that it is done, and is about to end
	}
	t.Errorf("goroutines are left:\n%s", stacks)
}

// exchange asks over UDP and returns the reply.
func (g *rig) exchange(m *dns.Msg) *dns.Msg {
	g.t.Helper()
	c := dns.Client{Timeout: 10 * time.Second, UDPSize: dns.MaxMsgSize}
	r, _, err := c.Exchange(m, g.addr.String())
	if err != nil {
		g.t.Fatalf("asking %s: %v", m.Question[0].Name, err)
	}
	return r
}

func (g *rig) ask(name string, qtype uint16) *dns.Msg {
	g.t.Helper()
	return g.exchange(new(dns.Msg).SetQuestion(dns.Fqdn(name), qtype))
}

// sleep makes the resolver believe that d has passed.
func (g *rig) sleep(d time.Duration) { g.time.offset.Add(int64(d)) }

// upstreamServer is a real DNS server on loopback that a test scripts.
type upstreamServer struct {
	Upstream
	asked atomic.Int64
	tcp   atomic.Int64
	mute  atomic.Bool  // it answers nothing at all, probes neither
	loops atomic.Int64 // probes for loops
}

// newUpstream serves UDP and TCP on one port with handle, which fills the reply.
func newUpstream(t testing.TB, handle func(w dns.ResponseWriter, req, reply *dns.Msg) bool) *upstreamServer {
	t.Helper()
	u := &upstreamServer{}
	serve := dns.HandlerFunc(func(w dns.ResponseWriter, req *dns.Msg) {
		if u.mute.Load() {
			u.asked.Add(1)
			return
		}
		if strings.HasSuffix(strings.ToLower(req.Question[0].Name), "meshdns-loop.test.") || req.Question[0].Name == "." {
			u.loops.Add(1)
			reply := new(dns.Msg).SetRcode(req, dns.RcodeNameError)
			_ = w.WriteMsg(reply)
			return
		}
		u.asked.Add(1)
		if _, ok := w.LocalAddr().(*net.TCPAddr); ok {
			u.tcp.Add(1)
		}
		reply := new(dns.Msg).SetReply(req)
		reply.Compress = true
		if handle(w, req, reply) {
			_ = w.WriteMsg(reply)
		}
	})
	pc, ln := listenBoth(t)
	servers := []*dns.Server{{PacketConn: pc, Handler: serve}, {Listener: ln, Handler: serve}}
	for _, s := range servers {
		started := make(chan struct{})
		s.NotifyStartedFunc = func() { close(started) }
		go func() { _ = s.ActivateAndServe() }()
		<-started
		t.Cleanup(func() { _ = s.Shutdown() })
	}
	var err error
	if u.Upstream, err = ParseUpstream(pc.LocalAddr().String()); err != nil {
		t.Fatal(err)
	}
	return u
}

// listenBoth takes a port for UDP and TCP.
func listenBoth(t testing.TB) (net.PacketConn, net.Listener) {
	t.Helper()
	for range 50 {
		pc, err := net.ListenPacket("udp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		ln, err := net.Listen("tcp", pc.LocalAddr().String())
		if err == nil {
			return pc, ln
		}
		_ = pc.Close() // somebody has that port for TCP
	}
	t.Fatal("no port is free for UDP and TCP")
	return nil, nil
}

// rr parses records. It may be called in a server's goroutine, which must not end early: so an error leaves the
// record out.
func rr(t testing.TB, lines ...string) []dns.RR {
	t.Helper()
	var out []dns.RR
	for _, l := range lines {
		r, err := dns.NewRR(l)
		if err != nil {
			t.Error(err)
			continue
		}
		out = append(out, r)
	}
	return out
}

// answering makes every A query answer 192.0.2.1 with a TTL of 60.
func answering(t testing.TB) func(dns.ResponseWriter, *dns.Msg, *dns.Msg) bool {
	return func(_ dns.ResponseWriter, req, reply *dns.Msg) bool {
		if req.Question[0].Qtype == dns.TypeA {
			reply.Answer = rr(t, req.Question[0].Name+" 60 A 192.0.2.1")
		}
		return true
	}
}

func base(us ...*upstreamServer) Base {
	var b Base
	for _, u := range us {
		b.Upstreams = append(b.Upstreams, u.Upstream)
	}
	return b
}

func wantA(t testing.TB, m *dns.Msg, want string) {
	t.Helper()
	for _, r := range m.Answer {
		if a, ok := r.(*dns.A); ok {
			if a.A.String() != want {
				t.Errorf("address %s, want %s", a.A, want)
			}
			return
		}
	}
	t.Errorf("no address in\n%v", m)
}

func TestForwardsAndCaches(t *testing.T) {
	u := newUpstream(t, answering(t))
	g := newRig(t, Config{Base: base(u)})
	for range 3 {
		m := g.ask("wWw.ExamPle.com", dns.TypeA)
		wantA(t, m, "192.0.2.1")
		if m.Question[0].Name != "wWw.ExamPle.com." || m.Answer[0].Header().Name != "wWw.ExamPle.com." {
			t.Errorf("case not given back: %v", m)
		}
		if !m.RecursionAvailable || m.Authoritative || m.IsEdns0() != nil {
			t.Errorf("flags of\n%v", m)
		}
	}
	if n := u.asked.Load(); n != 1 {
		t.Errorf("upstream was asked %d times, want 1", n)
	}
	g.sleep(40 * time.Second)
	if m := g.ask("www.example.com", dns.TypeA); m.Answer[0].Header().Ttl > 21 {
		t.Errorf("TTL %d does not count down", m.Answer[0].Header().Ttl)
	}
}

func TestNegativeAnswersAreCachedBySOA(t *testing.T) {
	u := newUpstream(t, func(_ dns.ResponseWriter, _, reply *dns.Msg) bool {
		reply.Rcode = dns.RcodeNameError
		reply.Ns = rr(t, "example.com. 900 SOA ns.example.com. h.example.com. 1 2 3 4 30")
		return true
	})
	g := newRig(t, Config{Base: base(u)})
	for range 2 {
		if m := g.ask("no.example.com", dns.TypeA); m.Rcode != dns.RcodeNameError || len(m.Ns) != 1 {
			t.Fatalf("got\n%v", m)
		}
	}
	if n := u.asked.Load(); n != 1 {
		t.Errorf("upstream was asked %d times, want 1", n)
	}
	g.sleep(31 * time.Second)
	g.ask("no.example.com", dns.TypeA)
	if n := u.asked.Load(); n != 2 {
		t.Errorf("after the SOA's minimum the upstream was asked %d times in all, want 2", n)
	}
}

func TestIdenticalQuestionsInFlightAreMerged(t *testing.T) {
	release := make(chan struct{})
	u := newUpstream(t, func(w dns.ResponseWriter, req, reply *dns.Msg) bool {
		<-release
		return answering(t)(w, req, reply)
	})
	g := newRig(t, Config{Base: base(u)})
	var wg sync.WaitGroup
	for range 20 {
		wg.Go(func() { wantA(t, g.ask("same.example", dns.TypeA), "192.0.2.1") })
	}
	waitUntil(t, func() bool { return g.flights.waiting() == 20 })
	close(release)
	wg.Wait()
	if n := u.asked.Load(); n > 3 { // one question, repeated at most while it waited
		t.Errorf("20 clients made %d questions", n)
	}
}

// waiting counts the waiters of all flights.
func (f *flights) waiting() int {
	n := 0
	for i := range f.shards {
		sh := &f.shards[i]
		sh.mu.Lock()
		for j := range int32(sh.slotChunks * flightChunk) {
			n += sh.slot(j).waiting
		}
		sh.mu.Unlock()
	}
	return n
}

// waitUntil waits for a condition that others bring about.
func waitUntil(t testing.TB, ok func() bool) {
	t.Helper()
	deadline := time.NewTimer(10 * time.Second)
	defer deadline.Stop()
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for !ok() {
		select {
		case <-deadline.C:
			t.Fatal("waited in vain")
		case <-tick.C:
		}
	}
}

func TestATruncatedAnswerIsAskedForOverTCP(t *testing.T) {
	u := newUpstream(t, func(w dns.ResponseWriter, req, reply *dns.Msg) bool {
		if _, ok := w.LocalAddr().(*net.UDPAddr); ok {
			reply.Truncated = true
			return true
		}
		for i := range 100 {
			reply.Answer = append(reply.Answer, rr(t, fmt.Sprintf("%s 60 A 192.0.2.%d", req.Question[0].Name, i))...)
		}
		return true
	})
	g := newRig(t, Config{Base: base(u)})
	m := new(dns.Msg).SetQuestion("big.example.", dns.TypeA)
	m.SetEdns0(4000, false)
	if m := g.exchange(m); len(m.Answer) != 100 || m.Truncated {
		t.Errorf("%d answers, TC %v", len(m.Answer), m.Truncated)
	}
	const fit = (dns.MinMsgSize - headerSize - len("\x03big\x07example\x00") - 4) / 16
	if m := g.ask("big.example", dns.TypeA); !m.Truncated || len(m.Answer) != fit {
		t.Errorf("without EDNS: TC %v, %d answers, want %d", m.Truncated, len(m.Answer), fit)
	}
}

func TestAnUpstreamThatAltersCaseIsAskedOverTCPAndRemembered(t *testing.T) {
	u := newUpstream(t, func(w dns.ResponseWriter, req, reply *dns.Msg) bool {
		reply.Answer = rr(t, req.Question[0].Name+" 60 A 192.0.2.1")
		if _, ok := w.LocalAddr().(*net.UDPAddr); ok {
			reply.Question[0].Name = strings.ToLower(reply.Question[0].Name)
		}
		return true
	})
	g := newRig(t, Config{Base: base(u)})
	wantA(t, g.ask("a-long-name-with-many-letters.example", dns.TypeA), "192.0.2.1")
	if n := u.tcp.Load(); n != 1 {
		t.Fatalf("asked over TCP %d times, want 1", n)
	}
	wantA(t, g.ask("another-name-with-many-letters.example", dns.TypeA), "192.0.2.1")
	if n := u.tcp.Load(); n != 1 {
		t.Errorf("asked over TCP %d times: not remembered", n)
	}
}

func TestForgedAnswersAreIgnored(t *testing.T) {
	u := newUpstream(t, func(w dns.ResponseWriter, req, reply *dns.Msg) bool {
		for _, forge := range []func(*dns.Msg){
			func(m *dns.Msg) { m.Id++ },
			func(m *dns.Msg) { m.Question[0].Name = "other.example." },
			func(m *dns.Msg) { m.Question[0].Qtype = dns.TypeAAAA },
			func(m *dns.Msg) { m.Response = false },
		} {
			m := reply.Copy()
			m.Answer = rr(t, req.Question[0].Name+" 60 A 203.0.113.66")
			forge(m)
			_ = w.WriteMsg(m)
		}
		_, _ = w.Write([]byte("garbage"))
		return answering(t)(w, req, reply)
	})
	g := newRig(t, Config{Base: base(u)})
	wantA(t, g.ask("www.example", dns.TypeA), "192.0.2.1")
	waitUntil(t, func() bool { return g.Stats().Stray >= 5 })
}

func TestTheNextServerIsAskedAfterAnError(t *testing.T) {
	bad := newUpstream(t, func(_ dns.ResponseWriter, _, reply *dns.Msg) bool { reply.Rcode = dns.RcodeServerFailure; return true })
	good := newUpstream(t, answering(t))
	g := newRig(t, Config{Base: base(bad, good)})
	wantA(t, g.ask("www.example", dns.TypeA), "192.0.2.1")
	if bad.asked.Load() == 0 || good.asked.Load() == 0 {
		t.Errorf("asked %d and %d times", bad.asked.Load(), good.asked.Load())
	}
}

func TestAnOldServerIsAskedAgainWithoutEDNS(t *testing.T) {
	u := newUpstream(t, func(w dns.ResponseWriter, req, reply *dns.Msg) bool {
		if req.IsEdns0() != nil {
			reply.Rcode = dns.RcodeFormatError
			return true
		}
		return answering(t)(w, req, reply)
	})
	g := newRig(t, Config{Base: base(u)})
	wantA(t, g.ask("www.example", dns.TypeA), "192.0.2.1")
	wantA(t, g.ask("www2.example", dns.TypeA), "192.0.2.1")
	if n := u.asked.Load(); n != 3 {
		t.Errorf("asked %d times, want 3: the second name without EDNS at once", n)
	}
}

// blackHole is a server that never answers.
func blackHole(t testing.TB) *upstreamServer {
	return newUpstream(t, func(dns.ResponseWriter, *dns.Msg, *dns.Msg) bool { return false })
}

func TestNoAnswerEndsInAClearError(t *testing.T) {
	u := blackHole(t)
	g := newRig(t, Config{Base: base(u)})
	m := new(dns.Msg).SetQuestion("www.example.", dns.TypeA)
	m.SetEdns0(1232, false)
	var wg sync.WaitGroup
	wg.Go(func() {
		waitUntil(t, func() bool { return u.asked.Load() > 0 })
		g.sleep(4 * time.Second)
	})
	m = g.exchange(m)
	wg.Wait()
	if m.Rcode != dns.RcodeServerFailure {
		t.Fatalf("got\n%v", m)
	}
	ede, ok := m.IsEdns0().Option[0].(*dns.EDNS0_EDE)
	if !ok || ede.InfoCode != dns.ExtendedErrorCodeNoReachableAuthority || !strings.Contains(ede.ExtraText, u.String()) {
		t.Errorf("EDE %v", m.IsEdns0().Option)
	}
}

func TestAStaleAnswerIsBetterThanNone(t *testing.T) {
	var down atomic.Bool
	u := newUpstream(t, func(w dns.ResponseWriter, req, reply *dns.Msg) bool {
		return !down.Load() && answering(t)(w, req, reply)
	})
	g := newRig(t, Config{Base: base(u)})
	wantA(t, g.ask("www.example", dns.TypeA), "192.0.2.1")
	down.Store(true)
	g.sleep(2 * time.Minute)
	before := u.asked.Load()
	var wg sync.WaitGroup
	wg.Go(func() {
		waitUntil(t, func() bool { return u.asked.Load() > before })
		g.sleep(1900 * time.Millisecond)
	})
	m := g.ask("www.example", dns.TypeA)
	wg.Wait()
	wantA(t, m, "192.0.2.1")
	if ttl := m.Answer[0].Header().Ttl; ttl != 30 {
		t.Errorf("TTL %d, want 30 (RFC 8767)", ttl)
	}
}

func TestStuckQueriesDoNotSlowLocalNames(t *testing.T) {
	u := blackHole(t)
	table := mustTable(t, "foo-bar.ts.net", "nas.foo-bar.ts.net. 60 A 100.64.0.2")
	g := newRig(t, Config{Base: base(u), Table: table})
	conn, err := net.Dial("udp", g.addr.String())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	for i := range 1000 {
		if _, err := conn.Write(query(t, "stuck"+strings.Repeat("x", i%50)+string(rune('a'+i/50))+".example", dns.TypeA)); err != nil {
			t.Fatal(err)
		}
	}
	waitUntil(t, func() bool { return g.flights.active.Load() == 1000 })
	took := make([]time.Duration, 101)
	for i := range took {
		began := time.Now()
		wantA(t, g.ask("nas.foo-bar.ts.net", dns.TypeA), "100.64.0.2")
		took[i] = time.Since(began)
	}
	slices.Sort(took)
	// It takes a tenth of a millisecond; what else the machine does, and the race detector, count too.
	if median := took[len(took)/2]; median > 3*time.Millisecond {
		t.Errorf("a local name takes %s, want a millisecond at most", median)
	}
}

// mustTable makes a table of zone with records.
func mustTable(t testing.TB, zone string, records ...string) *Table {
	t.Helper()
	table, err := NewTable(TableConfig{Zone: zone, Ranges: []netip.Prefix{netip.MustParsePrefix("100.64.0.0/10")}, Records: rr(t, records...)})
	if err != nil {
		t.Fatal(err)
	}
	return table
}

func TestPrecedence(t *testing.T) {
	says := func(addr string) *upstreamServer {
		return newUpstream(t, func(_ dns.ResponseWriter, req, reply *dns.Msg) bool {
			reply.Answer = rr(t, req.Question[0].Name+" 60 A "+addr)
			return true
		})
	}
	baseServer, corp, deep, lan := says("192.0.2.1"), says("192.0.2.2"), says("192.0.2.3"), says("192.0.2.4")
	g := newRig(t, Config{
		Table: mustTable(t, "foo-bar.ts.net", "nas.foo-bar.ts.net. 60 A 100.64.0.2"),
		Routes: []Route{{Suffix: "corp.example", Upstreams: []Upstream{corp.Upstream}}, {Suffix: "deep.corp.example", Upstreams: []Upstream{deep.Upstream}},
			{Suffix: "net", Upstreams: []Upstream{corp.Upstream}}},
		Base: Base{Upstreams: []Upstream{baseServer.Upstream}, Learnt: []Route{{Suffix: "home.arpa", Upstreams: []Upstream{lan.Upstream}}}},
	})
	for name, want := range map[string]string{
		"nas.foo-bar.ts.net":  "100.64.0.2", // the zone, though a route has .net
		"www.example.net":     "192.0.2.2",
		"x.corp.example":      "192.0.2.2",
		"corp.example":        "192.0.2.2",
		"x.deep.corp.example": "192.0.2.3",
		"xcorp.example":       "192.0.2.1", // a label border is needed
		"printer.home.arpa":   "192.0.2.4", // learnt before special
		"localhost":           "127.0.0.1",
		"www.example.org":     "192.0.2.1",
	} {
		t.Run(name, func(t *testing.T) { wantA(t, g.ask(name, dns.TypeA), want) })
	}
	for _, name := range []string{"no.foo-bar.ts.net", "x.onion", "printer.local", "1.0.64.100.in-addr.arpa"} {
		if m := g.ask(name, dns.TypeA); m.Rcode != dns.RcodeNameError {
			t.Errorf("%s: %s, want NXDOMAIN", name, dns.RcodeToString[m.Rcode])
		}
	}
}

func TestBrowsersAreToldToKeepAskingTheSystem(t *testing.T) {
	u := newUpstream(t, answering(t))
	g := newRig(t, Config{Base: base(u)})
	if m := g.ask("use-application-dns.net", dns.TypeA); m.Rcode != dns.RcodeNameError {
		t.Errorf("got\n%v", m)
	}
}

func TestRebinding(t *testing.T) {
	u := newUpstream(t, func(_ dns.ResponseWriter, req, reply *dns.Msg) bool {
		reply.Answer = rr(t, req.Question[0].Name+" 60 A 100.64.0.9")
		return true
	})
	g := newRig(t, Config{Base: base(u), Routes: []Route{{Suffix: "corp.example", Upstreams: []Upstream{u.Upstream}}},
		Rebind: Rebind{Refuse: []netip.Prefix{netip.MustParsePrefix("100.64.0.0/10")}, Allow: []string{"ok.example"}}})
	m := new(dns.Msg).SetQuestion("evil.example.", dns.TypeA)
	m.SetEdns0(1232, false)
	if m = g.exchange(m); len(m.Answer) != 0 || m.Rcode != dns.RcodeSuccess {
		t.Errorf("a rebinding answer got through:\n%v", m)
	} else if ede, ok := m.IsEdns0().Option[0].(*dns.EDNS0_EDE); !ok || ede.InfoCode != dns.ExtendedErrorCodeBlocked {
		t.Errorf("EDE %v, want Blocked", m.IsEdns0().Option)
	}
	wantA(t, g.ask("x.ok.example", dns.TypeA), "100.64.0.9")
	wantA(t, g.ask("x.corp.example", dns.TypeA), "100.64.0.9")
	if n := g.Stats().Rebound; n != 1 {
		t.Errorf("%d answers refused, want 1", n)
	}
}

func TestAnAliasOutOfTheZoneIsFollowedUpstream(t *testing.T) {
	u := newUpstream(t, answering(t))
	g := newRig(t, Config{Base: base(u), Table: mustTable(t, "foo-bar.ts.net",
		"blog.foo-bar.ts.net. 60 CNAME www.example.com.", "b2.foo-bar.ts.net. 60 CNAME blog.foo-bar.ts.net.")})
	m := g.ask("b2.foo-bar.ts.net", dns.TypeA)
	wantA(t, m, "192.0.2.1")
	if len(m.Answer) != 3 || !m.Authoritative {
		t.Errorf("got\n%v", m)
	}
	raw, err := g.Answer(t.Context(), query(t, "blog.foo-bar.ts.net", dns.TypeA), TCP)
	if err != nil {
		t.Fatal(err)
	}
	if err := m.Unpack(raw); err != nil || len(m.Answer) != 2 {
		t.Errorf("%v\n%v", err, m)
	}
}

func TestAnUpstreamThatIsOurselfIsFoundOutAndLeftOut(t *testing.T) {
	g := newRig(t, Config{})
	good := newUpstream(t, answering(t))
	self, err := ParseUpstream(g.addr.String())
	if err != nil {
		t.Fatal(err)
	}
	if err := g.SetBase(Base{Upstreams: []Upstream{self, good.Upstream}}); err != nil {
		t.Fatal(err)
	}
	waitUntil(t, func() bool {
		for _, u := range g.Upstreams() {
			if u.State == "loop" {
				return u.Upstream == g.addr.String()
			}
		}
		return false
	})
	wantA(t, g.ask("www.example", dns.TypeA), "192.0.2.1")
}

func TestWhatIsNeverForwarded(t *testing.T) {
	u := newUpstream(t, answering(t))
	g := newRig(t, Config{Base: base(u)})
	edit := func(f func(*dns.Msg)) *dns.Msg {
		m := new(dns.Msg).SetQuestion("www.example.", dns.TypeA)
		f(m)
		return m
	}
	for name, row := range map[string]struct {
		m    *dns.Msg
		want int
	}{
		"AXFR":                 {edit(func(m *dns.Msg) { m.Question[0].Qtype = dns.TypeAXFR }), dns.RcodeRefused},
		"IXFR":                 {edit(func(m *dns.Msg) { m.Question[0].Qtype = dns.TypeIXFR }), dns.RcodeRefused},
		"class CH":             {edit(func(m *dns.Msg) { m.Question[0].Qclass = dns.ClassCHAOS }), dns.RcodeRefused},
		"opcode STATUS":        {edit(func(m *dns.Msg) { m.Opcode = dns.OpcodeStatus }), dns.RcodeNotImplemented},
		"recursion not wanted": {edit(func(m *dns.Msg) { m.RecursionDesired = false }), dns.RcodeRefused},
		"EDNS version 7":       {edit(func(m *dns.Msg) { m.SetEdns0(1232, false); m.IsEdns0().SetVersion(7) }), dns.RcodeBadVers},
	} {
		t.Run(name, func(t *testing.T) {
			if m := g.exchange(row.m); m.Rcode != row.want {
				t.Errorf("got %s, want %s", dns.RcodeToString[m.Rcode], dns.RcodeToString[row.want])
			}
		})
	}
	if n := u.asked.Load(); n != 0 {
		t.Errorf("upstream was asked %d times", n)
	}
}

func TestWithoutUpstreamsTheErrorSaysSo(t *testing.T) {
	g := newRig(t, Config{})
	m := new(dns.Msg).SetQuestion("www.example.", dns.TypeA)
	m.SetEdns0(1232, false)
	m = g.exchange(m)
	if m.Rcode != dns.RcodeServerFailure || !strings.Contains(m.String(), "no upstream is known") {
		t.Errorf("got\n%v", m)
	}
}

func TestANewNetworkForgetsTheOldOnesAnswers(t *testing.T) {
	one, two := newUpstream(t, answering(t)), newUpstream(t, answering(t))
	g := newRig(t, Config{Base: base(one)})
	g.ask("www.example", dns.TypeA)
	if err := g.SetBase(base(two)); err != nil {
		t.Fatal(err)
	}
	g.ask("www.example", dns.TypeA)
	if one.asked.Load() != 1 || two.asked.Load() != 1 {
		t.Errorf("asked %d and %d times, want 1 and 1", one.asked.Load(), two.asked.Load())
	}
	if err := g.SetBase(base(two)); err != nil {
		t.Fatal(err)
	}
	g.ask("www.example", dns.TypeA)
	if two.asked.Load() != 1 {
		t.Errorf("the same base again forgot its answers")
	}
}

package resolver

import (
	"sync"
	"testing"
	"time"

	"github.com/miekg/dns"
)

func TestALateQuestionDoesNotJoinAFlightOfTheOldNetwork(t *testing.T) {
	old, next := blackHole(t), newUpstream(t, answering(t))
	g := newRig(t, Config{Base: base(old)})
	var wg sync.WaitGroup
	wg.Go(func() { wantA(t, g.answer(questionFor("www.example", dns.TypeA), TCP), "192.0.2.1") })
	waitUntil(t, func() bool { return old.asked.Load() > 0 })
	if err := g.SetBase(base(next)); err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	wantA(t, g.ask("www.example", dns.TypeA), "192.0.2.1")
	wg.Wait()
	if d := time.Since(began); d > time.Second {
		t.Errorf("took %s", d)
	}
}

func TestFlightsTurnToTheServersThatAreRightNow(t *testing.T) {
	old, lan, corp, next := blackHole(t), blackHole(t), newUpstream(t, answering(t)), newUpstream(t, answering(t))
	home := Route{Suffix: "home.arpa", Upstreams: []Upstream{lan.Upstream}}
	g := newRig(t, Config{Base: Base{Upstreams: []Upstream{old.Upstream}, Learnt: []Route{home}}})
	replies := make(map[string]chan *dns.Msg)
	for _, name := range []string{"www.example.", "www.corp.example.", "printer.home.arpa."} {
		reply := make(chan *dns.Msg, 1)
		replies[name] = reply
		go func() { reply <- g.answer(questionFor(name, dns.TypeA), TCP) }()
	}
	waitUntil(t, func() bool { return old.asked.Load() >= 2 && lan.asked.Load() >= 1 })
	if err := g.SetRoutes([]Route{{Suffix: "corp.example", Upstreams: []Upstream{corp.Upstream}}}); err != nil {
		t.Fatal(err)
	}
	wantA(t, <-replies["www.corp.example."], "192.0.2.1")
	if err := g.SetBase(base(next)); err != nil {
		t.Fatal(err)
	}
	wantA(t, <-replies["www.example."], "192.0.2.1")
	if m := <-replies["printer.home.arpa."]; m.Rcode != dns.RcodeServerFailure {
		t.Errorf("got\n%v", m)
	}
	if corp.asked.Load() != 1 || next.asked.Load() != 1 {
		t.Errorf("asked %d and %d times, want 1 and 1: no name of the LAN is for others", corp.asked.Load(), next.asked.Load())
	}
}

func TestAFailureOfTheOldNetworkIsNotRememberedInTheNew(t *testing.T) {
	b := newUpstreamBench(t)
	q := query(t, "www.example", dns.TypeA)
	b.ask(t, q, UDP)
	b.forgetAll()
	b.later(5 * time.Second)
	if b.ask(t, q, UDP) == nil {
		t.Errorf("answered out of the cache: %x", <-b.reply)
	}
	b.later(5 * time.Second)
}

func TestALateAnswerOfTheOldNetworkIsNoAnswer(t *testing.T) {
	release, asked := make(chan struct{}), make(chan struct{}, 16)
	old := newScripted(t, func(_ int, c *scriptedConn) {
		for q := c.next(); q != nil; q = c.next() {
			if q[headerSize+1] != 'w' { // a probe for loops
				c.answer(q)
				continue
			}
			asked <- struct{}{}
			<-release
			c.sendMsg(answerA(q))
		}
	})
	next := blackHole(t)
	keep := Route{Suffix: "corp.example", Upstreams: []Upstream{old.Upstream}} // so that the server lives on
	g := newRig(t, Config{Base: Base{Upstreams: []Upstream{old.Upstream}}, Routes: []Route{keep}})
	reply := make(chan *dns.Msg, 1)
	go func() { reply <- g.answer(questionFor("www.example", dns.TypeA), TCP) }()
	<-asked
	if err := g.SetBase(base(next)); err != nil {
		t.Fatal(err)
	}
	waitUntil(t, func() bool { return next.asked.Load() > 0 })
	close(release)
	waitUntil(t, func() bool { return g.servers.get(old.Upstream).srtt.Load() > 0 })
	g.sleep(4 * time.Second)
	if m := <-reply; m.Rcode != dns.RcodeServerFailure {
		t.Errorf("got\n%v", m)
	}
}

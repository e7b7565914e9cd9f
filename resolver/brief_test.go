package resolver

import (
	"testing"

	"github.com/miekg/dns"
)

func TestBriefAnswersAreNeitherCachedNorKept(t *testing.T) {
	u := newUpstream(t, answering(t))
	g := newRig(t, Config{Base: Base{Upstreams: []Upstream{u.Upstream}, Brief: true}})
	for n := range uint64(2) {
		m := g.ask("www.example", dns.TypeA)
		wantA(t, m, "192.0.2.1")
		if ttl := m.Answer[0].Header().Ttl; ttl > briefTTL {
			t.Errorf("the TTL is %d, want %d at most", ttl, briefTTL)
		}
		if got := u.asked.Load(); uint64(got) != n+1 {
			t.Errorf("asked %d times, want %d: the answer was cached", got, n+1)
		}
	}
	if n := g.Stats().Cache.Entries; n != 0 {
		t.Errorf("%d cached, want none", n)
	}
}

func TestTheSameServersForgetWhatWasBrief(t *testing.T) {
	u := newUpstream(t, answering(t))
	g := newRig(t, Config{Base: base(u)})
	wantA(t, g.ask("www.example", dns.TypeA), "192.0.2.1")
	brief := base(u)
	brief.Brief = true
	for _, b := range []Base{brief, base(u)} {
		before := u.asked.Load()
		if err := g.SetBase(b); err != nil {
			t.Fatal(err)
		}
		wantA(t, g.ask("www.example", dns.TypeA), "192.0.2.1")
		if u.asked.Load() == before {
			t.Errorf("brief %t: the answer of before was given", b.Brief)
		}
	}
}

func TestAnUpstreamOutOfUseCanBeAsked(t *testing.T) {
	used, other := newUpstream(t, answering(t)), newUpstream(t, answering(t))
	g := newRig(t, Config{Base: base(used)})
	query, err := questionFor("www.example", dns.TypeA).Pack()
	if err != nil {
		t.Fatal(err)
	}
	raw, err := g.Ask(t.Context(), other.Upstream, query)
	if err != nil {
		t.Fatal(err)
	}
	m := new(dns.Msg)
	if err := m.Unpack(raw); err != nil {
		t.Fatal(err)
	}
	wantA(t, m, "192.0.2.1")
	if used.asked.Load() != 0 || g.Stats().Cache.Entries != 0 {
		t.Error("the one in use was asked, or the answer cached")
	}
}

package node

import (
	"context"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/miekg/dns"

	"github.com/meshdns/meshdns/resolver"
)

// portalProbeTime is how long an upstream may take to answer a probe, with the handshake that DNS over TLS begins with.
const portalProbeTime = 3 * time.Second

// portalRest is the least time between two looks: where containers come and go, routes change by the second.
const portalRest = 100 * time.Millisecond

// portalName is what the network's DNS is asked, to see whether it knows addresses: a name that browsers look up for the
// same purpose, so that portals let it pass.
const portalName = "detectportal.firefox.com."

// The states of a portal.
const (
	portalOff  = "off"  // dns.portal is off
	portalNone = "none" // the configured upstreams are in use
	portalUp   = "up"   // the network's DNS is used in their place
)

// portal puts the network's DNS in place of the configured upstreams while its portal is up.
type portal struct {
	routing  *routing
	ask      func(ctx context.Context, u resolver.Upstream, query []byte) ([]byte, error)
	gateways func() ([]wayOut, error)                            // the ways out
	hint     func(ctx context.Context, ways []wayOut) portalHint // what the network says of itself
	follow   func(ctx context.Context, changed func())           // calls changed when the ways out may have changed
	report   func(format string, args ...any)
	log      *slog.Logger
	kick     chan struct{}

	// Of run alone.
	judge portalJudge
	here  site
	due   time.Time

	mu  sync.Mutex
	now portalStatus
}

// wayOut is one way out of the machine: a default route.
type wayOut struct {
	index int // of its link
	link  string
	via   string // the router's address; empty: the link itself leads out
}

// site is the network that the machine is on.
type site struct {
	ways []wayOut
	base []string
}

// left reports whether next is another network than p. As long as one way out stays it is the same, whatever is said on
// it: somebody who can make routers and servers known there must not be able to make it a new one. Where no ways out are
// known its servers tell.
func (p site) left(next site) bool {
	if len(p.ways) == 0 && len(next.ways) == 0 {
		return !slices.Equal(p.base, next.base)
	}
	return !slices.ContainsFunc(p.ways, func(w wayOut) bool { return slices.Contains(next.ways, w) })
}

// newPortal is the portal of a node that has a resolver.
func (n *Node) newPortal() *portal {
	return &portal{
		routing: &n.routing, ask: n.resolver.Ask, gateways: defaultGateways, hint: readPortalHint, follow: followRoutes,
		report: n.report, log: n.log, kick: make(chan struct{}, 1),
	}
}

// wake has run look soon. On a nil portal it does nothing.
func (p *portal) wake() {
	if p == nil {
		return
	}
	select {
	case p.kick <- struct{}{}:
	default:
	}
}

// state is how it is now. A nil portal is off.
func (p *portal) state() portalStatus {
	if p == nil {
		return portalStatus{State: portalOff}
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.now.State == "" {
		return portalStatus{State: portalNone}
	}
	return p.now
}

// run looks whenever the network may have changed, and while it has to be probed, until ctx ends.
func (p *portal) run(ctx context.Context) error {
	var following sync.WaitGroup
	defer following.Wait()
	following.Go(func() { p.follow(ctx, p.wake) })
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-p.kick:
		case <-timer.C:
		}
		if wait, again := p.look(ctx); again {
			timer.Reset(max(wait, portalRest))
		} else {
			timer.Stop()
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(portalRest):
		}
	}
}

// look notes where the machine is, probes if that is due, and does what the judge says. It returns when to look again.
func (p *portal) look(ctx context.Context) (wait time.Duration, again bool) {
	ours, base := p.routing.choice()
	ways, err := p.gateways()
	if err != nil {
		p.log.Debug("the default routes are not known", "err", err)
	}
	here := site{ways: ways, base: spell(base)}
	if now := time.Now(); p.judge.arrived.IsZero() || p.here.left(here) {
		p.judge.arrive(now)
		p.due = now
		p.settle(ours, base, portalHint{}) // what was known holds for the network before
	}
	p.here = here
	if len(ours) == 0 || len(base) == 0 {
		p.judge.up, p.judge.rounds = false, 0
		p.settle(ours, base, portalHint{})
		return 0, false
	}
	if early := time.Until(p.due); early > 0 {
		return early, true
	}
	var hint portalHint
	if wait, again = p.judge.pause(time.Now(), rand.Float64()); again {
		hint = p.round(ctx, ours, base)
		wait, again = p.judge.pause(time.Now(), rand.Float64())
	}
	if ctx.Err() != nil {
		return 0, false
	}
	p.settle(ours, base, hint)
	p.due = time.Now().Add(wait)
	return wait, again
}

// round probes the configured upstreams and, if none answers, the network's own.
func (p *portal) round(ctx context.Context, ours, base []resolver.Upstream) portalHint {
	var hint portalHint
	facts := portalFacts{answers: p.anyAnswers(ctx, ours, new(dns.Msg).SetQuestion(".", dns.TypeNS), func(*dns.Msg) bool { return true })}
	if !facts.answers {
		hint = p.hint(ctx, p.here.ways)
		facts.announced = hint.announced
		facts.base = p.judge.up || p.anyAnswers(ctx, base, new(dns.Msg).SetQuestion(portalName, dns.TypeA), holdsAddress)
	}
	if ctx.Err() == nil { // else nothing was learnt
		p.judge.round(time.Now(), facts)
	}
	return hint
}

func holdsAddress(m *dns.Msg) bool {
	return slices.ContainsFunc(m.Answer, func(rr dns.RR) bool { return rr.Header().Rrtype == dns.TypeA })
}

// anyAnswers asks all servers at the same time, until one gives an answer that will do.
func (p *portal) anyAnswers(ctx context.Context, servers []resolver.Upstream, question *dns.Msg, do func(*dns.Msg) bool) bool {
	ctx, cancel := context.WithTimeout(ctx, portalProbeTime)
	defer cancel()
	answers := make(chan bool, len(servers))
	for _, u := range servers {
		q := question.Copy()
		q.Id = dns.Id()
		go func() {
			reply := new(dns.Msg)
			query, err := q.Pack()
			if err == nil {
				query, err = p.ask(ctx, u, query)
			}
			if err == nil {
				err = reply.Unpack(query)
			}
			answers <- err == nil && do(reply)
		}()
	}
	found := false
	for range servers { // each ends with ctx
		if <-answers {
			found = true
			cancel()
		}
	}
	return found
}

// settle makes the judge's word true, and tells of it where it is news.
func (p *portal) settle(ours, base []resolver.Upstream, hint portalHint) {
	was := p.state().State == portalUp
	now := portalStatus{State: portalNone}
	if p.judge.up {
		since := p.judge.since.UTC().Truncate(time.Millisecond)
		now = portalStatus{State: portalUp, Since: &since, URI: hint.uri, Reason: portalReason(ours, base)}
	}
	p.mu.Lock()
	p.now = now
	p.mu.Unlock()
	if was == p.judge.up {
		return
	}
	if err := p.routing.setPortal(p.judge.up); err != nil {
		p.log.Error("the upstreams are not changed", "err", err)
	}
	if p.judge.up {
		p.log.Info("the network's DNS is used while its portal is up", "portal", hint.uri, "dns", spell(base), "blocked", spell(ours))
		p.report("portal: %s", now.Reason)
		return
	}
	p.log.Info("the network's DNS is not used any more", "answers", p.judge.worked, "upstreams", spell(ours))
	p.report("portal left; upstreams %s", strings.Join(spell(ours), " "))
}

// portalReason tells people what is going on.
func portalReason(ours, base []resolver.Upstream) string {
	return fmt.Sprintf("%s cannot be reached before somebody signs in on this network's page; until then names outside the tailnet are told to the network's own DNS, %s",
		strings.Join(spell(ours), " "), strings.Join(spell(base), " "))
}

package node

import (
	"math/rand/v2"
	"net/netip"
	"slices"
	"time"

	"github.com/meshdns/meshdns/node/tunnel"
)

// pathState says how a peer is reached.
type pathState string

// The states. WireGuard itself sends to where the last authentic packet came from; we only set it going. So whoever hears the
// other side directly answers directly, and nobody needs to agree with anybody: each follows what comes in, and insists
// on its own choice for moments only.
const (
	relayed  pathState = "gateway"  // through the gateway's relay
	trying   pathState = "trying"   // the same, while a question now and then goes to where it may be reached directly
	settling pathState = "settling" // something came directly, and it is seen whether more does
	direct   pathState = "direct"
	// recalled is without a gateway: packets go to where the peer was reached directly once.
	recalled pathState = "recalled"
)

// The times of a path.
const (
	// lookTime is the step of a trial. While the two speak through the gateway every packet that comes by that takes
	// WireGuard back to it, so a place that is tried has to be set again and again, until those under way have come.
	lookTime = 20 * time.Millisecond
	// proven is how many looks of a trial have to see something new come directly.
	proven = 2
	// settleTime is for how long a direct path is insisted on, and settled what is asked of it.
	settleTime = time.Second
	settled    = 5
	// A machine that has no time to look takes more of it: up to settleCap, while it has not looked settleLooks times.
	settleCap   = 5 * time.Second
	settleLooks = 20
	// pauseTime is between the rounds of a trial, in which the gateway passes packets as before.
	pauseTime = 250 * time.Millisecond
	// A direct path that answers nothing is asked after suspectTime, and left after deadTime.
	suspectTime = 2 * time.Second
	deadTime    = 5 * time.Second
	// A handshake that is not answered for refusedTime, in which WireGuard begins it twice, is to be begun by the other side.
	refusedTime = 8 * time.Second
	// The pauses between trials, doubled with each failure.
	firstTrial = 15 * time.Second
	lastTrial  = 10 * time.Minute
	// shortPath is what lasts so little that it counts as a failure.
	shortPath = time.Minute
	// recallAfter is how long we send without an answer, and without a gateway, before the last direct path is tried again, and
	// recallTime for how long it is: WireGuard sends its handshake again after 5 s.
	recallAfter = time.Second
	recallTime  = 11 * time.Second
	// A relay that has begun anew drops the handshakes of nodes that it does not know yet. WireGuard sends them again after
	// 5 s, twice if the other side was late too: so we do sooner, some times.
	handshakeAgain  = 1500 * time.Millisecond
	handshakesAgain = 4
	// Two handshakes that cross come both to nothing. So one of the two sides begins, and the other one only if nothing has come by then.
	secondBegins = 300 * time.Millisecond
	// usedTime is for how long after its last traffic a pair is worth an effort.
	usedTime  = 5 * time.Minute
	usedBytes = 2048 // what keepalives and questions do not come to in that time
)

// trialRound is one round of a trial: how long each candidate is tried, and whether by a new handshake.
type trialRound struct {
	hold  time.Duration
	renew bool
}

// trialRounds are the rounds. What is sent meanwhile is lost if nobody is there, and TCP sends it again: so the first ones
// are short. The first packet of each side may only open its own NAT. While much comes through the gateway every packet of
// that takes WireGuard back there, and nothing can be seen nor held: the last round forgets the session, so that those
// packets mean nothing, and a handshake tells. It takes place only where the rounds before were disturbed.
func trialRounds() []trialRound {
	return []trialRound{{hold: 60 * time.Millisecond}, {hold: 120 * time.Millisecond}, {hold: 240 * time.Millisecond}, {hold: 300 * time.Millisecond, renew: true}}
}

// pathFacts are what a decision about a path rests on.
type pathFacts struct {
	now     time.Time
	stats   tunnel.PeerStats
	gateway bool           // is reached
	room    bool           // for one more trial
	last    netip.AddrPort // where the peer was reached directly once; invalid: nowhere that may be tried
}

// pathMove is what is to be done.
type pathMove struct {
	to    netip.AddrPort // send there from now on; invalid: as before
	renew bool           // by a new handshake
	nudge bool           // have the peer say something
	ask   bool           // have the gateway introduce the two
	wait  time.Duration  // until the next look
	was   pathState      // before the look
}

// path decides how one peer is reached. It has no clock, and does nothing.
type path struct {
	relays     []netip.AddrPort // any of the gateway's; packets are sent to the first
	state      pathState
	since      time.Time
	at         netip.AddrPort   // where the peer is heard from directly
	candidates []netip.AddrPort // where it may be

	forgotten time.Time // when the relay began anew, and knew no session; zero: it knows them
	wanted    bool      // a trial
	round     int
	candidate int           // that is tried now, and one; 0: none is
	next      time.Time     // candidate's turn
	looks     int           // since something was set: on a busy machine they come late, and time alone says little
	retry     time.Time     // when the gateway is asked for an introduction again
	accept    time.Time     // when an introduction is followed again that brings nothing new
	again     int           // handshakes that may be sent anew to a relay that has begun anew
	patience  time.Duration // until the next of them
	second    bool          // the peer begins where both could
	recall    time.Time     // when the last direct path is tried again
	recalls   int           // that brought nothing
	unsure    bool          // the gateway seems to be there while it is
	failures  int
	begin     time.Time // when the gateway is asked again to have the peer begin a session
	asked     int       // times that it was, in vain

	base           uint64 // bytes received when the endpoint was set last
	received, sent uint64
	unanswered     time.Time // since when we send and hear nothing; zero: we do not
	confirmed      int
	disturbed      bool   // something came through the gateway while a candidate was tried
	mark           uint64 // bytes of both ways when it was used last
	used           time.Time
}

func newPath(relays []netip.AddrPort, now time.Time) *path {
	return &path{relays: relays, state: relayed, since: now, retry: now.Add(firstTrial / 3)}
}

// introduce takes note of where the peer may be reached. Both sides are told at once, and try at once.
func (p *path) introduce(candidates []netip.AddrPort, now time.Time, asked bool) {
	fresh := !slices.Equal(p.candidates, candidates)
	p.candidates = candidates
	p.candidate = min(p.candidate, len(candidates)) // of a trial that is under way
	if p.state == relayed && (fresh || asked || !now.Before(p.accept)) {
		p.wanted = len(candidates) > 0
	}
}

// moved has a machine whose network has changed begin anew.
func (p *path) moved(now time.Time) {
	p.failures, p.retry, p.accept, p.recall = 0, now, now, now
	if p.state == direct {
		p.unanswered = now.Add(-suspectTime)
	}
}

// relayRestarted has a pair that speaks through the gateway make a session that its relay sees begin.
func (p *path) relayRestarted(now time.Time) {
	p.forgotten, p.again, p.patience = now, handshakesAgain, someHandshakeAgain()
	p.failures, p.recalls, p.retry, p.accept = 0, 0, now.Add(firstTrial/3), now // what failed without it says nothing of now
}

// someHandshakeAgain is when a handshake is sent again: not at the same time on both sides.
func someHandshakeAgain() time.Duration { return handshakeAgain + rand.N(handshakeAgain) }

// rekeyed has a machine whose keys have changed make a new session with the peer, by the way that always works.
func (p *path) rekeyed(now time.Time) {
	p.forgotten, p.candidate, p.confirmed, p.retry = now, 0, 0, now.Add(firstTrial/3)
	p.to(relayed, now)
}

// based takes note of what has been received when the endpoint was set.
func (p *path) based(received uint64) { p.base, p.received = received, received }

// step is one look.
func (p *path) step(f pathFacts) pathMove {
	grew := p.look(f)
	roamed := f.stats.Endpoint.IsValid() && !slices.Contains(p.relays, f.stats.Endpoint)
	switch p.state {
	case trying:
		return p.try(f, roamed, grew)
	case settling:
		return p.settle(f, roamed, grew)
	case direct:
		return p.stay(f, roamed)
	case recalled:
		return p.await(f, roamed)
	}
	return p.idle(f, roamed)
}

// look takes in the counters.
func (p *path) look(f pathFacts) (grew bool) {
	s := f.stats
	grew = s.Received > p.received
	switch {
	case grew:
		p.unanswered = time.Time{}
	case s.Sent > p.sent && p.unanswered.IsZero():
		p.unanswered = f.now
	}
	p.received, p.sent = s.Received, s.Sent
	total := s.Received + s.Sent
	if total < p.mark {
		p.mark = total // the counters have begun anew
	}
	if total-p.mark > usedBytes {
		p.mark, p.used = total, f.now
	}
	return grew
}

// live reports whether there is a session, with time left: a trial must not cost the packets of a handshake.
func live(f pathFacts) bool {
	return !f.stats.Handshake.IsZero() && f.now.Sub(f.stats.Handshake) < sessionLife-10*time.Second
}

func (p *path) to(s pathState, now time.Time) { p.state, p.since = s, now }

// idle is a look while the gateway passes the packets.
func (p *path) idle(f pathFacts, roamed bool) pathMove {
	m := pathMove{wait: 2 * time.Second}
	inUse := live(f) && f.now.Sub(p.used) < usedTime
	switch {
	case roamed && p.forgotten.IsZero():
		return p.heard(f) // the other side has tried, and we hear it
	case p.dropped(f):
		p.again--
		p.unanswered, p.patience = f.now, someHandshakeAgain()
		return pathMove{to: p.relays[0], renew: true, nudge: true, wait: p.patience}
	case p.alone(f):
		p.unsure = f.gateway
		p.to(recalled, f.now)
		return pathMove{to: f.last, renew: true, nudge: true, wait: time.Second}
	case !p.forgotten.IsZero() && f.stats.Handshake.After(p.forgotten):
		// A session was made since. One more at once would be taken for a replay, and cost 5 s.
		p.forgotten, p.wanted = time.Time{}, len(p.candidates) > 0
		m.wait = lookTime
		return m
	case !p.forgotten.IsZero() && live(f) && p.second && f.now.Sub(p.forgotten) < secondBegins:
		m.wait = lookTime
		return m
	case !p.forgotten.IsZero() && live(f):
		p.forgotten, p.wanted = time.Time{}, len(p.candidates) > 0
		return pathMove{to: p.relays[0], renew: true, nudge: true, wait: time.Second}
	case p.wanted && live(f) && f.room:
		p.wanted, p.round, p.candidate, p.next, p.confirmed = false, 0, 0, f.now, 0
		p.to(trying, f.now)
		return p.try(f, false, false)
	case inUse && f.gateway && !f.now.Before(p.retry):
		p.retry = f.now.Add(p.pause())
		m.ask = true
	case live(f):
		p.asked = 0
	case f.gateway && !p.unanswered.IsZero() && f.now.Sub(p.unanswered) >= refusedTime && !f.now.Before(p.begin):
		// The peer is not there, or it refuses our handshakes for our clock has gone back: then it is to begin.
		p.begin = f.now.Add(min(firstTrial<<min(p.asked, 10), lastTrial))
		p.asked++
		m.ask = true
	}
	if inUse || p.wanted || f.last.IsValid() && !p.unanswered.IsZero() {
		m.wait = time.Second
	}
	if p.again > 0 && f.stats.Handshake.IsZero() {
		m.wait = time.Second / 2
	}
	return m
}

// dropped reports whether a handshake that was sent to a relay that has begun anew has come to nothing.
func (p *path) dropped(f pathFacts) bool {
	return f.gateway && p.again > 0 && f.stats.Handshake.IsZero() && !p.unanswered.IsZero() && f.now.Sub(p.unanswered) >= p.patience
}

// alone reports whether the way through the gateway is none at the moment, somebody wants one, and another one was there once.
// That a gateway is dead is known only some time later, so silence counts, too.
func (p *path) alone(f pathFacts) bool {
	after := recallAfter
	if f.gateway {
		after = deadTime + recallAfter
	}
	return f.last.IsValid() && !f.now.Before(p.recall) && !p.unanswered.IsZero() && f.now.Sub(p.unanswered) >= after
}

// await is a look while the peer is called where it was reached once. It is told by its answer, or by its own call.
func (p *path) await(f pathFacts, roamed bool) pathMove {
	p.unsure = p.unsure && f.gateway
	switch {
	case roamed && !f.stats.Handshake.IsZero():
		p.recalls = 0
		return p.heard(f)
	case (!f.gateway || p.unsure) && roamed && f.now.Sub(p.since) < recallTime:
		return pathMove{nudge: true, wait: time.Second}
	}
	// The gateway is back, or what was its relay may be.
	p.recall = f.now.Add(min(firstTrial<<min(p.recalls, 10), lastTrial))
	p.recalls++
	p.retry, p.unanswered = f.now.Add(firstTrial/3), time.Time{}
	p.to(relayed, f.now)
	return pathMove{to: p.relays[0], renew: true, nudge: f.gateway, wait: time.Second}
}

// pause is how long it is until the next trial of ours: not the same on both sides, nor for all peers after an outage.
func (p *path) pause() time.Duration {
	d := min(firstTrial<<min(p.failures, 10), lastTrial)
	return d + rand.N(d/4)
}

// heard begins to insist on where something authentic came from.
func (p *path) heard(f pathFacts) pathMove {
	p.at, p.confirmed, p.candidate, p.wanted, p.forgotten = f.stats.Endpoint, 0, 0, false, time.Time{}
	p.looks = 0
	p.to(settling, f.now)
	return pathMove{nudge: true, wait: lookTime}
}

// try is a look during a trial. Packets go to a candidate for a moment: if they get there the peer answers directly, and
// WireGuard sends to where that comes from.
func (p *path) try(f pathFacts, roamed, grew bool) pathMove {
	all := trialRounds()
	if roamed && grew {
		p.confirmed++
	}
	shook := p.round < len(all) && all[p.round].renew && p.candidate > 0 && roamed && !f.stats.Handshake.IsZero()
	if p.confirmed >= proven || shook {
		return p.heard(f)
	}
	p.looks++
	if f.now.Before(p.next) || p.candidate > 0 && p.looks <= int(all[p.round].hold/lookTime/2) {
		m := pathMove{wait: lookTime}
		if left := p.next.Sub(f.now); left > 0 {
			m.wait = min(lookTime, left)
		}
		if p.candidate > 0 && !roamed {
			p.disturbed = p.disturbed || !all[p.round].renew
			m.to, m.nudge = p.candidates[p.candidate-1], true
		}
		return m
	}
	switch {
	case p.round == len(all) || all[p.round].renew && !p.disturbed:
		return p.failed(f, pathMove{wait: time.Second})
	case p.candidate < len(p.candidates):
		p.candidate++
		p.next, p.looks = f.now.Add(all[p.round].hold), 0
		return pathMove{to: p.candidates[p.candidate-1], renew: all[p.round].renew, nudge: true, wait: lookTime}
	}
	m := pathMove{to: p.relays[0], renew: all[p.round].renew, nudge: true, wait: lookTime}
	p.candidate, p.confirmed = 0, 0
	p.round++
	p.next = f.now.Add(pauseTime)
	return m
}

// failed is the end of a trial or of a path that lasted for moments.
func (p *path) failed(f pathFacts, m pathMove) pathMove {
	d := p.pause()
	p.failures++
	p.retry, p.accept = f.now.Add(d), f.now.Add(d/2)
	p.to(relayed, f.now)
	return m
}

// settle is a look at a path that something came by. Packets that were under way through the gateway set WireGuard's
// endpoint back to that, so it is set again for a while.
func (p *path) settle(f pathFacts, roamed, grew bool) pathMove {
	if roamed && grew {
		p.at = f.stats.Endpoint
		p.confirmed++
	}
	p.looks++
	short := p.confirmed < settled && p.looks < settleLooks && f.now.Sub(p.since) < settleCap
	if f.now.Sub(p.since) < settleTime || short {
		m := pathMove{nudge: true, wait: lookTime}
		if !roamed {
			m.to = p.at
		}
		return m
	}
	if p.confirmed < settled {
		return p.failed(f, pathMove{to: p.relays[0], nudge: true, wait: time.Second})
	}
	p.unanswered = time.Time{}
	p.to(direct, f.now)
	return pathMove{wait: time.Second}
}

// stay is a look at a direct path.
func (p *path) stay(f pathFacts, roamed bool) pathMove {
	over := f.stats.Handshake.IsZero() || f.now.Sub(f.stats.Handshake) > sessionLife
	silent := !p.unanswered.IsZero() && f.now.Sub(p.unanswered) >= deadTime
	switch {
	case !roamed:
		return p.left(f, pathMove{wait: time.Second}) // the peer has left it: it has its reasons
	case silent && f.gateway:
		// The relay does not know sessions that were made past it.
		return p.left(f, pathMove{to: p.relays[0], renew: true, nudge: true, wait: time.Second})
	case over && f.gateway:
		// Nothing can be sent without a new handshake. It is to find the peer wherever that is by then.
		p.failures = 0
		p.retry = f.now.Add(firstTrial / 3)
		p.to(relayed, f.now)
		return pathMove{to: p.relays[0], wait: 2 * time.Second}
	}
	p.at = f.stats.Endpoint
	if f.now.Sub(p.since) > shortPath {
		p.failures = 0
	}
	switch {
	case silent:
		return pathMove{nudge: true, wait: deadTime} // there is no other way
	case !p.unanswered.IsZero() && f.now.Sub(p.unanswered) >= suspectTime:
		return pathMove{nudge: true, wait: time.Second / 2}
	}
	return pathMove{wait: time.Second}
}

// left is the end of a direct path. One that lasted is tried again soon.
func (p *path) left(f pathFacts, m pathMove) pathMove {
	if f.now.Sub(p.since) > shortPath {
		p.failures = 0
	}
	return p.failed(f, m)
}

// keepalive is how a peer's path is kept open: NATs forget what is quiet, links of our own do not.
func (p *path) keepalive(now time.Time) time.Duration {
	if p.state != direct || p.at.Addr().IsPrivate() || p.at.Addr().IsLoopback() || now.Sub(p.used) > usedTime {
		return 0
	}
	return gatewayKeepalive
}

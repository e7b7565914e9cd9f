package node

import "time"

// A network with a captive portal (RFC 8910) lets nothing out before somebody has signed in on its page, and only its own
// DNS tells where that page is. Who has set dns.upstreams asks other servers, which are blocked, and would never see the
// page. So the network's DNS is asked while its portal is up, and this file decides when that is.
//
// It is also what somebody wants who runs a hostile network: block the encrypted servers, and have the names told to one
// of their own. No sign of a portal is beyond forging, so none is asked to prove anything; time and place bound it:
//
//   - On a network where a configured upstream has answered once, its DNS is never used, whatever happens later. It counts as
//     another network only when the machine has lost its way out (link, gateway) and found one again.
//   - On a new one it begins within portalWindow of the arrival, and ends after portalStay; longer only where the network
//     says by itself that it has a portal, and even then after portalStayAnnounced.
//   - Once ended by time it does not begin again on that network.
//   - It is seen in status, doctor and the log, and nothing that the network's DNS said outlives it (resolver.Base.Brief).
//
// Names of the tailnet and those with a route have no part in it. dns.portal: off rules it out.
const (
	portalWindow        = 2 * time.Minute
	portalStay          = 30 * time.Minute
	portalStayAnnounced = 12 * time.Hour
	// portalPatience is for how long all upstreams must have failed, in two rounds at least: a link that has just come up
	// loses packets. A network that announces its portal needs one round.
	portalPatience = 3 * time.Second
)

// Pauses between rounds of probes.
const (
	portalPauseMin = time.Second
	portalPauseMax = 10 * time.Second // somebody may have signed in just now
	portalPauseFar = time.Minute      // nothing but an announcement would change anything
)

// portalFacts are what one round of probes has found.
type portalFacts struct {
	answers   bool // a configured upstream does
	base      bool // the network's own DNS knows addresses
	announced bool // the network says that it has a portal
}

// portalJudge decides whether the network's DNS is used in place of the configured upstreams.
type portalJudge struct {
	arrived   time.Time
	worked    bool // a configured upstream answered on this network
	over      bool // the portal was given up on this network
	rounds    int  // that failed, one after the other
	failing   time.Time
	up        bool
	since     time.Time
	announced bool
}

// arrive begins anew on another network.
func (j *portalJudge) arrive(now time.Time) { *j = portalJudge{arrived: now} }

// round takes what a round of probes has found.
func (j *portalJudge) round(now time.Time, f portalFacts) {
	j.announced = f.announced
	if f.answers {
		j.worked, j.up, j.rounds = true, false, 0
		return
	}
	if j.rounds++; j.rounds == 1 {
		j.failing = now
	}
	switch {
	case j.up:
		if now.Sub(j.since) >= j.stay() {
			j.up, j.over = false, true
		}
	case j.mayBegin(now) && f.base && (f.announced || j.rounds > 1 && now.Sub(j.failing) >= portalPatience):
		j.up, j.since = true, now
	}
}

// mayBegin reports whether the network's DNS may come into use now, by the bounds above.
func (j *portalJudge) mayBegin(now time.Time) bool {
	return !j.worked && !j.over && (j.announced || now.Sub(j.arrived) < portalWindow)
}

func (j *portalJudge) stay() time.Duration {
	if j.announced {
		return portalStayAnnounced
	}
	return portalStay
}

// pause is when the next round is due, jittered by a number from 0 to 1; false: not before the network changes, since no
// round could change anything.
func (j *portalJudge) pause(now time.Time, jitter float64) (time.Duration, bool) {
	var d time.Duration
	switch {
	case !j.up && (j.worked || j.over):
		return 0, false
	case j.rounds == 0:
		return 0, true
	case j.up || j.mayBegin(now):
		d = portalPauseMin << min(j.rounds-1, 8)
		d = min(d, portalPauseMax)
		if !j.up {
			d = min(d, portalPatience) // whoever waits for the page waits for this
		}
	default:
		d = portalPauseFar
	}
	return d/2 + time.Duration(jitter*float64(d)/2), true
}

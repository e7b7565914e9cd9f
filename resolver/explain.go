package resolver

import (
	"fmt"
	"time"

	"github.com/miekg/dns"
)

// Step is one thing that was looked at on the way to an answer.
type Step struct {
	What   string `json:"what"`   // table, route, special, cache, upstream
	Detail string `json:"detail"` // in words
}

// Explanation tells what would answer a question, and why.
type Explanation struct {
	Name   string `json:"name"`
	Type   string `json:"type"`
	Source string `json:"source"` // local, special, cache or upstream
	Steps  []Step `json:"steps"`
}

// Explain tells, step by step, what would answer a question. It asks nobody. Cached data is described only if
// cache is set.
func (r *Resolver) Explain(name string, qtype uint16, cache bool) (Explanation, error) {
	wire, err := wireName(name)
	if err != nil {
		return Explanation{}, err
	}
	var q question
	q.setName(wire)
	q.qtype, q.flags, q.udpSize = qtype, flagRD, dns.MinMsgSize
	e := Explanation{Name: presentName(wire), Type: dns.Type(qtype).String()}
	if !r.explainLocal(&e, &q) {
		r.explainForward(&e, &q, cache)
	}
	return e, nil
}

func (e *Explanation) step(what, format string, args ...any) {
	e.Steps = append(e.Steps, Step{what, fmt.Sprintf(format, args...)})
}

// explainForward describes route, cache and upstreams.
func (r *Resolver) explainForward(e *Explanation, q *question, cache bool) {
	rt := r.routing.Load()
	t := rt.explicit.find(q)
	switch {
	case t != nil:
		e.step("route", "split route %s is the longest that matches", presentName(t.suffix))
	case rt.learnt.find(q) != nil:
		t = rt.learnt.find(q)
		e.step("route", "the network itself named the domain %s", presentName(t.suffix))
	default:
		if reason, ok := explainSpecial(q); ok {
			e.Source = sourceSpecial.String()
			e.step("special", "%s", reason)
			return
		}
		t = rt.base
		e.step("route", "no split route matches: the base upstreams")
	}
	e.Source = sourceUpstream.String()
	if cache && r.explainCache(e, q, t) {
		e.Source = sourceCache.String()
	}
	r.explainServers(e, t)
}

func (r *Resolver) explainServers(e *Explanation, t *target) {
	if len(t.servers) == 0 {
		e.step("upstream", "none is known: the answer is SERVFAIL")
		return
	}
	best := t.choose(0)
	for i, s := range t.servers {
		turn := "next"
		if i == best {
			turn = "first"
		}
		if srtt := s.srtt.Load(); srtt == 0 {
			e.step("upstream", "%s, %s to be asked: %s, no answer time known yet", s.upstream, turn, s.state())
		} else {
			e.step("upstream", "%s, %s to be asked: %s, answers in %s", s.upstream, turn, s.state(), time.Duration(srtt).Round(100*time.Microsecond))
		}
	}
}

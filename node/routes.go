package node

import (
	"fmt"

	"github.com/meshdns/meshdns/resolver"
)

// Bounds on what a map or configuration may list.
const (
	maxUpstreams = 16 // for one suffix
	maxRoutes    = 10_000
	maxSearch    = 32
)

// dns reads the map's routes, upstreams and search domains.
func (c *checker) dns(f mapDNS) {
	seen := map[string]claim{}
	for _, r := range f.Routes {
		suffix, p := checkSuffix(r.suffix)
		if p.Msg != "" {
			c.add(p)
			continue
		}
		if msg := c.m.capture(suffix); msg != "" {
			c.add(r.suffix.problem("route", msg))
		}
		if first, twice := seen[suffix]; twice {
			c.add(r.suffix.problem("route", "is the same as "+first.String()))
		}
		seen[suffix] = claim{who: "route " + r.suffix.text, at: r.suffix.at}
		upstreams := c.upstreams(r.upstreams)
		if len(r.upstreams) == 0 {
			c.add(r.suffix.problem("route", "has no upstreams"))
		}
		c.m.routes = append(c.m.routes, mapRoute{Suffix: suffix, Upstreams: upstreams})
	}
	if len(f.Routes) > maxRoutes {
		c.add(f.Routes[maxRoutes].suffix.problem("route", fmt.Sprintf("one of more than %d", maxRoutes)))
	}
	c.m.upstream = c.upstreams(f.Upstreams)
	c.search(f.Search)
}

// checkSuffix makes a route's suffix canonical; the problem is the zero Problem if there is none.
func checkSuffix(w word) (string, Problem) {
	if w.text == "." || w.text == "" {
		p := w.problem("route", "is every name")
		p.Value, p.Advice = ".", "list servers for every name under dns.upstreams"
		return "", p
	}
	suffix, msg := checkDomain(w.text)
	if msg != "" {
		return "", w.problem("route", msg)
	}
	return suffix, Problem{}
}

func (c *checker) upstreams(words []word) []string {
	var out []string
	for _, w := range words {
		if _, err := resolver.ParseUpstream(w.text); err != nil {
			c.add(upstreamProblem(w.at, "upstream", w.text, err))
			continue
		}
		out = append(out, w.text)
	}
	if len(words) > maxUpstreams {
		c.add(words[maxUpstreams].problem("upstream", fmt.Sprintf("one of more than %d", maxUpstreams)))
	}
	return out
}

// upstreamProblem turns what the resolver says about a spelling into a Problem.
func upstreamProblem(at position, field, text string, err error) Problem {
	p := at.problem(field, text, err.Error())
	p.Advice = hintOf(err)
	return p
}

func (c *checker) search(words []word) {
	for _, w := range words {
		domain, msg := checkDomain(w.text)
		if msg != "" {
			c.add(w.problem("search", msg))
			continue
		}
		c.m.search = append(c.m.search, domain)
	}
	if len(words) > maxSearch {
		c.add(words[maxSearch].problem("search", fmt.Sprintf("one of more than %d", maxSearch)))
	}
}

package resolver

import (
	"errors"
	"fmt"
	"slices"
	"sync/atomic"
)

// kind says how a target came to be; it decides precedence, rebinding protection and the fate of cached answers.
type kind uint8

const (
	kindExplicit kind = iota // a configured split route
	kindLearnt               // a domain that the network itself named
	kindBase                 // everything else
	kinds
)

// target is the set of servers that answer for the names at or below one suffix.
type target struct {
	suffix  []byte // lower-cased wire name
	kind    kind
	brief   bool // answers are for the moment (Base.Brief)
	servers []*server
	next    atomic.Uint32 // counts choices, so that now and then another server than the best is tried
}

// routing says which target a name belongs to. It is immutable.
type routing struct {
	explicit suffixes
	learnt   suffixes
	base     *target
}

// suffixes finds the target with the longest suffix of a name.
type suffixes struct {
	byName map[string]*target
	counts []int // label counts that occur, descending
}

func newSuffixes(targets []*target) suffixes {
	s := suffixes{byName: make(map[string]*target, len(targets))}
	for _, t := range targets {
		s.byName[string(t.suffix)] = t
		if n := countLabels(t.suffix); !slices.Contains(s.counts, n) {
			s.counts = append(s.counts, n)
		}
	}
	slices.SortFunc(s.counts, func(a, b int) int { return b - a })
	return s
}

// find returns the target of q, or nil. It allocates nothing.
func (s *suffixes) find(q *question) *target {
	for _, n := range s.counts {
		if n > q.labels {
			continue
		}
		if t := s.byName[string(q.suffix(n))]; t != nil {
			return t
		}
	}
	return nil
}

func countLabels(wire []byte) int {
	n := 0
	for wire[0] != 0 {
		wire = wire[1+int(wire[0]):]
		n++
	}
	return n
}

// targets makes the targets of routes; servers are shared with the routes before them.
func (r *Resolver) targets(routes []Route, k kind) ([]*target, error) {
	var out []*target
	for _, route := range routes {
		suffix, err := wireName(route.Suffix)
		if err != nil {
			return nil, fmt.Errorf("reading route %q: %w", route.Suffix, err)
		}
		if suffix[0] == 0 && k != kindBase {
			return nil, fmt.Errorf("reading route %q: %w", route.Suffix, errRoot)
		}
		t := &target{suffix: suffix, kind: k}
		for _, u := range route.Upstreams {
			if slices.Contains(r.self, u.addr) {
				continue // never to ourselves
			}
			if s := r.servers.get(u); !slices.Contains(t.servers, s) {
				t.servers = append(t.servers, s)
			}
		}
		// More than maxServers would only make a dead network slower to notice.
		t.servers = t.servers[:min(len(t.servers), maxServers)]
		out = append(out, t)
	}
	return out, nil
}

// errRoot: a route for the root would stand before the special-use names, and be exempt from the protection against
// rebinding.
var errRoot = errors.New("a route is for a part of the names; all of them belong to the base")

// equal reports whether both send the same names to the same servers.
func (s *suffixes) equal(o *suffixes) bool {
	if len(s.byName) != len(o.byName) {
		return false
	}
	for name, t := range s.byName {
		if u := o.byName[name]; u == nil || !slices.Equal(t.servers, u.servers) {
			return false
		}
	}
	return true
}

// each calls f with every target.
func (rt *routing) each(f func(*target)) {
	for _, s := range []*suffixes{&rt.explicit, &rt.learnt} {
		for _, t := range s.byName {
			f(t)
		}
	}
	f(rt.base)
}

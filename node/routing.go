package node

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"

	"github.com/meshdns/meshdns/resolver"
)

// Where a route comes from, strongest first.
const (
	routeConfig = "config"
	routeMap    = "map"
	routeLearnt = "learnt"
)

// routing puts together where questions go: what this machine's configuration says wins over the map, and both over
// what the network offers, suffix by suffix.
type routing struct {
	resolver *resolver.Resolver
	dns      dnsConfig

	mu      sync.Mutex
	routes  []routeStatus // of configuration and map
	ours    []string      // base upstreams of configuration or map, which replace the network's
	network resolver.Base
	known   bool // the network has been heard of
	portal  bool // the network's base is asked although there is one of ours
}

// setMap takes the map's routes and upstreams. The resolver hears of it only if they differ, since it then forgets
// what it has cached.
func (r *routing) setMap(m *Map) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	routes, ours := mergeRoutes(r.dns, m), r.dns.Upstreams
	if len(ours) == 0 {
		ours = m.Upstreams()
	}
	if !slices.EqualFunc(routes, r.routes, sameRoute) {
		parsed, err := parseRoutes(routes)
		if err != nil {
			return err
		}
		if err := r.resolver.SetRoutes(parsed); err != nil {
			return fmt.Errorf("setting the routes: %w", err)
		}
		r.routes = routes
	}
	if r.known && slices.Equal(ours, r.ours) {
		return nil
	}
	// The network's own base may not be known yet; until then there is nothing to ask but what we were given.
	before := r.ours
	r.ours = ours
	if err := r.setBaseLocked(); err != nil {
		r.ours = before
		return err
	}
	return nil
}

// setNetwork takes what the network offers.
func (r *routing) setNetwork(b resolver.Base) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.network, r.known = b, true
	return r.setBaseLocked()
}

func (r *routing) setBaseLocked() error {
	// Learnt domains stay although other upstreams were configured: only the network's own servers know them.
	base := r.network
	base.Brief = r.inPortalLocked()
	if len(r.ours) > 0 && !base.Brief {
		var err error
		if base.Upstreams, err = parseUpstreams(r.ours); err != nil {
			return err
		}
	}
	if err := r.resolver.SetBase(base); err != nil {
		return fmt.Errorf("setting the base upstreams: %w", err)
	}
	return nil
}

// inPortalLocked reports whether the network's base stands in for ours.
func (r *routing) inPortalLocked() bool {
	return r.portal && len(r.ours) > 0 && len(r.network.Upstreams) > 0
}

// setPortal has the network's own base asked in place of the one that replaces it, or ends that.
func (r *routing) setPortal(up bool) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.portal = up
	return r.setBaseLocked()
}

// choice is the base that replaces the network's, and the network's own; none where there is nothing to choose.
func (r *routing) choice() (ours, network []resolver.Upstream) {
	r.mu.Lock()
	defer r.mu.Unlock()
	ours, err := parseUpstreams(r.ours)
	if err != nil || slices.Equal(ours, r.network.Upstreams) {
		return nil, nil
	}
	return ours, slices.Clone(r.network.Upstreams)
}

// describe tells the routes and the base as they are.
func (r *routing) describe() (routes []routeStatus, base []string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	routes, base = notNil(r.routes), notNil(r.ours)
	for _, learnt := range r.network.Learnt {
		// One that a route of ours covers is never gone by, not even if it is the longer one.
		covers := func(ours routeStatus) bool {
			return learnt.Suffix == ours.Suffix || strings.HasSuffix(learnt.Suffix, "."+ours.Suffix)
		}
		if slices.ContainsFunc(r.routes, covers) {
			continue
		}
		routes = append(routes, routeStatus{Suffix: learnt.Suffix, Upstreams: spell(learnt.Upstreams), Source: routeLearnt})
	}
	if len(base) == 0 || r.inPortalLocked() {
		base = spell(r.network.Upstreams)
	}
	return routes, base
}

// mergeRoutes are the split routes of this machine and those of the map that it does not replace, sorted by suffix.
func mergeRoutes(c dnsConfig, m *Map) []routeStatus {
	merged := map[string]routeStatus{}
	for _, route := range m.Routes() {
		merged[route.Suffix] = routeStatus{Suffix: route.Suffix, Upstreams: route.Upstreams, Source: routeMap}
	}
	for suffix, upstreams := range c.Routes {
		suffix = foldName(suffix)
		merged[suffix] = routeStatus{Suffix: suffix, Upstreams: upstreams, Source: routeConfig}
	}
	var list []routeStatus
	for _, suffix := range slices.Sorted(maps.Keys(merged)) {
		list = append(list, merged[suffix])
	}
	return list
}

func sameRoute(a, b routeStatus) bool {
	return a.Suffix == b.Suffix && a.Source == b.Source && slices.Equal(a.Upstreams, b.Upstreams)
}

func parseRoutes(routes []routeStatus) ([]resolver.Route, error) {
	list := make([]resolver.Route, 0, len(routes))
	for _, route := range routes {
		upstreams, err := parseUpstreams(route.Upstreams)
		if err != nil {
			return nil, fmt.Errorf("route %s: %w", route.Suffix, err)
		}
		list = append(list, resolver.Route{Suffix: route.Suffix, Upstreams: upstreams})
	}
	return list, nil
}

func parseUpstreams(words []string) ([]resolver.Upstream, error) {
	list := make([]resolver.Upstream, 0, len(words))
	for _, word := range words {
		u, err := resolver.ParseUpstream(word)
		if err != nil {
			return nil, err
		}
		list = append(list, u)
	}
	return list, nil
}

func spell(upstreams []resolver.Upstream) []string {
	words := make([]string, len(upstreams))
	for i, u := range upstreams {
		words[i] = u.String()
	}
	return words
}

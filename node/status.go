package node

import (
	"fmt"
	"net/netip"
	"os"
	"slices"
	"time"
)

// The states of a node.
const (
	stateOK       = "ok"
	stateDegraded = "degraded"
)

// status is how the node is at this moment. It is put together anew for each caller, so that nothing in it can be out
// of date.
func (n *Node) status() Status {
	m, loaded := n.tailnet.current()
	self := n.findSelf(m)
	s := Status{
		Schema:   "meshdns.status/v1",
		Version:  n.opt.Version,
		PID:      os.Getpid(),
		Started:  n.started.UTC().Truncate(time.Millisecond),
		State:    stateOK,
		Problems: n.currentProblems(m),
		Zone:     m.Zone(),
		Map: mapStatus{
			Source:   m.Source(),
			Version:  m.Version(),
			Loaded:   loaded.UTC().Truncate(time.Millisecond),
			Nodes:    len(m.Nodes()),
			Records:  n.tailnet.size(),
			Problems: n.tailnet.problems(),
		},
		Nodes:  []nodeStatus{},
		Tunnel: n.tunnelStatus(m),
		DNS:    n.dnsStatus(),
		Certs:  n.certs.status(),
		VPNs:   n.vpns(),

		Funnels: n.funnelStatus(self),
	}
	if n.carrier.proxy.IsValid() {
		s.Proxy = n.carrier.proxy.String()
	}
	if self != "" {
		s.Node = m.FQDN(self)
	}
	if len(s.Problems) > 0 || len(s.Map.Problems) > 0 {
		s.State = stateDegraded
	}
	for _, node := range m.Nodes() {
		s.Nodes = append(s.Nodes, nodeStatus{
			Name:      node.Name,
			Addresses: notNil(node.Addresses),
			Names:     notNil(node.Names),
			Self:      node.Name == self,
			Doubt:     n.doubtOf(node),
		})
	}
	return s
}

// currentProblems are the reasons why the node is degraded, the map's own aside.
func (n *Node) currentProblems(m *Map) []string {
	// Only what somebody has to do something about counts: an upstream that is quarantined for a while does not, nor
	// a takeover that was never wanted. False alarms teach people to look away.
	list := []string{}
	if conflict := n.conflict(m); conflict != "" {
		list = append(list, conflict)
	}
	list = append(list, n.carrier.problems()...)
	if r := n.gateway.registry; r != nil && r.Fault() != nil {
		list = append(list, fmt.Sprintf("the gateway serves what it has, and takes no changes: %v; %s", r.Fault(), hintOf(r.Fault())))
	}
	if way := n.wayProblem(); way != "" {
		list = append(list, way)
	}
	list = append(list, n.gateway.contested(time.Now())...)
	list = append(list, n.member.faults(time.Now(), n.clock())...)
	list = append(list, n.takeover.problems()...)
	list = append(list, n.certs.problems()...)
	list = append(list, n.servedProblems()...)
	if p := n.portal.state(); p.State == portalUp {
		list = append(list, p.Reason)
	}
	if t := n.takeover.state(); t.State == takeoverRefused && n.takeover.wanted && !slices.Contains(list, t.Reason) {
		list = append(list, "the machine's DNS is not taken over: "+t.Reason)
	}
	if fault := n.containers.problem(); fault != "" {
		list = append(list, fault)
	}
	for _, u := range n.resolver.Upstreams() {
		if u.State == "loop" && !n.asksUs(u.Upstream) {
			list = append(list, "upstream "+u.Upstream+" sends our questions back to us")
		}
	}
	return list
}

// asksUs reports whether an upstream is a VPN's that answers for the machine and asks us what it does not know: then it is no
// mistake that it does.
func (n *Node) asksUs(upstream string) bool {
	return slices.ContainsFunc(n.vpns(), func(v vpnStatus) bool {
		return v.Asks && slices.ContainsFunc(v.Servers, func(a netip.Addr) bool {
			return upstream == a.String() || upstream == netip.AddrPortFrom(a, portDNS).String()
		})
	})
}

// dnsStatus is how the resolver is and who answers for the machine's DNS.
func (n *Node) dnsStatus() DNSStatus {
	m, _ := n.tailnet.current()
	stats := n.resolver.Stats()
	s := DNSStatus{
		Schema:   "meshdns.dns.status/v1",
		Zone:     m.Zone(),
		Search:   notNil(n.search()),
		Stub:     n.stub.String(),
		Listen:   []string{},
		Takeover: n.takeover.state(),
		Base:     []string{},
		Cache: cacheStatus{
			Entries: stats.Cache.Entries,
			Bytes:   stats.Cache.Bytes,
			Hits:    stats.Cache.Hits,
			Misses:  stats.Cache.Misses,
		},
	}
	for _, addr := range n.listen {
		s.Listen = append(s.Listen, addr.String())
	}
	for _, q := range stats.Queries {
		s.Queries += q.N
	}
	s.Containers = n.containers.status()
	s.Routes, s.Base = n.routing.describe()
	s.Portal = n.portal.state()
	s.Upstreams = n.upstreams()
	return s
}

// upstreams is how the upstreams are.
func (n *Node) upstreams() []upstreamStatus {
	list := []upstreamStatus{}
	for _, u := range n.resolver.Upstreams() {
		list = append(list, upstreamStatus{
			Upstream: u.Upstream,
			Routes:   notNil(u.Routes),
			State:    u.State,
			RTT:      float64(u.SRTT.Microseconds()) / 1000,
			Queries:  u.Queries,
			Failures: u.Failures,
		})
	}
	return list
}

// search is the search list for names of one label: the zone first, so that no other domain can shadow a node.
func (n *Node) search() []string {
	if !n.cfg.DNS.Search {
		return nil
	}
	m, _ := n.tailnet.current()
	return append([]string{m.Zone()}, m.Search()...)
}

// notNil is a copy of list that is never nil, so that it is [] in JSON.
func notNil[T any](list []T) []T {
	return append([]T{}, slices.Clip(list)...)
}

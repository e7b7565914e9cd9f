package node

import (
	"cmp"
	"fmt"
	"iter"
	"net/netip"
	"slices"
	"strings"
	"time"
)

// judgeDaemon says whether a node runs.
func judgeDaemon(f doctorFacts) []finding {
	const name = "daemon"
	switch {
	case f.running():
		return []finding{fine(name, "runs as pid %d, version %s, %s", f.status.PID, f.status.Version, f.status.State)}
	case f.hangs():
		return []finding{wrong(name, hintOf(f.daemonErr), "%v", f.daemonErr)}
	}
	return []finding{warn(name, "meshdns up", "no node runs, so names of the tailnet are not answered")}
}

// judgeProblems passes on what the node knows to be wrong, but for what other findings tell better, or what keeps it
// from starting.
func judgeProblems(f doctorFacts) []finding {
	const name, mapName = "node", "map"
	var list []finding
	for line := range errorLines(f.idleErr) {
		list = append(list, wrong("configuration", cmp.Or(hintOf(f.idleErr), "meshdns config check"), "a node would not start: %s", line))
	}
	if f.conflict != "" {
		list = append(list, wrong(name, "give the map other ranges:, or set tunnel: off", "%s", f.conflict))
	}
	if !f.running() {
		return list
	}
	for _, problem := range f.status.Map.Problems {
		list = append(list, wrong(mapName, "meshdns config check", "%s", problem))
	}
	if len(f.status.Map.Problems) == 0 {
		list = append(list, fine(mapName, "%s: %s, %s (%s)", f.status.Zone, plural(f.status.Map.Nodes, "node"),
			plural(f.status.Map.Records, "record"), f.status.Map.Source))
	}
	if f.status.Node == "" {
		list = append(list, warn(mapName, "set node: in the configuration", "this machine is not in the map"))
	}
	for _, problem := range f.status.Problems {
		reason := f.status.DNS.Takeover.Reason
		toldByTakeover := f.status.DNS.Takeover.State == takeoverRefused && reason != "" && strings.Contains(problem, reason)
		toldByUpstream := slices.ContainsFunc(f.status.DNS.Upstreams, func(u upstreamStatus) bool {
			return u.State == upstreamLoop && strings.Contains(problem, u.Upstream)
		})
		if !toldByTakeover && !toldByUpstream && problem != f.status.DNS.Portal.Reason {
			list = append(list, wrong(name, mendOf(problem), "%s", problem))
		}
	}
	return list
}

// mendOf is the command that a problem itself names, at its end.
func mendOf(problem string) string {
	if _, command, ok := strings.Cut(problem, ": meshdns "); ok {
		return "meshdns " + command
	}
	return "meshdns dns plan"
}

// judgePort says who has port 53 of the stub's address.
func judgePort(f doctorFacts) []finding {
	const name = "port"
	if !f.stub.IsValid() || f.servers == nil || f.hangs() {
		return nil
	}
	want := netip.AddrPortFrom(f.stub.Addr(), 53)
	var node bool
	var others []string
	for _, s := range f.servers {
		if !s.holds(want.Addr()) {
			continue
		}
		if f.running() && (s.pid == f.status.PID || s.pid == 0 && f.stub == want && f.stubErr == nil) {
			node = true
			continue
		}
		others = append(others, s.String())
	}
	list := strings.Join(others, ", ")
	mend := "end that program, or have it listen on other addresses than " + want.Addr().String()
	switch {
	case node && list != "":
		return []finding{wrong(name, mend, "%s is held by the node and by %s", want, list)}
	case node:
		return []finding{fine(name, "the node holds %s", f.stub)}
	case list != "" && f.takenOver(): // a manager that carries ports was told of another one
		return []finding{fine(name, "%s is held by %s; the machine asks %s", want, list, f.stub)}
	case list != "" && f.running():
		return []finding{wrong(name, mend, "%s is held by %s, so the stub is %s", want, list, f.stub)}
	case list != "" && f.stub == want:
		return []finding{wrong(name, mend, "%s is held by %s", want, list)}
	case list != "":
		return []finding{warn(name, mend, "%s is held by %s; without root the stub is %s", want, list, f.stub)}
	case f.running():
		return []finding{fine(name, "the stub is %s; nobody holds %s", f.stub, want)}
	}
	return []finding{fine(name, "nobody holds %s", want)}
}

// judgeOwner says who owns the machine's DNS, with the facts that tell so.
func judgeOwner(f doctorFacts) []finding {
	const name = "owner"
	if f.planErr != nil && f.idleErr == nil {
		return []finding{wrong(name, cmp.Or(hintOf(f.planErr), "meshdns dns plan"), "who owns the machine's DNS is not known: %v", f.planErr)}
	}
	if f.planErr != nil {
		return nil // why the node would not start says it all
	}
	v := fine(name, "the mode is %s", f.plan.Mode)
	v.Facts = notNil(f.plan.Trace)
	// What keeps a running node from it is the takeover's finding.
	if !f.running() && !f.hangs() && !f.plan.Possible {
		v.Detail += "; a node would leave the machine's DNS alone: " + f.plan.Reason
		if f.plan.Reason != reasonOff {
			v.State, v.Mend = findingWarning, cmp.Or(f.plan.Hint, "meshdns dns plan")
		}
	}
	return []finding{v}
}

// reasonOff is the reason of a takeover that the configuration does not want.
const reasonOff = "dns.os is off"

// judgeTakeover says whether the machine's DNS asks the node, and whether somebody overwrote that.
func judgeTakeover(f doctorFacts) []finding {
	const name, again = "takeover", "sudo meshdns dns apply"
	t := f.status.DNS.Takeover
	switch {
	case !f.running():
		return judgeLeft(f)
	case t.State == takeoverRefused:
		return []finding{wrong(name, cmp.Or(f.plan.Hint, again), "the machine's DNS is not taken over: %s", t.Reason)}
	case t.State == takeoverOff && t.Reason == reasonOff:
		return []finding{fine(name, "not wanted: %s", t.Reason)}
	case t.State == takeoverOff:
		return []finding{warn(name, cmp.Or(f.plan.Hint, again), "only programs that ask %s find the tailnet's names: %s", f.stub, t.Reason)}
	case f.conf.err != nil:
		return []finding{wrong(name, again, "programs do not find the node: %v", f.conf.err)}
	case f.overwritten():
		return []finding{wrong(name, again, "another program overwrote %s: its first nameserver is %s, not %s", systemConf,
			listAddrs(f.conf.servers[:min(1, len(f.conf.servers))]), f.stub.Addr())}
	case t.State == takeoverPending:
		return []finding{warn(name, "meshdns dns confirm", "on (%s), and undone soon unless confirmed", t.Mode)}
	}
	if !slices.Contains(fileModes(), t.Mode) {
		return []finding{fine(name, "on (%s)", t.Mode)}
	}
	return []finding{fine(name, "on (%s), and nothing overwrote it", t.Mode)}
}

// judgeLeft says whether the machine's DNS still asks a node that does not run any more.
func judgeLeft(f doctorFacts) []finding {
	const name, restore = "takeover", "sudo meshdns dns restore"
	switch {
	case f.asksNobody() && f.hangs():
		return []finding{wrong(name, "end that node, then: "+restore, "%s names %s, where the node does not answer", systemConf, f.stub.Addr())}
	case f.asksNobody():
		return []finding{wrong(name, restore, "%s names %s, where no node answers", systemConf, f.stub.Addr())}
	case f.hangs():
		return nil
	case f.left:
		return []finding{wrong(name, restore, "a node that died has left the machine's DNS changed")}
	}
	return []finding{fine(name, "the machine's DNS is its own")}
}

// asksNobody reports whether the machine asks a stub that nobody is behind.
func (f *doctorFacts) asksNobody() bool {
	return !f.running() && f.stub.IsValid() && slices.Contains(f.conf.servers, f.stub.Addr())
}

// fileModes are the modes in which resolv.conf names the node. In others a manager's own address may stand there;
// whether that one asks the node the lookups tell.
func fileModes() []string { return []string{"direct", "resolvconf", "openresolv"} }

// overwritten reports whether another program has taken back what the node wrote.
func (f *doctorFacts) overwritten() bool {
	return slices.Contains(fileModes(), f.status.DNS.Takeover.Mode) && !f.namesNodeFirst()
}

// namesNodeFirst reports whether programs that read resolv.conf ask the node before others.
func (f *doctorFacts) namesNodeFirst() bool {
	if len(f.conf.servers) == 0 {
		return false
	}
	first := f.conf.servers[0]
	return first == f.stub.Addr() || first.String() == f.status.DNS.Containers.Service || slices.ContainsFunc(f.status.DNS.Listen, func(listen string) bool {
		at, err := netip.ParseAddrPort(listen)
		return err == nil && at.Addr() == first
	})
}

// judgeStub says whether the stub answers for the zone.
func judgeStub(f doctorFacts) []finding {
	const name = "stub"
	switch {
	case !f.running():
		return nil
	case f.stubErr != nil:
		return []finding{wrong(name, "see what filters packets on this machine: sudo nft list ruleset", "%v", f.stubErr)}
	}
	return []finding{fine(name, "%s answers for %s over UDP and TCP", f.stub, f.status.Zone)}
}

// judgePortal says whether a captive portal keeps the configured upstreams away.
func judgePortal(f doctorFacts) []finding {
	p := f.status.DNS.Portal
	if p.State != portalUp {
		return nil
	}
	mend := "sign in: open any http:// page in a browser"
	if p.URI != "" {
		mend = "sign in at " + p.URI
	}
	return []finding{wrong("portal", mend, "%s", p.Reason)}
}

// The states of an upstream other than ok.
const (
	upstreamNew  = "new"
	upstreamLoop = "loop"
	upstreamDead = "quarantined"
)

// judgeUpstreams says how the upstreams are. One that is dead is made up for by another one of the same route.
func judgeUpstreams(f doctorFacts) []finding {
	const name, mend = "upstream", "meshdns dns status"
	if !f.running() {
		return nil
	}
	var list []finding
	var well []string
	alive := map[string]bool{}
	for _, u := range f.status.DNS.Upstreams {
		if u.State != upstreamDead && u.State != upstreamLoop {
			for _, route := range u.Routes {
				alive[route] = true
			}
			well = append(well, describeUpstream(u))
		}
	}
	for _, u := range f.status.DNS.Upstreams {
		lost := slices.DeleteFunc(slices.Clone(u.Routes), func(route string) bool { return alive[route] })
		switch {
		case u.State == upstreamLoop:
			list = append(list, wrong(name, "have "+u.Upstream+" ask other servers than this machine, or set dns.upstreams",
				"%s sends our questions back to us", u.Upstream))
		case u.State == upstreamDead && len(lost) > 0:
			list = append(list, wrong(name, mend, "%s does not answer, nor does any other for %s", u.Upstream, describeRoutes(lost)))
		case u.State == upstreamDead:
			list = append(list, warn(name, mend, "%s does not answer; others do for the same names", u.Upstream))
		}
	}
	switch {
	case len(f.status.DNS.Base) == 0:
		list = append(list, wrong(name, "set dns.upstreams, or have the network give a nameserver", "there is no upstream, so only names of the tailnet are answered"))
	case len(well) > 0:
		list = append(list, fine(name, "%s", strings.Join(well, ", ")))
	}
	return list
}

func describeUpstream(u upstreamStatus) string {
	if u.State == upstreamNew {
		return u.Upstream + " was not asked yet"
	}
	return fmt.Sprintf("%s answers in %.1f ms", u.Upstream, u.RTT)
}

// describeRoutes names at most a few suffixes; a learnt private range alone has 16.
func describeRoutes(suffixes []string) string {
	const most = 3
	words := slices.Clone(suffixes[:min(most, len(suffixes))])
	for i, suffix := range words {
		if suffix == "." {
			words[i] = "everything else"
		}
	}
	if more := len(suffixes) - most; more > 0 {
		words = append(words, fmt.Sprintf("%d more", more))
	}
	return strings.Join(words, ", ")
}

// clockSlack is how far the clock of whoever made this program may have been ahead.
const clockSlack = 24 * time.Hour

// firstTime is before this program was written: a clock that says less has never been set.
func firstTime() time.Time { return time.Date(2025, 1, 1, 0, 0, 0, 0, time.UTC) }

// judgeClock says whether the clock can be right: certificates, DNSSEC and TLS to upstreams depend on it.
func judgeClock(f doctorFacts) []finding {
	const name, mend = "clock", "sudo timedatectl set-ntp true, or: sudo date -s 'YYYY-MM-DD hh:mm:ss'"
	now := f.now.UTC().Format(time.DateTime)
	switch {
	case f.now.Before(firstTime()):
		return []finding{wrong(name, mend, "it says %s UTC, before this program was written", now)}
	case !f.built.IsZero() && f.now.Before(f.built.Add(-clockSlack)):
		return []finding{wrong(name, mend, "it says %s UTC, and this program is of %s", now, f.built.UTC().Format(time.DateTime))}
	}
	g := f.status.Tunnel.Gateway
	if !f.running() || g == nil || g.Ahead == nil {
		return []finding{fine(name, "it says %s UTC", now)}
	}
	ahead := time.Duration(*g.Ahead) * time.Second
	if ahead.Abs() < gatewaySlack {
		return []finding{fine(name, "it says %s UTC, as that of the gateway %s does", now, g.Name)}
	}
	than := "ahead of"
	if ahead < 0 {
		than = "behind"
	}
	return []finding{warn(name, "on the one that is wrong: "+mend, "it says %s UTC, %s %s that of the gateway %s; invites and certificates end by the clock",
		now, ahead.Abs(), than, g.Name)}
}

// gatewaySlack is by how much two clocks may differ: certificates are made to be valid from an hour ago, and answers take their time.
const gatewaySlack = 2 * time.Minute

// minMTU is what IPv6 needs (RFC 8200, 5), and what answers of our size fit into.
const minMTU = 1280

// judgeLink says whether the link to the outside takes packets of a usual size.
func judgeLink(f doctorFacts) []finding {
	const name = "mtu"
	switch {
	case f.noUplink != nil:
		return nil
	case f.uplink.name == "":
		return []finding{warn(name, "ip route", "there is no default route, so only near networks are reached")}
	case f.uplink.mtu < minMTU:
		return []finding{wrong(name, fmt.Sprintf("sudo ip link set dev %s mtu %d", f.uplink.name, minMTU),
			"packets on %s, which leads outside, are at most %d bytes; IPv6 needs %d", f.uplink.name, f.uplink.mtu, minMTU)}
	}
	return []finding{fine(name, "%d on %s, which leads outside", f.uplink.mtu, f.uplink.name)}
}

// errorLines are the lines of an error, one a problem.
func errorLines(err error) iter.Seq[string] {
	return func(yield func(string) bool) {
		if err == nil {
			return
		}
		for line := range strings.Lines(err.Error()) {
			if !yield(strings.TrimRight(line, "\n")) {
				return
			}
		}
	}
}

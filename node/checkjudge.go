package node

import (
	"cmp"
	"net/netip"
	"slices"
	"strings"
	"time"
)

// judgeSelf is what the node that runs here knows to be wrong with it.
func (f *gatewayFacts) judgeSelf() []checkFinding {
	switch {
	case f.from == fromOutside:
		return nil
	case f.statusErr != nil:
		return []checkFinding{checked("node", checkWarn, cmp.Or(hintOf(f.statusErr), "meshdns up"), "%v", f.statusErr)}
	case f.from == fromNode:
		return nil
	}
	var list []checkFinding
	for _, problem := range f.status.Problems {
		list = append(list, checked("node", checkFail, "meshdns status", "%s", problem))
	}
	if len(list) == 0 {
		list = append(list, checked("node", checkOK, "", "the gateway runs, listening at %s", listAddrs(f.listen)))
	}
	return list
}

// servesItself are the name servers as the zone itself has them.
func (f *gatewayFacts) servesItself() []nameServer {
	for _, s := range f.servers {
		if s.tcp.good() && len(s.ns) > 0 {
			return s.ns
		}
	}
	return nil
}

// expected are the name servers that the parent has to name: by the owner's word, or else by the zone's own.
func (f *gatewayFacts) expected() []nameServer {
	if len(f.public) == 0 {
		return f.servesItself()
	}
	var list []nameServer
	for i, a := range f.public {
		list = append(list, nameServer{serverName(i) + "." + f.zone + ".", []netip.Addr{a}})
	}
	return list
}

// judgeDelegation says whether the parent leads to the gateway.
func (f *gatewayFacts) judgeDelegation() []checkFinding {
	const name = "delegation"
	p := f.parent
	switch {
	case isPrivateZone(f.zone):
		return []checkFinding{checked(name, checkSkip, "", "%s is for private use: the world never asks for it", f.zone)}
	case p.err != nil:
		return []checkFinding{checked(name, checkFail, "ask another way: --resolver ADDRESS; or on another network", "which zone delegates %s could not be found out: %v", f.zone, p.err)}
	}
	list := f.judgeParentServers()
	given := p.delegated()
	if len(given) == 0 {
		if len(list) > 0 && !slices.ContainsFunc(p.servers, func(d delegating) bool { return d.err == nil }) {
			return list
		}
		return append(list, f.judgeNoDelegation())
	}
	want := f.expected()
	var missing, extra []string
	for _, s := range want {
		if !hasServer(given, s.name) {
			missing = append(missing, s.name)
		}
	}
	for _, s := range given {
		if len(want) > 0 && !hasServer(want, s.name) {
			extra = append(extra, s.name)
		}
	}
	for _, ns := range missing {
		state := checkWarn
		if len(missing) == len(want) {
			state = checkFail
		}
		list = append(list, checked(name, state, "add to the zone "+p.zone+", at its DNS provider", "%s does not name %s", p.zone, ns).with(f.recordsOf(ns)...))
	}
	for _, ns := range extra {
		list = append(list, f.judgeExtra(ns))
	}
	if len(missing) == 0 && len(extra) == 0 {
		list = append(list, checked(name, checkOK, "", "%s leads to %s", p.zone, serverNames(given)))
	}
	return list
}

func hasServer(list []nameServer, name string) bool {
	return slices.ContainsFunc(list, func(s nameServer) bool { return s.name == name })
}

func serverNames(list []nameServer) string {
	words := make([]string, len(list))
	for i, s := range list {
		words[i] = strings.TrimSuffix(s.name, ".")
	}
	return strings.Join(words, ", ")
}

// judgeParentServers says what keeps the parent's servers from telling the same.
func (f *gatewayFacts) judgeParentServers() []checkFinding {
	var list []checkFinding
	first := -1
	for i, d := range f.parent.servers {
		switch {
		case d.err != nil && !isUnreachable(d.err):
			list = append(list, checked("parent", checkWarn, "", "%s (%s), a server of %s, does not tell: %v", d.server, d.addr, f.parent.zone, d.err))
		case d.err != nil:
		case d.serves:
			list = append(list, checked("parent", checkFail, "remove the zone "+f.zone+" at the DNS provider of "+f.parent.zone+", and leave only its NS and glue records there",
				"%s (%s), a server of %s, answers for %s itself", d.server, d.addr, f.parent.zone, f.zone))
		case first < 0:
			first = i
		case serverNames(sorted(d.ns)) != serverNames(sorted(f.parent.servers[first].ns)):
			list = append(list, checked("parent", checkWarn, "a change may take minutes to reach all of them; then run this again",
				"the servers of %s do not agree: %s has %s, %s has %s", f.parent.zone, f.parent.servers[first].server,
				cmp.Or(serverNames(f.parent.servers[first].ns), "nothing"), d.server, cmp.Or(serverNames(d.ns), "nothing")))
		}
	}
	return list
}

func sorted(list []nameServer) []nameServer {
	return slices.SortedFunc(slices.Values(list), func(a, b nameServer) int { return strings.Compare(a.name, b.name) })
}

// judgeNoDelegation is about a parent that does not know the zone.
func (f *gatewayFacts) judgeNoDelegation() checkFinding {
	parent := f.parent.zone
	if isPublicSuffix(parent) && strings.Count(f.zone, ".") > strings.Count(parent, ".")+1 {
		domain, _ := delegation(f.zone, nil)
		return checked("delegation", checkFail, "register it, or take a zone below a domain that you have", "%s does not exist: %s does not know it", domain, parent)
	}
	found := checked("delegation", checkFail, "add to the zone "+parent+", at its DNS provider", "%s does not delegate %s", parent, f.zone)
	if len(f.public) == 0 {
		found.Hint = "the records to add are printed by: meshdns gateway check " + f.zone + " --public ADDRESS, the gateway's"
	}
	var records []initRecord
	for _, s := range f.expected() {
		records = append(records, f.nsRecord(s.name))
	}
	for _, s := range f.expected() {
		records = append(records, f.recordsOf(s.name)[1:]...)
	}
	return found.with(records...)
}

// relative is a name as the parent's DNS provider takes it.
func (f *gatewayFacts) relative(name string) string {
	return strings.TrimSuffix(strings.TrimSuffix(name, "."), "."+f.parent.zone)
}

func (f *gatewayFacts) nsRecord(server string) initRecord {
	return initRecord{f.relative(f.zone), "NS", server}
}

// recordsOf are a server's NS record and its glue.
func (f *gatewayFacts) recordsOf(server string) []initRecord {
	records := []initRecord{f.nsRecord(server)}
	for _, s := range f.expected() {
		if s.name == server {
			records = append(records, f.glueRecords(server, s.addrs)...)
		}
	}
	return records
}

func (f *gatewayFacts) glueRecords(server string, addrs []netip.Addr) []initRecord {
	var records []initRecord
	for _, a := range addrs {
		records = append(records, initRecord{f.relative(server), addressType(a), a.String()})
	}
	return records
}

func addressType(a netip.Addr) string {
	if a.Is6() {
		return "AAAA"
	}
	return "A"
}

// judgeExtra is about a server that the parent names and the zone does not. It does no harm where it serves the zone.
func (f *gatewayFacts) judgeExtra(ns string) checkFinding {
	lame := true
	for _, s := range f.servers {
		lame = lame && (s.name != ns || !s.udp.good())
	}
	if lame {
		return checked("delegation", checkFail, "remove from the zone "+f.parent.zone+", at its DNS provider",
			"%s names %s, which does not serve %s: a part of all lookups fails or is slow", f.parent.zone, ns, f.zone).with(f.nsRecord(ns))
	}
	return checked("delegation", checkWarn, "name the servers as the zone itself does, so that both change together",
		"%s names %s, and the zone itself %s", f.parent.zone, ns, serverNames(f.expected()))
}

// judgeGlue says whether the parent has the servers' addresses right. Only names within the zone need any there.
func (f *gatewayFacts) judgeGlue() []checkFinding {
	const name = "glue"
	var list []checkFinding
	for _, given := range f.parent.delegated() {
		i := slices.IndexFunc(f.expected(), func(s nameServer) bool { return s.name == given.name })
		if i < 0 || !within(strings.TrimSuffix(given.name, "."), f.zone) {
			continue
		}
		want := f.expected()[i].addrs
		missing := without(want, given.addrs)
		wrong := without(given.addrs, want)
		add, remove := f.glueRecords(given.name, missing), f.glueRecords(given.name, wrong)
		switch {
		case len(missing) > 0 && len(wrong) > 0:
			list = append(list, checked(name, checkFail, "set in the zone "+f.parent.zone+", at its DNS provider, instead of "+listAddrs(wrong),
				"%s has %s at %s, and it is at %s", f.parent.zone, given.name, listAddrs(wrong), listAddrs(missing)).with(add...))
		case len(missing) > 0:
			list = append(list, checked(name, checkFail, "add to the zone "+f.parent.zone+", at its DNS provider",
				"%s names %s and not its address %s", f.parent.zone, given.name, listAddrs(missing)).with(add...))
		case len(wrong) > 0:
			list = append(list, checked(name, checkFail, "remove from the zone "+f.parent.zone+", at its DNS provider",
				"%s has %s at %s too, which is not the gateway", f.parent.zone, given.name, listAddrs(wrong)).with(remove...))
		default:
			list = append(list, checked(name, checkOK, "", "%s has %s at %s", f.parent.zone, given.name, listAddrs(given.addrs)))
		}
	}
	return list
}

// without are the addresses of one list that another lacks.
func without(list, lacks []netip.Addr) []netip.Addr {
	var left []netip.Addr
	for _, a := range list {
		if !slices.Contains(lacks, a) {
			left = append(left, a)
		}
	}
	return left
}

// judgeDS says whether the parent promises a signature that the zone does not have.
func (f *gatewayFacts) judgeDS() []checkFinding {
	const name = "ds"
	p := f.parent
	switch {
	case p.zone == "" || len(p.delegated()) == 0:
		return nil
	case p.dsErr != nil:
		return []checkFinding{checked(name, checkWarn, "run this again", "whether %s has DS records for %s is not known: %v", p.zone, f.zone, p.dsErr)}
	case len(p.ds) == 0:
		return []checkFinding{checked(name, checkOK, "", "%s has no DS record, as it must be: the gateway does not sign", p.zone)}
	}
	var records []initRecord
	for _, ds := range p.ds {
		records = append(records, initRecord{f.relative(f.zone), "DS", ds})
	}
	return []checkFinding{checked(name, checkFail, "remove from the zone "+p.zone+", at its DNS provider or registrar",
		"%s has a DS record for %s, which is not signed: resolvers that validate find no name in it", p.zone, f.zone).with(records...)}
}

// maxClockSlack is how far clocks may differ: certificates, invites and cookies of DNS forgive this much.
const maxClockSlack = 5 * time.Minute

// judgeClocks compares the gateway's clock, which its name server tells in a cookie, and this machine's with those of the name
// servers above.
func (f *gatewayFacts) judgeClocks() []checkFinding {
	const name, mend = "clock", "sudo timedatectl set-ntp true"
	reference, known := median(f.clocks)
	var list []checkFinding
	if known && abs(reference) > maxClockSlack {
		list = append(list, checked(name, checkFail, "here: "+mend, "this machine's clock is %s, by what %s say", offset(-reference), plural(len(f.clocks), "name server")))
	}
	for _, s := range f.servers {
		ahead := s.ahead - reference
		switch {
		case !s.timed || !slices.Contains(f.publicOrAll(), s.addr) || f.from == fromGateway && len(list) > 0:
		case abs(ahead) > maxClockSlack && known:
			list = append(list, checked(name, checkFail, "on the gateway: "+mend, "the gateway's clock (%s) is %s", s.addr, offset(ahead)))
		case abs(ahead) > maxClockSlack:
			list = append(list, checked(name, checkFail, "there or here: "+mend, "the gateway's clock (%s) and this machine's differ: it is %s", s.addr, offset(ahead)))
		case known:
			list = append(list, checked(name, checkOK, "", "the gateway's (%s) is right within %s", s.addr, (abs(ahead)+time.Second).Round(time.Second)))
		default:
			list = append(list, checked(name, checkOK, "", "the gateway's (%s) and this machine's agree within %s", s.addr, (abs(ahead)+time.Second).Round(time.Second)))
		}
	}
	return list
}

// publicOrAll are the addresses that are the gateway's.
func (f *gatewayFacts) publicOrAll() []netip.Addr {
	if len(f.public) > 0 {
		return f.public
	}
	var list []netip.Addr
	for _, s := range f.servers {
		list = append(list, s.addr)
	}
	return list
}

// median of what servers say, of which one may be wrong.
func median(clocks []clockFact) (time.Duration, bool) {
	if len(clocks) == 0 {
		return 0, false
	}
	s := slices.SortedFunc(slices.Values(clocks), func(a, b clockFact) int { return cmp.Compare(a.ahead, b.ahead) })
	return s[len(s)/2].ahead, true
}

func abs(d time.Duration) time.Duration { return max(d, -d) }

func offset(ahead time.Duration) string {
	if ahead < 0 {
		return (-ahead).Round(time.Second).String() + " behind"
	}
	return ahead.Round(time.Second).String() + " ahead"
}

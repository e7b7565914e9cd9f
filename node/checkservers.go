package node

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/miekg/dns"
)

// serverFacts is one address at which the zone is to be served.
type serverFacts struct {
	name     string // of the server, in lower case with the last dot; empty: only the gateway's owner names the address
	addr     netip.Addr
	udp, tcp answerFacts
	open     bool          // it answers for names of others: a resolver
	ahead    time.Duration // its clock, of this machine's
	timed    bool          // ahead is known
	ns       []nameServer  // as the zone itself has them
}

// answerFacts is what a question for the zone's SOA brought.
type answerFacts struct {
	err    error
	rcode  int
	auth   bool
	soa    bool
	serial uint32
	exact  bool // the name came back in the case that it was sent in
	edns   bool
	size   int
}

// good reports whether it is what the server of a delegated zone answers.
func (a answerFacts) good() bool {
	return a.err == nil && a.rcode == dns.RcodeSuccess && a.auth && a.soa
}

// askServers asks every address at which the zone is to be served, all at the same time.
func (f *gatewayFacts) askServers(ctx context.Context, w *walker) {
	f.servers = f.addressesToAsk(ctx, w)
	var asking sync.WaitGroup
	for i := range f.servers {
		asking.Go(func() { f.servers[i].ask(ctx, w, f.zone) })
	}
	asking.Wait()
}

// addressesToAsk are those that the parent and the owner name.
func (f *gatewayFacts) addressesToAsk(ctx context.Context, w *walker) []serverFacts {
	var list []serverFacts
	add := func(name string, a netip.Addr) {
		if len(list) < 2*maxServers && !slices.ContainsFunc(list, func(s serverFacts) bool { return s.addr == a }) {
			list = append(list, serverFacts{name: name, addr: a})
		}
	}
	for i, a := range f.public {
		add(serverName(i)+"."+f.zone+".", a)
	}
	for _, s := range f.parent.delegated() {
		addrs := s.addrs
		if len(addrs) == 0 && !within(strings.TrimSuffix(s.name, "."), f.zone) {
			addrs = w.lookup(ctx, s.name, 1)
		}
		for _, a := range addrs {
			add(s.name, a)
		}
	}
	return list
}

// delegated are the name servers that the parent's servers name, with all that they say of their addresses.
func (p parentFacts) delegated() []nameServer {
	var list []nameServer
	for _, d := range p.servers {
		for _, s := range d.ns {
			i := slices.IndexFunc(list, func(o nameServer) bool { return o.name == s.name })
			if i < 0 {
				list = append(list, nameServer{name: s.name})
				i = len(list) - 1
			}
			for _, a := range s.addrs {
				if !slices.Contains(list[i].addrs, a) {
					list[i].addrs = append(list[i].addrs, a)
				}
			}
		}
	}
	slices.SortFunc(list, func(a, b nameServer) int { return strings.Compare(a.name, b.name) })
	return list
}

// mixCase writes every other letter large, as resolvers do that expect that very spelling in the answer.
func mixCase(name string) string {
	b := []byte(strings.ToLower(name))
	large := true
	for i, c := range b {
		if 'a' <= c && c <= 'z' {
			if large {
				b[i] = c - 'a' + 'A'
			}
			large = !large
		}
	}
	return string(b)
}

// ask puts the questions to one address.
func (s *serverFacts) ask(ctx context.Context, w *walker, zone string) {
	m := probeOf(mixCase(zone), dns.TypeSOA)
	m.RecursionDesired = true // which must change nothing
	var r *dns.Msg
	s.udp, r = askSOA(ctx, w, s.addr, m, "udp")
	if at, ok := cookieTime(m, r, w.now()); ok {
		s.ahead, s.timed = at.Sub(w.now()), true
	}
	m = m.Copy()
	m.Id = dns.Id()
	s.tcp, r = askSOA(ctx, w, s.addr, m, "tcp")
	if at, ok := cookieTime(m, r, w.now()); ok { // from a connection it is certain who says so
		s.ahead, s.timed = at.Sub(w.now()), true
	}
	network := "udp"
	switch {
	case s.udp.err == nil:
	case s.tcp.err == nil:
		network = "tcp"
	default:
		return
	}
	m = probeOf(".", dns.TypeNS)
	m.RecursionDesired = true
	if r, err := w.exchange(ctx, s.addr, m, network); err == nil {
		s.open = len(r.Answer) > 0
	}
	if r, err := w.exchange(ctx, s.addr, probeOf(zone, dns.TypeNS), network); err == nil && r.Authoritative {
		s.ns = serversIn(r.Answer, r.Extra, dns.Fqdn(zone))
	}
}

func askSOA(ctx context.Context, w *walker, server netip.Addr, m *dns.Msg, network string) (answerFacts, *dns.Msg) {
	r, err := w.exchange(ctx, server, m, network)
	if err != nil {
		return answerFacts{err: err}, nil
	}
	a := answerFacts{
		rcode: r.Rcode, auth: r.Authoritative, exact: r.Question[0].Name == m.Question[0].Name, edns: r.IsEdns0() != nil, size: r.Len(),
	}
	for _, rr := range r.Answer {
		if soa, ok := rr.(*dns.SOA); ok && strings.EqualFold(soa.Hdr.Name, m.Question[0].Name) {
			a.soa, a.serial = true, soa.Serial
		}
	}
	return a, r
}

// why says what is wrong with an answer.
func (a answerFacts) why() string {
	switch {
	case isRefused(a.err):
		return "nothing listens there"
	case isUnreachable(a.err):
		return "this machine has no way there"
	case isTimeout(a.err), errors.Is(a.err, context.DeadlineExceeded):
		return "no answer"
	case a.err != nil:
		return a.err.Error()
	case a.rcode != dns.RcodeSuccess:
		return "the answer is " + dns.RcodeToString[a.rcode]
	case !a.soa:
		return "the answer has no SOA record"
	}
	return "the answer is not authoritative"
}

// judgeServers says how the name servers answer.
func (f *gatewayFacts) judgeServers() []checkFinding {
	var list []checkFinding
	for _, s := range f.servers {
		list = append(list, f.judgeServer(s)...)
	}
	var serials []string
	for _, s := range f.servers {
		serial := fmt.Sprintf("%d at %s", s.tcp.serial, s.addr)
		if s.tcp.good() {
			serials = append(serials, serial)
		}
	}
	if !slices.ContainsFunc(f.servers, func(s serverFacts) bool { return s.tcp.good() && s.tcp.serial != f.firstSerial() }) {
		return list
	}
	return append(list, checked("serial", checkWarn, "see whether each address leads to the same gateway",
		"the servers have different versions of the zone: %s", strings.Join(serials, ", ")))
}

func (f *gatewayFacts) firstSerial() uint32 {
	for _, s := range f.servers {
		if s.tcp.good() {
			return s.tcp.serial
		}
	}
	return 0
}

// judgeServer is about one address.
func (f *gatewayFacts) judgeServer(s serverFacts) []checkFinding {
	if isUnreachable(s.udp.err) && isUnreachable(s.tcp.err) {
		return []checkFinding{checked("server", checkSkip, "run this on a machine that has such addresses", "%s: this machine has no way to %s", s.addr, family(s.addr))}
	}
	if f.isHairpin(s.addr) && s.udp.err != nil && s.tcp.err != nil {
		return []checkFinding{checked("server", checkSkip, f.elsewhere(), "%s: the gateway does not reach its own public address, which says nothing of others", s.addr)}
	}
	list := []checkFinding{f.judgeWay(s, s.udp, "udp"), f.judgeWay(s, s.tcp, "tcp")}
	if s.open {
		list = append(list, checked("recursion", checkFail, fmt.Sprintf("have the resolver leave 53 at %s to the gateway, and the firewall redirect nothing", s.addr),
			"%s answers for other people's names: a resolver that is open to all has the port, not the gateway", s.addr))
	}
	return list
}

// judgeWay is about one address over UDP or TCP.
func (f *gatewayFacts) judgeWay(s serverFacts, a answerFacts, network string) checkFinding {
	switch {
	case isRefused(a.err):
		return checked(network, checkFail, "on the gateway: meshdns up, and meshdns status, which names a program that has the port",
			"%s port 53/%s: %s", s.addr, network, a.why())
	case a.err != nil:
		return checked(network, checkFail, fmt.Sprintf("open 53/%s in the firewalls of the gateway and of its provider", network),
			"%s port 53/%s: %s", s.addr, network, a.why())
	case !a.good():
		return checked(network, checkFail, fmt.Sprintf("have %s lead to the gateway of %s, or take the server out of the delegation", s.addr, f.zone),
			"%s does not serve %s (%s): %s", s.addr, f.zone, network, a.why())
	case !a.exact:
		return checked(network, checkWarn, "have no firewall or router look into DNS to "+s.addr.String(),
			"%s gives names back in another case than it was asked: some resolvers take that for forged", s.addr)
	case !a.edns, a.size > checkUDPSize:
		return checked(network, checkWarn, "have no firewall or router look into DNS to "+s.addr.String(),
			"%s answers without EDNS, or with more than %d bytes", s.addr, checkUDPSize)
	}
	return checked(network, checkOK, "", "%s answers for %s, serial %d", s.addr, f.zone, a.serial)
}

func family(a netip.Addr) string {
	if a.Is4() {
		return "IPv4"
	}
	return "IPv6"
}

// isHairpin reports whether an address is the gateway's own and leads through a NAT that this is inside of.
func (f *gatewayFacts) isHairpin(a netip.Addr) bool {
	return f.from == fromGateway && slices.Contains(f.public, a) && !slices.Contains(f.listen, a)
}

// elsewhere is the command that tells what the gateway itself cannot.
func (f *gatewayFacts) elsewhere() string {
	words := make([]string, len(f.public))
	for i, a := range f.public {
		words[i] = a.String()
	}
	return "on another machine: meshdns gateway check " + f.zone + " --public " + strings.Join(words, ",")
}

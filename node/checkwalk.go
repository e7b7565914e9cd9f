package node

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/miekg/dns"
)

// The bounds of a walk.
const (
	maxWalk        = 120 // questions in all, so that no delegation leads round for ever
	maxWalkDepth   = 3   // of server names whose addresses have to be found first
	walkTries      = 3
	walkTime       = 1500 * time.Millisecond
	maxAsked       = 4 // servers of a zone above that are asked before it counts as dead
	checkUDPSize   = 1232
	maxReferrals   = 16
	maxParents     = 8 // servers of the parent, each of which has to know the delegation
	maxClocks      = 32
	maxServerNames = 32 // servers of one zone, and addresses of one server
)

// rootServers are where a walk begins (the file named.root of IANA): those with the operators that are reached best.
func rootServers() []netip.Addr {
	var list []netip.Addr
	for word := range strings.FieldsSeq("198.41.0.4 199.9.14.201 192.33.4.12 199.7.91.13 193.0.14.129 199.7.83.42 2001:503:ba3e::2:30 2801:1b8:10::b 2001:7fd::1") {
		list = append(list, netip.MustParseAddr(word))
	}
	return list
}

// walker asks name servers for themselves, without a resolver's cache between.
type walker struct {
	port     uint16
	resolver netip.Addr   // valid: who is asked where the parent's servers are
	roots    []netip.Addr // nil: rootServers
	left     int          // questions that may still be asked
	now      func() time.Time
	clocks   []clockFact
}

// clockFact is how far the clock of a server is ahead of this machine's.
type clockFact struct {
	server string
	ahead  time.Duration
}

var (
	errWalk       = errors.New("the delegations lead too far")
	errRedirected = errors.New("what answers is not the server that was asked: this network takes questions to port 53 to a resolver of its own")
)

// ask puts one question to one server: over UDP, and over TCP where the answer does not fit.
func (w *walker) ask(ctx context.Context, server netip.Addr, m *dns.Msg) (*dns.Msg, error) {
	if w.left--; w.left < 0 {
		return nil, errWalk
	}
	r, err := w.exchange(ctx, server, m, "udp")
	if err == nil && r.Truncated {
		r, err = w.exchange(ctx, server, m, "tcp")
	}
	at, ok := cookieTime(m, r, w.now())
	if err == nil && ok && len(w.clocks) < maxClocks && !slices.ContainsFunc(w.clocks, func(c clockFact) bool { return c.server == server.String() }) {
		w.clocks = append(w.clocks, clockFact{server.String(), at.Sub(w.now())})
	}
	return r, err
}

// exchange is one question and its answer, by one way.
func (w *walker) exchange(ctx context.Context, server netip.Addr, m *dns.Msg, network string) (r *dns.Msg, err error) {
	c := dns.Client{Net: network, Timeout: walkTime, UDPSize: checkUDPSize}
	for range walkTries {
		r, _, err = c.ExchangeContext(ctx, m, netip.AddrPortFrom(server, w.port).String())
		if err == nil && r.Rcode == dns.RcodeBadCookie && r.IsEdns0() != nil {
			m = m.Copy() // some want to see that the address is ours first (RFC 7873, section 5.4)
			m.IsEdns0().Option = slices.DeleteFunc(r.IsEdns0().Option, func(o dns.EDNS0) bool { return o.Option() != dns.EDNS0COOKIE })
			continue
		}
		if err == nil || ctx.Err() != nil || !isTimeout(err) {
			break
		}
	}
	if err == nil && (len(r.Question) != 1 || !strings.EqualFold(r.Question[0].Name, m.Question[0].Name)) {
		err = errors.New("the answer is to another question")
	}
	return r, err
}

// probeOf is a question with EDNS and a client cookie, whose answer tells the server's time.
func probeOf(name string, qtype uint16) *dns.Msg {
	m := new(dns.Msg).SetQuestion(dns.Fqdn(name), qtype)
	m.RecursionDesired = false
	m.SetEdns0(checkUDPSize, false)
	opt := m.IsEdns0()
	var cookie [8]byte
	_, _ = rand.Read(cookie[:]) // never fails (crypto/rand)
	opt.Option = append(opt.Option, &dns.EDNS0_COOKIE{Code: dns.EDNS0COOKIE, Cookie: hex.EncodeToString(cookie[:])})
	return m
}

// cookieTime is the time in the server cookie of a reply (RFC 9018, section 4.3). Servers make them anew for who brings none.
func cookieTime(m, r *dns.Msg, now time.Time) (time.Time, bool) {
	if r == nil || r.IsEdns0() == nil || m.IsEdns0() == nil {
		return time.Time{}, false
	}
	for _, o := range r.IsEdns0().Option {
		c, ok := o.(*dns.EDNS0_COOKIE)
		if !ok {
			continue
		}
		raw, err := hex.DecodeString(c.Cookie)
		// Client cookie, version, three octets that are reserved, time, hash.
		if err != nil || len(raw) != 24 || raw[8] != 1 || raw[9]|raw[10]|raw[11] != 0 {
			return time.Time{}, false
		}
		seconds := uint32(raw[12])<<24 | uint32(raw[13])<<16 | uint32(raw[14])<<8 | uint32(raw[15])
		return now.Add(time.Duration(int32(seconds-uint32(now.Unix()))) * time.Second), true // which wraps (RFC 1982)
	}
	return time.Time{}, false
}

// nameServer is one of a zone.
type nameServer struct {
	name  string // in lower case, with the last dot
	addrs []netip.Addr
}

// cut is a zone and who serves it.
type cut struct {
	zone    string // with the last dot
	servers []nameServer
}

// addresses of a zone's servers, one of each server before the second of any.
func (c cut) addresses() []netip.Addr {
	var list []netip.Addr
	for i := 0; ; i++ {
		before := len(list)
		for _, s := range c.servers {
			if i < len(s.addrs) && !slices.Contains(list, s.addrs[i]) {
				list = append(list, s.addrs[i])
			}
		}
		if len(list) == before && !slices.ContainsFunc(c.servers, func(s nameServer) bool { return i < len(s.addrs) }) {
			return list
		}
	}
}

// askAny asks a zone's servers until one gives an answer that is one.
func (w *walker) askAny(ctx context.Context, c cut, name string, qtype uint16) (*dns.Msg, error) {
	var err error
	asked := 0
	for _, a := range c.addresses() {
		var r *dns.Msg
		var oneErr error
		if r, oneErr = w.ask(ctx, a, probeOf(name, qtype)); oneErr == nil && (r.Rcode == dns.RcodeSuccess || r.Rcode == dns.RcodeNameError) {
			return r, nil
		}
		if oneErr == nil {
			oneErr = fmt.Errorf("it answers %s", dns.RcodeToString[r.Rcode])
		}
		if err == nil || isUnreachable(err) {
			err = fmt.Errorf("asking %s, a server of %s: %w", a, c.zone, oneErr)
		}
		if asked++; ctx.Err() != nil || errors.Is(oneErr, errWalk) || asked >= maxAsked && !isUnreachable(oneErr) {
			break
		}
	}
	if err == nil {
		err = fmt.Errorf("no server of %s has an address", c.zone)
	}
	return nil, err
}

// descend follows referrals towards name. It ends at the servers that do not refer any further, or at those that refer to stop,
// and returns their reply.
func (w *walker) descend(ctx context.Context, name string, qtype uint16, stop string, depth int) (cut, *dns.Msg, error) {
	roots := w.roots
	if roots == nil {
		roots = rootServers()
	}
	at := cut{zone: "."}
	for _, a := range roots {
		at.servers = append(at.servers, nameServer{a.String(), []netip.Addr{a}})
	}
	for range maxReferrals {
		r, err := w.askAny(ctx, at, name, qtype)
		if err != nil {
			return at, nil, err
		}
		next, ok := referral(r, at.zone, name)
		if ok && next.zone != stop {
			at = w.complete(ctx, next, depth)
			continue
		}
		if !ok && !r.Authoritative {
			return at, nil, errRedirected
		}
		return at, r, nil
	}
	return at, nil, errWalk
}

// referral is the delegation in a reply, if it leads down from a zone towards name.
func referral(r *dns.Msg, from, name string) (cut, bool) {
	if r.Authoritative || len(r.Answer) > 0 {
		return cut{}, false
	}
	for _, rr := range r.Ns {
		owner := strings.ToLower(rr.Header().Name)
		if rr.Header().Rrtype == dns.TypeNS && owner != from && dns.IsSubDomain(from, owner) && dns.IsSubDomain(owner, dns.Fqdn(name)) {
			return cut{owner, serversIn(r.Ns, r.Extra, owner)}, true
		}
	}
	return cut{}, false
}

// addressesIn are the addresses of a name among records.
func addressesIn(records []dns.RR, name string) []netip.Addr {
	var list []netip.Addr
	for _, rr := range records {
		if !strings.EqualFold(rr.Header().Name, name) {
			continue
		}
		var ip net.IP
		switch rr := rr.(type) {
		case *dns.A:
			ip = rr.A
		case *dns.AAAA:
			ip = rr.AAAA
		}
		if a, ok := netip.AddrFromSlice(ip); ok && !slices.Contains(list, a.Unmap()) && len(list) < maxServerNames {
			list = append(list, a.Unmap())
		}
	}
	return list
}

// complete looks up servers that came without an address, if none has one.
func (w *walker) complete(ctx context.Context, c cut, depth int) cut {
	if len(c.addresses()) > 0 || depth >= maxWalkDepth {
		return c
	}
	for i := range c.servers[:min(len(c.servers), maxAsked)] {
		if c.servers[i].addrs = w.lookup(ctx, c.servers[i].name, depth+1); len(c.servers[i].addrs) > 0 {
			break
		}
	}
	return c
}

// lookup finds the addresses of a name.
func (w *walker) lookup(ctx context.Context, name string, depth int) []netip.Addr {
	var list []netip.Addr
	for _, qtype := range []uint16{dns.TypeA, dns.TypeAAAA} {
		var r *dns.Msg
		var err error
		if w.resolver.IsValid() {
			r, err = w.recurse(ctx, name, qtype)
		} else {
			_, r, err = w.descend(ctx, name, qtype, "", depth)
		}
		if err == nil {
			list = append(list, addressesIn(r.Answer, name)...)
		}
	}
	return list
}

// recurse asks the resolver.
func (w *walker) recurse(ctx context.Context, name string, qtype uint16) (*dns.Msg, error) {
	m := probeOf(name, qtype)
	m.RecursionDesired = true
	r, err := w.ask(ctx, w.resolver, m)
	if err == nil && r.Rcode != dns.RcodeSuccess && r.Rcode != dns.RcodeNameError {
		err = fmt.Errorf("it answers %s", dns.RcodeToString[r.Rcode])
	}
	if err != nil {
		return nil, fmt.Errorf("asking the resolver %s: %w", w.resolver, err)
	}
	return r, nil
}

// parentFacts is what a zone's parent says of it.
type parentFacts struct {
	zone    string // without the last dot; empty: not found
	err     error  // why it was not
	servers []delegating
	ds      []string
	dsErr   error
}

// delegating is what one server of the parent says.
type delegating struct {
	server string
	addr   netip.Addr
	err    error
	serves bool         // it serves the zone itself
	ns     []nameServer // with the glue that came along
}

// parentOf finds the zone above, and what each of its servers says of this one.
func (w *walker) parentOf(ctx context.Context, zone string) parentFacts {
	var f parentFacts
	var at cut
	fqdn := dns.Fqdn(zone)
	if at, f.err = w.above(ctx, fqdn); f.err != nil {
		return f
	}
	f.zone = strings.TrimSuffix(at.zone, ".")
	for i, s := range at.servers {
		if len(s.addrs) == 0 {
			at.servers[i].addrs = w.lookup(ctx, s.name, 1)
		}
	}
	for _, s := range at.servers[:min(len(at.servers), maxParents)] {
		for _, a := range s.addrs {
			d := w.delegation(ctx, a, fqdn)
			d.server = s.name
			f.servers = append(f.servers, d)
			if d.err == nil {
				break // one address of a server says what all of them would
			}
		}
	}
	r, err := w.askAny(ctx, at, fqdn, dns.TypeDS)
	if f.dsErr = err; err != nil {
		return f
	}
	for _, rr := range r.Answer {
		if ds, ok := rr.(*dns.DS); ok {
			f.ds = append(f.ds, fmt.Sprintf("%d %d %d %s", ds.KeyTag, ds.Algorithm, ds.DigestType, strings.ToUpper(ds.Digest)))
		}
	}
	return f
}

// above finds the parent's name and servers.
func (w *walker) above(ctx context.Context, zone string) (cut, error) {
	i, end := dns.NextLabel(zone, 0)
	if end {
		return cut{}, errors.New("it is a top-level domain")
	}
	if w.resolver.IsValid() {
		return w.aboveByResolver(ctx, zone[i:])
	}
	at, r, err := w.descend(ctx, zone[i:], dns.TypeSOA, zone, 0)
	if err == nil && r.Rcode == dns.RcodeNameError && at.zone == "." {
		err = fmt.Errorf("the top-level domain of %s does not exist", zone)
	}
	if err != nil {
		return cut{}, err
	}
	return w.named(ctx, at, r)
}

// named gives a cut the name of the zone that its servers answered from: they may serve zones below the one that they were
// found by.
func (w *walker) named(ctx context.Context, at cut, r *dns.Msg) (cut, error) {
	apex := apexIn(r)
	if apex == "" || apex == at.zone {
		return at, nil
	}
	own, err := w.askAny(ctx, at, apex, dns.TypeNS)
	if err != nil {
		return cut{}, err
	}
	next := cut{zone: apex, servers: serversIn(own.Answer, own.Extra, apex)}
	if len(next.servers) == 0 {
		return cut{}, fmt.Errorf("the servers of %s do not say who serves %s", at.zone, apex)
	}
	return next, nil
}

// apexIn is the zone that a reply to a question for SOA comes from.
func apexIn(r *dns.Msg) string {
	for _, rr := range slices.Concat(r.Answer, r.Ns) {
		if _, ok := rr.(*dns.SOA); ok {
			return strings.ToLower(rr.Header().Name)
		}
	}
	return ""
}

func (w *walker) aboveByResolver(ctx context.Context, name string) (cut, error) {
	r, err := w.recurse(ctx, name, dns.TypeSOA)
	if err != nil {
		return cut{}, err
	}
	at := cut{zone: apexIn(r)}
	if at.zone == "" {
		return cut{}, fmt.Errorf("the resolver %s does not say in which zone %s lies", w.resolver, name)
	}
	if r, err = w.recurse(ctx, at.zone, dns.TypeNS); err != nil {
		return cut{}, err
	}
	at.servers = serversIn(r.Answer, nil, at.zone)
	return at, nil
}

// serversIn are the name servers of a zone among records, with their addresses among others.
func serversIn(records, glue []dns.RR, zone string) []nameServer {
	var list []nameServer
	for _, rr := range records {
		ns, ok := rr.(*dns.NS)
		if ok && strings.EqualFold(rr.Header().Name, zone) && len(list) < maxServerNames {
			list = append(list, nameServer{strings.ToLower(ns.Ns), addressesIn(glue, ns.Ns)})
		}
	}
	return list
}

// delegation is what one server of the parent says of a zone.
func (w *walker) delegation(ctx context.Context, server netip.Addr, zone string) delegating {
	d := delegating{addr: server}
	var r *dns.Msg
	if r, d.err = w.ask(ctx, server, probeOf(zone, dns.TypeNS)); d.err != nil {
		return d
	}
	if r.Rcode != dns.RcodeSuccess && r.Rcode != dns.RcodeNameError {
		d.err = fmt.Errorf("it answers %s", dns.RcodeToString[r.Rcode])
		return d
	}
	if !r.Authoritative && r.RecursionAvailable && len(r.Answer) > 0 {
		d.err = errRedirected
		return d
	}
	d.serves = r.Authoritative && (len(r.Answer) > 0 || apexIn(r) == zone)
	d.ns = serversIn(slices.Concat(r.Answer, r.Ns), r.Extra, zone)
	return d
}

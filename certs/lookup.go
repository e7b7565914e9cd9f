package certs

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/miekg/dns"
)

// The bounds of looking.
const (
	maxCNAMEs    = 8
	maxServers   = 32 // addresses of a zone's servers
	askTime      = 3 * time.Second
	firstPause   = 500 * time.Millisecond
	longestPause = 5 * time.Second
	silentTime   = 15 * time.Second // after which a server that never answered is not waited for
)

// Lookup asks the DNS as the world sees it.
type Lookup struct {
	// Resolvers are asked for zones and their servers. Required: never the tailnet's own resolver, which has another view.
	Resolvers func() []netip.AddrPort
	// Exchange asks one server: over UDP, and over TCP if the answer was cut, if nil.
	Exchange func(ctx context.Context, query *dns.Msg, server netip.AddrPort) (*dns.Msg, error)
}

// ask has the first resolver that answers say what is at a name.
func (l Lookup) ask(ctx context.Context, name string, kind uint16) (*dns.Msg, error) {
	var resolvers []netip.AddrPort
	if l.Resolvers != nil {
		resolvers = l.Resolvers()
	}
	if len(resolvers) == 0 {
		return nil, errors.New("there is no resolver to ask")
	}
	var all error
	for _, server := range resolvers {
		m, err := l.exchange(ctx, name, kind, server, true)
		if err == nil && m.Rcode != dns.RcodeSuccess && m.Rcode != dns.RcodeNameError {
			err = fmt.Errorf("%s", dns.RcodeToString[m.Rcode])
		}
		if err == nil {
			return m, nil
		}
		all = errors.Join(all, fmt.Errorf("asking %s for %s %s: %w", server, name, dns.TypeToString[kind], err))
	}
	return nil, all
}

func (l Lookup) exchange(ctx context.Context, name string, kind uint16, server netip.AddrPort, recurse bool) (*dns.Msg, error) {
	ctx, cancel := context.WithTimeout(ctx, askTime)
	defer cancel()
	q := new(dns.Msg).SetQuestion(dns.Fqdn(name), kind)
	q.RecursionDesired = recurse
	q.SetEdns0(1232, false)
	if l.Exchange != nil {
		return l.Exchange(ctx, q, server)
	}
	m, _, err := (&dns.Client{}).ExchangeContext(ctx, q, server.String())
	if err == nil && m.Truncated {
		m, _, err = (&dns.Client{Net: "tcp"}).ExchangeContext(ctx, q, server.String())
	}
	return m, err
}

// Target follows the CNAMEs at name: a record that a CA looks for at name is to be written there.
func (l Lookup) Target(ctx context.Context, name string) (string, error) {
	seen := []string{name}
	for {
		at := seen[len(seen)-1]
		m, err := l.ask(ctx, at, dns.TypeCNAME)
		if err != nil {
			return "", err
		}
		next := ""
		for _, rr := range m.Answer {
			if c, ok := rr.(*dns.CNAME); ok && strings.EqualFold(c.Hdr.Name, dns.Fqdn(at)) {
				next = strings.ToLower(strings.TrimSuffix(c.Target, "."))
			}
		}
		switch {
		case next == "":
			return at, nil
		case slices.Contains(seen, next):
			return "", fmt.Errorf("the CNAMEs of %s lead back to %s", name, next)
		case len(seen) > maxCNAMEs:
			return "", fmt.Errorf("%s leads through more than %d CNAMEs", name, maxCNAMEs)
		}
		seen = append(seen, next)
	}
}

// zone is the zone that name is in: the nearest name above it with a SOA record.
func (l Lookup) zone(ctx context.Context, name string) (string, error) {
	for at := name; at != ""; {
		m, err := l.ask(ctx, at, dns.TypeSOA)
		if err != nil {
			return "", err
		}
		for _, rr := range slices.Concat(m.Answer, m.Ns) {
			owner := strings.ToLower(strings.TrimSuffix(rr.Header().Name, "."))
			if rr.Header().Rrtype == dns.TypeSOA && owner != "" && (at == owner || strings.HasSuffix(at, "."+owner)) {
				return owner, nil
			}
		}
		_, at, _ = strings.Cut(at, ".")
	}
	return "", fmt.Errorf("no zone has %s", name)
}

// zoneServer is an address at which a zone is served.
type zoneServer struct {
	name string
	at   netip.AddrPort
}

func (s zoneServer) String() string { return fmt.Sprintf("%s (%s)", s.name, s.at.Addr()) }

// servers are those that a zone names, at each of their addresses.
func (l Lookup) servers(ctx context.Context, zone string) ([]zoneServer, error) {
	m, err := l.ask(ctx, zone, dns.TypeNS)
	if err != nil {
		return nil, err
	}
	var all []zoneServer
	for _, rr := range m.Answer {
		ns, ok := rr.(*dns.NS)
		if !ok {
			continue
		}
		name := strings.ToLower(strings.TrimSuffix(ns.Ns, "."))
		for _, kind := range []uint16{dns.TypeA, dns.TypeAAAA} {
			m, err := l.ask(ctx, name, kind)
			if err != nil {
				return nil, err
			}
			for _, rr := range m.Answer {
				if addr, ok := addrOf(rr); ok && len(all) < maxServers {
					all = append(all, zoneServer{name, netip.AddrPortFrom(addr, 53)})
				}
			}
		}
	}
	if len(all) == 0 {
		return nil, fmt.Errorf("the zone %s names no server that has an address", zone)
	}
	return all, nil
}

func addrOf(rr dns.RR) (netip.Addr, bool) {
	var ip net.IP
	switch rr := rr.(type) {
	case *dns.A:
		ip = rr.A
	case *dns.AAAA:
		ip = rr.AAAA
	}
	addr, ok := netip.AddrFromSlice(ip)
	return addr.Unmap(), ok
}

// await returns when every server of zone that answers at all serves value at name, and at least one does. A CA asks any
// of them: one that lacks the value costs an order, and one that is silent is passed over by it too.
func (l Lookup) await(ctx context.Context, zone, name, value string) error {
	servers, err := l.servers(ctx, zone)
	if err != nil {
		return err
	}
	start, pause := time.Now(), firstPause
	for {
		states := l.look(ctx, servers, name, value)
		var lacking, silent error
		has := 0
		for i, err := range states {
			var quiet *silentError
			switch {
			case err == nil:
				has++
			case errors.As(err, &quiet):
				silent = errors.Join(silent, fmt.Errorf("%s: %w", servers[i], err))
			default:
				lacking = errors.Join(lacking, fmt.Errorf("%s: %w", servers[i], err))
			}
		}
		if has > 0 && lacking == nil && (silent == nil || time.Since(start) >= silentTime) {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("%s is not served: %w", name, errors.Join(lacking, silent, ctx.Err()))
		case <-time.After(pause):
		}
		pause = min(2*pause, longestPause)
	}
}

// silentError is a server that did not answer.
type silentError struct{ error }

// Unwrap returns why.
func (e *silentError) Unwrap() error { return e.error }

// look asks all servers at once whether they have the value.
func (l Lookup) look(ctx context.Context, servers []zoneServer, name, value string) []error {
	states := make([]error, len(servers))
	var wg sync.WaitGroup
	for i, s := range servers {
		wg.Go(func() { states[i] = l.has(ctx, s.at, name, value) })
	}
	wg.Wait()
	return states
}

func (l Lookup) has(ctx context.Context, server netip.AddrPort, name, value string) error {
	m, err := l.exchange(ctx, name, dns.TypeTXT, server, false)
	if err != nil {
		return &silentError{err}
	}
	for _, rr := range m.Answer {
		if txt, ok := rr.(*dns.TXT); ok && strings.Join(txt.Txt, "") == value {
			return nil
		}
	}
	if m.Rcode != dns.RcodeSuccess {
		return fmt.Errorf("it answers %s", dns.RcodeToString[m.Rcode])
	}
	return errors.New("it does not have the value")
}

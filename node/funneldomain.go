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

// The times and bounds of looking at domains that are somebody's own (S15).
const (
	outsideTime      = 2 * time.Second // for one question
	maxDomainAliases = 8
	maxDomainText    = 16
	proofTime        = time.Hour        // after which what a domain says is looked up again
	proofTick        = 20 * time.Second // how often it is seen whether one is due
	proofSoon        = time.Minute      // where it does not say what it has to, or could not be looked up
	proofWhile       = 10 * time.Second // for which an answer is not asked for again
	proofLast        = 4 * time.Hour    // for which a domain counts that cannot be looked up
	maxLookups       = 8                // domains at the same time
	maxForeign       = 32               // domains of a node; more are not looked up, and so not shown
)

// outsideDNS asks resolvers for the DNS as the world sees it.
type outsideDNS struct {
	resolvers func() []netip.AddrPort
	exchange  func(ctx context.Context, q *dns.Msg, server netip.AddrPort) (*dns.Msg, error) // tests; nil: over UDP, then TCP
}

// ask asks one after another, until one has an answer. That a name does not exist is one.
func (o outsideDNS) ask(ctx context.Context, name string, kind uint16) (*dns.Msg, error) {
	list := o.resolvers()
	if len(list) == 0 {
		return nil, errors.New("there is no resolver to ask: set certs.resolvers")
	}
	var all error
	for _, server := range list {
		q := new(dns.Msg).SetQuestion(dns.Fqdn(name), kind)
		q.SetEdns0(1232, false)
		m, err := o.one(ctx, q, server)
		switch {
		case err != nil:
		case len(m.Question) != 1 || !strings.EqualFold(m.Question[0].Name, q.Question[0].Name) || m.Question[0].Qtype != kind:
			err = errors.New("the answer is to another question")
		case m.Rcode == dns.RcodeSuccess, m.Rcode == dns.RcodeNameError:
			return m, nil
		default:
			err = errors.New(dns.RcodeToString[m.Rcode])
		}
		all = errors.Join(all, fmt.Errorf("asking %s for %s %s: %w", server, name, dns.TypeToString[kind], err))
	}
	return nil, all
}

func (o outsideDNS) one(ctx context.Context, q *dns.Msg, server netip.AddrPort) (*dns.Msg, error) {
	if o.exchange != nil {
		return o.exchange(ctx, q, server)
	}
	ctx, cancel := context.WithTimeout(ctx, outsideTime)
	defer cancel()
	m, _, err := new(dns.Client).ExchangeContext(ctx, q, server.String())
	if err == nil && m.Truncated {
		m, _, err = (&dns.Client{Net: "tcp"}).ExchangeContext(ctx, q, server.String())
	}
	return m, err
}

// prove looks at what a domain says of whom it is for.
func (o outsideDNS) prove(ctx context.Context, domain string) domainProof {
	p := domainProof{tried: time.Now()}
	at := domain
	for range maxDomainAliases {
		m, err := o.ask(ctx, at, dns.TypeCNAME)
		if err != nil {
			p.err = err
			return p
		}
		next := ""
		for _, rr := range m.Answer {
			if c, ok := rr.(*dns.CNAME); ok && strings.EqualFold(c.Hdr.Name, dns.Fqdn(at)) {
				next = foldName(c.Target)
			}
		}
		if next == "" || slices.Contains(p.targets, next) {
			break
		}
		p.targets = append(p.targets, next)
		at = next
	}
	m, err := o.ask(ctx, domainLabel+"."+domain, dns.TypeTXT)
	if err != nil {
		p.err = err
		return p
	}
	for _, rr := range m.Answer {
		if t, ok := rr.(*dns.TXT); ok && len(p.texts) < maxDomainText {
			p.texts = append(p.texts, strings.Join(t.Txt, ""))
		}
	}
	p.at = p.tried
	return p
}

// addresses are those of a name, as the world sees it.
func (o outsideDNS) addresses(ctx context.Context, name string) ([]netip.Addr, error) {
	var list []netip.Addr
	for _, kind := range []uint16{dns.TypeA, dns.TypeAAAA} {
		m, err := o.ask(ctx, name, kind)
		if err != nil {
			return nil, err
		}
		for _, rr := range m.Answer {
			switch rr := rr.(type) {
			case *dns.A:
				if a, ok := netip.AddrFromSlice(rr.A); ok {
					list = append(list, a.Unmap())
				}
			case *dns.AAAA:
				if a, ok := netip.AddrFromSlice(rr.AAAA); ok {
					list = append(list, a)
				}
			}
		}
	}
	return list, nil
}

// proofs are what domains were found to say.
type proofs struct {
	outside outsideDNS
	slots   chan struct{} // so many lookups at the same time, whoever wants them

	mu sync.Mutex
	of map[string]domainProof
}

// view are the proofs of now, which are not written to.
func (p *proofs) view(now time.Time) map[string]domainProof {
	p.mu.Lock()
	defer p.mu.Unlock()
	view := make(map[string]domainProof, len(p.of))
	for domain, proof := range p.of {
		if !proof.at.IsZero() && proof.err != nil && now.Sub(proof.at) > proofLast {
			proof.at, proof.targets, proof.texts = time.Time{}, nil, nil
		}
		view[domain] = proof
	}
	return view
}

// look looks up those of these domains whose answers are older than they may be by due, and forgets all others. It returns once
// all are there, or ctx ends.
func (p *proofs) look(ctx context.Context, domains []string, due func(domainProof) time.Duration) {
	now := time.Now()
	var wait sync.WaitGroup
	for _, domain := range domains {
		p.mu.Lock()
		old, known := p.of[domain]
		p.mu.Unlock()
		if known && now.Sub(old.tried) < due(old) {
			continue
		}
		wait.Go(func() {
			select {
			case p.slots <- struct{}{}:
				p.take(domain, p.outside.prove(ctx, domain))
				<-p.slots
			case <-ctx.Done():
			}
		})
	}
	wait.Wait()
}

// take notes what came of a lookup. One that came to nothing says nothing against the domain: what was known counts for a while.
func (p *proofs) take(domain string, fresh domainProof) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if old, known := p.of[domain]; known && fresh.err != nil {
		fresh.at, fresh.targets, fresh.texts = old.at, old.targets, old.texts
	} else if fresh.err != nil {
		fresh.targets = nil
	}
	p.of[domain] = fresh
}

// keep forgets all domains but these.
func (p *proofs) keep(domains []string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for domain := range p.of {
		if !slices.Contains(domains, domain) {
			delete(p.of, domain)
		}
	}
}

// whenAsked is how old an answer may be for a node that asks now.
func whenAsked(domainProof) time.Duration { return proofWhile }

// byTheClock is how old an answer may be while nobody asks. good: it says what it has to.
func byTheClock(good bool) func(domainProof) time.Duration {
	return func(p domainProof) time.Duration {
		if good && p.err == nil {
			return proofTime
		}
		return proofSoon
	}
}

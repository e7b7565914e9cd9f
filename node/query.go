package node

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"time"

	"github.com/miekg/dns"
	"golang.org/x/net/idna"
)

const (
	// queryTimeout is how long a server is waited for, a second time included if it is not on this machine.
	queryTimeout = 5 * time.Second
	// querySize is the answer that we take in one datagram: what passes unfragmented nearly everywhere.
	querySize = 1232
)

// question is what a user asks for.
type question struct {
	name string // fully qualified, or without its final dot if the search list is to be tried
	kind uint16
}

// parseQuestion reads a name and a type as a user writes them. An address stands for its PTR name, an empty type for
// A. Errors are ErrBadRequest.
func parseQuestion(name, kind string) (question, error) {
	q := question{name: strings.TrimSpace(name), kind: dns.TypeA}
	if addr, err := netip.ParseAddr(q.name); err == nil {
		q.kind = dns.TypePTR
		q.name, err = dns.ReverseAddr(addr.Unmap().WithZone("").String())
		if err != nil {
			return question{}, hinted(ErrBadRequest, fmt.Errorf("finding the name of %s: %w", addr, err), "")
		}
	}
	if kind != "" {
		var ok bool
		if q.kind, ok = dns.StringToType[strings.ToUpper(kind)]; !ok {
			return question{}, hinted(ErrBadRequest, fmt.Errorf("%q is not a record type", kind),
				"types are those of zone files, such as A, AAAA, CNAME, MX, SRV and TXT")
		}
	}
	if ascii, err := idna.Lookup.ToASCII(q.name); err == nil {
		q.name = ascii // what is no host name, such as _sip._tcp, stays as it is
	}
	// Only packing tells for sure: IsDomainName lets some escapes pass that make no name.
	if _, err := new(dns.Msg).SetQuestion(dns.Fqdn(q.name), q.kind).Pack(); err != nil || q.name == "" {
		return question{}, hinted(ErrBadRequest, fmt.Errorf("%q is not a domain name", name), "")
	}
	return q, nil
}

// candidates are the names to try in turn, as libc does: a name of one label is looked for in the search list first
// (resolv.conf(5), ndots).
func (q question) candidates(search []string) []string {
	if strings.Contains(q.name, ".") {
		return []string{dns.Fqdn(q.name)}
	}
	var names []string
	for _, domain := range search {
		names = append(names, q.name+"."+dns.Fqdn(domain))
	}
	return append(names, dns.Fqdn(q.name))
}

func (q question) typeName() string { return dns.TypeToString[q.kind] }

// Query asks the server at addr for name, without a search list. It needs no running node.
func Query(ctx context.Context, addr netip.AddrPort, name, kind string) (QueryResult, error) {
	q, err := parseQuestion(name, kind)
	if err != nil {
		return QueryResult{}, err
	}
	return q.ask(ctx, addr, dns.Fqdn(q.name))
}

// search asks the server at addr for the candidates in turn, until one exists.
func (q question) search(ctx context.Context, addr netip.AddrPort, list []string) (QueryResult, error) {
	var first QueryResult
	for i, name := range q.candidates(list) {
		result, err := q.ask(ctx, addr, name)
		if err != nil || result.Rcode == dns.RcodeToString[dns.RcodeSuccess] {
			return result, err
		}
		if i == 0 {
			first = result
		}
	}
	return first, nil
}

// ask puts one question, over UDP and where the answer was cut over TCP.
func (q question) ask(ctx context.Context, addr netip.AddrPort, name string) (QueryResult, error) {
	ctx, cancel := context.WithTimeout(ctx, queryTimeout)
	defer cancel()
	m := new(dns.Msg).SetQuestion(name, q.kind)
	m.SetEdns0(querySize, false)
	start := time.Now()
	reply, err := exchange(ctx, "udp", addr, m)
	if err == nil && reply.Truncated {
		reply, err = exchange(ctx, "tcp", addr, m)
	}
	if err != nil {
		return QueryResult{}, askError(addr, err)
	}
	result := QueryResult{
		Schema:  "meshdns.dns.query/v1",
		Name:    name,
		Type:    q.typeName(),
		Rcode:   dns.RcodeToString[reply.Rcode],
		Server:  addr.String(),
		Answer:  make([]answerRecord, 0, len(reply.Answer)),
		Elapsed: float64(time.Since(start).Microseconds()) / 1000,
	}
	for _, rr := range reply.Answer {
		result.Answer = append(result.Answer, recordOf(rr))
	}
	if opt := reply.IsEdns0(); opt != nil {
		result.Extended = extendedError(opt)
	}
	return result, nil
}

// exchange sends m until the answer to it comes, twice over UDP to a server that is not on this machine: only there
// datagrams get lost.
func exchange(ctx context.Context, network string, addr netip.AddrPort, m *dns.Msg) (*dns.Msg, error) {
	client := &dns.Client{Net: network, Timeout: queryTimeout}
	if network == "udp" && !addr.Addr().IsLoopback() {
		client.Timeout = queryTimeout * 2 / 5
		if reply, _, err := client.ExchangeContext(ctx, m, addr.String()); !isTimeout(err) || ctx.Err() != nil {
			return reply, err
		}
	}
	reply, _, err := client.ExchangeContext(ctx, m, addr.String())
	return reply, err
}

// askError says what a failed exchange means.
func askError(addr netip.AddrPort, err error) error {
	if isTimeout(err) && !errors.Is(err, context.Canceled) {
		return hinted(ErrTimeout, fmt.Errorf("asking %s: no answer within %s", addr, queryTimeout),
			"see which upstream is slow: meshdns dns status")
	}
	var op *net.OpError
	if errors.As(err, &op) {
		err = op.Err // op repeats the address
	}
	return fmt.Errorf("asking %s: %w", addr, err)
}

// recordOf splits a record into its parts.
func recordOf(rr dns.RR) answerRecord {
	h := rr.Header()
	return answerRecord{
		Name: h.Name,
		Type: dns.Type(h.Rrtype).String(),
		TTL:  h.Ttl,
		Data: strings.TrimPrefix(rr.String(), h.String()),
	}
}

// extendedError is the server's reason in words (RFC 8914), "" if it gave none.
func extendedError(opt *dns.OPT) string {
	for _, option := range opt.Option {
		if ede, ok := option.(*dns.EDNS0_EDE); ok {
			text := dns.ExtendedErrorCodeToString[ede.InfoCode]
			if ede.ExtraText != "" {
				text = strings.TrimPrefix(text+": "+ede.ExtraText, ": ")
			}
			return text
		}
	}
	return ""
}

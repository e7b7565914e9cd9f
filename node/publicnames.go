package node

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"

	"github.com/miekg/dns"
)

// shownTTL is that of the records of what is shown, in seconds: what is not shown any more is not to be looked for.
const shownTTL = 60

// view is what is shown, which is not written to.
func (g *funnelGate) view() []shown {
	if g == nil {
		return nil
	}
	return *g.shown.Load()
}

func (s shown) equal(o shown) bool {
	return s.name == o.name && s.port == o.port && s.kind == o.kind && s.publish == o.publish && slices.Equal(s.nodes, o.nodes)
}

// shownRecords are the records of what is shown: the gateway's addresses at each name, and where there is HTTPS that it speaks
// HTTP/2 (RFC 9460), and at which port if that is not the usual one. They say nothing of nodes, and never of encrypted hellos, which could not be routed.
func shownRecords(public []netip.Addr, port uint16, list []shown) []dns.RR {
	addressed := map[string]bool{}
	services := map[string]string{} // by owner: their target
	for _, s := range list {
		if s.publish == "" {
			continue
		}
		addressed[s.publish] = true
		switch {
		case s.kind != kindHTTPS || s.name != s.publish: // a domain's own alias leads here, and to whatever is shown here
		case s.port == publicPort:
			services[s.name] = "."
		default: // RFC 9460, section 2.3
			services[fmt.Sprintf("_%d._https.%s", s.port, s.name)] = dns.Fqdn(s.name)
		}
	}
	var records []dns.RR
	header := func(name string, kind uint16) dns.RR_Header {
		return dns.RR_Header{Name: dns.Fqdn(name), Rrtype: kind, Class: dns.ClassINET, Ttl: shownTTL}
	}
	for _, name := range slices.Sorted(maps.Keys(addressed)) {
		for _, a := range public {
			if a.Is4() {
				records = append(records, &dns.A{Hdr: header(name, dns.TypeA), A: a.AsSlice()})
			} else {
				records = append(records, &dns.AAAA{Hdr: header(name, dns.TypeAAAA), AAAA: a.AsSlice()})
			}
		}
	}
	for _, owner := range slices.Sorted(maps.Keys(services)) {
		rr := &dns.HTTPS{SVCB: dns.SVCB{Hdr: header(owner, dns.TypeHTTPS), Priority: 1, Target: services[owner]}}
		rr.Value = []dns.SVCBKeyValue{&dns.SVCBAlpn{Alpn: []string{"h2", "http/1.1"}}}
		if !strings.HasPrefix(owner, "_") && port != publicPort {
			rr.Value = append(rr.Value, &dns.SVCBPort{Port: port})
		}
		records = append(records, rr)
	}
	return records
}

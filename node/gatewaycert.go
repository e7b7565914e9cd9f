package node

import (
	"context"
	"errors"
	"maps"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/miekg/dns"

	"github.com/meshdns/meshdns/resolver"
)

// The ports on a gateway's tailnet addresses where programs on nodes publish values for CAs.
const (
	portACMEDNS = 41445 // the API of acme-dns, over HTTP
	portUpdates = 41446 // dynamic updates, over UDP and TCP
)

// maxPace bounds how many first certificates a gateway may let nodes order in a week. More than this no CA lets a domain have.
const maxPace = 400

// caaTTL is that of CAA records. A CA looks them up anew for each order.
const caaTTL = 60

// publicState is what the public name server was last told.
type publicState struct {
	mu    sync.Mutex
	issue map[string][]string
	shown []shown
	texts map[publicText]bool
}

type publicText struct{ name, value string }

// issuerHosts are the configured CAs: their names in CAA records, by the host of their accounts' addresses.
func issuerHosts(list []string) map[string]string {
	hosts := map[string]string{}
	for _, one := range list {
		host, name, _ := strings.Cut(one, "=")
		hosts[host] = strings.ToLower(name)
	}
	return hosts
}

// publicView is what the public sees of the zone, values that come and go aside. issue says who may issue for which names; for
// the others nobody may, as the zone's top says.
func (n *Node) publicView(issue map[string][]string, list []shown) resolver.PublicView {
	m, _ := n.gateway.registry.Map()
	view := resolver.PublicView{Servers: map[string][]netip.Addr{}}
	for i, a := range n.cfg.Gateway.Public[:min(len(n.cfg.Gateway.Public), maxServers)] {
		view.Servers[serverName(i)+"."+m.Zone+"."] = []netip.Addr{a}
	}
	for name, values := range issue {
		for _, value := range values {
			// The wildcard of a name is proven at the same place, so the same may have it.
			for _, tag := range []string{"issue", "issuewild"} {
				view.Records = append(view.Records, &dns.CAA{
					Hdr: dns.RR_Header{Name: name + ".", Rrtype: dns.TypeCAA, Class: dns.ClassINET, Ttl: caaTTL}, Tag: tag, Value: value,
				})
			}
		}
	}
	view.Records = append(view.Records, shownRecords(n.cfg.Gateway.Public, n.publicPort(), list)...)
	return view
}

// publish has the public name server answer what the registry holds for CAs. It does when publish returns.
func (n *Node) publish() error {
	g := &n.gateway
	p := &g.public
	p.mu.Lock()
	defer p.mu.Unlock()
	certs, _ := g.registry.Certs() // once it is ours to tell: an older view must not come after a newer one
	var errs []error
	list := g.funnels.view()
	if !maps.EqualFunc(certs.Issue, p.issue, slices.Equal[[]string]) || !slices.EqualFunc(list, p.shown, shown.equal) {
		if err := g.authority.SetPublic(n.publicView(certs.Issue, list)); err != nil {
			errs = append(errs, err)
		} else {
			p.issue, p.shown = certs.Issue, list
		}
	}
	next := map[publicText]bool{}
	for _, t := range certs.Texts {
		next[publicText{t.Name, t.Value}] = true
	}
	for t := range p.texts {
		if !next[t] {
			errs = append(errs, g.authority.ClearTXT(t.name, t.value))
		}
	}
	for t := range next {
		if p.texts[t] {
			continue
		}
		if err := g.authority.SetTXT(t.name, t.value); err != nil {
			errs = append(errs, err)
			delete(next, t)
		}
	}
	p.texts = next
	return errors.Join(errs...)
}

// tendPublic follows the registry: values end, nodes are removed and renamed.
func (n *Node) tendPublic(ctx context.Context) error {
	for {
		certs, changed := n.gateway.registry.Certs()
		if err := n.publish(); err != nil {
			n.log.Error("the public name server lacks values for CAs", "err", err)
		}
		ends := time.NewTimer(untilNext(certs.Next))
		select {
		case <-ctx.Done():
			ends.Stop()
			return nil
		case <-changed:
		case <-ends.C:
		}
		ends.Stop()
	}
}

// untilNext is how long nothing ends by itself.
func untilNext(next time.Time) time.Duration {
	if next.IsZero() {
		return time.Hour
	}
	return max(0, time.Until(next))
}

// queryPublic answers a query as the public name server does.
func (n *Node) queryPublic(query []byte, from netip.Addr, tcp bool) []byte {
	via := resolver.UDP
	if tcp {
		via = resolver.TCP
	}
	return n.gateway.authority.Answer(query, from, via)
}

// startFaces lets programs on nodes publish values for CAs in protocols that they know (S18): at a tailnet address only.
func (n *Node) startFaces(ctx context.Context, at netip.Addr) {
	g, t := &n.gateway, n.carrier.tunnel
	web, err := t.Listen(ctx, "tcp", netip.AddrPortFrom(at, portACMEDNS))
	if err != nil {
		n.lacks("the API of acme-dns for nodes", err)
	} else {
		n.services.run("acme-dns", func(ctx context.Context) error { return g.server.ServeACMEDNS(ctx, web) })
	}
	updates := netip.AddrPortFrom(at, portUpdates)
	tcp, err := t.Listen(ctx, "tcp", updates)
	var udp net.PacketConn
	if err == nil {
		if udp, err = t.ListenPacket(ctx, "udp", updates); err != nil {
			tcp.Close()
		}
	}
	if err != nil {
		n.lacks("dynamic updates of nodes", err)
		return
	}
	n.services.run("dynamic updates", func(ctx context.Context) error { return g.server.ServeUpdates(ctx, udp, tcp) })
}

package osconfig

import (
	"maps"
	"net/netip"
	"slices"
	"strings"
)

// source is what one record of resolvconf's, or one link of systemd-resolved's, says of the machine's DNS.
type source struct {
	index   int32    // of its link, as systemd-resolved says it
	link    string   // the name of that, if it is a tunnel; empty: the network's own
	all     bool     // its servers are for every name
	only    bool     // and no others are
	servers []Server // in their order
	search  []string
	match   []string // further domains that its servers are for, which are not searched
}

// Tunnel is another VPN on this machine, and what it does to the machine's DNS.
type Tunnel struct {
	Link    string
	Servers []netip.Addr // which it has the machine ask
	Domains []string     // for these
	All     bool         // and for every name
	Asks    bool         // it answers for the machine, and asks us what it does not know
}

// combine is the base of a machine with several sources. A VPN that gives servers for every name is asked before the
// network is, as programs would: the names that it keeps for itself are nobody else's business. The others are still
// asked for their own domains.
func combine(list []source) Base {
	list = slices.DeleteFunc(slices.Clone(list), func(s source) bool { return len(s.servers)+len(s.search) == 0 })
	everything := func(want func(source) bool) (servers []Server) {
		for _, s := range list {
			if s.all && want(s) {
				servers = appendServers(servers, s.servers)
			}
		}
		return servers
	}
	var b Base
	for _, want := range []func(source) bool{
		func(s source) bool { return s.only },
		func(s source) bool { return s.link != "" },
		func(source) bool { return true },
	} {
		if b.Servers = everything(want); len(b.Servers) > 0 {
			break
		}
	}
	for _, s := range list {
		for _, domain := range s.search {
			if domain != "." {
				b.Search = appendDomain(b.Search, domain)
			}
		}
		b.route(s)
		if s.link != "" && len(s.servers) > 0 {
			b.tunnels = append(b.tunnels, s.tunnel())
		}
	}
	asked := func(_ string, servers []Server) bool { return slices.Equal(servers, b.Servers) }
	maps.DeleteFunc(b.Routes, asked) // those are asked for everything
	return b
}

// route adds the domains that a source's servers are asked for. Of two with the same domain the first one has it.
func (b *Base) route(s source) {
	if len(s.servers) == 0 {
		return
	}
	for _, domain := range slices.Concat(s.search, s.match) {
		domain = strings.ToLower(domain)
		if _, have := b.Routes[domain]; have || domain == "." {
			continue
		}
		if b.Routes == nil {
			b.Routes = map[string][]Server{}
		}
		b.Routes[domain] = s.servers
	}
}

func (s source) tunnel() Tunnel {
	t := Tunnel{Link: s.link, All: s.all}
	for _, server := range s.servers {
		t.Servers = append(t.Servers, server.AddrPort.Addr())
	}
	for _, domain := range slices.Concat(s.search, s.match) {
		if domain != "." {
			t.Domains = appendDomain(t.Domains, domain)
		}
	}
	return t
}

func appendServers(list, more []Server) []Server {
	for _, s := range more {
		if !slices.Contains(list, s) {
			list = append(list, s)
		}
	}
	return list
}

func (b Base) equal(other Base) bool {
	return slices.Equal(b.Servers, other.Servers) && slices.Equal(b.Search, other.Search) &&
		maps.EqualFunc(b.Routes, other.Routes, slices.Equal)
}

// The kinds of links that the kernel says are tunnels (linux/if_arp.h): TUN and WireGuard have no addresses of their
// own, and PPP is what some older VPNs use.
const (
	arphrdPPP  = "512"
	arphrdNone = "65534"
)

// tunnelOf is the tunnel that a record is about; "" if it is about none. Programs name records after their links, with a
// word of their own before or behind: tun.wg0, tun0.openvpn.
func (m machine) tunnelOf(record string) string {
	before, after, _ := strings.Cut(record, ".")
	for _, name := range []string{record, before, after} {
		if kind := m.linkKind(name); kind != "" {
			if kind == arphrdNone || kind == arphrdPPP {
				return name
			}
			return ""
		}
	}
	return ""
}

// linkKind is the number of a link's kind; "" if there is no such link.
func (m machine) linkKind(name string) string {
	if name == "" || name == "." || name == ".." || strings.Contains(name, "/") {
		return ""
	}
	data, err := m.disk.readThrough("/sys/class/net/" + name + "/type")
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(data))
}

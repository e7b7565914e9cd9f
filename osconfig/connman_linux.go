package osconfig

import (
	"context"
	"fmt"
	"net/netip"

	"github.com/godbus/dbus/v5"
)

// maxServices bounds what is read of connman's list: each network that a Wi-Fi card hears is a service.
const maxServices = 256

// connman answers at loopback addresses, and that is all that its file says. Nothing is changed in it: it leaves a
// resolv.conf alone that is not its own. It only tells which servers it asks.
type connman struct{}

// connmanService is one of the array that GetServices answers: its object and its properties.
type connmanService struct {
	Path  dbus.ObjectPath
	Props map[string]dbus.Variant
}

func newConnman() baseSource { return connman{} }

// base is what connman's proxy asks. It names no server where the proxy does more than to ask one list of them.
func (connman) base(ctx context.Context) (Base, error) {
	ctx, cancel := context.WithTimeout(ctx, busTimeout)
	defer cancel()
	conn, err := dialBus(ctx)
	if err != nil {
		return Base{}, err
	}
	defer conn.Close()
	var services []connmanService
	call := conn.Object(connmanName, "/").CallWithContext(ctx, connmanName+".Manager.GetServices", dbus.FlagNoAutoStart)
	if err := call.Store(&services); err != nil {
		return Base{}, fmt.Errorf("asking connman for its services: %w", late(ctx, err))
	}
	return connmanBase(services), nil
}

// connmanBase is what the services of connman come to: the servers of the default one, which is the first. Another one
// that has domains of its own, as a VPN has, is the proxy's to tell apart.
func connmanBase(services []connmanService) Base {
	var b Base
	for _, s := range services[:min(len(services), maxServices)] {
		if state := s.words("State"); len(state) != 1 || state[0] != "ready" && state[0] != "online" {
			continue
		}
		addrs, domains := parseAddrs(s.words("Nameservers")), s.words("Domains")
		switch {
		case len(addrs) == 0:
		case len(b.Servers) == 0:
			for _, addr := range addrs {
				b.Servers = append(b.Servers, Server{AddrPort: netip.AddrPortFrom(addr, 53)})
			}
			for _, domain := range domains {
				if clean, ok := cleanDomain(domain); ok && clean != "." {
					b.Search = appendDomain(b.Search, clean)
				}
			}
		case len(domains) > 0:
			return Base{}
		}
	}
	return b
}

// words is a property that is a word or a list of words; nil if it is neither.
func (s connmanService) words(name string) []string {
	v, ok := s.Props[name]
	if !ok {
		return nil
	}
	var list []string
	if v.Store(&list) == nil {
		return list
	}
	var word string
	if v.Store(&word) == nil {
		return []string{word}
	}
	return nil
}

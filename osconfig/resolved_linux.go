package osconfig

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/godbus/dbus/v5"
	"golang.org/x/sys/unix"
)

// resolvedManager starts the names of resolved's methods (org.freedesktop.resolve1(5)).
const resolvedManager = resolvedName + ".Manager."

// resolved tells systemd-resolved, on a link of ours, which names to ask us for. The kernel takes the link away when
// the process ends, however that ends, and with it resolved forgets us.
type resolved struct {
	open    func() (*tunLink, error) // openTUN, but in tests
	link    *tunLink                 // nil: not made yet
	servers []netip.Addr             // that were applied
}

func newResolved() backend { return &resolved{open: openTUN} }

// linkServer is a DNS server of a link, as SetLinkDNSEx takes it.
type linkServer struct {
	Family int32
	Addr   []byte
	Port   uint16
	Name   string
}

// globalServer is a DNS server as the property DNSEx tells it.
type globalServer struct {
	Link   int32
	Family int32
	Addr   []byte
	Port   uint16
	Name   string
}

// globalDomain is a domain as the property Domains tells it.
type globalDomain struct {
	Link        int32
	Domain      string
	RoutingOnly bool
}

func linkServers(c Config) []linkServer {
	var servers []linkServer
	for _, s := range c.Servers {
		addr := s.AddrPort.Addr()
		servers = append(servers, linkServer{family(addr), addr.AsSlice(), s.AddrPort.Port(), s.Name})
	}
	return servers
}

func family(addr netip.Addr) int32 {
	if addr.Is4() {
		return unix.AF_INET
	}
	return unix.AF_INET6
}

func (r *resolved) apply(ctx context.Context, c Config) error {
	if r.link == nil {
		link, err := r.open()
		if err != nil {
			return fmt.Errorf("making a link for systemd-resolved: %w", err)
		}
		r.link = link
	}
	ctx, cancel := context.WithTimeout(ctx, busTimeout)
	defer cancel()
	conn, err := dialBus(ctx)
	if err != nil {
		return err
	}
	defer conn.Close()
	r.servers = c.addrs()
	domains, _ := linkDomains(c)
	index := int32(r.link.index)
	for _, call := range []struct {
		method   string
		optional bool // older versions lack it, or the build leaves it out; what it would do is then not done
		args     []any
	}{
		{"SetLinkDNSEx", false, []any{index, linkServers(c)}},
		{"SetLinkDomains", false, []any{index, domains}},
		{"SetLinkDefaultRoute", true, []any{index, len(c.Match) == 0}},
		{"SetLinkLLMNR", true, []any{index, "no"}},
		{"SetLinkMulticastDNS", true, []any{index, "no"}},
		{"SetLinkDNSSEC", true, []any{index, "no"}},
		{"SetLinkDNSOverTLS", true, []any{index, "no"}},
		{"FlushCaches", true, nil},
	} {
		err := conn.Object(resolvedName, resolvedPath).CallWithContext(ctx, resolvedManager+call.method, dbus.FlagNoAutoStart, call.args...).Err
		if err != nil && (!call.optional || ctx.Err() != nil) {
			return fmt.Errorf("telling systemd-resolved (%s): %w", call.method, late(ctx, err))
		}
	}
	return resolvedFinds(ctx, conn, c)
}

// resolvedFinds has resolved look for the SOA record of our first domain, which only we have.
func resolvedFinds(ctx context.Context, conn busConn, c Config) error {
	name := ""
	for _, domain := range slices.Concat(c.Search, c.Match) {
		if domain != "." {
			name = domain
			break
		}
	}
	if name == "" {
		return nil
	}
	const classIN, typeSOA = uint16(1), uint16(6)
	call := conn.Object(resolvedName, resolvedPath).CallWithContext(ctx, resolvedManager+"ResolveRecord", dbus.FlagNoAutoStart,
		int32(0), name, classIN, typeSOA, uint64(0))
	if call.Err != nil {
		return fmt.Errorf("looking %s up through systemd-resolved: %w", name, call.Err)
	}
	return nil
}

// holds compares what resolved says of our link with what it was told.
func (r *resolved) holds(ctx context.Context, c Config) (bool, error) {
	if r.link == nil {
		return false, nil
	}
	ctx, cancel := context.WithTimeout(ctx, busTimeout)
	defer cancel()
	conn, err := dialBus(ctx)
	if err != nil {
		return false, err
	}
	defer conn.Close()
	var path dbus.ObjectPath
	call := conn.Object(resolvedName, resolvedPath).CallWithContext(ctx, resolvedManager+"GetLink", dbus.FlagNoAutoStart, int32(r.link.index))
	if err := call.Store(&path); err != nil {
		return false, fmt.Errorf("asking systemd-resolved for our link: %w", err)
	}
	// Of the link itself: the manager says of a loopback server that it is lo's.
	var servers []linkServer
	var domains []linkDomain
	if err := property(ctx, conn, path, ".Link", map[string]any{"DNSEx": &servers, "Domains": &domains}); err != nil {
		return false, err
	}
	want, _ := linkDomains(c)
	byName := func(a, b linkDomain) int { return strings.Compare(a.Domain, b.Domain) }
	slices.SortFunc(want, byName)
	slices.SortFunc(domains, byName)
	same := func(a, b linkServer) bool {
		return a.Family == b.Family && bytes.Equal(a.Addr, b.Addr) && orPort53(a.Port) == orPort53(b.Port) && a.Name == b.Name
	}
	return slices.Equal(want, domains) && slices.EqualFunc(servers, linkServers(c), same), nil
}

// orPort53 is port, which resolved tells as 0 where it is the usual one.
func orPort53(port uint16) uint16 {
	if port == 0 {
		return 53
	}
	return port
}

// property reads properties of one of resolved's objects.
func property(ctx context.Context, conn busConn, path dbus.ObjectPath, kind string, want map[string]any) error {
	for name, into := range want {
		if err := busProperty(ctx, conn.Object(resolvedName, path), resolvedName+kind, name, into); err != nil {
			return fmt.Errorf("reading systemd-resolved's %s: %w", name, err)
		}
	}
	return nil
}

func (r *resolved) restore(ctx context.Context) error {
	if r.link == nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, busTimeout)
	defer cancel()
	// Its end would do, but resolved learns of that a moment later.
	err := func() error {
		conn, err := dialBus(ctx)
		if err != nil {
			return err
		}
		defer conn.Close()
		return conn.Object(resolvedName, resolvedPath).CallWithContext(ctx, resolvedManager+"RevertLink", dbus.FlagNoAutoStart, int32(r.link.index)).Err
	}()
	closeErr := r.link.close()
	r.link = nil
	if closeErr != nil {
		return errors.Join(err, closeErr)
	}
	return nil // with the link all is gone, whatever resolved said
}

// base is what resolved asks on all other links, and everywhere.
func (r *resolved) base(ctx context.Context) (Base, error) {
	ctx, cancel := context.WithTimeout(ctx, busTimeout)
	defer cancel()
	conn, err := dialBus(ctx)
	if err != nil {
		return Base{}, err
	}
	defer conn.Close()
	var servers []globalServer
	var domains []globalDomain
	if err := property(ctx, conn, resolvedPath, ".Manager", map[string]any{"DNSEx": &servers, "Domains": &domains}); err != nil {
		return Base{}, err
	}
	list := r.sources(servers, domains)
	for i, s := range list {
		if s.index > 0 && !s.only && len(s.servers) > 0 {
			list[i].all = asksForAll(ctx, conn, s)
		}
	}
	return combine(list), ctx.Err()
}

// sources are what resolved says of all links but ours, and of none, which is number 0.
func (r *resolved) sources(servers []globalServer, domains []globalDomain) []source {
	var list []source
	of := func(index int32) *source {
		i := slices.IndexFunc(list, func(s source) bool { return s.index == index })
		if i < 0 {
			i, list = len(list), append(list, source{index: index, all: true})
			if index > 0 {
				list[i].link = machine{}.tunnelOf(linkName(int(index)))
			}
		}
		return &list[i]
	}
	ours := func(index int32) bool { return r.link != nil && index == int32(r.link.index) }
	for _, s := range servers {
		addr, ok := netip.AddrFromSlice(s.Addr)
		if !ok || ours(s.Link) || slices.Contains(r.servers, addr) {
			continue
		}
		if addr.IsLinkLocalUnicast() && addr.Is6() {
			addr = addr.WithZone(linkName(int(s.Link)))
		}
		from := of(s.Link)
		from.servers = appendServers(from.servers, []Server{{AddrPort: netip.AddrPortFrom(addr, orPort53(s.Port))}})
	}
	for _, d := range domains {
		switch {
		case ours(d.Link):
		case d.Domain == ".":
			of(d.Link).only = true
		case d.RoutingOnly:
			of(d.Link).match = append(of(d.Link).match, d.Domain)
		default:
			of(d.Link).search = append(of(d.Link).search, d.Domain)
		}
	}
	return list
}

// asksForAll reports whether resolved asks a link's servers for names that no link has a domain for. Versions before
// 240 do not say; they go by the domains.
func asksForAll(ctx context.Context, conn busConn, s source) bool {
	var path dbus.ObjectPath
	call := conn.Object(resolvedName, resolvedPath).CallWithContext(ctx, resolvedManager+"GetLink", dbus.FlagNoAutoStart, s.index)
	var all bool
	err := call.Store(&path)
	if err == nil {
		err = property(ctx, conn, path, ".Link", map[string]any{"DefaultRoute": &all})
	}
	if err != nil {
		return len(s.match) == 0 || len(s.search) > 0
	}
	return all
}

package node

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
)

// link is a network interface and its addresses.
type link struct {
	name  string
	addrs []netip.Prefix // the address, not masked, with the length of its network
}

// machineLinks lists the machine's interfaces that are up.
func machineLinks() ([]link, error) {
	interfaces, err := net.Interfaces()
	if err != nil {
		return nil, fmt.Errorf("listing interfaces: %w", err)
	}
	var links []link
	for _, i := range interfaces {
		if i.Flags&net.FlagUp == 0 {
			continue
		}
		addrs, err := i.Addrs()
		if err != nil {
			continue // it went away meanwhile
		}
		l := link{name: i.Name}
		for _, a := range addrs {
			if p, err := netip.ParsePrefix(a.String()); err == nil {
				l.addrs = append(l.addrs, p)
			}
		}
		links = append(links, l)
	}
	return links, nil
}

// knownNetworks lists the networks that the machine has an address in or a route to, default routes aside.
func knownNetworks() ([]netip.Prefix, error) {
	links, err := machineLinks()
	if err != nil {
		return nil, err
	}
	networks, err := systemRoutes()
	if err != nil && !errors.Is(err, errors.ErrUnsupported) {
		return nil, fmt.Errorf("listing routes: %w", err)
	}
	for _, l := range links {
		networks = append(networks, l.addrs...)
	}
	return slices.DeleteFunc(networks, func(p netip.Prefix) bool { return p.Bits() == 0 }), nil
}

// tailscaleV6 is the range of every tailnet that Tailscale runs.
func tailscaleV6() netip.Prefix { return netip.MustParsePrefix("fd7a:115c:a1e0::/48") }

// tailscaleConflict says why a tunnel of ours cannot have these ranges beside a running Tailscale, or nothing: its
// netfilter rules drop 100.64.0.0/10 from every link but its own.
func tailscaleConflict(ranges []netip.Prefix, links []link) string {
	i := slices.IndexFunc(ranges, cgnat().Overlaps)
	if i < 0 {
		return ""
	}
	for _, l := range links {
		if isTailscale(l) {
			return fmt.Sprintf("the range %s is Tailscale's, which runs on %s and drops packets from it on other links", ranges[i], l.name)
		}
	}
	return ""
}

// isTailscale knows Tailscale's link by its name on Linux and by its two ranges elsewhere (utun4, say).
func isTailscale(l link) bool {
	has := func(p netip.Prefix) bool {
		return slices.ContainsFunc(l.addrs, func(a netip.Prefix) bool { return p.Contains(a.Addr()) })
	}
	return has(cgnat()) && (strings.HasPrefix(l.name, "tailscale") || has(tailscaleV6()))
}

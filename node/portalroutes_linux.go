package node

import (
	"context"
	"fmt"
	"time"

	"github.com/vishvananda/netlink"
)

// maxGateways is how many ways out are told apart.
const maxGateways = 16

// defaultGateways lists the default routes whose links carry.
func defaultGateways() ([]wayOut, error) {
	var list []wayOut
	for _, family := range []int{netlink.FAMILY_V4, netlink.FAMILY_V6} {
		routes, err := netlink.RouteList(nil, family)
		if err != nil {
			return nil, fmt.Errorf("listing routes: %w", err)
		}
		for _, r := range routes {
			isDefault := r.Dst == nil || r.Dst.IP.IsUnspecified() && maskBits(r) == 0
			if !isDefault || r.LinkIndex <= 0 || len(list) == maxGateways {
				continue
			}
			l, err := netlink.LinkByIndex(r.LinkIndex)
			if err != nil || !carries(l.Attrs().OperState) {
				continue
			}
			g := wayOut{index: r.LinkIndex, link: l.Attrs().Name}
			if r.Gw != nil {
				g.via = r.Gw.String()
			}
			list = append(list, g)
		}
	}
	return list, nil
}

// carries reports whether a link leads anywhere. Tunnels do not say.
func carries(s netlink.LinkOperState) bool { return s == netlink.OperUp || s == netlink.OperUnknown }

// followRoutes calls changed when routes or links change, until ctx ends.
func followRoutes(ctx context.Context, changed func()) {
	for {
		followOnce(ctx, changed)
		select {
		case <-ctx.Done():
			return
		case <-time.After(portalPauseFar): // the kernel dropped events, or there is no socket to be had
			changed()
		}
	}
}

// followOnce does so until the subscription breaks.
func followOnce(ctx context.Context, changed func()) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	routes, links := make(chan netlink.RouteUpdate), make(chan netlink.LinkUpdate)
	if netlink.RouteSubscribe(routes, ctx.Done()) != nil {
		return
	}
	if netlink.LinkSubscribe(links, ctx.Done()) != nil {
		links = nil // routes tell most
	}
	for routes != nil || links != nil { // both are read until they are closed, or their senders would hang
		var ok bool
		select {
		case _, ok = <-routes:
			if !ok {
				routes = nil
			}
		case _, ok = <-links:
			if !ok {
				links = nil
			}
		}
		if !ok {
			cancel()
		}
		changed()
	}
}

package node

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
)

// loopbackLink makes and removes a further address of the loopback link.
type loopbackLink struct {
	add, drop func(ctx context.Context, addr netip.Addr) error
}

// stubSockets are what programs ask, and what was in the way of what was wanted.
type stubSockets struct {
	*sockets
	problem error // nil: it is the address that was wanted
}

// listenOwned is listen at want, where the machine may not have that address by itself: macOS and the BSDs have of
// 127.0.0.0/8 the first one alone. It is added then, if link is not nil, and undo removes it; a process that dies leaves
// it, which harms nobody. Where it cannot be added the stub is at the one that is there.
func listenOwned(ctx context.Context, want netip.AddrPort, link *loopbackLink, listen func(netip.AddrPort) (stubSockets, error)) (s stubSockets, undo func(context.Context) error, err error) {
	s, err = listen(want)
	first := netip.AddrFrom4([4]byte{127, 0, 0, 1})
	if err == nil || !isNotOurs(err) || !want.Addr().Is4() || !want.Addr().IsLoopback() || want.Addr() == first {
		return s, nil, err
	}
	missing := err
	if link != nil {
		if err := link.add(ctx, want.Addr()); err != nil {
			missing = fmt.Errorf("adding the address %s: %w", want.Addr(), err)
		} else {
			drop := func(ctx context.Context) error { return link.drop(ctx, want.Addr()) }
			if s, err = listen(want); err != nil {
				return s, nil, errors.Join(err, drop(ctx))
			}
			return s, drop, nil
		}
	}
	s, err = listen(netip.AddrPortFrom(first, highPort))
	if err != nil {
		return s, nil, errors.Join(missing, err)
	}
	if s.problem == nil {
		s.problem = missing
	}
	return s, nil, nil
}

// loopbackArgs are the arguments of ifconfig(8) that add or remove an address. All of them take it in this order.
func loopbackArgs(addr netip.Addr, add bool) []string {
	if !add {
		return []string{"lo0", "-alias", addr.String()}
	}
	return []string{"lo0", "alias", addr.String(), "netmask", "255.255.255.255"}
}

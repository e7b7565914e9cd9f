package tunnel

import (
	"encoding/binary"
	"maps"
	"net/netip"
	"slices"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// redirect leads connections to one port of an own address to another port of it; 0: not any more.
func (g *guard) redirect(on netip.AddrPort, to uint16) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	old, had := g.redirects[on]
	if to == 0 {
		delete(g.redirects, on)
	} else {
		g.redirects[on] = to
	}
	if g.ended {
		return nil
	}
	err := g.writeLocked()
	if err != nil && had {
		g.redirects[on] = old
	} else if err != nil {
		delete(g.redirects, on)
	}
	return err
}

// end leaves the table alone from now on: a listener that is closed after the tunnel is not to bring it back.
func (g *guard) end() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.ended = true
}

// redirected are the ports that are led elsewhere, in one order.
func (g *guard) redirected() []netip.AddrPort {
	return slices.SortedFunc(maps.Keys(g.redirects), netip.AddrPort.Compare)
}

// hide has nobody but this machine come to a listener of our own by its own port: a policy says who may come to the other one.
func (g *guard) hide(drop func(match ...expr.Any)) {
	for _, on := range g.redirected() {
		to := g.redirects[on]
		drop(slices.Concat(fromLink(g.config.Link), destination(single(on.Addr())), toPort(protoTCP, to, to))...)
	}
}

// lead is the two chains that connections pass: those through the tunnel, and this machine's own. The policy has seen them as they
// were by then. Without a redirect there is no such chain: the kernel's tracking of connections costs something.
func (g *guard) lead(b *ruleset) {
	if len(g.redirects) == 0 {
		return
	}
	arriving := b.hook(&nftables.Chain{
		Name: "lead", Type: nftables.ChainTypeNAT, Hooknum: nftables.ChainHookPrerouting, Priority: nftables.ChainPriorityNATDest,
	})
	own := b.hook(&nftables.Chain{
		Name: "leadown", Type: nftables.ChainTypeNAT, Hooknum: nftables.ChainHookOutput, Priority: nftables.ChainPriorityNATDest,
	})
	for _, on := range g.redirected() {
		match := append(destination(single(on.Addr())), toPort(protoTCP, on.Port(), on.Port())...)
		lead := append(match, leadTo(netip.AddrPortFrom(on.Addr(), g.redirects[on]))...)
		b.rule(arriving, slices.Concat(fromLink(g.config.Link), lead)...)
		b.rule(own, lead...)
	}
}

// leadTo has a connection go on to an address of this machine. The verdict "redirect" would take the link's first address.
func leadTo(to netip.AddrPort) []expr.Any {
	family := uint32(unix.NFPROTO_IPV4)
	if to.Addr().Is6() {
		family = unix.NFPROTO_IPV6
	}
	return []expr.Any{
		&expr.Counter{},
		&expr.Immediate{Register: 1, Data: to.Addr().AsSlice()},
		&expr.Immediate{Register: 2, Data: binary.BigEndian.AppendUint16(nil, to.Port())},
		&expr.NAT{Type: expr.NATTypeDestNAT, Family: family, RegAddrMin: 1, RegProtoMin: 2},
	}
}

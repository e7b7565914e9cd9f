//go:build !linux

package resolver

import "net/netip"

// source is the address and port in p.
func (p *peer) source() netip.AddrPort {
	return netip.AddrPortFrom(p.addr.Addr().Unmap().WithZone(""), p.addr.Port())
}

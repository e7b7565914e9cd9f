//go:build !linux

package node

import "net/netip"

// portHolder cannot be found out here.
func portHolder(netip.AddrPort) string { return "" }

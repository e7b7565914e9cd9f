//go:build !linux

package node

// dnsServers cannot be found out here.
func dnsServers() []dnsServer { return nil }

//go:build !linux

package osconfig

import (
	"context"
	"net/netip"
)

// systemd-resolved, NetworkManager and connman are Linux's alone.

func newResolved() backend { return nil }

func newNetworkManager(machine, string) backend { return nil }

func newConnman() baseSource { return nil }

func nmFacts(context.Context) (mode, rcManager string) { return "", "" }

func (m machine) heal(context.Context, []netip.Addr) (steps, left []string) { return nil, nil }

func (m machine) healAfterLink(context.Context, []netip.Addr) (steps, left []string) { return nil, nil }

func (m machine) staleResolved(context.Context, Config) []string { return nil }

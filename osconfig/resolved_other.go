//go:build !linux

package osconfig

import "context"

// systemd-resolved and NetworkManager are Linux's alone.

func newResolved() backend { return nil }

func newNetworkManager(machine, string) backend { return nil }

func nmFacts(context.Context) (mode, rcManager string) { return "", "" }

//go:build !linux

package node

import (
	"context"
	"errors"
	"net/netip"
)

// Elsewhere containers run in a virtual machine, which has a DNS of its own.

func machineBridges() ([]bridge, error)               { return nil, errors.ErrUnsupported }
func hasAddress(netip.Addr) (bool, error)             { return false, errors.ErrUnsupported }
func addAddress(netip.Addr) error                     { return errors.ErrUnsupported }
func dropAddress(netip.Addr) error                    { return errors.ErrUnsupported }
func followLinks(ctx context.Context, _ func()) error { <-ctx.Done(); return nil }

// serviceSockets are what the service address is answered on.
type serviceSockets struct{ own, guests *sockets }

func listenService(context.Context, netip.AddrPort, int, []containerNet) (*serviceSockets, error) {
	return nil, errors.ErrUnsupported
}

func (*serviceSockets) allow([]containerNet) error { return errors.ErrUnsupported }
func (*serviceSockets) close()                     {}

//go:build !linux

package node

import (
	"errors"
	"net/netip"
)

// systemRoutes is for Linux; elsewhere the addresses of the links have to do.
func systemRoutes() ([]netip.Prefix, error) { return nil, errors.ErrUnsupported }

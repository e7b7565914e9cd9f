//go:build !linux

package node

import "errors"

// findUplink cannot be found out here.
func findUplink() (uplink, error) { return uplink{}, errors.ErrUnsupported }

// tunnelKind cannot be found out here.
func tunnelKind(string) string { return "" }

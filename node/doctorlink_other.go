//go:build !linux

package node

import "errors"

// findUplink cannot be found out here.
func findUplink() (uplink, error) { return uplink{}, errors.ErrUnsupported }

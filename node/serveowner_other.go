//go:build !linux

package node

import "errors"

// actAs calls do with the rights of another user, where a thread can have its own.
func actAs(uint32, func() error) error { return errors.ErrUnsupported }

//go:build unix

package node

import (
	"errors"

	"golang.org/x/sys/unix"
)

// isRefused reports whether a connection failed since nobody listens.
func isRefused(err error) bool { return errors.Is(err, unix.ECONNREFUSED) }

// isReset reports whether the other end of a connection is gone.
func isReset(err error) bool { return errors.Is(err, unix.ECONNRESET) }

// isAddrInUse reports whether an address could not be bound since another socket has it.
func isAddrInUse(err error) bool { return errors.Is(err, unix.EADDRINUSE) }

// isNotOurs reports whether an address could not be bound since the machine does not have it.
func isNotOurs(err error) bool { return errors.Is(err, unix.EADDRNOTAVAIL) }

// isUnreachable reports whether this machine has no way to an address.
func isUnreachable(err error) bool {
	return errors.Is(err, unix.ENETUNREACH) || errors.Is(err, unix.EHOSTUNREACH) || errors.Is(err, unix.EADDRNOTAVAIL)
}

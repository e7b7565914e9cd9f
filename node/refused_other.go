//go:build !unix

package node

import (
	"errors"
	"net"
	"syscall"
)

// isRefused reports whether a connection failed since nobody listens. Windows has its own numbers for that; all that
// went wrong at the connection itself counts.
func isRefused(err error) bool {
	var op *net.OpError
	return errors.As(err, &op) && op.Op == "dial" && !op.Timeout()
}

// isReset reports whether the other end of a connection is gone.
func isReset(err error) bool {
	const wsaEConnReset = 10054
	var errno syscall.Errno
	return errors.As(err, &errno) && errno == wsaEConnReset
}

// isAddrInUse reports whether an address could not be bound since another socket has it.
func isAddrInUse(err error) bool {
	const wsaEAddrInUse = 10048
	var errno syscall.Errno
	return errors.As(err, &errno) && errno == wsaEAddrInUse
}

// isNotOurs reports whether an address could not be bound since the machine does not have it.
func isNotOurs(err error) bool {
	const wsaEAddrNotAvail = 10049
	var errno syscall.Errno
	return errors.As(err, &errno) && errno == wsaEAddrNotAvail
}

// isUnreachable reports whether this machine has no way to an address.
func isUnreachable(err error) bool {
	const (
		wsaENetUnreach  = 10051
		wsaEHostUnreach = 10065
	)
	var errno syscall.Errno
	return errors.As(err, &errno) && (errno == wsaENetUnreach || errno == wsaEHostUnreach || isNotOurs(err))
}

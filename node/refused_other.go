//go:build !unix

package node

import (
	"errors"
	"net"
)

// isRefused reports whether a connection failed since nobody listens. Windows has its own numbers for that; all that
// went wrong at the connection itself counts.
func isRefused(err error) bool {
	var op *net.OpError
	return errors.As(err, &op) && op.Op == "dial" && !op.Timeout()
}

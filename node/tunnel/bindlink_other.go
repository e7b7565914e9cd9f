//go:build !linux

package tunnel

import "syscall"

const (
	canBindLink  = false
	loopbackLink = ""
)

// bindTo leaves the socket as it is: no option here binds a listener to a link.
func bindTo(string) func(network, address string, c syscall.RawConn) error { return nil }

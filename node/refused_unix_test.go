//go:build unix

package node

import "golang.org/x/sys/unix"

// unreachable is what the system says of an address that no route leads to.
func unreachable() error { return unix.ENETUNREACH }

//go:build !unix

package node

import "syscall"

// unreachable is what the system says of an address that no route leads to.
func unreachable() error { return syscall.Errno(10051) }

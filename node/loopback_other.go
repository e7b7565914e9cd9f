//go:build !darwin && !dragonfly && !freebsd && !netbsd && !openbsd

package node

// machineLoopback is nil: the machine has all of 127.0.0.0/8.
func machineLoopback() *loopbackLink { return nil }

//go:build !windows

package main

import "os"

// isRoot reports whether this process may change the machine.
func isRoot() bool { return os.Geteuid() == 0 }

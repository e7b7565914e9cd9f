package main

import "golang.org/x/sys/windows"

// isRoot reports whether this process may change the machine: it runs as an administrator, elevated.
func isRoot() bool { return windows.GetCurrentProcessToken().IsElevated() }

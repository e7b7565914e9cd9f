//go:build !unix && !windows

package certs

import "os"

// tryLock does nothing: only one process can use the directory here.
func tryLock(*os.File) (held bool, err error) { return false, nil }

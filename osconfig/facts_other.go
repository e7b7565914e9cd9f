//go:build !linux

package osconfig

import "errors"

// usesResolvConf says whether programs go by /etc/resolv.conf here, and whether it was tried that they do.
const usesResolvConf = false

// What only Linux tells. access(2) says on the BSDs, too, what is read-only or immutable.

func readMounts() ([]mount, error) { return nil, errors.ErrUnsupported }

func sealed(path string) bool { return false }

func beingWritten(path string) bool { return false }

//go:build darwin || dragonfly || freebsd || netbsd || openbsd

package osconfig

import (
	"errors"

	"golang.org/x/sys/unix"
)

// unseal is the command that makes a file changeable.
const unseal = "chflags noschg,nouchg,nosappnd,nouappnd"

// Flags of a file (chflags(2)), the same on all of these.
const flagsSealed = 0x2 | 0x4 | 0x20000 | 0x40000 // UF_IMMUTABLE, UF_APPEND, SF_IMMUTABLE, SF_APPEND

// sealed reports whether a file or directory was made immutable or append-only, by its owner or by root.
func sealed(path string) bool {
	var st unix.Stat_t
	return unix.Lstat(path, &st) == nil && st.Flags&flagsSealed != 0
}

// What only Linux tells.

func readMounts() ([]mount, error) { return nil, errors.ErrUnsupported }

func beingWritten(path string) bool { return false }

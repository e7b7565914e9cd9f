//go:build unix

package node

import (
	"os"
	"syscall"
)

// mayNameCommands reports whether commands in the file may be run by a process of user euid: nobody but root and that
// user can have written them.
func mayNameCommands(info os.FileInfo, euid int) bool {
	stat, ok := info.Sys().(*syscall.Stat_t)
	if !ok || !info.Mode().IsRegular() || info.Mode().Perm()&0o022 != 0 {
		return false
	}
	return stat.Uid == 0 || int(stat.Uid) == euid
}

// onlyOurs reports whether nobody but a file's owner, and root, can read it.
func onlyOurs(info os.FileInfo) bool { return info.Mode().Perm()&0o077 == 0 }

//go:build unix

package node

import (
	"os"
	"os/exec"
	"os/user"
	"strconv"
	"syscall"
)

// confine lets cmd run in a process group of its own, which dies as a whole, and as nobody if we are root.
func confine(cmd *exec.Cmd) error {
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	if os.Geteuid() == 0 {
		uid, gid := nobody()
		cmd.SysProcAttr.Credential = &syscall.Credential{Uid: uid, Gid: gid, Groups: []uint32{}}
	}
	return nil
}

// nobody is the user without rights; by its customary number where none has the name.
func nobody() (uid, gid uint32) {
	const customary = 65534
	u, err := user.Lookup("nobody")
	if err != nil {
		return customary, customary
	}
	return number(u.Uid, customary), number(u.Gid, customary)
}

// number reads an id. Root's is never taken: a broken passwd file must not give away everything.
func number(s string, fallback uint32) uint32 {
	n, err := strconv.ParseUint(s, 10, 32)
	if err != nil || n == 0 {
		return fallback
	}
	return uint32(n)
}

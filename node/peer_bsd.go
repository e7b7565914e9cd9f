//go:build darwin || freebsd

package node

import (
	"fmt"
	"net"

	"golang.org/x/sys/unix"
)

// peerUID is the user that the process at the other end of a Unix socket ran as when it connected.
func peerUID(conn *net.UnixConn) (int, error) {
	raw, err := conn.SyscallConn()
	if err != nil {
		return 0, fmt.Errorf("reading the caller's user: %w", err)
	}
	var cred *unix.Xucred
	var credErr error
	err = raw.Control(func(fd uintptr) {
		cred, credErr = unix.GetsockoptXucred(int(fd), unix.SOL_LOCAL, unix.LOCAL_PEERCRED)
	})
	if err == nil {
		err = credErr
	}
	if err != nil {
		return 0, fmt.Errorf("reading the caller's user: %w", err)
	}
	return int(cred.Uid), nil
}

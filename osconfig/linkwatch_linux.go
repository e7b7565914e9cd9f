package osconfig

import (
	"context"
	"errors"
	"os"

	"golang.org/x/sys/unix"
)

// followLinks calls changed when a link of the machine comes, goes, or changes, until ctx ends. Where the kernel does not
// tell, nothing is followed.
func followLinks(ctx context.Context, changed func()) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, unix.NETLINK_ROUTE)
	if err != nil {
		return
	}
	f := os.NewFile(uintptr(fd), "netlink") // non-blocking, so that closing it ends the reading
	defer f.Close()
	if unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK, Groups: unix.RTMGRP_LINK}) != nil {
		return
	}
	stop := context.AfterFunc(ctx, func() { f.Close() })
	defer stop()
	buf := make([]byte, 16<<10)
	for {
		_, err := f.Read(buf)
		if err != nil && !errors.Is(err, unix.ENOBUFS) { // some were lost: something happened
			return
		}
		changed()
	}
}

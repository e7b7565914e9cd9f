package tunnel

import (
	"fmt"
	"syscall"

	"golang.org/x/sys/unix"
)

const (
	canBindLink  = true
	loopbackLink = "lo"
)

// bindTo makes a socket take part in one link only.
func bindTo(link string) func(network, address string, c syscall.RawConn) error {
	return func(_, _ string, c syscall.RawConn) error {
		var failed error
		err := c.Control(func(fd uintptr) {
			failed = unix.SetsockoptString(int(fd), unix.SOL_SOCKET, unix.SO_BINDTODEVICE, link)
		})
		if err == nil {
			err = failed
		}
		if err != nil {
			return fmt.Errorf("binding to link %s: %w", link, err)
		}
		return nil
	}
}

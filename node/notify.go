package node

import (
	"fmt"
	"net"
)

// notify tells the service manager a state, as sd_notify(3) describes it. socket is the value of NOTIFY_SOCKET; empty
// means that nobody waits for it.
func notify(socket, state string) error {
	if socket == "" {
		return nil
	}
	// A name that starts with @ is in the abstract namespace; package net takes it as it is.
	conn, err := net.DialUnix("unixgram", nil, &net.UnixAddr{Name: socket, Net: "unixgram"})
	if err != nil {
		return fmt.Errorf("telling the service manager: %w", err)
	}
	defer conn.Close()
	if _, err := conn.Write([]byte(state)); err != nil {
		return fmt.Errorf("telling the service manager: %w", err)
	}
	return nil
}

package tunnel

import (
	"context"
	"errors"
	"fmt"
	"syscall"
)

// openUserspace brings up a WireGuard and a network inside this process. It changes nothing on the machine.
func openUserspace(_ context.Context, c Config) (*carrier, error) {
	mtu := c.MTU
	if mtu == 0 {
		mtu = linkMTU()
	}
	stack, err := newNetstack(c.Addresses, mtu)
	if err != nil {
		return nil, err
	}
	if c.Loopback != nil {
		stack.loopback = openLoopback(stack, c.Loopback)
	}
	filter := newFilter(stack, c.Addresses)
	d, err := openDevice(c, filter, 0)
	if err != nil {
		return nil, err
	}
	return &carrier{engine: d, network: stack, socket: d.socket, policy: filter.set}, nil
}

// hintError is an error that the user can mend.
type hintError struct {
	error
	hint string
}

func (e *hintError) Unwrap() error { return e.error }

// Hint says what the user can do.
func (e *hintError) Hint() string { return e.hint }

// portError says which UDP port could not be had.
func portError(port uint16, err error) error {
	err = fmt.Errorf("listening on UDP port %d: %w", port, err)
	if errors.Is(err, syscall.EADDRINUSE) {
		return &hintError{err, "set tunnel.port to another one, or end the program that holds it"}
	}
	return err
}

// missing is why a mode is not to be had on this machine.
type missing struct {
	reason string
	err    error // may be nil
}

func (m *missing) Error() string {
	if m.err == nil {
		return m.reason
	}
	return fmt.Sprintf("%s (%v)", m.reason, m.err)
}

// Unwrap lets a caller that has a choice see that there is none here.
func (m *missing) Unwrap() []error { return []error{errors.ErrUnsupported, m.err} }

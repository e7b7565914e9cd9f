package osconfig

import (
	"context"
	"fmt"
	"time"

	"github.com/godbus/dbus/v5"
)

// busTimeout bounds a conversation with the system bus. A manager that was stopped (SIGSTOP) keeps callers waiting for
// ever; the bus itself does not, but its socket may be there without it.
const busTimeout = 2 * time.Second

// busOwner says whether a program owns a name on the system bus. It never starts one: a ping would activate a
// systemd-resolved that an administrator has stopped.
func busOwner(ctx context.Context, name string) (ownership, error) {
	ctx, cancel := context.WithTimeout(ctx, busTimeout)
	defer cancel()
	conn, err := dialBus(ctx)
	if err != nil {
		return ownerUnknown, err
	}
	defer conn.Close()
	var has bool
	err = conn.BusObject().CallWithContext(ctx, "org.freedesktop.DBus.NameHasOwner", 0, name).Store(&has)
	switch {
	case err != nil:
		return ownerUnknown, fmt.Errorf("asking for the owner of %s: %w", name, late(ctx, err))
	case has:
		return ownerPresent, nil
	}
	return ownerNone, nil
}

// late is err, or that the time is over: the library closes a connection at that moment, and may say only so.
func late(ctx context.Context, err error) error {
	if err != nil && ctx.Err() != nil {
		return ctx.Err()
	}
	return err
}

// dialBus connects to the system bus. The library's handshake knows no limit, so it may be left behind: it ends when
// its socket is closed at the latest with the process.
func dialBus(ctx context.Context) (*dbus.Conn, error) {
	type result struct {
		conn *dbus.Conn
		err  error
	}
	done := make(chan result, 1)
	go func() {
		conn, err := dbus.ConnectSystemBus(dbus.WithContext(ctx))
		done <- result{conn, err}
	}()
	select {
	case r := <-done:
		return r.conn, r.err
	case <-ctx.Done():
		return nil, fmt.Errorf("connecting to the system bus: %w", ctx.Err())
	}
}

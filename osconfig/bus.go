package osconfig

import (
	"context"
	"fmt"
	"time"

	"github.com/godbus/dbus/v5"
)

// The names of the managers on the system bus, and of their main objects.
const (
	resolvedName = "org.freedesktop.resolve1"
	resolvedPath = dbus.ObjectPath("/org/freedesktop/resolve1")
	nmName       = "org.freedesktop.NetworkManager"
	nmPath       = dbus.ObjectPath("/org/freedesktop/NetworkManager")
	connmanName  = "net.connman"

	systemdName = "org.freedesktop.systemd1"
	systemdPath = dbus.ObjectPath("/org/freedesktop/systemd1")
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

// busConn is a connection to the system bus. Closing one that is shared is left to whoever shares it.
type busConn struct {
	*dbus.Conn
	shared bool
}

// Close ends the connection.
func (c busConn) Close() error {
	if c.shared {
		return nil
	}
	return c.Conn.Close()
}

// busShare is the connection that all conversations of one look have in common.
type busShare struct {
	life context.Context // of the look: a connection, also one that is still being made, ends with its context
	conn *dbus.Conn
	err  error
}

type busShareKey struct{}

// shareBus has every conversation below ctx use one connection, made by the first one, until done is called. A bus that
// cannot be reached is tried once. Conversations that go on at the same time must not share.
func shareBus(ctx context.Context) (shared context.Context, done func()) {
	if ctx.Value(busShareKey{}) != nil {
		return ctx, func() {}
	}
	life, done := context.WithCancel(ctx)
	return context.WithValue(life, busShareKey{}, &busShare{life: life}), done
}

// dialBus connects to the system bus, or uses the connection that ctx shares.
func dialBus(ctx context.Context) (busConn, error) {
	s, shared := ctx.Value(busShareKey{}).(*busShare)
	if !shared {
		conn, err := dialNew(ctx, ctx)
		return busConn{conn, false}, err
	}
	if s.conn != nil && !s.conn.Connected() { // the bus was restarted
		s.conn = nil
	}
	if s.conn == nil && s.err == nil {
		s.conn, s.err = dialNew(ctx, s.life)
	}
	return busConn{s.conn, true}, s.err
}

// dialNew waits for a new connection until ctx ends; it lives as long as life. The library's handshake knows no limit,
// so it may be left behind: it ends when its socket is closed at the latest with the process.
func dialNew(ctx, life context.Context) (*dbus.Conn, error) {
	type result struct {
		conn *dbus.Conn
		err  error
	}
	done := make(chan result, 1)
	go func() {
		conn, err := dbus.ConnectSystemBus(dbus.WithContext(life))
		done <- result{conn, err}
	}()
	select {
	case r := <-done:
		return r.conn, r.err
	case <-ctx.Done():
		return nil, fmt.Errorf("connecting to the system bus: %w", ctx.Err())
	}
}

// busProperty reads one property of an object.
func busProperty(ctx context.Context, of dbus.BusObject, iface, name string, into any) error {
	var v dbus.Variant
	call := of.CallWithContext(ctx, "org.freedesktop.DBus.Properties.Get", dbus.FlagNoAutoStart, iface, name)
	if err := call.Store(&v); err != nil {
		return err
	}
	return v.Store(into)
}

// followBus calls changed whenever one of the managers appears on the system bus or leaves it, until ctx ends.
func followBus(ctx context.Context, changed func()) {
	for {
		followOneBus(ctx, changed)
		select {
		case <-ctx.Done():
			return
		case <-time.After(lookInterval): // there is no bus, or it was restarted
		}
	}
}

// followOneBus does what followBus does until the bus goes away.
func followOneBus(ctx context.Context, changed func()) {
	conn, err := dialBus(ctx)
	if err != nil {
		return
	}
	defer conn.Close()
	signals := make(chan *dbus.Signal, 16)
	conn.Signal(signals)
	owner := func(name string) []dbus.MatchOption {
		return []dbus.MatchOption{dbus.WithMatchInterface("org.freedesktop.DBus"), dbus.WithMatchMember("NameOwnerChanged"), dbus.WithMatchArg(0, name)}
	}
	// A connection's servers changed.
	servers := func(kind dbus.ObjectPath) []dbus.MatchOption {
		return []dbus.MatchOption{dbus.WithMatchSender(nmName), dbus.WithMatchMember("PropertiesChanged"), dbus.WithMatchPathNamespace(nmPath + kind)}
	}
	// Of connman's many signals, which tell of every radio's strength, those of services that come and go, and of servers.
	ofConnman := func(iface, member string, more ...dbus.MatchOption) []dbus.MatchOption {
		return append(more, dbus.WithMatchSender(connmanName), dbus.WithMatchInterface(connmanName+iface), dbus.WithMatchMember(member))
	}
	for _, match := range [][]dbus.MatchOption{
		owner(resolvedName), owner(nmName), servers("/ActiveConnection"), servers("/IP4Config"), servers("/IP6Config"),
		owner(connmanName), ofConnman(".Manager", "ServicesChanged"), ofConnman(".Service", "PropertyChanged", dbus.WithMatchArg(0, "Nameservers")),
	} {
		if conn.AddMatchSignalContext(ctx, match...) != nil {
			return
		}
	}
	changed() // what happened before
	for {
		select {
		case <-ctx.Done():
			return
		case _, ok := <-signals:
			if !ok {
				changed()
				return
			}
			changed()
		}
	}
}

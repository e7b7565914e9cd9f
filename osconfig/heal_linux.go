package osconfig

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"slices"
	"time"

	"github.com/godbus/dbus/v5"
)

const (
	// rereadTimeout bounds the lookup that has systemd-resolved look at resolv.conf again. It may go to a dead stub.
	rereadTimeout = time.Second
	// restartTimeout bounds the wait for a new systemd-resolved, which mostly takes a tenth of that.
	restartTimeout = 3 * time.Second
	// resolvedSocket is where systemd-resolved listens for the C library, on the bus or not.
	resolvedSocket = "/run/systemd/resolve/io.systemd.Resolve"
)

// mendResolved is what somebody has to do who sees systemd-resolved ask us for good.
const mendResolved = "systemctl restart systemd-resolved"

// anyServer is a DNS server as the property DNS tells it, which versions have that lack DNSEx.
type anyServer struct {
	Link   int32
	Family int32
	Addr   []byte
}

// heal has systemd-resolved forget our addresses. It takes the nameservers of a resolv.conf that is not its own, which
// ours never is, for its own global ones when it next looks something up, and keeps them when its own file is back: it
// goes past that file before it clears them (systemd 252, manager_read_resolv_conf). It is called while no link of ours
// has servers, so each one that is found is such a memory, whatever link it is told of: of a loopback server resolved
// says that it is lo's. What is still to be done by somebody is returned as left.
func (m machine) heal(ctx context.Context, ours []netip.Addr) (steps, left []string) {
	ctx, done := shareBus(ctx)
	defer done()
	owner, err := m.owner(ctx, resolvedName)
	if owner != ownerPresent {
		if m.resolvedListens() {
			left = []string{fmt.Sprintf("systemd-resolved runs and cannot be asked whether it asks us (%s): %s", orNobody(err), mendResolved)}
		}
		return nil, left
	}
	known, err := m.remembered(ctx, ours)
	if err == nil && known > 0 {
		reread(ctx)
		if known, err = m.remembered(ctx, ours); err == nil && known == 0 {
			return []string{"systemd-resolved had our address from " + confPath + ", and has read it again"}, nil
		}
	}
	if err == nil && known > 0 {
		if err = m.restartResolved(ctx, ours); err == nil {
			return []string{"systemd-resolved had our address for good, and was restarted"}, nil
		}
		return nil, []string{fmt.Sprintf("systemd-resolved still asks %v for all names (%v): %s", ours, err, mendResolved)}
	}
	if err != nil {
		return nil, []string{fmt.Sprintf("systemd-resolved does not say whether it asks us (%v): %s", err, mendResolved)}
	}
	return []string{askedNone}, nil
}

// linkTimeout bounds the wait for systemd-resolved to see that a link of ours is gone: it is told by the kernel.
const linkTimeout = time.Second

// healAfterLink is heal once a link of ours has gone, or its process, which resolved sees a moment later.
func (m machine) healAfterLink(ctx context.Context, ours []netip.Addr) (steps, left []string) {
	tick := time.NewTicker(lockPoll)
	defer tick.Stop()
	wait, cancel := context.WithTimeout(ctx, linkTimeout)
	defer cancel()
	if owner, err := m.owner(wait, resolvedName); owner != ownerPresent || err != nil {
		return nil, nil // with the link all is gone
	}
	for known := 0; ; {
		n, err := m.remembered(wait, ours)
		if err != nil && known > 0 {
			return m.heal(ctx, ours) // the time was up
		}
		if err != nil {
			return []string{fmt.Sprintf("systemd-resolved does not say whether it asks us (%v); the link that it was told of is gone", err)}, nil
		}
		if known = n; known == 0 {
			return []string{askedNone}, nil
		}
		select {
		case <-tick.C:
		case <-wait.Done():
			return m.heal(ctx, ours)
		}
	}
}

// askedNone is what is to be seen once systemd-resolved has forgotten us.
const askedNone = "systemd-resolved asks none of our addresses"

func orNobody(err error) string {
	switch {
	case err == nil:
		return "it is not on the system bus"
	case errors.Is(err, fs.ErrNotExist):
		return "there is no system bus"
	}
	return err.Error()
}

// resolvedListens reports whether systemd-resolved runs, also without a bus.
func (m machine) resolvedListens() bool {
	conn, err := net.DialTimeout("unix", m.disk.real(resolvedSocket), busTimeout)
	if err != nil {
		return false
	}
	_ = conn.Close() // nothing was written
	return true
}

// remembered counts the servers of systemd-resolved, global ones and of links, that have one of our addresses.
func (m machine) remembered(ctx context.Context, ours []netip.Addr) (int, error) {
	ctx, cancel := context.WithTimeout(ctx, busTimeout)
	defer cancel()
	conn, err := dialBus(ctx)
	if err != nil {
		return 0, err
	}
	defer conn.Close()
	var servers []anyServer
	if err := property(ctx, conn, resolvedPath, ".Manager", map[string]any{"DNS": &servers}); err != nil {
		return 0, late(ctx, err)
	}
	n := 0
	for _, s := range servers {
		if addr, ok := netip.AddrFromSlice(s.Addr); ok && slices.Contains(ours, addr) {
			n++
		}
	}
	return n, nil
}

// reread has systemd-resolved look something up, at which it looks at resolv.conf too. What it finds does not matter.
func reread(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, rereadTimeout)
	defer cancel()
	conn, err := dialBus(ctx)
	if err != nil {
		return
	}
	defer conn.Close()
	const classIN, typeNS = uint16(1), uint16(2)
	_ = conn.Object(resolvedName, resolvedPath).CallWithContext(ctx, resolvedManager+"ResolveRecord", dbus.FlagNoAutoStart,
		int32(0), ".", classIN, typeNS, uint64(0)).Err
}

// restartResolved has systemd restart systemd-resolved, and waits until the new one is there and knows nothing of us.
// What links were told outlives that (it is kept below /run/systemd/resolve/netif).
func (m machine) restartResolved(ctx context.Context, ours []netip.Addr) error {
	ctx, cancel := context.WithTimeout(ctx, restartTimeout)
	defer cancel()
	conn, err := dialBus(ctx)
	if err != nil {
		return err
	}
	defer conn.Close()
	err = conn.Object(systemdName, systemdPath).CallWithContext(ctx, systemdName+".Manager.TryRestartUnit", dbus.FlagNoAutoStart,
		"systemd-resolved.service", "replace").Err
	if err != nil {
		return fmt.Errorf("having systemd restart it: %w", late(ctx, err))
	}
	tick := time.NewTicker(lockPoll)
	defer tick.Stop()
	for {
		if known, err := m.remembered(ctx, ours); err == nil && known == 0 {
			return nil
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return errors.New("a restart did not help")
		}
	}
}

// staleResolved says that systemd-resolved asks us for more than it was told on our link.
func (m machine) staleResolved(ctx context.Context, c Config) []string {
	known, err := m.remembered(ctx, c.addrs())
	if err != nil || known <= len(c.Servers) {
		return nil
	}
	return []string{"systemd-resolved asks us for all names, from a " + confPath + " that named us: " + mendResolved}
}

package node

import (
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"github.com/godbus/dbus/v5"
)

// portalHintTime bounds a conversation with NetworkManager. One that was stopped keeps callers waiting for ever.
const portalHintTime = time.Second

// maxLeaseFiles is how many files of a DHCP client are read.
const maxLeaseFiles = 64

// readPortalHint asks those who know what the network of these ways out says of itself; the first who says something counts.
func readPortalHint(ctx context.Context, ways []wayOut) portalHint {
	for _, way := range ways {
		for _, dir := range []string{"links", "leases"} {
			data, err := readEnd(filepath.Join("/run/systemd/netif", dir, strconv.Itoa(way.index)))
			if h := parseNetworkd(data); err == nil && h.announced {
				return h
			}
		}
		if h := readDhclient(way.link, "/var/lib/dhcp/*.leases", "/var/lib/dhclient/*.lease*", "/var/lib/NetworkManager/*.lease"); h.announced {
			return h
		}
	}
	h, _ := askNetworkManager(ctx) // without it there is nothing to be known
	return h
}

func readDhclient(link string, patterns ...string) portalHint {
	for _, pattern := range patterns {
		paths, err := filepath.Glob(pattern)
		if err != nil {
			continue
		}
		for _, path := range paths[:min(len(paths), maxLeaseFiles)] {
			data, err := readEnd(path)
			if h := parseDhclient(data, link, time.Now()); err == nil && h.announced {
				return h
			}
		}
	}
	return portalHint{}
}

// readEnd reads the last maxLease bytes of a file: leases are appended.
func readEnd(path string) ([]byte, error) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() { // a pipe would keep us waiting
		return nil, fmt.Errorf("reading %s: not a file", path)
	}
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	if _, err := f.Seek(max(0, info.Size()-maxLease), io.SeekStart); err != nil {
		return nil, err
	}
	return io.ReadAll(io.LimitReader(f, maxLease))
}

const nmBus = "org.freedesktop.NetworkManager"

// askNetworkManager asks whether its own check found a portal, and what the lease of the connection that leads out says.
// It is never started by being asked.
func askNetworkManager(ctx context.Context) (portalHint, error) {
	ctx, cancel := context.WithTimeout(ctx, portalHintTime)
	defer cancel()
	conn, err := dialSystemBus(ctx)
	if err != nil {
		return portalHint{}, err
	}
	defer conn.Close()
	var hint portalHint
	var connectivity uint32
	if err := busProperty(ctx, conn.Object(nmBus, "/org/freedesktop/NetworkManager"), "", "Connectivity", &connectivity); err != nil {
		return portalHint{}, err
	}
	hint.announced = connectivity == 2 // NM_CONNECTIVITY_PORTAL
	var active, lease dbus.ObjectPath
	if err := busProperty(ctx, conn.Object(nmBus, "/org/freedesktop/NetworkManager"), "", "PrimaryConnection", &active); err != nil {
		return hint, err
	}
	for _, config := range []string{"Dhcp4Config", "Dhcp6Config"} {
		var options map[string]dbus.Variant
		if busProperty(ctx, conn.Object(nmBus, active), ".Connection.Active", config, &lease) != nil || lease == "/" {
			continue // it has none
		}
		if err := busProperty(ctx, conn.Object(nmBus, lease), ".DHCP"+config[4:5]+"Config", "Options", &options); err != nil {
			return hint, err
		}
		for _, name := range []string{"captive_portal", "v4_captive_portal", "v6_captive_portal"} {
			if text, ok := options[name].Value().(string); ok {
				if h := hintOfURI(text); h.announced {
					return h, nil
				}
			}
		}
	}
	return hint, nil
}

// dialSystemBus connects to the system bus. The library's handshake knows no limit, so it may be left behind until ctx
// closes its connection.
func dialSystemBus(ctx context.Context) (*dbus.Conn, error) {
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

// busProperty reads a property of one of NetworkManager's objects, without having it started.
func busProperty(ctx context.Context, object dbus.BusObject, iface, name string, into any) error {
	var v dbus.Variant
	call := object.CallWithContext(ctx, "org.freedesktop.DBus.Properties.Get", dbus.FlagNoAutoStart, nmBus+iface, name)
	if err := call.Store(&v); err != nil {
		return fmt.Errorf("asking NetworkManager for %s: %w", name, err)
	}
	return v.Store(into)
}

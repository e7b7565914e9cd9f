package tunnel

import (
	"bytes"
	"fmt"
	"log/slog"
	"strings"

	"golang.zx2c4.com/wireguard/device"
	"golang.zx2c4.com/wireguard/tun"
)

// wgdevice is a WireGuard that runs in this process, on a tun device or on the netstack.
type wgdevice struct {
	dev    *device.Device
	socket *socket
	own    Key // guarded as apply is
}

// openDevice starts WireGuard between link and the UDP socket. It owns link from then on, also when it fails.
func openDevice(c Config, link tun.Device, mark uint32) (*wgdevice, error) {
	s := newSocket(c)
	if f, ok := link.(*filter); ok {
		f.in, f.out = s.in, s.out
	}
	d := &wgdevice{dev: device.NewDevice(link, s, wireguardLogger(c.Logger)), socket: s, own: c.Key.Public()}
	if err := d.start(c, mark); err != nil {
		d.dev.Close()
		return nil, err
	}
	return d, nil
}

func (d *wgdevice) start(c Config, mark uint32) error {
	if err := d.dev.SetPrivateKey(device.NoisePrivateKey(c.Key.clamped())); err != nil {
		return fmt.Errorf("setting the private key: %w", err)
	}
	if err := d.dev.BindSetMark(mark); err != nil {
		return fmt.Errorf("marking the tunnel's packets: %w", err)
	}
	if err := d.dev.IpcSet(fmt.Sprintf("listen_port=%d\n", c.Port)); err != nil {
		return portError(c.Port, err)
	}
	if err := d.dev.Up(); err != nil {
		return portError(c.Port, err)
	}
	return nil
}

func (d *wgdevice) apply(c change) error {
	if c.key != nil {
		if err := d.dev.SetPrivateKey(device.NoisePrivateKey(c.key.clamped())); err != nil {
			return fmt.Errorf("setting the private key: %w", err)
		}
		d.own = c.key.Public()
	}
	if len(c.peers) == 0 {
		return nil
	}
	text := uapiPeers(changePeers(d.dev, d.own, c.peers))
	defer clear(text) // preshared keys
	if err := d.dev.IpcSetOperation(bytes.NewReader(text)); err != nil {
		return fmt.Errorf("setting peers: %w", err)
	}
	return nil
}

func (d *wgdevice) stats() ([]PeerStats, error) {
	var b bytes.Buffer
	if err := d.dev.IpcGetOperation(&b); err != nil {
		return nil, fmt.Errorf("reading peers: %w", err)
	}
	defer clear(b.Bytes()) // the private key is in it
	return uapiStats(b.Bytes())
}

func (d *wgdevice) port() (uint16, error) { return d.socket.listening(), nil }

func (d *wgdevice) close() error {
	d.dev.Close()
	return nil
}

// wireguardLogger passes on what wireguard-go says. It names peers by a part of their public key; secrets never stand in it.
func wireguardLogger(log *slog.Logger) *device.Logger {
	say := func(f func(string, ...any)) func(string, ...any) {
		return func(format string, args ...any) {
			f("wireguard", "text", strings.TrimSpace(fmt.Sprintf(format, args...)))
		}
	}
	return &device.Logger{Verbosef: device.DiscardLogf, Errorf: say(log.Debug)}
}

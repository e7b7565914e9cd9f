package tunnel

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"time"

	"github.com/vishvananda/netlink"
	"golang.zx2c4.com/wireguard/wgctrl"
	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"
)

// wgkernel is the kernel's WireGuard.
type wgkernel struct {
	link   string
	client *wgctrl.Client
}

func openKernel(_ context.Context, c Config) (*carrier, error) {
	return openMachine(c, "wireguard", func(m *machine, mtu int) (*carrier, error) {
		attrs := netlink.NewLinkAttrs()
		attrs.Name, attrs.MTU, attrs.Group = c.Link, mtu, group
		if err := netlink.LinkAdd(&netlink.Wireguard{LinkAttrs: attrs}); err != nil {
			return nil, unlessAbsent("no wireguard module", err)
		}
		client, err := wgctrl.New()
		if err != nil {
			return nil, fmt.Errorf("opening WireGuard's control: %w", err)
		}
		k := &wgkernel{link: c.Link, client: client}
		if err := k.start(c); err != nil {
			return nil, errors.Join(err, k.close())
		}
		return &carrier{engine: k}, nil
	})
}

func (k *wgkernel) start(c Config) error {
	key, port, fwmark := wgtypes.Key(c.Key.clamped()), int(c.Port), mark
	err := k.client.ConfigureDevice(k.link, wgtypes.Config{PrivateKey: &key, ListenPort: &port, FirewallMark: &fwmark, ReplacePeers: true})
	if err != nil {
		return fmt.Errorf("configuring WireGuard: %w", err)
	}
	// The port is taken only now, and the guard has to know it.
	link, err := netlink.LinkByName(k.link)
	if err != nil {
		return fmt.Errorf("finding the link %s: %w", k.link, err)
	}
	if err := netlink.LinkSetUp(link); err != nil {
		return portError(c.Port, err)
	}
	return nil
}

func (k *wgkernel) apply(c change) error {
	config := wgtypes.Config{}
	if c.key != nil {
		key := wgtypes.Key(c.key.clamped())
		config.PrivateKey = &key
	}
	for _, p := range c.peers {
		config.Peers = append(config.Peers, p.kernel())
	}
	if err := k.client.ConfigureDevice(k.link, config); err != nil {
		return fmt.Errorf("configuring WireGuard: %w", err)
	}
	return nil
}

// kernel is the change as wgctrl takes it.
func (c peerChange) kernel() wgtypes.PeerConfig {
	p := wgtypes.PeerConfig{PublicKey: wgtypes.Key(c.key), Remove: c.remove, UpdateOnly: !c.add && !c.remove}
	if c.preshared != nil {
		key := wgtypes.Key(*c.preshared)
		p.PresharedKey = &key
	}
	if c.endpoint.IsValid() {
		p.Endpoint = net.UDPAddrFromAddrPort(c.endpoint)
	}
	if c.keepalive != nil {
		interval := time.Duration(*c.keepalive) * time.Second
		p.PersistentKeepaliveInterval = &interval
	}
	if c.allowed != nil {
		p.ReplaceAllowedIPs = true
		for _, prefix := range *c.allowed {
			p.AllowedIPs = append(p.AllowedIPs, *ipNet(prefix))
		}
	}
	return p
}

func (k *wgkernel) stats() ([]PeerStats, error) {
	device, err := k.client.Device(k.link)
	if err != nil {
		return nil, fmt.Errorf("reading WireGuard's peers: %w", err)
	}
	out := make([]PeerStats, 0, len(device.Peers))
	for _, p := range device.Peers {
		s := PeerStats{Key: Key(p.PublicKey), Handshake: p.LastHandshakeTime, Received: uint64(p.ReceiveBytes), Sent: uint64(p.TransmitBytes)}
		if p.Endpoint != nil {
			s.Endpoint = unmapped(p.Endpoint.AddrPort())
		}
		out = append(out, s)
	}
	return out, nil
}

func (k *wgkernel) port() (uint16, error) {
	device, err := k.client.Device(k.link)
	if err != nil {
		return 0, fmt.Errorf("reading WireGuard's port: %w", err)
	}
	return uint16(device.ListenPort), nil
}

// close leaves the link to the journal.
func (k *wgkernel) close() error { return k.client.Close() }

// foreignOwner asks another program's WireGuard whose an address is.
func foreignOwner(link string, a netip.Addr) (Key, bool) {
	client, err := wgctrl.New()
	if err != nil {
		return Key{}, false
	}
	defer client.Close()
	device, err := client.Device(link)
	if err != nil || len(device.Peers) > maxPeers {
		return Key{}, false
	}
	peers := make([]Peer, 0, len(device.Peers))
	for _, p := range device.Peers {
		peer := Peer{Key: Key(p.PublicKey)}
		for _, allowed := range p.AllowedIPs {
			if addr, ok := netip.AddrFromSlice(allowed.IP); ok {
				ones, _ := allowed.Mask.Size()
				peer.AllowedIPs = append(peer.AllowedIPs, netip.PrefixFrom(addr.Unmap(), ones))
			}
		}
		peers = append(peers, peer)
	}
	return soleOwner(peers, a)
}

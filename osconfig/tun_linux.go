package osconfig

import (
	"fmt"
	"net"
	"net/netip"
	"os"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// tunLink is a link of ours that carries nothing. systemd-resolved asks servers for a link's domains only if the link
// has a carrier, which a TUN has while a process holds it, and an address.
type tunLink struct {
	file  *os.File
	index int
}

// dummyAddr is "IPv4 dummy address" of the IANA registry (RFC 7600): nobody has it, and nothing is ever sent to it.
func dummyAddr() netip.Prefix { return netip.MustParsePrefix("192.0.0.8/32") }

// openTUN makes a link that goes away with the process.
func openTUN() (*tunLink, error) {
	fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: "/dev/net/tun", Err: err}
	}
	request, err := unix.NewIfreq("meshdns-dns%d") // not the tunnel's, which is meshdns0
	if err != nil {
		_ = unix.Close(fd)
		return nil, err
	}
	request.SetUint16(unix.IFF_TUN | unix.IFF_NO_PI)
	if err := unix.IoctlIfreq(fd, unix.TUNSETIFF, request); err != nil {
		_ = unix.Close(fd)
		return nil, fmt.Errorf("making a TUN: %w", err)
	}
	l := &tunLink{file: os.NewFile(uintptr(fd), "/dev/net/tun")}
	if err := l.up(request.Name()); err != nil {
		_ = l.file.Close() // the link goes with it
		return nil, err
	}
	return l, nil
}

func (l *tunLink) up(name string) error {
	link, err := netlink.LinkByName(name)
	if err != nil {
		return fmt.Errorf("finding %s: %w", name, err)
	}
	l.index = link.Attrs().Index
	addr := dummyAddr()
	err = netlink.AddrAdd(link, &netlink.Addr{IPNet: &net.IPNet{IP: addr.Addr().AsSlice(), Mask: net.CIDRMask(addr.Bits(), 32)}})
	if err != nil {
		return fmt.Errorf("giving %s an address: %w", name, err)
	}
	if err := netlink.LinkSetUp(link); err != nil {
		return fmt.Errorf("setting %s up: %w", name, err)
	}
	return nil
}

func (l *tunLink) close() error { return l.file.Close() }

// linkName is the name of a link, for the zone of an address; "" if it is gone.
func linkName(index int) string {
	i, err := net.InterfaceByIndex(index)
	if err != nil {
		return ""
	}
	return i.Name
}

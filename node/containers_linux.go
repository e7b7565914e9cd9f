package node

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"syscall"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"
)

// serviceLabel marks the address as ours for whoever looks at lo, and for dropAddress.
const serviceLabel = "lo:meshdns"

// machineBridges lists the bridges of this machine that are up.
func machineBridges() ([]bridge, error) {
	links, err := netlink.LinkList()
	if err != nil && !errors.Is(err, netlink.ErrDumpInterrupted) {
		return nil, fmt.Errorf("listing links: %w", err)
	}
	ports := map[int][]string{}
	for _, l := range links {
		if master := l.Attrs().MasterIndex; master != 0 {
			ports[master] = append(ports[master], l.Type())
		}
	}
	var list []bridge
	for _, l := range links {
		attrs := l.Attrs()
		if l.Type() != "bridge" || attrs.Flags&net.FlagUp == 0 {
			continue
		}
		b := bridge{name: attrs.Name, index: attrs.Index, ports: ports[attrs.Index]}
		addrs, err := netlink.AddrList(l, netlink.FAMILY_V4)
		if err != nil {
			continue // it went away meanwhile
		}
		for _, a := range addrs {
			if p, err := netip.ParsePrefix(a.IPNet.String()); err == nil {
				b.addrs = append(b.addrs, p)
			}
		}
		list = append(list, b)
	}
	return list, nil
}

// serviceOnLo is the address as lo has it. Of scope host it is no source of packets that leave the machine.
func serviceOnLo(a netip.Addr) *netlink.Addr {
	return &netlink.Addr{
		IPNet: &net.IPNet{IP: a.AsSlice(), Mask: net.CIDRMask(32, 32)},
		Label: serviceLabel,
		Scope: int(netlink.SCOPE_HOST),
	}
}

// hasAddress reports whether some link of this machine has the address.
func hasAddress(a netip.Addr) (bool, error) {
	addrs, err := netlink.AddrList(nil, netlink.FAMILY_V4)
	if err != nil && !errors.Is(err, netlink.ErrDumpInterrupted) {
		return false, fmt.Errorf("listing addresses: %w", err)
	}
	for _, have := range addrs {
		if have.IP.Equal(a.AsSlice()) {
			return true, nil
		}
	}
	return false, nil
}

// addAddress gives lo the address. That it has it already is no error.
func addAddress(a netip.Addr) error {
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		return fmt.Errorf("finding lo: %w", err)
	}
	if err := netlink.AddrAdd(lo, serviceOnLo(a)); err != nil && !errors.Is(err, unix.EEXIST) {
		return fmt.Errorf("giving lo the address %s: %w", a, err)
	}
	return nil
}

// dropAddress takes the address off lo, if it is marked as ours. That lo does not have it is no error.
func dropAddress(a netip.Addr) error {
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		return fmt.Errorf("finding lo: %w", err)
	}
	addrs, err := netlink.AddrList(lo, netlink.FAMILY_V4)
	if err != nil && !errors.Is(err, netlink.ErrDumpInterrupted) {
		return fmt.Errorf("listing the addresses of lo: %w", err)
	}
	for _, have := range addrs {
		if have.Label != serviceLabel || !have.IP.Equal(a.AsSlice()) {
			continue
		}
		if err := netlink.AddrDel(lo, &have); err != nil && !errors.Is(err, unix.EADDRNOTAVAIL) {
			return err
		}
	}
	return nil
}

// followLinks calls changed whenever links or IPv4 addresses change, until ctx ends. What exactly changed is not read:
// whoever is told looks anew.
func followLinks(ctx context.Context, changed func()) error {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, unix.NETLINK_ROUTE)
	if err != nil {
		return fmt.Errorf("following links: %w", err)
	}
	news := os.NewFile(uintptr(fd), "rtnetlink")
	defer news.Close()
	if err := unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK, Groups: unix.RTMGRP_LINK | unix.RTMGRP_IPV4_IFADDR}); err != nil {
		return fmt.Errorf("following links: %w", err)
	}
	stop := context.AfterFunc(ctx, func() { _ = news.SetReadDeadline(time.Unix(1, 0)) })
	defer stop()
	changed() // since the last look
	buf := make([]byte, 64<<10)
	for {
		_, err := news.Read(buf)
		switch {
		case ctx.Err() != nil:
			return nil
		case err != nil && !errors.Is(err, unix.ENOBUFS): // which says that news were lost
			return fmt.Errorf("following links: %w", err)
		}
		changed()
	}
}

// serviceSockets are what the service address is answered on: one set for this machine's programs, which takes what comes
// by lo, and one for containers, which takes what its filter lets through. The kernel gives a packet to the set that is
// bound to its link before it gives it to one that is bound to none, so the second one also swallows, without a word,
// what comes by any other link.
type serviceSockets struct {
	own, guests *sockets
}

// listenService binds them.
func listenService(ctx context.Context, addr netip.AddrPort, readers int, nets []containerNet) (*serviceSockets, error) {
	filter, err := assemble(nets)
	if err != nil {
		return nil, err
	}
	// The set for containers comes first and shares the port only afterwards: an address in use is an error even if
	// its holder would share it.
	guests, err := listenWith(ctx, addr, 1, func(fd int) error { return attach(fd, filter) })
	if err != nil {
		return nil, err
	}
	s := &serviceSockets{guests: guests}
	share := func(fd int) error { return unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEPORT, 1) }
	err = guests.control(share)
	if err == nil {
		s.own, err = listenWith(ctx, addr, readers, func(fd int) error {
			return errors.Join(share(fd), os.NewSyscallError("SO_BINDTODEVICE", unix.BindToDevice(fd, "lo")))
		})
	}
	if err != nil {
		guests.close()
		return nil, err
	}
	return s, nil
}

func (s *serviceSockets) close() {
	s.own.close()
	s.guests.close()
}

// allow has the containers of nets answered, and nobody else.
func (s *serviceSockets) allow(nets []containerNet) error {
	filter, err := assemble(nets)
	if err != nil {
		return err
	}
	return s.guests.control(func(fd int) error { return attach(fd, filter) })
}

// listenWith binds addr for UDP and TCP with sockets that prepare has set up.
func listenWith(ctx context.Context, addr netip.AddrPort, n int, prepare func(fd int) error) (*sockets, error) {
	lc := net.ListenConfig{Control: func(_, _ string, raw syscall.RawConn) error { return onSocket(raw, prepare) }}
	lc.SetMultipathTCP(false) // which takes no filter
	s := &sockets{addr: addr}
	fail := func(network string, err error) (*sockets, error) {
		for _, conn := range s.udp {
			conn.Close()
		}
		err = fmt.Errorf("listening on %s/%s: %w", addr, network, err)
		if isAddrInUse(err) {
			err = &heldError{addr: addr, holder: portHolder(addr), err: err}
		}
		return nil, err
	}
	for range n {
		conn, err := lc.ListenPacket(ctx, "udp4", addr.String())
		if err != nil {
			return fail("udp", err)
		}
		s.udp = append(s.udp, conn.(*net.UDPConn))
	}
	var err error
	if s.tcp, err = lc.Listen(ctx, "tcp4", addr.String()); err != nil {
		return fail("tcp", err)
	}
	return s, nil
}

// control calls f with each of the sockets.
func (s *sockets) control(f func(fd int) error) error {
	conns := []syscall.Conn{s.tcp.(*net.TCPListener)}
	for _, conn := range s.udp {
		conns = append(conns, conn)
	}
	for _, conn := range conns {
		raw, err := conn.SyscallConn()
		if err == nil {
			err = onSocket(raw, f)
		}
		if err != nil {
			return fmt.Errorf("setting a socket of %s up: %w", s.addr, err)
		}
	}
	return nil
}

func onSocket(raw syscall.RawConn, f func(fd int) error) error {
	var err error
	if cerr := raw.Control(func(fd uintptr) { err = f(int(fd)) }); cerr != nil {
		return cerr
	}
	return err
}

// assemble makes the kernel's form of the filter for nets.
func assemble(nets []containerNet) ([]unix.SockFilter, error) {
	raw, err := bpf.Assemble(containerFilter(nets))
	if err != nil {
		return nil, fmt.Errorf("making the filter of the service address: %w", err)
	}
	filter := make([]unix.SockFilter, len(raw))
	for i, ins := range raw {
		filter[i] = unix.SockFilter{Code: ins.Op, Jt: ins.Jt, Jf: ins.Jf, K: ins.K}
	}
	return filter, nil
}

// attach replaces a socket's filter in one step.
func attach(fd int, filter []unix.SockFilter) error {
	program := unix.SockFprog{Len: uint16(len(filter)), Filter: &filter[0]}
	return os.NewSyscallError("SO_ATTACH_FILTER", unix.SetsockoptSockFprog(fd, unix.SOL_SOCKET, unix.SO_ATTACH_FILTER, &program))
}

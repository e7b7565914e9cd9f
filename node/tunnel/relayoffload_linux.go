package tunnel

import (
	"encoding/binary"
	"errors"
	"net"

	"golang.org/x/sys/unix"
)

// joinedControl is room for the control message that tells the size of joined datagrams.
func joinedControl() int { return unix.CmsgSpace(4) }

// relayBuffer is what the kernel holds for a socket while this process does not run; with joined datagrams a few milliseconds
// are megabytes.
const relayBuffer = 7 << 20

// growBuffers asks for large buffers: as root for all, otherwise for what the machine allows.
func growBuffers(c *net.UDPConn) {
	control(c, func(fd int) {
		for _, option := range []int{unix.SO_RCVBUF, unix.SO_SNDBUF, unix.SO_RCVBUFFORCE, unix.SO_SNDBUFFORCE} {
			_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, option, relayBuffer)
		}
	})
}

// joinDatagrams has the kernel join datagrams that come in, and reports whether it does.
func joinDatagrams(c *net.UDPConn) (does bool) {
	control(c, func(fd int) { does = unix.SetsockoptInt(fd, unix.IPPROTO_UDP, unix.UDP_GRO, 1) == nil })
	return does
}

// splitsDatagrams reports whether the kernel takes apart what is written.
func splitsDatagrams(c *net.UDPConn) (does bool) {
	control(c, func(fd int) {
		_, err := unix.GetsockoptInt(fd, unix.IPPROTO_UDP, unix.UDP_SEGMENT)
		does = err == nil
	})
	return does
}

func control(c *net.UDPConn, do func(fd int)) {
	if raw, err := c.SyscallConn(); err == nil {
		_ = raw.Control(func(fd uintptr) { do(int(fd)) }) // of a socket that is closed nothing is wanted
	}
}

// joinedSize is the size of the datagrams that were joined; 0: none were.
func joinedSize(oob []byte) int {
	return controlSize(oob, unix.UDP_GRO)
}

// joinedSplit is the size that splitControl was made with.
func joinedSplit(oob []byte) int {
	return controlSize(oob, unix.UDP_SEGMENT)
}

func controlSize(oob []byte, kind int32) int {
	for len(oob) >= unix.SizeofCmsghdr {
		header, data, rest, err := unix.ParseOneSocketControlMessage(oob)
		if err != nil {
			return 0
		}
		if header.Level == unix.SOL_UDP && header.Type == kind && len(data) >= 2 {
			if len(data) >= 4 { // UDP_GRO's, an int
				return int(binary.NativeEndian.Uint32(data))
			}
			return int(binary.NativeEndian.Uint16(data))
		}
		oob = rest
	}
	return 0
}

// splitControl has the kernel take a message apart into datagrams of a size.
func splitControl(each int) []byte {
	header := unix.Cmsghdr{Level: unix.SOL_UDP, Type: unix.UDP_SEGMENT}
	header.SetLen(unix.CmsgLen(2))
	b, err := binary.Append(make([]byte, 0, unix.CmsgSpace(2)), binary.NativeEndian, header)
	if err != nil {
		return nil // which a type of fixed size is no reason for
	}
	b = binary.NativeEndian.AppendUint16(b, uint16(each))
	return b[:cap(b)]
}

// cannotSplit reports whether an error says that the socket's device computes no checksums, without which nothing is taken apart.
func cannotSplit(err error) bool { return errors.Is(err, unix.EIO) }

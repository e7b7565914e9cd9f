package resolver

import (
	"encoding/binary"
	"runtime"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// mmsghdr is struct mmsghdr of recvmmsg(2) and sendmmsg(2). Its end is padded to the alignment of pointers, as in C; a
// padding field of no size, where those have four octets, would make it longer.
type mmsghdr struct {
	hdr unix.Msghdr
	len uint32
}

// peer is the far end of a datagram, as the kernel gave it, so that it goes back unread. control carries
// IP_PKTINFO on a wildcard socket: sent back, it makes the answer leave from the address that was asked.
type peer struct {
	name       unix.RawSockaddrInet6 // the larger of both families
	nameLen    uint32
	control    [controlSize]byte
	controlLen uint32
}

// controlSize holds one struct cmsghdr with an in6_pktinfo, and room to spare.
const controlSize = 64

// receiver takes up to batchSize datagrams from a socket in one system call. Its buffers are laid out once.
//
// The call is a RawSyscall on a non-blocking descriptor: an ordinary one wakes the runtime's monitor thread
// whenever the process was idle, which at low rates is nearly half of what a query costs.
type receiver struct {
	hdrs  [batchSize]mmsghdr
	iovs  [batchSize]unix.Iovec
	peers [batchSize]peer
	bufs  [][]byte
	n     int
	errno syscall.Errno
	read  func(fd uintptr) bool
}

func newReceiver(size int) *receiver {
	r := &receiver{bufs: make([][]byte, batchSize)}
	all := make([]byte, batchSize*size)
	for i := range r.bufs {
		r.bufs[i] = all[i*size : (i+1)*size : (i+1)*size]
		r.iovs[i].Base = &r.bufs[i][0]
		r.iovs[i].SetLen(size)
		h := &r.hdrs[i].hdr
		h.Iov = &r.iovs[i]
		h.SetIovlen(1)
		h.Name = (*byte)(unsafe.Pointer(&r.peers[i].name))
		h.Control = &r.peers[i].control[0]
	}
	r.read = r.recvmmsg
	return r
}

func (r *receiver) recvmmsg(fd uintptr) bool {
	for i := range r.hdrs {
		r.hdrs[i].hdr.Namelen = uint32(unsafe.Sizeof(r.peers[i].name))
		r.hdrs[i].hdr.SetControllen(controlSize)
	}
	for {
		n, _, errno := unix.RawSyscall6(unix.SYS_RECVMMSG, fd, uintptr(unsafe.Pointer(&r.hdrs)), batchSize, unix.MSG_DONTWAIT, 0, 0)
		switch errno {
		case unix.EINTR:
			continue
		case unix.EAGAIN:
			return false
		}
		r.n, r.errno = int(n), errno
		return true
	}
}

// recv waits for datagrams and returns how many came. An error of the socket that concerns one datagram only
// (an ICMP message to a connected socket) is returned as it is; the socket lives on.
func (r *receiver) recv(c *udpConn) (int, error) {
	if err := c.raw.Read(r.read); err != nil {
		return 0, err
	}
	runtime.KeepAlive(r)
	if r.errno != 0 {
		return 0, r.errno
	}
	return r.n, nil
}

// msg is the i-th datagram; the slice's capacity is the whole buffer. A datagram that did not fit is empty.
func (r *receiver) msg(i int) []byte {
	if r.hdrs[i].hdr.Flags&unix.MSG_TRUNC != 0 {
		return r.bufs[i][:0]
	}
	return r.bufs[i][:r.hdrs[i].len]
}

// peer is where the i-th datagram came from.
func (r *receiver) peer(i int) *peer {
	p := &r.peers[i]
	p.nameLen = r.hdrs[i].hdr.Namelen
	p.controlLen = uint32(r.hdrs[i].hdr.Controllen)
	p.forgetLink()
	return p
}

// forgetLink leaves the choice of the link to the routes: the answer need not go back by the link that the query came
// by. The scope of a link-local address stands in name.
func (p *peer) forgetLink() {
	data := unix.CmsgLen(0)
	if int(p.controlLen) <= data {
		return
	}
	level := binary.NativeEndian.Uint32(p.control[unix.SizeofCmsghdr-8:])
	kind := binary.NativeEndian.Uint32(p.control[unix.SizeofCmsghdr-4:])
	switch {
	case level == unix.IPPROTO_IP && kind == unix.IP_PKTINFO:
		clear(p.control[data : data+4]) // struct in_pktinfo begins with it
	case level == unix.IPPROTO_IPV6 && kind == unix.IPV6_PKTINFO:
		clear(p.control[data+16 : data+20]) // in struct in6_pktinfo it is behind the address
	}
}

// sender collects up to batchSize datagrams and sends them in one system call.
type sender struct {
	hdrs  [batchSize]mmsghdr
	iovs  [batchSize]unix.Iovec
	peers [batchSize]peer
	n     int
	done  int
	errno syscall.Errno // of the last datagram that was refused
	write func(fd uintptr) bool
}

func newSender() *sender {
	s := &sender{}
	for i := range s.hdrs {
		s.hdrs[i].hdr.Iov = &s.iovs[i]
		s.hdrs[i].hdr.SetIovlen(1)
	}
	s.write = s.sendmmsg
	return s
}

// add queues msg, which must not change until flush. A nil peer is the one that the socket is connected to.
func (s *sender) add(to *peer, msg []byte) {
	i := s.n
	s.n++
	s.iovs[i].Base = &msg[0]
	s.iovs[i].SetLen(len(msg))
	h := &s.hdrs[i].hdr
	h.Name, h.Namelen, h.Control = nil, 0, nil
	h.SetControllen(0)
	if to == nil {
		return
	}
	p := &s.peers[i]
	p.name, p.nameLen = to.name, to.nameLen
	h.Name, h.Namelen = (*byte)(unsafe.Pointer(&p.name)), p.nameLen
	if to.controlLen > 0 {
		copy(p.control[:], to.control[:to.controlLen])
		h.Control = &p.control[0]
		h.SetControllen(int(to.controlLen))
	}
}

// sendmmsg never waits: a datagram for which a socket has no room is lost, as datagrams are.
func (s *sender) sendmmsg(fd uintptr) bool {
	for off := 0; off < s.n; {
		n, _, errno := unix.RawSyscall6(unix.SYS_SENDMMSG, fd, uintptr(unsafe.Pointer(&s.hdrs[off])), uintptr(s.n-off), unix.MSG_DONTWAIT, 0, 0)
		switch {
		case errno == unix.EINTR:
		case errno != 0 || n == 0:
			s.errno = errno
			off++ // the first one was refused; those behind it may still go
		default:
			s.done += int(n)
			off += int(n)
		}
	}
	return true
}

// reader reads a socket that is at rest most of the time: a receiver is taken only once datagrams are there, so
// that sockets at rest hold no buffers.
type reader struct {
	conn  *udpConn
	spare *spareReceivers
	in    *receiver
	read  func(fd uintptr) bool
}

func newReader(c *udpConn, spare *spareReceivers) *reader {
	r := &reader{conn: c, spare: spare}
	r.read = r.tryRead
	return r
}

func (r *reader) tryRead(fd uintptr) bool {
	r.in = r.spare.get()
	if r.in.recvmmsg(fd) {
		return true
	}
	r.spare.put(r.in)
	r.in = nil
	return false
}

// recv waits for datagrams. The caller gives the receiver back.
func (r *reader) recv() (*receiver, int, error) {
	if err := r.conn.raw.Read(r.read); err != nil {
		return nil, 0, err
	}
	if r.in.errno != 0 {
		errno := r.in.errno
		r.spare.put(r.in)
		return nil, 0, errno
	}
	return r.in, r.in.n, nil
}

// fault is what the last flush met.
func (s *sender) fault() fault {
	switch s.errno {
	case 0, unix.EAGAIN, unix.ENOBUFS, unix.ENOMEM:
		return faultNone
	case unix.ECONNREFUSED:
		return faultRefused
	}
	return faultBroken
}

// flush sends what was added and returns how many datagrams the kernel took.
func (s *sender) flush(c *udpConn) int {
	if s.n == 0 {
		return 0
	}
	s.done, s.errno = 0, 0
	if err := c.raw.Write(s.write); err != nil {
		s.done = 0
	}
	runtime.KeepAlive(s)
	s.n = 0
	return s.done
}

// reusePort lets further sockets of this process bind the address too; the kernel then spreads clients.
func reusePort(raw syscall.RawConn) error {
	return control(raw, func(fd int) error { return unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEPORT, 1) })
}

// wantLocalAddr asks for IP_PKTINFO, without which answers from a wildcard socket leave from whatever address
// the route prefers and clients throw them away.
func wantLocalAddr(raw syscall.RawConn, v6 bool) error {
	return control(raw, func(fd int) error {
		if v6 {
			return unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_RECVPKTINFO, 1)
		}
		return unix.SetsockoptInt(fd, unix.IPPROTO_IP, unix.IP_PKTINFO, 1)
	})
}

func control(raw syscall.RawConn, f func(fd int) error) error {
	var err error
	if cerr := raw.Control(func(fd uintptr) { err = f(int(fd)) }); cerr != nil {
		return cerr
	}
	return err
}

//go:build !linux

package resolver

import (
	"errors"
	"net"
	"net/netip"
	"syscall"
)

// peer is the far end of a datagram.
type peer struct {
	addr netip.AddrPort
}

// receiver takes one datagram at a time, through the standard library.
type receiver struct {
	buf  []byte
	n    int
	from peer
}

func newReceiver(size int) *receiver { return &receiver{buf: make([]byte, size)} }

func (r *receiver) recv(c *udpConn) (int, error) {
	n, addr, err := c.conn.ReadFromUDPAddrPort(r.buf)
	if err != nil {
		return 0, err
	}
	r.n, r.from.addr = n, addr
	return 1, nil
}

func (r *receiver) msg(int) []byte { return r.buf[:r.n] }
func (r *receiver) peer(int) *peer { return &r.from }

// sender holds datagrams until flush.
type sender struct {
	msgs  [batchSize][]byte
	peers [batchSize]peer
	n     int
	err   error // of the last datagram that was refused
}

func newSender() *sender { return &sender{} }

func (s *sender) add(to *peer, msg []byte) {
	s.msgs[s.n] = msg
	s.peers[s.n] = peer{}
	if to != nil {
		s.peers[s.n] = *to
	}
	s.n++
}

// fault is what the last flush met. A socket costs little: few errors are told apart.
func (s *sender) fault() fault {
	switch {
	case s.err == nil, errors.Is(s.err, net.ErrClosed):
		return faultNone
	case errors.Is(s.err, syscall.ECONNREFUSED):
		return faultRefused
	}
	return faultBroken
}

func (s *sender) flush(c *udpConn) int {
	sent := 0
	s.err = nil
	for i := range s.n {
		var err error
		if s.peers[i].addr.IsValid() {
			_, err = c.conn.WriteToUDPAddrPort(s.msgs[i], s.peers[i].addr)
		} else {
			_, err = c.conn.Write(s.msgs[i])
		}
		if err != nil {
			s.err = err
			continue
		}
		sent++
	}
	s.n = 0
	return sent
}

// reader reads a socket; here it holds its buffer for as long as it waits.
type reader struct {
	conn  *udpConn
	spare *spareReceivers
}

func newReader(c *udpConn, spare *spareReceivers) *reader { return &reader{c, spare} }

// recv waits for a datagram. The caller gives the receiver back.
func (r *reader) recv() (*receiver, int, error) {
	in := r.spare.get()
	n, err := in.recv(r.conn)
	if err != nil {
		r.spare.put(in)
		return nil, 0, err
	}
	return in, n, nil
}

func reusePort(syscall.RawConn) error { return errors.ErrUnsupported }

// wantLocalAddr: without IP_PKTINFO a wildcard socket may answer from another address than was asked; the
// single addresses should be listened on instead.
func wantLocalAddr(syscall.RawConn, bool) error { return nil }

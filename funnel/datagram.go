package funnel

import (
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"sync"
)

// maxDatagram is what a UDP datagram holds at most (RFC 768: its length is in 16 bits).
const maxDatagram = 1<<16 - 1

// datagrams are datagrams on a stream: the length of each stands before it, in two bytes. A Read is one datagram, cut if
// it is longer than the buffer, and so is a Write.
type datagrams struct {
	net.Conn

	mu      sync.Mutex
	writing []byte
}

func (d *datagrams) Read(p []byte) (int, error) {
	var length [2]byte
	if _, err := io.ReadFull(d.Conn, length[:]); err != nil {
		return 0, err
	}
	n := int(binary.BigEndian.Uint16(length[:]))
	got, err := io.ReadFull(d.Conn, p[:min(n, len(p))])
	if err == nil && n > got {
		_, err = io.CopyN(io.Discard, d.Conn, int64(n-got))
	}
	return got, err
}

func (d *datagrams) Write(p []byte) (int, error) {
	if len(p) > maxDatagram {
		return 0, fmt.Errorf("a datagram of %d bytes", len(p))
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.writing = append(binary.BigEndian.AppendUint16(d.writing[:0], uint16(len(p))), p...)
	n, err := d.Conn.Write(d.writing)
	return max(n-2, 0), err
}

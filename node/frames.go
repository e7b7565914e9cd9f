package node

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"time"
)

// WireGuard's packets go over one TLS connection to the gateway's 443 where a network lets no UDP through. A frame is two
// bytes and a datagram: the highest bit says which of the gateway's two ports it is for or from, the others its length.
const (
	overTLSProtocol = "meshdns-carrier/1"
	maxDatagram     = 2048 // a tunnel's MTU of 1420 and what WireGuard adds are below it
	frameHead       = 2
	frameRelay      = 1 << 15
)

// The gateway's ports that frames are for.
const (
	portWireGuard = iota
	portRelay
	carriedPorts
)

// frameTime is how long a connection that takes nothing is put up with. What comes meanwhile is dropped by the UDP socket's
// own buffer, as on any line that is too slow.
const frameTime = 10 * time.Second

// isInitiation reports whether a datagram begins a handshake (the WireGuard paper, section 5.4.2).
func isInitiation(datagram []byte) bool { return len(datagram) == 148 && datagram[0] == 1 }

var errFrame = errors.New("a frame of a length that no datagram has")

// readFrame reads one datagram into b, which has room for the largest.
func readFrame(r io.Reader, b []byte) (port int, datagram []byte, err error) {
	var head [frameHead]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return 0, nil, err
	}
	value := binary.BigEndian.Uint16(head[:])
	length := int(value &^ frameRelay)
	if length == 0 || length > maxDatagram {
		return 0, nil, fmt.Errorf("%d bytes: %w", length, errFrame)
	}
	if _, err := io.ReadFull(r, b[:length]); err != nil {
		return 0, nil, noEOF(err)
	}
	if value&frameRelay != 0 {
		port = portRelay
	}
	return port, b[:length], nil
}

// noEOF makes of an end in the middle what it is.
func noEOF(err error) error {
	if errors.Is(err, io.EOF) {
		return io.ErrUnexpectedEOF
	}
	return err
}

// frameWriter writes frames, each whole.
type frameWriter struct {
	mu   sync.Mutex
	conn net.Conn
}

// write sends a datagram that stands in b behind frameHead free bytes.
func (w *frameWriter) write(port int, b []byte) error {
	length := len(b) - frameHead
	if length <= 0 || length > maxDatagram {
		return nil // no packet of WireGuard's
	}
	value := uint16(length)
	if port == portRelay {
		value |= frameRelay
	}
	binary.BigEndian.PutUint16(b, value)
	w.mu.Lock()
	defer w.mu.Unlock()
	if err := w.conn.SetWriteDeadline(time.Now().Add(frameTime)); err != nil {
		return err
	}
	_, err := w.conn.Write(b)
	return err
}

package tunnel

import (
	"errors"
	"net"
	"time"

	"golang.zx2c4.com/wireguard/conn"
)

// wireguard-go holds a buffer of 64 KiB for each datagram that a receiver may read at once, and conn's sockets want 128 of them,
// each. So the sockets are read into smaller room here, which stays, and one receiver hands on what came.

const (
	intakeBatch = 64              // datagrams that are handed on at once: as many as the kernel joins
	intakeSlot  = 10 << 10        // bytes of one: more than a link's with jumbo frames
	intakeAgain = time.Second / 3 // after an error
)

// room is where a socket's datagrams are read into.
type room struct {
	packets [][]byte
	sizes   []int
	eps     []conn.Endpoint
	next, n int           // of those that were read
	free    chan struct{} // has one while the socket may be read
}

// newRoom is room for as many datagrams as conn's sockets read at once. Those that the kernel joins are read into the last two, and
// taken apart from there.
func newRoom(batch int) *room {
	r := &room{packets: make([][]byte, batch), sizes: make([]int, batch), eps: make([]conn.Endpoint, batch), free: make(chan struct{}, 1)}
	for i := range r.packets {
		size := intakeSlot
		if i >= batch-2 {
			size = maxSegment
		}
		r.packets[i] = make([]byte, size)
	}
	r.free <- struct{}{}
	return r
}

// intake takes in datagrams for WireGuard.
type intake struct {
	socket    *socket
	full      chan *room
	delivered <-chan delivery
	closed    <-chan struct{}
	now       *room // that is being handed on
	given     tally
}

func newIntake(s *socket, delivered <-chan delivery, closed <-chan struct{}) *intake {
	return &intake{socket: s, full: make(chan *room), delivered: delivered, closed: closed}
}

// read reads one socket until it is closed.
func (in *intake) read(receive conn.ReceiveFunc, r *room) {
	for {
		select {
		case <-r.free:
		case <-in.closed:
			return
		}
		n, err := receive(r.packets, r.sizes, r.eps)
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			r.free <- struct{}{}
			t := time.NewTimer(intakeAgain)
			select {
			case <-t.C:
			case <-in.closed:
			}
			t.Stop()
			continue
		}
		r.next, r.n = 0, n
		select {
		case in.full <- r:
		case <-in.closed:
			return
		}
	}
}

// receive hands WireGuard what came.
func (in *intake) receive(packets [][]byte, sizes []int, eps []conn.Endpoint) (int, error) {
	in.socket.in.add(-in.given.left(packets))
	in.socket.in.wait()
	if in.now == nil {
		select {
		case <-in.closed:
			return 0, net.ErrClosed
		case d := <-in.delivered:
			return in.one(d, packets, sizes, eps), nil
		case in.now = <-in.full:
		}
	}
	r, n := in.now, 0
	for ; r.next < r.n && n < len(packets); r.next++ {
		size, ep := r.sizes[r.next], r.eps[r.next]
		if size == 0 {
			continue
		}
		d := r.packets[r.next][:size]
		if in.socket.incoming != nil && in.socket.incoming(addrPort(ep), d) {
			continue
		}
		in.give(packets[n], d)
		sizes[n], eps[n] = size, ep
		n++
	}
	if r.next == r.n {
		clear(r.eps)
		in.now = nil
		r.free <- struct{}{}
	}
	return n, nil
}

// one hands on what deliver was given.
func (in *intake) one(d delivery, packets [][]byte, sizes []int, eps []conn.Endpoint) int {
	ep, err := in.socket.ParseEndpoint(d.from.String())
	if err != nil {
		return 0
	}
	in.give(packets[0], d.data)
	sizes[0], eps[0] = len(d.data), ep
	return 1
}

// give copies a datagram into a buffer.
func (in *intake) give(to, datagram []byte) {
	copy(to, datagram)
	if len(datagram) > dataLength && datagram[0] == typeData {
		in.given.add(to)
		in.socket.in.add(1)
	} else {
		in.given.add(nil) // of a handshake, or a sign of life: it comes out nowhere
	}
}

package tunnel

import (
	"errors"
	"net"
	"net/netip"
	"reflect"
	"runtime"
	"sync"

	"golang.zx2c4.com/wireguard/conn"
)

const (
	maxDatagram  = 65507 // what UDP carries over IPv4
	deliverQueue = 256   // datagrams that wait to be read
)

var errDeliverFull = errors.New("too many datagrams wait to be read")

// socket is the UDP socket of a WireGuard that runs in this process. Beside WireGuard's own datagrams it carries those
// that the hooks of Config take, and takes in those that came by another way than UDP.
type socket struct {
	incoming func(from netip.AddrPort, datagram []byte) bool
	outgoing func(to netip.AddrPort, datagram []byte) bool
	spent    spent
	in, out  *gate
	// sending holds no more sends at once than there are processors: each takes a list of messages from conn's pool, and a list goes on
	// holding what was sent by it, in buffers of 64 KiB.
	sending chan struct{}
	reading sync.WaitGroup

	mu        sync.Mutex
	bind      conn.Bind     // the sockets themselves; another one each time that they are opened
	four, six conn.Bind     // send over one family each, by the same sockets; nil before
	delivered chan delivery // nil while closed
	closed    chan struct{}
	port      uint16
}

// delivery is a datagram that came by another way.
type delivery struct {
	from netip.AddrPort
	data []byte
}

func newSocket(c Config) *socket {
	return &socket{
		bind: conn.NewDefaultBind(), incoming: c.Incoming, outgoing: c.Outgoing,
		in: newGate(), out: newGate(), sending: make(chan struct{}, runtime.GOMAXPROCS(0)),
	}
}

// twinOf is a sender by the sockets of a bind that was opened and has sent nothing yet. wireguard-go keeps the addresses that it
// writes to, and cuts them to 4 bytes for IPv4; of one that is used for IPv6 next it writes 4 bytes and leaves 12 as they were, so
// the datagram goes astray (its pull request 135). Senders for one family each never share such an address, nor do they share the
// receivers' lists of messages.
func twinOf(opened conn.Bind) conn.Bind {
	b, ok := opened.(*conn.StdNetBind)
	if !ok {
		return opened // Windows has another kind
	}
	twin := new(conn.StdNetBind)
	reflect.ValueOf(twin).Elem().Set(reflect.ValueOf(b).Elem())
	return twin
}

// Open opens the sockets. What they get, and what deliver hands in, has one receiver.
func (s *socket) Open(port uint16) ([]conn.ReceiveFunc, uint16, error) {
	opened := conn.NewDefaultBind()
	inner, actual, err := opened.Open(port)
	if err != nil {
		return nil, 0, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.bind, s.four, s.six, s.port = opened, twinOf(opened), twinOf(opened), actual
	s.delivered, s.closed = make(chan delivery, deliverQueue), make(chan struct{})
	in := newIntake(s, s.delivered, s.closed)
	for _, receive := range inner {
		r := newRoom(opened.BatchSize())
		s.reading.Go(func() { in.read(receive, r) })
	}
	return []conn.ReceiveFunc{in.receive}, actual, nil
}

// Close closes the sockets and ends all receivers.
func (s *socket) Close() error {
	s.mu.Lock()
	if s.closed != nil {
		close(s.closed)
		s.delivered, s.closed = nil, nil
	}
	bind := s.bind
	s.mu.Unlock()
	err := bind.Close()
	s.reading.Wait()
	return err
}

// SetMark marks what the sockets send.
func (s *socket) SetMark(mark uint32) error { return s.now().SetMark(mark) }

// ParseEndpoint reads an address.
func (s *socket) ParseEndpoint(text string) (conn.Endpoint, error) {
	return s.now().ParseEndpoint(text)
}

// BatchSize is how many datagrams are read at once.
func (s *socket) BatchSize() int { return min(intakeBatch, s.now().BatchSize()) }

// now is the bind of this moment.
func (s *socket) now() conn.Bind {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.bind
}

func addrPort(ep conn.Endpoint) netip.AddrPort {
	if e, ok := ep.(*conn.StdNetEndpoint); ok {
		return unmapped(e.AddrPort)
	}
	// Windows has an endpoint type of its own, whose port only its text shows.
	parsed, err := netip.ParseAddrPort(ep.DstToString())
	if err != nil {
		return netip.AddrPort{}
	}
	return unmapped(parsed)
}

func unmapped(a netip.AddrPort) netip.AddrPort { return netip.AddrPortFrom(a.Addr().Unmap(), a.Port()) }

// deliver hands WireGuard a datagram as if it had come from that address.
func (s *socket) deliver(from netip.AddrPort, datagram []byte) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.delivered == nil {
		return net.ErrClosed
	}
	select {
	case s.delivered <- delivery{from: from, data: append([]byte(nil), datagram...)}:
		return nil
	default:
		return errDeliverFull
	}
}

// Send sends WireGuard's datagrams, past the hook for those that go another way.
func (s *socket) Send(datagrams [][]byte, ep conn.Endpoint) error {
	defer s.out.done(packets(datagrams))
	defer s.spent.replace(datagrams)
	if s.outgoing == nil {
		return s.send(datagrams, ep)
	}
	to := addrPort(ep)
	for i, d := range datagrams {
		// A destination's way does not change within a batch: the first one that is left, leaves all that follow.
		if !s.outgoing(to, d) {
			return s.send(datagrams[i:], ep)
		}
	}
	return nil
}

// packets is how many of WireGuard's datagrams carry something that a gate has counted.
func packets(datagrams [][]byte) (n int) {
	for _, d := range datagrams {
		if len(d) > dataLength && d[0] == typeData {
			n++
		}
	}
	return n
}

func (s *socket) send(datagrams [][]byte, ep conn.Endpoint) error {
	s.sending <- struct{}{}
	defer func() { <-s.sending }()
	return s.sender(ep).Send(datagrams, ep)
}

// spent stands for datagrams that were sent. wireguard-go holds what it sent to a peer last until it sends to that peer again,
// and counts its bytes; what it holds is a buffer of 64 KiB each.
type spent [maxSegment]byte

const maxSegment = 1<<16 - 1 // of wireguard-go's buffers

func (s *spent) replace(datagrams [][]byte) {
	for i, d := range datagrams {
		datagrams[i] = s[:len(d)]
	}
}

// sendTo sends a datagram that is not WireGuard's from the same socket.
func (s *socket) sendTo(to netip.AddrPort, datagram []byte) error {
	ep, err := s.ParseEndpoint(unmapped(to).String())
	if err != nil {
		return err
	}
	// The sockets may append to the buffer when they join several into one.
	return s.send([][]byte{append([]byte(nil), datagram...)}, ep)
}

// sender is what sends to a place.
func (s *socket) sender(to conn.Endpoint) conn.Bind {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.six != nil && to.DstIP().Is6() {
		return s.six
	}
	if s.four != nil {
		return s.four
	}
	return s.bind
}

// listening is the port that the sockets are on, 0 if none.
func (s *socket) listening() uint16 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.port
}

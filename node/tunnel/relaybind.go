package tunnel

import (
	"net"
	"net/netip"
	"os"
	"slices"
	"sync"

	"golang.zx2c4.com/wireguard/conn"
	"golang.zx2c4.com/wireguard/tun"
)

// relayQueue is how many datagrams wait for the relay's own endpoint. More are dropped: those of handshakes come again.
const relayQueue = 1024

// relayBind connects the relay's own endpoint to the sockets of the relay.
type relayBind struct {
	write func(to relayPlace, datagram []byte) error
	spent spent

	mu     sync.Mutex
	queue  chan relayDelivery
	closed chan struct{} // nil or closed: it is not open
	heard  map[netip.AddrPort]int
}

type relayDelivery struct {
	from relayPlace
	data []byte
}

func newRelayBind(write func(to relayPlace, datagram []byte) error) *relayBind {
	return &relayBind{write: write, queue: make(chan relayDelivery, relayQueue), heard: map[netip.AddrPort]int{}}
}

// maxHeard bounds the addresses that are remembered between two looks.
const maxHeard = 1 << 16

// deliver hands our endpoint a datagram, which is copied. It reports whether there was room.
func (b *relayBind) deliver(from relayPlace, datagram []byte) bool {
	b.mu.Lock()
	if len(b.heard) < maxHeard {
		b.heard[from.addr] = from.conn
	}
	b.mu.Unlock()
	select {
	case b.queue <- relayDelivery{from, slices.Clone(datagram)}:
		return true
	default:
		return false
	}
}

// place is an address, with the socket that it was heard at.
func (b *relayBind) place(a netip.AddrPort) relayPlace {
	b.mu.Lock()
	defer b.mu.Unlock()
	return relayPlace{a, b.heard[a]}
}

// keep forgets all addresses but these.
func (b *relayBind) keep(addrs []netip.AddrPort) {
	b.mu.Lock()
	defer b.mu.Unlock()
	kept := make(map[netip.AddrPort]int, len(addrs))
	for _, a := range addrs {
		kept[a] = b.heard[a]
	}
	b.heard = kept
}

// Open starts the bind. The port is the relay's and not ours to choose.
func (b *relayBind) Open(uint16) ([]conn.ReceiveFunc, uint16, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	closed := make(chan struct{})
	b.closed = closed
	receive := func(packets [][]byte, sizes []int, eps []conn.Endpoint) (int, error) {
		select {
		case d := <-b.queue:
			sizes[0], eps[0] = copy(packets[0], d.data), &relayEndpoint{d.from}
			return 1, nil
		case <-closed:
			return 0, net.ErrClosed
		}
	}
	return []conn.ReceiveFunc{receive}, 1, nil
}

// Close ends what Open started.
func (b *relayBind) Close() error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.closed != nil {
		close(b.closed)
		b.closed = nil
	}
	return nil
}

// SetMark does nothing: the sockets are not ours.
func (b *relayBind) SetMark(uint32) error { return nil }

// Send sends what our endpoint has for a node.
func (b *relayBind) Send(datagrams [][]byte, ep conn.Endpoint) error {
	defer b.spent.replace(datagrams)
	to, ok := ep.(*relayEndpoint)
	if !ok {
		return conn.ErrWrongEndpointType
	}
	for _, d := range datagrams {
		if err := b.write(to.relayPlace, d); err != nil {
			return err
		}
	}
	return nil
}

// ParseEndpoint is asked for peers that are given one, which ours are not.
func (b *relayBind) ParseEndpoint(s string) (conn.Endpoint, error) {
	a, err := netip.ParseAddrPort(s)
	if err != nil {
		return nil, err
	}
	return &relayEndpoint{b.place(a)}, nil
}

// BatchSize is one: our endpoint gets only handshakes and signs of life.
func (b *relayBind) BatchSize() int { return 1 }

// relayEndpoint is a node's place in the form of wireguard-go.
type relayEndpoint struct{ relayPlace }

func (*relayEndpoint) ClearSrc()             {}
func (*relayEndpoint) SrcToString() string   { return "" }
func (e *relayEndpoint) DstToString() string { return e.addr.String() }
func (*relayEndpoint) SrcIP() netip.Addr     { return netip.Addr{} }
func (e *relayEndpoint) DstIP() netip.Addr   { return e.addr.Addr() }
func (e *relayEndpoint) DstToBytes() []byte { // for the cookie, which binds to the address
	b, err := e.addr.MarshalBinary()
	if err != nil {
		return nil // of an address without a zone there is none
	}
	return b
}

// nowhere is a network device that gives and takes nothing: the relay's endpoint carries no packets.
type nowhere struct {
	events chan tun.Event
	closed chan struct{}
	once   sync.Once
}

func newNowhere() *nowhere {
	return &nowhere{events: make(chan tun.Event), closed: make(chan struct{})}
}

func (n *nowhere) Read([][]byte, []int, int) (int, error) {
	<-n.closed
	return 0, os.ErrClosed
}

func (n *nowhere) Write(bufs [][]byte, _ int) (int, error) { return len(bufs), nil }
func (n *nowhere) File() *os.File                          { return nil }
func (n *nowhere) MTU() (int, error)                       { return minMTU, nil }
func (n *nowhere) Name() (string, error)                   { return "relay", nil }
func (n *nowhere) Events() <-chan tun.Event                { return n.events }
func (n *nowhere) BatchSize() int                          { return 1 }

func (n *nowhere) Close() error {
	n.once.Do(func() {
		close(n.closed)
		close(n.events)
	})
	return nil
}

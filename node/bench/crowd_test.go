//go:build bench

package bench

import (
	"context"
	"encoding/hex"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strings"
	"sync"

	"golang.zx2c4.com/wireguard/conn"
	"golang.zx2c4.com/wireguard/device"
	"golang.zx2c4.com/wireguard/tun"
	"gvisor.dev/gvisor/pkg/buffer"
	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/adapters/gonet"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/link/channel"
	"gvisor.dev/gvisor/pkg/tcpip/network/ipv4"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
	"gvisor.dev/gvisor/pkg/tcpip/transport/tcp"

	"github.com/meshdns/meshdns/node/control"
)

// crowd is the network of many nodes in one process: each has a WireGuard and a UDP socket of its own, and they share one
// TCP/IP stack, which has all their addresses.
type crowd struct {
	stack  *stack.Stack
	link   *channel.Endpoint
	cancel context.CancelFunc

	mu     sync.RWMutex
	byAddr map[netip.Addr]*light
}

const nic = 1

func newCrowd() (*crowd, error) {
	c := &crowd{
		stack: stack.New(stack.Options{
			NetworkProtocols:   []stack.NetworkProtocolFactory{ipv4.NewProtocol},
			TransportProtocols: []stack.TransportProtocolFactory{tcp.NewProtocol},
		}),
		link:   channel.New(1<<16, 1420, ""),
		byAddr: map[netip.Addr]*light{},
	}
	if err := c.stack.CreateNIC(nic, c.link); err != nil {
		return nil, fmt.Errorf("making the crowd's network: %s", err)
	}
	c.stack.AddRoute(tcpip.Route{Destination: header.IPv4EmptySubnet, NIC: nic})
	ctx, cancel := context.WithCancel(context.Background())
	c.cancel = cancel
	go c.distribute(ctx)
	return c, nil
}

// distribute gives each node's WireGuard the packets that come from the node's address.
func (c *crowd) distribute(ctx context.Context) {
	for packet := c.link.ReadContext(ctx); packet != nil; packet = c.link.ReadContext(ctx) {
		view := packet.ToView()
		packet.DecRef()
		data := append([]byte(nil), view.AsSlice()...)
		view.Release()
		source, _ := netip.AddrFromSlice(data[12:16])
		c.mu.RLock()
		l := c.byAddr[source]
		c.mu.RUnlock()
		if l != nil {
			select {
			case l.out <- data:
			default: // a link that is full drops
			}
		}
	}
}

// move gives a node an address, instead of the one that it had.
func (c *crowd) move(l *light, to netip.Addr) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if l.addr.IsValid() {
		c.stack.RemoveAddress(nic, tcpip.AddrFromSlice(l.addr.AsSlice()))
		delete(c.byAddr, l.addr)
	}
	address := tcpip.ProtocolAddress{Protocol: ipv4.ProtocolNumber, AddressWithPrefix: tcpip.AddrFromSlice(to.AsSlice()).WithPrefix()}
	if err := c.stack.AddProtocolAddress(nic, address, stack.AddressProperties{}); err != nil {
		return fmt.Errorf("giving a node the address %s: %s", to, err)
	}
	l.addr = to
	c.byAddr[to] = l
	return nil
}

// leave ends a node that could not join.
func (c *crowd) leave(l *light) {
	l.dev.Close()
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.byAddr[l.addr] == l {
		c.stack.RemoveAddress(nic, tcpip.AddrFromSlice(l.addr.AsSlice()))
		delete(c.byAddr, l.addr)
	}
}

// light is one node's WireGuard, and the network device that it reads and writes.
type light struct {
	crowd  *crowd
	dev    *device.Device
	addr   netip.Addr
	out    chan []byte
	events chan tun.Event
	closed chan struct{}
	once   sync.Once
}

// newLight starts a WireGuard without peers, with an invite's key at first.
func (c *crowd) newLight(i control.Invite) (*light, error) {
	l := &light{crowd: c, out: make(chan []byte, 64), events: make(chan tun.Event), closed: make(chan struct{})}
	l.dev = device.NewDevice(l, &oneSocket{}, device.NewLogger(device.LogLevelSilent, ""))
	err := l.be(i.Key, i.Address, peer{key: i.Gateway, at: i.Endpoints[0], allowed: i.Server})
	if err == nil {
		err = l.dev.Up()
	}
	return l, err
}

// peer is another side of a WireGuard.
type peer struct {
	key     control.WireGuardKey
	at      netip.AddrPort
	allowed netip.Addr // invalid: none
	keep    bool       // it is sent something from time to time, as nodes do with their gateway
}

// be makes the WireGuard that of a key, with these peers alone.
func (l *light) be(key [32]byte, addr netip.Addr, peers ...peer) error {
	if err := l.crowd.move(l, addr); err != nil {
		return err
	}
	var b strings.Builder
	fmt.Fprintf(&b, "private_key=%s\nreplace_peers=true\n", hex.EncodeToString(key[:]))
	for _, p := range peers {
		fmt.Fprintf(&b, "public_key=%s\nendpoint=%s\n", hex.EncodeToString(p.key[:]), p.at)
		if p.allowed.IsValid() {
			fmt.Fprintf(&b, "allowed_ip=%s/32\n", p.allowed)
		}
		if p.keep {
			b.WriteString("persistent_keepalive_interval=25\n")
		}
	}
	return l.dev.IpcSet(b.String())
}

// client speaks to the gateway for the node.
func (l *light) client(server netip.Addr, gateway control.ControlKey, key control.PrivateKey) *control.Client {
	return &control.Client{
		Dial: func(ctx context.Context, _, address string) (net.Conn, error) {
			to, err := netip.ParseAddrPort(address)
			if err != nil {
				return nil, err
			}
			from := tcpip.FullAddress{NIC: nic, Addr: tcpip.AddrFromSlice(l.addr.AsSlice())}
			remote := tcpip.FullAddress{NIC: nic, Addr: tcpip.AddrFromSlice(to.Addr().AsSlice()), Port: to.Port()}
			return gonet.DialTCPWithBind(ctx, l.crowd.stack, from, remote, ipv4.ProtocolNumber)
		},
		Server: netip.AddrPortFrom(server, control.Port), Gateway: gateway, Key: key,
	}
}

func (l *light) Read(bufs [][]byte, sizes []int, offset int) (int, error) {
	select {
	case data := <-l.out:
		sizes[0] = copy(bufs[0][offset:], data)
		return 1, nil
	case <-l.closed:
		return 0, os.ErrClosed
	}
}

func (l *light) Write(bufs [][]byte, offset int) (int, error) {
	for _, b := range bufs {
		p := stack.NewPacketBuffer(stack.PacketBufferOptions{Payload: buffer.MakeWithData(b[offset:])})
		l.crowd.link.InjectInbound(ipv4.ProtocolNumber, p)
		p.DecRef()
	}
	return len(bufs), nil
}

func (l *light) File() *os.File           { return nil }
func (l *light) MTU() (int, error)        { return 1420, nil }
func (l *light) Name() (string, error)    { return "light", nil }
func (l *light) Events() <-chan tun.Event { return l.events }
func (l *light) BatchSize() int           { return 1 }

func (l *light) Close() error {
	l.once.Do(func() {
		close(l.closed)
		close(l.events)
	})
	return nil
}

// oneSocket is a WireGuard's UDP socket that takes one datagram a call: the usual one holds 16 MiB of buffers.
type oneSocket struct {
	mu   sync.Mutex
	conn *net.UDPConn
}

func (s *oneSocket) Open(uint16) ([]conn.ReceiveFunc, uint16, error) {
	c, err := net.ListenUDP("udp4", nil)
	if err != nil {
		return nil, 0, err
	}
	s.mu.Lock()
	s.conn = c
	s.mu.Unlock()
	receive := func(packets [][]byte, sizes []int, eps []conn.Endpoint) (int, error) {
		n, from, err := c.ReadFromUDPAddrPort(packets[0])
		if err != nil {
			return 0, err
		}
		sizes[0], eps[0] = n, &conn.StdNetEndpoint{AddrPort: from}
		return 1, nil
	}
	return []conn.ReceiveFunc{receive}, uint16(c.LocalAddr().(*net.UDPAddr).Port), nil
}

func (s *oneSocket) Close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.conn == nil {
		return nil
	}
	c := s.conn
	s.conn = nil
	return c.Close()
}

func (s *oneSocket) Send(bufs [][]byte, ep conn.Endpoint) error {
	s.mu.Lock()
	c := s.conn
	s.mu.Unlock()
	if c == nil {
		return net.ErrClosed
	}
	for _, b := range bufs {
		if _, err := c.WriteToUDPAddrPort(b, ep.(*conn.StdNetEndpoint).AddrPort); err != nil {
			return err
		}
	}
	return nil
}

func (s *oneSocket) SetMark(uint32) error { return nil }
func (s *oneSocket) BatchSize() int       { return 1 }

func (s *oneSocket) ParseEndpoint(text string) (conn.Endpoint, error) {
	at, err := netip.ParseAddrPort(text)
	return &conn.StdNetEndpoint{AddrPort: at}, err
}

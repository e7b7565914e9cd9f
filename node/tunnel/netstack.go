package tunnel

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"sync"

	"golang.zx2c4.com/wireguard/tun"
	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/adapters/gonet"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/link/channel"
	"gvisor.dev/gvisor/pkg/tcpip/network/ipv4"
	"gvisor.dev/gvisor/pkg/tcpip/network/ipv6"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
	"gvisor.dev/gvisor/pkg/tcpip/transport/icmp"
	"gvisor.dev/gvisor/pkg/tcpip/transport/tcp"
	"gvisor.dev/gvisor/pkg/tcpip/transport/udp"
)

const (
	nic          = 1
	stackQueue   = 4096    // packets that wait for WireGuard: a gateway speaks to a thousand nodes at once
	stackBuffer  = 4 << 20 // bytes that one TCP connection may grow to, each way
	stackDefault = 256 << 10
)

// netstack is a network inside this process: the tun device that WireGuard reads and writes, and the sockets on it.
type netstack struct {
	stack     *stack.Stack
	link      *channel.Endpoint
	addresses []netip.Addr
	mtu       int
	events    chan tun.Event
	loopback  *loopback // nil: none
	lanes     []chan []arrival
	taking    sync.WaitGroup

	ctx    context.Context // ends Read
	cancel context.CancelFunc
	once   sync.Once
}

func newNetstack(addresses []netip.Addr, mtu int) (*netstack, error) {
	n := &netstack{
		stack: stack.New(stack.Options{
			NetworkProtocols:   []stack.NetworkProtocolFactory{ipv4.NewProtocol, ipv6.NewProtocol},
			TransportProtocols: []stack.TransportProtocolFactory{tcp.NewProtocol, udp.NewProtocol, icmp.NewProtocol4, icmp.NewProtocol6},
			HandleLocal:        true,
		}),
		link:      channel.New(stackQueue, uint32(mtu), ""),
		addresses: addresses,
		mtu:       mtu,
		events:    make(chan tun.Event),
	}
	n.ctx, n.cancel = context.WithCancel(context.Background())
	n.openLanes()
	if err := n.setup(); err != nil {
		_ = n.Close()
		return nil, fmt.Errorf("making the network of this process: %w", err)
	}
	return n, nil
}

func (n *netstack) setup() error {
	sack, cubic := tcpip.TCPSACKEnabled(true), tcpip.CongestionControlOption("cubic")
	send := tcpip.TCPSendBufferSizeRangeOption{Min: tcp.MinBufferSize, Default: stackDefault, Max: stackBuffer}
	receive := tcpip.TCPReceiveBufferSizeRangeOption{Min: tcp.MinBufferSize, Default: stackDefault, Max: stackBuffer}
	for _, option := range []tcpip.SettableTransportProtocolOption{&sack, &cubic, &send, &receive} {
		if err := n.stack.SetTransportProtocolOption(tcp.ProtocolNumber, option); err != nil {
			return stackError(err)
		}
	}
	if err := n.stack.CreateNIC(nic, n.link); err != nil {
		return stackError(err)
	}
	for _, a := range n.addresses {
		address := tcpip.ProtocolAddress{Protocol: family(a), AddressWithPrefix: stackAddr(a).WithPrefix()}
		if err := n.stack.AddProtocolAddress(nic, address, stack.AddressProperties{}); err != nil {
			return stackError(err)
		}
		if a.Is4() {
			n.stack.AddRoute(tcpip.Route{Destination: header.IPv4EmptySubnet, NIC: nic})
		} else {
			n.stack.AddRoute(tcpip.Route{Destination: header.IPv6EmptySubnet, NIC: nic})
		}
	}
	return nil
}

// stackError makes an error of what the stack returns, which is not one.
func stackError(err tcpip.Error) error { return errors.New(err.String()) }

func family(a netip.Addr) tcpip.NetworkProtocolNumber {
	if a.Is4() {
		return ipv4.ProtocolNumber
	}
	return ipv6.ProtocolNumber
}

func stackAddr(a netip.Addr) tcpip.Address { return tcpip.AddrFromSlice(a.AsSlice()) }

func fullAddress(a netip.AddrPort) tcpip.FullAddress {
	return tcpip.FullAddress{NIC: nic, Addr: stackAddr(a.Addr()), Port: a.Port()}
}

// dial opens a connection from the node's address of that family.
func (n *netstack) dial(ctx context.Context, network string, local netip.Addr, to netip.AddrPort) (net.Conn, error) {
	from, remote := fullAddress(netip.AddrPortFrom(local, 0)), fullAddress(to)
	if transport(network) == "tcp" {
		c, err := gonet.DialTCPWithBind(ctx, n.stack, from, remote, family(local))
		if err != nil {
			return nil, err
		}
		return &stackConn{TCPConn: c}, nil
	}
	c, err := gonet.DialUDP(n.stack, &from, &remote, family(local))
	if err != nil {
		return nil, err
	}
	return c, nil
}

func (n *netstack) listen(_ context.Context, _ string, on netip.AddrPort) (net.Listener, error) {
	return n.listenStack(on)
}

func (n *netstack) listenPacket(_ context.Context, _ string, on netip.AddrPort) (net.PacketConn, error) {
	at := fullAddress(on)
	c, err := gonet.DialUDP(n.stack, &at, nil, family(on.Addr()))
	if err != nil {
		return nil, err
	}
	return c, nil
}

// Read gives WireGuard the packets that the stack sends: it waits for one and takes along what else is there.
func (n *netstack) Read(bufs [][]byte, sizes []int, offset int) (int, error) {
	packet := n.link.ReadContext(n.ctx)
	if packet == nil {
		return 0, os.ErrClosed
	}
	count := 0
	for packet != nil {
		view := packet.ToView()
		packet.DecRef()
		sizes[count] = copy(bufs[count][offset:], view.AsSlice())
		view.Release()
		if count++; count == len(bufs) {
			break
		}
		packet = n.link.Read()
	}
	return count, nil
}

// Close ends Read and every connection.
func (n *netstack) Close() error {
	n.once.Do(func() {
		n.cancel()
		n.taking.Wait()
		if n.loopback != nil {
			n.loopback.close()
		}
		n.stack.Close()
		n.link.Close()
		n.stack.Wait()
		if n.loopback != nil {
			n.loopback.ended.Wait()
		}
		close(n.events)
	})
	return nil
}

func (n *netstack) File() *os.File           { return nil }
func (n *netstack) MTU() (int, error)        { return n.mtu, nil }
func (n *netstack) Name() (string, error)    { return "netstack", nil }
func (n *netstack) Events() <-chan tun.Event { return n.events }
func (n *netstack) BatchSize() int           { return 1 } // at least; Read fills what it is given

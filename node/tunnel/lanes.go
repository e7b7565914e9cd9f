package tunnel

import (
	"os"
	"runtime"
	"syscall"

	"gvisor.dev/gvisor/pkg/buffer"
	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
)

// laneQueue is how many writes wait for the stack, on each lane.
const laneQueue = 16

// arrival is a packet that came through the tunnel.
type arrival struct {
	protocol tcpip.NetworkProtocolNumber
	packet   *stack.PacketBuffer
}

// openLanes starts what gives the stack packets.
func (n *netstack) openLanes() {
	for range runtime.GOMAXPROCS(0) {
		lane := make(chan []arrival, laneQueue)
		n.lanes = append(n.lanes, lane)
		n.taking.Go(func() { n.take(lane) })
	}
}

// Write gives the stack packets that came through the tunnel. It leaves the stack's work to one goroutine a processor: that needs
// a stack of 8 KiB and more, and wireguard-go has a goroutine for each peer. Packets of one sender keep their order.
func (n *netstack) Write(bufs [][]byte, offset int) (int, error) {
	if n.ctx.Err() != nil {
		return 0, os.ErrClosed
	}
	var list []arrival
	lane := 0
	for i, buf := range bufs {
		packet := buf[offset:]
		if len(packet) == 0 {
			continue
		}
		a := arrival{protocol: header.IPv4ProtocolNumber}
		last := header.IPv4MinimumSize - header.IPv4AddressSize - 1 // of the source address
		switch packet[0] >> 4 {
		case 4:
		case 6:
			a.protocol, last = header.IPv6ProtocolNumber, header.IPv6MinimumSize-header.IPv6AddressSize-1
		default:
			return i, syscall.EAFNOSUPPORT
		}
		if len(packet) <= last {
			continue
		}
		a.packet = stack.NewPacketBuffer(stack.PacketBufferOptions{Payload: buffer.MakeWithData(packet)})
		if to := int(packet[last]) % len(n.lanes); to != lane {
			n.hand(lane, list)
			lane, list = to, nil
		}
		list = append(list, a)
	}
	n.hand(lane, list)
	return len(bufs), nil
}

// hand has the goroutine of a lane take packets.
func (n *netstack) hand(lane int, list []arrival) {
	if len(list) == 0 {
		return
	}
	select {
	case n.lanes[lane] <- list:
	case <-n.ctx.Done():
		for _, a := range list {
			a.packet.DecRef()
		}
	}
}

// take gives the stack the packets of a lane.
func (n *netstack) take(lane <-chan []arrival) {
	for {
		select {
		case list := <-lane:
			for _, a := range list {
				n.link.InjectInbound(a.protocol, a.packet)
				a.packet.DecRef()
			}
		case <-n.ctx.Done():
			return
		}
	}
}

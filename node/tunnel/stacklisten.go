package tunnel

import (
	"net"
	"net/netip"

	"gvisor.dev/gvisor/pkg/tcpip/adapters/gonet"
	"gvisor.dev/gvisor/pkg/tcpip/transport/tcp"
	"gvisor.dev/gvisor/pkg/waiter"
)

// stackBacklog is how many connections wait that nobody has accepted, as in Linux.
const stackBacklog = 4096

// listenStack listens in the network of this process. Other than gonet.ListenTCP it takes a port again whose old connections have
// not been forgotten yet (RFC 9293, section 3.6.1), as servers do.
func (n *netstack) listenStack(on netip.AddrPort) (net.Listener, error) {
	var queue waiter.Queue
	ep, err := n.stack.NewEndpoint(tcp.ProtocolNumber, family(on.Addr()), &queue)
	if err != nil {
		return nil, &net.OpError{Op: "listen", Net: "tcp", Addr: net.TCPAddrFromAddrPort(on), Err: stackError(err)}
	}
	ep.SocketOptions().SetReuseAddress(true)
	if err = ep.Bind(fullAddress(on)); err == nil {
		err = ep.Listen(stackBacklog)
	}
	if err != nil {
		ep.Close()
		return nil, &net.OpError{Op: "listen", Net: "tcp", Addr: net.TCPAddrFromAddrPort(on), Err: stackError(err)}
	}
	return stackListener{gonet.NewTCPListener(n.stack, &queue, ep)}, nil
}

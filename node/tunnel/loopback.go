package tunnel

import (
	"context"
	"io"
	"net"
	"net/netip"
	"sync"
	"time"

	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/adapters/gonet"
	"gvisor.dev/gvisor/pkg/tcpip/transport/tcp"
	"gvisor.dev/gvisor/pkg/waiter"
)

const (
	maxLoopback      = 1024 // connections at once
	maxLoopbackOpens = 128  // that 127.0.0.1 has not taken yet
	loopbackTime     = 5 * time.Second
	loopbackIdle     = tcpip.KeepaliveIdleOption(2 * time.Minute)
)

// loopback passes connections to a node's address on to 127.0.0.1: a program of the user's listens there, where the node's
// address is not one of the machine's. The filter has let them in by then.
type loopback struct {
	allow func(port uint16) bool
	slots chan struct{}

	ctx    context.Context
	cancel context.CancelFunc

	mu     sync.Mutex
	closed bool
	ended  sync.WaitGroup
}

// openLoopback has the stack ask l about every TCP connection that no socket of this process takes.
func openLoopback(n *netstack, allow func(port uint16) bool) *loopback {
	l := &loopback{allow: allow, slots: make(chan struct{}, maxLoopback)}
	l.ctx, l.cancel = context.WithCancel(context.Background())
	forwarder := tcp.NewForwarder(n.stack, 0, maxLoopbackOpens, l.take)
	n.stack.SetTransportProtocolHandler(tcp.ProtocolNumber, forwarder.HandlePacket)
	return l
}

// take serves one connection; the stack calls it in a goroutine of its own.
func (l *loopback) take(r *tcp.ForwarderRequest) {
	if !l.enter() {
		r.Complete(true)
		return
	}
	defer l.ended.Done()
	defer func() { <-l.slots }()
	id := r.ID()
	if !l.allow(id.LocalPort) {
		r.Complete(true)
		return
	}
	// First there, then here: whom nobody listens for is refused, as by the machine itself.
	dialer := net.Dialer{Timeout: loopbackTime}
	there, err := dialer.DialContext(l.ctx, "tcp", netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 0, 1}), id.LocalPort).String())
	if err != nil {
		r.Complete(true)
		return
	}
	defer there.Close()
	var queue waiter.Queue
	endpoint, failed := r.CreateEndpoint(&queue)
	if failed != nil {
		r.Complete(true)
		return
	}
	r.Complete(false)
	keepAlive(endpoint)
	here := &stackConn{TCPConn: gonet.NewTCPConn(&queue, endpoint)}
	defer here.Close()
	stop := context.AfterFunc(l.ctx, func() {
		here.Close()
		there.Close()
	})
	defer stop()
	passBoth(here, there)
}

// keepAlive has a connection end whose other side is gone. An option that is not taken costs only that.
func keepAlive(e tcpip.Endpoint) {
	idle := loopbackIdle
	e.SocketOptions().SetKeepAlive(true)
	_ = e.SetSockOpt(&idle)
}

// enter takes a place, if there is one.
func (l *loopback) enter() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		return false
	}
	select {
	case l.slots <- struct{}{}:
		l.ended.Add(1)
		return true
	default:
		return false
	}
}

// close ends all connections.
func (l *loopback) close() {
	l.mu.Lock()
	l.closed = true
	l.mu.Unlock()
	l.cancel()
}

// halfCloser is a connection whose ways end apart.
type halfCloser interface {
	net.Conn
	CloseWrite() error
}

// passBoth copies both ways until both have ended.
func passBoth(a, b net.Conn) {
	var both sync.WaitGroup
	both.Go(func() { passOne(a, b) })
	both.Go(func() { passOne(b, a) })
	both.Wait()
}

// passOne copies until src ends, and tells dst of that end.
func passOne(dst, src net.Conn) {
	_, err := io.Copy(dst, src)
	half, ok := dst.(halfCloser)
	if err != nil || !ok || half.CloseWrite() != nil {
		dst.Close() // and with it the other way
		src.Close()
	}
}

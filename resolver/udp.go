package resolver

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"sync/atomic"
	"syscall"
	"time"
)

// batchSize is the most datagrams that pass in one system call. Beyond about 32 nothing is gained, and the
// first of a batch waits for the last.
const batchSize = 32

// maxLoopback is the longest reply over loopback, in octets: nothing can fragment it there. No query is as long.
const maxLoopback = 4096

// receiveBuffer is what is asked of the kernel for queries that wait, in octets.
const receiveBuffer = 1 << 20

// maxErrors is how many times in a row a socket may fail before it is given up.
const maxErrors = 100

// fault is what ails a connected socket that did not take a datagram.
type fault uint8

const (
	faultNone    fault = iota // nothing that would come again
	faultRefused              // an ICMP message says that nobody listens
	faultBroken               // it will not send, as when its own address is gone
)

// udpConn is a UDP socket with its raw descriptor at hand.
type udpConn struct {
	conn *net.UDPConn
	raw  syscall.RawConn
}

func newUDPConn(conn *net.UDPConn) (*udpConn, error) {
	raw, err := conn.SyscallConn()
	if err != nil {
		return nil, fmt.Errorf("reaching the socket's descriptor: %w", err)
	}
	return &udpConn{conn: conn, raw: raw}, nil
}

// ListenUDP binds n UDP sockets to addr, so that each core can have its reader. The first is bound alone: an
// address in use is an error even if its holder shares its port. Systems without SO_REUSEPORT balancing get one
// socket. A port of 0 is chosen by the kernel, the same for all.
func ListenUDP(ctx context.Context, addr netip.AddrPort, n int) ([]*net.UDPConn, error) {
	first, err := listenOne(ctx, addr, nil)
	if err != nil {
		return nil, err
	}
	conns := []*net.UDPConn{first}
	if n < 2 || listenReuse(first) != nil {
		return conns, nil
	}
	addr = first.LocalAddr().(*net.UDPAddr).AddrPort()
	for len(conns) < n {
		c, err := listenOne(ctx, addr, func(raw syscall.RawConn) error { return reusePort(raw) })
		if err != nil {
			for _, c := range conns {
				_ = c.Close()
			}
			return nil, err
		}
		conns = append(conns, c)
	}
	return conns, nil
}

func listenReuse(c *net.UDPConn) error {
	raw, err := c.SyscallConn()
	if err != nil {
		return err
	}
	return reusePort(raw)
}

func listenOne(ctx context.Context, addr netip.AddrPort, before func(syscall.RawConn) error) (*net.UDPConn, error) {
	network := "udp4"
	if addr.Addr().Is6() && !addr.Addr().Is4In6() {
		network = "udp6"
	}
	lc := net.ListenConfig{Control: func(_, _ string, raw syscall.RawConn) error {
		if addr.Addr().IsUnspecified() {
			if err := wantLocalAddr(raw, network == "udp6"); err != nil {
				return err
			}
		}
		if before != nil {
			return before(raw)
		}
		return nil
	}}
	pc, err := lc.ListenPacket(ctx, network, addr.String())
	if err != nil {
		return nil, fmt.Errorf("listening on %s/udp: %w", addr, err)
	}
	c := pc.(*net.UDPConn)
	_ = c.SetReadBuffer(receiveBuffer) // a wish; the kernel's ceiling stands
	return c, nil
}

// udpServer is one socket that clients ask.
type udpServer struct {
	*udpConn
	longest int // the longest reply that it sends
}

// ServeTCP answers the queries that arrive on connections to ln until ctx ends, and then returns nil. ln and all
// connections are closed.
func (r *Resolver) ServeTCP(ctx context.Context, ln net.Listener) error { return r.tcp.serve(ctx, ln) }

// ServeUDP answers the queries that arrive at conn until ctx ends, and then returns nil. conn is closed. Several
// sockets of ListenUDP are served by one call each.
func (r *Resolver) ServeUDP(ctx context.Context, conn *net.UDPConn) error {
	return r.serveUDP(ctx, conn, &r.table)
}

// serveUDP is ServeUDP with the names of a table.
func (r *Resolver) serveUDP(ctx context.Context, conn *net.UDPConn, table *atomic.Pointer[Table]) error {
	defer conn.Close()
	c, err := newUDPConn(conn)
	if err != nil {
		return err
	}
	srv := &udpServer{udpConn: c, longest: advertisedSize}
	if local, ok := conn.LocalAddr().(*net.UDPAddr); ok && local.IP.IsLoopback() {
		srv.longest = maxLoopback
	}
	w := r.newWorker(srv)
	w.table = table
	defer r.retire(w)
	return srv.receive(ctx, w.in, w.handle)
}

// receive hands the datagrams that arrive to handle until ctx ends, and then returns nil.
func (c *udpConn) receive(ctx context.Context, in *receiver, handle func(n int)) error {
	stop := context.AfterFunc(ctx, func() { _ = c.conn.SetReadDeadline(time.Unix(1, 0)) })
	defer stop()
	for failed := 0; ; {
		n, err := in.recv(c)
		switch {
		case ctx.Err() != nil:
			return nil
		case err == nil:
			failed = 0
			handle(n)
		case failed == maxErrors, errors.Is(err, net.ErrClosed), errors.Is(err, os.ErrDeadlineExceeded):
			return fmt.Errorf("receiving queries: %w", err)
		default:
			failed++ // usually of one datagram, reported late
		}
	}
}

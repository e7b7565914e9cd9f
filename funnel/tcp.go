package funnel

import (
	"context"
	"errors"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
)

// stream passes a visitor's bytes to a target and back. conn is what is left of the link once TLS has ended; both are
// closed in the end.
func (s *Server) stream(ctx context.Context, l *link, conn net.Conn, c class) {
	defer conn.Close()
	one := s.table.Load().find(c)
	if one == nil || one.entry.Kind != l.kind {
		return
	}
	if err := one.guard.admits(l.caller); err != nil {
		s.log.Debug("a visitor is not let in", "from", l.caller.Addr, "err", err)
		return
	}
	start := time.Now()
	var passed atomic.Int64
	defer func() { s.visits.connection(one.label(), l.caller, start, passed.Load()) }()
	to, err := s.dial(ctx, one.entry, one.target)
	if err != nil {
		s.log.Debug("a target does not answer", "target", one.target.String(), "err", err)
		reset(l)
		return
	}
	defer to.Close()
	if l.kind != kindUDP && one.entry.ProxyProtocol != 0 {
		if err := announce(to, l.caller.Addr, one.entry); err != nil {
			return
		}
	}
	stop := context.AfterFunc(ctx, func() {
		conn.Close()
		to.Close()
	})
	defer stop()
	l.passRaw()
	if l.kind == kindUDP {
		s.datagrams(l, conn, to, &passed)
		return
	}
	s.bytes(l, conn, to, &passed)
}

// reset ends a connection such that the other end does not take it for one that has come to its end.
func reset(l *link) {
	if tcp, ok := l.bare().(*net.TCPConn); ok {
		_ = tcp.SetLinger(0) // it is closed in any case
	}
}

// bytes copies both ways until both ends have ended, or one breaks.
func (s *Server) bytes(l *link, conn, to net.Conn, count *atomic.Int64) {
	passed := func(n int) error {
		l.used.Store(time.Now().Unix())
		return nil
	}
	back := func(n int) error {
		count.Add(int64(n))
		return passed(n)
	}
	near := conn
	if conn == net.Conn(l) {
		near = l.bare() // so that the kernel moves the bytes of two TCP connections
	}
	run := func(f flow) {
		if err := f.run(); err != nil {
			conn.Close()
			to.Close()
			return
		}
		_ = closeWrite(f.dst) // where this fails, the other way does too
	}
	var other sync.WaitGroup
	other.Go(func() { run(flow{dst: to, src: near, chunks: s.chunks, passed: passed}) })
	run(flow{dst: near, src: to, chunks: s.chunks, passed: back})
	other.Wait()
}

// datagrams copies datagrams both ways until none has come for a while.
func (s *Server) datagrams(l *link, conn, to net.Conn, count *atomic.Int64) {
	var other sync.WaitGroup
	other.Go(func() {
		defer to.Close()
		buf := make([]byte, maxDatagram)
		for {
			n, err := conn.Read(buf)
			if err != nil {
				return
			}
			_, _ = to.Write(buf[:n]) // where nobody listens now, somebody may for the next one
		}
	})
	defer other.Wait()
	defer conn.Close()
	buf := make([]byte, maxDatagram)
	for to.SetReadDeadline(time.Now().Add(datagramTime)) == nil {
		n, err := to.Read(buf)
		switch {
		case errors.Is(err, os.ErrDeadlineExceeded):
			if l.quiet(time.Now()) >= datagramTime {
				return
			}
		case errors.Is(err, syscall.ECONNREFUSED):
			// As ICMP says; the target may be there again for the next one.
		case err != nil:
			return
		default:
			if _, err := conn.Write(buf[:n]); err != nil {
				return
			}
			count.Add(int64(n))
		}
	}
}

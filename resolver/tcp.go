package resolver

import (
	"bufio"
	"bytes"
	"cmp"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"github.com/miekg/dns"
)

// TCPLimits bounds what clients may hold of a resolver over TCP. A zero field means its default.
type TCPLimits struct {
	Conns     int           // connections, 256
	PerClient int           // connections of one address, 64; twice as many of a loopback address
	InFlight  int           // queries under way on one connection, 32; until one is answered, no more are read
	Idle      time.Duration // how long a connection may be silent, 10 s
	BusyIdle  time.Duration // the same while more than half of Conns are in use, 2 s
	Message   time.Duration // how long one message may take to arrive, or to leave, 2 s
}

func (l TCPLimits) withDefaults() TCPLimits {
	l.Conns = cmp.Or(l.Conns, 256)
	l.PerClient = cmp.Or(l.PerClient, 64)
	l.InFlight = cmp.Or(l.InFlight, 32)
	l.Idle = cmp.Or(l.Idle, 10*time.Second)
	l.BusyIdle = cmp.Or(l.BusyIdle, 2*time.Second)
	l.Message = cmp.Or(l.Message, 2*time.Second)
	return l
}

// TCPStats counts connections of clients.
type TCPStats struct {
	Accepted uint64 `json:"accepted"`
	Shed     uint64 `json:"shed"` // closed, or not served, because a limit was reached
	Open     int    `json:"open"`
}

func (s TCPStats) plus(o TCPStats) TCPStats {
	return TCPStats{Accepted: s.Accepted + o.Accepted, Shed: s.Shed + o.Shed, Open: s.Open + o.Open}
}

// tcpServer answers the queries that arrive over TCP (RFC 7766). Its limits span all listeners that it serves.
type tcpServer struct {
	answer func(ctx context.Context, query []byte) ([]byte, error)
	// answerTo is called in place of answer, if it is set, by those that have to know who asks.
	answerTo func(query []byte, from netip.Addr) []byte
	// network is what PerClient counts the connections of; nil: of each address.
	network func(netip.Addr) netip.Addr
	limits  TCPLimits

	accepted, shed atomic.Uint64

	mu      sync.Mutex
	conns   map[*tcpConn]struct{}
	clients map[netip.Addr]int // connections of each
}

// newTCPServer makes a server. answer is called in a goroutine for each query and returns the whole response, or
// nothing if the query must not be answered; it has to return when its context ends.
func newTCPServer(limits TCPLimits, answer func(ctx context.Context, query []byte) ([]byte, error)) *tcpServer {
	return &tcpServer{
		answer:  answer,
		limits:  limits.withDefaults(),
		conns:   make(map[*tcpConn]struct{}),
		clients: make(map[netip.Addr]int),
	}
}

func (s *tcpServer) stats() TCPStats {
	s.mu.Lock()
	defer s.mu.Unlock()
	return TCPStats{Accepted: s.accepted.Load(), Shed: s.shed.Load(), Open: len(s.conns)}
}

// serve answers on ln until ctx ends, and then returns nil. ln is closed, and all that was started has ended.
func (s *tcpServer) serve(ctx context.Context, ln net.Listener) error {
	ctx, cancel := context.WithCancel(ctx)
	var wg sync.WaitGroup
	wg.Go(func() {
		<-ctx.Done()
		_ = ln.Close()
		s.closeAll(ln)
	})
	err := s.accept(ctx, ln, &wg)
	cancel()
	wg.Wait()
	return err
}

// Pauses after a failure to accept, each twice the one before.
const (
	minAcceptPause = 5 * time.Millisecond
	maxAcceptPause = time.Second
)

// accept takes connections until ctx ends. Errors that pass, such as having no descriptor left, are waited out.
func (s *tcpServer) accept(ctx context.Context, ln net.Listener, wg *sync.WaitGroup) error {
	pause := time.Duration(0)
	for failed := 0; ; {
		conn, err := ln.Accept()
		if err == nil {
			failed, pause = 0, 0
			if c := s.admit(conn, ln); c != nil {
				if ctx.Err() != nil {
					_ = conn.Close() // it may have come after closeAll
				}
				wg.Go(func() { c.serve(ctx) })
			}
			continue
		}
		var passing interface{ Temporary() bool }
		switch {
		case ctx.Err() != nil:
			return nil
		case errors.As(err, &passing) && passing.Temporary():
			s.closeIdle()
		default:
			failed++
		}
		if errors.Is(err, net.ErrClosed) || failed == maxErrors {
			return fmt.Errorf("accepting connections: %w", err)
		}
		pause = min(max(2*pause, minAcceptPause), maxAcceptPause)
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(pause):
		}
	}
}

// admit makes room for a connection and takes it in, or closes it and returns nil.
func (s *tcpServer) admit(conn net.Conn, ln net.Listener) *tcpConn {
	from := clientAddr(conn)
	c := &tcpConn{Conn: conn, server: s, ln: ln, from: from, client: from, slots: make(chan struct{}, s.limits.InFlight)}
	if s.network != nil {
		c.client = s.network(from)
	}
	c.touch()
	s.accepted.Add(1)
	s.mu.Lock()
	defer s.mu.Unlock()
	perClient := s.limits.PerClient
	if !c.client.IsValid() || c.client.IsLoopback() {
		perClient *= 2 // all programs of the machine
	}
	full := false
	switch {
	case s.clients[c.client] >= perClient:
		full = !s.evictLocked(func(o *tcpConn) bool { return o.client == c.client })
	case len(s.conns) >= s.limits.Conns:
		full = !s.evictLocked(func(*tcpConn) bool { return true })
	}
	if full {
		s.shed.Add(1)
		_ = conn.Close()
		return nil
	}
	s.conns[c] = struct{}{}
	s.clients[c.client]++
	return c
}

// evictLocked closes the connection that has been idle for longest among those that may go. It reports false if
// none of them is idle.
func (s *tcpServer) evictLocked(may func(*tcpConn) bool) bool {
	var victim *tcpConn
	for c := range s.conns {
		if c.inFlight.Load() == 0 && may(c) && (victim == nil || c.active.Load() < victim.active.Load()) {
			victim = c
		}
	}
	if victim == nil {
		return false
	}
	s.shed.Add(1)
	s.removeLocked(victim)
	_ = victim.Close()
	return true
}

// closeIdle gives back the descriptor of one connection that is not in use.
func (s *tcpServer) closeIdle() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.evictLocked(func(*tcpConn) bool { return true })
}

// closeAll closes the connections that came by ln.
func (s *tcpServer) closeAll(ln net.Listener) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for c := range s.conns {
		if c.ln == ln {
			_ = c.Close()
		}
	}
}

func (s *tcpServer) removeLocked(c *tcpConn) {
	if _, ok := s.conns[c]; !ok {
		return
	}
	delete(s.conns, c)
	if s.clients[c.client]--; s.clients[c.client] == 0 {
		delete(s.clients, c.client)
	}
}

// idleLimit is how long a connection may be silent now.
func (s *tcpServer) idleLimit() time.Duration {
	s.mu.Lock()
	defer s.mu.Unlock()
	if 2*len(s.conns) > s.limits.Conns {
		return s.limits.BusyIdle
	}
	return s.limits.Idle
}

// clientAddr is the address that a connection comes from, or the zero Addr if it has none.
func clientAddr(conn net.Conn) netip.Addr {
	a, err := netip.ParseAddrPort(conn.RemoteAddr().String())
	if err != nil {
		return netip.Addr{}
	}
	return a.Addr().Unmap()
}

// tcpConn is a client's connection.
type tcpConn struct {
	net.Conn
	server   *tcpServer
	ln       net.Listener
	from     netip.Addr
	client   netip.Addr    // whom it is counted for
	slots    chan struct{} // holds a token for each query under way
	inFlight atomic.Int32
	active   atomic.Int64 // when the last message came or left, in Unix nanoseconds

	writing sync.Mutex // a message is written whole
}

func (c *tcpConn) touch() { c.active.Store(time.Now().UnixNano()) }

// serve answers the connection's queries until it ends. When the client only closes its own direction, what it has
// asked is still answered.
func (c *tcpConn) serve(ctx context.Context) {
	ctx, cancel := context.WithCancel(ctx)
	var wg sync.WaitGroup
	r := bufio.NewReaderSize(c.Conn, dns.MinMsgSize)
	for {
		query, err := c.next(ctx, r)
		if err != nil {
			if !errors.Is(err, io.EOF) {
				cancel()
				_ = c.Close()
			}
			break
		}
		wg.Go(func() { c.reply(ctx, query) })
	}
	wg.Wait()
	cancel()
	_ = c.Close()
	c.server.mu.Lock()
	defer c.server.mu.Unlock()
	c.server.removeLocked(c)
}

var (
	errIdle     = errors.New("connection is idle")
	errBadFrame = errors.New("not a DNS query")
)

// next reads a query and takes a slot for it.
func (c *tcpConn) next(ctx context.Context, r *bufio.Reader) ([]byte, error) {
	select {
	case c.slots <- struct{}{}:
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	query, err := c.read(r)
	if err != nil {
		<-c.slots
		return nil, err
	}
	c.inFlight.Add(1)
	c.touch()
	return query, nil
}

func (c *tcpConn) read(r *bufio.Reader) ([]byte, error) {
	if err := c.await(r); err != nil {
		return nil, err
	}
	if err := c.SetReadDeadline(time.Now().Add(c.server.limits.Message)); err != nil {
		return nil, err
	}
	query, err := readFrame(r)
	if err != nil {
		return nil, err
	}
	if len(query) < headerSize || query[2]&(flagQR>>8) != 0 {
		return nil, errBadFrame
	}
	return query, nil
}

// await waits for the first octet of a message, as long as the connection may be idle. It is not idle while queries
// are under way (RFC 7766, 3).
func (c *tcpConn) await(r *bufio.Reader) error {
	for {
		limit := c.server.idleLimit()
		deadline := time.Unix(0, c.active.Load()).Add(limit)
		switch now := time.Now(); {
		case c.inFlight.Load() > 0:
			deadline = now.Add(limit)
		case !deadline.After(now) && r.Buffered() == 0:
			return errIdle
		}
		if err := c.SetReadDeadline(deadline); err != nil {
			return err
		}
		if _, err := r.Peek(1); !errors.Is(err, os.ErrDeadlineExceeded) {
			return err
		}
	}
}

// reply answers one query and gives its slot back. A client that does not take the answer in time loses the
// connection.
func (c *tcpConn) reply(ctx context.Context, query []byte) {
	var msg []byte
	var err error
	if c.server.answerTo != nil {
		msg = c.server.answerTo(query, c.from)
	} else {
		msg, err = c.server.answer(ctx, query)
	}
	if err == nil && len(msg) > 0 && c.write(msg) != nil {
		_ = c.Close()
	}
	c.touch()
	c.inFlight.Add(-1)
	<-c.slots
}

func (c *tcpConn) write(msg []byte) error {
	frame, err := appendFrame(make([]byte, 0, 2+len(msg)), msg)
	if err != nil {
		return err
	}
	c.writing.Lock()
	defer c.writing.Unlock()
	if err := c.SetWriteDeadline(time.Now().Add(c.server.limits.Message)); err != nil {
		return err
	}
	_, err = c.Conn.Write(frame)
	return err
}

// appendFrame appends a message with its length before it (RFC 1035, 4.2.2). Both leave in one write: some peers
// take them for two messages otherwise (RFC 7766, 8).
func appendFrame(dst, msg []byte) ([]byte, error) {
	if len(msg) > dns.MaxMsgSize {
		return nil, fmt.Errorf("message has %d octets, %d are the most", len(msg), dns.MaxMsgSize)
	}
	dst = binary.BigEndian.AppendUint16(dst, uint16(len(msg)))
	return append(dst, msg...), nil
}

// readFrame reads a message with its length before it. Memory grows with what arrives, not with what the length
// claims.
func readFrame(r *bufio.Reader) ([]byte, error) {
	head, err := r.Peek(2)
	if err != nil {
		if len(head) > 0 && errors.Is(err, io.EOF) {
			err = io.ErrUnexpectedEOF
		}
		return nil, err
	}
	size := int64(binary.BigEndian.Uint16(head))
	_, _ = r.Discard(2) // they are buffered
	var buf bytes.Buffer
	if _, err := io.CopyN(&buf, r, size); err != nil {
		if errors.Is(err, io.EOF) {
			err = io.ErrUnexpectedEOF
		}
		return nil, err
	}
	return buf.Bytes(), nil
}

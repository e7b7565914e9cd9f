package resolver

import (
	"bufio"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"slices"
	"sync"
	"time"

	"github.com/miekg/dns"
)

// streamLimits bounds the connections to one server.
type streamLimits struct {
	conns    int           // connections
	inFlight int           // queries on each that are not answered; one more, and the next is opened
	idle     time.Duration // how long a connection without queries is kept (RFC 7766, 6.2.3)
	stall    time.Duration // a query waited in vain for so long, and nothing else came: the connection is dead
	write    time.Duration // how long a write may take
	alone    time.Duration // how long a server that answers one query a connection is remembered
}

func defaultStreamLimits() streamLimits {
	return streamLimits{
		conns:    4,
		inFlight: 128,
		idle:     10 * time.Second,
		stall:    time.Second,
		write:    2 * time.Second,
		alone:    10 * time.Minute,
	}
}

// stream is an exchanger over TCP (RFC 7766) or TLS (RFC 7858). Queries share connections, the answers come in any
// order and find their query by ID.
type stream struct {
	connector connector
	limits    streamLimits
	ctx       context.Context // ends with close; connections are made in it
	cancel    context.CancelFunc
	running   sync.WaitGroup // of connections; added to under mu, never after closed

	mu     sync.Mutex
	closed bool
	asking int // calls of exchange under way
	conns  []*streamConn
	room   chan struct{} // closed, and set to nil, when a query may find room again
	alone  time.Time     // until then, each query gets a connection of its own
}

func newStream(u Upstream, roots *x509.CertPool, resolve resolveFunc) *stream {
	s := &stream{
		connector: connector{upstream: u, resolve: resolve},
		limits:    defaultStreamLimits(),
	}
	if u.kind == upstreamTLS {
		s.connector.tls = clientTLS(u, roots, "dot")
	}
	s.ctx, s.cancel = context.WithCancel(context.Background())
	return s
}

// Errors of a stream. Those that wrap errProtocol are the server's fault, and asking it again is no use.
var (
	errProtocol = errors.New("server breaks the protocol")
	errUnasked  = fmt.Errorf("%w: it answered what it was not asked", errProtocol)
	errBusy     = errors.New("too many queries wait for this server")
	errStalled  = errors.New("connection is dead")
	errUnused   = errors.New("connection was closed, being idle")
	errSpent    = errors.New("connection was closed, having served its query")
	errEnded    = fmt.Errorf("server closed it: %w", io.EOF)
	errTooLong  = errors.New("query is longer than 65535 octets")
)

// lostError is what a query gets whose connection ended.
type lostError struct {
	err   error
	again bool // the connection had been of use: worth another try
}

func (e *lostError) Error() string { return "losing the connection: " + e.err.Error() }
func (e *lostError) Unwrap() error { return e.err }

// exchange implements exchanger. A query that was lost because the server closed a connection, as it may at any
// time, is asked once more on a new one (RFC 7766, 6.2.4).
func (s *stream) exchange(ctx context.Context, query []byte) ([]byte, error) {
	if err := s.enter(); err != nil {
		return nil, fmt.Errorf("asking %s: %w", s.connector.upstream, err)
	}
	defer s.leave()
	msg, err := s.try(ctx, query, false)
	var lost *lostError
	if errors.As(err, &lost) && lost.again {
		msg, err = s.try(ctx, query, true)
	}
	if err != nil {
		return nil, fmt.Errorf("asking %s: %w", s.connector.upstream, err)
	}
	return msg, nil
}

// enter counts a call of exchange, if there is room for it.
func (s *stream) enter() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.asking >= s.limits.conns*s.limits.inFlight {
		return errBusy
	}
	s.asking++
	return nil
}

func (s *stream) leave() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.asking--
}

func (s *stream) try(ctx context.Context, query []byte, fresh bool) ([]byte, error) {
	end, err := questionEnd(query)
	if err != nil {
		return nil, err
	}
	if len(query) > dns.MaxMsgSize {
		return nil, errTooLong
	}
	call := &streamCall{question: query[headerSize:end], result: make(chan streamResult, 1)}
	c, err := s.assign(ctx, call, fresh)
	if err != nil {
		return nil, err
	}
	select {
	case c.frames <- c.frame(call, query):
	case <-c.done:
	}
	select {
	case r := <-call.result:
		if r.err != nil {
			return nil, r.err
		}
		copy(r.msg, query[:2])
		return r.msg, nil
	case <-ctx.Done():
		s.giveUp(c, call)
		return nil, context.Cause(ctx)
	}
}

// close implements exchanger.
func (s *stream) close() {
	s.mu.Lock()
	s.closed = true
	s.cancel()
	for _, c := range slices.Clone(s.conns) {
		c.endLocked(net.ErrClosed)
	}
	s.freeLocked()
	s.mu.Unlock()
	s.running.Wait()
}

// assign finds a connection for the call, and waits until there is one.
func (s *stream) assign(ctx context.Context, call *streamCall, fresh bool) (*streamConn, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for {
		if s.closed {
			return nil, net.ErrClosed
		}
		if c := s.pickLocked(fresh); c != nil {
			c.addLocked(call)
			return c, nil
		}
		if s.room == nil {
			s.room = make(chan struct{})
		}
		room := s.room
		s.mu.Unlock()
		select {
		case <-room:
		case <-ctx.Done():
		}
		s.mu.Lock()
		if ctx.Err() != nil {
			return nil, context.Cause(ctx)
		}
	}
}

// pickLocked returns a connection with room, the oldest first, so that those that are not needed fall idle. A fresh
// one has not answered anything yet: one that has may be about to be closed like the one before.
func (s *stream) pickLocked(fresh bool) *streamConn {
	single := time.Now().Before(s.alone)
	var used *streamConn
	for _, c := range slices.Clone(s.conns) {
		switch {
		case single && c.taken && c.live == 0:
			c.endLocked(errSpent)
		case c.closing, len(c.calls) >= s.limits.inFlight, single && c.taken:
		case fresh && c.answered > 0:
			used = c
		default:
			return c
		}
	}
	if len(s.conns) < s.limits.conns {
		return s.openLocked()
	}
	return used
}

// openLocked begins a connection. Queries may be given to it at once.
func (s *stream) openLocked() *streamConn {
	c := &streamConn{
		stream: s,
		calls:  make(map[uint16]*streamCall),
		frames: make(chan []byte, s.limits.inFlight),
		done:   make(chan struct{}),
	}
	c.ctx, c.cancel = context.WithCancel(s.ctx)
	s.conns = append(s.conns, c)
	s.running.Go(c.run)
	return c
}

// freeLocked wakes the calls that wait for room.
func (s *stream) freeLocked() {
	if s.room != nil {
		close(s.room)
		s.room = nil
	}
}

// giveUp ends a call that nobody waits for any more. Its ID stays taken, since the answer may still come. If
// nothing at all has come for a while, the connection leads nowhere, as it does after a change of network.
func (s *stream) giveUp(c *streamConn, call *streamCall) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if c.ended || c.calls[call.id] != call {
		return
	}
	c.calls[call.id] = nil
	c.live--
	if c.conn == nil {
		return
	}
	since := c.heard
	if call.asked.After(since) {
		since = call.asked
	}
	if time.Since(since) >= s.limits.stall || len(c.calls)-c.live >= s.limits.inFlight {
		c.endLocked(errStalled)
		return
	}
	c.setDeadlineLocked()
}

// streamCall is a query on a connection.
type streamCall struct {
	id       uint16
	question []byte
	asked    time.Time
	early    bool // given to the connection before anything had been answered there
	result   chan streamResult
}

type streamResult struct {
	msg []byte
	err error
}

// streamConn is one connection, from before it is made until it is closed.
type streamConn struct {
	stream *stream
	ctx    context.Context // of connecting
	cancel context.CancelFunc
	frames chan []byte   // to be written; has room for one of each call
	done   chan struct{} // closed at the end

	// Guarded by stream.mu.
	conn     net.Conn               // nil until connected
	calls    map[uint16]*streamCall // by ID; nil for those that were given up
	live     int                    // calls that somebody waits for
	taken    bool                   // a call was given to it
	answered int
	heard    time.Time // when the last message came, or the connection
	closing  bool      // the server takes nothing more; what it has sent is still read
	ended    bool
}

// addLocked gives the call to the connection, with an ID that no other call has there. IDs are drawn at random: the
// generator is ChaCha8, seeded by the operating system.
func (c *streamConn) addLocked(call *streamCall) {
	for {
		call.id = uint16(rand.Uint32()) //nolint:gosec // see above
		if _, ok := c.calls[call.id]; !ok {
			break
		}
	}
	call.asked = time.Now()
	call.early = c.answered == 0
	c.calls[call.id] = call
	c.live++
	c.taken = true
	if c.live == 1 {
		c.setDeadlineLocked()
	}
}

// frame is the query as it is written, with the call's ID, and padded if it will be encrypted.
func (c *streamConn) frame(call *streamCall, query []byte) []byte {
	frame := make([]byte, 2, 2+len(query)+4+paddingBlock)
	frame = append(frame, query...)
	binary.BigEndian.PutUint16(frame[2:], call.id)
	if c.stream.connector.tls != nil {
		frame = append(frame[:2], padQuery(frame[2:])...)
	}
	binary.BigEndian.PutUint16(frame, uint16(len(frame)-2))
	return frame
}

// setDeadlineLocked lets the reader wake up when the connection has been idle for too long.
func (c *streamConn) setDeadlineLocked() {
	if c.conn == nil || c.closing {
		return
	}
	var deadline time.Time
	if c.live == 0 {
		deadline = time.Now().Add(c.stream.limits.idle)
	}
	_ = c.conn.SetReadDeadline(deadline) // fails if it is closed, which the reader finds out by itself
}

// run connects, then reads until the connection ends.
func (c *streamConn) run() {
	conn, err := c.stream.connector.connect(c.ctx)
	defer c.cancel()
	if err != nil {
		c.end(err)
		return
	}
	defer conn.Close()
	if !c.connected(conn) {
		return
	}
	var writer sync.WaitGroup
	defer writer.Wait()
	writer.Go(func() { c.write(conn) })
	c.end(c.read(conn))
}

// connected takes in the connection. It reports false if it is not wanted any more.
func (c *streamConn) connected(conn net.Conn) bool {
	c.stream.mu.Lock()
	defer c.stream.mu.Unlock()
	if c.ended {
		return false
	}
	c.conn = conn
	c.heard = time.Now()
	c.setDeadlineLocked()
	return true
}

// writeChunk is how much is gathered for one write, in octets.
const writeChunk = 16 << 10

// write writes what the calls have queued, as much at once as there is.
func (c *streamConn) write(conn net.Conn) {
	var buf []byte
	for {
		select {
		case <-c.done:
			return
		case frame := <-c.frames:
			buf = append(buf[:0], frame...)
		}
		for more := true; more && len(buf) < writeChunk; {
			select {
			case frame := <-c.frames:
				buf = append(buf, frame...)
			default:
				more = false
			}
		}
		err := conn.SetWriteDeadline(time.Now().Add(c.stream.limits.write))
		if err == nil {
			_, err = conn.Write(buf)
		}
		if err != nil {
			c.writeFailed(err)
			return
		}
	}
}

// writeFailed ends the connection. If the server closed it, answers may still lie in the receive buffer: the reader
// gets to them before it finds the end.
func (c *streamConn) writeFailed(err error) {
	c.stream.mu.Lock()
	defer c.stream.mu.Unlock()
	if c.ended || errors.Is(err, os.ErrDeadlineExceeded) {
		c.endLocked(err)
		return
	}
	c.closing = true
	_ = c.conn.SetReadDeadline(time.Now().Add(c.stream.limits.stall))
}

// read hands out answers until the connection fails or has been idle for too long.
func (c *streamConn) read(conn net.Conn) error {
	r := bufio.NewReader(conn)
	for {
		_, err := r.Peek(1)
		if errors.Is(err, os.ErrDeadlineExceeded) {
			if err := c.overdue(); err != nil {
				return err
			}
			continue
		}
		msg, err := readFrame(r)
		if errors.Is(err, io.EOF) {
			return errEnded
		}
		if err != nil {
			return err
		}
		if err := c.deliver(msg); err != nil {
			return err
		}
	}
}

// overdue is called when nothing was read in time. It returns nil if a query came in between.
func (c *streamConn) overdue() error {
	c.stream.mu.Lock()
	defer c.stream.mu.Unlock()
	switch {
	case c.closing:
		return errEnded
	case c.live > 0:
		c.setDeadlineLocked()
		return nil
	}
	c.endLocked(errUnused) // at once, lest a query be given to it
	return errUnused
}

// deliver hands an answer to its call. An error ends the connection.
func (c *streamConn) deliver(msg []byte) error {
	s := c.stream
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(msg) < headerSize {
		return fmt.Errorf("%w: %w", errProtocol, errNoResponse)
	}
	id := binary.BigEndian.Uint16(msg)
	call, ok := c.calls[id]
	if !ok {
		return errUnasked
	}
	delete(c.calls, id)
	c.heard = time.Now()
	c.answered++
	defer s.freeLocked()
	if call == nil {
		return nil // late: its call was given up
	}
	c.live--
	out, err := matchResponse(call.question, msg)
	if err != nil {
		err = fmt.Errorf("%w: %w", errProtocol, err)
	}
	call.result <- streamResult{out, err}
	if err == nil && c.live == 0 {
		if time.Now().Before(s.alone) {
			return errUnused
		}
		c.setDeadlineLocked()
	}
	return err
}

func (c *streamConn) end(err error) {
	c.stream.mu.Lock()
	defer c.stream.mu.Unlock()
	c.endLocked(err)
}

// endLocked takes the connection out and fails its calls. The reader and the writer notice and end.
func (c *streamConn) endLocked(err error) {
	if c.ended {
		return
	}
	c.ended = true
	s := c.stream
	s.conns = slices.DeleteFunc(s.conns, func(o *streamConn) bool { return o == c })
	close(c.done)
	c.cancel()
	again := c.answered > 0 && !errors.Is(err, errProtocol) && !errors.Is(err, net.ErrClosed)
	for _, call := range c.calls {
		if call == nil {
			continue
		}
		if again && c.answered == 1 && call.early && !errors.Is(err, errStalled) {
			// It was asked several things, answered one and closed: a server from before RFC 7766.
			s.alone = time.Now().Add(s.limits.alone)
		}
		call.result <- streamResult{err: &lostError{err: err, again: again}}
	}
	s.freeLocked()
	if c.conn != nil && !errors.Is(err, errUnused) {
		abort(c.conn)
	}
}

// abort closes a connection at once; a TLS connection would first say goodbye, and wait for that to leave.
func abort(conn net.Conn) {
	if secured, ok := conn.(*tls.Conn); ok {
		conn = secured.NetConn()
	}
	_ = conn.Close()
}

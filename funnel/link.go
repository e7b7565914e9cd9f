package funnel

import (
	"context"
	"crypto/tls"
	"errors"
	"maps"
	"net"
	"net/http"
	"net/netip"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

// link is a visitor's connection. It notices a visitor who takes nothing, and remembers when there was one at all.
type link struct {
	net.Conn

	bench  *bench
	source netip.Prefix // what it is counted by
	caller Caller
	asked  string // the name that a gateway has read, if one did
	coming class  // without a name, while the handshake is still to be made
	kind   string // of the entry; is set before class

	class  atomic.Pointer[class] // what it came for, once that is known
	used   atomic.Int64          // when bytes passed last, in seconds since 1970
	raw    atomic.Bool           // it carries no requests: its bytes are passed on as they are
	late   atomic.Bool           // the visitor has not taken what was written, in the time for it
	frames *framed               // of HTTP/1
	once   sync.Once
}

// Close closes the connection, which makes room for another one.
func (l *link) Close() error {
	l.once.Do(func() { l.bench.server.links.remove(l) })
	return l.Conn.Close()
}

// idle says whether the connection carries no requests, which net/http watches, nor anything else for long.
func (l *link) idle(now time.Time) bool {
	return l.raw.Load() && l.quiet(now) > l.bench.server.times.raw
}

// quiet is for how long no byte has passed.
func (l *link) quiet(now time.Time) time.Duration { return now.Sub(time.Unix(l.used.Load(), 0)) }

// bare is the connection without what is around it.
func (l *link) bare() net.Conn {
	if v, ok := l.Conn.(*Visit); ok && v.Kind != kindUDP {
		return v.Conn
	}
	return l.Conn
}

func (l *link) Read(p []byte) (int, error) {
	n, err := l.Conn.Read(p)
	if n > 0 {
		l.used.Store(time.Now().Unix())
	}
	return n, err
}

func (l *link) Write(p []byte) (int, error) {
	if l.late.Load() {
		return 0, errStuck // a last word, such as TLS has, would wait once more
	}
	if err := l.SetWriteDeadline(time.Now().Add(l.bench.server.times.write)); err != nil {
		return 0, err
	}
	n, err := l.Conn.Write(p)
	if n > 0 {
		l.used.Store(time.Now().Unix())
	}
	if errors.Is(err, os.ErrDeadlineExceeded) {
		l.late.Store(true)
	}
	return n, err
}

// CloseWrite ends our side of the connection, where it has sides.
func (l *link) CloseWrite() error { return closeWrite(l.Conn) }

// wrong says whether what was sent is no HTTP/1.
func (l *link) wrong() bool { return l != nil && l.frames != nil && l.frames.wrong.Load() }

// passRaw has what follows pass as it is.
func (l *link) passRaw() {
	l.used.Store(time.Now().Unix())
	l.raw.Store(true)
	if l.frames != nil {
		l.frames.raw.Store(true)
	}
}

// secured is HTTP/1 in TLS. net/http asks for the state and puts it into each request.
type secured struct {
	framed

	state tls.ConnectionState
}

func (c *secured) ConnectionState() tls.ConnectionState { return c.state }

// linkKey is the key of a *link in the context of its requests.
type linkKey struct{}

// linkOf is the connection of a request, or nil.
func linkOf(ctx context.Context) *link {
	l, _ := ctx.Value(linkKey{}).(*link)
	return l
}

// underneath is the link that a connection stands on which net/http was given.
func underneath(conn net.Conn) *link {
	for conn != nil {
		switch c := conn.(type) {
		case *link:
			return c
		case *tls.Conn:
			conn = c.NetConn()
		case *secured:
			conn = c.Conn
		case *framed:
			conn = c.Conn
		default:
			return nil
		}
	}
	return nil
}

// crowd is what is there at once, connections or requests, bounded in all and of each source.
type crowd[T comparable] struct {
	counts counts

	mu   sync.Mutex
	open map[T]netip.Prefix // and the source of each
}

func newCrowd[T comparable](each, all int) *crowd[T] {
	return &crowd[T]{counts: counts{each: each, all: all, of: map[netip.Prefix]int{}}, open: map[T]netip.Prefix{}}
}

// add takes one in, if there is room for one more.
func (c *crowd[T]) add(one T, source netip.Prefix) bool {
	if !c.counts.take(source) {
		return false
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.open[one] = source
	return true
}

func (c *crowd[T]) remove(one T) {
	c.mu.Lock()
	source := c.open[one]
	delete(c.open, one)
	c.mu.Unlock()
	c.counts.give(source)
}

// each calls do for all of this moment. None of them is removed meanwhile.
func (c *crowd[T]) each(do func(T)) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for one := range c.open {
		do(one)
	}
}

// all are those of this moment.
func (c *crowd[T]) all() []T {
	c.mu.Lock()
	defer c.mu.Unlock()
	return slices.Collect(maps.Keys(c.open))
}

// flight is a request that is being answered.
type flight struct {
	link    *link
	service class                 // that answers it
	guard   *guard                // that let it in
	mount   atomic.Pointer[mount] // in which; nil until it is known
	request *http.Request         // as it came, where somebody may be kept out; guards take from it what is for them
	end     context.CancelCauseFunc
	control *http.ResponseController
	writing atomic.Int64 // since when a piece of the answer waits for the visitor, in nanoseconds since 1970; 0: none does
}

// stuck says whether the visitor takes nothing of the answer, for longer than that.
func (f *flight) stuck(now time.Time, most time.Duration) bool {
	since := f.writing.Load()
	return since != 0 && now.Sub(time.Unix(0, since)) > most
}

// patientAnswer notices when a piece of an answer waits. It is for HTTP/2, where a visitor takes all frames of a connection
// but lets none of a stream's data come (RFC 9113, section 5.2), which no deadline of the connection sees.
type patientAnswer struct {
	http.ResponseWriter

	flight *flight
}

func (a *patientAnswer) Unwrap() http.ResponseWriter { return a.ResponseWriter }

func (a *patientAnswer) Write(p []byte) (int, error) {
	a.flight.writing.Store(time.Now().UnixNano())
	defer a.flight.writing.Store(0)
	return a.ResponseWriter.Write(p)
}

func (a *patientAnswer) FlushError() error {
	a.flight.writing.Store(time.Now().UnixNano())
	defer a.flight.writing.Store(0)
	return a.flight.control.Flush()
}

// flightKey is the key of a *flight in the context of a request.
type flightKey struct{}

// errStuck ends an answer that nobody takes.
var errStuck = errors.New("the visitor takes nothing")

// gate counts what is inside, until it is shut; then it waits for the last.
type gate struct {
	mu     sync.Mutex
	inside int
	closed bool
	empty  chan struct{} // is closed when the last one is out
}

// enter says whether one more may come in.
func (g *gate) enter() bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.closed {
		return false
	}
	g.inside++
	return true
}

func (g *gate) leave() {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.inside--; g.inside == 0 && g.closed {
		close(g.empty)
	}
}

// shut lets nobody in any more, and returns when all are out.
func (g *gate) shut() {
	g.mu.Lock()
	g.closed, g.empty = true, make(chan struct{})
	if g.inside == 0 {
		close(g.empty)
	}
	g.mu.Unlock()
	<-g.empty
}

// feed is a listener that is given its connections.
type feed struct {
	conns  chan net.Conn
	closed chan struct{}
	once   sync.Once
}

func newFeed() *feed { return &feed{conns: make(chan net.Conn), closed: make(chan struct{})} }

// give hands a connection on, or closes it once nobody takes any.
func (f *feed) give(conn net.Conn) {
	select {
	case f.conns <- conn:
	case <-f.closed:
		conn.Close()
	}
}

// Accept is the next connection.
func (f *feed) Accept() (net.Conn, error) {
	select {
	case conn := <-f.conns:
		return conn, nil
	case <-f.closed:
		return nil, net.ErrClosed
	}
}

// Close has no more connections taken.
func (f *feed) Close() error {
	f.once.Do(func() { close(f.closed) })
	return nil
}

// Addr is no address: this listener has none.
func (f *feed) Addr() net.Addr { return &net.UnixAddr{Net: "unix"} }

// Package funnel takes public TLS connections and hands each to whom its first bytes name. It reads the ClientHello and
// nothing behind it: it has no keys, and ends no TLS.
package funnel

import (
	"container/list"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// The defaults of a FrontConfig, and what no configuration changes.
const (
	helloTime     = 3 * time.Second
	maxHellos     = 1024 // connections that have not said yet what they want
	maxEach       = 256  // connections of one source: an address, or a /64 of IPv6
	maxAll        = 20000
	alertTime     = time.Second
	acceptPause   = 5 * time.Millisecond
	maxPause      = time.Second
	prefixOfIPv6  = 64 // what one customer has, mostly
	maxRouteNames = 100000
)

// FrontConfig says what a Front does. The zero value closes every connection with an alert.
type FrontConfig struct {
	// Fallback gets connections that no route takes: unknown names, and what is not TLS. nil: an alert, and the end.
	Fallback Handler

	HelloTime time.Duration // for a whole ClientHello; zero: 3 s
	MaxHellos int           // connections that have not sent one yet; zero: 1024. One more ends the oldest
	MaxEach   int           // connections of one source; zero: 256
	MaxAll    int           // connections; zero: 20,000
	Logger    *slog.Logger  // nil: nothing is logged
}

// Handler does what a connection is for, and returns when it is done with it. The connection starts with the ClientHello
// again, and is closed by the one who called.
type Handler func(ctx context.Context, conn net.Conn, hello Hello)

// Route says who gets a connection. A name is exact, or a wildcard (*.example) for one label more; an empty one is any,
// or none. An empty protocol is any.
type Route struct {
	Name     string
	Protocol string // of the ALPN extension (RFC 7301)
	Handle   Handler
}

// Front is the listener of a gateway's public port.
type Front struct {
	cfg    FrontConfig
	log    *slog.Logger
	routes atomic.Pointer[map[routeKey]Handler]

	hellos hellos
	counts counts
	stats  frontStats
}

// FrontStats count connections since the start.
type FrontStats struct {
	Accepted uint64 // taken from the listener
	Shed     uint64 // closed since there were too many
	Mute     uint64 // that said nothing whole in time, or nothing that is TLS, without a Fallback
	Unknown  uint64 // that named nobody, without a Fallback
	Open     int    // at this moment
}

type frontStats struct{ accepted, shed, mute, unknown atomic.Uint64 }

// routeKey is a route's name in lower case, and its protocol.
type routeKey struct{ name, protocol string }

// NewFront returns a Front without routes.
func NewFront(cfg FrontConfig) *Front {
	f := &Front{cfg: cfg, log: cfg.Logger}
	if f.log == nil {
		f.log = slog.New(slog.DiscardHandler)
	}
	if f.cfg.HelloTime <= 0 {
		f.cfg.HelloTime = helloTime
	}
	f.hellos.most = positive(cfg.MaxHellos, maxHellos)
	f.counts = counts{each: positive(cfg.MaxEach, maxEach), all: positive(cfg.MaxAll, maxAll), of: map[netip.Prefix]int{}}
	f.routes.Store(&map[routeKey]Handler{})
	return f
}

func positive(n, otherwise int) int {
	if n > 0 {
		return n
	}
	return otherwise
}

// SetRoutes has the connections from now on go by these routes. Two for the same name and protocol are an error, and
// nothing changes then.
func (f *Front) SetRoutes(routes []Route) error {
	if len(routes) > maxRouteNames {
		return fmt.Errorf("%d routes: more than %d", len(routes), maxRouteNames)
	}
	table := make(map[routeKey]Handler, len(routes))
	for _, r := range routes {
		key := routeKey{foldHost(r.Name), r.Protocol}
		if table[key] != nil {
			return fmt.Errorf("two routes for name %q and protocol %q", r.Name, r.Protocol)
		}
		if r.Handle == nil {
			return fmt.Errorf("the route for name %q and protocol %q has no handler", r.Name, r.Protocol)
		}
		table[key] = r.Handle
	}
	f.routes.Store(&table)
	return nil
}

// route is the handler of a hello: by name and protocol, by protocol alone, by name, by wildcard, in this order. The
// protocols count in the client's order.
func (f *Front) route(h Hello) Handler {
	table := *f.routes.Load()
	names := []string{h.ServerName}
	if _, parent, ok := strings.Cut(h.ServerName, "."); ok {
		names = append(names, "*."+parent)
	}
	for _, p := range h.Protocols {
		for _, name := range append(names, "") {
			if handle := table[routeKey{name, p}]; handle != nil {
				return handle
			}
		}
	}
	for _, name := range names {
		if handle := table[routeKey{name, ""}]; handle != nil {
			return handle
		}
	}
	return nil
}

// Stats are the counts.
func (f *Front) Stats() FrontStats {
	return FrontStats{
		Accepted: f.stats.accepted.Load(),
		Shed:     f.stats.shed.Load(),
		Mute:     f.stats.mute.Load(),
		Unknown:  f.stats.unknown.Load(),
		Open:     f.counts.open(),
	}
}

// Serve takes connections from ln until ctx ends, then closes them, and returns when all handlers have.
func (f *Front) Serve(ctx context.Context, ln net.Listener) error {
	return takeAll(ctx, ln, f.log, func(ctx context.Context, running *sync.WaitGroup, conn net.Conn) {
		f.stats.accepted.Add(1)
		f.start(ctx, running, conn)
	})
}

// takeAll has each connection of ln started until ctx ends, then ends theirs, and returns when what runs has ended.
func takeAll(ctx context.Context, ln net.Listener, log *slog.Logger, start func(context.Context, *sync.WaitGroup, net.Conn)) error {
	ctx, cancel := context.WithCancel(ctx)
	var running sync.WaitGroup
	defer running.Wait()
	defer cancel()
	stop := context.AfterFunc(ctx, func() { ln.Close() })
	defer stop()
	pause := acceptPause
	for {
		conn, err := ln.Accept()
		if ctx.Err() != nil {
			if err == nil {
				conn.Close()
			}
			return nil
		}
		if errors.Is(err, net.ErrClosed) {
			return fmt.Errorf("taking connections: %w", err)
		}
		if err != nil {
			// Mostly too many files are open: connections that end make room.
			log.Warn("a connection could not be taken", "err", err)
			rest(ctx, pause)
			pause = min(2*pause, maxPause)
			continue
		}
		pause = acceptPause
		start(ctx, &running, conn)
	}
}

// start has a connection handled, if there is room for it.
func (f *Front) start(ctx context.Context, running *sync.WaitGroup, conn net.Conn) {
	source := sourceOf(conn.RemoteAddr())
	if !f.counts.take(source) {
		f.stats.shed.Add(1)
		conn.Close()
		return
	}
	waiting, oldest := f.hellos.enter(conn)
	if oldest != nil {
		f.stats.shed.Add(1)
		oldest.Close()
	}
	running.Go(func() {
		defer f.counts.give(source)
		defer conn.Close()
		stop := context.AfterFunc(ctx, func() { conn.Close() })
		defer stop()
		f.serve(ctx, conn, waiting)
	})
}

// hellos are the connections that have not said yet what they want, the oldest first. Who means it says so at once, and a
// flood waits: so it is the flood that makes room.
type hellos struct {
	most int

	mu   sync.Mutex
	line list.List // of net.Conn
}

// enter takes a connection in. oldest has to go for it, and is not in the line any more.
func (h *hellos) enter(conn net.Conn) (place *list.Element, oldest net.Conn) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.line.Len() >= h.most {
		oldest, _ = h.line.Remove(h.line.Front()).(net.Conn)
	}
	return h.line.PushBack(conn), oldest
}

// leave reports whether the connection was not the one that had to go.
func (h *hellos) leave(place *list.Element) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	before := h.line.Len()
	h.line.Remove(place)
	return h.line.Len() < before
}

// serve reads what a connection wants and hands it on.
func (f *Front) serve(ctx context.Context, conn net.Conn, waiting *list.Element) {
	hello, read, err := f.hello(conn)
	if !f.hellos.leave(waiting) {
		return // it had to make room
	}
	var handle Handler
	if err == nil {
		handle = f.route(hello)
	}
	if handle == nil {
		handle = f.cfg.Fallback
	}
	switch {
	case ctx.Err() != nil:
	case len(read) == 0, errors.Is(err, errSlow):
		f.stats.mute.Add(1) // who says nothing is not passed on either
	case handle != nil:
		handle(ctx, &replayed{Conn: conn, head: read}, hello)
	case err != nil:
		f.stats.mute.Add(1)
		farewell(conn, alertDecodeError)
	default:
		f.stats.unknown.Add(1)
		farewell(conn, alertUnrecognizedName)
	}
}

// hello reads a ClientHello in the time for it.
func (f *Front) hello(conn net.Conn) (Hello, []byte, error) {
	if err := conn.SetReadDeadline(time.Now().Add(f.cfg.HelloTime)); err != nil {
		return Hello{}, nil, err
	}
	hello, read, err := readHello(conn)
	var timeout net.Error
	if errors.As(err, &timeout) && timeout.Timeout() {
		err = errSlow
	}
	return hello, read, errors.Join(err, conn.SetReadDeadline(time.Time{}))
}

// errSlow says that a ClientHello was not whole in its time.
var errSlow = errors.New("no whole ClientHello in time")

// rest waits, unless ctx ends before.
func rest(ctx context.Context, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
	case <-ctx.Done():
	}
}

// The alerts that end a connection (RFC 8446, section 6; RFC 6066, section 3).
const (
	alertDecodeError      = 50
	alertInternalError    = 80
	alertUnrecognizedName = 112
	alertNoProtocol       = 120 // RFC 7301, section 3.2
)

// farewell tells the client in an alert why its connection ends, and has that arrive: a close with bytes unread would be a
// reset, which overtakes it.
func farewell(conn net.Conn, description byte) {
	if conn.SetDeadline(time.Now().Add(alertTime)) != nil {
		return
	}
	// A fatal alert, in a record of the version that every client takes before one is agreed.
	if _, err := conn.Write([]byte{recordAlert, 3, 1, 0, 2, 2, description}); err != nil || closeWrite(conn) != nil {
		return // it is gone
	}
	buf := make([]byte, 512)
	for range maxHello / len(buf) {
		if _, err := conn.Read(buf); err != nil {
			return
		}
	}
}

// replayed is a connection whose first bytes were read already.
type replayed struct {
	net.Conn

	head []byte
}

func (c *replayed) Read(p []byte) (int, error) {
	if len(c.head) == 0 {
		return c.Conn.Read(p)
	}
	n := copy(p, c.head)
	c.head = c.head[n:]
	return n, nil
}

// CloseWrite ends our side of the connection, where it has sides.
func (c *replayed) CloseWrite() error { return closeWrite(c.Conn) }

// sourceOf is what connections are counted by.
func sourceOf(a net.Addr) netip.Prefix { return clientOf(addrOf(a).Addr()) }

// counts bound how many connections there are, in all and of each source.
type counts struct {
	each, all int

	mu    sync.Mutex
	total int
	of    map[netip.Prefix]int
}

func (c *counts) take(source netip.Prefix) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.total >= c.all || c.of[source] >= c.each {
		return false
	}
	c.total++
	c.of[source]++
	return true
}

func (c *counts) give(source netip.Prefix) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.total--
	if c.of[source]--; c.of[source] == 0 {
		delete(c.of, source)
	}
}

func (c *counts) open() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.total
}

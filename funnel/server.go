package funnel

import (
	"context"
	"crypto/tls"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

// The defaults of a ServerConfig, and what no configuration changes.
const (
	maxServed      = 10000
	maxServedEach  = 512
	maxAnswered    = 10000
	drainTime      = 5 * time.Second
	datagramTime   = 2 * time.Minute // without one either way (RFC 4787, REQ-5)
	maxStreams     = 128             // of one HTTP/2 connection at once
	maxFrame       = 16 << 10        // of HTTP/2, in bytes: a connection keeps a buffer for the largest that came
	pingTime       = 30 * time.Second
	pingAnswerTime = 15 * time.Second
)

// shareOfOne is the part of all requests that one source may have at once.
const shareOfOne = 8

// times are how long a Server waits for visitors who do nothing, and for targets that do not say whether they want a body.
type times struct {
	handshake time.Duration
	head      time.Duration // of a request
	keep      time.Duration // between two requests
	body      time.Duration // between two pieces of a request's body
	write     time.Duration // until a piece of an answer is taken
	raw       time.Duration // without a byte either way, once a connection carries no requests
	sweep     time.Duration // between two looks at who is late
	proceed   time.Duration // until a body is sent unasked to a target that was asked (RFC 9110, section 10.1.1)
}

func usualTimes() times {
	return times{
		handshake: 10 * time.Second, head: 10 * time.Second, keep: 2 * time.Minute, body: 2 * time.Minute, write: 2 * time.Minute,
		raw: 2 * time.Hour, sweep: 15 * time.Second, proceed: time.Second,
	}
}

// Caller is who came. The listener's side says it: the tunnel of a tailnet connection, the gateway of one from outside;
// no header does.
type Caller struct {
	Public    bool           // by a gateway, from the world: nothing but Addr is known then
	Addr      netip.AddrPort // the other end
	Node      string         // the node's name in full
	Addresses []netip.Addr   // the node's
	Tags      []string
	Owner     bool // may be told what stands behind a name
}

// ServerConfig says how a Server serves.
type ServerConfig struct {
	// GetCertificate is asked for the names of entries alone. nil: nobody gets through a TLS handshake.
	GetCertificate func(*tls.ClientHelloInfo) (*tls.Certificate, error)

	// Identify tells who is behind a connection from the tailnet. nil: nobody, but for the address.
	Identify func(net.Conn) Caller

	// As runs do with the rights of the user who made the entry: files, directories and Unix sockets are opened so
	// (S20). It may run on a thread of its own; what do opens is used with our rights afterwards. nil: do is called.
	As func(e Entry, do func() error) error

	// Dial reaches targets that are not on this machine. nil: as the system does.
	Dial func(ctx context.Context, network, address string) (net.Conn, error)

	Log      AccessLogConfig
	LoginKey []byte                                                // seals logins; empty: they end with this process
	Spend    func(ctx context.Context, name string, s Share) error // notes that a share link was taken; nil: in memory alone

	Logger *slog.Logger // nil: nothing is logged

	MaxConns    int           // of visitors; zero: 10,000
	MaxEach     int           // of one source: an address, or a /64 of IPv6; zero: 512
	MaxRequests int           // at once, of one source an eighth; zero: 10,000
	Drain       time.Duration // for requests under way when a listener ends; zero: 5 s
}

// Server serves entries: the node's side of serve and funnel. NewServer makes one.
type Server struct {
	cfg    ServerConfig
	log    *slog.Logger
	visits *accessLog
	shared *guards
	tls    *tls.Config
	name   string // by which requests that come round are known
	chunks *sync.Pool
	times  times

	setting sync.Mutex // one Set at a time
	table   atomic.Pointer[table]
	links   *crowd[*link]
	flights *crowd[*flight]
}

// NewServer returns a Server without entries.
func NewServer(cfg ServerConfig) *Server {
	s := &Server{cfg: cfg, log: cfg.Logger, name: newPseudonym(), chunks: newChunks(), times: usualTimes()}
	if s.log == nil {
		s.log = slog.New(slog.DiscardHandler)
	}
	if s.cfg.Drain <= 0 {
		s.cfg.Drain = drainTime
	}
	s.visits = newAccessLog(cfg.Log, s.log)
	s.shared = &guards{Key: cfg.LoginKey, Spend: cfg.Spend, Log: s.log}
	s.tls = &tls.Config{MinVersion: tls.VersionTLS12, GetConfigForClient: s.configFor}
	s.links = newCrowd[*link](positive(cfg.MaxEach, maxServedEach), positive(cfg.MaxConns, maxServed))
	requests := positive(cfg.MaxRequests, maxAnswered)
	s.flights = newCrowd[*flight](max(1, requests/shareOfOne), requests)
	s.table.Store(&table{})
	return s
}

// Set has these entries served from now on, by the listeners that stand and by those to come. On an error, which tells
// of all that is wrong, nothing changes. Connections and requests go on, but for those that nobody may have any more.
func (s *Server) Set(entries []Entry) error {
	s.setting.Lock()
	defer s.setting.Unlock()
	old := s.table.Load()
	t, err := s.newTable(entries, old)
	if err != nil {
		return err
	}
	s.table.Store(t)
	s.endWhatIsOver(t)
	old.retire(t)
	return nil
}

// endWhatIsOver closes connections to what is not served any more, and ends requests that would not be let in now.
func (s *Server) endWhatIsOver(t *table) {
	s.closeLinks(func(l *link) bool {
		c := l.class.Load()
		return c != nil && !t.keeps(l, *c)
	})
	for _, f := range s.flights.all() {
		if service := t.services[f.service]; service == nil || !service.keeps(f) {
			f.end(errOver)
		}
	}
}

// closeLinks closes the connections of which over says so.
func (s *Server) closeLinks(over func(*link) bool) {
	for _, l := range s.links.all() {
		if over(l) {
			l.Close()
		}
	}
}

// endStuck ends the requests of a bench whose visitors take nothing. Their answers are there meanwhile.
func (s *Server) endStuck(b *bench, now time.Time) {
	s.flights.each(func(f *flight) {
		if f.link.bench == b && f.stuck(now, s.times.write) {
			f.end(errStuck)
			_ = f.control.SetWriteDeadline(now) // which has the stream reset
		}
	})
}

// Serve takes visitors of a port from ln until ctx ends. The listener says what they may see: with public, entries to the
// world alone, otherwise entries to the tailnet alone. Where ln is an Ingress, its visits say themselves which port they
// are for, and port is zero. Serve returns when all that it started has ended.
func (s *Server) Serve(ctx context.Context, ln net.Listener, port uint16, public bool) error {
	b := newBench(s, port, public)
	var running sync.WaitGroup
	defer running.Wait()
	running.Go(b.serveWeb)
	ended, end := context.WithCancel(ctx)
	defer end()
	running.Go(func() {
		<-ended.Done()
		b.drain()
	})
	running.Go(func() { b.sweep(ended) })
	return takeAll(ctx, ln, s.log, func(ctx context.Context, taken *sync.WaitGroup, conn net.Conn) {
		l := &link{Conn: conn, bench: b, source: sourceOf(conn.RemoteAddr())}
		if !s.links.add(l, l.source) {
			conn.Close()
			return
		}
		taken.Go(func() { b.handle(ctx, l) })
	})
}

// bench is what one listener's visitors are served at.
type bench struct {
	server *Server
	port   uint16
	public bool
	web    *http.Server
	conns  *feed
	busy   gate
}

func newBench(s *Server, port uint16, public bool) *bench {
	b := &bench{server: s, port: port, public: public, conns: newFeed()}
	protocols := new(http.Protocols)
	protocols.SetHTTP1(true)
	protocols.SetHTTP2(true)
	protocols.SetUnencryptedHTTP2(true)
	b.web = &http.Server{
		Handler:           http.HandlerFunc(b.serveHTTP),
		ReadHeaderTimeout: s.times.head,
		IdleTimeout:       s.times.keep,
		MaxHeaderBytes:    maxHead,
		Protocols:         protocols,
		HTTP2: &http.HTTP2Config{
			MaxConcurrentStreams: maxStreams, MaxReadFrameSize: maxFrame, SendPingTimeout: pingTime, PingTimeout: pingAnswerTime,
		},
		DisableGeneralOptionsHandler: true,
		ErrorLog:                     slog.NewLogLogger(s.log.Handler(), slog.LevelDebug),
		ConnContext: func(ctx context.Context, conn net.Conn) context.Context {
			return context.WithValue(ctx, linkKey{}, underneath(conn))
		},
	}
	return b
}

// serveWeb answers requests until drain ends that.
func (b *bench) serveWeb() { _ = b.web.Serve(b.conns) } // ErrServerClosed, since the feed has no other errors

// drain ends what is under way: requests have a while, the rest has not.
func (b *bench) drain() {
	ctx, cancel := context.WithTimeout(context.Background(), b.server.cfg.Drain)
	defer cancel()
	if b.web.Shutdown(ctx) != nil {
		b.web.Close()
	}
	b.server.closeLinks(func(l *link) bool { return l.bench == b })
	b.busy.shut()
}

// sweep closes what has been of no use for long.
func (b *bench) sweep(ctx context.Context) {
	t := time.NewTicker(b.server.times.sweep)
	defer t.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case now := <-t.C:
			b.server.closeLinks(func(l *link) bool { return l.bench == b && l.idle(now) })
			b.server.endStuck(b, now)
		}
	}
}

// handle finds out what a visitor came for, and has it served.
func (b *bench) handle(ctx context.Context, l *link) {
	c := b.identify(l)
	kind := b.server.table.Load().ports[c.portClass()]
	switch kind {
	case kindHTTP:
		l.kind = kindHTTP
		l.class.Store(&c)
		l.frames = &framed{Conn: l, frame: framing{preface: true}}
		b.conns.give(l.frames)
	case kindHTTPS:
		b.secure(ctx, l, c)
	case kindTCP, kindUDP:
		l.kind = kind
		l.class.Store(&c)
		b.server.stream(ctx, l, l, c)
	default:
		l.Close()
	}
}

// identify says who came, and by what.
func (b *bench) identify(l *link) class {
	c := class{public: b.public, port: b.port}
	if !b.public && b.server.cfg.Identify != nil {
		l.caller = b.server.cfg.Identify(l.Conn)
	}
	l.caller.Public, l.caller.Addr = b.public, addrOf(l.RemoteAddr())
	if v, ok := l.Conn.(*Visit); ok && b.public {
		c.port, c.udp, l.asked = v.Port, v.Kind == kindUDP, v.Name
	}
	return c
}

// secure has a visitor shake hands, and serves what the server name stands for.
func (b *bench) secure(ctx context.Context, l *link, c class) {
	l.coming = c
	conn := tls.Server(l, b.server.tls)
	if err := shakeHands(ctx, conn, b.server.times.handshake); err != nil {
		b.server.log.Debug("a TLS handshake has failed", "from", l.caller.Addr, "err", err)
		l.Close()
		return
	}
	state := conn.ConnectionState()
	c.name = foldHost(state.ServerName)
	service := b.server.table.Load().find(c)
	if service == nil || !service.secured() {
		conn.Close()
		return
	}
	l.kind = service.entry.Kind
	l.class.Store(&c)
	switch {
	case l.kind == kindTLS:
		b.server.stream(ctx, l, conn, c)
	case state.NegotiatedProtocol == "h2":
		b.conns.give(conn)
	default:
		one := &secured{framed: framed{Conn: conn}, state: state}
		l.frames = &one.framed
		b.conns.give(one)
	}
}

func shakeHands(ctx context.Context, conn *tls.Conn, most time.Duration) error {
	ctx, cancel := context.WithTimeout(ctx, most)
	defer cancel()
	return conn.HandshakeContext(ctx)
}

// configFor is what a visitor who names a server shakes hands with. There is one for each name that is served here, and
// one without a certificate for all others, by which the alert is unrecognized_name (RFC 6066, section 3).
func (s *Server) configFor(hello *tls.ClientHelloInfo) (*tls.Config, error) {
	nobody := &tls.Config{MinVersion: tls.VersionTLS12, GetCertificate: noCertificate}
	l := underneath(hello.Conn)
	if l == nil {
		return nil, fmt.Errorf("a connection of another kind: %T", hello.Conn)
	}
	c := l.coming
	c.name = foldHost(hello.ServerName)
	if l.asked != "" && c.name != l.asked {
		return nobody, nil // the gateway has read another name than we do
	}
	service := s.table.Load().find(c)
	if service == nil || !service.secured() {
		return nobody, nil
	}
	if !slices.Contains(hello.SupportedVersions, tls.VersionTLS13) {
		// A ticket of TLS 1.2 holds the key of what was said, for whoever gets the key of tickets, which lives for a week;
		// TLS 1.3 agrees on a key of its own whenever a session resumes.
		cfg := service.tls.Clone()
		cfg.SessionTicketsDisabled = true
		return cfg, nil
	}
	return service.tls, nil
}

func noCertificate(*tls.ClientHelloInfo) (*tls.Certificate, error) { return nil, nil }

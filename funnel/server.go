package funnel

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"
)

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
	// GetCertificate is asked for the names of entries alone. nil: https and tls-terminated-tcp are refused.
	GetCertificate func(*tls.ClientHelloInfo) (*tls.Certificate, error)

	// Identify tells who is behind a connection from the tailnet. nil: nobody, but for the address.
	Identify func(net.Conn) Caller

	// As runs do with the rights of the user who made the entry: files, directories and Unix sockets are opened so
	// (S20). It may run on a thread of its own; what do opens is used with our rights afterwards. nil: do is called.
	As func(e Entry, do func() error) error

	// Dial reaches targets that are not on this machine. nil: as the system does.
	Dial func(ctx context.Context, network, address string) (net.Conn, error)

	Logger *slog.Logger // nil: nothing is logged

	MaxConns    int           // of visitors; zero: 10,000
	MaxEach     int           // of one source: an address, or a /64 of IPv6; zero: 512
	MaxRequests int           // at once; zero: 10,000
	Drain       time.Duration // for what is under way when a listener ends; zero: 5 s
}

// Server serves entries: the node's side of serve and funnel. NewServer makes one.
type Server struct {
	cfg ServerConfig
	log *slog.Logger

	setting sync.Mutex // one Set at a time
	table   atomic.Pointer[table]
}

// NewServer returns a Server without entries.
func NewServer(cfg ServerConfig) *Server {
	s := &Server{cfg: cfg, log: cfg.Logger}
	if s.log == nil {
		s.log = slog.New(slog.DiscardHandler)
	}
	s.table.Store(&table{})
	return s
}

// Set has these entries served from now on, by the listeners that stand and by those to come. On an error, which tells
// of all that is wrong, nothing changes. Connections and requests go on, but for those that nobody may have any more.
func (s *Server) Set(entries []Entry) error {
	s.setting.Lock()
	defer s.setting.Unlock()
	t, err := newTable(entries)
	if err != nil {
		return err
	}
	s.table.Store(t)
	return nil
}

// Serve takes visitors of a port from ln until ctx ends. The listener says what they may see: with public, entries to the
// world alone, otherwise entries to the tailnet alone. Where the listener's connections say themselves which port
// their visitors came to, as those of Ingress do, port is zero. Serve returns when all that it started has ended.
func (s *Server) Serve(ctx context.Context, ln net.Listener, port uint16, public bool) error {
	stop := context.AfterFunc(ctx, func() { ln.Close() })
	defer stop()
	for {
		conn, err := ln.Accept()
		if ctx.Err() != nil {
			if err == nil {
				conn.Close()
			}
			return nil
		}
		if err != nil {
			return fmt.Errorf("taking connections: %w", err)
		}
		conn.Close()
	}
}

// table is what is served: immutable, by class.
type table struct {
	services map[class]*service
}

// class is what a visitor came by. Whoever came by one never reaches what stands in another.
type class struct {
	public bool
	port   uint16
	name   string // of the server, as TLS or, without it, the URL has it; "" where there is none
}

type service struct{ entry Entry }

// newTable checks entries one by one, and whether they can stand beside each other.
func newTable(entries []Entry) (*table, error) {
	if len(entries) > maxEntries {
		return nil, fmt.Errorf("%d entries: at most %d", len(entries), maxEntries)
	}
	t := &table{services: map[class]*service{}}
	var errs []error
	for i, e := range entries {
		if err := e.Check(); err != nil {
			errs = append(errs, fmt.Errorf("entries[%d]: %w", i, err))
			continue
		}
		t.services[class{e.Public, e.Port, e.Name}] = &service{entry: e}
	}
	return t, errors.Join(errs...)
}

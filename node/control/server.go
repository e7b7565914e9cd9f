package control

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"sync"
	"time"
)

// The bounds of a server.
const (
	maxConns     = 4096 // at once
	maxConnsEach = 8    // from one address
	callsBurst   = 40   // calls that a node may make at once, and
	callsRefill  = 10   // a second
	writeTime    = 20 * time.Second
	settleTime   = 20 * time.Millisecond  // in which changes that follow each other become one event
	settleEach   = 100 * time.Microsecond // more for each node that is told
	settleMost   = 150 * time.Millisecond
)

// ServerConfig is what a Server needs. Registry and Key are required.
type ServerConfig struct {
	Registry *Registry
	Key      PrivateKey
	// Reach tells whether a node may have another one's endpoints: whether policy lets them speak at all. nil: it may.
	Reach  func(from, to string) bool
	Joined func() // is called when somebody has joined or keys are about to change: the tunnel's peers are other ones now; nil: nothing is
	// Publish has the zone's public name server serve the registry's Certs, which it does when Publish returns. nil: there is none
	Publish func() error
	// Query answers a DNS query from a node's address, as the public name server would; nil: nothing does
	Query func(query []byte, from netip.Addr, tcp bool) []byte
	Pace  int // how many names may get their first certificates in a week, by all nodes together; zero: 40
	// Certify has the tailnet's CA answer a node's request, DER; Root is the CA's root, PEM. nil: there is none.
	Certify func(ctx context.Context, node string, csr []byte) (chainPEM []byte, err error)
	Root    func(ctx context.Context) (rootPEM []byte, err error)
	// Register has the world see what a node shows, all of it, and says what becomes of each; Try goes a visitor's way to one of
	// them. Left is called when a node's stream has ended. nil: nothing is shown.
	Register func(ctx context.Context, node string, list []Funnel) ([]Funnel, error)
	Try      func(ctx context.Context, node string, f Funnel) (Funnel, error)
	Left     func(node string)
	Logger   *slog.Logger // nil: nothing is logged
}

// Server answers nodes, on the gateway's tailnet address.
type Server struct {
	cfg   ServerConfig
	log   *slog.Logger
	limit limiter
	queue waitingTurns
	signs signedCalls
	body  time.Duration // in which a call's body has to come

	silence time.Duration // after which a node that shows something is gone

	mu      sync.Mutex
	streams map[string]*stream // by node
	encoded map[uint64][]byte  // events of the newest map, by the version that they start from
	newest  *Map               // that they lead to
}

// stream is one node's open request for the map.
type stream struct {
	name    string
	cancel  context.CancelFunc
	connect chan Connect
	texts   chan time.Time // until when it has values here
	funnels chan []Funnel  // what has become of them
	visit   []byte         // the key of its visits

	hearing sync.Mutex
	shows   bool // something to the world
	over    bool // it is not heard any more
	out     lineWriter
}

// NewServer returns a server that does nothing until Serve.
func NewServer(cfg ServerConfig) *Server {
	s := &Server{cfg: cfg, log: cfg.Logger, streams: map[string]*stream{}, encoded: map[uint64][]byte{}}
	s.limit, s.body, s.silence = newLimiter(callsBurst, callsRefill), callTimeout, silenceTime
	if s.log == nil {
		s.log = slog.New(slog.DiscardHandler)
	}
	if s.cfg.Reach == nil {
		s.cfg.Reach = func(string, string) bool { return true }
	}
	if s.cfg.Joined == nil {
		s.cfg.Joined = func() {}
	}
	if s.cfg.Publish == nil {
		s.cfg.Publish = func() error { return nil }
	}
	if s.cfg.Left == nil {
		s.cfg.Left = func(string) {}
	}
	if s.cfg.Query == nil {
		s.cfg.Query = func([]byte, netip.Addr, bool) []byte { return nil }
	}
	s.signs = newSignedCalls(cfg.Registry.cfg.Now())
	return s
}

// Serve answers calls on ln, whose connections have come through the tunnel, until ctx ends.
func (s *Server) Serve(ctx context.Context, ln net.Listener) error {
	config, err := s.cfg.Key.TLS(func(ControlKey) bool { return false })
	if err != nil {
		return err
	}
	each := config.Clone()
	config.GetConfigForClient = func(hello *tls.ClientHelloInfo) (*tls.Config, error) {
		source := sourceOf(hello.Conn.RemoteAddr())
		one := each.Clone()
		verifyBy(one, alpn, func(key ControlKey) bool { return s.cfg.Registry.knows(key, source) })
		return one, nil
	}
	server := &http.Server{
		Handler:           s.routes(),
		ReadHeaderTimeout: callTimeout,
		IdleTimeout:       2 * pingInterval,
		MaxHeaderBytes:    maxHeader,
		BaseContext:       func(net.Listener) context.Context { return ctx },
		ConnContext: func(ctx context.Context, c net.Conn) context.Context {
			return context.WithValue(ctx, callerKey{}, c.(secured).Conn)
		},
		ErrorLog: slog.NewLogLogger(s.log.Handler(), slog.LevelDebug),
	}
	stop := context.AfterFunc(ctx, func() { server.Close() })
	defer stop()
	err = server.Serve(&securedListener{limitListener(ln), config})
	if ctx.Err() != nil || errors.Is(err, http.ErrServerClosed) {
		return nil
	}
	return fmt.Errorf("serving control calls: %w", err)
}

// callerKey is the key of a request's connection in its context.
type callerKey struct{}

// securedListener makes TLS connections that net/http does not know for such: it closes those that speak, by their ALPN,
// anything but HTTP.
type securedListener struct {
	net.Listener

	config *tls.Config
}

type secured struct{ *tls.Conn }

func (l *securedListener) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	return secured{tls.Server(c, l.config)}, nil
}

// sourceOf is the address that a connection came from.
func sourceOf(a net.Addr) netip.Addr {
	ap, err := netip.ParseAddrPort(a.String())
	if err != nil {
		return netip.Addr{}
	}
	return ap.Addr().Unmap().WithZone("")
}

func (s *Server) routes() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("POST "+pathJoin, s.join)
	mux.HandleFunc("POST "+pathMap, s.mapStream)
	mux.HandleFunc("POST "+pathReport, s.asNode(s.report))
	mux.HandleFunc("POST "+pathConnect, s.asNode(s.connect))
	mux.HandleFunc("POST "+pathRotate, s.asNode(s.rotate))
	s.certRoutes(mux)
	s.funnelRoutes(mux)
	mux.HandleFunc("POST "+pathCertify, s.asNode(s.certify))
	mux.HandleFunc("POST "+pathRoot, s.asNode(s.root))
	mux.HandleFunc("POST "+pathSign, s.asNode(s.sign))
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Date", s.cfg.Registry.cfg.Now().UTC().Format(http.TimeFormat)) // by which a node sees that a clock is wrong
		// What takes values away is never put off: they would stay.
		if r.Method != http.MethodDelete && !s.limit.allow(sourceOf(addrOf(r)), time.Now()) {
			s.fail(w, refuse(http.StatusTooManyRequests, codeBusy, "too many calls"))
			return
		}
		mux.ServeHTTP(w, r)
	})
}

// addrOf is the other end of a request's connection, in the form of net.Addr.
func addrOf(r *http.Request) net.Addr {
	ap, _ := netip.ParseAddrPort(r.RemoteAddr) // which net/http wrote
	return net.TCPAddrFromAddrPort(ap)
}

// who are the key and the address of whoever calls.
func who(r *http.Request) (ControlKey, netip.Addr, error) {
	conn, ok := r.Context().Value(callerKey{}).(*tls.Conn)
	if !ok {
		return ControlKey{}, netip.Addr{}, refuse(http.StatusForbidden, codeNotYou, "the call did not come under TLS")
	}
	key, err := peerKey(conn.ConnectionState())
	return key, sourceOf(addrOf(r)), err
}

// asNode answers calls of nodes only. The registry is asked at each of them: a node may be removed while it is connected.
func (s *Server) asNode(do nodeCall) http.HandlerFunc { return s.asNodeWithin(maxBody, do) }

// nodeCall does what a node asks for.
type nodeCall = func(ctx context.Context, name string, body io.Reader) (any, error)

// asNodeWithin is asNode with another bound of the body.
func (s *Server) asNodeWithin(limit int64, do nodeCall) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		name, err := s.node(r)
		if err != nil {
			s.fail(w, err)
			return
		}
		answer, err := do(r.Context(), name, s.bodyOf(w, r, limit))
		if err != nil {
			s.fail(w, err)
			return
		}
		s.answer(w, answer)
	}
}

func (s *Server) node(r *http.Request) (string, error) {
	key, source, err := who(r)
	if err != nil {
		return "", err
	}
	return s.cfg.Registry.caller(key, source)
}

// timedBody is a call's body, which has to come in time and be no longer than its bound.
type timedBody struct {
	io.Reader

	control *http.ResponseController
}

func (s *Server) bodyOf(w http.ResponseWriter, r *http.Request, limit int64) io.Reader {
	b := timedBody{http.MaxBytesReader(w, r.Body, limit), http.NewResponseController(w)}
	if err := b.control.SetReadDeadline(time.Now().Add(s.body)); err != nil {
		s.log.Error("a call's body has no bound in time", "err", err)
	}
	return b
}

// Read reads the body. At its end the time is over with it: what the call asks for may take longer, and net/http listens
// meanwhile for the connection's end.
func (b timedBody) Read(p []byte) (int, error) {
	n, err := b.Reader.Read(p)
	if errors.Is(err, io.EOF) {
		if clear := b.control.SetReadDeadline(time.Time{}); clear != nil {
			return n, clear
		}
	}
	return n, err
}

// decode reads a call's body, all of it and nothing else.
func decode(body io.Reader, into any) error {
	data, err := io.ReadAll(body)
	if err == nil {
		d := json.NewDecoder(bytes.NewReader(data))
		if err = d.Decode(into); err == nil && d.More() {
			err = errors.New("there is more behind it")
		}
	}
	if err != nil {
		return refuse(http.StatusBadRequest, codeBad, "the call cannot be read: %v", err)
	}
	return nil
}

func (s *Server) answer(w http.ResponseWriter, answer any) {
	data, err := json.Marshal(answer)
	if err != nil {
		s.fail(w, err)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	if _, err := w.Write(data); err != nil {
		s.log.Debug("a call's answer was not taken", "err", err)
	}
}

// fail tells why a call is refused. What went wrong inside is for the log.
func (s *Server) fail(w http.ResponseWriter, err error) {
	var refused *RefusedError
	if !errors.As(err, &refused) {
		s.log.Error("a call failed", "err", err)
		refused = &RefusedError{Status: http.StatusInternalServerError, Code: codeBusy, Message: "the gateway could not do that"}
		var unwritten *unwrittenError
		if errors.As(err, &unwritten) {
			refused.Message = "the gateway's disk does not take the change; its owner has to make space"
		}
	}
	data, err := json.Marshal(refused)
	if err != nil {
		s.log.Error("a refusal cannot be written", "err", err)
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(refused.Status)
	_, _ = w.Write(data) // if it is not taken nobody is there
}

func (s *Server) join(w http.ResponseWriter, r *http.Request) {
	key, source, err := who(r)
	var req JoinRequest
	if err == nil {
		err = decode(s.bodyOf(w, r, maxBody), &req)
	}
	var answer JoinAnswer
	if err == nil {
		answer, err = s.cfg.Registry.Join(r.Context(), source, key, req)
	}
	if err != nil {
		s.fail(w, err)
		return
	}
	s.cfg.Joined()
	s.answer(w, answer)
}

func (s *Server) report(_ context.Context, name string, body io.Reader) (any, error) {
	var report Report
	if err := decode(body, &report); err != nil {
		return nil, err
	}
	s.cfg.Registry.Take(name, report)
	return struct{}{}, nil
}

func (s *Server) rotate(ctx context.Context, name string, body io.Reader) (any, error) {
	var by Rotation
	if err := decode(body, &by); err != nil {
		return nil, err
	}
	if err := s.cfg.Registry.Rotate(ctx, name, by); err != nil {
		return nil, err
	}
	s.cfg.Joined()
	return struct{}{}, nil
}

// sign takes the owner's signatures from a node. A gateway that does not know the owner's keys could not tell them from
// anybody else's.
func (s *Server) sign(ctx context.Context, _ string, body io.Reader) (any, error) {
	var signatures map[string]Signature
	if err := decode(body, &signatures); err != nil {
		return nil, err
	}
	switch {
	case len(s.cfg.Registry.cfg.Lock) == 0:
		return nil, refuse(http.StatusForbidden, codeNoLock, "the gateway has no lock in its configuration")
	case len(signatures) > maxSignatures:
		return nil, refuse(http.StatusBadRequest, codeBad, "more than %d signatures", maxSignatures)
	}
	var failed error // one node that has changed meanwhile keeps the others from nothing
	for _, name := range slices.Sorted(maps.Keys(signatures)) {
		if err := s.cfg.Registry.Sign(ctx, name, signatures[name]); err != nil && failed == nil {
			failed = err
		}
	}
	return struct{}{}, failed
}

// connect tells a node where another one may be reached, and that one likewise, so that both send at once.
func (s *Server) connect(_ context.Context, name string, body io.Reader) (any, error) {
	var with Connect
	if err := decode(body, &with); err != nil {
		return nil, err
	}
	endpoints := s.cfg.Registry.Endpoints(with.Node)
	if with.Node == name || !s.cfg.Reach(name, with.Node) && !s.cfg.Reach(with.Node, name) {
		return nil, unknownNode(with.Node)
	}
	s.Introduce(with.Node, name)
	return Connect{Node: with.Node, Endpoints: endpoints}, nil
}

// Introduce asks a node to send packets to another one's endpoints. A node that is not connected, or has not taken those
// before, is not waited for.
func (s *Server) Introduce(name, to string) {
	endpoints := s.cfg.Registry.Endpoints(to)
	s.mu.Lock()
	defer s.mu.Unlock()
	if st := s.streams[name]; st != nil {
		select {
		case st.connect <- Connect{Node: to, Endpoints: endpoints}:
		default:
		}
	}
}

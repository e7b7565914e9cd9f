package node

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"sync/atomic"
	"syscall"
	"time"
)

// The bounds of the control socket. Everybody on the machine can connect to it.
const (
	maxControlConns  = 64
	maxControlHeader = 16 << 10
	maxControlBody   = 64 << 10
	headerTimeout    = 5 * time.Second
	requestTimeout   = 10 * time.Second
	idleTimeout      = 30 * time.Second
	// answerTimeout leaves room for the slowest answers, those to dns/apply and down.
	answerTimeout = 30 * time.Second
	dialTimeout   = 2 * time.Second
)

// controlHost is the Host of every request. A browser cannot send it to a Unix socket, but a proxy that somebody put
// before the socket would pass another one on.
const controlHost = "meshdns"

// caller is who asks on the control socket.
type caller struct {
	operator bool   // root, or the user that the node runs as: may change (S20)
	serves   bool   // may serve things, and end what is its own
	uid      uint32 // of the user; of an operator, and of whom nothing is known, 0
}

// endpoint is one method and path of the control API.
type endpoint struct {
	pattern  string // as http.ServeMux takes it
	operator bool   // for the operator alone
	serves   bool   // and for those who may serve
	serve    func(r *http.Request, who caller) (any, error)
	stream   http.Handler // instead of serve, where the answer is not JSON
}

// localAPI serves the control API on a Unix socket.
type localAPI struct {
	endpoints []endpoint
	serving   []uint32 // users who may serve
	maxConns  int      // maxControlConns if zero
	log       *slog.Logger

	shed   atomic.Uint64 // connections closed at the bound
	ln     net.Listener
	server *http.Server
}

// listenControl opens the control socket for everybody to connect to; who may do what is decided by the peer's
// credentials. The socket of a process that died is removed, one that answers is errRunning.
func listenControl(path string) (*net.UnixListener, error) {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return nil, fmt.Errorf("opening the control socket: %w", err)
	}
	if err := removeStale(path); err != nil {
		return nil, err
	}
	ln, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		// The kernels' bound is 104 to 108 bytes and the message for it is "invalid argument".
		return nil, hinted(nil, fmt.Errorf("opening the control socket: %w", err),
			"choose another place with --socket, at most 103 bytes long")
	}
	if err := os.Chmod(path, 0o666); err != nil {
		ln.Close()
		return nil, fmt.Errorf("opening the control socket: %w", err)
	}
	return ln, nil
}

// removeStale removes the socket at path if nobody answers on it. Anything else there stays and is an error.
func removeStale(path string) error {
	info, err := os.Lstat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("opening the control socket: %w", err)
	}
	if info.Mode()&fs.ModeSocket == 0 {
		return hinted(nil, fmt.Errorf("opening the control socket: %s is not a socket", path),
			"move it away, or choose another place with --socket")
	}
	if answers(path) {
		return runningError("it answers at " + path)
	}
	if err := os.Remove(path); err != nil {
		return fmt.Errorf("removing a dead process's socket: %w", err)
	}
	return nil
}

// answers reports whether a process accepts connections at path. One that is too busy to do so counts: its socket
// must not be taken away.
func answers(path string) bool {
	conn, err := net.DialTimeout("unix", path, dialTimeout)
	if err == nil {
		conn.Close()
		return true
	}
	// A path that is too long for a socket is an invalid argument: no process can be there.
	return !errors.Is(err, fs.ErrNotExist) && !isRefused(err) && !errors.Is(err, syscall.EINVAL)
}

// open makes the server for ln, whose socket exists already. Serve then answers.
func (c *localAPI) open(ln net.Listener) {
	c.ln = &boundedListener{Listener: ln, slots: make(chan struct{}, c.bound()), shed: &c.shed}
	c.server = &http.Server{
		Handler:           c.handler(),
		ReadHeaderTimeout: headerTimeout,
		ReadTimeout:       requestTimeout,
		WriteTimeout:      answerTimeout,
		IdleTimeout:       idleTimeout,
		MaxHeaderBytes:    maxControlHeader,
		ConnContext:       c.identify,
		ErrorLog:          slog.NewLogLogger(c.log.Handler(), slog.LevelDebug),
	}
}

func (c *localAPI) bound() int {
	if c.maxConns == 0 {
		return maxControlConns
	}
	return c.maxConns
}

// serve answers until close is called.
func (c *localAPI) serve() error {
	if err := c.server.Serve(c.ln); !errors.Is(err, http.ErrServerClosed) && !errors.Is(err, net.ErrClosed) {
		return fmt.Errorf("serving the control socket: %w", err)
	}
	return nil
}

// refuse ends the accepting of connections and removes the socket; requests in flight go on until drain.
func (c *localAPI) refuse() { c.ln.Close() }

// drain waits for the requests in flight, then closes what is left of them when ctx ends.
func (c *localAPI) drain(ctx context.Context) {
	if err := c.server.Shutdown(ctx); err != nil {
		c.server.Close()
	}
}

// callerKey is the context key of the connection's caller.
type callerKey struct{}

// identify looks at a connection's peer once, when it is accepted (S20).
func (c *localAPI) identify(ctx context.Context, conn net.Conn) context.Context {
	var who caller
	if bounded, ok := conn.(*boundedConn); ok {
		if unix, ok := bounded.Conn.(*net.UnixConn); ok {
			uid, err := peerUID(unix)
			if err != nil {
				c.log.Debug("unknown caller on the control socket", "err", err)
			}
			who.operator = err == nil && (uid == 0 || uid == os.Geteuid())
			if err == nil && !who.operator && uid > 0 {
				who.uid, who.serves = uint32(uid), slices.Contains(c.serving, uint32(uid))
			}
		}
	}
	return context.WithValue(ctx, callerKey{}, who)
}

// callerOf is who made a request.
func callerOf(r *http.Request) caller {
	who, _ := r.Context().Value(callerKey{}).(caller)
	return who
}

// handler routes requests to the endpoints.
func (c *localAPI) handler() http.Handler {
	mux := http.NewServeMux()
	for _, e := range c.endpoints {
		mux.HandleFunc(e.pattern, func(w http.ResponseWriter, r *http.Request) { c.answer(w, r, e) })
	}
	mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		c.fail(w, hinted(ErrNotFound, fmt.Errorf("no such call: %s %s", r.Method, r.URL.Path), ""))
	})
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if err := vetRequest(r); err != nil {
			c.fail(w, err)
			return
		}
		r.Body = http.MaxBytesReader(w, r.Body, maxControlBody)
		mux.ServeHTTP(w, r)
	})
}

// vetRequest refuses what a web page could have caused: browsers add Origin to whatever a page sends elsewhere.
func vetRequest(r *http.Request) error {
	switch {
	case r.Header.Get("Origin") != "":
		return hinted(ErrNotPermitted, errors.New("requests of web pages are refused"), "")
	case r.Host != controlHost:
		return hinted(ErrBadRequest, fmt.Errorf("the host must be %q", controlHost), "")
	}
	return nil
}

// answer serves one request.
func (c *localAPI) answer(w http.ResponseWriter, r *http.Request, e endpoint) {
	who := callerOf(r)
	if e.operator && !who.operator && (!e.serves || !who.serves) {
		c.fail(w, hinted(ErrNotPermitted, errors.New("only root and the daemon's own user may do that"),
			"run the same command with sudo"))
		return
	}
	if e.stream != nil {
		e.stream.ServeHTTP(w, r)
		return
	}
	result, err := e.serve(r, who)
	if err != nil {
		c.fail(w, err)
		return
	}
	c.write(w, http.StatusOK, result)
}

// problem is how an error crosses the socket.
type problem struct {
	Schema string `json:"schema"`
	Kind   string `json:"kind"`
	Error  string `json:"error"`
	Hint   string `json:"hint,omitempty"`
}

// errorKind is an error that keeps its identity across the socket, with its HTTP status.
type errorKind struct {
	name   string
	status int
	err    error
}

func errorKinds() []errorKind {
	return []errorKind{
		{"not_permitted", http.StatusForbidden, ErrNotPermitted},
		{"not_found", http.StatusNotFound, ErrNotFound},
		{"timeout", http.StatusGatewayTimeout, ErrTimeout},
		{"bad_request", http.StatusBadRequest, ErrBadRequest},
		{"stale", http.StatusPreconditionFailed, errStale},
	}
}

// fail answers with err.
func (c *localAPI) fail(w http.ResponseWriter, err error) {
	p, status := describeError(err)
	c.write(w, status, p)
}

// describeError is err as it crosses the socket, with its HTTP status.
func describeError(err error) (p problem, status int) {
	p = problem{Schema: "meshdns.error/v1", Kind: "failed", Error: err.Error(), Hint: hintOf(err)}
	for _, k := range errorKinds() {
		if errors.Is(err, k.err) || k.err == ErrTimeout && isTimeout(err) {
			p.Kind = k.name
			return p, k.status
		}
	}
	return p, http.StatusInternalServerError
}

func (c *localAPI) write(w http.ResponseWriter, status int, v any) {
	body, err := json.Marshal(v)
	if err != nil {
		c.log.Error("an answer on the control socket does not encode", "err", err)
		http.Error(w, "encoding the answer", http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	// The caller may have gone; there is nobody to tell.
	_, _ = w.Write(append(body, '\n'))
}

// decode reads a request's body of one JSON value into v.
func decode(r *http.Request, v any) error {
	d := json.NewDecoder(r.Body)
	d.DisallowUnknownFields()
	if err := d.Decode(v); err != nil {
		return hinted(ErrBadRequest, fmt.Errorf("reading the request: %w", err), "")
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return hinted(ErrBadRequest, errors.New("reading the request: more than one value"), "")
	}
	return nil
}

// boundedListener closes at once what comes in above its bound: whoever waits in a queue without an end can be kept
// waiting for ever.
type boundedListener struct {
	net.Listener
	slots chan struct{}
	shed  *atomic.Uint64
}

// Accept returns the next connection within the bound.
func (l *boundedListener) Accept() (net.Conn, error) {
	for {
		conn, err := l.Listener.Accept()
		if err != nil {
			return nil, err
		}
		select {
		case l.slots <- struct{}{}:
			return &boundedConn{Conn: conn, slots: l.slots}, nil
		default:
			l.shed.Add(1)
			conn.Close()
		}
	}
}

// boundedConn gives its place back when it is closed.
type boundedConn struct {
	net.Conn
	slots  chan struct{}
	closed atomic.Bool
}

// Close closes the connection.
func (c *boundedConn) Close() error {
	if c.closed.CompareAndSwap(false, true) {
		<-c.slots
	}
	return c.Conn.Close()
}

// free is the connection alone, which has no place among the bounded ones any more.
func (c *boundedConn) free() net.Conn {
	if c.closed.CompareAndSwap(false, true) {
		<-c.slots
	}
	return c.Conn
}

package funnel

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httputil"
	"net/url"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// How targets are treated.
const (
	reachTarget   = 10 * time.Second // to open a connection
	answerTime    = 2 * time.Minute  // until an answer starts, where the mount does not say
	idleTarget    = 30 * time.Second // a connection waits so long for another request
	idleEach      = 64
	idleAll       = 256
	flushTime     = 50 * time.Millisecond
	maxAnswerHead = 256 << 10
	transportSize = 16 << 10
)

// statusGone is what the access log has of a visitor who went away before the answer, as nginx writes it.
const statusGone = 499

// proxy is a mount whose target speaks HTTP.
type proxy struct {
	server *Server
	entry  Entry
	mount  Mount
	target target
	rp     *httputil.ReverseProxy
	web    *http.Transport // HTTP/1.1, and HTTP/2 where the target offers it in TLS
	calls  *http.Transport // HTTP/2 alone, in TLS or without: gRPC
}

func (s *Server) newProxy(e Entry, m Mount, t target) *proxy {
	p := &proxy{server: s, entry: e, mount: m, target: t}
	p.web, p.calls = p.transport(), p.transport()
	p.web.ResponseHeaderTimeout = answerTime
	if m.Wait > 0 {
		p.web.ResponseHeaderTimeout = m.Wait
	}
	p.web.Protocols, p.calls.Protocols = new(http.Protocols), new(http.Protocols)
	p.web.Protocols.SetHTTP1(true)
	p.web.Protocols.SetHTTP2(t.tls)
	p.calls.Protocols.SetHTTP2(t.tls)
	p.calls.Protocols.SetUnencryptedHTTP2(!t.tls)
	p.rp = &httputil.ReverseProxy{
		Rewrite:        p.rewrite,
		Transport:      p,
		FlushInterval:  flushTime,
		BufferPool:     buffers{s.chunks},
		ModifyResponse: p.answer,
		ErrorHandler:   p.failed,
		ErrorLog:       slog.NewLogLogger(s.log.Handler(), slog.LevelDebug),
	}
	return p
}

// close lets go of connections that nothing goes over.
func (p *proxy) close() {
	p.web.CloseIdleConnections()
	p.calls.CloseIdleConnections()
}

// ServeHTTP passes a request on.
func (p *proxy) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if strings.Contains(strings.Join(r.Header["Via"], ","), p.server.name) {
		writePage(w, r, page{status: http.StatusLoopDetected, detail: "the target " + p.target.String() + " leads back here"})
		return
	}
	p.rp.ServeHTTP(w, r)
}

// RoundTrip sends a request over the transport of its kind.
func (p *proxy) RoundTrip(r *http.Request) (*http.Response, error) {
	if isGRPC(r) {
		return p.calls.RoundTrip(r)
	}
	return p.web.RoundTrip(r)
}

// rewrite makes the target's request of the visitor's.
func (p *proxy) rewrite(pr *httputil.ProxyRequest) {
	in, out := pr.In, pr.Out
	out.URL = p.url(in)
	out.Host = in.Host
	forward(out, in)
	via := fmt.Sprintf("%d.%d %s", in.ProtoMajor, in.ProtoMinor, p.server.name)
	out.Header["Via"] = append(out.Header["Via"], via)
	p.mount.Headers.ask(out)
	if p.mount.Path != "/" {
		out.Header.Set("X-Forwarded-Prefix", p.mount.Path)
	}
	if out.Body != nil {
		out.Body = &watchedBody{ReadCloser: out.Body, in: in, out: out}
		for name := range out.Trailer {
			if isOurs(name) || isFraming(http.CanonicalHeaderKey(folded(name))) {
				delete(out.Trailer, name)
			}
		}
	}
}

// url is where a request goes. Its host names a pool of connections: one for all, or, where a connection begins with the
// address of its visitor, one for each visitor.
func (p *proxy) url(in *http.Request) *url.URL {
	escaped := p.target.base + restOf(in.Context())
	if !strings.HasPrefix(escaped, "/") {
		escaped = "/" + escaped
	}
	u := &url.URL{Scheme: "http", Host: "target", RawQuery: in.URL.RawQuery, ForceQuery: in.URL.ForceQuery}
	if p.target.tls {
		u.Scheme = "https"
	}
	if p.target.query != "" {
		u.RawQuery = strings.TrimSuffix(p.target.query+"&"+u.RawQuery, "&")
	}
	if caller, ok := callerOf(in.Context()); ok && p.entry.ProxyProtocol != 0 {
		u.Host = hex.EncodeToString([]byte(caller.Addr.String()))
	}
	plain, err := url.PathUnescape(escaped)
	if err != nil {
		plain = escaped
	}
	u.Path, u.RawPath = plain, escaped
	return u
}

// answer looks at what the target answers before the visitor gets it.
func (p *proxy) answer(res *http.Response) error {
	r := res.Request
	if res.StatusCode == http.StatusSwitchingProtocols {
		l := linkOf(r.Context())
		if l == nil || r.Header.Get("Upgrade") != "websocket" {
			return errors.New("it changes to a protocol that nobody has asked for")
		}
		l.passRaw()
	}
	// The target would be reached past us: ports and protocols here are ours.
	res.Header.Del("Alt-Svc")
	p.mount.Headers.answer(res.Header)
	return nil
}

// failed answers in the place of a target that does not.
func (p *proxy) failed(w http.ResponseWriter, r *http.Request, err error) {
	body, _ := r.Body.(*watchedBody)
	status := http.StatusBadGateway
	var timeout net.Error
	switch cause := context.Cause(r.Context()); {
	case errors.Is(cause, errOver):
		writePage(w, r, page{status: http.StatusServiceUnavailable, last: true})
		return
	case body != nil && (body.broken() || linkOf(r.Context()).wrong()):
		writePage(w, r, page{status: http.StatusBadRequest, last: true})
		return
	case cause != nil:
		w.WriteHeader(statusGone)
		return
	case errors.Is(err, context.DeadlineExceeded), errors.Is(err, os.ErrDeadlineExceeded), errors.As(err, &timeout) && timeout.Timeout():
		status = http.StatusGatewayTimeout
	}
	p.server.log.Debug("a target does not answer", "target", p.target.String(), "err", err)
	writePage(w, r, page{status: status, detail: p.target.String() + ": " + reason(err)})
}

// reason is an error without the addresses around it, which are those of a pool here.
func reason(err error) string {
	var op *net.OpError
	if errors.As(err, &op) {
		err = op.Err
	}
	var call *os.SyscallError
	if errors.As(err, &call) {
		err = call.Err
	}
	return err.Error()
}

// ask changes the headers of a request. A Host is set apart, as net/http has it.
func (h HeaderRules) ask(r *http.Request) {
	for _, name := range h.Remove {
		r.Header.Del(name)
	}
	for name, value := range h.Set {
		if strings.EqualFold(name, "Host") {
			r.Host = value
			continue
		}
		r.Header.Set(name, value)
	}
}

// watchedBody is a body on its way to the target: whose fault it was if it does not come, and what comes behind it.
type watchedBody struct {
	io.ReadCloser

	in, out *http.Request
	failed  atomic.Bool
}

func (b *watchedBody) Read(p []byte) (int, error) {
	n, err := b.ReadCloser.Read(p)
	switch {
	case errors.Is(err, io.EOF):
		// ReverseProxy has copied the names of trailers (RFC 9110, section 6.5); the values are there only now.
		for name := range b.out.Trailer {
			b.out.Trailer[name] = b.in.Trailer[name]
		}
	case err != nil:
		b.failed.Store(true)
	}
	return n, err
}

// broken says whether the visitor did not send what was promised.
func (b *watchedBody) broken() bool { return b.failed.Load() }

// buffers lends what answers are copied with.
type buffers struct{ pool *sync.Pool }

func (b buffers) Get() []byte  { return b.pool.Get().(*chunk)[:] }
func (b buffers) Put(p []byte) { b.pool.Put((*chunk)(p)) }

// newPseudonym is a name for one server in Via headers (RFC 9110, section 7.6.3), by which it knows its own requests.
func newPseudonym() string {
	var raw [8]byte
	_, _ = rand.Read(raw[:]) // which never fails
	return "meshdns-" + hex.EncodeToString(raw[:])
}

package funnel

import (
	"bufio"
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// maxLogLine is more than any line has: what visitors say in it is cut off before.
const maxLogLine = 16384

// AccessLogConfig says what becomes of the visits. The zero value: nothing.
type AccessLogConfig struct {
	Writer    io.Writer        // gets a line a visit, in one Write; nil: none
	Format    string           // json or combined; empty: json
	Addresses bool             // whether lines for Writer hold visitors' addresses
	Visited   func(AccessLine) // is told of each visit at its end, with the address; must not wait; nil: nobody is
}

// AccessLine is one visit: a request, or a connection to an entry of a bare kind. What opens doors is struck from it.
type AccessLine struct {
	Time    time.Time `json:"time"` // of its start
	Entry   string    `json:"entry"`
	Public  bool      `json:"public"`
	Addr    string    `json:"addr,omitempty"`
	Node    string    `json:"node,omitempty"` // of the tailnet
	User    string    `json:"user,omitempty"` // as which the visitor logged in
	Method  string    `json:"method,omitempty"`
	Path    string    `json:"path,omitempty"` // with the query
	Proto   string    `json:"proto,omitempty"`
	Status  int       `json:"status,omitempty"`
	Bytes   int64     `json:"bytes"` // of the answer's body
	Seconds float64   `json:"seconds"`
	Referer string    `json:"referer,omitempty"`
	Agent   string    `json:"agent,omitempty"`
}

// Combined is the line in the combined format of web servers.
func (l AccessLine) Combined() string {
	or := func(s string) string {
		if s == "" {
			return "-"
		}
		return s
	}
	request := "-"
	if l.Method != "" {
		request = l.Method + " " + l.Path + " " + l.Proto
	}
	user := strings.ReplaceAll(quoted(l.User), " ", `\x20`)
	return fmt.Sprintf(`%s - %s [%s] "%s" %d %d "%s" "%s"`,
		or(l.Addr), or(user), l.Time.Format("02/Jan/2006:15:04:05 -0700"), quoted(request), l.Status, l.Bytes,
		quoted(or(l.Referer)), quoted(or(l.Agent)))
}

// quoted is s with everything written out that could end a field or a line, or steer a terminal.
func quoted(s string) string {
	const hex = "0123456789abcdef"
	var b strings.Builder
	for i := range len(s) {
		switch c := s[i]; {
		case c == '"' || c == '\\':
			b.WriteByte('\\')
			b.WriteByte(c)
		case c < ' ' || c >= 0x7f:
			b.WriteString(`\x`)
			b.WriteByte(hex[c>>4])
			b.WriteByte(hex[c&15])
		default:
			b.WriteByte(c)
		}
	}
	return b.String()
}

// accessLog writes visits down.
type accessLog struct {
	cfg AccessLogConfig
	log *slog.Logger

	failing atomic.Bool // so that a full disk is told of once

	mu sync.Mutex // lines are whole
}

func newAccessLog(cfg AccessLogConfig, log *slog.Logger) *accessLog {
	return &accessLog{cfg: cfg, log: log}
}

func (l *accessLog) off() bool { return l == nil || l.cfg.Writer == nil && l.cfg.Visited == nil }

// wrap has a visit of an entry written down when next is done with it. It goes outside of the guard.
func (l *accessLog) wrap(entry string, next http.Handler) http.Handler {
	if l.off() {
		return next
	}
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		start := time.Now()
		p, r := passageOf(r)
		// Further in, the request may be changed.
		line := AccessLine{
			Time: start, Entry: entry,
			Method: bounded(r.Method, 32), Path: strikePath(r.URL), Proto: bounded(r.Proto, 16),
			Referer: strikeReferer(r.Header.Get("Referer")), Agent: bounded(r.Header.Get("User-Agent"), maxLogField),
		}
		c, _ := callerOf(r.Context())
		counted := &countedWriter{ResponseWriter: w}
		defer func() {
			line.User, line.Status, line.Bytes = bounded(p.login.User, maxWord), counted.status, counted.bytes.Load()
			if line.Status == 0 {
				line.Status = http.StatusOK
			}
			l.end(line, c)
		}()
		next.ServeHTTP(counted, r)
	})
}

// connection writes down a connection to an entry of a bare kind, which ended now.
func (l *accessLog) connection(entry string, c Caller, start time.Time, bytes int64) {
	if !l.off() {
		l.end(AccessLine{Time: start, Entry: entry, Bytes: bytes}, c)
	}
}

// end says who it was, and hands the line on.
func (l *accessLog) end(line AccessLine, c Caller) {
	line.Seconds = float64(time.Since(line.Time).Microseconds()) / 1e6
	line.Public, line.Node = c.Public, c.Node
	if c.Addr.IsValid() {
		line.Addr = c.Addr.Addr().Unmap().String()
	}
	if l.cfg.Visited != nil {
		l.cfg.Visited(line)
	}
	if l.cfg.Writer == nil {
		return
	}
	if !l.cfg.Addresses {
		line.Addr = ""
	}
	text, err := l.text(line)
	if err != nil {
		return // a line is numbers and strings: there is nothing in it that JSON has not
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	// A visitor is served whether or not it can be written down.
	if _, err := l.cfg.Writer.Write(text); (err != nil) != l.failing.Swap(err != nil) && l.log != nil {
		if err != nil {
			l.log.Warn("the access log cannot be written", "err", err)
		} else {
			l.log.Info("the access log is written again")
		}
	}
}

func (l *accessLog) text(line AccessLine) ([]byte, error) {
	if l.cfg.Format == "combined" {
		return append([]byte(line.Combined()), '\n'), nil
	}
	var text bytes.Buffer
	encoder := json.NewEncoder(&text)
	encoder.SetEscapeHTML(false)
	err := encoder.Encode(line)
	return text.Bytes(), err
}

// countedWriter is an answer whose status and bytes are seen. What else the server's own can do is found by Unwrap.
type countedWriter struct {
	http.ResponseWriter

	status int
	bytes  atomic.Int64 // after a Hijack others write, too
}

func (w *countedWriter) Unwrap() http.ResponseWriter { return w.ResponseWriter }

func (w *countedWriter) WriteHeader(status int) {
	if w.status == 0 && (status >= 200 || status == http.StatusSwitchingProtocols) {
		w.status = status
	}
	w.ResponseWriter.WriteHeader(status)
}

func (w *countedWriter) Write(p []byte) (int, error) {
	if w.status == 0 {
		w.status = http.StatusOK
	}
	n, err := w.ResponseWriter.Write(p)
	w.bytes.Add(int64(n))
	return n, err
}

// ReadFrom lets files and sockets be sent without copying them through this process, where the server can.
func (w *countedWriter) ReadFrom(r io.Reader) (int64, error) {
	if w.status == 0 {
		w.status = http.StatusOK
	}
	n, err := io.Copy(w.ResponseWriter, r)
	w.bytes.Add(n)
	return n, err
}

// Flush sends what was written so far.
func (w *countedWriter) Flush() { _ = http.NewResponseController(w.ResponseWriter).Flush() }

// Hijack hands the connection over, counted.
func (w *countedWriter) Hijack() (net.Conn, *bufio.ReadWriter, error) {
	conn, rw, err := http.NewResponseController(w.ResponseWriter).Hijack()
	if err != nil {
		return nil, nil, err
	}
	w.status = http.StatusSwitchingProtocols
	return &loggedConn{Conn: conn, bytes: &w.bytes}, rw, nil
}

// loggedConn counts what is written to a connection that was handed over.
type loggedConn struct {
	net.Conn

	bytes *atomic.Int64
}

func (c *loggedConn) Write(p []byte) (int, error) {
	n, err := c.Conn.Write(p)
	c.bytes.Add(int64(n))
	return n, err
}

// CloseWrite ends our side of the connection, where it has sides.
func (c *loggedConn) CloseWrite() error { return closeWrite(c.Conn) }

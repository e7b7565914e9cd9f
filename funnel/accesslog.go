package funnel

import (
	"io"
	"log/slog"
	"net/http"
	"time"
)

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

// accessLog writes visits down.
type accessLog struct {
	cfg AccessLogConfig
	log *slog.Logger
}

func newAccessLog(cfg AccessLogConfig, log *slog.Logger) *accessLog {
	return &accessLog{cfg: cfg, log: log}
}

// wrap has a visit of an entry written down when next is done with it. It goes outside of the guard.
func (l *accessLog) wrap(entry string, next http.Handler) http.Handler { return next }

// connection writes down a connection to an entry of a bare kind, which ended now.
func (l *accessLog) connection(entry string, c Caller, start time.Time, bytes int64) {}

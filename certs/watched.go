package certs

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/mholt/acmez/v3/acme"
)

// maxAnswer is how much of a CA's answer is read. A certificate chain has some kilobytes.
const maxAnswer = 1 << 20

// watched is HTTP to a CA with a bound on what is read, that notes when the CA wants to be asked again.
type watched struct{ *http.Transport }

// newWatched returns one that trusts roots, or the system if that is nil.
func newWatched(roots *x509.CertPool) watched {
	return watched{&http.Transport{
		Proxy:                 http.ProxyFromEnvironment,
		DialContext:           (&net.Dialer{Timeout: 10 * time.Second}).DialContext,
		TLSHandshakeTimeout:   10 * time.Second,
		TLSClientConfig:       &tls.Config{RootCAs: roots, MinVersion: tls.VersionTLS12},
		ForceAttemptHTTP2:     true,
		MaxIdleConns:          4,
		IdleConnTimeout:       30 * time.Second,
		ResponseHeaderTimeout: 30 * time.Second,
	}}
}

// RoundTrip sends one request.
func (w watched) RoundTrip(req *http.Request) (*http.Response, error) {
	resp, err := w.Transport.RoundTrip(req)
	if err != nil {
		return nil, err
	}
	if h, ok := req.Context().Value(heardKey{}).(*heard); ok {
		h.note(resp)
	}
	resp.Body = bounded{io.LimitReader(resp.Body, maxAnswer), resp.Body}
	return resp, nil
}

// bounded is a body up to a bound.
type bounded struct {
	io.Reader
	io.Closer
}

// heardKey is the context key of a *heard.
type heardKey struct{}

// heard is the last refusal of a CA in one attempt.
type heard struct {
	mu    sync.Mutex
	later time.Time
}

// listen has the requests under the context note what the CA says of later.
func listen(ctx context.Context) (context.Context, *heard) {
	h := &heard{}
	return context.WithValue(ctx, heardKey{}, h), h
}

// maxLater bounds what a CA can ask for: the longest limits that there are end after a week.
const maxLater = 8 * 24 * time.Hour

// note keeps the Retry-After of a refusal. On an answer that is none it only paces polling.
func (h *heard) note(resp *http.Response) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.later = time.Time{}
	if resp.StatusCode != http.StatusTooManyRequests && resp.StatusCode != http.StatusServiceUnavailable {
		return
	}
	h.later = later(resp.Header.Get("Retry-After"), time.Now())
}

// later reads a Retry-After (RFC 9110, section 10.2.3): seconds or a date; the zero time if it says neither.
func later(header string, now time.Time) time.Time {
	header = strings.TrimSpace(header)
	if seconds, err := strconv.Atoi(header); err == nil && seconds > 0 {
		return now.Add(min(time.Duration(min(seconds, 1<<30))*time.Second, maxLater))
	}
	at, err := http.ParseTime(header)
	if err != nil || !at.After(now) {
		return time.Time{}
	}
	if bound := now.Add(maxLater); at.After(bound) {
		return bound
	}
	return at
}

// until is when the CA wants to be asked again; the zero time if it does not say.
func (h *heard) until() time.Time {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.later
}

// LaterError says that nothing is to be done before a time.
type LaterError struct {
	Until time.Time
	Err   error
}

// Error gives the reason and the time.
func (e *LaterError) Error() string {
	return fmt.Sprintf("%v; not before %s", e.Err, e.Until.Local().Format("2006-01-02 15:04:05 MST"))
}

// Unwrap returns the reason.
func (e *LaterError) Unwrap() error { return e.Err }

// problem is what a CA says in its own words.
type problem struct{ acme.Problem }

// Error quotes the CA.
func (p *problem) Error() string {
	kind := strings.TrimPrefix(p.Type, acme.ProblemTypeNamespace)
	text := fmt.Sprintf("the CA says %q (%s", p.Detail, kind)
	if p.Status != 0 {
		text += fmt.Sprintf(", HTTP %d", p.Status)
	}
	text += ")"
	if authz, ok := p.Resource.(acme.Authorization); ok {
		text = authz.IdentifierValue() + ": " + text
	}
	for _, sub := range p.Subproblems {
		text += fmt.Sprintf("; %s: %q", sub.Identifier.Value, sub.Detail)
	}
	return text
}

// Unwrap returns the problem itself.
func (p *problem) Unwrap() error { return p.Problem }

// sayProblem leaves of an error only what the CA said, if it said something: how often it was asked, and where, is noise.
func sayProblem(err error) error {
	var p acme.Problem
	if errors.As(err, &p) {
		return &problem{p}
	}
	return err
}

// isProblem reports whether a CA said that it is this kind of problem.
func isProblem(err error, kind string) bool {
	var p acme.Problem
	return errors.As(err, &p) && p.Type == kind
}

// quiet is acmez's log: what it calls errors are returned as such too, and its debug lines hold every header.
type quiet struct{ slog.Handler }

// Enabled reports whether a level is logged.
func (q quiet) Enabled(ctx context.Context, level slog.Level) bool {
	return level > slog.LevelDebug && q.Handler.Enabled(ctx, slog.LevelDebug)
}

// Handle logs at debug level whatever the record's.
func (q quiet) Handle(ctx context.Context, r slog.Record) error {
	r.Level = slog.LevelDebug
	return q.Handler.Handle(ctx, r)
}

// WithAttrs keeps q quiet.
func (q quiet) WithAttrs(attrs []slog.Attr) slog.Handler { return quiet{q.Handler.WithAttrs(attrs)} }

// WithGroup keeps q quiet.
func (q quiet) WithGroup(name string) slog.Handler { return quiet{q.Handler.WithGroup(name)} }

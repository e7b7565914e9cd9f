package funnel

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"strconv"
	"strings"
	"sync"
	"time"
)

// The bounds of port 80.
const (
	redirectTime   = 3 * time.Second // for a request, and for its answer
	redirectHeader = 8 << 10
	maxRedirects   = 1024 // connections at once
	maxRedirectsOf = 64   // of one source
	httpsPort      = 443
)

// ServeRedirect answers plain HTTP: it sends who asks for a name that is shown by HTTPS there, and says 404 to all others.
// It returns when ctx has ended.
func (r *Relay) ServeRedirect(ctx context.Context, ln net.Listener) error {
	server := &http.Server{
		Handler:                      http.HandlerFunc(r.redirect),
		ReadTimeout:                  redirectTime,
		WriteTimeout:                 redirectTime,
		MaxHeaderBytes:               redirectHeader,
		ErrorLog:                     slog.NewLogLogger(r.log.Handler(), slog.LevelDebug),
		DisableGeneralOptionsHandler: true,
	}
	server.SetKeepAlivesEnabled(false)
	stop := context.AfterFunc(ctx, func() { server.Close() })
	defer stop()
	few := &counts{each: maxRedirectsOf, all: maxRedirects, of: map[netip.Prefix]int{}}
	err := server.Serve(&counted{Listener: ln, counts: few})
	if ctx.Err() != nil || errors.Is(err, http.ErrServerClosed) {
		return nil
	}
	return fmt.Errorf("answering plain HTTP: %w", err)
}

// redirect answers a request. Nothing of it but path and query comes back, and that only behind a name that is shown.
func (r *Relay) redirect(w http.ResponseWriter, req *http.Request) {
	to, ok := r.table.Load().secure(foldHost(hostOf(req.Host)), strings.HasPrefix(req.URL.Path, challengePath))
	if !ok {
		w.WriteHeader(http.StatusNotFound)
		return
	}
	if port := cmp.Or(r.cfg.HTTPSPort, httpsPort); port != httpsPort && !strings.Contains(to, ":") {
		to = net.JoinHostPort(to, strconv.Itoa(int(port)))
	}
	status := http.StatusMovedPermanently
	if req.Method != http.MethodGet && req.Method != http.MethodHead {
		status = http.StatusPermanentRedirect // RFC 9110, section 15.4.9: the method stays
	}
	path := req.URL.EscapedPath()
	if !strings.HasPrefix(path, "/") {
		path = "/"
	}
	w.Header().Set("Location", (&url.URL{Scheme: "https", Host: to, Opaque: "//" + to + path, RawQuery: req.URL.RawQuery}).String())
	w.WriteHeader(status)
}

// challengePath is where a CA asks who has a name (RFC 8555, section 8.3).
const challengePath = "/.well-known/acme-challenge/"

// secure is where a name is shown by HTTPS: the port is left out if it is the usual one. A CA's question goes nowhere if
// several nodes have the name.
func (t *relayTable) secure(name string, challenge bool) (host string, ok bool) {
	if !isHost(name) {
		return "", false
	}
	for _, port := range append([]uint16{httpsPort}, t.web...) {
		p, by := t.find(asked{name: name, port: port})
		if p == nil || p.Kind != kindHTTPS || challenge && len(t.owners[by]) != 1 {
			continue
		}
		if port == httpsPort {
			return name, true
		}
		return net.JoinHostPort(name, strconv.Itoa(int(port))), true
	}
	return "", false
}

// counted is a listener that closes connections which are too many.
type counted struct {
	net.Listener

	counts *counts
}

func (l *counted) Accept() (net.Conn, error) {
	for {
		conn, err := l.Listener.Accept()
		if err != nil {
			return nil, err
		}
		source := sourceOf(conn.RemoteAddr())
		if l.counts.take(source) {
			return &countedConn{Conn: conn, give: sync.OnceFunc(func() { l.counts.give(source) })}, nil
		}
		conn.Close()
	}
}

type countedConn struct {
	net.Conn

	give func()
}

func (c *countedConn) Close() error {
	c.give()
	return c.Conn.Close()
}

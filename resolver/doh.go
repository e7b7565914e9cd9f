package resolver

import (
	"bytes"
	"context"
	"crypto/x509"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"mime"
	"net"
	"net/http"
	"net/http/httptrace"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/miekg/dns"
)

// dohLimits bounds the connections to one server.
type dohLimits struct {
	conns int           // connections; one is enough for HTTP/2
	idle  time.Duration // how long a connection without queries is kept
	quiet time.Duration // an HTTP/2 connection that brings nothing for so long is pinged …
	ping  time.Duration // … and is dead without an answer after so long
}

func defaultDoHLimits() dohLimits {
	return dohLimits{conns: 4, idle: 10 * time.Second, quiet: 3 * time.Second, ping: 2 * time.Second}
}

// maxDoHHeader is the most that the headers of a response may take, in octets.
const maxDoHHeader = 16 << 10

// mediaType is that of DNS messages (RFC 8484, 6).
const mediaType = "application/dns-message"

// doh is an exchanger over HTTPS (RFC 8484): HTTP/2, or HTTP/1.1 with servers that have nothing better. It follows no
// redirects, keeps no cookies, sends no name of ours and goes through no proxy.
type doh struct {
	upstream  Upstream
	url       string
	connector connector
	transport *http.Transport
	ctx       context.Context // ends with close
	cancel    context.CancelFunc
	running   sync.WaitGroup // of exchanges and of connecting; added to under mu, never after closed

	mu     sync.Mutex
	closed bool
	conns  map[*dohConn]struct{}
}

func newDoH(u Upstream, roots *x509.CertPool, resolve resolveFunc) *doh {
	return newDoHWith(u, roots, resolve, defaultDoHLimits())
}

func newDoHWith(u Upstream, roots *x509.CertPool, resolve resolveFunc, limits dohLimits) *doh {
	d := &doh{upstream: u, url: u.url(), conns: make(map[*dohConn]struct{})}
	d.connector = connector{upstream: u, resolve: resolve, tls: clientTLS(u, roots, "h2", "http/1.1"), wrap: d.track}
	d.ctx, d.cancel = context.WithCancel(context.Background())
	d.transport = &http.Transport{
		DialContext:            func(context.Context, string, string) (net.Conn, error) { return nil, errPlainHTTP },
		DialTLSContext:         d.dial,
		ForceAttemptHTTP2:      true,
		MaxConnsPerHost:        limits.conns,
		IdleConnTimeout:        limits.idle,
		DisableCompression:     true, // a small message could unpack to a large one
		MaxResponseHeaderBytes: maxDoHHeader,
		HTTP2:                  &http.HTTP2Config{SendPingTimeout: limits.quiet, PingTimeout: limits.ping},
	}
	return d
}

var errPlainHTTP = errors.New("will not ask without TLS")

// exchange implements exchanger.
func (d *doh) exchange(ctx context.Context, query []byte) ([]byte, error) {
	msg, err := d.post(ctx, query)
	if err != nil {
		return nil, fmt.Errorf("asking %s: %w", d.upstream, err)
	}
	return msg, nil
}

func (d *doh) post(ctx context.Context, query []byte) ([]byte, error) {
	end, err := questionEnd(query)
	if err != nil {
		return nil, err
	}
	if !d.begin() {
		return nil, net.ErrClosed
	}
	defer d.running.Done()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(d.ctx, cancel)()
	resp, kept, err := d.roundTrip(ctx, query)
	if err != nil && kept && ctx.Err() == nil {
		// The server may close a connection at any time, and then has not seen the query or has not answered it. The
		// transport repeats it only if it knows which.
		resp, _, err = d.roundTrip(ctx, query)
	}
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	msg, err := readDoH(resp)
	if err != nil {
		return nil, err
	}
	if msg, err = matchResponse(query[headerSize:end], msg); err != nil {
		return nil, err
	}
	if id := binary.BigEndian.Uint16(msg); id != 0 {
		return nil, errMismatch
	}
	copy(msg, query[:2])
	age, _ := strconv.ParseUint(resp.Header.Get("Age"), 10, 31)
	ageTTLs(msg, uint32(age))
	return msg, nil
}

// roundTrip sends a query. kept tells that this went over a connection which had been of use before.
func (d *doh) roundTrip(ctx context.Context, query []byte) (resp *http.Response, kept bool, err error) {
	var reused atomic.Bool
	ctx = httptrace.WithClientTrace(ctx, &httptrace.ClientTrace{GotConn: func(i httptrace.GotConnInfo) { reused.Store(i.Reused) }})
	req, err := d.request(ctx, query)
	if err != nil {
		return nil, false, err
	}
	// Not by an http.Client: that would follow redirects.
	resp, err = d.transport.RoundTrip(req)
	return resp, reused.Load(), err
}

// request makes the request for a query. Its ID is 0, so that a cache on the way can tell equal queries (RFC 8484,
// 4.1).
func (d *doh) request(ctx context.Context, query []byte) (*http.Request, error) {
	msg := append(make([]byte, 0, len(query)+4+paddingBlock), query...)
	msg[0], msg[1] = 0, 0
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, d.url, bytes.NewReader(padQuery(msg)))
	if err != nil {
		return nil, err
	}
	req.Header.Set("Content-Type", mediaType)
	req.Header.Set("Accept", mediaType)
	req.Header.Set("User-Agent", "") // not sent
	// Not sent either. It tells the transport that a query may be repeated when the server has closed an idle
	// connection.
	req.Header["X-Idempotency-Key"] = []string{}
	return req, nil
}

// readDoH returns the message in a response.
func readDoH(resp *http.Response) ([]byte, error) {
	if resp.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("server answered with status %d %s", resp.StatusCode, http.StatusText(resp.StatusCode))
	}
	kind := resp.Header.Get("Content-Type")
	if media, _, err := mime.ParseMediaType(kind); err != nil || media != mediaType {
		return nil, fmt.Errorf("server sent %.64q instead of %s", kind, mediaType)
	}
	msg, err := io.ReadAll(io.LimitReader(resp.Body, dns.MaxMsgSize+1))
	switch {
	case err != nil:
		return nil, fmt.Errorf("reading the response: %w", err)
	case len(msg) > dns.MaxMsgSize:
		return nil, fmt.Errorf("response is longer than %d octets", dns.MaxMsgSize)
	}
	return msg, nil
}

// ageTTLs takes the time that a response has lain in an HTTP cache off its TTLs (RFC 8484, 5.1). It stops at what does
// not parse: others will refuse that.
func ageTTLs(msg []byte, age uint32) {
	off, err := questionEnd(msg)
	if err != nil || age == 0 {
		return
	}
	records := int(binary.BigEndian.Uint16(msg[6:])) + int(binary.BigEndian.Uint16(msg[8:])) + int(binary.BigEndian.Uint16(msg[10:]))
	for range records {
		off = skipName(msg, off)
		if off < 0 || off+10 > len(msg) {
			return
		}
		if binary.BigEndian.Uint16(msg[off:]) != dns.TypeOPT { // whose TTL is none
			ttl := binary.BigEndian.Uint32(msg[off+4:])
			binary.BigEndian.PutUint32(msg[off+4:], ttl-min(ttl, age))
		}
		off += 10 + int(binary.BigEndian.Uint16(msg[off+8:]))
	}
}

// begin counts something that close has to wait for. It reports false after close.
func (d *doh) begin() bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.closed {
		return false
	}
	d.running.Add(1)
	return true
}

// dial connects for the transport, which names the host; where that is, only the connector knows.
func (d *doh) dial(ctx context.Context, _, _ string) (net.Conn, error) {
	if !d.begin() {
		return nil, net.ErrClosed
	}
	defer d.running.Done()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(d.ctx, cancel)()
	return d.connector.connect(ctx)
}

// close implements exchanger. The transport does not tell when its goroutines have ended, but each closes its
// connection last.
func (d *doh) close() {
	d.mu.Lock()
	d.closed = true
	d.mu.Unlock()
	d.cancel()
	d.running.Wait()
	d.transport.CloseIdleConnections()
	d.mu.Lock()
	conns := d.conns
	d.conns = nil
	d.mu.Unlock()
	for c := range conns {
		_ = c.Conn.Close() // under the transport's feet
	}
	for c := range conns {
		<-c.closed
	}
}

// dohConn is a TCP connection under TLS. The transport closes it when it is done with it.
type dohConn struct {
	net.Conn
	doh    *doh
	once   sync.Once
	closed chan struct{}
}

func (d *doh) track(conn net.Conn) net.Conn {
	c := &dohConn{Conn: conn, doh: d, closed: make(chan struct{})}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.conns[c] = struct{}{} // close waits for dial first, so the map is there
	return c
}

// Close closes the connection.
func (c *dohConn) Close() error {
	err := c.Conn.Close()
	c.once.Do(func() {
		close(c.closed)
		c.doh.mu.Lock()
		defer c.doh.mu.Unlock()
		delete(c.doh.conns, c)
	})
	return err
}

package node

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/meshdns/meshdns/node/tunnel"
)

// The bounds of the proxy. Every program of the machine can connect to it.
const (
	maxProxied     = 512 // connections at once
	proxyTime      = 10 * time.Second
	connectTime    = 15 * time.Second
	proxyIdle      = 12 * time.Hour // without a byte either way; shells stay open over night
	maxProxyHeader = 8 << 10
)

// proxyOff is tunnel.proxy's word for none.
const proxyOff = "off"

var (
	errOutside  = errors.New("it is no address of the tailnet")
	errNoNode   = errors.New("no node of the tailnet has that name")
	errNoTunnel = errors.New("no tunnel runs")
)

// proxy lets programs of this machine into a network that is inside this process: SOCKS5 and HTTP's CONNECT on one port.
type proxy struct {
	connect func(ctx context.Context, to target) (net.Conn, error)
	log     *slog.Logger
	slots   chan struct{}
	request time.Duration // for the whole of a request
	idle    time.Duration
}

// startProxy opens the proxy, where the tailnet is reached through this process alone.
func (n *Node) startProxy(ctx context.Context) error {
	where := n.cfg.Tunnel.Proxy
	if where == "" || where == proxyOff || n.carrier.tunnel == nil || n.carrier.tunnel.Mode() != tunnel.Userspace {
		return nil
	}
	at, err := netip.ParseAddrPort(where)
	if err != nil {
		return fmt.Errorf("reading tunnel.proxy: %w", err)
	}
	ln, err := new(net.ListenConfig).Listen(ctx, "tcp", where)
	if err != nil {
		if isAddrInUse(err) {
			err = &heldError{addr: at, holder: portHolder(at), err: err}
		}
		n.lacks("the proxy for programs of this machine", err)
		return nil
	}
	n.carrier.proxy = ln.Addr().(*net.TCPAddr).AddrPort()
	n.carrier.shutPort(n.carrier.proxy.Port())
	p := &proxy{connect: n.connect, log: n.log, slots: make(chan struct{}, maxProxied), request: proxyTime, idle: proxyIdle}
	n.services.run("proxy", func(ctx context.Context) error { return p.serve(ctx, ln) })
	n.report("proxy for programs at %s (SOCKS5 and HTTP CONNECT)", ln.Addr())
	return nil
}

// serve takes programs' connections until ctx ends, and returns when all of them have.
func (p *proxy) serve(ctx context.Context, ln net.Listener) error {
	var running sync.WaitGroup
	defer running.Wait()
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
		if errors.Is(err, net.ErrClosed) {
			return fmt.Errorf("taking connections to the proxy: %w", err)
		}
		if err != nil {
			sleep(ctx, 50*time.Millisecond) // mostly too many files are open
			continue
		}
		select {
		case p.slots <- struct{}{}:
		default:
			conn.Close()
			continue
		}
		running.Go(func() {
			defer func() { <-p.slots }()
			defer conn.Close()
			stop := context.AfterFunc(ctx, func() { conn.Close() })
			defer stop()
			if err := p.take(ctx, conn); err != nil {
				p.log.Debug("a program's connection was not passed on", "err", err)
			}
		})
	}
}

// take serves one connection. Its first byte tells SOCKS from HTTP, whose methods are letters.
func (p *proxy) take(ctx context.Context, conn net.Conn) error {
	if err := conn.SetDeadline(time.Now().Add(p.request)); err != nil {
		return err
	}
	in := bufio.NewReaderSize(conn, maxProxyHeader)
	first, err := in.Peek(1)
	if err != nil {
		return err
	}
	var there net.Conn
	if first[0] == socksVersion {
		there, err = p.socks(ctx, conn, in)
	} else {
		there, err = p.http(ctx, conn, in)
	}
	if err != nil {
		return err
	}
	if err := conn.SetDeadline(time.Time{}); err != nil {
		there.Close()
		return err
	}
	stop := context.AfterFunc(ctx, func() { there.Close() })
	defer stop()
	passWithin(p.idle, &ahead{conn, in}, there)
	return nil
}

// socks answers a SOCKS5 client, and connects.
func (p *proxy) socks(ctx context.Context, conn net.Conn, in io.Reader) (net.Conn, error) {
	open, err := readSocksMethods(in)
	if err != nil {
		return nil, err
	}
	if !open {
		_, err := conn.Write([]byte{socksVersion, socksNoMethod})
		return nil, errors.Join(errors.New("a SOCKS client that wants a password"), err)
	}
	if _, err := conn.Write([]byte{socksVersion, socksNoPassword}); err != nil {
		return nil, err
	}
	to, err := readSocksRequest(in)
	var there net.Conn
	if err == nil {
		there, err = p.reach(ctx, conn, to)
	}
	if err != nil {
		_, werr := conn.Write(socksReply(socksCode(err)))
		return nil, errors.Join(err, werr)
	}
	if _, err := conn.Write(socksReply(socksDone)); err != nil {
		there.Close()
		return nil, err
	}
	return there, nil
}

// reach connects; what follows gets time of its own.
func (p *proxy) reach(ctx context.Context, conn net.Conn, to target) (net.Conn, error) {
	if err := conn.SetDeadline(time.Time{}); err != nil {
		return nil, err
	}
	there, err := p.connect(ctx, to)
	if derr := conn.SetDeadline(time.Now().Add(p.request)); derr != nil && err == nil {
		there.Close()
		return nil, derr
	}
	return there, err
}

// socksCode is the reply that says why.
func socksCode(err error) byte {
	var code socksError
	switch {
	case errors.As(err, &code):
		return byte(code)
	case errors.Is(err, errOutside):
		return socksForbidden
	case errors.Is(err, errNoNode), errors.Is(err, syscall.EHOSTUNREACH):
		return socksUnreachable
	case isRefused(err) || refusedByStack(err):
		return socksRefused
	case isTimeout(err):
		return socksExpired
	}
	return socksFailed
}

// refusedByStack reports whether the network of this process, whose errors are only text, says so.
func refusedByStack(err error) bool {
	return strings.Contains(err.Error(), "connection was refused")
}

// http answers a client that asks for CONNECT (RFC 9110, section 9.3.6), and connects. A web page can have a browser send
// any other request here: those are all refused, and so is one that names a page.
func (p *proxy) http(ctx context.Context, conn net.Conn, in *bufio.Reader) (net.Conn, error) {
	req, err := readHeader(in)
	if err != nil {
		return nil, errors.Join(err, httpReply(conn, http.StatusBadRequest, "only HTTP CONNECT and SOCKS5 are served"))
	}
	to, err := vetConnect(req)
	if err != nil {
		return nil, errors.Join(err, httpReply(conn, http.StatusForbidden, err.Error()))
	}
	there, err := p.reach(ctx, conn, to)
	if err != nil {
		return nil, errors.Join(err, httpReply(conn, httpCode(err), err.Error()))
	}
	if _, err := io.WriteString(conn, "HTTP/1.1 200 Connection established\r\n\r\n"); err != nil {
		there.Close()
		return nil, err
	}
	return there, nil
}

// readHeader reads a request's lines and nothing behind them: what follows is for the other side of the connection.
func readHeader(in *bufio.Reader) (*http.Request, error) {
	var head []byte
	for {
		line, err := in.ReadSlice('\n')
		if err != nil {
			return nil, fmt.Errorf("reading a request: %w", err)
		}
		if head = append(head, line...); len(head) > maxProxyHeader {
			return nil, errors.New("reading a request: longer than its bound")
		}
		if len(bytes.TrimRight(line, "\r\n")) == 0 {
			return http.ReadRequest(bufio.NewReader(bytes.NewReader(head)))
		}
	}
}

// vetConnect is where a request wants to connect to.
func vetConnect(req *http.Request) (target, error) {
	switch {
	case req.Method != http.MethodConnect:
		return target{}, errors.New("only CONNECT is served")
	case req.Header.Get("Origin") != "":
		return target{}, errors.New("requests of web pages are refused")
	case req.ContentLength > 0 || len(req.TransferEncoding) > 0:
		return target{}, errors.New("CONNECT has no body")
	}
	host, port, err := net.SplitHostPort(req.RequestURI)
	if err != nil {
		return target{}, errors.New("CONNECT wants HOST:PORT")
	}
	return parseTarget(host, port)
}

func httpCode(err error) int {
	switch {
	case errors.Is(err, errOutside):
		return http.StatusForbidden
	case isTimeout(err):
		return http.StatusGatewayTimeout
	}
	return http.StatusBadGateway
}

// httpReply refuses a request.
func httpReply(conn net.Conn, status int, text string) error {
	_, err := fmt.Fprintf(conn, "HTTP/1.1 %d %s\r\nContent-Type: text/plain; charset=utf-8\r\nX-Content-Type-Options: nosniff\r\nConnection: close\r\nContent-Length: %d\r\n\r\nmeshdns: %s\n",
		status, http.StatusText(status), len("meshdns: ")+len(text)+1, text)
	return err
}

// ahead is a connection of which some was read already.
type ahead struct {
	net.Conn
	in *bufio.Reader
}

func (c *ahead) Read(b []byte) (int, error) { return c.in.Read(b) }

// CloseWrite ends our side of the connection.
func (c *ahead) CloseWrite() error { return closeWrite(c.Conn) }

// closeWrite ends one way of a connection, or both where it has no ways of their own.
func closeWrite(c net.Conn) error {
	if half, ok := c.(interface{ CloseWrite() error }); ok {
		return half.CloseWrite()
	}
	return c.Close()
}

// passWithin copies both ways until both sides have ended, or neither has said anything for a time, and closes both.
func passWithin(idle time.Duration, a, b net.Conn) {
	quiet := time.AfterFunc(idle, func() {
		a.Close()
		b.Close()
	})
	defer quiet.Stop()
	touch := func() { quiet.Reset(idle) }
	passBoth(&touched{a, touch}, &touched{b, touch})
	a.Close()
}

// touched tells of each read.
type touched struct {
	net.Conn
	touch func()
}

func (c *touched) Read(b []byte) (int, error) {
	n, err := c.Conn.Read(b)
	if n > 0 {
		c.touch()
	}
	return n, err
}

// CloseWrite ends our side of the connection.
func (c *touched) CloseWrite() error { return closeWrite(c.Conn) }

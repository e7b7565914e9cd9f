package node

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"sync"
	"time"
)

// A connection to a node by way of the control socket: the answer to this call is the connection itself, both ways, each of
// which ends apart (RFC 9110, section 7.8).
const (
	pathConnect    = "/v1/nc"
	connectUpgrade = "meshdns-nc"
	maxConnections = 256 // at once
)

// connections are those that have become of calls on the control socket. They are not the HTTP server's any more.
type connections struct {
	mu     sync.Mutex
	open   int
	closed bool
	ended  sync.WaitGroup
}

// enter takes a place, if there is one.
func (c *connections) enter() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed || c.open >= maxConnections {
		return false
	}
	c.open++
	c.ended.Add(1)
	return true
}

func (c *connections) leave() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.open--
	c.ended.Done()
}

// run waits until all have ended, once the node has to.
func (c *connections) run(ctx context.Context) error {
	<-ctx.Done()
	c.mu.Lock()
	c.closed = true
	c.mu.Unlock()
	c.ended.Wait()
	return nil
}

// serveConnect connects to a node and becomes that connection.
func (n *Node) serveConnect(w http.ResponseWriter, r *http.Request) {
	if !n.connections.enter() {
		n.control.fail(w, errors.New("too many connections by way of the control socket"))
		return
	}
	defer n.connections.leave()
	there, err := n.openConnection(r)
	if err != nil {
		n.control.fail(w, err)
		return
	}
	defer there.Close()
	here, err := takeOver(w)
	if err != nil {
		n.log.Debug("a connection to a node was not handed over", "err", err)
		return
	}
	defer here.Close()
	stop := context.AfterFunc(n.services.ctx, func() {
		here.Close()
		there.Close()
	})
	defer stop()
	passBoth(here, there)
}

// openConnection connects to whom a call names.
func (n *Node) openConnection(r *http.Request) (net.Conn, error) {
	to, err := parseTarget(r.FormValue("node"), r.FormValue("port"))
	if err != nil {
		return nil, hinted(ErrBadRequest, err, "")
	}
	if r.Header.Get("Upgrade") != connectUpgrade {
		return nil, hinted(ErrBadRequest, errors.New("the call has to ask for an upgrade to "+connectUpgrade), "")
	}
	ctx, cancel := context.WithCancel(r.Context())
	defer cancel()
	stop := context.AfterFunc(n.services.ctx, cancel)
	defer stop()
	c, err := n.connect(ctx, to)
	switch {
	case errors.Is(err, errNoNode):
		return nil, hinted(ErrNotFound, err, "see the names with: meshdns status")
	case errors.Is(err, errOutside):
		return nil, hinted(ErrBadRequest, err, "")
	case errors.Is(err, errNoTunnel):
		return nil, hinted(nil, err, "see: meshdns status")
	}
	return c, err
}

// takeOver is the connection that a call came on. It gives its place among the control socket's calls back.
func takeOver(w http.ResponseWriter) (net.Conn, error) {
	conn, buffered, err := http.NewResponseController(w).Hijack()
	if err != nil {
		return nil, err
	}
	if bounded, ok := conn.(*boundedConn); ok {
		conn = bounded.free()
	}
	_, err = fmt.Fprintf(conn, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: %s\r\n\r\n", connectUpgrade)
	if err == nil {
		err = conn.SetDeadline(time.Time{})
	}
	if err != nil {
		conn.Close()
		return nil, err
	}
	return &ahead{conn, buffered.Reader}, nil
}

// Connect connects to a node's port through the daemon, copies in there and what comes to out, and returns when the other
// side has ended. ErrNotFound: no node has that name.
func (c Client) Connect(ctx context.Context, node, port string, in io.Reader, out io.Writer) error {
	if c.Socket == "" {
		c.Socket = findSocket(os.Getenv, os.Geteuid() == 0)
	}
	dialer := net.Dialer{Timeout: dialTimeout}
	conn, err := dialer.DialContext(ctx, "unix", c.Socket)
	if err != nil {
		return c.explain(err)
	}
	defer conn.Close()
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	defer stop()
	reader, err := c.upgrade(conn, node, port)
	if err != nil {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		return err
	}
	go func() {
		// It may wait for a terminal for ever: nobody waits for it, and it ends with the process.
		_, _ = io.Copy(conn, in)
		_ = closeWrite(conn)
	}()
	if _, err := io.Copy(out, reader); err != nil && ctx.Err() == nil {
		return fmt.Errorf("passing on what comes: %w", err)
	}
	return ctx.Err()
}

// upgrade makes the call, and returns what comes on the connection that it has become.
func (c Client) upgrade(conn net.Conn, node, port string) (io.Reader, error) {
	query := url.Values{"node": {node}, "port": {port}}
	req, err := http.NewRequest(http.MethodPost, "http://"+controlHost+pathConnect+"?"+query.Encode(), nil)
	if err != nil {
		return nil, fmt.Errorf("making the request: %w", err)
	}
	req.Header.Set("Connection", "Upgrade")
	req.Header.Set("Upgrade", connectUpgrade)
	if err := conn.SetDeadline(time.Now().Add(connectTime + requestTimeout)); err != nil {
		return nil, c.explain(err)
	}
	if err := req.Write(conn); err != nil {
		return nil, c.explain(err)
	}
	reader := bufio.NewReader(conn)
	resp, err := http.ReadResponse(reader, req)
	if err != nil {
		return nil, c.explain(err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusSwitchingProtocols {
		return nil, remoteError(resp.StatusCode, &boundedReader{r: resp.Body, left: maxReply})
	}
	return reader, conn.SetDeadline(time.Time{})
}

package tunnel

import (
	"net"
	"sync/atomic"
	"time"

	"gvisor.dev/gvisor/pkg/tcpip/adapters/gonet"
)

// stackConn is a connection of the netstack. Closing gonet's own leaves who reads from it waiting for the other side.
type stackConn struct {
	*gonet.TCPConn
	closed atomic.Bool
}

// Close ends the connection, and whoever waits for it.
func (c *stackConn) Close() error {
	c.closed.Store(true)
	err := c.SetDeadline(time.Unix(1, 0))
	if cerr := c.TCPConn.Close(); err == nil {
		err = cerr
	}
	return err
}

func (c *stackConn) Read(b []byte) (int, error) {
	n, err := c.TCPConn.Read(b)
	return n, c.orClosed(err)
}

func (c *stackConn) Write(b []byte) (int, error) {
	n, err := c.TCPConn.Write(b)
	return n, c.orClosed(err)
}

// orClosed makes of the deadline that Close has set what other connections say.
func (c *stackConn) orClosed(err error) error {
	if err != nil && c.closed.Load() {
		return net.ErrClosed
	}
	return err
}

// stackListener accepts such connections.
type stackListener struct{ *gonet.TCPListener }

// Accept waits for the next connection.
func (l stackListener) Accept() (net.Conn, error) {
	c, err := l.TCPListener.Accept()
	if err != nil {
		return nil, err
	}
	return &stackConn{TCPConn: c.(*gonet.TCPConn)}, nil
}

package tunnel

import (
	"errors"
	"net"
	"sync"
)

// joined is two listeners that are one.
type joined struct {
	listeners [2]net.Listener
	accepted  chan accepted
	closed    chan struct{}
	once      sync.Once
	ended     sync.WaitGroup
}

type accepted struct {
	conn net.Conn
	err  error
}

// joinListeners accepts from both, and owns both.
func joinListeners(a, b net.Listener) *joined {
	j := &joined{listeners: [2]net.Listener{a, b}, accepted: make(chan accepted), closed: make(chan struct{})}
	for _, l := range j.listeners {
		j.ended.Go(func() { j.pump(l) })
	}
	return j
}

// pump hands on what one listener accepts, one at a time: what waits stays in the listener's own queue.
func (j *joined) pump(l net.Listener) {
	for {
		conn, err := l.Accept()
		select {
		case j.accepted <- accepted{conn, err}:
			if errors.Is(err, net.ErrClosed) {
				return
			}
		case <-j.closed:
			if conn != nil {
				_ = conn.Close() // nobody took it
			}
			return
		}
	}
}

// Accept waits for a connection to either.
func (j *joined) Accept() (net.Conn, error) {
	select {
	case <-j.closed:
	case a := <-j.accepted:
		return a.conn, a.err
	}
	return nil, &net.OpError{Op: "accept", Net: "tcp", Addr: j.Addr(), Err: net.ErrClosed}
}

// Addr is the first one's address.
func (j *joined) Addr() net.Addr { return j.listeners[0].Addr() }

// Close closes both, and returns when nothing of them is left.
func (j *joined) Close() error {
	err := net.ErrClosed
	j.once.Do(func() {
		close(j.closed)
		err = errors.Join(j.listeners[0].Close(), j.listeners[1].Close())
		j.ended.Wait()
	})
	return err
}

package resolver

import (
	"context"
	"math/rand/v2"
	"net"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

// The sockets towards one plain upstream.
//
// A fresh socket for each query costs five or six system calls and buys one thing: an unpredictable source
// port. A pool of long-lived sockets keeps that, query by query. Somebody off the path who forges an answer has
// to hit the port, the ID and, letter by letter, the case of the question:
//
//	fresh port    28,232 ports (Linux's ephemeral range) x 65,536 IDs             = 2^30.8
//	this pool     the query's socket is one of poolSize, each on a port drawn by the kernel from the same
//	              range; the forger knows neither the ports nor which socket it was. A forged packet is
//	              accepted only if it hits the port of the very socket that the query left by, with the ID
//	              drawn for it: 28,232 x 65,536 again, times 2^(letters in the name)
//
// Identical questions in flight are one query, so a forger cannot open many races for one name (the birthday
// attack). Sockets are connected: packets from other addresses never arrive. What a fresh port has beyond this
// is that it is gone before anybody could find it by scanning; so each socket lives maxAge at most, or maxUses
// queries, and then only waits for the answers still under way.
const (
	poolSize = 8
	maxUses  = 4096
	minAge   = 5 * int64(time.Second)
	maxAge   = 15 * int64(time.Second)
	// linger is how long a retired socket waits for answers: longer than a query lives.
	linger = 5 * int64(time.Second)
)

// upstreamSocket is one connected socket of a pool.
type upstreamSocket struct {
	*udpConn
	server *server
	uses   atomic.Int32
	until  int64 // retired then; once retired, closed then. Guarded by pool.mu
}

// pool is the set of sockets towards one server. It is filled as needed.
type pool struct {
	open func() (*upstreamSocket, error)
	// start begins to read from a socket, until it is closed; false after the end.
	start func(*upstreamSocket) bool

	mu      sync.Mutex
	socks   [poolSize]*upstreamSocket
	retired []*upstreamSocket // until: closed then
	closed  bool
	rng     *rand.ChaCha8
}

// pick returns a socket chosen at random for a query. It opens one where there is none or where it is worn.
func (p *pool) pick(now int64) (*upstreamSocket, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		return nil, net.ErrClosed
	}
	draw := p.rng.Uint64()
	i := int(draw % poolSize)
	s := p.socks[i]
	if s != nil && (s.uses.Load() >= maxUses || now >= s.until) {
		p.retireLocked(i, now)
		s = nil
	}
	if s == nil {
		var err error
		if s, err = p.open(); err != nil {
			return nil, err
		}
		if !p.start(s) {
			_ = s.conn.Close()
			return nil, net.ErrClosed
		}
		s.until = now + minAge + int64(draw>>16)%(maxAge-minAge)
		p.socks[i] = s
	}
	s.uses.Add(1)
	return s, nil
}

func (p *pool) retireLocked(i int, now int64) {
	s := p.socks[i]
	p.socks[i] = nil
	s.until = now + linger
	p.retired = append(p.retired, s)
}

// drop closes a socket that is of no use any more. The others will be none either if the machine's address has changed:
// they only wait for the answers still under way.
func (p *pool) drop(sock *upstreamSocket, now int64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	i := slices.Index(p.socks[:], sock)
	if i >= 0 {
		p.socks[i] = nil
		for j, s := range p.socks {
			if s != nil {
				p.retireLocked(j, now)
			}
		}
	}
	_ = sock.conn.Close()
}

// tidy retires sockets that are due, closes those that have lingered, and reports whether any are left. An idle
// machine ends up with none.
func (p *pool) tidy(now int64) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	for i, s := range p.socks {
		if s != nil && now >= s.until {
			p.retireLocked(i, now)
		}
	}
	kept := p.retired[:0]
	for _, s := range p.retired {
		if now >= s.until {
			_ = s.conn.Close()
			continue
		}
		kept = append(kept, s)
	}
	clear(p.retired[len(kept):])
	p.retired = kept
	busy := len(kept) > 0
	for _, s := range p.socks {
		busy = busy || s != nil
	}
	return busy
}

// close closes every socket; their readers end.
func (p *pool) close() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.closed = true
	for i, s := range p.socks {
		if s != nil {
			_ = s.conn.Close()
			p.socks[i] = nil
		}
	}
	for _, s := range p.retired {
		_ = s.conn.Close()
	}
	p.retired = nil
}

// dialPlain opens a connected socket; the kernel draws its port.
func dialPlain(u Upstream) (*udpConn, error) {
	var d net.Dialer
	c, err := d.DialContext(context.Background(), "udp", u.addr.String()) //nolint:contextcheck // connect(2) on UDP sends nothing
	if err != nil {
		return nil, err
	}
	conn := c.(*net.UDPConn)
	_ = conn.SetReadBuffer(receiveBuffer)
	return newUDPConn(conn)
}

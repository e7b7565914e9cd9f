package funnel

import (
	"context"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"
)

// The bounds of what is shown over UDP. Anybody can send from any address, so that there are fewer visits than over TCP.
const (
	udpIdleTime  = time.Minute
	udpQueue     = 32        // datagrams of a visitor that the node has not taken yet
	udpQueued    = 128 << 10 // bytes of those
	udpQueuedAll = 16 << 20  // bytes of all visitors'
	maxUDP       = 1000
	perSecondUDP = 200
)

// ServeUDP takes datagrams to a whole port until ctx ends, and returns when all visits have ended. Those of one address and
// port are a visit, for as long as there is no pause of a minute.
func (r *Relay) ServeUDP(ctx context.Context, pc net.PacketConn, port uint16) error {
	ctx, cancel := context.WithCancel(ctx)
	u := &udpPort{relay: r, pc: pc, port: port, visitors: map[netip.AddrPort]*udpVisitor{}}
	defer u.running.Wait()
	defer cancel()
	stop := context.AfterFunc(ctx, func() { pc.Close() })
	defer stop()
	buf := make([]byte, maxDatagram)
	for {
		n, from, err := pc.ReadFrom(buf)
		switch {
		case ctx.Err() != nil:
			return nil
		case errors.Is(err, net.ErrClosed):
			return err
		case err != nil:
			// A visitor's machine says that its port is closed, mostly.
			rest(ctx, acceptPause)
			continue
		}
		u.take(ctx, from, buf[:n])
	}
}

// udpPort is a port and its visitors.
type udpPort struct {
	relay   *Relay
	pc      net.PacketConn
	port    uint16
	running sync.WaitGroup

	mu       sync.Mutex
	visitors map[netip.AddrPort]*udpVisitor

	queued atomic.Int64
}

// take gives a datagram to the visit that it is of.
func (u *udpPort) take(ctx context.Context, from net.Addr, data []byte) {
	key := addrOf(from)
	u.mu.Lock()
	defer u.mu.Unlock()
	v := u.visitors[key]
	if v != nil {
		v.enqueue(data)
		return
	}
	if len(u.visitors) >= u.relay.cfg.MaxVisits {
		return
	}
	v = &udpVisitor{port: u, addr: from, queue: make(chan []byte, udpQueue), ended: make(chan struct{})}
	u.visitors[key] = v
	v.enqueue(data)
	u.running.Go(func() {
		u.relay.serve(ctx, &visit{asked: asked{port: u.port, protocol: kindUDP}, visitor: v})
		v.Close()
		u.mu.Lock()
		defer u.mu.Unlock()
		delete(u.visitors, key)
		for len(v.queue) > 0 { // nothing is put there any more
			v.count(-len(<-v.queue))
		}
	})
}

// enqueue keeps a datagram until the node takes it. Above the bounds it is lost, as datagrams are.
func (v *udpVisitor) enqueue(data []byte) {
	n := 2 + len(data)
	if v.queued.Load()+int64(n) > udpQueued || v.port.queued.Load()+int64(n) > udpQueuedAll {
		return
	}
	select {
	case v.queue <- append(binary.BigEndian.AppendUint16(make([]byte, 0, n), uint16(len(data))), data...):
		v.count(n)
	default:
	}
}

// count notes bytes that are kept.
func (v *udpVisitor) count(n int) {
	v.queued.Add(int64(n))
	v.port.queued.Add(int64(n))
}

// udpVisitor is a visitor's datagrams as a stream, the length of each before it: as the node has them.
type udpVisitor struct {
	port  *udpPort
	addr  net.Addr
	queue chan []byte
	left  []byte // of a frame that was read in part
	part  []byte // of a frame that was written in part
	once  sync.Once
	ended chan struct{}

	queued atomic.Int64
}

func (v *udpVisitor) Read(p []byte) (int, error) {
	if len(v.left) == 0 {
		select {
		case v.left = <-v.queue:
			v.count(-len(v.left))
		case <-v.ended:
			return 0, io.EOF
		}
	}
	n := copy(p, v.left)
	v.left = v.left[n:]
	return n, nil
}

func (v *udpVisitor) Write(p []byte) (int, error) {
	v.part = append(v.part, p...)
	for len(v.part) >= 2 {
		n := 2 + int(binary.BigEndian.Uint16(v.part))
		if len(v.part) < n {
			break
		}
		// One that is too long for the way is lost, and the others are not.
		if _, err := v.port.pc.WriteTo(v.part[2:n], v.addr); errors.Is(err, net.ErrClosed) {
			return 0, err
		}
		v.part = append(v.part[:0], v.part[n:]...)
	}
	return len(p), nil
}

func (v *udpVisitor) Close() error {
	v.once.Do(func() { close(v.ended) })
	return nil
}

// SetDeadline ends the visit, unless it is for later: a relay sets no other one.
func (v *udpVisitor) SetDeadline(t time.Time) error {
	if !t.IsZero() && !t.After(time.Now()) {
		return v.Close()
	}
	return nil
}

func (v *udpVisitor) SetReadDeadline(t time.Time) error  { return v.SetDeadline(t) }
func (v *udpVisitor) SetWriteDeadline(t time.Time) error { return v.SetDeadline(t) }
func (v *udpVisitor) LocalAddr() net.Addr                { return v.port.pc.LocalAddr() }
func (v *udpVisitor) RemoteAddr() net.Addr               { return v.addr }

package node

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"sync"
	"time"
)

// echoPort is the UDP port on every node's tailnet addresses that answers other nodes' questions whether it is there. ICMP
// would do, but sending it takes root, and a network inside this process has no sockets for it.
const echoPort = 41445

// A question is the word, a kind and a number that the answer repeats. The answer has the same length, so nobody gains by
// having it sent elsewhere; answers are not answered, so two nodes cannot be set on each other. A greeting is a gateway's that
// was started anew.
const (
	echoWord   = "meshdns echo"
	echoAsk    = 1
	echoAnswer = 2
	echoGreet  = 3
	echoLength = len(echoWord) + 1 + 8
)

// The bounds of the echo.
const (
	echoBurst   = 20 // answers to one address at once, and
	echoEvery   = 50 * time.Millisecond
	maxEchoFrom = 4096 // addresses that are counted
	maxEchoAsks = 256  // questions that wait for their answer
)

// echo asks other nodes whether they are there, and answers them.
type echo struct {
	isPeer  func(netip.Addr) bool
	greeted func(from netip.Addr, number uint64) // is told of greetings, and does not block

	mu     sync.Mutex
	conns  []net.PacketConn
	asked  map[uint64]echoAsked
	counts map[netip.Addr]echoCount
}

// echoAsked is one that waits for its answer.
type echoAsked struct {
	to   netip.AddrPort
	done chan time.Time
}

// echoCount is what one address may be answered yet.
type echoCount struct {
	left int
	at   time.Time
}

// echoMessage is a question or an answer.
func echoMessage(kind byte, number uint64) []byte {
	return binary.BigEndian.AppendUint64(append([]byte(echoWord), kind), number)
}

// parseEcho reads one.
func parseEcho(b []byte) (kind byte, number uint64, ok bool) {
	if len(b) != echoLength || string(b[:len(echoWord)]) != echoWord {
		return 0, 0, false
	}
	kind = b[len(echoWord)]
	return kind, binary.BigEndian.Uint64(b[len(echoWord)+1:]), kind == echoAsk || kind == echoAnswer || kind == echoGreet
}

// startEcho listens on the node's tailnet addresses. Without it nodes speak as well, but nobody can ping this one.
func (n *Node) startEcho(ctx context.Context) error {
	t := n.carrier.tunnel
	if t == nil {
		return nil
	}
	e := &n.echo
	e.isPeer = func(a netip.Addr) bool { _, ok := t.Whose(a); return ok }
	e.greeted = n.gatewayGreets
	e.asked, e.counts = map[uint64]echoAsked{}, map[netip.Addr]echoCount{}
	m, _ := n.tailnet.current()
	self, _ := m.Node(n.findSelf(m))
	for _, a := range self.Addresses {
		conn, err := t.ListenPacket(ctx, "udp", netip.AddrPortFrom(a, echoPort))
		if err != nil {
			n.lacks("the answer to ping", err)
			continue
		}
		e.conns = append(e.conns, conn)
		n.services.run("answer to ping", func(ctx context.Context) error { return e.serve(ctx, conn) })
	}
	return nil
}

// serve answers on one address.
func (e *echo) serve(ctx context.Context, conn net.PacketConn) error {
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	defer stop()
	defer conn.Close()
	buf := make([]byte, 64)
	for {
		size, from, err := conn.ReadFrom(buf)
		switch {
		case ctx.Err() != nil:
			return nil
		case errors.Is(err, net.ErrClosed):
			return fmt.Errorf("reading questions of nodes: %w", err)
		case err != nil:
			sleep(ctx, time.Millisecond) // an ICMP error about an answer that was sent, or no memory
			continue
		}
		source := addrPortOf(from)
		if answer := e.take(source, buf[:size], time.Now()); answer != nil {
			_, _ = conn.WriteTo(answer, from) // who got none asks again
		}
	}
}

func addrPortOf(a net.Addr) netip.AddrPort {
	at, _ := netip.ParseAddrPort(a.String())
	return netip.AddrPortFrom(at.Addr().Unmap(), at.Port())
}

// take takes a datagram, and returns what answers it; nil: nothing does.
func (e *echo) take(from netip.AddrPort, datagram []byte, now time.Time) []byte {
	kind, number, ok := parseEcho(datagram)
	if !ok || !e.isPeer(from.Addr()) {
		return nil
	}
	if kind == echoGreet {
		e.greeted(from.Addr(), number)
		return nil
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	if kind == echoAnswer {
		if q, ok := e.asked[number]; ok && q.to == from {
			delete(e.asked, number)
			q.done <- now
		}
		return nil
	}
	if !e.mayLocked(from.Addr(), now) {
		return nil
	}
	return echoMessage(echoAnswer, number)
}

// mayLocked reports whether an address is answered once more.
func (e *echo) mayLocked(a netip.Addr, now time.Time) bool {
	c, known := e.counts[a]
	if !known {
		if len(e.counts) >= maxEchoFrom {
			clear(e.counts)
		}
		c = echoCount{left: echoBurst, at: now}
	}
	if due := now.Sub(c.at) / echoEvery; due > 0 {
		c.left, c.at = int(min(echoBurst, time.Duration(c.left)+due)), c.at.Add(due*echoEvery)
	}
	if c.left > 0 {
		c.left--
		e.counts[a] = c
		return true
	}
	e.counts[a] = c
	return false
}

// ask asks a node, and returns how long the answer took.
func (e *echo) ask(ctx context.Context, to netip.Addr) (time.Duration, error) {
	q := echoAsked{to: netip.AddrPortFrom(to, echoPort), done: make(chan time.Time, 1)}
	number, err := e.send(q)
	if err != nil {
		return 0, err
	}
	asked := time.Now()
	defer func() {
		e.mu.Lock()
		defer e.mu.Unlock()
		delete(e.asked, number)
	}()
	select {
	case at := <-q.done:
		return at.Sub(asked), nil
	case <-ctx.Done():
		return 0, ctx.Err()
	}
}

// nudge asks a node without a wait for the answer: that something authentic comes from it is what the asker looks for.
func (e *echo) nudge(to netip.Addr) error { return e.say(to, echoAsk, 0) }

// say sends one message.
func (e *echo) say(to netip.Addr, kind byte, number uint64) error {
	conn, err := e.from(to)
	if err == nil {
		_, err = conn.WriteTo(echoMessage(kind, number), net.UDPAddrFromAddrPort(netip.AddrPortFrom(to, echoPort)))
	}
	return err
}

// send sends a question, and takes note of it.
func (e *echo) send(q echoAsked) (number uint64, err error) {
	conn, err := e.from(q.to.Addr())
	if err != nil {
		return 0, err
	}
	var random [8]byte
	if _, err := rand.Read(random[:]); err != nil {
		return 0, fmt.Errorf("drawing a number: %w", err)
	}
	number = binary.BigEndian.Uint64(random[:])
	e.mu.Lock()
	if len(e.asked) >= maxEchoAsks {
		e.mu.Unlock()
		return 0, errors.New("too many questions wait for their answer")
	}
	e.asked[number] = q
	e.mu.Unlock()
	if _, err := conn.WriteTo(echoMessage(echoAsk, number), net.UDPAddrFromAddrPort(q.to)); err != nil {
		e.mu.Lock()
		delete(e.asked, number)
		e.mu.Unlock()
		return 0, fmt.Errorf("asking %s: %w", q.to.Addr(), err)
	}
	return number, nil
}

// from is the socket of an address's family.
func (e *echo) from(to netip.Addr) (net.PacketConn, error) {
	i := slices.IndexFunc(e.conns, func(c net.PacketConn) bool { return addrPortOf(c.LocalAddr()).Addr().Is4() == to.Is4() })
	if i < 0 {
		return nil, errors.New("no tunnel runs that could be asked through")
	}
	return e.conns[i], nil
}

package funnel

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"sync"
	"time"
)

// The bounds of an Ingress.
const (
	headerTime = 3 * time.Second  // for a whole header
	nonceTime  = 10 * time.Second // a header counts for so long, by this machine's clock
	maxNonces  = 100_000          // of headers that still count
	maxArrived = 256              // connections that have not said yet what they are, or that nobody has accepted
	maxPulses  = 64
	pulseTime  = 15 * time.Second // without a byte
)

// Visit is a connection that a gateway passes on: a visitor from the world. RemoteAddr is the visitor's address. With kind
// "udp" a Read is one datagram, and a Write.
type Visit struct {
	net.Conn

	Visitor netip.AddrPort
	Gateway netip.Addr // the tailnet address of the gateway
	Name    string     // that the visitor asked for, lower case; empty with kinds tcp and udp, mostly
	Port    uint16     // that the visitor came to
	Kind    string     // https, tls-terminated-tcp, tcp, udp
}

// RemoteAddr is the visitor's address.
func (v *Visit) RemoteAddr() net.Addr {
	if v.Kind == kindUDP {
		return net.UDPAddrFromAddrPort(v.Visitor)
	}
	return net.TCPAddrFromAddrPort(v.Visitor)
}

// CloseWrite ends our side of the connection, where it has sides.
func (v *Visit) CloseWrite() error { return closeWrite(v.Conn) }

// closeWrite ends our side of a connection, or all of one without sides.
func closeWrite(conn net.Conn) error {
	if half, ok := conn.(interface{ CloseWrite() error }); ok {
		return half.CloseWrite()
	}
	return conn.Close()
}

// IngressConfig says what an ingress takes.
type IngressConfig struct {
	// Keys are the keys that a gateway may have; none: it is not one. It is called once for each connection.
	Keys func(gateway netip.Addr) [][]byte
	// Tailnet are the ranges that no visitor comes from. Neither does one come from a loopback or link-local address.
	Tailnet []netip.Prefix
	// Loopback takes visitors from loopback addresses all the same: gateway and visitor are on this machine.
	Loopback bool
	Logger   *slog.Logger // nil: nothing is logged
}

// Ingress returns a listener whose connections are *Visit: what gateways pass on through ln. A connection that does not
// start with a header of a gateway is closed, and nothing is answered. Closing it closes ln, and all that was not accepted.
func Ingress(ln net.Listener, cfg IngressConfig) net.Listener {
	ctx, cancel := context.WithCancel(context.Background())
	l := &ingress{
		Listener: ln, cfg: cfg, log: cfg.Logger, ctx: ctx, cancel: cancel,
		visits: make(chan *Visit), failed: make(chan struct{}),
		arrived: make(chan struct{}, maxArrived), pulses: make(chan struct{}, maxPulses),
		nonces: nonces{seen: map[nonce]bool{}}, now: time.Now,
	}
	if l.log == nil {
		l.log = slog.New(slog.DiscardHandler)
	}
	return l
}

// ingress is a listener behind which headers are read.
type ingress struct {
	net.Listener

	cfg    IngressConfig
	log    *slog.Logger
	ctx    context.Context
	cancel context.CancelFunc

	start   sync.Once
	running sync.WaitGroup
	visits  chan *Visit
	failed  chan struct{} // is closed once err is there
	err     error
	arrived chan struct{}
	pulses  chan struct{}
	nonces  nonces
	now     func() time.Time
}

// Accept returns the next *Visit.
func (l *ingress) Accept() (net.Conn, error) {
	l.start.Do(func() { l.running.Go(l.take) })
	select {
	case v := <-l.visits:
		return v, nil
	case <-l.failed:
		return nil, l.err
	}
}

// Close ends the listener, and what has not been accepted.
func (l *ingress) Close() error {
	l.cancel()
	err := l.Listener.Close()
	l.start.Do(func() { l.err = net.ErrClosed; close(l.failed) })
	l.running.Wait()
	return err
}

// take takes connections until the listener is closed.
func (l *ingress) take() {
	defer close(l.failed)
	err := takeAll(l.ctx, l.Listener, l.log, func(_ context.Context, running *sync.WaitGroup, conn net.Conn) {
		select {
		case l.arrived <- struct{}{}:
			running.Go(func() { l.greet(conn) })
		default:
			conn.Close()
		}
	})
	l.err = errors.Join(err, net.ErrClosed)
}

// greet reads what a connection is, and hands it to Accept.
func (l *ingress) greet(conn net.Conn) {
	stop := context.AfterFunc(l.ctx, func() { conn.Close() })
	defer stop()
	release := sync.OnceFunc(func() { <-l.arrived })
	defer release()
	v, pulse, err := l.check(conn)
	switch {
	case err != nil:
		l.log.Debug("a connection is no visit", "err", err)
		conn.Close()
	case pulse:
		release()
		l.echo(conn)
	default:
		select {
		case l.visits <- v:
		case <-l.ctx.Done():
			conn.Close()
		}
	}
}

// check reads the header of a connection, and answers it if it is a gateway's.
func (l *ingress) check(conn net.Conn) (*Visit, bool, error) {
	gateway := addrOf(conn.RemoteAddr())
	keys := l.cfg.Keys(gateway.Addr())
	if len(keys) == 0 {
		return nil, false, errors.New("it does not come from a gateway")
	}
	if err := conn.SetDeadline(time.Now().Add(headerTime)); err != nil {
		return nil, false, err
	}
	raw, err := readHeader(conn)
	if err != nil {
		return nil, false, err
	}
	h, err := parseHeader(raw)
	if err != nil {
		return nil, false, err
	}
	sealed := false
	for _, key := range keys {
		sealed = sealedBy(key, raw) || sealed
	}
	if !sealed {
		return nil, false, errors.New("a PROXY header that is not under the gateway's key")
	}
	reply, err := l.judge(h, l.now())
	if _, werr := conn.Write(reply); werr != nil || err != nil {
		return nil, false, errors.Join(err, werr)
	}
	v := &Visit{Conn: conn, Visitor: h.visitor, Gateway: gateway.Addr(), Name: h.name, Port: h.port, Kind: h.kind}
	if h.kind == kindUDP {
		v.Conn = &datagrams{Conn: conn}
	}
	return v, h.pulse, conn.SetDeadline(time.Time{})
}

// judge says what is answered to a header that is a gateway's.
func (l *ingress) judge(h header, now time.Time) ([]byte, error) {
	if d := now.Sub(h.nonce.time()); d > nonceTime || d < -nonceTime {
		return binary.BigEndian.AppendUint64([]byte{replyLate}, uint64(now.UnixMilli())), errors.New("a PROXY header of another time")
	}
	if !l.nonces.spend(h.nonce, now) {
		return []byte{replyRefused}, errors.New("a PROXY header that was taken already")
	}
	if !h.pulse && !l.mayVisit(h.visitor.Addr()) {
		return []byte{replyRefused}, fmt.Errorf("a visitor from %s, where none comes from", h.visitor.Addr())
	}
	return []byte{replyTaken}, nil
}

// mayVisit reports whether a visitor from the world can have this address.
func (l *ingress) mayVisit(a netip.Addr) bool {
	if a.IsLoopback() {
		return l.cfg.Loopback
	}
	if a.IsUnspecified() || a.IsMulticast() || a.IsLinkLocalUnicast() {
		return false
	}
	for _, p := range l.cfg.Tailnet {
		if p.Contains(a) {
			return false
		}
	}
	return true
}

// echo gives a gateway its bytes back, by which it knows that this node is there.
func (l *ingress) echo(conn net.Conn) {
	defer conn.Close()
	select {
	case l.pulses <- struct{}{}:
		defer func() { <-l.pulses }()
	default:
		return
	}
	buf := make([]byte, 1)
	for conn.SetDeadline(time.Now().Add(pulseTime)) == nil {
		if _, err := io.ReadFull(conn, buf); err != nil {
			return
		}
		if _, err := conn.Write(buf); err != nil {
			return
		}
	}
}

// addrOf is the address of a connection's end, or the zero one.
func addrOf(a net.Addr) netip.AddrPort {
	ap, err := netip.ParseAddrPort(a.String())
	if err != nil {
		return netip.AddrPort{}
	}
	return unmapped(ap)
}

// nonces are those of headers that would count still.
type nonces struct {
	mu   sync.Mutex
	seen map[nonce]bool
	// line has them in the order in which they came, so that old ones are found first.
	line []spent
}

type spent struct {
	nonce nonce
	until time.Time
}

// spend reports whether a nonce was not seen before, and can be remembered.
func (s *nonces) spend(n nonce, now time.Time) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	old := 0
	for old < len(s.line) && now.After(s.line[old].until) {
		delete(s.seen, s.line[old].nonce)
		old++
	}
	s.line = s.line[old:]
	if s.seen[n] || len(s.line) >= maxNonces {
		return false
	}
	s.seen[n] = true
	// It counts until its own time is past, and that can be ahead of ours.
	s.line = append(s.line, spent{n, now.Add(2*nonceTime + time.Second)})
	return true
}

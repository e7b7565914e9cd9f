package resolver

import (
	"context"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"net"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/miekg/dns"
)

// probeTimeout is how long a probe waits for its answer.
const probeTimeout = 2 * time.Second

// ask sends one query to a server, on a socket of its own or over its stream, and returns the response.
func (s *server) ask(ctx context.Context, query []byte) ([]byte, error) {
	if !s.plain() {
		return s.exchange.exchange(ctx, query)
	}
	end, err := questionEnd(query)
	if err != nil {
		return nil, err
	}
	c, err := dialPlain(s.upstream)
	if err != nil {
		return nil, err
	}
	defer c.conn.Close()
	stop := context.AfterFunc(ctx, func() { _ = c.conn.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	if _, err := c.conn.Write(query); err != nil {
		return nil, err
	}
	buf := make([]byte, upstreamSize)
	for {
		n, err := c.conn.Read(buf)
		if err != nil {
			return nil, err
		}
		msg := buf[:n]
		if n < headerSize || msg[0] != query[0] || msg[1] != query[1] {
			continue
		}
		if msg, err = matchResponse(query[headerSize:end], msg); err != nil {
			continue
		}
		if msg[2]&(flagTC>>8) != 0 {
			return s.tcp.exchange(ctx, query)
		}
		return msg, nil
	}
}

// Ask asks u, which need not be an upstream in use, over a connection of its own, and returns the response. query has one
// question and an ID that is hard to guess. Neither cache nor routes have a part in it.
func (r *Resolver) Ask(ctx context.Context, u Upstream, query []byte) ([]byte, error) {
	s := r.makeServer(u)
	defer s.close()
	return s.ask(ctx, query)
}

// newQuery makes a query of our own, with a random ID.
func (r *Resolver) newQuery(name []byte, qtype uint16) []byte {
	msg := appendQuestion(make([]byte, 0, querySize), name, qtype)
	seed := randomSeed()
	copy(msg, seed[:2])
	binary.BigEndian.PutUint16(msg[2:], flagRD)
	return msg
}

// revive asks a quarantined server for the root's nameservers, which every resolver has at hand. Any answer at
// all ends the quarantine; none doubles it.
func (r *Resolver) revive(s *server) {
	defer s.probing.Store(false)
	ctx, cancel := r.deadline(probeTimeout)
	defer cancel()
	sent := r.clock()
	if _, err := s.ask(ctx, r.newQuery([]byte{0}, dns.TypeNS)); err != nil {
		s.requarantine(r.clock())
		return
	}
	s.answered(r.clock() - sent)
	r.log.Info("upstream answers again", "upstream", s.upstream.String())
}

// requarantine doubles the pause until the next probe.
func (s *server) requarantine(now int64) {
	pause := min(max(2*s.backoff.Load(), minQuarantine), maxQuarantine)
	s.backoff.Store(pause)
	s.deadTill.Store(now + pause)
}

// loops finds upstreams that send our questions back to us, directly or round several corners: each is asked for
// a name that nobody else can know, and if that question arrives here, the upstream is not used until a later
// probe comes through clean. The names are under .test (RFC 6761), like those of other forwarders that probe.
type loops struct {
	mu      sync.Mutex
	nonces  map[string]*server
	pending atomic.Bool
	next    int64 // of the next round; Run's alone
}

// loopPause is how often loops are looked for while the routing stays as it is.
const loopPause = 10 * int64(time.Minute)

// loopZone is the suffix of probes.
const loopZone = "\x0cmeshdns-loop\x04test\x00"

// nonceSize is the length of a probe's first label.
const nonceSize = 32

func (l *loops) init() { l.nonces = make(map[string]*server) }

// suspect asks for a round of probes soon.
func (l *loops) suspect() { l.pending.Store(true) }

// isProbe reports whether q is a probe, ours or another's. Another's must go its way: although .test is special, who
// answered it here would hide a loop that leads through us.
func (q *question) isProbe() bool {
	return q.labels == 3 && q.nameLen == 1+nonceSize+len(loopZone) && string(q.suffix(2)) == loopZone
}

// seen reports whether q is a probe of ours that came back; its upstream is then put aside.
func (l *loops) seen(q *question) bool {
	if !q.isProbe() {
		return false
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	s := l.nonces[string(q.lower[1:1+nonceSize])]
	if s == nil {
		return false
	}
	s.looping.Store(true)
	return true
}

// check starts a round of probes if one is due. It reports whether it has to be called again soon.
func (l *loops) check(r *Resolver, now int64) bool {
	if !l.pending.Swap(false) && (l.next == 0 || now < l.next) {
		return false
	}
	l.next = now + loopPause
	for _, s := range r.servers.list() {
		if s.plain() || s.upstream.kind == upstreamTCP {
			r.goBackground(func() { l.probe(r, s) })
		}
	}
	return false
}

func (l *loops) probe(r *Resolver, s *server) {
	seed := randomSeed()
	nonce := hex.EncodeToString(seed[:nonceSize/2])
	l.mu.Lock()
	l.nonces[nonce] = s
	l.mu.Unlock()
	was := s.looping.Swap(false)
	ctx, cancel := r.deadline(probeTimeout)
	defer cancel()
	name := append([]byte{nonceSize}, nonce+loopZone...)
	_, err := s.ask(ctx, r.newQuery(name, dns.TypeTXT))
	var netErr net.Error
	if errors.As(err, &netErr) && was {
		s.looping.Store(true) // nothing was learnt
	}
	l.mu.Lock()
	delete(l.nonces, nonce)
	l.mu.Unlock()
	if now := s.looping.Load(); now && !was {
		r.log.Warn("upstream forwards to us and is left out", "upstream", s.upstream.String())
	}
}

// resolve looks up the addresses of an upstream that is given by name, with the base's plain servers: never with
// the operating system's resolver, which is us.
func (r *Resolver) resolve(ctx context.Context, name string) ([]netip.Addr, error) {
	wire, err := wireName(name)
	if err != nil {
		return nil, err
	}
	var last error = errNoBootstrap
	for _, s := range r.routing.Load().base.servers {
		if !s.plain() || s.looping.Load() {
			continue
		}
		addrs, err := r.lookup(ctx, s, wire)
		if err == nil && len(addrs) > 0 {
			return addrs, nil
		}
		if err != nil {
			last = err
		}
	}
	return nil, last
}

var errNoBootstrap = errors.New("no plain upstream knows its address; give it behind #")

func (r *Resolver) lookup(ctx context.Context, s *server, wire []byte) ([]netip.Addr, error) {
	types := [...]uint16{dns.TypeA, dns.TypeAAAA}
	var found [len(types)][]netip.Addr
	var errs [len(types)]error
	var wg sync.WaitGroup
	for i, qtype := range types {
		wg.Go(func() { found[i], errs[i] = r.lookupType(ctx, s, wire, qtype) })
	}
	wg.Wait()
	if addrs := slices.Concat(found[:]...); len(addrs) > 0 {
		return addrs, nil // one family is enough
	}
	return nil, errors.Join(errs[:]...)
}

func (r *Resolver) lookupType(ctx context.Context, s *server, wire []byte, qtype uint16) ([]netip.Addr, error) {
	ctx, cancel := context.WithTimeout(ctx, probeTimeout)
	defer cancel()
	raw, err := s.ask(ctx, r.newQuery(wire, qtype))
	if err != nil {
		return nil, err
	}
	var m dns.Msg
	if err := m.Unpack(raw); err != nil {
		return nil, err
	}
	return addressesIn(m.Answer), nil
}

func addressesIn(rrs []dns.RR) []netip.Addr {
	var out []netip.Addr
	for _, rr := range rrs {
		var ip net.IP
		switch rr := rr.(type) {
		case *dns.A:
			ip = rr.A
		case *dns.AAAA:
			ip = rr.AAAA
		}
		if a, ok := netip.AddrFromSlice(ip); ok {
			out = append(out, a.Unmap())
		}
	}
	return out
}

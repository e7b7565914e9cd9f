package resolver

import (
	"cmp"
	"context"
	"encoding/binary"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"github.com/miekg/dns"
)

// AuthorityConfig says what an Authority serves. Zone and View are required.
type AuthorityConfig struct {
	Zone string // as its parent delegates it
	View PublicView
	// Serial is the last serial number that the zone was served with; zero if that is not known. Numbers are made
	// from the clock, so it only matters where that may have been set back.
	Serial uint32
	// CookieSecret is one that gateways which answer at one address share (RFC 9018, 5). Zero: drawn, and changed daily.
	CookieSecret [16]byte
	// Rate is how many answers a second go to one network, a /24 or /56, over UDP, until a cookie shows that it is
	// the one that asks; 50 if zero. Twice as many may go at once. What is more is answered with a truncated message.
	Rate int
	TCP  TCPLimits // PerClient is 16 if zero, and counts a /56
	// Unsure is asked of each name whose first label is _acme-challenge: whether other gateways may have values of it that
	// this one lacks. Then a CA's resolver is told to ask one of those. Names are lower-case, without the last dot. nil: of none.
	Unsure func(name string) bool
	// Pinned: the zone itself is served elsewhere. Only names whose first label is _acme-challenge are delegated to this server,
	// each by itself, and nothing else is answered.
	Pinned bool
	Logger *slog.Logger // nil: nothing is logged
}

// defaultPerNetwork is the least share of connections that leaves room for others: a resolver behind one address opens
// few, and keeps none for long.
const defaultPerNetwork = 16

// Authority answers the public for a zone that its parent has delegated, out of a table that holds public names alone.
// It never recurses, and knows nothing of the names that it must not tell. Its methods may be called at the same time.
type Authority struct {
	log     *slog.Logger
	zone    []byte // in wire form, lower-cased
	unsure  func(name string) bool
	pinned  bool
	begin   time.Time
	table   atomic.Pointer[Table]
	limiter *limiter
	cookies *cookieJar
	tcp     *tcpServer
	workers sync.Pool

	answered, refused, missing, truncated, verified, ignored, dropped atomic.Uint64

	mu     sync.Mutex
	view   PublicView
	texts  map[string][]string // values of TXT records that came and go, by lower-cased name
	count  int                 // of them
	serial uint32
}

// NewAuthority returns an Authority.
func NewAuthority(c AuthorityConfig) (*Authority, error) {
	zone, err := wireName(c.Zone)
	if err == nil && (zone[0] == 0 || isWildcard(zone)) {
		err = &nameError{name: c.Zone}
	}
	if err != nil {
		return nil, fmt.Errorf("reading zone %q: %w", c.Zone, err)
	}
	if c.Rate < 0 || c.Rate > maxRate {
		return nil, fmt.Errorf("a rate of %d answers a second: 1 to %d can be set", c.Rate, maxRate)
	}
	c.TCP.PerClient = cmp.Or(c.TCP.PerClient, defaultPerNetwork)
	a := &Authority{
		log:     c.Logger,
		zone:    zone,
		unsure:  c.Unsure,
		pinned:  c.Pinned,
		begin:   time.Now(),
		limiter: newLimiter(cmp.Or(c.Rate, defaultRate)),
		tcp:     newTCPServer(c.TCP, nil),
		texts:   make(map[string][]string),
		serial:  c.Serial,
	}
	if a.log == nil {
		a.log = slog.New(slog.DiscardHandler)
	}
	a.cookies = newCookieJar(c.CookieSecret, uint32(a.begin.Unix()))
	a.tcp.answerTo = func(query []byte, from netip.Addr) []byte { return a.Answer(query, from, TCP) }
	a.tcp.network = network
	a.workers.New = func() any { return &authorityWorker{a: a} }
	return a, a.SetPublic(c.View)
}

// network is what one party has of IPv6 addresses.
func network(from netip.Addr) netip.Addr {
	if !from.Is6() {
		return from
	}
	p, err := from.WithZone("").Prefix(56)
	if err != nil {
		return from
	}
	return p.Addr()
}

// authorityWorker is what one goroutine needs to answer, laid out once.
type authorityWorker struct {
	a      *Authority
	srv    *udpConn
	in     *receiver // nil for those that read no socket
	out    *sender
	rotate uint32

	q      question
	cookie cookie
}

// authorityBuffer is the room for a datagram and its answer: advertisedSize, and what the one record takes that a
// lookup lays down before the answer is cut. Longer ones are copied.
const authorityBuffer = 2048

// ServeUDP answers the queries that arrive at conn until ctx ends, and then returns nil. conn is closed. Several
// sockets of ListenUDP are served by one call each.
func (a *Authority) ServeUDP(ctx context.Context, conn *net.UDPConn) error {
	defer conn.Close()
	c, err := newUDPConn(conn)
	if err != nil {
		return err
	}
	w := &authorityWorker{a: a, srv: c, in: newReceiver(authorityBuffer), out: newSender()}
	return c.receive(ctx, w.in, w.handle)
}

// ServeTCP answers the queries that arrive on connections to ln until ctx ends, and then returns nil. ln and all
// connections are closed.
func (a *Authority) ServeTCP(ctx context.Context, ln net.Listener) error { return a.tcp.serve(ctx, ln) }

// handle answers n datagrams that w.in received. One from port 0 has nowhere to be answered to. Those from port 53
// are answered, some resolvers ask from it: nothing answers a response, so no loop can come of it.
func (w *authorityWorker) handle(n int) {
	now := time.Now()
	for i := range n {
		from := w.in.peer(i).source()
		if from.Port() == 0 {
			w.a.ignored.Add(1)
			continue
		}
		if reply := w.answer(w.in.msg(i), from.Addr(), UDP, now); reply != nil {
			w.out.add(w.in.peer(i), reply)
		}
	}
	queued := w.out.n
	w.a.dropped.Add(uint64(queued - w.out.flush(w.srv)))
}

// Answer answers one query, a message in wire form that came from an address, and returns the reply, or nil if the
// query must not be answered.
func (a *Authority) Answer(query []byte, from netip.Addr, via Transport) []byte {
	w := a.workers.Get().(*authorityWorker)
	defer a.workers.Put(w)
	msg := append(make([]byte, 0, max(2*len(query), dns.MinMsgSize)), query...)
	return w.answer(msg, from.Unmap().WithZone(""), via, time.Now())
}

// answer answers the query in msg, in place as far as there is room.
func (w *authorityWorker) answer(msg []byte, from netip.Addr, via Transport, now time.Time) []byte {
	q := &w.q
	v := q.parse(msg)
	if v == verdictDrop {
		w.a.ignored.Add(1)
		return nil
	}
	w.cookie.state = cookieNone
	if v == verdictOK && q.optEnd > q.optStart {
		w.a.cookies.judge(&w.cookie, msg[q.optStart:q.optEnd], from, uint32(now.Unix()))
	}
	longest := advertisedSize
	if via == TCP {
		longest = dns.MaxMsgSize
	}
	ask := q.asker(via, longest)
	if w.cookie.state >= cookieClient {
		ask.limit -= cookieOption
	}
	if rcode := w.judge(v); rcode != dns.RcodeSuccess {
		w.a.refused.Add(1)
		return w.finish(q.refuse(msg, ask, reply0(rcode, noEDE, "")))
	}
	w.rotate++
	t := w.a.table.Load()
	msg, hit := t.lookup(q, msg[:q.end], int(ask.limit), w.rotate)
	switch {
	case hit.outcome == tableOutside, w.a.pinned && !w.a.isChallenge(q):
		w.a.refused.Add(1)
		return w.finish(q.refuse(msg, ask, reply0(dns.RcodeRefused, noEDE, "")))
	case w.cookie.state == cookieValid:
		w.a.verified.Add(1)
	case via == UDP && !w.a.limiter.allow(from, int64(now.Sub(w.a.begin))):
		return w.cut(msg, ask)
	}
	w.a.answered.Add(1)
	if w.a.isUnsure(q) {
		return w.evade(t, msg[:q.end], ask)
	}
	if w.a.pinned && (hit.outcome != tableAnswer || q.qtype != dns.TypeTXT) {
		return w.answerTop(t, msg[:q.end], ask)
	}
	if hit.outcome == tableNXDomain {
		w.a.missing.Add(1)
	}
	rep := replyOf(hit)
	if q.qtype == dns.TypeNS && hit.outcome == tableAnswer {
		msg, rep.additional = t.glue(msg, q.end, int(hit.answer), int(ask.limit))
	}
	return w.finish(ask.finish(msg, rep))
}

// cut is the answer to a network that has had too many: it says nothing but that TCP would be answered, whatever the
// name. It is as long as the query, or by a server cookie longer.
func (w *authorityWorker) cut(msg []byte, ask asker) []byte {
	w.a.truncated.Add(1)
	msg = ask.finish(msg[:w.q.end], reply{flags: flagAA, ede: noEDE})
	msg[2] |= flagTC >> 8
	return w.finish(msg)
}

// finish turns what a resolver would send into what this server does: no recursion is offered, and the OPT record, which
// is the last, carries the cookie.
func (w *authorityWorker) finish(msg []byte) []byte {
	msg[3] &^= flagRA
	if w.cookie.state < cookieClient {
		return msg
	}
	binary.BigEndian.PutUint16(msg[len(msg)-2:], cookieOption)
	return w.cookie.append(msg)
}

// judge says whether a query is refused for what it is, whatever its name. Only what a delegated server is for is
// answered: no transfer, no update, and nothing of class CH, where servers tell of themselves.
func (w *authorityWorker) judge(v verdict) (rcode int) {
	q := &w.q
	switch v {
	case verdictFormErr:
		return dns.RcodeFormatError
	case verdictNotImp:
		if opcode := q.flags >> opcodeShift & opcodeMask; opcode == dns.OpcodeNotify || opcode == dns.OpcodeUpdate {
			return dns.RcodeRefused
		}
		return dns.RcodeNotImplemented
	case verdictBadVers:
		return dns.RcodeBadVers
	}
	switch {
	case w.cookie.state == cookieBad, q.qtype == dns.TypeOPT:
		return dns.RcodeFormatError
	case q.qclass != dns.ClassINET, q.qtype == dns.TypeAXFR, q.qtype == dns.TypeIXFR:
		return dns.RcodeRefused
	case q.qtype == dns.TypeTSIG, q.qtype == dns.TypeTKEY, q.qtype == dns.TypeMAILA, q.qtype == dns.TypeMAILB:
		return dns.RcodeNotImplemented
	}
	return dns.RcodeSuccess
}

// glue appends the addresses of the name servers in the answer that begins at off, as far as they are in the table and
// there is room, and returns how many there are. Their owners are pointers to the names in the answer.
func (t *Table) glue(msg []byte, off, answers, limit int) ([]byte, uint16) {
	a := tableReply{t: t, dst: msg, limit: limit}
	for range answers {
		end := recordEnd(a.dst, off)
		if end < 0 || end > limit || binary.BigEndian.Uint16(a.dst[off+2:]) != dns.TypeNS {
			break
		}
		a.owner = off + recordFixed
		name := a.dst[a.owner:end]
		if e := t.find(hashName(name), name); e != 0 {
			for _, rtype := range [...]uint16{dns.TypeA, dns.TypeAAAA} {
				if set, ok := t.set(e, rtype); ok {
					a.records(set)
				}
			}
		}
		off = end
	}
	return a.dst, a.hit.answer
}

// AuthorityStats counts what an Authority has done since it was made.
type AuthorityStats struct {
	Answered  uint64   `json:"answered"`  // in the zone
	Missing   uint64   `json:"missing"`   // of these, NXDOMAIN
	Refused   uint64   `json:"refused"`   // answered with an error
	Truncated uint64   `json:"truncated"` // for being too many
	Verified  uint64   `json:"verified"`  // of the answered, those with a valid server cookie
	Ignored   uint64   `json:"ignored"`   // datagrams that are no queries
	Dropped   uint64   `json:"dropped"`   // replies that the kernel did not take
	Names     int      `json:"names"`     // public ones
	Serial    uint32   `json:"serial"`
	TCP       TCPStats `json:"tcp"`
}

// Stats returns the counts so far.
func (a *Authority) Stats() AuthorityStats {
	s := AuthorityStats{
		Answered: a.answered.Load(), Missing: a.missing.Load(), Refused: a.refused.Load(), Truncated: a.truncated.Load(),
		Verified: a.verified.Load(), Ignored: a.ignored.Load(), Dropped: a.dropped.Load(),
		Names: a.table.Load().Names(), TCP: a.tcp.stats(),
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	s.Serial = a.serial
	return s
}

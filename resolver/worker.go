package resolver

import (
	"context"
	"errors"
	"sync/atomic"

	"github.com/miekg/dns"
)

// worker is what one goroutine needs to answer queries, laid out once: a reader of clients, a reader of
// upstreams, the timer, or a call of Answer.
type worker struct {
	r      *Resolver
	table  *atomic.Pointer[Table] // what it answers from
	srv    *udpServer             // the clients' socket that it reads; nil for others
	in     *receiver              // nil for those that read no socket
	out    *sender
	outTo  *udpServer // whose datagrams out holds
	render [][]byte   // buffers of rendered replies, one a datagram in out
	box    outbox
	counts *counters
	rotate uint32
	now    int64
	// generations are those of what is cached, before the routing was looked at.
	generations [kinds]uint32

	q    question
	resp response
	wait waiter
	// scratch holds a reply that is not rendered into a datagram's buffer.
	scratch []byte
}

// replySize is the room of a rendered reply: what the longest datagram holds, and an OPT record.
const replySize = maxLoopback + optSize

func (r *Resolver) newWorker(srv *udpServer) *worker {
	w := r.spare.get()
	w.srv, w.in = srv, newReceiver(replySize)
	return w
}

// retire gives the worker of a socket back.
func (r *Resolver) retire(w *worker) {
	w.table, w.srv, w.in = &r.table, nil, nil
	r.spare.put(w)
}

// handle answers n datagrams that w.in received.
func (w *worker) handle(n int) {
	w.now = w.r.clock()
	for i := range n {
		if reply := w.datagram(w.in.msg(i), i); reply != nil {
			w.towards(w.srv)
			w.out.add(w.in.peer(i), reply)
		}
	}
	w.flush()
}

// datagram answers one query in place, or returns nil if there is nothing to say now.
func (w *worker) datagram(msg []byte, i int) []byte {
	reply, t := w.local(msg, UDP, w.srv.longest)
	if t == nil {
		return reply
	}
	w.wait.asker = w.q.asker(UDP, w.srv.longest)
	w.wait.caseBits.read(msg, w.q.nameLen)
	w.wait.srv, w.wait.reply = w.srv, nil
	w.wait.peer = *w.in.peer(i)
	if t == chased {
		w.r.chase(reply, w.wait)
		return nil
	}
	return w.forward(msg, t, &w.wait)
}

// chased stands for "an alias leads out of the table: the reply so far has to be completed".
var chased = &target{} //nolint:gochecknoglobals // a sentinel, never changed

// local answers the query in msg as far as that needs nobody else. It returns the reply, which is built in msg
// and may be nil, or the target that has to be asked.
func (w *worker) local(msg []byte, via Transport, longest int) ([]byte, *target) {
	q := &w.q
	v := q.parse(msg)
	if v == verdictDrop {
		w.r.ignored.Add(1)
		return nil, nil
	}
	a := q.asker(via, longest)
	if rep, bad := w.judge(v); bad {
		w.count(sourceRefused, rep.rcode)
		return q.refuse(msg, a, rep), nil
	}
	reply, hit, found := w.fromTable(msg[:q.end], a)
	if found {
		if hit && q.flags&flagRD != 0 {
			return reply, chased
		}
		return reply, nil
	}
	w.look()
	rt := w.r.routing.Load()
	t := rt.explicit.find(q)
	if t == nil {
		t = rt.learnt.find(q)
	}
	if t == nil && !q.isProbe() {
		if reply, ok := w.special(msg[:q.end], a); ok {
			return reply, nil
		}
	}
	if t == nil {
		t = rt.base
	}
	if q.flags&flagRD == 0 {
		// Without recursion wanted there is nothing to give: a cache is nobody else's business.
		rep := reply0(dns.RcodeRefused, dns.ExtendedErrorCodeNotAuthoritative, "recursion not desired")
		w.count(sourceRefused, rep.rcode)
		return q.refuse(msg, a, rep), nil
	}
	if reply, ok := w.fromCache(msg[:q.end], a, t); ok {
		return reply, nil
	}
	return nil, t
}

// reply0 is a reply without records.
func reply0(rcode int, ede uint16, text string) reply {
	return reply{rcode: uint16(rcode), ede: ede, text: text}
}

// judge says whether a query is refused for what it is, whatever its name.
func (w *worker) judge(v verdict) (reply, bool) {
	switch v {
	case verdictFormErr:
		return reply0(dns.RcodeFormatError, noEDE, ""), true
	case verdictNotImp:
		return reply0(dns.RcodeNotImplemented, noEDE, ""), true
	case verdictBadVers:
		return reply0(dns.RcodeBadVers, noEDE, ""), true
	}
	q := &w.q
	switch q.qtype {
	case dns.TypeAXFR, dns.TypeIXFR:
		return reply0(dns.RcodeRefused, dns.ExtendedErrorCodeProhibited, "no zone transfers"), true
	case dns.TypeOPT:
		return reply0(dns.RcodeFormatError, noEDE, ""), true
	case dns.TypeTSIG, dns.TypeTKEY, dns.TypeMAILA, dns.TypeMAILB:
		return reply0(dns.RcodeNotImplemented, noEDE, ""), true
	}
	if q.qclass != dns.ClassINET {
		return reply0(dns.RcodeRefused, dns.ExtendedErrorCodeNotSupported, "only class IN"), true
	}
	if w.r.loops.seen(q) {
		return reply0(dns.RcodeNameError, noEDE, ""), true
	}
	return reply{}, false
}

// Answer answers one query, a message in wire form, and returns the reply, or nil if the query must not be
// answered. It waits for upstreams, at most 4 s, and needs Run to be running for names that are not local. A
// reply to a query that came via UDP is no longer than the query allows.
func (r *Resolver) Answer(ctx context.Context, query []byte, via Transport) ([]byte, error) {
	return r.answer(ctx, query, via, &r.table)
}

// answer is Answer with the names of a table.
func (r *Resolver) answer(ctx context.Context, query []byte, via Transport, table *atomic.Pointer[Table]) ([]byte, error) {
	w := r.spare.get()
	w.table = table
	w.now = r.clock()
	longest := maxLoopback
	if via == TCP {
		longest = dns.MaxMsgSize
	}
	msg := append(make([]byte, 0, max(2*len(query), dns.DefaultMsgSize)), query...)
	answer := make(chan []byte, 1)
	reply, t := w.local(msg, via, longest)
	if t != nil {
		w.wait.asker = w.q.asker(via, longest)
		w.wait.caseBits.read(msg, w.q.nameLen)
		w.wait.srv, w.wait.reply = nil, answer
		if t == chased {
			r.chase(reply, w.wait)
			reply = nil
		} else if reply = w.forward(msg, t, &w.wait); reply != nil {
			t = nil
		}
	}
	w.flush()
	w.table = &r.table
	r.spare.put(w)
	if t == nil {
		return reply, nil
	}
	select {
	case reply := <-answer:
		return reply, nil
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	case <-r.life.Done():
		return nil, errEnd
	}
}

var errEnd = errors.New("the resolver has ended")

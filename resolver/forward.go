package resolver

import (
	"encoding/binary"
	"errors"
	"net"
	"os"

	"github.com/miekg/dns"
)

// forward asks t the question that w.q and msg hold, for wt; a nil wt refreshes the cache for nobody. It
// returns nil if an answer will come, else the reply to give at once.
func (w *worker) forward(msg []byte, t *target, wt *waiter) []byte {
	r, q := w.r, &w.q
	hash := flightHash(q)
	sh := r.flights.shard(hash)
	for w.box.full() {
		w.box.flush(w)
	}
	o := w.origin(t.kind)
	sh.mu.Lock()
	i := sh.findLocked(hash, q, o)
	if i >= 0 {
		joined := wt == nil || sh.joinLocked(sh.slot(i), wt)
		sh.mu.Unlock()
		if joined {
			return nil
		}
		return w.shed(msg, t, wt)
	}
	if i = r.flights.beginLocked(sh, q, t, o, w.now); i < 0 {
		sh.mu.Unlock()
		return w.shed(msg, t, wt)
	}
	s := sh.slot(i)
	if wt != nil && !sh.joinLocked(s, wt) {
		r.flights.endLocked(sh, i)
		sh.mu.Unlock()
		return w.shed(msg, t, wt)
	}
	if !w.attemptLocked(sh, i) {
		waiters := r.flights.endLocked(sh, i)
		sh.mu.Unlock()
		sh.release(waiters)
		return w.unreachable(msg, t, wt)
	}
	sh.mu.Unlock()
	r.wake()
	return nil
}

// shed gives up a query because a bound is reached.
func (w *worker) shed(msg []byte, t *target, wt *waiter) []byte {
	w.r.shed.Add(1)
	if wt == nil {
		return nil
	}
	return w.failNow(msg, t, wt, reply0(dns.RcodeServerFailure, dns.ExtendedErrorCodeOther, "too many questions in flight"))
}

// unreachable answers a query for which no server could even be asked.
func (w *worker) unreachable(msg []byte, t *target, wt *waiter) []byte {
	if wt == nil {
		return nil
	}
	text := "no upstream could be reached"
	if len(t.servers) == 0 {
		text = "no upstream is known"
	}
	return w.failNow(msg, t, wt, reply0(dns.RcodeServerFailure, dns.ExtendedErrorCodeNetworkError, text))
}

// failNow is the reply in place to the query in msg: a stale answer if there is one, else SERVFAIL.
func (w *worker) failNow(msg []byte, t *target, wt *waiter, rep reply) []byte {
	msg = msg[:w.q.end]
	src := sourceUpstream
	if body, stale, ok := w.staleBody(w.origin(t.kind), false); ok {
		msg, rep, src = append(msg, body...), stale, sourceStale
	}
	w.count(src, rep.rcode)
	return wt.asker.finish(msg, rep)
}

// attemptLocked asks the next server of the flight. It reports false if there is none left to ask and nothing
// under way.
func (w *worker) attemptLocked(sh *flightShard, i int32) bool {
	s := sh.slot(i)
	for s.n < maxAttempts {
		pick := s.chooseServer()
		if pick < 0 {
			break
		}
		srv := s.target.servers[pick]
		s.tried |= 1 << pick
		a := &s.attempts[s.n]
		*a = attempt{server: srv, sent: w.now, id: uint16(sh.rng.Uint64()), edns: s.offended>>pick&1 == 0 && !srv.noEDNS.holds(w.now), open: true}
		if !w.dispatch(sh, i, a) {
			srv.missed(w.now)
			s.failed |= 1 << pick
			*a = attempt{}
			continue
		}
		s.n++
		s.next = w.now + srv.rto()<<s.round
		sh.scheduleLocked(i, s.dueNext())
		return true
	}
	for j := range s.n {
		if s.attempts[j].open {
			sh.scheduleLocked(i, s.dueNext())
			return true
		}
	}
	return false
}

// chooseServer picks the server of the next attempt: each once, then, in a second round, those again that did
// not answer with an error.
func (s *slot) chooseServer() int {
	if s.n == 0 && s.tried == 0 {
		return s.target.chooseFirst()
	}
	if i := s.target.choose(s.tried | s.failed); i >= 0 {
		return i
	}
	s.tried = 0
	s.round++
	return s.target.choose(s.failed)
}

// dispatch queues the attempt's query.
func (w *worker) dispatch(sh *flightShard, i int32, a *attempt) bool {
	s := sh.slot(i)
	a.server.queries.Add(1)
	if !a.server.plain() {
		w.box.streams = append(w.box.streams, w.job(sh, i, s.n, a.server.exchange))
		return true
	}
	sock, err := w.box.pick(a.server, w.now)
	if err != nil {
		return false
	}
	a.sock, a.cased = sock, !a.server.noCase.holds(w.now)
	w.box.add(sock, s, a)
	return true
}

// job makes the stream query of the flight's n-th attempt.
func (w *worker) job(sh *flightShard, i int32, n int, via exchanger) streamJob {
	s := sh.slot(i)
	a := &s.attempts[n]
	return streamJob{ref: ref{sh, i, s.generation}, attempt: n, server: a.server, via: via,
		query: s.query(make([]byte, 0, querySize), a), until: s.started + giveUpAfter}
}

// dueNext is when something has to be done for the flight again.
func (s *slot) dueNext() int64 {
	due := s.started + giveUpAfter
	if s.n < maxAttempts {
		due = min(due, s.next)
	}
	if !s.staleOut {
		due = min(due, s.started+staleAfter)
	}
	return due
}

// readUpstream takes the answers that arrive at a socket until it is closed.
func (r *Resolver) readUpstream(sock *upstreamSocket) {
	from := newReader(sock.udpConn, &r.receivers)
	for failed := 0; ; {
		in, n, err := from.recv()
		switch {
		case errors.Is(err, net.ErrClosed), errors.Is(err, os.ErrDeadlineExceeded):
			return
		case err != nil:
			// An ICMP message, told to a connected socket: nobody is there, or a filter is in the way.
			if failed++; failed == maxErrors {
				sock.server.pool.drop(sock, r.clock())
				return
			}
			r.refusedBy(sock)
			continue
		}
		failed = 0
		w := r.spare.get()
		w.now = r.clock()
		for i := range n {
			for w.box.full() {
				w.box.flush(w)
			}
			w.received(sock, in.msg(i))
		}
		w.flush()
		r.spare.put(w)
		r.receivers.put(in)
	}
}

// refusedBy ends the attempts that left by a socket whose far end is not there.
func (r *Resolver) refusedBy(sock *upstreamSocket) {
	w := r.spare.get()
	defer r.spare.put(w)
	w.now = r.clock()
	sock.server.missed(w.now)
	for i := range r.flights.shards {
		for _, f := range r.flights.shards[i].leftBy(sock) {
			w.attemptFailed(f.ref, f.attempt, sock.server)
			w.flush()
		}
	}
}

// replace throws a socket away that does not send any more, as when the machine has another address now than the one
// that it was bound to, and asks again by another one what had been asked by it.
func (w *worker) replace(sock *upstreamSocket) {
	sock.server.pool.drop(sock, w.now)
	for i := range w.r.flights.shards {
		for _, f := range w.r.flights.shards[i].leftBy(sock) {
			if w.box.full() {
				w.box.sendAll(w)
			}
			sh := f.ref.shard
			sh.mu.Lock()
			s := sh.slot(f.ref.slot)
			if s.generation != f.ref.generation || !s.attempts[f.attempt].open {
				sh.mu.Unlock()
				continue
			}
			s.attempts[f.attempt].open = false
			s.tried &^= s.target.bit(sock.server)
			w.goOnLocked(f.ref)
		}
	}
}

type openAttempt struct {
	ref     ref
	attempt int
}

// leftBy lists the open attempts of a socket. It looks at every slot, which is bounded and rare.
func (sh *flightShard) leftBy(sock *upstreamSocket) []openAttempt {
	sh.mu.Lock()
	defer sh.mu.Unlock()
	var out []openAttempt
	for i := range int32(sh.slotChunks * flightChunk) {
		s := sh.slot(i)
		for j := range s.n {
			if a := &s.attempts[j]; a.open && a.sock == sock {
				out = append(out, openAttempt{ref{sh, i, s.generation}, j})
			}
		}
	}
	return out
}

// received handles a datagram from an upstream. It counts only if socket, ID and question are those of an open
// attempt, the case of every letter included (RFC 5452, 9).
func (w *worker) received(sock *upstreamSocket, msg []byte) {
	q := &w.q
	if !q.parseResponse(msg) {
		w.bareError(sock, msg)
		return
	}
	hash := flightHash(q)
	sh := w.r.flights.shard(hash)
	sh.mu.Lock()
	i, a := sh.matchLocked(hash, q, sock)
	if i < 0 {
		sh.mu.Unlock()
		w.r.stray.Add(1)
		return
	}
	s := sh.slot(i)
	n := s.attemptIndex(a)
	at := ref{sh, i, s.generation}
	altered := a.cased && !s.sameCase(msg)
	if altered {
		// It alters the case. Or somebody forges answers: TCP tells.
		a.server.noCase.begin(w.now)
	} else {
		a.server.answered(w.now - a.sent)
	}
	if altered || msg[2]&(flagTC>>8) != 0 {
		w.box.streams = append(w.box.streams, w.job(sh, i, n, a.server.tcp))
		a.sock, a.missed = nil, true // what else arrives at the socket is not for it, and it has not been slow
		sh.mu.Unlock()
		return
	}
	sh.mu.Unlock()
	w.answered(at, n, sock.server, msg)
}

func (s *slot) attemptIndex(a *attempt) int {
	for j := range s.n {
		if &s.attempts[j] == a {
			return j
		}
	}
	return 0
}

// sameCase reports whether the question in msg has the case that was drawn.
func (s *slot) sameCase(msg []byte) bool {
	for i, c := range msg[headerSize : headerSize+int(s.nameLen)] {
		want := s.lower[i]
		if want-'a' < 26 && s.caseBits[i>>3]>>(i&7)&1 != 0 {
			want -= 'a' - 'A'
		}
		if c != want {
			return false
		}
	}
	return true
}

// bareError handles an error without a question, as some servers send FORMERR and REFUSED.
func (w *worker) bareError(sock *upstreamSocket, msg []byte) {
	if len(msg) != headerSize || msg[2]&(flagQR>>8) == 0 || msg[3]&rcodeMask == 0 {
		w.r.stray.Add(1)
		return
	}
	id := binary.BigEndian.Uint16(msg)
	for i := range w.r.flights.shards {
		for _, f := range w.r.flights.shards[i].leftBy(sock) {
			sh := f.ref.shard
			sh.mu.Lock()
			s := sh.slot(f.ref.slot)
			ours := s.generation == f.ref.generation && s.attempts[f.attempt].id == id
			sh.mu.Unlock()
			if ours {
				w.resp.edns, w.resp.ede = false, noEDE
				w.failed(f.ref, f.attempt, sock.server, uint16(msg[3]&rcodeMask))
				return
			}
		}
	}
	w.r.stray.Add(1)
}

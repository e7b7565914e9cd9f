package resolver

import (
	"fmt"

	"github.com/miekg/dns"
)

// answered handles the response msg to an attempt; its question is in w.q and was checked.
func (w *worker) answered(f ref, n int, srv *server, msg []byte) {
	if !w.resp.parse(msg) {
		w.r.stray.Add(1)
		w.attemptFailed(f, n, srv)
		return
	}
	switch {
	case w.resp.got == gotError:
		w.failed(f, n, srv, w.resp.rcode)
	case w.resp.got == gotReferral, w.resp.flags&flagTC != 0:
		// It does not recurse, or cuts its answer even over a stream: of no use to a client, who would take what is
		// there for all there is.
		w.failed(f, n, srv, dns.RcodeServerFailure)
	default:
		w.settle(f, n, srv, msg)
	}
}

// failed handles an error that a server answered with, in w.resp: the next one is asked. An old server that takes offence
// at OPT, which it does not send back, is asked once more without (RFC 6891, 7).
func (w *worker) failed(f ref, n int, srv *server, rcode uint16) {
	sh := f.shard
	sh.mu.Lock()
	s := sh.slot(f.slot)
	if s.generation != f.generation || !s.attempts[n].open {
		sh.mu.Unlock()
		return
	}
	a := &s.attempts[n]
	a.open = false
	s.rcode = rcode
	if w.resp.ede != noEDE {
		s.ede = w.resp.ede
	}
	offended := rcode == dns.RcodeFormatError || rcode == dns.RcodeNotImplemented
	if offended && a.edns && !w.resp.edns {
		s.offended |= s.target.bit(srv)
		s.tried &^= s.target.bit(srv)
	} else {
		srv.failures.Add(1)
		s.failed |= s.target.bit(srv)
	}
	w.goOnLocked(f)
}

// attemptFailed handles an attempt that will never be answered.
func (w *worker) attemptFailed(f ref, n int, srv *server) {
	sh := f.shard
	sh.mu.Lock()
	s := sh.slot(f.slot)
	if s.generation != f.generation || !s.attempts[n].open {
		sh.mu.Unlock()
		return
	}
	s.attempts[n].open = false
	s.failed |= s.target.bit(srv)
	w.goOnLocked(f)
}

// bit is srv's place in the target, as a mask.
func (t *target) bit(srv *server) uint32 {
	for i, s := range t.servers {
		if s == srv {
			return 1 << i
		}
	}
	return 0
}

// goOnLocked asks the next server or, where there is none, ends the flight. It unlocks the shard.
func (w *worker) goOnLocked(f ref) {
	sh := f.shard
	if w.attemptLocked(sh, f.slot) {
		sh.mu.Unlock()
		return
	}
	w.giveUpLocked(f)
}

// giveUpLocked ends the flight without an answer. It unlocks the shard.
func (w *worker) giveUpLocked(f ref) {
	sh := f.shard
	s := sh.slot(f.slot)
	rep := reply0(dns.RcodeServerFailure, dns.ExtendedErrorCodeNoReachableAuthority, s.complaint(w.now))
	if s.rcode == dns.RcodeRefused {
		rep.rcode = dns.RcodeRefused
	}
	if s.ede != noEDE {
		rep.ede = s.ede // the server's own reason, as that a signature is bogus
	}
	w.q.restore(s)
	answeredWithError := s.rcode != 0
	o := s.origin
	waiters := w.r.flights.endLocked(sh, f.slot)
	sh.mu.Unlock()
	if body, stale, ok := w.staleBody(o, true); ok {
		w.deliver(sh, waiters, stale, body, sourceStale)
		return
	}
	if answeredWithError {
		w.r.cache.fail(&w.q, o, w.now, rep.rcode, rep.ede)
	}
	w.deliver(sh, waiters, rep, nil, sourceUpstream)
}

// complaint says in an EDE whom we asked in vain.
func (s *slot) complaint(now int64) string {
	who := "no upstream"
	if s.n > 0 && s.attempts[0].server != nil {
		who = s.attempts[0].server.upstream.String()
	} else if len(s.target.servers) > 0 {
		who = s.target.servers[0].upstream.String()
	}
	if len(s.target.servers) > 1 {
		who = fmt.Sprintf("%s and %d more", who, len(s.target.servers)-1)
	}
	if s.rcode != 0 {
		return who + " answered " + dns.RcodeToString[int(s.rcode)]
	}
	return fmt.Sprintf("no answer from %s within %d ms", who, (now-s.started)/1e6)
}

// settle ends the flight with a good response: it goes into the cache and to everybody who waits.
func (w *worker) settle(f ref, n int, srv *server, msg []byte) {
	sh := f.shard
	sh.mu.Lock()
	s := sh.slot(f.slot)
	if s.generation != f.generation || !s.attempts[n].open { // one that is closed may be of the network before
		sh.mu.Unlock()
		return
	}
	k, brief := s.target.kind, s.target.brief
	o := s.origin
	if s.offended&s.target.bit(srv) != 0 {
		srv.noEDNS.begin(w.now) // without OPT it answers: that was it
	}
	w.q.restore(s)
	waiters := w.r.flights.endLocked(sh, f.slot)
	sh.mu.Unlock()
	rep := reply{rcode: w.resp.rcode, flags: w.resp.flags & flagAD, ede: noEDE}
	if addr, bad := w.r.rebinds(&w.q, k, &w.resp, msg); bad {
		w.r.rebound.Add(1)
		w.r.log.Debug("refused an answer that points inside", "name", presentName(w.q.name()), "address", addr, "upstream", srv.upstream.String())
		rep = reply0(dns.RcodeSuccess, dns.ExtendedErrorCodeBlocked, "rebinding: an outside name with the inside address "+addr.String())
		w.deliver(sh, waiters, rep, nil, sourceRefused)
		return
	}
	if brief {
		w.deliver(sh, waiters, rep, w.hold(msg, &rep), sourceUpstream)
		return
	}
	body := w.store(o, msg, &rep)
	w.deliver(sh, waiters, rep, body, sourceUpstream)
}

// restore makes w.q the flight's question.
func (q *question) restore(s *slot) {
	q.setName(s.lower[:s.nameLen])
	q.qtype, q.do, q.flags = s.qtype, s.do, 0
	if s.cd {
		q.flags = flagCD
	}
}

// deliver sends a reply to a chain of waiters and gives the chain back.
func (w *worker) deliver(sh *flightShard, first int32, rep reply, body []byte, src source) {
	for i := first; i >= 0; {
		wt := sh.waiter(i)
		w.count(src, rep.rcode)
		w.send(wt, rep, body)
		i = wt.next
	}
	sh.release(first)
}

// send composes the reply for one waiter and queues it.
func (w *worker) send(wt *waiter, rep reply, body []byte) {
	size := w.q.nameLen + headerSize + 4 + len(body)
	if wt.reply != nil {
		select {
		case wt.reply <- w.compose(make([]byte, 0, size+optSize+6+len(rep.text)), wt, rep, body):
		default: // there is room for the one reply that there is
		}
		return
	}
	w.towards(wt.srv)
	buf := w.renderBuffer(w.out.n)
	if size+optSize > cap(buf) {
		buf = make([]byte, 0, size+optSize) // more than a datagram takes: composed aside, then cut
	}
	w.out.add(&wt.peer, w.compose(buf, wt, rep, body))
}

func (w *worker) compose(dst []byte, wt *waiter, rep reply, body []byte) []byte {
	dst = appendQuestion(dst, w.q.name(), w.q.qtype)
	wt.caseBits.apply(dst[headerSize : headerSize+w.q.nameLen])
	return wt.asker.finish(append(dst, body...), rep)
}

// renderBuffer is the buffer of the i-th datagram in w.out, made when first needed.
func (w *worker) renderBuffer(i int) []byte {
	if w.render == nil {
		w.render = make([][]byte, batchSize)
	}
	if w.render[i] == nil {
		w.render[i] = make([]byte, 0, replySize)
	}
	return w.render[i]
}

// towards makes room in w.out for a datagram of srv.
func (w *worker) towards(srv *udpServer) {
	if w.out.n == batchSize || w.outTo != srv {
		w.flushOut()
	}
	w.outTo = srv
}

func (w *worker) flushOut() {
	if w.out.n == 0 {
		return
	}
	n := w.out.n
	w.r.dropped.Add(uint64(n - w.out.flush(w.outTo.udpConn)))
}

// flush sends all that the worker has collected. A query that cannot be sent may end a flight or go elsewhere, so that
// there is more to send; the attempts of a flight are counted, so that this ends.
func (w *worker) flush() {
	for {
		w.flushOut()
		w.outTo = nil
		if w.box.empty() {
			return
		}
		w.box.flush(w)
	}
}

// tick works off the flights that are due.
func (w *worker) tick() {
	for i := range w.r.flights.shards {
		for w.expire(&w.r.flights.shards[i]) {
			w.flush()
		}
	}
}

// expire handles one flight that is due, and reports whether there was one.
func (w *worker) expire(sh *flightShard) bool {
	sh.mu.Lock()
	i := sh.dueLocked(w.now)
	if i < 0 {
		sh.mu.Unlock()
		return false
	}
	s := sh.slot(i)
	f := ref{sh, i, s.generation}
	s.missLateLocked(w)
	if w.now >= s.started+giveUpAfter {
		w.giveUpLocked(f)
		return true
	}
	if w.now >= s.next && s.n < maxAttempts && !w.attemptLocked(sh, i) {
		w.giveUpLocked(f)
		return true
	}
	if !s.staleOut && w.now >= s.started+staleAfter {
		s.staleOut = true
		w.serveStaleLocked(f)
		return true
	}
	sh.scheduleLocked(i, s.dueNext())
	sh.mu.Unlock()
	return true
}

// missLateLocked counts attempts that went unanswered for a server's usual time.
func (s *slot) missLateLocked(w *worker) {
	for j := range s.n {
		a := &s.attempts[j]
		if a.open && !a.missed && w.now-a.sent >= a.server.rto() {
			a.missed = true
			if a.server.missed(w.now) {
				w.r.log.Info("upstream does not answer", "upstream", a.server.upstream.String())
			}
		}
	}
}

// serveStaleLocked gives the waiters a stale answer if there is one; the flight goes on to refresh it. It
// unlocks the shard.
func (w *worker) serveStaleLocked(f ref) {
	sh := f.shard
	s := sh.slot(f.slot)
	sh.scheduleLocked(f.slot, s.dueNext())
	w.q.restore(s)
	body, rep, ok := w.staleBody(s.origin, false)
	if !ok {
		sh.mu.Unlock()
		return
	}
	waiters := s.waiters
	s.waiters, s.waiting = -1, 0
	sh.mu.Unlock()
	w.deliver(sh, waiters, rep, body, sourceStale)
}

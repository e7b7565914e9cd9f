package resolver

import (
	"encoding/binary"
	"fmt"
	"time"

	"github.com/miekg/dns"
)

// origin says under which source and generation answers of a kind of target are cached at present.
func (r *Resolver) origin(k kind) origin { return origin{uint8(k), r.generations[k].Load()} }

// look notes the generations of the moment. Whoever then loads the routing has it no older than they are: an answer of
// the network before is never kept as one of the present.
func (w *worker) look() {
	for k := range w.generations {
		w.generations[k] = w.r.generations[k].Load()
	}
}

// origin is the one of the generation that look saw.
func (w *worker) origin(k kind) origin { return origin{uint8(k), w.generations[k]} }

// fromCache answers out of the cache: what is fresh, and what is stale while upstreams are known to fail.
func (w *worker) fromCache(msg []byte, a asker, t *target) ([]byte, bool) {
	o := w.origin(t.kind)
	out, hit := w.r.cache.get(&w.q, o, w.now, msg)
	if hit.noRoom { // a long answer for a short buffer, to be cut
		out, hit = w.r.cache.get(&w.q, o, w.now, append(make([]byte, 0, len(msg)+maxBody+optSize), msg...))
	}
	if hit.state != cacheFresh && !hit.held {
		return nil, false
	}
	if hit.prefetch {
		w.forward(msg, t, nil)
	}
	src, rep := hit.reply()
	w.count(src, rep.rcode)
	return a.finish(out, rep), true
}

// reply is the frame of the reply that a cached answer makes.
func (h *cached) reply() (source, reply) {
	rep := reply{rcode: h.rcode, flags: h.flags & flagAD, answer: h.answer, authority: h.authority, additional: h.additional, ede: h.ede}
	if h.state != cacheStale {
		return sourceCache, rep
	}
	rep.ede = dns.ExtendedErrorCodeStaleAnswer
	if h.rcode == dns.RcodeNameError {
		rep.ede = dns.ExtendedErrorCodeStaleNXDOMAINAnswer
	}
	return sourceStale, rep
}

// staleBody returns the records of a stale answer to w.q, if there is one, behind a question of its own. failed
// says that no better one will come, so that it is given at once for a while (RFC 8767, 5).
func (w *worker) staleBody(o origin, failed bool) (body []byte, rep reply, ok bool) {
	if w.scratch == nil {
		w.scratch = make([]byte, 0, headerSize+maxName+4+maxBody)
	}
	msg := appendQuestion(w.scratch, w.q.name(), w.q.qtype)
	out, hit := w.r.cache.rescue(&w.q, o, w.now, msg)
	if hit.state == cacheMiss || hit.failure {
		return nil, reply{}, false
	}
	if failed {
		w.r.cache.hold(&w.q, o, w.now)
	}
	_, rep = hit.reply()
	return out[len(msg):], rep, true
}

// store keeps the response in msg, which w.resp has parsed, completes rep with its counts and returns its records.
func (w *worker) store(o origin, msg []byte, rep *reply) []byte {
	msg = w.tidy(msg, rep)
	w.r.cache.put(&w.q, o, w.now, &w.resp, msg)
	return msg[w.resp.end:w.resp.size]
}

// briefTTL is for how many seconds whoever asked may keep an answer that is for the moment only.
const briefTTL = 2

// hold is store for an answer that is for the moment only: what it says is not to outlive its server.
func (w *worker) hold(msg []byte, rep *reply) []byte {
	msg = w.tidy(msg, rep)
	for _, at := range w.resp.ttls[:w.resp.nttl] {
		ttl := msg[at:]
		binary.BigEndian.PutUint32(ttl, min(binary.BigEndian.Uint32(ttl), briefTTL))
	}
	return msg[w.resp.end:w.resp.size]
}

// tidy prepares a parsed response for those who asked.
func (w *worker) tidy(msg []byte, rep *reply) []byte {
	w.resp.lowerOwners(msg)
	msg = w.resp.stripOPT(msg)
	rep.answer, rep.authority, rep.additional, rep.ede = w.resp.answer, w.resp.authority, w.resp.additional, w.resp.ede
	return msg
}

// Flush forgets the cached answers for names at or below name, all of them if name is empty or the root, and
// returns how many they were.
func (r *Resolver) Flush(name string) (int, error) {
	if name == "" || name == "." {
		return r.cache.flushAll(), nil
	}
	wire, err := wireName(name)
	if err != nil {
		return 0, fmt.Errorf("flushing the cache: %w", err)
	}
	return r.cache.flush(wire), nil
}

// explainCache describes what is cached of q, and reports whether that would be the answer.
func (r *Resolver) explainCache(e *Explanation, q *question, t *target) bool {
	hit := r.cache.peek(q, r.origin(t.kind), r.clock())
	age := time.Duration(hit.age) * time.Second
	switch {
	case hit.state == cacheMiss:
		e.step("cache", "holds no answer")
		return false
	case hit.state == cacheStale:
		e.step("cache", "holds an answer that is %s old and has expired; it is given only if upstreams fail", age)
		return hit.held
	case hit.failure:
		e.step("cache", "remembers for %d s more that upstreams failed with %s", hit.left, dns.RcodeToString[int(hit.rcode)])
		return true
	}
	e.step("cache", "holds an answer (%s) that is %s old and good for %d s more", dns.RcodeToString[int(hit.rcode)], age, hit.left)
	return true
}

package resolver

import "slices"

// retarget turns the flights whose servers or names the routing has changed to the servers that are right now. Who asked
// just before the network changed has an answer as soon as who asks just after.
func (r *Resolver) retarget() {
	if r.flights.active.Load() == 0 {
		return
	}
	w := r.spare.get()
	defer r.spare.put(w)
	w.now = r.clock()
	w.look()
	rt := r.routing.Load()
	for i := range r.flights.shards {
		for _, f := range r.flights.shards[i].inFlight() {
			w.turn(f, rt)
			w.flush()
		}
	}
}

// inFlight lists the flights under way.
func (sh *flightShard) inFlight() []ref {
	sh.mu.Lock()
	defer sh.mu.Unlock()
	var out []ref
	for head := range sh.heads {
		for i := sh.heads[head]; i >= 0; i = sh.slot(i).chain {
			out = append(out, ref{sh, i, sh.slot(i).generation})
		}
	}
	return out
}

// turn gives a flight the target that rt has for its name, and asks there. What the servers before may still answer
// counts no more.
func (w *worker) turn(f ref, rt *routing) {
	sh := f.shard
	sh.mu.Lock()
	s := sh.slot(f.slot)
	if s.generation != f.generation || s.origin == w.origin(s.target.kind) {
		sh.mu.Unlock()
		return
	}
	w.q.restore(s)
	t := rt.find(&w.q)
	if t != nil && t.kind == s.target.kind && slices.Equal(t.servers, s.target.servers) {
		s.target, s.origin = t, w.origin(t.kind)
		sh.mu.Unlock()
		return
	}
	for j := range s.n {
		s.attempts[j].open = false
	}
	s.tried, s.failed, s.offended, s.round = 0, 0, 0, 0
	if t == nil || s.n == maxAttempts {
		w.giveUpLocked(f) // nobody is to be asked, or it was asked often enough
		return
	}
	s.target, s.origin = t, w.origin(t.kind)
	w.goOnLocked(f)
}

// find returns the target of q's name, or nil if that is special.
func (rt *routing) find(q *question) *target {
	if t := rt.explicit.find(q); t != nil {
		return t
	}
	if t := rt.learnt.find(q); t != nil {
		return t
	}
	if !q.isProbe() && findSpecial(q).labels > 0 {
		return nil
	}
	return rt.base
}

package resolver

import "github.com/miekg/dns"

// fromTable answers out of the table. msg holds header and question, with the room of its buffer behind. found
// tells that the name is ours; external, that its alias leads out of the table and the reply has to be completed.
func (w *worker) fromTable(msg []byte, a asker) (reply []byte, external, found bool) {
	w.rotate++
	msg, hit := w.table.Load().lookup(&w.q, msg, int(a.limit), w.rotate)
	if hit.outcome == tableOutside {
		return nil, false, false
	}
	rep := replyOf(hit)
	external = hit.outcome == tableExternal
	if !external || w.q.flags&flagRD == 0 { // the rest of an alias is counted where it comes from
		w.count(sourceLocal, rep.rcode)
	}
	return a.finish(msg, rep), external, true
}

func replyOf(hit tableHit) reply {
	return reply{rcode: hit.rcode(), flags: flagAA, answer: hit.answer, authority: hit.authority, ede: noEDE}
}

// explainLocal describes what the table says. It reports whether the table has the last word.
func (r *Resolver) explainLocal(e *Explanation, q *question) bool {
	t := r.table.Load()
	zone := t.zoneOf(q)
	if zone == "" {
		e.step("table", "%s is in no zone of the tailnet", e.Name)
		return false
	}
	e.step("table", "%s is in the zone %s, which is never forwarded: %s", e.Name, zone, t.explain(q))
	_, hit := t.lookup(q, appendQuestion(make([]byte, 0, dns.MinMsgSize), q.name(), q.qtype), dns.MaxMsgSize, 0)
	e.Source = sourceLocal.String()
	switch hit.outcome {
	case tableAnswer:
		e.step("table", "answers with %d records of type %s", hit.answer, e.Type)
	case tableNoData:
		e.step("table", "has no records of type %s (NODATA)", e.Type)
	case tableNXDomain:
		e.step("table", "answers that the name does not exist (NXDOMAIN)")
	case tableExternal:
		e.step("table", "an alias leads out of the zone, to %s", presentName(lowerName(append([]byte(nil), hit.target...))))
		var target question
		target.setName(lowerName(append([]byte(nil), hit.target...)))
		target.qtype = q.qtype
		r.explainForward(e, &target, false)
	}
	return true
}

// special answers names that mean something on every machine or nowhere.
func (w *worker) special(msg []byte, a asker) ([]byte, bool) {
	msg, hit := specialUse(&w.q, msg)
	if !hit.special() {
		return nil, false
	}
	w.count(sourceSpecial, hit.rcode)
	return a.finish(msg, reply{rcode: hit.rcode, answer: hit.answer, authority: hit.authority, ede: noEDE}), true
}

func explainSpecial(q *question) (string, bool) {
	_, hit := specialUse(q, appendQuestion(make([]byte, 0, dns.MinMsgSize), q.name(), q.qtype))
	return hit.reason, hit.special()
}

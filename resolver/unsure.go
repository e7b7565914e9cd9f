package resolver

import (
	"bytes"
	"encoding/binary"
	"strings"

	"github.com/miekg/dns"
)

// challengeLabel is the first label of a name that a CA looks a value up at (RFC 8555, 8.4), in wire form.
var challengeLabel = []byte("\x0f_acme-challenge")

// isChallenge reports whether q asks at a name that a CA looks a value of a name in the zone up at.
func (a *Authority) isChallenge(q *question) bool {
	name, isOne := bytes.CutPrefix(q.name(), challengeLabel)
	return isOne && hasSuffix(name, a.zone) && !bytes.Equal(name, a.zone)
}

// isUnsure reports whether q asks for a challenge that this server must not speak of.
func (a *Authority) isUnsure(q *question) bool {
	return a.unsure != nil && a.isChallenge(q) && a.unsure(strings.TrimSuffix(presentName(q.name()), "."))
}

// evade answers without a word about the name. Values it fails to tell of: a resolver then asks the zone's other servers,
// which it does not once a server has said that there are none. Of other types there are none anywhere, and that there is no
// such name must not be said of any: it would hold for values as well (RFC 8020, 2).
func (w *authorityWorker) evade(t *Table, msg []byte, ask asker) []byte {
	if q := &w.q; q.qtype == dns.TypeTXT || q.qtype == dns.TypeANY {
		return w.finish(q.refuse(msg, ask, reply0(dns.RcodeServerFailure, noEDE, "")))
	}
	if w.a.pinned {
		return w.answerTop(t, msg, ask)
	}
	reply := tableReply{t: t, dst: msg, owner: headerSize, ownerLen: w.q.nameLen}
	reply.negative(tableNoData, t.find(hashName(w.a.zone), w.a.zone))
	return w.finish(ask.finish(reply.dst, replyOf(reply.hit)))
}

// answerTop answers at a name that is delegated by itself: it is the top of a zone, whoever's it is, with the SOA and the servers
// of the zone that it lies in.
func (w *authorityWorker) answerTop(t *Table, msg []byte, ask asker) []byte {
	top := t.find(hashName(w.a.zone), w.a.zone)
	reply := tableReply{t: t, dst: msg, limit: int(ask.limit), owner: headerSize, ownerLen: w.q.nameLen}
	set, ok := t.set(top, w.q.qtype)
	if ok && (w.q.qtype == dns.TypeSOA || w.q.qtype == dns.TypeNS) {
		reply.hit.outcome = tableAnswer
		reply.records(set)
		return w.finish(ask.finish(reply.dst, replyOf(reply.hit)))
	}
	reply.negative(tableNoData, top)
	binary.BigEndian.PutUint16(reply.dst[len(msg):], pointerTo|headerSize) // its owner is the name itself
	return w.finish(ask.finish(reply.dst, replyOf(reply.hit)))
}

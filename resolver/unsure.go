package resolver

import (
	"bytes"
	"strings"

	"github.com/miekg/dns"
)

// challengeLabel is the first label of a name that a CA looks a value up at (RFC 8555, 8.4), in wire form.
var challengeLabel = []byte("\x0f_acme-challenge")

// isUnsure reports whether q asks for a challenge that this server must not speak of.
func (a *Authority) isUnsure(q *question) bool {
	name, isOne := bytes.CutPrefix(q.name(), challengeLabel)
	if a.unsure == nil || !isOne || bytes.Equal(name, a.zone) {
		return false
	}
	return a.unsure(strings.TrimSuffix(presentName(q.name()), "."))
}

// evade answers without a word about the name. Values it fails to tell of: a resolver then asks the zone's other servers,
// which it does not once a server has said that there are none. Of other types there are none anywhere, and that there is no
// such name must not be said of any: it would hold for values as well (RFC 8020, 2).
func (w *authorityWorker) evade(t *Table, msg []byte, ask asker) []byte {
	if q := &w.q; q.qtype == dns.TypeTXT || q.qtype == dns.TypeANY {
		return w.finish(q.refuse(msg, ask, reply0(dns.RcodeServerFailure, noEDE, "")))
	}
	reply := tableReply{t: t, dst: msg, owner: headerSize, ownerLen: w.q.nameLen}
	reply.negative(tableNoData, t.find(hashName(w.a.zone), w.a.zone))
	return w.finish(ask.finish(reply.dst, replyOf(reply.hit)))
}

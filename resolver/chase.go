package resolver

import (
	"context"
	"time"

	"github.com/miekg/dns"
)

// maxChases bounds the aliases that are being followed out of the table at once.
const maxChases = 256

// chaseTimeout is longer than what it waits for, which has bounds of its own.
const chaseTimeout = 5 * time.Second

// chase completes a reply whose alias leads out of the table: partial holds the records so far. It is the rare
// path, so messages are unpacked here.
func (r *Resolver) chase(partial []byte, wt waiter) {
	partial = append([]byte(nil), partial...)
	select {
	case r.chases <- struct{}{}:
	default:
		r.shed.Add(1)
		r.deliverTo(&wt, partial)
		return
	}
	started := r.goBackground(func() {
		defer func() { <-r.chases }()
		ctx, cancel := r.deadline(chaseTimeout)
		defer cancel()
		r.deliverTo(&wt, r.follow(ctx, partial, wt.asker))
	})
	if !started {
		<-r.chases
	}
}

// follow resolves the target of the last alias in partial and joins the answers. What goes wrong outside becomes
// the reply's rcode; the alias itself is still told.
func (r *Resolver) follow(ctx context.Context, partial []byte, a asker) []byte {
	var m dns.Msg
	if err := m.Unpack(partial); err != nil || len(m.Answer) == 0 {
		return partial
	}
	alias, ok := m.Answer[len(m.Answer)-1].(*dns.CNAME)
	if !ok {
		return partial
	}
	query := new(dns.Msg).SetQuestion(alias.Target, m.Question[0].Qtype)
	query.CheckingDisabled = a.flags&flagCD != 0
	query.AuthenticatedData = a.flags&flagAD != 0
	if a.edns {
		query.SetEdns0(advertisedSize, a.do)
	}
	raw, err := query.Pack()
	if err != nil {
		return partial
	}
	var rest dns.Msg
	if raw, err = r.Answer(ctx, raw, TCP); err == nil {
		err = rest.Unpack(raw)
	}
	if err != nil {
		rest.Rcode = dns.RcodeServerFailure
	}
	m.Answer = append(m.Answer, rest.Answer...)
	m.Ns, m.Rcode = rest.Ns, rest.Rcode
	m.Extra = rest.Extra // its OPT, if one was asked for
	m.Compress = true
	out, err := m.Pack()
	if err != nil {
		return partial
	}
	if len(out) > int(a.limit) {
		out = truncate(out, int(a.limit))
	}
	return out
}

// deliverTo sends a finished reply to one waiter.
func (r *Resolver) deliverTo(wt *waiter, msg []byte) {
	if wt.reply != nil {
		wt.reply <- msg
		return
	}
	s := newSender()
	s.add(&wt.peer, msg)
	r.dropped.Add(uint64(1 - s.flush(wt.srv.udpConn)))
}

package resolver

import (
	"context"
	"slices"
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
		partial[3] |= dns.RcodeServerFailure
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
	if err := m.Unpack(partial); err != nil || len(m.Answer) == 0 || m.Truncated {
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
	return a.join(&m, &rest)
}

// join packs the reply that begins with m and ends with the answer to m's last alias.
func (a asker) join(m, rest *dns.Msg) []byte {
	rep := reply{rcode: uint16(rest.Rcode), flags: flagAA, ede: noEDE}
	m.Extra = nil
	for _, rr := range rest.Extra {
		opt, ok := rr.(*dns.OPT)
		if !ok {
			m.Extra = append(m.Extra, rr)
			continue
		}
		for _, o := range opt.Option {
			if ede, ok := o.(*dns.EDNS0_EDE); ok {
				rep.ede, rep.text = ede.InfoCode, ede.ExtraText
			}
		}
	}
	m.Answer, m.Ns = append(m.Answer, rest.Answer...), rest.Ns
	m.Rcode, m.Compress = rest.Rcode&rcodeMask, true
	rep.answer, rep.authority, rep.additional = uint16(len(m.Answer)), uint16(len(m.Ns)), uint16(len(m.Extra))
	out, err := m.Pack()
	if err != nil { // it does not fit into any message
		m.Answer, m.Ns, m.Extra = m.Answer[:1], nil, nil
		m.Rcode = dns.RcodeServerFailure
		rep = reply{rcode: dns.RcodeServerFailure, flags: flagAA, answer: 1, ede: noEDE}
		if out, err = m.Pack(); err != nil {
			return nil
		}
	}
	return a.finish(slices.Grow(out, optSize+6+len(rep.text)), rep)
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

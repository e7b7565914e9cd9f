package control

import (
	"context"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"net/netip"
	"strings"
	"sync"
	"time"

	"github.com/miekg/dns"
)

// The bounds of dynamic updates.
const (
	updateTime = 10 * time.Second // for a message on a connection to arrive, and its answer to be taken
	maxFudge   = 300              // seconds by which clocks may differ (RFC 8945, section 10)
	maxSigned  = 4096             // messages that are remembered
	resendTime = 10 * time.Second // in which a client that heard no answer asks again
)

// ServeUpdates takes dynamic updates (RFC 2136) under TSIG (RFC 8945) at a tailnet address, and answers queries there, until ctx
// ends.
func (s *Server) ServeUpdates(ctx context.Context, conn net.PacketConn, ln net.Listener) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stop := context.AfterFunc(ctx, func() { conn.Close(); ln.Close() })
	defer stop()
	var wait sync.WaitGroup
	defer wait.Wait()
	wait.Go(func() { s.updateConns(ctx, limitListener(ln)) })
	buf := make([]byte, maxCertBody+1)
	for {
		n, from, err := conn.ReadFrom(buf)
		if ctx.Err() != nil {
			return nil
		}
		if errors.Is(err, net.ErrClosed) {
			cancel()
			return err
		}
		if err != nil || n > maxCertBody {
			continue
		}
		if reply := s.answerUpdate(ctx, buf[:n], from, false); reply != nil {
			_, _ = conn.WriteTo(reply, from) // who does not get it asks again
		}
	}
}

// updateConns answers on connections.
func (s *Server) updateConns(ctx context.Context, ln net.Listener) {
	var wait sync.WaitGroup
	defer wait.Wait()
	for {
		conn, err := ln.Accept()
		if err != nil {
			return
		}
		wait.Go(func() {
			defer conn.Close()
			stop := context.AfterFunc(ctx, func() { conn.Close() })
			defer stop()
			for s.updateConn(ctx, conn) == nil {
			}
		})
	}
}

// updateConn answers one message on a connection (RFC 7766, section 8).
func (s *Server) updateConn(ctx context.Context, conn net.Conn) error {
	if err := conn.SetDeadline(time.Now().Add(updateTime)); err != nil {
		return err
	}
	var size [2]byte
	if _, err := io.ReadFull(conn, size[:]); err != nil {
		return err
	}
	msg := make([]byte, binary.BigEndian.Uint16(size[:]))
	if len(msg) > maxCertBody {
		return errors.New("a message that is longer than an update is")
	}
	if _, err := io.ReadFull(conn, msg); err != nil {
		return err
	}
	reply := s.answerUpdate(ctx, msg, conn.RemoteAddr(), true)
	if reply == nil {
		return io.EOF
	}
	_, err := conn.Write(append(binary.BigEndian.AppendUint16(nil, uint16(len(reply))), reply...))
	return err
}

// answerUpdate answers one message; nil: it is not to be answered.
func (s *Server) answerUpdate(ctx context.Context, msg []byte, from net.Addr, tcp bool) []byte {
	source := sourceOf(from)
	if len(msg) < 12 || msg[2]&0x80 != 0 {
		return nil // no question: an answer to it could make a loop
	}
	if msg[2]>>3&15 != dns.OpcodeUpdate {
		return s.cfg.Query(msg, source, tcp)
	}
	m := new(dns.Msg)
	if err := m.Unpack(msg); err != nil || !s.limit.allow(source, time.Now()) {
		return packed(failedUpdate(msg, dns.RcodeServerFailure))
	}
	caller, tsigError := s.signs.verify(s.cfg.Registry, msg, m, source)
	if tsigError != 0 {
		s.log.Warn("an update was refused", "node", s.cfg.Registry.nodeAt(source), "tsig_error", tsigError)
		return packed(unsignedReply(m, tsigError))
	}
	reply, seen := s.signs.before(m, from, s.cfg.Registry.cfg.Now())
	switch {
	case reply != nil:
		return reply // the client has not heard it
	case seen:
		s.log.Warn("an update was sent again by somebody else", "node", caller.node)
		return packed(unsignedReply(m, dns.RcodeBadTime))
	}
	rcode := s.update(ctx, m, caller)
	answer := new(dns.Msg).SetReply(m)
	answer.Opcode, answer.Rcode = dns.OpcodeUpdate, rcode
	t := m.IsTsig()
	answer.SetTsig(t.Hdr.Name, t.Algorithm, t.Fudge, s.cfg.Registry.cfg.Now().Unix())
	out, _, err := dns.TsigGenerateWithProvider(answer, hmacKey(caller.Secret), t.MAC, false)
	if err != nil {
		s.log.Error("an answer to an update cannot be signed", "err", err)
		return nil
	}
	s.signs.answered(m, out)
	return out
}

// update makes the changes of a message, all or none.
func (s *Server) update(ctx context.Context, m *dns.Msg, by signer) (rcode int) {
	list, rcode := parseUpdate(m, s.cfg.Registry.Zone())
	if rcode != dns.RcodeSuccess {
		return rcode
	}
	_, err := s.publish(ctx, by.node, by.ID, list...)
	var refused *RefusedError
	switch {
	case err == nil:
		return dns.RcodeSuccess
	case errors.As(err, &refused) && (refused.Code == codeNotYours || refused.Code == codeBad):
		return dns.RcodeRefused
	}
	return dns.RcodeServerFailure // later it may go: caps and rates
}

// Zone is the zone of the registry's nodes.
func (r *Registry) Zone() string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.meta.Zone
}

// parseUpdate reads what an update asks for (RFC 2136, section 2.5). Only TXT records at names that begin with _acme-challenge
// are ever touched, so that is all that is understood. Who may have which is for others to say.
func parseUpdate(m *dns.Msg, zone string) (list []textChange, rcode int) {
	if len(m.Question) != 1 || m.Question[0].Qtype != dns.TypeSOA || m.Question[0].Qclass != dns.ClassINET {
		return nil, dns.RcodeFormatError
	}
	// A client that asks for the zone of a name is told that name itself where only that is delegated.
	top := foldName(m.Question[0].Name)
	if top != zone && !strings.HasPrefix(top, challengePrefix) {
		return nil, dns.RcodeNotAuth
	}
	if len(m.Answer) > 0 { // prerequisites
		return nil, dns.RcodeNotImplemented
	}
	for _, rr := range m.Ns {
		h := rr.Header()
		name := foldName(h.Name)
		if name != top && !strings.HasSuffix(name, "."+top) {
			return nil, dns.RcodeNotZone
		}
		if h.Rrtype != dns.TypeTXT && (h.Class != dns.ClassANY || h.Rrtype != dns.TypeANY) {
			return nil, dns.RcodeRefused
		}
		one := textChange{Name: name, Drop: h.Class != dns.ClassINET}
		if txt, ok := rr.(*dns.TXT); ok && h.Class != dns.ClassANY {
			one.Value = strings.Join(txt.Txt, "")
		}
		switch h.Class {
		case dns.ClassINET:
			one.Lease = leaseTime // its TTL is for caches
		case dns.ClassNONE:
			if one.Value == "" {
				return nil, dns.RcodeFormatError
			}
		case dns.ClassANY:
		default:
			return nil, dns.RcodeFormatError
		}
		list = append(list, one)
	}
	return list, dns.RcodeSuccess
}

// failedUpdate answers what cannot be read.
func failedUpdate(msg []byte, rcode int) *dns.Msg {
	m := new(dns.Msg)
	m.Id, m.Response, m.Opcode, m.Rcode = binary.BigEndian.Uint16(msg), true, dns.OpcodeUpdate, rcode
	return m
}

// unsignedReply refuses a message whose signature does not count (RFC 8945, section 5.2).
func unsignedReply(m *dns.Msg, tsigError uint16) *dns.Msg {
	reply := new(dns.Msg).SetRcode(m, dns.RcodeNotAuth)
	reply.Opcode = dns.OpcodeUpdate
	t := m.IsTsig()
	if t == nil {
		reply.Rcode = dns.RcodeRefused
		return reply
	}
	reply.Extra = []dns.RR{&dns.TSIG{
		Hdr:       dns.RR_Header{Name: t.Hdr.Name, Rrtype: dns.TypeTSIG, Class: dns.ClassANY},
		Algorithm: t.Algorithm, TimeSigned: t.TimeSigned, Fudge: t.Fudge, OrigId: m.Id, Error: tsigError,
	}}
	return reply
}

func packed(m *dns.Msg) []byte {
	out, err := m.Pack()
	if err != nil {
		return nil
	}
	return out
}

// signer is who has signed a message.
type signer struct {
	credential

	node string
}

// signedCalls remembers signed messages for as long as they would count, since whoever sees one could send it again.
type signedCalls struct {
	mu    sync.Mutex
	begin time.Time // what was signed before, another process may have seen
	seen  map[string]signedCall
}

type signedCall struct {
	from  string
	at    time.Time
	ends  time.Time
	reply []byte
}

func newSignedCalls(now time.Time) signedCalls {
	return signedCalls{begin: now.Truncate(time.Second), seen: map[string]signedCall{}}
}

// verify says who has signed a message that comes from an address; otherwise it is an error of TSIG.
func (c *signedCalls) verify(r *Registry, raw []byte, m *dns.Msg, source netip.Addr) (signer, uint16) {
	t := m.IsTsig()
	if t == nil {
		return signer{}, dns.RcodeBadKey
	}
	node, one, known := r.credentialOf(tsigCredential, foldName(t.Hdr.Name), source)
	if !known || hmacOf(t.Algorithm) == nil {
		return signer{}, dns.RcodeBadKey
	}
	// What it says of the time is judged below, by the registry's clock: the codec's own judgement comes after the MAC's.
	err := dns.TsigVerifyWithProvider(raw, hmacKey(one.Secret), "", false)
	if err != nil && !errors.Is(err, dns.ErrTime) {
		return signer{}, dns.RcodeBadSig
	}
	signed, now := time.Unix(int64(t.TimeSigned), 0), r.cfg.Now()
	off := now.Sub(signed).Abs()
	if off > time.Duration(min(t.Fudge, maxFudge))*time.Second || signed.Before(c.begin) {
		return signer{}, dns.RcodeBadTime
	}
	return signer{one, node}, 0
}

// before reports whether a message was seen before, and the reply to it if the same client sends it again.
func (c *signedCalls) before(m *dns.Msg, from net.Addr, now time.Time) (reply []byte, seen bool) {
	mac := m.IsTsig().MAC
	c.mu.Lock()
	defer c.mu.Unlock()
	if old, ok := c.seen[mac]; ok {
		if old.from == from.String() && now.Sub(old.at) < resendTime {
			return old.reply, true
		}
		return nil, true
	}
	if len(c.seen) >= maxSigned {
		for mac, old := range c.seen {
			if now.After(old.ends) {
				delete(c.seen, mac)
			}
		}
		if len(c.seen) >= maxSigned {
			return nil, true
		}
	}
	c.seen[mac] = signedCall{from: from.String(), at: now, ends: now.Add(2 * maxFudge * time.Second)}
	return nil, false
}

// answered keeps the reply to a message.
func (c *signedCalls) answered(m *dns.Msg, reply []byte) {
	mac := m.IsTsig().MAC
	c.mu.Lock()
	defer c.mu.Unlock()
	if old, ok := c.seen[mac]; ok {
		old.reply = reply
		c.seen[mac] = old
	}
}

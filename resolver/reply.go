package resolver

import (
	"encoding/binary"

	"github.com/miekg/dns"
)

// optSize is the length of an OPT record without options: the root's name, type, class, TTL, RDLENGTH.
const optSize = 11

// advertisedSize is the UDP payload size that this resolver announces, to clients and to upstreams: what
// passes everywhere without fragments (DNS flag day 2020).
const advertisedSize = 1232

// noEDE stands for "no Extended DNS Error"; 65535 is private use (RFC 8914, 5.2) and never sent.
const noEDE = 0xffff

// asker is what must be known of a client's query to put its answer into form.
type asker struct {
	id    uint16
	flags uint16 // as received
	limit uint16 // the longest reply it takes, in octets
	edns  bool
	do    bool
}

// asker returns what finish needs of q. longest is what the transport carries; over UDP the client's own limit
// counts too.
func (q *question) asker(via Transport, longest int) asker {
	if via == UDP {
		longest = min(int(q.udpSize), longest)
	}
	return asker{id: q.id, flags: q.flags, limit: uint16(longest), edns: q.edns, do: q.do}
}

// reply is what finish writes around the records of an answer.
type reply struct {
	rcode      uint16 // up to twelve bits (RFC 6891, 6.1.3)
	flags      uint16 // of AA and AD
	answer     uint16
	authority  uint16
	additional uint16
	ede        uint16 // noEDE: none
	text       string // of the EDE
}

// finish writes the header and, if it was asked for, the OPT record of the reply that msg holds: header,
// question, records. The message is cut at record borders if it is longer than the asker takes. The room behind
// msg must be there for optSize octets; an EDE for which there is no room is left out.
func (a asker) finish(msg []byte, rep reply) []byte {
	flags := flagQR | flagRA | a.flags&(flagRD|flagCD|opcodeMask<<opcodeShift) | rep.flags&flagAA | rep.rcode&rcodeMask
	// AD tells a client only what it said it understands (RFC 6840, 5.8).
	if a.do || a.flags&flagAD != 0 {
		flags |= rep.flags & flagAD
	}
	binary.BigEndian.PutUint16(msg, a.id)
	binary.BigEndian.PutUint16(msg[2:], flags)
	binary.BigEndian.PutUint16(msg[6:], rep.answer)
	binary.BigEndian.PutUint16(msg[8:], rep.authority)
	binary.BigEndian.PutUint16(msg[10:], rep.additional)
	limit := int(a.limit)
	if !a.edns {
		if len(msg) > limit {
			msg = truncate(msg, limit)
		}
		return msg
	}
	if len(msg) > limit-optSize {
		msg = truncate(msg, limit-optSize)
	}
	return a.appendOPT(msg, rep)
}

// appendOPT adds the OPT record, with an EDE (RFC 8914) where it fits.
func (a asker) appendOPT(msg []byte, rep reply) []byte {
	binary.BigEndian.PutUint16(msg[10:], binary.BigEndian.Uint16(msg[10:])+1)
	var do byte
	if a.do {
		do = 0x80
	}
	var opt [optSize]byte
	binary.BigEndian.PutUint16(opt[1:], dns.TypeOPT)
	binary.BigEndian.PutUint16(opt[3:], advertisedSize)
	opt[5] = byte(rep.rcode >> 4)
	opt[7] = do
	size := 6 + len(rep.text)
	if rep.ede == noEDE || len(msg)+optSize+size > min(int(a.limit), cap(msg)) {
		return append(msg, opt[:]...)
	}
	binary.BigEndian.PutUint16(opt[9:], uint16(size))
	msg = append(msg, opt[:]...)
	msg = binary.BigEndian.AppendUint16(msg, dns.EDNS0EDE)
	msg = binary.BigEndian.AppendUint16(msg, uint16(size-4))
	msg = binary.BigEndian.AppendUint16(msg, rep.ede)
	return append(msg, rep.text...)
}

// refuse makes the reply that carries an error and no records out of the query in msg. A question that could
// not be read is not repeated.
func (q *question) refuse(msg []byte, a asker, rep reply) []byte {
	if q.end == headerSize {
		binary.BigEndian.PutUint16(msg[4:], 0)
	}
	return a.finish(msg[:q.end], rep)
}

// caseBits remembers which letters of a name were capitals: bit i for octet i of the wire name.
type caseBits [(maxName + 7) / 8]byte

// read records the case of the name that stands at msg[headerSize:], of length n.
func (c *caseBits) read(msg []byte, n int) {
	clear(c[:])
	for i, b := range msg[headerSize : headerSize+n] {
		if b-'A' < 26 {
			c[i>>3] |= 1 << (i & 7)
		}
	}
}

// apply gives the lower-cased name its capitals back, in place.
func (c *caseBits) apply(name []byte) {
	for i, b := range name {
		if b-'a' < 26 && c[i>>3]>>(i&7)&1 != 0 {
			name[i] = b - 'a' + 'A'
		}
	}
}

// appendQuestion begins a message in dst[:0]: an empty header with QDCOUNT 1 and the question name, type, IN.
func appendQuestion(dst, name []byte, qtype uint16) []byte {
	dst = append(dst[:0], 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0)
	dst = append(dst, name...)
	dst = binary.BigEndian.AppendUint16(dst, qtype)
	return binary.BigEndian.AppendUint16(dst, dns.ClassINET)
}

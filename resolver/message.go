package resolver

import (
	"encoding/binary"

	"github.com/miekg/dns"
)

// Header bits of the second 16-bit word (RFC 1035, 4.1.1; AD and CD: RFC 4035).
const (
	flagQR = 1 << 15
	flagAA = 1 << 10
	flagTC = 1 << 9
	flagRD = 1 << 8
	flagRA = 1 << 7
	flagAD = 1 << 5
	flagCD = 1 << 4

	opcodeShift = 11
	opcodeMask  = 0xf
	rcodeMask   = 0xf
)

// headerSize is the length of a message's header.
const headerSize = 12

// verdict says what a server has to do with received bytes.
type verdict uint8

const (
	verdictOK      verdict = iota // a query with one question, to be answered
	verdictDrop                   // too short for a header, or a response: never answered
	verdictFormErr                // answer FORMERR
	verdictNotImp                 // answer NOTIMP
	verdictBadVers                // answer BADVERS (RFC 6891, 6.1.3)
)

// question is a parsed query. It is reused from query to query and holds no pointer into the message, so
// that parsing allocates nothing.
type question struct {
	id      uint16
	flags   uint16 // header flags as received
	qtype   uint16
	qclass  uint16
	hash    uint64 // of name()
	end     int    // offset behind the question section; headerSize if there is none
	nameLen int    // octets of lower in use, the root's zero included
	labels  int    // number of labels, the root not counted

	edns    bool
	do      bool
	version uint8
	udpSize uint16 // as received, at least 512
	// The options of OPT lie in the message from optStart to optEnd.
	optStart, optEnd int

	lower [maxName + 1]byte    // the name lower-cased, in wire form
	label [maxLabels + 1]uint8 // label[i]: offset in lower of the i-th label from the left; label[labels] is the root
}

// name is the lower-cased wire name.
func (q *question) name() []byte { return q.lower[:q.nameLen] }

// suffix is the lower-cased wire name of the last n labels (n = 0: the root).
func (q *question) suffix(n int) []byte { return q.lower[q.label[q.labels-n]:q.nameLen] }

// parse reads a message from outside. On any verdict but verdictDrop id, flags and end are set, so that an
// error can be answered.
func (q *question) parse(msg []byte) verdict {
	if len(msg) < headerSize {
		return verdictDrop
	}
	q.id = binary.BigEndian.Uint16(msg)
	q.flags = binary.BigEndian.Uint16(msg[2:])
	q.end = headerSize
	q.nameLen, q.labels, q.qtype, q.qclass = 0, 0, 0, 0
	q.edns, q.do, q.version, q.udpSize = false, false, 0, dns.MinMsgSize
	q.optStart, q.optEnd = 0, 0
	switch {
	case q.flags&flagQR != 0:
		return verdictDrop
	case q.flags>>opcodeShift&opcodeMask != dns.OpcodeQuery:
		return verdictNotImp
	case binary.BigEndian.Uint16(msg[4:]) != 1:
		return verdictFormErr
	}
	if !q.parseName(msg) {
		return verdictFormErr
	}
	return q.parseRest(msg)
}

// parseName reads the question section. A compression pointer there can only point at itself or the header
// and is refused.
func (q *question) parseName(msg []byte) bool {
	off, n := headerSize, 0
	for {
		if off >= len(msg) || q.labels > maxLabels {
			return false
		}
		length := int(msg[off])
		if length > 63 || n+1+length > maxName || off+1+length > len(msg) {
			return false
		}
		q.label[q.labels] = uint8(n)
		q.lower[n] = msg[off]
		if length == 0 {
			break
		}
		for i := 1; i <= length; i++ {
			c := msg[off+i]
			if c-'A' < 26 {
				c += 'a' - 'A'
			}
			q.lower[n+i] = c
		}
		q.labels++
		n += 1 + length
		off += 1 + length
	}
	if off+5 > len(msg) {
		return false
	}
	q.nameLen = n + 1
	q.qtype = binary.BigEndian.Uint16(msg[off+1:])
	q.qclass = binary.BigEndian.Uint16(msg[off+3:])
	q.end = off + 5
	q.hash = hashName(q.name())
	return true
}

// parseRest walks what follows the question: a query may carry records there (RFC 6891's OPT, a TSIG), each
// is checked for its length, only OPT is read.
func (q *question) parseRest(msg []byte) verdict {
	records := int(binary.BigEndian.Uint16(msg[6:])) + int(binary.BigEndian.Uint16(msg[8:]))
	additional := int(binary.BigEndian.Uint16(msg[10:]))
	off := q.end
	for i := range records + additional {
		owner := off
		off = skipName(msg, off)
		if off < 0 || off+10 > len(msg) {
			return verdictFormErr
		}
		rtype := binary.BigEndian.Uint16(msg[off:])
		end := off + 10 + int(binary.BigEndian.Uint16(msg[off+8:]))
		if end > len(msg) {
			return verdictFormErr
		}
		if rtype == dns.TypeOPT {
			// One OPT at most, owned by the root, in the additional section (RFC 6891, 6.1.1).
			if q.edns || i < records || msg[owner] != 0 || !validOptions(msg[off+10:end]) {
				return verdictFormErr
			}
			q.edns, q.optStart, q.optEnd = true, off+10, end
			q.udpSize = max(binary.BigEndian.Uint16(msg[off+2:]), dns.MinMsgSize)
			q.version = msg[off+5]
			q.do = msg[off+6]&0x80 != 0
		}
		off = end
	}
	if q.edns && q.version != 0 {
		return verdictBadVers
	}
	return verdictOK
}

// validOptions reports whether the data of an OPT record is a whole number of options.
func validOptions(b []byte) bool {
	for len(b) > 0 {
		if len(b) < 4 {
			return false
		}
		n := 4 + int(binary.BigEndian.Uint16(b[2:]))
		if n > len(b) {
			return false
		}
		b = b[n:]
	}
	return true
}

// skipName returns the offset behind the name at off, or -1. It follows no pointer: a pointer ends a name.
func skipName(msg []byte, off int) int {
	for off < len(msg) {
		switch c := msg[off]; {
		case c == 0:
			return off + 1
		case c >= 0xc0:
			if off+2 > len(msg) {
				return -1
			}
			return off + 2
		case c > 63:
			return -1
		default:
			off += 1 + int(c)
		}
	}
	return -1
}

// parseResponse reads ID and question of a response, so that the query that it answers can be found. The rest is
// left to response.parse.
func (q *question) parseResponse(msg []byte) bool {
	if len(msg) < headerSize || msg[2]&(flagQR>>8) == 0 || binary.BigEndian.Uint16(msg[4:]) != 1 {
		return false
	}
	q.id = binary.BigEndian.Uint16(msg)
	q.nameLen, q.labels = 0, 0
	return q.parseName(msg) && q.qclass == dns.ClassINET
}

// setName makes lower, a lower-cased wire name, the question's.
func (q *question) setName(lower []byte) {
	q.nameLen = copy(q.lower[:], lower)
	q.labels = 0
	for off := 0; off < q.nameLen; off += 1 + int(lower[off]) {
		q.label[q.labels] = uint8(off)
		if lower[off] == 0 {
			break
		}
		q.labels++
	}
	q.end = headerSize + q.nameLen + 4
	q.qclass = dns.ClassINET
	q.hash = hashName(q.name())
}

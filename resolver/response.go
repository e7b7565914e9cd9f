package resolver

import (
	"encoding/binary"
	"math"

	"github.com/miekg/dns"
)

// outcome says what a response amounts to.
type outcome uint8

const (
	gotError    outcome = iota // any rcode but NOERROR and NXDOMAIN
	gotAnswer                  // NOERROR with a record of the type that was asked for
	gotNoData                  // NOERROR without one (RFC 2308, 2.2), aliases that lead to nothing included
	gotNXDomain                // NXDOMAIN
	gotReferral                // NOERROR that only names other servers: the upstream does not recurse
)

// maxTTLs is the most records that a response may have to be cached: the cache notes where each TTL stands.
const maxTTLs = 256

// maxPointers is the most compression pointers that one name may take; more than fit into a name serve only to
// cost time.
const maxPointers = 126

// pointerSpan is how much of a message compression pointers reach (RFC 1035, 4.1.4).
const pointerSpan = 1 << 14

// response is the digest of a message received from an upstream. It is reused from message to message and keeps
// no pointer into one, so that parsing allocates nothing.
//
// The order of use: parse; whatever looks at msg (rebinds); lowerOwners; stripOPT; then msg[end:size] is what
// the cache keeps and what is put behind each asker's question.
type response struct {
	id    uint16
	flags uint16 // the header's, rcode and opcode included
	rcode uint16 // with the upper bits that stand in OPT
	qtype uint16
	got   outcome
	end   int // offset behind the question
	size  int // length of the message; what trails the last record is no part of it

	answer, authority, additional uint16 // numbers of records, OPT not counted

	// ttl is for how long, in seconds, the response may be kept; 0: not at all. It is the least TTL of all its
	// records, so that nothing in it is ever given out too long, and for negative responses that of RFC 2308, 5.
	ttl uint32

	edns bool
	ede  uint16 // the first Extended DNS Error (RFC 8914), noEDE if there is none

	ttls [maxTTLs]uint16 // offsets of the TTLs of all records but OPT
	nttl int

	addresses bool   // rebinds has something to look at
	found     bool   // the answer section has a record of the type asked for
	referral  bool   // the authority section has NS records
	soa       bool   // the authority section has an SOA record
	negative  uint32 // the TTL of RFC 2308, 5; valid with soa

	optAt, optEnd int // the OPT record; optAt 0: none
	optIndex      uint16
	optTTLs       int
	tangled       bool // a name behind OPT points behind OPT

	// starts marks the offsets at which labels of names begin that were found valid. Pointers may lead there only:
	// not forward, not into the header, and not to a TTL, which counts down in the cache.
	starts [pointerSpan / 64]uint64
}

// parse reads a message from outside and checks all of it: every record lies inside, every name is valid and
// not too long, in the data of the types that hold names too, so that nothing that reads it later can stumble.
// It reports whether msg is a response to one question. What trails the last record is tolerated and cut.
func (r *response) parse(msg []byte) bool {
	if len(msg) < headerSize || len(msg) > dns.MaxMsgSize || !r.begin(msg) {
		return false
	}
	off := r.name(msg, headerSize)
	if off < 0 || off+4 > len(msg) {
		return false
	}
	r.qtype = binary.BigEndian.Uint16(msg[off:])
	r.end = off + 4
	off = r.end
	for section := range sections {
		for i := range binary.BigEndian.Uint16(msg[countAt(section):]) {
			if off = r.record(msg, off, section, i); off < 0 {
				return false
			}
		}
	}
	r.size = off
	r.conclude()
	return true
}

// begin reads the header and clears what another message has left.
func (r *response) begin(msg []byte) bool {
	r.id = binary.BigEndian.Uint16(msg)
	r.flags = binary.BigEndian.Uint16(msg[2:])
	r.rcode = r.flags & rcodeMask
	r.answer = binary.BigEndian.Uint16(msg[countAt(sectionAnswer):])
	r.authority = binary.BigEndian.Uint16(msg[countAt(sectionAuthority):])
	r.additional = binary.BigEndian.Uint16(msg[countAt(sectionAdditional):])
	r.ttl, r.negative, r.nttl = math.MaxUint32, math.MaxUint32, 0
	r.edns, r.ede = false, noEDE
	r.addresses, r.found, r.referral, r.soa = false, false, false, false
	r.optAt, r.optEnd, r.optIndex, r.optTTLs, r.tangled = 0, 0, 0, 0, false
	clear(r.starts[:min(len(msg)/64+1, len(r.starts))])
	return r.flags&flagQR != 0 && r.flags>>opcodeShift&opcodeMask == dns.OpcodeQuery && binary.BigEndian.Uint16(msg[4:]) == 1
}

// record checks the record at off, the i-th of its section, and returns the offset behind it, or -1.
func (r *response) record(msg []byte, off, section int, i uint16) int {
	owner := off
	off = r.name(msg, off)
	if off < 0 || off+10 > len(msg) {
		return -1
	}
	rtype := binary.BigEndian.Uint16(msg[off:])
	ttl := binary.BigEndian.Uint32(msg[off+4:])
	data := off + 10
	end := data + int(binary.BigEndian.Uint16(msg[off+8:]))
	if end > len(msg) {
		return -1
	}
	if rtype == dns.TypeOPT {
		if r.edns || section != sectionAdditional || msg[owner] != 0 || !validOptions(msg[data:end]) {
			return -1
		}
		r.takeOPT(msg[data:end], owner, end, ttl)
		r.optIndex = i
		return end
	}
	if !r.data(msg[:end], data, rtype) {
		return -1
	}
	r.note(rtype, section, ttl)
	if rtype == dns.TypeSOA && section == sectionAuthority {
		r.soa = true
		r.negative = min(r.negative, ttl, binary.BigEndian.Uint32(msg[end-4:]))
	}
	if r.nttl == maxTTLs {
		r.ttl = 0
		return end
	}
	r.ttls[r.nttl] = uint16(off + 4)
	r.nttl++
	return end
}

// note takes what a record tells about the response as a whole.
func (r *response) note(rtype uint16, section int, ttl uint32) {
	r.ttl = min(r.ttl, ttl)
	switch section {
	case sectionAnswer:
		r.found = r.found || rtype == r.qtype || r.qtype == dns.TypeANY
	case sectionAuthority:
		r.referral = r.referral || rtype == dns.TypeNS
		return
	}
	switch rtype {
	case dns.TypeA, dns.TypeAAAA, dns.TypeSVCB, dns.TypeHTTPS:
		r.addresses = true
	}
}

// takeOPT reads the OPT record (RFC 6891, 6.1.3). No name may point at its owner, since the record is going to
// be taken out.
func (r *response) takeOPT(options []byte, owner, end int, ttl uint32) {
	r.edns = true
	r.rcode |= uint16(ttl >> 24 << 4)
	r.additional--
	r.optAt, r.optEnd, r.optTTLs = owner, end, r.nttl
	if owner < pointerSpan {
		r.starts[owner/64] &^= 1 << (owner % 64)
	}
	for len(options) > 0 {
		code, size := binary.BigEndian.Uint16(options), 4+int(binary.BigEndian.Uint16(options[2:]))
		if code == dns.EDNS0EDE && size >= 6 && r.ede == noEDE {
			r.ede = binary.BigEndian.Uint16(options[4:])
		}
		options = options[size:]
	}
}

// conclude decides what the response amounts to and whether it may be kept.
func (r *response) conclude() {
	negative := true
	switch {
	case r.rcode == dns.RcodeNameError:
		r.got = gotNXDomain
	case r.rcode != dns.RcodeSuccess:
		r.got, r.ttl = gotError, 0
	case r.found:
		r.got, negative = gotAnswer, false
	case r.answer == 0 && r.referral && !r.soa:
		r.got = gotReferral
	default:
		r.got = gotNoData
	}
	if negative {
		if !r.soa {
			r.negative = 0 // nobody says for how long (RFC 2308, 5)
		}
		r.ttl = min(r.ttl, r.negative)
	}
	if r.flags&flagTC != 0 {
		r.ttl = 0
	}
}

// name checks the name at off and returns the offset behind it, or -1. A pointer may only lead to a label of a
// name that was checked before and begins before this one, so that there are no loops.
func (r *response) name(msg []byte, off int) int {
	start, length := off, 0
	for off < len(msg) {
		c := int(msg[off])
		switch {
		case c >= 0xc0:
			if off+2 > len(msg) {
				return -1
			}
			to := c&0x3f<<8 | int(msg[off+1])
			if to >= start || r.starts[to/64]>>(to%64)&1 == 0 || !fits(msg, to, length) {
				return -1
			}
			r.tangled = r.tangled || r.optAt > 0 && to > r.optAt
			r.mark(off)
			return off + 2
		case c > 63:
			return -1
		}
		if length += 1 + c; length > maxName {
			return -1
		}
		r.mark(off)
		off += 1 + c
		if c == 0 {
			return off
		}
	}
	return -1
}

func (r *response) mark(off int) {
	if off < pointerSpan {
		r.starts[off/64] |= 1 << (off % 64)
	}
}

// fits reports whether a name remains short enough if the one at off, which is valid, continues it behind length
// octets.
func fits(msg []byte, off, length int) bool {
	for pointers := 1; pointers <= maxPointers; {
		c := int(msg[off])
		if c >= 0xc0 {
			off = c&0x3f<<8 | int(msg[off+1])
			pointers++
			continue
		}
		if length += 1 + c; length > maxName {
			return false
		}
		if c == 0 {
			return true
		}
		off += 1 + c
	}
	return false
}

// layout is the form of a record's data, as far as names go: octets, character strings, names, octets.
type layout struct {
	before, strings, names, behind uint8
	open                           bool // any number of octets may follow
}

// layoutOf returns the form of a type's data. Not only the types of RFC 1035 are here, whose names are
// compressed: other servers' names point into the data of later types too (RFC 3597, 4).
func layoutOf(rtype uint16) layout {
	switch rtype {
	case dns.TypeA:
		return layout{behind: 4}
	case dns.TypeAAAA:
		return layout{behind: 16}
	case dns.TypeNS, dns.TypeMD, dns.TypeMF, dns.TypeCNAME, dns.TypeMB, dns.TypeMG, dns.TypeMR, dns.TypePTR, dns.TypeNSAPPTR, dns.TypeDNAME:
		return layout{names: 1}
	case dns.TypeSOA:
		return layout{names: 2, behind: 20}
	case dns.TypeMINFO, dns.TypeRP, dns.TypeTALINK:
		return layout{names: 2}
	case dns.TypeMX, dns.TypeAFSDB, dns.TypeRT, dns.TypeKX, dns.TypeLP:
		return layout{before: 2, names: 1}
	case dns.TypePX:
		return layout{before: 2, names: 2}
	case dns.TypeSRV:
		return layout{before: 6, names: 1}
	case dns.TypeNAPTR:
		return layout{before: 4, strings: 3, names: 1}
	case dns.TypeSVCB, dns.TypeHTTPS:
		return layout{before: 2, names: 1, open: true}
	case dns.TypeSIG, dns.TypeRRSIG:
		return layout{before: 18, names: 1, open: true}
	case dns.TypeNSEC, dns.TypeNXT:
		return layout{names: 1, open: true}
	}
	return layout{open: true}
}

// data checks a record's data, which ends where msg does.
func (r *response) data(msg []byte, off int, rtype uint16) bool {
	l := layoutOf(rtype)
	off += int(l.before)
	for range l.strings {
		if off >= len(msg) {
			return false
		}
		off += 1 + int(msg[off])
	}
	for range l.names {
		if off = r.name(msg, off); off < 0 {
			return false
		}
	}
	if !l.open {
		return off+int(l.behind) == len(msg)
	}
	if rtype == dns.TypeSVCB || rtype == dns.TypeHTTPS {
		// Their parameters are laid out as EDNS options are: a key, a length, a value (RFC 9460, 2.2).
		return off <= len(msg) && validOptions(msg[off:])
	}
	return off <= len(msg)
}

// stripOPT takes the OPT record out of msg, which parse has read, in place, mends the counts and cuts what trails.
// OPT speaks of one hop alone (RFC 6891, 6.2.1), so it is neither cached nor passed on. Records behind it move
// down; if their names point at each other, which would no longer hold, they are left out: the additional
// section is an extra.
func (r *response) stripOPT(msg []byte) []byte {
	msg = msg[:r.size]
	if r.optAt == 0 {
		return msg
	}
	if r.tangled {
		msg = msg[:r.optAt]
		r.additional, r.nttl = r.optIndex, r.optTTLs
	} else {
		gap := r.optEnd - r.optAt
		msg = append(msg[:r.optAt], msg[r.optEnd:]...)
		for i := r.optTTLs; i < r.nttl; i++ {
			r.ttls[i] -= uint16(gap)
		}
	}
	r.optAt, r.size = 0, len(msg)
	binary.BigEndian.PutUint16(msg[countAt(sectionAdditional):], r.additional)
	return msg
}

// lowerOwners lower-cases, in place, the owners of records as far as they are spelled out, and the aliases that a
// server made up from a DNAME. Servers copy the question's name there, whose case was drawn at random (0x20) or
// by one client, and the next one would see it. Owners that point to the question have each asker's own case.
// DNSSEC does not mind (RFC 4034, 6.2).
func (r *response) lowerOwners(msg []byte) {
	off := r.end
	made := false
	for off < r.size {
		lowerInline(msg, off)
		at := skipName(msg, off)
		rtype := binary.BigEndian.Uint16(msg[at:])
		if made && rtype == dns.TypeCNAME {
			lowerInline(msg, at+10)
		}
		made = made || rtype == dns.TypeDNAME
		off = recordEnd(msg, off)
	}
}

// lowerInline lower-cases the labels of a valid name up to its end or its pointer.
func lowerInline(msg []byte, off int) {
	for c := int(msg[off]); c != 0 && c < 0xc0; c = int(msg[off]) {
		lowerName(msg[off+1 : off+1+c])
		off += 1 + c
	}
}

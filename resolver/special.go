package resolver

import (
	"encoding/binary"

	"github.com/miekg/dns"
)

// Names with a meaning of their own are answered here, so that they never reach a public server: the registry of
// special-use names (RFC 6761), the locally served reverse zones (RFC 6303, RFC 7793), and some that came later.
// A network may well serve some of them itself (home.arpa, .local, the reverse zones of its addresses), so the
// caller looks at the zone, the split routes and the domains learnt from the network first.
//
// Not special, though registered: example and example.com (ordinary names, RFC 6761, 6.5.4), ipv4only.arpa and the
// reverse names of its addresses (a client tells from the network's own answer whether there is a NAT64; RFC 8880,
// 7.1.4 and 7.2.4).

// specialTTL is the time that special answers may be kept, in seconds. RFC 6303 proposes three hours; ten minutes
// spare the clients little less and let a network that starts to serve such a zone be found sooner.
const specialTTL = 600

// specialHit says what specialUse did. The zero value: the name is not special.
type specialHit struct {
	rcode     uint16
	answer    uint16 // records that were appended, by section
	authority uint16
	private   bool   // a network may give the name a meaning of its own, for its own machines
	reason    string // in words, for people; empty: the name is not special
}

// special reports whether the name was answered.
func (h *specialHit) special() bool { return h.reason != "" }

// specialRule says how the names of a zone are answered.
type specialRule uint8

const (
	ruleAbsent   specialRule = iota // no name exists, nor does the zone: NXDOMAIN
	ruleEmpty                       // the zone exists and is empty (RFC 6303, 3); its DS record is its parent's to tell
	ruleNoData                      // all names exist and have no records
	ruleLoopback                    // all names have the loopback's addresses
	ruleReverse4                    // as ruleEmpty, with the reverse name of 127.0.0.1
	ruleReverse6                    // as ruleEmpty; the zone's top is the reverse name of ::1
)

// specialZone is a zone whose names are special.
type specialZone struct {
	labels  int // of the zone's name; 0: none
	rule    specialRule
	private bool
	reason  string
}

// specialUse answers q if its name is special: it appends records to msg, which holds a header and the question,
// uncompressed. The caller writes the counts and the rcode. It allocates nothing if msg has room.
func specialUse(q *question, msg []byte) ([]byte, specialHit) {
	if q.qclass != dns.ClassINET {
		return msg, specialHit{}
	}
	z := findSpecial(q)
	if z.labels == 0 {
		return msg, specialHit{}
	}
	top := q.labels == z.labels
	if z.rule == ruleEmpty && top && q.qtype == dns.TypeDS {
		// A validating client needs the parent's word that the zone is not signed (RFC 8375, 4, item 4).
		return msg, specialHit{}
	}
	hit := specialHit{private: z.private, reason: z.reason}
	if out, ok := appendSpecial(q, msg, &z); ok {
		hit.answer = 1
		return out, hit
	}
	if z.rule == ruleAbsent || !top && !z.exists(q) {
		hit.rcode = dns.RcodeNameError
	}
	hit.authority = 1
	return appendSOA(msg, q, z.labels), hit
}

// findSpecial returns the special zone that q's name is in.
func findSpecial(q *question) specialZone {
	if q.labels == 0 {
		return specialZone{}
	}
	switch string(q.suffix(1)) {
	case "\x04arpa\x00":
		return findArpa(q)
	case "\x09localhost\x00":
		return specialZone{1, ruleLoopback, false, "RFC 6761: localhost is this machine"}
	case "\x07invalid\x00":
		return specialZone{1, ruleAbsent, false, "RFC 6761: .invalid does not exist"}
	case "\x04test\x00":
		return specialZone{1, ruleAbsent, false, "RFC 6761: .test is for tests and not in the public DNS"}
	case "\x05onion\x00":
		return specialZone{1, ruleAbsent, false, "RFC 7686: .onion never leaves the machine"}
	case "\x05local\x00":
		return specialZone{1, ruleAbsent, true, "RFC 6762: .local is for multicast DNS"}
	case "\x03alt\x00":
		return specialZone{1, ruleAbsent, false, "RFC 9476: .alt is for names outside the DNS"}
	case "\x08internal\x00":
		return specialZone{1, ruleAbsent, true, "ICANN: .internal is for private networks and not in the public DNS"}
	case "\x03net\x00":
		if q.labels >= 2 && string(q.suffix(2)) == "\x13use-application-dns\x03net\x00" {
			return specialZone{2, ruleAbsent, false, "use-application-dns.net: denied, so that browsers keep asking this resolver"}
		}
	}
	return specialZone{}
}

func findArpa(q *question) specialZone {
	if q.labels < 2 {
		return specialZone{}
	}
	switch string(q.suffix(2)) {
	case "\x07in-addr\x04arpa\x00":
		return findReverse4(q)
	case "\x03ip6\x04arpa\x00":
		return findReverse6(q)
	case "\x04home\x04arpa\x00":
		return specialZone{2, ruleEmpty, true, "RFC 8375: home.arpa is for home networks"}
	case "\x07service\x04arpa\x00":
		return specialZone{2, ruleEmpty, true, "RFC 9665: service.arpa is the local network's"}
	case "\x08resolver\x04arpa\x00":
		// What it says is about the resolver that is asked, so it must not come from another (RFC 9462, 6.4).
		return specialZone{2, ruleNoData, false, "RFC 9462: resolver.arpa is never forwarded"}
	case "\x08eap-noob\x04arpa\x00":
		return specialZone{2, ruleAbsent, false, "RFC 9140: eap-noob.arpa is not in the DNS"}
	case "\x066tisch\x04arpa\x00":
		return specialZone{2, ruleAbsent, false, "RFC 9031: 6tisch.arpa is not in the DNS"}
	}
	return specialZone{}
}

// Reasons that several zones share.
const (
	reasonPrivate   = "RFC 6303: the reverse zone of private addresses"
	reasonLinkLocal = "RFC 6303: the reverse zone of link-local addresses"
	reasonShared    = "RFC 7793: the reverse zone of shared addresses"
	reasonThisHost  = "RFC 6303: the reverse zone of addresses that mean this host"
	reasonExamples  = "RFC 6303: the reverse zone of addresses for documentation"
	reasonBroadcast = "RFC 6303: the reverse name of the broadcast address"
)

// findReverse4 compares the leading octets of an IPv4 address, the rightmost labels below in-addr.arpa.
func findReverse4(q *question) specialZone {
	a, b, c, d := q.octet(3), q.octet(4), q.octet(5), q.octet(6)
	switch {
	case a == 10:
		return specialZone{3, ruleEmpty, true, reasonPrivate}
	case a == 0:
		return specialZone{3, ruleEmpty, false, reasonThisHost}
	case a == 127:
		return specialZone{3, ruleReverse4, false, reasonThisHost}
	case a == 172 && b >= 16 && b <= 31, a == 192 && b == 168:
		return specialZone{4, ruleEmpty, true, reasonPrivate}
	case a == 169 && b == 254:
		return specialZone{4, ruleEmpty, true, reasonLinkLocal}
	case a == 100 && b >= 64 && b <= 127:
		return specialZone{4, ruleEmpty, true, reasonShared}
	case a == 192 && b == 0 && c == 2, a == 198 && b == 51 && c == 100, a == 203 && b == 0 && c == 113:
		return specialZone{5, ruleEmpty, false, reasonExamples}
	case a == 255 && b == 255 && c == 255 && d == 255:
		return specialZone{6, ruleEmpty, false, reasonBroadcast}
	}
	return specialZone{}
}

// octet is the n-th label from the right as a number, or -1 if it is none or is written in an odd way.
func (q *question) octet(n int) int {
	if n > q.labels {
		return -1
	}
	s := q.suffix(n)
	digits := s[1 : 1+s[0]]
	if len(digits) > 3 || digits[0] == '0' && len(digits) > 1 {
		return -1
	}
	v := 0
	for _, c := range digits {
		if c-'0' > 9 {
			return -1
		}
		v = 10*v + int(c-'0')
	}
	if v > 255 {
		return -1
	}
	return v
}

// ip6Labels is the length of the reverse name of an IPv6 address: 32 digits, ip6, arpa.
const ip6Labels = 34

// findReverse6 compares the leading hexadecimal digits of an IPv6 address.
func findReverse6(q *question) specialZone {
	var digits [ip6Labels - 2]byte
	n := 0
	for n < len(digits) && n+3 <= q.labels {
		s := q.suffix(n + 3)
		if s[0] != 1 {
			break
		}
		digits[n] = s[1]
		n++
	}
	const zeros = "0000000000000000000000000000000"
	switch d := digits[:n]; {
	case n >= 2 && string(d[:2]) == "fd":
		return specialZone{4, ruleEmpty, true, reasonPrivate}
	case n >= 3 && string(d[:2]) == "fe" && (d[2] == '8' || d[2] == '9' || d[2] == 'a' || d[2] == 'b'):
		return specialZone{5, ruleEmpty, true, reasonLinkLocal}
	case n >= 8 && string(d[:8]) == "20010db8":
		return specialZone{10, ruleEmpty, false, reasonExamples}
	case n == len(digits) && string(d[:n-1]) == zeros && d[n-1] == '0':
		return specialZone{ip6Labels, ruleEmpty, false, reasonThisHost}
	case n == len(digits) && string(d[:n-1]) == zeros && d[n-1] == '1':
		return specialZone{ip6Labels, ruleReverse6, false, reasonThisHost}
	}
	return specialZone{}
}

// loopback4 is 1.0.0.127.in-addr.arpa, in wire form.
const loopback4 = "\x011\x010\x010\x03127\x07in-addr\x04arpa\x00"

// exists reports whether a name below the zone's top exists.
func (z *specialZone) exists(q *question) bool {
	switch z.rule {
	case ruleNoData, ruleLoopback:
		return true
	case ruleReverse4:
		// The names between the zone and the one that it holds exist without records (RFC 8020).
		n := q.nameLen
		return n <= len(loopback4) && string(q.name()) == loopback4[len(loopback4)-n:]
	}
	return false
}

// appendSpecial appends the one record that z has for q, if there is one.
func appendSpecial(q *question, msg []byte, z *specialZone) ([]byte, bool) {
	whole := q.qtype == dns.TypeANY // one record of several is enough (RFC 8482, 4.1)
	switch {
	case z.rule == ruleLoopback:
		switch {
		case q.qtype == dns.TypeA || whole:
			return append(appendRecord(msg, headerSize, dns.TypeA, 4), 127, 0, 0, 1), true
		case q.qtype == dns.TypeAAAA:
			return append(appendRecord(msg, headerSize, dns.TypeAAAA, 16), 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1), true
		}
	case z.rule == ruleReverse4 && string(q.name()) == loopback4, z.rule == ruleReverse6 && q.labels == ip6Labels:
		if q.qtype == dns.TypePTR || whole {
			const localhost = "\x09localhost\x00"
			return append(appendRecord(msg, headerSize, dns.TypePTR, len(localhost)), localhost...), true
		}
	}
	if q.labels != z.labels || z.rule == ruleAbsent || z.rule == ruleLoopback {
		return msg, false
	}
	switch q.qtype {
	case dns.TypeSOA: // who looks for the zone's top finds it
		return appendSOA(msg, q, z.labels), true
	case dns.TypeNS:
		return append(appendRecord(msg, headerSize, dns.TypeNS, 2), 0xc0, headerSize), true
	}
	return msg, false
}

// appendRecord appends the head of a record whose owner stands at an offset in the message.
func appendRecord(msg []byte, owner int, rtype uint16, size int) []byte {
	msg = binary.BigEndian.AppendUint16(msg, 0xc000|uint16(owner))
	msg = binary.BigEndian.AppendUint16(msg, rtype)
	msg = binary.BigEndian.AppendUint16(msg, dns.ClassINET)
	msg = binary.BigEndian.AppendUint32(msg, specialTTL)
	return binary.BigEndian.AppendUint16(msg, uint16(size))
}

// soaTail is an SOA record's data behind the name of the server: the mailbox nobody.invalid, then serial, refresh,
// retry, expire as in RFC 6303, 3, and the time that "no" may be kept (RFC 2308, 4).
const soaTail = "\x06nobody\x07invalid\x00" + "\x00\x00\x00\x01" + "\x00\x00\x0e\x10" + "\x00\x00\x04\xb0" + "\x00\x09\x3a\x80" + "\x00\x00\x02\x58"

// appendSOA appends the SOA of the zone that is made of the last labels of the question. As in RFC 6303, the zone's
// name stands for its server.
func appendSOA(msg []byte, q *question, labels int) []byte {
	owner := headerSize + int(q.label[q.labels-labels])
	msg = appendRecord(msg, owner, dns.TypeSOA, 2+len(soaTail))
	msg = binary.BigEndian.AppendUint16(msg, 0xc000|uint16(owner))
	return append(msg, soaTail...)
}

package resolver

import (
	"encoding/binary"

	"github.com/miekg/dns"
)

// Sections of a message, in their order behind the question.
const (
	sectionAnswer = iota
	sectionAuthority
	sectionAdditional
	sections
)

// countAt is where the header counts the records of a section.
func countAt(section int) int { return 6 + 2*section }

// truncate cuts msg in place until it has at most limit octets, between records, from its end: additional
// records go first, then those of the authority section, then answers. The counts are mended. TC is set only if
// something was lost that the client needs (RFC 2181, 9). An OPT record, which has to survive, is appended by
// the caller, who takes its length off limit. A question that does not fit goes too, the header never: below
// its twelve octets limit has no effect. What does not parse is cut as if it did not fit.
func truncate(msg []byte, limit int) []byte {
	if len(msg) <= limit || len(msg) <= headerSize {
		return msg
	}
	answers := binary.BigEndian.Uint16(msg[countAt(sectionAnswer):])
	off := skipQuestions(msg, limit)
	lost := off < 0
	end := max(off, headerSize)
	for section := range sections {
		kept := uint16(0)
		for range binary.BigEndian.Uint16(msg[countAt(section):]) {
			next := -1
			if off >= 0 {
				next = recordEnd(msg, off)
			}
			if end == off && next >= 0 && next <= limit {
				kept, end = kept+1, next
			} else if next < 0 || needed(msg, off, section, answers) {
				lost = lost || section != sectionAdditional
				off = -1
				break
			}
			off = next
		}
		binary.BigEndian.PutUint16(msg[countAt(section):], kept)
	}
	if lost {
		binary.BigEndian.PutUint16(msg[2:], binary.BigEndian.Uint16(msg[2:])|flagTC)
	}
	return msg[:end]
}

// skipQuestions returns the offset behind the questions. If they do not fit into limit octets they are counted
// no more, and the result is -1.
func skipQuestions(msg []byte, limit int) int {
	off := headerSize
	for range binary.BigEndian.Uint16(msg[4:]) {
		off = skipName(msg, off)
		if off < 0 || off+4 > min(limit, len(msg)) {
			binary.BigEndian.PutUint16(msg[4:], 0)
			return -1
		}
		off += 4
	}
	return off
}

// recordEnd returns the offset behind the record at off, or -1 if it is not whole.
func recordEnd(msg []byte, off int) int {
	off = skipName(msg, off)
	if off < 0 || off+10 > len(msg) {
		return -1
	}
	off += 10 + int(binary.BigEndian.Uint16(msg[off+8:]))
	if off > len(msg) {
		return -1
	}
	return off
}

// needed reports whether a reply is incomplete without the whole record at off. The name servers of a zone that
// come with an answer, and the signatures over them, are only an extra.
func needed(msg []byte, off, section int, answers uint16) bool {
	if section != sectionAuthority || answers == 0 {
		return section != sectionAdditional
	}
	off = skipName(msg, off)
	rtype := binary.BigEndian.Uint16(msg[off:])
	if rtype == dns.TypeRRSIG && binary.BigEndian.Uint16(msg[off+8:]) >= 2 {
		rtype = binary.BigEndian.Uint16(msg[off+10:]) // the type covered
	}
	return rtype != dns.TypeNS
}

package tunnel

import (
	"encoding/binary"
	"net/netip"
)

// Protocol numbers (IANA), as they stand in packets and rules.
const (
	protoHopByHop = 0
	protoICMP     = 1
	protoTCP      = 6
	protoUDP      = 17
	protoRouting  = 43
	protoFragment = 44
	protoICMPv6   = 58
	protoDestOpts = 60
)

// maxExtensions is how many IPv6 extension headers are walked; real packets have one or two.
const maxExtensions = 8

// packet is what the filter looks at.
type packet struct {
	source, destination netip.Addr
	protocol            uint8
	sourcePort          uint16 // TCP and UDP; for ICMP the type stands in icmp
	destinationPort     uint16
	icmp                uint8
	opens               bool // a TCP packet that opens a connection: SYN without ACK
	later               bool // a fragment that is not the first: it has no ports, and is nothing without the first
}

// parsePacket reads an IP packet's headers. It fails on what is no packet, is cut short where the filter has to look, or
// is a fragment made to overwrite those parts (RFC 1858, RFC 3128).
func parsePacket(b []byte) (p packet, ok bool) {
	if len(b) == 0 {
		return p, false
	}
	switch b[0] >> 4 {
	case 4:
		return parse4(b)
	case 6:
		return parse6(b)
	}
	return p, false
}

func parse4(b []byte) (p packet, ok bool) {
	if len(b) < 20 {
		return p, false
	}
	header, total := int(b[0]&15)*4, int(binary.BigEndian.Uint16(b[2:]))
	if header < 20 || total < header || total > len(b) {
		return p, false
	}
	p.source, p.destination = netip.AddrFrom4([4]byte(b[12:16])), netip.AddrFrom4([4]byte(b[16:20]))
	p.protocol = b[9]
	fragment := binary.BigEndian.Uint16(b[6:])
	return p.transport(b[header:total], fragment&0x1fff, fragment&0x2000 != 0)
}

func parse6(b []byte) (p packet, ok bool) {
	if len(b) < 40 {
		return p, false
	}
	end := 40 + int(binary.BigEndian.Uint16(b[4:]))
	if end > len(b) {
		return p, false
	}
	p.source, p.destination = netip.AddrFrom16([16]byte(b[8:24])), netip.AddrFrom16([16]byte(b[24:40]))
	next, rest := b[6], b[40:end]
	var offset uint16
	var more bool
	for range maxExtensions {
		var size int
		switch next {
		case protoHopByHop, protoRouting, protoDestOpts:
			if len(rest) < 8 {
				return p, false
			}
			size = 8 + int(rest[1])*8
		case protoFragment:
			if len(rest) < 8 {
				return p, false
			}
			word := binary.BigEndian.Uint16(rest[2:])
			offset, more, size = word>>3, word&1 != 0, 8
			if offset > 0 { // what follows is the middle of something: no headers are in it
				p.protocol = rest[0]
				return p.transport(rest[8:], offset, more)
			}
		default:
			p.protocol = next
			return p.transport(rest, offset, more)
		}
		if size > len(rest) {
			return p, false
		}
		next, rest = rest[0], rest[size:]
	}
	return p, false
}

// transport reads the header above IP. offset is the fragment's, in units of 8 bytes.
func (p packet) transport(b []byte, offset uint16, more bool) (packet, bool) {
	if offset > 0 {
		p.later = true
		// The second 8 bytes of TCP hold the flags.
		return p, p.protocol != protoTCP || offset > 1
	}
	switch p.protocol {
	case protoTCP:
		if len(b) < 20 {
			return p, false
		}
		const syn, ack = 0x02, 0x10
		p.opens = b[13]&(syn|ack) == syn
	case protoUDP:
		if len(b) < 8 {
			return p, false
		}
	case protoICMP, protoICMPv6:
		if len(b) < 4 {
			return p, false
		}
		p.icmp = b[0]
		return p, true
	default:
		return p, len(b) > 0 || !more
	}
	p.sourcePort, p.destinationPort = binary.BigEndian.Uint16(b), binary.BigEndian.Uint16(b[2:])
	return p, true
}

package resolver

import (
	"encoding/binary"
	"net/netip"

	"github.com/miekg/dns"
)

// rebinds looks for an address in the answer and additional sections of msg, which parse has read, that an
// outside name must not have: loopback and unspecified ones, which reach this machine (0.0.0.0 does on Linux and
// macOS), those in refuse, and with private all ranges that are not public. Addresses count that stand in A,
// AAAA, or in the hints of SVCB and HTTPS, and IPv4 ones inside IPv6 ones too.
func (r *response) rebinds(msg []byte, refuse []netip.Prefix, private bool) (netip.Addr, bool) {
	if !r.addresses {
		return netip.Addr{}, false
	}
	in := inside{refuse, private}
	off := r.end
	authority := int(r.answer)
	additional := authority + int(r.authority)
	for i := 0; off < r.size; i++ {
		at := skipName(msg, off)
		rtype := binary.BigEndian.Uint16(msg[at:])
		end := recordEnd(msg, off)
		if i < authority || i >= additional {
			if addr, bad := in.record(msg[at+10:end], rtype); bad {
				return addr, true
			}
		}
		off = end
	}
	return netip.Addr{}, false
}

// inside is the set of addresses that are refused.
type inside struct {
	refuse  []netip.Prefix
	private bool
}

// record looks at a record's data.
func (in inside) record(data []byte, rtype uint16) (netip.Addr, bool) {
	switch rtype {
	case dns.TypeA:
		return in.all4(data)
	case dns.TypeAAAA:
		return in.all6(data)
	case dns.TypeSVCB, dns.TypeHTTPS:
		params := data[skipName(data, 2):]
		for len(params) > 0 {
			key, end := dns.SVCBKey(binary.BigEndian.Uint16(params)), 4+int(binary.BigEndian.Uint16(params[2:]))
			addr, bad := netip.Addr{}, false
			switch key {
			case dns.SVCB_IPV4HINT:
				addr, bad = in.all4(params[4:end])
			case dns.SVCB_IPV6HINT:
				addr, bad = in.all6(params[4:end])
			}
			if bad {
				return addr, true
			}
			params = params[end:]
		}
	}
	return netip.Addr{}, false
}

func (in inside) all4(b []byte) (netip.Addr, bool) {
	for ; len(b) >= 4; b = b[4:] {
		if addr := netip.AddrFrom4([4]byte(b)); in.has(addr) {
			return addr, true
		}
	}
	return netip.Addr{}, false
}

func (in inside) all6(b []byte) (netip.Addr, bool) {
	for ; len(b) >= 16; b = b[16:] {
		addr := netip.AddrFrom16([16]byte(b))
		if in.has(addr) {
			return addr, true
		}
		if v4, ok := embedded(addr.As16()); ok && in.has(v4) {
			return addr, true
		}
	}
	return netip.Addr{}, false
}

// embedded returns the IPv4 address that an IPv6 address leads to: mapped and compatible ones (RFC 4291, 2.5.5),
// through NAT64 (RFC 6052, 2.1), through 6to4 (RFC 3056, 2).
func embedded(b [16]byte) (netip.Addr, bool) {
	high, low := binary.BigEndian.Uint64(b[:]), binary.BigEndian.Uint32(b[8:])
	switch {
	case high == 0 && (low == 0xffff || low == 0), high == 0x0064_ff9b<<32 && low == 0:
		return netip.AddrFrom4([4]byte(b[12:])), true
	case high>>48 == 0x2002:
		return netip.AddrFrom4([4]byte(b[2:])), true
	}
	return netip.Addr{}, false
}

func (in inside) has(a netip.Addr) bool {
	if a.IsLoopback() || a.IsUnspecified() || a.Is4() && a.As4()[0] == 0 {
		return true
	}
	for _, p := range in.refuse {
		if p.Contains(a) {
			return true
		}
	}
	return in.private && (a.IsPrivate() || a.IsLinkLocalUnicast() || isShared(a))
}

// isShared reports whether a lies in 100.64.0.0/10 (RFC 6598).
func isShared(a netip.Addr) bool {
	if !a.Is4() {
		return false
	}
	b := a.As4()
	return b[0] == 100 && b[1]&0xc0 == 64
}

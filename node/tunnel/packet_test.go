package tunnel

import (
	"encoding/binary"
	"net/netip"
	"testing"
)

// ip makes a packet of either family around what comes above IP.
func ip(from, to string, protocol uint8, above []byte) []byte {
	src, dst := netip.MustParseAddr(from), netip.MustParseAddr(to)
	if src.Is6() {
		b := make([]byte, 40, 40+len(above))
		b[0], b[6], b[7] = 6<<4, protocol, 64
		binary.BigEndian.PutUint16(b[4:], uint16(len(above)))
		copy(b[8:], src.AsSlice())
		copy(b[24:], dst.AsSlice())
		return append(b, above...)
	}
	b := make([]byte, 20, 20+len(above))
	b[0], b[8], b[9] = 4<<4|5, 64, protocol
	binary.BigEndian.PutUint16(b[2:], uint16(20+len(above)))
	copy(b[12:], src.AsSlice())
	copy(b[16:], dst.AsSlice())
	return append(b, above...)
}

func tcpHeader(from, to uint16, flags byte) []byte {
	b := make([]byte, 20)
	binary.BigEndian.PutUint16(b, from)
	binary.BigEndian.PutUint16(b[2:], to)
	b[12], b[13] = 5<<4, flags
	return b
}

func udpHeader(from, to uint16) []byte {
	b := make([]byte, 8)
	binary.BigEndian.PutUint16(b, from)
	binary.BigEndian.PutUint16(b[2:], to)
	return b
}

// fragmented sets an IPv4 packet's fragment field: the offset in units of 8 bytes.
func fragmented(b []byte, offset uint16, more bool) []byte {
	if more {
		offset |= 0x2000
	}
	binary.BigEndian.PutUint16(b[6:], offset)
	return b
}

// extension is an IPv6 extension header before what follows it.
func extension(next uint8, word uint16, follows []byte) []byte {
	b := []byte{next, 0, byte(word >> 8), byte(word), 0, 0, 0, 0}
	return append(b, follows...)
}

const syn, ack = 0x02, 0x10

func TestPacketsAreParsed(t *testing.T) {
	const a4, b4, a6, b6 = "10.8.0.1", "10.8.0.2", "fd00::1", "fd00::2"
	for name, test := range map[string]struct {
		bytes []byte
		ok    bool
		port  uint16
		opens bool
		later bool
	}{
		"TCP, opening":               {ip(a4, b4, 6, tcpHeader(1000, 22, syn)), true, 22, true, false},
		"TCP, answering":             {ip(a4, b4, 6, tcpHeader(1000, 22, syn|ack)), true, 22, false, false},
		"TCP over IPv6":              {ip(a6, b6, 6, tcpHeader(1000, 22, syn)), true, 22, true, false},
		"UDP":                        {ip(a4, b4, 17, udpHeader(1000, 53)), true, 53, false, false},
		"UDP over IPv6":              {ip(a6, b6, 17, udpHeader(1000, 53)), true, 53, false, false},
		"bytes behind it":            {append(ip(a4, b4, 17, udpHeader(1000, 53)), 1, 2), true, 53, false, false},
		"empty":                      {nil, false, 0, false, false},
		"another version":            {[]byte{5 << 4}, false, 0, false, false},
		"short header":               {ip(a4, b4, 6, nil)[:19], false, 0, false, false},
		"short TCP":                  {ip(a4, b4, 6, tcpHeader(1000, 22, syn)[:19]), false, 0, false, false},
		"short UDP":                  {ip(a4, b4, 17, udpHeader(1000, 53)[:7]), false, 0, false, false},
		"short ICMP":                 {ip(a4, b4, 1, []byte{8, 0}), false, 0, false, false},
		"cut":                        {ip(a4, b4, 6, tcpHeader(1000, 22, syn))[:39], false, 0, false, false},
		"cut, IPv6":                  {ip(a6, b6, 6, tcpHeader(1000, 22, syn))[:59], false, 0, false, false},
		"first fragment":             {fragmented(ip(a4, b4, 17, udpHeader(1000, 53)), 0, true), true, 53, false, false},
		"later fragment":             {fragmented(ip(a4, b4, 17, make([]byte, 3)), 4, false), true, 0, false, true},
		"fragment over TCP's flags":  {fragmented(ip(a4, b4, 6, make([]byte, 24)), 1, true), false, 0, false, true},
		"first fragment without TCP": {fragmented(ip(a4, b4, 6, make([]byte, 8)), 0, true), false, 0, false, false},
		"IPv6 options before TCP":    {ip(a6, b6, 0, extension(6, 0, tcpHeader(1000, 22, syn))), true, 22, true, false},
		"IPv6 first fragment":        {ip(a6, b6, 44, extension(17, 1, udpHeader(1000, 53))), true, 53, false, false},
		"IPv6 later fragment":        {ip(a6, b6, 44, extension(17, 4<<3, udpHeader(1000, 53))), true, 0, false, true},
		"IPv6 fragment over flags":   {ip(a6, b6, 44, extension(6, 1<<3, tcpHeader(1, 2, syn))), false, 0, false, true},
		"IPv6 options cut":           {ip(a6, b6, 0, []byte{6, 9, 0, 0, 0, 0, 0, 0}), false, 0, false, false},
	} {
		p, ok := parsePacket(test.bytes)
		if ok != test.ok || ok && (p.destinationPort != test.port || p.opens != test.opens || p.later != test.later) {
			t.Errorf("%s: %+v, %t", name, p, ok)
		}
	}
	var many []byte
	for range maxExtensions + 1 {
		many = extension(protoDestOpts, 0, many)
	}
	if _, ok := parsePacket(ip(a6, b6, protoDestOpts, many)); ok {
		t.Errorf("%d extension headers are walked", maxExtensions+1)
	}
}

func FuzzPacket(f *testing.F) {
	f.Add(ip("10.8.0.1", "10.8.0.2", 6, tcpHeader(1000, 22, syn)))
	f.Add(ip("fd00::1", "fd00::2", 44, extension(17, 1, udpHeader(1000, 53))))
	f.Add(fragmented(ip("10.8.0.1", "10.8.0.2", 17, make([]byte, 3)), 4, false))
	f.Add(ip("10.8.0.1", "10.8.0.2", 1, []byte{8, 0, 0, 0}))
	rules, err := newPolicy([]Rule{{Source: netip.MustParsePrefix("10.8.0.1/32"), Protocol: 6, First: 22, Last: 22}})
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		p, ok := parsePacket(b)
		if !ok {
			return
		}
		if !p.source.IsValid() || p.source.Is4() != p.destination.Is4() || p.source.Is4() != (b[0]>>4 == 4) {
			t.Errorf("%x: %+v", b, p)
		}
		if p.opens && (p.later || p.protocol != protoTCP) {
			t.Errorf("%x opens a connection: %+v", b, p)
		}
		sink := &sinkDevice{}
		filter := newFilter(sink, []netip.Addr{p.destination})
		_ = filter.set(rules)
		_, _ = filter.Write([][]byte{b}, 0)
		if p.opens && len(sink.got) > 0 && (p.source.String() != "10.8.0.1" || p.destinationPort != 22) {
			t.Errorf("%x came in: %+v", b, p)
		}
	})
}

package tunnel

import (
	"encoding/binary"
	"errors"
	"net"
	"net/netip"
	"sync/atomic"
	"time"

	"golang.org/x/net/ipv4"
	"golang.org/x/net/ipv6"
)

// A relay's cost is that of its system calls, and of the kernel's path for each packet. So it takes in several datagrams of one
// sender as one where the kernel joins them (UDP_GRO), and passes those that go to one place on in the same way
// (UDP_SEGMENT): the kernel takes them apart where they were joined, so that each goes out as it came in.

// The bounds of a relay's reads and writes.
const (
	relayBatch    = 64      // datagrams of a read, where the kernel does not join any
	relayJoined   = 16      // reads at once, where it does
	joinedBytes   = 1 << 16 // of one of those
	burstCount    = 64      // datagrams of a burst: the kernel's UDP_MAX_SEGMENTS
	burstBytes    = 65000   // below what UDP carries over either family
	relayDatagram = 2048    // more than any that WireGuard sends over links of an ordinary MTU
)

// batchConn is a UDP socket that takes several datagrams a call.
type batchConn interface {
	ReadBatch(ms []ipv4.Message, flags int) (int, error)
	WriteBatch(ms []ipv4.Message, flags int) (int, error)
}

// relaySocket is one of a relay's sockets.
type relaySocket struct {
	batchConn
	joins  bool        // datagrams may come joined
	splits atomic.Bool // bursts may be written
}

func newRelaySocket(c *net.UDPConn) *relaySocket {
	s := &relaySocket{joins: joinDatagrams(c)}
	s.splits.Store(splitsDatagrams(c))
	if c.LocalAddr().(*net.UDPAddr).IP.To4() != nil {
		s.batchConn = ipv4.NewPacketConn(c)
	} else {
		s.batchConn = ipv6.NewPacketConn(c)
	}
	growBuffers(c)
	return s
}

// input is room for one read.
func (s *relaySocket) input() []ipv4.Message {
	count, size := relayBatch, relayDatagram
	if s.joins {
		count, size = relayJoined, joinedBytes
	}
	in := make([]ipv4.Message, count)
	for i := range in {
		in[i].Buffers = [][]byte{make([]byte, size)}
		in[i].OOB = make([]byte, joinedControl())
	}
	return in
}

// arrived is what one read gave: datagrams of one sender behind each other.
type arrived struct {
	from  netip.AddrPort
	data  []byte
	each  int // size of all but the last, which may be shorter
	count int
}

// cut tells what a message that was read holds. ok is false where that is nothing of WireGuard's.
func cut(m *ipv4.Message) (j arrived, ok bool) {
	from, isUDP := m.Addr.(*net.UDPAddr)
	if !isUDP || m.N == 0 {
		return arrived{}, false
	}
	a := from.AddrPort()
	j = arrived{from: netip.AddrPortFrom(a.Addr().Unmap(), a.Port()), data: m.Buffers[0][:m.N], each: joinedSize(m.OOB[:m.NN])}
	if j.each <= 0 || j.each > m.N {
		j.each = m.N
	}
	j.count = (m.N + j.each - 1) / j.each
	return j, j.each < relayDatagram
}

// datagram is the i-th of them.
func (j arrived) datagram(i int) []byte {
	return j.data[i*j.each : min((i+1)*j.each, len(j.data))]
}

// burst is datagrams to one place, all of one size but the last, which may be shorter.
type burst struct {
	to    netip.AddrPort
	each  int
	count int
	bytes int
	parts [][]byte // together they are the datagrams, one behind the other
}

// takes adds a datagram, if it can be one more of the burst.
func (b *burst) takes(to netip.AddrPort, datagram []byte) bool {
	n := len(datagram)
	if b.to != to || n > b.each || b.bytes != b.count*b.each || b.count == burstCount || b.bytes+n > burstBytes {
		return false
	}
	b.count++
	b.bytes += n
	last := b.parts[len(b.parts)-1]
	if end := len(last); cap(last) > end && &last[:end+1][end] == &datagram[0] {
		b.parts[len(b.parts)-1] = last[:end+n]
	} else {
		b.parts = append(b.parts, datagram)
	}
	return true
}

// bursts are what is to be written by one socket.
type bursts struct {
	list     []burst
	messages []ipv4.Message
	control  []byte // of the burst before, whose size the next one mostly has
	each     int
}

// add has a datagram be written. It must stay as it is until then.
func (b *bursts) add(to netip.AddrPort, datagram []byte) {
	n := len(b.list)
	if n > 0 && b.list[n-1].takes(to, datagram) {
		return
	}
	var parts [][]byte
	if n < cap(b.list) {
		parts = b.list[:n+1][n].parts[:0] // of an earlier write
	}
	b.list = append(b.list, burst{to: to, each: len(datagram), count: 1, bytes: len(datagram), parts: append(parts, datagram)})
}

// write sends all, and returns how many datagrams the network did not take: those are lost, as datagrams are.
func (b *bursts) write(s *relaySocket) (lost int) {
	b.messages = b.messages[:0]
	for i := range b.list {
		one := &b.list[i]
		if one.count > 1 && !s.splits.Load() {
			b.messages = one.single(b.messages)
			continue
		}
		m := ipv4.Message{Buffers: one.parts, Addr: net.UDPAddrFromAddrPort(one.to)}
		if one.count > 1 {
			if one.each != b.each {
				b.control, b.each = splitControl(one.each), one.each
			}
			m.OOB = b.control
		}
		b.messages = append(b.messages, m)
	}
	lost = s.writeAll(b.messages)
	clear(b.messages)
	b.list = b.list[:0]
	return lost
}

// single appends a message for each datagram of the burst.
func (b *burst) single(to []ipv4.Message) []ipv4.Message {
	addr := net.UDPAddrFromAddrPort(b.to)
	for _, part := range b.parts {
		for len(part) > 0 {
			n := min(b.each, len(part))
			to = append(to, ipv4.Message{Buffers: [][]byte{part[:n:n]}, Addr: addr})
			part = part[n:]
		}
	}
	return to
}

// writeAll sends messages, and those one by one whose datagrams the kernel does not take together: where the device computes no
// checksums, or the datagrams have to be fragmented.
func (s *relaySocket) writeAll(messages []ipv4.Message) (lost int) {
	for len(messages) > 0 {
		n, err := s.WriteBatch(messages, 0)
		if err != nil {
			n = max(n, 0)
			failed := messages[n] // nobody is there, or it is too long
			if each := joinedSplit(failed.OOB); each > 0 && !errors.Is(err, net.ErrClosed) {
				if cannotSplit(err) {
					s.splits.Store(false)
				}
				again := burst{to: failed.Addr.(*net.UDPAddr).AddrPort(), each: each, parts: failed.Buffers}
				lost += s.writeAll(again.single(nil))
			} else {
				lost++
			}
			n++
		}
		messages = messages[min(n, len(messages)):]
	}
	return lost
}

// passing is what one socket's reads become.
type passing struct {
	relay *Relay
	at    int
	out   []bursts // by socket
}

// routeLocked says of each datagram of a read where it goes. They come out one for one, and as long as they were (S7).
func (p *passing) routeLocked(j arrived, now time.Time) {
	from := relayPlace{addr: j.from, conn: p.at}
	var to relayPlace
	var index uint32
	same := false // the datagram before was one of a session, and passed
	for i := range j.count {
		d := j.datagram(i)
		data := messageType(d) == typeData
		if same && data && binary.LittleEndian.Uint32(d[4:]) == index {
			p.relay.stats.passed.Add(1)
		} else {
			to = p.relay.routeLocked(from, d, now)
			if same = data && to.addr.IsValid(); same {
				index = binary.LittleEndian.Uint32(d[4:])
			}
		}
		if to.addr.IsValid() {
			p.relay.stats.bytes.Add(uint64(len(d)))
			p.out[to.conn].add(to.addr, d)
		}
	}
}

// write sends what routeLocked has collected.
func (p *passing) write() {
	for i := range p.out {
		if lost := p.out[i].write(p.relay.conns[i]); lost > 0 {
			p.relay.stats.dropped.Add(uint64(lost))
		}
	}
}

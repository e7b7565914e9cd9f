package tunnel

import (
	"bytes"
	"errors"
	"math/rand/v2"
	"net"
	"net/netip"
	"slices"
	"testing"
	"time"

	"golang.org/x/net/ipv4"
)

// udpSocket is one on an address of loopback, with room for all that a test sends.
func udpSocket(t *testing.T, address string) *net.UDPConn {
	t.Helper()
	c, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(netip.AddrPortFrom(netip.MustParseAddr(address), 0)))
	if err != nil {
		t.Skipf("no UDP at %s: %v", address, err)
	}
	growBuffers(c)
	t.Cleanup(func() { c.Close() })
	if err := c.SetReadDeadline(time.Now().Add(30 * time.Second)); err != nil {
		t.Fatal(err)
	}
	return c
}

func placeOfSocket(c *net.UDPConn) netip.AddrPort { return c.LocalAddr().(*net.UDPAddr).AddrPort() }

// someDatagrams are in runs of one size, as those of a stream are, with others between.
func someDatagrams(random *rand.Rand, count int) [][]byte {
	list := make([][]byte, 0, count)
	size := 1452
	for len(list) < count {
		switch random.IntN(12) {
		case 0:
			size = 1 + random.IntN(1452)
		case 1:
			size = 1452
		}
		d := make([]byte, size)
		for i := range d {
			d[i] = byte(random.Uint32())
		}
		list = append(list, d)
	}
	return list
}

// What is written in bursts comes out as the datagrams that went in, one for one, where the kernel takes bursts apart and
// where it does not.
func TestBurstsAreTheDatagramsTheyWereMadeOf(t *testing.T) {
	for _, address := range []string{"127.0.0.1", "::1"} {
		for _, splits := range []bool{true, false} {
			from := udpSocket(t, address)
			s := newRelaySocket(from)
			if !splits {
				s.splits.Store(false)
			}
			to := []*net.UDPConn{udpSocket(t, address), udpSocket(t, address)}
			random := rand.New(rand.NewPCG(1, 2))
			var out bursts
			for range 20 { // few enough a time for buffers that could not be made larger
				var want [2][][]byte
				for _, d := range someDatagrams(random, 70) {
					i := random.IntN(20) / 19
					want[i] = append(want[i], d)
					out.add(placeOfSocket(to[i]), d)
				}
				if lost := out.write(s); lost != 0 {
					t.Fatalf("%d datagrams were not taken", lost)
				}
				for i, list := range want {
					for k, d := range list {
						buf := make([]byte, joinedBytes)
						n, err := to[i].Read(buf)
						if err != nil || !bytes.Equal(buf[:n], d) {
							t.Fatalf("%s, split by the kernel %t: datagram %d has %d bytes, want %d; %v", address, splits, k, n, len(d), err)
						}
					}
				}
			}
		}
	}
}

// What the kernel has joined is cut into the datagrams that were sent.
func TestJoinedDatagramsAreCutWhereTheyWereJoined(t *testing.T) {
	in := newRelaySocket(udpSocket(t, "127.0.0.1"))
	sender := udpSocket(t, "127.0.0.1")
	s := newRelaySocket(sender)
	to := in.batchConn.(*ipv4.PacketConn).LocalAddr().(*net.UDPAddr).AddrPort()
	sent := someDatagrams(rand.New(rand.NewPCG(3, 4)), 100)
	var out bursts
	for _, d := range sent {
		out.add(to, d)
	}
	if lost := out.write(s); lost != 0 {
		t.Fatalf("%d datagrams were not taken", lost)
	}
	reads, messages := 0, in.input()
	for at := 0; at < len(sent); reads++ {
		n, err := in.ReadBatch(messages, 0)
		if err != nil {
			t.Fatal(err)
		}
		for i := range messages[:n] {
			j, ok := cut(&messages[i])
			if !ok || j.from != placeOfSocket(sender) {
				t.Fatalf("%+v, %t", j, ok)
			}
			for k := range j.count {
				if !bytes.Equal(j.datagram(k), sent[at]) {
					t.Fatalf("datagram %d has %d bytes, want %d", at, len(j.datagram(k)), len(sent[at]))
				}
				at++
			}
		}
	}
	t.Logf("%d datagrams in %d reads, joined: %t, split: %t", len(sent), reads, in.joins, s.splits.Load())
}

func TestWhatIsNothingOfWireGuardsIsNotCut(t *testing.T) {
	from := &net.UDPAddr{IP: net.IPv4(192, 0, 2, 1), Port: 5}
	for name, m := range map[string]ipv4.Message{
		"nothing":  {Buffers: [][]byte{{}}, Addr: from},
		"no UDP":   {Buffers: [][]byte{{1}}, N: 1, Addr: &net.IPAddr{}},
		"too long": {Buffers: [][]byte{make([]byte, relayDatagram)}, N: relayDatagram, Addr: from},
	} {
		if j, ok := cut(&m); ok {
			t.Errorf("%s: %+v", name, j)
		}
	}
}

// lacking is a socket whose kernel says that it can take bursts apart, and then refuses to.
type lacking struct {
	*net.UDPConn
	refused error
	written [][]byte
	bursts  int
}

func (l *lacking) ReadBatch([]ipv4.Message, int) (int, error) { return 0, net.ErrClosed }

func (l *lacking) WriteBatch(ms []ipv4.Message, _ int) (int, error) {
	for i, m := range ms {
		if len(m.OOB) > 0 {
			l.bursts++
			if i > 0 {
				return i, nil // as sendmmsg: the error comes with the next call
			}
			return 0, l.refused
		}
		l.written = append(l.written, slices.Concat(m.Buffers...))
	}
	return len(ms), nil
}

func TestABurstThatIsRefusedGoesOneByOne(t *testing.T) {
	if splitControl(100) == nil {
		t.Skip("this system takes no bursts")
	}
	to := netip.MustParseAddrPort("192.0.2.1:5")
	for name, refused := range map[string]error{"no checksums": errNoChecksums(), "a smaller MTU": errors.New("message too long")} {
		l := &lacking{refused: refused}
		s := &relaySocket{batchConn: l}
		s.splits.Store(true)
		var out bursts
		var want [][]byte
		for range 3 {
			for _, n := range []int{40, 40, 40, 30, 50} {
				d := make([]byte, n)
				d[0] = byte(len(want))
				want = append(want, d)
				out.add(to, d)
			}
		}
		if lost := out.write(s); lost != 0 || !slices.EqualFunc(l.written, want, bytes.Equal) {
			t.Errorf("%s: %d lost, %d written, want %d", name, lost, len(l.written), len(want))
		}
		if s.splits.Load() == cannotSplit(refused) {
			t.Errorf("%s: bursts are written from now on: %t", name, s.splits.Load())
		}
	}
}

// S7: of datagrams that came joined each one is judged by itself, and goes out once and as long as it was, or not at all.
func TestEachOfJoinedDatagramsIsJudged(t *testing.T) {
	g := newTableRig()
	g.session(t)
	g.want(t, "an initiation to the third", 1, wgMessage(typeInitiation, g.c, 12), 3)
	g.want(t, "its response", 3, wgMessage(typeResponse, g.a, 33, 12), 1)
	r, err := NewRelay(RelayConfig{Key: NewSecret()})
	if err != nil {
		t.Fatal(err)
	}
	r.table = g.relayTable
	data := func(index uint32) []byte { return wgMessage(typeData, Key{}, index) }
	broken := data(22)
	broken[1] = 1
	type part struct {
		datagram []byte
		to       int
	}
	parts := []part{
		{data(22), 2}, {data(22), 2}, {data(99), 0}, {data(22), 2}, {data(33), 3}, {broken, 0}, {data(22), 2},
		{data(11), 0}, {data(33), 3}, {data(33)[:48], 3},
	}
	var joined []byte
	for _, p := range parts {
		joined = append(joined, p.datagram...)
	}
	p := passing{relay: r, out: make([]bursts, 1)}
	p.routeLocked(arrived{from: placeOf(1).addr, data: joined, each: 64, count: len(parts)}, g.now)
	var got []ipv4.Message
	for i := range p.out[0].list {
		got = p.out[0].list[i].single(got)
	}
	for _, want := range parts {
		if want.to == 0 {
			continue
		}
		if len(got) == 0 || !bytes.Equal(got[0].Buffers[0], want.datagram) || got[0].Addr.(*net.UDPAddr).AddrPort() != placeOf(want.to).addr {
			t.Fatalf("%d are left, want one of %d bytes for %d", len(got), len(want.datagram), want.to)
		}
		got = got[1:]
	}
	if s := r.Stats(); len(got) != 0 || s.Passed != 7 || s.Dropped != 3 || s.BytesTotal != 6*64+48 {
		t.Errorf("%d more went out; %+v", len(got), s)
	}
}

// Whatever is in a read and its control message, the datagrams are all of it, in order.
func FuzzCut(f *testing.F) {
	f.Add(make([]byte, 3000), splitControl(1452))
	f.Add([]byte("x"), []byte{})
	f.Fuzz(func(t *testing.T, data, oob []byte) {
		oob = append([]byte(nil), oob...)
		m := ipv4.Message{Buffers: [][]byte{data}, N: len(data), OOB: oob, NN: len(oob), Addr: &net.UDPAddr{IP: net.IPv4(192, 0, 2, 1), Port: 5}}
		j, ok := cut(&m)
		if !ok {
			return
		}
		var all []byte
		for i := range j.count {
			d := j.datagram(i)
			if len(d) == 0 || len(d) > j.each || len(d) >= relayDatagram {
				t.Fatalf("datagram %d of %d has %d bytes, each %d", i, j.count, len(d), j.each)
			}
			all = append(all, d...)
		}
		if !bytes.Equal(all, data) {
			t.Errorf("%d bytes became %d", len(data), len(all))
		}
	})
}

package tunnel

import (
	"encoding/binary"
	"errors"
	"net"
	"net/netip"
	"testing"
	"time"

	"golang.zx2c4.com/wireguard/conn"
)

// intakeRig is a socket that was opened, and buffers as WireGuard gives them to its receiver.
type intakeRig struct {
	*socket
	receive conn.ReceiveFunc
	at      netip.AddrPort
	packets [][]byte
	sizes   []int
	eps     []conn.Endpoint
}

func newIntakeRig(t *testing.T, c Config) *intakeRig {
	t.Helper()
	r := &intakeRig{socket: newSocket(c)}
	fns, port, err := r.Open(0)
	if err != nil {
		t.Fatal(err)
	}
	if len(fns) != 1 {
		t.Fatalf("%d receivers, each of which has %d buffers of 64 KiB", len(fns), r.BatchSize())
	}
	t.Cleanup(func() { r.Close() })
	r.receive, r.at = fns[0], netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), port)
	r.packets, r.sizes, r.eps = make([][]byte, r.BatchSize()), make([]int, r.BatchSize()), make([]conn.Endpoint, r.BatchSize())
	r.renew(len(r.packets))
	return r
}

// renew gives the receiver other buffers instead of those that WireGuard has kept.
func (r *intakeRig) renew(n int) {
	for i := range n {
		r.packets[i] = make([]byte, maxSegment)
	}
}

// next is what the receiver hands on next.
func (r *intakeRig) next(t *testing.T) int {
	t.Helper()
	for {
		n, err := r.receive(r.packets, r.sizes, r.eps)
		if err != nil {
			t.Fatal(err)
		}
		if n > 0 {
			return n
		}
	}
}

// data is a message of a session, with a number.
func data(number, length int) []byte {
	b := make([]byte, length)
	b[0] = typeData
	binary.LittleEndian.PutUint32(b[8:], uint32(number))
	return b
}

func TestOneReceiverGetsWhatAllSocketsGet(t *testing.T) {
	r := newIntakeRig(t, Config{})
	const count = 300 // several times what is read, and handed on, at once
	for network, to := range map[string]string{"udp4": r.at.String(), "udp6": netip.AddrPortFrom(netip.IPv6Loopback(), r.at.Port()).String()} {
		from, err := net.Dial(network, to)
		if err != nil {
			t.Log("not over ", network, ": ", err)
			continue
		}
		go func() {
			defer from.Close()
			for i := range count {
				_, _ = from.Write(data(i, 100+i))
			}
		}()
		for i := 0; i < count; {
			n := r.next(t)
			for j := range n {
				got := r.packets[j][:r.sizes[j]]
				if number := int(binary.LittleEndian.Uint32(got[8:])); number != i || len(got) != 100+i {
					t.Fatalf("datagram %d is number %d, of %d bytes", i, number, len(got))
				}
				if at := addrPort(r.eps[j]); at != from.LocalAddr().(*net.UDPAddr).AddrPort() {
					t.Fatalf("datagram %d came from %s, want %s", i, at, from.LocalAddr())
				}
				i++
			}
			r.renew(n)
			r.in.done(n)
		}
	}
	large := data(7, 9000)
	if err := r.deliver(netip.MustParseAddrPort("192.0.2.1:9"), large); err != nil {
		t.Fatal(err)
	}
	if n := r.next(t); n != 1 || r.sizes[0] != len(large) || addrPort(r.eps[0]).String() != "192.0.2.1:9" {
		t.Errorf("%d of %d bytes from %v, want what was handed in", n, r.sizes[0], r.eps[0])
	}
	go func() { _ = r.Close() }()
	if _, err := r.receive(r.packets, r.sizes, r.eps); !errors.Is(err, net.ErrClosed) {
		t.Errorf("a socket that is closed says %v", err)
	}
}

func TestWhatTheHookTakesIsNotHandedOn(t *testing.T) {
	r := newIntakeRig(t, Config{Incoming: func(_ netip.AddrPort, d []byte) bool { return d[0] == 'x' }})
	from, err := net.Dial("udp4", r.at.String())
	if err != nil {
		t.Fatal(err)
	}
	defer from.Close()
	for _, d := range [][]byte{[]byte("x1"), []byte("x2"), data(3, 200), []byte("x4")} {
		if _, err := from.Write(d); err != nil {
			t.Fatal(err)
		}
	}
	if n := r.next(t); n != 1 || r.sizes[0] != 200 {
		t.Errorf("%d were handed on, the first of %d bytes", n, r.sizes[0])
	}
}

// TestOnlyWhatWireGuardKeepsIsCounted: a flood of datagrams that belong to no session must not close the gate for others.
func TestOnlyWhatWireGuardKeepsIsCounted(t *testing.T) {
	r := newIntakeRig(t, Config{})
	from := netip.MustParseAddrPort("192.0.2.1:9")
	send := func(d []byte, kept bool) {
		t.Helper()
		if err := r.deliver(from, d); err != nil {
			t.Fatal(err)
		}
		r.next(t)
		if kept {
			r.renew(1)
		}
	}
	start := time.Now()
	for range 50 * r.in.most {
		send(data(0, 200), false)
		send(data(0, dataLength), true) // a sign of life
	}
	if r.in.inside > 1 || time.Since(start) > time.Minute {
		t.Errorf("%d packets of no session are inside, after %s", r.in.inside, time.Since(start))
	}
	for range 3 {
		send(data(0, 200), true)
	}
	send(data(0, 200), false)
	send(data(0, dataLength), true)
	if r.in.inside != 3 {
		t.Errorf("%d packets are inside, want 3", r.in.inside)
	}
}

package tunnel

import (
	"net"
	"net/netip"
	"testing"
	"time"

	"golang.zx2c4.com/wireguard/conn"
)

// listenUDP is a socket that a test reads from.
func listenUDP(t *testing.T, network, address string) *net.UDPConn {
	t.Helper()
	pc, err := net.ListenPacket(network, address)
	if err != nil {
		t.Skip("no ", network, " here: ", err)
	}
	t.Cleanup(func() { pc.Close() })
	return pc.(*net.UDPConn)
}

func TestIPv6IsSentToTheRightPlaceBesideIPv4(t *testing.T) {
	four, six := listenUDP(t, "udp4", "127.0.0.1:0"), listenUDP(t, "udp6", "[::1]:0")
	s := newSocket(Config{})
	for range 2 { // opened again, it is as at first
		if _, _, err := s.Open(0); err != nil {
			t.Fatal(err)
		}
		elsewhere, err := s.ParseEndpoint("[ff01::2]:9") // a multicast address of this machine alone
		if err != nil {
			t.Fatal(err)
		}
		for i := range byte(20) {
			_ = s.Send([][]byte{{i}}, elsewhere) // what counts is that it was the last over IPv6
			for _, to := range []*net.UDPConn{four, six} {
				ep, err := s.ParseEndpoint(to.LocalAddr().String())
				if err != nil {
					t.Fatal(err)
				}
				if err := s.Send([][]byte{{i}}, ep); err != nil {
					t.Fatalf("sending to %s: %v", ep.DstToString(), err)
				}
				got := make([]byte, 8)
				if err := to.SetReadDeadline(time.Now().Add(30 * time.Second)); err != nil {
					t.Fatal(err)
				}
				if n, _, err := to.ReadFromUDPAddrPort(got); err != nil || n != 1 || got[0] != i {
					t.Fatalf("%s got %v, %v; want [%d]", ep.DstToString(), got[:n], err, i)
				}
			}
		}
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
		ep, err := s.ParseEndpoint(six.LocalAddr().String())
		if err != nil {
			t.Fatal(err)
		}
		if err := s.Send([][]byte{{0}}, ep); err == nil {
			t.Error("a socket that is closed sends over IPv6")
		}
	}
}

func TestTheSenderForIPv6IsNotThatForIPv4(t *testing.T) {
	s := newSocket(Config{})
	if _, _, err := s.Open(0); err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	four, six := &conn.StdNetEndpoint{AddrPort: netip.MustParseAddrPort("192.0.2.1:9")}, &conn.StdNetEndpoint{AddrPort: netip.MustParseAddrPort("[2001:db8::1]:9")}
	if s.sender(four) == s.sender(six) {
		t.Error("one sender for both families: addresses are cut")
	}
}

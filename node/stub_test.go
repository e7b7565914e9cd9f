package node

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"os"
	"strings"
	"testing"

	"github.com/miekg/dns"
)

// loopback is where tests listen, at a port of the kernel's choice.
func loopback() netip.Addr { return netip.AddrFrom4([4]byte{127, 0, 0, 1}) }

// heldPort is a port of loopback that this test holds for a network, and its address.
func heldPort(t *testing.T, network string) netip.AddrPort {
	t.Helper()
	if network == "udp" {
		conn, err := net.ListenPacket("udp", "127.0.0.1:0")
		must(t, err)
		t.Cleanup(func() { conn.Close() })
		return conn.LocalAddr().(*net.UDPAddr).AddrPort()
	}
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	t.Cleanup(func() { ln.Close() })
	return ln.Addr().(*net.TCPAddr).AddrPort()
}

// isFree reports whether addr can be bound for UDP and TCP.
func isFree(addr netip.AddrPort) bool {
	conn, err := net.ListenPacket("udp", addr.String())
	if err != nil {
		return false
	}
	defer conn.Close()
	ln, err := net.Listen("tcp", addr.String())
	if err != nil {
		return false
	}
	ln.Close()
	return true
}

func TestAddressIsBoundForBothNetworks(t *testing.T) {
	for _, n := range []int{1, 3} {
		s, err := listenDNS(t.Context(), netip.AddrPortFrom(loopback(), 0), n)
		must(t, err)
		if len(s.udp) != n || s.addr.Port() == 0 {
			t.Errorf("got %d UDP sockets at %s, want %d at a port", len(s.udp), s.addr, n)
		}
		for _, conn := range s.udp {
			if got := conn.LocalAddr().(*net.UDPAddr).AddrPort().Port(); got != s.addr.Port() {
				t.Errorf("a UDP socket has port %d, want %d", got, s.addr.Port())
			}
		}
		if got := s.tcp.Addr().(*net.TCPAddr).AddrPort().Port(); got != s.addr.Port() {
			t.Errorf("the TCP socket has port %d, want %d", got, s.addr.Port())
		}
		if isFree(s.addr) {
			t.Error("another program can bind it too")
		}
		s.close()
		if !isFree(s.addr) {
			t.Error("it is still bound after close")
		}
	}
}

func TestHeldAddressNamesItsHolderAndLeavesNothingBound(t *testing.T) {
	for _, network := range []string{"udp", "tcp"} {
		t.Run(network, func(t *testing.T) {
			addr := heldPort(t, network)
			s, err := listenDNS(t.Context(), addr, 2)
			var held *heldError
			if s != nil || !errors.As(err, &held) || held.addr != addr {
				t.Fatalf("got %v, want a heldError for %s", err, addr)
			}
			if !isAddrInUse(err) {
				t.Errorf("%v does not lead to its cause", err)
			}
			if hint := hintOf(err); !strings.Contains(hint, "127.0.0.1") {
				t.Errorf("hint: got %q, want one that names the address", hint)
			}
			// What the other network had bound by then is free again.
			if network == "tcp" {
				conn, err := net.ListenPacket("udp", addr.String())
				if err != nil {
					t.Fatalf("the UDP half stayed bound: %v", err)
				}
				conn.Close()
			} else {
				ln, err := net.Listen("tcp", addr.String())
				if err != nil {
					t.Fatalf("the TCP half stayed bound: %v", err)
				}
				ln.Close()
			}
		})
	}
}

func TestHeldErrorSaysWhatIsKnown(t *testing.T) {
	addr := netip.MustParseAddrPort("127.0.0.77:53")
	for holder, want := range map[string]string{
		"":                    "listening on 127.0.0.77:53: another program holds it",
		"dnsmasq (pid 12345)": "listening on 127.0.0.77:53: dnsmasq (pid 12345) holds it",
	} {
		if got := (&heldError{addr: addr, holder: holder, err: os.ErrExist}).Error(); got != want {
			t.Errorf("got %q, want %q", got, want)
		}
	}
}

func TestAddressThatIsNotOursIsNoHeldAddress(t *testing.T) {
	// TEST-NET-1: no machine has it (RFC 5737).
	_, err := listenDNS(t.Context(), netip.MustParseAddrPort("192.0.2.1:5353"), 1)
	var held *heldError
	if err == nil || errors.As(err, &held) || !strings.Contains(err.Error(), "192.0.2.1:5353") {
		t.Errorf("got %v, want an error with the address, and nobody blamed", err)
	}
}

func TestStubMovesToAHighPort(t *testing.T) {
	for _, network := range []string{"udp", "tcp"} {
		t.Run(network, func(t *testing.T) {
			want := heldPort(t, network)
			s, problem, err := listenStub(t.Context(), want, 1)
			must(t, err)
			defer s.close()
			var held *heldError
			if !errors.As(problem, &held) {
				t.Errorf("problem: got %v, want who holds %s", problem, want)
			}
			if s.addr.Addr() != want.Addr() || s.addr.Port() == want.Port() || s.addr.Port() < 1024 {
				t.Errorf("got %s, want a high port of %s", s.addr, want.Addr())
			}
		})
	}
}

func TestStubMovesOnWhereTheHighPortIsHeldToo(t *testing.T) {
	// An address of loopback's that no other test of this machine's uses.
	high := netip.AddrPortFrom(netip.MustParseAddr("127.65.43.21"), highPort)
	conn, err := net.ListenPacket("udp", high.String())
	if err != nil {
		t.Skipf("no other address of loopback can be bound here: %v", err)
	}
	defer conn.Close()
	s, problem, err := listenStub(t.Context(), high, 1)
	must(t, err)
	defer s.close()
	if problem == nil || s.addr.Port() == highPort || s.addr.Addr() != high.Addr() {
		t.Errorf("got %s for %v, want a port of the kernel's choice", s.addr, problem)
	}
}

func TestStubThatIsFreeHasNoProblem(t *testing.T) {
	s, problem, err := listenStub(t.Context(), netip.AddrPortFrom(loopback(), 0), 2)
	must(t, err)
	defer s.close()
	if problem != nil || s.addr.Addr() != loopback() {
		t.Errorf("got %s, %v", s.addr, problem)
	}
}

func TestStubOfAnAddressThatIsNotOursIsAnError(t *testing.T) {
	s, problem, err := listenStub(t.Context(), netip.MustParseAddrPort("192.0.2.1:53"), 1)
	if s != nil || problem != nil || err == nil || !strings.Contains(err.Error(), "192.0.2.1:53") {
		t.Errorf("got %v, %v, %v; want an error with the address that was wanted", s, problem, err)
	}
}

// soaOf is the answer of a zone's own server.
func soaOf(q *dns.Msg) *dns.Msg {
	m := new(dns.Msg).SetReply(q)
	m.Authoritative = true
	m.Answer = append(m.Answer, &dns.SOA{
		Hdr: dns.RR_Header{Name: q.Question[0].Name, Rrtype: dns.TypeSOA, Class: dns.ClassINET}, Ns: "ns.invalid.", Mbox: "root.invalid.",
	})
	return m
}

func TestSelfCheckKnowsItsOwnStub(t *testing.T) {
	tests := []struct {
		name  string
		spoil func(m *dns.Msg)
		on    string // the network on which it is so
		want  string // "": it passes
	}{
		{"our own", func(*dns.Msg) {}, "both", ""},
		{"a forwarder", func(m *dns.Msg) { m.Authoritative = false }, "udp", "/udp for foo.internal: it answered NOERROR"},
		{"a forwarder over TCP alone", func(m *dns.Msg) { m.Authoritative = false }, "tcp", "/tcp for foo.internal: it answered NOERROR"},
		{"one that refuses", func(m *dns.Msg) { m.Rcode = dns.RcodeRefused }, "udp", "it answered REFUSED"},
		{"one without the zone", func(m *dns.Msg) { m.Answer, m.Rcode = nil, dns.RcodeNameError }, "udp", "it answered NXDOMAIN"},
		{"one without an answer", func(m *dns.Msg) { m.Answer = nil }, "tcp", "not as the zone's server"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			addr := testServer(t, func(w dns.ResponseWriter, q *dns.Msg) {
				m := soaOf(q)
				if q.Question[0].Name != "foo.internal." || q.Question[0].Qtype != dns.TypeSOA {
					m.Rcode = dns.RcodeNotImplemented
				}
				if tt.on == w.RemoteAddr().Network() {
					tt.spoil(m)
				}
				_ = w.WriteMsg(m) // what does not arrive, the test sees
			})
			err := selfCheck(t.Context(), addr, "foo.internal")
			if (err == nil) != (tt.want == "") || err != nil && !strings.Contains(err.Error(), tt.want) {
				t.Errorf("got %v, want %q", err, tt.want)
			}
		})
	}
}

func TestSelfCheckNeedsTCPToo(t *testing.T) {
	conn, err := net.ListenPacket("udp", "127.0.0.1:0")
	must(t, err)
	started, ended := make(chan struct{}), make(chan struct{})
	server := &dns.Server{
		PacketConn:        conn,
		NotifyStartedFunc: func() { close(started) },
		Handler:           dns.HandlerFunc(func(w dns.ResponseWriter, q *dns.Msg) { _ = w.WriteMsg(soaOf(q)) }),
	}
	go func() {
		defer close(ended)
		_ = server.ActivateAndServe() // what it cannot serve, the test sees
	}()
	<-started
	defer func() {
		must(t, server.Shutdown())
		<-ended
	}()
	addr := conn.LocalAddr().(*net.UDPAddr).AddrPort()
	if err := selfCheck(t.Context(), addr, "foo.internal"); err == nil || !strings.Contains(err.Error(), addr.String()+"/tcp") {
		t.Errorf("got %v, want an error about TCP", err)
	}
}

func TestSelfCheckEndsWithItsCaller(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := selfCheck(ctx, heldPort(t, "udp"), "foo.internal"); err == nil {
		t.Error("got no error from a socket that nobody reads")
	}
}

func TestStubIsWantedWhereItMayBe(t *testing.T) {
	tests := []struct {
		name      string
		try, root bool
		stub      string
		want      string
	}{
		{"root", false, true, "127.0.0.77:53", "127.0.0.77:53"},
		{"a user", false, false, "127.0.0.77:53", "127.0.0.77:5335"},
		{"a first look as root", true, true, "127.0.0.77:53", "127.0.0.77:5335"},
		{"a user's own port", false, false, "127.0.0.1:1053", "127.0.0.1:1053"},
		{"IPv6", false, false, "[::1]:53", "[::1]:5335"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			n := &Node{opt: Options{Try: tt.try, Root: tt.root}}
			n.cfg.DNS.Stub = netip.MustParseAddrPort(tt.stub)
			if got := n.wantedStub(); got.String() != tt.want {
				t.Errorf("got %s, want %s", got, tt.want)
			}
		})
	}
}

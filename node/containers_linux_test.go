package node

import (
	"context"
	"net"
	"net/netip"
	"testing"
	"time"
)

// TestFilterTakesWhatComesByTheBridgeAndFromItsNetworkAlone has lo stand for the bridge: the kernel then runs the filter
// without anybody being root.
func TestFilterTakesWhatComesByTheBridgeAndFromItsNetworkAlone(t *testing.T) {
	lo, err := net.InterfaceByName("lo")
	must(t, err)
	network := func(name string, index int, prefixes ...string) containerNet {
		n := containerNet{name: name, index: index}
		for _, p := range prefixes {
			n.prefixes = append(n.prefixes, netip.MustParsePrefix(p))
		}
		return n
	}
	other := network("docker0", lo.Index+1000, "127.0.0.0/8")
	for name, row := range map[string]struct {
		nets []containerNet
		from string
		want bool
	}{
		"its network":              {[]containerNet{network("lo", lo.Index, "127.9.0.0/16")}, "127.9.1.2", true},
		"its second network":       {[]containerNet{other, network("lo", lo.Index, "127.8.0.0/16", "127.9.1.0/29")}, "127.9.1.2", true},
		"another network":          {[]containerNet{network("lo", lo.Index, "127.8.0.0/16", "127.9.1.8/29")}, "127.9.1.2", false},
		"a network of another one": {[]containerNet{other, network("lo", lo.Index, "127.8.0.0/16")}, "127.9.1.2", false},
		"no bridge":                {nil, "127.9.1.2", false},
	} {
		t.Run(name, func(t *testing.T) {
			filter, err := assemble(row.nets)
			must(t, err)
			s, err := listenWith(t.Context(), netip.MustParseAddrPort("127.0.0.99:0"), 1, func(fd int) error { return attach(fd, filter) })
			must(t, err)
			defer s.close()
			if got := heard(t, s.udp[0], row.from); got != row.want {
				t.Errorf("a datagram passes: %v", got)
			}
			if got := connects(t, s.tcp, row.from); got != row.want {
				t.Errorf("a connection comes to be: %v", got)
			}
		})
	}
}

// silence is how long something is waited for that is not to come.
const silence = 100 * time.Millisecond

// heard reports whether conn receives a datagram from an address.
func heard(t *testing.T, conn *net.UDPConn, from string) bool {
	t.Helper()
	client, err := net.DialUDP("udp4", &net.UDPAddr{IP: net.ParseIP(from)}, conn.LocalAddr().(*net.UDPAddr))
	must(t, err)
	defer client.Close()
	_, err = client.Write([]byte("x"))
	must(t, err)
	must(t, conn.SetReadDeadline(time.Now().Add(silence)))
	_, err = conn.Read(make([]byte, 1))
	return err == nil
}

// connects reports whether an address can connect to ln. That it is refused is an error: nobody is to learn that somebody
// is there.
func connects(t *testing.T, ln net.Listener, from string) bool {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), silence)
	defer cancel()
	dialer := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(from)}}
	conn, err := dialer.DialContext(ctx, "tcp4", ln.Addr().String())
	if err == nil {
		conn.Close()
		return true
	}
	if !isTimeout(err) {
		t.Errorf("the kernel answers a connection: %v", err)
	}
	return false
}

func TestServiceSocketsTellTheMachineFromContainers(t *testing.T) {
	s := listenTestService(t, nil)
	defer s.close()
	// What comes by lo is for the set that is bound to it, whatever the filter of the other one says.
	if !heard(t, s.own.udp[0], "127.9.1.2") || !connects(t, s.own.tcp, "127.9.1.2") {
		t.Error("the machine's own programs are not heard")
	}
	must(t, s.allow([]containerNet{{name: "docker0", index: 1000, prefixes: []netip.Prefix{netip.MustParsePrefix("172.17.0.0/16")}}}))
	if _, err := listenService(t.Context(), s.own.addr, 1, nil); err == nil {
		t.Error("an address in use is bound a second time, though its holder shares it")
	}
}

// listenTestService binds the sockets of a service address to a port that is free.
func listenTestService(t *testing.T, nets []containerNet) *serviceSockets {
	t.Helper()
	var err error
	for range portTries {
		var free *sockets
		free, err = listenDNS(t.Context(), netip.MustParseAddrPort("127.0.0.99:0"), 1)
		must(t, err)
		free.close()
		var s *serviceSockets
		if s, err = listenService(t.Context(), free.addr, 1, nets); err == nil {
			return s
		}
	}
	t.Fatal(err)
	return nil
}

func TestNewsOfLinksEndWithTheirContext(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	called := make(chan struct{}, 1)
	done := make(chan error, 1)
	go func() { done <- followLinks(ctx, func() { called <- struct{}{} }) }()
	<-called
	cancel()
	must(t, <-done)
}

func TestBridgesOfThisMachineCanBeListed(t *testing.T) {
	if _, err := machineBridges(); err != nil {
		t.Error(err)
	}
	if has, err := hasAddress(netip.MustParseAddr("127.0.0.1")); err != nil || !has {
		t.Errorf("127.0.0.1 is here: %v, %v", has, err)
	}
	if has, err := hasAddress(netip.MustParseAddr("192.0.2.254")); err != nil || has {
		t.Errorf("192.0.2.254 is here: %v, %v", has, err)
	}
}

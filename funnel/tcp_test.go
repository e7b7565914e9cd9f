package funnel

import (
	"bufio"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"net/netip"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/pires/go-proxyproto"
)

// turned gives back all that it got, once it has all.
func turned(c net.Conn) {
	all, err := io.ReadAll(c)
	if err != nil {
		return
	}
	_, _ = c.Write(append([]byte("got "), all...))
}

func TestBareConnections(t *testing.T) {
	w := newWorld(t)
	dir := t.TempDir()
	unix, err := net.Listen("unix", filepath.Join(dir, "socket"))
	if err != nil {
		t.Fatal(err)
	}
	served := make(chan struct{})
	go func() {
		defer close(served)
		for {
			c, err := unix.Accept()
			if err != nil {
				return
			}
			turned(c)
			c.Close()
		}
	}()
	t.Cleanup(func() { unix.Close(); <-served })
	to := listener(t, turned)
	w.set(Entry{Kind: "tcp", Port: 22, Target: to}, Entry{Kind: "tcp", Port: 23, Target: "unix:" + filepath.Join(dir, "socket")},
		Entry{Kind: "tls-terminated-tcp", Name: "a.example", Port: 443, Target: to}, Entry{Kind: "tcp", Port: 5432, Public: true, Target: to},
		Entry{Kind: "tls-terminated-tcp", Name: "public.example", Port: 443, Public: true, Target: to}, site("https", "b.example", 443, false, "text:b"))
	secure := func(addr, name string) func() (net.Conn, error) {
		return func() (net.Conn, error) {
			return w.handshake(addr, &tls.Config{ServerName: name, NextProtos: []string{"h2", "imap"}})
		}
	}
	bare := func(addr string) func() (net.Conn, error) {
		return func() (net.Conn, error) { return net.Dial("tcp", addr) }
	}
	for name, dial := range map[string]func() (net.Conn, error){
		"tcp":                        bare(w.tailnet(22)),
		"to a socket":                bare(w.tailnet(23)),
		"of TLS":                     secure(w.tailnet(443), "a.example"),
		"from the world":             bare(w.public("", 5432, "tcp")),
		"from the world, out of TLS": secure(w.public("public.example", 443, "tls-terminated-tcp"), "public.example"),
	} {
		t.Run(name, func(t *testing.T) {
			conn, err := dial()
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			if err := conn.SetDeadline(time.Now().Add(time.Minute)); err != nil {
				t.Fatal(err)
			}
			// The target answers at the end of what it gets: each side ends by itself.
			data := strings.Repeat("0123456789\x00\n", 100_000)
			if _, err := io.WriteString(conn, data); err != nil {
				t.Fatal(err)
			}
			if err := closeWrite(conn); err != nil {
				t.Fatal(err)
			}
			got, err := io.ReadAll(conn)
			if err != nil || string(got) != "got "+data {
				t.Errorf("%d bytes, %v", len(got), err)
			}
		})
	}
}

func TestWhoMayNotIsNotConnected(t *testing.T) {
	w := newWorld(t)
	connected := make(chan struct{}, 10)
	to := listener(t, func(net.Conn) { connected <- struct{}{} })
	deny := Access{Deny: []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8"), netip.MustParsePrefix("198.51.100.0/24")}}
	w.set(Entry{Kind: "tcp", Port: 22, Target: to, Access: deny}, Entry{Kind: "tcp", Port: 22, Public: true, Target: to, Access: deny},
		Entry{Kind: "tcp", Port: 24, Target: to, Access: Access{Nodes: []string{"other"}}}, Entry{Kind: "tcp", Port: 25, Target: to, Access: Access{Nodes: []string{"laptop"}}})
	for name, test := range map[string]struct {
		addr string
		in   bool
	}{
		"an address": {w.tailnet(22), false}, "an address of the world": {w.public("", 22, "tcp"), false},
		"another node": {w.tailnet(24), false}, "a node": {w.tailnet(25), true},
	} {
		conn, err := net.Dial("tcp", test.addr)
		if err != nil {
			t.Fatal(err)
		}
		_ = conn.SetDeadline(time.Now().Add(time.Minute))
		_, err = conn.Read(make([]byte, 1))
		conn.Close()
		var timeout net.Error
		if errors.As(err, &timeout) && timeout.Timeout() {
			t.Errorf("%s: the connection stays open", name)
		}
		select {
		case <-connected:
			if !test.in {
				t.Errorf("%s is connected", name)
			}
		default:
			if test.in {
				t.Errorf("%s is not connected", name)
			}
		}
	}
}

func TestATargetThatIsAwayResetsItsVisitors(t *testing.T) {
	w := newWorld(t)
	dead := listenTest(t)
	dead.Close()
	w.set(Entry{Kind: "tcp", Port: 22, Target: dead.Addr().String()})
	conn, err := net.Dial("tcp", w.tailnet(22))
	if err == nil { // it may be over before that
		defer conn.Close()
		_ = conn.SetDeadline(time.Now().Add(time.Minute))
		_, err = conn.Read(make([]byte, 1))
	}
	if !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("%v, which looks like an end", err)
	}
}

func TestBareTargetsAreToldWhoComes(t *testing.T) {
	w := newWorld(t)
	headers := make(chan string, 1)
	to := listener(t, func(c net.Conn) {
		r := bufio.NewReader(c)
		h, err := proxyproto.Read(r)
		if err != nil {
			headers <- err.Error()
			return
		}
		rest, _ := io.ReadAll(r)
		headers <- h.SourceAddr.String() + " " + string(rest)
	})
	for version := 1; version <= 2; version++ {
		w.set(Entry{Kind: "tcp", Port: 22, Public: true, Target: to, ProxyProtocol: version})
		conn, err := net.Dial("tcp", w.public("", 22, "tcp"))
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		// A header of the visitor's own is only bytes.
		if _, err := io.WriteString(conn, "PROXY TCP4 6.6.6.6 6.6.6.6 6 6\r\n"); err != nil {
			t.Fatal(err)
		}
		if err := closeWrite(conn); err != nil {
			t.Fatal(err)
		}
		if got := <-headers; got != visitorAddr.String()+" PROXY TCP4 6.6.6.6 6.6.6.6 6 6\r\n" {
			t.Errorf("version %d: %q", version, got)
		}
	}
}

func TestDatagrams(t *testing.T) {
	w := newWorld(t)
	pc, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	served := make(chan struct{})
	go func() {
		defer close(served)
		buf := make([]byte, maxDatagram)
		for {
			n, from, err := pc.ReadFrom(buf)
			if err != nil {
				return
			}
			_, _ = pc.WriteTo(append([]byte("got "), buf[:n]...), from)
		}
	}()
	t.Cleanup(func() { pc.Close(); <-served })
	w.set(Entry{Kind: "udp", Port: 53, Public: true, Target: pc.LocalAddr().String()})
	ln := listenTest(t)
	w.serve(&framedVisits{ln}, 0, true)
	conn, err := net.Dial("tcp", ln.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(time.Minute)); err != nil {
		t.Fatal(err)
	}
	d := &datagrams{Conn: conn}
	buf := make([]byte, maxDatagram)
	for _, text := range []string{"a", strings.Repeat("b", 1400), ""} {
		if _, err := d.Write([]byte(text)); err != nil {
			t.Fatal(err)
		}
		if n, err := d.Read(buf); err != nil || string(buf[:n]) != "got "+text {
			t.Errorf("%q, %v", buf[:n], err)
		}
	}
	w.set()
	if n, err := d.Read(buf); err == nil {
		t.Errorf("%d bytes of what is not served", n)
	}
}

// framedVisits are visits over UDP, as an ingress has them.
type framedVisits struct{ net.Listener }

func (v *framedVisits) Accept() (net.Conn, error) {
	conn, err := v.Listener.Accept()
	if err != nil {
		return nil, err
	}
	return &Visit{Conn: &datagrams{Conn: conn}, Visitor: visitorAddr, Port: 53, Kind: kindUDP}, nil
}

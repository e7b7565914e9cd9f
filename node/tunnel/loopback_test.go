package tunnel

import (
	"context"
	"errors"
	"io"
	"net"
	"net/netip"
	"testing"
	"time"
)

// machineServer is a program on 127.0.0.1 that answers each connection once the other side has ended its way.
func machineServer(t *testing.T, answer string) uint16 {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				if asked, err := io.ReadAll(c); err == nil {
					_, _ = io.WriteString(c, answer+string(asked))
				}
			}()
		}
	}()
	return l.Addr().(*net.TCPAddr).AddrPort().Port()
}

// ask sends text through a tunnel, ends its way, and reads the answer.
func ask(t *testing.T, from *testNode, to netip.AddrPort, patience time.Duration) (string, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	c, err := from.Dial(ctx, "tcp", to)
	if err != nil {
		return "", err
	}
	defer c.Close()
	if _, err := io.WriteString(c, "?"); err != nil {
		return "", err
	}
	if err := c.(halfCloser).CloseWrite(); err != nil {
		return "", err
	}
	data, err := io.ReadAll(c)
	return string(data), err
}

func TestConnectionsGoToTheMachine(t *testing.T) {
	port, kept := machineServer(t, "program"), machineServer(t, "kept")
	nas := startNode(t, 1, func(c *Config) { c.Loopback = func(p uint16) bool { return p != kept } })
	tv, web := startNode(t, 2, nil), startNode(t, 3, nil)
	introduce(t, nas, tv, web)
	for _, a := range []netip.Addr{nas.v4, nas.v6} {
		if got, err := ask(t, tv, netip.AddrPortFrom(a, port), 20*time.Second); err != nil || got != "program?" {
			t.Errorf("%s: %q, %v", a, got, err)
		}
	}
	if got, err := ask(t, nas, netip.AddrPortFrom(nas.v4, port), 20*time.Second); err != nil || got != "program?" {
		t.Errorf("from the node itself: %q, %v", got, err)
	}
	if got, err := ask(t, tv, netip.AddrPortFrom(nas.v4, kept), 20*time.Second); err == nil || errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("a port that is left out: %q, %v", got, err)
	}
	if got, err := ask(t, tv, netip.AddrPortFrom(nas.v4, 1), 20*time.Second); err == nil || errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("a port that nobody listens on: %q, %v", got, err)
	}
	if got, err := ask(t, nas, netip.AddrPortFrom(tv.v4, port), 20*time.Second); err == nil {
		t.Errorf("a node without this: %q", got)
	}
	// What this process listens on is its own.
	echo(t, nas.Tunnel, netip.AddrPortFrom(nas.v4, kept))
	if got, err := ask(t, tv, netip.AddrPortFrom(nas.v4, kept), 20*time.Second); err != nil || got != "?" {
		t.Errorf("a socket of this process: %q, %v", got, err)
	}
	if err := nas.SetPolicy([]Rule{{Source: netip.PrefixFrom(tv.v4, 32), Protocol: protoTCP, First: port, Last: port}}); err != nil {
		t.Fatal(err)
	}
	if got, err := ask(t, tv, netip.AddrPortFrom(nas.v4, port), 20*time.Second); err != nil || got != "program?" {
		t.Errorf("what policy allows: %q, %v", got, err)
	}
	if got, err := ask(t, web, netip.AddrPortFrom(nas.v4, port), time.Second); err == nil {
		t.Errorf("what policy forbids: %q", got)
	}
}

// A node that ends takes the connections that it passes on with it.
func TestPassedConnectionsEndWithTheTunnel(t *testing.T) {
	port := machineServer(t, "")
	nas := startNode(t, 1, func(c *Config) { c.Loopback = func(uint16) bool { return true } })
	tv := startNode(t, 2, nil)
	introduce(t, nas, tv)
	c, err := tv.Dial(t.Context(), "tcp", netip.AddrPortFrom(nas.v4, port))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	l := nas.Tunnel.carrier.network.(*netstack).loopback
	until(t, "the connection", func() bool { return len(l.slots) == 1 })
	if err := nas.Close(); err != nil {
		t.Fatal(err)
	}
	if len(l.slots) != 0 || l.enter() {
		t.Error("a connection outlives the tunnel")
	}
}

// Who waits for a connection that is closed here waits no longer.
func TestClosingEndsARead(t *testing.T) {
	nas, tv := startNode(t, 1, nil), startNode(t, 2, nil)
	introduce(t, nas, tv)
	echo(t, nas.Tunnel, netip.AddrPortFrom(nas.v4, 7))
	c, err := tv.Dial(t.Context(), "tcp", netip.AddrPortFrom(nas.v4, 7))
	if err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() {
		_, err := c.Read(make([]byte, 1))
		ended <- err
	}()
	if err := c.Close(); err != nil {
		t.Fatal(err)
	}
	if err := <-ended; !errors.Is(err, net.ErrClosed) {
		t.Errorf("the read ended with %v", err)
	}
}

package node

import (
	"context"
	"io"
	"net"
	"net/netip"
	"testing"
	"time"
)

// program answers each connection on 127.0.0.1 with a word and what it was told before the other side ended its way.
func program(t *testing.T, word string) uint16 {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ln.Close() })
	go func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				if asked, err := io.ReadAll(c); err == nil {
					_, _ = io.WriteString(c, word+string(asked))
				}
			}()
		}
	}()
	return ln.Addr().(*net.TCPAddr).AddrPort().Port()
}

// reach says something to a port of another node, and reads the answer.
func (n *testNode) reach(t *testing.T, name string, port uint16) (string, error) {
	t.Helper()
	m, _ := n.node.tailnet.current()
	to, _ := m.Node(name)
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	c, err := n.node.carrier.tunnel.Dial(ctx, "tcp", netip.AddrPortFrom(to.Addresses[0], port))
	if err != nil {
		return "", err
	}
	defer c.Close()
	return converse(c, "?")
}

// converse says text, ends its way, and reads the answer.
func converse(c net.Conn, text string) (string, error) {
	if _, err := io.WriteString(c, text); err != nil {
		return "", err
	}
	if err := c.(interface{ CloseWrite() error }).CloseWrite(); err != nil {
		return "", err
	}
	data, err := io.ReadAll(c)
	return string(data), err
}

// Without root a node's programs are reached at its tailnet address, and what is the node's own is not.
func TestProgramsOfAMachineAreReached(t *testing.T) {
	g := startGateway(t)
	nas, tv := g.invited(t, "nas"), g.invited(t, "tv")
	soon(t, "names", func() bool { return nas.knows(t, "tv") && tv.knows(t, "nas") })
	if got, err := tv.reach(t, "nas", program(t, "web")); err != nil || got != "web?" {
		t.Errorf("%q, %v", got, err)
	}
	stub := netip.MustParseAddrPort(nas.ready.DNS.Stub)
	if c, err := net.Dial("tcp", stub.String()); err != nil {
		t.Fatal(err)
	} else {
		c.Close()
	}
	if got, err := tv.reach(t, "nas", stub.Port()); err == nil {
		t.Errorf("the node's own resolver: %q", got)
	}
}

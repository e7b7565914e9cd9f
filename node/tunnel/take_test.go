package tunnel

import (
	"errors"
	"io"
	"net"
	"net/netip"
	"testing"
)

// Where nobody else can have the port it is listened on, by one at a time, and again at once although connections to it have just ended.
func TestUserspaceTakesAPort(t *testing.T) {
	a, b := startNode(t, 1, nil), startNode(t, 2, nil)
	if err := errors.Join(a.SetPeers([]Peer{b.peer()}), b.SetPeers([]Peer{a.peer()})); err != nil {
		t.Fatal(err)
	}
	on := netip.AddrPortFrom(a.v4, 443)
	for range 2 {
		ln, err := a.Take(t.Context(), "tcp", on)
		if err != nil {
			t.Fatal(err)
		}
		if second, err := a.Take(t.Context(), "tcp", on); err == nil {
			t.Error("the port is taken twice")
			_ = second.Close()
		}
		ended := make(chan struct{})
		go func() {
			defer close(ended)
			if c, err := ln.Accept(); err == nil {
				_, _ = c.Write([]byte("served"))
				_ = c.Close() // first, so that this side remembers it
			}
		}()
		if got := told(dial(t, b.Tunnel, on), nil); got != "served" {
			t.Error(got)
		}
		<-ended
		if err := ln.Close(); err != nil {
			t.Error(err)
		}
	}
}

// told is the word of whom a connection reaches.
func told(conn net.Conn, err error) string {
	if err != nil {
		return err.Error()
	}
	defer conn.Close()
	data, err := io.ReadAll(conn)
	if err != nil {
		return err.Error()
	}
	return string(data)
}

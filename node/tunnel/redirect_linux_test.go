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

// answer tells everybody who comes a word.
func answer(t *testing.T, l net.Listener, word string) {
	t.Helper()
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			_, _ = io.WriteString(c, word)
			_ = c.Close()
		}
	}()
	t.Cleanup(func() {
		_ = l.Close()
		<-ended
	})
}

// A web server on every address of the machine and what is served to the tailnet are both reached, at one port.
func TestTUNTakesAPortThatAnotherProgramHas(t *testing.T) {
	if isolated(t) {
		takePort(t, TUN)
	}
}

func TestKernelTakesAPortThatAnotherProgramHas(t *testing.T) {
	if isolated(t) && kernelHasWireGuard(t) {
		takePort(t, Kernel)
	}
}

func takePort(t *testing.T, mode Mode) {
	a := startNode(t, 1, func(c *Config) { c.Mode, c.StateDir = mode, t.TempDir() })
	b := startNode(t, 2, nil)
	if err := errors.Join(a.SetPeers([]Peer{b.peer()}), b.SetPeers([]Peer{a.peer()})); err != nil {
		t.Fatal(err)
	}
	for _, at := range []string{"0.0.0.0:443", "[::]:443"} {
		other, err := new(net.ListenConfig).Listen(t.Context(), map[bool]string{true: "tcp4", false: "tcp6"}[at[0] == '0'], at)
		if err != nil {
			t.Fatal(err)
		}
		answer(t, other, "web server")
	}
	for _, own := range []netip.Addr{a.v4, a.v6} {
		on := netip.AddrPortFrom(own, 443)
		ask := func(port uint16, patience time.Duration) string {
			ctx, cancel := context.WithTimeout(t.Context(), patience)
			defer cancel()
			return told(b.Dial(ctx, "tcp", netip.AddrPortFrom(own, port)))
		}
		if got := ask(443, 20*time.Second); got != "web server" {
			t.Fatalf("before: %s", got)
		}
		ln, err := a.Take(t.Context(), "tcp", on)
		if err != nil {
			t.Fatal(err)
		}
		answer(t, ln, "served")
		if got := ask(443, 20*time.Second); got != "served" || ln.Addr().String() != on.String() {
			t.Errorf("through the tunnel: %s, %s", got, ln.Addr())
		}
		if got := told(net.Dial("tcp", on.String())); got != "served" {
			t.Errorf("of the machine itself: %s", got)
		}
		for _, elsewhere := range []string{"127.0.0.1:443", "[::1]:443"} {
			if got := told(net.Dial("tcp", elsewhere)); got != "web server" {
				t.Errorf("at %s: %s", elsewhere, got)
			}
		}
		// A policy that has been set again leaves the redirect, and our own listener is not to be come by past it.
		if err := a.SetPolicy(nil); err != nil {
			t.Fatal(err)
		}
		if got := ask(443, 20*time.Second); got != "served" {
			t.Errorf("with a policy: %s", got)
		}
		private := ln.(*taken).Listener.Addr().(*net.TCPAddr).AddrPort().Port()
		if got := ask(private, time.Second); got == "served" {
			t.Error("the listener of our own is reached by its own port")
		}
		if err := ln.Close(); err != nil {
			t.Error(err)
		}
		if got := ask(443, 20*time.Second); got != "web server" {
			t.Errorf("afterwards: %s", got)
		}
	}
	late, err := a.Take(t.Context(), "tcp", netip.AddrPortFrom(a.v4, 443))
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(a.Close(), late.Close()); err != nil {
		t.Error(err)
	}
	if got := leftovers(t); len(got) > 0 {
		t.Errorf("left: %q", got)
	}
}

package node

import (
	"bytes"
	"context"
	"errors"
	"io"
	"strconv"
	"strings"
	"testing"
)

func TestAConnectionByWayOfTheDaemon(t *testing.T) {
	g := startGateway(t)
	nas, tv := g.invited(t, "nas"), g.invited(t, "tv")
	soon(t, "names", func() bool { return nas.knows(t, "tv") && tv.knows(t, "nas") })
	port := strconv.Itoa(int(program(t, "web")))
	big := strings.Repeat("all of it", 100_000)
	var out bytes.Buffer
	if err := tv.Connect(t.Context(), "nas", port, strings.NewReader(big), &out); err != nil || out.String() != "web"+big {
		t.Errorf("%d bytes, %v", out.Len(), err)
	}
	for name, tt := range map[string]struct {
		node, port string
		want       error
	}{
		"an unknown node":      {"who", port, ErrNotFound},
		"outside the tailnet":  {"8.8.8.8", port, ErrBadRequest},
		"loopback":             {"127.0.0.1", port, ErrBadRequest},
		"no port":              {"nas", "ssh", ErrBadRequest},
		"port 0":               {"nas", "0", ErrBadRequest},
		"nobody listens there": {"nas", "1", nil},
	} {
		err := tv.Connect(t.Context(), tt.node, tt.port, strings.NewReader(""), io.Discard)
		if err == nil || tt.want != nil && !errors.Is(err, tt.want) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if err := (Client{Socket: tv.paths.Socket + "x"}).Connect(t.Context(), "nas", port, strings.NewReader(""), io.Discard); !errors.Is(err, ErrNoDaemon) {
		t.Errorf("no daemon: %v", err)
	}
	// Many that stay open leave the control socket to others.
	ctx, cancel := context.WithCancel(t.Context())
	hold, never := io.Pipe()
	defer never.Close()
	ended := make(chan error, maxControlConns+1)
	open := func() int {
		tv.node.connections.mu.Lock()
		defer tv.node.connections.mu.Unlock()
		return tv.node.connections.open
	}
	for i := range maxControlConns + 1 {
		go func() { ended <- tv.Connect(ctx, "nas", port, hold, io.Discard) }()
		soon(t, "a connection", func() bool { return open() == i+1 && len(tv.node.control.ln.(*boundedListener).slots) == 0 })
	}
	if _, err := tv.Status(t.Context()); err != nil {
		t.Error(err)
	}
	cancel()
	for range maxControlConns + 1 {
		if err := <-ended; !errors.Is(err, context.Canceled) {
			t.Errorf("ended with %v", err)
		}
	}
	soon(t, "the end of the connections", func() bool { return open() == 0 })
	_ = hold.Close()
}

// Connections end with the node.
func TestConnectionsEndWithTheDaemon(t *testing.T) {
	g := startGateway(t)
	nas, tv := g.invited(t, "nas"), g.invited(t, "tv")
	soon(t, "names", func() bool { return nas.knows(t, "tv") && tv.knows(t, "nas") })
	hold, never := io.Pipe()
	defer never.Close()
	defer hold.Close()
	ended := make(chan error, 1)
	port := strconv.Itoa(int(program(t, "web")))
	go func() { ended <- tv.Connect(t.Context(), "nas", port, hold, io.Discard) }()
	soon(t, "the connection", func() bool {
		tv.node.connections.mu.Lock()
		defer tv.node.connections.mu.Unlock()
		return tv.node.connections.open == 1
	})
	if err := tv.end(); err != nil {
		t.Fatal(err)
	}
	<-ended
}

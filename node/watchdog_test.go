package node

import (
	"context"
	"log/slog"
	"net"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/miekg/dns"
)

func TestWatchdogTimeIsRead(t *testing.T) {
	tests := []struct {
		usec string
		want time.Duration
		ok   bool
	}{
		{"", 0, true},
		{"30000000", 30 * time.Second, true},
		{"1", time.Microsecond, true},
		{"9223372036854775", 9223372036854775 * time.Microsecond, true},
		{"9223372036854776", 0, false}, // more than a time.Duration holds
		{"9223372036854775807", 0, false},
		{"18446744073709551615", 0, false},
		{"0", 0, false},
		{"-5", 0, false},
		{"30s", 0, false},
		{" 1", 0, false},
		{"infinity", 0, false},
	}
	for _, tt := range tests {
		t.Run(tt.usec, func(t *testing.T) {
			got, err := watchdogTime(tt.usec)
			if got != tt.want || (err == nil) != tt.ok {
				t.Errorf("got %s, %v; want %s, ok %t", got, err, tt.want, tt.ok)
			}
			if err != nil && !strings.Contains(err.Error(), "WATCHDOG_USEC") {
				t.Errorf("got %v, want the variable's name", err)
			}
		})
	}
}

func TestWatchdogRunsWhereItIsWaitedFor(t *testing.T) {
	for name, opt := range map[string]Options{
		"nobody waits":       {},
		"no socket to tell":  {Watchdog: "1000000"},
		"no time":            {Notify: "/run/systemd/notify"},
		"a time of no sense": {Notify: "/run/systemd/notify", Watchdog: "soon"},
	} {
		t.Run(name, func(t *testing.T) {
			checkGoroutines(t)
			n := &Node{opt: opt, services: newGroup()}
			if err := n.startWatchdog(t.Context()); (err != nil) != (opt.Watchdog == "soon") {
				t.Errorf("got %v", err)
			}
			must(t, n.services.stop(t.Context()))
		})
	}
}

func TestShortestWatchdogDoesNotEndTheNode(t *testing.T) {
	checkGoroutines(t)
	n, err := New(testConfig(), Options{Paths: testPaths(t), Notify: filepath.Join(t.TempDir(), "none"), Watchdog: "1"})
	must(t, err)
	must(t, n.prepareIdle())
	n.services, n.stub = newGroup(), heldPort(t, "udp")
	must(t, n.startWatchdog(t.Context()))
	must(t, n.services.stop(t.Context()))
	select {
	case err := <-n.services.failed:
		t.Errorf("it failed: %v", err)
	default:
	}
}

func TestWatchdogIsSilentWhileTheStubIs(t *testing.T) {
	path := filepath.Join(t.TempDir(), "notify")
	conn, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	must(t, err)
	defer conn.Close()
	asked, ill := make(chan struct{}, 1), make(chan bool, 1)
	ill <- true
	stub := testServer(t, func(w dns.ResponseWriter, q *dns.Msg) {
		m := soaOf(q)
		isIll := <-ill
		ill <- isIll
		if isIll {
			m.Rcode = dns.RcodeServerFailure
		}
		_ = w.WriteMsg(m) // what does not arrive, the test sees
		select {
		case asked <- struct{}{}:
		default:
		}
	})
	n, err := New(testConfig(), Options{Paths: testPaths(t), Notify: path, Logger: slog.New(slog.DiscardHandler)})
	must(t, err)
	must(t, n.prepareIdle())
	n.stub = stub
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		n.feedWatchdog(ctx, time.Millisecond)
	}()
	for range 3 {
		<-asked
	}
	must(t, conn.SetReadDeadline(time.Now().Add(time.Millisecond)))
	if read, err := conn.Read(make([]byte, 64)); err == nil {
		t.Errorf("told %d bytes though the stub does not answer", read)
	}
	<-ill
	ill <- false
	must(t, conn.SetReadDeadline(time.Now().Add(10*time.Second)))
	buf := make([]byte, 64)
	if read, err := conn.Read(buf); err != nil || string(buf[:read]) != "WATCHDOG=1" {
		t.Errorf("got %q, %v; want WATCHDOG=1 once it answers", buf[:read], err)
	}
	cancel()
	<-ended
}

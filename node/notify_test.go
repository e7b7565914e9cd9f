package node

import (
	"net"
	"path/filepath"
	"testing"
	"time"
)

func TestServiceManagerIsTold(t *testing.T) {
	path := filepath.Join(t.TempDir(), "notify")
	conn, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	n := startNodeWith(t, testConfig(), Options{Paths: testPaths(t), Notify: path})
	if err := n.end(); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"READY=1", "STOPPING=1"} {
		buf := make([]byte, 64)
		read, err := conn.Read(buf)
		if got := string(buf[:read]); err != nil || got != want {
			t.Errorf("got %q, %v; want %q", got, err, want)
		}
	}
}

func TestNobodyIsToldWhereNobodyWaits(t *testing.T) {
	if err := notify("", "READY=1"); err != nil {
		t.Errorf("without a socket: %v", err)
	}
	if err := notify(filepath.Join(t.TempDir(), "none"), "READY=1"); err == nil {
		t.Error("with a socket that is not there: no error")
	}
}

func TestWatchdogIsToldWhileTheStubAnswers(t *testing.T) {
	path := filepath.Join(t.TempDir(), "notify")
	conn, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	n := startNodeWith(t, testConfig(), Options{Paths: testPaths(t), Notify: path, Watchdog: "300000"})
	if err := conn.SetReadDeadline(time.Now().Add(10 * time.Second)); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"READY=1", "WATCHDOG=1", "WATCHDOG=1"} {
		buf := make([]byte, 64)
		read, err := conn.Read(buf)
		if got := string(buf[:read]); err != nil || got != want {
			t.Errorf("got %q, %v; want %q", got, err, want)
		}
	}
	if err := n.end(); err != nil {
		t.Fatal(err)
	}
}

//go:build unix

package funnel

import (
	"net"
	"path/filepath"
	"syscall"
	"testing"
)

// Opening a pipe waits for whoever writes into it, and a device may have no end.
func TestOnlyFilesAreShown(t *testing.T) {
	w := newWorld(t)
	dir := tree(t, map[string]string{"device": "->/dev/zero"})
	if err := syscall.Mkfifo(filepath.Join(dir, "pipe"), 0o644); err != nil {
		t.Fatal(err)
	}
	ln, err := net.Listen("unix", filepath.Join(dir, "socket"))
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	for path, target := range map[string]string{"/pipe": dir, "/device": dir, "/socket": dir, "/": filepath.Join(dir, "pipe"), "/x": "/dev/zero"} {
		e := site("http", "a.example", 80, false, target)
		if path == "/x" {
			e.Mounts[0].Path = "/x"
		}
		w.set(e)
		if got := w.get(w.client(w.tailnet(80), http1), "http://a.example"+path); got.status != 404 {
			t.Errorf("%s of %s: %d", path, target, got.status)
		}
	}
}

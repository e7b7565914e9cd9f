package node

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"
)

// testControl serves endpoints on a socket of its own until the test ends, and returns the socket's path.
func testControl(t *testing.T, c *localAPI) string {
	t.Helper()
	checkGoroutines(t)
	dir, err := os.MkdirTemp("", "meshdns")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	path := filepath.Join(dir, "run", "meshdns.sock")
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	ln, err := listenControl(path)
	if err != nil {
		t.Fatal(err)
	}
	c.log = slog.New(slog.DiscardHandler)
	c.open(ln)
	served := make(chan error, 1)
	go func() { served <- c.serve() }()
	t.Cleanup(func() {
		c.refuse()
		c.drain(context.Background())
		if err := <-served; err != nil {
			t.Errorf("serve: %v", err)
		}
	})
	return path
}

// testEndpoints are a harmless call, a change and a change with a body.
func testEndpoints() []endpoint {
	ok := func(*http.Request, caller) (any, error) { return struct{}{}, nil }
	return []endpoint{
		{pattern: "GET " + pathStatus, serve: ok},
		{pattern: "POST " + pathDown, operator: true, serve: ok},
		{pattern: "POST " + pathFlush, operator: true, serve: func(r *http.Request, _ caller) (any, error) {
			var in flushRequest
			return flushReply{Name: in.Name}, decode(r, &in)
		}},
	}
}

// counted are the tests that checkGoroutines looks after already. The goroutines of a test's first node are no leak of its
// second one, which ends before it.
var counted sync.Map

// checkGoroutines fails the test if at its very end there are more goroutines than at the first call.
func checkGoroutines(t *testing.T) {
	t.Helper()
	if _, again := counted.LoadOrStore(t.Name(), true); again {
		return
	}
	t.Cleanup(func() { counted.Delete(t.Name()) })
	before := runtime.NumGoroutine()
	t.Cleanup(func() {
		if !eventually(t, func() bool { return runtime.NumGoroutine() <= before }) {
			stacks := make([]byte, 1<<20)
			t.Errorf("%d goroutines are left of the test, %d were there before:\n%s", runtime.NumGoroutine(), before,
				stacks[:runtime.Stack(stacks, true)])
		}
	})
}

// eventually waits for something that happens elsewhere, and reports whether it did in time.
func eventually(t *testing.T, happened func() bool) bool {
	t.Helper()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	timeout := time.After(10 * time.Second)
	for !happened() {
		select {
		case <-tick.C:
		case <-timeout:
			return false
		}
	}
	return true
}

// rawRequest sends text to the socket and returns the status line of what comes back.
func rawRequest(t *testing.T, socket, text string) string {
	t.Helper()
	conn, err := net.Dial("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(10 * time.Second)); err != nil {
		t.Fatal(err)
	}
	// The server may answer and close before it has read all; only the answer counts.
	_, _ = io.WriteString(conn, text)
	reply, _ := io.ReadAll(conn)
	line, _, _ := strings.Cut(string(reply), "\r\n")
	return line
}

func TestSocketIsForEverybodyToConnectTo(t *testing.T) {
	path := testControl(t, &localAPI{endpoints: testEndpoints()})
	for _, tt := range []struct {
		path string
		want os.FileMode
	}{{path, 0o666}, {filepath.Dir(path), 0o755}} {
		info, err := os.Stat(tt.path)
		if err != nil {
			t.Fatal(err)
		}
		if got := info.Mode().Perm(); got != tt.want {
			t.Errorf("mode of %s: got %o, want %o", tt.path, got, tt.want)
		}
	}
}

func TestControlRefusesWhatNoClientOfOursSends(t *testing.T) {
	path := testControl(t, &localAPI{endpoints: testEndpoints()})
	const get = "GET /v1/status HTTP/1.1\r\nConnection: close\r\n"
	const post = "POST /v1/dns/flush HTTP/1.1\r\nHost: meshdns\r\nConnection: close\r\n"
	body := func(s string) string { return fmt.Sprintf("%sContent-Length: %d\r\n\r\n%s", post, len(s), s) }
	tests := []struct{ name, request, want string }{
		{"our own client", get + "Host: meshdns\r\n\r\n", "HTTP/1.1 200 OK"},
		{"a web page's Origin", get + "Host: meshdns\r\nOrigin: https://example.com\r\n\r\n", "HTTP/1.1 403 Forbidden"},
		{"a null Origin", get + "Host: meshdns\r\nOrigin: null\r\n\r\n", "HTTP/1.1 403 Forbidden"},
		{"another host", get + "Host: localhost\r\n\r\n", "HTTP/1.1 400 Bad Request"},
		{"no host", get + "\r\n", "HTTP/1.1 400 Bad Request: missing required Host header"},
		{"a long header", get + "Host: meshdns\r\nX: " + strings.Repeat("x", 2*maxControlHeader) + "\r\n\r\n",
			"HTTP/1.1 431 Request Header Fields Too Large"},
		{"an unknown call", "GET /v1/nothing HTTP/1.1\r\nHost: meshdns\r\nConnection: close\r\n\r\n", "HTTP/1.1 404 Not Found"},
		{"a change asked for as a read", "GET /v1/down HTTP/1.1\r\nHost: meshdns\r\nConnection: close\r\n\r\n",
			"HTTP/1.1 404 Not Found"},
		{"a good body", body(`{"name":"nas"}`), "HTTP/1.1 200 OK"},
		{"an unknown field", body(`{"nmae":"nas"}`), "HTTP/1.1 400 Bad Request"},
		{"two values", body(`{"name":"nas"}{}`), "HTTP/1.1 400 Bad Request"},
		{"no body", body(""), "HTTP/1.1 400 Bad Request"},
		{"a long body", body(`{"name":"` + strings.Repeat("x", 2*maxControlBody) + `"}`), "HTTP/1.1 400 Bad Request"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if got := rawRequest(t, path, tt.request); got != tt.want {
				t.Errorf("got %q, want %q", got, tt.want)
			}
		})
	}
}

func TestControlShedsConnectionsAboveItsBound(t *testing.T) {
	c := &localAPI{endpoints: testEndpoints(), maxConns: 2}
	path := testControl(t, c)
	var open []net.Conn
	for range 2 {
		conn, err := net.Dial("unix", path)
		if err != nil {
			t.Fatal(err)
		}
		open = append(open, conn)
	}
	third, err := net.Dial("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	defer third.Close()
	if _, err := third.Read(make([]byte, 1)); !errors.Is(err, io.EOF) {
		t.Errorf("reading the third connection: got %v, want EOF", err)
	}
	if got := c.shed.Load(); got != 1 {
		t.Errorf("shed: got %d, want 1", got)
	}
	for _, conn := range open {
		conn.Close()
	}
	client := Client{Socket: path}
	if !eventually(t, func() bool { _, err := client.Status(t.Context()); return err == nil }) {
		t.Error("no request passes after the others have gone")
	}
}

func TestSocketOfADeadProcessIsReplaced(t *testing.T) {
	path := filepath.Join(t.TempDir(), "meshdns.sock")
	ln, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	ln.SetUnlinkOnClose(false) // as kill -9 leaves it
	ln.Close()
	again, err := listenControl(path)
	if err != nil {
		t.Fatalf("listenControl: %v", err)
	}
	again.Close()
}

func TestSocketThatAnswersIsLeftAlone(t *testing.T) {
	path := testControl(t, &localAPI{endpoints: testEndpoints()})
	if _, err := listenControl(path); !errors.Is(err, errRunning) {
		t.Errorf("listenControl: got %v, want errRunning", err)
	}
	if _, err := (Client{Socket: path}).Status(t.Context()); err != nil {
		t.Errorf("the first one does not answer any more: %v", err)
	}
}

func TestWhatIsNoSocketIsLeftAlone(t *testing.T) {
	path := filepath.Join(t.TempDir(), "meshdns.sock")
	if err := os.WriteFile(path, []byte("mine"), 0o600); err != nil {
		t.Fatal(err)
	}
	_, err := listenControl(path)
	if err == nil || hintOf(err) == "" {
		t.Errorf("listenControl: got %v, want an error with a hint", err)
	}
	if got, _ := os.ReadFile(path); string(got) != "mine" {
		t.Errorf("the file holds %q, want %q", got, "mine")
	}
}

func TestClientErrorsKeepTheirKind(t *testing.T) {
	fail := func(err error) endpoint {
		return endpoint{pattern: "GET " + pathStatus, serve: func(*http.Request, caller) (any, error) { return nil, err }}
	}
	tests := []struct {
		name string
		err  error
		want error
	}{
		{"not found", fmt.Errorf("looking: %w", ErrNotFound), ErrNotFound},
		{"a deadline", fmt.Errorf("asking: %w", context.DeadlineExceeded), ErrTimeout},
		{"a bad request", ErrBadRequest, ErrBadRequest},
		{"not permitted", ErrNotPermitted, ErrNotPermitted},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			path := testControl(t, &localAPI{endpoints: []endpoint{fail(hinted(nil, tt.err, "do something"))}})
			_, err := Client{Socket: path}.Status(t.Context())
			if !errors.Is(err, tt.want) || hintOf(err) != "do something" || err.Error() != tt.err.Error() {
				t.Errorf("got %v (hint %q), want %v with its hint", err, hintOf(err), tt.err)
			}
		})
	}
}

func TestClientSaysThatNoDaemonRuns(t *testing.T) {
	dir := t.TempDir()
	dead := filepath.Join(dir, "dead.sock")
	ln, err := net.ListenUnix("unix", &net.UnixAddr{Name: dead, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	ln.SetUnlinkOnClose(false)
	ln.Close()
	for name, path := range map[string]string{"no socket": filepath.Join(dir, "none.sock"), "a dead socket": dead} {
		t.Run(name, func(t *testing.T) {
			_, err := Client{Socket: path}.Status(t.Context())
			if !errors.Is(err, ErrNoDaemon) || hintOf(err) != "start it with: meshdns up" {
				t.Errorf("got %v (hint %q), want ErrNoDaemon", err, hintOf(err))
			}
		})
	}
}

package node

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"testing/iotest"
	"time"
)

// fakeDaemon answers each connection to a socket of its own with handle until the test ends.
func fakeDaemon(t *testing.T, handle http.HandlerFunc) Client {
	t.Helper()
	checkGoroutines(t)
	path := filepath.Join(t.TempDir(), "s")
	ln, err := net.Listen("unix", path)
	must(t, err)
	server := &http.Server{Handler: handle, ReadHeaderTimeout: time.Minute}
	served := make(chan struct{})
	go func() {
		defer close(served)
		_ = server.Serve(ln) // always an error, by Close
	}()
	t.Cleanup(func() {
		server.Close()
		<-served
	})
	return Client{Socket: path}
}

func TestClientAsksAsTheControlSocketWantsIt(t *testing.T) {
	var method, path, host, body string
	c := fakeDaemon(t, func(w http.ResponseWriter, r *http.Request) {
		data, _ := io.ReadAll(r.Body)
		method, path, host, body = r.Method, r.URL.String(), r.Host, string(data)
		_, _ = io.WriteString(w, "{}")
	})
	one := func(_ any, err error) error { return err }
	ctx := t.Context()
	tests := []struct {
		name               string
		call               func() error
		method, path, body string
	}{
		{"status", func() error { return one(c.Status(ctx)) }, "GET", "/v1/status", ""},
		{"DNS status", func() error { return one(c.DNSStatus(ctx)) }, "GET", "/v1/dns/status", ""},
		{"a query", func() error { return one(c.Query(ctx, "a b&c", "AAAA")) }, "GET", "/v1/dns/query?name=a+b%26c&type=AAAA", ""},
		{"an explanation", func() error { return one(c.Explain(ctx, "nas", "")) }, "GET", "/v1/dns/explain?name=nas&type=", ""},
		{"a flush", func() error { return one(c.Flush(ctx, `a"b`)) }, "POST", "/v1/dns/flush", `{"name":"a\"b"}`},
		{"a flush of all", func() error { return one(c.Flush(ctx, "")) }, "POST", "/v1/dns/flush", `{"name":""}`},
		{"a plan", func() error { return one(c.Plan(ctx)) }, "GET", "/v1/dns/plan", ""},
		{"apply", func() error { return one(c.Apply(ctx, 0)) }, "POST", "/v1/dns/apply", `{"confirm_seconds":0}`},
		{"apply for a time", func() error { return one(c.Apply(ctx, 90*time.Second)) }, "POST", "/v1/dns/apply", `{"confirm_seconds":90}`},
		{"confirm", func() error { return one(c.Confirm(ctx)) }, "POST", "/v1/dns/confirm", "{}"},
		{"restore", func() error { return one(c.Restore(ctx)) }, "POST", "/v1/dns/restore", "{}"},
		{"down", func() error { return c.Down(ctx) }, "POST", "/v1/down", "{}"},
		{"the configuration", func() error { return one(c.Config(ctx)) }, "GET", "/v1/config", ""},
		{"metrics", func() error { return one(c.Metrics(ctx)) }, "GET", "/v1/metrics", ""},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			must(t, tt.call())
			if method != tt.method || path != tt.path || body != tt.body || host != controlHost {
				t.Errorf("got %s %s %q of host %q, want %s %s %q of %q", method, path, body, host, tt.method, tt.path, tt.body, controlHost)
			}
		})
	}
}

func TestClientReadsWhatTheDaemonSays(t *testing.T) {
	c := fakeDaemon(t, func(w http.ResponseWriter, r *http.Request) {
		answers := map[string]string{
			pathFlush:   `{"schema":"meshdns.dns.flush/v1","name":"a.example.","dropped":3}`,
			pathConfig:  `{"schema":"meshdns.config/v1","yaml":"node: nas\n"}`,
			pathMetrics: "meshdns_info 1\n",
			pathApply:   `{"state":"pending","until":"2026-01-02T03:04:05Z","a field of later versions":1}`,
		}
		_, _ = io.WriteString(w, answers[r.URL.Path])
	})
	if got, err := c.Flush(t.Context(), "a.example"); err != nil || got != 3 {
		t.Errorf("flush: got %d, %v; want 3", got, err)
	}
	if got, err := c.Config(t.Context()); err != nil || got != "node: nas\n" {
		t.Errorf("config: got %q, %v", got, err)
	}
	if got, err := c.Metrics(t.Context()); err != nil || string(got) != "meshdns_info 1\n" {
		t.Errorf("metrics: got %q, %v", got, err)
	}
	if got, err := c.Apply(t.Context(), 0); err != nil || got.State != takeoverPending || got.Until == nil || got.Until.Second() != 5 {
		t.Errorf("apply: got %+v, %v", got, err)
	}
}

func TestClientTellsErrorsApart(t *testing.T) {
	tests := []struct {
		name       string
		status     int
		body       string
		kind       error
		text, hint string
	}{
		{"not permitted", 403, `{"kind":"not_permitted","error":"only root","hint":"use sudo"}`, ErrNotPermitted, "only root", "use sudo"},
		{"not found", 404, `{"kind":"not_found","error":"nothing"}`, ErrNotFound, "nothing", ""},
		{"a timeout", 504, `{"kind":"timeout","error":"slow"}`, ErrTimeout, "slow", ""},
		{"a bad request", 400, `{"kind":"bad_request","error":"what?"}`, ErrBadRequest, "what?", ""},
		{"any other", 500, `{"kind":"failed","error":"it broke","hint":"mend it"}`, nil, "it broke", "mend it"},
		{"a kind of a later version", 500, `{"kind":"tired","error":"not now"}`, nil, "not now", ""},
		{"no JSON", 502, "<html>Bad Gateway</html>", nil, "asking the daemon: it answered 502 Bad Gateway", ""},
		{"no words", 500, `{"kind":"not_found"}`, nil, "asking the daemon: it answered 500 Internal Server Error", ""},
		{"nothing", 400, "", nil, "asking the daemon: it answered 400 Bad Request", ""},
		{"a status that nobody knows", 599, "", nil, "asking the daemon: it answered 599 ", ""},
		{"a redirect out of here", 301, "", nil, "asking the daemon: it answered 301 Moved Permanently", ""},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			c := fakeDaemon(t, func(w http.ResponseWriter, _ *http.Request) {
				w.WriteHeader(tt.status)
				_, _ = io.WriteString(w, tt.body)
			})
			_, err := c.Status(t.Context())
			if err == nil || err.Error() != tt.text || hintOf(err) != tt.hint {
				t.Errorf("got %v (hint %q), want %q (hint %q)", err, hintOf(err), tt.text, tt.hint)
			}
			for _, k := range errorKinds() {
				if got := errors.Is(err, k.err); got != (tt.kind == k.err) {
					t.Errorf("it is %s: got %t", k.name, got)
				}
			}
		})
	}
}

func TestClientDoesNotTakeHalfAnAnswer(t *testing.T) {
	for name, body := range map[string]string{"cut": `{"schema":"meshdns.status/v1","zo`, "none": "", "another type": `{"nodes":"many"}`, "text": "ok"} {
		t.Run(name, func(t *testing.T) {
			c := fakeDaemon(t, func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, body) })
			if _, err := c.Status(t.Context()); err == nil || !strings.HasPrefix(err.Error(), "asking the daemon: reading the answer: ") {
				t.Errorf("got %v, want an error", err)
			}
		})
	}
}

func TestLongAnswersAreRefusedAndNotCut(t *testing.T) {
	for _, tt := range []struct {
		name, text string
		ok         bool
	}{{"short", "abc", true}, {"just as long", "abcde", true}, {"too long", "abcdef", false}, {"without end", strings.Repeat("a", 4096), false}, {"empty", "", true}} {
		for name, r := range map[string]io.Reader{"at once": strings.NewReader(tt.text), "byte by byte": iotest.OneByteReader(strings.NewReader(tt.text))} {
			t.Run(tt.name+" "+name, func(t *testing.T) {
				got, err := io.ReadAll(&boundedReader{r: r, left: 5})
				if (err == nil) != tt.ok || tt.ok && string(got) != tt.text || len(got) > 5 {
					t.Errorf("got %q, %v; want it whole or an error", got, err)
				}
			})
		}
	}
}

func TestClientWaitsNoLongerThanItIsTold(t *testing.T) {
	ended := make(chan struct{})
	tests := []struct {
		name   string
		handle http.HandlerFunc
	}{
		{"no answer", func(_ http.ResponseWriter, r *http.Request) { wait(r, ended) }},
		{"half an answer", func(w http.ResponseWriter, r *http.Request) {
			_, _ = io.WriteString(w, `{"schema":`)
			_ = http.NewResponseController(w).Flush()
			wait(r, ended)
		}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			c := fakeDaemon(t, tt.handle)
			ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
			defer cancel()
			_, err := c.Status(ctx)
			if !errors.Is(err, ErrTimeout) || hintOf(err) == "" || !strings.Contains(err.Error(), c.Socket) {
				t.Errorf("got %v (hint %q), want ErrTimeout with a hint and the socket", err, hintOf(err))
			}
		})
	}
	close(ended)
}

// wait returns when the client is gone or the test has ended.
func wait(r *http.Request, ended <-chan struct{}) {
	select {
	case <-r.Context().Done():
	case <-ended:
	}
}

func TestClientThatIsStoppedSaysNothingOfTime(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	c := fakeDaemon(t, func(_ http.ResponseWriter, r *http.Request) {
		cancel()
		<-r.Context().Done()
	})
	if _, err := c.Status(ctx); !errors.Is(err, context.Canceled) || errors.Is(err, ErrTimeout) {
		t.Errorf("got %v, want context.Canceled", err)
	}
}

func TestClientSaysWhatAFailedConnectionMeans(t *testing.T) {
	dial := func(err error) error {
		return &url.Error{Op: "Get", URL: "http://meshdns/v1/status", Err: &net.OpError{Op: "dial", Net: "unix", Err: os.NewSyscallError("connect", err)}}
	}
	tests := []struct {
		name string
		err  error
		kind error
		hint string
	}{
		{"no socket", dial(syscall.ENOENT), ErrNoDaemon, "start it with: meshdns up"},
		{"nobody listens", dial(syscall.ECONNREFUSED), ErrNoDaemon, "start it with: meshdns up"},
		{"killed with our question in its queue", dial(syscall.ECONNRESET), ErrNoDaemon, "start it with: meshdns up"},
		{"a directory that is closed to us", dial(syscall.EACCES), ErrNotPermitted, "run the same command with sudo"},
		{"too busy to accept", &url.Error{Err: context.DeadlineExceeded}, ErrTimeout, "try again; if it stays so, end the daemon and start it again"},
		{"the dialer's own bound", &url.Error{Err: &net.OpError{Op: "dial", Err: os.ErrDeadlineExceeded}}, ErrTimeout, "try again; if it stays so, end the daemon and start it again"},
		{"any other", dial(syscall.EPIPE), nil, ""},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			err := Client{Socket: "/run/x.sock"}.explain(tt.err)
			if tt.kind != nil && !errors.Is(err, tt.kind) || hintOf(err) != tt.hint {
				t.Errorf("got %v (hint %q), want %v (hint %q)", err, hintOf(err), tt.kind, tt.hint)
			}
			if text := err.Error(); !strings.HasPrefix(text, "asking the daemon: ") || strings.Contains(text, "http://") {
				t.Errorf("got %q, want no word of a URL that nobody typed", text)
			}
		})
	}
	if err := (Client{}).explain(fmt.Errorf("x: %w", fs.ErrNotExist)); !errors.Is(err, ErrNoDaemon) {
		t.Errorf("without a URL around it: got %v", err)
	}
}

func TestClientSeesADaemonThatHangsUp(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	ln, err := net.Listen("unix", path)
	must(t, err)
	served := make(chan struct{})
	go func() {
		defer close(served)
		for {
			conn, err := ln.Accept()
			if err != nil {
				return
			}
			// What is closed with something unread in it is reset, which a daemon does that was killed.
			_, _ = conn.Read(make([]byte, 4096))
			conn.Close() // as the bound on connections does
		}
	}()
	_, err = Client{Socket: path}.Status(t.Context())
	if err == nil || errors.Is(err, ErrNoDaemon) || !strings.HasPrefix(err.Error(), "asking the daemon: ") {
		t.Errorf("got %v, want an error that does not say that none runs", err)
	}
	ln.Close()
	<-served
}

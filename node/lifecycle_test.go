package node

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// runOnce runs a node that is expected to fail or to be stopped by stop, and returns what it reported.
func runOnce(t *testing.T, ctx context.Context, cfg Config, opt Options) (lines []string, err error) {
	t.Helper()
	checkGoroutines(t)
	var mu sync.Mutex
	opt.Report = func(line string) {
		mu.Lock()
		defer mu.Unlock()
		lines = append(lines, line)
	}
	n, err := New(cfg, opt)
	must(t, err)
	err = n.Run(ctx)
	mu.Lock()
	defer mu.Unlock()
	return slices.Clone(lines), err
}

func TestNodeNeedsItsPlaces(t *testing.T) {
	for name, paths := range map[string]Paths{"none": {}, "no socket": {State: "/s"}, "no state": {Socket: "/s"}} {
		if n, err := New(testConfig(), Options{Paths: paths}); err == nil {
			t.Errorf("%s: got %v, want an error", name, n)
		}
	}
}

func TestStepsOfAStartAreToldInTheirOrder(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cfg := testConfig()
	cfg.DNS.Upstreams = []string{"127.0.0.1:9"}
	cfg.Metrics = "127.0.0.1:0"
	lines, err := runOnce(t, ctx, cfg, Options{Paths: testPaths(t), Ready: func(Status) { cancel() }})
	must(t, err)
	text := strings.Join(lines, "\n")
	at := -1
	for _, want := range []string{"zone foo-bar.ts.net: ", "resolver answers at ", "the machine's DNS is left alone: ", "control socket ", "metrics at ", "ready", "ended"} {
		i := strings.Index(text, want)
		if i <= at {
			t.Errorf("%q is not told, or too early, in\n%s", want, text)
		}
		at = i
	}
}

func TestStepThatFailsUndoesTheOnesBefore(t *testing.T) {
	tests := []struct {
		name string
		prep func(t *testing.T, cfg *Config, opt *Options)
		want string
	}{
		{"the state is not to be made", func(t *testing.T, _ *Config, opt *Options) {
			file := filepath.Join(t.TempDir(), "file")
			must(t, put(file, ""))
			opt.Paths.State = filepath.Join(file, "state")
		}, "making the state directory"},
		{"a broken map", func(t *testing.T, _ *Config, opt *Options) { writeTestMap(t, opt.Paths, "zone: {") }, "map.yaml:1:"},
		{"a further address is held", func(t *testing.T, cfg *Config, _ *Options) {
			cfg.DNS.Listen = []netip.AddrPort{netip.AddrPortFrom(loopback(), 0), heldPort(t, "tcp")}
		}, "starting the resolver: listening on 127.0.0.1:"},
		{"the stub's address is not ours", func(_ *testing.T, cfg *Config, _ *Options) {
			cfg.DNS.Stub = netip.MustParseAddrPort("192.0.2.1:5353")
		}, "starting the resolver: "},
		{"the control socket's name is too long", func(t *testing.T, _ *Config, opt *Options) {
			opt.Paths.Socket = filepath.Join(t.TempDir(), strings.Repeat("s", 120))
		}, "opening the control socket"},
		{"the metrics' address is held", func(t *testing.T, cfg *Config, _ *Options) {
			cfg.Metrics = heldPort(t, "tcp").String()
		}, "listening for Prometheus"},
		{"a source's command is nobody's", func(_ *testing.T, cfg *Config, _ *Options) {
			cfg.Sources = []sourceConfig{{Type: "tailscale", Command: []string{"/bin/true"}}}
		}, "its command does not come from a file of root's"},
		{"a watchdog of no sense", func(_ *testing.T, _ *Config, opt *Options) { opt.Watchdog = "soon" }, "WATCHDOG_USEC"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			cfg, opt := testConfig(), Options{Paths: testPaths(t)}
			cfg.DNS.Stub = freePort(t)
			tt.prep(t, &cfg, &opt)
			opt.Ready = func(Status) { t.Error("it is ready") }
			lines, err := runOnce(t, t.Context(), cfg, opt)
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("got %v, want an error with %q", err, tt.want)
			}
			if slices.Contains(lines, "ended") {
				t.Errorf("it says that it ended well: %q", lines)
			}
			if _, err := os.Lstat(opt.Paths.Socket); !errors.Is(err, os.ErrNotExist) && !strings.Contains(tt.name, "too long") {
				t.Errorf("the control socket is still there: %v", err)
			}
			if stub := cfg.DNS.Stub; stub.Addr() == loopback() && !isFree(stub) {
				t.Errorf("the stub's address %s is still bound", stub)
			}
			if unlock, err := lockState(opt.Paths.State); err == nil {
				unlock()
			} else if errors.Is(err, errRunning) {
				t.Errorf("the state is still locked: %v", err)
			}
		})
	}
}

// freePort is an address of loopback that was free a moment ago.
func freePort(t *testing.T) netip.AddrPort {
	t.Helper()
	s, err := listenDNS(t.Context(), netip.AddrPortFrom(loopback(), 0), 1)
	must(t, err)
	s.close()
	return s.addr
}

func TestNodeThatIsStoppedWhileItStartsEndsWell(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if lines, err := runOnce(t, ctx, testConfig(), Options{Paths: testPaths(t)}); err != nil || !slices.Contains(lines, "ended") {
		t.Errorf("before it began: got %v, %q", err, lines)
	}
	for _, when := range []string{"zone ", "resolver answers", "control socket"} {
		t.Run(when, func(t *testing.T) {
			checkGoroutines(t)
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			n, err := New(testConfig(), Options{Paths: testPaths(t), Ready: func(Status) {}, Report: func(line string) {
				if strings.HasPrefix(line, when) {
					cancel()
				}
			}})
			must(t, err)
			if err := n.Run(ctx); err != nil {
				t.Errorf("got %v, want no error: it was asked to end", err)
			}
			if _, err := os.Stat(n.opt.Paths.Socket); !errors.Is(err, os.ErrNotExist) {
				t.Errorf("the control socket is still there: %v", err)
			}
		})
	}
}

func TestNodeEndsWhenAPartEnds(t *testing.T) {
	for name, groupOf := range map[string]func(*Node) *group{
		"a service":                 func(n *Node) *group { return n.services },
		"the watching of the DNS":   func(n *Node) *group { return n.system },
		"a service without a cause": func(n *Node) *group { return n.services },
	} {
		t.Run(name, func(t *testing.T) {
			cause := errors.New("no file descriptors are left")
			if strings.Contains(name, "without") {
				cause = nil
			}
			var n *Node
			opt := Options{Paths: testPaths(t)}
			opt.Ready = func(Status) { groupOf(n).run("bad part", func(context.Context) error { return cause }) }
			checkGoroutines(t)
			n, err := New(testConfig(), opt)
			must(t, err)
			err = n.Run(t.Context())
			want := orEnded(cause)
			if !errors.Is(err, want) || !strings.Contains(err.Error(), "running the bad part") {
				t.Errorf("got %v, want %v of the part", err, want)
			}
			if _, err := os.Stat(opt.Paths.Socket); !errors.Is(err, os.ErrNotExist) {
				t.Errorf("the control socket is still there: %v", err)
			}
		})
	}
}

func TestEndIsInTimeThoughAPartHangs(t *testing.T) {
	release := make(chan struct{})
	checkGoroutines(t)
	var n *Node
	ctx, cancel := context.WithCancel(t.Context())
	opt := Options{Paths: testPaths(t), Ready: func(Status) {
		n.services.run("hanging part", func(context.Context) error { <-release; return nil })
		cancel()
	}}
	n, err := New(testConfig(), opt)
	must(t, err)
	start := time.Now()
	err = n.Run(ctx)
	if took := time.Since(start); took > undoTime+time.Second {
		t.Errorf("took %s, want about %s at most", took, undoTime)
	}
	if !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), "ending the resolver: given up") || !strings.Contains(err.Error(), "still running: hanging part") {
		t.Errorf("got %v, want what was given up", err)
	}
	if _, err := os.Stat(opt.Paths.Socket); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the control socket is still there: %v", err)
	}
	close(release)
}

func TestManyMayAskForTheEndAtOnce(t *testing.T) {
	n := startNode(t, testConfig(), testPaths(t))
	var callers sync.WaitGroup
	errs := make(chan error, 8)
	for range 8 {
		callers.Go(func() { errs <- n.Down(t.Context()) })
	}
	callers.Wait()
	close(errs)
	done := 0
	for err := range errs {
		// Whoever comes when the socket is gone already hears that none runs.
		if err != nil && !errors.Is(err, ErrNoDaemon) && !strings.Contains(err.Error(), "asking the daemon: ") {
			t.Errorf("got %v", err)
		}
		if err == nil {
			done++
		}
	}
	if done == 0 {
		t.Error("nobody was told that it ended")
	}
}

func TestManyMayAskAtOnce(t *testing.T) {
	n := startNode(t, testConfig(), testPaths(t))
	var callers sync.WaitGroup
	for i := range 12 {
		callers.Go(func() {
			for range 5 {
				var err error
				switch i % 4 {
				case 0:
					_, err = n.Status(t.Context())
				case 1:
					_, err = n.Query(t.Context(), "nas", "")
				case 2:
					_, err = n.Explain(t.Context(), "nas", "")
				case 3:
					_, err = n.Flush(t.Context(), "")
				}
				if err != nil {
					t.Errorf("caller %d: %v", i, err)
				}
			}
		})
	}
	for i := range 5 { // the map changes meanwhile
		writeTestMap(t, n.paths, testMap+fmt.Sprintf("  new%d:\n    addresses: [100.64.0.%d]\n", i, 20+i))
	}
	callers.Wait()
}

func TestWhoWaitsForTheEndMayGiveUp(t *testing.T) {
	n, err := New(testConfig(), Options{Paths: testPaths(t)})
	must(t, err)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	for range 2 {
		if err := n.end(ctx); !errors.Is(err, context.Canceled) {
			t.Errorf("got %v, want context.Canceled", err)
		}
	}
	select {
	case <-n.ending:
	default:
		t.Error("the node does not end")
	}
}

func TestControlGoesOnUntilItsCallersAreAnswered(t *testing.T) {
	// The socket is closed before the request is answered; the answer still comes.
	n := startNode(t, testConfig(), testPaths(t))
	if err := n.Down(t.Context()); err != nil {
		t.Errorf("got %v, want an answer", err)
	}
	if err := <-n.done; err != nil {
		t.Errorf("Run: %v", err)
	}
	if conn, err := net.Dial("unix", n.paths.Socket); err == nil {
		conn.Close()
		t.Error("it still accepts connections")
	}
	n.end = func() error { return nil }
}

func TestStepsBehindOneThatHangsAreStillBegun(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := undoStack{log: slog.New(slog.DiscardHandler)}
		release := make(chan struct{})
		var mu sync.Mutex
		var began []string
		begin := func(what string) {
			mu.Lock()
			defer mu.Unlock()
			began = append(began, what)
		}
		for _, what := range []string{"first", "second"} {
			s.push(what, func(context.Context) error { begin(what); return nil })
		}
		s.push("hangs", func(ctx context.Context) error {
			begin("hangs")
			if deadline, ok := ctx.Deadline(); !ok || time.Until(deadline) != undoTime {
				t.Errorf("its deadline is in %s, want %s", time.Until(deadline), undoTime)
			}
			<-release
			return errors.New("too late to be told")
		})
		start := time.Now()
		err := s.run()
		if took := time.Since(start); took != undoTime {
			t.Errorf("took %s, want %s", took, undoTime)
		}
		if err == nil || !strings.Contains(err.Error(), "hangs: given up") || strings.Contains(err.Error(), "too late") {
			t.Errorf("got %v, want that it was given up", err)
		}
		close(release)
		synctest.Wait()
		mu.Lock()
		defer mu.Unlock()
		slices.Sort(began)
		if want := []string{"first", "hangs", "second"}; !slices.Equal(began, want) {
			t.Errorf("began %q, want %q", began, want)
		}
	})
}

func TestWhatIsDoneInTimeIsNotGivenUp(t *testing.T) {
	failed := errors.New("failed")
	ctx, cancel := context.WithCancel(t.Context())
	if err := orAbandon(ctx, func() error { return failed }); !errors.Is(err, failed) {
		t.Errorf("got %v, want its own error", err)
	}
	cancel()
	block := make(chan struct{})
	if err := orAbandon(ctx, func() error { <-block; return nil }); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v, want it given up", err)
	}
	close(block)
}

func TestGroupThatDoesNotEndIsGivenUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newGroup()
		release := make(chan struct{})
		g.run("deaf part", func(context.Context) error { <-release; return nil })
		ctx, cancel := context.WithTimeout(t.Context(), undoTime)
		defer cancel()
		if err := g.stop(ctx); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("got %v, want it given up", err)
		}
		close(release)
		synctest.Wait()
		if err := g.stop(t.Context()); err != nil {
			t.Errorf("once it has ended: %v", err)
		}
	})
}

func TestGroupTellsTheFirstFailureAlone(t *testing.T) {
	checkGoroutines(t)
	g := newGroup()
	first := errors.New("first")
	g.run("one", func(context.Context) error { return first })
	if !eventually(t, func() bool { return len(g.failed) == 1 }) {
		t.Fatal("nobody is told")
	}
	// Those that end later must not wait for somebody to listen.
	for range 3 {
		g.run("another", func(context.Context) error { return errors.New("later") })
	}
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
	defer cancel()
	must(t, g.stop(ctx))
	if err := <-g.failed; !errors.Is(err, first) {
		t.Errorf("got %v, want the first", err)
	}
}

func TestPartThatFailsAtTheEndIsAFailure(t *testing.T) {
	checkGoroutines(t)
	g := newGroup()
	g.run("clumsy part", func(ctx context.Context) error { <-ctx.Done(); return errors.New("not put away") })
	must(t, g.stop(t.Context()))
	select {
	case err := <-g.failed:
		if !strings.Contains(err.Error(), "clumsy part: not put away") {
			t.Errorf("got %v", err)
		}
	default:
		t.Error("nobody is told")
	}
}

func TestPlaceOfANodeThatIsAboutToBeGoneIsWaitedFor(t *testing.T) {
	n, err := New(testConfig(), Options{Paths: testPaths(t)})
	if err != nil {
		t.Fatal(err)
	}
	unlock, err := lockState(n.opt.Paths.State)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := n.awaitPlace(t.Context()); !errors.Is(err, errRunning) {
		t.Errorf("with a node that stays: got %v, want errRunning", err)
	}
	time.AfterFunc(placeTime/10, unlock)
	unlock, err = n.awaitPlace(t.Context())
	if err != nil {
		t.Fatalf("with one that goes: %v", err)
	}
	unlock()
}

package main_test

import (
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// proveHeldPortIsLeftAlone starts each name server on port 53 of every address, and meshdns after it.
func proveHeldPortIsLeftAlone(t *testing.T) {
	newMachine(t)
	writeFile(t, "/tmp/unbound.conf", `server:
  interface: 0.0.0.0
  directory: "/tmp"
  do-daemonize: no
  chroot: ""
  username: ""
  pidfile: ""
  use-syslog: no
  module-config: "iterator"
  local-zone: "." static
remote-control:
  control-enable: no
`)
	writeFile(t, "/tmp/knot.conf", "server:\n  rundir: /tmp\n  listen: 0.0.0.0@53\ndatabase:\n  storage: /tmp/knot\nlog:\n  - target: stderr\n    any: warning\n")
	writeFile(t, "/tmp/named.conf", `options {
  directory "/tmp"; pid-file none; session-keyfile none; listen-on { any; }; listen-on-v6 { none; };
  recursion no; dnssec-validation no;
};
controls { };
`)
	for _, test := range []struct {
		holder string
		args   []string
		all    bool // it holds 0.0.0.0, not one socket an address
	}{
		{"dnsmasq", []string{"dnsmasq", "-k", "-C", "/dev/null", "--no-resolv", "--no-hosts", "--user=root", "--pid-file=", "--log-facility=-"}, true},
		{"unbound", []string{"unbound", "-d", "-c", "/tmp/unbound.conf"}, true},
		{"knotd", []string{"knotd", "-c", "/tmp/knot.conf"}, true},
		// named binds the addresses that links have, which 127.0.0.77 is not: it is in nobody's way.
		{"named", []string{"named", "-f", "-4", "-c", "/tmp/named.conf"}, false},
	} {
		t.Run(test.holder, func(t *testing.T) {
			if err := os.MkdirAll("/tmp/knot", 0o755); err != nil {
				t.Fatal(err)
			}
			holder := background(t, test.args...)
			eventually(t, readyTimeout, test.holder, func() error {
				out, _ := output(t, "ss", "-Hlnup", "sport = :53")
				if !strings.Contains(out, fmt.Sprintf("pid=%d,", holder.cmd.Process.Pid)) {
					return fmt.Errorf("it does not listen yet: %s", out)
				}
				return nil
			})
			before := snapshot(t)
			d, status := up(t)
			takeover := status.DNS.Takeover
			t.Logf("stub %s, takeover %s: %s", status.DNS.Stub, takeover.State, takeover.Reason)
			if err := asks(status.DNS.Stub, nasName, nasAddr); err != nil {
				t.Error(err)
			}
			if test.all {
				if takeover.State != "refused" || !strings.Contains(takeover.Reason, test.holder) {
					t.Errorf("takeover is %s (%s), want it refused, and %s named", takeover.State, takeover.Reason, test.holder)
				}
				if !strings.Contains(d.log.String(), test.holder) {
					t.Errorf("meshdns up does not name %s:\n%s", test.holder, d.log.String())
				}
				if status.State != "degraded" {
					t.Errorf("state is %s, want degraded", status.State)
				}
				if after := snapshot(t); after != before {
					t.Errorf("resolv.conf changed\nbefore:\n%s\nafter:\n%s", before, after)
				}
			} else {
				checkResolving(t, takeover.State, true)
			}
			d.end(t, syscall.SIGTERM)
			if after := snapshot(t); after != before {
				t.Errorf("resolv.conf is not as it was\nbefore:\n%s\nafter:\n%s", before, after)
			}
		})
	}
}

// proveOneNodeAtATime starts a second node beside the first, and ends the first by `down`.
func proveOneNodeAtATime(t *testing.T) {
	newMachine(t)
	if out, code := output(t, program, "down"); code != 3 {
		t.Errorf("down without a node: exit code %d, want 3\n%s", code, out)
	}
	before := snapshot(t)
	d, _ := up(t)
	during := snapshot(t)
	out, code := output(t, program, "up")
	if code != 1 || !strings.Contains(out, "runs already") {
		t.Errorf("a second up: exit code %d, want 1 and why\n%s", code, out)
	}
	if got := snapshot(t); got != during {
		t.Errorf("a second up changed resolv.conf\nbefore:\n%s\nafter:\n%s", during, got)
	}
	if err := libc(t, nasName, nasAddr); err != nil {
		t.Errorf("after a second up: %v", err)
	}
	must(t, program, "down")
	if after := snapshot(t); after != before {
		t.Errorf("down returned, and resolv.conf is not as it was\nbefore:\n%s\nafter:\n%s", before, after)
	}
	select {
	case <-d.ended:
	case <-time.After(endTimeout):
		t.Error("down returned, and the node still runs")
	}
	if d.err != nil {
		t.Errorf("up after down: %v", d.err)
	}
	must(t, program, "dns", "restore") // with nothing left to restore
	d, _ = up(t)
	d.end(t, syscall.SIGINT)
	if after := snapshot(t); after != before {
		t.Errorf("resolv.conf is not as it was after SIGINT\nbefore:\n%s\nafter:\n%s", before, after)
	}
}

// moment is one kill of a series.
type moment struct {
	killKind
	shape string
	after time.Duration // from the start of what is killed
	next  bool          // recover by the next start, else by `dns restore`
}

// proveKillsRecover kills meshdns at random moments of taking over and of giving back. The machine always recovers.
func proveKillsRecover(t *testing.T) {
	newMachine(t)
	random, count := killSeries(t)

	shape(t, "regular")
	kinds := killKinds(t)
	survivable := []string{"regular", "symlink-rel", "bind", "missing", "chain"}
	for _, kind := range kinds {
		for i := range count {
			m := moment{kind, survivable[i%len(survivable)], time.Duration(random.Int64N(int64(kind.limit) * 11 / 10)), random.IntN(2) == 0}
			t.Run(fmt.Sprintf("%s/%d", strings.ReplaceAll(m.what, " ", "-"), i), func(t *testing.T) { surviveKill(t, m) })
		}
	}
}

// killSeries is a source of random moments, which PROOF_SEED repeats, and how many of each kind are tried.
func killSeries(t *testing.T) (random *rand.Rand, count int) {
	t.Helper()
	seed := uint64(20)
	if text := os.Getenv("PROOF_SEED"); text != "" {
		var err error
		if seed, err = strconv.ParseUint(text, 10, 64); err != nil {
			t.Fatalf("PROOF_SEED: %v", err)
		}
	} else if soak() {
		seed = rand.Uint64()
	}
	t.Logf("seed %d (PROOF_SEED repeats it)", seed)
	count = 5
	if soak() {
		count = 50
	}
	return rand.New(rand.NewPCG(seed, 0)), count
}

// killKind is something that the program does, and how long it takes.
type killKind struct {
	what  string
	limit time.Duration
}

func killKinds(t *testing.T) []killKind {
	t.Helper()
	start := time.Now()
	d, _ := up(t)
	taking := time.Since(start)
	start = time.Now()
	d.end(t, syscall.SIGTERM)
	giving := time.Since(start)
	t.Logf("taking over takes %s, giving back %s", taking.Round(time.Millisecond), giving.Round(time.Millisecond))
	return []killKind{{"taking over", taking}, {"giving back", giving}, {"dns restore", giving}}
}

// at kills the program while it does what kind says.
func (kind killKind) at(t *testing.T, moment time.Duration) {
	t.Helper()
	switch kind.what {
	case "taking over":
		launch(t).killAfter(moment)
	case "giving back":
		d, _ := up(t)
		d.cmd.Process.Signal(syscall.SIGTERM)
		d.killAfter(moment)
	case "dns restore":
		d, _ := up(t)
		d.kill()
		background(t, program, "dns", "restore").killAfter(moment)
	}
}

// proveManagerSurvivesKills kills meshdns at random moments while a manager is told to ask it, or to forget it.
func proveManagerSurvivesKills(mode string) func(t *testing.T) {
	return func(t *testing.T) {
		writeOtherConfig(t)
		must(t, "ip", "addr", "add", "198.51.100.1/32", "dev", "lo")
		random, count := killSeries(t)
		before := managed(t)
		for _, kind := range killKinds(t) {
			for i := range count {
				moment, next := time.Duration(random.Int64N(int64(kind.limit)*11/10)), random.IntN(2) == 0
				t.Run(fmt.Sprintf("%s/%d", strings.ReplaceAll(kind.what, " ", "-"), i), func(t *testing.T) {
					kind.at(t, moment)
					if next {
						d, status := up(t)
						checkManaged(t, mode, status.DNS)
						d.end(t, syscall.SIGTERM)
					} else {
						must(t, program, "dns", "restore")
					}
					if after := managed(t); after != before {
						t.Errorf("killed %s after %s (next start: %t): it is not as it was\nbefore:\n%s\nafter:\n%s", kind.what, moment, next, before, after)
					}
				})
			}
		}
	}
}

// surviveKill kills at one moment, recovers, and checks that nothing is left of it.
func surviveKill(t *testing.T, m moment) {
	shape(t, m.shape)
	before, original := snapshot(t), contents()
	m.at(t, m.after)
	if got := contents(); got != original && !(strings.Contains(got, "nameserver 127.0.0.77\n") && strings.HasSuffix(got, "\n")) {
		t.Errorf("killed %s after %s: resolv.conf is neither what it was nor ours, but %q", m.what, m.after, got)
	}
	if m.next {
		d, status := up(t)
		checkResolving(t, status.DNS.Takeover.State, !slices.Contains(upstreamlessShapes, m.shape))
		d.end(t, syscall.SIGTERM)
	} else {
		must(t, program, "dns", "restore")
	}
	if after := snapshot(t); after != before {
		t.Errorf("killed %s after %s (%+v): resolv.conf is not as it was\nbefore:\n%s\nafter:\n%s", m.what, m.after, m, before, after)
	}
	if !slices.Contains(upstreamlessShapes, m.shape) {
		if err := libc(t, outsideName, outsideAddr); err != nil {
			t.Errorf("killed %s after %s, and after recovery: %v", m.what, m.after, err)
		}
	}
	if left, _ := filepath.Glob("/etc/*.tmp*"); len(left) > 0 {
		t.Errorf("left over: %v", left)
	}
}

// contents is what programs read, or "" where there is nothing.
func contents() string {
	text, err := os.ReadFile(resolvConf)
	if err != nil {
		return ""
	}
	return string(text)
}

// killAfter kills the program at its moment, unless it ended before that.
func (d *daemon) killAfter(moment time.Duration) {
	select {
	case <-d.ended:
	case <-time.After(moment):
		d.kill()
	}
}

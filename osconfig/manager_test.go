package osconfig

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"net/netip"
	"os"
	"slices"
	"strings"
	"testing"
	"time"
)

func TestApplyAgainKeepsWhatWasBefore(t *testing.T) {
	r := newRig(t)
	r.write("etc/resolv.conf", upstreamConf)
	before := r.snapshot()
	m := r.applied()
	c := stubConfig()
	c.Search = []string{"other.example"}
	r.must(m.Apply(t.Context(), c))
	if got := r.read("etc/resolv.conf"); !strings.Contains(got, "search other.example corp.example\n") {
		t.Errorf("got %q", got)
	}
	r.must(m.Close())
	if after := r.snapshot(); after != before {
		t.Errorf("not as it was\nbefore:\n%s\nafter:\n%s", before, after)
	}
}

func TestAFailedTrialIsUndone(t *testing.T) {
	r := newRig(t)
	r.write("etc/resolv.conf", upstreamConf)
	before := r.snapshot()
	deaf := errors.New("nobody answers")
	r.opt.Verify = func(_ context.Context, server netip.AddrPort) error {
		if server != stubConfig().Servers[0].AddrPort {
			t.Errorf("asked %s", server)
		}
		if !strings.Contains(r.read("etc/resolv.conf"), "nameserver 127.0.0.77") {
			t.Error("asked before the change")
		}
		return deaf
	}
	m := r.open()
	if err := m.Apply(t.Context(), stubConfig()); !errors.Is(err, deaf) {
		t.Errorf("got %v, want what the trial said", err)
	}
	if after := r.snapshot(); after != before || m.Status().Active {
		t.Errorf("not as it was\nbefore:\n%s\nafter:\n%s", before, after)
	}
}

func TestWhatIsRefusedChangesNothing(t *testing.T) {
	high := stubConfig()
	high.Servers[0].AddrPort = netip.MustParseAddrPort("127.0.0.77:5335")
	tests := map[string]struct {
		make   func(r *rig)
		config Config
		why    string
	}{
		"a directory":     {func(r *rig) { r.must(os.Mkdir(r.path("etc/resolv.conf"), 0o755)) }, stubConfig(), "is a directory"},
		"read-only":       {func(r *rig) { r.write("etc/resolv.conf", ""); r.must(os.Chmod(r.path("etc/resolv.conf"), 0o444)) }, stubConfig(), "mode 0444"},
		"another port":    {func(r *rig) { r.write("etc/resolv.conf", upstreamConf) }, high, "cannot name a port"},
		"off":             {func(r *rig) { r.write("etc/resolv.conf", upstreamConf); r.opt.Mode = "off" }, stubConfig(), "dns.os is off"},
		"resolved's link": {func(r *rig) { r.link("/run/systemd/resolve/stub-resolv.conf", "etc/resolv.conf") }, stubConfig(), "systemd-resolved manages"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			r := newRig(t)
			tt.make(r)
			before := r.snapshot()
			m := r.open()
			err := m.Apply(t.Context(), tt.config)
			if !errors.Is(err, ErrRefused) || !strings.Contains(err.Error(), tt.why) {
				t.Errorf("got %v, want it refused since %q", err, tt.why)
			}
			plan, perr := m.Plan(t.Context(), tt.config)
			if perr != nil || plan.Possible || !strings.Contains(plan.Reason, tt.why) || plan.Diff != "" || len(plan.Trace) == 0 {
				t.Errorf("plan: %+v, %v", plan, perr)
			}
			r.must(m.Close())
			if after := r.snapshot(); after != before {
				t.Errorf("changed\nbefore:\n%s\nafter:\n%s", before, after)
			}
		})
	}
}

func TestBaseIsWhatTheMachineHasWithoutUs(t *testing.T) {
	tests := map[string]struct {
		make    func(r *rig)
		servers []string
		search  []string
	}{
		"a file":         {func(r *rig) { r.write("etc/resolv.conf", upstreamConf) }, []string{"192.0.2.53:53"}, []string{"corp.example"}},
		"through a link": {func(r *rig) { shapes()["chain"](r) }, []string{"192.0.2.53:53"}, []string{"corp.example"}},
		"link-local":     {func(r *rig) { r.write("etc/resolv.conf", "nameserver fe80::1%eth0\nsearch .\n") }, []string{"[fe80::1%eth0]:53"}, nil},
		"without us": {
			func(r *rig) { r.write("etc/resolv.conf", "nameserver 127.0.0.77\nnameserver 192.0.2.54\n") }, []string{"192.0.2.54:53"}, nil,
		},
		"none":    {func(*rig) {}, nil, nil},
		"only us": {func(r *rig) { r.write("etc/resolv.conf", "nameserver 127.0.0.77\n") }, nil, nil},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			r := newRig(t)
			tt.make(r)
			m := r.applied()
			b, err := m.Base(t.Context())
			if tt.servers == nil {
				if !errors.Is(err, ErrNoBase) {
					t.Errorf("got %+v, %v; want none", b, err)
				}
				return
			}
			if err != nil || !slices.Equal(serverWords(b.Servers), tt.servers) || !slices.Equal(b.Search, tt.search) {
				t.Errorf("got %v %v, %v; want %v %v", serverWords(b.Servers), b.Search, err, tt.servers, tt.search)
			}
		})
	}
}

func TestTheNewerWriterWins(t *testing.T) {
	tests := map[string]struct {
		before func(r *rig)
		write  func(r *rig)
		want   string
		report string
	}{
		"a client replaced the file": {
			func(r *rig) { r.write("etc/resolv.conf", upstreamConf) },
			func(r *rig) { r.replace("etc/resolv.conf", "nameserver 198.51.100.1\n") },
			"nameserver 198.51.100.1\n", "changed by another program since",
		},
		"a client wrote into it": {
			func(r *rig) { shapes()["symlink-abs"](r) },
			func(r *rig) { r.write("etc/resolv.conf", "nameserver 198.51.100.1\n") },
			"nameserver 198.51.100.1\n", "changed by another program since",
		},
		"a lease without servers kept ours": {
			func(r *rig) { r.write("etc/resolv.conf", upstreamConf) },
			func(r *rig) { r.write("etc/resolv.conf", "domain lan\nnameserver 127.0.0.77\n") },
			upstreamConf, "put back",
		},
		"a client left its header alone": {
			func(r *rig) { r.write("etc/resolv.conf", upstreamConf) },
			func(r *rig) { r.write("etc/resolv.conf", "# Generated by dhcpcd\n") },
			upstreamConf, "put back",
		},
		"somebody added a server behind ours": {
			func(r *rig) { r.write("etc/resolv.conf", upstreamConf) },
			func(r *rig) { r.write("etc/resolv.conf", "nameserver 127.0.0.77\nnameserver 198.51.100.1\n") },
			"nameserver 198.51.100.1\n", "put back",
		},
		"somebody removed it": {
			func(r *rig) { r.write("etc/resolv.conf", upstreamConf) },
			func(r *rig) { r.must(os.Remove(r.path("etc/resolv.conf"))) },
			upstreamConf, "put back",
		},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			r := newRig(t)
			tt.before(r)
			r.applied()
			tt.write(r)
			if report := r.restore(); !strings.Contains(report.String(), tt.report) {
				t.Errorf("report: %q, want %q", report, tt.report)
			}
			if got := r.read("etc/resolv.conf"); got != tt.want {
				t.Errorf("got %q, want %q", got, tt.want)
			}
			if report := r.restore(); report.Changed {
				t.Errorf("a second restore did something: %q", report)
			}
		})
	}
}

// watched is a Manager that has taken over and watches, until the test ends.
type watched struct {
	*rig
	*Manager
	bases chan Base
	log   *bytes.Buffer
}

func watch(t *testing.T, before func(r *rig)) *watched {
	t.Helper()
	w := &watched{rig: newRig(t), bases: make(chan Base, 100), log: &bytes.Buffer{}}
	before(w.rig)
	w.rig.opt.OnBase = func(b Base) { w.bases <- b }
	w.rig.opt.Logger = slog.New(slog.NewTextHandler(w.log, nil))
	w.Manager = w.applied()
	if _, err := w.Base(t.Context()); err != nil && !errors.Is(err, ErrNoBase) {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- w.Watch(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Watch: %v", err)
		}
		if t.Failed() {
			t.Logf("log:\n%s", w.log)
		}
	})
	return w
}

// until waits for a condition.
func (w *watched) until(what string, cond func() bool) {
	w.t.Helper()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	limit := time.After(10 * time.Second)
	for !cond() {
		select {
		case <-tick.C:
		case <-limit:
			w.t.Fatalf("waited in vain: %s; resolv.conf is %q", what, w.read("etc/resolv.conf"))
		}
	}
}

func (w *watched) oursAgain() {
	w.t.Helper()
	w.until("our file again", func() bool { return strings.Contains(w.read("etc/resolv.conf"), "\nnameserver 127.0.0.77\n") })
}

func (w *watched) learns(want ...string) {
	w.t.Helper()
	select {
	case b := <-w.bases:
		if got := serverWords(b.Servers); !slices.Equal(got, want) {
			w.t.Errorf("learnt %q, want %q", got, want)
		}
	case <-time.After(10 * time.Second):
		w.t.Errorf("nothing was learnt, want %q", want)
	}
}

func TestAnOverwrittenFileIsWrittenAgainAndLearntFrom(t *testing.T) {
	lease := "search lan\nnameserver 198.51.100.1\n"
	for shape, before := range map[string]func(r *rig){"regular": shapes()["regular"], "link": shapes()["symlink-rel"], "missing": shapes()["missing"]} {
		for how, write := range map[string]func(r *rig){
			"in place":   func(r *rig) { r.write("etc/resolv.conf", lease) },
			"by rename":  func(r *rig) { r.replace("etc/resolv.conf", lease) },
			"in two":     func(r *rig) { r.writeSlowly("etc/resolv.conf", lease) },
			"after a rm": func(r *rig) { r.must(os.Remove(r.path("etc/resolv.conf"))); r.write("etc/resolv.conf", lease) },
		} {
			t.Run(shape+"/"+how, func(t *testing.T) {
				w := watch(t, before)
				write(w.rig)
				w.learns("198.51.100.1:53")
				w.oursAgain()
				if got := w.read("etc/resolv.conf"); !strings.Contains(got, "search foo-bar.ts.net lan\n") {
					t.Errorf("the new search list is not carried over: %q", got)
				}
				w.must(w.Close())
				if got := w.read("etc/resolv.conf"); got != lease {
					t.Errorf("after Close: %q, want what was written last", got)
				}
			})
		}
	}
}

// writeSlowly writes a file as a script does that prints line after line.
func (r *rig) writeSlowly(name, text string) {
	f, err := os.OpenFile(r.path(name), os.O_WRONLY|os.O_TRUNC|os.O_CREATE, 0o644)
	r.must(err)
	for line := range strings.Lines(text) {
		_, err := f.WriteString(line)
		r.must(err)
		r.must(f.Sync())
	}
	r.must(f.Close())
}

func TestALinkThatLeadsToNewServersIsFollowed(t *testing.T) {
	w := watch(t, shapes()["symlink-rel"])
	w.replace("run/x/rc", "nameserver 198.51.100.2\n")
	w.learns("198.51.100.2:53")
	w.write("run/x/rc", "nameserver 198.51.100.3\n")
	w.learns("198.51.100.3:53")
	w.write("run/x/rc", "# no lease\n")
	w.write("run/x/rc", "nameserver 198.51.100.4\n")
	w.learns("198.51.100.4:53")
	w.oursAgain()
	w.must(w.Close())
	if got, err := os.Readlink(w.path("etc/resolv.conf")); got != "../run/x/rc" {
		t.Errorf("after Close: link to %q, %v", got, err)
	}
}

func TestALinkThatLedNowhereIsFollowed(t *testing.T) {
	w := watch(t, shapes()["dangling"])
	w.write("run/nowhere/rc", "nameserver 198.51.100.2\n")
	w.learns("198.51.100.2:53")
}

func TestServersAreLearntWithoutATakeover(t *testing.T) {
	w := watch(t, shapes()["regular"])
	w.must(w.Apply(t.Context(), Config{}))
	w.write("etc/resolv.conf", "nameserver 198.51.100.1\n")
	w.learns("198.51.100.1:53")
	if got := w.read("etc/resolv.conf"); got != "nameserver 198.51.100.1\n" {
		t.Errorf("the file was changed: %q", got)
	}
}

func TestAFileThatIsEmptiedIsFilledAgain(t *testing.T) {
	w := watch(t, shapes()["regular"])
	w.write("etc/resolv.conf", "# Generated by dhcpcd\n")
	w.oursAgain()
	w.must(w.Close())
	if got := w.read("etc/resolv.conf"); got != upstreamConf {
		t.Errorf("after Close: %q, want the last one with servers", got)
	}
	if len(w.bases) > 0 {
		t.Errorf("learnt %v", <-w.bases)
	}
}

func TestAManagerThatAppearsGetsTheFile(t *testing.T) {
	w := watch(t, shapes()["regular"])
	w.must(os.Remove(w.path("etc/resolv.conf")))
	w.link("/run/systemd/resolve/stub-resolv.conf", "etc/resolv.conf")
	w.until("it to be given up", func() bool { return !w.Status().Active })
	if s := w.Status(); len(s.Problems) != 1 || !strings.Contains(s.Problems[0], "systemd-resolved") {
		t.Errorf("problems: %q", s.Problems)
	}
	w.must(w.Close())
	if got, err := os.Readlink(w.path("etc/resolv.conf")); got != "/run/systemd/resolve/stub-resolv.conf" {
		t.Errorf("after Close: link to %q, %v", got, err)
	}
}

func TestWhatAnotherProcessGaveBackStaysSo(t *testing.T) {
	w := watch(t, shapes()["regular"])
	w.rig.restore()
	w.until("the manager to notice", func() bool { return !w.Status().Active })
	if got := w.read("etc/resolv.conf"); got != upstreamConf {
		t.Errorf("got %q", got)
	}
	w.must(w.Apply(t.Context(), stubConfig()))
	w.oursAgain()
}

func TestALostJournalIsWrittenAgain(t *testing.T) {
	w := watch(t, shapes()["regular"])
	w.until("the state to be gone", func() bool { return os.RemoveAll(w.rig.opt.StateDir) == nil }) // the lock comes and goes
	w.wake()
	w.until("the journal to be there again", func() bool { return strings.Contains(w.read("state/"+journalName), "version") })
	w.rig.restore()
	if got := w.read("etc/resolv.conf"); got != upstreamConf {
		t.Errorf("after Restore: %q", got)
	}
}

// A machine whose file cannot be put back has a resolver that answers at least, and gets its file back once it can.
func TestWhatCannotBeUndoneAtStartIsNoReasonNotToStart(t *testing.T) {
	r := newRig(t)
	r.write("etc/resolv.conf", upstreamConf)
	before := r.snapshot()
	r.applied()
	blocker := "etc/.resolv.conf.meshdns" // a directory where the new file is to be made ready
	r.write(blocker+"/x", "")
	m := r.open()
	if s := m.Status(); len(s.Problems) != 1 || !strings.Contains(s.Problems[0], "cannot be undone yet") {
		t.Errorf("problems: %q", s.Problems)
	}
	if b, err := m.Base(t.Context()); err != nil || !slices.Equal(serverWords(b.Servers), []string{"192.0.2.53:53"}) {
		t.Errorf("base: %v, %v", serverWords(b.Servers), err)
	}
	r.wantServers("127.0.0.77") // the stub, which answers
	if err := m.Apply(t.Context(), stubConfig()); err == nil {
		t.Error("applied over what could not be undone")
	}
	if err := m.Close(); err == nil {
		t.Error("Close says that all is given back")
	}
	r.must(os.RemoveAll(r.path(blocker)))
	r.must(m.Apply(t.Context(), stubConfig()))
	r.must(m.Close())
	if after := r.snapshot(); after != before {
		t.Errorf("not as it was\nbefore:\n%s\nafter:\n%s", before, after)
	}
}

func TestAWarForTheFileIsNotFoughtForEver(t *testing.T) {
	w := watch(t, shapes()["regular"])
	for range freeRewrites {
		w.write("etc/resolv.conf", "nameserver 198.51.100.1\n")
		w.oursAgain()
	}
	w.write("etc/resolv.conf", "nameserver 198.51.100.9\n")
	w.until("the back-off to be told", func() bool {
		return strings.Contains(strings.Join(w.Status().Problems, " "), "keeps overwriting")
	})
	if got := w.read("etc/resolv.conf"); got != "nameserver 198.51.100.9\n" {
		t.Errorf("written again at once: %q", got)
	}
	w.until("its servers to be learnt meanwhile", func() bool {
		b, err := w.Base(t.Context())
		return err == nil && slices.Equal(serverWords(b.Servers), []string{"198.51.100.9:53"})
	})
	w.must(w.Close())
	if got := w.read("etc/resolv.conf"); got != "nameserver 198.51.100.9\n" {
		t.Errorf("after Close: %q", got)
	}
}

func TestTwoProcessesDoNotChangeItAtOnce(t *testing.T) {
	r := newRig(t)
	r.write("etc/resolv.conf", upstreamConf)
	m := r.open()
	held := make(chan struct{})
	release := make(chan struct{})
	done := make(chan error, 1)
	go func() {
		done <- m.direct.locked(t.Context(), func() error { close(held); <-release; return nil })
	}()
	<-held
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if _, err := Restore(ctx, r.opt); err == nil || !strings.Contains(err.Error(), "another process") {
		t.Errorf("got %v, want to be told of the other process", err)
	}
	close(release)
	r.must(<-done)
	r.restore()
}

func TestBudget(t *testing.T) {
	start := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	var b budget
	now := start
	for i := range freeRewrites {
		if wait := b.pause(now); wait != 0 {
			t.Errorf("rewrite %d waits %s", i, wait)
		}
		b.spend(now)
	}
	for _, want := range []time.Duration{2, 4, 8, 16, 32, 64, 128, 256, 300, 300} {
		want *= time.Second
		if wait := b.pause(now); wait != want {
			t.Errorf("after %d rewrites: wait %s, want %s", b.spent, wait, want)
		}
		now = now.Add(want)
		if wait := b.pause(now); wait != 0 {
			t.Errorf("after the wait: %s more", wait)
		}
		b.spend(now)
	}
	if wait := b.pause(now.Add(peaceTime)); wait != 0 || b.tight() {
		t.Errorf("after peace: wait %s", wait)
	}
}

func TestPlanShowsTheChangeAndMakesNone(t *testing.T) {
	r := newRig(t)
	shapes()["symlink-rel"](r)
	before := r.snapshot()
	plan, err := Preview(t.Context(), r.opt, stubConfig())
	if err != nil {
		t.Fatal(err)
	}
	want := `--- /etc/resolv.conf (a symbolic link to ../run/x/rc)
+++ /etc/resolv.conf (a regular file)
`
	if !plan.Possible || plan.Mode != "direct" || !strings.HasPrefix(plan.Diff, want) {
		t.Errorf("got %+v", plan)
	}
	if !slices.Contains(plan.Trace, "it leads to /run/x/rc") {
		t.Errorf("trace: %q", plan.Trace)
	}
	if after := r.snapshot(); after != before {
		t.Errorf("changed\nbefore:\n%s\nafter:\n%s", before, after)
	}
	// While it is in place the plan is the same: what would be there without us against what is there with us.
	r.applied()
	again, err := Preview(t.Context(), r.opt, stubConfig())
	if err != nil || again.Diff != plan.Diff {
		t.Errorf("once applied: %v\n%s\nwant\n%s", err, again.Diff, plan.Diff)
	}
}

func TestDiffLines(t *testing.T) {
	for _, tt := range []struct{ old, now, want string }{
		{"a b c", "a x c", " a -b +x  c"},
		{"", "a", "+a"},
		{"a", "", "-a"},
		{"a b", "b a", "-a  b +a"},
		{"a b c d", "c d", "-a -b  c  d"},
	} {
		got := strings.Join(diffLines(strings.Fields(tt.old), strings.Fields(tt.now)), " ")
		if got != tt.want {
			t.Errorf("%q to %q: got %q, want %q", tt.old, tt.now, got, tt.want)
		}
	}
	long := make([]string, maxDiffLines+1)
	if got := len(diffLines(long, []string{""})); got != maxDiffLines+2 {
		t.Errorf("a long file: %d lines", got)
	}
}

func TestAPlanWritesNothingToTheTerminal(t *testing.T) {
	if got := textLines([]byte("a\x1b[2Jb\tc\u009b\r\nd")); !slices.Equal(got, []string{"a·[2Jb\tc··", "d (no newline at the end)"}) {
		t.Errorf("got %q", got)
	}
}

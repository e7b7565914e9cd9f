package osconfig

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"slices"
	"strings"
	"testing"
)

func TestOffChangesNothingAndKnowsTheBase(t *testing.T) {
	r := newRig(t)
	r.write("etc/resolv.conf", upstreamConf)
	r.applied() // by a process that died before somebody switched it off
	r.opt.Mode = "off"
	m := r.open()
	if got := r.read("etc/resolv.conf"); got != upstreamConf {
		t.Errorf("what the dead process left is still there: %q", got)
	}
	before := r.snapshot()
	b, err := m.Base(t.Context())
	if err != nil || !slices.Equal(serverWords(b.Servers), []string{"192.0.2.53:53"}) || !slices.Equal(b.Search, []string{"corp.example"}) {
		t.Errorf("base: %+v, %v", b, err)
	}
	if err := m.Apply(t.Context(), stubConfig()); !errors.Is(err, ErrRefused) {
		t.Errorf("Apply: %v", err)
	}
	if s := m.Status(); s.Active || !slices.Contains(s.Trace, "dns.os is off") {
		t.Errorf("status: %+v", s)
	}
	r.must(m.Close())
	if after := r.snapshot(); after != before {
		t.Errorf("changed\nbefore:\n%s\nafter:\n%s", before, after)
	}
}

func TestOpenNeedsAStateDirectory(t *testing.T) {
	if m, err := Open(t.Context(), Options{}); err == nil || m != nil {
		t.Errorf("got %v, %v", m, err)
	}
}

// What is refused while a change is in place leaves that as it is, and it can be undone.
func TestARefusalKeepsWhatIsInPlace(t *testing.T) {
	r := newRig(t)
	r.write("etc/resolv.conf", upstreamConf)
	before := r.snapshot()
	m := r.applied()
	ours := r.read("etc/resolv.conf")
	c := stubConfig()
	c.Servers[0].AddrPort = highPort()
	if err := m.Apply(t.Context(), c); !errors.Is(err, ErrRefused) {
		t.Errorf("got %v", err)
	}
	if s := m.Status(); !s.Active || r.read("etc/resolv.conf") != ours {
		t.Errorf("status %+v, the file is %q", s, r.read("etc/resolv.conf"))
	}
	r.must(m.Close())
	if after := r.snapshot(); after != before {
		t.Errorf("not as it was\nbefore:\n%s\nafter:\n%s", before, after)
	}
}

func TestTheOldOwnerForgetsUsFirst(t *testing.T) {
	r := openresolv(t)
	m := r.applied()
	// An administrator replaces openresolv by a file of their own.
	r.must(os.RemoveAll(r.path("run/resolvconf/interfaces/eth0")))
	r.program("usr/sbin/resolvconf", "#!/bin/sh\necho \"$*\" >>ROOT/calls\nrm -f ROOT/run/resolvconf/interfaces/meshdns\n")
	r.must(os.Remove(r.path("run/resolvconf/interfaces/meshdns")))
	r.write("etc/resolv.conf", "nameserver 198.51.100.9\n")
	r.must(m.Apply(t.Context(), stubConfig()))
	if got := r.read("calls"); got != "-f -d meshdns\n-i\n" {
		t.Errorf("openresolv was told %q", got)
	}
	r.wantServers("127.0.0.77")
	if s := m.Status(); s.Mode != modeDirect || !s.Active {
		t.Errorf("status: %+v", s)
	}
	if j, err := loadJournal(r.opt.StateDir); err != nil || j.Mode != modeDirect || string(j.Before.Data) != "nameserver 198.51.100.9\n" {
		t.Errorf("the journal: %+v, %v", j, err)
	}
	r.must(m.Close())
	if got := r.read("etc/resolv.conf"); got != "nameserver 198.51.100.9\n" {
		t.Errorf("after Close: %q", got)
	}
}

func TestAnOldOwnerThatDoesNotForgetKeepsTheChange(t *testing.T) {
	r := newRig(t)
	r.write("etc/resolv.conf", upstreamConf)
	m := r.open()
	stuck := errors.New("stuck")
	f := &stubborn{err: stuck}
	m.mode, m.managed, m.inPlace, m.config = modeResolved, f, true, stubConfig()
	if err := m.Apply(t.Context(), stubConfig()); !errors.Is(err, stuck) {
		t.Errorf("got %v", err)
	}
	if got := r.read("etc/resolv.conf"); got != upstreamConf || !m.Status().Active {
		t.Errorf("two owners at once: %q, %+v", got, m.Status())
	}
	f.err = nil
	r.must(m.Apply(t.Context(), stubConfig()))
	r.wantServers("127.0.0.77")
	r.must(m.Close())
}

// stubborn is a manager that does not forget.
type stubborn struct {
	fakeBackend
	err error
}

func (s *stubborn) restore(context.Context) error { return s.err }

func TestABaseOfNoServersIsNoNews(t *testing.T) {
	r := newRig(t)
	m := r.open()
	if _, err := m.Base(t.Context()); !errors.Is(err, ErrNoBase) {
		t.Errorf("without a file: %v", err)
	}
	r.write("etc/resolv.conf", upstreamConf)
	for _, text := range []string{upstreamConf, "", "# Generated\n", "nameserver nonsense\n"} {
		r.write("etc/resolv.conf", text)
		if b, err := m.Base(t.Context()); err != nil || !slices.Equal(serverWords(b.Servers), []string{"192.0.2.53:53"}) {
			t.Errorf("%q: %+v, %v", text, b, err)
		}
	}
	r.must(os.Remove(r.path("etc/resolv.conf")))
	r.must(os.Mkdir(r.path("etc/resolv.conf"), 0o755))
	if b, err := m.Base(t.Context()); err != nil || len(b.Servers) != 1 {
		t.Errorf("a directory: %+v, %v", b, err)
	}
}

func TestWhatTheBusSaysIsAskedOnce(t *testing.T) {
	for name, tt := range map[string]struct {
		answer func(name string) (ownership, error)
		asked  []string
		why    error
	}{
		"nobody": {func(string) (ownership, error) { return ownerNone, nil }, []string{resolvedBus, nmBus, connmanBus}, nil},
		"no bus": {func(string) (ownership, error) { return ownerUnknown, fs.ErrNotExist }, []string{resolvedBus}, fs.ErrNotExist},
		"it hangs": {
			func(string) (ownership, error) { return ownerUnknown, context.DeadlineExceeded }, []string{resolvedBus}, context.DeadlineExceeded,
		},
	} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t)
			var asked []string
			r.opt.machine.bus = func(_ context.Context, name string) (ownership, error) {
				asked = append(asked, name)
				return tt.answer(name)
			}
			f, err := r.opt.machine.facts(t.Context(), nil)
			if err != nil || !slices.Equal(asked, tt.asked) || !errors.Is(f.busErr, tt.why) {
				t.Errorf("asked %q, %v, %v; want %q, %v", asked, f.busErr, err, tt.asked, tt.why)
			}
		})
	}
}

const (
	resolvedBus = "org.freedesktop.resolve1"
	nmBus       = "org.freedesktop.NetworkManager"
	connmanBus  = "net.connman"
)

func TestThePlanOfARefusalSaysWhatToDo(t *testing.T) {
	r := newRig(t)
	r.link("/run/NetworkManager/resolv.conf", "etc/resolv.conf")
	p, err := Preview(t.Context(), r.opt, stubConfig())
	if err != nil || p.Possible || p.Mode != modeNM || p.Hint == "" || p.Diff != "" || !strings.Contains(p.Reason, "does not run") {
		t.Errorf("got %+v, %v", p, err)
	}
	r.write("state/"+journalName, "{broken")
	if p, err := Preview(t.Context(), r.opt, stubConfig()); !errors.Is(err, errBadJournal) {
		t.Errorf("with a journal that cannot be read: %+v, %v", p, err)
	}
}

func TestThePlanOfAManagerIsWhatItIsTold(t *testing.T) {
	r := openresolv(t)
	p, err := r.open().Plan(t.Context(), stubConfig())
	if err != nil || !p.Possible || p.Mode != modeOpenresolv || p.Diff != planManaged(modeOpenresolv, stubConfig()) {
		t.Errorf("got %+v, %v", p, err)
	}
}

func TestDiffStatesHasTheFormOfDiff(t *testing.T) {
	for name, tt := range map[string]struct {
		before, after fileState
		want          string
	}{
		"a new file": {
			fileState{Kind: kindMissing}, regular("a\n"),
			"--- /etc/resolv.conf (there was none)\n+++ /etc/resolv.conf (a regular file)\n@@ -0,0 +1,1 @@\n+a\n",
		},
		"a line more": {
			regular("a\nb"), regular("x\na\nb\n"),
			"--- /etc/resolv.conf (a regular file)\n+++ /etc/resolv.conf (a regular file)\n@@ -1,2 +1,3 @@\n+x\n a\n-b (no newline at the end)\n+b\n",
		},
		"nothing left": {
			regular("a\n"), regular(""),
			"--- /etc/resolv.conf (a regular file)\n+++ /etc/resolv.conf (a regular file)\n@@ -1,1 +0,0 @@\n-a\n",
		},
	} {
		if got := diffStates(tt.before, tt.after); got != tt.want {
			t.Errorf("%s:\n%s\nwant\n%s", name, got, tt.want)
		}
	}
}

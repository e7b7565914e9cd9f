package osconfig

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"
)

// openBSD is a machine with a resolvd that has learnt one server.
type openBSD struct {
	*rig
	lock     *os.File // nil: resolvd does not run
	proposal []string // ours
	unwind   bool
	deaf     bool // resolvd does not do as it is told
}

const openBSDUser = "lookup file bind\nsearch corp.example # by hand\nfamily inet4\n"

func newOpenBSD(t *testing.T) *openBSD {
	o := &openBSD{rig: newRig(t)}
	o.opt.machine.tools = o.route
	o.write("var/run/resolvd.lock", "")
	o.write("dev/resolvd.lock", "")
	o.write("etc/resolv.conf", "nameserver 192.0.2.53 # resolvd: em0\n"+openBSDUser)
	var err error
	if o.lock, err = os.Open(o.path("dev/resolvd.lock")); err != nil {
		t.Fatal(err)
	}
	if held, err := tryLock(o.lock); held || err != nil {
		t.Fatal(held, err)
	}
	t.Cleanup(o.end)
	return o
}

// end ends resolvd.
func (o *openBSD) end() {
	if o.lock != nil {
		o.lock.Close()
		o.lock = nil
	}
}

func (o *openBSD) route(_ context.Context, r toolRun) ([]byte, error) {
	if r.program != routeProgram || len(r.args) < 2 || r.args[0] != "nameserver" || r.args[1] != "lo0" {
		return nil, fmt.Errorf("no program %s %q", r.program, r.args)
	}
	o.proposal = r.args[2:]
	if o.lock != nil && !o.deaf {
		o.regenerate("192.0.2.53")
	}
	return nil, nil
}

// regenerate writes the file as resolvd does: its lines, then all others.
func (o *openBSD) regenerate(lease string) {
	var b strings.Builder
	comment := ""
	if o.unwind {
		b.WriteString("nameserver 127.0.0.1 # resolvd: unwind\n")
		comment = "#"
	}
	for _, server := range o.proposal {
		fmt.Fprintf(&b, "%snameserver %s # resolvd: lo0\n", comment, server)
	}
	fmt.Fprintf(&b, "%snameserver %s # resolvd: em0\n", comment, lease)
	for line := range strings.Lines(o.read("etc/resolv.conf")) {
		if !strings.Contains(line, resolvdMark) {
			b.WriteString(line)
		}
	}
	o.replace("etc/resolv.conf", b.String())
}

func (o *openBSD) all() string { return o.read("etc/resolv.conf") + fmt.Sprint(o.proposal) }

func TestResolvdIsToldAndForgets(t *testing.T) {
	o := newOpenBSD(t)
	before := o.read("etc/resolv.conf")
	x := o.open()
	if s := x.Status(); s.Mode != modeResolvd || !slices.Contains(s.Trace, "resolvd runs") {
		t.Fatalf("status: %+v", s)
	}
	wantBase := func(server string) {
		t.Helper()
		b, err := x.Base(t.Context())
		if err != nil || !slices.Equal(serverWords(b.Servers), []string{server}) || !slices.Contains(b.Search, "corp.example") {
			t.Errorf("base: %+v, %v", b, err)
		}
	}
	wantBase("192.0.2.53:53")
	const want = "nameserver 127.0.0.77 # resolvd: lo0\nnameserver 192.0.2.53 # resolvd: em0\nlookup file bind\n" +
		"# meshdns keeps: search corp.example # by hand\nfamily inet4\n# meshdns put the next line here:\n" +
		"search foo-bar.ts.net corp.example\n"
	for range 2 {
		o.must(x.Apply(t.Context(), stubConfig()))
		if got := o.read("etc/resolv.conf"); got != want {
			t.Errorf("got %q, want %q", got, want)
		}
	}
	o.regenerate("198.51.100.1") // another lease
	x.look(t.Context())
	wantBase("198.51.100.1:53")
	o.regenerate("192.0.2.53")
	o.restore() // as another process does
	if got := o.read("etc/resolv.conf"); got != before || len(o.proposal) > 0 {
		t.Errorf("restored: %q and %q, want %q", got, o.proposal, before)
	}
	o.must(x.Close())
}

func TestAResolvdThatWentAwayNamesUsNoLonger(t *testing.T) {
	o := newOpenBSD(t)
	before := o.read("etc/resolv.conf")
	x := o.open()
	o.must(x.Apply(t.Context(), stubConfig()))
	o.end()
	o.must(x.Close())
	if got := o.read("etc/resolv.conf"); got != before {
		t.Errorf("got %q, want %q", got, before)
	}
}

func TestAResolvdThatDoesNotListenIsGivenUp(t *testing.T) {
	o := newOpenBSD(t)
	o.deaf = true
	before := o.read("etc/resolv.conf")
	x := o.open()
	if err := x.Apply(t.Context(), stubConfig()); err == nil || !strings.Contains(err.Error(), "names others first") {
		t.Errorf("got %v", err)
	}
	if got := o.read("etc/resolv.conf"); got != before || x.Status().Active {
		t.Errorf("got %q, want %q", got, before)
	}
}

func TestUnwindIsLeftAlone(t *testing.T) {
	o := newOpenBSD(t)
	o.unwind = true
	o.regenerate("192.0.2.53")
	before := o.all()
	err := o.open().Apply(t.Context(), stubConfig())
	if err == nil || !strings.Contains(err.Error(), "unwind answers") {
		t.Errorf("got %v", err)
	}
	if after := o.all(); after != before {
		t.Errorf("got %q, want %q", after, before)
	}
}

func TestWithoutResolvdTheFileIsChanged(t *testing.T) {
	o := newOpenBSD(t)
	o.end() // its lock file stays
	if s := o.open().Status(); s.Mode != modeDirect {
		t.Errorf("status: %+v", s)
	}
}

func TestDeathAtEveryStepWithResolvdIsUndone(t *testing.T) {
	c := stubConfig()
	c.Match = []string{"foo-bar.ts.net"}
	dieEverywhere(t, 30, func(t *testing.T) (*rig, func() string) {
		o := newOpenBSD(t)
		return o.rig, o.all
	}, c)
}

func TestSearchLines(t *testing.T) {
	for name, before := range map[string]string{
		"no file":        "",
		"nothing":        "nameserver 192.0.2.53\n",
		"a list":         "search a.example b.example\nnameserver 192.0.2.53\n",
		"several":        "domain a.example\nsearch\tb.example\n search c.example\n",
		"a comment":      "# search a.example\n",
		"a word like it": "searching x\n",
	} {
		t.Run(name, func(t *testing.T) {
			with := withSearch([]byte(before), []string{"foo-bar.ts.net"}, "host.example")
			if list := parseResolvConf(with).search; len(list) == 0 || list[0] != "foo-bar.ts.net" {
				t.Errorf("%q searches %q", with, list)
			}
			if again := withSearch(with, []string{"foo-bar.ts.net"}, "host.example"); string(again) != string(with) {
				t.Errorf("again: %q, want %q", again, with)
			}
			if got := withoutSearch(with); string(got) != before {
				t.Errorf("undone: %q, want %q", got, before)
			}
		})
	}
}

func FuzzSearchLines(f *testing.F) {
	f.Add([]byte(openBSDUser))
	f.Add([]byte(searchMark + "search x\n" + keptPrefix + "search y"))
	f.Fuzz(func(t *testing.T, data []byte) {
		rest := withoutSearch(data)
		with := withSearch(data, []string{"foo-bar.ts.net"}, "")
		if got := withoutSearch(with); string(got) != string(withoutSearch(endLine(slices.Clone(rest)))) {
			t.Errorf("%q became %q, and %q again", data, with, got)
		}
	})
}

// Where the proposal cannot be taken back, resolvd would name us again: that is still to be done.
func TestAProposalThatStaysIsNotForgotten(t *testing.T) {
	o := newOpenBSD(t)
	before := o.read("etc/resolv.conf")
	x := o.open()
	o.must(x.Apply(t.Context(), stubConfig()))
	works := o.opt.machine.tools
	o.opt.machine.tools = func(context.Context, toolRun) ([]byte, error) { return nil, os.ErrPermission }
	if _, err := Restore(t.Context(), o.opt); !errors.Is(err, os.ErrPermission) {
		t.Errorf("got %v", err)
	}
	o.opt.machine.tools = works
	if report := o.restore(); !report.Changed || o.read("etc/resolv.conf") != before || len(o.proposal) > 0 {
		t.Errorf("%s: %q, proposal %q", report, o.read("etc/resolv.conf"), o.proposal)
	}
	o.must(x.Close())
}

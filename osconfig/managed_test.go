package osconfig

import (
	"context"
	"errors"
	"os"
	"slices"
	"strings"
	"testing"
)

func TestReverseZonesGoFirstWhereThereIsNoRoom(t *testing.T) {
	match := []string{"1.10.in-addr.arpa", "a.example", "2.10.in-addr.arpa", "b.example"}
	for room, want := range map[int][]string{
		4: match,
		3: {"a.example", "b.example", "1.10.in-addr.arpa"},
		2: {"a.example", "b.example"},
		1: {"a.example"},
		0: {},
	} {
		fit, dropped := fitDomains(match, room)
		if !slices.Equal(fit, want) || dropped != len(match)-room {
			t.Errorf("room for %d: got %q, %d dropped; want %q", room, fit, dropped, want)
		}
	}
}

func TestWhoReadsPastSystemdResolved(t *testing.T) {
	for name, tt := range map[string]struct {
		conf string
		nss  []string
		want string // how it starts; "": nobody
	}{
		"its stub":                          {"nameserver 127.0.0.53\n", nil, ""},
		"its stub without forwarding":       {"nameserver 127.0.0.54\n", nil, ""},
		"its uplinks, and glibc asks it":    {"nameserver 192.0.2.53\n", []string{"files", "resolve", "dns"}, "programs that read"},
		"its uplinks, and glibc does not":   {"nameserver 192.0.2.53\n", []string{"files", "dns"}, "programs do not ask"},
		"its stub behind another server":    {"nameserver 192.0.2.53\nnameserver 127.0.0.53\n", nil, "programs do not ask"},
		"nothing at all, and glibc asks it": {"", []string{"resolve"}, "programs that read"},
	} {
		got := fileReaders(facts{data: []byte(tt.conf), nss: tt.nss})
		if (got == "") != (tt.want == "") || !strings.HasPrefix(got, tt.want) || got != "" && !strings.Contains(got, "ln -sf ") {
			t.Errorf("%s: got %q, want %q…", name, got, tt.want)
		}
	}
}

func TestHostSources(t *testing.T) {
	r := newRig(t)
	r.write("etc/nsswitch.conf", "passwd: files\nhosts:   files resolve [!UNAVAIL=return] dns # x\n")
	if got := r.opt.machine.hostSources(); !slices.Equal(got, []string{"files", "resolve", "[!UNAVAIL=return]", "dns"}) {
		t.Errorf("got %q", got)
	}
}

func TestPlanOfAManagerSaysWhatItIsTold(t *testing.T) {
	c := stubConfig()
	c.Match = []string{"foo-bar.ts.net", "64.100.in-addr.arpa"}
	for mode, want := range map[string][]string{
		modeResolved:   {"+DNS server 127.0.0.77:53\n", "+search domain foo-bar.ts.net\n", "+names below 64.100.in-addr.arpa\n"},
		modeNM:         {"meshdns.conf", "127.0.0.77", "foo-bar.ts.net"},
		modeResolvconf: {"Debian's resolvconf", "+nameserver 127.0.0.77\n", "+search foo-bar.ts.net\n"},
		modeOpenresolv: {"openresolv", "+nameserver 127.0.0.77\n"},
	} {
		got := planManaged(mode, c)
		for _, part := range want {
			if !strings.Contains(got, part) {
				t.Errorf("%s: %q is not in\n%s", mode, part, got)
			}
		}
	}
}

// A resolvconf of few lines that keeps records and writes the file as both programs do: ours alone while it is there.
const fakeResolvconf = `#!/bin/sh
root=ROOT; records=$root/run/resolvconf/interfaces
mkdir -p "$records"
write() {
	if [ -e "$records/meshdns" ]; then cat "$records/meshdns"; else cat "$records"/* 2>/dev/null; fi >"$root/etc/resolv.conf"
}
while [ $# -gt 0 ]; do
	case $1 in
	-m) shift ;;
	-x | -f) ;;
	-i) ls "$records"; exit ;;
	-l) cat "$records/$2"; exit ;;
	-a) cat >"$records/$2"; write; exit ;;
	-d) rm -f "$records/$2"; write; exit ;;
	esac
	shift
done
`

// openresolv is a machine with an openresolv that has one record.
func openresolv(t *testing.T) *rig {
	r := newRig(t)
	r.write("usr/sbin/resolvconf", strings.ReplaceAll(fakeResolvconf, "ROOT", r.root))
	r.must(os.Chmod(r.path("usr/sbin/resolvconf"), 0o755))
	r.write("run/resolvconf/interfaces/eth0", "nameserver 192.0.2.53\nsearch corp.example\n")
	r.write("etc/resolv.conf", "nameserver 192.0.2.53\nsearch corp.example\n")
	return r
}

func TestARecordIsGivenAndTakenBack(t *testing.T) {
	r := openresolv(t)
	m := r.open()
	b, err := m.Base(t.Context())
	if err != nil || !slices.Equal(serverWords(b.Servers), []string{"192.0.2.53:53"}) || !slices.Equal(b.Search, []string{"corp.example"}) {
		t.Errorf("base: %+v, %v", b, err)
	}
	r.must(m.Apply(t.Context(), stubConfig()))
	if got := r.read("etc/resolv.conf"); got != "nameserver 127.0.0.77\nsearch foo-bar.ts.net corp.example\n" {
		t.Errorf("applied: %q", got)
	}
	if s := m.Status(); !s.Active || s.Mode != modeOpenresolv {
		t.Errorf("status: %+v", s)
	}
	for range 2 {
		r.restore() // as another process does
	}
	if got := r.read("etc/resolv.conf"); got != "nameserver 192.0.2.53\nsearch corp.example\n" {
		t.Errorf("restored: %q", got)
	}
	r.must(m.Close())
}

func TestARecordOfTheBootBeforeIsGone(t *testing.T) {
	r := openresolv(t)
	m := r.open()
	r.must(m.Apply(t.Context(), stubConfig()))
	j, err := loadJournal(r.opt.StateDir)
	r.must(err)
	j.BootID = "another"
	r.must(r.opt.machine.disk.saveJournal(r.opt.StateDir, j))
	r.must(os.Remove(r.path("usr/sbin/resolvconf"))) // it may not work yet, so early
	if report := r.restore(); report.Changed || !strings.Contains(report.String(), "boot before") {
		t.Errorf("got %q", report)
	}
	if j, err := loadJournal(r.opt.StateDir); j != nil || err != nil {
		t.Errorf("the journal is left: %+v, %v", j, err)
	}
}

func TestARecordThatDoesNotWorkIsTakenBack(t *testing.T) {
	r := openresolv(t)
	r.write("usr/sbin/resolvconf", strings.ReplaceAll(strings.ReplaceAll(fakeResolvconf, "ROOT", r.root), `write; exit ;;`, `exit ;;`))
	err := r.open().Apply(t.Context(), stubConfig())
	if err == nil || !strings.Contains(err.Error(), "names others") {
		t.Errorf("got %v", err)
	}
	if got := r.read("run/resolvconf/interfaces/meshdns"); !strings.HasPrefix(got, "error: ") {
		t.Errorf("the record is left: %q", got)
	}
	if j, err := loadJournal(r.opt.StateDir); j != nil || err != nil {
		t.Errorf("the journal is left: %+v, %v", j, err)
	}
}

func TestAResolvconfThatFailsIsToldOf(t *testing.T) {
	r := openresolv(t)
	r.write("usr/sbin/resolvconf", "#!/bin/sh\necho broken >&2; exit 7\n")
	m := r.open()
	if err := m.Apply(t.Context(), stubConfig()); err == nil || !strings.Contains(err.Error(), "exit status 7 (broken)") {
		t.Errorf("got %v", err)
	}
}

func TestALostRecordIsGivenAgain(t *testing.T) {
	w := watch(t, func(r *rig) {
		*r = *openresolv(t)
	})
	w.must(os.Remove(w.path("run/resolvconf/interfaces/meshdns")))
	w.write("etc/resolv.conf", "nameserver 192.0.2.54\n")
	w.until("the record again", func() bool { return strings.Contains(w.read("etc/resolv.conf"), "127.0.0.77") })
	w.write("run/resolvconf/interfaces/eth0", "nameserver 198.51.100.7\n")
	w.learns("198.51.100.7:53")
	w.rig.restore()
	w.until("it to be heeded", func() bool { return !w.Status().Active })
}

// fakeBackend is a manager that does what it is told, or fails.
type fakeBackend struct {
	lost    bool
	failing error
	applied int
}

func (f *fakeBackend) apply(context.Context, Config) error {
	f.applied++
	f.lost = false
	return f.failing
}

func (f *fakeBackend) holds(context.Context, Config) (bool, error) { return !f.lost, nil }
func (f *fakeBackend) restore(context.Context) error               { return nil }
func (f *fakeBackend) base(context.Context) (Base, error)          { return Base{}, errors.New("unknown") }

func TestWhatAManagerLostItIsToldAgain(t *testing.T) {
	r := newRig(t)
	m := r.open()
	f := &fakeBackend{}
	m.mode, m.managed, m.inPlace, m.config = modeResolved, f, true, stubConfig()
	for _, lost := range []bool{false, true, false} {
		f.lost = lost
		was := f.applied
		r.must(m.tend(t.Context(), facts{}))
		if told := f.applied > was; told != lost {
			t.Errorf("lost %t: told again %t", lost, told)
		}
	}
	m.tellLocked()
	if got := m.Status().Problems; len(got) != 1 || !strings.Contains(got[0], "ln -sf ") { // nothing leads to its stub here
		t.Errorf("problems: %q", got)
	}
}

func TestABusThatGoesAwayMovesNothing(t *testing.T) {
	r := openresolv(t)
	m := r.applied()
	m.direct.machine.bus = func(context.Context, string) (ownership, error) { return ownerUnknown, context.DeadlineExceeded }
	if moved, _, err := m.follow(t.Context()); moved || err != nil {
		t.Errorf("moved %t, %v", moved, err)
	}
	m.direct.machine.bus = func(_ context.Context, name string) (ownership, error) { return ownerNone, nil }
	r.must(os.RemoveAll(r.path("usr/sbin/resolvconf")))
	r.must(os.RemoveAll(r.path("run/resolvconf")))
	if moved, _, _ := m.follow(t.Context()); !moved {
		t.Error("a manager that is gone still has the machine's DNS")
	}
}

package osconfig

import (
	"context"
	"errors"
	"net/netip"
	"os"
	"slices"
	"strings"
	"testing"
	"time"
)

// A Debian resolvconf of few lines: it lists records in an order of its own, and takes one with a loopback server for
// the only one.
const (
	fakeDebianResolvconf = `#!/bin/sh
root=ROOT; records=$root/run/resolvconf/interface
echo "$*" >>"$root/calls"
case $1 in
-a) cat >"$records/$2" ;;
-d) rm -f "$records/$2" ;;
esac
cd "$records"
for name in $("$root/lib/resolvconf/list-records"); do
	cat "$name"
	! grep -q "^nameserver 127" "$name" || break
done >"$root/run/resolvconf/resolv.conf"
`
	fakeListRecords = `#!/bin/sh
for name in lo.inet lo.meshdns tun0 eth1 eth0 ../escape; do [ ! -e "$name" ] || echo "$name"; done
`
)

// highPort is where the resolver is while port 53 is taken.
func highPort() netip.AddrPort { return netip.MustParseAddrPort("127.0.0.77:5335") }

func (r *rig) program(name, text string) {
	r.t.Helper()
	r.write(name, strings.ReplaceAll(text, "ROOT", r.root))
	r.must(os.Chmod(r.path(name), 0o755))
}

// debian is a machine with Debian's resolvconf that has two records, in another order than that of their names.
func debian(t *testing.T) *rig {
	r := newRig(t)
	r.program("sbin/resolvconf", fakeDebianResolvconf)
	r.program("lib/resolvconf/list-records", fakeListRecords)
	r.write("etc/resolvconf/update.d/libc", "")
	r.write("run/resolvconf/interface/eth0", "nameserver 192.0.2.53\nsearch corp.example lan")
	r.write("run/resolvconf/interface/eth1", "nameserver 198.51.100.1\ndomain branch.example\nsearch lan\n")
	r.write("run/resolvconf/escape", "nameserver 203.0.113.66\n")
	r.write("run/resolvconf/resolv.conf", "nameserver 198.51.100.1\nnameserver 192.0.2.53\n")
	r.link("/run/resolvconf/resolv.conf", "etc/resolv.conf")
	return r
}

func TestDebiansRecordIsGivenAndTakenBack(t *testing.T) {
	r := debian(t)
	before := r.snapshot()
	m := r.open()
	if s := m.Status(); s.Mode != modeResolvconf {
		t.Fatalf("mode %s: %q", s.Mode, s.Trace)
	}
	wantBase := func() {
		t.Helper()
		b, err := m.Base(t.Context())
		if err != nil || !slices.Equal(serverWords(b.Servers), []string{"198.51.100.1:53", "192.0.2.53:53"}) {
			t.Errorf("base: %v, %v; want it in the order of the records, without what lies elsewhere", serverWords(b.Servers), err)
		}
		if !slices.Equal(b.Search, []string{"branch.example", "lan", "corp.example"}) {
			t.Errorf("search: %q", b.Search)
		}
	}
	wantBase()
	for range 2 {
		r.must(m.Apply(t.Context(), stubConfig()))
		r.wantServers("127.0.0.77")
		wantBase() // without our record
	}
	if got := r.read("run/resolvconf/interface/lo.meshdns"); got != "nameserver 127.0.0.77\nsearch foo-bar.ts.net branch.example lan corp.example\n" {
		t.Errorf("the record is %q", got)
	}
	if got, err := os.Readlink(r.path("etc/resolv.conf")); err != nil || got != "/run/resolvconf/resolv.conf" {
		t.Errorf("resolvconf's link became %q, %v", got, err)
	}
	r.restore()
	r.wantServers("198.51.100.1", "192.0.2.53")
	r.must(m.Close())
	if after := r.snapshot(); after != before {
		t.Errorf("not as it was\nbefore:\n%s\nafter:\n%s", before, after)
	}
	if got := r.read("calls"); got != "-a lo.meshdns\n-a lo.meshdns\n-d lo.meshdns\n-d lo.meshdns\n" {
		t.Errorf("calls:\n%s", got)
	}
}

func TestDebiansRecordsNeedNoListOfTheirs(t *testing.T) {
	r := debian(t)
	r.must(os.Remove(r.path("lib/resolvconf/list-records")))
	x := &record{machine: r.opt.machine, kind: modeResolvconf, program: r.path("sbin/resolvconf")}
	if b, err := x.base(t.Context()); err != nil || len(b.Servers) > 0 {
		t.Errorf("got %+v, %v", b, err)
	}
}

func TestNamesOfRecordsLeadNowhere(t *testing.T) {
	for kind, program := range map[string]string{modeOpenresolv: "sbin/resolvconf", modeResolvconf: "lib/resolvconf/list-records"} {
		r := newRig(t)
		r.program(program, "#!/bin/sh\necho eth0 ../../etc/shadow /etc/shadow lo.meshdns meshdns tun0\n")
		x := &record{machine: r.opt.machine, kind: kind, program: r.path("sbin/resolvconf")}
		names, err := x.others(t.Context())
		want := []string{"eth0", "meshdns", "tun0"}
		if kind == modeOpenresolv {
			want = []string{"eth0", "lo.meshdns", "tun0"}
		}
		if err != nil || !slices.Equal(names, want) {
			t.Errorf("%s: got %q, %v; want %q", kind, names, err, want)
		}
	}
}

func TestHowOpenresolvIsCalled(t *testing.T) {
	r := openresolv(t)
	r.program("usr/sbin/resolvconf", strings.Replace(fakeResolvconf, "\n", "\necho \"$*\" >>ROOT/calls\n", 1))
	m := r.open()
	r.must(m.Apply(t.Context(), stubConfig()))
	r.must(m.Close())
	var changes []string
	for line := range strings.Lines(r.read("calls")) {
		if strings.Contains(line, "meshdns") {
			changes = append(changes, line)
		}
	}
	if want := []string{"-m 0 -x -a meshdns\n", "-f -d meshdns\n"}; !slices.Equal(changes, want) {
		t.Errorf("got %q, want %q", changes, want)
	}
}

func TestARecordHasNoPort(t *testing.T) {
	r := openresolv(t)
	before := r.snapshot()
	c := stubConfig()
	c.Servers[0].AddrPort = highPort()
	x := &record{machine: r.opt.machine, kind: modeOpenresolv, program: r.path("usr/sbin/resolvconf"), stateDir: r.opt.StateDir}
	for name, err := range map[string]error{"the manager": r.open().Apply(t.Context(), c), "the record": x.apply(t.Context(), c)} {
		if !errors.Is(err, ErrRefused) || !strings.Contains(err.Error(), "cannot name a port") {
			t.Errorf("%s: got %v", name, err)
		}
	}
	if after := r.snapshot(); after != before {
		t.Errorf("changed\nbefore:\n%s\nafter:\n%s", before, after)
	}
}

// The program may run scripts of an administrator's, which may hang and keep its output open.
func TestAResolvconfThatHangsIsNotWaitedFor(t *testing.T) {
	for name, script := range map[string]string{
		"itself":        "exec sleep 30",
		"a child of it": "sleep 30 & echo $! >ROOT/child; wait",
	} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t)
			r.program("sbin/resolvconf", "#!/bin/sh\n"+script+"\n")
			t.Cleanup(func() { r.endChild() })
			x := &record{machine: r.opt.machine, kind: modeOpenresolv, program: r.path("sbin/resolvconf")}
			ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
			defer cancel()
			start := time.Now()
			if _, err := x.run(ctx, nil, "-i"); !errors.Is(err, context.DeadlineExceeded) {
				t.Errorf("got %v, want to be told that it took too long", err)
			}
			if took := time.Since(start); took > 5*time.Second {
				t.Errorf("it took %s", took)
			}
		})
	}
}

// endChild ends the process whose number the script has left.
func (r *rig) endChild() {
	var pid int
	for _, digit := range strings.TrimSpace(strings.TrimPrefix(r.read("child"), "error: ")) {
		if digit < '0' || digit > '9' {
			return
		}
		pid = pid*10 + int(digit-'0')
	}
	if p, err := os.FindProcess(pid); err == nil && pid > 1 {
		_ = p.Kill() // it may have ended
	}
}

func TestADaemonThatResolvconfRestartsIsNotWaitedFor(t *testing.T) {
	r := newRig(t)
	r.program("sbin/resolvconf", "#!/bin/sh\nsleep 30 &\necho $! >ROOT/child\necho eth0\n")
	t.Cleanup(func() { r.endChild() })
	x := &record{machine: r.opt.machine, kind: modeOpenresolv, program: r.path("sbin/resolvconf")}
	if names, err := x.others(t.Context()); err != nil || !slices.Equal(names, []string{"eth0"}) {
		t.Errorf("got %q, %v; want what it said before it ended well", names, err)
	}
}

func TestWhatResolvconfPrintsIsBounded(t *testing.T) {
	r := newRig(t)
	r.program("sbin/resolvconf", "#!/bin/sh\nhead -c 4000000 /dev/zero\nhead -c 4000000 /dev/zero >&2\nexit $1\n")
	x := &record{machine: r.opt.machine, kind: modeOpenresolv, program: r.path("sbin/resolvconf")}
	out, err := x.run(t.Context(), nil, "0")
	if err != nil || len(out) != maxToolOutput || cap(out) > 2*maxToolOutput {
		t.Errorf("got %d bytes in %d, %v; want %d", len(out), cap(out), err, maxToolOutput)
	}
	if _, err := x.run(t.Context(), nil, "3"); err == nil || len(err.Error()) > 1000 || !strings.Contains(err.Error(), "exit status 3") {
		t.Errorf("got %d bytes of error, want at most 1000, with how it ended", len(err.Error()))
	}
}

// Death between the journal and the record, and between the record and the end of the journal.
func TestARecordsDeathAtEveryStepIsUndone(t *testing.T) {
	for name, make := range map[string]func(t *testing.T) *rig{"debian": debian, "openresolv": openresolv} {
		for n := 0; ; n++ {
			r := make(t)
			before := r.snapshot()
			where, killed := r.killAt(n, func(o Options) {
				if m, err := Open(t.Context(), o); err == nil && m.Apply(t.Context(), stubConfig()) == nil {
					_ = m.Close()
				}
			})
			if !killed {
				if n < 9 {
					t.Errorf("%s: only %d steps", name, n)
				}
				break
			}
			r.restore()
			if after := r.snapshot(); lessTimes(after) != lessTimes(before) {
				t.Fatalf("%s: killed before %s (%d): not as it was\nbefore:\n%s\nafter:\n%s", name, where, n, before, after)
			}
		}
	}
}

// lessTimes is a snapshot without times: resolvconf writes its file anew, with what was in it before.
func lessTimes(snapshot string) string {
	var lines []string
	for line := range strings.Lines(snapshot) {
		before, _, _ := strings.Cut(line, " map[")
		lines = append(lines, before)
	}
	return strings.Join(lines, "\n")
}

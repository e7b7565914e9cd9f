package osconfig

import (
	"errors"
	"os"
	"os/exec"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// inNamespaces runs the test again, in a process with mounts and links of its own. It reports whether this is that
// process.
func inNamespaces(t *testing.T) bool {
	t.Helper()
	const mark = "OSCONFIG_TEST_NAMESPACES"
	if os.Getenv(mark) != "" {
		return true
	}
	if os.Geteuid() != 0 {
		t.Skip("NOT PROVEN: not root")
	}
	unshare, err := exec.LookPath("unshare")
	if err != nil {
		t.Skip("NOT PROVEN: unshare is not installed (make deps)")
	}
	// Each part of the name has an expression of its own.
	name := "^" + strings.ReplaceAll(t.Name(), "/", "$/^") + "$"
	cmd := exec.CommandContext(t.Context(), unshare, "--mount", "--net", "--propagation", "private", os.Args[0], "-test.run="+name, "-test.v")
	cmd.Env = append(os.Environ(), mark+"=1", "GORACE=atexit_sleep_ms=0")
	out, err := cmd.CombinedOutput()
	switch {
	case err != nil || !strings.Contains(string(out), "--- "):
		t.Errorf("in namespaces of its own: %v\n%s", err, out)
	case strings.Contains(string(out), "--- SKIP"):
		t.Skipf("in namespaces of its own:\n%s", out)
	}
	return false
}

// bind mounts a file of the test's over resolv.conf, as containers do, until the test ends.
func (r *rig) bind(flags uintptr) {
	r.t.Helper()
	r.write("given", upstreamConf)
	r.write("etc/resolv.conf", "# below the mount\n")
	r.must(unix.Mount(r.path("given"), r.path("etc/resolv.conf"), "", unix.MS_BIND, ""))
	r.t.Cleanup(func() {
		if err := unix.Unmount(r.path("etc/resolv.conf"), 0); err != nil {
			r.t.Error(err)
		}
	})
	if flags != 0 {
		r.must(unix.Mount("", r.path("etc/resolv.conf"), "", unix.MS_REMOUNT|unix.MS_BIND|flags, ""))
	}
}

func TestAMountIsOverwrittenInPlace(t *testing.T) {
	if !inNamespaces(t) {
		return
	}
	r := newRig(t)
	r.bind(0)
	before := r.snapshot()
	m := r.applied()
	r.wantServers("127.0.0.77")
	if got := r.read("given"); !strings.Contains(got, "\nnameserver 127.0.0.77\n") {
		t.Errorf("the mounted file is %q", got)
	}
	j, err := loadJournal(r.opt.StateDir)
	if err != nil || j == nil || !j.InPlace {
		t.Errorf("the journal: %+v, %v", j, err)
	}
	c := stubConfig()
	c.Search = nil // shorter
	r.must(m.Apply(t.Context(), c))
	r.must(m.Close())
	if after := r.snapshot(); after != before {
		t.Errorf("not as it was\nbefore:\n%s\nafter:\n%s", before, after)
	}
}

// Like TestDeathAtEverySystemCallIsUndone, with the system calls of a write in place.
func TestDeathAtEverySystemCallOnAMountIsUndone(t *testing.T) {
	if !inNamespaces(t) {
		return
	}
	for phase, prepare := range map[string]func(r *rig) func(Options){
		"taking over": func(*rig) func(Options) {
			return func(o Options) {
				if m, err := Open(t.Context(), o); err == nil {
					_ = m.Apply(t.Context(), stubConfig())
				}
			}
		},
		"giving back": func(r *rig) func(Options) {
			r.applied()
			return func(o Options) { _, _ = Restore(t.Context(), o) }
		},
	} {
		steps := map[string]bool{}
		for n := 0; ; n++ {
			done := false
			t.Run(phase, func(t *testing.T) {
				r := newRig(t)
				r.bind(0)
				before := r.snapshot()
				where, killed := r.killAt(n, prepare(r))
				if !killed {
					done = true
					return
				}
				steps[where] = true
				if got := r.read("etc/resolv.conf"); strings.TrimRight(got, "\n")+"\n" != upstreamConf && !strings.Contains(got, "\nnameserver 127.0.0.77\n") {
					t.Errorf("killed before %s (%d): programs read %q", where, n, got)
				}
				r.restore()
				// Where all is as it was already, the time of that is nothing to put back.
				if after := r.snapshot(); lessTimes(after) != lessTimes(before) {
					t.Errorf("killed before %s (%d): not as it was\nbefore:\n%s\nafter:\n%s", where, n, before, after)
				}
			})
			if done || t.Failed() {
				break
			}
		}
		for _, step := range []string{"pwrite", "fsync", "ftruncate"} {
			if !steps[step+" /etc/resolv.conf"] && !t.Failed() {
				t.Errorf("%s: never killed before %s: %v", phase, step, steps)
			}
		}
	}
}

func TestWhatTheKernelForbidsIsRefused(t *testing.T) {
	flag := func(r *rig, name string, flag int) {
		f, err := os.Open(r.path(name))
		r.must(err)
		defer f.Close()
		was, err := unix.IoctlGetInt(int(f.Fd()), unix.FS_IOC_GETFLAGS)
		if err == nil {
			err = unix.IoctlSetPointerInt(int(f.Fd()), unix.FS_IOC_SETFLAGS, was|flag)
		}
		if errors.Is(err, unix.ENOTTY) || errors.Is(err, unix.EOPNOTSUPP) {
			r.t.Skip("NOT PROVEN: a tmpfs of this kernel has no flags (before 6.6)")
		}
		r.must(err)
		r.t.Cleanup(func() {
			f, err := os.Open(r.path(name))
			r.must(err)
			defer f.Close()
			r.must(unix.IoctlSetPointerInt(int(f.Fd()), unix.FS_IOC_SETFLAGS, was))
		})
	}
	for name, tt := range map[string]struct {
		make func(r *rig)
		why  string
	}{
		"a read-only mount": {func(r *rig) { r.bind(unix.MS_RDONLY) }, "/etc/resolv.conf is a read-only mount"},
		"a read-only /etc": {func(r *rig) {
			r.write("etc/resolv.conf", upstreamConf)
			r.must(unix.Mount(r.path("etc"), r.path("etc"), "", unix.MS_BIND, ""))
			r.t.Cleanup(func() { r.must(unix.Unmount(r.path("etc"), 0)) })
			r.must(unix.Mount("", r.path("etc"), "", unix.MS_REMOUNT|unix.MS_BIND|unix.MS_RDONLY, ""))
		}, "/etc is read-only"},
		"an immutable file":           {func(r *rig) { r.write("etc/resolv.conf", upstreamConf); flag(r, "etc/resolv.conf", flagImmutable) }, "/etc/resolv.conf is immutable"},
		"an append-only file":         {func(r *rig) { r.write("etc/resolv.conf", upstreamConf); flag(r, "etc/resolv.conf", flagAppend) }, "/etc/resolv.conf is immutable or append-only"},
		"an immutable /etc":           {func(r *rig) { r.write("etc/resolv.conf", upstreamConf); flag(r, "etc", flagImmutable) }, "/etc is immutable"},
		"a mount of an immutable one": {func(r *rig) { r.bind(0); flag(r, "etc/resolv.conf", flagImmutable) }, "immutable"},
	} {
		t.Run(name, func(t *testing.T) {
			if !inNamespaces(t) {
				return
			}
			r := newRig(t)
			tt.make(r)
			before := r.snapshot()
			m := r.open()
			err := m.Apply(t.Context(), stubConfig())
			if !errors.Is(err, ErrRefused) || !strings.Contains(err.Error(), tt.why) {
				t.Errorf("got %v, want it refused since %q", err, tt.why)
			}
			r.must(m.Close())
			if after := r.snapshot(); after != before {
				t.Errorf("changed\nbefore:\n%s\nafter:\n%s", before, after)
			}
		})
	}
}

// A file that became immutable while it is ours cannot be put back; the journal stays until it can.
func TestWhatCannotBePutBackIsPutBackLater(t *testing.T) {
	if !inNamespaces(t) {
		return
	}
	r := newRig(t)
	r.write("etc/resolv.conf", upstreamConf)
	before := r.snapshot()
	m := r.applied()
	r.must(unix.Mount(r.path("etc"), r.path("etc"), "", unix.MS_BIND, ""))
	r.must(unix.Mount("", r.path("etc"), "", unix.MS_REMOUNT|unix.MS_BIND|unix.MS_RDONLY, ""))
	err := m.Close()
	var hinted interface{ Hint() string }
	if !errors.Is(err, unix.EROFS) || !errors.As(err, &hinted) || !strings.Contains(hinted.Hint(), "meshdns dns restore") {
		t.Errorf("got %v, want EROFS with a hint", err)
	}
	if !m.Status().Active {
		t.Error("Status says that nothing of ours is in place")
	}
	r.must(unix.Unmount(r.path("etc"), 0))
	r.restore()
	if after := r.snapshot(); after != before {
		t.Errorf("not as it was\nbefore:\n%s\nafter:\n%s", before, after)
	}
}

func TestTheKernelsLinkIsMadeAndGoes(t *testing.T) {
	if _, err := os.Stat("/dev/net/tun"); err != nil {
		t.Skip("NOT PROVEN: ", err)
	}
	if !inNamespaces(t) {
		return
	}
	l, err := openTUN()
	if err != nil {
		t.Fatal(err)
	}
	name := linkName(l.index)
	if !strings.HasPrefix(name, "meshdns") {
		t.Errorf("link %d is called %q", l.index, name)
	}
	second, err := openTUN() // of another process, say
	if err != nil {
		t.Fatal(err)
	}
	if second.index == l.index || linkName(second.index) == name {
		t.Errorf("two links are one: %d", l.index)
	}
	if err := errors.Join(l.close(), second.close()); err != nil {
		t.Error(err)
	}
	eventually(t, "the links to be gone", func() bool { return linkName(l.index) == "" && linkName(second.index) == "" })
}

func TestAttributesComeAndGo(t *testing.T) {
	r := newRig(t)
	r.write("etc/x", "")
	path := r.path("etc/x")
	if got, err := readXattrs(path); err != nil || len(got) != 0 {
		t.Errorf("a new file has %q, %v", got, err)
	}
	const name = "trusted.test" // tmpfs has no user's before 6.6
	if err := setXattr(path, name, []byte("a\x00b")); err != nil {
		t.Skip("NOT PROVEN: no attributes here: ", err)
	}
	r.must(setXattr(path, "trusted.empty", nil))
	got, err := readXattrs(path)
	if err != nil || len(got) != 2 || string(got[name]) != "a\x00b" || len(got["trusted.empty"]) != 0 {
		t.Errorf("got %q, %v", got, err)
	}
	r.link("x", "etc/link")
	if got, err := readXattrs(r.path("etc/link")); err != nil || len(got) != 0 {
		t.Errorf("a link has those of its target: %q, %v", got, err)
	}
	if _, err := readXattrs(r.path("etc/none")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("of no file: %v", err)
	}
	// What cannot be set is told, and the file made all the same.
	s := regular("text")
	s.Xattrs = map[string][]byte{"nonsense.test": nil, name: []byte("value")}
	unset, err := disk{}.make(path, s)
	if err != nil || strings.Join(unset, " ") != "nonsense.test" || r.read("etc/x") != "text" {
		t.Errorf("not set: %q, %v", unset, err)
	}
}

// SELinux denies a file with a wrong label to the programs that it confines (tailscale 20149).
func TestASecurityLabelComesAlong(t *testing.T) {
	r := newRig(t)
	r.write("etc/resolv.conf", upstreamConf)
	const name, label = "security.selinux", "system_u:object_r:net_conf_t:s0\x00"
	if err := setXattr(r.path("etc/resolv.conf"), name, []byte(label)); err != nil {
		if os.Getenv("CI") == "true" && os.Geteuid() == 0 {
			t.Fatal(err)
		}
		t.Skip("NOT PROVEN: no labels here: ", err)
	}
	labelled := func(when string) {
		t.Helper()
		got, err := readXattrs(r.path("etc/resolv.conf"))
		if err != nil || string(got[name]) != label {
			t.Errorf("%s it has %q, %v", when, got, err)
		}
	}
	m := r.applied()
	labelled("while taken over")
	if err := m.Close(); err != nil {
		t.Fatal(err)
	}
	labelled("given back")
	if got := r.read("etc/resolv.conf"); got != upstreamConf {
		t.Errorf("given back it is %q", got)
	}
}

// Programs of every user read the file (tailscale 12609).
func TestTheUmaskTakesTheFileFromNobody(t *testing.T) {
	for _, before := range []string{"regular", "missing", "symlink-rel"} {
		r := newRig(t)
		shapes()[before](r)
		old := unix.Umask(0o077) // the process's: no test that runs beside this one makes files
		m := r.applied()
		unix.Umask(old)
		info, err := os.Stat(r.path("etc/resolv.conf"))
		if err != nil || info.Mode().Perm() != 0o644 {
			t.Errorf("%s: %v, %v", before, info.Mode(), err)
		}
		if err := m.Close(); err != nil {
			t.Fatal(err)
		}
	}
}

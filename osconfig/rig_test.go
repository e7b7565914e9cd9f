package osconfig

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

const upstreamConf = "search corp.example\nnameserver 192.0.2.53\noptions timeout:1\n"

func stubConfig() Config {
	return Config{
		Servers: []Server{{AddrPort: netip.MustParseAddrPort("127.0.0.77:53")}},
		Search:  []string{"foo-bar.ts.net"},
	}
}

// rig is a machine of files below a directory of the test's own.
type rig struct {
	t    *testing.T
	root string
	opt  Options
}

func newRig(t *testing.T) *rig {
	t.Helper()
	if nativeMode != modeDirect {
		t.Skip("no resolv.conf on this system")
	}
	r := &rig{t: t, root: memoryDir(t)}
	for _, dir := range []string{"etc", "run", "state"} {
		if err := os.Mkdir(filepath.Join(r.root, dir), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	r.opt = Options{
		StateDir: filepath.Join(r.root, "state"),
		machine: machine{
			disk: disk{root: r.root},
			bus:  func(context.Context, string) (ownership, error) { return ownerNone, nil },
			host: func() string { return "laptop" },
		},
	}
	return r
}

// memoryDir is a directory of the test's own where fsync costs nothing, if the system has such.
func memoryDir(t *testing.T) string {
	dir, err := os.MkdirTemp("/dev/shm", "osconfig-test-")
	if err != nil {
		return t.TempDir()
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	return dir
}

func (r *rig) path(name string) string { return filepath.Join(r.root, name) }

func (r *rig) write(name, text string) {
	r.t.Helper()
	if err := os.MkdirAll(filepath.Dir(r.path(name)), 0o755); err != nil {
		r.t.Fatal(err)
	}
	if err := os.WriteFile(r.path(name), []byte(text), 0o644); err != nil {
		r.t.Fatal(err)
	}
}

func (r *rig) link(text, name string) {
	r.t.Helper()
	if err := os.Symlink(text, r.path(name)); err != nil {
		r.t.Fatal(err)
	}
}

// replace puts a new file in the place of the old one, as managers do.
func (r *rig) replace(name, text string) {
	r.t.Helper()
	r.write(name+".new", text)
	if err := os.Rename(r.path(name+".new"), r.path(name)); err != nil {
		r.t.Fatal(err)
	}
}

// read is what lies at a path, or how reading it fails.
func (r *rig) read(name string) string {
	data, err := os.ReadFile(r.path(name))
	if err != nil {
		return "error: " + errors.Unwrap(err).Error()
	}
	return string(data)
}

func (r *rig) open() *Manager {
	r.t.Helper()
	m, err := Open(r.t.Context(), r.opt)
	if err != nil {
		r.t.Fatalf("Open: %v", err)
	}
	return m
}

// applied is a Manager that has taken the machine over.
func (r *rig) applied() *Manager {
	r.t.Helper()
	m := r.open()
	if err := m.Apply(r.t.Context(), stubConfig()); err != nil {
		r.t.Fatalf("Apply: %v", err)
	}
	return m
}

func (r *rig) restore() Report {
	r.t.Helper()
	report, err := Restore(r.t.Context(), r.opt)
	if err != nil {
		r.t.Fatalf("Restore: %v", err)
	}
	return report
}

// snapshot is everything below /etc and in the state directory, in words; the lock aside, which says nothing.
func (r *rig) snapshot() string {
	r.t.Helper()
	var b strings.Builder
	for _, dir := range []string{"etc", "state"} {
		err := filepath.WalkDir(r.path(dir), func(path string, e fs.DirEntry, err error) error {
			if err != nil || e.Name() == "dns.lock" || e.IsDir() && path == r.path(dir) {
				return err
			}
			s, err := disk{}.capture(path)
			if err != nil {
				return err
			}
			fmt.Fprintf(&b, "%s: %s %q %q %o %d:%d %v %s\n", strings.TrimPrefix(path, r.root), s.Kind, s.Link, s.Data, s.Mode, s.UID, s.GID, s.Xattrs, s.Mtime)
			return nil
		})
		if err != nil {
			r.t.Fatal(err)
		}
	}
	return b.String()
}

func (r *rig) wantServers(want ...string) {
	r.t.Helper()
	data, err := r.opt.machine.disk.readThrough(confPath)
	if err != nil {
		r.t.Fatal(err)
	}
	if got := addrWords(parseResolvConf(data).nameservers); !slices.Equal(got, want) {
		r.t.Errorf("resolv.conf names %q, want %q", got, want)
	}
}

func addrWords(addrs []netip.Addr) []string {
	var words []string
	for _, a := range addrs {
		words = append(words, a.String())
	}
	return words
}

func serverWords(servers []Server) []string {
	var words []string
	for _, s := range servers {
		words = append(words, s.AddrPort.String())
	}
	return words
}

// shapes are the forms of resolv.conf that need no mount or attribute; osconfig/lab has all sixteen.
func shapes() map[string]func(r *rig) {
	return map[string]func(r *rig){
		"regular":     func(r *rig) { r.write("etc/resolv.conf", upstreamConf) },
		"symlink-rel": func(r *rig) { r.write("run/x/rc", upstreamConf); r.link("../run/x/rc", "etc/resolv.conf") },
		"symlink-abs": func(r *rig) { r.write("run/x/rc", upstreamConf); r.link("/run/x/rc", "etc/resolv.conf") },
		"chain": func(r *rig) {
			r.write("run/x/rc", upstreamConf)
			r.link("/run/x/rc", "etc/alt")
			r.link("alt", "etc/resolv.conf")
		},
		"dangling":   func(r *rig) { r.link("../run/nowhere/rc", "etc/resolv.conf") },
		"missing":    func(*rig) {},
		"empty":      func(r *rig) { r.write("etc/resolv.conf", "") },
		"crlf":       func(r *rig) { r.write("etc/resolv.conf", "nameserver 192.0.2.53\r\nsearch a.example\r\n") },
		"no-newline": func(r *rig) { r.write("etc/resolv.conf", "nameserver 192.0.2.53") },
		"comments": func(r *rig) {
			r.write("etc/resolv.conf", "nameserver 192.0.2.53  # eth0:v4\n; old\nsortlist 1.2.3.0\nnameserver fe80::1%eth0\n")
		},
		"mode": func(r *rig) {
			r.write("etc/resolv.conf", upstreamConf)
			if err := os.Chmod(r.path("etc/resolv.conf"), 0o640); err != nil {
				r.t.Fatal(err)
			}
		},
	}
}

func TestEveryShapeIsTakenOverAndComesBack(t *testing.T) {
	for name, shape := range shapes() {
		t.Run(name, func(t *testing.T) {
			undo := map[string]func(*rig, *Manager){
				"Close":           func(r *rig, m *Manager) { r.must(m.Close()) },
				"Apply of zero":   func(r *rig, m *Manager) { r.must(m.Apply(t.Context(), Config{})) },
				"Restore":         func(r *rig, _ *Manager) { r.restore() },
				"the next Open":   func(r *rig, _ *Manager) { r.open() },
				"twice and again": func(r *rig, m *Manager) { r.restore(); r.must(m.Close()); r.restore() },
			}
			for how, undo := range undo {
				t.Run(how, func(t *testing.T) {
					r := newRig(t)
					shape(r)
					before := r.snapshot()
					m := r.applied()
					r.wantServers("127.0.0.77")
					if !m.Status().Active {
						t.Error("Status does not say that we are named")
					}
					undo(r, m)
					if after := r.snapshot(); after != before {
						t.Errorf("not as it was\nbefore:\n%s\nafter:\n%s", before, after)
					}
				})
			}
		})
	}
}

func (r *rig) must(err error) {
	r.t.Helper()
	if err != nil {
		r.t.Fatal(err)
	}
}

// died is what a disk panics with when its process is killed.
type died struct{ at string }

// killAt runs f in a process that is killed right before its n-th change of the disk. It reports whether f got there,
// and where that was.
func (r *rig) killAt(n int, f func(Options)) (where string, killed bool) {
	opt := r.opt
	opt.machine.disk.step = func(op, path string) {
		if n--; n < 0 {
			panic(died{op + " " + strings.TrimPrefix(path, r.root)})
		}
	}
	defer func() {
		d, ok := recover().(died)
		if !ok {
			return
		}
		where, killed = d.at, true
	}()
	f(opt)
	return "", false
}

// At whichever system call a process dies that takes the machine over, or gives it back: what programs read is what was
// there or what we wrote, and Restore, and likewise the next start, make it what it was.
func TestDeathAtEverySystemCallIsUndone(t *testing.T) {
	phases := map[string]func(t *testing.T, r *rig) func(Options){
		"taking over": func(t *testing.T, r *rig) func(Options) {
			return func(o Options) {
				if m, err := Open(t.Context(), o); err == nil {
					_ = m.Apply(t.Context(), stubConfig())
				}
			}
		},
		"taking over anew": func(t *testing.T, r *rig) func(Options) {
			r.applied()
			return func(o Options) {
				m, err := Open(t.Context(), o)
				if err != nil {
					return
				}
				c := stubConfig()
				if m.Apply(t.Context(), c) == nil {
					c.Search = append(c.Search, "more.example")
					_ = m.Apply(t.Context(), c)
				}
			}
		},
		"giving back": func(t *testing.T, r *rig) func(Options) {
			r.applied()
			return func(o Options) { _, _ = Restore(t.Context(), o) }
		},
	}
	for phase, prepare := range phases {
		for name, shape := range shapes() {
			for recovery, recover := range map[string]func(r *rig){
				"restore":    func(r *rig) { r.restore() },
				"next start": func(r *rig) { r.must(r.applied().Close()) },
			} {
				t.Run(phase+"/"+name+"/"+recovery, func(t *testing.T) {
					t.Parallel()
					for n := 0; ; n++ {
						r := newRig(t)
						shape(r)
						before, text := r.snapshot(), r.read("etc/resolv.conf")
						f := prepare(t, r)
						where, killed := r.killAt(n, f)
						if !killed {
							if n < 4 {
								t.Errorf("only %d system calls were counted", n)
							}
							return
						}
						got := r.read("etc/resolv.conf")
						if got != text && !strings.Contains(got, "\nnameserver 127.0.0.77\n") {
							t.Errorf("killed before %s (%d): programs read %q", where, n, got)
						}
						recover(r)
						if after := r.snapshot(); after != before {
							t.Fatalf("killed before %s (%d): not as it was\nbefore:\n%s\nafter:\n%s", where, n, before, after)
						}
					}
				})
			}
		}
	}
}

func TestRecoveryMayDieToo(t *testing.T) {
	for name, shape := range shapes() {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			for first := range 40 {
				for second := range 12 {
					r := newRig(t)
					shape(r)
					before := r.snapshot()
					if _, killed := r.killAt(first, func(o Options) {
						if m, err := Open(t.Context(), o); err == nil {
							_ = m.Apply(t.Context(), stubConfig())
						}
					}); !killed {
						return
					}
					r.killAt(second, func(o Options) { _, _ = Restore(t.Context(), o) })
					r.restore()
					if after := r.snapshot(); after != before {
						t.Fatalf("killed at %d and %d: not as it was\nbefore:\n%s\nafter:\n%s", first, second, before, after)
					}
				}
			}
		})
	}
}

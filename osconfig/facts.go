package osconfig

import (
	"cmp"
	"context"
	"errors"
	"io/fs"
	"net/netip"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
)

// machine is where facts come from. Its zero value is the machine that we run on.
type machine struct {
	disk  disk
	bus   func(ctx context.Context, name string) (ownership, error) // nil: the system bus
	host  func() string                                             // nil: os.Hostname
	reach func(netip.Addr) string                                   // the link that an address is reached by; nil: as the kernel says

	system string                                               // tests: another operating system's mode than this one's
	tools  func(ctx context.Context, r toolRun) ([]byte, error) // nil: they are run
	win    *windowsEdge                                         // nil: this Windows
}

// native is the mode in which this operating system says whom programs ask.
func (m machine) native() string { return cmp.Or(m.system, nativeMode) }

// windows is what Windows alone has.
func (m machine) windows() windowsEdge {
	if m.win != nil {
		return *m.win
	}
	return edge()
}

// facts looks at the machine as it is, or with file in place of what lies at confPath: what would be there without us.
func (m machine) facts(ctx context.Context, file *fileState) (facts, error) {
	f := facts{system: m.native()}
	var err error
	if f.system == modeNRPT {
		f.policy, err = newNRPT(m, "").policyRules()
	}
	if f.system != modeDirect {
		return f, err
	}
	if file != nil {
		f.file = *file
	} else if f.file, err = m.disk.capture(m.disk.real(confPath)); err != nil {
		return f, err
	}
	t, data := m.disk.leads(f.file)
	f.hops, f.data = t.hops, data
	mounts, err := readMounts()
	if err != nil && !errors.Is(err, errors.ErrUnsupported) {
		return f, err
	}
	real := m.disk.real(confPath)
	f.mount = mountOn(mounts, real)
	f.sealed = f.file.Kind == kindRegular && sealed(real)
	f.dirErr = writable(filepath.Dir(real))
	if f.mount != nil {
		f.fileErr = writable(real)
	}
	m.askBus(ctx, &f)
	m.findResolvconf(&f)
	f.resolvd = m.resolvdRuns()
	f.nss = m.hostSources()
	return f, nil
}

// hostSources is what glibc asks for the names of hosts.
func (m machine) hostSources() []string {
	data, err := m.disk.readThrough("/etc/nsswitch.conf")
	if err != nil {
		return nil
	}
	for line := range strings.Lines(string(data)) {
		line, _, _ = strings.Cut(line, "#")
		if sources, ok := strings.CutPrefix(strings.TrimSpace(line), "hosts:"); ok {
			return strings.Fields(sources)
		}
	}
	return nil
}

// leads is where a file at confPath leads and what programs read there.
func (d disk) leads(file fileState) (trail, []byte) {
	t := trail{end: confPath, hops: []string{confPath}, dirs: []string{path.Dir(confPath)}}
	if file.Kind != kindSymlink {
		return t, file.Data
	}
	target := file.Link
	if !path.IsAbs(target) {
		target = path.Join(path.Dir(confPath), target)
	}
	on, _ := d.follow(target)
	t.end, t.hops, t.dirs = on.end, append(t.hops, on.hops...), append(t.dirs, on.dirs...)
	data, err := d.readThrough(target)
	if err != nil {
		data = nil // a directory, say: nothing that programs could read either
	}
	return t, data
}

// askBus finds out which managers run.
func (m machine) askBus(ctx context.Context, f *facts) {
	ctx, done := shareBus(ctx)
	defer done()
	f.resolved, f.busErr = m.owner(ctx, resolvedName)
	if f.busErr == nil {
		f.nm, f.busErr = m.owner(ctx, nmName)
	}
	if f.busErr == nil {
		f.connman, f.busErr = m.owner(ctx, connmanName)
	}
	if f.nm == ownerPresent {
		f.nmMode, f.nmRcManager = nmFacts(ctx)
	}
}

// owner says whether a program owns a name on the system bus.
func (m machine) owner(ctx context.Context, name string) (ownership, error) {
	if m.bus != nil {
		return m.bus(ctx, name)
	}
	return busOwner(ctx, name)
}

// findResolvconf finds out which of the three programs of that name is installed. They cannot be told apart by what
// they say of themselves: systemd's prints a version of systemd.
func (m machine) findResolvconf(f *facts) {
	for _, dir := range []string{"/usr/sbin", "/sbin", "/usr/bin", "/bin", "/usr/local/sbin", "/usr/local/bin"} {
		t, err := m.disk.follow(path.Join(dir, "resolvconf"))
		if err != nil {
			continue
		}
		f.program = m.disk.real(path.Join(dir, "resolvconf"))
		switch {
		case path.Base(t.end) == "resolvectl":
			f.resolvconf = modeResolved
		case m.exists("/etc/resolvconf/update.d"):
			f.resolvconf = modeResolvconf
		default:
			f.resolvconf = modeOpenresolv
			f.records = slices.ContainsFunc(openresolvRecords(), m.holds)
		}
		return
	}
}

// openresolvRecords are where openresolv keeps them: below /var/run on the BSDs.
func openresolvRecords() []string {
	return []string{
		"/run/resolvconf/interfaces", "/run/resolvconf/keys",
		"/var/run/resolvconf/interfaces", "/var/run/resolvconf/keys",
	}
}

func (m machine) exists(name string) bool {
	_, err := os.Stat(m.disk.real(name))
	return err == nil
}

// holds reports whether a directory has entries.
func (m machine) holds(dir string) bool {
	f, err := os.Open(m.disk.real(dir))
	if err != nil {
		return false
	}
	defer f.Close()
	names, err := f.Readdirnames(1)
	return err == nil && len(names) > 0
}

// hostDomain is the domain of the host's own name, which is searched where resolv.conf says nothing (resolv.conf(5)).
func (m machine) hostDomain() string {
	name := m.host
	if name == nil {
		name = func() string {
			host, err := os.Hostname()
			if err != nil {
				return ""
			}
			return host
		}
	}
	_, domain, _ := strings.Cut(name(), ".")
	domain, ok := cleanDomain(domain)
	if !ok || domain == "." {
		return ""
	}
	return domain
}

// bootID tells this boot of the machine from others; empty where the kernel does not say.
func (m machine) bootID() string {
	data, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if errors.Is(err, fs.ErrNotExist) {
		return ""
	}
	return strings.TrimSpace(string(data))
}

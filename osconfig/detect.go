package osconfig

import (
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"path"
	"slices"
	"strings"
)

// The modes: who owns the machine's DNS, and so how it is changed.
const (
	modeOff        = "off"      // nobody asked for a change
	modeDirect     = "direct"   // no program owns /etc/resolv.conf: it is ours to change
	modeResolved   = "resolved" // systemd-resolved
	modeNM         = "networkmanager"
	modeResolvconf = "resolvconf" // Debian's
	modeOpenresolv = "openresolv"
	modeResolvd    = "resolvd"     // OpenBSD's
	modeScutil     = "scutil"      // macOS' configd, and its files in /etc/resolver
	modeNRPT       = "nrpt"        // Windows' DNS client, by rules of its Name Resolution Policy Table
	modeNone       = "unsupported" // an operating system on which nobody has tried what programs go by
)

// confPath is the file that libc reads (resolv.conf(5)).
const confPath = "/etc/resolv.conf"

// ownership is what is known of a name on the system bus.
type ownership uint8

const (
	ownerUnknown ownership = iota // there is no bus, or it does not answer
	ownerNone
	ownerPresent
)

func (o ownership) String() string {
	return [...]string{"unknown", "nobody", "a running program"}[o]
}

// facts are what is so on the machine. What a comment in a file says is none: Debian's resolvconf writes one that names
// systemd-resolved.
type facts struct {
	system      string // modeDirect: resolv.conf counts; or what counts in its place
	policy      bool   // Windows: group policy has rules, so others do not count
	file        fileState
	hops        []string // the paths that resolv.conf leads through
	data        []byte   // what programs read there
	mount       *mount   // on the very file; nil: none
	sealed      bool     // the file is immutable or append-only
	fileErr     error    // what keeps us from writing the file in place
	dirErr      error    // what keeps us from making files beside it
	resolved    ownership
	nm          ownership
	connman     ownership
	nmMode      string // NetworkManager's DnsManager: default, none, dnsmasq, systemd-resolved
	nmRcManager string // and how it writes resolv.conf: symlink, file, unmanaged, resolvconf
	busErr      error
	resolvconf  string   // which program of that name is installed: modeResolvconf, modeOpenresolv, modeResolved, or ""
	program     string   // where it is
	records     bool     // openresolv holds records of interfaces
	resolvd     bool     // OpenBSD's resolvd runs
	nss         []string // what glibc asks for the names of hosts, in order (nsswitch.conf(5))
}

// decision is what follows from the facts.
type decision struct {
	mode    string
	inPlace bool // the file is overwritten, since it cannot be replaced
	trace   []string
	refused *refusal // why nothing may be changed; nil: it may
}

func (d *decision) note(format string, args ...any) {
	d.trace = append(d.trace, fmt.Sprintf(format, args...))
}

// decide says who owns the machine's DNS and whether it is ours to change. wish is Options.Mode.
func decide(f facts, wish string) decision {
	d := decision{mode: f.system}
	if f.system == modeDirect {
		d.resolvConf(f, wish)
	} else {
		d.native(f)
	}
	if f.system == modeNone {
		return d
	}
	if wish != "" && wish != "auto" && wish != modeOff && wish != d.mode {
		d.note("dns.os asks for %s", wish)
		d.refused = refuse("set dns.os: auto", "dns.os is %s, and the facts say %s", wish, d.mode)
	}
	if wish == modeOff {
		d.note("dns.os is off")
		d.refused = refuse("set dns.os: auto", "dns.os is off")
	}
	return d
}

// native decides where the operating system itself says whom programs ask.
func (d *decision) native(f facts) {
	switch f.system {
	case modeScutil:
		d.note("on macOS configd says whom programs ask, and %s counts for few", confPath)
	case modeNRPT:
		d.note("on Windows the DNS client says whom programs ask, by rules for names")
		if f.policy {
			d.note("group policy has rules, so local ones do not count: ours are written there too")
		}
	default:
		d.note("this operating system does not go by %s", confPath)
		d.refused = refuse("point it at the stub by hand", "the DNS settings of this operating system are not changed")
		return
	}
	d.note("%s is told to ask us", managerName(f.system))
}

// resolvConf decides where programs go by resolv.conf.
func (d *decision) resolvConf(f facts, wish string) {
	d.describe(f)
	switch owner := d.manager(f); owner {
	case modeDirect:
		if f.busErr != nil && !errors.Is(f.busErr, fs.ErrNotExist) && wish != modeDirect {
			d.refused = refuse("see why the system bus does not answer", "who manages this machine's DNS is not known: %v", f.busErr)
			break
		}
		if !d.ofConnman(f) {
			d.note("no program manages %s, so it is changed directly", confPath)
		}
		d.refused = d.veto(f)
	default:
		d.mode = owner
		d.note("%s is told to ask us", managerName(owner))
		if owner == modeResolved && f.resolved != ownerPresent || owner == modeNM && f.nm != ownerPresent {
			d.refused = refuse("start it, or have "+confPath+" be a file of its own", "%s manages this machine's DNS, and does not run", managerName(owner))
		}
		if owner == modeResolvd && unwindAnswers(f.data) {
			d.note("resolvd has put unwind before all others")
			d.refused = refuse("rcctl stop unwind, or have it ask the stub for the tailnet's zone (unwind.conf(5), force forwarder)",
				"unwind answers this machine's DNS, and resolvd names nobody else while it runs")
		}
	}
}

// describe notes what resolv.conf is.
func (d *decision) describe(f facts) {
	if f.file.Kind == kindMissing {
		d.note("there is no %s", confPath)
	} else {
		d.note("%s is %s", confPath, f.file.describe())
	}
	if len(f.hops) > 1 {
		d.note("it leads to %s", f.hops[len(f.hops)-1])
	}
	if f.mount != nil {
		d.note("it is a mount of its own: %s", f.mount)
	}
	switch {
	case errors.Is(f.busErr, fs.ErrNotExist):
		d.note("there is no system bus")
	case f.busErr != nil:
		d.note("the system bus says nothing: %v", f.busErr)
	default:
		d.note("on the system bus org.freedesktop.resolve1 is owned by %s, org.freedesktop.NetworkManager by %s", f.resolved, f.nm)
	}
	if f.nm == ownerPresent {
		d.note("NetworkManager's DNS mode is %s, and it writes %s as %s", orUnknown(f.nmMode), confPath, orUnknown(f.nmRcManager))
	}
	if f.resolvconf == "" {
		d.note("no resolvconf is installed")
	} else {
		d.note("the resolvconf that is installed is %s's", managerName(f.resolvconf))
	}
}

func orUnknown(s string) string {
	if s == "" {
		return "unknown"
	}
	return s
}

// leadsTo reports whether resolv.conf is a link into one of the directories.
func (f facts) leadsTo(dirs ...string) bool {
	return slices.ContainsFunc(f.hops[min(1, len(f.hops)):], func(hop string) bool {
		return slices.ContainsFunc(dirs, func(dir string) bool { return strings.HasPrefix(hop, dir+"/") })
	})
}

// manager is the mode of the program that owns resolv.conf.
func (d *decision) manager(f facts) string {
	in := f.leadsTo
	switch {
	case f.resolved == ownerPresent:
		// Even where the file does not name it: it would take a foreign file for its own servers, and ask us in a loop.
		d.note("systemd-resolved runs")
		return modeResolved
	case in("/run/systemd/resolve", "/usr/lib/systemd", "/lib/systemd"):
		d.note("the link is systemd-resolved's")
		return modeResolved
	case onlyResolvedStub(f.data):
		d.note("its only nameserver is systemd-resolved's stub")
		return modeResolved
	case f.nm == ownerPresent && !nmLeavesAlone(f):
		d.note("NetworkManager runs")
		return modeNM
	case in("/run/NetworkManager", "/var/run/NetworkManager"):
		d.note("the link is NetworkManager's")
		return modeNM
	case in("/run/resolvconf", "/etc/resolvconf", "/var/run/resolvconf"):
		if f.resolvconf == modeOpenresolv {
			d.note("the link is openresolv's")
			return modeOpenresolv
		}
		if f.resolvconf == modeResolvconf {
			d.note("the link is resolvconf's")
			return modeResolvconf
		}
		d.note("the link is a resolvconf's that is not installed any more")
	case f.resolvd:
		d.note("resolvd runs")
		return modeResolvd
	case f.resolvconf == modeOpenresolv && f.records:
		d.note("openresolv holds records of interfaces")
		return modeOpenresolv
	}
	return modeDirect
}

// ofConnman notes what connman has to do with a resolv.conf that is changed directly, which connman leaves alone then.
func (d *decision) ofConnman(f facts) bool {
	runs, leads := f.connman == ownerPresent, f.leadsTo("/run/connman", "/var/run/connman")
	if !runs && !leads {
		return false
	}
	if leads {
		d.note("the link is connman's")
	}
	if !runs {
		d.note("connman does not run")
	} else {
		d.note("connman runs; on the system bus it owns %s", connmanName)
		if onlyConnmanProxy(f.data) {
			d.note("%s names its proxy, and it is asked for the servers behind that", confPath)
		}
	}
	d.note("it cannot be told to ask us, and leaves a file alone that replaces its own, so %s is changed directly", confPath)
	return true
}

// onlyConnmanProxy reports whether a resolv.conf names the addresses of connman's own DNS proxy and nothing else.
func onlyConnmanProxy(data []byte) bool {
	servers := parseResolvConf(data).nameservers
	proxy := []netip.Addr{netip.AddrFrom4([4]byte{127, 0, 0, 1}), netip.IPv6Loopback()}
	return len(servers) > 0 && !slices.ContainsFunc(servers, func(a netip.Addr) bool { return !slices.Contains(proxy, a) })
}

// onlyResolvedStub reports whether a resolv.conf names systemd-resolved's stub and nothing else. Some systems copy the
// file in place of linking to it.
func onlyResolvedStub(data []byte) bool {
	servers := parseResolvConf(data).nameservers
	return len(servers) > 0 && !slices.ContainsFunc(servers, func(a netip.Addr) bool { return !isResolvedStub(a) })
}

// isResolvedStub reports whether an address is one of those that systemd-resolved's stub answers at.
func isResolvedStub(a netip.Addr) bool {
	return a == netip.AddrFrom4([4]byte{127, 0, 0, 53}) || a == netip.AddrFrom4([4]byte{127, 0, 0, 54})
}

// nmLeavesAlone reports whether NetworkManager was told not to write resolv.conf, or does not where a link leads to a
// place of nobody's.
func nmLeavesAlone(f facts) bool {
	switch {
	case f.nmMode == "none", f.nmRcManager == "unmanaged":
		return true
	case f.nmRcManager == "symlink" && f.file.Kind == kindSymlink:
		return !slices.ContainsFunc(f.hops, func(hop string) bool { return strings.HasPrefix(hop, "/run/NetworkManager/") })
	}
	return false
}

// splits reports whether a mode can tell suffixes apart. A resolv.conf cannot; the global DNS configuration of NetworkManager
// could, with dnsmasq, but it takes the place of what the connections bring, which would not be followed any more.
func splits(mode string) bool {
	return mode == modeResolved || mode == modeScutil || mode == modeNRPT
}

func managerName(mode string) string {
	switch mode {
	case modeResolved:
		return "systemd-resolved"
	case modeNM:
		return "NetworkManager"
	case modeResolvconf:
		return "Debian's resolvconf"
	case modeScutil:
		return "configd"
	case modeNRPT:
		return "the DNS client"
	}
	return mode
}

// veto says what forbids to change resolv.conf, and whether it has to be done in place.
func (d *decision) veto(f facts) *refusal {
	dir := path.Dir(confPath)
	switch f.file.Kind {
	case kindDirectory, kindOther:
		return refuse("put a file there, or remove it", "%s is a %s", confPath, f.file.Kind)
	case kindRegular:
		if f.sealed {
			return refuse("if that is not meant to be so: "+unseal+" "+confPath, "%s is immutable or append-only", confPath)
		}
		if f.file.Mode&0o222 == 0 {
			return refuse("if that is not meant to be so: chmod u+w "+confPath, "%s is read-only (mode %04o)", confPath, f.file.Mode)
		}
	}
	if f.mount != nil {
		d.inPlace = true
		d.note("a mount cannot be replaced, so it is overwritten in place")
		if f.mount.readOnly || f.fileErr != nil {
			return refuse("mount it writable", "%s is a read-only mount", confPath)
		}
		return nil
	}
	if f.dirErr == nil {
		return nil
	}
	switch {
	case isReadOnly(f.dirErr):
		return refuse("mount it writable, or set dns.os: off", "%s is read-only", dir)
	case isImmutable(f.dirErr):
		return refuse("if that is not meant to be so: "+unseal+" "+dir, "%s is immutable", dir)
	case isDenied(f.dirErr):
		return refuse("run it as root, or set dns.os: off", "%s may not be changed by this user", dir)
	}
	return refuse("set dns.os: off", "%s cannot be written to: %v", dir, f.dirErr)
}

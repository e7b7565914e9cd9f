package node

import (
	"context"
	"errors"
	"net/netip"
	"os"
	"path/filepath"
	"runtime/debug"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/miekg/dns"
)

const (
	// doctorTime bounds a whole diagnosis.
	doctorTime = 10 * time.Second
	// doctorAskTime bounds each question to the daemon and doctorLookupTime each lookup. One after the other they fit
	// into doctorTime: the daemon is asked before the lookups, and again after them.
	doctorAskTime    = 2 * time.Second
	doctorLookupTime = 4 * time.Second
	// doctorSettleTime is how long a node may take to mend what another program has overwritten.
	doctorSettleTime = time.Second
)

// maxConf is the size in bytes up to which a resolv.conf is read.
const maxConf = 1 << 20

// systemConf is the file that programs find their nameservers in (resolv.conf(5)).
const systemConf = "/etc/resolv.conf"

// doctorFacts are what a diagnosis judges. What could not be found out is left zero.
type doctorFacts struct {
	now    time.Time
	built  time.Time // the commit that this program was built from; zero: unknown
	unseen []string  // what only root would have seen

	status    Status
	daemonErr error // why the daemon says nothing; nil: it did
	idleErr   error // without a daemon: why a node would not start
	conflict  string
	plan      PlanResult
	planErr   error
	left      bool // a node that died has left a journal of what it changed

	stub     netip.AddrPort // the node's, or what the configuration wants
	stubErr  error          // what it answers for its zone, if that is not what it should
	servers  []dnsServer    // on port 53
	conf     confFile
	target   lookupTarget
	lookups  []lookup
	outside  lookup // a question that is nobody's secret, through the machine's own DNS
	viaStub  stubAnswer
	links    []link
	tunnels  []tunnelLink
	uplink   uplink
	noUplink error
}

// running reports whether a daemon has told how it is.
func (f *doctorFacts) running() bool { return f.daemonErr == nil }

// hangs reports whether a daemon is there and does not answer.
func (f *doctorFacts) hangs() bool { return !f.running() && !errors.Is(f.daemonErr, ErrNoDaemon) }

// takenOver reports whether the machine's DNS is meant to ask the node.
func (f *doctorFacts) takenOver() bool {
	state := f.status.DNS.Takeover.State
	return f.running() && (state == takeoverOn || state == takeoverPending)
}

// confFile is what the machine's resolv.conf says.
type confFile struct {
	servers []netip.Addr
	search  []string
	err     error
}

// dnsServer is a program with sockets on port 53.
type dnsServer struct {
	program string // its name; empty if that is not for us to see
	pid     int
	addrs   []netip.Addr
}

// holds reports whether the program answers at addr, be it by the wildcard address.
func (s dnsServer) holds(addr netip.Addr) bool {
	return slices.ContainsFunc(s.addrs, func(a netip.Addr) bool { return a == addr || a.IsUnspecified() })
}

// lookupTarget is a name that the node knows, and its addresses in the map.
type lookupTarget struct {
	name  string
	addrs []netip.Addr
}

// lookup is what one of the machine's resolvers found.
type lookup struct {
	by    string // who looked
	name  string // what for
	short bool   // by its first label alone
	addrs []netip.Addr
	err   error
}

// stubAnswer is what the stub said to a question that it has to ask an upstream for.
type stubAnswer struct {
	result QueryResult
	err    error
}

// tunnelLink is a link of another private network.
type tunnelLink struct {
	name string
	kind string   // WireGuard or TUN
	file string   // its configuration, if that has DNS servers
	dns  []string // those
}

// uplink is the link of the default route.
type uplink struct {
	name string
	mtu  int
}

// gatherFacts looks at the machine: first at the node, then at all that can be looked at at the same time, and last at
// the upstreams once more, since the lookups have had them asked.
func gatherFacts(ctx context.Context, c Client, idle func() (*Node, error)) doctorFacts {
	f := doctorFacts{now: time.Now(), built: buildTime()}
	state := f.askNode(ctx, c, idle)
	f.settle(ctx, func() confFile { return readConf(systemConf) })
	f.target = findTarget(f.status)
	// Each of these writes fields of its own, and reads what was found before.
	var denied bool
	var look sync.WaitGroup
	look.Go(func() { f.servers = dnsServers() })
	look.Go(func() {
		f.links, _ = machineLinks() // without them there is nothing to say of others
		f.tunnels, denied = otherTunnels(f.links)
	})
	look.Go(func() { f.uplink, f.noUplink = findUplink() })
	look.Go(func() { f.stubErr = f.tryStub(ctx) })
	look.Go(func() { f.lookUp(ctx) })
	look.Wait()
	if f.running() {
		if s, err := askBriefly(ctx, c.DNSStatus); err == nil {
			f.status.DNS.Upstreams = s.Upstreams
		}
	}
	f.noteUnseen(state, denied)
	return f
}

// askNode asks the node that runs, or finds out what one would do. It returns the state directory, if that is known.
func (f *doctorFacts) askNode(ctx context.Context, c Client, idle func() (*Node, error)) (stateDir string) {
	f.status, f.daemonErr = askBriefly(ctx, c.Status)
	if f.running() {
		f.stub, _ = netip.ParseAddrPort(f.status.DNS.Stub) // it wrote that itself
		f.plan, f.planErr = askBriefly(ctx, c.Plan)
		return ""
	}
	n, err := idle()
	if err != nil {
		f.idleErr, f.planErr = err, err
		return ""
	}
	f.stub = n.wantedStub()
	f.plan, f.planErr = askBriefly(ctx, n.Plan)
	if m, _ := n.tailnet.current(); m != nil {
		f.conflict = n.conflict(m)
	} else {
		f.idleErr = f.planErr // the map cannot be used
	}
	return n.opt.Paths.State
}

// askBriefly asks for what must not take the time of all the rest.
func askBriefly[T any](ctx context.Context, ask func(context.Context) (T, error)) (T, error) {
	ctx, cancel := context.WithTimeout(ctx, doctorAskTime)
	defer cancel()
	return ask(ctx)
}

// settle reads resolv.conf. Where another program has just overwritten it the node mends that at once, so only what
// stays so for a while counts.
func (f *doctorFacts) settle(ctx context.Context, read func() confFile) {
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	end := time.After(doctorSettleTime)
	for {
		f.conf = read()
		if !f.takenOver() || !f.overwritten() {
			return
		}
		select {
		case <-tick.C:
		case <-end:
			return
		case <-ctx.Done():
			return
		}
	}
}

// readConf reads a resolv.conf.
func readConf(path string) confFile {
	data, err := readFile(path, maxConf)
	if err != nil {
		return confFile{err: err}
	}
	return parseConf(data)
}

// parseConf reads the text of a resolv.conf.
func parseConf(data []byte) confFile {
	parsed, err := dns.ClientConfigFromReader(strings.NewReader(string(data)))
	if err != nil {
		return confFile{err: err}
	}
	var c confFile
	for _, server := range parsed.Servers {
		if addr, err := netip.ParseAddr(server); err == nil {
			c.servers = append(c.servers, addr)
		}
	}
	for _, domain := range parsed.Search {
		c.search = append(c.search, foldName(domain))
	}
	return c
}

// findTarget is a name to look up: this machine's, or where it is not in the map any other's.
func findTarget(s Status) lookupTarget {
	var target lookupTarget
	for _, n := range s.Nodes {
		if len(n.Addresses) > 0 && (n.Self || target.name == "") {
			target = lookupTarget{name: n.Name + "." + strings.TrimSuffix(s.Zone, "."), addrs: n.Addresses}
		}
	}
	return target
}

// buildTime is the time of the commit that this program was built from, as far as it knows.
func buildTime() time.Time {
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return time.Time{}
	}
	for _, s := range info.Settings {
		if s.Key == "vcs.time" {
			t, _ := time.Parse(time.RFC3339, s.Value) // written by the go command
			return t
		}
	}
	return time.Time{}
}

// noteUnseen notes what others would have seen, and whether a journal lies in the state directory of a node that does
// not run.
func (f *doctorFacts) noteUnseen(stateDir string, denied bool) {
	if stateDir != "" {
		_, err := os.Stat(filepath.Join(stateDir, "dns-journal.json"))
		f.left = err == nil
	}
	if os.Geteuid() == 0 {
		return
	}
	if slices.ContainsFunc(f.servers, func(s dnsServer) bool { return s.program == "" }) {
		f.unseen = append(f.unseen, "which programs hold port 53")
	}
	if denied {
		f.unseen = append(f.unseen, "whether the WireGuard links have DNS servers")
	}
	if !f.running() {
		f.unseen = append(f.unseen, "whether a node that ran as root and died has left something changed")
	}
}

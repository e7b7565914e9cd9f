package osconfig

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
)

// backend has the machine ask us through the program that manages its DNS. Its methods are called one at a time.
type backend interface {
	// apply makes the manager ask c's servers. It may be called again, with the same c or another one.
	apply(ctx context.Context, c Config) error
	// holds reports whether the manager still does what the last apply made it do.
	holds(ctx context.Context, c Config) (bool, error)
	// restore makes the manager forget us. It is called again after a failure, and when nothing was applied.
	restore(ctx context.Context) error
	baseSource
}

// baseSource is a program that knows servers.
type baseSource interface {
	// base is the DNS that the machine has without us.
	base(ctx context.Context) (Base, error)
}

// problemsOf is what somebody should know of a manager that asks us, as the facts are now.
func problemsOf(mode string, f facts, c Config) []string {
	if mode != modeResolved {
		return nil
	}
	var list []string
	if _, dropped := linkDomains(c); dropped > 0 {
		list = append(list, tooManyDomains(dropped))
	}
	if who := fileReaders(f); who != "" {
		list = append(list, who)
	}
	return list
}

// managedProblems are those, and what the manager itself says, or the backend has met.
func (m *Manager) managedProblems(ctx context.Context, f facts, c Config) []string {
	list := problemsOf(m.mode, f, c)
	if b, ok := m.managed.(interface{ problems() []string }); ok {
		list = append(list, b.problems()...)
	}
	if m.mode == modeResolved {
		list = append(list, m.direct.machine.staleResolved(ctx, c)...)
	}
	return list
}

// watchesOf are directories in which something changes when what a manager knows of servers does.
func watchesOf(mode string) []string {
	switch mode {
	case modeResolved:
		return []string{"/run/systemd/resolve"} // where it writes its own resolv.conf, anew each time
	case modeNM:
		return []string{"/run/NetworkManager"}
	case modeResolvconf, modeOpenresolv:
		return append(openresolvRecords(), "/run/resolvconf", "/var/run/resolvconf", debianRecords)
	case modeScutil:
		return []string{resolverDir}
	}
	return nil
}

// backendFor is the backend of a mode; nil if there is none.
func (m machine) backendFor(mode string, f facts, stateDir string) backend {
	switch mode {
	case modeResolved:
		return newResolved()
	case modeNM:
		return newNetworkManager(m, stateDir)
	case modeResolvconf, modeOpenresolv:
		return &record{machine: m, kind: mode, program: f.program, stateDir: stateDir}
	case modeResolvd:
		return &resolvd{machine: m, stateDir: stateDir}
	case modeScutil:
		return &scutil{machine: m, stateDir: stateDir}
	case modeNRPT:
		return newNRPT(m, stateDir)
	}
	return nil
}

// applyManaged has the manager of the machine's DNS ask us, and sees whether that works.
func (m *Manager) applyManaged(ctx context.Context, c Config, f facts) error {
	if m.managed == nil {
		return fmt.Errorf("telling %s: %w", managerName(m.mode), errors.ErrUnsupported)
	}
	if m.mode == modeResolved { // what it is told ends with our link, but who ends us has to see that it did
		disk := m.direct.machine.disk
		if err := disk.saveJournal(m.opt.StateDir, m.direct.machine.newJournal(modeResolved, "", c)); err != nil {
			return err
		}
	}
	m.inPlace, m.wanted = true, c.addrs() // also if it fails half-way
	err := m.managed.apply(ctx, c)
	if err == nil {
		err = m.verify(ctx, c)
	}
	if err != nil {
		return errors.Join(err, m.restoreLocked(ctx))
	}
	m.config, m.problems = c, m.managedProblems(ctx, f, c)
	m.learn(ctx)
	return nil
}

// tend applies again what the manager has lost: it was restarted, or its state was.
func (m *Manager) tend(ctx context.Context, f facts) error {
	ok, err := m.managed.holds(ctx, m.config)
	if err != nil {
		return err
	}
	if ok {
		m.problems = m.managedProblems(ctx, f, m.config)
		return nil
	}
	if m.mode != modeResolved { // where another process cannot take it back from our link
		if j, err := loadJournal(m.opt.StateDir); j == nil {
			if err == nil {
				m.givenBack()
			}
			return err
		}
	}
	if err := m.managed.apply(ctx, m.config); err != nil {
		return err
	}
	m.problems = m.managedProblems(ctx, f, m.config)
	m.log.Warn("the manager of the machine's DNS had lost what it was told; it is told again", "mode", m.mode)
	return nil
}

// linkDomain is a domain of a link, as SetLinkDomains takes it.
type linkDomain struct {
	Domain      string
	RoutingOnly bool
}

// linkDomains are what resolved is to ask us for: the search list, also for names of one label, and the suffixes.
func linkDomains(c Config) (domains []linkDomain, dropped int) {
	for _, domain := range c.Search {
		domains = append(domains, linkDomain{domain, false})
	}
	if len(c.Match) == 0 {
		return append(domains, linkDomain{".", true}), 0
	}
	var match []string
	for _, domain := range c.Match {
		if !slices.Contains(c.Search, domain) {
			match = append(match, domain)
		}
	}
	match, dropped = fitDomains(match, maxDomains-len(domains))
	for _, domain := range match {
		domains = append(domains, linkDomain{domain, true})
	}
	return domains, dropped
}

// maxDomains is how many domains systemd-resolved takes for one link (LINK_SEARCH_DOMAINS_MAX); with more it takes none.
const maxDomains = 256

// fitDomains are the suffixes that a manager can be told of. Reverse zones go first where there are too many: what is
// lost with them is the name of an address, not the address of a name.
func fitDomains(match []string, room int) (fit []string, dropped int) {
	if len(match) <= room {
		return match, 0
	}
	var names, reverse []string
	for _, domain := range match {
		if strings.HasSuffix(domain, ".arpa") {
			reverse = append(reverse, domain)
		} else {
			names = append(names, domain)
		}
	}
	fit = slices.Concat(names, reverse)[:room]
	return fit, len(match) - room
}

func tooManyDomains(dropped int) string {
	return fmt.Sprintf("systemd-resolved takes %d domains at most; %d are left out, and asked elsewhere", maxDomains, dropped)
}

// fileReaders says which programs do not find our names although systemd-resolved does, since they read a resolv.conf
// that leads past it; "" if all find them.
func fileReaders(f facts) string {
	servers := parseResolvConf(f.data).nameservers
	if len(servers) > 0 && isResolvedStub(servers[0]) {
		return ""
	}
	who := "programs that read " + confPath + " by themselves (Go, musl, dig)"
	if !slices.Contains(f.nss, "resolve") {
		who = "programs"
	}
	return who + " do not ask systemd-resolved, and do not find the tailnet's names: ln -sf ../run/systemd/resolve/stub-resolv.conf " + confPath
}

// planManaged says what a manager would be told, as a diff to saying nothing.
func planManaged(mode string, c Config) string {
	var b strings.Builder
	switch mode {
	case modeNM:
		b.WriteString("--- no global DNS configuration of NetworkManager's\n+++ /run/NetworkManager/conf.d/meshdns.conf\n")
		fmt.Fprintf(&b, "+servers %v\n+search %s, and what the connections bring\n", c.written(), strings.Join(c.Search, " "))
		return b.String()
	case modeResolvconf, modeOpenresolv:
		text := resolvConf{search: c.Search, nameservers: recordServers(mode, c)}
		fmt.Fprintf(&b, "--- no record of %s's\n+++ a record of %s's\n", managerName(mode), managerName(mode))
		for line := range strings.Lines(string(text.append(nil))) {
			b.WriteString("+" + line)
		}
		return b.String()
	case modeResolvd, modeScutil, modeNRPT:
		return planSystem(mode, c)
	}
	b.WriteString("--- no link of ours\n+++ a link of ours, and what systemd-resolved is told of it\n")
	for _, s := range c.Servers {
		fmt.Fprintf(&b, "+DNS server %s\n", s.AddrPort)
	}
	for _, domain := range c.Search {
		fmt.Fprintf(&b, "+search domain %s\n", domain)
	}
	for _, domain := range c.Match {
		fmt.Fprintf(&b, "+names below %s\n", domain)
	}
	if len(c.Match) == 0 {
		b.WriteString("+all names\n")
	}
	return b.String()
}

package osconfig

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"net/netip"
	"os"
	"path"
	"slices"
	"strconv"
	"strings"
)

const (
	// resolverDir is where macOS looks for who answers the names below a domain: in a file of the domain's name
	// (resolver(5)). They stay through a reboot.
	resolverDir = "/etc/resolver"
	// resolverMark starts each file of ours.
	resolverMark = "# meshdns answers these names, and removes this file when it ends. Without this line the file stays.\n"
	// searchFile is the file that adds to the search list: a domain that nobody has.
	searchFile = "search.meshdns"
	// scutilKey is our service in configd's store. State: is in memory, and gone with a reboot.
	scutilKey = "State:/Network/Service/meshdns/DNS"

	scutilProgram = "/usr/sbin/scutil"
)

// scutil has macOS ask us: a file in /etc/resolver for each domain, or for all names a service in configd's store.
type scutil struct {
	machine  machine
	stateDir string
	servers  []netip.Addr // that were applied
	kept     []string     // the files of an administrator's that stand in the way of ours
	unheard  error        // why programs may not have heard of the change
}

// scutilNote is what a journal says of a change on macOS.
type scutilNote struct {
	Files   []string `json:"files"`    // that may be ours, in resolverDir
	MadeDir bool     `json:"made_dir"` // there was no resolverDir
	Key     bool     `json:"key"`      // the service may be in the store
}

// resolverFiles are the files that c comes to, by name.
func resolverFiles(c Config) map[string]string {
	var b strings.Builder
	b.WriteString(resolverMark)
	port := c.Servers[0].AddrPort.Port()
	n := 0
	for _, s := range c.Servers {
		if s.AddrPort.Port() == port && n < maxServersWritten { // one port counts for the file
			fmt.Fprintf(&b, "nameserver %s\n", s.AddrPort.Addr())
			n++
		}
	}
	fmt.Fprintf(&b, "port %d\nsearch_order 1\n", port)
	files := map[string]string{}
	for _, domain := range c.Match {
		files[strings.ToLower(domain)] = b.String()
	}
	if len(c.Search) > 0 {
		files[searchFile] = resolverMark + "search " + strings.Join(c.Search, " ") + "\n"
	}
	return files
}

// scutilScript has configd ask us for all names: a service whose domain is the empty one, which every name is below.
func scutilScript(c Config) string {
	var b strings.Builder
	b.WriteString("d.init\nd.add ServerAddresses *")
	port := c.Servers[0].AddrPort.Port()
	for _, s := range c.Servers {
		if s.AddrPort.Port() == port {
			b.WriteString(" " + s.AddrPort.Addr().String())
		}
	}
	if port != 53 {
		fmt.Fprintf(&b, "\nd.add ServerPort # %d", port)
	}
	if len(c.Search) > 0 {
		b.WriteString("\nd.add SearchDomains * " + strings.Join(c.Search, " "))
	}
	b.WriteString("\nd.add SupplementalMatchDomains * \"\"\nd.add SupplementalMatchDomainsNoSearch # 1\nset " + scutilKey + "\n")
	return b.String()
}

// takesAll reports whether c is for all names.
func (c Config) takesAll() bool { return len(c.Match) == 0 || slices.Contains(c.Match, ".") }

// checkDomains refuses what is no domain: it would become a line, or the name of a file, of somebody else's choice.
func checkDomains(c Config) error {
	if len(c.Servers) == 0 {
		return errors.New("no server of ours to ask")
	}
	for _, domain := range slices.Concat(c.Match, c.Search) {
		if clean, ok := cleanDomain(domain); !ok || clean != domain {
			return fmt.Errorf("%.80q is no domain", domain)
		}
	}
	return nil
}

func (s *scutil) apply(ctx context.Context, c Config) error {
	if err := checkDomains(c); err != nil {
		return err
	}
	disk := s.machine.disk
	want := resolverFiles(c)
	delete(want, ".")
	kept, err := s.leaveForeign(want)
	if err != nil {
		return err
	}
	note, err := s.note(c, want)
	if err != nil {
		return err
	}
	if note.MadeDir {
		disk.at("mkdir", resolverDir)
		if err := os.Mkdir(disk.real(resolverDir), 0o755); err != nil && !errors.Is(err, fs.ErrExist) {
			return fmt.Errorf("making %s: %w", resolverDir, err)
		}
		if err := disk.syncDir(path.Dir(disk.real(resolverDir))); err != nil {
			return fmt.Errorf("making %s: %w", resolverDir, err)
		}
	}
	for _, name := range slices.Sorted(maps.Keys(want)) {
		if err := s.write(name, want[name]); err != nil {
			return err
		}
	}
	for _, name := range note.Files {
		if _, wanted := want[name]; !wanted {
			if err := s.remove(name); err != nil {
				return err
			}
		}
	}
	switch {
	case c.takesAll():
		_, err = s.scutil(ctx, scutilScript(c))
	case note.Key:
		_, err = s.scutil(ctx, "remove "+scutilKey+"\n")
	}
	if err != nil {
		return err
	}
	s.kept, s.servers = kept, c.addrs()
	s.flush(ctx)
	ok, err := s.holds(ctx, c)
	if err == nil && !ok {
		err = errors.New("macOS does not hold what it was told")
	}
	return err
}

// leaveForeign takes those files out of want that an administrator has, and returns their names.
func (s *scutil) leaveForeign(want map[string]string) (kept []string, err error) {
	for _, name := range slices.Sorted(maps.Keys(want)) {
		now, err := s.machine.disk.capture(s.file(name))
		if err != nil {
			return nil, fmt.Errorf("looking at %s/%s: %w", resolverDir, name, err)
		}
		if now.Kind != kindMissing && !isResolverFile(now) {
			kept = append(kept, name)
			delete(want, name)
		}
	}
	return kept, nil
}

// isResolverFile reports whether a file is one of ours.
func isResolverFile(f fileState) bool {
	return f.Kind == kindRegular && strings.HasPrefix(string(f.Data), resolverMark)
}

// note has the journal say what is about to be made, beside what is there of ours.
func (s *scutil) note(c Config, want map[string]string) (*scutilNote, error) {
	old, err := loadJournal(s.stateDir)
	if err != nil {
		return nil, err
	}
	j := s.machine.newJournal(modeScutil, resolverDir, c)
	j.Scutil = &scutilNote{Files: slices.Collect(maps.Keys(want)), Key: c.takesAll(), MadeDir: !s.machine.exists(resolverDir)}
	if old != nil && old.Scutil != nil {
		for _, name := range old.Scutil.Files {
			if s.machine.exists(path.Join(resolverDir, name)) {
				j.Scutil.Files = appendNew(j.Scutil.Files, name)
			}
		}
		j.Scutil.Key = j.Scutil.Key || old.Scutil.Key
		j.Scutil.MadeDir = j.Scutil.MadeDir || old.Scutil.MadeDir
	}
	slices.Sort(j.Scutil.Files)
	return j.Scutil, s.machine.disk.saveJournal(s.stateDir, j)
}

func (s *scutil) file(name string) string { return s.machine.disk.real(path.Join(resolverDir, name)) }

// write has a file of ours say text.
func (s *scutil) write(name, text string) error {
	disk := s.machine.disk
	now, err := disk.capture(s.file(name))
	if err == nil && (now.Kind != kindRegular || string(now.Data) != text) {
		state := fileState{Kind: kindRegular, Data: []byte(text), Mode: 0o644, UID: os.Geteuid(), GID: os.Getegid()}
		_, err = disk.make(s.file(name), state)
	}
	if err != nil {
		return fmt.Errorf("writing %s/%s: %w", resolverDir, name, err)
	}
	return nil
}

// remove removes a file if it is ours, and what a process that died left of it.
func (s *scutil) remove(name string) error {
	disk := s.machine.disk
	err := disk.removeTemp(s.file(name))
	var now fileState
	if err == nil {
		now, err = disk.capture(s.file(name))
	}
	if err == nil && isResolverFile(now) {
		err = disk.remove(s.file(name))
	}
	if err != nil {
		return fmt.Errorf("removing %s/%s: %w", resolverDir, name, err)
	}
	return nil
}

// scutil has scutil(8) run a script.
func (s *scutil) scutil(ctx context.Context, script string) (string, error) {
	out, err := s.machine.tool(ctx, toolRun{program: scutilProgram, input: []byte(script)})
	return string(out), err
}

// flush has mDNSResponder forget, above all which names there were none of: it keeps that for as long as the answer
// said. The change holds without it too.
func (s *scutil) flush(ctx context.Context) {
	_, err := s.machine.tool(ctx, toolRun{program: "/usr/bin/dscacheutil", args: []string{"-flushcache"}})
	_, err2 := s.machine.tool(ctx, toolRun{program: "/usr/bin/killall", args: []string{"-HUP", "mDNSResponder"}})
	s.unheard = errors.Join(err, err2)
}

// holds reads back.
func (s *scutil) holds(ctx context.Context, c Config) (bool, error) {
	want := resolverFiles(c)
	delete(want, ".")
	if _, err := s.leaveForeign(want); err != nil {
		return false, err
	}
	for name, text := range want {
		now, err := s.machine.disk.capture(s.file(name))
		if err != nil || string(now.Data) != text {
			return false, err
		}
	}
	if !c.takesAll() {
		return true, nil
	}
	out, err := s.scutil(ctx, "show "+scutilKey+"\n")
	if err != nil {
		return false, err
	}
	return slices.Contains(parseScutilDict([]byte(out))["ServerAddresses"], c.Servers[0].AddrPort.Addr().String()), nil
}

func (s *scutil) restore(ctx context.Context) error {
	j, err := loadJournal(s.stateDir)
	if err != nil || j == nil || j.Scutil == nil {
		return err
	}
	for _, name := range j.Scutil.Files {
		if err := s.remove(name); err != nil {
			return err
		}
	}
	disk := s.machine.disk
	if s.machine.exists(resolverDir) {
		if err := disk.syncDir(disk.real(resolverDir)); err != nil {
			return fmt.Errorf("removing files of ours: %w", err)
		}
	}
	if j.Scutil.MadeDir && s.machine.exists(resolverDir) && !s.machine.holds(resolverDir) {
		if err := disk.remove(disk.real(resolverDir)); err != nil {
			return fmt.Errorf("removing %s: %w", resolverDir, err)
		}
	}
	if j.Scutil.Key {
		if _, err := s.scutil(ctx, "remove "+scutilKey+"\n"); err != nil {
			return err
		}
	}
	s.flush(ctx)
	s.servers, s.kept = nil, nil
	return disk.dropJournal(s.stateDir)
}

// base is what configd has for the network that is in use.
func (s *scutil) base(ctx context.Context) (Base, error) {
	out, err := s.machine.tool(ctx, toolRun{program: scutilProgram, args: []string{"--dns"}})
	if err != nil {
		return Base{}, err
	}
	ours := s.servers
	if j, err := loadJournal(s.stateDir); err == nil && j != nil {
		ours = slices.Concat(ours, j.Servers)
	}
	return scutilBase(parseScutilDNS(out), ours), nil
}

// problems are what somebody should know.
func (s *scutil) problems() []string {
	var list []string
	if len(s.kept) > 0 {
		list = append(list, fmt.Sprintf("an administrator's files in %s stay, and say who answers these names: %s",
			resolverDir, strings.Join(s.kept, " ")))
	}
	if s.unheard != nil {
		list = append(list, fmt.Sprintf("macOS may go by what it knew before for a while: %v", s.unheard))
	}
	return list
}

// scutilResolver is one of those that `scutil --dns` lists.
type scutilResolver struct {
	domain  string // that it is asked for; "": all
	servers []Server
	search  []string
	scoped  bool // asked only by programs that have chosen its link
}

// maxScutilResolvers bounds how many of them are read.
const maxScutilResolvers = 256

// parseScutilDNS reads what `scutil --dns` prints. What it does not know it leaves out.
func parseScutilDNS(data []byte) []scutilResolver {
	var list []scutilResolver
	scoped, port := false, uint16(53)
	for line := range strings.Lines(string(data)) {
		line = strings.TrimSpace(line)
		if strings.HasPrefix(line, "DNS configuration") {
			scoped = strings.Contains(line, "scoped")
			continue
		}
		if strings.HasPrefix(line, "resolver #") {
			if len(list) == maxScutilResolvers {
				return list
			}
			list, port = append(list, scutilResolver{scoped: scoped}), 53
			continue
		}
		name, value, ok := strings.Cut(line, ":")
		if !ok || len(list) == 0 {
			continue
		}
		name, _, _ = strings.Cut(strings.TrimSpace(name), "[")
		list[len(list)-1].add(name, strings.TrimSpace(value), &port)
	}
	return list
}

func (r *scutilResolver) add(name, value string, port *uint16) {
	switch name {
	case "domain":
		r.domain = value
	case "search domain":
		if domain, ok := cleanDomain(value); ok && domain != "." && len(r.search) < maxOptions {
			r.search = appendDomain(r.search, domain)
		}
	case "nameserver":
		if addr, err := netip.ParseAddr(value); err == nil && len(r.servers) < maxServersRead {
			r.servers = append(r.servers, Server{AddrPort: netip.AddrPortFrom(addr, *port)})
		}
	case "port":
		n, err := strconv.ParseUint(value, 10, 16)
		if err != nil || n == 0 {
			return
		}
		*port = uint16(n)
		for i := range r.servers {
			r.servers[i].AddrPort = netip.AddrPortFrom(r.servers[i].AddrPort.Addr(), *port)
		}
	}
}

// scutilBase is what macOS asks without us: of the resolvers for all names the first that has a server, or else the
// first of a link.
func scutilBase(list []scutilResolver, ours []netip.Addr) Base {
	for _, scoped := range []bool{false, true} {
		for _, r := range list {
			if r.domain != "" || r.scoped != scoped {
				continue
			}
			servers := slices.DeleteFunc(slices.Clone(r.servers), func(s Server) bool {
				return slices.Contains(ours, s.AddrPort.Addr())
			})
			if len(servers) > 0 {
				return Base{Servers: servers, Search: r.search}
			}
		}
	}
	return Base{}
}

// parseScutilDict reads what scutil shows of a dictionary: its strings and numbers, and its arrays of them.
func parseScutilDict(data []byte) map[string][]string {
	dict := map[string][]string{}
	array := ""
	for line := range strings.Lines(string(data)) {
		line = strings.TrimSpace(line)
		name, value, ok := strings.Cut(line, " : ")
		switch {
		case line == "}":
			array = ""
		case !ok || len(dict) == maxScutilResolvers:
		case strings.HasPrefix(value, "<array>"):
			array = name
		case array != "":
			if len(dict[array]) < maxScutilResolvers {
				dict[array] = append(dict[array], value)
			}
		default:
			dict[name] = []string{value}
		}
	}
	return dict
}

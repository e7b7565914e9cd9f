package osconfig

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"strings"
	"time"
)

const (
	// resolvdMark is what OpenBSD's resolvd(8) puts behind each line of its own, with the link it has it from. All other
	// lines it keeps, below its own.
	resolvdMark = "# resolvd: "
	// resolvdLink is the link that our server is proposed for: nobody else proposes any there, and it is there as long
	// as the system is. What is proposed by route(8) comes first, before what leases bring.
	resolvdLink = "lo0"

	routeProgram = "/sbin/route"

	// searchMark stands before the search line of ours, not behind: Go would search it. keptPrefix starts a line that
	// ours stands for.
	searchMark = "# meshdns put the next line here:\n"
	keptPrefix = "# meshdns keeps: "
)

const (
	resolvdTime = 3 * time.Second // within which it has written: it waits 1 s for editors
	resolvdPoll = 20 * time.Millisecond
)

// resolvdLocks are the files that resolvd keeps locked while it runs, newest first.
func resolvdLocks() []string { return []string{"/dev/resolvd.lock", "/var/run/resolvd.lock"} }

// resolvdRuns reports whether OpenBSD's resolvd runs. Its lock ends with it; the file does not.
func (m machine) resolvdRuns() bool {
	return slices.ContainsFunc(resolvdLocks(), func(name string) bool {
		f, err := openNoFollow(m.disk.real(name), os.O_RDONLY)
		if err != nil {
			return false
		}
		defer f.Close()
		held, err := tryLock(f)
		return held && err == nil
	})
}

// unwindAnswers reports whether resolvd has put unwind(8) before all others.
func unwindAnswers(data []byte) bool {
	for line := range strings.Lines(string(data)) {
		before, link, ok := strings.Cut(line, resolvdMark)
		if ok && strings.TrimSpace(link) == "unwind" && strings.HasPrefix(before, "nameserver") {
			return true
		}
	}
	return false
}

// resolvd has OpenBSD's resolvd name our server first, by a proposal. The search list is a line of the file, which it
// keeps.
type resolvd struct {
	machine  machine
	stateDir string
	servers  []netip.Addr // that were applied
}

func (r *resolvd) apply(ctx context.Context, c Config) error {
	if err := checkDomains(c); err != nil {
		return err
	}
	if refused := wrongServers(c); refused != nil {
		return refused
	}
	if err := r.machine.disk.saveJournal(r.stateDir, r.machine.newJournal(modeResolvd, routeProgram, c)); err != nil {
		return err
	}
	if err := r.edit(func(data []byte) []byte { return withSearch(data, c.Search, r.machine.hostDomain()) }); err != nil {
		return err
	}
	args := []string{"nameserver", resolvdLink}
	for _, addr := range c.written() {
		args = append(args, addr.String())
	}
	if _, err := r.machine.tool(ctx, toolRun{program: routeProgram, args: args}); err != nil {
		return err
	}
	r.servers = c.addrs()
	ok, err := r.await(ctx, func(data []byte) bool { return resolvdHolds(data, c) })
	if err == nil && !ok {
		err = fmt.Errorf("resolvd was told of our servers, and %s names others first", confPath)
	}
	return err
}

// edit changes the file. resolvd sees that, and writes its own lines anew.
func (r *resolvd) edit(change func([]byte) []byte) error {
	disk := r.machine.disk
	now, err := disk.capture(disk.real(confPath))
	if err != nil {
		return fmt.Errorf("looking at %s: %w", confPath, err)
	}
	if now.Kind != kindRegular && now.Kind != kindMissing {
		return fmt.Errorf("changing %s: it is a %s", confPath, now.Kind)
	}
	data := change(now.Data)
	if bytes.Equal(data, now.Data) {
		return nil
	}
	if now.Kind == kindMissing {
		now = fileState{Kind: kindRegular, Mode: 0o644, UID: os.Geteuid(), GID: os.Getegid()}
	}
	now.Data, now.Mtime = data, time.Time{}
	if _, err := disk.make(disk.real(confPath), now); err != nil {
		return fmt.Errorf("changing %s: %w", confPath, err)
	}
	return nil
}

// await waits until resolvd has written what it should.
func (r *resolvd) await(ctx context.Context, done func([]byte) bool) (bool, error) {
	ctx, cancel := context.WithTimeout(ctx, resolvdTime)
	defer cancel()
	tick := time.NewTicker(resolvdPoll)
	defer tick.Stop()
	for {
		data, err := r.machine.disk.readThrough(confPath)
		if err != nil {
			return false, fmt.Errorf("reading %s: %w", confPath, err)
		}
		if done(data) {
			return true, nil
		}
		select {
		case <-ctx.Done():
			return false, nil
		case <-tick.C:
		}
	}
}

// resolvdHolds reports whether programs that read data ask us first, and search our domains.
func resolvdHolds(data []byte, c Config) bool {
	conf := parseResolvConf(data)
	n := len(c.Search)
	return len(conf.nameservers) > 0 && slices.Contains(c.addrs(), conf.nameservers[0]) &&
		len(conf.search) >= n && slices.Equal(conf.search[:n], c.Search)
}

func (r *resolvd) holds(_ context.Context, c Config) (bool, error) {
	data, err := r.machine.disk.readThrough(confPath)
	return err == nil && resolvdHolds(data, c), err
}

func (r *resolvd) restore(ctx context.Context) error {
	j, err := loadJournal(r.stateDir)
	if err != nil || j == nil {
		return err
	}
	disk := r.machine.disk
	if err := disk.removeTemp(disk.real(confPath)); err != nil {
		return fmt.Errorf("removing what a dead process left: %w", err)
	}
	if err := r.edit(withoutSearch); err != nil {
		return err
	}
	_, toolErr := r.machine.tool(ctx, toolRun{program: routeProgram, args: []string{"nameserver", resolvdLink}})
	named := func(data []byte) bool {
		return slices.ContainsFunc(parseResolvConf(data).nameservers, func(a netip.Addr) bool { return slices.Contains(j.Servers, a) })
	}
	runs := r.machine.resolvdRuns()
	if runs && toolErr == nil {
		_, err = r.await(ctx, func(data []byte) bool { return !named(data) })
	}
	if err == nil { // what is left is of one that does not run any more, or does not do as it is told
		err = r.edit(func(data []byte) []byte { return withoutServers(data, j.Servers) })
	}
	if runs && toolErr != nil {
		return errors.Join(toolErr, err) // it would name us again
	}
	if err != nil {
		return err
	}
	if err := disk.stillNames(j.Servers, routeProgram+" nameserver "+resolvdLink); err != nil {
		return err
	}
	r.servers = nil
	return disk.dropJournal(r.stateDir)
}

// base is what others have proposed, and what an administrator has written.
func (r *resolvd) base(context.Context) (Base, error) {
	data, err := r.machine.disk.readThrough(confPath)
	if err != nil {
		return Base{}, fmt.Errorf("reading %s: %w", confPath, err)
	}
	ours := r.servers
	if j, err := loadJournal(r.stateDir); err == nil && j != nil {
		ours = slices.Concat(ours, j.Servers)
	}
	return base(withoutSearch(data), ours), nil
}

// withSearch is a resolv.conf that searches our domains first. The search lines that it had stay as comments, so that
// withoutSearch finds them whatever else becomes of the file.
func withSearch(data []byte, ours []string, hostDomain string) []byte {
	data = withoutSearch(data)
	if len(ours) == 0 {
		return data
	}
	var out []byte
	for line := range bytes.Lines(data) {
		word, _, _ := strings.Cut(strings.ReplaceAll(strings.TrimSpace(string(line)), "\t", " "), " ")
		if word == "search" || word == "domain" {
			out = append(out, keptPrefix...)
		}
		out = append(out, line...)
	}
	list := joinSearch(ours, parseResolvConf(data).search, hostDomain)
	return fmt.Appendf(endLine(out), "%ssearch %s\n", searchMark, strings.Join(list, " "))
}

// withoutSearch takes back what withSearch did.
func withoutSearch(data []byte) []byte {
	var out []byte
	next := false // the line is the one behind the mark
	for line := range bytes.Lines(data) {
		ours := next && bytes.HasPrefix(line, []byte("search "))
		next = string(line) == searchMark
		if !ours && !next {
			out = append(out, bytes.TrimPrefix(line, []byte(keptPrefix))...)
		}
	}
	return out
}

// endLine ends the last line of a text.
func endLine(text []byte) []byte {
	if len(text) > 0 && text[len(text)-1] != '\n' {
		text = append(text, '\n')
	}
	return text
}

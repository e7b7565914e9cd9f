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
	"time"
)

// lockTimeout bounds the wait for another process that changes the machine's DNS at this moment.
const lockTimeout = time.Second

// direct changes /etc/resolv.conf itself. Its methods do not lock.
type direct struct {
	machine  machine
	stateDir string
}

// change is what is to be done to the file.
type change struct {
	before fileState // what would be there without us
	after  fileState
	facts  facts
	decision
}

// change works out what c means for the machine, without doing it. j is the journal of the change that is in place, nil
// if there is none.
func (x direct) change(ctx context.Context, c Config, wish string, j *journal) (change, error) {
	disk := x.machine.disk
	before, err := disk.capture(disk.real(confPath))
	if err != nil {
		return change{}, fmt.Errorf("looking at %s: %w", confPath, err)
	}
	if j != nil {
		before = j.remaining(before)
	} else if before.Kind == kindRegular {
		before.Data = withoutTraces(withoutUs(before.Data, c.addrs()), c.Search)
	}
	f, err := x.machine.facts(ctx, &before)
	if err != nil {
		return change{}, fmt.Errorf("looking at the machine's DNS: %w", err)
	}
	ch := change{before: before, facts: f, decision: decide(f, wish)}
	if ch.refused == nil && ch.mode != modeResolved && ch.mode != modeScutil { // which take ports
		ch.refused = wrongServers(c)
	}
	ch.after = fileState{
		Kind: kindRegular,
		Data: ourConf(c, parseResolvConf(f.data), x.machine.hostDomain()),
		Mode: 0o644, // whatever the umask: programs of every user read it
		UID:  os.Geteuid(),
		GID:  os.Getegid(),
	}
	if before.Kind == kindRegular {
		ch.after.Mode, ch.after.UID, ch.after.GID, ch.after.Xattrs = before.Mode, before.UID, before.GID, before.Xattrs
	}
	return ch, nil
}

// wrongServers says why a resolv.conf cannot name the servers.
func wrongServers(c Config) *refusal {
	for _, s := range c.Servers {
		if s.AddrPort.Port() != 53 {
			return refuse("free port 53 of "+s.AddrPort.Addr().String()+" and start again",
				"%s cannot name a port, and the resolver is at %s", confPath, s.AddrPort)
		}
	}
	return nil
}

// apply makes a change. What fails half-way is for restore to undo.
func (x direct) apply(c Config, ch change, j *journal) (unset []string, err error) {
	disk := x.machine.disk
	next := x.machine.newJournal(modeDirect, confPath, c)
	next.Before, next.InPlace = ch.before, ch.inPlace
	next.Layers = x.layers(ch.before, j)
	if j != nil {
		next.Wrote, next.Over = j.Wrote, j.Over
	}
	next.note(ch.after.Data)
	if err := disk.saveJournal(x.stateDir, next); err != nil {
		return nil, err
	}
	real := disk.real(confPath)
	if ch.inPlace {
		err = disk.overwrite(real, ch.after.Data)
	} else {
		unset, err = disk.make(real, ch.after)
	}
	if err != nil {
		return nil, fmt.Errorf("changing %s: %w", confPath, err)
	}
	return unset, nil
}

// check reads the file back as programs do.
func (x direct) check(c Config) error {
	servers, ours, err := x.machine.disk.readBack(c)
	if err != nil {
		return fmt.Errorf("reading %s back: %w", confPath, err)
	}
	if !ours {
		return fmt.Errorf("reading %s back: it names %v first, not us", confPath, servers)
	}
	return nil
}

// readBack is what programs read: the nameservers, and whether the first one, which they ask first, is one of c's.
func (d disk) readBack(c Config) (servers []netip.Addr, ours bool, err error) {
	data, err := d.readThrough(confPath)
	if err != nil {
		return nil, false, err
	}
	servers = parseResolvConf(data).nameservers
	return servers, len(servers) > 0 && slices.Contains(c.addrs(), servers[0]), nil
}

// restore puts back what the journal says, if what is there is still ours, has managers forget us, and ends the journal.
// It can be called again after it was killed at any moment.
func (x direct) restore(ctx context.Context, j *journal) (Report, error) {
	disk := x.machine.disk
	if j.Mode != modeDirect {
		return x.restoreManaged(ctx, j)
	}
	real := disk.real(confPath)
	if err := disk.removeTemp(real); err != nil {
		return Report{}, fmt.Errorf("removing what a dead process left: %w", err)
	}
	now, err := disk.capture(real)
	if err != nil {
		return Report{}, fmt.Errorf("looking at %s: %w", confPath, err)
	}
	x.settle(j)
	found := j.judge(now)
	want := j.remaining(now)
	steps, left := x.mendCopies(j) // first: whose copy it is may write it back at once
	report := Report{Detail: confPath + " was changed by another program since, and stays as that left it"}
	switch {
	case found == isBefore:
		report.Detail = confPath + " is as it was"
	case found != isForeign:
		if err := x.putBack(now, want); err != nil {
			return Report{}, err
		}
		report = Report{Changed: true, Detail: confPath + " is put back: " + want.describe()}
	}
	report.Steps = append([]string{report.Detail}, steps...)
	report.Left = append(report.Left, left...)
	report.add(x.machine.heal(ctx, j.Servers)) // before the journal ends: who dies meanwhile has left it to the next one
	return report, disk.dropJournal(x.stateDir)
}

// restoreManaged has the manager of the journal forget us.
func (x direct) restoreManaged(ctx context.Context, j *journal) (Report, error) {
	name := managerName(j.Mode)
	if !j.outlivesBoot() && j.BootID != x.machine.bootID() {
		detail := "what " + name + " was told is gone with the boot before"
		return Report{Detail: detail, Steps: []string{detail}}, x.machine.disk.dropJournal(x.stateDir)
	}
	b := x.machine.backendFor(j.Mode, facts{program: j.Path}, x.stateDir)
	if b == nil {
		return Report{}, fmt.Errorf("the journal is of %s: %w", name, errors.ErrUnsupported)
	}
	return x.forget(ctx, b, j.Mode, j.Servers)
}

// forget has a manager forget us.
func (x direct) forget(ctx context.Context, b backend, mode string, ours []netip.Addr) (Report, error) {
	name := managerName(mode)
	detail := name + " has forgotten us"
	report := Report{Changed: true, Detail: detail, Steps: []string{detail}}
	err := b.restore(ctx)
	if kept, ok := errors.AsType[*keptError](err); ok && !x.journalled() {
		report.Left = []string{kept.why + ": " + kept.mend} // all that is ours to do was done
		return report, nil
	}
	if err != nil {
		return Report{}, fmt.Errorf("having %s forget us: %w", name, err)
	}
	if mode == modeResolved {
		report.add(x.machine.healAfterLink(ctx, ours))
		if x.journalled() {
			return report, x.machine.disk.dropJournal(x.stateDir)
		}
	}
	return report, nil
}

// journalled reports whether there is a journal, or may be one.
func (x direct) journalled() bool {
	j, err := loadJournal(x.stateDir)
	return j != nil || err != nil
}

// putBack replaces now by want.
func (x direct) putBack(now, want fileState) error {
	disk := x.machine.disk
	real := disk.real(confPath)
	mounts, err := readMounts()
	if err != nil && !errors.Is(err, errors.ErrUnsupported) {
		return fmt.Errorf("listing mounts: %w", err)
	}
	// By what is so now: a mount may have come or gone since the change was made.
	if mountOn(mounts, real) != nil && now.Kind == kindRegular && want.Kind == kindRegular {
		err = disk.overwrite(real, want.Data)
		if err == nil && !want.Mtime.IsZero() {
			disk.at("utimes", real)
			err = setMtime(real, want.Mtime)
		}
	} else {
		_, err = disk.make(real, want)
	}
	if err != nil {
		return &restoreError{err}
	}
	return nil
}

// restoreError says why the file could not be put back. The journal stays.
type restoreError struct{ err error }

func (e *restoreError) Error() string { return "putting " + confPath + " back: " + e.err.Error() }

func (e *restoreError) Unwrap() error { return e.err }

// Hint says what the user can do.
func (e *restoreError) Hint() string {
	return "make it writable, then run: meshdns dns restore; its comments name the nameservers before"
}

// describe is the state in words.
func (s fileState) describe() string {
	switch s.Kind {
	case kindSymlink:
		return "a symbolic link to " + s.Link
	case kindMissing:
		return "there was none"
	}
	return "a " + s.Kind
}

// base is the DNS that a resolv.conf gives the machine, without our own servers.
func base(data []byte, ours []netip.Addr) Base {
	c := parseResolvConf(data)
	b := Base{Search: slices.DeleteFunc(c.search, func(s string) bool { return s == "." })}
	for _, addr := range c.nameservers {
		if !slices.Contains(ours, addr) {
			b.Servers = append(b.Servers, Server{AddrPort: netip.AddrPortFrom(addr, 53)})
		}
	}
	return b
}

// locked runs f while no other process changes the machine's DNS.
func (x direct) locked(ctx context.Context, f func() error) error {
	ctx, cancel := context.WithTimeout(ctx, lockTimeout)
	defer cancel()
	path := filepath.Join(x.stateDir, "dns.lock")
	lock, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if errors.Is(err, fs.ErrNotExist) {
		return f() // no state, nobody to lock out; apply makes the directory
	}
	if err != nil {
		return fmt.Errorf("locking the machine's DNS: %w", err)
	}
	defer lock.Close()
	if err := lockFile(ctx, lock); err != nil && !errors.Is(err, errors.ErrUnsupported) {
		return fmt.Errorf("waiting for another process that changes the machine's DNS: %w", err)
	}
	return f()
}

package osconfig

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

// closeTimeout bounds what Close does. It makes a handful of system calls on a local file system.
const closeTimeout = 5 * time.Second

// Manager has the machine's DNS name our servers, or not. Its methods may be called at the same time.
type Manager struct {
	opt    Options
	log    *slog.Logger
	direct direct
	kick   chan struct{} // has Watch look at the machine

	mu       sync.Mutex   // held while the machine is changed
	config   Config       // what was applied; zero: nothing
	wanted   []netip.Addr // the servers of what was applied last
	journal  *journal     // of the change of the file that is in place; nil: none is
	leftover *journal     // of a dead process's change that could not be undone yet; nil: none is left
	mode     string
	managed  backend    // of the mode; nil: the file itself is changed
	inPlace  bool       // managed has applied our change
	beside   baseSource // NetworkManager or connman, which know servers though the file is not theirs to change; nil: none runs
	proxied  bool       // beside is connman, whose file may name its proxy in their place
	trace    []string
	problems []string
	base     Base // the last one that named a server
	told     Base // the last one that somebody was told of
	given    Report
	budget   budget
	lost     *fileState // what was there when it was last looked at, since the file was left to another program; nil: it was not
	calm     time.Time  // since when that has been there
	writer   time.Time  // since when a program has been at the file; zero: none is

	said atomic.Pointer[Status] // as it was when mu was let go last, for those who must not wait for a manager that hangs
}

// Open returns a Manager, once it has undone what a dead process left. With Options.Mode off it undoes that too and
// changes nothing else.
func Open(ctx context.Context, o Options) (*Manager, error) {
	if o.StateDir == "" {
		return nil, errors.New("osconfig: no state directory")
	}
	m := &Manager{
		opt:    o,
		log:    o.Logger,
		direct: direct{machine: o.machine, stateDir: o.StateDir},
		kick:   make(chan struct{}, 1),
	}
	if m.log == nil {
		m.log = slog.New(slog.DiscardHandler)
	}
	if err := m.undoDead(ctx); err != nil {
		return nil, err
	}
	f, err := m.direct.machine.facts(ctx, nil)
	if err != nil {
		return nil, fmt.Errorf("looking at the machine's DNS: %w", err)
	}
	d := decide(f, o.Mode)
	m.setMode(d, f)
	m.base = base(f.data, nil) // until somebody asks, and should the manager not tell
	m.tellLocked()
	return m, nil
}

// undoDead undoes what a dead process left. A journal that cannot be read is put aside: it must not keep the resolver
// from starting, and not get lost either.
func (m *Manager) undoDead(ctx context.Context) error {
	opt := m.opt
	opt.Probe = nil // nobody waits for nameservers before the resolver is there
	report, err := Restore(ctx, opt)
	if errors.Is(err, errBadJournal) {
		aside := journalPath(m.opt.StateDir) + ".unreadable"
		m.log.Error("the journal of an earlier change cannot be read and is put aside", "file", aside, "err", err)
		m.problems = append(m.problems, fmt.Sprintf("%v; it was put aside as %s", err, aside))
		return os.Rename(journalPath(m.opt.StateDir), aside)
	}
	m.gave(report)
	if report.Changed {
		m.log.Warn("a node that died had left the machine's DNS changed", "now", report.Detail)
	}
	if err == nil {
		return nil
	}
	// While the resolver runs the machine has names although its DNS still names us. Without it, it would have none.
	var loadErr error
	if m.leftover, loadErr = loadJournal(m.opt.StateDir); m.leftover == nil {
		return errors.Join(err, loadErr)
	}
	m.log.Error("what a node that died had changed cannot be undone yet", "err", err)
	m.problems = append(m.problems, fmt.Sprintf("what a node that died had changed cannot be undone yet: %v", err))
	return nil
}

// undoLeftover tries again to undo what a dead process left.
func (m *Manager) undoLeftover(ctx context.Context) error {
	if m.leftover == nil {
		return nil
	}
	report, err := m.direct.restore(ctx, m.leftover)
	if err != nil {
		return err
	}
	m.log.Warn("what a node that died had changed is undone now", "what", report.Detail)
	m.gave(report)
	m.leftover, m.problems = nil, nil
	return nil
}

// Restore puts back what a process that died has changed, as its journal in o.StateDir says. It needs no Manager, no
// network and no daemon, and can be called at any time, any number of times.
func Restore(ctx context.Context, o Options) (Report, error) {
	ctx, done := shareBus(ctx)
	defer done()
	x := direct{machine: o.machine, stateDir: o.StateDir}
	report := Report{Detail: nothingOurs}
	err := x.locked(ctx, func() error {
		if err := x.machine.disk.removeTemp(journalPath(o.StateDir)); err != nil {
			return fmt.Errorf("removing what a dead process left: %w", err)
		}
		j, err := loadJournal(o.StateDir)
		if err != nil || j == nil {
			return err
		}
		report, err = x.restore(ctx, j)
		return err
	})
	if err == nil {
		report.add(x.machine.tryServers(ctx, o.Probe))
	}
	return report, err
}

// nothingOurs is what giving the machine's DNS back comes to where it was not taken.
const nothingOurs = "nothing of ours to put back"

// Preview is what Apply would do, without a Manager and without any change.
func Preview(ctx context.Context, o Options, c Config) (Plan, error) {
	ctx, done := shareBus(ctx)
	defer done()
	x := direct{machine: o.machine, stateDir: o.StateDir}
	j, err := loadJournal(o.StateDir)
	if err != nil {
		return Plan{}, err
	}
	return x.plan(ctx, c, o.Mode, j)
}

// Apply has the machine ask c's servers, or gives its DNS back if c is zero. An error that wraps ErrRefused says why
// the machine is left alone. After any other error it has its own DNS again, or the error says that too failed.
func (m *Manager) Apply(ctx context.Context, c Config) error {
	ctx, done := shareBus(ctx)
	defer done()
	m.mu.Lock()
	defer m.mu.Unlock()
	defer m.tellLocked()
	if c.isZero() {
		m.lost = nil
		err := m.giveBackLocked(ctx)
		if err == nil {
			m.given.add(m.direct.machine.tryServers(ctx, m.opt.Probe))
		}
		return err
	}
	m.budget, m.lost = budget{}, nil
	err := m.direct.locked(ctx, func() error { return m.applyLocked(ctx, c, false) })
	m.wake()
	return err
}

// giveBackLocked gives the machine's DNS back, until somebody applies again.
func (m *Manager) giveBackLocked(ctx context.Context) error {
	m.budget = budget{}
	if m.undone() {
		m.config, m.given = Config{}, Report{Detail: nothingOurs}
		return nil
	}
	err := m.direct.locked(ctx, func() error { return m.restoreLocked(ctx) })
	m.wake()
	return err
}

// applyLocked does what Apply does. What is made again is not tried: the stub answers, and whoever overwrites it at once
// is found by the next look, within the budget.
func (m *Manager) applyLocked(ctx context.Context, c Config, again bool) error {
	if err := m.undoLeftover(ctx); err != nil {
		return err
	}
	ch, err := m.direct.change(ctx, c, m.opt.Mode, m.journal)
	if err != nil {
		return err
	}
	if ch.mode != m.mode && m.active() {
		m.log.Warn("the machine's DNS has another owner now", "before", m.mode, "now", ch.mode)
		if err := m.restoreLocked(ctx); err != nil {
			return err
		}
		if ch, err = m.direct.change(ctx, c, m.opt.Mode, nil); err != nil {
			return err
		}
	}
	m.setMode(ch.decision, ch.facts)
	switch {
	case ch.refused != nil:
		return ch.refused
	case ch.mode != modeDirect:
		return m.applyManaged(ctx, c, ch.facts)
	}
	return m.applyDirect(ctx, c, ch, again)
}

// applyDirect changes the file itself.
func (m *Manager) applyDirect(ctx context.Context, c Config, ch change, again bool) error {
	unset, err := m.direct.apply(c, ch, m.journal)
	var loadErr error
	if m.journal, loadErr = loadJournal(m.opt.StateDir); loadErr != nil {
		return errors.Join(err, loadErr)
	}
	if err == nil && !again {
		if err = m.direct.check(c); err != nil && m.overtaken() {
			err = nil // a VPN was at it at once, which Watch sees to
		}
	}
	if err == nil && !again {
		err = m.verify(ctx, c)
	}
	if err != nil {
		return errors.Join(err, m.restoreLocked(ctx))
	}
	if len(unset) > 0 {
		m.log.Warn("not all attributes of the file before could be set", "path", confPath, "attributes", unset)
	}
	if ch.inPlace {
		m.log.Info("a mount cannot be replaced: it was overwritten in place", "path", confPath)
	}
	m.config, m.problems = c, nil
	m.base.Servers = slices.DeleteFunc(slices.Clone(m.base.Servers), func(s Server) bool {
		return slices.Contains(c.addrs(), s.AddrPort.Addr()) // before this, nobody knew that those are we
	})
	m.learn(ctx)
	return nil
}

// setMode takes note of who owns the machine's DNS.
func (m *Manager) setMode(d decision, f facts) {
	if d.mode != m.mode || m.managed == nil {
		m.managed = m.direct.machine.backendFor(d.mode, f, m.opt.StateDir)
	}
	m.mode, m.trace = d.mode, d.trace
	m.beside, m.proxied = nil, false
	switch {
	case d.mode != modeDirect:
	case f.nm == ownerPresent:
		m.beside = newNetworkManager(m.direct.machine, m.opt.StateDir)
	case f.connman == ownerPresent:
		m.beside, m.proxied = newConnman(), true
	}
}

// active reports whether a change of ours is in place.
func (m *Manager) active() bool { return m.journal != nil || m.inPlace }

// undone reports whether nothing is left to be given back.
func (m *Manager) undone() bool { return !m.active() && m.leftover == nil }

// verify asks our first server as programs do.
func (m *Manager) verify(ctx context.Context, c Config) error {
	if m.opt.Verify == nil {
		return nil
	}
	server := c.Servers[0].AddrPort
	if c.Service.IsValid() && m.mode != modeResolved { // which is told of Servers alone
		server = netip.AddrPortFrom(c.Service, 53)
	}
	if err := m.opt.Verify(ctx, server); err != nil {
		return fmt.Errorf("trying the machine's DNS after the change, which is undone: %w", err)
	}
	return nil
}

// restoreLocked gives the machine's DNS back. m.given says what came of it.
func (m *Manager) restoreLocked(ctx context.Context) error {
	m.config = Config{}
	m.given = Report{Detail: nothingOurs}
	if err := m.undoLeftover(ctx); err != nil {
		return err
	}
	if m.inPlace {
		report, err := m.direct.forget(ctx, m.managed, m.mode, m.wanted)
		if err != nil {
			return err
		}
		m.log.Info("the machine's DNS is given back", "what", report.Detail)
		m.gave(report)
		m.inPlace = false
	}
	if m.journal == nil {
		return nil
	}
	report, err := m.direct.restore(ctx, m.journal)
	if err != nil {
		return err
	}
	m.log.Info("the machine's DNS is given back", "what", report.Detail)
	m.gave(report)
	m.journal = nil
	return nil
}

// gave takes note of what came of giving the machine's DNS back.
func (m *Manager) gave(r Report) {
	m.given = r
	for _, left := range r.Left {
		m.log.Warn("giving the machine's DNS back left something", "what", left)
	}
}

// Plan says what Apply would do. It changes nothing.
func (m *Manager) Plan(ctx context.Context, c Config) (Plan, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.direct.plan(ctx, c, m.opt.Mode, m.journal)
}

// Status is how the machine's DNS was when it was looked at last. It never waits.
func (m *Manager) Status() Status { return *m.said.Load() }

// tellLocked has Status say how it is now.
func (m *Manager) tellLocked() {
	m.said.Store(&Status{
		Mode: m.mode, Active: m.active(), Split: m.active() && splits(m.mode) && len(m.config.Match) > 0, Problems: slices.Clone(m.problems), Trace: slices.Clone(m.trace),
		Tunnels: slices.Clone(m.base.tunnels), Given: m.given,
	})
}

// Base is the DNS that the machine has, or would have without us; ErrNoBase if it names no server.
func (m *Manager) Base(ctx context.Context) (Base, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.learn(ctx)
	if len(m.base.Servers) == 0 {
		return Base{}, ErrNoBase
	}
	m.told = m.base
	return m.base, nil
}

// learn looks at the base again. A list without servers is no new truth: files are empty for a moment while they are
// written, and for longer while a lease is renewed.
func (m *Manager) learn(ctx context.Context) {
	if m.managed != nil {
		m.learnFrom(ctx, m.managed)
		return
	}
	disk := m.direct.machine.disk
	file, err := disk.capture(disk.real(confPath))
	if err != nil {
		m.log.Debug("the base is not known", "err", err)
		return
	}
	var of *journal
	for _, j := range []*journal{m.leftover, m.journal} {
		if j != nil && j.Mode == modeDirect {
			file, of = j.remaining(file), j
		}
	}
	b := m.direct.layered(of, file)
	_, data := disk.leads(file)
	if len(b.Servers) == 0 || m.proxied && onlyConnmanProxy(data) {
		if m.beside != nil && m.learnFrom(ctx, m.beside) {
			return
		}
	}
	if len(b.Servers) > 0 {
		m.base = b
	}
}

// learnFrom asks a program for the base, and reports whether it knew of servers.
func (m *Manager) learnFrom(ctx context.Context, from baseSource) bool {
	b, err := from.base(ctx)
	if err != nil {
		m.log.Debug("the base is not known", "err", err)
		return false
	}
	b.Servers = slices.DeleteFunc(b.Servers, func(s Server) bool { return slices.Contains(m.config.addrs(), s.AddrPort.Addr()) })
	if len(b.Servers) == 0 {
		return false
	}
	m.base = b
	return true
}

// Close gives the machine's DNS back.
func (m *Manager) Close() error {
	ctx, cancel := context.WithTimeout(context.Background(), closeTimeout)
	defer cancel()
	ctx, done := shareBus(ctx)
	defer done()
	m.mu.Lock()
	defer m.mu.Unlock()
	defer m.tellLocked()
	return m.giveBackLocked(ctx)
}

// wake has Watch look at the machine.
func (m *Manager) wake() {
	select {
	case m.kick <- struct{}{}:
	default: // it will look anyway
	}
}

package osconfig

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"time"
)

const (
	// settleTime is how long nothing has to happen before a changed file is looked at.
	settleTime = 40 * time.Millisecond
	// writingTime is how long a writer is waited for who keeps the file open, or who has not named a server yet.
	writingTime = 2 * time.Second
	// lookInterval is how often the file is looked at without an event: mounts make none, and queues overflow.
	lookInterval = 15 * time.Second
)

// Watch follows what other programs do to the machine's DNS until ctx ends, and then returns nil. While our servers are
// named it names them again when others overwrite that, within a budget, and learns from what they wrote; OnBase is
// told of servers that were learnt.
func (m *Manager) Watch(ctx context.Context) error {
	if nativeMode == modeNone {
		<-ctx.Done()
		return nil
	}
	w := newWatcher(m.direct.machine.disk, m.log)
	defer w.close()
	look := time.NewTimer(0)
	defer look.Stop()
	var bus sync.WaitGroup
	defer bus.Wait()
	bus.Go(func() { followBus(ctx, m.wake) })
	bus.Go(func() { followLinks(ctx, m.wake) })
	for {
		select {
		case <-ctx.Done():
			return nil
		case e := <-w.events():
			if w.concerns(e) {
				look.Reset(settleTime)
			}
		case err := <-w.errors():
			m.log.Warn("watching the machine's DNS", "err", err) // mostly an overflow: something happened
			look.Reset(settleTime)
		case <-m.kick:
			look.Reset(settleTime)
		case <-look.C:
			w.follow(m.follows()) // before looking: what changes afterwards is an event again
			look.Reset(m.look(ctx))
		}
	}
}

// follows is where the file leads that programs would read without us.
func (m *Manager) follows() (t trail, more []string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	more = watchesOf(m.mode)
	disk := m.direct.machine.disk
	file := fileState{Kind: kindRegular}
	if m.journal != nil {
		file = m.journal.Before
	} else if now, err := disk.capture(disk.real(confPath)); err == nil {
		file = now
	}
	t, _ = disk.leads(file)
	return t, more
}

// lingerTime is how long a change that was begun may go on once somebody wants the end.
const lingerTime = 4 * time.Second

// lingering ends lingerTime after ctx: a change of the machine's DNS that is broken off half-way would be left to nobody.
func lingering(ctx context.Context) (context.Context, context.CancelFunc) {
	longer, cancel := context.WithCancel(context.WithoutCancel(ctx))
	stop := context.AfterFunc(ctx, func() { time.AfterFunc(lingerTime, cancel) })
	return longer, func() {
		stop()
		cancel()
	}
}

// look compares the machine with what it is meant to be, mends it, and returns when to look again.
func (m *Manager) look(ctx context.Context) time.Duration {
	if ctx.Err() != nil {
		return lookInterval
	}
	ctx, cancel := lingering(ctx)
	defer cancel()
	next, news := m.lookLocking(ctx)
	if news != nil && m.opt.OnBase != nil {
		m.opt.OnBase(*news) // without the lock, so that it may call us
	}
	return next
}

// lookLocking does what look does, but for telling of a new base.
func (m *Manager) lookLocking(ctx context.Context) (next time.Duration, news *Base) {
	ctx, done := shareBus(ctx)
	defer done()
	m.mu.Lock()
	defer m.mu.Unlock()
	defer m.tellLocked()
	next = lookInterval
	if m.leftover != nil {
		// Why it cannot be undone was told; that it could be is told then.
		_ = m.direct.locked(ctx, func() error { return m.undoLeftover(ctx) })
	}
	if m.active() || m.pending() {
		err := m.direct.locked(ctx, func() (err error) {
			if m.pending() {
				next, err = m.retry(ctx)
				return err
			}
			moved, f, err := m.follow(ctx)
			switch {
			case moved || err != nil:
			case m.inPlace:
				err = m.tend(ctx, f)
			default:
				next, err = m.mend(ctx)
			}
			return err
		})
		if err != nil && ctx.Err() == nil {
			m.log.Error("the machine's DNS was changed by another program, and that was not mended", "err", err)
			m.problems = []string{"the machine's DNS was changed by another program: " + err.Error()}
			if m.pending() {
				next = max(firstPause, m.budget.pause(time.Now()))
			}
		}
	}
	m.learn(ctx)
	if !m.base.equal(m.told) {
		base := m.base
		m.told, news = base, &base
	}
	return next, news
}

// pending reports whether a change is wanted that was undone, since it could not be made where the machine's DNS has
// moved: a manager that has just appeared may not be ready.
func (m *Manager) pending() bool { return !m.active() && !m.config.isZero() }

// retry tries again to make it, within the budget: each try may change what the next look is called for.
func (m *Manager) retry(ctx context.Context) (next time.Duration, err error) {
	if m.lost != nil {
		if wait, err := m.awaitCalm(); wait > 0 || err != nil {
			return max(wait, settleTime), err
		}
		m.log.Info("nobody has written the machine's DNS for a while; it is taken over again", "path", confPath)
		m.budget, m.lost = budget{}, nil
	}
	if wait := m.budget.pause(time.Now()); wait > 0 {
		return wait, nil
	}
	m.budget.spend(time.Now())
	return lookInterval, m.reapply(ctx, "nothing of ours", nil)
}

// follow looks who owns the machine's DNS now. If that is another one than before, ours moves there.
func (m *Manager) follow(ctx context.Context) (moved bool, f facts, err error) {
	ch, err := m.direct.change(ctx, m.config, m.opt.Mode, m.journal)
	// A bus that does not answer is no news of who is on it.
	if err != nil || ch.facts.busErr != nil || ctx.Err() != nil {
		return false, ch.facts, err
	}
	if ch.mode == m.mode {
		m.setMode(ch.decision, ch.facts) // connman may have come or gone beside it
		return false, ch.facts, nil
	}
	return true, ch.facts, m.reapply(ctx, "another owner", nil)
}

// mend names our servers again if another program has overwritten that.
func (m *Manager) mend(ctx context.Context) (next time.Duration, err error) {
	disk := m.direct.machine.disk
	real := disk.real(confPath)
	now, err := disk.capture(real)
	if err != nil {
		return lookInterval, fmt.Errorf("looking at %s: %w", confPath, err)
	}
	found := m.journal.judge(now)
	if gone, err := m.missJournal(found); gone || err != nil {
		return lookInterval, err
	}
	if fell := m.direct.settle(m.journal); len(fell) > 0 {
		return lookInterval, m.fall(ctx, fell)
	}
	if found != isOurs {
		if under, err := m.isUnder(ctx, now); under || err != nil {
			return lookInterval, err
		}
	}
	if found == isOurs {
		m.writer = time.Time{}
		if m.budget.tight() {
			return lookInterval, nil // the problem stays until there was peace for a while
		}
		m.problems = nil
		return lookInterval, nil
	}
	// Whoever empties or removes the file is mostly about to write it anew.
	if (found == isEmptied || now.Kind == kindMissing || now.Kind == kindRegular && beingWritten(real)) && m.awaitWriter() {
		return settleTime, nil
	}
	m.writer = time.Time{}
	if (found == isForeign || found == isBefore) && m.budget.lost() {
		return m.yield(now)
	}
	if wait := m.budget.pause(time.Now()); wait > 0 {
		m.problems = []string{fmt.Sprintf("another program keeps overwriting %s; it is written again in %s", confPath, wait.Round(time.Second))}
		return wait, nil
	}
	m.budget.spend(time.Now())
	return lookInterval, m.reapply(ctx, string(found), now.Data)
}

// yield leaves the file to another program, as that has written it. There is nothing of ours to be undone then.
func (m *Manager) yield(now fileState) (next time.Duration, err error) {
	if err := m.direct.machine.disk.dropJournal(m.opt.StateDir); err != nil {
		return lookInterval, err
	}
	m.journal, m.lost, m.calm = nil, &now, time.Now()
	m.problems = []string{fmt.Sprintf("another program keeps overwriting %s, which is left to it; it is taken over again once nobody has written it for %s",
		confPath, calmTime)}
	m.log.Warn("the machine's DNS is left to another program, which keeps overwriting it", "path", confPath)
	return min(lookInterval, calmTime), nil
}

// awaitCalm is how long a file that was left to another program has to stay as it is yet.
func (m *Manager) awaitCalm() (time.Duration, error) {
	disk := m.direct.machine.disk
	now, err := disk.capture(disk.real(confPath))
	if err != nil {
		return 0, fmt.Errorf("looking at %s: %w", confPath, err)
	}
	if !now.same(*m.lost) || now.Ino != m.lost.Ino || !now.Mtime.Equal(m.lost.Mtime) {
		m.lost, m.calm = &now, time.Now()
	}
	return min(lookInterval, calmTime-time.Since(m.calm)), nil
}

// missJournal looks whether the journal is still on the disk. Without it and with the file as it was, somebody else has
// given the machine's DNS back, which is to stay so; with the file still ours it is written again.
func (m *Manager) missJournal(found condition) (gone bool, err error) {
	j, err := loadJournal(m.opt.StateDir)
	if j != nil || err != nil {
		return false, err
	}
	if found == isBefore {
		m.givenBack()
		return true, nil
	}
	m.log.Warn("the journal of the change is gone; it is written again", "file", journalPath(m.opt.StateDir))
	return false, m.direct.machine.disk.saveJournal(m.opt.StateDir, m.journal)
}

// givenBack takes note that another process gave the machine's DNS back, which is to stay so.
func (m *Manager) givenBack() {
	m.journal, m.inPlace, m.config = nil, false, Config{}
	m.log.Warn("another process has given the machine's DNS back")
	m.problems = []string{"another process has given the machine's DNS back; take it over again with: meshdns dns apply"}
}

// awaitWriter reports whether to wait on for a program that writes the file.
func (m *Manager) awaitWriter() bool {
	if m.writer.IsZero() {
		m.writer = time.Now()
	}
	return time.Since(m.writer) < writingTime
}

// reapply makes our change again over what was found.
func (m *Manager) reapply(ctx context.Context, found string, data []byte) error {
	c := m.config
	var names []string
	for _, addr := range parseResolvConf(data).nameservers {
		names = append(names, addr.String())
	}
	err := m.applyLocked(ctx, c, true)
	if errors.Is(err, ErrRefused) {
		// Somebody owns it now, or has locked it. What they put there stays.
		if err := m.restoreLocked(ctx); err != nil {
			return err
		}
		m.log.Warn("the machine's DNS is no longer ours to change", "why", err)
		m.problems = []string{"the machine's DNS is no longer taken over: " + err.Error()}
		return nil
	}
	if err != nil {
		m.config = c // to be tried again
		return err
	}
	m.wake() // whoever wrote at the same moment is seen then
	m.log.Warn("another program changed the machine's DNS; ours is applied again",
		"found", found, "nameservers", strings.Join(names, " "), "mode", m.mode)
	if m.budget.tight() {
		m.problems = []string{fmt.Sprintf("another program keeps overwriting %s", confPath)}
	}
	return nil
}

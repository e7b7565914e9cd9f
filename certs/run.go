package certs

import (
	"context"
	"crypto/x509"
	"errors"
	"io/fs"
	"maps"
	"slices"
	"sync"
	"time"
)

const (
	// tendAtOnce is how many certificates are tended at a time, so that one that hangs holds no other up.
	tendAtOnce = 16
	// lookEvery is how long Run sleeps at most: timers stand still while a machine is suspended, and another process may
	// have changed what is stored.
	lookEvery = 5 * time.Minute
	// tendWait is how long a certificate that somebody else holds is waited for.
	tendWait = time.Second
	// alarmEvery is how often the log is told again of a certificate that is about to end.
	alarmEvery = 24 * time.Hour
)

// Run renews certificates and copies them to their targets until ctx ends. It returns once all that it began has ended.
func (m *Manager) Run(ctx context.Context) error {
	var wait sync.WaitGroup
	defer wait.Wait()
	slots := make(chan struct{}, tendAtOnce)
	for {
		next := m.cfg.Now().Add(lookEvery)
		for _, name := range m.idle() {
			at := m.dueAt(name)
			if at.After(m.cfg.Now()) {
				if at.Before(next) {
					next = at
				}
				continue
			}
			select {
			case slots <- struct{}{}:
			default:
				continue // the one that ends wakes us
			}
			m.setBusy(name, true)
			wait.Go(func() {
				defer func() { <-slots; m.setBusy(name, false); m.changed(name) }()
				m.tend(ctx, name)
			})
		}
		timer := time.NewTimer(max(next.Sub(m.cfg.Now()), time.Millisecond))
		select {
		case <-ctx.Done():
			timer.Stop()
			return nil
		case <-m.wake:
			timer.Stop()
		case <-timer.C:
		}
	}
}

// idle are the certificates that nobody tends, read anew if another process has changed them.
func (m *Manager) idle() []string {
	names, err := m.store.names()
	if err != nil {
		m.log.Warn("reading the certificates", "err", err)
	}
	for _, name := range names {
		if version, err := m.store.current(name); err == nil && !m.has(name, version) {
			if r, err := m.read(name); err == nil {
				m.install(name, r)
			}
		}
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	var idle []string
	for _, name := range m.sortedLocked() {
		if !m.certs[name].busy {
			idle = append(idle, name)
		}
	}
	return idle
}

// has reports whether a version is the one in memory.
func (m *Manager) has(name string, version int) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	c := m.certs[name]
	if c == nil {
		return false
	}
	if c.record.cert == nil {
		return version == 0
	}
	return c.record.cert.version == version
}

func (m *Manager) sortedLocked() []string { return slices.Sorted(maps.Keys(m.certs)) }

func (m *Manager) setBusy(name string, busy bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if c := m.certs[name]; c != nil {
		c.busy = busy
	}
}

// dueAt is when something is to be done for a certificate.
func (m *Manager) dueAt(name string) time.Time {
	m.mu.Lock()
	defer m.mu.Unlock()
	c := m.certs[name]
	if c == nil {
		return m.cfg.Now().Add(lookEvery)
	}
	r := &c.record
	at := m.next(r)
	if r.cert == nil {
		return latest(at, c.rest)
	}
	warn := latest(alarmAt(r.cert), c.alarmed.Add(alarmEvery))
	if warn.Before(at) {
		at = warn
	}
	if ask := r.state.Ask; m.asks(r.cert.CA) && ask.Before(at) {
		at = ask
	}
	if deploy, ok := m.deployAt(name, r); ok && deploy.Before(at) {
		at = deploy
	}
	if mend, ok := m.mendAt(name, c); ok && mend.Before(at) {
		at = mend
	}
	if lacks, grow := m.growsLocked(c); len(lacks) > 0 && grow.Before(at) {
		at = grow
	}
	return latest(at, c.rest)
}

// rest leaves a certificate that cannot be tended alone for a while.
func (m *Manager) rest(name string, err error) {
	m.log.Error("a certificate cannot be looked after", "name", name, "err", err)
	m.setRest(name, time.Minute)
}

func (m *Manager) setRest(name string, pause time.Duration) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if c := m.certs[name]; c != nil {
		c.rest = m.cfg.Now().Add(pause)
	}
}

// informer is an issuer that says when to renew.
type informer interface {
	RenewalInfo(context.Context, *x509.Certificate) (window, error)
}

// asks reports whether the CA can be asked when to renew.
func (m *Manager) asks(ca string) bool {
	cas, err := m.candidates(ca)
	if err != nil || ca == "" {
		return false
	}
	_, ok := cas[0].Issuer.(informer)
	return ok
}

// tend does what is due for a certificate.
func (m *Manager) tend(ctx context.Context, name string) {
	short, cancel := context.WithTimeout(ctx, tendWait)
	unlock, err := m.store.lock(short, name)
	cancel()
	if errors.Is(err, context.DeadlineExceeded) {
		m.log.Debug("somebody else sees to a certificate", "name", name)
		m.setRest(name, lookEvery) // or until whoever it is has done so, in this process
		return
	}
	switch {
	case ctx.Err() != nil && err != nil:
		return
	case err != nil:
		m.rest(name, err)
		return
	}
	defer unlock()
	r, err := m.read(name)
	if errors.Is(err, fs.ErrNotExist) {
		m.forget(name)
		return
	}
	if err != nil {
		m.rest(name, err)
		return
	}
	m.askWindow(ctx, name, &r)
	if !m.next(&r).After(m.cfg.Now()) {
		if why := r.need(m.cfg.Now()); why != "" {
			m.log.Info("getting a certificate", "name", name, "because", why)
			_ = m.issueNow(ctx, name, &r) // it is in the log and in the state
		}
	}
	m.grow(ctx, name, &r)
	m.mend(name, &r)
	m.deploy(ctx, name, &r)
	m.install(name, r)
	m.alarm(name)
}

// askWindow asks the CA when to renew, if it is time to ask.
func (m *Manager) askWindow(ctx context.Context, name string, r *record) {
	now := m.cfg.Now()
	if r.cert == nil || now.Before(r.state.Ask) || !m.asks(r.cert.CA) {
		return
	}
	cas, err := m.candidates(r.cert.CA)
	if err != nil {
		return
	}
	w, err := cas[0].Issuer.(informer).RenewalInfo(ctx, r.cert.Leaf)
	if ctx.Err() != nil {
		return
	}
	now = m.cfg.Now()
	var later *LaterError
	switch {
	case err == nil:
		r.heed(w, now, m.cfg.Random())
	case errors.As(err, &later):
		r.state.Ask = later.Until
	default:
		// Without its word the share of the certificate's life counts.
		m.log.Debug("the CA does not say when to renew", "name", name, "err", err)
		r.state.Ask = now.Add(6 * time.Hour)
	}
	if err := m.store.writeState(name, r.state); err != nil {
		m.log.Warn("storing when to renew", "name", name, "err", err)
	}
}

// alarm tells the log of a certificate that is about to end.
func (m *Manager) alarm(name string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	c, now := m.certs[name], m.cfg.Now()
	if c == nil || c.record.cert == nil || !alarming(c.record.cert, now) || now.Sub(c.alarmed) < alarmEvery {
		return
	}
	c.alarmed = now
	var why string
	if c.record.state.Last != nil {
		why = c.record.state.Last.Error
	}
	m.log.Error("a certificate is about to end", "name", name, "until", c.record.cert.Leaf.NotAfter, "err", why)
}

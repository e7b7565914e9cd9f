package certs

import (
	"cmp"
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"time"
)

// Request asks for a certificate.
type Request struct {
	Names       []string      // the first one names the certificate
	Exact       bool          // one that has more names will not do
	Own         bool          // the names are all of this machine's: later it follows Config.Own
	CA          string        // one of Config.CAs; empty: as it was, or by preference
	Key         string        // p256, p384, rsa2048 or rsa4096; empty: as it was, or p256
	MinValidity time.Duration // renewed first if less is left
	Force       bool          // renewed in any case
	Steps       func(Step)    // is told each step, by several goroutines at a time; may be nil
}

// Get returns the certificate that is asked for, which is issued if there is none that will do, and has it renewed from
// then on. issued says that it is new.
func (m *Manager) Get(ctx context.Context, req Request) (c *Certificate, issued bool, err error) {
	began := m.cfg.Now()
	names, err := cleanNames(req.Names)
	if err != nil {
		return nil, false, err
	}
	if err := m.vet(req, names); err != nil {
		return nil, false, err
	}
	if req.Steps != nil {
		ctx = withSteps(ctx, req.Steps)
	}
	name := names[0]
	unlock, err := m.store.lock(ctx, name)
	if err != nil {
		return nil, false, err
	}
	defer unlock()
	defer m.changed(name)
	r, err := m.read(name)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, false, err
	}
	before := r.wish
	r.wish.take(req, names)
	if !before.equal(r.wish) {
		if err := m.store.writeWish(name, r.wish); err != nil {
			return nil, false, err
		}
	}
	if !m.wanted(&r, req, began) {
		m.install(name, r)
		return r.cert, false, m.longEnough(&r, req)
	}
	if wait := m.mayIssue(&r, req); wait != nil {
		m.install(name, r)
		return nil, false, wait
	}
	err = m.issueNow(ctx, name, &r)
	m.install(name, r)
	if err != nil {
		return nil, false, err
	}
	return r.cert, true, m.longEnough(&r, req)
}

// Manage has a certificate issued, and renewed from then on, by Run, unless there is one or it was asked for already.
func (m *Manager) Manage(ctx context.Context, req Request) error {
	names, err := cleanNames(req.Names)
	if err != nil {
		return err
	}
	if err := m.vet(req, names); err != nil {
		return err
	}
	unlock, err := m.store.lock(ctx, names[0])
	if err != nil {
		return err
	}
	defer unlock()
	r, err := m.read(names[0])
	if !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	r.wish.take(req, names)
	if err := m.store.writeWish(names[0], r.wish); err != nil {
		return err
	}
	m.install(names[0], r)
	m.changed(names[0])
	return nil
}

// take puts what is asked for into the wish.
func (w *wish) take(req Request, names []string) {
	missing := func(name string) bool { return !slices.Contains(w.Names, name) }
	if req.Exact || slices.ContainsFunc(names, missing) {
		w.Names, w.Own = names, false
	}
	w.Own = w.Own || req.Own
	if req.CA != "" {
		w.CA = req.CA
	}
	if req.Key != "" {
		w.Key = req.Key
	}
}

func (w wish) equal(other wish) bool {
	return slices.Equal(w.Names, other.Names) && w.CA == other.CA && w.Key == other.Key && w.Own == other.Own
}

// vet refuses what cannot be had from any CA that may be asked.
func (m *Manager) vet(req Request, names []string) error {
	cas, err := m.candidates(req.CA)
	if err != nil {
		return err
	}
	if req.Key != "" && !slices.Contains(keyKinds(), req.Key) {
		return &hinted{fmt.Errorf("unknown kind of key %q", req.Key), "one of p256, p384, rsa2048, rsa4096"}
	}
	var refused error
	for _, ca := range cas {
		v, ok := ca.Issuer.(interface{ Vet([]string) error })
		if !ok {
			return nil
		}
		err := v.Vet(names)
		if err == nil {
			return nil
		}
		if refused == nil {
			refused = err
		}
	}
	return refused
}

// candidates are the CAs that may be asked.
func (m *Manager) candidates(name string) ([]CA, error) {
	if name == "" {
		return m.cfg.CAs, nil
	}
	var known []string
	for _, ca := range m.cfg.CAs {
		if ca.Name == name {
			return []CA{ca}, nil
		}
		known = append(known, ca.Name)
	}
	return nil, &hinted{fmt.Errorf("unknown CA %q", name), fmt.Sprintf("configured are: %q", known)}
}

// wanted reports whether a certificate has to be issued. One that somebody else got while we waited is as good as ours.
func (m *Manager) wanted(r *record, req Request, began time.Time) bool {
	now := m.cfg.Now()
	fits := r.need(now) == ""
	if n := len(r.state.Issued); fits && n > 0 && !r.state.Issued[n-1].Before(began) {
		return false
	}
	return !fits || req.Force || (req.MinValidity > 0 && r.cert.Leaf.NotAfter.Sub(now) < req.MinValidity && lifetime(r.cert.Leaf) > req.MinValidity)
}

// longEnough says whether the certificate is valid for as long as was asked for.
func (m *Manager) longEnough(r *record, req Request) error {
	if left := r.cert.Leaf.NotAfter.Sub(m.cfg.Now()); left < req.MinValidity {
		return &hinted{fmt.Errorf("the certificate of %s is valid for %s and not for %s", r.cert.Name, left.Round(time.Second), req.MinValidity),
			fmt.Sprintf("this CA's certificates live for %s; ask for less", lifetime(r.cert.Leaf).Round(time.Minute))}
	}
	return nil
}

// mayIssue says why no certificate may be issued now. Who asks by hand does not wait for our own patience to end, and who
// insists not for the floor either.
func (m *Manager) mayIssue(r *record, req Request) error {
	now := m.cfg.Now()
	why := r.need(now)
	if floor := r.floor(); !req.Force && (why == "" || why == isDue) && now.Before(floor) {
		return &hinted{&LaterError{Until: floor, Err: fmt.Errorf("%s has had %d certificates within a day", r.cert.Name, perDay)},
			"if it has to be, insist with --force"}
	}
	cas, err := m.candidates(r.wish.CA)
	if err != nil {
		return err
	}
	var first *LaterError
	for _, ca := range cas {
		h, on := r.state.held(ca.Name, now)
		if !on {
			return nil
		}
		if first == nil || h.Until.Before(first.Until) {
			first = &LaterError{Until: h.Until, Err: fmt.Errorf("CA %s is not asked yet: %s", ca.Name, h.Why)}
		}
	}
	return first
}

// issue gets a certificate from the first CA that gives one. The caller has the lock.
func (m *Manager) issue(ctx context.Context, name string, r *record) error {
	cas, err := m.candidates(r.wish.CA)
	if err != nil {
		return err
	}
	var failed error
	for _, ca := range cas {
		if _, on := r.state.held(ca.Name, m.cfg.Now()); on {
			continue
		}
		err := m.issueFrom(ctx, ca, name, r)
		if err == nil {
			return nil
		}
		if failed == nil {
			failed = err
		}
		m.log.Warn("a certificate was not issued", "name", name, "ca", ca.Name, "err", err)
		if ctx.Err() != nil || !worthAnother(err) {
			break
		}
	}
	if failed == nil {
		return errors.New("no CA may be asked yet")
	}
	if ctx.Err() == nil {
		r.noteFailure(failed, m.cfg.Now(), m.cfg.Random())
	}
	if err := m.store.writeState(name, r.state); err != nil {
		return errors.Join(failed, err)
	}
	return failed
}

// worthAnother reports whether another CA may give what this one did not: all of them look for the same TXT record.
func worthAnother(err error) bool {
	var step *StepError
	return !errors.As(err, &step) || (step.Stage != Published && step.Stage != written)
}

// issueFrom gets a certificate from one CA and stores it.
func (m *Manager) issueFrom(ctx context.Context, ca CA, name string, r *record) error {
	p, err := m.store.pendingFor(name, r, cmp.Or(r.wish.Key, m.cfg.Key, keyP256))
	if err != nil {
		return &StepError{Stage: written, Err: err}
	}
	chain, err := ask(ctx, ca, p.csr, r.cert)
	if err == nil {
		err = vetChain(chain, p.csr)
	}
	if err != nil {
		var later *LaterError
		if errors.As(err, &later) {
			if r.state.Holds == nil {
				r.state.Holds = map[string]hold{}
			}
			r.state.Holds[ca.Name] = hold{Until: later.Until, Why: later.Err.Error()}
		}
		return err
	}
	c, err := newCertificate(name, ca.Name, chain, p.key)
	if err != nil {
		return err
	}
	if err := m.store.save(c); err != nil {
		return &StepError{Stage: written, Err: err}
	}
	r.noteIssued(c, m.cfg.Now(), m.cfg.Random())
	if err := m.store.writeState(name, r.state); err != nil {
		return &StepError{Stage: written, Err: err}
	}
	if err := m.store.dropPending(name); err != nil {
		return &StepError{Stage: written, Err: err}
	}
	Report(ctx, Step{Stage: written, Name: name, Detail: m.store.at(name, "current")})
	m.log.Info("a certificate was issued", "name", name, "ca", ca.Name, "names", c.Leaf.DNSNames, "until", c.Leaf.NotAfter)
	return nil
}

// ask asks a CA, and tells it what is replaced if it is the one that signed it.
func ask(ctx context.Context, ca CA, csr *x509.CertificateRequest, old *Certificate) ([]byte, error) {
	if r, ok := ca.Issuer.(interface {
		Replace(context.Context, *x509.CertificateRequest, *x509.Certificate) ([]byte, error)
	}); ok && old != nil && old.CA == ca.Name {
		return r.Replace(ctx, csr, old.Leaf)
	}
	return ca.Issuer.Issue(ctx, csr)
}

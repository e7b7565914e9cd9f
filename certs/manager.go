package certs

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"io/fs"
	"iter"
	"os"
	"time"
)

// managed is a certificate that was asked for, as it was when it was looked at last.
type managed struct {
	record  record
	busy    bool      // somebody tends it
	rest    time.Time // it could not be tended, and is left alone until then
	alarmed time.Time // when the log was told that it is about to end
	looked  time.Time // when the files of its targets were
	growth  growth
}

// Load reads what is stored, so that handshakes find it. What is damaged is left out and said.
func (m *Manager) Load() error {
	if err := os.MkdirAll(m.cfg.Dir, 0o700); err != nil {
		return fmt.Errorf("making the directory of certificates: %w", err)
	}
	names, err := m.store.names()
	if err != nil {
		return err
	}
	var damaged []error
	for _, name := range names {
		r, err := m.read(name)
		switch {
		case errors.Is(err, fs.ErrNotExist):
		case err != nil:
			damaged = append(damaged, err)
		default:
			m.install(name, r)
		}
	}
	return errors.Join(damaged...)
}

// install has handshakes and lists see what there is of name now.
func (m *Manager) install(name string, r record) {
	m.mu.Lock()
	defer m.mu.Unlock()
	c := m.certs[name]
	if c == nil {
		c = &managed{}
		m.certs[name] = c
	}
	c.record, c.rest = r, time.Time{}
	m.indexLocked()
}

// forget has handshakes and lists see nothing of name any more.
func (m *Manager) forget(name string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	delete(m.certs, name)
	m.indexLocked()
}

// changed has Run look again, and tells whoever wants to know.
func (m *Manager) changed(name string) {
	select {
	case m.wake <- struct{}{}:
	default:
	}
	m.cfg.Changed(name)
}

// read reads all there is of name. A CA that was asked for and is not configured any more is asked for no longer: one that
// another CA signs is better than none.
func (m *Manager) read(name string) (record, error) {
	r, err := m.store.read(name)
	if _, unknown := m.candidates(r.wish.CA); unknown != nil {
		r.wish.CA = ""
	}
	r.wish.taken(r.cert)
	return r, err
}

// look reads what there is of name without changing anything.
func (m *Manager) look(name string) (record, error) {
	r, err := m.read(name)
	if errors.Is(err, fs.ErrNotExist) {
		return r, &hinted{fmt.Errorf("no certificate of %s was asked for: %w", name, fs.ErrNotExist), "get one with: meshdns cert " + name}
	}
	return r, err
}

// Remove forgets a certificate and its key. It is not revoked. fs.ErrNotExist: there was none.
func (m *Manager) Remove(ctx context.Context, name string) error {
	name, err := CleanName(name)
	if err != nil {
		return err
	}
	if _, err := m.look(name); errors.Is(err, fs.ErrNotExist) {
		return err
	}
	unlock, err := m.store.lock(ctx, name)
	if err != nil {
		return err
	}
	defer unlock()
	if err := m.store.remove(name); err != nil {
		return err
	}
	m.forget(name)
	m.changed(name)
	m.log.Info("a certificate was removed", "name", name)
	return nil
}

// reasons are those of RFC 5280, section 5.3.1, that a subscriber may give.
func reasons() map[string]int {
	return map[string]int{"": 0, "unspecified": 0, "keyCompromise": 1, "affiliationChanged": 3, "superseded": 4, "cessationOfOperation": 5}
}

// Revoke has the CA revoke a certificate, and removes it. reason is unspecified, keyCompromise, affiliationChanged, superseded
// or cessationOfOperation, or empty.
func (m *Manager) Revoke(ctx context.Context, name, reason string) error {
	code, ok := reasons()[reason]
	if !ok {
		return &hinted{fmt.Errorf("unknown reason %q", reason), "one of unspecified, keyCompromise, affiliationChanged, superseded, cessationOfOperation"}
	}
	name, err := CleanName(name)
	if err != nil {
		return err
	}
	r, err := m.look(name)
	if err != nil {
		return err
	}
	if r.cert == nil {
		return fmt.Errorf("there is no certificate of %s yet: %w", name, fs.ErrNotExist)
	}
	cas, err := m.candidates(r.cert.CA)
	if err != nil {
		return err
	}
	revoker, ok := cas[0].Issuer.(interface {
		Revoke(context.Context, *x509.Certificate, int) error
	})
	if !ok {
		return &hinted{fmt.Errorf("CA %s revokes no certificates: %w", r.cert.CA, errors.ErrUnsupported), "remove it with: meshdns cert rm " + name}
	}
	if err := revoker.Revoke(ctx, r.cert.Leaf, code); err != nil {
		return err
	}
	m.log.Info("a certificate was revoked", "name", name, "ca", r.cert.CA)
	return m.Remove(ctx, name)
}

// Check asks each CA whether it answers.
func (m *Manager) Check(ctx context.Context) iter.Seq2[string, error] {
	return func(yield func(string, error) bool) {
		for _, ca := range m.cfg.CAs {
			checker, ok := ca.Issuer.(interface{ Check(context.Context) error })
			if !ok {
				continue
			}
			ctx, cancel := context.WithTimeout(ctx, checkTime)
			err := checker.Check(ctx)
			cancel()
			if !yield(ca.Name, err) {
				return
			}
		}
	}
}

// checkTime is how long a CA may take to answer a check.
const checkTime = 5 * time.Second

// Info is what there is to say of a certificate.
type Info struct {
	Name        string       `json:"name"`
	Names       []string     `json:"names"`
	State       string       `json:"state"` // missing, valid, expiring or expired
	CA          string       `json:"ca,omitempty"`
	Key         string       `json:"key,omitempty"`
	NotBefore   time.Time    `json:"notBefore,omitzero"`
	NotAfter    time.Time    `json:"notAfter,omitzero"`
	Serial      string       `json:"serial,omitempty"`
	Fingerprint string       `json:"fingerprint,omitempty"`
	Renewal     time.Time    `json:"renewal,omitzero"` // when it is tried next
	Why         string       `json:"why,omitempty"`    // the CA's page about a window that it chose
	Busy        bool         `json:"busy,omitempty"`   // it is being issued or copied
	Trouble     *trouble     `json:"trouble,omitempty"`
	Targets     []targetInfo `json:"targets,omitempty"`
	Lacks       []string     `json:"lacks,omitempty"`  // names of this machine that it is to get
	GrowsAt     time.Time    `json:"growsAt,omitzero"` // when it is tried for with those
	CAGone      bool         `json:"caGone,omitempty"` // its CA is not configured any more: another one signs when it is due
}

// targetInfo is what there is to say of a target.
type targetInfo struct {
	Target
	State string    `json:"state"` // current, waiting or failed
	Error string    `json:"error,omitempty"`
	Retry time.Time `json:"retry,omitzero"`
}

// List tells of every certificate, in the order of their names.
func (m *Manager) List() []Info {
	m.mu.Lock()
	defer m.mu.Unlock()
	var list []Info
	for _, name := range m.sortedLocked() {
		list = append(list, m.infoLocked(name))
	}
	return list
}

func (m *Manager) infoLocked(name string) Info {
	c := m.certs[name]
	r, now := &c.record, m.cfg.Now()
	info := Info{Name: name, Names: r.wish.Names, State: "missing", Busy: c.busy, Trouble: r.state.Last, Renewal: m.next(r)}
	info.Targets = m.targetInfos(name, r)
	if r.cert == nil {
		return info
	}
	leaf := r.cert.Leaf
	info.CA, info.NotBefore, info.NotAfter = r.cert.CA, leaf.NotBefore, leaf.NotAfter
	info.Key, info.Serial, info.Fingerprint = kindOfPublic(leaf.PublicKey), leaf.SerialNumber.Text(16), Fingerprint(leaf)
	switch {
	case now.After(leaf.NotAfter):
		info.State = "expired"
	case alarming(r.cert, now):
		info.State = "expiring"
	default:
		info.State = "valid"
	}
	if r.state.Window != nil {
		info.Why = r.state.Window.Why
	}
	_, gone := m.candidates(r.cert.CA)
	info.CAGone = gone != nil
	info.Lacks, info.GrowsAt = m.growsLocked(c)
	return info
}

// next is when a certificate is tried for next.
func (m *Manager) next(r *record) time.Time {
	now := m.cfg.Now()
	needed := now
	if r.cert != nil && r.need(now) == "" {
		needed = r.renewal()
	}
	return r.attemptAt(needed, m.caNames(r.wish.CA))
}

// caNames are the CAs that may be asked, by name.
func (m *Manager) caNames(ca string) (names []string) {
	cas, _ := m.candidates(ca)
	for _, ca := range cas {
		names = append(names, ca.Name)
	}
	return names
}

package certs

import (
	"context"
	"slices"
	"strings"
	"time"
)

// growAfter is how long new names of the machine stay as they are before a certificate is got with them: several may come one
// after the other, and a CA counts.
const growAfter = 5 * time.Minute

// growth is what was seen of new names.
type growth struct {
	names string    // all of the machine's
	since time.Time // since when they are these
}

// follows reports whether the wish is to be for the machine's names.
func (w wish) follows(own []string) bool {
	return w.Own && len(own) > 0 && own[0] == w.Names[0] && len(own) <= maxNames
}

// newNames are the machine's names that the wish lacks.
func (w wish) newNames(own []string) []string {
	if !w.follows(own) {
		return nil
	}
	return slices.DeleteFunc(slices.Clone(own), func(name string) bool { return slices.Contains(w.Names, name) })
}

// growsLocked are the names that a certificate is to get, and when it is tried for with them.
func (m *Manager) growsLocked(c *managed) (lacks []string, at time.Time) {
	r, own := &c.record, m.cfg.Own()
	if r.cert == nil {
		return nil, time.Time{} // it is got with those of then
	}
	if lacks = r.wish.newNames(own); len(lacks) == 0 {
		c.growth = growth{}
		return nil, time.Time{}
	}
	if seen := strings.Join(own, " "); c.growth.names != seen {
		c.growth = growth{seen, m.cfg.Now()}
	}
	return lacks, r.attemptAt(c.growth.since.Add(growAfter), m.caNames(r.wish.CA))
}

// grow gets the certificate with the names that the machine has had for a while. That it cannot be had with them costs the
// certificate nothing: it is renewed with those that it has. The caller has the lock.
func (m *Manager) grow(ctx context.Context, name string, r *record) {
	own, now := m.cfg.Own(), m.cfg.Now()
	if r.cert == nil || len(r.wish.newNames(own)) == 0 || r.need(now) != "" || !m.mayGrow(name, now) {
		return
	}
	names := withWildcard(own, r.wish.Names)
	m.log.Info("getting a certificate with the names that this machine has got", "name", name, "names", names)
	_ = m.issueFor(ctx, name, r, names) // it is in the log and in the state
}

// mayGrow reports whether it is time to, and takes note that it is done.
func (m *Manager) mayGrow(name string, now time.Time) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	c := m.certs[name]
	if c == nil {
		return false
	}
	if lacks, at := m.growsLocked(c); len(lacks) == 0 || at.After(now) {
		return false
	}
	c.growth.since = now
	return true
}

// issueNow gets a certificate that is needed. One that follows the machine's names is got with those that the machine has now:
// nobody proves to a CA that a name is its own which is not any more. New names wait, unless there is no certificate yet. The
// caller has the lock.
func (m *Manager) issueNow(ctx context.Context, name string, r *record) error {
	names := r.wish.Names
	if own := m.cfg.Own(); r.wish.follows(own) {
		names = withWildcard(own, r.wish.Names)
		if r.cert != nil {
			names = slices.DeleteFunc(names, func(n string) bool { return !slices.Contains(r.wish.Names, n) })
		}
	}
	return m.issueFor(ctx, name, r, names)
}

// issueFor gets a certificate for names, and keeps that it is for these. The wish stays as it was where it cannot be had. The caller has
// the lock.
func (m *Manager) issueFor(ctx context.Context, name string, r *record, names []string) error {
	before := r.wish.Names
	r.wish.Names = names
	if err := m.issue(ctx, name, r); err != nil {
		r.wish.Names = before
		return err
	}
	if slices.Equal(before, names) {
		return nil
	}
	if err := m.store.writeWish(name, r.wish); err != nil {
		m.log.Error("storing what a certificate is for", "name", name, "err", err)
	}
	return nil
}

// taken has a wish that follows the machine's names be what its certificate was got for: whoever got it may have died before it
// could keep that.
func (w *wish) taken(cert *Certificate) {
	if !w.Own || cert == nil || len(cert.Leaf.DNSNames) > maxNames {
		return
	}
	if slices.ContainsFunc(w.Names, func(n string) bool { return !slices.Contains(cert.Leaf.DNSNames, n) }) {
		return
	}
	for _, n := range cert.Leaf.DNSNames {
		if !slices.Contains(w.Names, n) {
			w.Names = append(w.Names, n)
		}
	}
}

// withWildcard are the machine's names, and what is below the first one if that was asked for.
func withWildcard(own, asked []string) []string {
	names := slices.Clone(own)
	if wild := "*." + own[0]; slices.Contains(asked, wild) && !slices.Contains(names, wild) {
		names = append(names, wild)
	}
	return names
}

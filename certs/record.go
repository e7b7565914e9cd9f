package certs

import (
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"time"
)

// wish is what a certificate was asked for with. It is renewed with the same for ever.
type wish struct {
	Names   []string `json:"names"`
	Own     bool     `json:"own,omitempty"` // they are all of this machine's, and follow those
	CA      string   `json:"ca,omitempty"`  // empty: by preference
	Key     string   `json:"key,omitempty"` // kind of key; empty: the default
	Targets []Target `json:"targets,omitempty"`
}

// state is what came of a wish so far.
type state struct {
	Of       string                `json:"of,omitempty"`          // fingerprint of the certificate that it is about
	Issued   []time.Time           `json:"issued,omitempty"`      // when, the last few
	RenewAt  time.Time             `json:"renewAt,omitzero"`      // of the current certificate, if the CA says nothing
	Window   *window               `json:"window,omitempty"`      // what the CA says of it
	Chosen   time.Time             `json:"chosen,omitzero"`       // the time in the window
	Ask      time.Time             `json:"ask,omitzero"`          // when the CA is to be asked again when to renew
	Failures int                   `json:"failures,omitempty"`    // in a row
	Retry    time.Time             `json:"retry,omitzero"`        // after them, not before
	Last     *trouble              `json:"last,omitempty"`        // the last of them
	Holds    map[string]hold       `json:"holds,omitempty"`       // by CA: not before a time, as the CA said
	Deploys  map[string]deployment `json:"deployments,omitempty"` // by target
}

// hold is a CA's word that it is not to be asked before a time.
type hold struct {
	Until time.Time `json:"until"`
	Why   string    `json:"why"`
}

// trouble is an attempt that came to nothing.
type trouble struct {
	At    time.Time `json:"at"`
	Step  string    `json:"step,omitempty"`
	Error string    `json:"error"`
	Hint  string    `json:"hint,omitempty"`
}

// newTrouble notes err.
func newTrouble(err error, now time.Time) *trouble {
	t := &trouble{At: now, Error: err.Error()}
	var step *StepError
	if errors.As(err, &step) {
		t.Step = step.Stage
	}
	var hint interface{ Hint() string }
	if errors.As(err, &hint) {
		t.Hint = hint.Hint()
	}
	return t
}

// record is all there is of one certificate.
type record struct {
	wish  wish
	state state
	cert  *Certificate // nil: none yet
}

const (
	wishFile  = "request.json"
	stateFile = "state.json"
)

// read reads all there is of name; fs.ErrNotExist if it was never asked for.
func (s store) read(name string) (record, error) {
	var r record
	if err := readJSON(s.at(name, wishFile), &r.wish); err != nil {
		return r, fmt.Errorf("certificate of %s: %w", name, err)
	}
	names, err := cleanNames(r.wish.Names)
	if err != nil || names[0] != name {
		return r, fmt.Errorf("certificate of %s: the file %s is for something else", name, s.at(name, wishFile))
	}
	r.wish.Names = names
	if err := readJSON(s.at(name, stateFile), &r.state); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return r, fmt.Errorf("certificate of %s: %w", name, err)
	}
	if r.cert, err = s.load(name); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return r, err
	}
	if r.cert != nil && r.state.Of != Fingerprint(r.cert.Leaf) {
		// The process that stored it died before it could note so.
		r.noteIssued(r.cert, r.cert.Leaf.NotBefore, 0)
	}
	return r, nil
}

// writeState keeps the state. The caller has the lock.
func (s store) writeState(name string, st state) error { return writeJSON(s.at(name, stateFile), st) }

// writeWish keeps the wish. The caller has the lock.
func (s store) writeWish(name string, w wish) error { return writeJSON(s.at(name, wishFile), w) }

// isDue is the need of a certificate that is as it was asked for.
const isDue = "it is due"

// need says why a certificate has to be issued for the wish, or "".
func (r *record) need(now time.Time) string {
	switch {
	case r.cert == nil:
		return "there is none yet"
	case !covers(r.cert.Leaf, r.wish.Names):
		return "other names are asked for"
	case r.wish.CA != "" && r.wish.CA != r.cert.CA:
		return "another CA is asked for"
	case r.wish.Key != "" && kindOfPublic(r.cert.Leaf.PublicKey) != r.wish.Key:
		return "another kind of key is asked for"
	case !now.Before(r.renewal()):
		return isDue
	}
	return ""
}

// renewal is when the certificate is to be renewed: the time chosen in the CA's window, or else the share of its life.
func (r *record) renewal() time.Time {
	at := r.state.RenewAt
	if at.IsZero() {
		at = renewAt(r.cert.Leaf, 0)
	}
	if r.state.Window != nil && !r.state.Chosen.IsZero() {
		at = r.state.Chosen
		// A window that lies too late is a mistake of the CA.
		if last := r.cert.Leaf.NotAfter.Add(-lifetime(r.cert.Leaf) / 8); at.After(last) {
			at = last
		}
	}
	return at
}

// perDay is how many certificates a name gets in a day if nobody insists.
const perDay = 2

// floor is when the next certificate may be issued at the earliest. It ends a CA's wish that never ends. Certificates that
// live for less than a day and a half get one each third of their lives.
func (r *record) floor() time.Time {
	n := len(r.state.Issued)
	if r.cert == nil || n == 0 {
		return time.Time{}
	}
	if life := lifetime(r.cert.Leaf); life < 36*time.Hour {
		return r.state.Issued[n-1].Add(life / 3)
	}
	if n < perDay {
		return time.Time{}
	}
	return r.state.Issued[n-perDay].Add(24 * time.Hour)
}

// noteIssued counts a new certificate and forgets what was said of the one before.
func (r *record) noteIssued(c *Certificate, now time.Time, chance float64) {
	r.cert = c
	st := &r.state
	st.Of = Fingerprint(c.Leaf)
	st.Issued = append(st.Issued, now)
	if len(st.Issued) > 2*perDay {
		st.Issued = slices.Clone(st.Issued[len(st.Issued)-2*perDay:])
	}
	st.RenewAt = renewAt(c.Leaf, chance)
	st.Window, st.Chosen, st.Ask = nil, time.Time{}, time.Time{}
	st.Failures, st.Retry, st.Last = 0, time.Time{}, nil
	delete(st.Holds, c.CA)
}

// noteFailure counts an attempt that came to nothing; the next one is later each time.
func (r *record) noteFailure(err error, now time.Time, chance float64) {
	r.state.Failures++
	r.state.Last = newTrouble(err, now)
	r.state.Retry = now.Add(backOff(r.state.Failures, chance))
}

// backOff is how long to wait after failures in a row: a CA counts five in an hour.
func backOff(failures int, chance float64) time.Duration {
	steps := []time.Duration{time.Minute, 5 * time.Minute, 15 * time.Minute, time.Hour, 3 * time.Hour, 6 * time.Hour}
	wait := steps[min(max(failures, 1), len(steps))-1]
	return wait + time.Duration(chance*float64(wait)/4)
}

// held is the CA's hold on it that is still on, if there is one.
func (st *state) held(ca string, now time.Time) (hold, bool) {
	h, ok := st.Holds[ca]
	return h, ok && now.Before(h.Until)
}

// attemptAt is when a certificate that is needed at a time may be tried for: not before failures and CAs allow it.
func (r *record) attemptAt(needed time.Time, cas []string) time.Time {
	at := latest(needed, r.state.Retry, r.floor())
	var open time.Time
	for i, ca := range cas {
		until := r.state.Holds[ca].Until
		if i == 0 || until.Before(open) {
			open = until
		}
	}
	return latest(at, open)
}

func latest(times ...time.Time) time.Time {
	return slices.MaxFunc(times, time.Time.Compare)
}

// alarming reports whether so little is left that renewal must have gone wrong.
func alarming(c *Certificate, now time.Time) bool { return !now.Before(alarmAt(c)) }

// alarmAt is when that begins.
func alarmAt(c *Certificate) time.Time { return c.Leaf.NotAfter.Add(-lifetime(c.Leaf) / 4) }

// heed takes what a CA says of the certificate's renewal. The time in the window stays as it was chosen while the window
// does (RFC 9773, section 4.2).
func (r *record) heed(w window, now time.Time, chance float64) {
	st := &r.state
	if st.Window == nil || !st.Window.Start.Equal(w.Start) || !st.Window.End.Equal(w.End) {
		st.Chosen = w.Start.Add(time.Duration(chance * float64(w.End.Sub(w.Start))))
	}
	st.Ask = now.Add(6 * time.Hour)
	if !w.Again.IsZero() {
		st.Ask = w.Again
	}
	w.Again = time.Time{} // it may be any number, and not one that can be written
	st.Window = &w
	pause := min(max(lifetime(r.cert.Leaf)/50, 10*time.Second), 15*time.Minute)
	if soonest := now.Add(pause); st.Ask.Before(soonest) {
		st.Ask = soonest
	}
	if last := now.Add(24 * time.Hour); st.Ask.After(last) {
		st.Ask = last
	}
}

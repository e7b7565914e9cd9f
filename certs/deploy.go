package certs

import (
	"context"
	"errors"
	"fmt"
	"time"
)

// deployment is how a target stands.
type deployment struct {
	Of       string    `json:"of,omitempty"`     // fingerprint of the certificate that its files hold
	Reloaded string    `json:"loaded,omitempty"` // fingerprint of the one that its program was told of
	Failures int       `json:"failures,omitempty"`
	Error    string    `json:"error,omitempty"`
	Retry    time.Time `json:"retry,omitzero"`
}

// done reports whether the target has the certificate, and its program knows.
func (d deployment) done(fingerprint string) bool {
	return d.Error == "" && d.Of == fingerprint && d.Reloaded == fingerprint
}

// targets are those of a certificate: of the configuration, and files that were asked for.
func (m *Manager) targets(name string, r *record) []Target {
	var all []Target
	seen := map[string]bool{}
	for i, list := range [][]Target{m.cfg.Targets[name], r.wish.Targets} {
		for _, t := range list {
			if i == 1 {
				t.Unit, t.Command = "", nil // what is kept for a caller runs nothing (S20)
			}
			if id := t.id(); !seen[id] {
				seen[id] = true
				all = append(all, t)
			}
		}
	}
	return all
}

// targetInfos tell how each target stands.
func (m *Manager) targetInfos(name string, r *record) []targetInfo {
	var infos []targetInfo
	for _, t := range m.targets(name, r) {
		d := r.state.Deploys[t.id()]
		info := targetInfo{Target: t, State: "waiting", Error: d.Error}
		switch {
		case d.Error != "":
			info.State, info.Retry = "failed", d.Retry
		case r.cert != nil && d.done(Fingerprint(r.cert.Leaf)):
			info.State = "current"
		}
		infos = append(infos, info)
	}
	return infos
}

// deployAt is when the first target has to be seen to; ok is false if all are as they should be.
func (m *Manager) deployAt(name string, r *record) (at time.Time, ok bool) {
	if r.cert == nil {
		return time.Time{}, false
	}
	fingerprint := Fingerprint(r.cert.Leaf)
	for _, t := range m.targets(name, r) {
		d := r.state.Deploys[t.id()]
		if d.done(fingerprint) {
			continue
		}
		if !ok || d.Retry.Before(at) {
			at, ok = d.Retry, true
		}
	}
	return at, ok
}

// deploy brings the targets up to date that are not, and forgets those that are no more. The caller has the lock.
func (m *Manager) deploy(ctx context.Context, name string, r *record) {
	if r.cert == nil {
		return
	}
	fingerprint, now := Fingerprint(r.cert.Leaf), m.cfg.Now()
	known := map[string]deployment{}
	dirty := false
	for _, t := range m.targets(name, r) {
		d := r.state.Deploys[t.id()]
		if !d.done(fingerprint) && !now.Before(d.Retry) {
			d, dirty = m.deployTo(ctx, t, r.cert, d), true
			if ctx.Err() != nil {
				return // it was interrupted, which says nothing of the target
			}
		}
		known[t.id()] = d
	}
	if !dirty && len(known) == len(r.state.Deploys) {
		return
	}
	r.state.Deploys = known
	if err := m.store.writeState(name, r.state); err != nil {
		m.log.Error("storing where a certificate is", "name", name, "err", err)
	}
}

// deployTo brings one target up to date.
func (m *Manager) deployTo(ctx context.Context, t Target, c *Certificate, d deployment) deployment {
	fingerprint := Fingerprint(c.Leaf)
	changed, err := t.Write(c)
	if err == nil {
		d.Of = fingerprint
		if changed || d.Reloaded != fingerprint {
			err = t.reload(ctx, c)
		}
	}
	if err == nil {
		m.log.Info("a certificate was deployed", "name", c.Name, "cert", t.Cert, "key", t.Key, "unit", t.Unit)
		Report(ctx, Step{Stage: deployed, Name: c.Name, Detail: t.Cert})
		return deployment{Of: fingerprint, Reloaded: fingerprint}
	}
	d.Failures++
	d.Error = err.Error()
	d.Retry = m.cfg.Now().Add(min(backOff(d.Failures, m.cfg.Random()), time.Hour))
	m.log.Error("a certificate was not deployed", "name", c.Name, "cert", t.Cert, "unit", t.Unit, "err", err)
	return d
}

// reloadTime is how long a reload may take unless the target says otherwise.
const reloadTime = 30 * time.Second

// reload has the program that reads the target take up the new files.
func (t Target) reload(ctx context.Context, c *Certificate) error {
	argv := t.Command
	if t.Unit != "" {
		argv = []string{"systemctl", "reload-or-restart", "--", t.Unit}
	}
	if len(argv) == 0 {
		return nil
	}
	limit := t.Timeout
	if limit <= 0 {
		limit = reloadTime
	}
	return runProgram(ctx, program{argv, limit, []string{"MESHDNS_CERT_NAME=" + c.Name, "MESHDNS_CERT_FILE=" + t.Cert, "MESHDNS_KEY_FILE=" + t.Key}})
}

// Keep has the files of a target kept up to date from now on. It fails if they cannot be read from here, or hold something
// else than the certificate: they would not be renewed either.
func (m *Manager) Keep(ctx context.Context, name string, t Target) error {
	if t.Unit != "" || len(t.Command) > 0 {
		return errors.New("commands are only taken from the configuration")
	}
	if err := t.Vet(); err != nil {
		return err
	}
	name, err := CleanName(name)
	if err != nil {
		return err
	}
	if _, err := m.look(name); err != nil {
		return err
	}
	unlock, err := m.store.lock(ctx, name)
	if err != nil {
		return err
	}
	defer unlock()
	r, err := m.look(name)
	if err != nil {
		return err
	}
	if r.cert == nil {
		return fmt.Errorf("there is no certificate of %s yet", name)
	}
	if err := t.reachable(r.cert); err != nil {
		return err
	}
	for _, have := range r.wish.Targets {
		if have.id() == t.id() {
			return nil
		}
	}
	if len(r.wish.Targets) >= maxTargets {
		return fmt.Errorf("%s is kept in %d places already", name, maxTargets)
	}
	r.wish.Targets = append(r.wish.Targets, t)
	if err := m.store.writeWish(name, r.wish); err != nil {
		return err
	}
	m.install(name, r)
	m.changed(name)
	return nil
}

// maxTargets is in how many places one certificate is kept by request.
const maxTargets = 16

// reachable says whether the target's files can be replaced from here: a service may see another /tmp or no /home.
func (t Target) reachable(c *Certificate) error {
	files, err := t.files(c)
	if err != nil {
		return err
	}
	for i := range files {
		_, done, err := files[i].look()
		if err != nil {
			return err
		}
		if !done {
			return fmt.Errorf("%s is not there, seen from the daemon", files[i].path)
		}
		s, err := files[i].stage()
		if s != nil {
			s.end(false)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

package certs

import (
	"crypto/tls"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"
)

// mendEvery is how often the files of targets are looked at.
const mendEvery = lookEvery

// torn reports whether the target's files are not of one certificate: two files cannot be replaced in one step, so a power
// cut leaves the key of one and the certificate of another. Files that are both gone were taken away by somebody.
func (t Target) torn() bool {
	if t.Cert == "" || t.Key == "" {
		return false
	}
	cert, err := readFile(t.Cert)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return false
	}
	key, err := readFile(t.Key)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return false
	}
	defer clear(key)
	if cert == nil && key == nil {
		return false
	}
	_, err = tls.X509KeyPair(cert, key)
	return err != nil
}

// mend has targets be written again whose files are not of one certificate.
func (m *Manager) mend(name string, r *record) {
	if r.cert == nil || !m.lookedAt(name) {
		return
	}
	fingerprint := Fingerprint(r.cert.Leaf)
	for _, t := range m.targets(name, r) {
		if id := t.id(); r.state.Deploys[id].done(fingerprint) && t.torn() {
			m.log.Warn("a certificate's files are not of one certificate, and are written again", "name", name, "cert", t.Cert, "key", t.Key)
			delete(r.state.Deploys, id)
		}
	}
}

// lookedAt reports whether it is time to look at a certificate's targets, and takes note that it is done.
func (m *Manager) lookedAt(name string) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	c, now := m.certs[name], m.cfg.Now()
	if c == nil || now.Before(c.looked.Add(mendEvery)) {
		return false
	}
	c.looked = now
	return true
}

// mendAt is when a certificate's targets are looked at next; ok is false if it has none of two files.
func (m *Manager) mendAt(name string, c *managed) (at time.Time, ok bool) {
	if c.record.cert == nil {
		return time.Time{}, false
	}
	for _, t := range m.targets(name, &c.record) {
		if t.Cert != "" && t.Key != "" {
			return c.looked.Add(mendEvery), true
		}
	}
	return time.Time{}, false
}

// staleStage is the age at which a file that was written beside its place is of a process that died.
const staleStage = time.Hour

// sweep removes what processes that died have left beside a file: drafts of it, with keys in them, and its second name.
func sweep(path string) {
	entries, err := os.ReadDir(filepath.Dir(path))
	if err != nil {
		return
	}
	for _, e := range entries {
		number, ours := strings.CutPrefix(e.Name(), "."+filepath.Base(path)+".")
		number = strings.TrimSuffix(number, ".old")
		if !ours || number == "" || strings.Trim(number, "0123456789") != "" {
			continue
		}
		if info, err := e.Info(); err == nil && info.Mode().IsRegular() && time.Since(info.ModTime()) > staleStage {
			os.Remove(filepath.Join(filepath.Dir(path), e.Name()))
		}
	}
}

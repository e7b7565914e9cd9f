package certs

import (
	"context"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"
)

// store keeps certificates on disk, one directory each below names:
//
//	NAME/request.json        what was asked for
//	NAME/state.json          what came of it
//	NAME/pending/            key and request of a certificate that is being issued
//	NAME/v7/                 privkey.pem fullchain.pem meta.json: made whole, never changed
//	NAME/current -> v7       moved in one step, so that no reader sees a key of one and a certificate of another
//
// The lock of each, held by whoever changes anything there, stands in a directory of its own: it must outlive them.
type store struct{ dir string }

// The files of a version, named as other programs expect them.
const (
	keyFile   = "privkey.pem"
	chainFile = "fullchain.pem"
	metaFile  = "meta.json"

	kept = 3 // versions, the current one among them
)

// meta is what a version's files do not say themselves.
type meta struct {
	CA string `json:"ca"`
}

// at is the directory of the certificate name. Names come from CleanName.
func (s store) at(name string, more ...string) string {
	return filepath.Join(append([]string{s.dir, "names", strings.Replace(name, "*", "_", 1)}, more...)...)
}

// names are the certificates that were ever asked for.
func (s store) names() ([]string, error) {
	entries, err := os.ReadDir(filepath.Join(s.dir, "names"))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("reading the certificates: %w", err)
	}
	var names []string
	for _, e := range entries {
		name, err := CleanName(strings.Replace(e.Name(), "_", "*", 1))
		if e.IsDir() && err == nil {
			names = append(names, name)
		}
	}
	return names, nil
}

// current is the version that the link points at; 0 if there is none.
func (s store) current(name string) (int, error) {
	target, err := pointed(s.at(name, "current"))
	if errors.Is(err, fs.ErrNotExist) {
		return 0, nil
	}
	if err != nil {
		return 0, fmt.Errorf("reading the current certificate of %s: %w", name, err)
	}
	n, ok := versionOf(target)
	if !ok {
		return 0, fmt.Errorf("reading the current certificate of %s: it points at %q", name, target)
	}
	return n, nil
}

// versionOf reads the name of a version's directory.
func versionOf(dir string) (int, bool) {
	digits, ok := strings.CutPrefix(dir, "v")
	n, err := strconv.Atoi(digits)
	return n, ok && err == nil && n > 0
}

// load reads the current certificate; fs.ErrNotExist if there is none.
func (s store) load(name string) (*Certificate, error) {
	n, err := s.current(name)
	if err != nil {
		return nil, err
	}
	if n == 0 {
		return nil, fmt.Errorf("certificate of %s: %w", name, fs.ErrNotExist)
	}
	dir := s.at(name, "v"+strconv.Itoa(n))
	chain, err := readFile(filepath.Join(dir, chainFile))
	if err != nil {
		return nil, fmt.Errorf("certificate of %s: %w", name, err)
	}
	key, err := readFile(filepath.Join(dir, keyFile))
	if err != nil {
		return nil, fmt.Errorf("key of %s: %w", name, err)
	}
	var m meta
	if err := readJSON(filepath.Join(dir, metaFile), &m); err != nil {
		return nil, fmt.Errorf("certificate of %s: %w", name, err)
	}
	c, err := newCertificate(name, m.CA, chain, key)
	if err != nil {
		return nil, err
	}
	c.version = n
	return c, nil
}

// save makes c the current certificate of its name and removes what came long before. The caller has the lock.
func (s store) save(c *Certificate) error {
	n, err := s.latest(c.Name)
	if err != nil {
		return err
	}
	version := "v" + strconv.Itoa(n+1)
	dir := s.at(c.Name, version)
	draft := s.at(c.Name, ".draft")
	if err := os.RemoveAll(draft); err != nil {
		return fmt.Errorf("storing the certificate of %s: %w", c.Name, err)
	}
	if err := os.Mkdir(draft, 0o700); err != nil {
		return fmt.Errorf("storing the certificate of %s: %w", c.Name, err)
	}
	if err := writeFile(filepath.Join(draft, keyFile), c.KeyPEM, 0o600); err != nil {
		return err
	}
	if err := writeFile(filepath.Join(draft, chainFile), c.ChainPEM, 0o600); err != nil {
		return err
	}
	if err := writeJSON(filepath.Join(draft, metaFile), meta{CA: c.CA}); err != nil {
		return err
	}
	if err := os.Rename(draft, dir); err != nil {
		return fmt.Errorf("storing the certificate of %s: %w", c.Name, err)
	}
	if err := syncDir(filepath.Dir(dir)); err != nil {
		return fmt.Errorf("storing the certificate of %s: %w", c.Name, err)
	}
	if err := point(s.at(c.Name, "current"), version); err != nil {
		return err
	}
	c.version = n + 1
	return s.prune(c.Name, c.version)
}

// versions are those on disk, the oldest first.
func (s store) versions(name string) ([]int, error) {
	entries, err := os.ReadDir(s.at(name))
	if err != nil {
		return nil, fmt.Errorf("reading the certificates of %s: %w", name, err)
	}
	var versions []int
	for _, e := range entries {
		if n, ok := versionOf(e.Name()); ok && e.IsDir() {
			versions = append(versions, n)
		}
	}
	slices.Sort(versions)
	return versions, nil
}

// latest is the highest version on disk, whether or not it is current: a process that died in save may have left one.
func (s store) latest(name string) (int, error) {
	versions, err := s.versions(name)
	if err != nil || len(versions) == 0 {
		return 0, err
	}
	return versions[len(versions)-1], nil
}

// prune removes old versions.
func (s store) prune(name string, current int) error {
	versions, err := s.versions(name)
	if err != nil {
		return err
	}
	for _, n := range versions {
		if n > current-kept {
			continue
		}
		if err := os.RemoveAll(s.at(name, "v"+strconv.Itoa(n))); err != nil {
			return fmt.Errorf("removing an old certificate of %s: %w", name, err)
		}
	}
	return nil
}

// A lock that somebody else holds is tried again, less and less often.
const (
	firstLock = 20 * time.Millisecond
	lastLock  = time.Second
)

// lock waits for the right to change what there is of name, against other goroutines and other processes.
func (s store) lock(ctx context.Context, name string) (unlock func(), err error) {
	dir := filepath.Join(s.dir, "locks")
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("making the directory of locks: %w", err)
	}
	unlock, err = lockPath(ctx, filepath.Join(dir, filepath.Base(s.at(name))))
	if err != nil {
		return nil, err
	}
	// Whoever had the lock before may have removed all there was.
	if err := os.MkdirAll(s.at(name), 0o700); err != nil {
		unlock()
		return nil, fmt.Errorf("making the directory of %s: %w", name, err)
	}
	return unlock, nil
}

// lockPath waits for the lock on a file. The file stays: removing it would let one process lock the old file and another
// one the new.
func lockPath(ctx context.Context, path string) (unlock func(), err error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fmt.Errorf("locking %s: %w", path, err)
	}
	for pause := firstLock; ; pause = min(2*pause, lastLock) {
		held, err := tryLock(f)
		switch {
		case err != nil:
			f.Close()
			return nil, fmt.Errorf("locking %s: %w", path, err)
		case !held:
			return func() { f.Close() }, nil
		}
		timer := time.NewTimer(pause)
		select {
		case <-ctx.Done():
			timer.Stop()
			f.Close()
			return nil, fmt.Errorf("waiting for whoever holds %s: %w", path, ctx.Err())
		case <-timer.C:
		}
	}
}

// pending is the key and the request of a certificate that is being issued. It outlives a process that dies, so that the
// next one goes on with the same order.
type pending struct {
	csr *x509.CertificateRequest
	key []byte
}

// pendingFor is the request for a certificate: the one that was begun and has not led to the current one, or else a new one.
// The caller has the lock.
func (s store) pendingFor(name string, r *record, kind string) (pending, error) {
	names := r.wish.Names
	p, err := s.loadPending(name)
	if err == nil && p.fits(names, kind) && (r.cert == nil || !sameKey(p.csr.PublicKey, r.cert.Leaf.PublicKey)) {
		return p, nil
	}
	if err := s.dropPending(name); err != nil {
		return pending{}, err
	}
	key, err := newKey(kind)
	if err != nil {
		return pending{}, err
	}
	p = pending{}
	if p.key, err = keyPEM(key); err != nil {
		return pending{}, err
	}
	if p.csr, err = newRequest(key, names); err != nil {
		return pending{}, err
	}
	dir := s.at(name, "pending")
	if err := os.Mkdir(dir, 0o700); err != nil {
		return pending{}, fmt.Errorf("storing the request for %s: %w", name, err)
	}
	if err := writeFile(filepath.Join(dir, keyFile), p.key, 0o600); err != nil {
		return pending{}, err
	}
	text := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: p.csr.Raw})
	return p, writeFile(filepath.Join(dir, "request.pem"), text, 0o600)
}

// loadPending reads a request that was begun.
func (s store) loadPending(name string) (pending, error) {
	var p pending
	text, err := readFile(s.at(name, "pending", "request.pem"))
	if err != nil {
		return p, err
	}
	block, _ := pem.Decode(text)
	if block == nil {
		return p, errors.New("no request in the file")
	}
	if p.csr, err = x509.ParseCertificateRequest(block.Bytes); err != nil {
		return p, fmt.Errorf("reading the request for %s: %w", name, err)
	}
	p.key, err = readFile(s.at(name, "pending", keyFile))
	return p, err
}

// fits reports whether the request is one for these names with such a key.
func (p pending) fits(names []string, kind string) bool {
	key, err := decodeKey(p.key)
	if err != nil || !slices.Equal(p.csr.DNSNames, names) {
		return false
	}
	return sameKey(key.Public(), p.csr.PublicKey) && kindOfPublic(key.Public()) == kind
}

// dropPending forgets the request that was begun.
func (s store) dropPending(name string) error {
	if err := os.RemoveAll(s.at(name, "pending")); err != nil {
		return fmt.Errorf("removing the request for %s: %w", name, err)
	}
	return nil
}

// remove removes all there is of name. The caller has the lock.
func (s store) remove(name string) error {
	if err := os.RemoveAll(s.at(name)); err != nil {
		return fmt.Errorf("removing the certificate of %s: %w", name, err)
	}
	return nil
}

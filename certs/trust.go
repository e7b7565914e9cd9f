package certs

import (
	"bytes"
	"context"
	"crypto/sha1"
	"crypto/x509"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"
)

// trustTime bounds a command that changes the system's store of roots.
const trustTime = 2 * time.Minute

// trustStore is one way in which systems keep the roots that their programs believe. The words {file} and {sha1} in a command
// are the root's file and its fingerprint.
type trustStore struct {
	dir         string // of files of roots; empty: the commands take the root, from a file of ours
	suffix      string // of its files
	add, remove []string
	bundle      string // holds every believed root as PEM; empty: the store does not say
}

// TrustStore is the machine's store of the roots that its programs believe. Browsers with a store of their own (Firefox, and
// Chromium on Linux) do not read it.
type TrustStore struct {
	Dir string // "/" if empty: where the system's files are
	// Keep is a file of ours for systems whose commands take the root from a file. Required there.
	Keep string

	stores []trustStore // the platform's if nil
	run    func(ctx context.Context, argv []string) error
}

// noTrustStoreError says that no store was found that we know how to change.
type noTrustStoreError struct{}

// Error names no store, as there is none.
func (*noTrustStoreError) Error() string {
	return "no store of roots that is known here was found"
}

// Hint says how to go on by hand.
func (*noTrustStoreError) Hint() string {
	return "install the package ca-certificates, or give the printed root to your programs by hand"
}

// Install has the machine's programs believe root, which has to pass CheckRoot. What was begun is taken back when it
// fails. Where is the file or store that changed.
func (t TrustStore) Install(ctx context.Context, rootPEM []byte) (where string, err error) {
	root, err := CheckRoot(rootPEM)
	if err != nil {
		return "", err
	}
	store, path, err := t.find(root)
	if err != nil {
		return "", err
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return "", err
	}
	if err := writeFile(path, certPEM(root), 0o644); err != nil {
		return "", err
	}
	if err = t.command(ctx, store.add, path, root); err == nil {
		err = t.check(store, root, true)
	}
	if err != nil {
		return "", errors.Join(fmt.Errorf("installing the root %q: %w", root.Subject.CommonName, err), t.Remove(context.WithoutCancel(ctx), rootPEM))
	}
	return path, nil
}

// Remove has them believe it no longer. A root that is not there is no error.
func (t TrustStore) Remove(ctx context.Context, rootPEM []byte) error {
	root, err := parseCert(rootPEM)
	if err != nil {
		return err
	}
	store, path, err := t.find(root)
	if err != nil {
		return err
	}
	if _, err := os.Stat(path); errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if store.dir == "" { // the command is asked before the file goes that says it was installed
		if err := t.command(ctx, store.remove, path, root); err != nil {
			return fmt.Errorf("removing the root %q: %w", root.Subject.CommonName, err)
		}
		return os.Remove(path)
	}
	if err := os.Remove(path); err != nil {
		return err
	}
	if err = t.command(ctx, store.remove, path, root); err == nil {
		err = t.check(store, root, false)
	}
	if err != nil {
		return fmt.Errorf("removing the root %q: %w", root.Subject.CommonName, err)
	}
	return nil
}

// Installed tells whether the root was put there by Install.
func (t TrustStore) Installed(rootPEM []byte) (bool, error) {
	root, err := parseCert(rootPEM)
	if err != nil {
		return false, err
	}
	_, path, err := t.find(root)
	if err != nil {
		return false, err
	}
	text, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	return bytes.Equal(text, certPEM(root)), err
}

// find looks for the store that this machine has: its directory and its command are there.
func (t TrustStore) find(root *x509.Certificate) (store trustStore, path string, err error) {
	stores := t.stores
	if stores == nil {
		stores = systemTrust()
	}
	name := "meshdns-" + strings.ToLower(strings.ReplaceAll(Fingerprint(root), ":", ""))[:16]
	for _, s := range stores {
		if s.dir == "" {
			return s, t.Keep, nil
		}
		dir := filepath.Join("/", t.Dir, s.dir)
		if info, err := os.Stat(dir); err != nil || !info.IsDir() {
			continue
		}
		if _, err := exec.LookPath(s.add[0]); err == nil || t.run != nil {
			return s, filepath.Join(dir, name+s.suffix), nil
		}
	}
	return trustStore{}, "", &noTrustStoreError{}
}

func (t TrustStore) command(ctx context.Context, words []string, path string, root *x509.Certificate) error {
	sum := sha1.Sum(root.Raw) // by which macOS and Windows name a certificate; nothing rests on its strength
	fill := strings.NewReplacer("{file}", path, "{sha1}", strings.ToUpper(hex.EncodeToString(sum[:])))
	argv := make([]string, len(words))
	for i, w := range words {
		argv[i] = fill.Replace(w)
	}
	if t.run != nil {
		return t.run(ctx, argv)
	}
	return runProgram(ctx, program{argv: argv, limit: trustTime})
}

// check looks whether the store has, or has no longer, the root.
func (t TrustStore) check(store trustStore, root *x509.Certificate, want bool) error {
	if store.bundle == "" {
		return nil
	}
	path := filepath.Join("/", t.Dir, store.bundle)
	rest, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	has := false
	for block, rest := pem.Decode(rest); block != nil && !has; block, rest = pem.Decode(rest) {
		has = bytes.Equal(block.Bytes, root.Raw)
	}
	switch {
	case has && !want:
		return fmt.Errorf("%s still has it", path)
	case want && !has:
		return fmt.Errorf("%s does not have it", path)
	}
	return nil
}

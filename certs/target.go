package certs

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Target is where another program reads a certificate, and what is done once it has changed.
type Target struct {
	Cert  string `json:"cert,omitempty"`  // file for the chain; with the key in it if it ends in .p12, .pfx (PKCS#12) or .combined.pem
	Key   string `json:"key,omitempty"`   // file for the key; the same as Cert: both in one
	Owner string `json:"owner,omitempty"` // empty: as it was, or who writes it
	Group string `json:"group,omitempty"`
	Mode  string `json:"mode,omitempty"` // octal; empty: as it was, or 0600 with a key and 0644 without

	PasswordFile string `json:"passwordFile,omitempty"` // for PKCS#12; empty: no password

	Unit    string        `json:"unit,omitempty"`    // systemd unit that is reloaded
	Command []string      `json:"command,omitempty"` // program that is run, without a shell
	Timeout time.Duration `json:"timeout,omitempty"` // for the unit or program: 30 s if zero
}

// Vet says what is wrong with the target.
func (t Target) Vet() error {
	switch {
	case t.Cert == "" && t.Key == "" && t.Unit == "" && len(t.Command) == 0:
		return errors.New("a target names no file and nothing to run")
	case t.Unit != "" && len(t.Command) > 0:
		return errors.New("a target has a unit to reload or a command, not both")
	case isPKCS12(t.Key), isPKCS12(t.Cert) && t.Key != "" && t.Key != t.Cert:
		return errors.New("a PKCS#12 file holds certificate and key: name it as the certificate alone")
	case t.PasswordFile != "" && !isPKCS12(t.Cert):
		return errors.New("only PKCS#12 files have a password")
	}
	for _, path := range []string{t.Cert, t.Key, t.PasswordFile} {
		if path != "" && (!filepath.IsAbs(path) || strings.ContainsAny(path, "\x00\n")) {
			return fmt.Errorf("%q is no absolute path", path)
		}
	}
	if len(t.Command) > 0 && !filepath.IsAbs(t.Command[0]) {
		return fmt.Errorf("command %q: give the whole path", t.Command[0])
	}
	if t.Unit != "" && !isUnit(t.Unit) {
		return fmt.Errorf("%q is no systemd unit", t.Unit)
	}
	_, err := t.mode()
	return err
}

// isUnit reports whether text can be a unit's name. It becomes an argument, so it must not look like an option.
func isUnit(text string) bool {
	return !strings.HasPrefix(text, "-") && !strings.ContainsFunc(text, func(r rune) bool {
		return !strings.ContainsRune("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789:-_.\\@", r)
	})
}

// mode reads the octal mode; 0 if there is none.
func (t Target) mode() (fs.FileMode, error) {
	if t.Mode == "" {
		return 0, nil
	}
	n, err := strconv.ParseUint(t.Mode, 8, 32)
	if err != nil || n == 0 || n > 0o777 {
		return 0, fmt.Errorf("mode %q: want octal digits such as 0640", t.Mode)
	}
	return fs.FileMode(n), nil
}

func isPKCS12(path string) bool {
	ext := strings.ToLower(filepath.Ext(path))
	return ext == ".p12" || ext == ".pfx"
}

// isCombined reports whether a path says that certificate and key are both in the file.
func isCombined(path string) bool { return strings.HasSuffix(strings.ToLower(path), ".combined.pem") }

// id names the target in the state.
func (t Target) id() string {
	data, err := json.Marshal(t)
	if err != nil {
		return ""
	}
	sum := sha256.Sum256(data)
	return hex.EncodeToString(sum[:8])
}

// files are what the target's files are to hold.
func (t Target) files(c *Certificate) ([]file, error) {
	mode, err := t.mode()
	if err != nil {
		return nil, err
	}
	as := file{owner: t.Owner, group: t.Group, mode: mode}
	if isPKCS12(t.Cert) {
		password, err := t.password()
		if err != nil {
			return nil, err
		}
		as.path, as.secret = t.Cert, true
		as.data, err = encodePKCS12(c, password)
		as.same = func(have []byte) bool { return samePKCS12(have, c, password) }
		return []file{as}, err
	}
	if t.Cert != "" && (t.Cert == t.Key || t.Key == "" && isCombined(t.Cert)) {
		as.path, as.data, as.secret = t.Cert, slices.Concat(c.ChainPEM, c.KeyPEM), true
		return []file{as}, nil
	}
	var files []file
	if t.Key != "" {
		as.path, as.data, as.secret = t.Key, c.KeyPEM, true
		files = append(files, as)
	}
	if t.Cert != "" {
		as.path, as.data, as.secret = t.Cert, c.ChainPEM, false
		if t.Mode != "" {
			as.mode |= 0o044 // the certificate is no secret
		}
		files = append(files, as)
	}
	return files, nil
}

// password reads the first line of the password's file.
func (t Target) password() (string, error) {
	if t.PasswordFile == "" {
		return "", nil
	}
	data, err := readFile(t.PasswordFile)
	if err != nil {
		return "", fmt.Errorf("reading the password: %w", err)
	}
	line, _, _ := strings.Cut(string(data), "\n")
	return strings.TrimSuffix(line, "\r"), nil
}

// Write brings the target's files up to date with c, all or none. changed says that they were not.
func (t Target) Write(c *Certificate) (changed bool, err error) {
	if err := t.Vet(); err != nil {
		return false, err
	}
	files, err := t.files(c)
	if err != nil {
		return false, err
	}
	return writeAll(files)
}

//go:build unix

package certs

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	pkcs12 "software.sslmate.com/src/go-pkcs12"
)

func readAll(t *testing.T, path string) []byte {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return data
}

func modeOf(t *testing.T, path string) fs.FileMode {
	t.Helper()
	info, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	return info.Mode().Perm()
}

func TestAPairIsWrittenOnceAndOnlyWhenItChanged(t *testing.T) {
	dir := t.TempDir()
	target := Target{Cert: filepath.Join(dir, "nas.crt"), Key: filepath.Join(dir, "nas.key")}
	c := testPair(t, "nas.example.org")
	if changed, err := target.Write(c); !changed || err != nil {
		t.Fatal(changed, err)
	}
	if !bytes.Equal(readAll(t, target.Cert), c.ChainPEM) || !bytes.Equal(readAll(t, target.Key), c.KeyPEM) {
		t.Error("the files hold something else")
	}
	if modeOf(t, target.Cert) != 0o644 || modeOf(t, target.Key) != 0o600 {
		t.Errorf("modes %v and %v", modeOf(t, target.Cert), modeOf(t, target.Key))
	}
	if changed, err := target.Write(c); changed || err != nil {
		t.Errorf("again: changed = %t, %v", changed, err)
	}
	if err := os.Chmod(target.Key, 0o640); err != nil {
		t.Fatal(err)
	}
	if changed, err := target.Write(testPair(t, "nas.example.org")); !changed || err != nil {
		t.Errorf("another one: changed = %t, %v", changed, err)
	}
	if modeOf(t, target.Key) != 0o640 {
		t.Errorf("the key's mode became %v", modeOf(t, target.Key))
	}
	entries, err := os.ReadDir(dir)
	if err != nil || len(entries) != 2 {
		t.Errorf("left beside them: %v, %v", entries, err)
	}
}

func TestOwnerGroupAndModeAreKeptOrSet(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("only root can give files away")
	}
	path := filepath.Join(t.TempDir(), "nas.combined.pem")
	target := Target{Cert: path}
	if _, err := target.Write(testPair(t, "nas.example.org")); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(os.Chown(path, 4711, 4712), os.Chmod(path, 0o440)); err != nil {
		t.Fatal(err)
	}
	looks := func() (uint32, uint32, fs.FileMode) {
		info, err := os.Stat(path)
		if err != nil {
			t.Fatal(err)
		}
		st := info.Sys().(*syscall.Stat_t)
		return st.Uid, st.Gid, info.Mode().Perm()
	}
	c := testPair(t, "nas.example.org")
	if _, err := target.Write(c); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(readAll(t, path), append(bytes.Clone(c.ChainPEM), c.KeyPEM...)) {
		t.Error("the file lacks something")
	}
	if uid, gid, mode := looks(); uid != 4711 || gid != 4712 || mode != 0o440 {
		t.Errorf("kept: %d:%d %v", uid, gid, mode)
	}
	target.Owner, target.Group, target.Mode = "root", "4713", "0640"
	if changed, err := target.Write(c); !changed || err != nil {
		t.Errorf("set: changed = %t, %v", changed, err)
	}
	if uid, gid, mode := looks(); uid != 0 || gid != 4713 || mode != 0o640 {
		t.Errorf("set: %d:%d %v", uid, gid, mode)
	}
	target.Owner = "no-such-user"
	if _, err := target.Write(c); err == nil || !strings.Contains(err.Error(), "owner no-such-user") {
		t.Errorf("an owner that nobody is: %v", err)
	}
}

func TestBothOrNeither(t *testing.T) {
	dir := t.TempDir()
	first, second := testPair(t, "nas.example.org"), testPair(t, "nas.example.org")
	target := Target{Cert: filepath.Join(dir, "nas.crt"), Key: filepath.Join(dir, "nas.key")}
	if _, err := target.Write(first); err != nil {
		t.Fatal(err)
	}
	files, err := target.files(second)
	if err != nil {
		t.Fatal(err)
	}
	// The second of the two cannot be put in place: what is there has become a directory by then.
	stages := make([]*staged, len(files))
	for i := range files {
		if stages[i], err = files[i].stage(); err != nil {
			t.Fatal(err)
		}
	}
	for _, s := range stages {
		s.end(true)
	}
	if err := os.Remove(target.Cert); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(target.Cert, 0o700); err != nil {
		t.Fatal(err)
	}
	if changed, err := target.Write(second); changed || err == nil {
		t.Errorf("changed = %t, %v", changed, err)
	}
	if !bytes.Equal(readAll(t, target.Key), first.KeyPEM) {
		t.Error("the key is the new one, and the certificate is not")
	}
	if _, err := (Target{Cert: filepath.Join(dir, "none", "x.crt"), Key: target.Key}).Write(second); err == nil {
		t.Error("a directory that is not there")
	}
	if !bytes.Equal(readAll(t, target.Key), first.KeyPEM) {
		t.Error("the key is the new one, and there is no certificate")
	}
}

func TestAMoveThatFailsIsTakenBack(t *testing.T) {
	dir := t.TempDir()
	first, second := testPair(t, "nas.example.org"), testPair(t, "nas.example.org")
	target := Target{Cert: filepath.Join(dir, "nas.crt"), Key: filepath.Join(dir, "nas.key")}
	if _, err := target.Write(first); err != nil {
		t.Fatal(err)
	}
	files, err := target.files(second)
	if err != nil {
		t.Fatal(err)
	}
	stages := make([]*staged, len(files))
	for i := range files {
		if stages[i], err = files[i].stage(); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Rename(stages[0].temp, stages[0].path); err != nil {
		t.Fatal(err)
	}
	stages[0].moved = true
	for _, s := range stages {
		s.end(true)
	}
	if !bytes.Equal(readAll(t, target.Key), first.KeyPEM) || !bytes.Equal(readAll(t, target.Cert), first.ChainPEM) {
		t.Error("what was there is not there again")
	}
	if entries, err := os.ReadDir(dir); err != nil || len(entries) != 2 {
		t.Errorf("left beside them: %v, %v", entries, err)
	}
}

func TestALinkIsReplacedAndNotFollowed(t *testing.T) {
	dir := t.TempDir()
	precious := filepath.Join(dir, "precious")
	if err := os.WriteFile(precious, []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	target := Target{Cert: filepath.Join(dir, "nas.crt")}
	if err := os.Symlink(precious, target.Cert); err != nil {
		t.Fatal(err)
	}
	if _, err := target.Write(testPair(t, "nas.example.org")); err != nil {
		t.Fatal(err)
	}
	if string(readAll(t, precious)) != "x" {
		t.Error("what a link pointed at was written")
	}
}

func TestPKCS12(t *testing.T) {
	dir := t.TempDir()
	password := filepath.Join(dir, "password")
	if err := os.WriteFile(password, []byte("geheim\r\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	c := testPair(t, "nas.example.org")
	for _, target := range []Target{
		{Cert: filepath.Join(dir, "nas.p12"), PasswordFile: password},
		{Cert: filepath.Join(dir, "nas.PFX")},
	} {
		if changed, err := target.Write(c); !changed || err != nil {
			t.Fatal(changed, err)
		}
		word := ""
		if target.PasswordFile != "" {
			word = "geheim"
		}
		key, leaf, _, err := pkcs12.DecodeChain(readAll(t, target.Cert), word)
		if err != nil || !leaf.Equal(c.Leaf) || !sameKey(key.(*ecdsa.PrivateKey).Public(), c.Leaf.PublicKey) {
			t.Errorf("%s holds something else: %v", target.Cert, err)
		}
		if modeOf(t, target.Cert) != 0o600 {
			t.Errorf("%s has mode %v", target.Cert, modeOf(t, target.Cert))
		}
		if changed, err := target.Write(c); changed || err != nil {
			t.Errorf("again: changed = %t, %v", changed, err)
		}
	}
	if _, err := (Target{Cert: filepath.Join(dir, "x.p12"), PasswordFile: filepath.Join(dir, "none")}).Write(c); err == nil {
		t.Error("a password that is not there")
	}
}

func TestWhatATargetMayBe(t *testing.T) {
	for _, bad := range []Target{
		{},
		{Cert: "nas.crt"},
		{Cert: "/a\n"},
		{Cert: "/a.p12", Key: "/b.key"},
		{Key: "/a.p12"},
		{Cert: "/a.crt", PasswordFile: "/p"},
		{Cert: "/a", Mode: "0"},
		{Cert: "/a", Mode: "4755"},
		{Cert: "/a", Mode: "rw-"},
		{Unit: "--all"},
		{Unit: "nginx;reboot"},
		{Unit: "nginx", Command: []string{"/bin/true"}},
		{Command: []string{"true"}},
	} {
		if err := bad.Vet(); err == nil {
			t.Errorf("%+v is taken", bad)
		}
	}
	for _, good := range []Target{{Unit: "nginx.service"}, {Unit: `a@b\x2dc`}, {Cert: "/a.p12"}, {Cert: "/a", Key: "/a", Mode: "0640"}, {Command: []string{"/bin/true", "-x"}}} {
		if err := good.Vet(); err != nil {
			t.Errorf("%+v: %v", good, err)
		}
	}
}

// script is a program for a target.
func script(t *testing.T, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "script")
	if err := os.WriteFile(path, []byte("#!/bin/sh\n"+text), 0o700); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestAReloadThatFailsIsShownAndTriedAgain(t *testing.T) {
	dir := t.TempDir()
	log, broken := filepath.Join(dir, "log"), filepath.Join(dir, "broken")
	if err := os.WriteFile(broken, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	run := script(t, `echo "$1 $MESHDNS_CERT_NAME ${SECRET-none}" >>`+log+`; [ ! -e `+broken+` ] || { echo "syntax error in nginx.conf" >&2; exit 3; }`)
	t.Setenv("SECRET", "leaked")
	target := Target{Cert: filepath.Join(dir, "nas.crt"), Key: filepath.Join(dir, "nas.key"), Command: []string{run, "$(reboot); x"}}
	name := "nas.example.org"
	now := time.Now()
	m, err := New(Config{
		Dir: filepath.Join(dir, "store"), CAs: []CA{{"ca0", newFakeCA(t, 90*day)}}, Logger: testLog(t),
		Targets: map[string][]Target{name: {target}}, Now: func() time.Time { return now }, Random: func() float64 { return 0 },
	})
	if err != nil {
		t.Fatal(err)
	}
	if _, _, err := m.Get(t.Context(), Request{Names: []string{name}}); err != nil {
		t.Fatal(err)
	}
	state := func() targetInfo {
		m.tend(t.Context(), name)
		return m.List()[0].Targets[0]
	}
	if s := state(); s.State != "failed" || !strings.Contains(s.Error, "syntax error in nginx.conf") || !s.Retry.After(now) {
		t.Errorf("it is %+v", s)
	}
	if !bytes.Contains(readAll(t, log), []byte("$(reboot); x nas.example.org none\n")) {
		t.Errorf("the program was told %q", readAll(t, log))
	}
	if m.List()[0].State != "valid" {
		t.Errorf("the certificate itself is %s", m.List()[0].State)
	}
	runs := bytes.Count(readAll(t, log), []byte("\n"))
	if state(); bytes.Count(readAll(t, log), []byte("\n")) != runs {
		t.Error("it was tried again before its time")
	}
	if err := os.Remove(broken); err != nil {
		t.Fatal(err)
	}
	now = now.Add(2 * time.Minute)
	if s := state(); s.State != "current" || s.Error != "" {
		t.Errorf("once it is mended: %+v", s)
	}
	if state(); bytes.Count(readAll(t, log), []byte("\n")) != runs+1 {
		t.Error("a program that knows is told again")
	}
}

func TestAReloadThatHangsEnds(t *testing.T) {
	target := Target{Command: []string{script(t, "echo before\nsleep 1000 & wait")}, Timeout: 200 * time.Millisecond}
	began := time.Now()
	err := target.reload(t.Context(), testPair(t, "nas.example.org"))
	if err == nil || !strings.Contains(err.Error(), "not done after 200ms") {
		t.Errorf("it says %v", err)
	}
	if took := time.Since(began); took > 30*time.Second {
		t.Errorf("it took %v", took)
	}
}

func TestWhatIsKeptForACallerRunsNothing(t *testing.T) {
	dir := t.TempDir()
	mark := filepath.Join(dir, "mark")
	m, stop := fakeManager(t, filepath.Join(dir, "store"), testLog(t), newFakeCA(t, 90*day))
	stop()
	c, _, err := m.Get(t.Context(), Request{Names: []string{"nas.example.org"}})
	if err != nil {
		t.Fatal(err)
	}
	run := []string{script(t, "touch "+mark)}
	target := Target{Cert: filepath.Join(dir, "nas.crt"), Key: filepath.Join(dir, "nas.key")}
	with := target
	with.Command = run
	if err := m.Keep(t.Context(), c.Name, with); err == nil {
		t.Error("a command is taken from a call")
	}
	with.Command, with.Unit = nil, "nginx"
	if err := m.Keep(t.Context(), c.Name, with); err == nil {
		t.Error("a unit is taken from a call")
	}
	// Nor is one run that somebody has written into the file.
	r, err := m.store.read(c.Name)
	if err != nil {
		t.Fatal(err)
	}
	with.Command, with.Unit = run, ""
	r.wish.Targets = []Target{with}
	if err := m.store.writeWish(c.Name, r.wish); err != nil {
		t.Fatal(err)
	}
	m.tend(t.Context(), c.Name)
	if _, err := os.Stat(mark); err == nil {
		t.Error("a command from the store was run")
	}
	if !bytes.Equal(readAll(t, target.Key), c.KeyPEM) {
		t.Error("the files are not kept")
	}
}

func TestFilesAreKeptOnlyWhereTheyAreSeen(t *testing.T) {
	dir := t.TempDir()
	ca := newFakeCA(t, 90*day)
	m, stop := fakeManager(t, filepath.Join(dir, "store"), testLog(t), ca)
	stop()
	c, _, err := m.Get(t.Context(), Request{Names: []string{"nas.example.org"}})
	if err != nil {
		t.Fatal(err)
	}
	target := Target{Cert: filepath.Join(dir, "nas.crt"), Key: filepath.Join(dir, "nas.key")}
	if err := m.Keep(t.Context(), c.Name, target); err == nil || !strings.Contains(err.Error(), "is not there, seen from the daemon") {
		t.Errorf("files that are not there: %v", err)
	}
	if _, err := target.Write(c); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := m.Keep(t.Context(), c.Name, target); err != nil {
			t.Fatal(err)
		}
	}
	if targets := m.List()[0].Targets; len(targets) != 1 {
		t.Errorf("kept: %+v", targets)
	}
	next, _, err := m.Get(t.Context(), Request{Names: []string{c.Name}, Force: true})
	if err != nil {
		t.Fatal(err)
	}
	m.tend(t.Context(), c.Name)
	if !bytes.Equal(readAll(t, target.Key), next.KeyPEM) || !bytes.Equal(readAll(t, target.Cert), next.ChainPEM) {
		t.Error("they are not those of the new certificate")
	}
	if err := m.Keep(t.Context(), "other.example.org", target); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a certificate that nobody asked for: %v", err)
	}
	if err := m.Remove(context.WithoutCancel(t.Context()), c.Name); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(target.Key); err != nil {
		t.Errorf("the file of another program went away: %v", err)
	}
}

//go:build unix

package certs

import (
	"bytes"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"testing/synctest"
	"time"
)

// tear leaves the files of a target as a power cut between the two does.
func tear(t *testing.T, target Target) {
	t.Helper()
	if err := os.WriteFile(target.Key, testPair(t, "nas.example.org").KeyPEM, 0o600); err != nil {
		t.Fatal(err)
	}
}

// Two files cannot be replaced in one step.
func TestFilesOfTwoCertificatesAreWrittenAgain(t *testing.T) {
	dir := t.TempDir()
	target := Target{Cert: filepath.Join(dir, "nas.crt"), Key: filepath.Join(dir, "nas.key")}
	log := filepath.Join(dir, "log")
	run := target
	run.Command = []string{script(t, "echo reloaded >>"+log)}
	synctest.Test(t, func(t *testing.T) {
		cfg := Config{
			Dir: filepath.Join(dir, "store"), CAs: []CA{{"ca0", newFakeCA(t, 90*day)}}, Logger: testLog(t),
			Targets: map[string][]Target{"nas.example.org": {target}},
		}
		start := func() (m *Manager, stop func()) {
			m, stop = managerOf(t, cfg)
			synctest.Wait()
			return m, stop
		}
		m, stop := start()
		c, _, err := m.Get(t.Context(), Request{Names: []string{"nas.example.org"}})
		if err != nil {
			t.Fatal(err)
		}
		whole := func(when string) {
			t.Helper()
			synctest.Wait()
			if !bytes.Equal(readAll(t, target.Key), c.KeyPEM) || !bytes.Equal(readAll(t, target.Cert), c.ChainPEM) {
				t.Errorf("%s: the files are not those of the certificate", when)
			}
		}
		whole("at first")
		tear(t, target)
		time.Sleep(mendEvery + time.Second)
		whole("in the next round")
		if err := os.Remove(target.Cert); err != nil {
			t.Fatal(err)
		}
		time.Sleep(mendEvery + time.Second)
		whole("with one of them gone")
		stop()

		if err := os.WriteFile(target.Cert, nil, 0o644); err != nil { // as some file systems have it after a power cut
			t.Fatal(err)
		}
		_, stop = start()
		whole("at the start")

		// Whoever puts another whole pair there, or takes both away, wants it so.
		other := testPair(t, "other.example.org")
		if _, err := target.Write(other); err != nil {
			t.Fatal(err)
		}
		time.Sleep(mendEvery + time.Second)
		synctest.Wait()
		if !bytes.Equal(readAll(t, target.Key), other.KeyPEM) {
			t.Error("a pair of another certificate was written over")
		}
		for _, path := range []string{target.Cert, target.Key} {
			if err := os.Remove(path); err != nil {
				t.Fatal(err)
			}
		}
		time.Sleep(mendEvery + time.Second)
		synctest.Wait()
		if _, err := os.Stat(target.Key); err == nil {
			t.Error("files that were taken away are there again")
		}
		stop()
	})

	// The program that reads them is told.
	m, err := New(Config{
		Dir: filepath.Join(dir, "store2"), CAs: []CA{{"ca0", newFakeCA(t, 90*day)}}, Logger: testLog(t),
		Targets: map[string][]Target{"nas.example.org": {run}},
	})
	if err != nil {
		t.Fatal(err)
	}
	if _, _, err := m.Get(t.Context(), Request{Names: []string{"nas.example.org"}}); err != nil {
		t.Fatal(err)
	}
	m.tend(t.Context(), "nas.example.org")
	tear(t, target)
	m.mu.Lock()
	m.certs["nas.example.org"].looked = time.Time{}
	m.mu.Unlock()
	m.tend(t.Context(), "nas.example.org")
	if n := bytes.Count(readAll(t, log), []byte("reloaded")); n != 2 {
		t.Errorf("reloaded %d times", n)
	}
}

func TestDraftsOfProcessesThatDiedGo(t *testing.T) {
	dir := t.TempDir()
	target := Target{Cert: filepath.Join(dir, "nas.crt"), Key: filepath.Join(dir, "nas.key")}
	long := time.Now().Add(-2 * staleStage)
	for name, age := range map[string]time.Time{
		".nas.key.123456": long, ".nas.crt.17.old": long, // ours
		".nas.key.777": time.Now(), ".nas.key.swp": long, ".nas.key.": long, ".other.key.1": long, "nas.key.1": long, // in use, or not ours
	} {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte("x"), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Chtimes(path, age, age); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := target.Write(testPair(t, "nas.example.org")); err != nil {
		t.Fatal(err)
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, e := range entries {
		names = append(names, e.Name())
	}
	if want := []string{".nas.key.", ".nas.key.777", ".nas.key.swp", ".other.key.1", "nas.crt", "nas.key", "nas.key.1"}; !slices.Equal(names, want) {
		t.Errorf("there are %q, want %q", names, want)
	}
}

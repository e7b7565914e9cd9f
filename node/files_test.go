package node

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
)

// names are the files of a directory.
func names(t *testing.T, dir string) string {
	t.Helper()
	entries, err := os.ReadDir(dir)
	must(t, err)
	words := make([]string, len(entries))
	for i, e := range entries {
		words[i] = e.Name()
	}
	return strings.Join(words, " ")
}

func TestFileIsReplacedWhole(t *testing.T) {
	path := filepath.Join(t.TempDir(), "state", "ranges.json")
	for _, text := range []string{"first", "the second, which is longer", ""} {
		must(t, writeFile(path, []byte(text), 0o600))
		if got, err := os.ReadFile(path); err != nil || string(got) != text {
			t.Errorf("got %q, %v; want %q", got, err, text)
		}
	}
	if got := names(t, filepath.Dir(path)); got != "ranges.json" {
		t.Errorf("the directory holds %q, want the file alone", got)
	}
	info, err := os.Stat(filepath.Dir(path))
	must(t, err)
	if got := info.Mode().Perm(); got != 0o700 {
		t.Errorf("mode of the directory: got %o, want 700", got)
	}
}

func TestFileHasTheModeThatWasAskedFor(t *testing.T) {
	dir := t.TempDir()
	for _, perm := range []os.FileMode{0o600, 0o644, 0o640, 0o400} {
		path := filepath.Join(dir, "f")
		must(t, writeFile(path, []byte("x"), perm))
		info, err := os.Stat(path)
		must(t, err)
		if got := info.Mode().Perm(); got != perm { // whatever the umask, and the mode of the one before
			t.Errorf("got %o, want %o", got, perm)
		}
	}
}

func TestFileThatCannotBeReplacedLeavesNothingBehind(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "taken")
	must(t, os.MkdirAll(filepath.Join(path, "full"), 0o700)) // no file can be renamed over it
	err := writeFile(path, []byte("x"), 0o600)
	if err == nil || !strings.HasPrefix(err.Error(), "writing "+path+": ") {
		t.Errorf("got %v, want an error with the path", err)
	}
	if got := names(t, dir); got != "taken" {
		t.Errorf("the directory holds %q, want what was there", got)
	}
}

func TestFileBelowAFileIsAnError(t *testing.T) {
	file := filepath.Join(t.TempDir(), "file")
	must(t, put(file, "mine"))
	if err := writeFile(filepath.Join(file, "x"), []byte("x"), 0o600); err == nil {
		t.Error("no error")
	}
	if got, _ := os.ReadFile(file); string(got) != "mine" {
		t.Errorf("the file holds %q, want what was there", got)
	}
}

func TestLinkIsReplacedAndNotWhatItPointsTo(t *testing.T) {
	dir := t.TempDir()
	other, link := filepath.Join(dir, "other"), filepath.Join(dir, "link")
	must(t, put(other, "mine"), os.Symlink(other, link), writeFile(link, []byte("new"), 0o600))
	if got, _ := os.ReadFile(other); string(got) != "mine" {
		t.Errorf("what the link points to holds %q", got)
	}
	if info, err := os.Lstat(link); err != nil || !info.Mode().IsRegular() {
		t.Errorf("the link is %v, %v; want a file of our own", info, err)
	}
}

// What a process that died in the middle leaves is a file of another name, which hinders nobody.
func TestFileIsWrittenBesideWhatACrashLeft(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "ranges.json")
	must(t, put(path, "old"), put(filepath.Join(dir, ".ranges.json.123"), "ha"))
	if got, _ := os.ReadFile(path); string(got) != "old" {
		t.Fatalf("got %q, want the old file whole", got)
	}
	must(t, writeFile(path, []byte("new"), 0o600))
	if got, _ := os.ReadFile(path); string(got) != "new" {
		t.Errorf("got %q, want the new file", got)
	}
}

func TestReaderSeesTheOldFileOrTheNew(t *testing.T) {
	path := filepath.Join(t.TempDir(), "f")
	texts := [][]byte{bytes.Repeat([]byte("a"), 64<<10), bytes.Repeat([]byte("b"), 32<<10)}
	must(t, writeFile(path, texts[0], 0o600))
	var writer sync.WaitGroup
	done := make(chan struct{})
	writer.Go(func() {
		defer close(done)
		for i := range 50 {
			if err := writeFile(path, texts[i%2], 0o600); err != nil {
				t.Errorf("writing: %v", err)
				return
			}
		}
	})
	for {
		got, err := os.ReadFile(path)
		if err != nil || !bytes.Equal(got, texts[0]) && !bytes.Equal(got, texts[1]) {
			t.Errorf("read %d bytes, %v; want one of the two files", len(got), err)
			break
		}
		select {
		case <-done:
			writer.Wait()
			return
		default:
		}
	}
	writer.Wait()
}

func TestTwoWritersLeaveOneFile(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "f")
	var writers sync.WaitGroup
	for _, text := range []string{"one", "two", "three", "four"} {
		writers.Go(func() {
			if err := writeFile(path, []byte(text), 0o600); err != nil {
				t.Errorf("writing: %v", err)
			}
		})
	}
	writers.Wait()
	if got, _ := os.ReadFile(path); !strings.Contains("one two three four", string(got)) || len(got) == 0 {
		t.Errorf("got %q", got)
	}
	if got := names(t, dir); got != "f" {
		t.Errorf("the directory holds %q", got)
	}
}

package certs

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

// fakeStore is Debian's as far as Install sees it: a command makes a bundle of a directory.
type fakeStore struct {
	TrustStore

	t    *testing.T
	runs [][]string
	fail error // of the command
	lazy bool  // it says yes and does nothing
}

func newFakeStore(t *testing.T) *fakeStore {
	f := &fakeStore{t: t}
	f.Dir = t.TempDir()
	for _, dir := range []string{"anchors", "out"} {
		if err := os.Mkdir(filepath.Join(f.Dir, dir), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	f.stores = []trustStore{
		{dir: "elsewhere", suffix: ".x", add: []string{"no"}},
		{dir: "anchors", suffix: ".crt", add: []string{"update", "{sha1}"}, remove: []string{"update"}, bundle: "out/bundle"},
	}
	f.run = f.update
	f.rebuild()
	return f
}

func (f *fakeStore) update(_ context.Context, argv []string) error {
	f.runs = append(f.runs, argv)
	if f.fail != nil {
		return f.fail
	}
	if !f.lazy {
		f.rebuild()
	}
	return nil
}

func (f *fakeStore) rebuild() {
	var all []byte
	for _, path := range f.files() {
		text, err := os.ReadFile(path)
		if err != nil {
			f.t.Fatal(err)
		}
		all = append(all, text...)
	}
	if err := os.WriteFile(filepath.Join(f.Dir, "out/bundle"), all, 0o600); err != nil {
		f.t.Fatal(err)
	}
}

func (f *fakeStore) files() []string {
	files, err := filepath.Glob(filepath.Join(f.Dir, "anchors", "*"))
	if err != nil {
		f.t.Fatal(err)
	}
	return files
}

func testRoot(t *testing.T) []byte {
	t.Helper()
	root, _ := testCA(t, time.Now())
	return certPEM(root.cert)
}

func TestARootIsTrustedAndForgotten(t *testing.T) {
	f := newFakeStore(t)
	root := testRoot(t)
	where, err := f.Install(t.Context(), root)
	if err != nil || !slices.Equal(f.files(), []string{where}) {
		t.Fatalf("installed at %q, %v; there is %q", where, err, f.files())
	}
	if argv := f.runs[0]; argv[0] != "update" || len(argv[1]) != 40 {
		t.Errorf("ran %q, want a SHA-1", argv)
	}
	if info, err := os.Stat(where); err != nil || info.Mode() != 0o644 {
		t.Errorf("%v, %v; want mode 0644", info.Mode(), err)
	}
	if ok, err := f.Installed(root); !ok || err != nil {
		t.Errorf("installed: %t, %v", ok, err)
	}
	if _, err := f.Install(t.Context(), root); err != nil {
		t.Errorf("again: %v", err)
	}
	for range 2 {
		if err := f.Remove(t.Context(), root); err != nil || len(f.files()) != 0 {
			t.Errorf("removed: %v; there is %q", err, f.files())
		}
	}
	if ok, err := f.Installed(root); ok || err != nil {
		t.Errorf("installed after its end: %t, %v", ok, err)
	}
}

func TestWhatIsNotTrustedIsTakenBack(t *testing.T) {
	for what, spoil := range map[string]func(f *fakeStore){
		"the command fails":        func(f *fakeStore) { f.fail = errors.New("no space") },
		"the command does nothing": func(f *fakeStore) { f.lazy = true },
	} {
		f := newFakeStore(t)
		spoil(f)
		if where, err := f.Install(t.Context(), testRoot(t)); err == nil || len(f.files()) != 0 {
			t.Errorf("%s: installed at %q, %v; there is %q", what, where, err, f.files())
		}
	}
	f := newFakeStore(t)
	_, i := testCA(t, time.Now())
	if _, err := f.Install(t.Context(), certPEM(i.cert)); err == nil || len(f.files()) != 0 {
		t.Errorf("an intermediate is installed as a root: %v; there is %q", err, f.files())
	}
	root, _ := unconstrained(t, time.Now())
	if _, err := f.Install(t.Context(), certPEM(root.cert)); err == nil || !strings.Contains(err.Error(), "path may be longer") || len(f.files()) != 0 {
		t.Errorf("a root without constraints: %v; there is %q", err, f.files())
	}
	if err := os.RemoveAll(filepath.Join(f.Dir, "anchors")); err != nil {
		t.Fatal(err)
	}
	var none *noTrustStoreError
	if _, err := f.Install(t.Context(), testRoot(t)); !errors.As(err, &none) || none.Hint() == "" {
		t.Errorf("without a store: %v", err)
	}
}

// Stores that are changed by commands alone: a file of ours says that it was done.
func TestAStoreThatIsACommand(t *testing.T) {
	f := newFakeStore(t)
	f.Keep = filepath.Join(t.TempDir(), "ca", "root.crt")
	f.stores = []trustStore{{add: []string{"add", "{file}"}, remove: []string{"remove", "{sha1}"}}}
	root := testRoot(t)
	if where, err := f.Install(t.Context(), root); err != nil || where != f.Keep {
		t.Fatalf("installed at %q, %v", where, err)
	}
	f.fail = errors.New("not permitted")
	if err := f.Remove(t.Context(), root); err == nil {
		t.Error("it is removed although the command failed")
	}
	if ok, err := f.Installed(root); !ok || err != nil {
		t.Errorf("after a removal that failed: %t, %v", ok, err)
	}
	f.fail = nil
	if err := f.Remove(t.Context(), root); err != nil {
		t.Error(err)
	}
	if ok, err := f.Installed(root); ok || err != nil {
		t.Errorf("after its removal: %t, %v", ok, err)
	}
	var words []string
	for _, argv := range f.runs {
		words = append(words, argv[0])
	}
	if !slices.Equal(words, []string{"add", "remove", "remove"}) || f.runs[0][1] != f.Keep {
		t.Errorf("ran %q", f.runs)
	}
}

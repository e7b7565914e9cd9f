package osconfig

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func TestWhatIsMadeIsWhatWasCaptured(t *testing.T) {
	r := newRig(t)
	r.write("etc/file", "text\x00\xff")
	r.must(os.Chmod(r.path("etc/file"), 0o4751))
	if err := setXattr(r.path("etc/file"), "user.test", []byte("value")); err != nil {
		t.Logf("no attributes here: %v", err) // older tmpfs
	}
	r.link("file", "etc/link")
	old := time.Date(2001, 2, 3, 4, 5, 6, 700, time.UTC)
	for _, name := range []string{"etc/file", "etc/link"} {
		r.must(setMtime(r.path(name), old))
		want, err := disk{}.capture(r.path(name))
		r.must(err)
		r.must(os.Remove(r.path(name)))
		unset, err := disk{}.make(r.path(name), want)
		r.must(err)
		if len(unset) > 0 {
			t.Errorf("%s: not set: %q", name, unset)
		}
		got, err := disk{}.capture(r.path(name))
		r.must(err)
		if !got.same(want) || got.Mode != want.Mode || !got.Mtime.Equal(old) || string(got.Xattrs["user.test"]) != string(want.Xattrs["user.test"]) {
			t.Errorf("%s: got %+v, want %+v", name, got, want)
		}
	}
}

func TestMakingDoesNotFollowWhatLiesInTheWay(t *testing.T) {
	r := newRig(t)
	r.write("secret", "secret")
	r.link("../secret", "etc/.resolv.conf.meshdns") // an attacker who guessed the temporary name
	_, err := disk{}.make(r.path("etc/resolv.conf"), regular("new"))
	r.must(err)
	if got := r.read("secret"); got != "secret" {
		t.Errorf("the link's target is now %q", got)
	}
	if got := r.read("etc/resolv.conf"); got != "new" {
		t.Errorf("the file is %q", got)
	}
}

func TestADirectoryIsNotMade(t *testing.T) {
	r := newRig(t)
	if _, err := (disk{}).make(r.path("etc/x"), fileState{Kind: kindDirectory}); !errors.Is(err, errors.ErrUnsupported) {
		t.Errorf("got %v", err)
	}
	if _, err := (disk{}).make(r.path("nowhere/x"), regular("")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("in a directory that is missing: got %v", err)
	}
}

func TestAFileThatIsTooLongIsNotCaptured(t *testing.T) {
	r := newRig(t)
	r.write("etc/x", strings.Repeat("x", maxFileBytes+1))
	if _, err := (disk{}).capture(r.path("etc/x")); err == nil || !strings.Contains(err.Error(), "more than") {
		t.Errorf("got %v", err)
	}
	if _, err := readNoFollow(r.path("etc"), 10); err == nil {
		t.Error("a directory was read")
	}
}

// Readers at any moment of a write in place see the old file, the new one, or the new one with empty lines behind.
func TestOverwritingShowsNoHalfFile(t *testing.T) {
	for name, text := range map[string][2]string{"shorter": {"a long old text\n", "new\n"}, "longer": {"old\n", "a long new text\n"}} {
		r := newRig(t)
		r.write("etc/x", text[0])
		d := disk{step: func(op, path string) {
			if got := strings.TrimRight(r.read("etc/x"), "\n") + "\n"; got != text[0] && got != text[1] {
				t.Errorf("%s: before %s: %q", name, op, got)
			}
		}}
		r.must(d.overwrite(r.path("etc/x"), []byte(text[1])))
		if got := r.read("etc/x"); got != text[1] {
			t.Errorf("%s: %q", name, got)
		}
	}
	r := newRig(t)
	r.link("y", "etc/x")
	r.write("etc/y", "target")
	if err := (disk{}).overwrite(r.path("etc/x"), []byte("new")); err == nil || r.read("etc/y") != "target" {
		t.Errorf("a link was written through: %v", err)
	}
}

func TestFollowStopsInCircles(t *testing.T) {
	r := newRig(t)
	r.link("b", "etc/a")
	r.link("a", "etc/b")
	if _, err := r.opt.machine.disk.follow("/etc/a"); err == nil || !strings.Contains(err.Error(), "more than 40 links") {
		t.Errorf("got %v", err)
	}
	r.link("/../../etc/c", "etc/up") // above the root is the root
	r.write("etc/c", "c")
	if tr, err := r.opt.machine.disk.follow("/etc/up"); err != nil || tr.end != "/etc/c" {
		t.Errorf("got %+v, %v", tr, err)
	}
}

func TestBeingWritten(t *testing.T) {
	path := filepath.Join(t.TempDir(), "x")
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := readMounts(); err == nil && !beingWritten(path) { // on Linux, which alone tells
		t.Error("a file that is open for writing is not seen to be")
	}
	f.Close()
	if beingWritten(path) {
		t.Error("a file that nobody writes is seen to be written")
	}
}

func TestParseMounts(t *testing.T) {
	text := `36 35 98:0 / / rw,noatime master:1 - ext4 /dev/root rw,errors=continue
40 36 0:30 /rc /etc/resolv.conf rw - tmpfs tmp\040fs rw
41 36 0:30 /rc /etc/resolv.conf ro shared:3 master:4 - tmpfs over rw
broken line
42 36 0:31 / /ro rw - squashfs /dev/loop0 ro
`
	mounts := parseMounts([]byte(text))
	if len(mounts) != 4 {
		t.Fatalf("got %d mounts: %v", len(mounts), mounts)
	}
	if m := mountOn(mounts, "/etc/resolv.conf"); m == nil || m.source != "over" || !m.readOnly {
		t.Errorf("the upper mount is %v", m)
	}
	if mounts[1].source != "tmp fs" || mounts[1].readOnly || !mounts[3].readOnly {
		t.Errorf("got %v", mounts)
	}
	if m := mountOn(mounts, "/etc"); m != nil {
		t.Errorf("/etc is no mount, got %v", m)
	}
}

func FuzzParseMounts(f *testing.F) {
	f.Add([]byte("40 36 0:30 /rc /etc/resolv.conf rw - tmpfs tmp\\040fs rw\n"))
	f.Fuzz(func(t *testing.T, data []byte) {
		for _, m := range parseMounts(data) {
			_ = m.String()
		}
	})
}

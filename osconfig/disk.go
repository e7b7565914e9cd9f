package osconfig

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"
)

// disk is everything that this package does to files. Each system call that changes something is announced to step
// first: tests die there, one call after the other.
type disk struct {
	root string                // what stands before every path; "" but in tests
	step func(op, path string) // nil but in tests
}

func (d disk) at(op, path string) {
	if d.step != nil {
		d.step(op, path)
	}
}

// real is where path is, below root.
func (d disk) real(path string) string {
	if d.root == "" {
		return path
	}
	return filepath.Join(d.root, path)
}

// The kinds of a fileState.
const (
	kindMissing   = "missing"
	kindRegular   = "regular file"
	kindSymlink   = "symbolic link"
	kindDirectory = "directory"
	kindOther     = "special file"
)

// maxFileBytes bounds what is kept of a file. A resolv.conf above that is none.
const maxFileBytes = 1 << 20

// fileState is what lies at a path, whole enough to be made again.
type fileState struct {
	Kind   string            `json:"kind"`
	Link   string            `json:"link,omitempty"` // the text of a symbolic link
	Data   []byte            `json:"data,omitempty"`
	Mode   fs.FileMode       `json:"mode,omitempty"` // permissions, setuid, setgid and sticky
	UID    int               `json:"uid"`
	GID    int               `json:"gid"`
	Mtime  time.Time         `json:"mtime,omitzero"`
	Xattrs map[string][]byte `json:"xattrs,omitempty"` // ACLs and security labels among them
	Dev    uint64            `json:"dev,omitempty"`
	Ino    uint64            `json:"ino,omitempty"`
}

// modeBits are what chmod sets.
const modeBits = fs.ModePerm | fs.ModeSetuid | fs.ModeSetgid | fs.ModeSticky

// capture reads what lies at path, without following a link.
func (d disk) capture(path string) (fileState, error) {
	info, err := os.Lstat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return fileState{Kind: kindMissing}, nil
	}
	if err != nil {
		return fileState{}, err
	}
	s := fileState{Mode: info.Mode() & modeBits, Mtime: info.ModTime().UTC()}
	s.UID, s.GID, s.Dev, s.Ino = ownerOf(info)
	switch info.Mode().Type() {
	case fs.ModeSymlink:
		s.Kind = kindSymlink
		if s.Link, err = os.Readlink(path); err != nil {
			return fileState{}, err
		}
	case 0:
		s.Kind = kindRegular
		if s.Data, err = readNoFollow(path, maxFileBytes); err != nil {
			return fileState{}, err
		}
	case fs.ModeDir:
		s.Kind = kindDirectory
	default:
		s.Kind = kindOther
	}
	if s.Xattrs, err = readXattrs(path); err != nil {
		return fileState{}, fmt.Errorf("reading the attributes of %s: %w", path, err)
	}
	return s, nil
}

// readNoFollow reads a regular file of at most limit bytes that is not reached through a link in its last element.
func readNoFollow(path string, limit int64) ([]byte, error) {
	f, err := openNoFollow(path, os.O_RDONLY)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return readLimited(f, limit)
}

func readLimited(f *os.File, limit int64) ([]byte, error) {
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() {
		return nil, fmt.Errorf("reading %s: it is no regular file", f.Name())
	}
	data, err := io.ReadAll(io.LimitReader(f, limit+1))
	if err != nil {
		return nil, err
	}
	if int64(len(data)) > limit {
		return nil, fmt.Errorf("reading %s: it has more than %d bytes", f.Name(), limit)
	}
	return data, nil
}

// make has path be what s says, in one step: the new file is complete and on the disk before it gets its name.
// Attributes that the file system or a container does not let us set are returned, not an error.
func (d disk) make(path string, s fileState) (unset []string, err error) {
	dir := filepath.Dir(path)
	if s.Kind == kindMissing {
		if err := d.remove(path); err != nil {
			return nil, err
		}
		return nil, d.syncDir(dir)
	}
	temp := tempName(path)
	switch s.Kind {
	case kindSymlink:
		unset, err = d.makeLink(temp, s)
	case kindRegular:
		unset, err = d.makeFile(temp, s)
	default:
		return nil, fmt.Errorf("making a %s: %w", s.Kind, errors.ErrUnsupported)
	}
	if err == nil {
		d.at("rename", path)
		err = os.Rename(temp, path)
	}
	if err != nil {
		return nil, errors.Join(err, d.remove(temp))
	}
	return unset, d.syncDir(dir)
}

// tempName is where a new file for path is made ready. It is always the same name, so that what a killed process left
// there is found.
func tempName(path string) string {
	return filepath.Join(filepath.Dir(path), "."+filepath.Base(path)+".meshdns")
}

func (d disk) makeFile(temp string, s fileState) (unset []string, err error) {
	f, err := d.create(temp)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	d.at("write", temp)
	if _, err := f.Write(s.Data); err != nil {
		return nil, err
	}
	d.at("chown", temp)
	if err := lchown(temp, s.UID, s.GID); err != nil {
		return nil, err
	}
	d.at("chmod", temp)
	if err := f.Chmod(s.Mode); err != nil { // after chown, which takes setuid away, and regardless of the umask
		return nil, err
	}
	unset = d.setXattrs(temp, s.Xattrs)
	if !s.Mtime.IsZero() {
		d.at("utimes", temp)
		if err := setMtime(temp, s.Mtime); err != nil {
			return nil, err
		}
	}
	d.at("fsync", temp)
	return unset, f.Sync()
}

func (d disk) makeLink(temp string, s fileState) (unset []string, err error) {
	d.at("symlink", temp)
	if err := os.Symlink(s.Link, temp); err != nil {
		return nil, err
	}
	d.at("chown", temp)
	if err := lchown(temp, s.UID, s.GID); err != nil {
		return nil, err
	}
	unset = d.setXattrs(temp, s.Xattrs)
	d.at("utimes", temp)
	return unset, setMtime(temp, s.Mtime)
}

// setXattrs sets what it can and returns the names of the rest.
func (d disk) setXattrs(path string, xattrs map[string][]byte) (unset []string) {
	for name, value := range xattrs {
		d.at("setxattr", path)
		if err := setXattr(path, name, value); err != nil {
			unset = append(unset, name)
		}
	}
	return unset
}

// create makes a new, private file; one that a killed process left is replaced.
func (d disk) create(path string) (*os.File, error) {
	if err := d.remove(path); err != nil {
		return nil, err
	}
	d.at("create", path)
	return openNoFollow(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL)
}

// remove removes a file or link that may be missing.
func (d disk) remove(path string) error {
	if _, err := os.Lstat(path); errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	d.at("unlink", path)
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// removeTemp removes what a process that died left of a file that it made ready.
func (d disk) removeTemp(path string) error {
	temp := tempName(path)
	if _, err := os.Lstat(temp); err != nil {
		return nil // the usual case, and where it cannot be looked at it cannot have been made
	}
	if err := d.remove(temp); err != nil {
		return err
	}
	return d.syncDir(filepath.Dir(path))
}

func (d disk) syncDir(dir string) error {
	d.at("fsync", dir)
	return syncDir(dir)
}

// overwrite replaces the content of a file in place, for where a mount forbids rename. One write covers all that was
// there, filled up with newlines, and only then is the file shortened: whoever reads at any moment sees a whole file,
// and a process that dies leaves one that isTorn tells.
func (d disk) overwrite(path string, data []byte) error {
	f, err := openNoFollow(path, os.O_WRONLY)
	if err != nil {
		return err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return err
	}
	if !info.Mode().IsRegular() {
		return fmt.Errorf("writing %s: it is no regular file", path)
	}
	filled := data
	if missing := info.Size() - int64(len(data)); missing > 0 {
		filled = append(filled[:len(filled):len(filled)], strings.Repeat("\n", int(min(missing, maxFileBytes)))...)
	}
	d.at("pwrite", path)
	if _, err := f.WriteAt(filled, 0); err != nil {
		return err
	}
	d.at("fsync", path)
	if err := f.Sync(); err != nil {
		return err
	}
	d.at("ftruncate", path)
	if err := f.Truncate(int64(len(data))); err != nil {
		return err
	}
	d.at("fsync", path)
	return f.Sync()
}

// isTorn reports whether data is what overwrite leaves when it dies, or the power fails, on the way from one content to
// another: a part of the new one, then what was left of the old one, or newlines, or blocks that were never written.
func isTorn(data, from, to []byte) bool {
	if allOf(data, 0) {
		return true // empty, or nothing of it reached the disk
	}
	if missing := len(from) - len(to); missing > 0 {
		to = append(to[:len(to):len(to)], strings.Repeat("\n", missing)...) // as overwrite fills it up
	}
	n := 0
	for n < len(data) && n < len(to) && data[n] == to[n] {
		n++
	}
	// The parts may agree for some bytes beyond the border, so every border up to n is tried.
	for ; n >= 0; n-- {
		rest := data[n:]
		if n > 0 && (len(rest) == 0 || allOf(rest, '\n') || allOf(rest, 0)) {
			return true
		}
		if n > 0 && n <= len(from) && string(rest) == string(from[n:]) {
			return true
		}
	}
	return false
}

func allOf(data []byte, b byte) bool {
	return strings.Trim(string(data), string(rune(b))) == ""
}

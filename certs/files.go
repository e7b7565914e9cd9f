package certs

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/user"
	"path/filepath"
	"strconv"
)

// file is a file that another program reads.
type file struct {
	path   string
	data   []byte
	secret bool              // it holds a key
	owner  string            // name or number; empty: as it was
	group  string            // the same
	mode   fs.FileMode       // 0: as it was
	same   func([]byte) bool // whether what is there will do; nil: if it is data
}

// looks are owner, group and mode of a file; -1 where nothing is to be changed.
type looks struct {
	uid, gid int
	mode     fs.FileMode
}

// look is how the file is to look, and whether it does and holds what it is to hold.
func (f *file) look() (want looks, done bool, err error) {
	want = looks{-1, -1, 0o644}
	if f.secret {
		want.mode = 0o600
	}
	info, err := os.Lstat(f.path)
	exists := err == nil && info.Mode().IsRegular()
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return want, false, err
	}
	if err == nil && info.IsDir() {
		return want, false, fmt.Errorf("%s is a directory", f.path)
	}
	if exists {
		want.uid, want.gid = ownerOf(info)
		want.mode = info.Mode().Perm()
	}
	have := want
	if err := f.wish(&want); err != nil {
		return want, false, err
	}
	if !exists || have != want {
		return want, false, nil
	}
	old, err := readFile(f.path)
	if err != nil {
		return want, false, err
	}
	defer clear(old)
	if f.same != nil {
		return want, f.same(old), nil
	}
	return want, bytes.Equal(old, f.data), nil
}

// wish puts what was asked for into looks.
func (f *file) wish(l *looks) error {
	if f.mode != 0 {
		l.mode = f.mode
	}
	if f.owner != "" {
		uid, err := numberOf(f.owner, func(name string) (string, error) {
			u, err := user.Lookup(name)
			if err != nil {
				return "", err
			}
			return u.Uid, nil
		})
		if err != nil {
			return fmt.Errorf("owner %s: %w", f.owner, err)
		}
		l.uid = uid
	}
	if f.group != "" {
		gid, err := numberOf(f.group, func(name string) (string, error) {
			g, err := user.LookupGroup(name)
			if err != nil {
				return "", err
			}
			return g.Gid, nil
		})
		if err != nil {
			return fmt.Errorf("group %s: %w", f.group, err)
		}
		l.gid = gid
	}
	return nil
}

// numberOf is a user's or group's number.
func numberOf(name string, lookup func(string) (string, error)) (int, error) {
	if n, err := strconv.Atoi(name); err == nil && n >= 0 {
		return n, nil
	}
	text, err := lookup(name)
	if err != nil {
		return 0, err
	}
	return strconv.Atoi(text)
}

// staged is a file that is written beside its place.
type staged struct {
	path, temp string
	backup     string // a second name of what was there; empty: nothing was
	moved      bool
}

// writeAll brings files up to date, all or none. changed says that there was something to do.
func writeAll(files []file) (changed bool, err error) {
	var stages []*staged
	defer func() {
		for _, s := range stages {
			s.end(err != nil)
		}
	}()
	stale := false
	for i := range files {
		_, done, err := files[i].look()
		if err != nil {
			return false, fmt.Errorf("writing %s: %w", files[i].path, err)
		}
		stale = stale || !done
	}
	if !stale {
		return false, nil
	}
	for i := range files {
		s, err := files[i].stage()
		if s != nil {
			stages = append(stages, s)
		}
		if err != nil {
			return false, fmt.Errorf("writing %s: %w", files[i].path, err)
		}
	}
	for _, s := range stages {
		if err := os.Rename(s.temp, s.path); err != nil {
			return false, fmt.Errorf("writing %s: %w", s.path, err)
		}
		s.moved = true
	}
	for _, s := range stages {
		if err := syncDir(filepath.Dir(s.path)); err != nil {
			return true, fmt.Errorf("writing %s: %w", s.path, err)
		}
	}
	return true, nil
}

// stage writes the file beside its place, as it is to look.
func (f *file) stage() (*staged, error) {
	want, _, err := f.look()
	if err != nil {
		return nil, err
	}
	sweep(f.path)
	temp, err := os.CreateTemp(filepath.Dir(f.path), "."+filepath.Base(f.path)+".*")
	if err != nil {
		return nil, err
	}
	s := &staged{path: f.path, temp: temp.Name()}
	if want.uid >= 0 || want.gid >= 0 {
		if err := chown(temp, want.uid, want.gid); err != nil {
			temp.Close()
			return s, err
		}
	}
	if err := fill(temp, f.data, want.mode); err != nil {
		return s, err
	}
	if _, err := os.Lstat(f.path); err == nil {
		s.backup = s.temp + ".old"
		if err := os.Link(f.path, s.backup); err != nil {
			s.backup = "" // a file system without links: then there is no way back
		}
	}
	return s, nil
}

// end removes what staging left, after it has put back what was there if undo says so.
func (s *staged) end(undo bool) {
	switch {
	case s.moved && undo && s.backup != "":
		_ = os.Rename(s.backup, s.path) // nothing else can be done
	case s.moved && undo:
		os.Remove(s.path)
	}
	for _, path := range []string{s.temp, s.backup} {
		if path != "" {
			os.Remove(path)
		}
	}
}

// chown gives a file to a user and group, unless it is theirs already: only root may always do that.
func chown(f *os.File, uid, gid int) error {
	info, err := f.Stat()
	if err != nil {
		return err
	}
	haveUID, haveGID := ownerOf(info)
	if (uid < 0 || uid == haveUID) && (gid < 0 || gid == haveGID) {
		return nil
	}
	return f.Chown(uid, gid)
}

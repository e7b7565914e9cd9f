package osconfig

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"slices"
	"strings"
)

// maxLinks is how many symbolic links a path may lead through, as in Linux.
const maxLinks = 40

// trail is where a path leads.
type trail struct {
	end  string   // the path without links; of a dangling one, the first element that does not exist and what follows
	hops []string // every path that was gone through, as far as links spell them; the first is the one asked for
	dirs []string // the directories in which something decides where the path leads
}

// follow walks along path link by link. An element that does not exist ends the walk with fs.ErrNotExist.
func (d disk) follow(start string) (trail, error) {
	t := trail{hops: []string{start}}
	current, rest := "/", elements(start)
	for links := 0; len(rest) > 0; {
		name := rest[0]
		if name == ".." {
			current, rest = path.Dir(current), rest[1:]
			continue
		}
		next := path.Join(current, name)
		info, err := os.Lstat(d.real(next))
		isLink := err == nil && info.Mode()&fs.ModeSymlink != 0
		if isLink || err != nil || len(rest) == 1 {
			t.dirs = appendNew(t.dirs, current)
		}
		if err != nil {
			t.end = path.Join(next, path.Join(rest[1:]...))
			return t, err
		}
		if !isLink {
			current, rest = next, rest[1:]
			continue
		}
		if links++; links > maxLinks {
			t.end = next
			return t, fmt.Errorf("following %s: more than %d links", start, maxLinks)
		}
		text, err := os.Readlink(d.real(next))
		if err != nil {
			t.end = next
			return t, err
		}
		if path.IsAbs(text) {
			current = "/"
		}
		rest = append(elements(text), rest[1:]...)
		t.hops = append(t.hops, path.Join(current, path.Join(rest...)))
	}
	t.end = current
	return t, nil
}

// elements splits a path into its names.
func elements(p string) []string {
	return slices.DeleteFunc(strings.Split(p, "/"), func(s string) bool { return s == "" || s == "." })
}

func appendNew(list []string, s string) []string {
	if slices.Contains(list, s) {
		return list
	}
	return append(list, s)
}

// readThrough reads a small file that path leads to, links and all. A file that is not there is empty and no error.
func (d disk) readThrough(name string) ([]byte, error) {
	t, err := d.follow(name)
	if err == nil {
		var data []byte
		data, err = readNoFollow(d.real(t.end), maxFileBytes)
		if err == nil {
			return data, nil
		}
	}
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	return nil, err
}

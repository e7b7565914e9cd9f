package node

import (
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/fsnotify/fsnotify"
)

// dirWatch watches the directories that decide which file a path leads to. Files themselves are not watched: a watch
// stays with the old file when a new one is renamed over it.
type dirWatch struct {
	fs   *fsnotify.Watcher // nil if the system gives us none; then the caller's polling has to do
	dirs map[string]bool
	log  *slog.Logger
}

func newDirWatch(path string, log *slog.Logger) *dirWatch {
	w, err := fsnotify.NewWatcher()
	if err != nil {
		log.Warn("changes are seen late: no file events", "path", path, "err", err)
		w = nil
	}
	d := &dirWatch{fs: w, dirs: map[string]bool{}, log: log}
	d.follow(path)
	return d
}

// events is nil, and so blocks, if there are none.
func (d *dirWatch) events() chan fsnotify.Event {
	if d.fs == nil {
		return nil
	}
	return d.fs.Events
}

func (d *dirWatch) errors() chan error {
	if d.fs == nil {
		return nil
	}
	return d.fs.Errors
}

func (d *dirWatch) close() {
	if d.fs != nil {
		d.fs.Close()
	}
}

// follow watches the directories that path depends on now, and no others.
func (d *dirWatch) follow(path string) {
	if d.fs == nil {
		return
	}
	want := pathDirs(path)
	for dir := range d.dirs {
		if !slices.Contains(want, dir) {
			// The error is that it is gone already.
			_ = d.fs.Remove(dir)
			delete(d.dirs, dir)
		}
	}
	for _, dir := range want {
		if d.dirs[dir] {
			continue
		}
		if err := d.fs.Add(dir); err != nil {
			d.log.Debug("cannot watch", "dir", dir, "err", err)
			continue
		}
		d.dirs[dir] = true
	}
}

// forget drops a watched directory that was itself moved or removed: its name may lead to another one now.
func (d *dirWatch) forget(e fsnotify.Event) {
	if d.dirs[e.Name] && e.Op.Has(fsnotify.Remove|fsnotify.Rename) {
		_ = d.fs.Remove(e.Name)
		delete(d.dirs, e.Name)
	}
}

// forgetAll makes follow watch everything anew.
func (d *dirWatch) forgetAll() {
	for dir := range d.dirs {
		_ = d.fs.Remove(dir)
		delete(d.dirs, dir)
	}
}

// maxLinks is how many symbolic links a path may lead through, as in Linux.
const maxLinks = 40

// pathDirs lists the directories in which something decides what file path leads to: the one with the file, the ones
// with each symbolic link on the way, or the last one that exists.
func pathDirs(path string) []string {
	abs, err := filepath.Abs(path)
	if err != nil {
		return nil
	}
	var dirs []string
	root := filepath.VolumeName(abs) + string(filepath.Separator)
	cur, rest := root, components(abs[len(filepath.VolumeName(abs)):])
	for links := 0; len(rest) > 0 && links <= maxLinks; {
		if rest[0] == ".." {
			cur, rest = filepath.Dir(cur), rest[1:]
			continue
		}
		next := filepath.Join(cur, rest[0])
		info, err := os.Lstat(next)
		if err == nil && info.Mode()&os.ModeSymlink == 0 && len(rest) > 1 {
			cur, rest = next, rest[1:]
			continue
		}
		if !slices.Contains(dirs, cur) {
			dirs = append(dirs, cur)
		}
		target, err := os.Readlink(next)
		if err != nil {
			return dirs // the file, or nothing yet
		}
		if filepath.IsAbs(target) {
			cur = root
		}
		rest = append(components(target), rest[1:]...)
		links++
	}
	return dirs
}

// components splits a path into its names.
func components(path string) []string {
	return slices.DeleteFunc(strings.Split(filepath.ToSlash(path), "/"), func(s string) bool { return s == "" || s == "." })
}

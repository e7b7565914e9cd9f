package osconfig

import (
	"log/slog"
	"path/filepath"
	"slices"
	"strings"

	"github.com/fsnotify/fsnotify"
)

// watcher tells of events that concern the files that a path leads through. It watches their directories, since a
// watch on a file stays with the old one when a new one takes its name, and the file itself, since one that is mounted
// makes no events in the directory that it is mounted in.
type watcher struct {
	disk  disk
	fs    *fsnotify.Watcher // nil if the system gives us none; then looking now and then has to do
	log   *slog.Logger
	paths []string // what is watched
	names []string // the files that matter
	more  []string // the directories in which everything does
}

func newWatcher(d disk, log *slog.Logger) *watcher {
	fs, err := fsnotify.NewWatcher()
	if err != nil {
		log.Warn("changes of the machine's DNS are seen late: no file events", "err", err)
		fs = nil
	}
	return &watcher{disk: d, fs: fs, log: log}
}

// events blocks where there are none.
func (w *watcher) events() chan fsnotify.Event {
	if w.fs == nil {
		return nil
	}
	return w.fs.Events
}

func (w *watcher) errors() chan error {
	if w.fs == nil {
		return nil
	}
	return w.fs.Errors
}

func (w *watcher) close() {
	if w.fs != nil {
		_ = w.fs.Close() // nothing was written
	}
}

// concerns reports whether an event is about a file that matters, not about a neighbour or about who reads it.
func (w *watcher) concerns(e fsnotify.Event) bool {
	if !e.Op.Has(fsnotify.Create | fsnotify.Write | fsnotify.Remove | fsnotify.Rename) {
		return false
	}
	if slices.Contains(w.more, filepath.Dir(e.Name)) {
		return true
	}
	// A directory on the way to a file concerns the file: it may appear, or be replaced.
	return slices.ContainsFunc(w.names, func(name string) bool {
		return name == e.Name || strings.HasPrefix(name, e.Name+string(filepath.Separator))
	})
}

// follow watches what decides where the trail leads. Each is watched anew: a name may stand for another directory or
// file by now.
//
// In the directories that more names everything matters.
func (w *watcher) follow(t trail, more []string) {
	if w.fs == nil {
		return
	}
	for _, path := range w.paths {
		_ = w.fs.Remove(path) // it may be gone, and its watch with it
	}
	w.paths, w.names = nil, []string{w.disk.real(confPath), w.disk.real(t.end)}
	for _, hop := range t.hops {
		w.names = appendNew(w.names, w.disk.real(hop))
	}
	for _, dir := range append([]string{filepath.Dir(confPath)}, t.dirs...) {
		w.add(w.disk.real(dir))
	}
	w.add(w.disk.real(confPath))
	w.more = nil
	for _, dir := range more {
		w.add(w.disk.real(dir))
		w.more = append(w.more, w.disk.real(dir))
	}
}

func (w *watcher) add(path string) {
	if slices.Contains(w.paths, path) {
		return
	}
	if err := w.fs.Add(path); err != nil {
		w.log.Debug("cannot watch", "path", path, "err", err)
		return
	}
	w.paths = append(w.paths, path)
}

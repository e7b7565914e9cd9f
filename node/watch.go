package node

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"time"
)

// watcher follows a map file: however it is replaced, by whichever link of a chain, and also when it is created later
// or goes away for a while. Both functions are called from Run's goroutine.
type watcher struct {
	Path      string
	Map       *Map         // the map in use when Run starts; nil if there is none
	OnMap     func(*Map)   // a new valid map; or the one in use, once the file says again what it says
	OnProblem func(error)  // the file cannot be used, and the last good map stays; said once for each such state
	Logger    *slog.Logger // nil discards

	dirs    *dirWatch
	present bool   // the file has been there
	said    string // the problem that was said last and still holds
	seen    os.FileInfo
}

// How long to wait. Editors and copies write in several steps, so a change counts once it has been quiet for settle,
// but never later than settleMost; what then cannot be read may still be half-written, and is reported only after
// quiet. All lie below the 200 ms within which a change is to be live.
const (
	settle     = 40 * time.Millisecond
	settleMost = 120 * time.Millisecond
	quiet      = 60 * time.Millisecond
)

// pollEvery catches what no event tells: file systems without events, and directories replaced above the watched ones.
const pollEvery = 5 * time.Second

// Run watches until ctx ends and then returns nil.
func (w *watcher) Run(ctx context.Context) error {
	if w.Logger == nil {
		w.Logger = slog.New(slog.DiscardHandler)
	}
	w.present = w.Map != nil && w.Map.name == w.Path
	w.dirs = newDirWatch(w.Path, w.Logger)
	defer w.dirs.close()
	poll := time.NewTicker(pollEvery)
	defer poll.Stop()
	b := newBurst()
	defer b.timer.Stop()
	b.event() // whatever changed between the first reading and now
	for {
		select {
		case <-ctx.Done():
			return nil
		case e := <-w.dirs.events():
			w.dirs.forget(e)
			b.event()
		case err := <-w.dirs.errors():
			// Mostly an overflow of the queue: something happened.
			w.Logger.Warn("watching the map", "path", w.Path, "err", err)
			b.event()
		case <-poll.C:
			if w.moved() {
				w.dirs.forgetAll()
				b.event()
			}
		case <-b.timer.C:
			w.check(b)
		}
	}
}

// moved reports whether the file is another one than when it was read last.
func (w *watcher) moved() bool {
	info, err := os.Stat(w.Path)
	if err != nil || w.seen == nil {
		return (err == nil) != (w.seen != nil)
	}
	return !sameState(info, w.seen)
}

func sameState(a, b os.FileInfo) bool {
	return os.SameFile(a, b) && a.Size() == b.Size() && a.ModTime().Equal(b.ModTime())
}

// check reads the file and tells what came of it, or waits on if it may not be complete.
func (w *watcher) check(b *burst) {
	w.dirs.follow(w.Path) // before reading: what changes afterwards is an event again
	data, err := w.read()
	if errors.Is(err, fs.ErrNotExist) && !w.present {
		b.end()
		return
	}
	if err == nil && w.Map != nil && sha256.Sum256(data) == w.Map.digest {
		b.end()
		w.back()
		return
	}
	var m *Map
	if err == nil {
		m, err = parseMap(w.Path, data)
	}
	switch {
	case errors.Is(err, errChanging):
		b.event()
		return
	case err != nil:
		if !b.wait() {
			w.problem(err)
		}
		return
	}
	b.end()
	w.Map, w.said = m, ""
	w.OnMap(m)
}

// back is called when the file holds what is in use: worth saying only if it did not before.
func (w *watcher) back() {
	if w.said != "" {
		w.said = ""
		w.OnMap(w.Map)
	}
}

func (w *watcher) problem(err error) {
	if errors.Is(err, fs.ErrNotExist) {
		err = hinted(nil, fmt.Errorf("%s is gone; the last good map stays in use: %w", w.Path, err), "put the file back")
	}
	if text := err.Error(); text != w.said {
		w.said = text
		w.OnProblem(err)
	}
}

// errChanging says that somebody wrote to the file while it was read, so that it must be read again.
var errChanging = errors.New("changing while it is read")

// read reads the file, unless it changes meanwhile.
func (w *watcher) read() ([]byte, error) {
	before, err := os.Stat(w.Path)
	if err != nil {
		w.seen = nil
		return nil, fmt.Errorf("reading %s: %w", w.Path, errors.Unwrap(err))
	}
	w.seen, w.present = before, true
	data, err := readFile(w.Path, maxMap)
	if err != nil {
		return nil, err
	}
	if after, err := os.Stat(w.Path); err != nil || !sameState(before, after) {
		return nil, fmt.Errorf("reading %s: %w", w.Path, errChanging)
	}
	return data, nil
}

// burst is a run of events that belong together.
type burst struct {
	timer       *time.Timer // fires when the file is to be looked at
	first, last time.Time   // of its events; zero: none is under way
}

func newBurst() *burst {
	t := time.NewTimer(time.Hour)
	t.Stop()
	return &burst{timer: t}
}

// event notes that something happened to the file.
func (b *burst) event() {
	b.last = time.Now()
	if b.first.IsZero() {
		b.first = b.last
	}
	b.timer.Reset(max(0, min(settle, settleMost-b.last.Sub(b.first))))
}

// end ends the burst.
func (b *burst) end() { b.first = time.Time{} }

// wait sets the timer for another look if the last event is not long ago, and otherwise ends the burst.
func (b *burst) wait() bool {
	b.end()
	left := quiet - time.Since(b.last)
	if left <= 0 {
		return false
	}
	b.timer.Reset(left)
	return true
}

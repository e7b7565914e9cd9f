package osconfig

import (
	"log/slog"
	"os"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/fsnotify/fsnotify"
)

func TestWhichEventsConcernTheFile(t *testing.T) {
	w := &watcher{
		names: []string{"/etc/resolv.conf", "/run/x/rc"},
		more:  []string{"/run/NetworkManager"},
	}
	for name, tt := range map[string]struct {
		event fsnotify.Event
		want  bool
	}{
		"it was written":                   {fsnotify.Event{Name: "/etc/resolv.conf", Op: fsnotify.Write}, true},
		"it was made":                      {fsnotify.Event{Name: "/etc/resolv.conf", Op: fsnotify.Create}, true},
		"it went":                          {fsnotify.Event{Name: "/etc/resolv.conf", Op: fsnotify.Remove}, true},
		"it was renamed":                   {fsnotify.Event{Name: "/etc/resolv.conf", Op: fsnotify.Rename}, true},
		"it was written and chmodded":      {fsnotify.Event{Name: "/etc/resolv.conf", Op: fsnotify.Write | fsnotify.Chmod}, true},
		"where it leads was written":       {fsnotify.Event{Name: "/run/x/rc", Op: fsnotify.Write}, true},
		"a directory on the way came":      {fsnotify.Event{Name: "/run/x", Op: fsnotify.Create}, true},
		"one further up":                   {fsnotify.Event{Name: "/run", Op: fsnotify.Rename}, true},
		"anything of a manager":            {fsnotify.Event{Name: "/run/NetworkManager/resolv.conf", Op: fsnotify.Create}, true},
		"it was chmodded alone":            {fsnotify.Event{Name: "/etc/resolv.conf", Op: fsnotify.Chmod}, false},
		"a neighbour was written":          {fsnotify.Event{Name: "/etc/passwd", Op: fsnotify.Write}, false},
		"a neighbour whose name begins so": {fsnotify.Event{Name: "/run/x/r", Op: fsnotify.Write}, false},
		"what is made ready":               {fsnotify.Event{Name: "/etc/.resolv.conf.meshdns", Op: fsnotify.Create}, false},
		"below a manager's directories":    {fsnotify.Event{Name: "/run/NetworkManager/devices/1", Op: fsnotify.Create}, false},
	} {
		if got := w.concerns(tt.event); got != tt.want {
			t.Errorf("%s: got %t", name, got)
		}
	}
}

func TestWhatIsWatchedFollowsTheLink(t *testing.T) {
	r := newRig(t)
	shapes()["symlink-rel"](r)
	r.write("run/NetworkManager/x", "")
	w := newWatcher(r.opt.machine.disk, slog.New(slog.DiscardHandler))
	defer w.close()
	watched := func(more ...string) []string {
		t.Helper()
		file, err := disk{}.capture(r.path("etc/resolv.conf"))
		r.must(err)
		trail, _ := r.opt.machine.disk.leads(file)
		w.follow(trail, more)
		var list []string
		for _, path := range w.fs.WatchList() {
			list = append(list, strings.TrimPrefix(path, r.root))
		}
		slices.Sort(list)
		return list
	}
	if got, want := watched("/run/NetworkManager", "/run/none"), []string{"/etc", "/etc/resolv.conf", "/run/NetworkManager", "/run/x"}; !slices.Equal(got, want) {
		t.Errorf("watched: %q, want %q", got, want)
	}
	r.replace("etc/resolv.conf", upstreamConf)
	if got, want := watched(), []string{"/etc", "/etc/resolv.conf"}; !slices.Equal(got, want) {
		t.Errorf("once it is a file: %q, want %q", got, want)
	}
}

func TestWithoutFileEventsNothingIsWaitedFor(t *testing.T) {
	w := &watcher{}
	w.follow(trail{}, []string{"/run"})
	w.close()
	if w.events() != nil || w.errors() != nil || len(w.paths) > 0 {
		t.Errorf("got %v, %v, %q", w.events(), w.errors(), w.paths)
	}
}

func TestADirectoryOnTheWayThatAppearsIsSeen(t *testing.T) {
	w := watch(t, func(r *rig) { r.link("../run/a/b/rc", "etc/resolv.conf") })
	w.must(os.MkdirAll(w.path("ready/b"), 0o755))
	w.write("ready/b/rc", "nameserver 198.51.100.2\n")
	w.must(os.Rename(w.path("ready"), w.path("run/a"))) // at once, with all that is in it
	w.learns("198.51.100.2:53")
}

// A writer that keeps a file without servers open is waited for, and not for ever.
func TestAWriterIsWaitedForAWhile(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := &Manager{}
		for _, tt := range []struct {
			pass time.Duration
			want bool
		}{{0, true}, {writingTime - time.Millisecond, true}, {time.Millisecond, false}, {time.Hour, false}} {
			time.Sleep(tt.pass)
			if got := m.awaitWriter(); got != tt.want {
				t.Errorf("%s later: %t", tt.pass, got)
			}
		}
		m.writer = time.Time{} // it was done, and another one comes
		if !m.awaitWriter() {
			t.Error("the next one is not waited for")
		}
	})
}

func TestWhereAPathLeads(t *testing.T) {
	r := newRig(t)
	r.write("run/x/rc", "text")
	r.link("../run", "etc/way")
	r.link("way/x/rc", "etc/rel")
	r.link("/etc/rel", "etc/abs")
	r.link("../run/none/rc", "etc/dangling")
	r.link("../../../../../run/x/rc", "etc/above")
	for name, tt := range map[string]struct {
		path string
		end  string
		dirs []string
		text string // "": nothing is there
	}{
		"a file":              {"/run/x/rc", "/run/x/rc", []string{"/run/x"}, "text"},
		"a directory's link":  {"/etc/way/x/rc", "/run/x/rc", []string{"/etc", "/run/x"}, "text"},
		"a link to that":      {"/etc/rel", "/run/x/rc", []string{"/etc", "/run/x"}, "text"},
		"a link to that link": {"/etc/abs", "/run/x/rc", []string{"/etc", "/run/x"}, "text"},
		"nowhere":             {"/etc/dangling", "/run/none/rc", []string{"/etc", "/run"}, ""},
		"above the root":      {"/etc/above", "/run/x/rc", []string{"/etc", "/run/x"}, "text"},
		"dots":                {"/etc/./../run//x/rc", "/run/x/rc", []string{"/run/x"}, "text"},
		"below a file":        {"/run/x/rc/more", "/run/x/rc/more", []string{"/run/x/rc"}, ""},
	} {
		t.Run(name, func(t *testing.T) {
			d := r.opt.machine.disk
			got, err := d.follow(tt.path)
			if got.end != tt.end || got.hops[0] != tt.path || !slices.Equal(got.dirs, tt.dirs) || (err == nil) != (tt.text != "") {
				t.Errorf("got %+v, %v; want %s, watched in %q", got, err, tt.end, tt.dirs)
			}
			data, _ := d.readThrough(tt.path)
			if string(data) != tt.text {
				t.Errorf("read %q, want %q", data, tt.text)
			}
		})
	}
	if data, err := r.opt.machine.disk.readThrough("/etc"); err == nil {
		t.Errorf("a directory reads %q", data)
	}
	if got := (disk{}).real("/etc/x"); got != "/etc/x" {
		t.Errorf("without a root: %q", got)
	}
}

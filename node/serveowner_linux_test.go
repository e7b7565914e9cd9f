package node

import (
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/meshdns/meshdns/funnel"
)

// S20: what somebody who is not root has served is opened with that user's rights.
func TestTargetsAreOpenedAsWhoMadeThem(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root to be somebody else")
	}
	dir := t.TempDir()
	secret := filepath.Join(dir, "secret")
	must(t, os.WriteFile(secret, []byte("root's"), 0o600), os.Chmod(dir, 0o755), os.Chmod(filepath.Dir(dir), 0o755))
	n := &Node{}
	uid, _ := nobody()
	var threads [2]int
	open := func(i int, e funnel.Entry) error {
		return n.asOwner(e, func() error {
			threads[i] = unix.Getuid()
			f, err := os.Open(secret)
			if err == nil {
				f.Close()
			}
			return err
		})
	}
	if err := open(0, funnel.Entry{Owner: uid}); !errors.Is(err, fs.ErrPermission) {
		t.Errorf("as nobody: %v", err)
	}
	if err := open(1, funnel.Entry{}); err != nil {
		t.Errorf("as root: %v", err)
	}
	if threads != [2]int{int(uid), 0} {
		t.Errorf("as users %v", threads)
	}
	// No thread that goes on has anything of it.
	tasks, err := os.ReadDir("/proc/self/task")
	must(t, err)
	for _, task := range tasks {
		status, err := os.ReadFile(filepath.Join("/proc/self/task", task.Name(), "status"))
		if errors.Is(err, fs.ErrNotExist) {
			continue // it has ended
		}
		var name string
		var real int
		_, _ = fmt.Sscanf(string(status), "Name:\t%s", &name)
		if i := lineAfter(string(status), "Uid:"); i != "" {
			_, _ = fmt.Sscan(i, &real)
		}
		if real == int(uid) && !errors.Is(err, fs.ErrNotExist) {
			soon(t, "the thread's end", func() bool {
				_, err := os.Stat(filepath.Join("/proc/self/task", task.Name()))
				return errors.Is(err, fs.ErrNotExist)
			})
		}
	}
}

// lineAfter is what follows a word at the beginning of a line.
func lineAfter(text, word string) string {
	for line := range strings.Lines(text) {
		if rest, ok := strings.CutPrefix(line, word); ok {
			return rest
		}
	}
	return ""
}

// S20: who may serve does so with files that he himself can open, and ends what is his alone.
func TestWhoMayServeIsNotRoot(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("only root can run a process as another user")
	}
	paths := servingPaths(t)
	cfg := servingConfig()
	cfg.Servers = []string{"nobody"}
	n := startNode(t, cfg, paths)
	for _, dir := range []string{filepath.Dir(paths.Socket), filepath.Dir(filepath.Dir(paths.Socket)), filepath.Dir(filepath.Dir(filepath.Dir(paths.Socket)))} {
		must(t, os.Chmod(dir, 0o755))
	}
	secret := filepath.Join(t.TempDir(), "secret")
	must(t, os.WriteFile(secret, []byte("root's"), 0o600))
	must(t, n.serveDone(t, textAt("/root", "root's")))
	uid, _ := nobody()
	who := caller{serves: true, uid: uid}
	stream := &serveStream{gone: true}
	req := serveRequest{Kind: "http", Path: "/secret", Target: secret}
	// Nobody cannot even learn whether the file exists, for its directory is root's.
	must(t, os.Chmod(filepath.Dir(secret), 0o700))
	if w, err := n.node.makeSession(t.Context(), req, who, stream); err != nil || w.served[0].Owner != uid {
		t.Errorf("%+v, %v", w, err)
	}
	req.Target = filepath.Join(filepath.Dir(secret), "nowhere")
	if _, err := n.node.makeSession(t.Context(), req, who, stream); err != nil {
		t.Errorf("what does not exist where it cannot look: %v", err)
	}
	mine, err := n.node.makeSession(t.Context(), textAt("/mine", "nobody's"), who, stream)
	must(t, err)
	if err := n.node.serving.add(mine); err == nil || !strings.Contains(err.Error(), "by another user") {
		t.Errorf("beside root's, with root's rights: %v", err)
	}
	mine.served[0].Port, mine.replace = 8080, true
	must(t, n.node.serving.add(mine), n.node.keepServed(mine))
	for _, e := range n.node.servedStatus(who).Entries {
		if (e.Target == "") != (e.Owner != uid) {
			t.Errorf("nobody is told %+v", e)
		}
	}
	r, err := http.NewRequestWithContext(t.Context(), "POST", pathServeOff, strings.NewReader(`{"all":true}`))
	must(t, err)
	if reply, err := n.node.serveOff(r, who); err != nil || len(reply.(serveOffReply).Ended) != 1 || len(n.urls(t)) != 1 {
		t.Errorf("%+v, %v, left %q", reply, err, n.urls(t))
	}
}

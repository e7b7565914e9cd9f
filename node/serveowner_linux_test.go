package node

import (
	"errors"
	"fmt"
	"io/fs"
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

package node

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

// lockState takes the state directory, which is made if need be, for this process alone. Another node that has it is
// errRunning with its process id. unlock gives it back.
func lockState(dir string) (unlock func(), err error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("making the state directory: %w", err)
	}
	path := filepath.Join(dir, "lock")
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fmt.Errorf("locking the state directory: %w", err)
	}
	held, err := lockFile(f)
	switch {
	case held:
		pid, _ := os.ReadFile(path) // only to be told
		f.Close()
		return nil, runningError("pid " + strings.TrimSpace(string(pid)) + ", state in " + dir)
	case errors.Is(err, errors.ErrUnsupported):
		// The control socket still tells nodes apart.
	case err != nil:
		f.Close()
		return nil, fmt.Errorf("locking %s: %w", path, err)
	}
	writePID(f)
	if list, err := filepath.Glob(filepath.Join(dir, unfinished)); err == nil {
		for _, name := range list {
			_ = os.Remove(name) // what a killed process was writing: it is in nobody's way, but may hold keys
		}
	}
	// The file stays: removing it would let one process lock the old file and another one the new.
	return func() { f.Close() }, nil
}

// writePID tells others who runs. It is no reason not to start that a full disk does not take it.
func writePID(f *os.File) {
	if f.Truncate(0) == nil {
		_, _ = f.WriteAt([]byte(strconv.Itoa(os.Getpid())+"\n"), 0)
	}
}

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
	if err := writePID(f); err != nil {
		f.Close()
		return nil, err
	}
	// The file stays: removing it would let one process lock the old file and another one the new.
	return func() { f.Close() }, nil
}

func writePID(f *os.File) error {
	if err := f.Truncate(0); err != nil {
		return fmt.Errorf("writing %s: %w", f.Name(), err)
	}
	if _, err := f.WriteAt([]byte(strconv.Itoa(os.Getpid())+"\n"), 0); err != nil {
		return fmt.Errorf("writing %s: %w", f.Name(), err)
	}
	return nil
}

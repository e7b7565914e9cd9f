package tunnel

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

const (
	journalName = "tunnel.json"
	lockName    = "tunnel.lock"
	maxJournal  = 64 << 10
)

// journal notes what is made on the machine before it is made, so that another process can remove it.
type journal struct {
	Version int    `json:"version"`
	Link    string `json:"link"`
	Kind    string `json:"kind"` // of the link, as `ip -d link` calls it: "wireguard", or "tun", which ends with its process
	// Sysctls are what stood in a file before, by its path. All of them are set to "1".
	Sysctls map[string]string `json:"sysctls,omitempty"`
}

const journalVersion = 1

// stateLock is held by the one process whose tunnel a state directory is of.
type stateLock struct {
	file *os.File
	dir  string
}

// lockState waits for nobody: that another process has the lock says that its tunnel is not an orphan.
func lockState(dir string) (*stateLock, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("making the state directory: %w", err)
	}
	f, err := os.OpenFile(filepath.Join(dir, lockName), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, fmt.Errorf("opening the tunnel's lock: %w", err)
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		_ = f.Close()
		if errors.Is(err, unix.EWOULDBLOCK) {
			return nil, &hintError{fmt.Errorf("the tunnel of %s belongs to a process that runs", dir), "end it with: meshdns down"}
		}
		return nil, fmt.Errorf("locking %s: %w", f.Name(), err)
	}
	return &stateLock{file: f, dir: dir}, nil
}

func (l *stateLock) release() error { return l.file.Close() }

// load reads the journal; nil if there is none.
func (l *stateLock) load() (*journal, error) {
	f, err := os.Open(filepath.Join(l.dir, journalName))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("opening the tunnel's journal: %w", err)
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, maxJournal))
	if err != nil {
		return nil, fmt.Errorf("reading the tunnel's journal: %w", err)
	}
	j, err := parseJournal(data)
	if err != nil {
		return nil, &hintError{err, "it is not as meshdns wrote it; look at it, then: rm " + f.Name()}
	}
	return j, nil
}

// parseJournal checks what it reads: what is removed by it is removed as root.
func parseJournal(data []byte) (*journal, error) {
	var j journal
	if err := json.Unmarshal(data, &j); err != nil {
		return nil, fmt.Errorf("reading the tunnel's journal: %w", err)
	}
	if j.Version != journalVersion {
		return nil, fmt.Errorf("the tunnel's journal has version %d, not %d", j.Version, journalVersion)
	}
	if !linkName(j.Link) || j.Link == "" {
		return nil, fmt.Errorf("the tunnel's journal names a link %q", j.Link)
	}
	for path := range j.Sysctls {
		if path != srcValidMark {
			return nil, fmt.Errorf("the tunnel's journal names a file %q", path)
		}
	}
	return &j, nil
}

// store writes the journal, all of it or nothing, and returns when it would outlive a power cut.
func (l *stateLock) store(j *journal) error {
	data, err := json.Marshal(j)
	if err != nil {
		return fmt.Errorf("writing the tunnel's journal: %w", err)
	}
	path := filepath.Join(l.dir, journalName)
	if err := writeSynced(path+".new", data); err != nil {
		return fmt.Errorf("writing the tunnel's journal: %w", err)
	}
	if err := os.Rename(path+".new", path); err != nil {
		return fmt.Errorf("writing the tunnel's journal: %w", err)
	}
	return syncDir(l.dir)
}

// drop removes the journal: nothing of ours is left.
func (l *stateLock) drop() error {
	err := os.Remove(filepath.Join(l.dir, journalName))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("removing the tunnel's journal: %w", err)
	}
	return syncDir(l.dir)
}

func writeSynced(path string, data []byte) error {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	return errors.Join(err, f.Sync(), f.Close())
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return fmt.Errorf("opening the state directory: %w", err)
	}
	if err := errors.Join(d.Sync(), d.Close()); err != nil {
		return fmt.Errorf("syncing the state directory: %w", err)
	}
	return nil
}

//go:build unix

package certs

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
)

// syncDir makes a rename in dir outlive a power cut. Some file systems cannot, and say EINVAL.
func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	if err := d.Sync(); err != nil && !errors.Is(err, syscall.EINVAL) {
		return err
	}
	return nil
}

// point has the link at path point at target, in one step.
func point(path, target string) error {
	next := path + ".next"
	if err := os.Remove(next); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("pointing %s at %s: %w", path, target, err)
	}
	if err := os.Symlink(target, next); err != nil {
		return fmt.Errorf("pointing %s at %s: %w", path, target, err)
	}
	if err := os.Rename(next, path); err != nil {
		return fmt.Errorf("pointing %s at %s: %w", path, target, err)
	}
	return syncDir(filepath.Dir(path))
}

// pointed is what the link at path points at.
func pointed(path string) (string, error) { return os.Readlink(path) }

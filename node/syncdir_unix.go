//go:build unix

package node

import (
	"errors"
	"os"
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

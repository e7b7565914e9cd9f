//go:build !unix && !windows

package osconfig

import (
	"errors"
	"io/fs"
	"os"
	"time"
)

// There is no resolv.conf on these systems. Everything says so, and nothing is ever changed.

func ownerOf(fs.FileInfo) (uid, gid int, dev, ino uint64) { return 0, 0, 0, 0 }

func openNoFollow(path string, flags int) (*os.File, error) {
	return nil, &fs.PathError{Op: "open", Path: path, Err: errors.ErrUnsupported}
}

func lchown(path string, uid, gid int) error {
	return &fs.PathError{Op: "chown", Path: path, Err: errors.ErrUnsupported}
}

func setMtime(path string, t time.Time) error {
	return &fs.PathError{Op: "utimes", Path: path, Err: errors.ErrUnsupported}
}

func syncDir(dir string) error { return errors.ErrUnsupported }

func writable(path string) error { return errors.ErrUnsupported }

func tryLock(f *os.File) (held bool, err error) { return false, errors.ErrUnsupported }

func isReadOnly(error) bool  { return false }
func isImmutable(error) bool { return false }
func isDenied(error) bool    { return false }

package osconfig

import (
	"errors"
	"io/fs"
	"os"
	"time"

	"golang.org/x/sys/windows"
)

// The journal is a file here as elsewhere; there are no owners, and no resolv.conf.

func ownerOf(fs.FileInfo) (uid, gid int, dev, ino uint64) { return 0, 0, 0, 0 }

// openNoFollow opens a file that is no link.
func openNoFollow(path string, flags int) (*os.File, error) {
	info, err := os.Lstat(path)
	if err == nil && info.Mode()&(fs.ModeSymlink|fs.ModeIrregular) != 0 {
		return nil, &fs.PathError{Op: "open", Path: path, Err: windows.ERROR_CANT_ACCESS_FILE}
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	return os.OpenFile(path, flags, 0o600)
}

func lchown(string, int, int) error { return nil }

func setMtime(path string, t time.Time) error { return os.Chtimes(path, t, t) }

// syncDir has nothing to do: NTFS journals names, and a directory cannot be flushed without the right to back up.
func syncDir(string) error { return nil }

func writable(string) error { return nil }

// tryLock takes the lock, or says that it is held.
func tryLock(f *os.File) (held bool, err error) {
	const flags = windows.LOCKFILE_EXCLUSIVE_LOCK | windows.LOCKFILE_FAIL_IMMEDIATELY
	err = windows.LockFileEx(windows.Handle(f.Fd()), flags, 0, 1, 0, &windows.Overlapped{OffsetHigh: 1})
	if errors.Is(err, windows.ERROR_LOCK_VIOLATION) {
		return true, nil
	}
	return false, err
}

func isReadOnly(error) bool   { return false }
func isImmutable(error) bool  { return false }
func isDenied(err error) bool { return errors.Is(err, fs.ErrPermission) }

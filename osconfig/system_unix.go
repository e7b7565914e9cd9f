//go:build unix

package osconfig

import (
	"errors"
	"io/fs"
	"os"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// ownerOf is who owns a file, and which file it is.
func ownerOf(info fs.FileInfo) (uid, gid int, dev, ino uint64) {
	st, ok := info.Sys().(*syscall.Stat_t)
	if !ok {
		return 0, 0, 0, 0
	}
	return int(st.Uid), int(st.Gid), uint64(st.Dev), uint64(st.Ino)
}

// openNoFollow opens a file, not what a link in its last element leads to, and never blocks on a pipe. A new file is
// the owner's alone.
func openNoFollow(path string, flags int) (*os.File, error) {
	return os.OpenFile(path, flags|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0o600)
}

func lchown(path string, uid, gid int) error { return os.Lchown(path, uid, gid) }

// setMtime sets the time of a file or link itself.
func setMtime(path string, t time.Time) error {
	ts, err := unix.TimeToTimespec(t)
	if err != nil {
		return &fs.PathError{Op: "utimes", Path: path, Err: err}
	}
	if err := unix.UtimesNanoAt(unix.AT_FDCWD, path, []unix.Timespec{ts, ts}, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return &fs.PathError{Op: "utimes", Path: path, Err: err}
	}
	return nil
}

// syncDir makes a change of names in dir outlive a power cut. Some file systems cannot, and say EINVAL.
func syncDir(dir string) error {
	f, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := f.Sync(); err != nil && !errors.Is(err, unix.EINVAL) {
		return err
	}
	return nil
}

// writable says what would keep this process from writing to path: EROFS, EPERM (immutable), EACCES; nil if nothing.
func writable(path string) error {
	return unix.Access(path, unix.W_OK)
}

// tryLock takes the lock, or says that it is held.
func tryLock(f *os.File) (held bool, err error) {
	err = unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
	if errors.Is(err, unix.EWOULDBLOCK) {
		return true, nil
	}
	return false, err
}

// isReadOnly, isImmutable and isDenied tell the kernel's reasons apart.
func isReadOnly(err error) bool  { return errors.Is(err, unix.EROFS) }
func isImmutable(err error) bool { return errors.Is(err, unix.EPERM) }
func isDenied(err error) bool    { return errors.Is(err, unix.EACCES) }

package osconfig

import (
	"os"

	"golang.org/x/sys/unix"
)

// nativeMode says that programs go by /etc/resolv.conf.
const nativeMode = modeDirect

// unseal is the command that makes a file changeable.
const unseal = "chattr -ia"

// Flags of a file (ioctl_iflags(2)).
const (
	flagImmutable = 0x10 // FS_IMMUTABLE_FL
	flagAppend    = 0x20 // FS_APPEND_FL
)

// readMounts lists this process's mounts.
func readMounts() ([]mount, error) {
	data, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return nil, err
	}
	return parseMounts(data), nil
}

// sealed reports whether a file or directory was made immutable or append-only (chattr +i, +a). A file system that has
// no such flags has nothing sealed.
func sealed(path string) bool {
	f, err := openNoFollow(path, os.O_RDONLY)
	if err != nil {
		return false
	}
	defer f.Close()
	flags, err := unix.IoctlGetUint32(int(f.Fd()), unix.FS_IOC_GETFLAGS)
	return err == nil && flags&(flagImmutable|flagAppend) != 0
}

// beingWritten reports whether a program has the file open for writing: the kernel grants a lease for reading only when
// nobody has. The lease ends as the file is closed.
func beingWritten(path string) bool {
	f, err := openNoFollow(path, os.O_RDONLY)
	if err != nil {
		return false
	}
	defer f.Close()
	_, err = unix.FcntlInt(f.Fd(), unix.F_SETLEASE, unix.F_RDLCK)
	return err == unix.EAGAIN
}

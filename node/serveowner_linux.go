package node

import (
	"fmt"
	"os/user"
	"runtime"
	"strconv"
	"unsafe"

	"golang.org/x/sys/unix"
)

// actAs calls do with the rights of another user: its number, its groups, and no capabilities. On Linux each thread has rights of its
// own; the one that takes the user's is not used for anything else, and ends with the call.
func actAs(uid uint32, do func() error) error {
	group, groups, err := groupsOf(uid)
	if err != nil {
		return err
	}
	done := make(chan error, 1)
	var start func()
	start = func() {
		runtime.LockOSThread() // and never unlocked: the runtime ends the thread, and clones none from it
		if unix.Gettid() == unix.Getpid() {
			// The process's first thread cannot end, and would go on to be looked at as the whole process. This one waits instead.
			next := make(chan struct{})
			go func() {
				defer close(next)
				start()
			}()
			<-next
			runtime.UnlockOSThread()
			return
		}
		err := become(uid, group, groups)
		if err == nil {
			err = do()
		}
		done <- err
	}
	go start()
	return <-done
}

// groupsOf are a user's groups, the first one apart.
func groupsOf(uid uint32) (group uint32, groups []uint32, err error) {
	u, err := user.LookupId(strconv.FormatUint(uint64(uid), 10))
	if err != nil {
		return 0, nil, fmt.Errorf("looking up user %d: %w", uid, err)
	}
	ids, err := u.GroupIds()
	if err != nil {
		return 0, nil, fmt.Errorf("looking up the groups of user %d: %w", uid, err)
	}
	number := func(s string) uint32 {
		n, perr := strconv.ParseUint(s, 10, 32)
		if perr != nil {
			err = fmt.Errorf("reading the group %.40q of user %d: %w", s, uid, perr)
		}
		return uint32(n)
	}
	group = number(u.Gid)
	for _, id := range ids {
		groups = append(groups, number(id))
	}
	return group, groups, err
}

// become gives this thread a user's rights. The calls of package syscall would change all threads.
func become(uid, group uint32, groups []uint32) error {
	list := append([]uint32{group}, groups...)
	if _, _, errno := unix.RawSyscall(unix.SYS_SETGROUPS, uintptr(len(list)), uintptr(unsafe.Pointer(&list[0])), 0); errno != 0 {
		return fmt.Errorf("taking the groups of user %d: %w", uid, errno)
	}
	if _, _, errno := unix.RawSyscall(unix.SYS_SETRESGID, uintptr(group), uintptr(group), uintptr(group)); errno != 0 {
		return fmt.Errorf("taking the group of user %d: %w", uid, errno)
	}
	// Without root's number the capabilities go too (capabilities(7)).
	if _, _, errno := unix.RawSyscall(unix.SYS_SETRESUID, uintptr(uid), uintptr(uid), uintptr(uid)); errno != 0 {
		return fmt.Errorf("becoming user %d: %w", uid, errno)
	}
	return nil
}

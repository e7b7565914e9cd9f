package osconfig

import (
	"context"
	"os"
	"time"
)

// lockPoll is how often a lock that another process has is tried again: the kernel has no wait with a limit.
const lockPoll = 10 * time.Millisecond

// lockFile takes the exclusive lock on f, waiting for it until ctx ends. The lock ends with the process, however that
// ends.
func lockFile(ctx context.Context, f *os.File) error {
	tick := time.NewTicker(lockPoll)
	defer tick.Stop()
	for {
		held, err := tryLock(f)
		if !held {
			return err
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-tick.C:
		}
	}
}

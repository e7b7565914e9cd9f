package node

import (
	"context"
	"fmt"
	"math"
	"strconv"
	"time"
)

// watchdogTime is how often the service manager wants to hear that all is well, from the value of WATCHDOG_USEC
// (sd_watchdog_enabled(3)); 0: it does not.
func watchdogTime(usec string) (time.Duration, error) {
	if usec == "" {
		return 0, nil
	}
	n, err := strconv.ParseInt(usec, 10, 64)
	if err != nil || n <= 0 || n > math.MaxInt64/int64(time.Microsecond) {
		return 0, fmt.Errorf("reading WATCHDOG_USEC: %q is no time", usec)
	}
	return time.Duration(n) * time.Microsecond, nil
}

// startWatchdog tells the service manager that all is well for as long as the stub answers. Once it does not the node
// is killed and started again, and its journal gives the machine's DNS back in between.
func (n *Node) startWatchdog(context.Context) error {
	every, err := watchdogTime(n.opt.Watchdog)
	if err != nil || every == 0 || n.opt.Notify == "" {
		return err
	}
	n.services.run("watchdog", func(ctx context.Context) error {
		n.feedWatchdog(ctx, every/3)
		return nil
	})
	return nil
}

func (n *Node) feedWatchdog(ctx context.Context, every time.Duration) {
	tick := time.NewTicker(every)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		m, _ := n.tailnet.current()
		if err := selfCheck(ctx, n.stub, m.Zone()); err != nil {
			n.log.Error("the stub does not answer, so the watchdog is not told that it does", "err", err)
			continue
		}
		n.notify("WATCHDOG=1")
	}
}

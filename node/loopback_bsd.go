//go:build darwin || dragonfly || freebsd || netbsd || openbsd

package node

import (
	"context"
	"fmt"
	"net/netip"
	"os/exec"
	"strings"
	"time"
)

// ifconfigTimeout bounds a run of ifconfig, which makes one system call.
const ifconfigTimeout = 2 * time.Second

// machineLoopback is this machine's; nil if it has all of 127.0.0.0/8.
func machineLoopback() *loopbackLink {
	run := func(add bool) func(context.Context, netip.Addr) error {
		return func(ctx context.Context, addr netip.Addr) error {
			ctx, cancel := context.WithTimeout(ctx, ifconfigTimeout)
			defer cancel()
			args := loopbackArgs(addr, add)
			out, err := exec.CommandContext(ctx, "/sbin/ifconfig", args...).CombinedOutput()
			if err != nil {
				return fmt.Errorf("running ifconfig %s: %w (%.200s)", strings.Join(args, " "), err, out)
			}
			return nil
		}
	}
	return &loopbackLink{add: run(true), drop: run(false)}
}

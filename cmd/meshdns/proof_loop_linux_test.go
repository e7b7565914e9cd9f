package main_test

import (
	"context"
	"fmt"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"
)

// maxDeadAsked is how many questions one question of a program may become where the only upstream is dead: glibc asks
// twice, a manager between repeats each some times, and so do we. A loop makes thousands of it.
const maxDeadAsked = 60

// askedTime is how long one program is let to ask: systemd-resolved would go on for half a minute, and a loop turns
// thousands of times in a second.
const askedTime = 6 * time.Second

// deadUpstream takes questions at the lab's upstream address, prints a line for each, and answers none.
const deadUpstream = `
import socket
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
s.bind(("192.0.2.53", 53))
print("ready", flush=True)
while True:
    s.recvfrom(4096)
    print("asked", flush=True)
`

// proveNoLoop asks for one name from outside where the upstream is dead, in every way that resolv.conf may lead to it.
func proveNoLoop(styles ...string) func(t *testing.T) {
	return func(t *testing.T) {
		writeOtherConfig(t)
		must(t, "pkill", "-f", "dnsmasq.*(--listen-address=192.0.2.53|--dhcp-optsfile)")
		dead := background(t, "ip", "netns", "exec", "lan", "python3", "-c", deadUpstream)
		eventually(t, readyTimeout, "the dead upstream", func() error {
			if !strings.Contains(dead.log.String(), "ready") {
				return fmt.Errorf("it printed %q", dead.log.String())
			}
			return nil
		})
		for _, style := range append([]string{""}, styles...) {
			t.Run("style "+style, func(t *testing.T) {
				switch style {
				case "":
				case "chained": // through connman's proxy, in place of what it asks
					writeFile(t, "/etc/meshdns/meshdns.yaml", strings.Replace(otherConfig, "dns: {", `dns: {upstreams: ["127.0.0.1"], `, 1))
				case "foreign":
					must(t, "rm", "-f", resolvConf)
					writeFile(t, resolvConf, "nameserver 192.0.2.53\n")
				default:
					must(t, "ln", "-sfn", style, resolvConf)
				}
				d, status := up(t)
				before := strings.Count(dead.log.String(), "asked")
				start := time.Now()
				name := fmt.Sprintf("x%d.example.org", start.UnixNano())
				// Both ways that programs ask, each once.
				for _, args := range [][]string{{"getent", "ahostsv4", name}, {"dig", "+tries=1", "+time=5", name}} {
					ctx, cancel := context.WithTimeout(t.Context(), askedTime)
					_ = exec.CommandContext(ctx, args[0], args[1:]...).Run() // it finds nothing
					cancel()
				}
				asked := strings.Count(dead.log.String(), "asked") - before
				t.Logf("%s: the upstream was asked %d times in %s", status.DNS.Takeover.Mode, asked, time.Since(start).Round(time.Millisecond))
				if asked == 0 || asked > maxDeadAsked {
					t.Errorf("the upstream was asked %d times, want some, and at most %d", asked, maxDeadAsked)
				}
				for _, upstream := range ready(t, d, "/run/meshdns/meshdns.sock").DNS.Upstreams {
					if upstream.State == "loop" {
						t.Errorf("%s is taken for a loop", upstream.Upstream)
					}
				}
				d.end(t, syscall.SIGTERM)
			})
		}
	}
}

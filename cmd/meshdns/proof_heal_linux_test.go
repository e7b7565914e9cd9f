package main_test

import (
	"fmt"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
)

// resolvedServers is what systemd-resolved says over D-Bus of all its servers.
func resolvedServers(t *testing.T) string {
	t.Helper()
	return must(t, "busctl", "get-property", "org.freedesktop.resolve1", "/org/freedesktop/resolve1", "org.freedesktop.resolve1.Manager", "DNS")
}

// ourServers counts those of them that are the node's.
func ourServers(t *testing.T) int {
	t.Helper()
	return strings.Count(resolvedServers(t), " 4 127 0 0 78")
}

// takeFile has a node hold a resolv.conf that nobody manages, and then systemd-resolved come up and take the node for
// its own server: it has read the file. before is what lies there before the node: a file, or nothing at all.
func takeFile(t *testing.T, before string, stop, start func()) *daemon {
	t.Helper()
	stop()
	must(t, "rm", "-f", resolvConf)
	if before != "" {
		writeFile(t, resolvConf, before)
	}
	d, status := up(t)
	if status.DNS.Takeover.State != "on" || status.DNS.Takeover.Mode != "direct" {
		t.Fatalf("takeover is %s (%s): %s", status.DNS.Takeover.State, status.DNS.Takeover.Mode, status.DNS.Takeover.Reason)
	}
	d.cmd.Process.Signal(syscall.SIGSTOP) // so that it does not put the file back before that is read
	start()
	eventually(t, readyTimeout, "systemd-resolved to take the node for its own server", func() error {
		_ = exec.CommandContext(t.Context(), "timeout", "1", "resolvectl", "query", "www.example.net").Run() // what it finds does not matter
		if ourServers(t) == 0 {
			return fmt.Errorf("it has %s", resolvedServers(t))
		}
		return nil
	})
	return d
}

// proveResolvedIsHealed has systemd-resolved appear while resolv.conf names the node, where no systemd runs.
func proveResolvedIsHealed(t *testing.T) {
	writeOtherConfig(t)
	stop := func() {
		_, _ = output(t, "pkill", "-9", "-x", "systemd-resolve") // it may not run
		eventually(t, readyTimeout, "systemd-resolved to be gone", func() error {
			if out, code := output(t, "busctl", "status", "org.freedesktop.resolve1"); code == 0 {
				return fmt.Errorf("it is on the bus: %s", out)
			}
			return nil
		})
	}
	start := func() {
		background(t, "/lib/systemd/systemd-resolved")
		eventually(t, readyTimeout, "systemd-resolved", func() error {
			if out, code := output(t, "busctl", "status", "org.freedesktop.resolve1"); code != 0 {
				return fmt.Errorf("it is not on the bus: %s", out)
			}
			return nil
		})
		must(t, "busctl", "call", "org.freedesktop.resolve1", "/org/freedesktop/resolve1", "org.freedesktop.resolve1.Manager",
			"SetLinkDNS", "ia(iay)", ifindex(t, "eth0"), "1", "2", "4", "192", "0", "2", "53")
	}
	t.Run("the node moves to it", func(t *testing.T) {
		d := takeFile(t, "nameserver "+upstreamAddr+"\n", stop, start)
		d.cmd.Process.Signal(syscall.SIGCONT)
		status := ready(t, d, "/run/meshdns/meshdns.sock")
		eventually(t, readyTimeout, "the node to move", func() error {
			status = ready(t, d, "/run/meshdns/meshdns.sock")
			if status.DNS.Takeover.Mode != "resolved" || status.DNS.Takeover.State != "on" {
				return fmt.Errorf("it is %s (%s)", status.DNS.Takeover.State, status.DNS.Takeover.Mode)
			}
			return nil
		})
		if n := ourServers(t); n != 1 {
			t.Errorf("systemd-resolved asks the node in %d ways, want its link's alone: %s", n, resolvedServers(t))
		}
		for _, problem := range status.Problems {
			if strings.Contains(problem, "asks us for all names") {
				t.Errorf("problem: %s", problem)
			}
		}
		if err := libc(t, nasName, nasAddr); err != nil {
			t.Error(err)
		}
		d.end(t, syscall.SIGTERM)
		if n := ourServers(t); n != 0 {
			t.Errorf("at the end systemd-resolved has %s", resolvedServers(t))
		}
	})
	t.Run("dns restore", func(t *testing.T) {
		d := takeFile(t, "nameserver "+upstreamAddr+"\n", stop, start)
		d.kill()
		out := must(t, program, "dns", "restore")
		t.Logf("dns restore printed:\n%s", out)
		if n := ourServers(t); n != 0 || !strings.Contains(out, "systemd-resolved had our address") || !strings.Contains(out, "nameserver "+upstreamAddr+" answers") {
			t.Errorf("systemd-resolved has %s, and dns restore printed:\n%s", resolvedServers(t), out)
		}
	})
	t.Run("dns restore where it keeps the node", func(t *testing.T) {
		d := takeFile(t, "", stop, start)
		d.kill()
		out, code := output(t, program, "dns", "restore")
		if code != 6 || !strings.Contains(out, "left: systemd-resolved still asks [127.0.0.78] for all names") {
			t.Errorf("exit code %d:\n%s", code, out)
		}
		if _, err := os.Lstat(resolvConf); err == nil {
			t.Error("resolv.conf is there, and was not")
		}
		stop() // which is what it says, where no systemd is
		start()
		if n := ourServers(t); n != 0 {
			t.Errorf("after a restart systemd-resolved has %s", resolvedServers(t))
		}
	})
}

// proveResolvedIsRestarted is that last case under a real systemd, which restarts systemd-resolved for us.
func proveResolvedIsRestarted(t *testing.T) {
	writeOtherConfig(t)
	must(t, "ip", "addr", "add", "198.51.100.1/32", "dev", "lo")
	stop := func() {
		must(t, "systemctl", "stop", "systemd-resolved")
		must(t, "systemctl", "reset-failed", "systemd-resolved") // which would not start more than five times in ten seconds
	}
	start := func() { must(t, "systemctl", "start", "systemd-resolved") }
	for name, back := range map[string]func(t *testing.T, d *daemon){
		"dns restore": func(t *testing.T, d *daemon) {
			d.kill()
			if out := must(t, program, "dns", "restore"); !strings.Contains(out, "was restarted") {
				t.Errorf("dns restore printed:\n%s", out)
			}
		},
		"the next start": func(t *testing.T, d *daemon) {
			d.kill()
			next, status := up(t)
			if status.DNS.Takeover.Mode != "resolved" || ourServers(t) != 1 {
				t.Errorf("takeover is %s (%s), systemd-resolved has %s", status.DNS.Takeover.State, status.DNS.Takeover.Mode, resolvedServers(t))
			}
			next.end(t, syscall.SIGTERM)
		},
		"SIGTERM": func(t *testing.T, d *daemon) {
			if err := d.cmd.Process.Signal(syscall.SIGCONT); err != nil {
				t.Fatal(err)
			}
			d.end(t, syscall.SIGTERM)
		},
	} {
		t.Run(name, func(t *testing.T) {
			d := takeFile(t, "", stop, start)
			back(t, d)
			if n := ourServers(t); n != 0 {
				t.Errorf("systemd-resolved has %s\n%s", resolvedServers(t), d.log.String())
			}
		})
	}
}

// ifindex is the number of a link.
func ifindex(t *testing.T, name string) string {
	t.Helper()
	text, err := os.ReadFile("/sys/class/net/" + name + "/ifindex")
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(string(text))
}

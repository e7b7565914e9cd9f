package main_test

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/meshdns/meshdns/node"
)

// The stub of these proofs: in the lab's sandboxes other programs hold 127.0.0.77.
const (
	otherStub    = "127.0.0.78:53"
	otherConfig  = proofConfig + "dns: {stub: \"" + otherStub + "\"}\n"
	roamedServer = "192.0.2.54"
	leaseTimeout = 60 * time.Second // dhcpcd probes the address for some seconds
)

func writeOtherConfig(t *testing.T) {
	writeFile(t, "/etc/meshdns/meshdns.yaml", otherConfig)
	writeFile(t, "/etc/meshdns/map.yaml", proofMap)
}

// proveLeaseIsLearnt runs the node beside a real DHCP client, which gets other nameservers after a while and overwrites
// resolv.conf with them: they are learnt, the stub is named again, and they are what is left at the end.
func proveLeaseIsLearnt(t *testing.T) {
	writeOtherConfig(t)
	d, status := up(t)
	if status.DNS.Takeover.State != "on" || !slices.Equal(status.DNS.Base, []string{upstreamAddr}) {
		t.Errorf("takeover is %s (%s), base %v", status.DNS.Takeover.State, status.DNS.Takeover.Reason, status.DNS.Base)
	}
	start := time.Now()
	eventually(t, leaseTimeout, "the new lease to be learnt", func() error {
		status = ready(t, d, "/run/meshdns/meshdns.sock")
		if !slices.Equal(status.DNS.Base, []string{roamedServer}) {
			return fmt.Errorf("base is %v", status.DNS.Base)
		}
		return nil
	})
	t.Logf("learnt %v after %s", status.DNS.Base, time.Since(start).Round(time.Millisecond))
	eventually(t, readyTimeout, "the stub to be named again", func() error { return libc(t, nasName, nasAddr) })
	if err := libc(t, outsideName, "192.0.2.99"); err != nil { // what the lab's server says of every name
		t.Error(err)
	}
	d.end(t, syscall.SIGTERM)
	text, err := os.ReadFile(resolvConf)
	if err != nil || !strings.Contains(string(text), "nameserver "+roamedServer+"\n") || strings.Contains(string(text), "127.0.0.78") {
		t.Errorf("at the end resolv.conf is %q, %v", text, err)
	}
	if !strings.Contains(d.log.String(), "changed the machine's DNS; ours is applied again") {
		t.Errorf("it does not say what happened:\n%s", d.log.String())
	}
}

// proveManagerAsksUs runs the node on a machine whose DNS a real manager manages. It is told to ask us, in its own way:
// every program finds names of the tailnet and from outside, and whatever way the node ends, the manager forgets it.
func proveManagerAsksUs(mode string) func(t *testing.T) {
	return func(t *testing.T) {
		writeOtherConfig(t)
		must(t, "ip", "addr", "add", "198.51.100.1/32", "dev", "lo") // glibc looks for no address of a kind that no link has
		before := managed(t)
		t.Logf("before: %s", before)
		for name, undo := range map[string]func(t *testing.T, d *daemon){
			"SIGTERM": func(t *testing.T, d *daemon) { d.end(t, syscall.SIGTERM) },
			"kill -9, dns restore": func(t *testing.T, d *daemon) {
				d.kill()
				must(t, program, "dns", "restore")
			},
			"kill -9, next start, SIGTERM": func(t *testing.T, d *daemon) {
				d.kill()
				next, status := up(t)
				checkManaged(t, mode, status.DNS)
				next.end(t, syscall.SIGTERM)
			},
			"dns restore, dns apply, down": func(t *testing.T, d *daemon) {
				must(t, program, "dns", "restore")
				if after := managed(t); after != before {
					t.Errorf("after dns restore:\n%s\nwant\n%s", after, before)
				}
				must(t, program, "dns", "apply")
				checkManaged(t, mode, ready(t, d, "/run/meshdns/meshdns.sock").DNS)
				must(t, program, "down")
			},
		} {
			t.Run(name, func(t *testing.T) {
				d, status := up(t)
				checkManaged(t, mode, status.DNS)
				undo(t, d)
				if after := managed(t); after != before {
					t.Errorf("it is not as it was\nbefore:\n%s\nafter:\n%s", before, after)
				}
				if err := libc(t, outsideName, "192.0.2.99"); err != nil && mode == "resolved" {
					t.Error(err) // the other labs have no server behind them
				}
			})
		}
	}
}

// checkManaged checks that programs find names through the manager.
func checkManaged(t *testing.T, mode string, dns node.DNSStatus) {
	t.Helper()
	if want := map[bool]string{true: "split", false: "all"}[mode == "resolved"]; dns.Takeover.Asks != want {
		t.Errorf("the machine asks for %q, want %q", dns.Takeover.Asks, want)
	}
	if dns.Takeover.State != "on" || dns.Takeover.Mode != mode || !slices.Equal(dns.Base, []string{upstreamAddr}) {
		t.Errorf("takeover is %s (%s): %s; base %v", dns.Takeover.State, dns.Takeover.Mode, dns.Takeover.Reason, dns.Base)
	}
	// Short names too, unless the network's own search domain has every name there is, and resolved asks it as well.
	names := []string{nasName, "nas"}
	if data, err := os.ReadFile(resolvConf); err == nil && mode == "resolved" && strings.Contains(string(data), "corp.example") {
		names = names[:1]
	}
	for _, name := range names {
		if err := libc(t, name, nasAddr); err != nil {
			t.Error(err)
		}
		if out := must(t, "dig", "+short", "+search", name); out != nasAddr+"\n" {
			t.Errorf("dig +search %s printed %q", name, out)
		}
	}
	if mode == "resolved" {
		if err := libc(t, outsideName, "192.0.2.99"); err != nil {
			t.Error(err)
		}
	}
}

// managed is the machine's DNS in words: what programs read, and what managers say of themselves, less what they name
// by numbers that change.
func managed(t *testing.T) string {
	t.Helper()
	var b strings.Builder
	b.WriteString(snapshot(t))
	if text, err := os.ReadFile(resolvConf); err == nil {
		b.Write(text)
	}
	if _, err := exec.LookPath("resolvectl"); err == nil {
		out, _ := output(t, "resolvectl", "status", "--no-pager")
		for line := range strings.Lines(out) {
			if line = strings.Join(strings.Fields(line), " "); !strings.HasPrefix(line, "Current ") {
				b.WriteString(line + "\n") // what is current changes by itself
			}
		}
	}
	for _, dir := range []string{"/run/resolvconf/interface", "/run/resolvconf/interfaces"} {
		names, _ := filepath.Glob(dir + "/*") // the pattern is good
		fmt.Fprintln(&b, names)
	}
	return b.String()
}

// proveResolvedIsFollowed restarts systemd-resolved under a running node, stops it, and points resolv.conf past it.
func proveResolvedIsFollowed(t *testing.T) {
	writeOtherConfig(t)
	d, status := up(t)
	checkManaged(t, "resolved", status.DNS)

	must(t, "pkill", "-9", "-x", "systemd-resolve")
	if err := os.RemoveAll("/run/systemd/resolve/netif"); err != nil { // what it would know of links
		t.Fatal(err)
	}
	background(t, "/lib/systemd/systemd-resolved")
	eventually(t, readyTimeout, "a new systemd-resolved to be told", func() error { return libc(t, nasName, nasAddr) })

	must(t, "pkill", "-STOP", "-x", "systemd-resolve")
	start := time.Now()
	must(t, program, "status")
	must(t, program, "dns", "status")
	if took := time.Since(start); took > 5*time.Second {
		t.Errorf("with a systemd-resolved that hangs, two commands took %s", took)
	}
	must(t, "pkill", "-CONT", "-x", "systemd-resolve")
	eventually(t, readyTimeout, "it to go on", func() error { return libc(t, nasName, nasAddr) })

	for _, link := range []struct {
		to   string
		past bool
	}{{"../run/systemd/resolve/resolv.conf", true}, {"../run/systemd/resolve/stub-resolv.conf", false}} {
		must(t, "ln", "-sfn", link.to, resolvConf)
		eventually(t, readyTimeout, "the link to "+link.to+" to be seen", func() error {
			status = ready(t, d, "/run/meshdns/meshdns.sock")
			problems := strings.Join(status.Problems, "\n")
			if past := strings.Contains(problems, "(Go, musl, dig)") && strings.Contains(problems, "ln -sf "); past != link.past {
				return fmt.Errorf("it is %s, and the problems are %q", status.State, problems)
			}
			return nil
		})
		if err := libc(t, nasName, nasAddr); err != nil { // by nss_resolve in any case
			t.Error(err)
		}
	}
	d.end(t, syscall.SIGTERM)
}

// proveRoamIsLearnt has NetworkManager bring up its connection with another nameserver while the node runs.
func proveRoamIsLearnt(t *testing.T) {
	writeOtherConfig(t)
	d, status := up(t)
	checkManaged(t, "networkmanager", status.DNS)
	must(t, "nmcli", "con", "mod", "eth0", "ipv4.dns", roamedServer)
	must(t, "nmcli", "-w", "10", "con", "up", "eth0")
	start := time.Now()
	eventually(t, leaseTimeout, "the new server to be learnt", func() error {
		status = ready(t, d, "/run/meshdns/meshdns.sock")
		if !slices.Equal(status.DNS.Base, []string{roamedServer}) {
			return fmt.Errorf("base is %v", status.DNS.Base)
		}
		return nil
	})
	t.Logf("learnt after %s", time.Since(start).Round(time.Millisecond))
	if err := libc(t, nasName, nasAddr); err != nil {
		t.Error(err)
	}
	d.end(t, syscall.SIGTERM)
	if text, err := os.ReadFile(resolvConf); err != nil || !strings.Contains(string(text), "nameserver "+roamedServer+"\n") {
		t.Errorf("at the end resolv.conf is %q, %v", text, err)
	}
}

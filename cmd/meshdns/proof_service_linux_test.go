package main_test

import (
	"fmt"
	"os"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/meshdns/meshdns/node"
)

const (
	installed   = "/usr/local/bin/meshdns"
	worstScore  = 3.0 // of `systemd-analyze security`, where 10 is a service that may do everything
	serviceUnit = "/etc/systemd/system/meshdns.service"
)

// proveServiceWorks installs the node as a service of a real systemd, kills it, hangs it, repairs after it, and removes it.
func proveServiceWorks(t *testing.T) {
	writeOtherConfig(t)
	must(t, "ip", "addr", "add", "198.51.100.1/32", "dev", "lo")
	must(t, "cp", program, installed)
	before := snapshot(t)
	must(t, "cp", program, "/tmp/meshdns")
	if out, code := output(t, "/tmp/meshdns", "service", "install"); code != 1 || !strings.Contains(out, "sudo install") {
		t.Errorf("from a place that services do not see: exit code %d\n%s", code, out)
	}
	out := must(t, installed, "service", "install")
	t.Logf("install printed:\n%s", out)
	status := running(t, 0)
	if status.DNS.Takeover.State != "on" || status.DNS.Takeover.Mode != "resolved" {
		t.Errorf("takeover is %s (%s): %s", status.DNS.Takeover.State, status.DNS.Takeover.Mode, status.DNS.Takeover.Reason)
	}
	if err := libc(t, nasName, nasAddr); err != nil {
		t.Error(err)
	}
	checkScore(t)

	first := status.PID
	if err := syscall.Kill(first, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	status = running(t, first)
	if err := libc(t, nasName, nasAddr); err != nil {
		t.Errorf("after kill -9: %v", err)
	}

	writeFile(t, "/etc/systemd/system/meshdns.service.d/test.conf", "[Service]\nWatchdogSec=2\n")
	must(t, "systemctl", "daemon-reload")
	must(t, "systemctl", "restart", "meshdns")
	hung := running(t, status.PID).PID
	if err := syscall.Kill(hung, syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	running(t, hung)
	must(t, "rm", "-r", "/etc/systemd/system/meshdns.service.d")
	must(t, "systemctl", "daemon-reload")

	proveRepairUnit(t)

	t.Logf("uninstall printed:\n%s", must(t, installed, "service", "uninstall"))
	if _, err := os.Stat(serviceUnit); err == nil {
		t.Errorf("%s is left", serviceUnit)
	}
	must(t, "rm", "-rf", "/etc/meshdns")
	if after := snapshot(t); strings.Split(after, "\n")[0] != strings.Split(before, "\n")[0] {
		t.Errorf("resolv.conf is not as it was\nbefore:\n%s\nafter:\n%s", before, after)
	}
}

// provePackageComesAndGoes installs the Debian package, removes it while it holds the machine's DNS, and purges it.
func provePackageComesAndGoes(t *testing.T) {
	must(t, "ip", "addr", "add", "198.51.100.1/32", "dev", "lo")
	before := managed(t)
	writeFile(t, "/etc/meshdns/map.yaml", proofMap)
	t.Logf("dpkg printed:\n%s", must(t, "dpkg", "-i", "/mnt/meshdns.deb"))
	status := running(t, 0)
	if status.DNS.Takeover.State != "on" {
		t.Errorf("takeover is %s: %s", status.DNS.Takeover.State, status.DNS.Takeover.Reason)
	}
	if err := libc(t, nasName, nasAddr); err != nil {
		t.Error(err)
	}
	must(t, "dpkg", "-i", "/mnt/meshdns.deb") // an update
	running(t, status.PID)
	must(t, "dpkg", "-r", "meshdns")
	for _, gone := range []string{serviceUnit, "/usr/bin/meshdns", "/run/meshdns/meshdns.sock"} {
		if _, err := os.Stat(gone); err == nil {
			t.Errorf("%s is left", gone)
		}
	}
	if err := os.RemoveAll("/etc/meshdns"); err != nil {
		t.Fatal(err)
	}
	if after := managed(t); after != before {
		t.Errorf("the machine's DNS is not as it was\nbefore:\n%s\nafter:\n%s", before, after)
	}
	must(t, "dpkg", "-P", "meshdns")
	if _, err := os.Stat("/var/lib/meshdns"); err == nil {
		t.Error("a purge leaves /var/lib/meshdns")
	}
}

// running waits until the service runs, under another process than before.
func running(t *testing.T, before int) node.Status {
	t.Helper()
	var status node.Status
	eventually(t, 20*time.Second, "the service", func() error {
		out, _ := output(t, "systemctl", "show", "-p", "MainPID,ActiveState", "--value", "meshdns")
		fields := strings.Fields(out)
		if len(fields) != 2 {
			return fmt.Errorf("systemctl show printed %q", out)
		}
		pid, err := strconv.Atoi(fields[0])
		if err != nil || pid == before || fields[1] != "active" {
			return fmt.Errorf("it is %s", strings.Join(fields, " "))
		}
		status, err = node.Client{Socket: "/run/meshdns/meshdns.sock"}.Status(t.Context())
		if err == nil && status.PID == before {
			err = fmt.Errorf("it is the old one")
		}
		return err
	})
	return status
}

// checkScore checks how much the service may do.
func checkScore(t *testing.T) {
	t.Helper()
	out := must(t, "systemd-analyze", "security", "--no-pager", "meshdns.service")
	line := regexp.MustCompile(`Overall exposure level for meshdns.service: ([0-9.]+) `).FindStringSubmatch(out)
	if line == nil {
		t.Fatalf("systemd-analyze printed no score:\n%s", out)
	}
	t.Logf("%s", line[0])
	if score, err := strconv.ParseFloat(line[1], 64); err != nil || score >= worstScore {
		t.Errorf("score %s, want below %v:\n%s", line[1], worstScore, out)
	}
}

// proveRepairUnit leaves resolv.conf as a machine finds it whose power failed, and has the unit repair it that runs
// before the network.
func proveRepairUnit(t *testing.T) {
	t.Helper()
	must(t, "systemctl", "stop", "meshdns", "systemd-resolved")
	must(t, "systemctl", "mask", "--runtime", "systemd-resolved") // so that nobody starts it
	must(t, "rm", "-f", resolvConf)
	writeFile(t, resolvConf, "nameserver 192.0.2.53\n")
	before := snapshotFile()
	d := background(t, installed, "up")
	if state := ready(t, d, "/run/meshdns/meshdns.sock").DNS.Takeover; state.State != "on" || state.Mode != "direct" {
		t.Errorf("takeover is %s (%s): %s", state.State, state.Mode, state.Reason)
	}
	d.kill()
	if snapshotFile() == before {
		t.Error("nothing is left to repair")
	}
	must(t, "systemctl", "start", "meshdns-restore")
	if after := snapshotFile(); after != before {
		t.Errorf("not repaired\nbefore:\n%s\nafter:\n%s", before, after)
	}
	must(t, "systemctl", "unmask", "--runtime", "systemd-resolved")
	must(t, "rm", "-f", resolvConf)
	must(t, "ln", "-s", "../run/systemd/resolve/stub-resolv.conf", resolvConf)
	must(t, "systemctl", "start", "systemd-resolved")
}

package main_test

import (
	"bufio"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

const (
	cutPower  = "LAB cut the power" // a guest that prints this line loses its power at once
	bootLimit = 4 * time.Minute     // it boots in software emulation
)

// guest is the lab's virtual machine: Debian with systemd and a kernel of its own, whose modules can be loaded, and a
// disk that lasts from boot to boot. The program is /meshdns in it. It has no network but what a script makes.
type guest struct {
	t    *testing.T
	disk string
}

// newGuest makes one, or skips the test outside `make lab-power`.
func newGuest(t *testing.T) *guest {
	t.Helper()
	if os.Getenv("MESHDNS_POWER") == "" {
		t.Skip("boots a virtual machine: make lab-power")
	}
	requireLab(t)
	if _, err := exec.LookPath("qemu-system-x86_64"); err != nil {
		t.Fatal("qemu is not installed: .ci/deps power")
	}
	dir := t.TempDir()
	g := &guest{t: t, disk: filepath.Join(dir, "disk")}
	binary := filepath.Join(dir, "meshdns")
	build(t, "CGO_ENABLED=0", "go", "build", "-trimpath", "-o", binary, ".")
	g.lab("LAB_BOOT=no", "true") // makes the disk
	g.put(binary, "/meshdns")
	return g
}

// put copies a file of this machine to the guest's disk, as a program.
func (g *guest) put(from, to string) {
	g.t.Helper()
	for _, request := range []string{"write " + from + " " + to, "sif " + to + " mode 0100755"} {
		must(g.t, "debugfs", "-w", "-R", request, g.disk)
	}
}

// run boots the guest, runs a script of bash in it as root, and returns what it printed until it ended, or lost its power.
func (g *guest) run(script string) string {
	g.t.Helper()
	// The script is written to the disk, for which the file system's journal has to be replayed, as a boot does.
	if out, code := output(g.t, "e2fsck", "-p", g.disk); code > 1 {
		g.t.Fatalf("e2fsck: exit code %d\n%s", code, out)
	}
	return g.lab("LAB_BOOT=yes", script)
}

// lab runs the lab's script for the guest.
func (g *guest) lab(env, script string) string {
	t := g.t
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), bootLimit)
	defer cancel()
	cmd := exec.CommandContext(ctx, "../../osconfig/lab/80-qemu.sh", script)
	cmd.Env = append(os.Environ(), "LAB_DISK="+g.disk, "LAB_CACHE="+cacheDir(), env)
	// timeout(1) in the script gives the machine a process group of its own; it is found by its disk, which is the test's.
	kill := func() error { return exec.Command("pkill", "-9", "-f", "file="+g.disk).Run() }
	cmd.Cancel = kill
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	var out strings.Builder
	for lines := bufio.NewScanner(stdout); lines.Scan(); {
		line := strings.TrimSuffix(lines.Text(), "\r")
		fmt.Fprintln(&out, line)
		if line == cutPower {
			if err := kill(); err != nil {
				t.Error(err)
			}
		}
	}
	_ = cmd.Wait() // how it ended shows in what it printed
	if ctx.Err() != nil {
		t.Fatalf("it did not end within %s:\n%s", bootLimit, out.String())
	}
	return out.String()
}

// wants checks that the guest printed all lines.
func (g *guest) wants(what, out string, lines ...string) {
	g.t.Helper()
	for _, line := range lines {
		if !strings.Contains("\n"+out, "\n"+line+"\n") {
			g.t.Errorf("%s: it does not say %q", what, line)
		}
	}
	g.t.Logf("%s:\n%s", what, out)
}

// TestLabKernelWireGuard has the guest's kernel make a link of WireGuard's.
func TestLabKernelWireGuard(t *testing.T) {
	g := newGuest(t)
	out := g.run(`modprobe wireguard && ip link add wg0 type wireguard && ip addr add 100.64.0.1/32 dev wg0 && ip link set wg0 up
ip -br link show wg0 | grep -q UP || ip -br link show wg0 | grep -q UNKNOWN && echo "LAB has kernel WireGuard"
/meshdns version >/dev/null && echo "LAB runs the program"`)
	g.wants("WireGuard", out, "LAB has kernel WireGuard", "LAB runs the program")
}

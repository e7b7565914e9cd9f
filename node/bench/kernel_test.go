//go:build bench

package bench

import (
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// guestVar says that a test runs in the lab's virtual machine.
const guestVar = "BENCH_GUEST"

// TestKernelThroughput is TestThroughput with the WireGuard of a kernel, in the lab's virtual machine: beside links that were made by hand,
// and, relayed, a hub of such.
func TestKernelThroughput(t *testing.T) {
	if os.Getenv(guestVar) == "" {
		bootGuest(t)
		return
	}
	if !inside(t) {
		return
	}
	lab := newLab(t)
	setups := []setup{lab.wireguardDirect(t), lab.meshdnsDirect(t, "kernel"), lab.wireguardHub(t)}
	compareStreams(t, append(setups, lab.meshdnsRelayed(t, "kernel")...))
}

// bootGuest runs the test in the virtual machine.
func bootGuest(t *testing.T) {
	t.Helper()
	if os.Getenv("LAB_CACHE") == "" {
		t.Fatal("LAB_CACHE is not set: make bench-kernel")
	}
	const lab = "../../osconfig/lab/80-qemu.sh"
	dir := t.TempDir()
	disk, binary := filepath.Join(dir, "disk"), filepath.Join(dir, "bench.test")
	run := func(name string, args ...string) string {
		cmd := exec.CommandContext(t.Context(), name, args...)
		cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "LAB_DISK="+disk, "LAB_TIMEOUT=1200")
		out, err := cmd.CombinedOutput()
		if err != nil {
			t.Fatalf("%s %q: %v\n%s", name, args, err, out)
		}
		return string(out)
	}
	run("go", "test", "-tags", "bench", "-c", "-o", binary, ".")
	run(lab, "true") // makes the disk
	wg, err := exec.LookPath("wg")
	if err != nil {
		t.Fatal(err)
	}
	for from, to := range map[string]string{binary: "/bench.test", program(t): "/meshdns", wg: "/usr/bin/wg"} {
		run("debugfs", "-w", "-R", "write "+from+" "+to, disk)
		run("debugfs", "-w", "-R", "sif "+to+" mode 0100755", disk)
	}
	script := "cd /tmp; modprobe -a wireguard veth nf_tables; " + guestVar + "=1 MESHDNS_BINARY=/meshdns BENCH_LOGS=" + os.Getenv("BENCH_LOGS") +
		" BENCH_ROUNDS=" + os.Getenv("BENCH_ROUNDS") + " BENCH_SECONDS=" + os.Getenv("BENCH_SECONDS") + " /bench.test -test.v -test.run ^TestKernelThroughput$"
	out := run(lab, script)
	if !strings.Contains(out, "LAB_RC=0") {
		t.Errorf("in the virtual machine it failed")
	}
	_, _ = io.WriteString(t.Output(), out)
}

package tunnel

import (
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// TestLabKernelWireGuard runs the tests of the machine in a virtual one whose kernel has WireGuard: there it is chosen, and
// carries connections.
func TestLabKernelWireGuard(t *testing.T) {
	if os.Getenv("MESHDNS_POWER") == "" {
		t.Skip("boots a virtual machine: make lab-power")
	}
	cache := os.Getenv("LAB_CACHE")
	if cache == "" {
		t.Fatal("LAB_CACHE is not set: make lab-power")
	}
	dir := t.TempDir()
	disk, binary := filepath.Join(dir, "disk"), filepath.Join(dir, "tunnel.test")
	run := func(name string, args ...string) string {
		cmd := exec.CommandContext(t.Context(), name, args...)
		cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "LAB_DISK="+disk, "LAB_TIMEOUT=300")
		out, err := cmd.CombinedOutput()
		if err != nil {
			t.Fatalf("%s %q: %v\n%s", name, args, err, out)
		}
		return string(out)
	}
	run("go", "test", "-c", "-o", binary, ".")
	run("../../osconfig/lab/80-qemu.sh", "true") // makes the disk
	for _, request := range []string{"write " + binary + " /tunnel.test", "sif /tunnel.test mode 0100755"} {
		run("debugfs", "-w", "-R", request, disk)
	}
	const command = `cd /tmp; modprobe -a wireguard tun nf_tables; MESHDNS_KERNEL=1 /tunnel.test -test.v -test.run '^Test(Kernel|Auto|TUN|Neighbours|AKilled|NfTables)'`
	out := run("../../osconfig/lab/80-qemu.sh", command)
	if !strings.Contains(out, "--- PASS: TestKernelCarriesConnections") || !strings.Contains(out, "--- PASS: TestKernelGoesOtherWays") || !strings.Contains(out, "LAB_RC=0") {
		t.Errorf("in the virtual machine:\n%s", out)
	}
	_, _ = io.WriteString(t.Output(), out)
}

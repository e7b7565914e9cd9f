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
	powerConf  = "search corp.example\nnameserver 192.0.2.53\noptions timeout:1\n"
	powerReady = "LAB took over"
	bootLimit  = 4 * time.Minute // it boots in software emulation
)

// What the machine does before its power is cut, and after.
const (
	powerBefore = `systemctl disable -q --now systemd-resolved
rm -f /etc/resolv.conf; printf '%%b' '%[1]s' >/etc/resolv.conf; chmod 640 /etc/resolv.conf; sync
mkdir -p /etc/meshdns; printf '%%b' '%[2]s' >/etc/meshdns/map.yaml
chmod 755 /meshdns; /meshdns up &
until /meshdns status --check >/dev/null 2>&1; do sleep .1; done
grep nameserver /etc/resolv.conf; echo "` + powerReady + `"; sleep 600`
	powerAfter = `grep -q 'nameserver 127.0.0.77' /etc/resolv.conf && echo "LAB boots with the stub named"
/meshdns dns restore; stat -c 'LAB mode %%a' /etc/resolv.conf
[ "$(cat /etc/resolv.conf)" = "$(printf '%%b' '%[1]s')" ] && [ ! -e /var/lib/meshdns/dns-journal.json ] && echo "LAB is as it was"`
)

// TestLabPowerCut takes a real kernel's power away right after the takeover: the journal is on the disk, and restore
// without a daemon brings the file back.
func TestLabPowerCut(t *testing.T) {
	if os.Getenv("MESHDNS_POWER") == "" {
		t.Skip("boots a virtual machine: make lab-power")
	}
	requireLab(t)
	if _, err := exec.LookPath("qemu-system-x86_64"); err != nil {
		t.Fatal("qemu is not installed: .ci/deps power")
	}
	dir := t.TempDir()
	disk, binary := filepath.Join(dir, "disk"), filepath.Join(dir, "meshdns")
	build(t, "CGO_ENABLED=0", "go", "build", "-trimpath", "-o", binary, ".")
	escape := func(text string) string { return strings.ReplaceAll(strings.ReplaceAll(text, "\n", `\n`), `"`, `\042`) }

	boot(t, disk, "true") // makes the disk
	for _, request := range []string{"write " + binary + " /meshdns", "sif /meshdns mode 0100755"} {
		must(t, "debugfs", "-w", "-R", request, disk)
	}
	out := boot(t, disk, fmt.Sprintf(powerBefore, escape(powerConf), escape(proofMap)))
	if !strings.Contains(out, "nameserver 127.0.0.77") || !strings.Contains(out, powerReady) {
		t.Fatalf("it did not take over:\n%s", out)
	}
	// The script writes its command to the disk, which the file system's journal has to be replayed for, as a boot does.
	if out, code := output(t, "e2fsck", "-p", disk); code > 1 {
		t.Fatalf("e2fsck: exit code %d\n%s", code, out)
	}
	out = boot(t, disk, fmt.Sprintf(powerAfter, escape(powerConf)))
	for _, want := range []string{"LAB boots with the stub named", "LAB mode 640", "LAB is as it was"} {
		if !strings.Contains(out, want) {
			t.Errorf("after the power cut it does not say %q:\n%s", want, out)
		}
	}
	t.Logf("after the power cut:\n%s", out)
}

// boot starts the machine with a command and returns what it printed until it ended, or said that it is ready to lose
// its power.
func boot(t *testing.T, disk, command string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), bootLimit)
	defer cancel()
	cmd := exec.CommandContext(ctx, "../../osconfig/lab/80-qemu.sh", command)
	cmd.Env = append(os.Environ(), "LAB_DISK="+disk, "LAB_CACHE="+cacheDir())
	// timeout(1) in the script gives the machine a process group of its own; it is found by its disk, which is the test's.
	kill := func() error { return exec.Command("pkill", "-9", "-f", "file="+disk).Run() }
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
		fmt.Fprintln(&out, lines.Text())
		if strings.Contains(lines.Text(), powerReady) {
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

package main_test

import (
	"fmt"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"
)

// rewriter writes resolv.conf whenever it names the node.
const rewriter = `while :; do
	! grep -q '^nameserver 127.0.0.77' /etc/resolv.conf || echo "nameserver 192.0.2.53" >/etc/resolv.conf
	sleep 0.05
done`

// proveWarIsLost has a program write resolv.conf again and again: it gets it, names resolve, and that is told; once it
// has stopped the node takes the file over again.
func proveWarIsLost(t *testing.T) {
	newMachine(t)
	must(t, "rm", "-f", resolvConf)
	writeFile(t, resolvConf, "nameserver "+upstreamAddr+"\n")
	d, _ := up(t)
	other := background(t, "bash", "-c", rewriter)
	start := time.Now()
	eventually(t, 2*time.Minute, "the node to yield", func() error {
		status := ready(t, d, "/run/meshdns/meshdns.sock")
		if status.DNS.Takeover.State != "refused" || !strings.Contains(status.DNS.Takeover.Reason, "is left to it") {
			return fmt.Errorf("it is %s: %s", status.DNS.Takeover.State, status.DNS.Takeover.Reason)
		}
		return nil
	})
	t.Logf("yielded after %s", time.Since(start).Round(time.Second))
	if text, err := os.ReadFile(resolvConf); err != nil || string(text) != "nameserver "+upstreamAddr+"\n" {
		t.Errorf("resolv.conf is %q, %v", text, err)
	}
	if _, err := os.Stat("/var/lib/meshdns/dns-journal.json"); err == nil {
		t.Error("a journal is left, with nothing to undo")
	}
	if err := libc(t, outsideName, outsideAddr); err != nil {
		t.Error(err)
	}
	if out, code := output(t, program, "doctor"); code != 6 || !strings.Contains(out, "is left to it") {
		t.Errorf("doctor: exit code %d\n%s", code, out)
	}
	other.kill()
	start = time.Now()
	eventually(t, 4*time.Minute, "the node to take it over again", func() error { return libc(t, nasName, nasAddr) })
	t.Logf("taken over again after %s", time.Since(start).Round(time.Second))
	d.end(t, syscall.SIGTERM)
	if text, err := os.ReadFile(resolvConf); err != nil || string(text) != "nameserver "+upstreamAddr+"\n" {
		t.Errorf("at the end resolv.conf is %q, %v", text, err)
	}
}

package certs

import (
	"errors"
	"os"
	"os/exec"
	"strings"
	"testing"
)

// The real store of Debian, in a mount namespace of the test's own, as curl and update-ca-certificates see it.
func TestTheSystemTrustsARoot(t *testing.T) {
	const inside = "MESHDNS_TRUST_INSIDE"
	if os.Getenv(inside) == "" {
		if os.Getuid() != 0 {
			t.Skip("needs root")
		}
		if _, err := exec.LookPath("update-ca-certificates"); err != nil {
			t.Skip("ca-certificates is not installed")
		}
		self, err := os.Executable()
		if err != nil {
			t.Fatal(err)
		}
		// What is copied is what the store's command writes to.
		script := `set -e; mount -t tmpfs t /mnt; for d in etc/ssl usr/local/share; do mkdir -p /mnt/$d; cp -a /$d/. /mnt/$d; mount --bind /mnt/$d /$d; done
mkdir -p /usr/local/share/ca-certificates; exec "$0" -test.run '^TestTheSystemTrustsARoot$' -test.v`
		cmd := exec.CommandContext(t.Context(), "unshare", "--mount", "--propagation", "private", "sh", "-c", script, self)
		cmd.Env = append(os.Environ(), inside+"=1")
		out, err := cmd.CombinedOutput()
		if err != nil || !strings.Contains(string(out), "--- PASS") {
			t.Fatalf("%v\n%s", err, out)
		}
		return
	}
	before, err := os.ReadFile("/etc/ssl/certs/ca-certificates.crt")
	if err != nil {
		t.Fatal(err)
	}
	root := testRoot(t)
	var s TrustStore
	where, err := s.Install(t.Context(), root)
	if err != nil || !strings.HasPrefix(where, "/usr/local/share/ca-certificates/meshdns-") {
		t.Fatalf("installed at %q, %v", where, err)
	}
	if out, err := exec.CommandContext(t.Context(), "openssl", "verify", "-CApath", "/etc/ssl/certs", where).CombinedOutput(); err != nil {
		t.Errorf("%v: %s", err, out)
	}
	if err := s.Remove(t.Context(), root); err != nil {
		t.Fatal(err)
	}
	after, err := os.ReadFile("/etc/ssl/certs/ca-certificates.crt")
	if err != nil || string(after) != string(before) {
		t.Errorf("the store is not as it was (%d bytes, then %d): %v", len(before), len(after), err)
	}
	if _, err := os.Stat(where); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("%s: %v", where, err)
	}
}

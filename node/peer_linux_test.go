package node

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

// nobodyUID is the user without rights that every Linux has.
const nobodyUID = 65534

// askAs runs TestAskAsSomebodyElse of this test binary as user uid and returns what it prints.
func askAs(t *testing.T, uid uint32, socket string) string {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("only root can run a process as another user")
	}
	self, err := os.Open("/proc/self/exe")
	if err != nil {
		t.Fatal(err)
	}
	defer self.Close()
	// The test binary lies in a directory that others cannot enter, so it is passed on open.
	cmd := exec.CommandContext(t.Context(), "/proc/self/fd/3", "-test.run=^TestAskAsSomebodyElse$", "-test.v")
	cmd.ExtraFiles = []*os.File{self}
	cmd.Env = []string{"MESHDNS_TEST_SOCKET=" + socket}
	cmd.Dir = "/"
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uid, Gid: uid}}
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("running as user %d: %v\n%s", uid, err, out)
	}
	return string(out)
}

// TestAskAsSomebodyElse is the other process of the tests below.
func TestAskAsSomebodyElse(t *testing.T) {
	socket := os.Getenv("MESHDNS_TEST_SOCKET")
	if socket == "" {
		t.Skip("runs as the child of another test")
	}
	c := Client{Socket: socket}
	_, err := c.Status(t.Context())
	t.Logf("status: %t", err == nil)
	err = c.Down(t.Context())
	t.Logf("down: %t, not permitted: %t, hint: %s", err == nil, errors.Is(err, ErrNotPermitted), hintOf(err))
	_, err = c.Flush(t.Context(), "")
	t.Logf("flush: %t, not permitted: %t", err == nil, errors.Is(err, ErrNotPermitted))
	_, err = c.Config(t.Context())
	t.Logf("config: not permitted: %t", errors.Is(err, ErrNotPermitted))
	explained, err := c.Explain(t.Context(), "example.com", "A")
	if err == nil {
		for _, step := range explained.Steps {
			if step.What == "cache" {
				t.Logf("explain: %s", step.Detail)
			}
		}
	}
}

func TestStrangersMayReadAndNotChange(t *testing.T) {
	path := testControl(t, &localAPI{endpoints: testEndpoints()})
	got := askAs(t, nobodyUID, path)
	for _, want := range []string{
		"status: true",
		"down: false, not permitted: true, hint: run the same command with sudo",
		"flush: false, not permitted: true",
	} {
		if !strings.Contains(got, want) {
			t.Errorf("nobody's calls: want %q in\n%s", want, got)
		}
	}
}

func TestRootMayChange(t *testing.T) {
	path := testControl(t, &localAPI{endpoints: testEndpoints()})
	got := askAs(t, 0, path)
	for _, want := range []string{"down: true", "flush: true"} {
		if !strings.Contains(got, want) {
			t.Errorf("root's calls: want %q in\n%s", want, got)
		}
	}
}

func TestStrangersAreNotToldWhatTheCacheHolds(t *testing.T) {
	paths := testPaths(t)
	dir, err := os.MkdirTemp("", "meshdns")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	paths.Socket = filepath.Join(dir, "s")
	startNode(t, testConfig(), paths)
	got := askAs(t, nobodyUID, paths.Socket)
	for _, want := range []string{"status: true", "explain: only root and the daemon's own user are told", "config: not permitted: true"} {
		if !strings.Contains(got, want) {
			t.Errorf("nobody's calls: want %q in\n%s", want, got)
		}
	}
}

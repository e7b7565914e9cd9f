package node

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/meshdns/meshdns/node/control"
)

// onSmallDisk runs the test again where a small disk of its own is at the directory that it returns; "": it has run there.
func onSmallDisk(t *testing.T) (dir string) {
	t.Helper()
	const variable = "MESHDNS_TEST_DISK"
	if dir := os.Getenv(variable); dir != "" {
		if err := syscall.Mount("", "/", "", syscall.MS_REC|syscall.MS_PRIVATE, ""); err != nil {
			t.Fatal(err)
		}
		if err := syscall.Mount("tmpfs", dir, "tmpfs", 0, "size=1m,mode=700"); err != nil {
			t.Fatal(err)
		}
		return dir
	}
	runApart(t, syscall.CLONE_NEWNS, variable+"="+t.TempDir())
	return ""
}

// runApart runs the test again in a process with a namespace of its own, which setting tells it.
func runApart(t *testing.T, namespace uintptr, setting string) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("NOT PROVEN: a namespace of its own needs root")
	}
	cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^"+t.Name()+"$", "-test.v", "-test.timeout=240s")
	cmd.Env = append(os.Environ(), setting)
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: namespace, Pdeathsig: syscall.SIGKILL}
	out, err := cmd.CombinedOutput()
	switch {
	case strings.Contains(string(out), "--- SKIP: "+t.Name()):
		t.Skipf("%s", out)
	case err != nil || !strings.Contains(string(out), "--- PASS: "+t.Name()):
		t.Errorf("in a namespace of its own: %v\n%s", err, out)
	}
}

// fill fills a disk to its last byte, and returns what empties it again.
func fillDisk(t *testing.T, dir string) (empty func()) {
	t.Helper()
	path := filepath.Join(dir, "filler")
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	for size := 64 << 10; size > 0; {
		if _, err := f.Write(make([]byte, size)); errors.Is(err, syscall.ENOSPC) {
			size /= 2
		} else if err != nil {
			t.Fatal(err)
		}
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	return func() {
		if err := os.Remove(path); err != nil {
			t.Fatal(err)
		}
	}
}

// problem is what a node says is wrong that has a text in it.
func (n *testNode) problem(t *testing.T, text string) string {
	t.Helper()
	s, err := n.Status(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range s.Problems {
		if strings.Contains(p, text) {
			return p
		}
	}
	return ""
}

// A gateway whose disk is full refuses changes with the reason, serves what it has, to nodes and after a restart too, and takes
// changes as soon as there is space.
func TestAGatewayWhoseDiskIsFull(t *testing.T) {
	dir := onSmallDisk(t)
	if dir == "" {
		return
	}
	cfg, paths := gatewayTestConfig(t), testPaths(t)
	paths.State = filepath.Join(dir, "state")
	g := startGatewayWith(t, cfg, paths)
	nas, tv := g.invited(t, "nas"), g.invited(t, "tv")
	waiting := g.invite(t, "web")
	soon(t, "names", func() bool { return nas.knows(t, "tv") && tv.knows(t, "nas") })
	soon(t, "where nodes are to be kept", func() bool {
		last, err := os.ReadFile(filepath.Join(paths.State, lastPathsFile))
		return err == nil && strings.Count(string(last), `"key"`) == 2
	})
	empty := fillDisk(t, dir)
	var refused error
	for i := 0; i < 5000 && refused == nil; i++ { // what was freed in the file is used up first
		_, refused = g.Invite(t.Context(), fmt.Sprint("n", i), nil, 0, false)
	}
	if refused == nil || !strings.Contains(refused.Error(), "no space left on device") || !strings.Contains(hintOf(refused), "make space") {
		t.Fatalf("an invite: %v, %q", refused, hintOf(refused))
	}
	late := testPaths(t)
	if _, err := late.Join(t.Context(), waiting, "", nil); err == nil || !strings.Contains(err.Error(), "the gateway's disk does not take the change") {
		t.Errorf("a join: %v", err)
	}
	if !strings.Contains(g.problem(t, "takes no changes"), "no space left") {
		t.Error("status does not say so")
	}
	serves := func(g *testGateway) {
		t.Helper()
		if !g.knows(t, "tv") || !nas.knows(t, "tv") || !g.isNode(t, "nas") {
			t.Error("names do not resolve")
		}
		soon(t, "the stream", func() bool { return nas.hasStream() && tv.hasStream() })
		if got, err := nas.reach(t, "tv", program(t, "web")); err != nil || got != "web?" {
			t.Errorf("%q, %v", got, err)
		}
	}
	serves(g)
	if err := g.end(); err != nil {
		t.Fatal(err)
	}
	g = startGatewayWith(t, cfg, paths)
	serves(g)
	empty()
	waitFor(t, lookPeers*6, "the disk to be tried again", func() bool { return g.problem(t, "takes no changes") == "" })
	if err := g.RenameNode(t.Context(), "tv", "screen"); err != nil {
		t.Error(err)
	}
	soon(t, "the new name", func() bool { return nas.knows(t, "screen") })
	joined, err := late.Join(t.Context(), waiting, "", nil)
	if err != nil || !strings.HasPrefix(joined.Node, "web.") {
		t.Errorf("%+v, %v", joined, err)
	}
}

// A node whose disk is full takes new maps into use, says that it does not keep them, and keeps the newest as soon as there
// is space; it starts on a full disk from what it has kept; a join that cannot be kept leaves nothing behind, and is made later.
func TestANodeWhoseDiskIsFull(t *testing.T) {
	dir := onSmallDisk(t)
	if dir == "" {
		return
	}
	g := startGateway(t)
	g.invited(t, "tv")
	invite := g.invite(t, "nas")
	paths := testPaths(t)
	paths.State = filepath.Join(dir, "state")
	empty := fillDisk(t, dir)
	_, err := paths.Join(t.Context(), invite, "", nil)
	if err == nil || !strings.Contains(err.Error(), "no space left on device") {
		t.Errorf("a join: %v", err)
	}
	left, err := filepath.Glob(filepath.Join(paths.State, "*.*"))
	if err != nil || len(left) > 0 {
		t.Errorf("%q is left, %v", left, err)
	}
	empty()
	if _, err := paths.Join(t.Context(), invite, "", nil); err != nil {
		t.Fatal(err)
	}
	nas := startMember(t, paths)
	soon(t, "the map", func() bool { return nas.knows(t, "tv") && nas.knows(t, "nas") && nas.hasStream() })
	kept := func() string {
		m, err := loadMembership(paths.State)
		if err != nil || m == nil {
			t.Fatalf("%+v, %v", m, err)
		}
		var names []string
		for _, n := range m.Map.Nodes {
			names = append(names, n.Name)
		}
		return strings.Join(names, " ")
	}
	soon(t, "it to be kept", func() bool { return kept() == "edge nas tv" })
	empty = fillDisk(t, dir)
	if err := g.RenameNode(t.Context(), "tv", "screen"); err != nil {
		t.Fatal(err)
	}
	soon(t, "the new name", func() bool { return nas.knows(t, "screen") && !nas.knows(t, "tv") })
	soon(t, "status to say so", func() bool { return strings.Contains(nas.problem(t, "not kept for the next start"), "no space left") })
	if kept() != "edge nas tv" {
		t.Errorf("what was kept is %s", kept())
	}
	if err := nas.end(); err != nil {
		t.Fatal(err)
	}
	nas = startMember(t, paths)
	if !nas.knows(t, "edge") || nas.ready.Node == "" {
		t.Error("it does not start from what it has kept")
	}
	soon(t, "the newest map", func() bool { return nas.knows(t, "screen") && nas.problem(t, "not kept for the next start") != "" })
	empty()
	// The gateway says something every 25 s.
	if err := nas.node.gatewayEvent(control.Event{Trust: nas.node.clock().Add(14 * 24 * 3600e9)}); err != nil {
		t.Error(err)
	}
	soon(t, "it to be kept", func() bool { return kept() == "edge nas screen" && nas.problem(t, "not kept for the next start") == "" })
}

package node

import (
	"bytes"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"
)

// joinerVariable has this test binary join, and kill itself at the step that it names.
const joinerVariable = "MESHDNS_TEST_JOIN"

// joinKilled joins in a process that is killed when it reports step; "": it is left to whoever kills it.
func joinKilled(t *testing.T, paths Paths, invite, step string, started func(*os.Process)) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^TestAJoinThatIsKilled$", "-test.v")
	cmd.Env = append(os.Environ(), joinerVariable+"="+step, joinerVariable+"_STATE="+paths.State)
	cmd.Stdin = strings.NewReader(invite)
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	if started != nil {
		started(cmd.Process)
	}
	if err := cmd.Wait(); err == nil || strings.Contains(out.String(), "FAIL") {
		t.Fatalf("the process was not killed: %v, %s", err, out.String())
	}
}

// joinAndDie is what that process does.
func joinAndDie(t *testing.T, step string) {
	invite := make([]byte, 4096)
	n, err := os.Stdin.Read(invite)
	if err != nil {
		t.Fatal(err)
	}
	paths := Paths{State: os.Getenv(joinerVariable + "_STATE"), Socket: filepath.Join(t.TempDir(), "s")}
	_, err = paths.Join(t.Context(), string(invite[:n]), "nas", func(line string) {
		if step == "" || !strings.Contains(line, step) {
			return
		}
		self, err := os.FindProcess(os.Getpid())
		if err == nil {
			err = self.Kill()
		}
		if err != nil {
			t.Error(err)
		}
		select {} // it is on its way
	})
	t.Fatalf("it was not killed: %v", err)
}

// A machine that is killed at any step of a join runs the same command again, and has joined, with the keys that it began with.
func TestAJoinThatIsKilled(t *testing.T) {
	if step, ok := os.LookupEnv(joinerVariable); ok {
		joinAndDie(t, step)
		return
	}
	for name, tt := range map[string]struct {
		step     string
		reusable bool
		held     bool // it has a place at the gateway
		kept     bool // and knows of it
	}{
		"before the request":                         {step: "asking the gateway at"},
		"after the request, before the answer":       {step: "", held: true},
		"after the answer, before it is kept":        {step: "is this machine's name", held: true},
		"after it is kept, before a handshake":       {step: "own key works", held: true, kept: true},
		"before the request, with a reusable invite": {step: "asking the gateway at", reusable: true},
		"before it is kept, with a reusable invite":  {step: "is this machine's name", reusable: true, held: true},
		"before a handshake, with a reusable invite": {step: "own key works", reusable: true, held: true, kept: true},
		"before the answer, with a reusable invite":  {step: "", reusable: true, held: true},
	} {
		t.Run(name, func(t *testing.T) { testKilledJoin(t, tt.step, tt.reusable, tt.held, tt.kept) })
	}
}

func testKilledJoin(t *testing.T, step string, reusable, held, kept bool) {
	victim := make(chan *os.Process, 1)
	var answers atomic.Int32
	last := int32(1)
	if reusable {
		last = 2 // the first one is a one-time invite
	}
	opt := Options{Paths: testPaths(t), reached: []netip.Addr{netip.MustParseAddr(gatewayAddress)}}
	opt.joined = func() {
		if answers.Add(1) < last || step != "" {
			return
		}
		select {
		case p := <-victim:
			if err := p.Kill(); err != nil {
				t.Error(err)
			}
		default: // it joins again
		}
	}
	g := &testGateway{startNodeWith(t, gatewayTestConfig(t), opt), Config{}}
	asked := "nas"
	if reusable {
		asked = ""
	}
	reply, err := g.Invite(t.Context(), asked, nil, 0, reusable)
	if err != nil {
		t.Fatal(err)
	}
	paths := testPaths(t)
	joinKilled(t, paths, reply.Invite, step, func(p *os.Process) { victim <- p })

	state := map[string]string{}
	nodes, err := g.Nodes(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, n := range nodes.Nodes {
		state[n.State] = n.Name
	}
	if got := state["pending"] == "nas"; got != held {
		t.Errorf("it has a place at the gateway: %t, want %t: %v", got, held, state)
	}
	before, err := loadSecrets(paths.State)
	if err != nil {
		t.Fatal(err)
	}
	m, err := loadMembership(paths.State)
	if err != nil || (m != nil) != kept {
		t.Errorf("it keeps %+v, %v", m, err)
	}
	// What a process writes when it is killed has no name of its own yet.
	if err := os.WriteFile(filepath.Join(paths.State, ".node.key.123456"), []byte("half"), 0o600); err != nil {
		t.Fatal(err)
	}

	// Another machine that has got hold of the invite gets nothing of it (S6).
	if held && !reusable {
		if _, err := testPaths(t).Join(t.Context(), reply.Invite, "nas", nil); err == nil || !strings.Contains(err.Error(), "used already") {
			t.Errorf("another machine: %v", err)
		}
	}
	joined, err := paths.Join(t.Context(), reply.Invite, "nas", nil)
	if err != nil || joined.Node != "nas.foo-bar.example.org" {
		t.Fatalf("%+v, %v", joined, err)
	}
	after, err := loadSecrets(paths.State)
	if err != nil || after.keys() != before.keys() {
		t.Errorf("it has other keys: %v", err)
	}
	left, err := filepath.Glob(filepath.Join(paths.State, ".*"))
	if err != nil || len(left) > 0 {
		t.Errorf("%q is left, %v", left, err)
	}
	nas := startMember(t, paths)
	soon(t, "the node to be one", func() bool { return g.isNode(t, "nas") && nas.knows(t, "edge") })
	if nodes, err = g.Nodes(t.Context()); err != nil || len(nodes.Nodes) != 2 && !reusable {
		t.Errorf("%+v, %v", nodes, err)
	}
}

// A machine that is killed when the gateway knows its key, and before it has noted that, has joined: its invite is dead, and is
// not needed.
func TestAJoinThatIsKilledAtItsEnd(t *testing.T) {
	g := startGateway(t)
	reply, err := g.Invite(t.Context(), "nas", nil, 0, false)
	if err != nil {
		t.Fatal(err)
	}
	paths := testPaths(t)
	if _, err := paths.Join(t.Context(), reply.Invite, "", nil); err != nil {
		t.Fatal(err)
	}
	soon(t, "the end of the invite", func() bool { return g.isNode(t, "nas") })
	m, err := loadMembership(paths.State)
	if err != nil || m.Joining {
		t.Fatalf("%+v, %v", m, err)
	}
	m.Joining = true
	if err := m.save(paths.State); err != nil {
		t.Fatal(err)
	}
	started := time.Now()
	joined, err := paths.Join(t.Context(), reply.Invite, "", nil)
	if err != nil || len(joined.Addresses) != 2 {
		t.Errorf("%+v, %v, after %s", joined, err, time.Since(started))
	}
	if _, err := paths.Join(t.Context(), reply.Invite, "", nil); err == nil || !strings.Contains(err.Error(), "already") {
		t.Errorf("joined once more: %v", err)
	}
}

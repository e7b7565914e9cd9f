package node

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/miekg/dns"
)

const testMap = `zone: foo-bar.ts.net
ranges: [100.64.0.0/10]
nodes:
  nas:
    addresses: [100.64.0.2]
    names: [photos]
  edge:
    addresses: [100.64.0.1]
`

// testNode is a node that runs until its test ends, with places and ports of its own and the machine's DNS untouched.
type testNode struct {
	Client
	node  *Node
	paths Paths
	ready Status
	stop  context.CancelFunc
	done  <-chan error
	end   func() error // stops it and waits

	mu    sync.Mutex
	lines []string
}

func (n *testNode) report(line string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.lines = append(n.lines, line)
}

// said reports whether a line with text was reported.
func (n *testNode) said(text string) bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	return strings.Contains(strings.Join(n.lines, "\n"), text)
}

// testConfig is a configuration that leaves the machine alone.
func testConfig() Config {
	cfg := DefaultConfig()
	cfg.Node = "nas"
	cfg.DNS.OS = "off"
	cfg.DNS.Stub = netip.MustParseAddrPort("127.0.0.1:0")
	return cfg
}

// testPaths are places below a directory of the test's own, with a map in it.
func testPaths(t *testing.T) Paths {
	t.Helper()
	dir := t.TempDir()
	p := Paths{
		Config: filepath.Join(dir, "meshdns.yaml"),
		Map:    filepath.Join(dir, "map.yaml"),
		State:  filepath.Join(dir, "state"),
		Socket: filepath.Join(dir, "run", "s"),
		work:   10, // a backup is not to cost what its passphrase should
	}
	writeTestMap(t, p, testMap)
	return p
}

func writeTestMap(t *testing.T, p Paths, text string) {
	t.Helper()
	next := p.Map + ".next"
	if err := os.WriteFile(next, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(next, p.Map); err != nil {
		t.Fatal(err)
	}
}

// startNode runs a node and returns when it is ready.
func startNode(t *testing.T, cfg Config, paths Paths) *testNode {
	t.Helper()
	return startNodeWith(t, cfg, Options{Paths: paths})
}

func startNodeWith(t *testing.T, cfg Config, opt Options) *testNode {
	t.Helper()
	checkGoroutines(t)
	tn := &testNode{Client: Client{Socket: opt.Paths.Socket}, paths: opt.Paths}
	ready := make(chan Status, 1)
	opt.Root, opt.Version, opt.Report = os.Geteuid() == 0, "test", tn.report
	opt.Ready = func(s Status) { ready <- s }
	n, err := New(cfg, opt)
	if err != nil {
		t.Fatal(err)
	}
	tn.node = n
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- n.Run(ctx) }()
	tn.stop, tn.done = cancel, done
	tn.end = sync.OnceValue(func() error {
		cancel()
		return <-done
	})
	t.Cleanup(func() {
		if err := tn.end(); err != nil {
			t.Errorf("Run: %v", err)
		}
	})
	select {
	case tn.ready = <-ready:
	case err := <-done:
		done <- nil
		t.Fatalf("the node ended: %v", err)
	}
	return tn
}

// ask asks the node's stub for a name's addresses.
func (n *testNode) ask(t *testing.T, name string) (rcode int, addrs []string) {
	t.Helper()
	q := new(dns.Msg).SetQuestion(name, dns.TypeA)
	reply, err := dns.Exchange(q, n.ready.DNS.Stub)
	if err != nil {
		t.Fatalf("asking for %s: %v", name, err)
	}
	for _, rr := range reply.Answer {
		if a, ok := rr.(*dns.A); ok {
			addrs = append(addrs, a.A.String())
		}
	}
	return reply.Rcode, addrs
}

func TestNodeAnswersFromItsMap(t *testing.T) {
	n := startNode(t, testConfig(), testPaths(t))
	if _, got := n.ask(t, "photos.foo-bar.ts.net."); len(got) != 1 || got[0] != "100.64.0.2" {
		t.Errorf("photos: got %v, want 100.64.0.2", got)
	}
	status, err := n.Status(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if status.Node != "nas.foo-bar.ts.net" || status.State != stateOK || len(status.Nodes) != 2 || status.DNS.Takeover.State != takeoverOff {
		t.Errorf("status: got %+v", status)
	}
	for _, want := range []string{"zone foo-bar.ts.net: 2 nodes, 5 records", "resolver answers at 127.0.0.1:", "control socket ", "ready"} {
		if !n.said(want) {
			t.Errorf("no step was reported as %q: %q", want, n.lines)
		}
	}
}

func TestNodeTakesAChangedMapIntoUse(t *testing.T) {
	n := startNode(t, testConfig(), testPaths(t))
	writeTestMap(t, n.paths, testMap+"  new:\n    addresses: [100.64.0.9]\n")
	live := func() bool { _, got := n.ask(t, "new.foo-bar.ts.net."); return len(got) == 1 }
	if !eventually(t, live) {
		t.Error("the new node is not answered")
	}
}

func TestNodeReadsTheMapAgainWhenAsked(t *testing.T) {
	paths := testPaths(t)
	reread := make(chan os.Signal)
	n := startNodeWith(t, testConfig(), Options{Paths: paths, Reread: reread})
	if err := os.Remove(paths.Map); err != nil {
		t.Fatal(err)
	}
	reread <- os.Interrupt
	if !eventually(t, func() bool { return n.said("no map at " + paths.Map) }) {
		t.Error("that there is no map was not said")
	}
	writeTestMap(t, paths, "zone: {")
	reread <- os.Interrupt
	if !eventually(t, func() bool { s, err := n.Status(t.Context()); return err == nil && len(s.Map.Problems) > 0 }) {
		t.Error("the broken map does not show")
	}
	writeTestMap(t, paths, testMap)
	reread <- os.Interrupt
	if !eventually(t, func() bool { s, err := n.Status(t.Context()); return err == nil && len(s.Map.Problems) == 0 }) {
		t.Error("the good map does not show")
	}
}

func TestNodeKeepsTheLastGoodMapAndSaysWhatIsWrong(t *testing.T) {
	n := startNode(t, testConfig(), testPaths(t))
	writeTestMap(t, n.paths, strings.Replace(testMap, "100.64.0.1]", "100.64.0.2]", 1))
	var status Status
	degraded := func() bool {
		var err error
		status, err = n.Status(t.Context())
		return err == nil && status.State == stateDegraded
	}
	if !eventually(t, degraded) {
		t.Fatal("the status does not show the broken map")
	}
	if got := strings.Join(status.Map.Problems, "\n"); !strings.Contains(got, n.paths.Map+":8:") || !strings.Contains(got, "100.64.0.2") {
		t.Errorf("problems: got %q, want file, line, column and value", got)
	}
	if _, got := n.ask(t, "edge.foo-bar.ts.net."); len(got) != 1 || got[0] != "100.64.0.1" {
		t.Errorf("edge: got %v, want the last good map's 100.64.0.1", got)
	}
	writeTestMap(t, n.paths, testMap)
	healed := func() bool { s, err := n.Status(t.Context()); return err == nil && s.State == stateOK }
	if !eventually(t, healed) {
		t.Error("the problem still shows after the map is good again")
	}
}

func TestNodeWithoutAMapKeepsTheRangesThatItDrew(t *testing.T) {
	paths := testPaths(t)
	if err := os.Remove(paths.Map); err != nil {
		t.Fatal(err)
	}
	cfg := testConfig()
	cfg.Node = ""
	first := startNode(t, cfg, paths)
	if first.ready.Zone != "mesh.internal" || len(first.ready.Nodes) != 1 || len(first.ready.Nodes[0].Addresses) != 2 {
		t.Fatalf("status: got %+v, want one node with two addresses in mesh.internal", first.ready)
	}
	if err := first.end(); err != nil {
		t.Fatal(err)
	}
	again := startNode(t, cfg, paths)
	if got, want := fmt.Sprint(again.ready.Nodes), fmt.Sprint(first.ready.Nodes); got != want {
		t.Errorf("nodes of the next start: got %s, want %s", got, want)
	}
}

func TestSecondNodeFindsTheFirst(t *testing.T) {
	first := startNode(t, testConfig(), testPaths(t))
	apart := first.paths
	apart.State = filepath.Join(t.TempDir(), "state")
	elsewhere := first.paths
	elsewhere.Socket = filepath.Join(t.TempDir(), "s")
	for name, paths := range map[string]Paths{"same places": first.paths, "same socket": apart, "same state": elsewhere} {
		t.Run(name, func(t *testing.T) {
			second, err := New(testConfig(), Options{Paths: paths})
			if err != nil {
				t.Fatal(err)
			}
			if err := second.Run(t.Context()); !errors.Is(err, errRunning) || hintOf(err) == "" {
				t.Errorf("Run: got %v, want errRunning with a hint", err)
			}
		})
	}
	if _, err := first.Status(t.Context()); err != nil {
		t.Errorf("the first one does not answer any more: %v", err)
	}
}

func TestDownReturnsWhenEverythingIsPutBack(t *testing.T) {
	n := startNode(t, testConfig(), testPaths(t))
	start := time.Now()
	if err := n.Down(t.Context()); err != nil {
		t.Fatalf("Down: %v", err)
	}
	if took := time.Since(start); took > undoTime+time.Second {
		t.Errorf("took %s, want about %s at most", took, undoTime)
	}
	if _, err := os.Stat(n.paths.Socket); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the socket is still there: %v", err)
	}
	unlock, err := lockState(n.paths.State)
	if err != nil {
		t.Fatalf("the state directory is still locked: %v", err)
	}
	unlock()
	conn, err := net.ListenPacket("udp", n.ready.DNS.Stub)
	if err != nil {
		t.Fatalf("the stub's port is still bound: %v", err)
	}
	conn.Close()
}

func TestNodeStartsBesideWhatADeadOneLeft(t *testing.T) {
	paths := testPaths(t)
	ln, err := listenControl(paths.Socket)
	if err != nil {
		t.Fatal(err)
	}
	ln.SetUnlinkOnClose(false)
	ln.Close()
	if err := os.MkdirAll(paths.State, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(paths.State, "lock"), []byte("1\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	startNode(t, testConfig(), paths)
}

func TestStubGivesWayToAnotherProgram(t *testing.T) {
	held, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer held.Close()
	cfg := testConfig()
	cfg.DNS.OS = "auto" // harmless: a takeover is refused
	cfg.DNS.Stub = held.LocalAddr().(*net.UDPAddr).AddrPort()
	n := startNode(t, cfg, testPaths(t))
	if n.ready.DNS.Stub == cfg.DNS.Stub.String() {
		t.Errorf("the stub is %s, which another program holds", n.ready.DNS.Stub)
	}
	if _, got := n.ask(t, "nas.foo-bar.ts.net."); len(got) != 1 {
		t.Errorf("nas: got %v, want an answer from the other port", got)
	}
	if os.Geteuid() != 0 {
		return // without root it is not wanted anyway
	}
	takeover := n.ready.DNS.Takeover
	if takeover.State != takeoverRefused || !strings.Contains(takeover.Reason, fmt.Sprintf("(pid %d)", os.Getpid())) {
		t.Errorf("takeover: got %+v, want refused, with the holder's name", takeover)
	}
	if n.ready.State != stateDegraded || len(n.ready.Problems) != 1 {
		t.Errorf("state: got %s for %q, want degraded", n.ready.State, n.ready.Problems)
	}
}

func TestFurtherAddressesAreAnsweredToo(t *testing.T) {
	cfg := testConfig()
	cfg.DNS.Listen = []netip.AddrPort{netip.MustParseAddrPort("127.0.0.1:0")}
	n := startNode(t, cfg, testPaths(t))
	n.ready.DNS.Stub = n.ready.DNS.Listen[0]
	if _, got := n.ask(t, "nas.foo-bar.ts.net."); len(got) != 1 {
		t.Errorf("nas: got %v, want an answer", got)
	}
}

func TestTryLeavesNothingBehind(t *testing.T) {
	paths := testPaths(t)
	n, err := New(testConfig(), Options{Paths: paths, Try: true})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	n.opt.Ready = func(Status) { cancel() }
	if err := n.Run(ctx); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(paths.State); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the state directory is still there: %v", err)
	}
}

func TestTryLeavesAloneWhatWasThere(t *testing.T) {
	paths := testPaths(t)
	kept := filepath.Join(paths.State, "ranges.json")
	if err := os.MkdirAll(paths.State, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(kept, []byte("mine"), 0o600); err != nil {
		t.Fatal(err)
	}
	n, err := New(testConfig(), Options{Paths: paths, Try: true})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	n.opt.Ready = func(Status) { cancel() }
	if err := n.Run(ctx); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(kept); err != nil {
		t.Errorf("it was removed: %v", err)
	}
}

func TestNodeThatCannotStartPutsBackWhatItBegan(t *testing.T) {
	checkGoroutines(t)
	paths := testPaths(t)
	if err := os.MkdirAll(filepath.Dir(paths.Socket), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(paths.Socket, nil, 0o600); err != nil { // no socket, so in the way
		t.Fatal(err)
	}
	n, err := New(testConfig(), Options{Paths: paths})
	if err != nil {
		t.Fatal(err)
	}
	if err := n.Run(t.Context()); err == nil || !strings.Contains(err.Error(), "is not a socket") {
		t.Errorf("Run: got %v, want an error about the socket", err)
	}
	unlock, err := lockState(paths.State)
	if err != nil {
		t.Fatalf("the state directory is still locked: %v", err)
	}
	unlock()
}

func TestExplainGoesThroughTheSearchList(t *testing.T) {
	n := startNode(t, testConfig(), testPaths(t))
	result, err := n.Explain(t.Context(), "nas", "")
	if err != nil {
		t.Fatal(err)
	}
	if result.Name != "nas.foo-bar.ts.net." || result.Rcode != "NOERROR" || result.Source != "local" || !result.Daemon || len(result.Answer) != 1 {
		t.Errorf("got %+v", result)
	}
	if first := result.Steps[0]; first.What != "search" {
		t.Errorf("first step: got %+v, want the search list", first)
	}
}

func TestExplainWorksWithoutADaemonAndChangesNothing(t *testing.T) {
	paths := testPaths(t)
	n, err := New(testConfig(), Options{Paths: paths})
	if err != nil {
		t.Fatal(err)
	}
	result, err := n.Explain(t.Context(), "edge.foo-bar.ts.net", "A")
	if err != nil {
		t.Fatal(err)
	}
	if result.Daemon || len(result.Answer) != 1 {
		t.Errorf("got %+v, want the map's answer, without a daemon", result)
	}
	outside, err := n.Explain(t.Context(), "example.com", "A")
	if err != nil || len(outside.Answer) != 0 {
		t.Errorf("got %+v, %v; want steps without an answer", outside, err)
	}
	if _, err := os.Stat(paths.State); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the state directory was made: %v", err)
	}
}

func TestQueryTellsNamesThatDoNotExist(t *testing.T) {
	n := startNode(t, testConfig(), testPaths(t))
	tests := []struct {
		name, kind, rcode string
		answers           int
	}{
		{"nas", "", "NOERROR", 1},
		{"nas", "AAAA", "NOERROR", 0},
		{"100.64.0.2", "", "NOERROR", 1},
		{"nope", "", "NXDOMAIN", 0},
	}
	for _, tt := range tests {
		t.Run(tt.name+" "+tt.kind, func(t *testing.T) {
			got, err := n.Query(t.Context(), tt.name, tt.kind)
			if err != nil || got.Rcode != tt.rcode || len(got.Answer) != tt.answers || got.Source != "local" {
				t.Errorf("got %+v, %v; want %s with %d records", got, err, tt.rcode, tt.answers)
			}
		})
	}
	for _, bad := range [][2]string{{"nas", "NOTATYPE"}, {"", ""}, {"a..b", ""}, {strings.Repeat("a", 64), ""}} {
		if _, err := n.Query(t.Context(), bad[0], bad[1]); !errors.Is(err, ErrBadRequest) {
			t.Errorf("%q: got %v, want ErrBadRequest", bad, err)
		}
	}
}

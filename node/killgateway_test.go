package node

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/netip"
	"os"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
)

// gatewayVariable has this test binary be a gateway, until it is killed.
const gatewayVariable = "MESHDNS_TEST_GATEWAY"

// gatewayPlaces are where such a gateway is.
type gatewayPlaces struct {
	Paths  Paths
	Port   uint16
	Public uint16
}

// gatewayProcess is a gateway in a process of its own.
type gatewayProcess struct {
	Client
	at  gatewayPlaces
	cmd *exec.Cmd
	end func()
}

// startGatewayProcess starts one, and returns when it is ready.
func startGatewayProcess(t *testing.T, at gatewayPlaces) *gatewayProcess {
	t.Helper()
	text, err := json.Marshal(at)
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(os.Args[0], "-test.run=^TestAKilledGatewayUnderLoad$", "-test.v")
	cmd.Env = append(os.Environ(), gatewayVariable+"="+string(text))
	alive, err := cmd.StdinPipe() // which ends with this process
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	p := &gatewayProcess{Client: Client{Socket: at.Paths.Socket}, at: at, cmd: cmd}
	p.end = sync.OnceFunc(func() {
		_ = cmd.Process.Kill()
		alive.Close()
		_ = cmd.Wait() // killed
	})
	t.Cleanup(p.end)
	lines := bufio.NewScanner(out)
	var said []string
	for lines.Scan() {
		if lines.Text() == "ready" {
			go func() { _, _ = io.Copy(io.Discard, out) }()
			return p
		}
		said = append(said, lines.Text())
	}
	t.Fatalf("the gateway ended: %s", strings.Join(said, "\n"))
	return nil
}

// beGateway is what that process does.
func beGateway(t *testing.T, text string) {
	var at gatewayPlaces
	if err := json.Unmarshal([]byte(text), &at); err != nil {
		t.Fatal(err)
	}
	cfg := gatewayTestConfig(t)
	cfg.Tunnel.Port, cfg.Gateway.Ports.HTTPS = at.Port, at.Public
	opt := Options{Paths: at.Paths, reached: []netip.Addr{netip.MustParseAddr(gatewayAddress)}}
	startNodeWith(t, cfg, opt)
	fmt.Println("ready")
	_, _ = io.Copy(io.Discard, os.Stdin)
}

// promises are what a gateway has said was done.
type promises struct {
	mu    sync.Mutex
	nodes map[string]string // their keys, by name
	fails int

	name    string // of a node that is renamed
	next    string // that it may have already
	renamed int
}

func (p *promises) note(f func()) {
	p.mu.Lock()
	defer p.mu.Unlock()
	f()
}

func (p *promises) count() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return len(p.nodes)
}

// joinForEver has machines join one after another. One whose call fails calls again with the same invite.
func (p *promises) joinForEver(ctx context.Context, t *testing.T, c Client) {
	for i := 0; ctx.Err() == nil; i++ {
		name := fmt.Sprintf("j%d", i)
		reply, err := c.Invite(ctx, name, nil, 0, false)
		if err != nil {
			p.note(func() { p.fails++ })
			sleep(ctx, 50*time.Millisecond)
			continue // whether there is an invite is not known
		}
		for paths := (Paths{State: t.TempDir(), Socket: "none"}); ctx.Err() == nil; {
			if _, err := paths.Join(ctx, reply.Invite, "", nil); err != nil {
				p.note(func() { p.fails++ })
				continue
			}
			s, err := loadSecrets(paths.State)
			if err != nil {
				t.Error(err)
			}
			p.note(func() { p.nodes[name] = s.keys().Key.String() })
			break
		}
	}
}

// renameForEver has a node change its name again and again, which makes a new map each time.
func (p *promises) renameForEver(ctx context.Context, c Client) {
	for ctx.Err() == nil {
		var name, next string
		p.note(func() {
			p.renamed++
			name, p.next = p.name, fmt.Sprintf("web%d", p.renamed)
			next = p.next
		})
		if err := c.RenameNode(ctx, name, next); err == nil {
			p.note(func() { p.name = next })
			sleep(ctx, 5*time.Millisecond)
			continue
		}
		// Whether it was done is not known.
		for ctx.Err() == nil {
			sleep(ctx, 50*time.Millisecond)
			nodes, err := c.Nodes(ctx)
			if err != nil {
				continue
			}
			if slices.ContainsFunc(nodes.Nodes, func(n gatewayPeer) bool { return n.Name == next }) {
				p.note(func() { p.name = next })
			}
			break
		}
	}
}

// check compares a gateway to what it has said.
func (p *promises) check(t *testing.T, g *testGateway) {
	t.Helper()
	nodes, err := g.Nodes(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	keys := map[string]string{}
	owners := map[netip.Addr]string{}
	for _, n := range nodes.Nodes {
		if n.State == "invited" {
			continue // of a node whose handshake was not noted any more, which has its place all the same
		}
		keys[n.Name] = n.Key
		for _, a := range n.Addresses {
			if owners[a] != "" {
				t.Errorf("%s and %s have the address %s", n.Name, owners[a], a)
			}
			owners[a] = n.Name
		}
	}
	for name, key := range p.nodes {
		if keys[name] != key {
			t.Errorf("%s had joined with the key %s, and the gateway knows %q", name, key, keys[name])
		}
	}
	if (keys[p.name] == "") == (keys[p.next] == "" || p.next == p.name) {
		t.Errorf("a node was named %s, or %s", p.name, p.next)
	}
	if keys[p.next] != "" {
		p.name = p.next // which was not known when the load ended
	}
	t.Logf("%d machines have joined, one was renamed %d times, %d calls failed", len(p.nodes), p.renamed, p.fails)
}

// hasStreamSince reports whether the gateway's stream was opened after a time.
func (n *testNode) hasStreamSince(at time.Time) bool {
	n.node.member.mu.Lock()
	defer n.node.member.mu.Unlock()
	return n.node.member.stream.After(at)
}

// A gateway that is killed while machines join, maps go out and it passes packets on is what it was when it is started again: names
// resolve meanwhile, all nodes come back by themselves, the connections through it go on, and nothing is lost that it has said
// was done.
func TestAKilledGatewayUnderLoad(t *testing.T) {
	if text := os.Getenv(gatewayVariable); text != "" {
		beGateway(t, text)
		return
	}
	kills := 1
	if os.Getenv("MESHDNS_SOAK") != "" {
		kills = 8
	}
	at := gatewayPlaces{Paths: testPaths(t), Port: freePorts(t, gatewayAddress), Public: freeTCP(t, gatewayAddress)}
	p := startGatewayProcess(t, at)
	g := &testGateway{&testNode{Client: p.Client}, Config{}}
	nodes := map[string]*testNode{}
	for _, name := range []string{"nas", "tv", "web"} {
		reply, err := g.Invite(t.Context(), name, nil, 0, false)
		if err != nil {
			t.Fatal(err)
		}
		paths := testPaths(t)
		if _, err := paths.Join(t.Context(), reply.Invite, "", nil); err != nil {
			t.Fatal(err)
		}
		nodes[name] = startRelayed(t, paths)
	}
	nas, tv := nodes["nas"], nodes["tv"]
	soon(t, "names", func() bool { return nas.knows(t, "tv") && tv.knows(t, "nas") && g.isNode(t, "web") })
	c := startChatter(t, nas, tv, "nas")
	c.say(t, "before")

	known := &promises{nodes: map[string]string{}, name: "web"}
	for range kills {
		ctx, cancel := context.WithCancel(t.Context())
		var load sync.WaitGroup
		load.Go(func() { known.joinForEver(ctx, t, p.Client) })
		load.Go(func() { known.renameForEver(ctx, p.Client) })
		want := known.count() + 3
		soon(t, "joins", func() bool {
			c.say(t, "under load")
			return known.count() >= want
		})
		p.end()
		killed := time.Now()
		if !nas.knows(t, "tv") || !tv.knows(t, "nas") || !tv.knows(t, "edge") {
			t.Error("names do not resolve while the gateway is down")
		}
		p = startGatewayProcess(t, at)
		waitFor(t, 2*time.Minute, "all to come back", func() bool {
			return !slices.ContainsFunc([]*testNode{nas, tv, nodes["web"]}, func(n *testNode) bool { return !n.hasStreamSince(killed) })
		})
		t.Logf("all are back %s after the kill", time.Since(killed).Round(time.Millisecond))
		c.sayWithin(t, "afterwards", time.Minute)
		want = known.count() + 2
		waitFor(t, 2*time.Minute, "joins to go on", func() bool { return known.count() >= want })
		cancel()
		load.Wait()
		known.check(t, g)
	}
}

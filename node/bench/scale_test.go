//go:build bench

package bench

import (
	"cmp"
	"context"
	"crypto/ecdh"
	"crypto/rand"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"text/tabwriter"
	"time"

	"github.com/meshdns/meshdns/node/control"
)

const (
	gatewayAddress = "203.0.113.5"
	joiners        = 24  // that join at the same time
	mostMemory     = 200 // MiB resident, ever, of the gateway of a thousand nodes
)

// number reads a setting from the environment.
func number(t *testing.T, name string, fallback int) int {
	t.Helper()
	text := cmp.Or(os.Getenv(name), strconv.Itoa(fallback))
	n, err := strconv.Atoi(text)
	if err != nil || n < 1 {
		t.Fatalf("%s=%s: not a number above 0", name, text)
	}
	return n
}

func words(name, fallback string) []string {
	return strings.FieldsFunc(cmp.Or(os.Getenv(name), fallback), func(r rune) bool { return r == ',' || r == ' ' })
}

// TestScale joins many nodes to one gateway and changes the map.
func TestScale(t *testing.T) {
	if !inside(t) {
		return
	}
	must(t, "ip", "addr", "add", gatewayAddress+"/32", "dev", "lo")
	var rows []scale
	for _, mode := range words("BENCH_MODES", "tun,userspace") {
		t.Run(mode, func(t *testing.T) { rows = append(rows, measureScale(t, mode)) })
	}
	var b strings.Builder
	tw := tabwriter.NewWriter(&b, 0, 8, 2, ' ', tabwriter.AlignRight)
	fmt.Fprint(tw, "gateway\tnodes\tjoins/s\tCPU ms a join\tpush ms p50\tp99\tmax\tCPU ms a push\tRSS MiB\tPSS\tin pushes\tin joins\tCPU % at rest\t\n")
	for _, r := range rows {
		fmt.Fprintf(tw, "%s\t%d\t%.0f\t%.1f\t%.0f\t%.0f\t%.0f\t%.0f\t%.0f\t%.0f\t%.0f\t%.0f\t%.1f\t\n", r.mode, r.nodes, r.joins, ms(r.joinCPU),
			ms(r.at(0.5)), ms(r.at(0.99)), ms(r.at(1)), ms(r.pushCPU), r.rss, r.pss, r.peak, r.storm, r.idle)
	}
	tw.Flush()
	fmt.Print("\n", b.String())
}

func ms(d time.Duration) float64 { return d.Seconds() * 1000 }

// scale is what was measured of one gateway.
type scale struct {
	mode             string
	nodes            int
	joins            float64 // a second
	joinCPU, pushCPU time.Duration
	pushes           []time.Duration // of each change, until each node had it
	rss, pss         float64         // at rest, in MiB
	peak, storm      float64         // the most resident while changes went out, and while all joined
	idle             float64
}

// at is the time within which a part of the pushes had arrived.
func (s scale) at(part float64) time.Duration {
	if len(s.pushes) == 0 {
		return 0
	}
	return s.pushes[int(part*float64(len(s.pushes)-1))]
}

func measureScale(t *testing.T, mode string) scale {
	s := scale{mode: mode, nodes: number(t, "BENCH_NODES", 1000)}
	config := fmt.Sprintf(`node: edge
dns: {os: "off", stub: "127.0.0.77:5300"}
tunnel: {mode: %s, port: 41642}
gateway: {zone: foo-bar.example.org, public: [%s], listen: [%s]}
`, mode, gatewayAddress, gatewayAddress)
	g := up(t, "gateway", filepath.Join(t.TempDir(), "gateway"), config)
	c, err := newCrowd()
	if err != nil {
		t.Fatal(err)
	}
	all := &members{crowd: c, gateway: g, list: make([]*member, s.nodes), told: make(chan arrival, 4*s.nodes)}
	ctx, cancel := context.WithCancel(t.Context())
	t.Cleanup(func() {
		cancel()
		all.running.Wait()
	})
	before, start := g.cpu(t), time.Now()
	all.join(t, ctx)
	s.joins = float64(s.nodes) / time.Since(start).Seconds()
	s.joinCPU = (g.cpu(t) - before) / time.Duration(s.nodes)
	t.Logf("%d nodes have joined in %s", s.nodes, time.Since(start))
	all.quiet(t)
	s.storm = g.memory(t, "VmHWM")
	before, start = g.cpu(t), time.Now()
	pause(ctx, time.Duration(number(t, "BENCH_IDLE", 20))*time.Second)
	s.idle = 100 * (g.cpu(t) - before).Seconds() / time.Since(start).Seconds()
	s.rss, s.pss = g.memory(t, "Rss"), g.memory(t, "Pss")
	g.forgetPeak(t)
	t.Logf("idle: %.1f %% of a CPU, RSS %.0f MiB", s.idle, s.rss)
	before = g.cpu(t)
	pushes := number(t, "BENCH_PUSHES", 20)
	for i := range pushes {
		s.pushes = append(s.pushes, all.push(t, i)...)
		all.quiet(t)
	}
	s.pushCPU = (g.cpu(t) - before) / time.Duration(pushes)
	s.peak = g.memory(t, "VmHWM")
	slices.Sort(s.pushes)
	if n, again := all.lost.Load(), all.again.Load(); n+again > 0 {
		t.Logf("%d streams ended and were opened again, %d joins were tried again", n, again)
	}
	if err := all.failed.Load(); err != nil {
		t.Errorf("a node failed: %v", *err)
	}
	if most := max(s.rss, s.peak, s.storm); s.nodes <= 1000 && most > mostMemory {
		t.Errorf("the gateway of %d nodes had %.0f MiB, and may have %d", s.nodes, most, mostMemory)
	}
	return s
}

func pause(ctx context.Context, d time.Duration) {
	select {
	case <-time.After(d):
	case <-ctx.Done():
	}
}

// members are the nodes of a crowd.
type members struct {
	crowd   *crowd
	gateway daemon
	list    []*member
	running sync.WaitGroup
	told    chan arrival
	failed  atomic.Pointer[error]
	lost    atomic.Int64 // streams that ended
	again   atomic.Int64 // joins that had to be tried again
}

// arrival says that a node has a version of the map.
type arrival struct {
	node    int
	version uint64
	at      time.Time
}

// member is a node that has joined.
type member struct {
	light  *light
	client *control.Client
	have   *control.Map // only its number, but for a few nodes
	whole  bool
	index  int
}

func (a *members) fail(err error) { a.failed.CompareAndSwap(nil, &err) }

// join has all nodes join, several at a time, and waits until each of them has the map with all.
func (a *members) join(t *testing.T, ctx context.Context) {
	t.Helper()
	next := make(chan int)
	go func() {
		defer close(next)
		for i := range a.list {
			select {
			case next <- i:
			case <-ctx.Done():
			}
		}
	}()
	var joining sync.WaitGroup
	for range joiners {
		joining.Go(func() {
			for i := range next {
				m, err := a.one(ctx, i)
				for try := 1; err != nil && try < 4 && ctx.Err() == nil; try++ { // as a user would, with another invite
					if a.again.Add(1) == 1 {
						fmt.Printf("node %d joins again: %v\n", i, err)
					}
					_ = a.gateway.RemoveNode(ctx, fmt.Sprintf("n%d", i))
					m, err = a.one(ctx, i)
				}
				if err != nil {
					a.fail(fmt.Errorf("joining node %d: %w", i, err))
					return
				}
				a.list[i] = m
				a.running.Go(func() { a.follow(ctx, m) })
			}
		})
	}
	joining.Wait()
	if err := a.failed.Load(); err != nil {
		t.Fatal(*err)
	}
	a.confirmed(t)
}

// one takes the steps of a node that joins: the call with the invite's key, then one with its own.
func (a *members) one(ctx context.Context, index int) (joined *member, err error) {
	reply, err := a.gateway.Invite(ctx, fmt.Sprintf("n%d", index), nil, 0, false)
	if err != nil {
		return nil, err
	}
	i, err := control.ParseInvite(reply.Invite)
	if err != nil {
		return nil, err
	}
	key, err := control.NewPrivateKey()
	if err != nil {
		return nil, err
	}
	own, err := ecdh.X25519().GenerateKey(rand.Reader)
	if err != nil {
		return nil, err
	}
	m := &member{index: index, whole: index%50 == 0}
	defer func() {
		if err != nil && m.light != nil {
			a.crowd.leave(m.light)
		}
	}()
	if m.light, err = a.crowd.newLight(i); err != nil {
		return nil, err
	}
	answer, err := m.light.client(i.Server, i.Control, key).Join(ctx, control.JoinRequest{Key: control.WireGuardKey(own.PublicKey().Bytes())})
	if err != nil {
		return nil, err
	}
	m.have = &answer.Map
	if !m.whole {
		m.have = &control.Map{Epoch: answer.Map.Epoch, Version: answer.Map.Version}
	}
	peers := []peer{{key: i.Gateway, at: i.Endpoints[0], allowed: i.Server, keep: true}}
	for _, n := range answer.Map.Nodes {
		if n.Gateway != nil {
			peers = append(peers, peer{key: n.Gateway.RelayKey, at: n.Gateway.Relay[0], keep: true})
		}
	}
	if len(peers) != 2 {
		return nil, errors.New("the map has no relay")
	}
	if err := m.light.be([32]byte(own.Bytes()), answer.Node.Addresses[0], peers...); err != nil {
		return nil, err
	}
	m.client = m.light.client(i.Server, i.Control, key)
	return m, m.report(ctx)
}

func (m *member) report(ctx context.Context) error {
	return m.client.Report(ctx, control.Report{Epoch: m.have.Epoch, Version: m.have.Version, Endpoints: []netip.AddrPort{netip.MustParseAddrPort("192.168.1.9:41642")}})
}

// follow holds a node's stream, and reports each map as nodes do.
func (a *members) follow(ctx context.Context, m *member) {
	for ctx.Err() == nil {
		err := m.client.Stream(ctx, m.have, func(e control.Event) error {
			at := time.Now()
			changed, err := m.take(e)
			if err != nil || !changed {
				return err
			}
			select {
			case a.told <- arrival{m.index, m.have.Version, at}:
			default: // nobody counts them while nodes join
			}
			return m.report(ctx)
		})
		if ctx.Err() == nil {
			a.lost.Add(1)
			if os.Getenv("BENCH_LOGS") != "" {
				fmt.Println("a stream has ended:", m.index, err)
			}
			pause(ctx, time.Second)
		}
	}
}

// take follows the map: a few nodes hold all of it, the others check that each change starts from where they are.
func (m *member) take(e control.Event) (changed bool, err error) {
	before := m.have
	switch {
	case m.whole:
		var next *control.Map
		if next, err = e.Newer(m.have); err == nil {
			m.have = next
		}
	case e.Map != nil:
		m.have = &control.Map{Epoch: e.Map.Epoch, Version: e.Map.Version}
	case e.Delta != nil && e.Delta.From != m.have.Version:
		return false, fmt.Errorf("a change from %d for a node that has %d", e.Delta.From, m.have.Version)
	case e.Delta != nil:
		m.have = &control.Map{Epoch: m.have.Epoch, Version: e.Delta.Version}
	}
	return err == nil && before.Version != m.have.Version, err
}

// confirmed waits until the gateway knows that all nodes have its newest map.
func (a *members) confirmed(t *testing.T) {
	t.Helper()
	var asked time.Time // which costs the gateway something
	until(t, "all nodes to confirm the map", 10*time.Minute, func() bool {
		if time.Since(asked) < 200*time.Millisecond {
			return false
		}
		asked = time.Now()
		for len(a.told) > 0 {
			<-a.told
		}
		reply, err := a.gateway.Nodes(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		for _, n := range reply.Nodes {
			if n.State != "node" || !n.Confirmed {
				return false
			}
		}
		return len(reply.Nodes) == len(a.list)+1
	})
}

// quiet waits until nothing is on its way any more.
func (a *members) quiet(t *testing.T) {
	t.Helper()
	a.confirmed(t)
}

// push changes the map once, and returns how long it took until each node had that.
func (a *members) push(t *testing.T, round int) []time.Duration {
	t.Helper()
	old, name := fmt.Sprintf("n%d", round), fmt.Sprintf("renamed%d", round)
	start := time.Now()
	if err := a.gateway.RenameNode(t.Context(), old, name); err != nil {
		t.Fatal(err)
	}
	var list []time.Duration
	seen := map[int]bool{}
	for over := time.After(time.Minute); len(list) < len(a.list); {
		select {
		case one := <-a.told:
			if !seen[one.node] {
				seen[one.node] = true
				list = append(list, one.at.Sub(start))
			}
		case <-over:
			t.Fatalf("%d nodes have the change after a minute", len(list))
		}
	}
	return list
}

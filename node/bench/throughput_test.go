//go:build bench

package bench

import (
	"bufio"
	"context"
	"encoding/base64"
	"fmt"
	"io"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"text/tabwriter"
	"time"
)

func decodeKey(key string) ([]byte, error) { return base64.StdEncoding.DecodeString(key) }

// setup is one way for a stream from a to b.
type setup struct {
	name    string
	path    string // direct or relayed
	peer    string // of the set-up that it is compared with; its own: it is that
	tunnels []process
	run     func(t *testing.T, seconds string) string // returns what the source printed
}

// streamSample is one stream.
type streamSample struct {
	rate  float64 // MiB a second
	cpu   float64 // seconds a GiB, of the tunnels' processes
	ratio float64 // of rate to the peer's in the same round
}

// TestThroughput sends one TCP stream from node to node, and from node to gateway to node.
func TestThroughput(t *testing.T) {
	if !inside(t) {
		return
	}
	lab := newLab(t)
	lab.buildWireguard(t)
	setups := []setup{
		lab.wireguardDirect(t), lab.meshdnsDirect(t, "tun"), lab.netstackDirect(t), lab.userspaceDirect(t),
		lab.wireguardHub(t),
	}
	compareStreams(t, append(setups, lab.meshdnsRelayed(t, "tun", "userspace")...))
}

// compareStreams measures the set-ups in turns, and prints the table.
func compareStreams(t *testing.T, setups []setup) {
	t.Helper()
	seconds, rounds := fmt.Sprint(number(t, "BENCH_SECONDS", 3)), number(t, "BENCH_ROUNDS", 7)
	samples := map[string][]streamSample{}
	only := strings.Split(os.Getenv("BENCH_SETUPS"), ",")
	for round := range rounds + 1 {
		before := map[string]float64{} // of this round, by set-up
		for _, s := range setups {
			if only[0] != "" && !slices.Contains(only, s.name) {
				continue
			}
			one := s.measure(t, seconds)
			before[s.name] = one.rate
			if peer := before[s.peer]; peer > 0 {
				one.ratio = one.rate / peer
			}
			if round > 0 { // the first is for handshakes and congestion windows
				samples[s.name] = append(samples[s.name], one)
			}
		}
	}
	fmt.Print(streamTable(setups, samples))
}

func (s setup) measure(t *testing.T, seconds string) streamSample {
	t.Helper()
	var before, after time.Duration
	for _, p := range s.tunnels {
		before += p.cpu(t)
	}
	out := s.run(t, seconds)
	for _, p := range s.tunnels {
		after += p.cpu(t)
	}
	bytes, took, ok := streamed(out)
	if !ok {
		t.Fatalf("%s: the source printed:\n%s", s.name, out)
	}
	return streamSample{rate: bytes / took / (1 << 20), cpu: (after - before).Seconds() / (bytes / (1 << 30))}
}

// streamTable prints medians, and of the ratios how far apart the middle half of the rounds is.
func streamTable(setups []setup, samples map[string][]streamSample) string {
	var b strings.Builder
	tw := tabwriter.NewWriter(&b, 0, 8, 2, ' ', tabwriter.AlignRight)
	fmt.Fprint(tw, "\npath\tset-up\tMiB/s\tto peer\tspread\tCPU s a GiB\tpeer\truns\t\n")
	for _, s := range setups {
		list := samples[s.name]
		if len(list) == 0 {
			continue
		}
		of := func(value func(streamSample) float64) []float64 {
			var all []float64
			for _, one := range list {
				all = append(all, value(one))
			}
			slices.Sort(all)
			return all
		}
		ratios := of(func(s streamSample) float64 { return s.ratio })
		n := len(ratios)
		fmt.Fprintf(tw, "%s\t%s\t%.0f\t%.2f\t%.2f-%.2f\t%.2f\t%s\t%d\t\n", s.path, s.name, of(func(s streamSample) float64 { return s.rate })[n/2],
			ratios[n/2], ratios[n/4], ratios[n-1-n/4], of(func(s streamSample) float64 { return s.cpu })[n/2], s.peer, n)
	}
	tw.Flush()
	return b.String()
}

// lab is machines a and b with a cable between them, and machines c and d without; each has one to the gateway, which passes
// nothing on by itself.
type lab struct {
	dir       string
	wireguard string // the program wireguard-go; "": the kernel's is the peer
}

// peer is what carries the set-ups that meshdns is compared with.
func (l *lab) peer() string {
	if l.wireguard == "" {
		return "the kernel by hand"
	}
	return "wireguard-go"
}

// The addresses of a and b on the cable between them.
const directA, directB = "192.0.2.1", "192.0.2.2"

// within is how a program is run on a machine.
func within(machine string, args ...string) []string {
	return append([]string{"ip", "netns", "exec", machine}, args...)
}

func newLab(t *testing.T) *lab {
	t.Helper()
	l := &lab{dir: t.TempDir()}
	for _, m := range []string{"a", "b", "c", "d", "gw"} {
		must(t, "ip", "netns", "add", m)
		must(t, within(m, "ip", "link", "set", "lo", "up")...)
	}
	cable := func(m1, a1, m2, a2 string) {
		must(t, "ip", "link", "add", m1+m2, "netns", m1, "type", "veth", "peer", "name", m2+m1, "netns", m2)
		for _, end := range [][3]string{{m1, m1 + m2, a1}, {m2, m2 + m1, a2}} {
			must(t, within(end[0], "ip", "addr", "add", end[2], "dev", end[1])...)
			must(t, within(end[0], "ip", "link", "set", end[1], "up")...)
		}
	}
	cable("a", directA+"/30", "b", directB+"/30")
	must(t, within("gw", "ip", "addr", "add", gatewayAddress+"/32", "dev", "lo")...)
	for i, m := range []string{"a", "b", "c", "d"} {
		at := fmt.Sprintf("198.51.100.%d", 4*i+1)
		cable(m, fmt.Sprintf("198.51.100.%d/30", 4*i+2), "gw", at+"/30")
		must(t, within(m, "ip", "route", "add", gatewayAddress, "via", at)...)
		env, args := role("sink", fmt.Sprintf("0.0.0.0:%d", streamPort))
		launch(t, "sink-"+m, env, within(m, args...)...)
	}
	return l
}

func (l *lab) buildWireguard(t *testing.T) {
	t.Helper()
	l.wireguard = filepath.Join(l.dir, "wireguard-go")
	build := exec.Command("go", "build", "-trimpath", "-o", l.wireguard, "golang.zx2c4.com/wireguard")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("building wireguard-go: %v\n%s", err, out)
	}
}

// stream runs a source on a machine.
func stream(machine, to string, proxy ...string) func(t *testing.T, seconds string) string {
	return func(t *testing.T, seconds string) string {
		env, args := role(append([]string{"source", fmt.Sprintf("%s:%d", to, streamPort), seconds}, proxy...)...)
		args = within(machine, args...)
		ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
		defer cancel()
		cmd := exec.CommandContext(ctx, args[0], args[1:]...)
		cmd.Env = append(os.Environ(), env...)
		out, err := cmd.CombinedOutput()
		if err != nil {
			t.Fatalf("the stream to %s: %v\n%s", to, err, out)
		}
		return string(out)
	}
}

// wgLink is a link of wireguard-go.
type wgLink struct {
	machine, name, key string
	port               int
	address            string
}

// wg makes a link as wg-quick does. It returns the process that carries it, if it is one.
func (l *lab) wg(t *testing.T, w wgLink, peers ...string) []process {
	t.Helper()
	machine, link := w.machine, w.name
	var carriers []process
	if l.wireguard == "" {
		must(t, within(machine, "ip", "link", "add", link, "type", "wireguard")...)
	} else {
		carriers = append(carriers, launch(t, link, nil, within(machine, l.wireguard, "-f", link)...))
	}
	path := filepath.Join(l.dir, link+".key")
	if err := os.WriteFile(path, []byte(w.key), 0o600); err != nil {
		t.Fatal(err)
	}
	until(t, link, 30*time.Second, func() bool {
		return exec.Command("ip", within(machine, "wg", "show", link)[1:]...).Run() == nil
	})
	args := within(machine, "wg", "set", link, "private-key", path, "listen-port", fmt.Sprint(w.port))
	must(t, append(args, peers...)...)
	must(t, within(machine, "ip", "addr", "add", w.address, "dev", link)...)
	must(t, within(machine, "ip", "link", "set", "mtu", "1420", "up", "dev", link)...)
	return carriers
}

func (l *lab) wireguardDirect(t *testing.T) setup {
	keyA, pubA := keyPair(t)
	keyB, pubB := keyPair(t)
	a := l.wg(t, wgLink{"a", "wga", keyA, 51820, "10.66.0.1/24"}, "peer", pubB, "endpoint", directB+":51820", "allowed-ips", "10.66.0.2/32")
	b := l.wg(t, wgLink{"b", "wgb", keyB, 51820, "10.66.0.2/24"}, "peer", pubA, "endpoint", directA+":51820", "allowed-ips", "10.66.0.1/32")
	return setup{name: l.peer(), path: "direct", peer: l.peer(), tunnels: slices.Concat(a, b), run: stream("a", "10.66.0.2")}
}

// wireguardHub is what people without a relay do: the gateway is the only peer of both, and passes packets on between them.
func (l *lab) wireguardHub(t *testing.T) setup {
	keyA, pubA := keyPair(t)
	keyB, pubB := keyPair(t)
	keyH, pubH := keyPair(t)
	a := l.wg(t, wgLink{"a", "wgha", keyA, 51821, "10.67.0.1/24"}, "peer", pubH, "endpoint", gatewayAddress+":51821", "allowed-ips", "10.67.0.0/24")
	b := l.wg(t, wgLink{"b", "wghb", keyB, 51821, "10.67.0.2/24"}, "peer", pubH, "endpoint", gatewayAddress+":51821", "allowed-ips", "10.67.0.0/24", "persistent-keepalive", "25")
	h := l.wg(t, wgLink{"gw", "wgh", keyH, 51821, "10.67.0.3/24"}, "peer", pubA, "allowed-ips", "10.67.0.1/32", "peer", pubB, "allowed-ips", "10.67.0.2/32")
	must(t, within("gw", "sysctl", "-q", "-w", "net.ipv4.conf.wgh.forwarding=1")...)
	name := l.peer() + " hub"
	return setup{name: name, path: "relayed", peer: name, tunnels: slices.Concat(a, b, h), run: stream("a", "10.67.0.2")}
}

// staticPair runs meshdns on a and b with a static map.
func (l *lab) staticPair(t *testing.T, mode string, port int, network string) (a, b daemon) {
	t.Helper()
	var text strings.Builder
	fmt.Fprintf(&text, "zone: foo-bar.ts.net\nranges: [%s.0/24]\nnodes:\n", network)
	dirs := map[string]string{"a": filepath.Join(l.dir, mode+"a"), "b": filepath.Join(l.dir, mode+"b")}
	for i, m := range []string{"a", "b"} {
		out := must(t, program(t), "key", "show", "--state-dir", filepath.Join(dirs[m], "state"))
		key := strings.Fields(strings.TrimPrefix(out, "wireguard"))
		fmt.Fprintf(&text, "  %s: {addresses: [%s.%d], key: %q, endpoints: [\"%s:%d\"]}\n", m, network, i+1, key[0], []string{directA, directB}[i], port)
	}
	start := func(m string) daemon {
		if err := os.WriteFile(filepath.Join(dirs[m], "map.yaml"), []byte(text.String()), 0o644); err != nil {
			t.Fatal(err)
		}
		return up(t, mode+m, dirs[m], fmt.Sprintf("node: %s\nmap: %s\ndns: {os: \"off\", stub: \"127.0.0.77:%d\"}\ntunnel: {mode: %s, port: %d, proxy: \"127.0.0.1:%d\"}\n",
			m, filepath.Join(dirs[m], "map.yaml"), port+1000, mode, port, port+2000), within(m)...)
	}
	return start("a"), start("b")
}

func (l *lab) meshdnsDirect(t *testing.T, mode string) setup {
	a, b := l.staticPair(t, mode, 41650, "10.68.0")
	return setup{name: "meshdns " + mode, path: "direct", peer: l.peer(), tunnels: []process{a.process, b.process}, run: stream("a", "10.68.0.2")}
}

// userspaceDirect streams through the proxy of a node without a network of the machine's.
func (l *lab) userspaceDirect(t *testing.T) setup {
	a, b := l.staticPair(t, "userspace", 41660, "10.69.0")
	return setup{name: "meshdns userspace", path: "direct", peer: "wireguard-go netstack", tunnels: []process{a.process, b.process},
		run: stream("a", "10.69.0.2", "127.0.0.1:43660")}
}

// netstackDirect is the peer of a node in userspace: the two ends of the stream are in WireGuard's own processes.
func (l *lab) netstackDirect(t *testing.T) setup {
	keyA, pubA := keyPair(t)
	keyB, pubB := keyPair(t)
	env, args := role("netstack", inHex(t, keyB), "51822", inHex(t, pubA), directA+":51822", "10.70.0.2", "10.70.0.1")
	b := launch(t, "netstack-b", env, within("b", args...)...)
	env, args = role("netstack", inHex(t, keyA), "51822", inHex(t, pubB), directB+":51822", "10.70.0.1", "10.70.0.2", fmt.Sprint(number(t, "BENCH_SECONDS", 3)))
	args = within("a", args...)
	cmd := exec.CommandContext(t.Context(), args[0], args[1:]...)
	cmd.Env = append(os.Environ(), env...)
	in, err := cmd.StdinPipe()
	var out io.Reader
	if err == nil {
		out, err = cmd.StdoutPipe()
	}
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		in.Close()
		cmd.Process.Kill()
		cmd.Wait()
	})
	lines := bufio.NewScanner(out)
	run := func(t *testing.T, _ string) string {
		fmt.Fprintln(in, "go")
		for lines.Scan() {
			if strings.Contains(lines.Text(), "STREAM") {
				return lines.Text()
			}
		}
		t.Fatal("the netstack's stream has ended")
		return ""
	}
	return setup{name: "wireguard-go netstack", path: "direct", peer: "wireguard-go netstack", tunnels: []process{{"netstack-a", cmd.Process.Pid}, b}, run: run}
}

// meshdnsRelayed is two nodes that have joined a gateway and reach each other through that alone.
func (l *lab) meshdnsRelayed(t *testing.T, modes ...string) []setup {
	g := up(t, "gateway", filepath.Join(l.dir, "gateway"), fmt.Sprintf(`node: edge
dns: {os: "off", stub: "127.0.0.77:5300"}
tunnel: {mode: %s, port: 41642}
gateway: {zone: foo-bar.example.org, public: [%s], listen: [%s]}
`, modes[0], gatewayAddress, gatewayAddress), within("gw")...)
	var list []setup
	for i, mode := range modes {
		c, d := l.join(t, g, "c", mode, i), l.join(t, g, "d", mode, i)
		one := setup{name: "meshdns " + mode + " relayed", path: "relayed", peer: l.peer() + " hub", tunnels: []process{c.process, d.process, g.process}}
		to := addressOf(t, g, mode+"d")
		one.run = stream("c", to)
		if mode == "userspace" {
			one.run = stream("c", to, fmt.Sprintf("127.0.0.1:%d", 1100+i))
		}
		list = append(list, one)
	}
	return list
}

func (l *lab) join(t *testing.T, g daemon, machine, mode string, index int) daemon {
	t.Helper()
	name := mode + machine
	dir := filepath.Join(l.dir, "joined-"+name)
	takePlace(t, g, name, dir, within(machine)...)
	return up(t, "joined-"+name, dir, fmt.Sprintf("dns: {os: \"off\", stub: \"127.0.0.77:%d\"}\ntunnel: {mode: %s, port: %d, proxy: \"127.0.0.1:%d\"}\n",
		5400+index, mode, 41700+10*index, 1100+index), within(machine)...)
}

// takePlace has a gateway invite a node, and that join. Its files lie in dir. prefix is how it is run.
func takePlace(t *testing.T, g daemon, name, dir string, prefix ...string) {
	t.Helper()
	reply, err := g.Invite(t.Context(), name, nil, 0, false)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	invite := filepath.Join(dir, "invite")
	if err := os.WriteFile(invite, []byte(reply.Invite), 0o600); err != nil {
		t.Fatal(err)
	}
	must(t, append(prefix, program(t), "join", "--file", invite, "--state-dir", filepath.Join(dir, "state"))...)
}

// addressOf is a node's, once it is one.
func addressOf(t *testing.T, g daemon, name string) string {
	t.Helper()
	var at netip.Addr
	until(t, name+" to be a node", 30*time.Second, func() bool {
		reply, err := g.Nodes(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		for _, n := range reply.Nodes {
			if n.Name == name && n.State == "node" {
				at = n.Addresses[0]
			}
		}
		return at.IsValid()
	})
	return at.String()
}

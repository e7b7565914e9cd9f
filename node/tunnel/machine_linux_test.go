package tunnel

import (
	"bufio"
	"context"
	"errors"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/nftables"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
	"golang.zx2c4.com/wireguard/tun"
)

// isolated runs the test in a network of its own, as another process; true there.
func isolated(t *testing.T) bool {
	t.Helper()
	if os.Getenv("MESHDNS_NETNS") != "" {
		lo, err := netlink.LinkByName("lo")
		if err != nil {
			t.Fatal(err)
		}
		if err := netlink.LinkSetUp(lo); err != nil {
			t.Fatal(err)
		}
		return true
	}
	if os.Geteuid() != 0 {
		t.Skip("needs root for a network of its own")
	}
	cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^"+t.Name()+"$", "-test.v", "-test.timeout=120s")
	cmd.Env = append(os.Environ(), "MESHDNS_NETNS=1")
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET, Pdeathsig: syscall.SIGKILL}
	out, err := cmd.CombinedOutput()
	if err != nil || !strings.Contains(string(out), "--- PASS: "+t.Name()) {
		t.Errorf("in a network of its own: %v\n%s", err, out)
	}
	return false
}

func tunConfig(dir string) func(*Config) {
	return func(c *Config) { c.Mode, c.StateDir = TUN, dir }
}

// leftovers are the parts of a tunnel that are on the machine.
func leftovers(t *testing.T) (found []string) {
	t.Helper()
	if _, err := netlink.LinkByName(defaultLink); err == nil {
		found = append(found, "link")
	}
	for _, family := range []int{unix.AF_INET, unix.AF_INET6} {
		rules, err := netlink.RuleList(family)
		if err != nil {
			t.Fatal(err)
		}
		if slices.ContainsFunc(rules, func(r netlink.Rule) bool { return r.Table == table }) {
			found = append(found, "rule")
		}
	}
	nft, err := nftables.New()
	if err != nil {
		t.Fatal(err)
	}
	tables, err := nft.ListTables()
	if err != nil {
		t.Fatal(err)
	}
	for _, table := range tables {
		found = append(found, "table "+table.Name)
	}
	if now, _ := os.ReadFile(srcValidMark); strings.TrimSpace(string(now)) != "0" {
		found = append(found, "src_valid_mark")
	}
	return found
}

var everything = []string{"link", "rule", "rule", "table " + guardTable, "src_valid_mark"}

func TestTUNCarriesConnections(t *testing.T) {
	if isolated(t) {
		carryConnections(t, TUN)
	}
}

// Where the kernel has no WireGuard only its absence is seen; the lab's virtual machine has it.
func TestKernelCarriesConnections(t *testing.T) {
	if !isolated(t) {
		return
	}
	if !kernelHasWireGuard(t) {
		return
	}
	carryConnections(t, Kernel)
	// What a killed process leaves here is the link too.
	dir := t.TempDir()
	a := startNode(t, 1, func(c *Config) { c.Mode, c.StateDir = Kernel, dir })
	if err := a.carrier.engine.close(); err != nil {
		t.Fatal(err)
	}
	a.carrier.undo = nil
	lock, err := lockState(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	lock.dir = dir
	if err := errors.Join(cleanup(lock), cleanup(lock), lock.release()); err != nil {
		t.Error(err)
	}
	if got := leftovers(t); len(got) > 0 {
		t.Errorf("left: %q", got)
	}
}

func kernelHasWireGuard(t *testing.T) bool {
	t.Helper()
	attrs := netlink.NewLinkAttrs()
	attrs.Name = "trial"
	trial := &netlink.Wireguard{LinkAttrs: attrs}
	if err := netlink.LinkAdd(trial); err != nil {
		if os.Getenv("MESHDNS_KERNEL") != "" {
			t.Fatal(err)
		}
		t.Logf("no WireGuard in this kernel: %v", err)
		return false
	}
	if err := netlink.LinkDel(trial); err != nil {
		t.Fatal(err)
	}
	return true
}

// The kernel's WireGuard under one connection: a preshared key, another endpoint, a new key, the relay's way, and another one's
// preshared key, with which there is no session.
func TestKernelGoesOtherWaysWithOtherKeys(t *testing.T) {
	if !isolated(t) || !kernelHasWireGuard(t) {
		return
	}
	a, b := startNode(t, 1, func(c *Config) { c.Mode, c.StateDir = Kernel, t.TempDir() }), startNode(t, 2, nil)
	shared := NewSecret()
	toA, toB := a.peer(), b.peer()
	toA.Preshared, toB.Preshared = shared, shared
	set := func(forB ...Peer) {
		t.Helper()
		if err := errors.Join(a.SetPeers([]Peer{toB}), b.SetPeers(forB)); err != nil {
			t.Fatal(err)
		}
	}
	set(toA)
	echo(t, b.Tunnel, netip.AddrPortFrom(b.v4, 80))
	conn := dial(t, a.Tunnel, netip.AddrPortFrom(b.v4, 80))
	say := func(what string) {
		t.Helper()
		if err := exchange(conn, what); err != nil {
			t.Fatalf("%s: %v", what, err)
		}
	}
	say("with a preshared key")
	to := netip.AddrPortFrom(netip.MustParseAddr("127.0.0.2"), b.at.Port())
	if err := a.SetEndpoint(toB.Key, to); err != nil {
		t.Fatal(err)
	}
	if s, err := a.Stats(); err != nil || len(s) != 1 || s[0].Endpoint != to || s[0].Handshake.IsZero() || s[0].Received == 0 {
		t.Errorf("%+v, %v", s, err)
	}
	say("at another endpoint")
	next := NewSecret()
	follows := toA
	follows.Key, follows.Replaces = next.Public(), toA.Key
	set(toA, follows)
	if err := errors.Join(a.SetKey(next), a.Renew(toB.Key, b.at)); err != nil {
		t.Fatal(err)
	}
	say("with a new key")
	a.key, follows.Replaces = next, Key{}
	r, at := startRelay(t, RelayConfig{})
	byRelay(t, r, at, a, b)
	passed := r.Stats().Passed
	say("through the relay")
	until(t, "packets to be relayed", func() bool {
		say("through the relay")
		return r.Stats().Passed > passed+2
	})
	follows.Preshared, toB.Endpoint = NewSecret(), b.at
	set(follows)
	if err := a.Renew(toB.Key, b.at); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Second)
	defer cancel()
	if c, err := a.Dial(ctx, "tcp", netip.AddrPortFrom(b.v4, 80)); err == nil {
		_ = c.Close()
		t.Error("another preshared key is taken")
	}
}

func carryConnections(t *testing.T, mode Mode) {
	dir := t.TempDir()
	a, b := startNode(t, 1, func(c *Config) { c.Mode, c.StateDir = mode, dir }), startNode(t, 2, nil)
	introduce(t, a, b)
	if name, index, ok := a.Link(); a.Mode() != mode || name != defaultLink || index == 0 || !ok {
		t.Errorf("mode %s, link %s %d", a.Mode(), name, index)
	}
	for _, pair := range [][2]netip.Addr{{a.v4, b.v4}, {a.v6, b.v6}} {
		here, there := netip.AddrPortFrom(pair[0], 80), netip.AddrPortFrom(pair[1], 80)
		echo(t, b.Tunnel, there)
		if err := exchange(dial(t, a.Tunnel, there), strings.Repeat("out ", 20000)); err != nil {
			t.Errorf("%s: %v", there, err)
		}
		echo(t, a.Tunnel, here)
		if err := exchange(dial(t, b.Tunnel, here), strings.Repeat("in ", 20000)); err != nil {
			t.Errorf("%s: %v", here, err)
		}
		// A program of this machine, which knows of no tunnel.
		for _, to := range []netip.AddrPort{here, there} {
			c, err := net.DialTimeout("tcp", to.String(), 20*time.Second)
			if err != nil {
				t.Fatal(err)
			}
			if err := errors.Join(exchange(c, "plain"), c.Close()); err != nil {
				t.Errorf("%s by a plain socket: %v", to, err)
			}
		}
	}
	if got := leftovers(t); !slices.Equal(got, everything) {
		t.Errorf("on the machine: %q, want %q", got, everything)
	}
	if err := Cleanup(dir); err == nil {
		t.Error("a tunnel in use is cleaned up")
	}
	if err := a.Close(); err != nil {
		t.Fatal(err)
	}
	if got := leftovers(t); len(got) > 0 {
		t.Errorf("left: %q", got)
	}
	if _, err := os.Stat(filepath.Join(dir, journalName)); err == nil {
		t.Error("the journal is left")
	}
}

func TestTheTunnelsOwnPacketsStayOutOfIt(t *testing.T) {
	if !isolated(t) {
		return
	}
	// The peer's endpoint lies in the range and in its own allowed addresses.
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		t.Fatal(err)
	}
	inside := netip.MustParsePrefix("10.8.0.200/32")
	if err := netlink.AddrAdd(lo, &netlink.Addr{IPNet: ipNet(inside)}); err != nil {
		t.Fatal(err)
	}
	a, b := startNode(t, 1, tunConfig(t.TempDir())), startNode(t, 2, nil)
	toB := b.peer()
	toB.AllowedIPs = prefixes("10.8.0.0/24")
	toB.Endpoint = netip.AddrPortFrom(inside.Addr(), b.at.Port())
	if err := errors.Join(a.SetPeers([]Peer{toB}), b.SetPeers([]Peer{a.peer()})); err != nil {
		t.Fatal(err)
	}
	echo(t, b.Tunnel, netip.AddrPortFrom(b.v4, 80))
	if err := exchange(dial(t, a.Tunnel, netip.AddrPortFrom(b.v4, 80)), "hello"); err != nil {
		t.Error(err)
	}
	routes := func(fwmark uint32) string {
		found, err := netlink.RouteGetWithOptions(net.IPv4(10, 8, 0, 99), &netlink.RouteGetOptions{Mark: fwmark})
		if err != nil || len(found) == 0 {
			return "none"
		}
		link, _ := netlink.LinkByIndex(found[0].LinkIndex)
		return link.Attrs().Name
	}
	if routes(0) != defaultLink || routes(mark) == defaultLink {
		t.Errorf("without the mark: %s, with it: %s", routes(0), routes(mark))
	}
}

// The attack of S2: a neighbour on another link sends packets with a tailnet source, or to a tailnet address.
func TestNeighboursCannotSpeakAsTheTailnet(t *testing.T) {
	if !isolated(t) {
		return
	}
	startNode(t, 1, func(c *Config) {
		tunConfig(t.TempDir())(c)
		if os.Getenv("MESHDNS_KERNEL") != "" {
			c.Mode = Kernel
		}
	})
	neighbour, err := tun.CreateTUN("neighbour", 1400)
	if err != nil {
		t.Fatal(err)
	}
	defer neighbour.Close()
	link, err := netlink.LinkByName("neighbour")
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(netlink.LinkSetUp(link), netlink.AddrAdd(link, &netlink.Addr{IPNet: ipNet(netip.MustParsePrefix("192.0.2.1/24"))}),
		netlink.AddrAdd(link, &netlink.Addr{IPNet: ipNet(netip.MustParsePrefix("2001:db8::1/64")), Flags: unix.IFA_F_NODAD})); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"all", "neighbour"} {
		if err := os.WriteFile("/proc/sys/net/ipv4/conf/"+name+"/rp_filter", []byte("2"), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	victim, err := net.ListenPacket("udp", ":5353")
	if err != nil {
		t.Fatal(err)
	}
	defer victim.Close()
	// came tells whether a datagram reached the victim; one that may come follows it and shows that it would have by now.
	came := func(from, to string) bool {
		t.Helper()
		good := [2]string{"192.0.2.2", "192.0.2.1"}
		for _, p := range [][2]string{{from, to}, good} {
			b := append(make([]byte, 16), datagram(p[0], p[1], 5353)...)
			if _, err := neighbour.Write([][]byte{b}, 16); err != nil {
				t.Fatal(err)
			}
		}
		_ = victim.SetReadDeadline(time.Now().Add(20 * time.Second))
		for seen := false; ; seen = true {
			_, source, err := victim.ReadFrom(make([]byte, 100))
			if err != nil {
				t.Fatal(err)
			}
			if netip.MustParseAddrPort(source.String()).Addr().Unmap().String() == good[0] {
				return seen
			}
		}
	}
	attacks := [][2]string{
		{"10.8.0.2", "192.0.2.1"}, {"10.8.0.2", "10.8.0.1"}, {"192.0.2.9", "10.8.0.1"},
		{"fd00::2", "2001:db8::1"}, {"fd00::2", "fd00::1"}, {"2001:db8::9", "fd00::1"},
	}
	for _, a := range attacks {
		if came(a[0], a[1]) {
			t.Errorf("%s to %s came in", a[0], a[1])
		}
	}
	if err := removeGuard(); err != nil {
		t.Fatal(err)
	}
	for _, a := range attacks {
		if !came(a[0], a[1]) {
			t.Errorf("%s to %s: no attack even without the guard", a[0], a[1])
		}
	}
}

// datagram is a UDP packet with its checksums.
func datagram(from, to string, port uint16) []byte {
	b := ip(from, to, protoUDP, append(udpHeader(4000, port), "x"...))
	at := 20
	if b[0]>>4 == 6 {
		at = 40
	}
	b[at+5] = 9 // the length
	addresses := b[12:20]
	if at == 40 {
		addresses = b[8:40]
	}
	pseudo := slices.Concat(addresses, []byte{0, protoUDP, 0, 9}, b[at:])
	sum := checksum(pseudo)
	b[at+6], b[at+7] = byte(sum>>8), byte(sum)
	if at == 20 {
		sum = checksum(b[:20])
		b[10], b[11] = byte(sum>>8), byte(sum)
	}
	return b
}

func checksum(b []byte) uint16 {
	var sum uint32
	for i, c := range b {
		sum += uint32(c) << (8 * (1 - i%2))
	}
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	return ^uint16(sum)
}

func TestAKilledTunnelIsCleanedUp(t *testing.T) {
	if dir := os.Getenv("MESHDNS_VICTIM"); dir != "" {
		startNode(t, 1, tunConfig(dir))
		_, _ = io.WriteString(os.Stdout, "up\n")
		select {}
	}
	if !isolated(t) {
		return
	}
	for name, mend := range map[string]func(dir string) error{
		"by Cleanup": Cleanup,
		"by the next start": func(dir string) error {
			return startNode(t, 1, tunConfig(dir)).Close()
		},
	} {
		dir := t.TempDir()
		cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^TestAKilledTunnelIsCleanedUp$")
		cmd.Env = append(os.Environ(), "MESHDNS_VICTIM="+dir)
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		if line, err := bufio.NewReader(out).ReadString('\n'); line != "up\n" {
			t.Fatalf("the tunnel that is to be killed: %q, %v", line, err)
		}
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		until(t, "the TUN is gone", func() bool { _, err := netlink.LinkByName(defaultLink); return err != nil })
		if got := leftovers(t); !slices.Equal(got, everything[1:]) {
			t.Errorf("%s: after the kill: %q", name, got)
		}
		for range 2 {
			if err := mend(dir); err != nil {
				t.Errorf("%s: %v", name, err)
			}
			if got := leftovers(t); len(got) > 0 {
				t.Errorf("%s: left: %q", name, got)
			}
		}
	}
}

func TestAForeignLinkIsLeftAlone(t *testing.T) {
	if !isolated(t) {
		return
	}
	attrs := netlink.NewLinkAttrs()
	attrs.Name = defaultLink
	if err := netlink.LinkAdd(&netlink.Veth{LinkAttrs: attrs, PeerName: "other"}); err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	tunnel, err := New(Config{Mode: TUN, Key: NewSecret(), Addresses: addrs("10.8.0.1"), Ranges: testRanges, StateDir: dir})
	if err != nil {
		t.Fatal(err)
	}
	var hint interface{ Hint() string }
	if err := tunnel.Start(t.Context()); !errors.As(err, &hint) {
		t.Errorf("%v", err)
	}
	if err := Cleanup(dir); err != nil {
		t.Error(err)
	}
	if got := leftovers(t); !slices.Equal(got, []string{"link"}) {
		t.Errorf("left: %q", got)
	}
}

func TestAutoSaysWhyNotTheKernel(t *testing.T) {
	if !isolated(t) {
		return
	}
	a := startNode(t, 1, func(c *Config) { c.Mode, c.StateDir = Auto, t.TempDir() })
	why := strings.Join(a.Why(), "; ")
	if a.Mode() == Kernel && why == "kernel: chosen" {
		return // this kernel has it
	}
	if os.Getenv("MESHDNS_KERNEL") != "" {
		t.Fatalf("mode %s: %s", a.Mode(), why)
	}
	if a.Mode() != TUN || !strings.HasPrefix(why, "kernel: no wireguard module (") || !strings.HasSuffix(why, "tun: chosen") {
		t.Errorf("mode %s: %s", a.Mode(), why)
	}
}

func FuzzJournal(f *testing.F) {
	f.Add([]byte(`{"version":1,"link":"meshdns0","kind":"tun","sysctls":{"` + srcValidMark + `":"0"}}`))
	f.Add([]byte(`{"version":1,"link":"../x","sysctls":{"/etc/passwd":"0"}}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		j, err := parseJournal(data)
		if err != nil {
			return
		}
		for path := range j.Sysctls {
			if path != srcValidMark {
				t.Errorf("it may write %s", path)
			}
		}
		if strings.Contains(j.Link, "/") || j.Link == "" {
			t.Errorf("link %q", j.Link)
		}
	})
}

func TestIntervalsDoNotOverlap(t *testing.T) {
	got := elements(prefixes("10.8.0.3/32", "10.8.0.0/31", "10.8.0.2/32", "10.8.0.3/32", "255.255.255.255/32", "10.9.0.0/16", "10.9.1.0/24"))
	var text []string
	for _, e := range got {
		a, _ := netip.AddrFromSlice(e.Key)
		if e.IntervalEnd {
			text = append(text, "-"+a.String())
		} else {
			text = append(text, a.String())
		}
	}
	want := []string{"10.8.0.0", "-10.8.0.4", "10.9.0.0", "-10.10.0.0", "255.255.255.255"}
	if !slices.Equal(text, want) {
		t.Errorf("got %q, want %q", text, want)
	}
}

// The kernel's WireGuard has no filter of this process before it; nf_tables does the same. A TUN stands in for its link.
func TestNfTablesHoldThePolicy(t *testing.T) {
	if !isolated(t) {
		return
	}
	a, b := startNode(t, 1, tunConfig(t.TempDir())), startNode(t, 2, nil)
	introduce(t, a, b)
	for _, on := range []string{"10.8.0.1:80", "10.8.0.1:81", "[fd00::1]:80", "[fd00::1]:81"} {
		echo(t, a.Tunnel, netip.MustParseAddrPort(on))
	}
	echo(t, b.Tunnel, netip.AddrPortFrom(b.v4, 80))
	guard := newGuard(a.config, a.at.Port())
	guard.inside = true
	if err := guard.set(nil); err != nil {
		t.Fatal(err)
	}
	open := dial(t, b.Tunnel, netip.MustParseAddrPort("10.8.0.1:81"))
	rules := []Rule{
		{Source: netip.MustParsePrefix("10.8.0.2/32"), Protocol: protoTCP, First: 79, Last: 80},
		{Source: netip.MustParsePrefix("fd00::/96"), First: 80, Last: 80},
		{Source: netip.MustParsePrefix("fd00::3/128"), Protocol: protoICMP},
	}
	for i := range 2000 { // more than one message holds
		rules = append(rules, Rule{Source: netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 9, byte(i >> 7), byte(i << 1)}), 32), Protocol: protoTCP, First: 79, Last: 80})
	}
	p, err := newPolicy(rules)
	if err != nil {
		t.Fatal(err)
	}
	if err := guard.set(p); err != nil {
		t.Fatal(err)
	}
	for _, on := range []string{"10.8.0.1:80", "[fd00::1]:80"} {
		if err := exchange(dial(t, b.Tunnel, netip.MustParseAddrPort(on)), "allowed"); err != nil {
			t.Errorf("%s: %v", on, err)
		}
	}
	if err := errors.Join(exchange(open, "goes on"), exchange(dial(t, a.Tunnel, netip.AddrPortFrom(b.v4, 80)), "the other way")); err != nil {
		t.Error(err)
	}
	for _, on := range []string{"10.8.0.1:81", "[fd00::1]:81"} {
		ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
		if _, err := b.Dial(ctx, "tcp", netip.MustParseAddrPort(on)); err == nil {
			t.Errorf("%s is open", on)
		}
		cancel()
	}
	if err := guard.set(nil); err != nil {
		t.Fatal(err)
	}
	if err := exchange(dial(t, b.Tunnel, netip.MustParseAddrPort("10.8.0.1:81")), "again"); err != nil {
		t.Error(err)
	}
}

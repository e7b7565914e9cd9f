package main_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/net/proxy"
	"golang.org/x/sys/unix"

	"github.com/meshdns/meshdns/node"
)

// The hosts are those of testdata/proof/tailnet.sh.
const (
	tailnetZone = "foo-bar.example.org"
	echoAt      = "7777" // every host's port that says again what it hears

	// pathTimeout is how long a pair may take to find its direct path: trials that fail are repeated after 15 to 60 s.
	pathTimeout = 5 * time.Minute
	// patience is for one connection.
	patience = 10 * time.Second
)

// netHost is one of the hosts.
type netHost struct {
	name string
	pid  int  // of the process that holds its namespaces
	user bool // it runs meshdns without root, and so its tailnet is inside that
	addr string
	up   *daemon
}

// tailnet is all of them.
type tailnet struct {
	gateway *netHost
	nodes   []*netHost
}

// openHost is a host that is there.
func openHost(t *testing.T, name string, user bool) *netHost {
	t.Helper()
	text, err := os.ReadFile("/hosts/" + name + "/pid")
	if err != nil {
		t.Fatal(err)
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(text)))
	if err != nil {
		t.Fatal(err)
	}
	return &netHost{name: name, pid: pid, user: user}
}

func openTailnet(t *testing.T) *tailnet {
	t.Helper()
	n := &tailnet{gateway: openHost(t, "gw", false)}
	for _, name := range []string{"alfa", "beta", "carl", "dora", "emil", "fred", "greg"} {
		n.nodes = append(n.nodes, openHost(t, name, name == "carl"))
	}
	return n
}

// node is the node of a name.
func (n *tailnet) node(name string) *netHost {
	for _, h := range n.nodes {
		if h.name == name {
			return h
		}
	}
	return n.gateway
}

// direct reports whether two nodes have to find a direct path, and what of the address where they reach each other is known.
// alfa, beta and carl are behind NATs that keep a port, greg has a public address; dora and emil get a port for each peer that
// nobody else can know, and only who takes packets from anywhere hears them; fred is reached by who has IPv6.
func direct(a, b string) bool {
	kept := func(name string) bool { return strings.Contains("alfa beta carl", name) }
	return kept(a) && kept(b) || a == "greg" || b == "greg"
}

// pairs calls f for every two nodes, both ways.
func (n *tailnet) pairs(f func(a, b *netHost)) {
	for _, a := range n.nodes {
		for _, b := range n.nodes {
			if a != b {
				f(a, b)
			}
		}
	}
}

// enter is a command line as root runs it on a host.
func (h *netHost) enter(args ...string) []string {
	return append([]string{"nsenter", "-t", strconv.Itoa(h.pid), "-n", "-m", "-u"}, args...)
}

// command is one as the host's user runs it.
func (h *netHost) command(args ...string) []string {
	if h.user {
		args = append([]string{"setpriv", "--reuid", "1000", "--regid", "1000", "--clear-groups", "env", "HOME=/home/" + h.name}, args...)
	}
	return h.enter(args...)
}

// path is a file of a host, as this process sees it.
func (h *netHost) path(name string) string {
	return filepath.Join("/proc", strconv.Itoa(h.pid), "root", name)
}

func (h *netHost) client() node.Client {
	if h.user {
		return node.Client{Socket: h.path("/home/" + h.name + "/.local/state/meshdns/meshdns.sock")}
	}
	return node.Client{Socket: h.path("/run/meshdns/meshdns.sock")}
}

// do calls f in the host's network. Sockets that f makes stay there; f must not have others make them.
func (h *netHost) do(f func() error) error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // and never unlocked: the thread ends with this
		space, err := os.Open(fmt.Sprintf("/proc/%d/ns/net", h.pid))
		if err == nil {
			err = unix.Setns(int(space.Fd()), unix.CLONE_NEWNET)
			space.Close()
		}
		if err == nil {
			err = f()
		}
		done <- err
	}()
	return <-done
}

// start starts meshdns on a host, and waits until it answers.
func (h *netHost) start(t *testing.T) {
	t.Helper()
	h.up = background(t, h.command(program, "up", "--debug")...)
	status := ready(t, h.up, h.client().Socket)
	for _, one := range status.Nodes {
		if one.Self {
			h.addr = one.Addresses[0].String()
		}
	}
}

// status is how the node of a host is.
func (h *netHost) status(t *testing.T) (node.Status, error) {
	ctx, cancel := context.WithTimeout(t.Context(), commandTimeout)
	defer cancel()
	return h.client().Status(ctx)
}

// pathTo is how a host reaches another node: direct, gateway or none, and at what address.
func (h *netHost) pathTo(t *testing.T, name string) (path, at string, err error) {
	status, err := h.status(t)
	if err != nil {
		return "", "", err
	}
	for _, p := range status.Tunnel.Peers {
		if p.Node == name {
			return p.Path, p.Endpoint, nil
		}
	}
	return "", "", fmt.Errorf("%s does not know %s", h.name, name)
}

// streams returns nil once the node holds a stream of maps that was opened after some time.
func (h *netHost) streams(t *testing.T, after time.Time) error {
	status, err := h.status(t)
	if err != nil {
		return err
	}
	if g := status.Tunnel.Gateway; g == nil || g.Since == nil || g.Since.Before(after.Truncate(time.Millisecond)) {
		return fmt.Errorf("%s does not reach the gateway", h.name)
	}
	return nil
}

// resolves returns nil if a name is answered with a node's address, by the stub and, where the machine's DNS is taken over,
// by the C library.
func (h *netHost) resolves(t *testing.T, peer *netHost) error {
	status, err := h.status(t)
	if err != nil {
		return err
	}
	if err := h.do(func() error { return asks(status.DNS.Stub, peer.name+"."+tailnetZone, peer.addr) }); err != nil || h.user {
		return err
	}
	out, code := output(t, h.command("getent", "ahostsv4", peer.name)...)
	if code != 0 || !strings.HasPrefix(out, peer.addr+" ") {
		return fmt.Errorf("on %s getent says of %s: %q, want %s", h.name, peer.name, out, peer.addr)
	}
	return nil
}

// dial connects to a port of another node by its name: as programs do where the machine is in the tailnet, and through the
// proxy where the tailnet is inside meshdns.
func (h *netHost) dial(t *testing.T, peer *netHost, limit time.Duration) (conn net.Conn, err error) {
	err = h.do(func() error {
		plain := &net.Dialer{Timeout: limit}
		if !h.user {
			conn, err = plain.Dial("tcp", net.JoinHostPort(peer.addr, echoAt)) // resolves has looked at the name
			return err
		}
		socks, err := proxy.SOCKS5("tcp", "127.0.0.1:1055", nil, plain)
		if err == nil {
			conn, err = socks.Dial("tcp", net.JoinHostPort(peer.name, echoAt))
		}
		return err
	})
	return conn, err
}

// says sends text over a connection to an echo, and returns nil once it is back.
func says(conn net.Conn, text string, limit time.Duration) error {
	if err := conn.SetDeadline(time.Now().Add(limit)); err != nil {
		return err
	}
	sent := make(chan error, 1)
	go func() {
		_, err := io.WriteString(conn, text)
		sent <- err
	}()
	got := make([]byte, len(text))
	_, err := io.ReadFull(conn, got)
	if err := errors.Join(err, <-sent); err != nil {
		return err
	}
	if string(got) != text {
		return errors.New("what came back is not what was sent")
	}
	return nil
}

// reaches returns nil if a new connection to another node carries some data there and back: enough for a path to count as used.
func (h *netHost) reaches(t *testing.T, peer *netHost, limit time.Duration) error {
	conn, err := h.dial(t, peer, limit)
	if err != nil {
		return fmt.Errorf("%s to %s: %w", h.name, peer.name, err)
	}
	defer conn.Close()
	if err := says(conn, strings.Repeat(h.name+" to "+peer.name+"\n", 300), limit); err != nil {
		return fmt.Errorf("%s to %s: %w", h.name, peer.name, err)
	}
	return nil
}

// echo answers on a host. Without root connections to its tailnet address come to 127.0.0.1.
func (h *netHost) echo(t *testing.T) {
	t.Helper()
	at := "0.0.0.0:" + echoAt
	if h.user {
		at = "127.0.0.1:" + echoAt
	}
	var ln net.Listener
	err := h.do(func() (err error) {
		ln, err = net.Listen("tcp4", at)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ln.Close() })
	go func() {
		for {
			conn, err := ln.Accept()
			if err != nil {
				return
			}
			go func() {
				defer conn.Close()
				_, _ = io.Copy(conn, conn)
			}()
		}
	}()
}

// traces are a host's network and DNS, as they have to be again.
func (h *netHost) traces(t *testing.T) string {
	t.Helper()
	var b strings.Builder
	for _, args := range [][]string{
		{"ip", "-br", "link"}, {"ip", "-br", "addr"}, {"ip", "rule"}, {"ip", "-6", "rule"}, {"ip", "route", "show", "table", "all"},
		{"ip", "-6", "route", "show", "table", "all"}, {"nft", "list", "ruleset"}, {"cat", "/proc/sys/net/ipv4/conf/all/src_valid_mark"},
		{"cat", "/etc/resolv.conf"}, {"ls", "-l", "/etc/resolv.conf"}, {"ls", "--hide=meshdns", "/etc"},
	} {
		b.WriteString(must(t, h.enter(args...)...))
	}
	return b.String()
}

// join invites every node, and has it join and run.
func (n *tailnet) join(t *testing.T) {
	t.Helper()
	must(t, n.gateway.command(program, "gateway", "init", "--zone", tailnetZone, "--public", "203.0.113.5", "--public", "2001:db8::5")...)
	n.gateway.start(t)
	for _, h := range n.nodes {
		h.join(t, n.gateway)
		h.start(t)
		h.echo(t)
	}
}

// join has a gateway invite a host, and that join.
func (h *netHost) join(t *testing.T, gateway *netHost) {
	t.Helper()
	invite := "/home/" + h.name + "-invite"
	text := must(t, append([]string{"sh", "-c", `exec "$@" 2>/dev/null`, "sh"}, gateway.command(program, "gateway", "invite", h.name)...)...)
	h.owns(t, invite, text)
	must(t, h.command(program, "join", "--file", invite)...)
}

// owns writes a file below /home that is the host's user's.
func (h *netHost) owns(t *testing.T, path, text string) {
	t.Helper()
	err := os.WriteFile(path, []byte(text), 0o600)
	if err == nil && h.user {
		err = os.Chown(path, 1000, 1000)
	}
	if err != nil {
		t.Fatal(err)
	}
}

// proveTailnet: two commands a node make a tailnet in which everybody is found and reached, directly where NATs allow it; it
// goes on while its gateway is dead, is whole again soon after that is back, and leaves nothing on the hosts.
func proveTailnet(t *testing.T) {
	n := openTailnet(t)
	before := map[string]string{}
	for _, h := range append(n.nodes, n.gateway) {
		before[h.name] = h.traces(t)
	}
	n.join(t)
	n.proveEverybodyIsReached(t)
	n.provePaths(t)
	n.proveNothingIsReadable(t)
	n.proveGatewayIsMissedByFew(t)
	for _, h := range append(n.nodes, n.gateway) {
		h.up.end(t, syscall.SIGTERM)
		if after := h.traces(t); after != before[h.name] {
			t.Errorf("%s before:\n%s\nand after:\n%s", h.name, before[h.name], after)
		}
	}
}

// proveEverybodyIsReached: every node finds every other one by name, and connects to it.
func (n *tailnet) proveEverybodyIsReached(t *testing.T) {
	n.pairs(func(a, b *netHost) {
		eventually(t, pathTimeout, a.name+" to find "+b.name, func() error { return a.resolves(t, b) })
		eventually(t, pathTimeout, a.name+" to reach "+b.name, func() error { return a.reaches(t, b, patience) })
	})
}

// provePaths: whoever can speaks directly, and the others through the gateway.
func (n *tailnet) provePaths(t *testing.T) {
	start := time.Now()
	n.pairs(func(a, b *netHost) {
		next := time.Now()
		eventually(t, pathTimeout, fmt.Sprintf("the path from %s to %s", a.name, b.name), func() error {
			if direct(a.name, b.name) && time.Now().After(next) { // a path is looked for where it is used
				next = time.Now().Add(time.Second)
				if err := a.reaches(t, b, patience); err != nil {
					return err
				}
			}
			return n.isPath(t, a, b)
		})
	})
	t.Logf("all paths are found after another %s", time.Since(start).Round(time.Millisecond))
	n.pairs(func(a, b *netHost) {
		_, at, err := a.pathTo(t, b.name)
		t.Logf("%s reaches %s at %s %v", a.name, b.name, at, err)
	})
}

// isPath returns nil if a node reaches another one as it has to.
func (n *tailnet) isPath(t *testing.T, a, b *netHost) error {
	path, at, err := a.pathTo(t, b.name)
	near := strings.HasPrefix(at, "192.168.1.")
	switch want := map[bool]string{true: "direct", false: "gateway"}[direct(a.name, b.name)]; {
	case err != nil:
		return err
	case path != want:
		return fmt.Errorf("%s reaches %s by %s at %s, want %s", a.name, b.name, path, at, want)
	case near != (a.name+b.name == "alfabeta" || a.name+b.name == "betaalfa"):
		return fmt.Errorf("%s reaches %s at %s: only neighbours have local addresses for each other", a.name, b.name, at)
	}
	return nil
}

package node

import (
	"bufio"
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// certified joins a machine whose certificates are the tailnet's own CA's.
func (g *testGateway) certified(t *testing.T, name string) *testNode {
	t.Helper()
	paths := testPaths(t)
	if _, err := paths.Join(t.Context(), g.invite(t, name), "", nil); err != nil {
		t.Fatal(err)
	}
	soon(t, "the end of joining", func() bool { return g.isNode(t, name) })
	cfg := testConfig()
	cfg.Node, cfg.Tunnel, cfg.Certs.CA = "", tunnelConfig{Mode: "userspace"}, []string{caLocal}
	return startNode(t, cfg, paths)
}

// backend is a server of the node's machine that tells what it was told of who comes.
func backend(t *testing.T) string {
	t.Helper()
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprintf(w, "%s for %s node %q funnel %q", r.URL.Path, r.Header.Get("X-Forwarded-For"), r.Header.Get("Meshdns-Node"), r.Header.Get("Meshdns-Funnel"))
	}))
	t.Cleanup(s.Close)
	return s.URL
}

// getPage asks over a connection for a page of a host.
func getPage(conn net.Conn, host, path string, header ...string) (status int, body string, err error) {
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(30 * time.Second))
	fmt.Fprintf(conn, "GET %s HTTP/1.1\r\nHost: %s\r\nConnection: close\r\n%s\r\n", path, host, strings.Join(append(header, ""), "\r\n"))
	resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
	if err != nil {
		return 0, "", err
	}
	defer resp.Body.Close()
	data, err := io.ReadAll(resp.Body)
	return resp.StatusCode, string(data), err
}

// dials reaches another node's port through the tailnet.
func (n *testNode) dials(t *testing.T, name string, port uint16) net.Conn {
	t.Helper()
	m, _ := n.node.tailnet.current()
	to, _ := m.Node(name)
	// TCP asks a node that has just been started anew after 1, 3, 7 and 15 s, and finds it later than another connection does.
	for end := time.Now().Add(time.Minute); ; {
		ctx, cancel := context.WithTimeout(t.Context(), 6*time.Second)
		conn, err := n.node.carrier.tunnel.Dial(ctx, "tcp", netip.AddrPortFrom(to.Addresses[0], port))
		cancel()
		if err == nil {
			return conn
		}
		if time.Now().After(end) {
			t.Fatal(err)
		}
	}
}

// secure ends TLS at a client that believes the tailnet's CA.
func (n *testNode) secure(t *testing.T, conn net.Conn, name string) *tls.Conn {
	t.Helper()
	root, err := n.node.tailnetRoot(t.Context())
	must(t, err)
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(root)
	return tls.Client(conn, &tls.Config{ServerName: name, RootCAs: roots})
}

// What is served is reached by other nodes through the tailnet, over TLS too, and they are told apart by the tunnel and by nothing
// that they say.
func TestANodeReachesWhatAnotherServes(t *testing.T) {
	g := startGateway(t)
	nas, tv := g.certified(t, "nas"), g.invited(t, "tv")
	soon(t, "names", func() bool { return nas.knows(t, "tv") && tv.knows(t, "nas") })
	const name = "nas.foo-bar.example.org"
	dir := t.TempDir()
	must(t, put(filepath.Join(dir, "a.txt"), "a file"))
	must(t, nas.serveDone(t, serveRequest{Kind: "http", Target: backend(t)}), nas.serveDone(t, serveRequest{Target: dir}))
	status, body, err := getPage(tv.dials(t, "nas", 80), name, "/x", "Meshdns-Node: somebody", "Meshdns_Node: somebody", "X-Forwarded-For: 192.0.2.9")
	if err != nil || status != 200 || !strings.Contains(body, `/x for 10.`) || !strings.Contains(body, `node "tv.foo-bar.example.org" funnel ""`) || strings.Contains(body, "192.0.2.9") {
		t.Errorf("HTTP: %d %s, %v", status, body, err)
	}
	status, body, err = getPage(tv.secure(t, tv.dials(t, "nas", 443), name), name, "/a.txt")
	if err != nil || status != 200 || body != "a file" {
		t.Errorf("HTTPS: %d %s, %v", status, body, err)
	}
	// S10: another name is none of this node's.
	if status, body, err = getPage(tv.dials(t, "nas", 80), "evil.example", "/"); err != nil || status != http.StatusMisdirectedRequest {
		t.Errorf("another host: %d %s, %v", status, body, err)
	}
	// Bytes as they come, to a program of the machine.
	must(t, nas.serveDone(t, serveRequest{Kind: "tcp", Port: 5432, Target: fmt.Sprint(program(t, "db"))}))
	if got, err := tv.reach(t, "nas", 5432); err != nil || got != "db?" {
		t.Errorf("TCP: %q, %v", got, err)
	}
	if _, err := nas.EndServed(t.Context(), serveOff{All: true}); err != nil {
		t.Fatal(err)
	}
	if got, err := tv.reach(t, "nas", 5432); err == nil {
		t.Errorf("once it has ended: %q", got)
	}
	// A service name that nobody has is taken, and is in everybody's map.
	must(t, nas.serveDone(t, serveRequest{Kind: "http", Name: "photos", Target: "text:pictures"}))
	soon(t, "the name", func() bool { return tv.knows(t, "photos") })
	if status, body, err = getPage(tv.dials(t, "photos", 80), "photos.foo-bar.example.org", "/"); err != nil || body != "pictures" {
		t.Errorf("photos: %d %s, %v", status, body, err)
	}
	if err := tv.serveDone(t, serveRequest{Kind: "http", Name: "photos", Target: "text:mine"}); err == nil || !strings.Contains(err.Error(), "taken: by node nas") {
		t.Errorf("another's name: %v", err)
	}
}

// visit is what a visitor gets who believes any certificate.
func (r *funnelRig) visit(t *testing.T, name, host, path string) (status int, body string, err error) {
	t.Helper()
	conn, err := r.visits(t, r.public, name)
	if err != nil {
		return 0, "", err
	}
	return getPage(conn, host, path, "Meshdns-Node: somebody", "Meshdns-Funnel: ?0")
}

// A visitor from the world reaches what a node shows, through a gateway that cannot read it; the node's program is told of the
// visitor's address and of no node, and what the tailnet alone is served stays there.
func TestAVisitorReachesWhatANodeShows(t *testing.T) {
	r := newFunnelRig(t)
	nas := r.certified(t, "nas")
	const name = "nas." + rigZone
	r.world.set(name+" A", "203.0.113.5")
	must(t, nas.serveDone(t, serveRequest{Path: "/private", Target: "text:private"}))
	c := nas.serve(t, serveRequest{Public: true, Target: backend(t)})
	c.stands(t)
	status, body, err := r.visit(t, name, name, "/x")
	if err != nil || status != 200 || body != `/x for `+visitorAddress+` node "" funnel "?1"` {
		t.Errorf("%d %s, %v", status, body, err)
	}
	// S13: what is served to the tailnet, and other names, are not to be come by.
	for path, host := range map[string]string{"/private": name, "/": "other." + rigZone} {
		if status, body, err := r.visit(t, name, host, path); err != nil || strings.Contains(body, "private\n") || host != name && status != http.StatusMisdirectedRequest || body == "private" {
			t.Errorf("%s of %s: %d %s, %v", path, host, status, body, err)
		}
	}
	seen := ""
	for !strings.Contains(seen, "visit ") {
		select {
		case line := <-c.log:
			seen += line + "\n"
		case <-time.After(time.Minute):
			t.Fatalf("no line for a visit:\n%s", seen)
		}
	}
	for _, part := range []string{"step asking the gateway to show https://" + name, "step from outside: connection", fmt.Sprintf(`"url":"https://%s:%d/"`, name, r.public), `"addr":"` + visitorAddress + `"`} {
		if !strings.Contains(seen, part) {
			t.Errorf("nothing was said of %s:\n%s", part, seen)
		}
	}
	c.stop()
	soon(t, "the end", func() bool {
		_, _, err := r.visit(t, name, name, "/")
		return isUnknownName(err)
	})
	// `meshdns funnel 443`: what the tailnet is served becomes public, and stays so over a restart.
	must(t, nas.serveDone(t, serveRequest{Public: true, Target: "443"}))
	if status, body, err := r.visit(t, name, name, "/private"); err != nil || body != "private" {
		t.Errorf("made public: %d %s, %v", status, body, err)
	}
	must(t, nas.end())
	cfg := testConfig()
	cfg.Node, cfg.Tunnel, cfg.Certs.CA = "", tunnelConfig{Mode: "userspace"}, []string{caLocal}
	again := startNode(t, cfg, nas.paths)
	soon(t, "it to be shown again", func() bool {
		_, body, err := r.visit(t, name, name, "/private")
		return err == nil && body == "private"
	})
	// Who may reach whom inside says nothing of visitors.
	r.policy(t, "allow: []")
	soon(t, "the policy", func() bool { m, _ := again.node.tailnet.current(); return m.access.given })
	if status, body, err := r.visit(t, name, name, "/private"); err != nil || body != "private" {
		t.Errorf("where no node may reach another: %d %s, %v", status, body, err)
	}
	r.policy(t, "funnel: []")
	soon(t, "the refusal in status", func() bool {
		status, err := again.Status(t.Context())
		return err == nil && strings.Contains(strings.Join(status.Problems, "\n"), "the gateway does not show it")
	})
	if err := again.serveDone(t, serveRequest{Public: true, Path: "/more", Target: "text:x"}); err == nil || !strings.Contains(err.Error(), "the gateway does not show") || hintOf(err) == "" {
		t.Errorf("what policy forbids: %v", err)
	}
}

// S14: the way for visitors is for gateways alone.
func TestNodesAreNoVisitorsOfEachOther(t *testing.T) {
	r := newFunnelRig(t)
	nas, tv := r.certified(t, "nas"), r.invited(t, "tv")
	soon(t, "names", func() bool { return tv.knows(t, "nas") })
	r.world.set("nas."+rigZone+" A", "203.0.113.5")
	must(t, nas.serveDone(t, serveRequest{Public: true, Target: "text:shown"}))
	conn := tv.dials(t, "nas", ingressPort)
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(30 * time.Second))
	_, _ = io.WriteString(conn, "PROXY TCP4 198.51.100.1 198.51.100.2 1234 443\r\n")
	if data, err := io.ReadAll(conn); len(data) > 0 {
		t.Errorf("answered %q, %v", data, err)
	}
	if keys := nas.node.gatewayVisits(netip.MustParseAddr("192.0.2.1")); len(keys) > 0 {
		t.Error("anybody is a gateway")
	}
}

// Whole ports are shown where policy lets them, of bytes and of datagrams.
func TestAVisitorReachesWholePorts(t *testing.T) {
	r := newFunnelRig(t)
	nas := r.certified(t, "nas")
	port := freeTCP(t, gatewayAddress)
	req := serveRequest{Public: true, Kind: kindTCP, Port: port, Target: fmt.Sprint(program(t, "db"))}
	if err := nas.serveDone(t, req); err == nil || !strings.Contains(err.Error(), "the gateway does not show") || hintOf(err) == "" {
		t.Errorf("what policy does not know of: %v", err)
	}
	r.policy(t, fmt.Sprintf(`funnel: [{nodes: [nas], ports: ["%d/tcp", "%d/udp"]}]`, port, port))
	must(t, nas.serveDone(t, req))
	conn, err := net.Dial("tcp", net.JoinHostPort(gatewayAddress, fmt.Sprint(port)))
	must(t, err)
	defer conn.Close()
	if got, err := converse(conn, "?"); err != nil || got != "db?" {
		t.Errorf("TCP: %q, %v", got, err)
	}
	echo, err := net.ListenPacket("udp", "127.0.0.1:0")
	must(t, err)
	defer echo.Close()
	go func() {
		buf := make([]byte, 100)
		for {
			size, from, err := echo.ReadFrom(buf)
			if err != nil {
				return
			}
			_, _ = echo.WriteTo(append([]byte("game"), buf[:size]...), from)
		}
	}()
	must(t, nas.serveDone(t, serveRequest{Public: true, Kind: kindUDP, Port: port, Target: echo.LocalAddr().String()}))
	visitor, err := net.Dial("udp", net.JoinHostPort(gatewayAddress, fmt.Sprint(port)))
	must(t, err)
	defer visitor.Close()
	soon(t, "an answer to a datagram", func() bool {
		buf := make([]byte, 100)
		_, _ = io.WriteString(visitor, "?")
		_ = visitor.SetReadDeadline(time.Now().Add(time.Second))
		size, err := visitor.Read(buf)
		return err == nil && string(buf[:size]) == "game?"
	})
	if got := nas.urls(t); len(got) != 2 {
		t.Errorf("served: %q", got)
	}
}

package node

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"os/exec"
	"strconv"
	"strings"
	"testing"
	"time"
)

// startProxied is a node of a gateway's tailnet with a proxy on a port of its own.
func startProxied(t *testing.T, g *testGateway, name string) *testNode {
	t.Helper()
	reply, err := g.Invite(t.Context(), name, nil, 0, false)
	if err != nil {
		t.Fatal(err)
	}
	paths := testPaths(t)
	if _, err := paths.Join(t.Context(), reply.Invite, "", nil); err != nil {
		t.Fatal(err)
	}
	cfg := testConfig()
	cfg.Node, cfg.Tunnel = "", tunnelConfig{Mode: "userspace", Proxy: "127.0.0.1:0"}
	return startNode(t, cfg, paths)
}

// curl runs the real one.
func curl(t *testing.T, args ...string) (string, error) {
	t.Helper()
	if _, err := exec.LookPath("curl"); err != nil {
		t.Skip("no curl: install it with .ci/deps")
	}
	out, err := exec.CommandContext(t.Context(), "curl", append([]string{"-sS", "--max-time", "20", "--noproxy", ""}, args...)...).CombinedOutput()
	return string(out), err
}

// Programs without root reach the tailnet by its names, and nothing else.
func TestCurlReachesTheTailnet(t *testing.T) {
	g := startGateway(t)
	nas, tv := g.invited(t, "nas"), startProxied(t, g, "tv")
	soon(t, "names", func() bool { return nas.knows(t, "tv") && tv.knows(t, "nas") })
	web := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.WriteString(w, "page for "+r.Host)
	}))
	defer web.Close()
	_, port, err := net.SplitHostPort(web.Listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	m, _ := tv.node.tailnet.current()
	node, _ := m.Node("nas")
	hosts := []string{"nas", "NAS.foo-bar.example.org", "nas.foo-bar.example.org.", node.Addresses[0].String(), "[" + node.Addresses[1].String() + "]"}
	for _, flag := range []string{"--socks5-hostname", "--proxy"} {
		if flag == "--proxy" {
			hosts = hosts[:4]
		}
		for _, host := range hosts {
			args := []string{flag, tv.ready.Proxy, "http://" + host + ":" + port + "/"}
			if flag == "--proxy" {
				args = append(args, "--proxytunnel")
			}
			if got, err := curl(t, args...); err != nil || !strings.HasPrefix(got, "page for ") {
				t.Errorf("%s %s: %q, %v", flag, host, got, err)
			}
		}
		for _, host := range []string{"example.com", "127.0.0.1", "nobody", "nobody.foo-bar.example.org"} {
			args := []string{flag, tv.ready.Proxy, "--proxytunnel", "http://" + host + ":" + port + "/"}
			if got, err := curl(t, args...); err == nil {
				t.Errorf("%s %s: %q", flag, host, got)
			}
		}
	}
	// What is served reaches the tailnet so too, and this machine's networks as ever.
	for host, ok := range map[string]bool{"nas": true, "nas.foo-bar.example.org": true, node.Addresses[0].String(): true, "127.0.0.1": true, "nobody.foo-bar.example.org": false} {
		conn, err := tv.node.dialServed(t.Context(), "tcp", net.JoinHostPort(host, port))
		if (err == nil) != ok {
			t.Errorf("a target at %s: %v", host, err)
		}
		if err == nil {
			conn.Close()
		}
	}
	// A name is not looked up by the program, and a page is not fetched for it.
	if got, err := curl(t, "--proxy", tv.ready.Proxy, "-w", "%{http_code}", "http://nas:"+port+"/"); err != nil || !strings.Contains(got, "only CONNECT") || !strings.HasSuffix(got, "403") {
		t.Errorf("without CONNECT: %q, %v", got, err)
	}
	// Through the proxy of one node another one would speak in its name.
	_, proxyPort, _ := net.SplitHostPort(tv.ready.Proxy)
	number, err := strconv.ParseUint(proxyPort, 10, 16)
	if err != nil {
		t.Fatal(err)
	}
	if got, err := nas.reach(t, "tv", uint16(number)); err == nil {
		t.Errorf("the proxy of another node: %q", got)
	}
}

// testProxy is a proxy whose tailnet is one echo.
func testProxy(t *testing.T, change func(*proxy)) string {
	t.Helper()
	p := &proxy{log: slog.New(slog.DiscardHandler), slots: make(chan struct{}, 4), request: proxyTime, idle: time.Minute}
	p.connect = func(_ context.Context, to target) (net.Conn, error) {
		switch to.String() {
		case "nas:7":
			a, b := net.Pipe()
			go func() {
				defer b.Close()
				_, _ = io.Copy(b, b)
			}()
			return a, nil
		case "8.8.8.8:7":
			return nil, errOutside
		case "slow:7":
			return nil, context.DeadlineExceeded
		}
		return nil, errNoNode
	}
	if change != nil {
		change(p)
	}
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- p.serve(ctx, ln) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return ln.Addr().String()
}

// answerTo is what a proxy answers to bytes.
func answerTo(t *testing.T, at, text string, count int) string {
	t.Helper()
	c, err := net.Dial("tcp", at)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if err := c.SetDeadline(time.Now().Add(10 * time.Second)); err != nil {
		t.Fatal(err)
	}
	if _, err := io.WriteString(c, text); err != nil {
		return err.Error()
	}
	b := make([]byte, count)
	n, err := io.ReadFull(c, b)
	if err != nil && !errors.Is(err, io.ErrUnexpectedEOF) && !errors.Is(err, io.EOF) {
		return string(b[:n]) + err.Error()
	}
	return string(b[:n])
}

func TestSOCKSRepliesSayWhy(t *testing.T) {
	at := testProxy(t, nil)
	const hello = "\x05\x01\x00"
	for name, tt := range map[string]struct {
		text string
		want string
	}{
		"a node, and what comes at once": {hello + "\x05\x01\x00\x03\x03nas\x00\x07early", "\x05\x00" + string(socksReply(socksDone)) + "early"},
		"outside the tailnet":            {hello + "\x05\x01\x00\x01\x08\x08\x08\x08\x00\x07", "\x05\x00" + string(socksReply(socksForbidden))},
		"the same, mapped into IPv6":     {hello + "\x05\x01\x00\x04" + string(net.ParseIP("8.8.8.8").To16()) + "\x00\x07", "\x05\x00" + string(socksReply(socksForbidden))},
		"an unknown name":                {hello + "\x05\x01\x00\x03\x03who\x00\x07", "\x05\x00" + string(socksReply(socksUnreachable))},
		"a node that is slow":            {hello + "\x05\x01\x00\x03\x04slow\x00\x07", "\x05\x00" + string(socksReply(socksExpired))},
		"BIND":                           {hello + "\x05\x02\x00\x03\x03nas\x00\x07", "\x05\x00" + string(socksReply(socksNoCommand))},
		"UDP":                            {hello + "\x05\x03\x00\x03\x03nas\x00\x07", "\x05\x00" + string(socksReply(socksNoCommand))},
		"another kind of address":        {hello + "\x05\x01\x00\x09\x03nas\x00\x07", "\x05\x00" + string(socksReply(socksNoAddressType))},
		"no port":                        {hello + "\x05\x01\x00\x03\x03nas\x00\x00", "\x05\x00" + string(socksReply(socksFailed))},
		"only with a password":           {"\x05\x01\x02", "\x05\xff"},
	} {
		if got := answerTo(t, at, tt.text, len(tt.want)); got != tt.want {
			t.Errorf("%s: got %q, want %q", name, got, tt.want)
		}
	}
}

// A web page can have a browser send these to a port of loopback.
func TestWebPagesDoNotGetThroughTheProxy(t *testing.T) {
	at := testProxy(t, nil)
	for name, tt := range map[string]struct{ text, want string }{
		"CONNECT, and what comes at once": {"CONNECT nas:7 HTTP/1.1\r\nHost: nas:7\r\n\r\nearly", "HTTP/1.1 200 Connection established\r\n\r\nearly"},
		"a page":                          {"GET / HTTP/1.1\r\nHost: 127.0.0.1:1055\r\n\r\n", "HTTP/1.1 403 "},
		"a whole address":                 {"GET http://nas:7/ HTTP/1.1\r\nHost: nas:7\r\n\r\n", "HTTP/1.1 403 "},
		"a form with a CONNECT in it":     {"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 30\r\n\r\nCONNECT nas:7 HTTP/1.1\r\n\r\nearly", "HTTP/1.1 403 "},
		"a WebSocket":                     {"GET / HTTP/1.1\r\nHost: nas:7\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nOrigin: https://example.com\r\n\r\n", "HTTP/1.1 403 "},
		"CONNECT of a page":               {"CONNECT nas:7 HTTP/1.1\r\nHost: nas:7\r\nOrigin: https://example.com\r\n\r\n", "HTTP/1.1 403 "},
		"CONNECT with a body":             {"CONNECT nas:7 HTTP/1.1\r\nHost: nas:7\r\nContent-Length: 5\r\n\r\nearly", "HTTP/1.1 403 "},
		"CONNECT of a path":               {"CONNECT /nas:7 HTTP/1.1\r\nHost: nas:7\r\n\r\n", "HTTP/1.1 "},
		"outside the tailnet":             {"CONNECT 8.8.8.8:7 HTTP/1.1\r\nHost: 8.8.8.8:7\r\n\r\n", "HTTP/1.1 403 "},
		"an unknown name":                 {"CONNECT who:7 HTTP/1.1\r\nHost: who:7\r\n\r\n", "HTTP/1.1 502 "},
		"a node that is slow":             {"CONNECT slow:7 HTTP/1.1\r\nHost: slow:7\r\n\r\n", "HTTP/1.1 504 "},
		"TLS":                             {"\x16\x03\x01\x00\x05hello\r\n\r\n", "HTTP/1.1 400 "},
		"a header without end":            {"CONNECT nas:7 HTTP/1.1\r\n" + strings.Repeat("A: b\r\n", 3000), "HTTP/1.1 400 "},
	} {
		if got := answerTo(t, at, tt.text, len(tt.want)); got != tt.want {
			t.Errorf("%s: got %q, want %q", name, got, tt.want)
		}
	}
}

func TestTheProxyIsBounded(t *testing.T) {
	at := testProxy(t, func(p *proxy) { p.request, p.idle = 300*time.Millisecond, 300*time.Millisecond })
	if got := answerTo(t, at, "\x05", 1); got != "" {
		t.Errorf("half a greeting: %q", got)
	}
	if got := answerTo(t, at, "CONNECT nas:7 HTTP/1.1\r\n\r\n", 100); got != "HTTP/1.1 200 Connection established\r\n\r\n" {
		t.Errorf("in silence: %q", got)
	}
	at = testProxy(t, nil)
	for range 4 {
		c, err := net.Dial("tcp", at)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
	}
	// The fifth gets no place: it is closed though it has said nothing.
	if got := answerTo(t, at, "", 1); got != "" {
		t.Errorf("one too many: %q", got)
	}
}

// A proxy whose port another program holds costs nothing but itself.
func TestAProxyWithoutItsPort(t *testing.T) {
	held, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer held.Close()
	g := startGatewayWith(t, gatewayTestConfig(t), testPaths(t))
	reply, err := g.Invite(t.Context(), "nas", nil, 0, false)
	if err != nil {
		t.Fatal(err)
	}
	paths := testPaths(t)
	if _, err := paths.Join(t.Context(), reply.Invite, "", nil); err != nil {
		t.Fatal(err)
	}
	cfg := testConfig()
	cfg.Node, cfg.Tunnel = "", tunnelConfig{Mode: "userspace", Proxy: held.Addr().String()}
	nas := startNode(t, cfg, paths)
	if s := strings.Join(nas.ready.Problems, "\n"); nas.ready.Proxy != "" || !strings.Contains(s, held.Addr().String()) {
		t.Errorf("%q, %q", nas.ready.Proxy, s)
	}
	soon(t, "names", func() bool { return nas.knows(t, "edge") })
}

// Names are the map's: of nodes, services, wildcards and records.
func TestNamesOfTheProxyAreTheMaps(t *testing.T) {
	m, err := parseMap("m", []byte(`zone: foo-bar.ts.net
ranges: [10.9.0.0/24]
nodes:
  nas: {addresses: [10.9.0.2], names: [photos], wildcard: true}
records: |
  db   CNAME nas
  out  CNAME example.com.
  web  300 A 10.9.0.3
`))
	if err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]string{
		"nas": "10.9.0.2", "Photos.foo-bar.ts.net.": "10.9.0.2", "x.nas": "10.9.0.2", "db": "10.9.0.2", "web.foo-bar.ts.net": "10.9.0.3",
		"out": "", "example.com": "", "": "", "ts.net": "",
	} {
		got := ""
		if list := addressesOf(m, name); len(list) > 0 {
			got = list[0].String()
		}
		if got != want {
			t.Errorf("%s: %q, want %q", name, got, want)
		}
	}
}

func FuzzProxyRequest(f *testing.F) {
	f.Add([]byte("\x05\x01\x00\x05\x01\x00\x03\x03nas\x00\x07"))
	f.Add([]byte("\x05\x01\x00\x05\x01\x00\x04\xfd\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x01\x00\x50"))
	f.Add([]byte("CONNECT nas:7 HTTP/1.1\r\nHost: nas:7\r\n\r\n"))
	f.Add([]byte("CONNECT [fd00::1%25eth0]:7 HTTP/1.1\r\n\r\n"))
	f.Fuzz(func(t *testing.T, data []byte) {
		check := func(to target) {
			if to.port == 0 || to.addr.IsValid() == (to.name != "") || len(to.name) > maxName+1 || to.addr.Is4In6() || to.addr.Zone() != "" {
				t.Errorf("%+v", to)
			}
		}
		in := bytes.NewReader(data)
		if open, err := readSocksMethods(in); err == nil && open {
			if to, err := readSocksRequest(in); err == nil {
				check(to)
			}
		}
		if req, err := readHeader(bufio.NewReader(bytes.NewReader(data))); err == nil {
			if to, err := vetConnect(req); err == nil {
				check(to)
			}
		}
	})
}

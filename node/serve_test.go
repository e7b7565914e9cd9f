package node

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/meshdns/meshdns/funnel"
)

// servingPaths are those of a node with a tunnel of its own and a static map.
func servingPaths(t *testing.T) Paths {
	t.Helper()
	paths := testPaths(t)
	s, err := loadSecrets(paths.State)
	must(t, err)
	writeTestMap(t, paths, fmt.Sprintf(`zone: foo-bar.ts.net
ranges: [100.64.0.0/10]
nodes:
  nas: {addresses: [100.64.0.2], names: [photos], key: %q}
  tv: {addresses: [100.64.0.3], names: [films]}
`, s.wireGuard.Public()))
	return paths
}

func servingConfig() Config {
	cfg := testConfig()
	cfg.Tunnel = tunnelConfig{Mode: "userspace"}
	return cfg
}

// serveCommand is a command that serves, in a goroutine of its own.
type serveCommand struct {
	up   chan struct{}
	done chan error
	stop context.CancelFunc
	log  chan string // what it was told
}

func (n *testNode) serve(t *testing.T, req serveRequest) *serveCommand {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	c := &serveCommand{up: make(chan struct{}), done: make(chan error, 1), stop: cancel, log: make(chan string, 1000)}
	go func() {
		c.done <- n.Serve(ctx, req, func(kind, text string, data json.RawMessage) {
			c.log <- kind + " " + text + string(data)
			if kind == "up" {
				close(c.up)
			}
		})
	}()
	t.Cleanup(cancel)
	return c
}

// stands waits until it is up.
func (c *serveCommand) stands(t *testing.T) {
	t.Helper()
	select {
	case <-c.up:
	case err := <-c.done:
		t.Fatalf("it ended: %v", err)
	case <-time.After(2 * time.Minute):
		t.Fatal("it does not come up")
	}
}

// ended is what it ended with.
func (c *serveCommand) ended(t *testing.T) error {
	t.Helper()
	select {
	case err := <-c.done:
		return err
	case <-time.After(2 * time.Minute):
		t.Fatal("it does not end")
		return nil
	}
}

// serveDone has something served in the background.
func (n *testNode) serveDone(t *testing.T, req serveRequest) error {
	t.Helper()
	req.Background = true
	return n.serve(t, req).ended(t)
}

// urls are the addresses of what is served.
func (n *testNode) urls(t *testing.T) []string {
	t.Helper()
	reply, err := n.Served(t.Context())
	must(t, err)
	list := []string{}
	for _, e := range reply.Entries {
		list = append(list, e.URL+" "+e.Source)
	}
	return list
}

func textAt(path, text string) serveRequest {
	return serveRequest{Kind: "http", Path: path, Target: "text:" + text}
}

func TestWhatIsServedInTheBackgroundOutlivesARestart(t *testing.T) {
	paths := servingPaths(t)
	n := startNode(t, servingConfig(), paths)
	must(t, n.serveDone(t, textAt("", "hello")), n.serveDone(t, textAt("/docs", "documents")))
	must(t, n.serveDone(t, serveRequest{Kind: "http", Name: "photos", Target: "text:photos"}))
	want := []string{
		"http://nas.foo-bar.ts.net/ background", "http://nas.foo-bar.ts.net/docs background", "http://photos.foo-bar.ts.net/ background",
	}
	if got := n.urls(t); !slices.Equal(got, want) {
		t.Errorf("got %q", got)
	}
	// The same place again is the place with another target.
	must(t, n.serveDone(t, textAt("/docs", "others")))
	must(t, n.end())
	info, err := os.Stat(filepath.Join(paths.State, servedFile))
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("%v, %v", info, err)
	}
	n = startNode(t, servingConfig(), paths)
	if got := n.urls(t); !slices.Equal(got, want) {
		t.Errorf("after a restart: %q", got)
	}
	reply, err := n.Served(t.Context())
	must(t, err)
	if e := reply.Entries[1]; e.Target != "text:others" || e.State != servedOK || len(reply.Problems) > 0 {
		t.Errorf("%+v, %q", e, reply.Problems)
	}
	off := serveOff{Kind: "http", Path: "/docs"}
	if ended, err := n.EndServed(t.Context(), off); err != nil || !slices.Equal(ended, []string{"http://nas.foo-bar.ts.net/docs"}) {
		t.Errorf("off: %q, %v", ended, err)
	}
	if _, err := n.EndServed(t.Context(), off); !errors.Is(err, ErrNotFound) || hintOf(err) == "" {
		t.Errorf("off again: %v", err)
	}
	if ended, err := n.EndServed(t.Context(), serveOff{All: true}); err != nil || len(ended) != 2 || len(n.urls(t)) > 0 {
		t.Errorf("reset: %q, %v", ended, err)
	}
}

func TestWhatIsServedInTheForegroundLivesWithTheCommand(t *testing.T) {
	n := startNode(t, servingConfig(), servingPaths(t))
	must(t, n.serveDone(t, textAt("/old", "old")))
	c := n.serve(t, textAt("", "hello"))
	c.stands(t)
	if got := n.urls(t); !slices.Equal(got, []string{"http://nas.foo-bar.ts.net/ foreground", "http://nas.foo-bar.ts.net/old background"}) {
		t.Errorf("got %q", got)
	}
	if err := n.serve(t, textAt("", "another")).ended(t); err == nil || !strings.Contains(err.Error(), "is served already") || hintOf(err) == "" {
		t.Errorf("the same place: %v", err)
	}
	if _, err := n.EndServed(t.Context(), serveOff{Kind: "http", Path: "/"}); err == nil || hintOf(err) != "end that command: Ctrl-C" {
		t.Errorf("off: %v", err)
	}
	c.stop()
	if err := c.ended(t); !errors.Is(err, context.Canceled) {
		t.Errorf("the command: %v", err)
	}
	soon(t, "the end", func() bool { return slices.Equal(n.urls(t), []string{"http://nas.foo-bar.ts.net/old background"}) })
}

func TestWhatIsServedEndsInTime(t *testing.T) {
	n := startNode(t, servingConfig(), servingPaths(t))
	short := textAt("", "hello")
	short.For = 1500 * time.Millisecond
	c := n.serve(t, short)
	c.stands(t)
	if err := c.ended(t); err != nil {
		t.Errorf("in the foreground: %v", err)
	}
	must(t, n.serveDone(t, short))
	soon(t, "the end", func() bool { return len(n.urls(t)) == 0 })
	soon(t, "the file to say so", func() bool {
		text, err := loadServed(n.paths.State)
		return err == nil && len(text.Entries) == 0
	})
}

// What is asked for becomes true, or is refused with the reason and the mend; nothing else changes by it.
func TestWhatCannotBeServedIsRefusedWithTheReason(t *testing.T) {
	n := startNode(t, servingConfig(), servingPaths(t))
	must(t, n.serveDone(t, textAt("", "hello")))
	for name, tt := range map[string]struct {
		req  serveRequest
		says string
		hint string
	}{
		"no gateway":            {serveRequest{Public: true, Target: "3000"}, "joined no gateway", hintGateway},
		"no certificate":        {serveRequest{Target: "text:x"}, "ts.net belongs to Tailscale", "local"},
		"a name of another":     {serveRequest{Kind: "http", Name: "films", Target: "text:x"}, "the name films is taken: by node tv", "another"},
		"a name of nobody":      {serveRequest{Kind: "http", Name: "git", Target: "text:x"}, "nobody has the name git", "names: [git]"},
		"a name programs know":  {serveRequest{Kind: "http", Name: "wpad", Target: "text:x"}, "wpad", ""},
		"no such file":          {serveRequest{Kind: "http", Path: "/f", Target: "/nowhere/at/all"}, "there is no /nowhere/at/all", "name a file"},
		"no target":             {serveRequest{Kind: "http", Path: "/f"}, "nothing to serve", "name a target"},
		"a target that is none": {serveRequest{Kind: "http", Path: "/f", Target: "gopher://x"}, "gopher", ""},
		"HTTP to the world":     {serveRequest{Kind: "http", Public: true, Target: "3000"}, "HTTP without TLS", "--https"},
		"no port":               {serveRequest{Kind: "tcp", Target: "3000"}, "needs a port", ""},
		"a path of TCP":         {serveRequest{Kind: "tcp", Port: 5432, Path: "/x", Target: "3000"}, "a path at a port of tcp", "--https"},
		"a name of TCP":         {serveRequest{Kind: "tcp", Port: 5432, Name: "photos", Target: "3000"}, "a name at a port of tcp", "--https"},
		"datagrams":             {serveRequest{Kind: "udp", Port: 53, Target: "53"}, "datagrams are not served", "policy"},
		"a kind that is none":   {serveRequest{Kind: "ftp", Port: 21, Target: "3000"}, "ftp", ""},
		"TLS at a port without": {serveRequest{Kind: "https", Port: 80, Target: "text:x"}, "http://nas.foo-bar.ts.net/ is served already", "off --http 80"},
		"a domain of here":      {serveRequest{Kind: "http", Domain: "x.foo-bar.ts.net", Target: "text:x"}, "is a name of the tailnet", "--name"},
		"a rule of no meaning":  {serveRequest{Kind: "http", Path: "/f", Target: "text:x", Allow: []string{"everybody"}}, "everybody", ""},
		"a rule nobody knows":   {serveRequest{Kind: "http", Path: "/f", Target: "text:x", Access: json.RawMessage(`{"alow":[]}`)}, "alow", "README"},
		"a header that is none": {serveRequest{Kind: "http", Path: "/f", Target: "text:x", SetHeaders: []string{"X"}}, "NAME: VALUE", ""},
		"an end long ago":       {serveRequest{Kind: "http", Path: "/f", Target: "text:x", For: -time.Second}, "cannot end", ""},
	} {
		t.Run(name, func(t *testing.T) {
			err := n.serveDone(t, tt.req)
			if err == nil || !strings.Contains(err.Error(), tt.says) || !strings.Contains(hintOf(err), tt.hint) {
				t.Errorf("got %v, hint %q", err, hintOf(err))
			}
			if got := n.urls(t); !slices.Equal(got, []string{"http://nas.foo-bar.ts.net/ background"}) {
				t.Errorf("served: %q", got)
			}
		})
	}
	c := n.serve(t, serveRequest{Kind: "http", Path: "/dead", Target: "1"})
	c.stands(t)
	if line := <-c.log; !strings.HasPrefix(line, "warning nothing answers at the target") {
		t.Errorf("a target that nothing listens at: %q", line)
	}
}

// request makes a call that Client has no method for.
func (n *testNode) request(t *testing.T, method, path, match, body string) (status int, answer string) {
	t.Helper()
	transport := &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", n.Socket)
	}}
	defer transport.CloseIdleConnections()
	r, err := http.NewRequestWithContext(t.Context(), method, "http://"+controlHost+path, strings.NewReader(body))
	must(t, err)
	if match != "" {
		r.Header.Set("If-Match", match)
	}
	resp, err := (&http.Client{Transport: transport}).Do(r)
	must(t, err)
	defer resp.Body.Close()
	data, err := io.ReadAll(resp.Body)
	must(t, err)
	return resp.StatusCode, string(data)
}

// Who changes what he has read changes nothing that has changed meanwhile.
func TestAChangeOfWhatWasReadIsRefusedOnceThatIsOld(t *testing.T) {
	n := startNode(t, servingConfig(), servingPaths(t))
	must(t, n.serveDone(t, textAt("", "hello")))
	read, err := n.Served(t.Context())
	must(t, err)
	list := `{"schema":"meshdns.serve/v1","entries":[{"kind":"http","name":"nas.foo-bar.ts.net","target":"text:new"}]}`
	if status, answer := n.request(t, "POST", pathServed, `"`+read.ETag+`"`, list); status != 200 || !strings.Contains(answer, "text:new") {
		t.Errorf("%d %s", status, answer)
	}
	if status, answer := n.request(t, "POST", pathServed, `"`+read.ETag+`"`, list); status != http.StatusPreconditionFailed || !strings.Contains(answer, "has changed") {
		t.Errorf("again: %d %s", status, answer)
	}
	for name, body := range map[string]string{
		"two at one place":   `{"schema":"meshdns.serve/v1","entries":[{"kind":"http","name":"a.b","target":"text:1"},{"kind":"http","name":"a.b","target":"text:2"}]}`,
		"an unknown key":     `{"schema":"meshdns.serve/v1","entries":[{"kind":"http","name":"a.b","target":"text:1","acess":{}}]}`,
		"what is no target":  `{"schema":"meshdns.serve/v1","entries":[{"kind":"http","name":"a.b","target":"gopher:x"}]}`,
		"the world, unasked": `{"schema":"meshdns.serve/v1","entries":[{"kind":"https","public":true,"name":"a.b","target":"text:1"}]}`,
	} {
		if status, answer := n.request(t, "POST", pathServed, "", body); status == 200 {
			t.Errorf("%s: %s", name, answer)
		}
	}
	if status, answer := n.request(t, "POST", pathServed, "", `{"schema":"meshdns.serve/v1","entries":[]}`); status != 200 || len(n.urls(t)) > 0 {
		t.Errorf("without: %d %s", status, answer)
	}
}

// A file that cannot be read is neither used nor replaced.
func TestADamagedFileOfWhatIsServedIsKept(t *testing.T) {
	paths := servingPaths(t)
	file := filepath.Join(paths.State, servedFile)
	must(t, put(file, `{"schema":"meshdns.serve/v1","entries":[{`))
	n := startNode(t, servingConfig(), paths)
	if err := n.serveDone(t, textAt("", "hello")); err == nil || !strings.Contains(err.Error(), servedFile) || hintOf(err) == "" {
		t.Errorf("got %v", err)
	}
	status, err := n.Status(t.Context())
	must(t, err)
	if !strings.Contains(strings.Join(status.Problems, "\n"), servedFile) {
		t.Errorf("problems: %q", status.Problems)
	}
	if left, err := os.ReadFile(file); err != nil || !strings.HasSuffix(string(left), "[{") {
		t.Errorf("%s, %v", left, err)
	}
	c := n.serve(t, textAt("", "hello")) // which needs no file
	c.stands(t)
}

// S20: strangers learn what is served, and not what stands behind it.
func TestStrangersLearnNamesOfWhatIsServedAlone(t *testing.T) {
	n := startNode(t, servingConfig(), servingPaths(t))
	req := textAt("", "words-of-ours")
	req.Allow, req.SetHeaders = []string{"198.51.100.7"}, []string{"X-Key: key-of-ours"}
	must(t, n.serveDone(t, req))
	status, body := strangersReply(t, n.node, "GET", pathServed, "")
	if status != 200 || !strings.Contains(body, "http://nas.foo-bar.ts.net/") {
		t.Errorf("%d %s", status, body)
	}
	for _, secret := range []string{"words-of-ours", "198.51.100.7", "key-of-ours"} {
		if strings.Contains(body, secret) {
			t.Errorf("strangers are told %s: %s", secret, body)
		}
	}
	reply, err := n.Served(t.Context())
	if err != nil || reply.Entries[0].Target != "text:words-of-ours" || reply.Entries[0].Access.Allow[0] != netip.MustParsePrefix("198.51.100.7/32") {
		t.Errorf("the operator: %+v, %v", reply, err)
	}
}

func TestTheConfigurationServes(t *testing.T) {
	paths := servingPaths(t)
	write := func(text string) { must(t, replace(paths.Config, "node: nas\ntunnel: userspace\n"+text)) }
	write(`serve:
  - {kind: http, target: "text:hello", access: {allow: [192.0.2.0/24], methods: [GET]}}
  - {kind: http, path: /www, target: ./www}
`)
	cfg, err := LoadConfigFile(paths.Config)
	must(t, err, cfg.Validate())
	if cfg.Serve[1].Target != filepath.Join(filepath.Dir(paths.Config), "www") || cfg.Serve[0].Access.rules.Allow[0].Bits() != 24 {
		t.Errorf("%+v", cfg.Serve)
	}
	cfg.DNS.OS, cfg.DNS.Stub = "off", testConfig().DNS.Stub
	n := startNode(t, cfg, paths)
	first := []string{"http://nas.foo-bar.ts.net/ configuration", "http://nas.foo-bar.ts.net/www configuration"}
	if got := n.urls(t); !slices.Equal(got, first) {
		t.Errorf("got %q", got)
	}
	if err := n.serveDone(t, textAt("", "x")); err == nil || !strings.Contains(err.Error(), "by the configuration ("+paths.Config+":4)") {
		t.Errorf("the same place: %v", err)
	}
	must(t, n.serveDone(t, textAt("/more", "x")))
	// A file that is wrong changes nothing, and says so.
	write("serve:\n  - {kind: http, target: 'gopher:'}\n")
	soon(t, "the problem", func() bool {
		status, err := n.Status(t.Context())
		return err == nil && strings.Contains(strings.Join(status.Problems, "\n"), "serve[0]")
	})
	if got := n.urls(t); len(got) != 3 {
		t.Errorf("with a broken file: %q", got)
	}
	write("serve:\n  - {kind: http, path: /new, target: 'text:new'}\n")
	soon(t, "the new configuration", func() bool {
		return slices.Equal(n.urls(t), []string{"http://nas.foo-bar.ts.net/more background", "http://nas.foo-bar.ts.net/new configuration"})
	})
	reply, err := n.Served(t.Context())
	if err != nil || len(reply.Problems) > 0 {
		t.Errorf("%q, %v", reply.Problems, err)
	}
	if text, err := n.Config(t.Context()); err != nil || !strings.Contains(text, "serve:") {
		t.Errorf("%s, %v", text, err)
	}
}

// S20: a file that others can write has no files and sockets of this machine served.
func TestFilesAreServedByTrustedConfigurationsAlone(t *testing.T) {
	for target, refused := range map[string]bool{"/etc/shadow": true, "unix:/run/docker.sock": true, "3000": false, "text:x": false} {
		cfg := loadText(t, fmt.Sprintf("serve: [{kind: http, target: %q}]\n", target))
		for _, cfg.trusted = range []bool{false, true} {
			if err := cfg.Validate(); (err != nil) != (refused && !cfg.trusted) {
				t.Errorf("%s, trusted %t: %v", target, cfg.trusted, err)
			}
		}
	}
}

func FuzzServed(f *testing.F) {
	f.Add([]byte(`{"schema":"meshdns.serve/v1","entries":[{"kind":"https","name":"a.b","port":443,"public":true,"path":"/x","target":"3000"}]}`))
	f.Add([]byte(`{"schema":"meshdns.serve/v1","entries":[{"kind":"tcp","port":5432,"target":"unix:/run/x","access":{"allow":["192.0.2.0/24"]}}]}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		served, err := parseServed(data)
		if err != nil {
			return
		}
		text, err := served.encode()
		if err != nil {
			t.Fatal(err)
		}
		again, err := parseServed(text)
		if err != nil {
			t.Fatalf("what was written is not read: %v\n%s", err, text)
		}
		if served.tag() != again.tag() {
			t.Errorf("%s\n%+v", text, again)
		}
	})
}

func TestPlainHTTPHasShortNames(t *testing.T) {
	entries := entriesOf([]served{
		{Kind: kindHTTP, Name: "nas.foo-bar.ts.net", Port: 80, Path: "/", Target: "text:nas"},
		{Kind: kindHTTP, Name: "nas.example.com", Port: 80, Path: "/", Target: "text:mine"},
		{Kind: kindHTTP, Name: "*.nas.foo-bar.ts.net", Port: 80, Path: "/", Target: "text:any"},
		{Kind: kindHTTP, Name: "nas.foo-bar.ts.net", Port: 8080, Path: "/", Target: "text:nas"},
		{Kind: kindHTTPS, Name: "nas.foo-bar.ts.net", Port: 443, Path: "/", Target: "text:nas"},
	})
	var got []string
	for _, e := range entries {
		got = append(got, strings.Join(e.Aliases, ","))
	}
	if want := []string{"nas", "", "", "nas", ""}; !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
	if err := funnel.NewServer(funnel.ServerConfig{}).Set(entries); err != nil {
		t.Error(err)
	}
}

// What cannot be written down is refused, and what was served goes on as it was.
func TestAChangeThatIsNotKeptIsRefused(t *testing.T) {
	n := startNode(t, servingConfig(), servingPaths(t))
	must(t, n.serveDone(t, textAt("", "hello")))
	file := filepath.Join(n.paths.State, servedFile)
	must(t, os.Remove(file), os.MkdirAll(filepath.Join(file, "in the way"), 0o700))
	if err := n.serveDone(t, textAt("/more", "x")); err == nil || !strings.Contains(err.Error(), servedFile) {
		t.Errorf("got %v", err)
	}
	if _, err := n.EndServed(t.Context(), serveOff{All: true}); err == nil {
		t.Error("an end that is not kept is told as one")
	}
	if got := n.urls(t); !slices.Equal(got, []string{"http://nas.foo-bar.ts.net/ background"}) {
		t.Errorf("served: %q", got)
	}
}

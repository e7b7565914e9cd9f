package funnel

import (
	"encoding/json"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/net/websocket"
)

// chromium is a real browser, steered by its own protocol.
type chromium struct {
	t    *testing.T
	page *websocket.Conn
	id   int
}

// startChromium starts a browser for which public.example is at addr.
func startChromium(t *testing.T, addr string) *chromium {
	t.Helper()
	program, err := exec.LookPath("chromium")
	if err != nil {
		t.Skip("NOT PROVEN: there is no chromium: ", err)
	}
	dir, err := os.MkdirTemp("", "chromium") // not the test's own, whose removal fails while a process of the browser's still writes
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(program, "--headless", "--no-sandbox", "--disable-gpu", "--ignore-certificate-errors", "--no-first-run",
		"--user-data-dir="+dir, "--remote-debugging-port=0", "--remote-allow-origins=*", "--host-resolver-rules=MAP public.example:443 "+addr, "about:blank")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		until(t, "the browser's files are removed", func() bool { return os.RemoveAll(dir) == nil })
	})
	c := &chromium{t: t}
	var at string
	c.until("the browser listens", func() bool {
		text, err := os.ReadFile(filepath.Join(dir, "DevToolsActivePort"))
		port, _, ok := strings.Cut(string(text), "\n")
		if err != nil || !ok {
			return false
		}
		resp, err := http.Get("http://127.0.0.1:" + port + "/json/list")
		if err != nil {
			return false
		}
		defer resp.Body.Close()
		var pages []struct {
			Type string `json:"type"`
			At   string `json:"webSocketDebuggerUrl"`
		}
		if json.NewDecoder(resp.Body).Decode(&pages) != nil {
			return false
		}
		for _, p := range pages {
			if p.Type == "page" {
				at = p.At
			}
		}
		return at != ""
	})
	if c.page, err = websocket.Dial(at, "", "http://127.0.0.1"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.page.Close() })
	return c
}

// until waits for a condition.
func (c *chromium) until(what string, is func() bool) {
	c.t.Helper()
	for end := time.Now().Add(2 * time.Minute); time.Now().Before(end); rest(c.t.Context(), 50*time.Millisecond) {
		if is() {
			return
		}
	}
	c.t.Fatalf("waited in vain until %s; the page is %q", what, c.shows())
}

// call calls a method of the browser's protocol.
func (c *chromium) call(method string, params any) json.RawMessage {
	c.t.Helper()
	c.id++
	if err := websocket.JSON.Send(c.page, map[string]any{"id": c.id, "method": method, "params": params}); err != nil {
		c.t.Fatal(err)
	}
	for {
		var answer struct {
			ID     int             `json:"id"`
			Result json.RawMessage `json:"result"`
		}
		if err := websocket.JSON.Receive(c.page, &answer); err != nil {
			c.t.Fatal(err)
		}
		if answer.ID == c.id {
			return answer.Result
		}
	}
}

// run runs a script in the page and returns the text that it is.
func (c *chromium) run(script string) string {
	c.t.Helper()
	var got struct {
		Result struct {
			Value string `json:"value"`
		} `json:"result"`
	}
	if err := json.Unmarshal(c.call("Runtime.evaluate", map[string]any{"expression": script}), &got); err != nil {
		c.t.Fatal(err)
	}
	return got.Result.Value
}

// shows is the page's address and text.
func (c *chromium) shows() string {
	if c.page == nil {
		return ""
	}
	return c.run(`location.href + " " + (document.body ? document.body.innerText : "")`)
}

func (c *chromium) open(at string) { c.call("Page.navigate", map[string]any{"url": at}) }

// wants waits until the page shows all of the words.
func (c *chromium) wants(words ...string) {
	c.t.Helper()
	c.until("it shows "+strings.Join(words, ", "), func() bool {
		text := c.shows()
		for _, word := range words {
			if !strings.Contains(text, word) {
				return false
			}
		}
		return true
	})
}

func TestChromiumTakesALink(t *testing.T) {
	slow(t)
	w := newWorld(t)
	share, token := NewShare(time.Now().Add(time.Hour))
	share.Path = "/photos/"
	e := site(kindHTTPS, "public.example", 443, true, backend(t, mirror))
	e.Access.Shares = []Share{share}
	w.set(e)
	addr := w.public("public.example", 443, kindHTTPS)
	link := e.ShareLink("", token)

	c := startChromium(t, addr)
	c.open("https://public.example/photos/")
	c.wants("By invitation")
	c.open(link)
	c.wants("You were given a link")
	c.run(`document.querySelector("button").click()`)
	c.wants("https://public.example/photos/ ", "GET /photos/ HTTP", "Meshdns-Login: share")
	if text := c.shows(); strings.Contains(text, token) || strings.Contains(text, "__Host-") {
		t.Errorf("the service got the token or the cookie:\n%s", text)
	}
	// A reload, and a page that is not part of it.
	c.open("https://public.example/photos/2")
	c.wants("GET /photos/2 HTTP")
	c.open("https://public.example/other")
	c.wants("By invitation")
	// The link is spent for the next browser.
	other := startChromium(t, addr)
	other.open(link)
	other.wants("This link does not work")
	// And whoever has taken it can go.
	c.open("https://public.example/.meshdns/logout")
	c.wants("This ends your login here")
	c.run(`document.querySelector("button").click()`)
	c.wants("You are logged out here")
	c.open("https://public.example/photos/")
	c.wants("By invitation")
}

func TestChromiumIsNotUsedByOtherSites(t *testing.T) {
	slow(t)
	w := newWorld(t)
	changed := make(chan string, 100)
	e := site(kindHTTPS, "public.example", 443, true, backend(t, func(w http.ResponseWriter, r *http.Request) {
		if r.Method != http.MethodGet || r.Header.Get("Upgrade") != "" {
			changed <- r.Method + " " + r.RequestURI
		}
		mirror(w, r)
	}))
	share, token := NewShare(time.Now().Add(time.Hour))
	e.Access.Shares = []Share{share}
	w.set(e)
	evil := backend(t, func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "text/html")
		_, _ = w.Write([]byte(`<!doctype html><title>evil</title><body>evil
<form method="post" action="https://public.example/from-evil"></form>
<script>
var done = 0;
fetch("https://public.example/fetched", {method: "POST", mode: "no-cors", credentials: "include"}).finally(() => done++);
var ws = new WebSocket("wss://public.example/socket"); ws.onerror = () => done++; ws.onopen = () => { document.title = "open" };
</script>`))
	})
	c := startChromium(t, w.public("public.example", 443, kindHTTPS))
	c.open(e.ShareLink("", token))
	c.wants("You were given a link")
	c.run(`document.querySelector("button").click()`)
	c.wants("GET / HTTP")
	// A page of its own may.
	c.run(`fetch("/own", {method: "POST"})`)
	if got := <-changed; got != "POST /own" {
		t.Fatalf("its own page did %s", got)
	}
	c.open("http://" + evil)
	c.wants("evil")
	c.until("both tries have ended", func() bool { return c.run(`String(done)`) == "2" })
	if title := c.run(`document.title`); title != "evil" {
		t.Errorf("the WebSocket is %s", title)
	}
	c.run(`document.querySelector("form").submit()`)
	c.wants("public.example/from-evil", "Pages of other sites may not do this")
	select {
	case got := <-changed:
		t.Errorf("another site did %s", got)
	default:
	}
}

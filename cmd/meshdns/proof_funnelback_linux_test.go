package main_test

import (
	"bytes"
	"crypto/rand"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"os"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/net/websocket"
)

// markedSize is that of a page which is nobody's but the visitor's.
const markedSize = 1 << 20

// funnelBackend is what the node shows.
type funnelBackend struct {
	mark    string // of the page that the gateway must not see
	release chan struct{}
	said    chan []byte // what the page in the browser says
}

// startFunnelBackend serves it until the test ends.
func startFunnelBackend(t *testing.T, ln net.Listener) *funnelBackend {
	t.Helper()
	b := &funnelBackend{mark: "the marked page " + rand.Text(), release: make(chan struct{}), said: make(chan []byte, 1)}
	mux := http.NewServeMux()
	mux.HandleFunc("/{$}", func(w http.ResponseWriter, _ *http.Request) { writePage(w, "<p>"+pageMark) })
	mux.HandleFunc("/whoami", func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprintln(w, strings.Join(r.Header.Values("X-Forwarded-For"), " and "))
	})
	mux.HandleFunc("/app", func(w http.ResponseWriter, _ *http.Request) { writePage(w, browserPage) })
	mux.Handle("/echo", websocket.Handler(func(c *websocket.Conn) { _, _ = io.Copy(c, c) }))
	mux.HandleFunc("/big", serveBig)
	mux.HandleFunc("POST /said", func(_ http.ResponseWriter, r *http.Request) {
		if text, err := io.ReadAll(io.LimitReader(r.Body, 1<<16)); err == nil {
			select {
			case b.said <- text:
			default:
			}
		}
	})
	mux.HandleFunc("/marked", func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.WriteString(w, strings.Repeat(b.mark+"\n", markedSize/len(b.mark)+1))
		_ = http.NewResponseController(w).Flush()
		select {
		case <-b.release:
		case <-r.Context().Done():
		}
	})
	server := &http.Server{Handler: mux, ErrorLog: log.New(io.Discard, "", 0)}
	ended := make(chan struct{})
	go func() { defer close(ended); _ = server.Serve(ln) }()
	t.Cleanup(func() { server.Close(); <-ended })
	return b
}

func writePage(w http.ResponseWriter, text string) {
	w.Header().Set("Content-Type", "text/html")
	fmt.Fprintf(w, "<!doctype html><title>nas</title>%s\n", text)
}

// browserPage is a program that tries what a page can, and says what came of it.
const browserPage = `<script>
const say = what => fetch("/said", {method: "POST", body: JSON.stringify(what)});
(async () => {
  const back = await new Promise((is, fails) => {
    const socket = new WebSocket("wss://" + location.host + "/echo");
    socket.onopen = () => socket.send("over a socket");
    socket.onmessage = e => is(e.data);
    socket.onerror = () => fails("the socket fails");
  });
  const start = performance.now();
  const reply = await fetch("/big" + location.search);
  const reader = reply.body.getReader();
  let at = 0, wrong = 0;
  for (;;) {
    const {done, value} = await reader.read();
    if (done) break;
    let want = at % 251;
    for (let i = 0; i < value.length; i++) {
      if (value[i] !== want) wrong++;
      if (++want === 251) want = 0;
    }
    at += value.length;
  }
  const protocol = performance.getEntriesByType("navigation")[0].nextHopProtocol;
  await say({back, at, wrong, protocol, secure: isSecureContext, seconds: (performance.now() - start) / 1000});
})().catch(e => say({error: String(e)}));
</script>`

// bigBlock is what a big download repeats: each byte says its place.
func bigBlock() []byte {
	b := make([]byte, 251*1024)
	for i := range b {
		b[i] = byte(i % 251)
	}
	return b
}

func bigURL(size int64) string { return funnelSite + "big?size=" + strconv.FormatInt(size, 10) }

func serveBig(w http.ResponseWriter, r *http.Request) {
	left, err := strconv.ParseInt(r.FormValue("size"), 10, 64)
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	w.Header().Set("Content-Length", strconv.FormatInt(left, 10))
	for block := bigBlock(); left > 0 && err == nil; {
		var n int
		n, err = w.Write(block[:min(left, int64(len(block)))])
		left -= int64(n)
	}
}

// bigCheck checks what comes of a big download.
type bigCheck struct {
	block []byte
	at    int64
	wrong bool
}

func (c *bigCheck) Write(p []byte) (int, error) {
	if c.block == nil {
		c.block = bigBlock()
	}
	for rest := p; len(rest) > 0; {
		want := c.block[c.at%int64(len(c.block)):]
		n := min(len(rest), len(want))
		c.wrong = c.wrong || !bytes.Equal(rest[:n], want[:n])
		c.at += int64(n)
		rest = rest[n:]
	}
	return len(p), nil
}

// inMemory is how often a process's memory holds a text, and how many bytes were looked at.
func inMemory(t *testing.T, pid int, text string) (found int, size int64) {
	t.Helper()
	maps, err := os.ReadFile(fmt.Sprintf("/proc/%d/maps", pid))
	if err != nil {
		t.Fatal(err)
	}
	memory, err := os.Open(fmt.Sprintf("/proc/%d/mem", pid))
	if err != nil {
		t.Fatal(err)
	}
	defer memory.Close()
	const chunk = 1 << 20
	b := make([]byte, chunk+len(text)-1) // what lies across two chunks is found too
	for line := range strings.Lines(string(maps)) {
		var start, end int64
		var rights string
		if n, err := fmt.Sscanf(line, "%x-%x %s", &start, &end, &rights); n != 3 || err != nil || rights[0] != 'r' {
			continue // the kernel's own page is above what an int64 says
		}
		for at := start; at < end; at += chunk {
			n, err := memory.ReadAt(b[:min(int64(len(b)), end-at)], at)
			if err != nil && n == 0 {
				break // [vvar], or gone meanwhile
			}
			found += bytes.Count(b[:n], []byte(text))
			size += min(int64(n), chunk)
		}
	}
	return found, size
}

// proveGatewayComesBack: a gateway that was killed shows everything again once it is started, and nobody does anything for that.
func (w *funnelWorld) proveGatewayComesBack(t *testing.T) {
	w.gateway.up.kill()
	if out, code := output(t, w.curl("-4", "--max-time", "2", funnelSite)...); code == 0 {
		t.Errorf("without the gateway there is %s", out)
	}
	back := startWatch(t)
	w.gateway.start(t)
	w.awaitPage(t)
	back.within(t, 5*time.Second, "the gateway is started, and a visitor has the page")
}

// awaitPage waits until a visitor has the page, by its name.
func (w *funnelWorld) awaitPage(t *testing.T) {
	t.Helper()
	eventually(t, funnelTime, "the page", func() error {
		if out, code := output(t, w.curl("-4", "--max-time", "2", funnelSite)...); code != 0 || !strings.Contains(out, pageMark) {
			return fmt.Errorf("curl ends with %d: %s", code, out)
		}
		return nil
	})
}

// proveNodeIsMissed: visitors of a node that is gone, however it went, get an alert and soon; when it is back they get the page.
func (w *funnelWorld) proveNodeIsMissed(t *testing.T) {
	for what, end := range map[string]func(){
		"killed": func() { w.nas.up.kill() },
		"ended":  func() { w.nas.up.end(t, syscall.SIGTERM) },
	} {
		end()
		told := startWatch(t)
		out, code := output(t, w.curl("-4", "--resolve", funnelName+":443:"+funnelAt, "--max-time", "25", funnelSite)...)
		if code != 35 || !strings.Contains(out, "alert") {
			t.Errorf("the node is %s: curl ends with %d: %s", what, code, out)
		}
		told.within(t, 6*time.Second, "the node is "+what+", and a visitor is told: "+strings.TrimSpace(out))
		back := startWatch(t)
		w.nas.start(t)
		w.awaitPage(t)
		back.within(t, 5*time.Second, "the node is started, and a visitor has the page")
	}
}

// proveOff: what is not shown any more is nowhere.
func (w *funnelWorld) proveOff(t *testing.T) {
	if got := published(t); !strings.Contains(got, funnelAt) {
		t.Errorf("before it is ended the world's DNS has %q", got)
	}
	if out := must(t, w.nas.command(program, "funnel", "off")...); strings.Join(strings.Fields(out), " ") != funnelSite+" ended" {
		t.Errorf("funnel off says %q", out)
	}
	awaitWithdrawn(t)
	if out := w.tlsHello(t, "-servername", funnelName); !strings.Contains(out, "SSL alert number 112") {
		t.Errorf("a visitor of what was ended: %s", out)
	}
}

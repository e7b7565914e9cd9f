package main_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// The hosts are those of testdata/proof/funnel.sh, and this process is on the visitor's.
const (
	funnelName = "nas." + tailnetZone
	funnelSite = "https://" + funnelName + "/"
	funnelAt   = "203.0.113.5"
	funnelTime = 4 * time.Minute // for one thing of many that come about by themselves

	// bigTime is how long a download may take, and bigSize is the most that is tried.
	bigTime = 40 * time.Second
	bigSize = 1 << 30
)

// funnelWorld is a gateway, and a node behind a NAT that shows something to the world.
type funnelWorld struct {
	gateway, nas *netHost
	root         string // file: what the CA's certificates are believed by
	backend      *funnelBackend
}

// proveFunnel: a page of a node that is behind a NAT and has no root is the world's by one command. Visitors get it as from any web
// server, the gateway between cannot read it, and it comes back by itself.
func proveFunnel(t *testing.T) {
	w := newFunnelWorld(t)
	w.proveForeground(t)
	said := must(t, w.nas.command(program, "funnel", "--bg", "8080")...)
	if !strings.Contains(said, funnelSite) || !strings.Contains(said, "it goes on in the background") {
		t.Errorf("funnel --bg says:\n%s", said)
	}
	root, err := os.ReadFile(w.root)
	if err != nil {
		t.Fatal(err)
	}
	believed(t, funnelSite, root)
	w.proveVisitorsAreTold(t)
	w.proveNamesAreAsked(t)
	w.proveGatewayReadsNothing(t)
	size := w.proveDownloads(t)
	w.proveBrowser(t, size)
	w.proveGatewayComesBack(t)
	w.proveNodeIsMissed(t)
	w.proveOff(t)
	w.nas.up.end(t, syscall.SIGTERM)
	w.gateway.up.end(t, syscall.SIGTERM)
}

// newFunnelWorld has the node join, with a CA that it reaches and something to show.
func newFunnelWorld(t *testing.T) *funnelWorld {
	t.Helper()
	w := &funnelWorld{gateway: openHost(t, "gw", false), nas: openHost(t, "nas", true), root: "/tmp/root.pem"}
	writeFile(t, resolvConf, "nameserver "+funnelAt+"\n")
	must(t, w.gateway.command(program, "gateway", "init", "--zone", tailnetZone, "--public", funnelAt, "--public", "2001:db8::5")...)
	directory, httpsRoot, issuer := startCA(t, funnelAt+":53", w.nas.listen(t, "127.0.0.1:0"))
	writeFile(t, w.root, string(issuer))

	file := w.gateway.path("/etc/meshdns/meshdns.yaml")
	config, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	host, _, _ := strings.Cut(strings.TrimPrefix(directory, "https://"), "/")
	resolvers := "resolvers: [\"" + funnelAt + ":53\"]"
	writeFile(t, file, strings.Replace(string(config), "  public:", "  issuers: [\""+host+"=ca.test\"]\n  public:", 1)+"certs: {"+resolvers+"}\n")
	w.gateway.start(t)

	w.nas.owns(t, "/home/nas/ca.pem", string(httpsRoot))
	must(t, "install", "-d", "-o", "1000", "-g", "1000", "/home/nas/.config", "/home/nas/.config/meshdns")
	w.nas.owns(t, "/home/nas/.config/meshdns/meshdns.yaml", fmt.Sprintf("node: nas\ncerts: {ca: %q, root: /home/nas/ca.pem, %s}\n", directory, resolvers))
	w.nas.join(t, w.gateway)
	w.nas.start(t)
	w.backend = startFunnelBackend(t, w.nas.listen(t, "127.0.0.1:8080"))
	return w
}

// listen is a listener in a host's network.
func (h *netHost) listen(t *testing.T, at string) (ln net.Listener) {
	t.Helper()
	err := h.do(func() (err error) {
		ln, err = net.Listen("tcp4", at)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return ln
}

// curl is a visitor's, who believes the CA.
func (w *funnelWorld) curl(args ...string) []string {
	return append([]string{"curl", "-sS", "--cacert", w.root}, args...)
}

// published is what the world's DNS has at the name.
func published(t *testing.T) string {
	t.Helper()
	var b strings.Builder
	for _, kind := range []string{"A", "AAAA", "HTTPS"} {
		b.WriteString(must(t, "dig", "+short", "@"+funnelAt, funnelName, kind))
	}
	return b.String()
}

// awaitWithdrawn waits until the world's DNS has nothing at the name.
func awaitWithdrawn(t *testing.T) {
	t.Helper()
	eventually(t, commandTimeout, "the name to be withdrawn", func() error {
		if got := published(t); got != "" {
			return fmt.Errorf("the world's DNS has %q", got)
		}
		return nil
	})
}

// proveForeground: in a terminal the steps are seen, the address with a QR code, and who comes; Ctrl-C ends it.
func (w *funnelWorld) proveForeground(t *testing.T) {
	line := strings.Join(w.nas.command(program, "funnel", "8080"), " ")
	d := background(t, "script", "-qefc", "echo $$ >/tmp/foreground; exec "+line, "/dev/null")
	start := time.Now()
	shows := func(words ...string) {
		t.Helper()
		eventually(t, funnelTime, "the terminal", func() error {
			select {
			case <-d.ended:
				t.Fatalf("it has ended: %v\n%s", d.err, d.log.String())
			default:
			}
			for _, word := range words {
				if !strings.Contains(d.log.String(), word) {
					return fmt.Errorf("it does not show %q:\n%s", word, d.log.String())
				}
			}
			return nil
		})
	}
	shows("asking the gateway to show "+funnelSite, "certificate: ", "from outside: name "+funnelAt, "from outside: tls", funnelSite+"\r\n", "leads to ", "▀", "Ctrl-C ends it")
	t.Logf("the address works after %s", time.Since(start).Round(time.Millisecond))
	if got := published(t); !strings.Contains(got, funnelAt+"\n2001:db8::5\n") || !strings.Contains(got, "h2") {
		t.Errorf("the world's DNS has %q", got)
	}
	must(t, w.curl(funnelSite+"whoami")...)
	shows("GET /whoami 200")
	t.Logf("the terminal shows:\n%s", d.log.String())
	text, err := os.ReadFile("/tmp/foreground")
	if err != nil {
		t.Fatal(err)
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(text)))
	if err != nil {
		t.Fatal(err)
	}
	if err := syscall.Kill(pid, syscall.SIGINT); err != nil {
		t.Fatal(err)
	}
	select {
	case <-d.ended:
	case <-time.After(commandTimeout):
		t.Fatal("Ctrl-C does not end it")
	}
	if d.err != nil {
		t.Errorf("after Ctrl-C: %v", d.err)
	}
	awaitWithdrawn(t)
}

// proveVisitorsAreTold: the page comes over both versions of HTTP, and the backend is told the visitor's address, whatever the visitor says.
func (w *funnelWorld) proveVisitorsAreTold(t *testing.T) {
	for flag, version := range map[string]string{"--http1.1": "1.1", "--http2": "2"} {
		if out := must(t, w.curl(flag, "-w", "%{http_version} %{ssl_verify_result}", funnelSite)...); !strings.Contains(out, pageMark) || !strings.HasSuffix(out, version+" 0") {
			t.Errorf("curl %s: %s", flag, out)
		}
	}
	for flag, addr := range map[string]string{"-4": "203.0.113.60", "-6": "2001:db8::60"} {
		if out := must(t, w.curl(flag, "-H", "X-Forwarded-For: 198.51.100.1", funnelSite+"whoami")...); out != addr+"\n" {
			t.Errorf("curl %s: the visitor is %q, want %s", flag, out, addr)
		}
	}
}

// tlsHello is what openssl says of a connection.
func (w *funnelWorld) tlsHello(t *testing.T, name ...string) string {
	t.Helper()
	args := []string{"openssl", "s_client", "-connect", funnelAt + ":443", "-CAfile", w.root, "-verify_return_error"}
	out, _ := output(t, append(args, name...)...)
	return out
}

// proveNamesAreAsked: who asks for the name gets its certificate, and who names nothing, or something else, an alert.
func (w *funnelWorld) proveNamesAreAsked(t *testing.T) {
	if out := w.tlsHello(t, "-servername", funnelName, "-verify_hostname", funnelName); !strings.Contains(out, "Verification: OK") || !strings.Contains(out, "TLSv1.3") {
		t.Errorf("with the name: %s", out)
	}
	for _, name := range [][]string{{"-noservername"}, {"-servername", "other." + tailnetZone}} {
		if out := w.tlsHello(t, name...); !strings.Contains(out, "unrecognized name") || !strings.Contains(out, "SSL alert number 112") {
			t.Errorf("with %s: %s", name, out)
		}
	}
}

// download has curl fetch so many bytes, and checks each.
func (w *funnelWorld) download(t *testing.T, flag string, size int64) time.Duration {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), funnelTime)
	defer cancel()
	args := w.curl(flag, bigURL(size))
	cmd := exec.CommandContext(ctx, args[0], args[1:]...)
	got, said := &bigCheck{}, &bytes.Buffer{}
	cmd.Stdout, cmd.Stderr = got, said
	start := time.Now()
	if err := cmd.Run(); err != nil || got.at != size || got.wrong {
		t.Errorf("curl %s: %v after %d of %d bytes, some wrong: %t; %s", flag, err, got.at, size, got.wrong, said)
	}
	return time.Since(start)
}

// proveDownloads: much comes as it is. size is what can be fetched in a while.
func (w *funnelWorld) proveDownloads(t *testing.T) (size int64) {
	const some = 48 << 20
	first, second := w.download(t, "--http1.1", some), w.download(t, "--http2", some)
	slower := max(first, second)
	size = min(bigSize, int64(some*(bigTime.Seconds()/slower.Seconds()))&^(1<<20-1))
	t.Logf("curl gets %d MiB in %s by HTTP/1.1, in %s by HTTP/2; the browser is to get %d MiB", some>>20, first.Round(time.Millisecond), second.Round(time.Millisecond), size>>20)
	return size
}

// proveBrowser: in Chromium a page opens a WebSocket, fetches a lot, and says what it saw.
func (w *funnelWorld) proveBrowser(t *testing.T, size int64) {
	const home = "/tmp/browser"
	browserBelieves(t, home, w.root)
	d := background(t, append(inBrowser(home), "--remote-debugging-port=0", funnelSite+"app?size="+strconv.FormatInt(size, 10))...)
	var text []byte
	select {
	case text = <-w.backend.said:
	case <-d.ended:
		t.Fatalf("Chromium has ended: %v", d.err)
	case <-time.After(funnelTime):
		t.Fatal("the page says nothing")
	}
	var saw struct {
		Back, Protocol, Error string
		At, Wrong             int64
		Secure                bool
		Seconds               float64
	}
	if err := json.Unmarshal(text, &saw); err != nil {
		t.Fatal(err)
	}
	if saw.Back != "over a socket" || saw.Protocol != "h2" || saw.At != size || saw.Wrong != 0 || !saw.Secure || saw.Error != "" {
		t.Errorf("the page says %s", text)
	}
	t.Logf("Chromium gets %d MiB in %.1f s", saw.At>>20, saw.Seconds)
	d.kill()
}

// proveGatewayReadsNothing: neither the gateway's links nor its memory hold a page that is on its way; the node's memory does.
func (w *funnelWorld) proveGatewayReadsNothing(t *testing.T) {
	c := startCapture(t, w.gateway, w.backend.mark, "")
	visitor := background(t, w.curl("-N", "-o", "/tmp/marked", funnelSite+"marked")...)
	eventually(t, funnelTime, "most of the page", func() error {
		info, err := os.Stat("/tmp/marked")
		if err == nil && info.Size() < markedSize*9/10 {
			err = fmt.Errorf("%d bytes are there", info.Size())
		}
		return err
	})
	gateway, nas := w.gateway.up.cmd.Process.Pid, w.nas.up.cmd.Process.Pid
	found, all := inMemory(t, gateway, w.backend.mark)
	known, _ := inMemory(t, gateway, funnelName)
	if found > 0 || known == 0 {
		t.Errorf("the gateway's memory (%d bytes) holds the mark %d times, and the name %d times", all, found, known)
	}
	control, of := inMemory(t, nas, w.backend.mark)
	if control == 0 {
		t.Errorf("the node's memory (%d bytes) does not hold the mark: the check sees nothing", of)
	}
	close(w.backend.release)
	select {
	case <-visitor.ended:
	case <-time.After(commandTimeout):
		t.Fatal("the page does not end")
	}
	if page, err := os.ReadFile("/tmp/marked"); err != nil || len(page) < markedSize || !bytes.Contains(page, []byte(w.backend.mark)) {
		t.Errorf("the visitor has %d bytes, or not the mark: %v", len(page), err)
	}
	w.captured(t, c)
	t.Logf("%d bytes of the gateway's memory and %d of its links do not hold the mark; the node's memory does, %d times", all, c.all.Load(), control)
}

// captured checks what a capture has seen of the page, and that it would see the mark.
func (w *funnelWorld) captured(t *testing.T, c *capture) {
	t.Helper()
	eventually(t, funnelTime, "the capture of the page", func() error { // it comes and it goes
		if got := c.all.Load(); got < 2*markedSize {
			return fmt.Errorf("%d bytes have passed", got)
		}
		return nil
	})
	if found := c.found.Load(); found > 0 {
		t.Errorf("%d frames hold the mark", found)
	}
	plain, err := net.Dial("udp", funnelAt+":9")
	if err == nil {
		_, err = io.WriteString(plain, w.backend.mark)
		plain.Close()
	}
	if err != nil {
		t.Fatal(err)
	}
	eventually(t, funnelTime, "the mark that was sent unencrypted", func() error {
		if c.found.Load() == 0 {
			return errors.New("it is not seen: the check sees nothing")
		}
		return nil
	})
}

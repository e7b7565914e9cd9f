package main

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/meshdns/meshdns/node"
)

// The demo starts itself again, which is the test binary here.
func TestMain(m *testing.M) {
	if len(os.Args) == 3 && os.Args[1] == takeoverWord {
		os.Exit(run(context.Background(), os.Args[1:], os.Stdout, os.Stderr))
	}
	os.Exit(m.Run())
}

// screen is what the demo prints.
type screen struct {
	mu   sync.Mutex
	text bytes.Buffer
}

func (s *screen) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.text.Write(p)
}

func (s *screen) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.text.String()
}

// find is the first group of an expression in what was printed.
func (s *screen) find(t *testing.T, expression string) string {
	t.Helper()
	m := regexp.MustCompile(expression).FindStringSubmatch(s.String())
	if m == nil {
		t.Fatalf("no %s in:\n%s", expression, s)
	}
	return m[1]
}

// nothingIsLeft checks that the demo's directory is gone.
func (s *screen) nothingIsLeft(t *testing.T) {
	t.Helper()
	dir := s.find(t, `everything in (.+)\.\n`)
	if _, err := os.Stat(dir); !errors.Is(err, os.ErrNotExist) || !strings.Contains(filepath.Base(dir), "meshdns-demo") {
		t.Errorf("%s: %v", dir, err)
	}
}

// steps are the demo's, each with what it has to have seen.
var steps = []string{
	`a CA +Pebble.* at https://127\.0\.0\.1:\d+/dir(?m:$)`,
	`the gateway +of foo-bar\.ts\.net: .*visitors at 127\.0\.0\.1:\d+(?m:$)`,
	`laptop and nas join +by invites.*laptop is 10\.[\d.]+, nas is 10\.[\d.]+(?m:$)`,
	`a name +nas\.foo-bar\.ts\.net is 10\.`,
	`a packet +from the laptop to the nas and back in [\d.]+ ms`,
	`a certificate +for nas\.foo-bar\.ts\.net until .*dns-01 at _acme-challenge\.nas\.foo-bar\.ts\.net`,
	`serve +.* to the tailnet at https://nas\.foo-bar\.ts\.net/(?m:$)`,
	`the tailnet reads it +from the laptop.*: 200 OK, HTTP/2\.0, certificate of "Pebble`,
	`funnel +.* to the world at https://nas\.foo-bar\.ts\.net:\d+/(?m:$)`,
	`a visitor reads it +at the gateway, 127\.0\.0\.1 in public: 200 OK, HTTP/2\.0, certificate of "Pebble`,
	`/etc/resolv\.conf +`,
	`in all(?m:$)`,
}

func TestTheCheckSeesEverythingWork(t *testing.T) {
	out, errs := new(screen), new(screen)
	before, _ := os.ReadFile("/etc/resolv.conf")
	if code := run(t.Context(), []string{"--check"}, out, errs); code != 0 || errs.String() != "" {
		t.Fatalf("ended with %d: %s\n%s", code, errs, out)
	}
	t.Logf("\n%s", out)
	rest := out.String()
	for _, step := range steps {
		at := regexp.MustCompile(`(?m:^) *[\d.]+ s  ` + step).FindStringIndex(rest)
		if at == nil {
			t.Fatalf("no %s in:\n%s", step, rest)
		}
		rest = rest[at[1]:]
	}
	if strings.Contains(out.String(), "Try") {
		t.Error("commands are printed for something that ends")
	}
	out.nothingIsLeft(t)
	if after, _ := os.ReadFile("/etc/resolv.conf"); !bytes.Equal(before, after) {
		t.Error("the machine's own resolv.conf is another one")
	}
	switch taken := strings.Contains(out.String(), "taken over (direct), nas is 10."); {
	case os.Geteuid() != 0 || runtime.GOOS != "linux":
		if taken || !strings.Contains(out.String(), "needs root") {
			t.Error("without root, what is said of it is wrong")
		}
	case !taken:
		t.Skip("NOT PROVEN: the takeover needs mount namespaces")
	case !regexp.MustCompile(`meanwhile: +nameserver 127\.0\.0\.77 \| search foo-bar\.ts\.net\n`).MatchString(out.String()):
		t.Error("what resolv.conf was meanwhile is not shown")
	}
}

// Whoever lets it run can try what it says, until Ctrl-C.
func TestItStaysUntilItIsEnded(t *testing.T) {
	out, errs := new(screen), new(screen)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	ended := make(chan int, 1)
	go func() { ended <- run(ctx, nil, out, errs) }()
	limit, stop := context.WithTimeout(t.Context(), 4*time.Minute)
	defer stop()
	if err := poll(limit, func() (bool, error) {
		select {
		case code := <-ended:
			return false, fmt.Errorf("it has ended with %d", code)
		default:
			return strings.Contains(out.String(), "Ctrl-C ends it"), nil
		}
	}); err != nil {
		t.Fatalf("%v: %s\n%s", err, errs, out)
	}
	for _, name := range []string{"laptop", "nas", "edge"} {
		socket := out.find(t, `go run ./cmd/meshdns --socket (\S+/`+name+`/s) `)
		if s, err := (node.Client{Socket: socket}).Status(t.Context()); err != nil || s.Node != name+"."+zone {
			t.Errorf("%s: %q, %v", name, s.Node, err)
		}
	}
	// As the first command does it, and as a browser would that does not know the CA.
	file, at := out.find(t, `curl --cacert (\S+) --resolve`), out.find(t, `(https://nas\.foo-bar\.ts\.net:\d+/)\n`)
	pem, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if body, err := fetch(t, at, pem); err != nil || !strings.Contains(body, pageText) {
		t.Errorf("%q, %v", body, err)
	}
	if body, err := fetch(t, at, nil); err == nil {
		t.Errorf("without the CA: %q", body)
	}
	cancel()
	if code := <-ended; code != 0 || errs.String() != "" {
		t.Errorf("ended with %d: %s", code, errs)
	}
	out.nothingIsLeft(t)
	if _, err := fetch(t, at, pem); err == nil {
		t.Error("the page is still there")
	}
}

// fetch gets a page at a port of loopback.
func fetch(t *testing.T, at string, root []byte) (string, error) {
	t.Helper()
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(root)
	client := &http.Client{Transport: &http.Transport{
		DisableKeepAlives: true, TLSClientConfig: &tls.Config{RootCAs: roots},
		DialContext: func(ctx context.Context, network, addr string) (net.Conn, error) {
			_, port, _ := net.SplitHostPort(addr)
			return new(net.Dialer).DialContext(ctx, network, "127.0.0.1:"+port)
		},
	}}
	resp, err := client.Get(at)
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	return string(body), err
}

func TestCtrlCEndsItAtAnyTime(t *testing.T) {
	out, errs := new(screen), new(screen)
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan int, 1)
	go func() { ended <- run(ctx, nil, out, errs) }()
	limit, stop := context.WithTimeout(t.Context(), 2*time.Minute)
	defer stop()
	if err := poll(limit, func() (bool, error) { return strings.Contains(out.String(), "the gateway "), nil }); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	cancel()
	if code := <-ended; code != 0 || errs.String() != "" {
		t.Errorf("ended with %d: %s", code, errs)
	}
	out.nothingIsLeft(t)
}

// What does not work is named, and ends the demo with nothing left behind.
func TestWhatDoesNotWorkIsNamed(t *testing.T) {
	out := new(screen)
	d, err := newDemo(out)
	if err != nil {
		t.Fatal(err)
	}
	conn, err := net.ListenPacket("udp", local(d.ports.wireGuard).String())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	err = d.run(t.Context(), false)
	if err == nil || !strings.HasPrefix(err.Error(), "the gateway: starting edge: ") {
		t.Errorf("%v\n%s", err, out)
	}
	if err := d.end(); err != nil {
		t.Error(err)
	}
	out.nothingIsLeft(t)
}

func TestWrongUseIsRefused(t *testing.T) {
	for _, test := range []struct {
		args string
		code int
		want string
	}{
		{"--nothing", 2, "flag provided but not defined"},
		{"something", 2, "it takes no arguments"},
		{"-h", 0, "-check"},
		// Whoever types that must not lose his /etc.
		{takeoverWord + " " + t.TempDir(), 1, "meshdns-demo: error: "},
	} {
		out, errs := new(screen), new(screen)
		if code := run(t.Context(), strings.Fields(test.args), out, errs); code != test.code || !strings.Contains(errs.String(), test.want) || out.String() != "" {
			t.Errorf("%s: %d, %q, %q", test.args, code, out, errs)
		}
	}
}

func TestHintsArePrinted(t *testing.T) {
	errs := new(screen)
	err := fmt.Errorf("starting: %w", node.Problem{Field: "zone", Msg: "missing", Advice: "name one"})
	if code := fail(errs, err); code != 1 || !strings.Contains(errs.String(), "meshdns-demo: hint: name one\n") {
		t.Errorf("%d, %q", code, errs)
	}
}

func TestPortsAreFree(t *testing.T) {
	udp, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer udp.Close()
	tcp, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer tcp.Close()
	if isFree("udp", udp.LocalAddr().(*net.UDPAddr).Port) == nil || isFree("tcp", tcp.Addr().(*net.TCPAddr).Port) == nil {
		t.Error("what is held seems free")
	}
	held := errors.New("held")
	if _, err := freePort(func(int) error { return held }); !errors.Is(err, held) {
		t.Errorf("where none fits: %v", err)
	}
	p, err := choosePorts()
	if err != nil || p.wireGuard == 0 || p.dns == 0 || p.https == 0 || p.http == 0 {
		t.Errorf("%+v, %v", p, err)
	}
}

func TestOnlyTheNamesOwnChainIsBelieved(t *testing.T) {
	a, err := startAuthority(local(9))
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := a.end(t.Context()); err != nil {
			t.Error(err)
		}
	}()
	if err := believes(a.root, "", nasName); err == nil {
		t.Error("nothing is believed")
	}
	if err := believes(a.root, string(a.httpsRoot), "127.0.0.1"); err == nil {
		t.Error("another root's is believed")
	}
	if err := believes(a.httpsRoot, string(a.httpsRoot), nasName); err == nil {
		t.Error("one for another name is believed")
	}
	if err := believes(a.httpsRoot, string(a.httpsRoot), "127.0.0.1"); err != nil {
		t.Error(err)
	}
}

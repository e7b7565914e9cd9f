package main

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"io"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"
)

// certDaemon answers the calls for certificates as a daemon does.
type certDaemon struct {
	socket string
	chain  string
	key    string

	mu    sync.Mutex
	list  string   // the answer to a list
	last  string   // kind and text of the error that it ends with; empty: none
	asked []string // bodies
	keeps error
}

func newCertDaemon(t *testing.T) *certDaemon {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), DNSNames: []string{"nas.example.org"}, NotAfter: time.Now().Add(time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	text, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	dir, err := os.MkdirTemp("", "mdns") // short enough for a socket
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	d := &certDaemon{
		socket: filepath.Join(dir, "s"),
		chain:  string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})),
		key:    string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: text})),
	}
	ln, err := net.Listen("unix", d.socket)
	if err != nil {
		t.Fatal(err)
	}
	server := httptest.NewUnstartedServer(d)
	server.Listener.Close()
	server.Listener = ln
	server.Start()
	t.Cleanup(server.Close)
	return d
}

// ServeHTTP answers one call.
func (d *certDaemon) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	body, _ := io.ReadAll(r.Body)
	d.mu.Lock()
	defer d.mu.Unlock()
	d.asked = append(d.asked, r.URL.Path+" "+string(body))
	e := json.NewEncoder(w)
	if r.URL.Path == "/v1/cert/list" {
		_, _ = io.WriteString(w, d.list)
		return
	}
	if r.URL.Path == "/v1/cert/keep" {
		if d.keeps != nil {
			w.WriteHeader(http.StatusInternalServerError)
			_ = e.Encode(map[string]string{"kind": "failed", "error": d.keeps.Error()})
			return
		}
		_ = e.Encode(struct{}{})
		return
	}
	for _, step := range []string{"account", "order", "published", "seen", "validated", "issued", "written"} {
		_ = e.Encode(map[string]any{"step": map[string]string{"step": step, "name": "nas.example.org"}})
	}
	if kind, text, failed := strings.Cut(d.last, ":"); failed {
		_ = e.Encode(map[string]any{"error": map[string]string{"kind": kind, "error": text, "hint": "do so"}})
		return
	}
	_ = e.Encode(map[string]any{"result": map[string]any{
		"name": "nas.example.org", "names": []string{"nas.example.org"}, "issued": true, "chain": d.chain, "key": d.key, "notAfter": time.Now().Add(time.Hour),
	}})
}

func (d *certDaemon) has(set func()) {
	d.mu.Lock()
	defer d.mu.Unlock()
	set()
}

// lastCall is what was asked last.
func (d *certDaemon) lastCall() string {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.asked[len(d.asked)-1]
}

// run runs a command against the daemon.
func (d *certDaemon) run(t *testing.T, args ...string) (code int, stdout, stderr string) {
	t.Helper()
	var out, errs bytes.Buffer
	code = run(t.Context(), append([]string{"--socket", d.socket, "cert"}, args...), process{
		stdin: strings.NewReader(""), stdout: &out, stderr: &errs, getenv: func(string) string { return "" },
	})
	return code, out.String(), errs.String()
}

func TestCertWritesFilesWhereItIsRun(t *testing.T) {
	d := newCertDaemon(t)
	t.Chdir(t.TempDir())
	code, stdout, stderr := d.run(t, "nas")
	if code != 0 || stderr != "" || !strings.Contains(stdout, "nas.example.org.crt  written, valid until ") {
		t.Errorf("%d, %q, %q", code, stdout, stderr)
	}
	for path, want := range map[string]string{"nas.example.org.crt": d.chain, "nas.example.org.key": d.key} {
		if data, err := os.ReadFile(path); err != nil || string(data) != want {
			t.Errorf("%s: %v", path, err)
		}
	}
	if last := d.lastCall(); !strings.HasPrefix(last, "/v1/cert/keep ") || !strings.Contains(last, `/nas.example.org.key"`) || strings.Contains(last, `"nas.example.org.key"`) {
		t.Errorf("it asks for %s", last)
	}
	if code, stdout, _ := d.run(t, "nas", "--once"); code != 0 || !strings.Contains(stdout, "unchanged") {
		t.Errorf("again: %d, %q", code, stdout)
	}
	if last := d.lastCall(); strings.HasPrefix(last, "/v1/cert/keep ") {
		t.Error("--once has the files kept")
	}
	code, stdout, _ = d.run(t, "nas", "--json", "--cert-file", "both.pem", "--key-file", "both.pem")
	var result certResult
	if err := json.Unmarshal([]byte(stdout), &result); err != nil || code != 0 || len(result.Files) != 1 || !result.Files[0].Changed || !result.Kept || strings.Contains(stdout, "PRIVATE") {
		t.Errorf("--json: %d, %v, %s", code, err, stdout)
	}
	if data, err := os.ReadFile("both.pem"); err != nil || string(data) != d.chain+d.key {
		t.Errorf("both in one: %v, %s", err, data)
	}
}

func TestCertWritesToStdout(t *testing.T) {
	d := newCertDaemon(t)
	t.Chdir(t.TempDir())
	code, stdout, stderr := d.run(t, "nas", "--cert-file", "-", "--key-file", "-")
	if code != 0 || stderr != "" || stdout != d.chain+d.key {
		t.Errorf("%d, %q, %q", code, stdout, stderr)
	}
	if entries, err := os.ReadDir("."); err != nil || len(entries) != 0 {
		t.Errorf("and to files: %v, %v", entries, err)
	}
	code, stdout, _ = d.run(t, "nas", "--cert-file", "-", "--key-file", "x.key", "--once")
	if code != 0 || !strings.HasPrefix(stdout, d.chain) {
		t.Errorf("the certificate alone: %d, %q", code, stdout)
	}
	if data, err := os.ReadFile("x.key"); err != nil || string(data) != d.key {
		t.Errorf("the key's file: %v", err)
	}
}

func TestCertSaysWhatWillNotBeRenewed(t *testing.T) {
	d := newCertDaemon(t)
	d.has(func() { d.keeps = errors.New("/root is not there, seen from the daemon") })
	t.Chdir(t.TempDir())
	code, _, stderr := d.run(t, "nas", "--cert-file", "nas.p12")
	if code != 0 || !strings.Contains(stderr, "meshdns: the files will not be renewed: /root is not there") || !strings.Contains(stderr, "hint: write them where the daemon can") {
		t.Errorf("%d, %q", code, stderr)
	}
}

func TestCertExitCodes(t *testing.T) {
	d := newCertDaemon(t)
	t.Chdir(t.TempDir())
	for last, want := range map[string]int{
		"timeout:too many certificates; not before noon": exitTimeout,
		"failed:the CA says no":                          exitFailed,
		"not_found:no such certificate":                  exitNotFound,
		"not_permitted:only root":                        exitPermission,
	} {
		d.has(func() { d.last = last })
		_, text, _ := strings.Cut(last, ":")
		code, stdout, stderr := d.run(t, "nas")
		if code != want || stdout != "" || stderr != "meshdns: error: "+text+"\nmeshdns: hint: do so\n" {
			t.Errorf("%s: %d, %q, %q", last, code, stdout, stderr)
		}
	}
	if entries, err := os.ReadDir("."); err != nil || len(entries) != 0 {
		t.Errorf("files of what failed: %v, %v", entries, err)
	}
}

func TestCertListSaysWhatIsToBeDone(t *testing.T) {
	d := newCertDaemon(t)
	d.list = `{"certificates":[{"name":"nas.example.org","names":["nas.example.org"],"state":"valid","ca":"letsencrypt-staging","caGone":true,
"lacks":["photos.example.org","films.example.org"],"growsAt":"2026-01-01T12:00:00Z"},{"name":"tv.example.org","names":["tv.example.org"],"state":"valid","ca":"local"}]}`
	code, stdout, _ := d.run(t, "list")
	if code != 0 || strings.Count(stdout, "\n") != 5 {
		t.Errorf("%d, %s", code, stdout)
	}
	for _, want := range []string{
		"letsencrypt-staging is not configured any more: another one signs when it is renewed, or at once with: meshdns cert renew --force nas.example.org\n",
		"photos.example.org films.example.org: tried for at 2026-01-01 ",
		", or at once with: meshdns cert\n",
	} {
		if !strings.Contains(stdout, want) {
			t.Errorf("no %q in:\n%s", want, stdout)
		}
	}
}

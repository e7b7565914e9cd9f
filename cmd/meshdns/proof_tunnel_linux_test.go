package main_test

import (
	"context"
	"crypto/ecdh"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/meshdns/meshdns/node"
)

// publicKey is the WireGuard key of the node that keeps its state in a directory, made by a first start.
func publicKey(t *testing.T, dir string, start func() *daemon) string {
	t.Helper()
	d := start()
	var file struct{ WireGuard []byte }
	eventually(t, readyTimeout, "the node's keys", func() error {
		data, err := os.ReadFile(filepath.Join(dir, "node.key"))
		if err != nil {
			return err
		}
		return json.Unmarshal(data, &file)
	})
	d.end(t, syscall.SIGTERM)
	key, err := ecdh.X25519().NewPrivateKey(file.WireGuard)
	if err != nil {
		t.Fatal(err)
	}
	return base64.StdEncoding.EncodeToString(key.PublicKey().Bytes())
}

// tunnelTraces is what a tunnel leaves on the machine.
func tunnelTraces(t *testing.T) string {
	t.Helper()
	var found []string
	for what, args := range map[string][]string{"link": {"ip", "-o", "link"}, "rule": {"ip", "rule"}, "route": {"ip", "route", "show", "table", "all"}} {
		out, _ := output(t, args...)
		for line := range strings.Lines(out) {
			if strings.Contains(line, "meshdns0") || strings.Contains(line, "5300:") || strings.Contains(line, "41642") {
				found = append(found, what+" "+strings.TrimSpace(line))
			}
		}
	}
	return strings.Join(found, "\n")
}

// proveTunnelCarriesAndGoes: two nodes of a static map reach each other by name, one as root on a link of its own, the other
// inside its process; and of the link nothing stays, however the node ends.
func proveTunnelCarriesAndGoes(t *testing.T) {
	newMachine(t)
	must(t, "ip", "addr", "del", "100.64.0.2/32", "dev", "lo") // the other node's now
	writeFile(t, "/etc/meshdns/meshdns.yaml", "node: laptop\n")
	writeFile(t, "/tmp/other/meshdns.yaml", "node: nas\ntunnel: {mode: userspace}\ndns: {os: \"off\", stub: \"127.0.0.77:5300\"}\n")
	other := func() *daemon {
		return background(t, "ip", "netns", "exec", "outside", program, "up", "--config", "/tmp/other/meshdns.yaml",
			"--state-dir", "/tmp/other/state", "--socket", "/tmp/other/s")
	}
	writeFile(t, "/tmp/other/map.yaml", proofMap)
	laptop := publicKey(t, "/var/lib/meshdns", func() *daemon { return launch(t) })
	nas := publicKey(t, "/tmp/other/state", other)
	text := fmt.Sprintf(`zone: foo-bar.ts.net
nodes:
  laptop: {addresses: [100.64.0.1], key: %q, endpoints: ["192.0.2.1:41642"]}
  nas: {addresses: [100.64.0.2, "fd7a:115c:a1e0::2"], key: %q, endpoints: ["192.0.2.53:41642"]}
`, laptop, nas)
	writeFile(t, "/etc/meshdns/map.yaml", text)
	writeFile(t, "/tmp/other/map.yaml", text)
	if traces := tunnelTraces(t); traces != "" {
		t.Fatalf("before:\n%s", traces)
	}
	background(t, "ip", "netns", "exec", "outside", "busybox", "httpd", "-f", "-p", "127.0.0.1:8080", "-h", "/etc/meshdns")
	o := other()
	eventually(t, readyTimeout, "the other node", func() error {
		_, err := node.Client{Socket: "/tmp/other/s"}.Status(t.Context())
		return err
	})
	for name, undo := range map[string]func(t *testing.T, d *daemon){
		"SIGTERM": func(t *testing.T, d *daemon) { d.end(t, syscall.SIGTERM) },
		"kill -9, dns restore": func(t *testing.T, d *daemon) {
			d.kill()
			must(t, program, "dns", "restore")
		},
		"kill -9, next start, SIGTERM": func(t *testing.T, d *daemon) {
			d.kill()
			next, _ := up(t)
			next.end(t, syscall.SIGTERM)
		},
	} {
		t.Run(name, func(t *testing.T) {
			d, _ := up(t)
			if !strings.Contains(d.log.String(), "tunnel tun") {
				t.Errorf("the tunnel is of another kind:\n%s", d.log.String())
			}
			eventually(t, readyTimeout, "the other node's web server", func() error { return gets(t, "http://nas:8080/map.yaml", "zone: foo-bar") })
			if tunnelTraces(t) == "" {
				t.Error("there is no link")
			}
			undo(t, d)
			if traces := tunnelTraces(t); traces != "" {
				t.Errorf("left on the machine:\n%s", traces)
			}
		})
	}
	t.Run("serve", proveServeBesideAWebServer)
	o.end(t, syscall.SIGTERM)
}

// proveServeBesideAWebServer: what is served to the tailnet and the machine's web server, which has every address, have one port, and
// a node that was killed serves again.
func proveServeBesideAWebServer(t *testing.T) {
	d, _ := up(t)
	must(t, program, "serve", "--bg", "--http", "80", "text:served to the tailnet")
	request := `printf 'GET / HTTP/1.0\r\nHost: laptop.foo-bar.ts.net\r\n\r\n' | ` + program + ` nc --socket /tmp/other/s laptop 80`
	served := func() error {
		out, _ := output(t, "ip", "netns", "exec", "outside", "sh", "-c", request)
		if !strings.Contains(out, "served to the tailnet") {
			return errors.New(out)
		}
		return nil
	}
	// A node that was started anew is heard of by what it says first.
	heard := func() error { return gets(t, "http://nas:8080/map.yaml", "zone: foo-bar") }
	eventually(t, readyTimeout, "the other node", heard)
	eventually(t, readyTimeout, "what is served, from the other node", served)
	if err := gets(t, "http://127.0.0.1/", "hello from"); err != nil {
		t.Errorf("the machine's web server: %v", err)
	}
	if err := gets(t, "http://laptop.foo-bar.ts.net/", "served to the tailnet"); err != nil {
		t.Errorf("by its name, from the machine itself: %v", err)
	}
	d.kill()
	again, _ := up(t)
	eventually(t, readyTimeout, "the other node, after kill -9", heard)
	eventually(t, readyTimeout, "what is served, after kill -9", served)
	must(t, program, "serve", "reset")
	if err := gets(t, "http://laptop.foo-bar.ts.net/", "hello from"); err != nil {
		t.Errorf("the machine's web server, at the tailnet's address: %v", err)
	}
	again.end(t, syscall.SIGTERM)
	if traces := tunnelTraces(t); traces != "" {
		t.Errorf("left on the machine:\n%s", traces)
	}
}

// gets returns nil if a page starts with text.
func gets(t *testing.T, url, text string) error {
	ctx, cancel := context.WithTimeout(t.Context(), commandTimeout)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, http.NoBody)
	if err != nil {
		return err
	}
	transport := &http.Transport{DisableKeepAlives: true}
	resp, err := transport.RoundTrip(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	got := make([]byte, len(text))
	if n, _ := resp.Body.Read(got); string(got[:n]) != text {
		return errors.New("got " + string(got[:n]))
	}
	return nil
}

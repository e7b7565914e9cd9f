package main_test

import (
	"crypto/tls"
	"encoding/pem"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/letsencrypt/pebble/v2/ca"
	"github.com/letsencrypt/pebble/v2/db"
	"github.com/letsencrypt/pebble/v2/va"
	"github.com/letsencrypt/pebble/v2/wfe"
)

const (
	edgeState = "/tmp/edge/state"
	edgeFlags = "--config /tmp/edge/meshdns.yaml --state-dir " + edgeState + " --socket /tmp/edge/s"
	pageMark  = "a page that nobody was warned of"
)

// onEdge is a command on the gateway, which is the machine "outside".
func onEdge(args ...string) []string {
	return append([]string{"ip", "netns", "exec", "outside", program}, append(args, strings.Fields(edgeFlags)...)...)
}

// proveCertificatesAreBelieved: the node of a tailnet gets a certificate through its gateway by two commands, and curl and
// Chromium open its page by name without a warning; with the tailnet's own CA likewise, once its root is trusted.
func proveCertificatesAreBelieved(t *testing.T) {
	newMachine(t)
	must(t, "ip", "-n", "outside", "addr", "add", "192.0.2.54/24", "dev", "e1") // unbound has port 53 of the other one
	must(t, onEdge("gateway", "init", "--zone", "foo-bar.ts.net", "--public", "192.0.2.54")...)
	directory, httpsRoot, issuer := startCA(t, "192.0.2.54:53", nil)
	host, _, _ := strings.Cut(strings.TrimPrefix(directory, "https://"), "/")
	config, err := os.ReadFile("/tmp/edge/meshdns.yaml")
	if err != nil {
		t.Fatal(err)
	}
	writeFile(t, "/tmp/edge/meshdns.yaml", "node: edge\ndns: {os: \"off\", stub: \"127.0.0.77:5300\"}\n"+strings.Replace(string(config), "  public:", "  listen: [192.0.2.54]\n  issuers: [\""+host+"=ca.test\"]\n  public:", 1))
	edge := background(t, onEdge("up")...)
	ready(t, edge, "/tmp/edge/s")

	writeFile(t, "/etc/pebble.pem", string(httpsRoot))
	settings := "node: nas\ncerts: {ca: %s, root: /etc/pebble.pem}\n"
	writeFile(t, "/etc/meshdns/meshdns.yaml", fmt.Sprintf(settings, directory))
	invite, _, _ := strings.Cut(must(t, onEdge("gateway", "invite", "nas")...), "\n")
	writeFile(t, "/tmp/invite", invite+"\n")
	must(t, program, "join", "--file", "/tmp/invite")
	d, _ := up(t)

	t.Run("by a CA of ACME", func(t *testing.T) {
		start := time.Now()
		must(t, "env", "-C", "/tmp", program, "cert")
		t.Logf("the certificate is there after %s", time.Since(start).Round(time.Millisecond))
		site := serveSite(t, "/tmp/nas.foo-bar.ts.net.crt", "/tmp/nas.foo-bar.ts.net.key")
		believed(t, site, issuer)
	})
	d.end(t, syscall.SIGTERM)
	writeFile(t, "/etc/meshdns/meshdns.yaml", fmt.Sprintf(settings, "local"))
	d, _ = up(t)
	t.Run("by the tailnet's own", func(t *testing.T) {
		must(t, program, "cert", "renew", "--force") // the one that there is would be good for long
		must(t, program, "cert", "--cert-file", "/tmp/own.crt", "--key-file", "/tmp/own.key")
		site := serveSite(t, "/tmp/own.crt", "/tmp/own.key")
		root, _, _ := strings.Cut(must(t, "sh", "-c", program+" cert trust --print 2>/dev/null"), "\x00")
		believed(t, site, []byte(root))
		if out, code := output(t, "curl", "-sS", site); code != 60 {
			t.Fatalf("before it is trusted curl ends with %d: %s", code, out)
		}
		must(t, program, "cert", "trust")
		if out := must(t, "curl", "-sS", site); !strings.Contains(out, pageMark) {
			t.Errorf("once it is trusted: %s", out)
		}
		if out, _ := output(t, program, "cert", "check"); !strings.Contains(out, "programs believe the tailnet's CA") {
			t.Errorf("cert check: %s", out)
		}
		must(t, program, "cert", "trust", "--remove")
		if out, code := output(t, "curl", "-sS", site); code != 60 {
			t.Errorf("once it is trusted no longer curl ends with %d: %s", code, out)
		}
	})
	d.end(t, syscall.SIGTERM)
	edge.end(t, syscall.SIGTERM)
}

// startCA runs a CA that asks a DNS server, at a listener on 127.0.0.1 or, if that is nil, one of its own. httpsRoot is what its own HTTPS
// is believed by, issued what its certificates are.
func startCA(t *testing.T, dns string, ln net.Listener) (directory string, httpsRoot, issued []byte) {
	t.Helper()
	t.Setenv("PEBBLE_VA_NOSLEEP", "1")
	t.Setenv("PEBBLE_AUTHZREUSE", "0")
	quiet, store := log.New(io.Discard, "", 0), db.NewMemoryStore()
	authority := ca.New(quiet, store, "", "ecdsa", 0, 1, map[string]ca.Profile{"default": {ValidityPeriod: 90 * 24 * 3600}})
	front := wfe.New(quiet, store, va.New(quiet, 0, 0, false, dns, store), authority, []string{"ca.test"}, false, false, 1, 1)
	server := httptest.NewUnstartedServer(front.Handler())
	if ln != nil {
		server.Listener.Close()
		server.Listener = ln
	}
	server.StartTLS()
	t.Cleanup(server.Close)
	return server.URL + wfe.DirectoryPath, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: server.Certificate().Raw}), authority.GetRootCert(0).PEM()
}

// serveSite serves a page at the node's tailnet address, and returns its URL.
func serveSite(t *testing.T, cert, key string) string {
	t.Helper()
	pair, err := tls.LoadX509KeyPair(cert, key)
	if err != nil {
		t.Fatal(err)
	}
	addr, _, _ := strings.Cut(strings.TrimSpace(must(t, program, "dns", "query", "nas")), "\n")
	ln, err := net.Listen("tcp", net.JoinHostPort(addr, "443"))
	if err != nil {
		t.Fatal(err)
	}
	server := &http.Server{
		Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Type", "text/html")
			fmt.Fprintf(w, "<!doctype html><title>nas</title><p>%s</p>\n", pageMark)
		}),
		TLSConfig: &tls.Config{Certificates: []tls.Certificate{pair}},
		ErrorLog:  log.New(io.Discard, "", 0),
	}
	ended := make(chan struct{})
	go func() { defer close(ended); _ = server.ServeTLS(ln, "", "") }()
	t.Cleanup(func() { server.Close(); <-ended })
	return "https://nas.foo-bar.ts.net/"
}

// believed has curl and Chromium open a page with nothing but root to believe, and without it.
func believed(t *testing.T, site string, root []byte) {
	t.Helper()
	file := t.TempDir() + "/root.pem"
	writeFile(t, file, string(root))
	if out := must(t, "curl", "-sS", "--cacert", file, site); !strings.Contains(out, pageMark) {
		t.Errorf("curl: %s", out)
	}
	if out, code := output(t, "curl", "-sS", site); code != 60 {
		t.Errorf("without the root curl ends with %d: %s", code, out)
	}
	for _, with := range []bool{false, true} {
		home := t.TempDir()
		if with {
			browserBelieves(t, home, file)
		}
		out, _ := output(t, append(inBrowser(home), "--dump-dom", site)...)
		if strings.Contains(out, pageMark) != with {
			t.Errorf("with the root in Chromium's store: %t; it shows:\n%s", with, out)
		}
	}
}

// browserBelieves has Chromium, run with a home of its own, believe a root.
func browserBelieves(t *testing.T, home, root string) {
	t.Helper()
	store := "sql:" + home + "/.pki/nssdb"
	if err := os.MkdirAll(home+"/.pki/nssdb", 0o700); err != nil {
		t.Fatal(err)
	}
	must(t, "certutil", "-N", "-d", store, "--empty-password")
	must(t, "certutil", "-A", "-d", store, "-t", "C,,", "-n", "root", "-i", root)
}

// inBrowser is the command line of Chromium, without what it is to do.
func inBrowser(home string) []string {
	return []string{"env", "HOME=" + home, "chromium", "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--user-data-dir=" + home + "/profile"}
}

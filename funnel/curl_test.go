package funnel

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/pem"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// file is the authority's certificate in a file, for programs.
func (a *authority) file(t *testing.T) (path string) {
	t.Helper()
	path = filepath.Join(t.TempDir(), "ca.pem")
	if err := os.WriteFile(path, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: a.cert.Raw}), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// curl asks the listener at addr, by what its URL says, and returns all that it prints.
func (w *world) curl(t *testing.T, addr string, args ...string) string {
	t.Helper()
	args = append([]string{"-q", "-sS", "--max-time", "100", "--noproxy", "*", "--cacert", w.ca.file(t), "--connect-to", "::" + addr}, args...)
	out, err := exec.CommandContext(t.Context(), "curl", args...).CombinedOutput()
	if err != nil {
		t.Fatalf("curl %s: %v: %s", strings.Join(args, " "), err, out)
	}
	return string(out)
}

func TestCurl(t *testing.T) {
	if _, err := exec.LookPath("curl"); err != nil {
		t.Skip("curl is not installed")
	}
	w := newWorld(t)
	dir := tree(t, map[string]string{"big": strings.Repeat("0123456789", 1<<20), "index.html": "index"})
	to := backend(t, func(w http.ResponseWriter, r *http.Request) {
		if r.Method == http.MethodPut {
			sum := sha256.New()
			n, _ := io.Copy(sum, r.Body)
			w.Header().Set("Size", http.StatusText(200)+" "+hex.EncodeToString(sum.Sum(nil)))
			_, _ = io.WriteString(w, strings.Repeat("x", int(n>>20)))
			return
		}
		mirror(w, r)
	})
	entry := func(public bool, name string) Entry {
		return Entry{Kind: "https", Name: name, Port: 443, Public: public, Mounts: []Mount{{Path: "/", Target: to}, {Path: "/files", Target: dir}}}
	}
	w.set(entry(false, "a.example"), entry(true, "public.example"))
	big := filepath.Join(dir, "big")
	_, port, err := net.SplitHostPort(w.tailnet(443))
	if err != nil {
		t.Fatal(err)
	}
	for name, addr := range map[string]string{"a.example": "127.0.0.1:" + port, "public.example": w.public("public.example", 443, "https")} {
		for _, version := range []string{"--http1.1", "--http2"} {
			t.Run(name+version, func(t *testing.T) {
				url := "https://" + name
				want := map[string]string{"--http1.1": "1.1", "--http2": "2"}[version]
				if got := w.curl(t, addr, version, "-o", os.DevNull, "-w", "%{http_version} %{http_code} %{ssl_verify_result}", url+"/x"); got != want+" 200 0" {
					t.Error(got)
				}
				if got := w.curl(t, addr, version, url+"/a%2Fb?x;y", "-H", "X-Forwarded-For: 6.6.6.6"); !strings.HasPrefix(got, "GET /a%2Fb?x;y HTTP/1.1\nHost: "+name) || strings.Contains(got, "6.6.6.6") {
					t.Error(got)
				}
				// curl asks before it sends a body as large as this one.
				if got := w.curl(t, addr, version, "-T", big, url+"/up", "-D", "-", "-H", "Expect: 100-continue"); !strings.HasSuffix(got, "xxxxxxxxxx") {
					t.Error(got)
				}
				if got := w.curl(t, addr, version, "-r", "10485750-", url+"/files/big"); got != "0123456789" {
					t.Error(got)
				}
				if got := w.curl(t, addr, version, "-L", url+"/files"); got != "index" {
					t.Error(got)
				}
				if got := w.curl(t, addr, version, "-H", "Host: other.example", "-o", os.DevNull, "-w", "%{http_code}", url); got != "421" {
					t.Error(got)
				}
				if got := w.curl(t, addr, version, "--path-as-is", "-o", os.DevNull, "-w", "%{http_code}", url+"/files/../../etc/passwd"); got != "400" {
					t.Error(got)
				}
				// Two URLs, one connection.
				if got := w.curl(t, addr, version, "-o", os.DevNull, "-o", os.DevNull, "-w", "%{num_connects} ", url+"/1", url+"/2"); got != "1 0 " {
					t.Error(got)
				}
			})
		}
	}
}

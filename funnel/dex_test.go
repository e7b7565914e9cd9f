package funnel

import (
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/cookiejar"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"
)

// dexVersion names the build of testdata/dex/go.mod.
const dexVersion = "dex-2.45.1"

// dexProgram is dex, a provider of OpenID Connect, which is built once.
func dexProgram(t *testing.T) string {
	t.Helper()
	cache := os.Getenv("LAB_CACHE")
	if cache == "" {
		dir, err := os.UserCacheDir()
		if err != nil {
			t.Skip("NOT PROVEN: there is no place to build dex in: ", err)
		}
		cache = filepath.Join(dir, "meshdns-lab")
	}
	dir := filepath.Join(cache, dexVersion)
	program := filepath.Join(dir, "dex")
	if _, err := os.Stat(program); err == nil {
		return program
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Skip("NOT PROVEN: there is no place to build dex in: ", err)
	}
	// Somebody else may build it at the same time.
	built := fmt.Sprintf("%s.%d", program, os.Getpid())
	buildTools(t, "dex", built, "github.com/dexidp/dex/cmd/dex")
	if err := os.Rename(built, program); err != nil {
		t.Fatal(err)
	}
	return program
}

// startDex runs dex on loopback with what identifies people, and returns its issuer.
func startDex(t *testing.T, people string) string {
	t.Helper()
	ln := listenTest(t)
	addr := ln.Addr().String()
	ln.Close()
	issuer := "http://" + addr + "/dex"
	config := filepath.Join(t.TempDir(), "dex.yaml")
	text := fmt.Sprintf(`issuer: %s
storage: {type: memory}
web: {http: %s}
oauth2: {skipApprovalScreen: true}
staticClients:
- {id: nas, name: nas, secret: client-secret, redirectURIs: ["https://public.example/.meshdns/callback"]}
%s`, issuer, addr, people)
	if err := os.WriteFile(config, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	logs, err := os.Create(filepath.Join(t.TempDir(), "dex.log"))
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(dexProgram(t), "serve", config)
	cmd.Stdout, cmd.Stderr = logs, logs
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		logs.Close()
		if said, err := os.ReadFile(logs.Name()); err == nil && t.Failed() {
			t.Logf("dex said:\n%s", said)
		}
	})
	client := &http.Client{Timeout: time.Second}
	for end := time.Now().Add(time.Minute); time.Now().Before(end); {
		if resp, err := client.Get(issuer + "/.well-known/openid-configuration"); err == nil {
			resp.Body.Close()
			if resp.StatusCode == http.StatusOK {
				return issuer
			}
		}
		rest(t.Context(), 50*time.Millisecond)
	}
	t.Fatal("dex does not answer")
	return ""
}

// The people of dex, each kind with the connector that knows them.
const (
	dexPasswords = `enablePasswordDB: true
staticPasswords:
- {email: ann@example.com, hash: "` + bcrypted + `", username: ann, userID: "1", emailVerified: true}
- {email: bob@example.com, hash: "` + bcrypted + `", username: bob, userID: "2", emailVerified: true}
`
	dexMock = `connectors:
- {type: mockCallback, id: mock, name: Mock}
`
)

// slow skips what is of the slower set.
func slow(t *testing.T) {
	t.Helper()
	if os.Getenv("MESHDNS_LAB") == "" {
		t.Skip("of the slower set: make lab, or MESHDNS_LAB=1")
	}
}

// dexSite is https://public.example/ behind a login by dex, and where it listens.
func dexSite(t *testing.T, o OIDC) (w *world, addr string) {
	t.Helper()
	w = newWorld(t)
	e := site(kindHTTPS, "public.example", 443, true, backend(t, mirror))
	o.ClientID, o.Secret = "nas", "client-secret"
	e.Access.Login = &o
	w.set(e)
	return w, w.public("public.example", 443, kindHTTPS)
}

// browser keeps cookies and goes where it is sent, as browsers do. public.example is at addr.
func (w *world) browser(addr string) *http.Client {
	jar, err := cookiejar.New(nil)
	if err != nil {
		w.t.Fatal(err)
	}
	transport := &http.Transport{
		DialContext: func(ctx context.Context, network, to string) (net.Conn, error) {
			if strings.HasPrefix(to, "public.example:") {
				to = addr
			}
			return (&net.Dialer{}).DialContext(ctx, network, to)
		},
		TLSClientConfig: &tls.Config{RootCAs: w.ca.pool},
	}
	w.t.Cleanup(transport.CloseIdleConnections)
	return &http.Client{Transport: transport, Jar: jar, Timeout: time.Minute}
}

// visitPage has a browser get a page, or post a form.
func visitPage(t *testing.T, c *http.Client, at string, form url.Values) (last *url.URL, status int, body string) {
	t.Helper()
	r, err := http.NewRequestWithContext(t.Context(), http.MethodGet, at, nil)
	if form != nil {
		r, err = http.NewRequestWithContext(t.Context(), http.MethodPost, at, strings.NewReader(form.Encode()))
	}
	if err != nil {
		t.Fatal(err)
	}
	if form != nil {
		r.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	}
	r.Header.Set("Accept", "text/html")
	resp, err := c.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp.Request.URL, resp.StatusCode, string(text)
}

func person(name, password string) url.Values {
	return url.Values{"login": {name}, "password": {password}}
}

// logIn fills dex's form.
func logIn(t *testing.T, c *http.Client, page *url.URL, body string, who url.Values) (last *url.URL, status int, after string) {
	t.Helper()
	action := regexp.MustCompile(`<form method="post" action="([^"]+)"`).FindStringSubmatch(body)
	if action == nil {
		t.Fatalf("there is no form at %s:\n%s", page, body)
	}
	to, err := page.Parse(strings.ReplaceAll(action[1], "&amp;", "&"))
	if err != nil {
		t.Fatal(err)
	}
	return visitPage(t, c, to.String(), who)
}

func TestDexLetsPeopleIn(t *testing.T) {
	slow(t)
	issuer := startDex(t, dexPasswords)
	w, addr := dexSite(t, OIDC{Issuer: issuer, Mails: []string{"ann@example.com"}})

	c := w.browser(addr)
	page, _, body := visitPage(t, c, "https://public.example/photos/?page=2", nil)
	page, status, body := logIn(t, c, page, body, person("ann@example.com", "wrong"))
	if page.Host == "public.example" || !strings.Contains(body, "Invalid") {
		t.Fatalf("with a wrong password: %s %d %s", page, status, body)
	}
	page, status, body = logIn(t, c, page, body, person("ann@example.com", "secret"))
	if page.String() != "https://public.example/photos/?page=2" || status != 200 || !strings.HasPrefix(body, "GET /photos/?page=2 ") {
		t.Fatalf("after the login: %s %d %s", page, status, body)
	}
	if strings.Contains(body, "__Host-meshdns") || !strings.Contains(body, "Meshdns-User: ann@example.com") {
		t.Errorf("the service got:\n%s", body)
	}
	if _, status, _ := visitPage(t, c, "https://public.example/other", nil); status != 200 {
		t.Errorf("the next page: %d", status)
	}

	// Bob is known to dex, and not on the list.
	c = w.browser(addr)
	page, _, body = visitPage(t, c, "https://public.example/", nil)
	if page, status, body = logIn(t, c, page, body, person("bob@example.com", "secret")); page.Host != "public.example" || status != http.StatusForbidden || !strings.Contains(body, "Not on the list") {
		t.Errorf("bob: %s %d %s", page, status, body)
	}
}

func TestDexHoldsWhatWeAskItFor(t *testing.T) {
	slow(t)
	issuer := startDex(t, dexPasswords)
	w, addr := dexSite(t, OIDC{Issuer: issuer, Subjects: []string{"CgExEgVsb2NhbA"}, Mails: []string{"ann@example.com"}})

	// A redirect address other than ours gets no login page at all: it is exact.
	c := w.browser(addr)
	stopped := *c
	stopped.CheckRedirect = func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }
	r, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "https://public.example/", nil)
	if err != nil {
		t.Fatal(err)
	}
	r.Header.Set("Accept", "text/html")
	resp, err := stopped.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	to, err := resp.Location()
	if err != nil || !strings.HasPrefix(to.String(), issuer+"/auth?") {
		t.Fatalf("sent to %v: %v", to, err)
	}
	q := to.Query()
	q.Set("redirect_uri", "https://public.example.evil.example/.meshdns/callback")
	moved := *to
	moved.RawQuery = q.Encode()
	if _, status, _ := visitPage(t, c, moved.String(), nil); status != http.StatusBadRequest {
		t.Errorf("another redirect address: %d", status)
	}

	// A code that was caught on its way is of no use, even with the client's secret: the verifier is missing.
	caught := ""
	c.CheckRedirect = func(r *http.Request, _ []*http.Request) error {
		if r.URL.Host == "public.example" {
			caught = r.URL.Query().Get("code")
			return http.ErrUseLastResponse
		}
		return nil
	}
	page, _, body := visitPage(t, c, to.String(), nil)
	logIn(t, c, page, body, person("ann@example.com", "secret"))
	if caught == "" {
		t.Fatal("no code came back")
	}
	for _, verifier := range []string{"", random(tokenBytes)} {
		resp, err := http.PostForm(issuer+"/token", url.Values{
			"grant_type": {"authorization_code"}, "code": {caught}, "code_verifier": {verifier}, "client_id": {"nas"}, "client_secret": {"client-secret"},
			"redirect_uri": {"https://public.example/.meshdns/callback"},
		})
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		if resp.StatusCode < 400 {
			t.Errorf("a caught code was redeemed with verifier %q", verifier)
		}
	}
}

func TestChromiumLogsInByDex(t *testing.T) {
	slow(t)
	chromium, err := exec.LookPath("chromium")
	if err != nil {
		t.Skip("NOT PROVEN: there is no chromium: ", err)
	}
	issuer := startDex(t, dexMock)
	for group, want := range map[string]string{"authors": "GET /page ", "editors": "Not on the list"} {
		_, addr := dexSite(t, OIDC{Issuer: issuer, Groups: []string{group}})
		cmd := exec.CommandContext(t.Context(), chromium, "--headless", "--no-sandbox", "--disable-gpu", "--ignore-certificate-errors",
			"--user-data-dir="+t.TempDir(), "--host-resolver-rules=MAP public.example:443 "+addr, "--timeout=60000", "--dump-dom", "https://public.example/page")
		out, err := cmd.Output()
		if err != nil || !strings.Contains(string(out), want) {
			t.Errorf("group %s: %v\n%s", group, err, out)
		}
		if strings.Contains(string(out), "__Host-meshdns") {
			t.Errorf("the service got our cookies:\n%s", out)
		}
	}
}

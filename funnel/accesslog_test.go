package funnel

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"
	"testing/synctest"
	"time"
	"unicode/utf8"
)

// writeDown has one request written down, and returns what was.
func writeDown(t *testing.T, cfg AccessLogConfig, a Access, r *http.Request) (text string, told AccessLine) {
	t.Helper()
	var out bytes.Buffer
	cfg.Writer = &out
	cfg.Visited = func(l AccessLine) { told = l }
	g := newGuarded(t, a, nil)
	log := newAccessLog(cfg, nil)
	h := log.wrap("nas.example.org", g.wrap(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Set-Cookie", "backend=set-cookie-secret")
		w.WriteHeader(http.StatusCreated)
		_, _ = io.WriteString(w, "hello")
	})))
	h.ServeHTTP(httptest.NewRecorder(), r.WithContext(withCaller(r.Context(), g.from)))
	return out.String(), told
}

func TestAVisitIsALine(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		request := func() *http.Request {
			r := httptest.NewRequest("GET", "https://nas.example.org/photos/?page=2", http.NoBody)
			r.Header.Set("User-Agent", `curl "8"`)
			r.Header.Set("Referer", "https://search.example/find?q=private")
			r.Header.Set("Authorization", basicOf("ann", "secret"))
			return r
		}
		a := withUsers(map[string]string{"ann": cheapHash})
		text, told := writeDown(t, AccessLogConfig{}, a, request())
		var line AccessLine
		if err := json.Unmarshal([]byte(text), &line); err != nil || !strings.HasSuffix(text, "}\n") {
			t.Fatalf("%q: %v", text, err)
		}
		want := AccessLine{
			Time: line.Time, Entry: "nas.example.org", Public: true, User: "ann", Method: "GET", Path: "/photos/?page=2", Proto: "HTTP/1.1",
			Status: 201, Bytes: 5, Referer: "https://search.example/find", Agent: `curl "8"`,
		}
		if line != want {
			t.Errorf("got  %+v\nwant %+v", line, want)
		}
		// Who looks on in the foreground is told of the address, which is not kept.
		if want.Addr, told.Time = "192.0.2.7", want.Time; told != want {
			t.Errorf("told %+v", told)
		}
		text, _ = writeDown(t, AccessLogConfig{Addresses: true}, a, request())
		if !strings.Contains(text, `"addr":"192.0.2.7"`) {
			t.Errorf("with addresses: %s", text)
		}
		text, told = writeDown(t, AccessLogConfig{Format: "combined", Addresses: true}, a, request())
		stamp := told.Time.Format("02/Jan/2006:15:04:05 -0700")
		if want := `192.0.2.7 - ann [` + stamp + `] "GET /photos/?page=2 HTTP/1.1" 201 5 "https://search.example/find" "curl \"8\""` + "\n"; text != want {
			t.Errorf("got  %swant %s", text, want)
		}
		text, _ = writeDown(t, AccessLogConfig{Format: "combined"}, Access{}, request())
		if !strings.HasPrefix(text, "- - - [") {
			t.Errorf("without addresses: %s", text)
		}
		// What is refused is a visit, too.
		_, told = writeDown(t, AccessLogConfig{}, Access{Deny: prefixes("192.0.2.0/24")}, request())
		if told.Status != http.StatusForbidden || told.User != "" {
			t.Errorf("refused: %+v", told)
		}
	})
}

// Each of the secrets is in a request, and must not be in a line.
func TestWhatOpensDoorsIsNotWrittenDown(t *testing.T) {
	share, token := NewShare(time.Now().Add(time.Hour))
	for _, target := range []string{
		"/.meshdns/callback?code=SECRET1&state=SECRET2&iss=https://id.example",
		"/.meshdns/share/" + token,
		"/.meshdns/share/" + token + "/x",
		"/%2emeshdns/sh%61re/SECRET4",
		"/.meshdns/root/share/SECRET4",
		"/x?access_token=SECRET1", "/x?a=b&TOKEN=SECRET1", "/x?pass%77ord=SECRET1", "/x?pass%2577ord=SECRET1", "/x?api-key=SECRET1;sig=SECRET2",
		"/x?X-Amz-Signature=SECRET1&X-Amz-Security-Token=SECRET2", "/x?user=ann&pwd=SECRET1", "/x?q=a;jsessionid=SECRET2",
		"/x;jsessionid=SECRET1/y", "/x?eyJhbGciOi1.SECRET1", "/x?v=eyJhbGciOiJIUzI1NiJ9.eyJzSECRET1.abc123def456",
		"/verify/eyJhbGciOiJSECRET1", "/hook/T0123SECRET1abcdef0123456789abcdef0123",
		"/x?u=d41d8cd98f00b204e9800998ecfSECRET1", "/x?d41d8cd98f00b204e9800998ecfSECRET1", "/x?u=d41d8cd98f00b204e9%38%30SECRET1998ecf8427",
	} {
		for _, format := range []string{"json", "combined"} {
			r := httptest.NewRequest("GET", "https://nas.example.org/", http.NoBody)
			u, err := url.ParseRequestURI(target)
			if err != nil {
				t.Fatal(err)
			}
			r.URL = u
			r.Header.Set("Cookie", "session=SECRET5; __Host-meshdns-0-login=SECRET5")
			r.Header.Set("Authorization", "Bearer SECRET6")
			r.Header.Set("Proxy-Authorization", "Basic SECRET6")
			r.Header.Set("X-Api-Key", "SECRET6")
			r.Header.Set("Referer", "https://user:SECRET7@nas.example.org"+target)
			text, told := writeDown(t, AccessLogConfig{Format: format}, Access{Shares: []Share{share}}, r)
			both, err := json.Marshal(told)
			if err != nil {
				t.Fatal(err)
			}
			for _, line := range []string{text, string(both)} {
				for _, secret := range []string{"SECRET", token, "set-cookie-secret"} {
					if strings.Contains(line, secret) {
						t.Errorf("%s: %s is in %s", target, secret, line)
					}
				}
			}
		}
	}
}

func TestWhatPeopleWriteStays(t *testing.T) {
	for _, target := range []string{
		"/", "/photos/2026/11/IMG_20261125_213045.jpg", "/a/very-long-title-of-a-page-about-things-that-happened-in-2024",
		"/x?page=2&q=hello+world&sort=-date&lang=de", "/static/app.8f3b2c1d.js?v=1.2.3", "/%C3%B6ffnen?x", "/a;b/c",
	} {
		u, err := url.ParseRequestURI(target)
		if err != nil {
			t.Fatal(err)
		}
		if got := strikePath(u); got != target {
			t.Errorf("got %s, want %s", got, target)
		}
	}
}

func TestALineIsOneLineAndBounded(t *testing.T) {
	for _, format := range []string{"json", "combined"} {
		r := httptest.NewRequest("GET", "https://nas.example.org/", http.NoBody)
		r.URL = &url.URL{Path: "/" + strings.Repeat("\n\"\xff", 30000), RawQuery: strings.Repeat("\n\"\\\xff\x1b", 30000)}
		r.Method = strings.Repeat("M", 10000)
		r.Header.Set("User-Agent", strings.Repeat("\n\x1b[2J\"\\\xff\u2028", 30000))
		r.Header.Set("Referer", "https://x.example/"+strings.Repeat("%0a\xff", 2000))
		text, _ := writeDown(t, AccessLogConfig{Format: format, Addresses: true}, Access{}, r)
		if len(text) > maxLogLine || strings.Count(text, "\n") != 1 || !utf8.ValidString(text) {
			t.Errorf("%s: %d bytes, %d lines", format, len(text), strings.Count(text, "\n"))
		}
		if strings.ContainsAny(text, "\x1b\r\x00") {
			t.Errorf("%s: a line steers terminals: %q", format, text)
		}
	}
}

func TestAFullDiskStopsNoVisitor(t *testing.T) {
	var notes bytes.Buffer
	full := &fullDisk{full: true}
	log := newAccessLog(AccessLogConfig{Writer: full}, slog.New(slog.NewTextHandler(&notes, nil)))
	h := log.wrap("nas", http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusTeapot) }))
	ask := func() {
		t.Helper()
		w := httptest.NewRecorder()
		h.ServeHTTP(w, httptest.NewRequest("GET", "/", http.NoBody))
		if w.Code != http.StatusTeapot {
			t.Errorf("status %d", w.Code)
		}
	}
	for range 3 {
		ask()
	}
	full.full = false
	ask()
	ask()
	if got := notes.String(); strings.Count(got, "\n") != 2 || !strings.Contains(got, "no space left") || full.lines != 2 {
		t.Errorf("%d lines; logged:\n%s", full.lines, got)
	}
}

// fullDisk is a writer that may be full.
type fullDisk struct {
	full  bool
	lines int
}

func (f *fullDisk) Write(p []byte) (int, error) {
	if f.full {
		return 0, errors.New("no space left on device")
	}
	f.lines++
	return len(p), nil
}

func TestAVisitThatBreaksOffIsWrittenDown(t *testing.T) {
	var told []AccessLine
	log := newAccessLog(AccessLogConfig{Visited: func(l AccessLine) { told = append(told, l) }}, nil)
	h := log.wrap("nas", http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		_, _ = io.WriteString(w, "half")
		panic(http.ErrAbortHandler)
	}))
	func() {
		defer func() {
			if recover() != http.ErrAbortHandler {
				t.Error("the end was swallowed")
			}
		}()
		h.ServeHTTP(httptest.NewRecorder(), httptest.NewRequest("GET", "/", http.NoBody))
	}()
	if len(told) != 1 || told[0].Bytes != 4 || told[0].Status != 200 {
		t.Errorf("told %+v", told)
	}
}

func TestConnectionsThatAreHandedOverAreCounted(t *testing.T) {
	told := make(chan AccessLine, 1)
	log := newAccessLog(AccessLogConfig{Visited: func(l AccessLine) { told <- l }}, nil)
	server := httptest.NewServer(log.wrap("nas", http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		conn, _, err := http.NewResponseController(w).Hijack()
		if err != nil {
			t.Error(err)
			return
		}
		defer conn.Close()
		_, _ = io.WriteString(conn, "HTTP/1.1 101 Switching Protocols\r\n\r\nhello")
		if half, ok := conn.(interface{ CloseWrite() error }); !ok || half.CloseWrite() != nil {
			t.Error("the connection has lost its sides")
		}
		if n, err := io.Copy(io.Discard, conn); n != 3 || err != nil {
			t.Errorf("%d bytes after our side had ended: %v", n, err)
		}
	})))
	defer server.Close()
	conn, err := net.Dial("tcp", server.Listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	_, _ = io.WriteString(conn, "GET / HTTP/1.1\r\nHost: x\r\n\r\n")
	answer, err := io.ReadAll(bufio.NewReader(conn))
	if err != nil || !strings.HasSuffix(string(answer), "hello") {
		t.Errorf("%q: %v", answer, err)
	}
	_, _ = io.WriteString(conn, "bye")
	if err := conn.(*net.TCPConn).CloseWrite(); err != nil {
		t.Fatal(err)
	}
	if l := <-told; l.Status != 101 || l.Bytes < int64(len("hello")) {
		t.Errorf("told %+v", l)
	}
}

func TestConnectionsAreLinesToo(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var out bytes.Buffer
		log := newAccessLog(AccessLogConfig{Writer: &out}, nil)
		start := time.Now()
		time.Sleep(1500 * time.Millisecond)
		log.connection("tcp:22", fromTailnet("100.64.0.9", "laptop"), start, 42)
		var line AccessLine
		if err := json.Unmarshal(out.Bytes(), &line); err != nil || line.Entry != "tcp:22" || line.Bytes != 42 || line.Seconds != 1.5 || line.Node != "laptop" || line.Addr != "" {
			t.Errorf("%s: %v", out.String(), err)
		}
		newAccessLog(AccessLogConfig{}, nil).connection("tcp:22", Caller{}, start, 0) // nobody wants to know
	})
}

// FuzzStrike checks that what is struck stays so, that lines are bounded, and that nothing ends one.
func FuzzStrike(f *testing.F) {
	f.Add("/a/b?token=MARKED", "https://x/y?z")
	f.Add("/.meshdns/share/MARKED", "")
	f.Add("/a;x=MARKED?%74oken=MARKED;code=MARKED", "http://[")
	f.Fuzz(func(t *testing.T, target, referer string) {
		u, err := url.ParseRequestURI(target)
		if err != nil {
			return
		}
		path, from := strikePath(u), strikeReferer(referer)
		if len(path) > maxLogPath || len(from) > maxLogField {
			t.Errorf("%d and %d bytes", len(path), len(from))
		}
		if strings.Contains(from, "?") && !strings.Contains(from, "…") && !strings.HasPrefix(from, "http") {
			t.Errorf("referer %q", from)
		}
		for key, values := range u.Query() {
			for _, v := range values {
				if isSecretKey(key) && len(v) > 8 && !strings.Contains(u.EscapedPath(), v) && !strings.Contains(key, v) && strings.Contains(path, "="+v) {
					t.Errorf("%q is in %q", v, path)
				}
			}
		}
		line := AccessLine{Method: "GET", Path: path, Referer: from, Agent: bounded(referer, maxLogField)}
		if text := line.Combined(); strings.ContainsAny(text, "\n\r\x1b") || len(text) > maxLogLine {
			t.Errorf("line %q", text)
		}
	})
}

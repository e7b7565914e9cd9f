package funnel

import (
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"
)

// tree makes files, by path; one whose text starts with -> is a link.
func tree(t *testing.T, list map[string]string) (dir string) {
	t.Helper()
	dir = t.TempDir()
	for name, text := range list {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		var err error
		if to, ok := strings.CutPrefix(text, "->"); ok {
			err = os.Symlink(strings.ReplaceAll(to, "DIR", dir), path)
		} else {
			err = os.WriteFile(path, []byte(text), 0o644)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

func TestFilesAreShown(t *testing.T) {
	dir := tree(t, map[string]string{
		"site/index.html": "<h1>index</h1>", "site/a b%2F.txt": "odd", "site/sub/x.txt": "0123456789", "site/sub/.env": "SECRET", "site/.git/config": "SECRET",
		"site/.well-known/security.txt": "contact", "site/in": "->sub/x.txt", "site/out": "->DIR/secret", "site/up": "->../secret", "site/updir": "->..",
		"site/sub/javascript:alert(1)": "x", `site/sub/<img src=x onerror=alert(1)>`: "x", "secret": "SECRET", "site/with/index.html": "with", "site/none/x": "x",
	})
	if err := os.MkdirAll(filepath.Join(dir, "site/gone/index.html"), 0o755); err != nil {
		t.Fatal(err)
	}
	w := newWorld(t)
	site := filepath.Join(dir, "site")
	w.set(Entry{Kind: "http", Name: "a.example", Port: 80, Mounts: []Mount{
		{Path: "/", Target: site}, {Path: "/m", Target: site, Dotfiles: true}, {Path: "/file", Target: filepath.Join(site, "sub/x.txt")},
		{Path: "/quiet", Target: site, NoListing: true}, {Path: "/absent", Target: filepath.Join(dir, "absent")},
	}})
	c := w.client(w.tailnet(80), http1)
	for path, want := range map[string]string{
		"/":                         "200 <h1>index</h1>",
		"/m":                        "301 ./m/",
		"/m/":                       "200 <h1>index</h1>",
		"/sub/x.txt":                "200 0123456789",
		"/sub/x.txt/":               "404",
		"/sub":                      "301 ./sub/",
		"/sub?a=b":                  "301 ./sub/?a=b",
		"/sub/":                     "200 <!doctype",
		"/a%20b%252F.txt":           "200 odd",
		"/in":                       "200 0123456789",
		"/out":                      "404",
		"/up":                       "404",
		"/updir/secret":             "404",
		"/updir/":                   "404",
		"/with/":                    "200 with",
		"/gone/":                    "200 <!doctype",
		"/sub/.env":                 "404",
		"/.git/config":              "404",
		"/m/.git/config":            "200 SECRET",
		"/.well-known/security.txt": "200 contact",
		"/nothing":                  "404",
		"/file":                     "200 0123456789",
		"/file/":                    "200 0123456789",
		"/file/x":                   "404",
		"/quiet/sub/":               "404",
		"/quiet/sub/x.txt":          "200 0123456789",
		"/absent/":                  "404",
		"/%5c..%5csecret":           "400",
		"/sub/..%2f..%2fsecret":     "400",
		"/m/%2e%2e/secret":          "400",
		"/sub%2fx.txt":              "200 0123456789",
	} {
		t.Run(path, func(t *testing.T) {
			r := httpRequest(t, "GET", "http://a.example/")
			r.URL.Opaque = path // as it is
			got := w.do(c, r)
			text := fmt.Sprint(got.status, " ", got.header.Get("Location"))
			if got.status == 200 {
				text += got.body
			}
			if !strings.HasPrefix(text, want) || strings.Contains(got.body, "SECRET") != strings.Contains(want, "SECRET") {
				t.Errorf("%s%s", text, got.body)
			}
			if got.status == 200 && got.header.Get("X-Content-Type-Options") != "nosniff" {
				t.Errorf("%v", got.header)
			}
		})
	}
	listing := w.get(c, "http://a.example/sub/").body
	for _, bad := range []string{"<img", `href="javascript`, ".env"} {
		if strings.Contains(listing, bad) {
			t.Errorf("the listing has %s:\n%s", bad, listing)
		}
	}
	for _, good := range []string{`href="./x.txt"`, `href="./javascript:alert`, "&lt;img", `href="../"`, "<td>10<td>"} {
		if !strings.Contains(listing, good) {
			t.Errorf("the listing lacks %s:\n%s", good, listing)
		}
	}
	// One who names the world's files learns nothing of this machine's.
	if got := w.get(c, "http://a.example/absent/"); !strings.Contains(got.body, dir) {
		t.Errorf("the owner is not told: %s", got.body)
	}
}

func TestRangesAndConditions(t *testing.T) {
	w := newWorld(t)
	dir := tree(t, map[string]string{"x.txt": "0123456789"})
	w.set(site("http", "a.example", 80, false, dir))
	c := w.client(w.tailnet(80), http1)
	set := func(name, value string) func(*http.Request) {
		return func(r *http.Request) { r.Header.Set(name, value) }
	}
	whole := w.get(c, "http://a.example/x.txt")
	tag := whole.header.Get("Etag")
	if tag == "" || whole.header.Get("Accept-Ranges") != "bytes" {
		t.Fatalf("%+v", whole)
	}
	for name, test := range map[string]struct {
		change func(*http.Request)
		status int
		body   string
	}{
		"a range":            {set("Range", "bytes=2-4"), 206, "234"},
		"the end":            {set("Range", "bytes=-3"), 206, "789"},
		"beyond":             {set("Range", "bytes=20-"), 416, ""},
		"far too many":       {set("Range", "bytes=0-0"+strings.Repeat(",0-0", 5000)), 200, "0123456789"},
		"known":              {set("If-None-Match", tag), 304, ""},
		"another":            {set("If-None-Match", `"x"`), 200, "0123456789"},
		"not since":          {set("If-Modified-Since", time.Now().Add(time.Hour).UTC().Format(http.TimeFormat)), 304, ""},
		"a range of another": {func(r *http.Request) { r.Header.Set("Range", "bytes=2-4"); r.Header.Set("If-Range", `"x"`) }, 200, "0123456789"},
		"a change":           {func(r *http.Request) { r.Method = "PUT" }, 405, ""},
		"the head":           {func(r *http.Request) { r.Method = "HEAD" }, 200, ""},
	} {
		t.Run(name, func(t *testing.T) {
			got := w.get(c, "http://a.example/x.txt", test.change)
			if got.status != test.status || got.status < 300 && got.body != test.body {
				t.Errorf("%d %q", got.status, got.body)
			}
		})
	}
}

// A non-root user has root's daemon show files: each is opened with the user's rights, at every request.
func TestFilesAreOpenedByTheirOwner(t *testing.T) {
	dir := tree(t, map[string]string{"x.txt": "x", "sub/y": "y"})
	var mu sync.Mutex
	var owners []uint32
	w := newWorld(t, func(c *ServerConfig) {
		c.As = func(e Entry, do func() error) error {
			mu.Lock()
			defer mu.Unlock()
			owners = append(owners, e.Owner)
			if e.Owner == 1001 {
				return &os.PathError{Op: "open", Path: dir, Err: os.ErrPermission}
			}
			return do()
		}
	})
	mine, other := site("http", "a.example", 80, false, dir), site("http", "b.example", 80, false, dir)
	mine.Owner, other.Owner = 1000, 1001
	w.set(mine, other)
	c := w.client(w.tailnet(80), http1)
	for url, want := range map[string]int{"http://a.example/x.txt": 200, "http://a.example/sub/": 200, "http://b.example/x.txt": 404, "http://b.example/": 404} {
		if got := w.get(c, url); got.status != want {
			t.Errorf("%s: %d", url, got.status)
		}
	}
	mu.Lock()
	defer mu.Unlock()
	if len(owners) != 5 { // what is in the directory is asked for too
		t.Errorf("opened as %v", owners)
	}
}

func TestTextsAndRedirects(t *testing.T) {
	w := newWorld(t)
	w.set(Entry{Kind: "http", Name: "a.example", Port: 8080, Mounts: []Mount{
		{Path: "/text", Target: "text:<b>hello</b>"},
		{Path: "/found", Target: "redirect:https://b.example/x"},
		{Path: "/moved", Target: "redirect:308:https://${HOST}${REQUEST_URI}"},
		{Path: "/port", Target: "redirect:301:https://${HOST}:8443/y"},
		{Path: "/here", Target: "redirect:${REQUEST_URI}"},
		{Path: "/", Target: "redirect:${REQUEST_URI}"},
	}})
	c := w.client(w.tailnet(8080), http1)
	for path, want := range map[string]string{
		"/text":                    "200 ",
		"/found/z":                 "302 https://b.example/x",
		"/moved/z%2F?q=1;2":        "308 https://a.example/moved/z%2F?q=1;2",
		"/port":                    "301 https://a.example:8443/y",
		"//evil.example/x":         "302 /evil.example/x",
		"///evil.example":          "302 /evil.example",
		"/%0d%0aSet-Cookie:%20a=b": "302 /%0d%0aSet-Cookie:%20a=b",
	} {
		t.Run(path, func(t *testing.T) {
			r := httpRequest(t, "GET", "http://a.example:8080/")
			r.URL.Path, r.URL.Opaque = "", ""
			r.URL.Opaque = path
			r.URL.RawQuery = ""
			if strings.HasPrefix(path, "//") {
				r.URL.Opaque = "http://a.example:8080" + path
			}
			got := w.do(c, r)
			if text := fmt.Sprint(got.status, " ", got.header.Get("Location")); text != want {
				t.Error(text)
			}
			if path == "/text" && (got.body != "<b>hello</b>" || !strings.HasPrefix(got.header.Get("Content-Type"), "text/plain")) {
				t.Errorf("%+v", got)
			}
		})
	}
}

package funnel

import (
	"context"
	"errors"
	"fmt"
	"html"
	"io"
	"io/fs"
	"net/http"
	"net/url"
	"os"
	"path"
	"slices"
	"strings"
	"syscall"
)

// The bounds of what is shown of files.
const (
	maxListing = 10000 // names of one directory
	maxRanges  = 16    // of one request: the answer has a part for each
)

// files is a mount that is a file, or a directory and all that is in it.
type files struct {
	server *Server
	entry  Entry
	mount  Mount
	path   string
}

// reads says whether a request only reads, and answers it if not.
func reads(w http.ResponseWriter, r *http.Request) bool {
	if r.Method == http.MethodGet || r.Method == http.MethodHead {
		return true
	}
	w.Header().Set("Allow", "GET, HEAD")
	writePage(w, r, page{status: http.StatusMethodNotAllowed})
	return false
}

// ServeHTTP shows a file or a directory.
func (f *files) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if !reads(w, r) {
		return
	}
	rest, err := url.PathUnescape(restOf(r.Context()))
	if err != nil {
		writePage(w, r, page{status: http.StatusBadRequest})
		return
	}
	one, err := f.open(rest)
	if err != nil {
		f.failed(w, r, err)
		return
	}
	defer one.Close()
	asDir := strings.HasSuffix(r.URL.Path, "/")
	switch {
	case one.info.IsDir() && !asDir:
		f.redirect(w, r, path.Base(r.URL.Path)+"/")
	case one.info.IsDir():
		f.list(w, r, one)
	case asDir && !one.index && rest != "/":
		writePage(w, r, page{status: http.StatusNotFound})
	default:
		f.send(w, r, one)
	}
}

// opened is a file or a directory.
type opened struct {
	*os.File

	info  fs.FileInfo
	index bool // it stands for the directory that it is in
}

// errHidden is a file that is there but not shown.
var errHidden = errors.New("a name that starts with a dot")

// open opens what is at a path behind the mount's, with the rights of the entry's owner. Through os.Root no link leads out
// of the directory, not even one that is changed at this very moment.
func (f *files) open(rest string) (one *opened, err error) {
	name := strings.Trim(path.Clean("/"+rest), "/")
	if f.hidden(name) {
		return nil, errHidden
	}
	err = f.server.as(f.entry, func() error {
		one, err = openBelow(f.path, name)
		if err != nil || !one.info.IsDir() || !strings.HasSuffix(rest, "/") {
			return err
		}
		index, err := openBelow(f.path, path.Join(name, "index.html"))
		if err == nil && index.info.IsDir() {
			index.Close()
			return nil
		}
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		one.Close()
		if one = index; err == nil {
			one.index = true
		}
		return err
	})
	if err != nil {
		return nil, err
	}
	return one, nil
}

// openBelow opens a name in a directory, or the file itself that stands at top.
func openBelow(top, name string) (*opened, error) {
	info, err := os.Stat(top)
	if err != nil {
		return nil, err
	}
	if !info.IsDir() {
		if name != "" {
			return nil, fs.ErrNotExist
		}
		file, err := os.OpenFile(top, os.O_RDONLY|syscall.O_NONBLOCK, 0)
		return regular(file, err)
	}
	root, err := os.OpenRoot(top)
	if err != nil {
		return nil, err
	}
	defer root.Close()
	if name == "" {
		name = "."
	}
	file, err := root.OpenFile(name, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	return regular(file, err)
}

// errNotFile is a device, a pipe or a socket.
var errNotFile = errors.New("neither a file nor a directory")

// regular is a file that ends, or a directory. Opening a pipe would wait for its other end, but for O_NONBLOCK.
func regular(file *os.File, err error) (*opened, error) {
	if err != nil {
		return nil, err
	}
	info, err := file.Stat()
	if err == nil && !info.IsDir() && !info.Mode().IsRegular() {
		err = errNotFile
	}
	if err != nil {
		file.Close()
		return nil, err
	}
	return &opened{File: file, info: info}, nil
}

// hidden says whether a path has a part that is not shown: .git and .env are where secrets are. .well-known is for all
// (RFC 8615).
func (f *files) hidden(name string) bool {
	if f.mount.Dotfiles {
		return false
	}
	for part := range strings.SplitSeq(name, "/") {
		if strings.HasPrefix(part, ".") && part != ".well-known" {
			return true
		}
	}
	return false
}

// failed answers for a file that cannot be shown. What the visitor may not see is, to the visitor, not there.
func (f *files) failed(w http.ResponseWriter, r *http.Request, err error) {
	f.server.log.Debug("a file is not shown", "err", err)
	writePage(w, r, page{status: http.StatusNotFound, detail: f.path + ": " + err.Error()})
}

// redirect sends a visitor to a name beside the one that was asked for.
func (f *files) redirect(w http.ResponseWriter, r *http.Request, name string) {
	to := &url.URL{Path: "./" + name, RawQuery: r.URL.RawQuery}
	w.Header().Set("Location", to.String())
	w.WriteHeader(http.StatusMovedPermanently)
}

// send sends a file, or the ranges of it that are asked for.
func (f *files) send(w http.ResponseWriter, r *http.Request, one *opened) {
	h := w.Header()
	h.Set("X-Content-Type-Options", "nosniff")
	h.Set("Etag", fmt.Sprintf(`"%x-%x"`, one.info.ModTime().UnixNano(), one.info.Size()))
	if strings.Count(r.Header.Get("Range"), ",") >= maxRanges {
		r.Header.Del("Range")
	}
	http.ServeContent(w, r, one.info.Name(), one.info.ModTime(), &ended{File: one.File, ctx: r.Context()})
}

// ended is a file that ends when nobody may have it any more.
type ended struct {
	*os.File

	ctx context.Context
}

func (e *ended) Read(p []byte) (int, error) {
	if err := context.Cause(e.ctx); err != nil {
		return 0, err
	}
	return e.File.Read(p)
}

// list shows what is in a directory.
func (f *files) list(w http.ResponseWriter, r *http.Request, dir *opened) {
	if f.mount.NoListing {
		writePage(w, r, page{status: http.StatusNotFound, detail: f.path + ": there is no index.html, and listing is off"})
		return
	}
	var text string
	err := f.server.as(f.entry, func() (err error) {
		text, err = f.listing(r, dir)
		return err
	})
	if err != nil {
		f.failed(w, r, err)
		return
	}
	h := w.Header()
	h.Set("Content-Type", "text/html; charset=utf-8")
	h.Set("Cache-Control", "no-cache")
	h.Set("X-Content-Type-Options", "nosniff")
	h.Set("Content-Security-Policy", "default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'none'")
	if r.Method != http.MethodHead {
		_, _ = io.WriteString(w, text) // the visitor may be gone
	}
}

// listing is the page for a directory.
func (f *files) listing(r *http.Request, dir *opened) (string, error) {
	entries, err := dir.ReadDir(maxListing + 1)
	if err != nil && !errors.Is(err, io.EOF) {
		return "", err
	}
	more := len(entries) > maxListing
	entries = slices.DeleteFunc(entries, func(e fs.DirEntry) bool { return f.hidden(e.Name()) })
	slices.SortFunc(entries, func(a, b fs.DirEntry) int { return strings.Compare(a.Name(), b.Name()) })
	var b strings.Builder
	fmt.Fprintf(&b, listingHead, html.EscapeString(r.URL.Path))
	if rest := restOf(r.Context()); rest != "" && rest != "/" {
		b.WriteString(`<tr><td><a href="../">../</a>` + "\n")
	}
	for _, e := range entries[:min(len(entries), maxListing)] {
		writeLine(&b, e)
	}
	b.WriteString("</table>\n")
	if more {
		fmt.Fprintf(&b, "<p>There are more than %d.</p>\n", maxListing)
	}
	return b.String(), nil
}

const listingHead = `<!doctype html>
<html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>%[1]s</title>
<style>body{font:16px/1.5 system-ui,sans-serif;max-width:60em;margin:2em auto;padding:0 1em;color-scheme:light dark}
td{padding-right:2em;overflow-wrap:anywhere}</style>
<h1>%[1]s</h1>
<table>
`

// writeLine writes a line of a listing. A name is one part of a path, whatever is in it: ./ keeps a: from being a scheme.
func writeLine(b *strings.Builder, e fs.DirEntry) {
	name := e.Name()
	if e.IsDir() {
		name += "/"
	}
	to := (&url.URL{Path: "./" + name}).String()
	size, when := "", ""
	if info, err := e.Info(); err == nil {
		when = info.ModTime().UTC().Format("2006-01-02 15:04")
		if info.Mode().IsRegular() {
			size = fmt.Sprint(info.Size())
		}
	}
	fmt.Fprintf(b, "<tr><td><a href=\"%s\">%s</a><td>%s<td>%s\n", html.EscapeString(to), html.EscapeString(name), size, when)
}

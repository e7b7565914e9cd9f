package funnel

import (
	"fmt"
	"html"
	"net/http"
)

// page is what a visitor sees instead of what was asked for.
type page struct {
	status int
	detail string // for who may know what stands behind a name, nobody else
	last   bool   // the connection ends with it
}

// explain is what a status means to a visitor.
func explain(status int) string {
	switch status {
	case http.StatusBadRequest:
		return "This request is not one that can be passed on."
	case http.StatusNotFound:
		return "There is nothing here."
	case http.StatusMethodNotAllowed:
		return "This cannot be done here."
	case http.StatusMisdirectedRequest:
		return "This connection is not for the name that was asked for."
	case http.StatusBadGateway:
		return "The service behind this name does not answer."
	case http.StatusServiceUnavailable:
		return "The service is not available at this moment."
	case http.StatusGatewayTimeout:
		return "The service behind this name takes too long to answer."
	case http.StatusLoopDetected:
		return "The service behind this name leads back here."
	}
	return ""
}

const pageHTML = `<!doctype html>
<html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>%[1]d %[2]s</title>
<style>body{font:16px/1.5 system-ui,sans-serif;max-width:40em;margin:15vh auto;padding:0 1em;color-scheme:light dark}
code{overflow-wrap:anywhere}</style>
<h1>%[1]d %[2]s</h1><p>%[3]s</p>%[4]s
`

// writePage shows a page. The world learns the status and no more.
func writePage(w http.ResponseWriter, r *http.Request, p page) {
	caller, _ := callerOf(r.Context())
	detail := ""
	if caller.Owner && !caller.Public {
		detail = p.detail
	}
	h := w.Header()
	// What a target may have set before it failed is not about this page.
	for _, name := range []string{"Content-Length", "Content-Encoding", "Etag", "Last-Modified", "Accept-Ranges", "Trailer"} {
		h.Del(name)
	}
	h.Set("Cache-Control", "no-store")
	h.Set("X-Content-Type-Options", "nosniff")
	if p.status == http.StatusMethodNotAllowed && h.Get("Allow") == "" {
		h.Set("Allow", "GET, HEAD")
	}
	if p.last && r.ProtoMajor == 1 {
		h.Set("Connection", "close")
	}
	title, text := http.StatusText(p.status), explain(p.status)
	if !wantsHTML(r) {
		h.Set("Content-Type", "text/plain; charset=utf-8")
		w.WriteHeader(p.status)
		fmt.Fprintf(w, "%d %s\n%s\n", p.status, title, text)
		if detail != "" {
			fmt.Fprintln(w, detail)
		}
		return
	}
	h.Set("Content-Type", "text/html; charset=utf-8")
	h.Set("Content-Security-Policy", "default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'none'")
	w.WriteHeader(p.status)
	if detail != "" {
		detail = "<p><code>" + html.EscapeString(detail) + "</code></p>"
	}
	fmt.Fprintf(w, pageHTML, p.status, title, text, detail)
}

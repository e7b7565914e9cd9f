package funnel

import (
	"bytes"
	"fmt"
	"html/template"
	"net/http"
	"strings"
)

// notice is a page of the guard's own. It holds nothing that came from outside, but for what it is told to.
type notice struct {
	Status int
	Title  string
	Text   string
	Button string // of a form that posts to where the page is; "" for none
	Again  string // a local path to go on to; "" for none
}

// noticePage has no scripts and loads nothing. Dark and light go by the visitor's system.
var noticePage = template.Must(template.New("notice").Parse(`<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<meta name="color-scheme" content="light dark"><title>{{.Title}}</title>
<style>body{font:1.1em/1.5 system-ui,sans-serif;max-width:36em;margin:15vh auto;padding:0 1em}button{font:inherit;padding:.4em 1.2em}</style>
</head><body><h1>{{.Title}}</h1>
<p>{{.Text}}</p>
{{with .Button}}<form method="post"><button>{{.}}</button></form>{{end}}
{{with .Again}}<p><a href="{{.}}">Try again</a></p>{{end}}
</body></html>
`))

// write sends the page, or its text to who does not ask for HTML. No cache keeps it, no site frames it, and nobody is
// told the whole address, which may have a token in it. Without any referrer, browsers would send "Origin: null" with
// the page's own form (Fetch, "append a request Origin header").
func (n notice) write(w http.ResponseWriter, r *http.Request) {
	h := w.Header()
	h.Set("Cache-Control", "no-store")
	h.Set("Content-Security-Policy", "default-src 'none'; style-src 'unsafe-inline'; form-action 'self'; frame-ancestors 'none'; base-uri 'none'")
	h.Set("Referrer-Policy", "strict-origin")
	h.Set("X-Content-Type-Options", "nosniff")
	h.Set("X-Frame-Options", "DENY")
	h.Add("Vary", "Accept")
	if !wantsHTML(r) {
		h.Set("Content-Type", "text/plain; charset=utf-8")
		w.WriteHeader(n.Status)
		fmt.Fprintf(w, "%s\n%s\n", n.Title, n.Text)
		return
	}
	var page bytes.Buffer
	if err := noticePage.Execute(&page, n); err != nil {
		w.WriteHeader(http.StatusInternalServerError)
		return
	}
	h.Set("Content-Type", "text/html; charset=utf-8")
	w.WriteHeader(n.Status)
	_, _ = w.Write(page.Bytes()) // who is gone misses nothing
}

// sendOn sends a browser on its way, from an address that may have a token or a code in it.
func sendOn(w http.ResponseWriter, r *http.Request, to string) {
	w.Header().Set("Cache-Control", "no-store")
	w.Header().Set("Referrer-Policy", "no-referrer")
	http.Redirect(w, r, to, http.StatusSeeOther)
}

// wantsHTML says whether a person looks at the answer.
func wantsHTML(r *http.Request) bool {
	return strings.Contains(strings.ToLower(r.Header.Get("Accept")), "text/html")
}

// navigates says whether r is a browser on its way to a page, which may be sent to log in first: not a program, and
// not a page that asks for its parts.
func navigates(r *http.Request) bool {
	if r.Method != http.MethodGet && r.Method != http.MethodHead || !wantsHTML(r) || r.Header.Get("Upgrade") != "" {
		return false
	}
	mode := r.Header.Get("Sec-Fetch-Mode")
	return mode == "" || mode == "navigate"
}

package funnel

import (
	"net/http"
	"slices"
	"strings"
)

// changes says whether a request may change something, or opens a channel that may. What only reads is RFC 9110's, 9.2.1.
func changes(r *http.Request) bool {
	switch r.Method {
	case http.MethodGet, http.MethodHead, http.MethodOptions, http.MethodTrace:
		return len(r.Header["Upgrade"]) > 0
	}
	return true
}

// sameOrigin says whether what a browser sends comes from a page of this very site, or of one that may. Browsers say so
// by Origin on all that changes something and on WebSockets; what says nothing is no browser, and brings along only
// what it was told to.
func (g *guard) sameOrigin(r *http.Request) bool {
	if slices.Contains(g.access.Origins, "*") {
		return true
	}
	origins := r.Header["Origin"]
	switch {
	case len(origins) > 1:
		return false
	case len(origins) == 1:
		origin := strings.ToLower(origins[0])
		return origin == g.origin(r.Host) || slices.Contains(g.access.Origins, origin)
	}
	site := r.Header.Get("Sec-Fetch-Site")
	return site == "" || site == "same-origin" || site == "none"
}

// origin is that of a page which a host serves. The server has checked by then that the host is the entry's.
func (g *guard) origin(host string) string {
	host = strings.ToLower(host)
	if g.cfg.Kind == kindHTTP {
		return "http://" + strings.TrimSuffix(host, ":80")
	}
	return "https://" + strings.TrimSuffix(host, ":443")
}

package funnel

import (
	"fmt"
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

// writePage shows a page. The world learns the status and no more.
func writePage(w http.ResponseWriter, r *http.Request, p page) {
	n := notice{Status: p.status, Title: fmt.Sprintf("%d %s", p.status, http.StatusText(p.status)), Text: explain(p.status)}
	if caller, _ := callerOf(r.Context()); caller.Owner && !caller.Public {
		n.Detail = p.detail
	}
	h := w.Header()
	// What a target may have set before it failed is not about this page.
	for _, name := range []string{"Content-Length", "Content-Encoding", "Etag", "Last-Modified", "Accept-Ranges", "Trailer"} {
		h.Del(name)
	}
	if p.status == http.StatusMethodNotAllowed && h.Get("Allow") == "" {
		h.Set("Allow", "GET, HEAD")
	}
	if p.last && r.ProtoMajor == 1 {
		h.Set("Connection", "close")
	}
	n.write(w, r)
}

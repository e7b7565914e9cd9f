package funnel

import (
	"context"
	"errors"
	"io"
	"net/http"
	"net/netip"
	"net/url"
	"slices"
	"strings"
	"time"

	"golang.org/x/net/http/httpguts"
)

// mount is a Mount that is served.
type mount struct {
	Mount

	guard   *guard // nil: the entry's alone
	handler http.Handler
	close   func() // lets go of connections that nothing goes over; nil: there are none
}

// newMount makes what a mount stands for.
func (s *Server) newMount(e Entry, m Mount) (*mount, error) {
	t, err := parseTarget(m.Target)
	if err != nil {
		return nil, err
	}
	made := &mount{Mount: m}
	var inner http.Handler
	switch t.kind {
	case targetProxy:
		p := s.newProxy(e, m, t)
		inner, made.close = p, p.close
	case targetFiles:
		inner = &files{server: s, entry: e, mount: m, path: t.path}
	case targetText:
		inner = textHandler(t.text)
	case targetRedirect:
		inner = redirectHandler(t)
	}
	if t.kind != targetProxy {
		inner = withHeaders(m.Headers, inner)
	}
	made.handler = inner
	if m.Access != nil {
		cfg := guardConfig{Name: e.Name, Port: e.Port, Kind: e.Kind, Mount: m.Path, Shared: s.shared}
		if made.guard, err = newGuard(*m.Access, cfg); err != nil {
			return nil, err
		}
		made.handler = made.guard.wrap(inner)
	}
	return made, nil
}

// serveHTTP answers a request, whoever sent it.
func (b *bench) serveHTTP(w http.ResponseWriter, r *http.Request) {
	l := linkOf(r.Context())
	if l == nil || !b.busy.enter() {
		w.Header().Set("Connection", "close")
		w.WriteHeader(http.StatusServiceUnavailable)
		return
	}
	defer b.busy.leave()
	s := b.server
	r = r.WithContext(withCaller(r.Context(), l.caller))
	one := s.pick(l, r.Host)
	if one == nil {
		s.log.Debug("a request names another host", "from", l.caller.Addr, "host", r.Host)
		writePage(w, r, page{status: http.StatusMisdirectedRequest})
		return
	}
	if status := refuse(r); status != 0 {
		writePage(w, r, page{status: status, last: true})
		return
	}
	clean(r)
	ctx, end := context.WithCancelCause(r.Context())
	defer end(nil)
	f := &flight{link: l, service: one.class, guard: one.guard, end: end, control: http.NewResponseController(w)}
	if one.restricted() {
		f.request = r.Clone(context.WithoutCancel(r.Context()))
		f.request.Body = http.NoBody
	}
	r = r.WithContext(context.WithValue(ctx, flightKey{}, f))
	if !s.flights.add(f, l.source) {
		w.Header().Set("Retry-After", "1")
		writePage(w, r, page{status: http.StatusServiceUnavailable, detail: "there are too many requests at this moment"})
		return
	}
	defer s.flights.remove(f)
	if r.ContentLength != 0 && !isGRPC(r) {
		r.Body = &patientBody{ReadCloser: r.Body, control: f.control, most: s.times.body}
	}
	if r.ProtoMajor == 2 {
		w = &patientAnswer{w, f}
	}
	one.handler.ServeHTTP(w, r)
}

// pick is the service for a host among those that the connection came for, or nil (S13).
func (s *Server) pick(l *link, host string) *service {
	name, ok := hostName(host)
	c := l.class.Load()
	if !ok || c == nil {
		return nil
	}
	want := *c
	if l.kind == kindHTTP {
		want.name = name
	} else if name != c.name {
		return nil
	}
	one := s.table.Load().find(want)
	if one == nil || one.entry.Kind != l.kind {
		return nil
	}
	return one
}

// hostName is the name in a Host header, without the port, in the form in which names are compared.
func hostName(host string) (string, bool) {
	name, port := host, ""
	if i := strings.LastIndexByte(host, ':'); i >= 0 && !strings.HasSuffix(host, "]") {
		name, port = host[:i], host[i+1:]
		if port == "" || len(port) > 5 || strings.Trim(port, "0123456789") != "" {
			return "", false
		}
	}
	if inner, ok := strings.CutPrefix(name, "["); ok {
		addr, err := netip.ParseAddr(strings.TrimSuffix(inner, "]"))
		return addr.String(), err == nil && addr.Is6()
	}
	return foldHost(name), isHost(name) || isAddr(name)
}

func isAddr(s string) bool {
	_, err := netip.ParseAddr(s)
	return err == nil
}

// refuse says with which status a request is not even looked at. Zero: it is.
func refuse(r *http.Request) int {
	switch {
	case r.Method == http.MethodConnect || r.Method == http.MethodTrace:
		// The one makes a tunnel, the other shows the visitor what we add for the target.
		return http.StatusMethodNotAllowed
	case !strings.HasPrefix(r.URL.Path, "/") || r.URL.Opaque != "":
		return http.StatusBadRequest // "*" too: it asks for the server as a whole, which is no target's
	case hasDots(r.URL.Path) || strings.ContainsRune(r.URL.Path, 0):
		return http.StatusBadRequest // clients resolve these themselves; what is left is made to get around rules for paths
	case len(r.Header["Content-Length"]) > 1, r.ProtoMajor == 2 && r.URL.Host != "",
		strings.ContainsFunc(r.RequestURI, func(c rune) bool { return c <= ' ' || c == 0x7f }):
		return http.StatusBadRequest // as framing has it for HTTP/1; of HTTP/2 net/http takes them
	case len(r.Header["Host"]) > 0 && (len(r.Header["Host"]) > 1 || r.Header["Host"][0] != r.Host):
		return http.StatusBadRequest // HTTP/2 has an :authority of another name beside it
	}
	return 0
}

// clean removes what is for the connection alone (RFC 9110, section 7.6.1), and what is ours to say. It comes before
// everything else, so that what a guard adds cannot be named in a Connection header either.
func clean(r *http.Request) {
	h := r.Header
	upgrade := isWebSocket(r)
	for _, list := range h["Connection"] {
		for name := range strings.SplitSeq(list, ",") {
			if name = http.CanonicalHeaderKey(strings.TrimSpace(name)); name != "" && name != "Upgrade" {
				delete(h, name)
			}
		}
	}
	te := httpguts.HeaderValuesContainsToken(h["Te"], "trailers")
	for name := range h {
		switch plain := http.CanonicalHeaderKey(folded(name)); {
		case isOurs(name):
			delete(h, name)
		case plain == "Host", isFraming(plain) && (plain != name || name != "Expect" && name != "Content-Length"):
			delete(h, name)
		}
	}
	if te {
		h.Set("Te", "trailers")
	}
	if upgrade {
		h.Set("Connection", "Upgrade")
		h.Set("Upgrade", "websocket")
	}
}

// isWebSocket says whether a request would open a WebSocket (RFC 6455, section 4.1). No other protocol is upgraded to.
func isWebSocket(r *http.Request) bool {
	h := r.Header
	return r.Method == http.MethodGet && r.ProtoMajor == 1 && r.ProtoMinor == 1 && r.ContentLength == 0 &&
		len(h["Upgrade"]) == 1 && strings.EqualFold(strings.TrimSpace(h["Upgrade"][0]), "websocket") &&
		httpguts.HeaderValuesContainsToken(h["Connection"], "upgrade") && h.Get("Sec-Websocket-Key") != ""
}

// isGRPC says whether a request is a call of gRPC, whose answer may start before the question has ended.
func isGRPC(r *http.Request) bool {
	kind, _, _ := strings.Cut(r.Header.Get("Content-Type"), ";")
	return r.ProtoMajor == 2 && (kind == "application/grpc" || strings.HasPrefix(kind, "application/grpc+"))
}

// restricted says whether anybody may be kept out.
func (s *service) restricted() bool {
	return s.entry.Access.restricts() || slices.ContainsFunc(s.mounts, func(m *mount) bool { return m.guard != nil })
}

// route has the mount answer whose path is the longest that fits.
func (s *service) route(w http.ResponseWriter, r *http.Request) {
	m, rest, err := match(s.mounts, r.URL)
	switch {
	case err != nil:
		writePage(w, r, page{status: http.StatusBadRequest})
	case m == nil:
		writePage(w, r, page{status: http.StatusNotFound})
	default:
		if f, ok := r.Context().Value(flightKey{}).(*flight); ok {
			f.mount.Store(m)
		}
		m.handler.ServeHTTP(w, r.WithContext(context.WithValue(r.Context(), restKey{}, rest)))
	}
}

// restKey is the key of what a request's escaped path has behind the mount's, in its context.
type restKey struct{}

// restOf is the escaped path behind the mount's: "" or one that starts with /.
func restOf(ctx context.Context) string {
	rest, _ := ctx.Value(restKey{}).(string)
	return rest
}

// errAmbiguous is a path that is in one mount as it was sent, and in another one once it is decoded.
var errAmbiguous = errors.New("a path that can be read in two ways")

// match finds the mount of a URL, and what is behind it. Targets read paths in their own ways: // as /, %2F as /. Where
// that would lead into another mount, which may have other rules, there is no answer.
func match(mounts []*mount, u *url.URL) (*mount, string, error) {
	escaped := u.EscapedPath()
	i := slices.IndexFunc(mounts, func(m *mount) bool { return below(m.Path, u.Path) != nil })
	j := slices.IndexFunc(mounts, func(m *mount) bool { return behind(m.Path, escaped) != nil })
	switch {
	case i != j:
		return nil, "", errAmbiguous
	case i < 0:
		return nil, "", nil
	}
	m := mounts[i]
	if m.Path == "/" {
		return m, escaped, nil
	}
	return m, *behind(m.Path, escaped), nil
}

// below is what a decoded path has behind a mount's, or nil where it is not in it. Slashes in a row count as one.
func below(mount, path string) *string {
	for part := range strings.FieldsFuncSeq(mount, isSlash) {
		path = strings.TrimLeft(path, "/")
		rest, ok := strings.CutPrefix(path, part)
		if !ok || rest != "" && rest[0] != '/' {
			return nil
		}
		path = rest
	}
	return &path
}

// behind is the same of an escaped path, whose parts are decoded one by one.
func behind(mount, path string) *string {
	for part := range strings.FieldsFuncSeq(mount, isSlash) {
		path = strings.TrimLeft(path, "/")
		first := path
		if end := strings.IndexByte(path, '/'); end >= 0 {
			first = path[:end]
		}
		if plain, err := url.PathUnescape(first); err != nil || plain != part {
			return nil
		}
		path = path[len(first):]
	}
	return &path
}

func isSlash(r rune) bool { return r == '/' }

// patientBody is a request's body whose pieces may take a while, but not for ever.
type patientBody struct {
	io.ReadCloser

	control *http.ResponseController
	most    time.Duration
	set     time.Time
}

func (b *patientBody) Read(p []byte) (int, error) {
	if now := time.Now(); now.Sub(b.set) > b.most/8 {
		b.set = now
		_ = b.control.SetReadDeadline(now.Add(b.most)) // a connection that has none is gone
	}
	n, err := b.ReadCloser.Read(p)
	if errors.Is(err, io.EOF) {
		// With any other error the time is up for what net/http reads of the rest, too.
		_ = b.control.SetReadDeadline(time.Time{})
	}
	return n, err
}

// withHeaders has rules for headers hold for what is answered here.
func withHeaders(rules HeaderRules, next http.Handler) http.Handler {
	if len(rules.ResponseSet)+len(rules.ResponseRemove) == 0 {
		return next
	}
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		next.ServeHTTP(&ruled{ResponseWriter: w, rules: rules}, r)
	})
}

// ruled is an answer whose headers are changed once they are whole.
type ruled struct {
	http.ResponseWriter

	rules HeaderRules
	done  bool
}

func (w *ruled) WriteHeader(status int) {
	if !w.done && status >= http.StatusOK {
		w.done = true
		w.rules.answer(w.Header())
	}
	w.ResponseWriter.WriteHeader(status)
}

func (w *ruled) Write(p []byte) (int, error) {
	if !w.done {
		w.WriteHeader(http.StatusOK)
	}
	return w.ResponseWriter.Write(p)
}

func (w *ruled) Unwrap() http.ResponseWriter { return w.ResponseWriter }

// answer changes the headers of an answer.
func (h HeaderRules) answer(header http.Header) {
	for _, name := range h.ResponseRemove {
		header.Del(name)
	}
	for name, value := range h.ResponseSet {
		header.Set(name, value)
	}
}

func textHandler(text string) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if !reads(w, r) {
			return
		}
		w.Header().Set("Content-Type", "text/plain; charset=utf-8")
		w.Header().Set("X-Content-Type-Options", "nosniff")
		http.ServeContent(w, r, "", time.Time{}, strings.NewReader(text))
	})
}

// redirectHandler sends visitors elsewhere.
func redirectHandler(t target) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		host := hostOf(r.Host)
		if isAddr(host) && strings.Contains(host, ":") {
			host = "[" + host + "]"
		}
		asked := r.URL.EscapedPath()
		if r.URL.RawQuery != "" || r.URL.ForceQuery {
			asked += "?" + r.URL.RawQuery
		}
		// A path that starts with two slashes, or with one and a backslash, is a host to browsers.
		asked = "/" + strings.TrimLeft(asked, "/\\")
		to := strings.NewReplacer("${HOST}", host, "${REQUEST_URI}", asked).Replace(t.text)
		w.Header().Set("Location", to)
		w.Header().Set("Content-Length", "0")
		w.WriteHeader(t.status)
	})
}

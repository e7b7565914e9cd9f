package funnel

import (
	"crypto/sha256"
	"encoding/base64"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
)

// The bounds of a target.
const (
	maxTarget = 4 << 10
	maxText   = 64 << 10
)

// target is a target, taken apart.
type target struct {
	kind targetKind

	network, address string // of a proxy: tcp and host:port, or unix and a path
	tls, insecure    bool   // of a proxy: it is spoken to over TLS; without checking who it is
	base             string // of a proxy: the escaped path before the visitor's; never ends in /
	query            string // of a proxy: before the visitor's
	bare             bool   // of a proxy: a port, host:port or unix:PATH was given, not a URL

	path   string // of files
	text   string // of text, and the URL of a redirect
	status int    // of a redirect
}

type targetKind int

const (
	targetProxy targetKind = iota + 1
	targetFiles
	targetText
	targetRedirect
)

// parseTarget takes a target apart.
func parseTarget(s string) (target, error) {
	if text, ok := strings.CutPrefix(s, "text:"); ok {
		if len(text) > maxText {
			return target{}, fmt.Errorf("a text of %d bytes: at most %d", len(text), maxText)
		}
		return target{kind: targetText, text: text}, nil
	}
	if len(s) > maxTarget {
		return target{}, fmt.Errorf("%d bytes: at most %d", len(s), maxTarget)
	}
	for _, c := range s {
		if c < ' ' || c == 0x7f {
			return target{}, &errValue{"target", s, "it has control characters"}
		}
	}
	scheme, rest, _ := strings.Cut(s, ":")
	switch scheme {
	case "redirect":
		return parseRedirect(s, rest)
	case "http", "https", "https+insecure":
		return parseURL(s)
	case "unix", "https+unix", "https+insecure+unix":
		return parseUnix(s, scheme, rest)
	}
	if filepath.IsAbs(s) {
		return target{kind: targetFiles, path: filepath.Clean(s)}, nil
	}
	return parseAddress(s)
}

// errTarget says what a target can be.
func errTarget(s string) error {
	return &errValue{"target", s, "it is a port, host:port, http(s)://host:port, https+insecure://host:port, unix:PATH, " +
		"an absolute path, text:…, or redirect:[3xx:]URL"}
}

// parseAddress is a port of this machine, or host:port.
func parseAddress(s string) (target, error) {
	t := target{kind: targetProxy, network: "tcp", bare: true}
	if port, err := strconv.ParseUint(s, 10, 16); err == nil && port > 0 && s[0] != '+' {
		t.address = net.JoinHostPort("localhost", strconv.FormatUint(port, 10))
		return t, nil
	}
	address, err := checkAddress(s)
	if err != nil {
		return target{}, errTarget(s)
	}
	t.address = address
	return t, nil
}

// checkAddress checks a host, a name or an address, with a port.
func checkAddress(s string) (string, error) {
	host, port, err := net.SplitHostPort(s)
	if err != nil {
		return "", err
	}
	n, err := strconv.ParseUint(port, 10, 16)
	if err != nil || n == 0 {
		return "", &errValue{"port", port, "a port is between 1 and 65535"}
	}
	host = strings.ToLower(strings.TrimSuffix(host, "."))
	if _, err := netip.ParseAddr(host); err != nil && (checkName(host) != nil || strings.HasPrefix(host, "*")) {
		return "", &errValue{"host", host, "it is neither a host's name nor an address"}
	}
	return net.JoinHostPort(host, strconv.FormatUint(n, 10)), nil
}

// parseURL is a web server, and the path there.
func parseURL(s string) (target, error) {
	u, err := url.Parse(s)
	if err != nil || u.Opaque != "" || u.Host == "" {
		return target{}, errTarget(s)
	}
	if u.User != nil || u.Fragment != "" {
		return target{}, &errValue{"target", u.Redacted(), "a user or a fragment cannot be in it"}
	}
	t := target{kind: targetProxy, network: "tcp", tls: u.Scheme != "http", insecure: u.Scheme == "https+insecure"}
	port := u.Port()
	switch {
	case port == "" && t.tls:
		port = "443"
	case port == "":
		port = "80"
	}
	if t.address, err = checkAddress(net.JoinHostPort(u.Hostname(), port)); err != nil {
		return target{}, err
	}
	if hasDots(u.Path) {
		return target{}, &errValue{"target", s, "its path has dots for parts"}
	}
	t.base, t.query = strings.TrimRight(u.EscapedPath(), "/"), u.RawQuery
	return t, nil
}

// parseUnix is a socket in the file system. Names in Linux's abstract space have no owner and no rights: those are none.
func parseUnix(s, scheme, path string) (target, error) {
	if !filepath.IsAbs(path) {
		return target{}, &errValue{"target", s, "the path of a socket is absolute"}
	}
	return target{
		kind: targetProxy, network: "unix", address: filepath.Clean(path), bare: true,
		tls: scheme != "unix", insecure: scheme == "https+insecure+unix",
	}, nil
}

// redirectURL is what redirects lead to: a host that is written out, or the visitor's own, and what the visitor asked for
// only behind it. https://a.example${REQUEST_URI} is safe, since each request starts with /; https://${REQUEST_URI} is not.
var redirectURL = regexp.MustCompile(`^(https?://(\$\{HOST\}|[A-Za-z0-9.-]+|\[[0-9A-Fa-f:.]+\])(:[0-9]{1,5})?)?((/|\$\{REQUEST_URI\}|\?)[^ "<>\\^` + "`" + `{|}]*(\$\{REQUEST_URI\})?)?$`)

// parseRedirect is a URL, or a path here, where ${HOST} and ${REQUEST_URI} stand for what the visitor asked.
func parseRedirect(s, rest string) (target, error) {
	t := target{kind: targetRedirect, status: http.StatusFound, text: rest}
	if code, to, ok := strings.Cut(rest, ":"); ok && len(code) == 3 {
		switch code {
		case "301", "302", "303", "307", "308":
			t.status, t.text = 300+int(code[2]-'0'), to
		default:
			return target{}, &errValue{"target", s, "redirects are 301, 302, 303, 307 and 308"}
		}
	}
	if t.text == "" || !redirectURL.MatchString(t.text) {
		return target{}, &errValue{"target", s, "it redirects to http(s)://HOST/… or to /…; ${HOST} is a whole host, ${REQUEST_URI} the path"}
	}
	return t, nil
}

// isStream says whether bytes can be passed to the target as they are.
func (t target) isStream() bool { return t.kind == targetProxy && t.bare && !t.tls }

// local says whether the target is on this machine, whatever names mean elsewhere.
func (t target) local() bool {
	return t.network == "unix" || isLoopback(hostOf(t.address))
}

// isLoopback says whether a host is this machine by itself (RFC 6761, section 6.3 for the names).
func isLoopback(host string) bool {
	if host == "localhost" || strings.HasSuffix(host, ".localhost") {
		return true
	}
	addr, err := netip.ParseAddr(host)
	return err == nil && addr.Unmap().IsLoopback()
}

// hostOf is the host of host:port, or what has no port as it is.
func hostOf(address string) string {
	host, _, err := net.SplitHostPort(address)
	if err != nil {
		return address
	}
	return host
}

// String is the target as its owner may read it.
func (t target) String() string {
	switch {
	case t.network == "unix":
		return "unix:" + t.address
	case t.kind == targetFiles:
		return t.path
	case t.kind == targetProxy && t.tls:
		return "https://" + t.address + t.base
	case t.kind == targetProxy && t.bare:
		return t.address
	case t.kind == targetProxy:
		return "http://" + t.address + t.base
	}
	return t.text
}

// parsePin reads the hash of a public key, as curl writes it.
func parsePin(s string) ([sha256.Size]byte, error) {
	text, ok := strings.CutPrefix(s, "sha256//")
	raw, err := base64.StdEncoding.DecodeString(text)
	if !ok || err != nil || len(raw) != sha256.Size {
		return [sha256.Size]byte{}, &errValue{"tlsPin", s, "it is sha256// and the hash of the public key in base64"}
	}
	return [sha256.Size]byte(raw), nil
}

// hasDots says whether a path has a part that means this or the part above, to anybody: behind a backslash (Windows)
// and before a semicolon (servlets) too.
func hasDots(path string) bool {
	for part := range strings.FieldsFuncSeq(path, func(r rune) bool { return r == '/' || r == '\\' }) {
		part, _, _ = strings.Cut(part, ";")
		if part == "." || part == ".." {
			return true
		}
	}
	return false
}

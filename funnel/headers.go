package funnel

import (
	"net/http"
	"strings"
)

// folded is a header's name as the loosest of backends reads it: CGI has neither case nor a difference between - and
// any other sign, so that X_Forwarded_For and X-Forwarded-For are one there.
func folded(name string) string {
	return strings.Map(func(r rune) rune {
		switch {
		case r >= 'A' && r <= 'Z':
			return r + 'a' - 'A'
		case r >= 'a' && r <= 'z', r >= '0' && r <= '9':
			return r
		}
		return '-'
	}, name)
}

// isOurs says whether a header tells who came and how, which backends believe: we set it, or it is not there.
func isOurs(name string) bool {
	name = folded(name)
	switch name {
	case "forwarded", "x-real-ip", "x-client-ip", "client-ip", "true-client-ip", "x-cluster-client-ip", "cf-connecting-ip",
		"x-original-url", "x-rewrite-url", "x-original-host", "x-host", "proxy",
		"remote-user", "x-remote-user", "x-webauth-user", "x-ssl-client-verify":
		return true
	}
	for _, prefix := range []string{"x-forwarded", "meshdns-", "tailscale-", "x-auth-request-", "x-envoy-external"} {
		if strings.HasPrefix(name, prefix) {
			return true
		}
	}
	return false
}

// isFraming says whether a header belongs to one connection and its messages (RFC 9110, section 7.6.1), not to what
// passes through. The name is canonical.
func isFraming(name string) bool {
	switch name {
	case "Connection", "Proxy-Connection", "Keep-Alive", "Te", "Trailer", "Transfer-Encoding", "Upgrade", "Content-Length",
		"Proxy-Authenticate", "Proxy-Authorization", "Http2-Settings", "Expect":
		return true
	}
	return false
}

// strip removes what is ours to say from a header that came from outside, in every spelling.
func strip(h http.Header) {
	for name := range h {
		if isOurs(name) {
			delete(h, name)
		}
	}
}

package funnel

import (
	"fmt"
	"net/http"
	"strconv"
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
		"x-auth-user", "x-client-cert", "x-client-verify":
		return true
	}
	for _, prefix := range []string{
		"x-forwarded", "meshdns-", "x-meshdns-", "tailscale-", "x-envoy-external",
		// What proxies that log people in tell services: Authelia, Grafana's, oauth2-proxy, authentik, those of the clouds.
		"remote-", "x-remote-", "x-webauth-", "x-auth-request-", "x-authentik-", "x-authenticated-", "x-goog-authenticated-",
		"x-goog-iap-", "x-amzn-oidc-", "cf-access-", "x-ms-client-principal", "x-ssl-client-", "ssl-client-", "x-pomerium-",
	} {
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

// forward has a target's request say who came, and to what (RFC 7239 and the headers of before). What came from outside
// under these names is gone already, and no Connection header can name them: clean has seen to both.
func forward(out, in *http.Request) {
	h := out.Header
	caller, ok := callerOf(in.Context())
	if !ok {
		return
	}
	addr := caller.Addr.Addr().Unmap().WithZone("").String()
	scheme, port := "http", ""
	if in.TLS != nil {
		scheme = "https"
	}
	if l := linkOf(in.Context()); l != nil {
		if c := l.class.Load(); c != nil {
			port = strconv.Itoa(int(c.port))
		}
	}
	h.Set("X-Forwarded-For", addr)
	h.Set("X-Real-Ip", addr)
	h.Set("X-Forwarded-Host", in.Host)
	h.Set("X-Forwarded-Proto", scheme)
	h.Set("X-Forwarded-Port", port)
	node := addr
	if strings.Contains(addr, ":") {
		node = `"[` + addr + `]"`
	}
	h.Set("Forwarded", fmt.Sprintf(`for=%s;host=%q;proto=%s`, node, in.Host, scheme))
	loginOf(in.Context()).tell(h)
	if caller.Public {
		h.Set("Meshdns-Funnel", "?1")
		return
	}
	if caller.Node == "" {
		return
	}
	h.Set("Meshdns-Node", caller.Node)
	addresses := make([]string, 0, len(caller.Addresses))
	for _, a := range caller.Addresses {
		addresses = append(addresses, a.String())
	}
	h.Set("Meshdns-Addresses", strings.Join(addresses, ", "))
	if len(caller.Tags) > 0 {
		h.Set("Meshdns-Tags", strings.Join(caller.Tags, ", "))
	}
}

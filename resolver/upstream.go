package resolver

import (
	"fmt"
	"net"
	"net/netip"
	"net/url"
	"strconv"
	"strings"
)

// Bounds of an upstream's spelling.
const (
	maxSpelling  = 1024 // octets
	maxBootstrap = 8    // addresses behind #
)

// upstreamKind is the protocol that an upstream is spoken to in.
type upstreamKind uint8

const (
	upstreamUDP   upstreamKind = iota // UDP; TCP where an answer was cut
	upstreamTCP                       // always TCP (RFC 7766)
	upstreamTLS                       // DNS over TLS (RFC 7858)
	upstreamHTTPS                     // DNS over HTTPS (RFC 8484)
)

func (k upstreamKind) String() string { return [...]string{"udp", "tcp", "tls", "https"}[k] }

func (k upstreamKind) defaultPort() uint16 { return [...]uint16{53, 53, 853, 443}[k] }

// encrypted reports whether the server proves who it is, so that its host may be a name.
func (k upstreamKind) encrypted() bool { return k >= upstreamTLS }

func parseUpstreamKind(s string) (upstreamKind, bool) {
	for k := upstreamUDP; k <= upstreamHTTPS; k++ {
		if strings.EqualFold(s, k.String()) {
			return k, true
		}
	}
	return 0, false
}

// Upstream is a DNS server that questions are sent to, and how. It is made by ParseUpstream, two of them are equal
// if they mean the same, and it may be the key of a map.
type Upstream struct {
	kind upstreamKind
	addr netip.AddrPort // the port is always set; the address is the zero Addr if the host is a name
	name string         // what the certificate must be valid for; empty: the address itself
	path string         // of the URL, with its query; only for DNS over HTTPS
	boot string         // where a host given by name is reached, joined by commas; empty: to be resolved
}

// ParseUpstream reads the spelling of an upstream. These are understood, with the default ports 53, 853 and 443:
//
//	192.0.2.1   192.0.2.1:5353   2001:db8::1   [2001:db8::1]:53   fe80::1%eth0   udp://192.0.2.1
//	tcp://192.0.2.1                            TCP always
//	tls://192.0.2.1                            DNS over TLS; the certificate must be valid for the address
//	tls://192.0.2.1#dns.example                … for the name
//	tls://dns.example                          the name is resolved through the base upstreams
//	tls://dns.example#192.0.2.1,2001:db8::1    reached at these addresses
//	https://dns.example/dns-query              DNS over HTTPS; all of the above applies
//
// The error says which part of s is wrong and has a Hint. s may be 1024 octets long and name eight addresses.
func ParseUpstream(s string) (Upstream, error) {
	p := spelling{value: s}
	if len(s) > maxSpelling {
		p.value = s[:32] + "…"
		return Upstream{}, p.wrong("length", strconv.Itoa(len(s)), "more than "+strconv.Itoa(maxSpelling)+" octets")
	}
	for _, c := range s {
		if c <= ' ' || c > '~' {
			return Upstream{}, p.wrong("character", string(c), "not allowed here")
		}
	}
	return p.parse()
}

// String returns the canonical spelling of u, which ParseUpstream reads as u. For the zero Upstream it is empty.
func (u Upstream) String() string {
	if u.addr.Port() == 0 {
		return ""
	}
	if u.kind == upstreamUDP {
		if u.addr.Port() == u.kind.defaultPort() {
			return u.addr.Addr().String()
		}
		return u.addr.String()
	}
	s := u.kind.String() + "://" + u.authority() + u.path
	switch {
	case u.boot != "":
		s += "#" + u.boot
	case u.addr.Addr().IsValid() && u.name != "":
		s += "#" + u.name
	}
	return s
}

// authority is the host as a URL has it, with the port if it is not the default.
func (u Upstream) authority() string {
	host := u.name
	if a := u.addr.Addr(); a.IsValid() {
		host = a.String()
		if u.kind == upstreamHTTPS {
			host = strings.Replace(host, "%", "%25", 1) // RFC 6874, 2
		}
		if a.Is6() {
			host = "[" + host + "]"
		}
	}
	if u.addr.Port() != u.kind.defaultPort() {
		host += ":" + strconv.Itoa(int(u.addr.Port()))
	}
	return host
}

// serverName is what the certificate must be valid for: a name, or an address.
func (u Upstream) serverName() string {
	if u.name != "" {
		return u.name
	}
	return u.addr.Addr().WithZone("").String()
}

// url is the address of a request for DNS over HTTPS. A pinned name stands in it even where an address was given:
// a server that holds several names goes by the Host field.
func (u Upstream) url() string {
	host := u.serverName()
	if u.addr.Port() != u.kind.defaultPort() {
		host = net.JoinHostPort(host, strconv.Itoa(int(u.addr.Port())))
	} else if strings.Contains(host, ":") {
		host = "[" + host + "]"
	}
	return "https://" + host + u.path
}

// addrs returns where u is reached, as far as its spelling tells; empty if its host has to be resolved.
func (u Upstream) addrs() []netip.Addr {
	if a := u.addr.Addr(); a.IsValid() {
		return []netip.Addr{a}
	}
	if u.boot == "" {
		return nil
	}
	var out []netip.Addr
	for s := range strings.SplitSeq(u.boot, ",") {
		if a, err := netip.ParseAddr(s); err == nil {
			out = append(out, a)
		}
	}
	return out
}

// spelling is an upstream's spelling while it is read.
type spelling struct {
	value string // for errors
}

func (p spelling) parse() (Upstream, error) {
	var u Upstream
	rest := p.value
	if before, after, ok := strings.Cut(rest, "://"); ok {
		if u.kind, ok = parseUpstreamKind(before); !ok {
			return Upstream{}, p.wrong("scheme", before, "want udp, tcp, tls or https")
		}
		rest = after
	}
	rest, fragment, pinned := strings.Cut(rest, "#")
	authority, path := rest, ""
	if i := strings.IndexAny(rest, "/?"); i >= 0 {
		authority, path = rest[:i], rest[i:]
	}
	if i := strings.LastIndexByte(authority, '@'); i >= 0 {
		// What stands there may be a password: it is not repeated.
		p.value = strings.Replace(p.value, authority[:i], "…", 1)
		return Upstream{}, p.wrong("user", "…", "an upstream takes none")
	}
	if err := p.parseAuthority(&u, authority); err != nil {
		return Upstream{}, err
	}
	if err := p.parsePath(&u, path); err != nil {
		return Upstream{}, err
	}
	if pinned {
		if err := p.parseFragment(&u, fragment); err != nil {
			return Upstream{}, err
		}
	}
	if len(u.String()) > maxSpelling { // escapes made it longer
		return Upstream{}, p.wrong("path", path, "too long")
	}
	return u, nil
}

// parseAuthority reads host and port.
func (p spelling) parseAuthority(u *Upstream, authority string) error {
	host, port, err := p.splitPort(u.kind, authority)
	if err != nil {
		return err
	}
	if u.kind == upstreamHTTPS {
		host = strings.Replace(host, "%25", "%", 1)
	}
	if looksLikeAddr(host) {
		addr, err := p.parseAddr("address", host)
		u.addr = netip.AddrPortFrom(addr, port)
		return err
	}
	name, ok := hostName(host)
	switch {
	case host == "":
		return p.wrong("host", host, "there is none")
	case !ok:
		return p.wrong("host", host, "neither an address nor a host name; write other scripts in their xn-- form")
	case !u.kind.encrypted():
		return p.wrong("host", host, "a plain upstream must be an address: a name would have to be resolved first")
	}
	u.addr, u.name = netip.AddrPortFrom(netip.Addr{}, port), name
	return nil
}

// splitPort splits host from port. An IPv6 address without a port needs no brackets.
func (p spelling) splitPort(k upstreamKind, authority string) (host string, port uint16, err error) {
	port = k.defaultPort()
	digits := ""
	switch colons := strings.Count(authority, ":"); {
	case strings.HasPrefix(authority, "["):
		inside, after, ok := strings.Cut(authority[1:], "]")
		if !ok || (after != "" && after[0] != ':') || !strings.Contains(inside, ":") {
			return "", 0, p.wrong("host", authority, "want [IPv6 address] or [IPv6 address]:port")
		}
		if host = inside; after == "" {
			return host, port, nil
		}
		digits = after[1:]
	case colons != 1:
		return authority, port, nil
	default:
		host, digits, _ = strings.Cut(authority, ":")
	}
	n, err := strconv.ParseUint(digits, 10, 16)
	if err != nil || n == 0 {
		return "", 0, p.wrong("port", digits, "want a number from 1 to 65535")
	}
	return host, uint16(n), nil
}

// parseAddr reads an address that packets can be sent to.
func (p spelling) parseAddr(part, s string) (netip.Addr, error) {
	a, err := netip.ParseAddr(s)
	if err != nil {
		return netip.Addr{}, p.wrong(part, s, "not an IP address")
	}
	zone := a.Zone()
	a = a.Unmap()
	switch {
	case a.IsUnspecified():
		return netip.Addr{}, p.wrong(part, s, "the unspecified address is no server's")
	case a.IsMulticast(), a == netip.AddrFrom4([4]byte{255, 255, 255, 255}):
		return netip.Addr{}, p.wrong(part, s, "a server has an address of its own, not one of a group")
	case a.Is6() && a.IsLinkLocalUnicast() && zone == "":
		return netip.Addr{}, p.wrong(part, s, "a link-local address needs its link, as in fe80::1%eth0")
	case strings.ContainsAny(zone, "%[]/?#,:@"):
		return netip.Addr{}, p.wrong("link", zone, "not a link's name")
	}
	return a, nil
}

func (p spelling) parsePath(u *Upstream, path string) error {
	if u.kind != upstreamHTTPS {
		if path != "" {
			return p.wrong("path", path, "only https:// takes one")
		}
		return nil
	}
	// Providers publish URI templates (RFC 8484, 3). A POST sets no variable, so the expression expands to nothing.
	path = strings.TrimSuffix(path, "{?dns}")
	if path == "" || path[0] == '?' {
		path = "/dns-query" + path // the path of every example in RFC 8484, and of most servers
	}
	parsed, err := url.ParseRequestURI(path)
	if err != nil || strings.ContainsAny(path, "{}") {
		return p.wrong("path", path, "not the path of a URL")
	}
	u.path = parsed.RequestURI()
	if strings.HasPrefix(u.path, "//") { // would be read as a host
		return p.wrong("path", path, "must not begin with two slashes")
	}
	return nil
}

// parseFragment reads what follows #: the name that the certificate must have if the host is an address, the
// addresses where it is reached if the host is a name.
func (p spelling) parseFragment(u *Upstream, fragment string) error {
	if !u.kind.encrypted() {
		return p.wrong("name", fragment, "only tls:// and https:// upstreams have one to verify")
	}
	if u.addr.Addr().IsValid() {
		name, ok := hostName(fragment)
		if !ok || looksLikeAddr(fragment) {
			return p.wrong("name", fragment, "behind an address and # stands the host name of the certificate")
		}
		u.name = name
		return nil
	}
	var list []string
	seen := map[netip.Addr]bool{}
	for s := range strings.SplitSeq(fragment, ",") {
		if !looksLikeAddr(s) {
			return p.wrong("address", s, "behind a host name and # stand IP addresses, parted by commas")
		}
		a, err := p.parseAddr("address", s)
		if err != nil {
			return err
		}
		if !seen[a] {
			seen[a] = true
			list = append(list, a.String())
		}
	}
	if len(list) > maxBootstrap {
		return p.wrong("addresses", fragment, "more than "+strconv.Itoa(maxBootstrap))
	}
	u.boot = strings.Join(list, ",")
	return nil
}

func (p spelling) wrong(part, got, reason string) error {
	return &upstreamError{value: p.value, part: part, got: got, reason: reason}
}

// looksLikeAddr reports whether s can only be meant as an address: a host name has no colon and its last label is
// no number (RFC 1123, 2.1).
func looksLikeAddr(s string) bool {
	if strings.Contains(s, ":") {
		return true
	}
	s = strings.TrimSuffix(s, ".")
	last := s[strings.LastIndexByte(s, '.')+1:]
	return last != "" && strings.Trim(last, "0123456789") == ""
}

// hostName returns s lower-cased and without a final dot, which a TLS server name must not have (RFC 6066, 3). An
// underscore is let pass: such hosts exist.
func hostName(s string) (string, bool) {
	s = strings.ToLower(strings.TrimSuffix(s, "."))
	if len(s) > maxName-2 {
		return "", false
	}
	for label := range strings.SplitSeq(s, ".") {
		if label == "" || len(label) > 63 || label[0] == '-' || label[len(label)-1] == '-' ||
			strings.Trim(label, "abcdefghijklmnopqrstuvwxyz0123456789-_") != "" {
			return "", false
		}
	}
	return s, true
}

// upstreamError tells what is wrong with an upstream's spelling.
type upstreamError struct{ value, part, got, reason string }

func (e *upstreamError) Error() string {
	return fmt.Sprintf("reading upstream %q: %s %q: %s", e.value, e.part, e.got, e.reason)
}

// Hint says how upstreams are written.
func (e *upstreamError) Hint() string {
	return "write an upstream as 192.0.2.1, [2001:db8::1]:53, tcp://192.0.2.1, tls://192.0.2.1#dns.example or https://dns.example/dns-query#192.0.2.1"
}

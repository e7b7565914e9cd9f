package node

import (
	"fmt"
	"maps"
	"net"
	"net/netip"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/meshdns/meshdns/resolver"
)

// validator collects what is wrong with a configuration.
type validator struct {
	where    map[string]position
	problems Problems
}

func (v *validator) add(path, value, msg string) *Problem {
	at, ok := v.where[path]
	for !ok && path != "" && strings.HasSuffix(path, "]") {
		path = path[:strings.LastIndexByte(path, '[')]
		at, ok = v.where[path]
	}
	v.problems = append(v.problems, at.problem(path, value, msg))
	return &v.problems[len(v.problems)-1]
}

// Validate checks what the values mean. Its error is a Problems that names every field at once, with its place if the
// value came from a file.
func (c *Config) Validate() error {
	v := &validator{where: c.where}
	if c.Node != "" {
		if _, msg := checkLabel(c.Node); msg != "" {
			v.add("node", c.Node, msg)
		}
	}
	if _, msg, advice := checkZone(c.Zone); msg != "" {
		v.add("zone", c.Zone, msg).Advice = advice
	}
	v.dns(&c.DNS)
	v.oneOf("tunnel.mode", c.Tunnel.Mode, "auto", "kernel", "tun", "userspace", "off")
	v.proxy(c.Tunnel.Proxy)
	v.certs(c.Certs, c.trusted)
	if c.Metrics != "" {
		v.hostPort("metrics", c.Metrics)
	}
	v.gateway(c.Gateway)
	if c.Gateway.Zone != "" && c.Tunnel.Preshared != "" {
		v.add("tunnel.preshared", c.Tunnel.Preshared, "a gateway has none with its nodes, which have to reach it before they have a name").Advice = "the nodes have them with each other"
	}
	v.oneOf("access_log.format", c.AccessLog.Format, "json", "combined")
	if c.AccessLog.File != "" && !c.trusted {
		v.add("access_log.file", c.AccessLog.File, "only from a file that root owns and nobody else can write").Advice = "chown root and chmod go-w the configuration"
	}
	for i, s := range c.Serve {
		v.serve(fmt.Sprintf("serve[%d]", i), s, c.trusted)
	}
	for i, s := range c.Sources {
		v.source(fmt.Sprintf("sources[%d]", i), s, c.trusted)
	}
	return v.problems.located(c.file).err()
}

// proxy checks where the proxy listens. Whoever reaches it speaks in this node's name: loopback alone will do.
func (v *validator) proxy(where string) {
	if where == "" || where == proxyOff {
		return
	}
	if at, err := netip.ParseAddrPort(where); err != nil || !at.Addr().IsLoopback() || at.Port() == 0 {
		v.add("tunnel.proxy", where, "want a loopback address and a port, or off").Advice = "write 127.0.0.1:1055"
	}
}

func (v *validator) oneOf(path, value string, words ...string) {
	if !slices.Contains(words, value) {
		p := v.add(path, value, "want "+strings.Join(words[:len(words)-1], ", ")+" or "+words[len(words)-1])
		if near := nearest(value, words); near != "" {
			p.Advice = "did you mean " + near + "?"
		}
	}
}

// Bounds on the cache: below it is no cache, above it is a mistake of units.
const (
	minCache = 64 << 10
	maxCache = 16 << 30
)

func (v *validator) dns(c *dnsConfig) {
	v.oneOf("dns.os", c.OS, "auto", "off", "direct", "resolved", "networkmanager", "resolvconf", "openresolv", "resolvd", "scutil", "nrpt")
	v.oneOf("dns.takeover", c.Takeover, "split", "all")
	v.containers(c)
	v.oneOf("dns.portal", c.Portal, "auto", "off")
	for i, a := range c.Listen {
		v.listen(fmt.Sprintf("dns.listen[%d]", i), a)
	}
	v.listen("dns.stub", c.Stub)
	v.upstreams("dns.upstreams", c.Upstreams)
	if len(c.Routes) > maxRoutes {
		v.add("dns.routes", "", fmt.Sprintf("more than %d routes", maxRoutes))
	}
	for _, suffix := range slices.Sorted(maps.Keys(c.Routes)) {
		path := "dns.routes." + suffix
		if _, p := checkSuffix(word{text: suffix, at: v.where[path]}); p.Msg != "" {
			v.problems = append(v.problems, p)
		}
		if len(c.Routes[suffix]) == 0 {
			v.add(path, "", "has no upstreams")
		}
		v.upstreams(path, c.Routes[suffix])
	}
	for i, suffix := range c.Rebind.Allow {
		if _, msg := checkDomain(suffix); msg != "" {
			v.add(fmt.Sprintf("dns.rebind.allow[%d]", i), suffix, msg)
		}
	}
	if c.Cache < minCache || c.Cache > maxCache {
		text, _ := c.Cache.MarshalText()
		v.add("dns.cache", string(text), "want 64KiB to 16GiB")
	}
}

// containers checks who may ask at the service address, and where that is.
func (v *validator) containers(c *dnsConfig) {
	v.oneOf("dns.containers", c.Containers, containersAll, containersForward, containersOff)
	if a := c.Service; a.IsValid() && (!a.Is4() || !isUnicast(a)) {
		v.add("dns.service", a.String(), "not the IPv4 address of one machine").Advice = "containers cannot reach a loopback address; take a free private one"
	}
	for i, name := range c.Bridges {
		if !isLinkName(name) {
			v.add(fmt.Sprintf("dns.bridges[%d]", i), name, "not the name of a link")
		}
	}
}

// isLinkName reports whether the kernel would take s for the name of a link.
func isLinkName(s string) bool {
	return s != "" && s != "." && s != ".." && len(s) < 16 && !strings.ContainsFunc(s, func(r rune) bool { return r == '/' || r == ':' || r <= ' ' || r > '~' })
}

// listen checks an address to bind.
func (v *validator) listen(path string, a netip.AddrPort) {
	switch {
	case !a.IsValid():
		v.add(path, "", "missing")
	case a.Addr().IsMulticast():
		v.add(path, a.String(), "a multicast address, which cannot be listened on")
	}
}

func (v *validator) upstreams(path string, list []string) {
	for i, s := range list {
		if _, err := resolver.ParseUpstream(s); err != nil {
			at := fmt.Sprintf("%s[%d]", path, i)
			v.add(at, s, err.Error()).Advice = hintOf(err)
		}
	}
	if len(list) > maxUpstreams {
		v.add(path, "", fmt.Sprintf("more than %d upstreams", maxUpstreams))
	}
}

func (v *validator) gateway(c gatewayConfig) {
	if c.Zone == "" {
		if len(c.Public) > 0 || len(c.Listen) > 0 || c.Fallback != "" {
			v.add("gateway.zone", "", "missing").Advice = "a gateway serves a zone of yours, such as mesh.example.org"
		}
		return
	}
	if _, msg, advice := checkZone(c.Zone); msg != "" {
		v.add("gateway.zone", c.Zone, msg).Advice = advice
	}
	if len(c.Public) == 0 {
		v.add("gateway.public", "", "missing").Advice = "list the public addresses that nodes and visitors reach this machine at"
	}
	for i, a := range c.Public {
		at := fmt.Sprintf("gateway.public[%d]", i)
		switch {
		case a.IsLoopback() && !onLoopback(c.Listen):
			v.add(at, a.String(), "an address that this machine alone reaches").Advice = "a gateway for this machine alone has a loopback address in gateway.listen too"
		case !isUnicast(a) && !a.IsLoopback():
			v.add(at, a.String(), "not the address of one machine")
		}
	}
	for i, a := range c.Listen {
		if a.IsUnspecified() || a.IsMulticast() {
			v.add(fmt.Sprintf("gateway.listen[%d]", i), a.String(), "not the address of one machine").
				Advice = "leave it empty for the addresses of the default route's link"
		}
	}
	for i, one := range c.Issuers {
		host, name, both := strings.Cut(one, "=")
		_, msg := checkDomain(name)
		if u, err := url.Parse("https://" + host + "/x"); !both || msg != "" || err != nil || u.Host != host || strings.ToLower(host) != host {
			v.add(fmt.Sprintf("gateway.issuers[%d]", i), one, "want HOST=NAME, such as acme.example.org=example.org")
		}
	}
	if l := c.Limits; l.Idle < 0 || l.Life < 0 {
		v.add("gateway.limits", "", "a time that is negative")
	}
	if c.Pace > maxPace {
		v.add("gateway.pace", strconv.Itoa(int(c.Pace)), fmt.Sprintf("want at most %d", maxPace))
	}
	if c.Fallback == "" {
		return
	}
	target, ok := strings.CutPrefix(c.Fallback, "tcp://")
	if !ok {
		v.add("gateway.fallback", c.Fallback, "want tcp://HOST:PORT")
		return
	}
	v.hostPort("gateway.fallback", target)
}

// onLoopback reports whether a gateway listens for this machine alone.
func onLoopback(listen []netip.Addr) bool {
	return len(listen) > 0 && !slices.ContainsFunc(listen, func(a netip.Addr) bool { return !a.IsLoopback() })
}

// hostPort checks HOST:PORT, where HOST may be empty for every address.
func (v *validator) hostPort(path, value string) {
	host, port, err := net.SplitHostPort(value)
	if err != nil {
		v.add(path, value, "want ADDRESS:PORT")
		return
	}
	if n, err := strconv.ParseUint(port, 10, 16); err != nil || n == 0 {
		v.add(path, value, "want a port from 1 to 65535")
	}
	if host == "" {
		return
	}
	if _, err := netip.ParseAddr(host); err == nil {
		return
	}
	if _, msg := checkDomain(host); msg != "" {
		v.add(path, value, msg)
	}
}

// source checks one source; trusted says whether the file that it stands in may name commands.
func (v *validator) source(path string, s sourceConfig, trusted bool) {
	v.oneOf(path+".type", s.Type, "tailscale", "netbird", "headscale", "wg-quick", "wireguard")
	given := 0
	for _, is := range []bool{s.File != "", len(s.Command) > 0, s.Interface != ""} {
		if is {
			given++
		}
	}
	switch {
	case s.Type == "wireguard" && (s.Interface == "" || given > 1):
		v.add(path, "", "type wireguard wants interface:, and nothing besides")
	case s.Type == "wg-quick" && (s.File == "" || given > 1):
		v.add(path, "", "type wg-quick wants file:, and nothing besides")
	case s.Type != "wireguard" && s.Interface != "":
		v.add(path+".interface", s.Interface, "only for type wireguard")
	case given != 1:
		v.add(path, "", "want one of file: and command:")
	case len(s.Command) > 0 && s.Command[0] == "":
		v.add(path+".command", "", "names no program")
	case len(s.Command) > 0 && !trusted:
		v.add(path+".command", s.Command[0], "commands are run only from a file that root owns and nobody else can write").
			Advice = "chown root and chmod go-w the configuration, or use file:"
	}
	if s.Interface != "" && !isInterfaceName(s.Interface) {
		v.add(path+".interface", s.Interface, "not the name of an interface")
	}
	if s.Interval != 0 && (s.Interval < time.Second || s.Interval > 24*time.Hour) {
		v.add(path+".interval", s.Interval.String(), "want 1s to 24h")
	}
}

// isInterfaceName reports whether s can be the name of a WireGuard interface. It becomes part of a path.
func isInterfaceName(s string) bool {
	return s != "." && s != ".." && len(s) <= 15 && strings.IndexFunc(s, func(r rune) bool {
		return !(r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || strings.ContainsRune("_=+.-", r))
	}) < 0
}

// ValidateWith checks a valid configuration against the map that it will be used with: that its routes do not capture
// the zone, and that the map has its node.
func (c *Config) ValidateWith(m *Map) error {
	v := &validator{where: c.where}
	for _, suffix := range slices.Sorted(maps.Keys(c.DNS.Routes)) {
		if msg := m.capture(foldName(suffix)); msg != "" {
			at := v.where["dns.routes."+suffix]
			v.problems = append(v.problems, at.problem("route", suffix, msg))
		}
	}
	if c.Node != "" {
		if n, ok := m.Node(c.Node); !ok || n.Name != m.relative(c.Node) {
			v.add("node", c.Node, "no node of the map "+m.name)
		}
	}
	return v.problems.located(c.file).err()
}

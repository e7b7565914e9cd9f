package node

import (
	"fmt"
	"net/netip"
	"path/filepath"
	"slices"
	"strings"

	"github.com/meshdns/meshdns/osconfig"
)

// vpnStatus is another private network on this machine, and what its program does to the machine's DNS.
type vpnStatus struct {
	Link    string       `json:"link"`
	Program string       `json:"program"` // whose link it is, as far as that is known; else its kind
	Servers []netip.Addr `json:"servers"` // which it has the machine ask
	Domains []string     `json:"domains"` // for these
	Asks    bool         `json:"asks"`    // it answers this machine's programs, and asks this node for what it does not know
	DNS     string       `json:"dns"`     // what it does to the machine's DNS, in words
}

// String is a VPN in a line.
func (v vpnStatus) String() string { return fmt.Sprintf("%s on %s %s", v.Program, v.Link, v.DNS) }

// vpns are the other private networks on this machine, while its DNS is to be ours: what they do to it is of no concern
// otherwise.
func (n *Node) vpns() []vpnStatus {
	if n.takeover.system == nil || !n.takeover.wanted {
		return []vpnStatus{}
	}
	links, _ := machineLinks() // without them there is nothing to say of others
	return describeVPNs(links, n.takeover.system.Status().Tunnels)
}

// describeVPNs puts together what is known of tunnels by their links and by what has become of the machine's DNS.
func describeVPNs(links []link, tunnels []osconfig.Tunnel) []vpnStatus {
	list := []vpnStatus{}
	for _, l := range links {
		kind := tunnelKind(l.name)
		if kind == "" && !isTailscale(l) || strings.HasPrefix(l.name, "meshdns") {
			continue
		}
		v := vpnStatus{Link: l.name, Program: vpnProgram(l, kind), Servers: []netip.Addr{}, Domains: []string{}, DNS: "leaves the machine's DNS alone"}
		for _, t := range tunnels {
			if t.Link == l.name {
				v.Asks = v.Asks || t.Asks
				v.Servers, v.Domains, v.DNS = appendNew(v.Servers, t.Servers), appendNew(v.Domains, t.Domains), describeTunnel(t)
			}
		}
		list = append(list, v)
	}
	return list
}

func appendNew[T comparable](list, more []T) []T {
	for _, one := range more {
		if !slices.Contains(list, one) {
			list = append(list, one)
		}
	}
	return list
}

// describeTunnel says what a VPN does to the machine's DNS.
func describeTunnel(t osconfig.Tunnel) string {
	var domains []string
	for _, d := range t.Domains {
		domains = append(domains, strings.ToLower(d))
	}
	servers, names := listAddrs(t.Servers), listSuffixesBriefly(domains)
	switch {
	case t.Asks:
		return "answers this machine's programs at " + servers + ", and asks this node for what it does not know"
	case t.All && names != "":
		return "has " + servers + " asked for every name, and searches " + names
	case t.All || names == "":
		return "has " + servers + " asked for every name"
	}
	return "has " + servers + " asked for " + names
}

// listSuffixesBriefly names a few suffixes; Tailscale alone has 64 reverse zones.
func listSuffixesBriefly(suffixes []string) string {
	const most = 4
	list := strings.Join(suffixes[:min(most, len(suffixes))], " ")
	if more := len(suffixes) - most; more > 0 {
		list += fmt.Sprintf(" and %d more", more)
	}
	return list
}

// vpnProgram is whose a tunnel's link is, in words that people know it by.
func vpnProgram(l link, kind string) string {
	if isTailscale(l) {
		return "Tailscale"
	}
	holder := tunHolder(l.name)
	for prefix, program := range map[string]string{
		"tailscaled": "Tailscale", "openvpn": "OpenVPN", "openconnect": "OpenConnect", "vpnc": "vpnc", "netbird": "NetBird",
		"zerotier": "ZeroTier", "nebula": "Nebula", "wireguard": "WireGuard", "boringtun": "WireGuard", "tincd": "tinc",
	} {
		if strings.HasPrefix(holder, prefix) {
			holder = program
		}
	}
	_, err := readFile(filepath.Join("/etc/wireguard", l.name+".conf"), maxTunnelFile)
	switch {
	case err == nil && (kind == "WireGuard" || holder == "WireGuard"):
		return "WireGuard (wg-quick)"
	case holder != "":
		return onOneLine(holder)
	case kind != "":
		return "a " + kind + " link of another program"
	}
	return "another program's link"
}

package node

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"path/filepath"
	"slices"
	"strings"
)

// maxTunnelFile is the size in bytes up to which a file of a tunnel's is read.
const maxTunnelFile = 1 << 20

// otherTunnels are the links of private networks that other programs made, Tailscale's aside. denied: that their
// configuration is not for us to read.
func otherTunnels(links []link) (list []tunnelLink, denied bool) {
	for _, l := range links {
		t := tunnelLink{name: l.name, kind: tunnelKind(l.name)}
		if t.kind == "" || isTailscale(l) || strings.HasPrefix(l.name, "meshdns") {
			continue
		}
		path := filepath.Join("/etc/wireguard", l.name+".conf")
		data, err := readFile(path, maxTunnelFile)
		denied = denied || errors.Is(err, fs.ErrPermission)
		if t.dns = quickServers(data); len(t.dns) > 0 {
			t.file = path
		}
		list = append(list, t)
	}
	return list, denied
}

// quickServers are the nameservers that a file of wg-quick(8)'s sets; domains stand among them and are left out.
func quickServers(data []byte) []string {
	var servers []string
	for lines := bufio.NewScanner(bytes.NewReader(data)); lines.Scan(); {
		line, _, _ := strings.Cut(lines.Text(), "#")
		key, value, ok := strings.Cut(line, "=")
		if !ok || !strings.EqualFold(strings.TrimSpace(key), "DNS") {
			continue
		}
		for word := range strings.FieldsFuncSeq(value, func(r rune) bool { return r == ',' || r == ' ' || r == '\t' }) {
			if _, err := netip.ParseAddr(word); err == nil {
				servers = append(servers, word)
			}
		}
	}
	return servers
}

// judgeTunnels names the other private networks on this machine, and what they do to its DNS.
func judgeTunnels(f doctorFacts) []finding {
	const name = "vpn"
	var list []finding
	told := func(link string) (vpnStatus, bool) {
		i := slices.IndexFunc(f.status.VPNs, func(v vpnStatus) bool { return v.Link == link })
		if i < 0 {
			return vpnStatus{}, false
		}
		return f.status.VPNs[i], true
	}
	for _, l := range f.links {
		if isTailscale(l) {
			v, _ := told(l.name)
			list = append(list, judgeTailscale(f, l, v))
		}
	}
	for _, t := range f.tunnels {
		v, ok := told(t.name)
		switch {
		case ok:
			list = append(list, fine(name, "%s", v))
		case len(t.dns) > 0:
			list = append(list, fine(name, "%s is a %s link, and %s has %s asked for names", t.name, t.kind, t.file, strings.Join(t.dns, " ")))
		default:
			list = append(list, fine(name, "%s is a %s link of another program", t.name, t.kind))
		}
	}
	return list
}

// tailscaleResolver is where Tailscale answers names.
func tailscaleResolver() netip.Addr { return netip.AddrFrom4([4]byte{100, 100, 100, 100}) }

func judgeTailscale(f doctorFacts, l link, v vpnStatus) finding {
	const name = "tailscale"
	var addrs []string
	for _, a := range l.addrs {
		if cgnat().Contains(a.Addr()) || tailscaleV6().Contains(a.Addr()) {
			addrs = append(addrs, a.Addr().String())
		}
	}
	where := fmt.Sprintf("Tailscale runs on %s (%s), and has %s for itself", l.name, strings.Join(addrs, " "), cgnat())
	if v.DNS != "" {
		where += "; it " + v.DNS
	}
	if f.takenOver() && slices.Contains(f.conf.servers, tailscaleResolver()) && !f.viaTailscale() {
		return warn(name, "sudo tailscale set --accept-dns=false", "%s; %s names its resolver beside the node's", where, systemConf)
	}
	return fine(name, "%s", where)
}

// viaTailscale reports whether the machine's programs ask Tailscale, and Tailscale asks the node.
func (f *doctorFacts) viaTailscale() bool {
	return slices.ContainsFunc(f.status.VPNs, func(v vpnStatus) bool { return v.Asks })
}

// String is the program and its process, as far as they are known.
func (s dnsServer) String() string {
	if s.program == "" {
		return "a program that only root may know"
	}
	return fmt.Sprintf("%s (pid %d)", s.program, s.pid)
}

// judgeServers names the other programs that answer on port 53. They are no harm as long as they leave the stub's
// address alone, which judgePort tells.
func judgeServers(f doctorFacts) []finding {
	var list []finding
	for _, s := range f.servers {
		ours := f.running() && (s.pid == f.status.PID || s.pid == 0 && s.holds(f.stub.Addr()))
		if !ours {
			list = append(list, fine("server", "%s answers on port 53 of %s", s, listAddrs(s.addrs)))
		}
	}
	return list
}

package osconfig

import (
	"bytes"
	"context"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Two VPNs that both write resolv.conf leave in any order. Each backs up what it finds and writes that back, so one of
// them brings back the other's, which may have left by then. What a VPN wrote is therefore right only while its link is
// there, and what stood there before it is kept beneath.

// layer is what stands beneath a resolv.conf of a VPN's.
type layer struct {
	Link  string    `json:"link"`  // by which the VPN's servers are reached
	Index int       `json:"index"` // of that link: a later one of the same name has another
	Under fileState `json:"under"` // what is right once it is gone
}

// over is a resolv.conf of a VPN's that stands in the place of ours.
type over struct {
	Link  string    `json:"link"`
	Index int       `json:"index"`
	File  fileState `json:"file"`
	Asks  bool      `json:"asks"` // its server asks us what it does not know, so programs find our names there
}

const (
	// maxLayers bounds how many VPNs are told apart.
	maxLayers = 3
	// askTimeout bounds the question to a VPN's server whether it asks us.
	askTimeout = time.Second
)

// backups are where VPNs that overwrite resolv.conf keep what stood there before: vpnc and openconnect, Tailscale, NetBird.
func backups() []string {
	return []string{"/run/*/resolv.conf-backup*", "/etc/resolv.pre-tailscale-backup.conf", "/etc/resolv.conf.original.netbird"}
}

// copies are where programs put copies of a resolv.conf that they find.
func copies() []string {
	return append(backups(), "/etc/resolv.conf?*", "/etc/*/resolv*.conf*", "/run/*/resolv*", "/var/lib/*/resolv*")
}

// tunnelTo is the tunnel that a resolv.conf's first server is reached by; "" if that is on the network, or unknown.
func (m machine) tunnelTo(file fileState) (link string, index int) {
	servers := parseResolvConf(file.Data).nameservers
	if file.Kind != kindRegular || len(servers) == 0 {
		return "", 0
	}
	reach := m.reach
	if reach == nil {
		reach = reachedBy
	}
	if link = m.tunnelOf(reach(servers[0])); link == "" {
		return "", 0
	}
	return link, int(m.linkNumber(link, "ifindex"))
}

// reachedBy is the link that the kernel would send a packet to addr by. None is sent.
func reachedBy(addr netip.Addr) string {
	if addr.IsLoopback() {
		return ""
	}
	conn, err := net.DialUDP("udp", nil, net.UDPAddrFromAddrPort(netip.AddrPortFrom(addr, 53)))
	if err != nil {
		return "" // no route
	}
	defer conn.Close()
	local, err := netip.ParseAddrPort(conn.LocalAddr().String())
	interfaces, listErr := net.Interfaces()
	if err != nil || listErr != nil {
		return ""
	}
	for _, i := range interfaces {
		addrs, err := i.Addrs()
		if err != nil {
			continue // it went away meanwhile
		}
		for _, a := range addrs {
			if p, err := netip.ParsePrefix(a.String()); err == nil && p.Addr() == local.Addr().WithZone("").Unmap() {
				return i.Name
			}
		}
	}
	return ""
}

// linkNumber is what the kernel says of a link; -1 if there is no such link.
func (m machine) linkNumber(link, what string) int64 {
	data, err := m.disk.readThrough("/sys/class/net/" + link + "/" + what)
	if err != nil {
		return -1
	}
	n, err := strconv.ParseInt(strings.TrimSpace(string(data)), 0, 64)
	if err != nil {
		return -1
	}
	return n
}

// stands reports whether a link is there and up. Where the kernel says nothing of links, all are.
func (m machine) stands(link string, index int) bool {
	const up = 1 // IFF_UP
	if m.linkKind("lo") == "" {
		return true
	}
	flags := m.linkNumber(link, "flags")
	return m.linkNumber(link, "ifindex") == int64(index) && flags > 0 && flags&up != 0
}

// layers are what stands beneath before, which j's change or none is in place of.
func (x direct) layers(before fileState, j *journal) []layer {
	link, index := x.machine.tunnelTo(before)
	switch {
	case j != nil && before.same(j.Before):
		return j.Layers
	case link == "":
		return nil
	case j != nil && len(j.Layers) > 0 && j.Layers[0].Link == link:
		list := slices.Clone(j.Layers) // the VPN wrote once more
		list[0].Index = index
		return list
	case j != nil:
		return slices.Insert(slices.Clone(j.Layers[:min(len(j.Layers), maxLayers-1)]), 0, layer{link, index, j.Before})
	}
	if under, ok := x.backup(); ok {
		return []layer{{link, index, under}}
	}
	return nil
}

// backup is the newest of the backups that other VPNs have made of the network's resolv.conf.
func (x direct) backup() (newest fileState, ok bool) {
	var when time.Time
	for _, path := range x.list(backups()) {
		info, err := os.Lstat(path)
		if err != nil || !info.ModTime().After(when) {
			continue
		}
		file, err := x.machine.disk.capture(path)
		link, _ := x.machine.tunnelTo(file)
		if err == nil && file.usable() && link == "" && !bytes.HasPrefix(file.Data, []byte(ourFirstLine)) {
			newest, when, ok = file, info.ModTime(), true
		}
	}
	return newest, ok
}

// list are the files that patterns match.
func (x direct) list(patterns []string) (paths []string) {
	for _, pattern := range patterns {
		found, _ := filepath.Glob(x.machine.disk.real(pattern)) // fails on a bad pattern alone
		for _, path := range found {
			if !slices.Contains(paths, path) {
				paths = append(paths, path)
			}
		}
	}
	return paths
}

// settle lets go of what was right only while links were there that are gone.
func (x direct) settle(j *journal) (fell []string) {
	for i := 0; i < len(j.Layers); {
		l := j.Layers[i]
		if x.machine.stands(l.Link, l.Index) {
			i++
			continue
		}
		fell = append(fell, l.Link)
		if i == 0 {
			j.Over, j.Before = &over{Link: l.Link, Index: l.Index, File: j.Before}, l.Under
		} else {
			j.Layers[i-1].Under = l.Under
		}
		j.Layers = slices.Delete(slices.Clone(j.Layers), i, i+1)
	}
	if o := j.Over; o != nil && o.Asks && !x.machine.stands(o.Link, o.Index) {
		fell = append(fell, o.Link)
		j.Over = &over{Link: o.Link, Index: o.Index, File: o.File}
	}
	return fell
}

// fall applies again once a VPN has left: what it wrote is not right any more.
func (m *Manager) fall(ctx context.Context, fell []string) error {
	if err := m.direct.machine.disk.saveJournal(m.opt.StateDir, m.journal); err != nil {
		return err
	}
	m.log.Info("a VPN has left, and its nameservers with it", "link", strings.Join(fell, " "))
	return m.applyLocked(ctx, m.config, true)
}

// isUnder reports whether a VPN's resolv.conf stands in the place of ours, and its server asks us what it does not know:
// programs then find all names, and there is nothing to fight about. Tailscale is like that: it puts its own file back
// at once, with whatever it found there for its upstream.
func (m *Manager) isUnder(ctx context.Context, now fileState) (bool, error) {
	link, index := m.direct.machine.tunnelTo(now)
	if link == "" {
		return false, nil
	}
	asks := m.asksUs(ctx, now)
	j := *m.journal
	switch {
	case !asks && j.Over == nil:
		return false, nil
	case !asks:
		j.Over = nil // it is back, and asks others now
	case j.Over != nil && j.Over.Asks && j.Over.Index == index && now.same(j.Over.File):
		m.problems = nil
		return true, nil
	default:
		if len(j.Layers) > 0 && j.Layers[0].Link == link {
			j.Before, j.Layers = j.Layers[0].Under, j.Layers[1:]
		} else if now.same(j.Before) {
			j.Before = fileState{Kind: kindMissing} // what it has beneath is not known, and asking it would be asking us
		}
		j.Over, m.problems = &over{link, index, now, true}, nil
		m.log.Info("a VPN answers for the machine, and asks us what it does not know", "link", link)
	}
	m.journal = &j
	return asks, m.direct.machine.disk.saveJournal(m.opt.StateDir, m.journal)
}

// asksUs reports whether a resolv.conf's first server knows what only we know.
func (m *Manager) asksUs(ctx context.Context, file fileState) bool {
	if m.opt.Verify == nil {
		return false
	}
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	return m.opt.Verify(ctx, netip.AddrPortFrom(parseResolvConf(file.Data).nameservers[0], 53)) == nil
}

// layered is the base of a machine whose resolv.conf would be file without us.
func (x direct) layered(j *journal, file fileState) Base {
	_, data := x.machine.disk.leads(file)
	if j == nil || !file.same(j.Before) || len(j.Layers) == 0 && (j.Over == nil || !j.Over.Asks) {
		var ours []netip.Addr
		if j != nil {
			ours = j.Servers
		}
		return base(data, ours)
	}
	var list []source
	for _, l := range j.Layers {
		list = append(list, vpnSource(l.Link, data, j.Servers))
		_, data = x.machine.disk.leads(l.Under)
	}
	b := base(data, j.Servers)
	list = append(list, source{all: true, servers: b.Servers, search: b.Search})
	if j.Over != nil && j.Over.Asks {
		s := vpnSource(j.Over.Link, j.Over.File.Data, j.Servers)
		s.all = false // asking it would be asking us
		list = append([]source{s}, list...)
	}
	// A VPN's list has those before it too, and ours.
	for i := range list {
		list[i].search = slices.DeleteFunc(list[i].search, func(domain string) bool {
			return slices.Contains(j.Search, domain) || slices.ContainsFunc(list[i+1:], func(s source) bool { return slices.Contains(s.search, domain) })
		})
	}
	b = combine(list)
	for i, t := range b.tunnels {
		b.tunnels[i].Asks = j.Over != nil && j.Over.Asks && t.Link == j.Over.Link
	}
	return b
}

func vpnSource(link string, data []byte, ours []netip.Addr) source {
	b := base(data, ours)
	return source{link: link, all: true, servers: b.Servers, search: b.Search}
}

// mendCopies replaces what other programs have kept of our file, since they would write it back once we are gone.
func (x direct) mendCopies(j *journal) (steps, left []string) {
	right := j.Before
	if n := len(j.Layers); n > 0 {
		right = j.Layers[n-1].Under
	}
	_, data := x.machine.disk.leads(right)
	if len(base(data, j.Servers).Servers) == 0 {
		return nil, nil // a copy that says how to mend it is better than an empty one
	}
	for _, path := range x.list(copies()) {
		file, err := x.machine.disk.capture(path)
		if err != nil || file.Kind != kindRegular || !bytes.HasPrefix(file.Data, []byte(ourFirstLine)) {
			continue
		}
		file.Data = data
		if _, err := x.machine.disk.make(path, file); err != nil {
			left = append(left, fmt.Sprintf("%s, which another program keeps, names us (%v): write the nameservers into it", path, err))
			continue
		}
		steps = append(steps, path+", which another program keeps, names the network's nameservers instead of us")
	}
	return steps, left
}

// overtaken reports whether a VPN's resolv.conf is in place.
func (m *Manager) overtaken() bool {
	disk := m.direct.machine.disk
	now, err := disk.capture(disk.real(confPath))
	link, _ := m.direct.machine.tunnelTo(now)
	return err == nil && link != ""
}

package tunnel

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
	"golang.zx2c4.com/wireguard/tun"
)

const (
	// mark is on the tunnel's own packets, and keeps them out of it. Its bits are none of those that Kubernetes (0xc000)
	// and Tailscale (0xff0000 holding 0x40000 or 0x80000) look at.
	mark = 0x6d0000
	// table holds the tailnet's routes. They are not in the main one, where a wider or narrower route could be mistaken for
	// an overlap, and where the tunnel's own packets would find them.
	table    = 41642
	priority = 5300 // of the rule that leads there: after "local", before "main"
	// group marks links of ours, in the one request that makes them.
	group = 0x6d64

	srcValidMark = "/proc/sys/net/ipv4/conf/all/src_valid_mark"
)

// machine is what a tunnel made on this machine.
type machine struct {
	config  Config
	lock    *stateLock
	journal *journal
	guard   *guard
	v6      bool
	notes   []string
}

// makeLink makes the link and the WireGuard on it.
type makeLink func(m *machine, mtu int) (*carrier, error)

// tunQueue is how many packets wait for WireGuard: a gateway speaks to a thousand nodes at once.
const tunQueue = 4096

// openTUN brings up a WireGuard of this process on a TUN device.
func openTUN(_ context.Context, c Config) (*carrier, error) {
	return openMachine(c, "tun", func(m *machine, mtu int) (*carrier, error) {
		device, err := tun.CreateTUN(c.Link, mtu)
		if err != nil {
			return nil, unlessAbsent("no TUN devices here", err)
		}
		if link, err := netlink.LinkByName(c.Link); err == nil {
			_ = netlink.LinkSetTxQLen(link, tunQueue) // with the usual 500 it works too
		}
		filter := newFilter(device, c.Addresses)
		d, err := openDevice(c, filter, mark)
		if err != nil {
			return nil, err
		}
		return &carrier{engine: d, socket: d.socket, policy: filter.set}, nil
	})
}

// unlessAbsent makes the reason of an error that says that this machine cannot do something at all.
func unlessAbsent(reason string, err error) error {
	for _, absent := range []error{os.ErrNotExist, os.ErrPermission, unix.EOPNOTSUPP, unix.ENODEV, unix.ENXIO, unix.EPROTONOSUPPORT, unix.EAFNOSUPPORT} {
		if errors.Is(err, absent) {
			return &missing{reason: reason, err: err}
		}
	}
	if strings.HasSuffix(err.Error(), "does not exist") { // tun.CreateTUN keeps the error to itself
		return &missing{reason: reason, err: err}
	}
	return fmt.Errorf("%s: %w", reason, err)
}

// openMachine notes what is going to be made, makes it, and leaves nothing when a part of it fails.
func openMachine(c Config, kind string, makeLink makeLink) (*carrier, error) {
	if os.Geteuid() != 0 {
		return nil, &missing{reason: "not root"}
	}
	if c.StateDir == "" {
		return nil, errors.New("no state directory to note changes in")
	}
	lock, err := lockState(c.StateDir)
	if err != nil {
		return nil, err
	}
	m := &machine{config: c, lock: lock, v6: hasIPv6()}
	opened, err := m.open(kind, makeLink)
	if err != nil {
		return nil, errors.Join(err, m.remove())
	}
	return opened, nil
}

func (m *machine) open(kind string, makeLink makeLink) (*carrier, error) {
	c := m.config
	if err := cleanup(m.lock); err != nil {
		return nil, err
	}
	if _, err := netlink.LinkByName(c.Link); err == nil {
		return nil, &hintError{fmt.Errorf("there is a link %s already", c.Link), "set tunnel.link to another name"}
	}
	m.journal = &journal{Version: journalVersion, Link: c.Link, Kind: kind, Sysctls: map[string]string{}}
	if old, err := os.ReadFile(srcValidMark); err == nil && strings.TrimSpace(string(old)) == "0" {
		m.journal.Sysctls[srcValidMark] = "0"
	}
	if err := m.lock.store(m.journal); err != nil {
		return nil, err
	}
	mtu := c.MTU
	if mtu == 0 {
		mtu = linkMTU()
	}
	opened, err := makeLink(m, mtu)
	if err != nil {
		return nil, err
	}
	if err := m.wire(opened); err != nil {
		return nil, errors.Join(err, opened.engine.close())
	}
	opened.network, opened.link = &sockets{link: c.Link}, c.Link
	opened.notes, opened.undo = m.notes, func() error {
		m.guard.end()
		return m.remove()
	}
	return opened, nil
}

// wire gives the link its addresses and routes, once nothing can come in by another.
func (m *machine) wire(opened *carrier) error {
	link, err := netlink.LinkByName(m.config.Link)
	if err != nil {
		return fmt.Errorf("finding the link %s: %w", m.config.Link, err)
	}
	opened.index = link.Attrs().Index
	port, err := opened.engine.port()
	if err != nil {
		return err
	}
	m.guard = newGuard(m.config, port)
	if opened.policy == nil {
		m.guard.inside = true
		opened.policy = m.guard.set
	}
	opened.redirect = m.guard.redirect
	if err := m.guard.set(nil); err != nil {
		return err
	}
	for path := range m.journal.Sysctls {
		if err := os.WriteFile(path, []byte("1"), 0o644); err != nil {
			return fmt.Errorf("setting %s: %w", path, err)
		}
	}
	if m.v6 {
		// No link-local address, and not off because new links are: neither is a reason to do without the tunnel.
		_ = os.WriteFile("/proc/sys/net/ipv6/conf/"+m.config.Link+"/addr_gen_mode", []byte("1"), 0o644)
		_ = os.WriteFile("/proc/sys/net/ipv6/conf/"+m.config.Link+"/disable_ipv6", []byte("0"), 0o644)
	}
	if err := m.addresses(link); err != nil {
		return err
	}
	if err := netlink.LinkSetUp(link); err != nil {
		return fmt.Errorf("setting %s up: %w", m.config.Link, err)
	}
	return m.routes(link)
}

func (m *machine) addresses(link netlink.Link) error {
	for _, a := range m.config.Addresses {
		if !a.Is4() && !m.v6 {
			m.notes = append(m.notes, fmt.Sprintf("no IPv6 on this machine: %s is left out", a))
			continue
		}
		flags := unix.IFA_F_NOPREFIXROUTE
		if !a.Is4() {
			flags |= unix.IFA_F_NODAD
		}
		addr := &netlink.Addr{IPNet: ipNet(netip.PrefixFrom(a, a.BitLen())), Flags: flags}
		if err := netlink.AddrAdd(link, addr); err != nil {
			return fmt.Errorf("giving %s the address %s: %w", m.config.Link, a, err)
		}
	}
	return nil
}

// routes leads the ranges into the tunnel, by a table that only packets without the mark are looked up in.
func (m *machine) routes(link netlink.Link) error {
	for _, r := range m.config.Ranges {
		source, ok := m.source(r)
		if !ok {
			continue
		}
		route := &netlink.Route{LinkIndex: link.Attrs().Index, Dst: ipNet(r), Table: table, Scope: netlink.SCOPE_LINK, Src: source.AsSlice()}
		if err := netlink.RouteReplace(route); err != nil {
			return fmt.Errorf("routing %s into %s: %w", r, m.config.Link, err)
		}
	}
	for _, rule := range m.rules() {
		if err := netlink.RuleAdd(rule); err != nil && !errors.Is(err, unix.EEXIST) {
			return fmt.Errorf("adding the rule for table %d: %w", table, err)
		}
	}
	return nil
}

// source is this node's address for a range.
func (m *machine) source(r netip.Prefix) (netip.Addr, bool) {
	for _, a := range m.config.Addresses {
		if a.Is4() == r.Addr().Is4() && (a.Is4() || m.v6) {
			return a, true
		}
	}
	return netip.Addr{}, false
}

func (m *machine) rules() []*netlink.Rule {
	families := []int{unix.AF_INET}
	if m.v6 {
		families = append(families, unix.AF_INET6)
	}
	var rules []*netlink.Rule
	for _, family := range families {
		rule, all := netlink.NewRule(), uint32(0xffffffff)
		rule.Family, rule.Priority, rule.Table = family, priority, table
		rule.Mark, rule.Mask, rule.Invert = mark, &all, true
		rules = append(rules, rule)
	}
	return rules
}

func ipNet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}

func hasIPv6() bool {
	_, err := os.Stat("/proc/sys/net/ipv6/conf/all")
	return err == nil
}

// linkMTU is what fits into the packets of the default route's link.
func linkMTU() int {
	routes, err := netlink.RouteListFiltered(netlink.FAMILY_ALL, &netlink.Route{Table: unix.RT_TABLE_MAIN}, netlink.RT_FILTER_TABLE)
	if err != nil {
		return maxMTU
	}
	least := maxMTU
	for _, r := range routes {
		if r.Dst != nil && !r.Dst.IP.IsUnspecified() {
			continue
		}
		if link, err := netlink.LinkByIndex(r.LinkIndex); err == nil {
			least = min(least, link.Attrs().MTU-80)
		}
	}
	return max(least, minMTU)
}

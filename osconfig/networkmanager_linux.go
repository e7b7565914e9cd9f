package osconfig

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/godbus/dbus/v5"
)

const (
	nmConfig = "/run/NetworkManager/conf.d/meshdns.conf"
	// nmSettle is how long NetworkManager has to do what it was told: it answers before that.
	nmSettle = time.Second
)

// networkManager gives NetworkManager a global DNS configuration (NetworkManager.conf(5), global-dns) that names us. It
// lies below /run, so that nothing of it outlives a reboot, and holds while connections come and go.
type networkManager struct {
	machine  machine
	stateDir string
	servers  []netip.Addr // that were applied
}

func newNetworkManager(m machine, stateDir string) backend {
	return &networkManager{machine: m, stateDir: stateDir}
}

// nmFacts reads how NetworkManager deals with resolv.conf; empty where it does not say.
func nmFacts(ctx context.Context) (mode, rcManager string) {
	ctx, cancel := context.WithTimeout(ctx, busTimeout)
	defer cancel()
	conn, err := dialBus(ctx)
	if err != nil {
		return "", ""
	}
	defer conn.Close()
	// What cannot be read counts as the default, in which it writes the file.
	manager := conn.Object(nmName, nmPath+"/DnsManager")
	_ = nmProperty(ctx, manager, "DnsManager", "Mode", &mode)
	_ = nmProperty(ctx, manager, "DnsManager", "RcManager", &rcManager)
	return mode, rcManager
}

func nmProperty(ctx context.Context, of dbus.BusObject, kind, name string, into any) error {
	iface := nmName
	if kind != "" {
		iface += "." + kind
	}
	if err := busProperty(ctx, of, iface, name, into); err != nil {
		return fmt.Errorf("reading NetworkManager's %s: %w", name, err)
	}
	return nil
}

// reload has NetworkManager read its configuration and write its DNS anew.
func (n *networkManager) reload(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, busTimeout)
	defer cancel()
	conn, err := dialBus(ctx)
	if err != nil {
		return err
	}
	defer conn.Close()
	const everything = uint32(0)
	call := conn.Object(nmName, nmPath).CallWithContext(ctx, nmName+".Reload", dbus.FlagNoAutoStart, everything)
	if call.Err != nil {
		return fmt.Errorf("having NetworkManager reload its configuration: %w", late(ctx, call.Err))
	}
	return nil
}

// globalDNS is the configuration file that names us.
func globalDNS(c Config, search []string) []byte {
	var servers []string
	for _, addr := range c.written() {
		servers = append(servers, addr.String())
	}
	return fmt.Appendf(nil, "# Written by meshdns. To undo it: meshdns dns restore\n[global-dns]\nsearches=%s\n\n[global-dns-domain-*]\nservers=%s\n",
		strings.Join(search, ","), strings.Join(servers, ","))
}

func (n *networkManager) apply(ctx context.Context, c Config) error {
	b, err := n.base(ctx)
	if err != nil {
		return err
	}
	theirs, err := n.global(ctx)
	if err != nil {
		return err
	}
	ours := slices.Concat(c.addrs(), n.servers)
	if slices.ContainsFunc(theirs, func(a netip.Addr) bool { return !slices.Contains(ours, a) }) {
		return refuse("take [global-dns] out of NetworkManager's configuration, or set dns.os: off",
			"NetworkManager has a global DNS configuration already, which names %v", theirs)
	}
	disk := n.machine.disk
	j := n.machine.newJournal(modeNM, nmConfig, c)
	if err := disk.saveJournal(n.stateDir, j); err != nil {
		return err
	}
	real := disk.real(nmConfig)
	if err := os.MkdirAll(filepath.Dir(real), 0o755); err != nil {
		return fmt.Errorf("making the directory of %s: %w", nmConfig, err)
	}
	file := fileState{Kind: kindRegular, Mode: 0o644, UID: os.Geteuid(), GID: os.Getegid(), Data: globalDNS(c, joinSearch(c.Search, b.Search, ""))}
	if _, err := disk.make(real, file); err != nil {
		return fmt.Errorf("writing %s: %w", nmConfig, err)
	}
	n.servers = c.addrs()
	if err := n.reload(ctx); err != nil {
		return err
	}
	return n.await(ctx, func() (bool, error) { return n.holds(ctx, c) }, "it does not ask us; another file of its configuration may say otherwise")
}

// await waits until NetworkManager has done what it was told: it says that it did before.
func (n *networkManager) await(ctx context.Context, done func() (bool, error), otherwise string) error {
	ctx, cancel := context.WithTimeout(ctx, nmSettle)
	defer cancel()
	tick := time.NewTicker(lockPoll)
	defer tick.Stop()
	for {
		ok, err := done()
		if ok {
			return nil
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			if err != nil {
				return err
			}
			return fmt.Errorf("NetworkManager was told, and %s", otherwise)
		}
	}
}

// holds reads back which servers NetworkManager asks for all names.
func (n *networkManager) holds(ctx context.Context, c Config) (bool, error) {
	servers, err := n.global(ctx)
	return err == nil && slices.Equal(servers, c.written()), err
}

// global are the servers of the global DNS configuration for all names.
func (n *networkManager) global(ctx context.Context) ([]netip.Addr, error) {
	ctx, cancel := context.WithTimeout(ctx, busTimeout)
	defer cancel()
	conn, err := dialBus(ctx)
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	var config map[string]dbus.Variant
	if err := nmProperty(ctx, conn.Object(nmName, nmPath), "", "GlobalDnsConfiguration", &config); err != nil {
		return nil, err
	}
	var domains, every map[string]dbus.Variant
	var words []string
	err = storeKey(config, "domains", &domains)
	if err == nil {
		err = storeKey(domains, "*", &every)
	}
	if err == nil {
		err = storeKey(every, "servers", &words)
	}
	if err != nil {
		return nil, fmt.Errorf("reading NetworkManager's global DNS configuration: %w", err)
	}
	return parseAddrs(words), nil
}

// storeKey stores the value of a key, if it is there.
func storeKey(from map[string]dbus.Variant, key string, into any) error {
	v, ok := from[key]
	if !ok {
		return nil
	}
	return v.Store(into)
}

func parseAddrs(words []string) []netip.Addr {
	var addrs []netip.Addr
	for _, word := range words {
		if addr, err := netip.ParseAddr(word); err == nil {
			addrs = append(addrs, addr.Unmap())
		}
	}
	return addrs
}

func (n *networkManager) restore(ctx context.Context) error {
	disk := n.machine.disk
	j, err := loadJournal(n.stateDir)
	if err != nil || j == nil {
		return err
	}
	real := disk.real(nmConfig)
	if err := disk.removeTemp(real); err != nil {
		return fmt.Errorf("removing what a dead process left: %w", err)
	}
	if err := disk.remove(real); err != nil {
		return fmt.Errorf("removing %s: %w", nmConfig, err)
	}
	n.servers = nil
	// Without NetworkManager there is nobody who would have to forget us: when it starts the file is gone.
	owner, err := n.machine.owner(ctx, nmName)
	if errors.Is(err, context.DeadlineExceeded) {
		return fmt.Errorf("asking whether NetworkManager runs: %w", err) // it may, and would keep us
	}
	if err == nil && owner == ownerPresent {
		if err := n.reload(ctx); err != nil {
			return err
		}
		gone := func() (bool, error) {
			servers, err := n.global(ctx)
			if err != nil || len(servers) > 0 {
				return false, err
			}
			return n.settled(ctx, j.Servers) && !n.lists(ctx, j.Servers), nil
		}
		if err := n.await(ctx, gone, "it has a global DNS configuration, or no servers, still"); err != nil {
			return err
		}
	}
	if err := disk.dropJournal(n.stateDir); err != nil {
		return err
	}
	// Nobody is there who would write the file, or nobody who can be told without a bus: its next start does it.
	return disk.stillNames(j.Servers, "systemctl restart NetworkManager")
}

// lists reports whether NetworkManager says of any connection that it asks us (DnsManager.Configuration).
func (n *networkManager) lists(ctx context.Context, ours []netip.Addr) bool {
	ctx, cancel := context.WithTimeout(ctx, busTimeout)
	defer cancel()
	conn, err := dialBus(ctx)
	if err != nil {
		return false
	}
	defer conn.Close()
	var links []map[string]dbus.Variant
	if nmProperty(ctx, conn.Object(nmName, nmPath+"/DnsManager"), "DnsManager", "Configuration", &links) != nil {
		return false // versions before 1.6 do not say
	}
	return slices.ContainsFunc(links, func(link map[string]dbus.Variant) bool {
		var words []string
		return storeKey(link, "nameservers", &words) == nil &&
			slices.ContainsFunc(parseAddrs(words), func(a netip.Addr) bool { return slices.Contains(ours, a) })
	})
}

// settled reports whether resolv.conf is written without our servers, and with those that the connections bring, if
// they bring any. On the way there it names none for a moment.
func (n *networkManager) settled(ctx context.Context, ours []netip.Addr) bool {
	data, err := n.machine.disk.readThrough(confPath)
	if err != nil {
		return false
	}
	servers := parseResolvConf(data).nameservers
	if slices.ContainsFunc(servers, func(a netip.Addr) bool { return slices.Contains(ours, a) }) {
		return false
	}
	b, err := n.base(ctx)
	return err == nil && (len(servers) > 0 || len(b.Servers) == 0)
}

// base is what the active connections bring. What NetworkManager's DnsManager says is out of date while a global
// configuration is in force.
func (n *networkManager) base(ctx context.Context) (Base, error) {
	ctx, cancel := context.WithTimeout(ctx, busTimeout)
	defer cancel()
	conn, err := dialBus(ctx)
	if err != nil {
		return Base{}, err
	}
	defer conn.Close()
	var connections []dbus.ObjectPath
	if err := nmProperty(ctx, conn.Object(nmName, nmPath), "", "ActiveConnections", &connections); err != nil {
		return Base{}, err
	}
	var b Base
	for _, c := range connections {
		for _, family := range []string{"4", "6"} {
			var config dbus.ObjectPath
			err := nmProperty(ctx, conn.Object(nmName, c), "Connection.Active", "Ip"+family+"Config", &config)
			if err != nil || config == "/" {
				continue // it went away, or has none
			}
			n.addConfig(ctx, conn.Object(nmName, config), family, &b)
		}
	}
	return b, ctx.Err()
}

// addConfig adds the servers and domains of one connection for one family.
func (n *networkManager) addConfig(ctx context.Context, of dbus.BusObject, family string, b *Base) {
	kind := "IP" + family + "Config"
	var addrs []netip.Addr
	if family == "4" {
		var data []map[string]dbus.Variant
		if nmProperty(ctx, of, kind, "NameserverData", &data) == nil {
			for _, server := range data {
				var word string
				if v, ok := server["address"]; ok && v.Store(&word) == nil {
					addrs = append(addrs, parseAddrs([]string{word})...)
				}
			}
		}
	} else {
		var data [][]byte
		if nmProperty(ctx, of, kind, "Nameservers", &data) == nil {
			for _, raw := range data {
				if addr, ok := netip.AddrFromSlice(raw); ok {
					addrs = append(addrs, addr)
				}
			}
		}
	}
	for _, addr := range addrs {
		server := Server{AddrPort: netip.AddrPortFrom(addr, 53)}
		if !slices.Contains(n.servers, addr) && !slices.Contains(b.Servers, server) {
			b.Servers = append(b.Servers, server)
		}
	}
	for _, property := range []string{"Searches", "Domains"} {
		var domains []string
		if nmProperty(ctx, of, kind, property, &domains) != nil {
			continue
		}
		for _, domain := range domains {
			if clean, ok := cleanDomain(strings.TrimPrefix(domain, "~")); ok && clean != "." {
				b.Search = appendDomain(b.Search, clean)
			}
		}
	}
}

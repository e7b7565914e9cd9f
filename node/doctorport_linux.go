package node

import (
	"bufio"
	"io"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
)

// dnsServers are the programs with sockets on port 53, in the order of their processes. Whose they are root alone sees;
// for others those of one user look like one program.
func dnsServers() []dnsServer {
	bound := map[string]netip.Addr{} // by inode
	for _, table := range []string{"udp", "udp6", "tcp", "tcp6"} {
		f, err := os.Open("/proc/net/" + table)
		if err != nil {
			continue
		}
		portInodes(bound, f, strings.HasPrefix(table, "tcp"))
		f.Close()
	}
	return groupServers(bound, socketOwners(bound))
}

// portInodes adds to bound the sockets of a table of /proc/net that are bound to port 53.
func portInodes(bound map[string]netip.Addr, table io.Reader, tcp bool) {
	for lines := bufio.NewScanner(table); lines.Scan(); {
		// sl local_address rem_address st tx:rx tr:when retrnsmt uid timeout inode ...
		fields := strings.Fields(lines.Text())
		if len(fields) < 10 || (tcp && fields[3] != tcpListen) {
			continue
		}
		if local, ok := parseProcAddr(fields[1]); ok && local.Port() == 53 {
			bound[fields[9]] = local.Addr().Unmap()
		}
	}
}

// socketOwners finds the processes that have the sockets open: by inode, with no addresses.
func socketOwners(bound map[string]netip.Addr) map[string]dnsServer {
	owners := map[string]dnsServer{}
	if len(bound) == 0 {
		return owners
	}
	links, _ := filepath.Glob("/proc/[0-9]*/fd/*") // fails on a bad pattern alone
	for _, link := range links {
		target, err := os.Readlink(link)
		if err != nil {
			continue
		}
		inode, ok := strings.CutPrefix(target, "socket:[")
		inode = strings.TrimSuffix(inode, "]")
		if _, wanted := bound[inode]; !ok || !wanted {
			continue
		}
		dir := filepath.Dir(filepath.Dir(link))
		pid, err := strconv.Atoi(filepath.Base(dir))
		if err != nil {
			continue
		}
		comm, _ := os.ReadFile(filepath.Join(dir, "comm")) // gone with its process: then it has no name
		// Of a socket that several hold, the first process was there first.
		if first, known := owners[inode]; !known || pid < first.pid {
			owners[inode] = dnsServer{program: strings.TrimSpace(string(comm)), pid: pid}
		}
	}
	return owners
}

// groupServers puts the sockets of one process together. It never returns nil, which would say that nothing is known.
func groupServers(bound map[string]netip.Addr, owners map[string]dnsServer) []dnsServer {
	list := []dnsServer{}
	for inode, addr := range bound {
		owner := owners[inode]
		i := slices.IndexFunc(list, func(s dnsServer) bool { return s.pid == owner.pid })
		if i < 0 {
			i, list = len(list), append(list, owner)
		}
		if !slices.Contains(list[i].addrs, addr) {
			list[i].addrs = append(list[i].addrs, addr)
		}
	}
	for _, s := range list {
		slices.SortFunc(s.addrs, netip.Addr.Compare)
	}
	slices.SortFunc(list, func(a, b dnsServer) int { return a.pid - b.pid })
	return list
}

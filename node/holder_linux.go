package node

import (
	"bufio"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"io"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

// portHolder names the program that keeps us from binding addr, "" if /proc does not tell: other users' programs are
// seen by root alone.
func portHolder(addr netip.AddrPort) string {
	var inodes []string
	for _, table := range []string{"udp", "udp6", "tcp", "tcp6"} {
		f, err := os.Open("/proc/net/" + table)
		if err != nil {
			continue
		}
		inodes = append(inodes, boundInodes(f, addr, strings.HasPrefix(table, "tcp"))...)
		f.Close()
	}
	for _, inode := range inodes {
		if name := socketOwner(inode); name != "" {
			return name
		}
	}
	return ""
}

// tcpListen is the state of a listening socket in /proc/net/tcp.
const tcpListen = "0A"

// boundInodes reads a table of /proc/net and returns the inodes of the sockets on addr or on the wildcard address with
// its port.
func boundInodes(table io.Reader, addr netip.AddrPort, tcp bool) []string {
	var inodes []string
	for lines := bufio.NewScanner(table); lines.Scan(); {
		// sl local_address rem_address st tx:rx tr:when retrnsmt uid timeout inode ...
		fields := strings.Fields(lines.Text())
		if len(fields) < 10 || (tcp && fields[3] != tcpListen) {
			continue
		}
		local, ok := parseProcAddr(fields[1])
		if !ok || local.Port() != addr.Port() {
			continue
		}
		if local.Addr().IsUnspecified() || local.Addr().Unmap() == addr.Addr() {
			inodes = append(inodes, fields[9])
		}
	}
	return inodes
}

// parseProcAddr reads "0100007F:0035": 32-bit words in the machine's byte order, then the port as a number.
func parseProcAddr(s string) (netip.AddrPort, bool) {
	host, port, ok := strings.Cut(s, ":")
	raw, err := hex.DecodeString(host)
	if !ok || err != nil || len(raw)%4 != 0 {
		return netip.AddrPort{}, false
	}
	for i := 0; i < len(raw); i += 4 {
		binary.NativeEndian.PutUint32(raw[i:], binary.BigEndian.Uint32(raw[i:]))
	}
	addr, ok := netip.AddrFromSlice(raw)
	n, err := strconv.ParseUint(port, 16, 16)
	return netip.AddrPortFrom(addr, uint16(n)), ok && err == nil
}

// socketOwner names the program that has the socket with this inode open, with its process.
func socketOwner(inode string) string {
	links, _ := filepath.Glob("/proc/[0-9]*/fd/*") // fails on a bad pattern alone
	for _, link := range links {
		if target, err := os.Readlink(link); err != nil || target != "socket:["+inode+"]" {
			continue
		}
		dir := filepath.Dir(filepath.Dir(link))
		comm, err := os.ReadFile(filepath.Join(dir, "comm"))
		if err != nil {
			continue
		}
		return fmt.Sprintf("%s (pid %s)", strings.TrimSpace(string(comm)), filepath.Base(dir))
	}
	return ""
}

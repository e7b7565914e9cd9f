package node

import (
	"os"
	"path/filepath"
	"strings"
)

// tunHolder names the program that holds a TUN link open; "" if there is none, or it is not for us to see.
func tunHolder(name string) string {
	links, _ := filepath.Glob("/proc/[0-9]*/fd/*") // fails on a bad pattern alone
	for _, fd := range links {
		if target, err := os.Readlink(fd); err != nil || !strings.HasSuffix(target, "/net/tun") {
			continue
		}
		dir := filepath.Dir(filepath.Dir(fd))
		info, err := readFile(filepath.Join(dir, "fdinfo", filepath.Base(fd)), maxTunnelFile)
		if err != nil || !holdsTUN(info, name) {
			continue
		}
		comm, err := os.ReadFile(filepath.Join(dir, "comm"))
		if err == nil {
			return strings.TrimSpace(string(comm))
		}
	}
	return ""
}

// holdsTUN reads what the kernel says of an open /dev/net/tun (tun_chr_show_fdinfo).
func holdsTUN(info []byte, name string) bool {
	for line := range strings.Lines(string(info)) {
		if key, value, ok := strings.Cut(line, ":"); ok && key == "iff" && strings.TrimSpace(value) == name {
			return true
		}
	}
	return false
}

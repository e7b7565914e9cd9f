package node

import (
	"fmt"
	"net"
	"net/netip"
	"os"
	"reflect"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

func TestServersOnPort53AreGroupedByProgram(t *testing.T) {
	const udp = `  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode
   0: 4D00007F:0035 00000000:0000 07 00000000:00000000 00:00000000 00000000     0        0 11 2 0 0
   1: 4D00007F:0035 00000000:0000 07 00000000:00000000 00:00000000 00000000     0        0 12 2 0 0
   2: 3500007F:0035 00000000:0000 07 00000000:00000000 00:00000000 00000000     0        0 13 2 0 0
   3: 0100007F:0036 00000000:0000 07 00000000:00000000 00:00000000 00000000     0        0 14 2 0 0
   4: garbage
`
	const tcp = `  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode
   0: 3600007F:0035 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 21 2 0 0
   1: 0100007F:0035 0100007F:1234 01 00000000:00000000 00:00000000 00000000     0        0 22 2 0 0
`
	bound := map[string]netip.Addr{}
	portInodes(bound, strings.NewReader(udp), false)
	portInodes(bound, strings.NewReader(tcp), true)
	resolved := dnsServer{program: "systemd-resolve", pid: 5}
	owners := map[string]dnsServer{"13": resolved, "21": resolved}
	at := netip.MustParseAddr
	want := []dnsServer{
		{addrs: []netip.Addr{at("127.0.0.77")}},
		{program: "systemd-resolve", pid: 5, addrs: []netip.Addr{at("127.0.0.53"), at("127.0.0.54")}},
	}
	if got := groupServers(bound, owners); !reflect.DeepEqual(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
	if got := groupServers(nil, nil); got == nil {
		t.Error("nobody looks like nothing known")
	}
}

func TestSocketOwnersFindsThisProcess(t *testing.T) {
	conn, err := net.ListenUDP("udp", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	raw, err := conn.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	var stat unix.Stat_t
	if err := raw.Control(func(fd uintptr) { err = unix.Fstat(int(fd), &stat) }); err != nil {
		t.Fatal(err)
	}
	inode := fmt.Sprint(stat.Ino)
	got := socketOwners(map[string]netip.Addr{inode: {}, "none": {}})
	if want := (dnsServer{program: comm(t), pid: os.Getpid()}); len(got) != 1 || !reflect.DeepEqual(got[inode], want) {
		t.Errorf("got %v, want %v for %s alone", got, want, inode)
	}
}

func TestLoopbackIsNoTunnel(t *testing.T) {
	for _, name := range []string{"lo", "no-such-link"} {
		if got := tunnelKind(name); got != "" {
			t.Errorf("%s: got %q", name, got)
		}
	}
}

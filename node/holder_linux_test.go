package node

import (
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// comm is this process's name as the kernel keeps it: 15 bytes at most.
func comm(t *testing.T) string {
	t.Helper()
	name := filepath.Base(os.Args[0])
	return name[:min(len(name), 15)]
}

func TestPortHolderIsNamed(t *testing.T) {
	want := fmt.Sprintf("%s (pid %d)", comm(t), os.Getpid())
	for _, bind := range []string{"127.0.0.1:0", "0.0.0.0:0", "[::]:0"} {
		t.Run("udp "+bind, func(t *testing.T) {
			conn, err := net.ListenPacket("udp", bind)
			if err != nil {
				t.Skipf("binding: %v", err)
			}
			defer conn.Close()
			port := conn.LocalAddr().(*net.UDPAddr).AddrPort().Port()
			if got := portHolder(netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), port)); got != want {
				t.Errorf("got %q, want %q", got, want)
			}
		})
		t.Run("tcp "+bind, func(t *testing.T) {
			ln, err := net.Listen("tcp", bind)
			if err != nil {
				t.Skipf("binding: %v", err)
			}
			defer ln.Close()
			port := ln.Addr().(*net.TCPAddr).AddrPort().Port()
			if got := portHolder(netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), port)); got != want {
				t.Errorf("got %q, want %q", got, want)
			}
		})
	}
}

func TestBoundInodesReadsTheKernelsTables(t *testing.T) {
	const table = `  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode
   0: 4D00007F:0035 00000000:0000 07 00000000:00000000 00:00000000 00000000     0        0 11 2 0 0
   1: 00000000:0035 00000000:0000 07 00000000:00000000 00:00000000 00000000     0        0 22 2 0 0
   2: 0100007F:0035 00000000:0000 07 00000000:00000000 00:00000000 00000000     0        0 33 2 0 0
   3: 4D00007F:0036 00000000:0000 07 00000000:00000000 00:00000000 00000000     0        0 44 2 0 0
   4: 4D00007F:0035 0100007F:1234 01 00000000:00000000 00:00000000 00000000     0        0 55 2 0 0
   5: garbage
   6: 4D00007F 00000000:0000 07 00000000:00000000 00:00000000 00000000     0        0 66 2 0 0
`
	addr := netip.MustParseAddrPort("127.0.0.77:53")
	if got, want := boundInodes(strings.NewReader(table), addr, false), []string{"11", "22", "55"}; !slices.Equal(got, want) {
		t.Errorf("UDP: got %v, want %v", got, want)
	}
	listening := strings.ReplaceAll(table, " 07 ", " 0A ")
	if got, want := boundInodes(strings.NewReader(listening), addr, true), []string{"11", "22"}; !slices.Equal(got, want) {
		t.Errorf("TCP: got %v, want %v", got, want)
	}
}

func FuzzProcAddr(f *testing.F) {
	for _, s := range []string{"0100007F:0035", "00000000000000000000000001000000:0035", ":", "0100007F", "01:zz"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		addr, ok := parseProcAddr(s)
		if ok && !addr.IsValid() {
			t.Errorf("%q: accepted as %v", s, addr)
		}
	})
}

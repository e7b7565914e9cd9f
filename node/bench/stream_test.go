//go:build bench

package bench

import (
	"bufio"
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.zx2c4.com/wireguard/conn"
	"golang.zx2c4.com/wireguard/device"
	"golang.zx2c4.com/wireguard/tun/netstack"
)

// roleVar says what the test's program does in place of testing: it is run in namespaces for the two ends of a stream.
const roleVar = "BENCH_ROLE"

// TestRole is the two ends of a stream, each in a process of its own.
func TestRole(t *testing.T) {
	args := strings.Fields(os.Getenv(roleVar))
	if len(args) == 0 {
		t.Skip("is run by TestThroughput")
	}
	var err error
	switch args[0] {
	case "sink":
		err = sink(args[1])
	case "source":
		err = source(args[1:])
	case "netstack":
		err = netstackEnd(args[1:])
	}
	if err != nil {
		t.Fatal(err)
	}
}

const chunk = 256 << 10

// drain reads all of each connection, and tells the other side how much that was.
func drain(ln net.Listener) error {
	for {
		c, err := ln.Accept()
		if err != nil {
			return err
		}
		go func() {
			defer c.Close()
			var total int64
			for buf := make([]byte, chunk); ; {
				n, err := c.Read(buf)
				total += int64(n)
				if err != nil {
					break
				}
			}
			fmt.Fprintf(c, "%d\n", total)
		}()
	}
}

func sink(at string) error {
	ln, err := net.Listen("tcp", at)
	if err != nil {
		return err
	}
	return drain(ln)
}

// source sends for some seconds, and prints the bytes that arrived and the seconds that this took: "source ADDRESS SECONDS
// [PROXY]".
func source(args []string) error {
	d := net.Dialer{Timeout: 20 * time.Second}
	at := args[0]
	if len(args) == 3 {
		at = args[2]
	}
	c, err := d.Dial("tcp", at)
	if err == nil && len(args) == 3 {
		err = socks(c, netip.MustParseAddrPort(args[0]))
	}
	if err != nil {
		return err
	}
	return send(c, args[1])
}

// halfCloser is a connection whose one direction can be ended.
type halfCloser interface {
	net.Conn
	CloseWrite() error
}

func send(c net.Conn, seconds string) error {
	n, err := strconv.Atoi(seconds)
	if err != nil {
		return err
	}
	start := time.Now()
	for buf := make([]byte, chunk); time.Since(start) < time.Duration(n)*time.Second; {
		if _, err := c.Write(buf); err != nil {
			return err
		}
	}
	if err := c.(halfCloser).CloseWrite(); err != nil {
		return err
	}
	line, err := bufio.NewReader(c).ReadString('\n')
	if err != nil {
		return fmt.Errorf("hearing what arrived: %w", err)
	}
	fmt.Printf("STREAM %s %f\n", strings.TrimSpace(line), time.Since(start).Seconds())
	return nil
}

// socks asks a SOCKS5 proxy for a connection (RFC 1928).
func socks(c net.Conn, to netip.AddrPort) error {
	v4 := to.Addr().As4()
	for _, step := range []struct {
		say  []byte
		hear int
	}{{[]byte{5, 1, 0}, 2}, {append([]byte{5, 1, 0, 1}, append(v4[:], byte(to.Port()>>8), byte(to.Port()))...), 10}} {
		if _, err := c.Write(step.say); err != nil {
			return err
		}
		answer := make([]byte, step.hear)
		if _, err := io.ReadFull(c, answer); err != nil || answer[1] != 0 {
			return fmt.Errorf("the proxy answers %v, %w", answer, err)
		}
	}
	return nil
}

// netstackEnd is a WireGuard with its own network in the process, as wireguard-go's tun/netstack makes it: "netstack KEY PORT
// PEERKEY PEERENDPOINT OWN PEER [SECONDS]". With seconds it sends, which each line on stdin begins; otherwise it is the sink.
func netstackEnd(args []string) error {
	own, other := netip.MustParseAddr(args[4]), netip.MustParseAddr(args[5])
	link, stack, err := netstack.CreateNetTUN([]netip.Addr{own}, nil, 1420)
	if err != nil {
		return err
	}
	dev := device.NewDevice(link, conn.NewDefaultBind(), device.NewLogger(device.LogLevelError, ""))
	text := fmt.Sprintf("private_key=%s\nlisten_port=%s\npublic_key=%s\nendpoint=%s\nallowed_ip=%s/32\n", args[0], args[1], args[2], args[3], other)
	if err := errors.Join(dev.IpcSet(text), dev.Up()); err != nil {
		return err
	}
	at := netip.AddrPortFrom(other, streamPort)
	if len(args) == 6 {
		ln, err := stack.ListenTCPAddrPort(netip.AddrPortFrom(own, streamPort))
		if err != nil {
			return err
		}
		return drain(ln)
	}
	for lines := bufio.NewScanner(os.Stdin); lines.Scan(); {
		c, err := stack.DialContextTCPAddrPort(context.Background(), at)
		if err == nil {
			err = send(c, args[6])
		}
		if err != nil {
			return err
		}
		c.Close()
	}
	return nil
}

// streamPort is where streams arrive.
const streamPort = 5201

// role is how the test's program is run for an end of a stream.
func role(words ...string) (env []string, args []string) {
	return []string{roleVar + "=" + strings.Join(words, " ")}, []string{os.Args[0], "-test.run=^TestRole$", "-test.v", "-test.timeout=50m"}
}

// streamed reads what a source printed.
func streamed(out string) (bytes, seconds float64, ok bool) {
	_, rest, ok := strings.Cut(out, "STREAM ")
	if !ok {
		return 0, 0, false
	}
	n, err := fmt.Sscanf(rest, "%f %f", &bytes, &seconds)
	return bytes, seconds, err == nil && n == 2
}

// keyPair makes WireGuard keys in hexadecimal, as its control protocol has them.
func keyPair(t *testing.T) (private, public string) {
	t.Helper()
	private = strings.TrimSpace(must(t, "wg", "genkey"))
	cmd := exec.CommandContext(t.Context(), "wg", "pubkey")
	cmd.Stdin = strings.NewReader(private)
	out, err := cmd.Output()
	if err != nil {
		t.Fatal(err)
	}
	return private, strings.TrimSpace(string(out))
}

// inHex is a key in base64 as wireguard-go's control protocol has it.
func inHex(t *testing.T, key string) string {
	t.Helper()
	var raw device.NoisePublicKey
	data, err := decodeKey(key)
	if err != nil {
		t.Fatal(err)
	}
	copy(raw[:], data)
	return hex.EncodeToString(raw[:])
}

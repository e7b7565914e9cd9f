package node

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"slices"
	"strconv"
)

// SOCKS5 (RFC 1928), as much of it as programs need to connect. github.com/things-go/go-socks5 would do it too; it sets no deadline
// anywhere, and serves UDP and looks names up by the system unless told otherwise: more to rule out than there is to write.
const (
	socksVersion    = 5
	socksConnect    = 1
	socksNoPassword = 0
	socksNoMethod   = 0xff
	socksIPv4       = 1
	socksName       = 3
	socksIPv6       = 4
)

// The replies to a request (RFC 1928, section 6).
const (
	socksDone          = 0
	socksFailed        = 1
	socksForbidden     = 2
	socksUnreachable   = 4
	socksRefused       = 5
	socksExpired       = 6
	socksNoCommand     = 7
	socksNoAddressType = 8
)

// target is where a program wants to connect to: an address or a name, and a port.
type target struct {
	name string // if addr is not valid
	addr netip.Addr
	port uint16
}

func (t target) String() string {
	if t.addr.IsValid() {
		return netip.AddrPortFrom(t.addr, t.port).String()
	}
	return fmt.Sprintf("%s:%d", t.name, t.port)
}

// parseTarget reads HOST:PORT apart already. A host that is an address counts as one.
func parseTarget(host, port string) (target, error) {
	number, err := strconv.ParseUint(port, 10, 16)
	if err != nil || number == 0 {
		return target{}, fmt.Errorf("port %q is not one from 1 to 65535", port)
	}
	t := target{name: host, port: uint16(number)}
	if a, err := netip.ParseAddr(host); err == nil && a.Zone() == "" {
		t.addr, t.name = a.Unmap(), ""
	} else if host == "" || len(host) > maxName+1 {
		return target{}, fmt.Errorf("a name has 1 to %d characters", maxName)
	}
	return t, nil
}

// socksError is a request that is answered with a code of its own.
type socksError byte

func (e socksError) Error() string { return "SOCKS request of a kind that is not served" }

var errNotSOCKS = errors.New("not SOCKS5")

// readSocksMethods reads a client's greeting, and reports whether it can do without a password.
func readSocksMethods(r io.Reader) (bool, error) {
	var head [2]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return false, err
	}
	if head[0] != socksVersion {
		return false, errNotSOCKS
	}
	methods := make([]byte, head[1])
	if _, err := io.ReadFull(r, methods); err != nil {
		return false, err
	}
	if slices.Contains(methods, socksNoPassword) {
		return true, nil
	}
	return false, nil
}

// readSocksRequest reads a request to connect.
func readSocksRequest(r io.Reader) (target, error) {
	var head [4]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return target{}, err
	}
	if head[0] != socksVersion {
		return target{}, errNotSOCKS
	}
	length := map[byte]int{socksIPv4: 4, socksIPv6: 16}[head[3]]
	if head[3] == socksName {
		var one [1]byte
		if _, err := io.ReadFull(r, one[:]); err != nil {
			return target{}, err
		}
		length = int(one[0])
	}
	if length == 0 {
		return target{}, socksError(socksNoAddressType)
	}
	body := make([]byte, length+2)
	if _, err := io.ReadFull(r, body); err != nil {
		return target{}, err
	}
	if head[1] != socksConnect {
		return target{}, socksError(socksNoCommand)
	}
	host := string(body[:length])
	if head[3] != socksName {
		a, _ := netip.AddrFromSlice(body[:length])
		host = a.Unmap().String()
	}
	t, err := parseTarget(host, strconv.Itoa(int(binary.BigEndian.Uint16(body[length:]))))
	if err != nil {
		return target{}, socksError(socksFailed)
	}
	return t, nil
}

// socksReply answers a request. The address that it was bound to is nobody's business: all zeros.
func socksReply(code byte) []byte {
	return []byte{socksVersion, code, 0, socksIPv4, 0, 0, 0, 0, 0, 0}
}

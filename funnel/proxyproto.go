package funnel

import (
	"bufio"
	"bytes"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"time"

	"github.com/pires/go-proxyproto"
)

// What a gateway tells a node before a visitor's bytes is a header of the PROXY protocol, version 2, with these in it besides
// the addresses. The last one is a MAC over all that stands before it, under a key that gateway and node alone know.
const (
	tlvName  = proxyproto.PP2_TYPE_AUTHORITY
	tlvPort  = proxyproto.PP2_TYPE_MIN_CUSTOM     // the public port, 2 bytes
	tlvKind  = proxyproto.PP2_TYPE_MIN_CUSTOM + 1 // "https", "tcp", …
	tlvNonce = proxyproto.PP2_TYPE_MIN_CUSTOM + 2 // the gateway's time in milliseconds since 1970, 8 bytes, and 16 random ones
	tlvMAC   = proxyproto.PP2_TYPE_MIN_CUSTOM + 3 // HMAC-SHA256
)

// The bounds of a header, in bytes.
const (
	headerFixed = 16 // signature, command, family, length
	maxHeader   = 512
	maxKind     = 32
	nonceLength = 8 + 16
	keyLength   = 16 // at least
)

// What a node answers to a header: it starts with one byte.
const (
	replyTaken   = 1
	replyLate    = 2 // the node's time in milliseconds since 1970 follows: the clocks differ
	replyRefused = 3
)

// header is what a gateway tells of a visit. One of a pulse says nothing but its nonce.
type header struct {
	pulse            bool
	visitor, gateway netip.AddrPort // where the visit came from, and where it came to
	name, kind       string
	port             uint16
	nonce            nonce
}

// nonce is a time and something random.
type nonce [nonceLength]byte

func newNonce(now time.Time) nonce {
	var n nonce
	binary.BigEndian.PutUint64(n[:8], uint64(now.UnixMilli()))
	_, _ = rand.Read(n[8:]) // which never fails
	return n
}

func (n nonce) time() time.Time { return time.UnixMilli(int64(binary.BigEndian.Uint64(n[:8]))) }

// errHeader says that a header cannot be read.
var errHeader = errors.New("a PROXY header that is damaged")

// seal is the header as it goes over the wire.
func (h header) seal(key []byte) ([]byte, error) {
	if len(key) < keyLength {
		return nil, fmt.Errorf("a key of %d bytes, less than %d", len(key), keyLength)
	}
	p := proxyproto.Header{Version: 2, Command: proxyproto.LOCAL, TransportProtocol: proxyproto.UNSPEC}
	tlvs := []proxyproto.TLV{{Type: tlvNonce, Value: h.nonce[:]}}
	if !h.pulse {
		p = *proxyproto.HeaderProxyFromAddrs(2, tcpAddr(h.visitor), tcpAddr(h.gateway))
		if h.name != "" {
			tlvs = append(tlvs, proxyproto.TLV{Type: tlvName, Value: []byte(h.name)})
		}
		tlvs = append(tlvs, proxyproto.TLV{Type: tlvPort, Value: binary.BigEndian.AppendUint16(nil, h.port)},
			proxyproto.TLV{Type: tlvKind, Value: []byte(h.kind)})
	}
	tlvs = append(tlvs, proxyproto.TLV{Type: tlvMAC, Value: make([]byte, sha256.Size)})
	if err := p.SetTLVs(tlvs); err != nil {
		return nil, fmt.Errorf("writing a PROXY header: %w", err)
	}
	raw, err := p.Format()
	if err != nil {
		return nil, fmt.Errorf("writing a PROXY header: %w", err)
	}
	return append(raw[:len(raw)-sha256.Size], macOf(key, raw)...), nil
}

// tcpAddr is an address in the form in which it says its family.
func tcpAddr(a netip.AddrPort) *net.TCPAddr {
	return net.TCPAddrFromAddrPort(unmapped(a))
}

// macOf is the MAC of a header that ends with room for it.
func macOf(key, raw []byte) []byte {
	mac := hmac.New(sha256.New, key)
	mac.Write(raw[:len(raw)-sha256.Size])
	return mac.Sum(nil)
}

// sealedBy reports whether a header that was parsed is under this key.
func sealedBy(key, raw []byte) bool {
	return len(key) >= keyLength && hmac.Equal(raw[len(raw)-sha256.Size:], macOf(key, raw))
}

// readHeader reads the bytes of a header, and not one behind them.
func readHeader(r io.Reader) ([]byte, error) {
	raw := make([]byte, headerFixed, maxHeader)
	if _, err := io.ReadFull(r, raw); err != nil {
		return nil, fmt.Errorf("reading a PROXY header: %w", err)
	}
	length := int(binary.BigEndian.Uint16(raw[headerFixed-2:]))
	if !bytes.HasPrefix(raw, proxyproto.SIGV2) || headerFixed+length > maxHeader {
		return nil, errHeader
	}
	raw = raw[:headerFixed+length]
	if _, err := io.ReadFull(r, raw[headerFixed:]); err != nil {
		return nil, fmt.Errorf("reading a PROXY header: %w", err)
	}
	return raw, nil
}

// parseHeader reads a whole header. Nothing in it counts before its MAC was checked.
func parseHeader(raw []byte) (header, error) {
	r := bufio.NewReaderSize(bytes.NewReader(raw), maxHeader)
	p, err := proxyproto.Read(r)
	if err != nil || p.Version != 2 || r.Buffered() > 0 {
		return header{}, errHeader
	}
	tlvs, err := p.TLVs()
	if err != nil || len(tlvs) == 0 || tlvs[len(tlvs)-1].Type != tlvMAC || len(tlvs[len(tlvs)-1].Value) != sha256.Size {
		return header{}, errHeader
	}
	h := header{pulse: p.Command.IsLocal()}
	if !h.addresses(p) || !h.values(tlvs[:len(tlvs)-1]) {
		return header{}, errHeader
	}
	return h, nil
}

// addresses takes over the two ends of a visit.
func (h *header) addresses(p *proxyproto.Header) bool {
	if h.pulse {
		return p.TransportProtocol.IsUnspec()
	}
	from, to, ok := p.TCPAddrs()
	if !ok {
		return false
	}
	h.visitor, h.gateway = unmapped(from.AddrPort()), unmapped(to.AddrPort())
	return true
}

// unmapped is an address as it is compared: of IPv4 if it is one, and without the zone of a link.
func unmapped(a netip.AddrPort) netip.AddrPort {
	return netip.AddrPortFrom(a.Addr().Unmap().WithZone(""), a.Port())
}

// values takes over what a header says besides. Each thing is said once; what is not known is passed over, since a gateway may
// be newer than its nodes.
func (h *header) values(tlvs []proxyproto.TLV) bool {
	seen := map[proxyproto.PP2Type]bool{}
	for _, tlv := range tlvs {
		if seen[tlv.Type] {
			return false
		}
		seen[tlv.Type] = true
		ok := true
		switch tlv.Type {
		case tlvName:
			h.name, ok = string(tlv.Value), isHost(string(tlv.Value)) && foldHost(string(tlv.Value)) == string(tlv.Value)
		case tlvPort:
			if ok = len(tlv.Value) == 2; ok {
				h.port = binary.BigEndian.Uint16(tlv.Value)
			}
		case tlvKind:
			h.kind, ok = string(tlv.Value), len(tlv.Value) <= maxKind
		case tlvNonce:
			ok = copy(h.nonce[:], tlv.Value) == len(tlv.Value) && len(tlv.Value) == nonceLength
		case tlvMAC:
			ok = false // it is the last one
		}
		if !ok {
			return false
		}
	}
	return seen[tlvNonce] && (h.pulse || seen[tlvPort] && seen[tlvKind] && h.kind != "")
}

package funnel

import (
	"errors"
	"fmt"
	"io"
	"net/netip"
	"strings"

	"golang.org/x/crypto/cryptobyte"
)

// Hello is what a ClientHello says of where its connection wants to go (RFC 8446, section 4.1.2).
type Hello struct {
	ServerName string   // lower case, without a final dot; empty: it names none, or one that is no host name
	Protocols  []string // of the ALPN extension, in the client's order
}

// The bounds of a ClientHello, in bytes. With post-quantum key shares they come to about 2 KiB, with tickets to some more;
// crypto/tls takes 64 KiB.
const (
	maxHello     = 16 << 10
	maxRecord    = 16 << 10 // RFC 8446, section 5.1: 2^14
	recordHeader = 5
	maxProtocols = 64
	maxHost      = 253
)

// Types of records, handshake messages and extensions.
const (
	recordAlert     = 21
	recordHandshake = 22
	clientHello     = 1
	extServerName   = 0
	extALPN         = 16
)

// errNotTLS says that a connection does not start as TLS does.
var errNotTLS = errors.New("not a TLS connection")

// readHello reads a ClientHello, over as many records as it takes, and not one byte behind the last of those. read is all
// that was taken from r, also with an error.
func readHello(r io.Reader) (h Hello, read []byte, err error) {
	var message []byte
	for {
		record, got, err := readRecord(r, maxHello+recordHeader-len(message))
		read = append(read, got...)
		if err != nil {
			return Hello{}, read, err
		}
		message = append(message, record...)
		if len(message) > 0 && message[0] != clientHello {
			return Hello{}, read, fmt.Errorf("%w: a handshake message of type %d", errNotTLS, message[0])
		}
		if len(message) < 4 {
			continue
		}
		length := 4 + (int(message[1])<<16 | int(message[2])<<8 | int(message[3]))
		switch {
		case length > maxHello:
			return Hello{}, read, fmt.Errorf("a ClientHello of %d bytes, more than %d", length, maxHello)
		case len(message) > length:
			return Hello{}, read, errors.New("something follows the ClientHello in its record")
		case len(message) == length:
			h, err = parseHello(message[4:])
			return h, read, err
		}
	}
}

// readRecord reads one record of a handshake, of at most limit bytes with its header.
func readRecord(r io.Reader, limit int) (body, read []byte, err error) {
	header := make([]byte, recordHeader)
	n, err := io.ReadFull(r, header)
	if n > 0 && header[0] != recordHandshake || n > 1 && header[1] != 3 {
		return nil, header[:n], errNotTLS
	}
	if err != nil {
		return nil, header[:n], err
	}
	length := int(header[3])<<8 | int(header[4])
	if length == 0 || length > maxRecord || length > limit {
		return nil, header, fmt.Errorf("%w: a record of %d bytes", errNotTLS, length)
	}
	read = append(header, make([]byte, length)...)
	n, err = io.ReadFull(r, read[recordHeader:])
	return read[recordHeader : recordHeader+n], read[:recordHeader+n], err
}

// errHello says that a ClientHello cannot be read.
var errHello = errors.New("a ClientHello that is damaged")

// parseHello reads the body of a ClientHello.
func parseHello(body []byte) (Hello, error) {
	s := cryptobyte.String(body)
	var session, suites, compression, extensions cryptobyte.String
	if !s.Skip(2+32) || // version and random
		!s.ReadUint8LengthPrefixed(&session) || len(session) > 32 ||
		!s.ReadUint16LengthPrefixed(&suites) || len(suites) == 0 || len(suites)%2 != 0 ||
		!s.ReadUint8LengthPrefixed(&compression) || len(compression) == 0 {
		return Hello{}, errHello
	}
	if s.Empty() {
		return Hello{}, nil // TLS 1.2 without extensions
	}
	if !s.ReadUint16LengthPrefixed(&extensions) || !s.Empty() {
		return Hello{}, errHello
	}
	var h Hello
	seen := map[uint16]bool{}
	for !extensions.Empty() {
		var kind uint16
		var data cryptobyte.String
		if !extensions.ReadUint16(&kind) || !extensions.ReadUint16LengthPrefixed(&data) || seen[kind] {
			return Hello{}, errHello // RFC 8446, section 4.2: each once
		}
		seen[kind] = true
		ok := true
		switch kind {
		case extServerName:
			h.ServerName, ok = parseServerName(data)
		case extALPN:
			h.Protocols, ok = parseProtocols(data)
		}
		if !ok {
			return Hello{}, errHello
		}
	}
	return h, nil
}

// parseServerName reads the extension of RFC 6066, section 3. A name that is no host name counts as none: it must not be
// looked up, logged or matched.
func parseServerName(data cryptobyte.String) (name string, ok bool) {
	var list cryptobyte.String
	if !data.ReadUint16LengthPrefixed(&list) || list.Empty() || !data.Empty() {
		return "", false
	}
	for !list.Empty() {
		var kind uint8
		var value cryptobyte.String
		if !list.ReadUint8(&kind) || !list.ReadUint16LengthPrefixed(&value) || value.Empty() {
			return "", false
		}
		if kind != 0 {
			continue // the only type there is, is host_name
		}
		if name != "" {
			return "", false // one of each type
		}
		name = string(value)
	}
	if !isHost(name) {
		return "", true
	}
	return foldHost(name), true
}

// parseProtocols reads the extension of RFC 7301, section 3.1.
func parseProtocols(data cryptobyte.String) (list []string, ok bool) {
	var names cryptobyte.String
	if !data.ReadUint16LengthPrefixed(&names) || names.Empty() || !data.Empty() {
		return nil, false
	}
	for !names.Empty() {
		var name cryptobyte.String
		if !names.ReadUint8LengthPrefixed(&name) || name.Empty() || len(list) == maxProtocols {
			return nil, false
		}
		list = append(list, string(name))
	}
	return list, true
}

// foldHost is a host name in the form in which names are compared.
func foldHost(name string) string { return strings.ToLower(strings.TrimSuffix(name, ".")) }

// isHost reports whether a server name is a host name: letters, digits, hyphens and underscores in labels, and no address
// (RFC 6066: literal addresses are not permitted).
func isHost(name string) bool {
	name = strings.TrimSuffix(name, ".")
	if name == "" || len(name) > maxHost {
		return false
	}
	if _, err := netip.ParseAddr(name); err == nil {
		return false
	}
	for label := range strings.SplitSeq(name, ".") {
		if label == "" || len(label) > 63 {
			return false
		}
		for _, c := range []byte(label) {
			if (c < 'a' || c > 'z') && (c < 'A' || c > 'Z') && (c < '0' || c > '9') && c != '-' && c != '_' {
				return false
			}
		}
	}
	return true
}

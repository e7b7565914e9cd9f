package resolver

import (
	"errors"
	"hash/maphash"
	"strings"

	"github.com/miekg/dns"
)

// maxName is the longest name in wire form, the root's zero octet included (RFC 1035, 2.3.4).
const maxName = 255

// maxLabels is the most labels that fit into maxName, the root not counted.
const maxLabels = 127

// seed keys every hash of a name in this process, so that nobody outside can choose names that collide.
var seed = maphash.MakeSeed() //nolint:gochecknoglobals // written once, never changed

// hashName hashes a lower-cased wire name.
func hashName(lower []byte) uint64 { return maphash.Bytes(seed, lower) }

// wireName turns a name in presentation form into its lower-cased wire form.
// A missing final dot is added.
func wireName(s string) ([]byte, error) {
	buf := make([]byte, maxName+1)
	n, err := dns.PackDomainName(dns.Fqdn(strings.ToLower(s)), buf, 0, nil, false)
	if err != nil || n > maxName {
		return nil, &nameError{name: s}
	}
	return lowerName(buf[:n:n]), nil
}

// lowerName lower-cases a wire name in place and returns it. Length octets are below 64, so no label
// length is an ASCII letter and all octets may be treated alike (RFC 4343).
func lowerName(wire []byte) []byte {
	for i, c := range wire {
		if c-'A' < 26 {
			wire[i] = c + 'a' - 'A'
		}
	}
	return wire
}

// presentName turns a wire name without compression into presentation form.
func presentName(wire []byte) string {
	s, _, err := dns.UnpackDomainName(wire, 0)
	if err != nil {
		return "?"
	}
	return s
}

// hasSuffix reports whether the wire name lies at or below suffix, label by label; both lower-cased.
func hasSuffix(name, suffix []byte) bool {
	for len(name) > len(suffix) {
		if name[0] == 0 {
			return false
		}
		name = name[1+int(name[0]):]
	}
	return string(name) == string(suffix)
}

var errName = errors.New("not a domain name")

type nameError struct{ name string }

func (e *nameError) Error() string { return "not a domain name: " + strings.TrimSpace(e.name) }
func (e *nameError) Unwrap() error { return errName }

package certs

import (
	"crypto/tls"
	"errors"
	"fmt"
	"strings"

	"golang.org/x/net/idna"
)

// index is what handshakes look certificates up in. It is never changed, only replaced.
type index struct {
	byName map[string]*tls.Certificate // exact names and, with "*.", wildcards
}

// errNoName is a handshake without a server name.
var errNoName = errors.New("no certificate: the client names no server")

// GetCertificate is the certificate for a handshake, from memory: by its exact name, or else by the wildcard above it. It is
// for tls.Config.GetCertificate.
func (m *Manager) GetCertificate(hello *tls.ClientHelloInfo) (*tls.Certificate, error) {
	name := hello.ServerName
	if name == "" {
		return nil, errNoName
	}
	in := m.ready.Load()
	if c := in.find(name); c != nil {
		return c, nil
	}
	// Off the common path: upper case, a trailing dot, and labels that are not ASCII, which some clients send.
	ascii, err := idna.Lookup.ToASCII(strings.TrimSuffix(name, "."))
	if err == nil {
		if c := in.find(ascii); c != nil {
			return c, nil
		}
	}
	return nil, fmt.Errorf("no certificate for %q", name)
}

// find looks a name up that is spelled as certificates are.
func (in *index) find(name string) *tls.Certificate {
	if c := in.byName[name]; c != nil {
		return c
	}
	// A wildcard stands for exactly one label (RFC 6125, section 6.4.3).
	if i := strings.IndexByte(name, '.'); i > 0 {
		return in.byName["*"+name[i:]]
	}
	return nil
}

// indexLocked makes the index anew. Of two certificates for a name the one that ends later is served.
func (m *Manager) indexLocked() {
	in := &index{byName: map[string]*tls.Certificate{}}
	old := m.ready.Load()
	for _, name := range m.sortedLocked() {
		c := m.certs[name].record.cert
		if c == nil {
			continue
		}
		pair := old.same(name, c)
		if pair == nil {
			var err error
			if pair, err = c.served(); err != nil {
				m.log.Error("a certificate cannot be served", "name", name, "err", err)
				continue
			}
		}
		for _, n := range c.Leaf.DNSNames {
			if have := in.byName[n]; have == nil || have.Leaf.NotAfter.Before(c.Leaf.NotAfter) {
				in.byName[n] = pair
			}
		}
	}
	m.ready.Store(in)
}

// same is the certificate as it is served already, if it is.
func (in *index) same(name string, c *Certificate) *tls.Certificate {
	if pair := in.byName[name]; pair != nil && pair.Leaf.Equal(c.Leaf) {
		return pair
	}
	return nil
}

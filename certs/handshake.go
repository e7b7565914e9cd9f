package certs

import "crypto/tls"

// index is what handshakes look certificates up in. It is never changed, only replaced.
type index struct {
	byName map[string]*tls.Certificate // exact names and, with "*.", wildcards
}

package certs

import (
	"crypto/x509"
	"time"
)

// window is when a CA wants a certificate to be renewed (RFC 9773, section 4.2).
type window struct {
	Start time.Time `json:"start"`
	End   time.Time `json:"end"`
	Why   string    `json:"why,omitempty"`  // a page with the CA's reason
	Again time.Time `json:"again,omitzero"` // when to ask again
}

// shortLived is the lifetime up to which certificates are renewed at its half, later ones at two thirds.
const shortLived = 10 * 24 * time.Hour

// renewAt is when a certificate is renewed if the CA says nothing. chance, from 0 to 1, spreads a tailnet's nodes.
func renewAt(leaf *x509.Certificate, chance float64) time.Time {
	life := lifetime(leaf)
	share := life * 2 / 3
	if life <= shortLived {
		share = life / 2
	}
	return leaf.NotBefore.Add(share - time.Duration(chance*float64(life)/20))
}

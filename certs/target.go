package certs

import "time"

// Target is where another program reads a certificate.
type Target struct {
	Cert  string `json:"cert,omitempty"`  // file for the chain; PKCS#12 if it ends in .p12 or .pfx
	Key   string `json:"key,omitempty"`   // file for the key; the same as Cert: both in one
	Owner string `json:"owner,omitempty"` // empty: as it was, or who writes it
	Group string `json:"group,omitempty"`
	Mode  string `json:"mode,omitempty"` // octal; empty: as it was, or 0600 with a key and 0644 without

	PasswordFile string `json:"passwordFile,omitempty"` // for PKCS#12; empty: no password

	Unit    string        `json:"unit,omitempty"`    // systemd unit to reload once the files have changed
	Command []string      `json:"command,omitempty"` // program to run instead, without a shell
	Timeout time.Duration `json:"timeout,omitempty"` // for that: 30 s if zero
}

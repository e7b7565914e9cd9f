//go:build !linux && !darwin && !windows

package certs

// systemTrust is FreeBSD's store. OpenBSD has one file of the system's own, which is not for us to edit.
func systemTrust() []trustStore {
	return []trustStore{{
		dir: "/usr/local/etc/ssl/certs", suffix: ".pem", add: []string{"certctl", "rehash"}, remove: []string{"certctl", "rehash"},
	}}
}

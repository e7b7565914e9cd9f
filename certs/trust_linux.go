package certs

// systemTrust are the stores of Linux systems, those that only one family has first: openSUSE has Debian's command as well.
func systemTrust() []trustStore {
	return []trustStore{
		{ // Fedora, RHEL and theirs
			dir: "/etc/pki/ca-trust/source/anchors", suffix: ".pem", add: []string{"update-ca-trust", "extract"}, remove: []string{"update-ca-trust", "extract"},
			bundle: "/etc/pki/ca-trust/extracted/pem/tls-ca-bundle.pem",
		},
		{ // openSUSE
			dir: "/etc/pki/trust/anchors", suffix: ".pem", add: []string{"update-ca-certificates"}, remove: []string{"update-ca-certificates"},
			bundle: "/var/lib/ca-certificates/ca-bundle.pem",
		},
		{ // Arch
			dir: "/etc/ca-certificates/trust-source/anchors", suffix: ".crt", add: []string{"trust", "extract-compat"}, remove: []string{"trust", "extract-compat"},
			bundle: "/etc/ca-certificates/extracted/tls-ca-bundle.pem",
		},
		{ // Debian, Ubuntu, Alpine
			dir: "/usr/local/share/ca-certificates", suffix: ".crt", add: []string{"update-ca-certificates"}, remove: []string{"update-ca-certificates"},
			bundle: "/etc/ssl/certs/ca-certificates.crt",
		},
	}
}

package certs

const systemKeychain = "/Library/Keychains/System.keychain"

// systemTrust is the system's keychain.
func systemTrust() []trustStore {
	return []trustStore{{
		add:    []string{"security", "add-trusted-cert", "-d", "-r", "trustRoot", "-p", "ssl", "-k", systemKeychain, "{file}"},
		remove: []string{"security", "delete-certificate", "-Z", "{sha1}", "-t", systemKeychain},
	}}
}

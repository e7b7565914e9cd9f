package certs

// systemTrust is the machine's store of trusted roots.
func systemTrust() []trustStore {
	return []trustStore{{
		add:    []string{"certutil", "-f", "-addstore", "Root", "{file}"},
		remove: []string{"certutil", "-delstore", "Root", "{sha1}"},
	}}
}

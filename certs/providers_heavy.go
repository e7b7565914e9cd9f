//go:build meshdns_heavy

package certs

import "github.com/libdns/hetzner/v2"

// heavyProviders are those that cost megabytes each.
func heavyProviders() map[string]func() provider {
	return map[string]func() provider{
		"hetzner": func() provider { return new(hetzner.Provider) },
	}
}

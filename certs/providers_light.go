//go:build !meshdns_heavy

package certs

// heavyProviders are those that cost megabytes each: none without the build tag meshdns_heavy.
func heavyProviders() map[string]func() provider { return nil }

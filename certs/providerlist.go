package certs

import (
	"maps"

	"github.com/libdns/acmedns"
	"github.com/libdns/bunny"
	"github.com/libdns/cloudflare"
	"github.com/libdns/desec"
	"github.com/libdns/digitalocean"
	"github.com/libdns/duckdns"
	"github.com/libdns/gandi"
	"github.com/libdns/godaddy"
	"github.com/libdns/infomaniak"
	"github.com/libdns/inwx"
	"github.com/libdns/ionos"
	"github.com/libdns/netcup"
	"github.com/libdns/ovh"
	"github.com/libdns/porkbun"
	"github.com/libdns/rfc2136"
)

// providers makes one by name. What costs megabytes is in providers_heavy.go.
func providers() map[string]func() provider {
	all := map[string]func() provider{
		"acmedns":      func() provider { return new(acmedns.Provider) },
		"bunny":        func() provider { return new(bunny.Provider) },
		"cloudflare":   func() provider { return new(cloudflare.Provider) },
		"desec":        func() provider { return new(desec.Provider) },
		"digitalocean": func() provider { return new(digitalocean.Provider) },
		"duckdns":      func() provider { return new(duckdns.Provider) },
		"gandi":        func() provider { return new(gandi.Provider) },
		"godaddy":      func() provider { return new(godaddy.Provider) },
		"infomaniak":   func() provider { return new(infomaniak.Provider) },
		"inwx":         func() provider { return new(inwx.Provider) },
		"ionos":        func() provider { return new(ionos.Provider) },
		"netcup":       func() provider { return new(netcup.Provider) },
		"ovh":          func() provider { return new(ovh.Provider) },
		"porkbun":      func() provider { return new(porkbun.Provider) },
		"rfc2136":      func() provider { return new(rfc2136.Provider) },
	}
	maps.Copy(all, heavyProviders())
	return all
}

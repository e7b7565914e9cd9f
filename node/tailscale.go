package node

import (
	"encoding/json"
	"errors"
	"fmt"
	"strings"
)

// tailscaleStatus is what we read of `tailscale status --json` (ipnstate.Status).
type tailscaleStatus struct {
	Self *tailscalePeer
	Peer map[string]*tailscalePeer
	// BackendState is there in every state, and so tells this document from others.
	BackendState string
}

type tailscalePeer struct {
	DNSName      string // nas.foo-bar.ts.net.; empty without MagicDNS
	HostName     string // what the machine calls itself
	TailscaleIPs []string
}

// parseTailscale reads `tailscale status --json`: this machine and its peers. Mullvad's exit nodes are left out: they
// are hundreds of peers that nobody calls by name.
func parseTailscale(data []byte) ([]rawMachine, error) {
	var s tailscaleStatus
	if err := json.Unmarshal(data, &s); err != nil {
		return nil, jsonError("tailscale status --json", err)
	}
	if s.Self == nil && s.Peer == nil && s.BackendState == "" {
		return nil, errors.New("not the output of tailscale status --json: neither Self nor Peer")
	}
	if len(s.Peer) > maxMachines {
		return nil, errTooMany
	}
	var out []rawMachine
	add := func(p *tailscalePeer) {
		if p == nil || strings.HasSuffix(p.DNSName, ".mullvad.ts.net.") {
			return
		}
		name := p.DNSName
		if name == "" {
			name = p.HostName
		}
		out = append(out, rawMachine{name: name, addrs: p.TailscaleIPs})
	}
	add(s.Self)
	for _, p := range s.Peer {
		add(p)
	}
	return out, nil
}

// jsonError says that data is not a command's output, without repeating any of it.
func jsonError(command string, err error) error {
	var syntax *json.SyntaxError
	var typ *json.UnmarshalTypeError
	switch {
	case errors.As(err, &syntax):
		return fmt.Errorf("not the output of %s: no JSON at byte %d", command, syntax.Offset)
	case errors.As(err, &typ):
		return fmt.Errorf("not the output of %s: %s is of the wrong type", command, typ.Field)
	default:
		return fmt.Errorf("not the output of %s: %w", command, err)
	}
}

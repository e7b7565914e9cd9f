package node

import (
	"encoding/json"
	"errors"
)

// netbirdStatus is what we read of `netbird status --json`. The machine's own addresses come with a length, those of
// peers without.
type netbirdStatus struct {
	netbirdPeer
	Peers *struct {
		Details []netbirdPeer `json:"details"`
	} `json:"peers"`
}

type netbirdPeer struct {
	FQDN string `json:"fqdn"`
	IP   string `json:"netbirdIp"`
	IPv6 string `json:"netbirdIpv6"`
}

// parseNetbird reads `netbird status --json`: this machine and its peers.
func parseNetbird(data []byte) ([]rawMachine, error) {
	var s netbirdStatus
	if err := json.Unmarshal(data, &s); err != nil {
		return nil, jsonError("netbird status --json", err)
	}
	if s.Peers == nil && s.IP == "" {
		return nil, errors.New("not the output of netbird status --json: neither peers nor netbirdIp")
	}
	list := []netbirdPeer{s.netbirdPeer}
	if s.Peers != nil {
		list = append(list, s.Peers.Details...)
	}
	if len(list) > maxMachines {
		return nil, errTooMany
	}
	out := make([]rawMachine, len(list))
	for i, p := range list {
		out[i] = rawMachine{name: p.FQDN, addrs: []string{p.IP, p.IPv6}}
	}
	return out, nil
}

package node

import (
	"bytes"
	"encoding/json"
)

// headscaleNode is what we read of a node in `headscale nodes list -o json`. The command writes protobuf's field names
// and the REST API their JSON form, so both spellings are read.
type headscaleNode struct {
	Name       string   `json:"name"`       // what the machine calls itself
	GivenName  string   `json:"given_name"` // its name in the tailnet
	GivenName2 string   `json:"givenName"`
	Addrs      []string `json:"ip_addresses"`
	Addrs2     []string `json:"ipAddresses"`
}

// parseHeadscale reads `headscale nodes list -o json`, or the REST API's list of nodes.
func parseHeadscale(data []byte) ([]rawMachine, error) {
	var list []headscaleNode
	var err error
	if bytes.HasPrefix(bytes.TrimSpace(data), []byte("{")) {
		var wrapped struct {
			Nodes []headscaleNode `json:"nodes"`
		}
		err = json.Unmarshal(data, &wrapped)
		list = wrapped.Nodes
	} else {
		err = json.Unmarshal(data, &list)
	}
	if err != nil {
		return nil, jsonError("headscale nodes list -o json", err)
	}
	if len(list) > maxMachines {
		return nil, errTooMany
	}
	out := make([]rawMachine, len(list))
	for i, n := range list {
		name := n.Name
		for _, given := range []string{n.GivenName, n.GivenName2} {
			if given != "" {
				name = given
			}
		}
		out[i] = rawMachine{name: name, addrs: append(n.Addrs, n.Addrs2...)}
	}
	return out, nil
}

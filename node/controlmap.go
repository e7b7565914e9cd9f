package node

import (
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"net/netip"

	"github.com/meshdns/meshdns/node/control"
)

// mapFromGateway makes the map of what a gateway tells. It goes through the same checks as a map that somebody wrote; what
// a gateway may not say (S4: routes, upstreams and records of other zones) it has no field for. believed tells which nodes'
// keys are those that were pinned: the others have names and addresses, and no key.
func mapFromGateway(m *control.Map, believed func(control.Node) error) (*Map, error) {
	name := fmt.Sprintf("the gateway's map %d.%d", m.Epoch, m.Version)
	f := mapFile{Zone: word{text: m.Zone}, Version: m.Version}
	for _, p := range m.Ranges {
		f.Ranges = append(f.Ranges, word{text: p.String()})
	}
	for _, n := range m.Nodes {
		f.Nodes = append(f.Nodes, nodeFromGateway(n, believed(n) == nil))
	}
	var d decoder
	if m.Policy != "" {
		var text struct {
			Policy policyBlock `yaml:"policy"`
		}
		d.document([]byte(m.Policy), &text)
		f.Policy = text.Policy
	}
	digest, err := json.Marshal(m.Nodes)
	if err != nil {
		return nil, fmt.Errorf("reading %s: %w", name, err)
	}
	c := newChecker(&Map{name: name, digest: sha256.Sum256(digest), version: m.Version, policy: f.Policy.values})
	c.problems, c.loose = d.problems, true
	c.check(f, nil)
	if err := c.problems.named(name).err(); err != nil {
		return nil, err
	}
	c.m.finish()
	return c.m, nil
}

// believeAll is for maps whose keys nothing was pinned of: a gateway's own, and the first one that a machine gets.
func believeAll(control.Node) error { return nil }

// nodeFromGateway is a node in the words of a map that somebody wrote.
func nodeFromGateway(n control.Node, keyed bool) nodeFile {
	f := nodeFile{name: word{text: n.Name}, Addresses: addrWords(n.Addresses), Wildcard: n.Wildcard}
	for _, name := range n.Names {
		f.Names = append(f.Names, word{text: name})
	}
	for _, tag := range n.Tags {
		f.Tags = append(f.Tags, word{text: tag})
	}
	if keyed {
		f.Key = word{text: n.Key.String()}
		for _, e := range n.Endpoints {
			f.Endpoints = append(f.Endpoints, word{text: e.String()})
		}
	}
	if n.Gateway != nil {
		f.Gateway = gatewayFile{given: true, public: addrWords(n.Gateway.Public)}
	}
	return f
}

func addrWords(addrs []netip.Addr) []word {
	words := make([]word, 0, len(addrs))
	for _, a := range addrs {
		words = append(words, word{text: a.String()})
	}
	return words
}

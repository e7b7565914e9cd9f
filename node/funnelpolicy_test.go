package node

import (
	"fmt"
	"strings"
	"testing"

	"github.com/meshdns/meshdns/node/control"
)

const showMap = `zone: foo-bar.ts.net
ranges: [10.9.0.0/24]
nodes:
  edge: {addresses: [10.9.0.1], gateway: true}
  nas: {addresses: [10.9.0.2], names: [photos, git], tags: [storage]}
  tv: {addresses: [10.9.0.3], names: [films]}
`

// S12, S15: which node may show what.
func TestWhatPolicyLetsNodesShow(t *testing.T) {
	const z = ".foo-bar.ts.net"
	for name, tt := range map[string]struct{ policy, node, funnel, want string }{
		"no list":                              {"", "tv", "https tv" + z + " 443", "shown"},
		"no list, another port":                {"", "tv", "https tv" + z + " 8443", ""},
		"no list, a whole port":                {"", "tv", "tcp  25565", ""},
		"an empty list":                        {"funnel: []", "tv", "https tv" + z + " 443", ""},
		"a node":                               {"funnel: [nas]", "nas", "https nas" + z + " 443", "shown"},
		"a node's service":                     {"funnel: [nas]", "nas", "https photos" + z + " 443", "shown"},
		"a node's domain":                      {"funnel: [nas]", "nas", "https www.example.com 443", "shown"},
		"another node":                         {"funnel: [nas]", "tv", "https tv" + z + " 443", ""},
		"a node, TLS of another sort":          {"funnel: [nas]", "nas", "tls-terminated-tcp nas" + z + " 443", "shown"},
		"a node, another port":                 {"funnel: [nas]", "nas", "https nas" + z + " 8443", ""},
		"a node, a whole port":                 {"funnel: [nas]", "nas", "tcp  443", ""},
		"a service alone":                      {"funnel: [photos]", "nas", "https photos" + z + " 443", "shown"},
		"a service, the node's own name":       {"funnel: [photos]", "nas", "https nas" + z + " 443", ""},
		"a service, the node's other one":      {"funnel: [photos]", "nas", "https git" + z + " 443", ""},
		"a service, a domain":                  {"funnel: [photos]", "nas", "https www.example.com 443", ""},
		"a tag":                                {"funnel: ['tag:storage']", "nas", "https nas" + z + " 443", "shown"},
		"a tag of others":                      {"funnel: ['tag:storage']", "tv", "https tv" + z + " 443", ""},
		"all":                                  {`funnel: ["*"]`, "tv", "https tv" + z + " 443", "shown"},
		"a name listed":                        {"funnel: [{nodes: [nas], names: [www.example.com]}]", "nas", "https www.example.com 443", "listed"},
		"a name listed, another one":           {"funnel: [{nodes: [nas], names: [www.example.com]}]", "nas", "https nas" + z + " 443", ""},
		"a label listed":                       {"funnel: [{nodes: [nas], names: [photos]}]", "nas", "https photos" + z + " 443", "listed"},
		"a label listed for another":           {"funnel: [{nodes: [nas], names: [photos]}]", "tv", "https photos" + z + " 443", ""},
		"names below":                          {`funnel: ["*.nas"]`, "nas", "https a.nas" + z + " 443", "listed"},
		"names below, the one above":           {`funnel: ["*.nas"]`, "nas", "https nas" + z + " 443", ""},
		"names two below":                      {`funnel: ["*.nas"]`, "nas", "https b.a.nas" + z + " 443", ""},
		"ports":                                {`funnel: [{nodes: [nas], ports: ["443", "8000-8100"]}]`, "nas", "https nas" + z + " 8050", "shown"},
		"ports, but not that":                  {`funnel: [{nodes: [nas], ports: ["8000-8100"]}]`, "nas", "https nas" + z + " 443", ""},
		"a whole port":                         {`funnel: [{nodes: [nas], ports: [25565/tcp]}]`, "nas", "tcp  25565", "shown"},
		"a whole port by another protocol":     {`funnel: [{nodes: [nas], ports: [25565/tcp]}]`, "nas", "udp  25565", ""},
		"a whole port, wanted by a name":       {`funnel: [{nodes: [nas], ports: [25565/tcp]}]`, "nas", "https nas" + z + " 25565", ""},
		"a whole port by a service":            {`funnel: [{nodes: [photos], ports: [25565/tcp]}]`, "nas", "tcp  25565", ""},
		"an entry's node is no service":        {`funnel: [{nodes: [photos], names: [www.example.com]}]`, "nas", "https www.example.com 443", ""},
		"a kind that there is not":             {`funnel: ["*"]`, "nas", "http nas" + z + " 443", ""},
		"a kind that there is not, no list":    {"", "nas", "http nas" + z + " 443", ""},
		"of several entries the one that fits": {`funnel: [tv, {nodes: [nas], ports: ["8443"]}, nas]`, "nas", "https nas" + z + " 443", "shown"},
	} {
		m, err := parseMap("m", []byte(showMap+"policy: {"+tt.policy+"}\n"))
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		n, _ := m.Node(tt.node)
		words := strings.Split(tt.funnel, " ")
		f := control.Funnel{Kind: words[0], Name: words[1]}
		if _, err := fmt.Sscan(words[2], &f.Port); err != nil {
			t.Fatal(err)
		}
		got := ""
		if m.showing.allows(m.zone, n, f) {
			got = "shown"
		}
		if m.showing.lists(m.zone, n, f) {
			got = "listed"
		}
		if got != tt.want {
			t.Errorf("%s: %q, want %q", name, got, tt.want)
		}
	}
}

// S12: who may take which service names. What is given to a node is not given to whoever takes its name for a service.
func TestWhoMayTakeServiceNames(t *testing.T) {
	const names = "policy: {names: {nas: [wiki], 'tag:storage': [backup], films: ['*'], '*': [blog]}}\n"
	for name, tt := range map[string]struct {
		policy, node string
		take         []string
		want         bool
	}{
		"no list":              {"", "tv", []string{"wiki"}, true},
		"the one":              {names, "nas", []string{"wiki", "blog", "backup"}, true},
		"another":              {names, "tv", []string{"wiki"}, false},
		"anybody":              {names, "tv", []string{"blog"}, true},
		"one is not":           {names, "tv", []string{"blog", "wiki"}, false},
		"a service is no node": {names, "tv", []string{"anything"}, false},
		"none":                 {names, "tv", nil, true},
	} {
		m, err := parseMap("m", []byte(showMap+tt.policy))
		if err != nil {
			t.Fatal(err)
		}
		n, _ := m.Node(tt.node)
		if err := m.showing.mayTake(n, tt.take); (err == nil) != tt.want {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// A right of policy.allow is a node's, and not that of whoever has taken the name for a service.
func TestAServiceNameBringsNoRights(t *testing.T) {
	m, err := parseMap("m", []byte(showMap+"policy: {allow: [{from: [films], to: [nas]}]}\n"))
	if err != nil {
		t.Fatal(err)
	}
	tv, _ := m.Node("tv")
	nas, _ := m.Node("nas")
	if m.access.reaches(tv, nas) {
		t.Error("it reaches nas")
	}
}

func TestPolicyFindsWhatIsWrongWithFunnels(t *testing.T) {
	for name, tt := range map[string]struct{ policy, want string }{
		"nobody":            {"funnel: [x]", "neither a node nor a service name"},
		"a tag":             {"funnel: ['tag:a b']", "want tag:NAME"},
		"no nodes":          {"funnel: [{names: [a.example]}]", "an entry without nodes:"},
		"an unknown key":    {"funnel: [{node: [nas]}]", "unknown; did you mean nodes?"},
		"no name":           {"funnel: [{nodes: [nas], names: ['a b']}]", "not a valid name"},
		"no port":           {"funnel: [{nodes: [nas], ports: ['0']}]", "want PORT"},
		"ports backwards":   {"funnel: [{nodes: [nas], ports: ['9-8']}]", "want PORT"},
		"another protocol":  {"funnel: [{nodes: [nas], ports: ['9/icmp']}]", "want PORT"},
		"names: nobody":     {"names: {x: [a]}", "neither a node nor a service name"},
		"names: not a name": {"names: {nas: ['a b']}", "not a valid label"},
	} {
		_, err := parseMap("m", []byte(showMap+"policy: {"+tt.policy+"}\n"))
		if err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: %v, want %s", name, err, tt.want)
		}
	}
}

package node

import (
	"fmt"
	"strings"
	"testing"
)

const policyMap = `zone: foo-bar.ts.net
ranges: [10.9.0.0/24]
nodes:
  edge: {addresses: [10.9.0.1], gateway: true}
  nas: {addresses: [10.9.0.2], names: [photos], tags: [storage]}
  tv: {addresses: [10.9.0.3], tags: [media, untrusted]}
  laptop: {addresses: [10.9.0.4], tags: [admin]}
`

func policyOf(t *testing.T, allow string) *Map {
	t.Helper()
	m, err := parseMap("m", []byte(policyMap+allow))
	if err != nil {
		t.Fatal(err)
	}
	return m
}

func TestWhoMayReachWhom(t *testing.T) {
	const list = `policy:
  allow:
    - {from: ["tag:admin"], to: ["*"]}
    - {from: ["*"], to: ["photos:443", "tag:storage:53/udp"]}
    - {from: [tv], to: ["nas:8000-8100", "nas:icmp"]}
`
	for name, tt := range map[string]struct {
		allow, from, to string
		want            bool
	}{
		"no list":                     {"", "tv", "laptop", true},
		"an empty list":               {"policy: {allow: []}\n", "tv", "laptop", false},
		"by a tag, to all":            {list, "laptop", "tv", true},
		"not back":                    {list, "tv", "laptop", false},
		"all to one":                  {list, "tv", "nas", true},
		"one to itself":               {list, "tv", "tv", true},
		"a gateway":                   {list, "tv", "edge", true},
		"by a gateway":                {list, "edge", "tv", true},
		"a gateway, and an empty one": {"policy: {allow: []}\n", "tv", "edge", true},
	} {
		m := policyOf(t, tt.allow)
		from, _ := m.Node(tt.from)
		to, _ := m.Node(tt.to)
		if got := m.access.reaches(from, to); got != tt.want {
			t.Errorf("%s: %t", name, got)
		}
	}
	m := policyOf(t, list)
	for self, want := range map[string]string{
		"nas": "10.9.0.1/32 6 41444-41444, 10.9.0.1/32 6 443-443, 10.9.0.1/32 17 53-53, 10.9.0.4/32 0 0-0, 10.9.0.4/32 6 443-443, 10.9.0.4/32 17 53-53, " +
			"10.9.0.3/32 6 443-443, 10.9.0.3/32 17 53-53, 10.9.0.3/32 6 8000-8100, 10.9.0.3/32 1 0-0, 10.9.0.0/24 17 41445-41445",
		"tv":   "10.9.0.1/32 6 41444-41444, 10.9.0.4/32 0 0-0, 10.9.0.0/24 17 41445-41445",
		"edge": "10.9.0.4/32 0 0-0, 10.9.0.0/24 17 41445-41445, 10.9.0.0/24 6 41443-41443",
	} {
		var got []string
		for _, r := range m.access.rules(m, self) {
			got = append(got, fmt.Sprintf("%s %d %d-%d", r.Source, r.Protocol, r.First, r.Last))
		}
		if strings.Join(got, ", ") != want {
			t.Errorf("%s lets in %s\nwant %s", self, strings.Join(got, ", "), want)
		}
	}
	if got := policyOf(t, "").access.rules(m, "nas"); got != nil {
		t.Errorf("without a list: %v", got)
	}
	if got := policyOf(t, "policy: {allow: []}\n"); got.access.rules(got, "nas") == nil {
		t.Error("an empty list lets everything in")
	}
}

func TestWrongPolicies(t *testing.T) {
	for word, want := range map[string]string{
		"nobody":      "not a node",
		"tag:":        "want tag:NAME",
		"tag:A b":     "want tag:NAME",
		"nas:":        "want NODE",
		"nas:0":       "want NODE",
		"nas:70000":   "want NODE",
		"nas:9-8":     "want NODE",
		"nas:80/sctp": "want NODE",
		"nas:80/icmp": "want NODE",
		"nas:web":     "want NODE",
		"8.8.8.8:53":  "not a node",
		"tag:x:y":     "want NODE",
	} {
		_, err := parseMap("m", []byte(policyMap+fmt.Sprintf("policy:\n  allow:\n    - {from: [\"*\"], to: [%q]}\n", word)))
		if err == nil || !strings.Contains(err.Error(), want) || !strings.Contains(err.Error(), "m:10:") {
			t.Errorf("%s: %v", word, err)
		}
	}
	for name, text := range map[string]string{"a tag": "tags: [\"A b\"]", "a from": ""} {
		text := strings.Replace(policyMap, "tags: [admin]", text, 1)
		if name == "a from" {
			text = policyMap + "policy: {allow: [{from: [nobody], to: [nas]}]}\n"
		}
		if _, err := parseMap("m", []byte(text)); err == nil {
			t.Errorf("%s: taken", name)
		}
	}
}

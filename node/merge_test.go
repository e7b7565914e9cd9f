package node

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
)

// machine is a machine of a source.
func machine(name string, addrs ...string) Machine {
	m := Machine{Name: name, Source: "test"}
	for _, a := range addrs {
		m.Addresses = append(m.Addresses, netip.MustParseAddr(a))
	}
	return m
}

func TestSourcesLoseToTheMap(t *testing.T) {
	const text = `zone: a.internal
ranges: [100.64.0.0/10, "fd00::/48"]
nodes:
  nas: {addresses: [100.64.0.2, "fd00::2"], names: [photos]}
records: |
  printer A 192.168.1.9
  deep.er A 192.168.1.9
`
	tests := []struct {
		name  string
		extra [][]Machine
		want  string // nodes with addresses
		wrong []string
	}{
		{"nothing", nil, "nas=100.64.0.2,fd00::2", nil},
		{"a new machine", [][]Machine{{machine("tv", "100.64.0.9", "fd00::9")}}, "nas=100.64.0.2,fd00::2 tv=100.64.0.9,fd00::9", nil},
		{"what the map says too", [][]Machine{{machine("nas", "100.64.0.2")}}, "nas=100.64.0.2,fd00::2", nil},
		{"another address for a node", [][]Machine{{machine("nas", "100.64.0.9")}}, "nas=100.64.0.2,fd00::2", []string{"name nas: taken already by node nas"}},
		{"a service's name", [][]Machine{{machine("photos", "100.64.0.9")}}, "nas=100.64.0.2,fd00::2", []string{"name photos: taken already by node nas"}},
		{"a record's name", [][]Machine{{machine("printer", "100.64.0.9")}}, "nas=100.64.0.2,fd00::2", []string{"name printer: taken already by a record of the map"}},
		{"part of a record's name", [][]Machine{{machine("er", "100.64.0.9")}}, "er=100.64.0.9 nas=100.64.0.2,fd00::2", nil},
		{"a node's address", [][]Machine{{machine("tv", "100.64.0.2", "100.64.0.9")}}, "nas=100.64.0.2,fd00::2 tv=100.64.0.9", []string{"address 100.64.0.2: of tv belongs already to node nas"}},
		{"no address left", [][]Machine{{machine("tv", "100.64.0.2")}}, "nas=100.64.0.2,fd00::2", []string{"address 100.64.0.2: of tv belongs already to node nas"}},
		{"outside the ranges", [][]Machine{{machine("tv", "8.8.8.8", "100.64.0.9")}}, "nas=100.64.0.2,fd00::2 tv=100.64.0.9", []string{"address 8.8.8.8: of tv is outside the tailnet's ranges"}},
		{"the network's address", [][]Machine{{machine("tv", "fd00::")}}, "nas=100.64.0.2,fd00::2", []string{"address fd00::: of tv is the network address"}},
		{"a name of S12", [][]Machine{{machine("wpad", "100.64.0.9")}}, "nas=100.64.0.2,fd00::2", []string{"name wpad: browsers look for their proxy here"}},
		{"no label", [][]Machine{{machine("a.b", "100.64.0.9"), machine("TV", "100.64.0.8")}}, "nas=100.64.0.2,fd00::2", []string{"name a.b: not a valid label", "name TV: not a valid label"}},
		{"the first source wins", [][]Machine{{machine("tv", "100.64.0.9")}, {machine("tv", "100.64.0.8"), machine("pc", "100.64.0.9")}}, "nas=100.64.0.2,fd00::2 tv=100.64.0.9",
			[]string{"name tv: taken already by node tv", "address 100.64.0.9: of pc belongs already to node tv"}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			static := mustParse(t, text)
			merged, problems := mergeMaps(static, tt.extra...)
			var got []string
			for _, n := range merged.Nodes() {
				got = append(got, n.Name+"="+strings.Trim(strings.ReplaceAll(fmt.Sprint(n.Addresses), " ", ","), "[]"))
			}
			if s := strings.Join(got, " "); s != tt.want {
				t.Errorf("got %s, want %s", s, tt.want)
			}
			if len(problems) != len(tt.wrong) {
				t.Fatalf("problems: got %v, want %q", problems, tt.wrong)
			}
			for i, p := range problems {
				if !strings.HasPrefix(p.Error(), "test: "+tt.wrong[i]) {
					t.Errorf("problem: got %s, want %s", p, tt.wrong[i])
				}
			}
			if len(static.Nodes()) != 1 || len(static.Ranges()) != 2 {
				t.Error("the static map was changed")
			}
		})
	}
}

func TestSourcesGiveNamesAndAddressesOnly(t *testing.T) {
	m := machine("tv", "100.64.0.9")
	m.Key, m.Endpoints, m.Names, m.Wildcard, m.Gateway = key(1), []string{"192.0.2.1:1"}, []string{"bank"}, true, true
	m.Public = []netip.Addr{netip.MustParseAddr("192.0.2.1")}
	merged, _ := mergeMaps(mustParse(t, "zone: a.internal\n"), []Machine{m})
	tv, ok := merged.Node("tv")
	if !ok || tv.Key != "" || tv.Endpoints != nil || tv.Names != nil || tv.Wildcard || tv.Gateway || tv.Public != nil || tv.Source != "test" {
		t.Errorf("got %+v", tv)
	}
	if got := len(merged.Records()); got != 2 {
		t.Errorf("got %d records, want its A and its PTR", got)
	}
}

func TestDefaultRangesGrowWithTheSources(t *testing.T) {
	merged, problems := mergeMaps(mustParse(t, "zone: a.internal\n"), []Machine{machine("a", "fd7a:115c:a1e0::1", "100.64.0.9"), machine("b", "fd7a:115c:a1e0::2", "2001:db8::1")})
	if got := fmt.Sprint(merged.Ranges()); got != "[100.64.0.0/10 fd7a:115c:a1e0::/48]" {
		t.Errorf("got %s", got)
	}
	if len(problems) != 1 || problems[0].Value != "2001:db8::1" {
		t.Errorf("problems: got %v, want the public address", problems)
	}
	// A host alone with drawn ranges takes in what Tailscale knows.
	alone := defaultMap("laptop", "", drawnRanges{V4: netip.MustParsePrefix("10.77.16.0/20"), V6: netip.MustParsePrefix("fd12::/48")})
	merged, problems = mergeMaps(alone, []Machine{machine("nas", "100.64.0.9")})
	if _, ok := merged.Node("nas"); !ok || len(problems) > 0 || !slices.Contains(merged.Ranges(), cgnat()) {
		t.Errorf("got %+v, %v", merged.Ranges(), problems)
	}
	// Ranges that somebody chose stay.
	merged, problems = mergeMaps(mustParse(t, "zone: a.internal\nranges: [10.8.0.0/24]\n"), []Machine{machine("nas", "100.64.0.9")})
	if len(merged.Nodes()) != 0 || len(problems) != 1 || problems[0].Advice == "" {
		t.Errorf("got %+v, %v; want a refusal with a hint", merged.Nodes(), problems)
	}
}

func TestForcedNamesAreForcedForSourcesToo(t *testing.T) {
	merged, problems := mergeMaps(mustParse(t, "zone: a.internal\nforce: [wpad]\n"), []Machine{machine("wpad", "100.64.0.9")})
	if _, ok := merged.Node("wpad"); !ok || len(problems) > 0 {
		t.Errorf("got %v", problems)
	}
}

func TestProblemsOfSourcesAreBounded(t *testing.T) {
	var list []Machine
	for i := range 2 * maxProblems {
		list = append(list, machine(fmt.Sprintf("n%d", i), "8.8.8.8"))
	}
	if _, problems := mergeMaps(mustParse(t, "zone: a.internal\n"), list); len(problems) != maxProblems {
		t.Errorf("got %d, want %d", len(problems), maxProblems)
	}
}

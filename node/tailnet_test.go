package node

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/miekg/dns"
)

func TestSourcesOfARunningNodeAreAnswered(t *testing.T) {
	paths := testPaths(t)
	source := filepath.Join(filepath.Dir(paths.Map), "headscale.json")
	must(t, put(source, `[{"name":"tv","ip_addresses":["100.64.0.9"]},{"name":"nas","ip_addresses":["100.64.0.99"]}]`))
	cfg := testConfig()
	cfg.Sources = []sourceConfig{{Type: "headscale", File: source, Interval: 1_000_000_000}}
	n := startNode(t, cfg, paths)
	answered := func(name, want string) bool {
		return eventually(t, func() bool {
			rcode, got := n.ask(t, name+".foo-bar.ts.net.")
			if want == "" {
				return rcode == dns.RcodeNameError
			}
			return slices.Equal(got, []string{want})
		})
	}
	if !answered("tv", "100.64.0.9") {
		t.Error("tv is not answered")
	}
	if !answered("nas", "100.64.0.2") {
		t.Error("nas is not the map's any more")
	}
	status, err := n.Status(t.Context())
	must(t, err)
	if len(status.Map.Problems) != 1 || !strings.Contains(status.Map.Problems[0], "name nas: taken already by node nas") {
		t.Errorf("problems: got %q, want that nas is taken", status.Map.Problems)
	}
	// It follows the source, keeps the last word of one that fails, and a changed map keeps what sources say.
	must(t, replace(source, `[{"name":"radio","ip_addresses":["100.64.0.9"]}]`))
	if !answered("radio", "100.64.0.9") || !answered("tv", "") {
		t.Error("the source is not followed")
	}
	must(t, os.Remove(source))
	failed := func() bool {
		s, err := n.Status(t.Context())
		return err == nil && s.State == stateDegraded && strings.Contains(fmt.Sprint(s.Map.Problems), "no such file")
	}
	if !eventually(t, failed) {
		t.Error("the source that fails does not show")
	}
	writeTestMap(t, paths, testMap+"  new: {addresses: [100.64.0.10]}\n")
	if !answered("new", "100.64.0.10") || !answered("radio", "100.64.0.9") {
		t.Error("a changed map lost what the source said")
	}
}

func TestMapThatContradictsTheConfigurationIsNotUsed(t *testing.T) {
	cfg := testConfig()
	cfg.DNS.Routes = map[string][]string{"corp.example": {"127.0.0.1:9"}}
	n := startNode(t, cfg, testPaths(t))
	shows := func(text string) bool {
		return eventually(t, func() bool {
			s, err := n.Status(t.Context())
			return err == nil && strings.Contains(strings.Join(s.Map.Problems, "\n"), text) && (text != "" || len(s.Map.Problems) == 0)
		})
	}
	writeTestMap(t, n.paths, strings.ReplaceAll(testMap, "nas:", "san:"))
	if !shows("no node of the map") {
		t.Error("that this machine is not in the map does not show")
	}
	writeTestMap(t, n.paths, strings.Replace(testMap, "foo-bar.ts.net", "corp.example", 1))
	if !shows("would capture the zone corp.example") {
		t.Error("that a route captures the zone does not show")
	}
	if _, got := n.ask(t, "nas.foo-bar.ts.net."); len(got) != 1 {
		t.Errorf("nas: got %v, want the last good map's answer", got)
	}
	writeTestMap(t, n.paths, testMap)
	if !shows("") {
		t.Error("the problem stays after it was mended")
	}
}

func TestNodeDoesNotStartWithABrokenMap(t *testing.T) {
	for name, text := range map[string]string{"broken": "zone: {", "another's": strings.ReplaceAll(testMap, "nas:", "san:"), "empty": ""} {
		t.Run(name, func(t *testing.T) {
			checkGoroutines(t)
			paths := testPaths(t)
			writeTestMap(t, paths, text)
			n, err := New(testConfig(), Options{Paths: paths})
			must(t, err)
			var problems Problems
			if err := n.Run(t.Context()); !errors.As(err, &problems) {
				t.Errorf("got %v, want the map's problems", err)
			}
		})
	}
}

func TestNamedMapHasToExist(t *testing.T) {
	paths := testPaths(t)
	cfg := testConfig()
	cfg.Map = filepath.Join(t.TempDir(), "none.yaml")
	paths.Map = cfg.Map
	n, err := New(cfg, Options{Paths: paths})
	must(t, err)
	if err := n.Run(t.Context()); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("got %v, want ErrNotExist", err)
	}
}

// testTailnet is a tailnet whose users take every map unless fail says why not.
func testTailnet(t *testing.T, fail *error) (*tailnet, *[]*Map) {
	t.Helper()
	used := &[]*Map{}
	tn := &tailnet{extra: map[string][]Machine{}, faults: map[string]string{}}
	tn.use = func(_, m *Map) error {
		if *fail != nil {
			return *fail
		}
		*used = append(*used, m)
		return nil
	}
	return tn, used
}

func TestMapThatCannotBeUsedChangesNothing(t *testing.T) {
	var fail error
	tn, used := testTailnet(t, &fail)
	first := mustParse(t, testMap)
	must(t, tn.set(first))
	fail = errors.New("too large")
	if err := tn.set(mustParse(t, "zone: other.internal\n")); !errors.Is(err, fail) {
		t.Errorf("set: got %v", err)
	}
	if err := tn.add("s", []Machine{machine("tv", "100.64.0.9")}, nil); !errors.Is(err, fail) {
		t.Errorf("add: got %v", err)
	}
	if m, _ := tn.current(); m.Zone() != "foo-bar.ts.net" || tn.static != first || len(*used) != 1 {
		t.Errorf("got %s after %d uses, want the first map", m.Zone(), len(*used))
	}
	if got := tn.problems(); !slices.Equal(got, []string{"too large", "s: too large"}) {
		t.Errorf("problems: got %q", got)
	}
	// What was refused does not come back with the next map.
	fail = nil
	must(t, tn.set(mustParse(t, testMap)))
	m, _ := tn.current()
	if _, ok := m.Node("tv"); ok {
		t.Error("a source's machine that was refused is in the next map")
	}
	if got := tn.problems(); !slices.Equal(got, []string{"s: too large"}) {
		t.Errorf("problems after a good map: got %q, want the source's", got)
	}
	must(t, tn.add("s", []Machine{machine("tv", "100.64.0.9")}, nil))
	if got := tn.problems(); len(got) != 0 {
		t.Errorf("problems once the source is good: got %q", got)
	}
}

func TestOrderOfSourcesDoesNotDependOnTime(t *testing.T) {
	var fail error
	for _, order := range [][]string{{"a", "b"}, {"b", "a"}} {
		tn, _ := testTailnet(t, &fail)
		must(t, tn.set(mustParse(t, testMap)))
		for _, source := range order {
			must(t, tn.add(source, []Machine{machine("tv", map[string]string{"a": "100.64.0.8", "b": "100.64.0.9"}[source])}, nil))
		}
		m, _ := tn.current()
		if tv, _ := m.Node("tv"); tv.Addresses[0].String() != "100.64.0.8" {
			t.Errorf("%v: got %v, want the first source's by name", order, tv.Addresses)
		}
	}
}

func TestFailedSourceKeepsItsWord(t *testing.T) {
	var fail error
	tn, _ := testTailnet(t, &fail)
	must(t, tn.set(mustParse(t, testMap)), tn.add("s", []Machine{machine("tv", "100.64.0.9")}, nil), tn.add("s", nil, errors.New("gone")))
	m, _ := tn.current()
	if _, ok := m.Node("tv"); !ok || !slices.Equal(tn.problems(), []string{"s: gone"}) {
		t.Errorf("got %q", tn.problems())
	}
	must(t, tn.add("s", nil, nil))
	m, _ = tn.current()
	if _, ok := m.Node("tv"); ok || len(tn.problems()) != 0 {
		t.Errorf("got %q, want neither the machine nor the problem", tn.problems())
	}
}

func TestRoutesOfThisMachineWin(t *testing.T) {
	m := mustParse(t, "zone: a.internal\ndns: {routes: {corp.example: [10.0.0.1], lab.example: [10.0.0.2]}}\n")
	got := mergeRoutes(dnsConfig{Routes: map[string][]string{"Corp.Example.": {"10.9.9.9"}, "x.example": {"10.8.8.8"}}}, m)
	want := []routeStatus{
		{"corp.example", []string{"10.9.9.9"}, routeConfig},
		{"lab.example", []string{"10.0.0.2"}, routeMap},
		{"x.example", []string{"10.8.8.8"}, routeConfig},
	}
	if !slices.EqualFunc(got, want, sameRoute) {
		t.Errorf("got %v, want %v", got, want)
	}
}

func TestThisMachineIsFoundInItsMap(t *testing.T) {
	m := mustParse(t, testMap)
	for name, want := range map[string]string{"nas": "nas", "NAS": "nas", "nope": ""} {
		n := &Node{cfg: Config{Node: name}}
		if got := n.findSelf(m); got != want {
			t.Errorf("%s: got %q, want %q", name, got, want)
		}
	}
}

package node

import (
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/meshdns/meshdns/node/control"
	"github.com/meshdns/meshdns/node/tunnel"
)

func TestKeysAreMadeOnce(t *testing.T) {
	dir := t.TempDir()
	first, err := loadSecrets(dir)
	if err != nil {
		t.Fatal(err)
	}
	again, err := loadSecrets(dir)
	if err != nil || again.keys() != first.keys() || first.keys().Key == (control.WireGuardKey{}) {
		t.Errorf("%v, %v, %v", first.keys(), again.keys(), err)
	}
	path := filepath.Join(dir, secretsFile)
	if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("%v, %v", info, err)
	}
	whole, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for name, text := range map[string]string{
		"cut short": string(whole[:len(whole)/2]), "empty": "", "no keys": "{}",
		"a short key": strings.Replace(string(whole), `"control":"`, `"control":"AAAA`, 1),
	} {
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		_, err := loadSecrets(dir)
		if err == nil || hintOf(err) == "" || len(text) > 40 && strings.Contains(err.Error(), text[20:30]) {
			t.Errorf("%s: %v", name, err)
		}
		if left, err := os.ReadFile(path); err != nil || string(left) != text {
			t.Errorf("%s: the file was overwritten", name)
		}
	}
	if s := fmt.Sprintf("%v %+v", first, first); strings.Contains(s, fmt.Sprint(first.wireGuard[0], " ", first.wireGuard[1])) {
		t.Errorf("the keys print themselves: %s", s)
	}
}

// gatewayMap is what a gateway tells of a tailnet with nas and edge.
func gatewayMap(t testing.TB) *control.Map {
	t.Helper()
	m := &control.Map{Zone: "foo-bar.example.org", Ranges: []netip.Prefix{netip.MustParsePrefix("10.9.0.0/20")}, Epoch: 5, Version: 7}
	for i, name := range []string{"edge", "nas"} {
		s, err := newSecrets()
		if err != nil {
			t.Fatal(err)
		}
		m.Nodes = append(m.Nodes, control.Node{
			Name: name, Key: s.keys().Key, Control: s.keys().Control,
			Addresses: []netip.Addr{netip.AddrFrom4([4]byte{10, 9, 0, byte(i + 1)})},
		})
	}
	m.Nodes[0].Gateway = &control.GatewayNode{Public: []netip.Addr{netip.MustParseAddr("203.0.113.5")}}
	m.Nodes[0].Endpoints = []netip.AddrPort{netip.MustParseAddrPort("203.0.113.5:41642")}
	m.Nodes[1].Names = []string{"photos"}
	return m
}

func TestAGatewaysMapIsAMap(t *testing.T) {
	told := gatewayMap(t)
	told.Policy = "policy: {funnel: [nas]}"
	m, err := mapFromGateway(told, believeAll)
	if err != nil {
		t.Fatal(err)
	}
	edge, _ := m.Node("edge")
	photos, _ := m.Node("photos.foo-bar.example.org")
	if m.Version() != 7 || !edge.Gateway || len(edge.Public) != 1 || photos.Name != "nas" || photos.Key != told.Nodes[1].Key.String() ||
		len(edge.Endpoints) != 1 || m.Policy()["funnel"] == nil {
		t.Errorf("%+v %+v", edge, photos)
	}
}

// S4, S12: what a gateway says is checked as what anybody says.
func TestWhatAGatewayMayNotSay(t *testing.T) {
	for name, change := range map[string]func(*control.Map){
		"a public suffix as its zone": func(m *control.Map) { m.Zone = "com" },
		"a name programs look for":    func(m *control.Map) { m.Nodes[1].Name = "wpad" },
		"a service of that kind":      func(m *control.Map) { m.Nodes[1].Names = []string{"isatap"} },
		"a top level with a wildcard": func(m *control.Map) { m.Nodes[1].Name, m.Nodes[1].Wildcard = "com", true },
		"an address outside":          func(m *control.Map) { m.Nodes[1].Addresses[0] = netip.MustParseAddr("8.8.8.8") },
		"loopback":                    func(m *control.Map) { m.Nodes[1].Addresses[0] = netip.MustParseAddr("127.0.0.1") },
		"one address twice":           func(m *control.Map) { m.Nodes[1].Addresses[0] = m.Nodes[0].Addresses[0] },
		"one name twice":              func(m *control.Map) { m.Nodes[1].Names = []string{"edge"} },
		"a name of two labels":        func(m *control.Map) { m.Nodes[1].Name = "www.bank" },
		"a line break":                func(m *control.Map) { m.Nodes[1].Name = "a\nb" },
		"routes by the policy's text": func(m *control.Map) { m.Policy = "dns: {routes: {bank.example: [192.0.2.1]}}" },
		"a policy that is none":       func(m *control.Map) { m.Policy = "policy: [" },
	} {
		told := gatewayMap(t)
		change(told)
		if m, err := mapFromGateway(told, believeAll); err == nil {
			t.Errorf("%s: taken: %+v", name, m.Nodes())
		}
	}
}

// S3: a node whose keys are not believed keeps its name and is no peer.
func TestANodeWithOtherKeysIsNoPeer(t *testing.T) {
	told := gatewayMap(t)
	pins := control.Pins{"nas": {Key: told.Nodes[0].Key, Control: told.Nodes[0].Control}}
	doubts := beliefs{pins: pins}.judge(told)
	m, err := mapFromGateway(told, believed(doubts))
	if err != nil {
		t.Fatal(err)
	}
	if nas, ok := m.Node("nas"); !ok || nas.Key != "" || len(nas.Addresses) != 1 {
		t.Errorf("%+v", nas)
	}
	if got := peersOf(m, ""); len(got) != 1 || got[0].Key.String() != told.Nodes[0].Key.String() || got[0].Endpoint.String() != "203.0.113.5:41642" {
		t.Errorf("%+v", got)
	}
	if list := doubtLines(doubts); len(list) != 1 || !strings.Contains(list[0], "nas") {
		t.Errorf("%q", list)
	}
}

func TestAMembershipIsKept(t *testing.T) {
	dir := t.TempDir()
	if m, err := loadMembership(dir); m != nil || err != nil {
		t.Fatal(m, err)
	}
	told := gatewayMap(t)
	m := &membership{Node: "nas", Map: told, Pins: control.Pins{}, Gateways: []gatewayContact{{Key: told.Nodes[0].Key, Server: told.Nodes[0].Addresses[0]}}}
	if _, err := mapFromGateway(told, func(n control.Node) error { return m.Pins.Check(told.Zone, n, nil) }); err != nil {
		t.Fatal(err)
	}
	if err := m.save(dir); err != nil {
		t.Fatal(err)
	}
	again, err := loadMembership(dir)
	if err != nil || again.Node != "nas" || len(again.Pins) != 2 || again.Map.Version != 7 || again.Gateways[0].Carrier.IsValid() {
		t.Errorf("%+v, %v", again, err)
	}
	if err := os.WriteFile(filepath.Join(dir, membershipFile), []byte("{}"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := loadMembership(dir); err == nil || hintOf(err) == "" {
		t.Errorf("a damaged one: %v", err)
	}
}

func TestATunnelOfTheMapsKeys(t *testing.T) {
	own, other := tunnel.NewSecret().Public(), tunnel.NewSecret().Public()
	text := "zone: foo-bar.ts.net\nranges: [10.9.0.0/24]\nnodes:\n  nas: {addresses: [10.9.0.2], key: %s}\n  edge: {addresses: [10.9.0.1]}\n"
	m, err := parseMap("m", fmt.Appendf(nil, text, own))
	if err != nil {
		t.Fatal(err)
	}
	for name, tt := range map[string]struct {
		mode, self string
		own        tunnel.Key
		wanted     bool
		problem    bool
	}{
		"its key":        {"auto", "nas", own, true, false},
		"another's key":  {"auto", "nas", other, false, true},
		"no key":         {"auto", "edge", own, false, false},
		"not in the map": {"auto", "", own, false, false},
		"off":            {"off", "nas", own, false, false},
	} {
		if wanted, problem := tunnelWanted(tt.mode, m, tt.self, tt.own); wanted != tt.wanted || (problem != "") != tt.problem {
			t.Errorf("%s: %t, %q", name, wanted, problem)
		}
	}
}

// Two nodes with one static map reach each other, without root and without a gateway.
func TestNodesOfAStaticMapSpeak(t *testing.T) {
	dirs := map[string]Paths{"nas": testPaths(t), "edge": testPaths(t)}
	var text strings.Builder
	text.WriteString("zone: foo-bar.ts.net\nranges: [10.9.0.0/24]\nnodes:\n")
	for i, name := range []string{"nas", "edge"} {
		s, err := loadSecrets(dirs[name].State)
		if err != nil {
			t.Fatal(err)
		}
		text.WriteString(fmt.Sprintf("  %s:\n    addresses: [10.9.0.%d]\n    key: %s\n", name, i+1, s.keys().Key))
	}
	start := func(name, text string) *testNode {
		writeTestMap(t, dirs[name], text)
		cfg := testConfig()
		cfg.Node, cfg.Tunnel = name, tunnelConfig{Mode: "userspace"}
		return startNode(t, cfg, dirs[name])
	}
	nas := start("nas", text.String())
	port, err := nas.node.carrier.tunnel.Port()
	if err != nil {
		t.Fatal(err)
	}
	edge := start("edge", strings.Replace(text.String(), "addresses: [10.9.0.1]", fmt.Sprintf("addresses: [10.9.0.1]\n    endpoints: [\"127.0.0.1:%d\"]", port), 1))
	ln, err := nas.node.carrier.tunnel.Listen(t.Context(), "tcp", netip.MustParseAddrPort("10.9.0.1:7"))
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	go func() {
		if c, err := ln.Accept(); err == nil {
			_, _ = io.WriteString(c, "hello")
			c.Close()
		}
	}()
	c, err := edge.node.carrier.tunnel.Dial(t.Context(), "tcp", netip.MustParseAddrPort("10.9.0.1:7"))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if data, err := io.ReadAll(c); err != nil || string(data) != "hello" {
		t.Errorf("%q, %v", data, err)
	}
	if !nas.said("tunnel userspace") || nas.ready.State != stateOK {
		t.Errorf("%q, %+v", nas.lines, nas.ready.Problems)
	}
}

// A tunnel that cannot be had costs no name.
func TestNamesGoOnWithoutATunnel(t *testing.T) {
	paths := testPaths(t)
	writeTestMap(t, paths, strings.Replace(testMap, "addresses: [100.64.0.2]", "addresses: [100.64.0.2]\n    key: "+tunnel.NewSecret().Public().String(), 1))
	n := startNode(t, testConfig(), paths)
	if n.ready.State != stateDegraded || !strings.Contains(strings.Join(n.ready.Problems, " "), "another key") {
		t.Errorf("%+v", n.ready.Problems)
	}
	if _, got := n.ask(t, "photos.foo-bar.ts.net."); len(got) != 1 {
		t.Errorf("photos: %v", got)
	}
	if _, err := net.Dial("tcp", n.ready.DNS.Stub); err != nil && !errors.Is(err, net.ErrClosed) {
		t.Error(err)
	}
}

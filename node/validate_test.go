package node

import (
	"net/netip"
	"os"
	"slices"
	"strings"
	"testing"
	"time"
)

func TestConfigValuesAreChecked(t *testing.T) {
	tests := []struct{ name, text, want, hint string }{
		{"node with dots", "node: a.b", "line 1:7: node a.b: one label is wanted, without dots", ""},
		{"zone that is public", "zone: co.uk", "line 1:7: zone co.uk: a public suffix: its names belong to many owners", "take a name below it, such as my-net.co.uk, or mesh.internal"},
		{"unknown mode", "dns: {os: resolve}", "line 1:11: dns.os resolve: want auto, off, direct, resolved, networkmanager, resolvconf, openresolv, resolvd, scutil or nrpt", "did you mean resolved?"},
		{"unknown takeover", "dns: {takeover: none}", "line 1:17: dns.takeover none: want split or all", ""},
		{"multicast listener", "dns: {listen: [224.0.0.251]}", `line 1:16: dns.listen[0] "224.0.0.251:53": a multicast address, which cannot be listened on`, ""},
		{"route of everything", "dns: {routes: {.: [9.9.9.9]}}", "line 1:19: route .: is every name", "list servers for every name under dns.upstreams"},
		{"route without upstreams", "dns: {routes: {corp.example: []}}", "line 1:30: dns.routes.corp.example: has no upstreams", ""},
		{"route that is no name", "dns: {routes: {co rp: [9.9.9.9]}}", `line 1:23: route "co rp": not a valid name: label "co rp": only letters, digits and hyphens`, ""},
		{"no such exception", "dns: {rebind: {allow: [a..b]}}", "line 1:24: dns.rebind.allow[0] a..b: not a valid name: an empty label", ""},
		{"cache too small", "dns: {cache: 1KiB}", "line 1:14: dns.cache 1KiB: want 64KiB to 16GiB", ""},
		{"cache too large", "dns: {cache: 17GiB}", "line 1:14: dns.cache 17GiB: want 64KiB to 16GiB", ""},
		{"a proxy for everybody", "tunnel: {proxy: \"0.0.0.0:1055\"}", "line 1:17: tunnel.proxy \"0.0.0.0:1055\": want a loopback address and a port, or off", "write 127.0.0.1:1055"},
		{"unknown tunnel", "tunnel: {mode: tap}", "line 1:16: tunnel.mode tap: want auto, kernel, tun, userspace or off", "did you mean tun?"},
		{"CA by http", "certs: {ca: \"http://ca.example\"}", `line 1:13: certs.ca "http://ca.example": want letsencrypt, letsencrypt-staging, zerossl, google, google-staging, local or the https URL of an ACME directory`, ""},
		{"no mail address", "certs: {email: me}", "line 1:16: certs.email me: not a mail address", ""},
		{"a CA twice", "certs: {ca: [local, local]}", "line 1:21: certs.ca[1] local: named twice", ""},
		{"no kind of key", "certs: {key: rsa}", "line 1:14: certs.key rsa: want p256, p384, rsa2048 or rsa4096", ""},
		{"account of another CA", "certs: {accounts: [{ca: zerossl, id: a, key_file: b}]}", "line 1:25: certs.accounts[0].ca zerossl: not a CA of certs.ca", ""},
		{"account without a key", "certs: {accounts: [{ca: letsencrypt, id: a}]}", "line 1:20: certs.accounts[0]: wants id: and key_file:", ""},
		{"deploy to no place", "certs: {deploy: [{name: nas}]}", "line 1:18: certs.deploy[0]: a target names no file and nothing to run", ""},
		{"deploy to a relative path", "certs: {deploy: [{cert: x.pem}]}", `line 1:18: certs.deploy[0]: "x.pem" is no absolute path`, ""},
		{"deploy with an odd mode", "certs: {deploy: [{cert: /x.pem, mode: rw}]}", `line 1:18: certs.deploy[0]: mode "rw": want octal digits such as 0640`, ""},
		{"deploy with an option for a unit", "certs: {deploy: [{unit: --now}]}", "line 1:18: certs.deploy[0]: \"--now\" is no systemd unit\nline 1:25: certs.deploy[0].unit --now: commands are run only from a file that root owns and nobody else can write", "chown root and chmod go-w the configuration"},
		{"deploy by a command from a stranger", "certs: {deploy: [{cert: /x.pem, command: [/bin/true]}]}", "line 1:42: certs.deploy[0].command /bin/true: commands are run only from a file that root owns and nobody else can write", "chown root and chmod go-w the configuration"},
		{"deploy by a unit from a stranger", "certs: {deploy: [{cert: /x.pem, unit: nginx}]}", "line 1:39: certs.deploy[0].unit nginx: commands are run only from a file that root owns and nobody else can write", "chown root and chmod go-w the configuration"},
		{"metrics without a port", "metrics: 127.0.0.1", "line 1:10: metrics 127.0.0.1: want ADDRESS:PORT", ""},
		{"metrics on port 0", "metrics: \":0\"", `line 1:10: metrics ":0": want a port from 1 to 65535`, ""},
		{"metrics at no name", "metrics: \"a_b:80\"", `line 1:10: metrics "a_b:80": not a valid name: label a_b: only letters, digits and hyphens`, ""},
		{"gateway without a zone", "gateway: {public: [192.0.2.1]}", "gateway.zone: missing", "a gateway serves a zone of yours, such as mesh.example.org"},
		{"gateway without an address", "gateway: {zone: mesh.example.org}", "gateway.public: missing", "list the public addresses that nodes and visitors reach this machine at"},
		{"gateway at a wildcard", "gateway: {zone: mesh.example.org, public: [192.0.2.1], listen: [0.0.0.0]}", "line 1:65: gateway.listen[0] 0.0.0.0: not the address of one machine", "leave it empty for the addresses of the default route's link"},
		{"gateway at loopback", "gateway: {zone: mesh.example.org, public: [127.0.0.1]}", "line 1:44: gateway.public[0] 127.0.0.1: an address that this machine alone reaches", "a gateway for this machine alone has a loopback address in gateway.listen too"},
		{"gateway partly at loopback", "gateway: {zone: mesh.example.org, public: [127.0.0.1], listen: [127.0.0.1, 192.0.2.1]}", "line 1:44: gateway.public[0] 127.0.0.1: an address that this machine alone reaches", "a gateway for this machine alone has a loopback address in gateway.listen too"},
		{"gateway at no address", "gateway: {zone: mesh.example.org, public: [\"ff02::1\"]}", "line 1:44: gateway.public[0] ff02::1: not the address of one machine", ""},
		{"fallback of another kind", "gateway: {zone: mesh.example.org, public: [192.0.2.1], fallback: \"http://a\"}", `line 1:66: gateway.fallback "http://a": want tcp://HOST:PORT`, ""},
		{"source of no type", "sources: [{file: x}]", "sources[0].type: want tailscale, netbird, headscale, wg-quick or wireguard", ""},
		{"source of two places", "sources: [{type: netbird, file: x, command: [y]}]", "line 1:11: sources[0]: want one of file: and command:", ""},
		{"source of no place", "sources: [{type: netbird}]", "line 1:11: sources[0]: want one of file: and command:", ""},
		{"source too often", "sources: [{type: netbird, file: x, interval: 10ms}]", "line 1:46: sources[0].interval 10ms: want 1s to 24h", ""},
		{"wg-quick by interface", "sources: [{type: wg-quick, interface: wg0}]", "line 1:11: sources[0]: type wg-quick wants file:, and nothing besides", ""},
		{"interface of another type", "sources: [{type: netbird, interface: wg0}]", "line 1:38: sources[0].interface wg0: only for type wireguard", ""},
		{"interface that is a path", "sources: [{type: wireguard, interface: ../x}]", "line 1:40: sources[0].interface ../x: not the name of an interface", ""},
		{"command that is empty", "sources: [{type: netbird, command: [\"\"]}]", "line 1:36: sources[0].command: names no program", ""},
		{"command from a stranger", "sources: [{type: netbird, command: [netbird]}]", "line 1:36: sources[0].command netbird: commands are run only from a file that root owns and nobody else can write", "chown root and chmod go-w the configuration, or use file:"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			c := loadText(t, tt.text)
			err := c.Validate()
			if err == nil || err.Error() != tt.want || hintOf(err) != tt.hint {
				t.Errorf("got\n%v (hint %q)\nwant\n%s (hint %q)", err, hintOf(err), tt.want, tt.hint)
			}
		})
	}
}

func TestEveryWrongValueIsToldAtOnce(t *testing.T) {
	c := loadText(t, "node: -x\ndns:\n  os: x\n  takeover: y\nmetrics: z\n")
	err := c.Validate()
	if got := strings.Count(err.Error(), "\n") + 1; got != 4 {
		t.Errorf("got %d problems, want 4:\n%v", got, err)
	}
}

func TestGoodConfigsAreValid(t *testing.T) {
	for name, text := range map[string]string{
		"empty": "",
		"all":   "node: Büro\nzone: foo-bar.ts.net\nmetrics: \"[::1]:9153\"\ncerts: {ca: \"https://ca.example/dir\", email: a@b}\n",
		"files": "sources: [{type: netbird, file: x}, {type: wg-quick, file: y, interval: 1h}, {type: wireguard, interface: wg0.5}]\n",
		"home":  "zone: home.arpa\n",
		"gw":    "gateway: {zone: mesh.example.org, public: [203.0.113.5], fallback: \"tcp://web.example:443\"}\n",
	} {
		t.Run(name, func(t *testing.T) {
			c := loadText(t, text)
			if err := c.Validate(); err != nil {
				t.Error(err)
			}
		})
	}
}

func TestManyAreTooMany(t *testing.T) {
	c := DefaultConfig()
	for range maxUpstreams + 1 {
		c.DNS.Upstreams = append(c.DNS.Upstreams, "9.9.9.9")
	}
	if err := c.Validate(); err == nil || !strings.Contains(err.Error(), "more than 16 upstreams") {
		t.Errorf("got %v", err)
	}
}

func TestConfigHasToGoWithTheMap(t *testing.T) {
	m := mustParse(t, testMap)
	tests := []struct{ name, text, want string }{
		{"its node", "node: NAS", ""},
		{"another node", "node: nope", "line 1:7: node nope: no node of the map map.yaml"},
		{"a service is no node", "node: photos", "line 1:7: node photos: no node of the map map.yaml"},
		{"a route beside the zone", "dns: {routes: {ts.net: [9.9.9.9]}}", ""},
		{"a route of the zone", "dns: {routes: {Foo-Bar.ts.net.: [9.9.9.9]}}", "would capture the zone foo-bar.ts.net, which is never forwarded"},
		{"a route below it", "dns: {routes: {x.foo-bar.ts.net: [9.9.9.9]}}", "line 1:34: route x.foo-bar.ts.net: would capture the zone foo-bar.ts.net, which is never forwarded"},
		{"a route of its addresses", "dns: {routes: {64.100.in-addr.arpa: [9.9.9.9]}}", "would capture the reverse zone of 100.64.0.0/10, which is never forwarded"},
		{"a route around its addresses", "dns: {routes: {100.in-addr.arpa: [9.9.9.9]}}", ""},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			c := loadText(t, tt.text)
			err := c.ValidateWith(m)
			if tt.want == "" && err != nil || tt.want != "" && (err == nil || !strings.Contains(err.Error(), tt.want)) {
				t.Errorf("got %v, want %q", err, tt.want)
			}
		})
	}
}

// env is a lookup of variables in a map.
func env(vars map[string]string) func(string) (string, bool) {
	return func(name string) (string, bool) { v, ok := vars[name]; return v, ok }
}

func TestEnvironmentOverridesTheFile(t *testing.T) {
	c := loadText(t, "node: file\ndns: {os: direct, upstreams: [9.9.9.9], listen: [192.0.2.1]}\n")
	err := c.ApplyEnv(env(map[string]string{
		"MESHDNS_NODE":               "env",
		"MESHDNS_DNS_OS":             "", // as good as unset
		"MESHDNS_DNS_UPSTREAMS":      "1.1.1.1, tls://8.8.8.8#dns.google",
		"MESHDNS_DNS_LISTEN":         "[192.0.2.2, \"[::1]:5353\"]",
		"MESHDNS_DNS_ROUTES":         "{corp.example: [10.0.0.53], lab: 10.0.0.54}",
		"MESHDNS_DNS_SEARCH":         "false",
		"MESHDNS_DNS_CACHE":          "1MiB",
		"MESHDNS_DNS_STUB":           "127.0.0.2",
		"MESHDNS_TUNNEL_PORT":        "1",
		"MESHDNS_DNS_REBIND_PRIVATE": "yes",
		"MESHDNS_SOURCES":            "[{type: netbird, command: [evil]}]",
	}))
	if err != nil {
		t.Fatal(err)
	}
	if c.Node != "env" || c.DNS.OS != "direct" || c.DNS.Search || c.DNS.Cache != 1<<20 || c.Tunnel.Port != 1 || !c.DNS.Rebind.Private {
		t.Errorf("got %+v", c)
	}
	if got := strings.Join(c.DNS.Upstreams, " "); got != "1.1.1.1 tls://8.8.8.8#dns.google" {
		t.Errorf("upstreams: got %s", got)
	}
	if len(c.DNS.Listen) != 2 || c.DNS.Listen[0] != netip.MustParseAddrPort("192.0.2.2:53") {
		t.Errorf("listen: got %v", c.DNS.Listen)
	}
	if len(c.DNS.Routes) != 2 || c.DNS.Routes["lab"][0] != "10.0.0.54" {
		t.Errorf("routes: got %v", c.DNS.Routes)
	}
	if c.DNS.Stub.Port() != 53 || len(c.Sources) != 0 {
		t.Errorf("got stub %v and sources %v; commands never come from the environment", c.DNS.Stub, c.Sources)
	}
}

func TestWrongVariablesAreNamed(t *testing.T) {
	c := DefaultConfig()
	err := c.ApplyEnv(env(map[string]string{
		"MESHDNS_DNS_STUB": "here", "MESHDNS_DNS_ROUTES": "{", "MESHDNS_TUNNEL_PORT": "x", "MESHDNS_GATEWAY_PUBLIC": "192.0.2.1,y",
	}))
	for _, want := range []string{
		"MESHDNS_DNS_STUB: dns.stub here: want an IP address, and a port if it is not 53",
		"MESHDNS_DNS_ROUTES: the file ends here",
		"MESHDNS_TUNNEL_PORT: tunnel.port x: want a number from 0 to 65535",
		"MESHDNS_GATEWAY_PUBLIC: gateway.public[1] y: want an IP address",
	} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("got\n%v\nwant %s", err, want)
		}
	}
	c = DefaultConfig()
	if err := c.ApplyEnv(env(map[string]string{"MESHDNS_DNS_OS": "maybe"})); err != nil {
		t.Fatal(err)
	}
	if err := c.Validate(); err == nil || !strings.HasPrefix(err.Error(), "MESHDNS_DNS_OS: dns.os maybe: want auto") {
		t.Errorf("a value without sense: got %v, want the variable named", err)
	}
}

func TestSettingsSayWhereTheyComeFrom(t *testing.T) {
	c := loadText(t, "node: file\ndns:\n  os: off\n  listen: [192.0.2.1]\n")
	if err := c.ApplyEnv(env(map[string]string{"MESHDNS_METRICS": "127.0.0.1:1"})); err != nil {
		t.Fatal(err)
	}
	c.DNS.Listen = []netip.AddrPort{netip.MustParseAddrPort("192.0.2.2:53")}
	c.Override("dns.listen", "--listen")
	want := map[string]Setting{
		"node":       {"node", "file", "m.yaml:1"},
		"dns.os":     {"dns.os", `"off"`, "m.yaml:3"},
		"dns.listen": {"dns.listen", `["192.0.2.2:53"]`, "--listen"},
		"metrics":    {"metrics", `"127.0.0.1:1"`, "MESHDNS_METRICS"},
		"dns.cache":  {"dns.cache", `"8MiB"`, "default"},
		"map":        {"map", `""`, "default"},
	}
	for _, s := range c.Settings("m.yaml") {
		if w, ok := want[s.Path]; ok && s != w {
			t.Errorf("got %+v, want %+v", s, w)
		}
		delete(want, s.Path)
	}
	if len(want) > 0 {
		t.Errorf("not among the settings: %v", want)
	}
}

func TestFlagsAreNamedByMessages(t *testing.T) {
	c := loadText(t, "dns: {listen: [192.0.2.1]}\n")
	c.DNS.Listen = []netip.AddrPort{netip.MustParseAddrPort("224.0.0.1:53")}
	c.Override("dns.listen", "--listen")
	if err := c.Validate(); err == nil || !strings.HasPrefix(err.Error(), `--listen: dns.listen "224.0.0.1:53": a multicast`) {
		t.Errorf("got %v, want the flag named", err)
	}
}

func TestDescribeHasAVariableForAllButCommands(t *testing.T) {
	seen := map[string]bool{}
	for _, k := range Describe() {
		if seen[k.Path] {
			t.Errorf("%s stands twice", k.Path)
		}
		seen[k.Path] = true
		if (k.Env == "") != slices.Contains([]string{"serve", "sources", "certs.accounts", "certs.deploy"}, k.Path) {
			t.Errorf("%s has the variable %q", k.Path, k.Env)
		}
	}
	for path, want := range map[string]Key{
		"dns.routes":  {Type: "mapping of text to list of text", Default: "{}", Env: "MESHDNS_DNS_ROUTES"},
		"dns.listen":  {Type: "list of address:port", Default: "[]", Env: "MESHDNS_DNS_LISTEN"},
		"tunnel.port": {Type: "number", Default: "41642", Env: "MESHDNS_TUNNEL_PORT"},
		"dns.cache":   {Type: "size", Default: `"8MiB"`, Env: "MESHDNS_DNS_CACHE"},
	} {
		if !seen[path] {
			t.Errorf("%s is missing", path)
		}
		for _, k := range Describe() {
			if k.Path == path && (k.Type != want.Type || k.Default != want.Default || k.Env != want.Env) {
				t.Errorf("got %+v, want %+v", k, want)
			}
		}
	}
}

func TestProblemsNameWhatIsKnown(t *testing.T) {
	tests := []struct {
		p    Problem
		want string
	}{
		{Problem{Msg: "wrong"}, "wrong"},
		{Problem{File: "f", Msg: "wrong"}, "f: wrong"},
		{Problem{File: "f", Line: 3, Msg: "wrong"}, "f:3: wrong"},
		{Problem{File: "f", Line: 3, Column: 4, Field: "zone", Value: "x", Msg: "wrong"}, "f:3:4: zone x: wrong"},
		{Problem{Line: 3, Column: 4, Value: "a b", Msg: "wrong"}, `line 3:4: "a b": wrong`},
		{Problem{Field: "address", Value: "fd00::1", Msg: "wrong"}, "address fd00::1: wrong"},
		{Problem{Value: "a\x1b[31m", Msg: "wrong"}, `"a\x1b[31m": wrong`},
		{Problem{Value: "a: b", Msg: "wrong"}, `"a: b": wrong`},
		{Problem{Value: strings.Repeat("é", 50), Msg: "wrong"}, `"` + strings.Repeat("é", 40) + `"…: wrong`},
	}
	for _, tt := range tests {
		if got := tt.p.Error(); got != tt.want {
			t.Errorf("got %q, want %q", got, tt.want)
		}
	}
}

func TestFilesAreCheckedTogether(t *testing.T) {
	config := writeFileT(t, "a.yaml", "node: nope\ndns: {os: of, routes: {x.foo-bar.ts.net: [9.9.9.9]}, serch: true, cache: x, listen: [x]}\n")
	good := writeFileT(t, "b.yaml", testMap)
	bad := writeFileT(t, "c.yaml", "zone: foo-bar.ts.net\nnodes: {nas: {addresses: [x, y]}}\n")
	missing := "/nonexistent/map.yaml"
	checks := CheckFiles(config, good, bad, missing)
	want := []struct {
		kind     string
		problems []string
	}{
		{"config", []string{
			config + ":1:7: node nope: no node of the map " + good,
			config + ":2:11: dns.os of: want auto",
			config + ":2:42: route x.foo-bar.ts.net: would capture the zone",
			config + ":2:54: key dns.serch: unknown",
			config + ":2:74: dns.cache x: want a size",
			config + ":2:86: dns.listen[0] x: want an IP address",
		}},
		{"map", nil},
		{"map", []string{bad + ":2:27: address x: not an IP", bad + ":2:30: address y: not an IP"}},
		{"map", []string{"reading /nonexistent/map.yaml: no such file or directory"}},
	}
	for i, c := range checks {
		if c.Kind != want[i].kind || len(c.Problems) != len(want[i].problems) {
			t.Errorf("%s: got %s with %v, want %s with %d problems", c.File, c.Kind, c.Problems, want[i].kind, len(want[i].problems))
			continue
		}
		for j, p := range c.Problems {
			if !strings.HasPrefix(p.Error(), want[i].problems[j]) {
				t.Errorf("got %s, want %s", p, want[i].problems[j])
			}
		}
	}
}

func TestKindOfAFileIsToldByItsKeys(t *testing.T) {
	tests := []struct{ name, file, text, want string }{
		{"a map", "x.yaml", "zone: a.b\nnodes: {}\n", "map"},
		{"a configuration", "map.yaml", "node: a\nmap: b\n", "config"},
		{"empty", "x.yaml", "", "config"},
		{"empty with a name", "map.yaml", "", "map"},
		{"either, by name", "the-Map.yaml", "zone: a.b\n", "map"},
		{"either", "x.yaml", "zone: a.b\n", "config"},
		{"either, by what it holds", "x.yaml", "zone: a.internal\ndns: {search: [b.c]}\n", "map"},
		{"broken", "x.yaml", "zone: a.b\nnodes:\n  - [\n", "map"},
		{"no keys", "x.yaml", "[a, b]", "config"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if got := kindOf(tt.file, []byte(tt.text)); got != tt.want {
				t.Errorf("got %s, want %s", got, tt.want)
			}
		})
	}
}

func TestUnreadableFileIsAProblem(t *testing.T) {
	for _, path := range []string{os.DevNull, t.TempDir()} {
		checks := CheckFiles(path)
		if len(checks[0].Problems) != 1 || !strings.Contains(checks[0].Problems[0].Msg, "not a regular file") {
			t.Errorf("%s: got %+v", path, checks[0])
		}
	}
}

func TestCheckingATrustedCommandIsNoProblem(t *testing.T) {
	path := writeFileT(t, "a.yaml", "sources: [{type: netbird, command: [netbird, status, --json], interval: 2s}]\n")
	if checks := CheckFiles(path); len(checks[0].Problems) > 0 {
		t.Errorf("got %v", checks[0].Problems)
	}
	c, err := LoadConfigFile(path)
	if err != nil {
		t.Fatal(err)
	}
	sources, err := newSources(c, nil)
	if err != nil || len(sources) != 1 || sources[0].(*polled).interval != 2*time.Second || sources[0].String() != "netbird (netbird)" {
		t.Errorf("got %v, %v", sources, err)
	}
}

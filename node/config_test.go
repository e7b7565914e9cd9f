package node

import (
	"errors"
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"
)

// loadText is LoadConfig of a text.
func loadText(t *testing.T, text string) Config {
	t.Helper()
	c, err := LoadConfig(strings.NewReader(text))
	if err != nil {
		t.Fatalf("LoadConfig: %v", err)
	}
	return c
}

func TestConfigIsTheDefaultsUnlessTheFileSpeaks(t *testing.T) {
	for name, text := range map[string]string{"empty": "", "a comment": "# nothing\n", "null": "null", "a document's borders": "---\n...\n"} {
		t.Run(name, func(t *testing.T) {
			c := loadText(t, text)
			c.where = nil
			if want := DefaultConfig(); !reflect.DeepEqual(c, want) {
				t.Errorf("got %+v, want %+v", c, want)
			}
		})
	}
	if c := loadText(t, "dns:\n  upstreams: [9.9.9.9]\n"); c.DNS.OS != "auto" || c.DNS.Cache != 8<<20 || !c.DNS.Search || len(c.DNS.Upstreams) != 1 {
		t.Errorf("beside one given key: got %+v, want the other defaults", c.DNS)
	}
}

func TestConfigTakesEveryKeyOfTheDesign(t *testing.T) {
	c := loadText(t, `
node: nas
map: /etc/meshdns/map.yaml
dns:
  os: auto                           # auto | off | a mode
  takeover: all
  listen: [192.0.2.1, "[2001:db8::1]:5353"]
  upstreams: []
  routes:
    corp.example: [10.0.0.53]
    lab.example: ["tls://10.9.0.1#dns.lab"]
  rebind: {private: yes, allow: [plex.direct]}
  search: off
  cache: 1 MiB
tunnel: off
certs: {ca: local, email: "me@example.org"}
metrics: "127.0.0.1:9153"
gateway:
  zone: mesh.example.org
  public: [203.0.113.5]
  listen: []
  fallback: "tcp://127.0.0.1:8443"
sources:
  - type: tailscale
    command: [tailscale, status, --json]
    interval: 1m
  - {type: wireguard, interface: wg0}
`)
	if c.Node != "nas" || c.Map != "/etc/meshdns/map.yaml" || c.DNS.Takeover != "all" || c.DNS.Search || c.DNS.Cache != 1<<20 {
		t.Errorf("got %+v", c)
	}
	listen := []netip.AddrPort{netip.MustParseAddrPort("192.0.2.1:53"), netip.MustParseAddrPort("[2001:db8::1]:5353")}
	if !reflect.DeepEqual(c.DNS.Listen, listen) {
		t.Errorf("listen: got %v, want %v", c.DNS.Listen, listen)
	}
	if c.Tunnel != (tunnelConfig{Mode: "off", Port: 41642, Proxy: "127.0.0.1:1055"}) {
		t.Errorf("tunnel: off: got %+v, want mode off and the default port", c.Tunnel)
	}
	if !c.DNS.Rebind.Private || len(c.DNS.Rebind.Allow) != 1 || c.DNS.Routes["lab.example"][0] != "tls://10.9.0.1#dns.lab" {
		t.Errorf("dns: got %+v", c.DNS)
	}
	if len(c.Sources) != 2 || c.Sources[0].Interval != time.Minute || len(c.Sources[0].Command) != 3 || c.Sources[1].Interface != "wg0" {
		t.Errorf("sources: got %+v", c.Sources)
	}
}

func TestConfigFindsEveryProblemAtOnceWithItsPlace(t *testing.T) {
	tests := []struct{ name, text, want string }{
		{"an unknown key", "nodes: nas", "line 1:1: key nodes: unknown; did you mean node?"},
		{"nothing like it", "frobnicate: 1", "line 1:1: key frobnicate: unknown"},
		{"an unknown key further in", "dns:\n  upstream: []\n", "line 2:3: key dns.upstream: unknown; did you mean upstreams?"},
		{"in a list of blocks", "sources:\n  - typ: netbird\n", "line 2:5: key sources[0].typ: unknown; did you mean type?"},
		{"a key given twice", "node: a\nnode: b\n", "line 2:1: key node: given twice, first in line 1"},
		{"a list for a word", "node: [a]", "line 1:7: node: want a value, not a list"},
		{"a word for a block", "dns: off", "line 1:6: dns off: want a mapping, not a value"},
		{"a block for a list", "dns: {upstreams: {a: b}}", "line 1:18: dns.upstreams: want a list, not a mapping"},
		{"a hole in a list", "dns: {upstreams: [9.9.9.9, null]}", "line 1:28: dns.upstreams[1] null: empty"},
		{"no address", "dns: {stub: here}", "line 1:13: dns.stub here: want an IP address, and a port if it is not 53"},
		{"no port", "tunnel: {port: 65536}", "line 1:16: tunnel.port 65536: want a number from 0 to 65535"},
		{"no time", "sources: [{interval: 5}]", "line 1:22: sources[0].interval 5: want a time such as 30s or 5m"},
		{"no size", "dns: {cache: -1}", "line 1:14: dns.cache -1: want a size such as 8MiB"},
		{"a size that overflows", "dns: {cache: 9999999999GiB}", "line 1:14: dns.cache 9999999999GiB: want a size such as 8MiB"},
		{"neither true nor false", "dns: {search: maybe}", "line 1:15: dns.search maybe: want true or false"},
		{"three at once", "nod: a\ndns: {serch: b}\nmetrics: []\n",
			"line 1:1: key nod: unknown; did you mean node?\nline 2:7: key dns.serch: unknown; did you mean search?\nline 3:10: metrics: want a value, not a list"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			_, err := LoadConfig(strings.NewReader(tt.text))
			var problems Problems
			if !errors.As(err, &problems) || err.Error() != tt.want {
				t.Errorf("got\n%v\nwant\n%s", err, tt.want)
			}
		})
	}
}

func TestConfigNamesTheKeysWhereNoneIsNear(t *testing.T) {
	_, err := LoadConfig(strings.NewReader("certs: {frobnicate: 1}"))
	if got, want := hintOf(err), "keys here: ca, email, root, profile, key, writer, settings_file, command, resolvers, accounts, deploy"; got != want {
		t.Errorf("hint: got %q, want %q", got, want)
	}
}

func TestConfigIsBounded(t *testing.T) {
	_, err := LoadConfig(strings.NewReader("# " + strings.Repeat("x", maxConfig)))
	if err == nil || !strings.Contains(err.Error(), "longer than 1048576 bytes") {
		t.Errorf("got %v, want the bound", err)
	}
	text := strings.Repeat("x: 1\ny: 2\n", maxProblems)
	_, err = LoadConfig(strings.NewReader(text))
	var problems Problems
	if !errors.As(err, &problems) || len(problems) != maxProblems+1 || !strings.Contains(problems[maxProblems].Msg, "more problems") {
		t.Errorf("got %d problems, want %d and the number of the rest", len(problems), maxProblems)
	}
}

// withoutEmpty makes lists and mappings that have nothing in them nil: [] is as good as nothing.
func withoutEmpty(v reflect.Value) {
	for f, value := range v.Fields() {
		switch {
		case !f.IsExported():
		case value.Kind() == reflect.Struct && isBlock(f.Type):
			withoutEmpty(value)
		case (value.Kind() == reflect.Slice || value.Kind() == reflect.Map) && value.Len() == 0:
			value.SetZero()
		}
	}
}

func TestDefaultsReadBack(t *testing.T) {
	var text strings.Builder
	if err := WriteDefaults(&text); err != nil {
		t.Fatal(err)
	}
	c := loadText(t, text.String())
	if err := c.Validate(); err != nil {
		t.Errorf("Validate: %v", err)
	}
	c.where = nil
	withoutEmpty(reflect.ValueOf(&c).Elem())
	if want := DefaultConfig(); !reflect.DeepEqual(c, want) {
		t.Errorf("got %+v, want %+v", c, want)
	}
	for line := range strings.SplitSeq(strings.TrimSpace(text.String()), "\n") {
		if !strings.Contains(line, "# ") {
			t.Errorf("no comment: %q", line)
		}
	}
	for _, key := range Describe() {
		word := key.Path[strings.LastIndexByte(key.Path, '.')+1:]
		if !strings.Contains(text.String(), word+":") || key.Doc == "" || key.Type == "" {
			t.Errorf("key %+v is not among the defaults with type and comment", key)
		}
	}
}

func TestConfigThatIsWrittenReadsBack(t *testing.T) {
	c := loadText(t, `
node: "0815"
map: "a b.yaml"
dns: {upstreams: ["https://dns.example/dns-query"], routes: {"corp.example": ["10.0.0.53", "tls://1.1.1.1#x"]}, listen: ["::1"], cache: 12345}
tunnel: {mode: tun, port: 1}
sources: [{type: headscale, command: [headscale, nodes, "-o", "js: on"], interval: 90s}, {type: netbird, file: "n#b.json"}]
`)
	for _, comments := range []bool{true, false} {
		var text strings.Builder
		if err := writeConfig(&text, c, comments); err != nil {
			t.Fatal(err)
		}
		again := loadText(t, text.String())
		if got, want := again.Settings(""), c.Settings(""); len(got) != len(want) {
			t.Fatalf("got %d settings, want %d", len(got), len(want))
		}
		for i, s := range again.Settings("") {
			if want := c.Settings("")[i]; s.Value != want.Value {
				t.Errorf("%s: got %s, want %s", s.Path, s.Value, want.Value)
			}
		}
	}
}

func TestSizesAreWrittenAsTheyAreRead(t *testing.T) {
	for text, want := range map[string]ByteSize{"0": 0, "1": 1, "1000": 1000, "64KiB": 64 << 10, "8MiB": 8 << 20, "16GiB": 16 << 30, "1025KiB": 1025 << 10} {
		var got ByteSize
		if err := got.UnmarshalText([]byte(text)); err != nil || got != want {
			t.Errorf("%s: got %d, %v; want %d", text, got, err, want)
		}
		if back, err := got.MarshalText(); err != nil || string(back) != text {
			t.Errorf("%d: got %q, %v; want %q", want, back, err, text)
		}
	}
	for _, bad := range []string{"", "x", "8MB", "8 KiB MiB", "1.5MiB", "0x10", "9223372036854775808"} {
		if err := new(ByteSize).UnmarshalText([]byte(bad)); err == nil {
			t.Errorf("%q: no error", bad)
		}
	}
}

func TestSlipsAreGuessed(t *testing.T) {
	known := []string{"upstreams", "routes", "listen", "os"}
	for word, want := range map[string]string{
		"upstream": "upstreams", "Listen": "listen", "lsiten": "listen", "route": "routes", "frobnicate": "", "": "",
		strings.Repeat("x", 100): "",
	} {
		if got := nearest(word, known); got != want {
			t.Errorf("%q: got %q, want %q", word, got, want)
		}
	}
}

// writeFileT writes a file of the test's and returns its path.
func writeFileT(t *testing.T, name, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), name)
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestConfigFilesNameFilesBesideThem(t *testing.T) {
	path := writeFileT(t, "meshdns.yaml", "map: maps/map.yaml\nsources: [{type: netbird, file: nb.json}, {type: netbird, file: /nb.json}]\n")
	c, err := LoadConfigFile(path)
	if err != nil {
		t.Fatal(err)
	}
	dir := filepath.Dir(path)
	if want := filepath.Join(dir, "maps/map.yaml"); c.Map != want {
		t.Errorf("map: got %s, want %s", c.Map, want)
	}
	if c.Sources[0].File != filepath.Join(dir, "nb.json") || c.Sources[1].File != "/nb.json" {
		t.Errorf("sources: got %+v", c.Sources)
	}
}

func TestConfigFileSaysWhichFileIsWrong(t *testing.T) {
	dir := t.TempDir()
	if _, err := LoadConfigFile(filepath.Join(dir, "none.yaml")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("no file: got %v, want ErrNotExist", err)
	}
	if _, err := LoadConfigFile(dir); err == nil || !strings.Contains(err.Error(), "not a regular file") {
		t.Errorf("a directory: got %v", err)
	}
	path := writeFileT(t, "meshdns.yaml", "dns: {os: of}\n")
	c, err := LoadConfigFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Validate(); err == nil || !strings.HasPrefix(err.Error(), path+":1:11: dns.os of: ") || hintOf(err) != "did you mean off?" {
		t.Errorf("a bad value: got %v (hint %q), want the file and the place", err, hintOf(err))
	}
}

func TestCommandsComeFromFilesThatNobodyElseWrites(t *testing.T) {
	const text = "sources: [{type: tailscale, command: [tailscale, status, --json]}]\n"
	for _, tt := range []struct {
		name string
		perm os.FileMode
		ok   bool
	}{{"private", 0o600, true}, {"readable", 0o644, true}, {"the group writes", 0o660, false}, {"everybody writes", 0o606, false}} {
		t.Run(tt.name, func(t *testing.T) {
			path := writeFileT(t, "meshdns.yaml", text)
			if err := os.Chmod(path, tt.perm); err != nil {
				t.Fatal(err)
			}
			c, err := LoadConfigFile(path)
			if err != nil {
				t.Fatal(err)
			}
			err = c.Validate()
			if (err == nil) != tt.ok {
				t.Errorf("got %v, want trusted: %t", err, tt.ok)
			}
			if err != nil && hintOf(err) == "" {
				t.Error("no hint")
			}
			if _, err := newSources(c, nil); (err == nil) != tt.ok {
				t.Errorf("newSources: got %v", err)
			}
		})
	}
	t.Run("somebody else's", func(t *testing.T) {
		if os.Geteuid() != 0 {
			t.Skip("only root can give files away")
		}
		path := writeFileT(t, "meshdns.yaml", text)
		if err := os.Chown(path, 65534, 65534); err != nil {
			t.Fatal(err)
		}
		c, err := LoadConfigFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if c.Validate() == nil {
			t.Error("a file of another user's may name commands")
		}
	})
	t.Run("no file at all", func(t *testing.T) {
		if c := loadText(t, text); c.Validate() == nil {
			t.Error("a reader's configuration may name commands")
		}
	})
}

func FuzzConfig(f *testing.F) {
	f.Add("node: nas\ndns: {routes: {a: [b]}}\nsources: [{type: tailscale}]\n")
	f.Add("tunnel: off\n---\n")
	f.Add("x: |\n  a\n   b\n")
	f.Add("a: [1, {b: c}, \"d\\n\", 'e']\n")
	f.Fuzz(func(t *testing.T, text string) {
		c, err := LoadConfig(strings.NewReader(text))
		if err != nil {
			return
		}
		_ = c.Validate()
		var written strings.Builder
		if err := writeConfig(&written, c, true); err != nil {
			t.Fatal(err)
		}
		again, err := LoadConfig(strings.NewReader(written.String()))
		if err != nil {
			t.Fatalf("what was written does not read back: %v\n%s", err, written.String())
		}
		for i, s := range again.Settings("") {
			if want := c.Settings("")[i]; s.Value != want.Value {
				t.Errorf("%s: got %s, want %s", s.Path, s.Value, want.Value)
			}
		}
	})
}

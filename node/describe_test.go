package node

import (
	"net/netip"
	"reflect"
	"strings"
	"testing"
	"time"
)

func TestTypesHaveWords(t *testing.T) {
	tests := []struct {
		of   any
		want string
	}{
		{"", "text"},
		{true, "true/false"},
		{uint16(1), "number"},
		{ByteSize(1), "size"},
		{time.Second, "time"},
		{netip.Addr{}, "address"},
		{netip.AddrPort{}, "address:port"},
		{[]string{}, "list of text"},
		{[]netip.Addr{}, "list of address"},
		{[]sourceConfig{}, "list of mapping"},
		{map[string][]string{}, "mapping of text to list of text"},
	}
	for _, tt := range tests {
		t.Run(tt.want, func(t *testing.T) {
			if got := typeWord(reflect.TypeOf(tt.of)); got != tt.want {
				t.Errorf("got %q, want %q", got, tt.want)
			}
		})
	}
}

// Whatever a value is, the file that is written of it holds it and nothing else.
func TestTextIsWrittenSoThatItReadsBack(t *testing.T) {
	for _, text := range []string{
		"nas", "/etc/x.yaml", "", "true", "off", "null", "yes", "y", "7", "1e3", "0x10", "-", "~", "a: b", "a #b", "# x", "[a]", "{a}",
		`"quoted"`, `back\slash`, "tab\there", "line\nbreak", " lead", "trail ", "bücher", "\u2028", "*a", "&a", "!t", "%x", "@x", "`x", "a,b", "a]b",
	} {
		cfg := testConfig()
		cfg.Map = text
		cfg.DNS.Routes = map[string][]string{"corp.example": {text}}
		var b strings.Builder
		must(t, writeConfig(&b, cfg, false))
		back, err := LoadConfig(strings.NewReader(b.String()))
		if err != nil {
			t.Errorf("%q: %v in\n%s", text, err, b.String())
			continue
		}
		if back.Map != text || len(back.DNS.Routes["corp.example"]) != 1 || back.DNS.Routes["corp.example"][0] != text {
			t.Errorf("%q: got %q and %q", text, back.Map, back.DNS.Routes)
		}
	}
}

func TestPlainWordsAreNotQuoted(t *testing.T) {
	for text, want := range map[string]string{
		"nas":       "nas",
		"/etc/x":    "/etc/x",
		"a.b-c_d":   "a.b-c_d",
		"on":        `"on"`,
		"No":        `"No"`,
		"10.0.0.1":  `"10.0.0.1"`,
		"a b":       `"a b"`,
		"":          `""`,
		"[::1]:53":  `"[::1]:53"`,
		"a:b":       `"a:b"`,
		"Uppercase": `"Uppercase"`,
	} {
		if got := yamlWord(text); got != want {
			t.Errorf("%q: got %s, want %s", text, got, want)
		}
	}
}

func TestEveryKeyIsDescribed(t *testing.T) {
	seen := map[string]bool{}
	for _, k := range Describe() {
		if k.Doc == "" || k.Type == "" || seen[k.Path] {
			t.Errorf("%+v: no words for it, or twice", k)
		}
		seen[k.Path] = true
		if k.Env != "" && k.Env != "MESHDNS_"+strings.ToUpper(strings.ReplaceAll(k.Path, ".", "_")) {
			t.Errorf("%s: variable %s", k.Path, k.Env)
		}
	}
	for _, want := range []string{"node", "map", "dns.os", "dns.stub", "dns.upstreams", "dns.rebind.private", "metrics", "sources"} {
		if !seen[want] {
			t.Errorf("%s is missing", want)
		}
	}
	cfg := DefaultConfig()
	if got := len(cfg.Settings("x")); got != len(seen) {
		t.Errorf("%d settings of %d keys", got, len(seen))
	}
}

func TestSettingsHoldBlocksOnOneLine(t *testing.T) {
	cfg, err := LoadConfig(strings.NewReader("sources:\n  - type: headscale\n    file: /x.json\n  - type: wireguard\n    interface: wg0\n    interval: 5s\n"))
	must(t, err)
	for _, s := range cfg.Settings("meshdns.yaml") {
		if strings.ContainsAny(s.Value, "\n") {
			t.Errorf("%s: %q is more than a line", s.Path, s.Value)
		}
		if s.Path != "sources" {
			continue
		}
		if want := "[{type: headscale, file: /x.json}, {type: wireguard, interface: wg0, interval: 5s}]"; s.Value != want {
			t.Errorf("got %s, want %s", s.Value, want)
		}
		if s.Source != "meshdns.yaml:1" && s.Source != "meshdns.yaml:2" {
			t.Errorf("source: got %s, want its place", s.Source)
		}
	}
}

func TestPlacesAreNamed(t *testing.T) {
	for want, at := range map[string]position{
		"meshdns.yaml":   {},
		"meshdns.yaml:3": {line: 3},
		"MESHDNS_NODE":   {file: "MESHDNS_NODE"},
		"other.yaml:7":   {file: "other.yaml", line: 7},
	} {
		if got := at.named("meshdns.yaml"); got != want {
			t.Errorf("got %s, want %s", got, want)
		}
	}
}

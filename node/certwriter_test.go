package node

import (
	"maps"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

func TestAProvidersSettingsAreReadFromAFile(t *testing.T) {
	env := map[string]string{"TOKEN": "from the environment"}
	for what, tt := range map[string]struct {
		text string
		mode os.FileMode
		want map[string]string
		why  string
	}{
		"words":              {"api_token: s3cret\nserver: \"192.0.2.1:53\"\n", 0o600, map[string]string{"api_token": "s3cret", "server": "192.0.2.1:53"}, ""},
		"from a variable":    {"api_token: $TOKEN\n", 0o400, map[string]string{"api_token": "from the environment"}, ""},
		"no such variable":   {"api_token: $TOKN\n", 0o600, nil, "setting api_token: the variable TOKN is not set"},
		"others can read it": {"api_token: s3cret\n", 0o640, nil, "others can read it"},
		"a list":             {"- s3cret\n", 0o600, nil, "line 1"},
		"a list in it":       {"api_token: [s3cret]\n", 0o600, nil, "line 1"},
		"no YAML":            {"api_token: \"s3cret\n", 0o600, nil, "reading"},
	} {
		file := filepath.Join(t.TempDir(), "settings")
		if err := os.WriteFile(file, []byte(tt.text), tt.mode); err != nil {
			t.Fatal(err)
		}
		got, err := providerSettings(file, func(name string) string { return env[name] })
		switch {
		case tt.why != "" && (err == nil || !strings.Contains(err.Error(), tt.why) || strings.Contains(err.Error()+hintOf(err), "s3cret")):
			t.Errorf("%s: got %v, want %q and no secret", what, err, tt.why)
		case tt.why == "" && (err != nil || !maps.Equal(got, tt.want)):
			t.Errorf("%s: got %q, %v", what, got, err)
		}
	}
	if _, err := providerSettings(filepath.Join(t.TempDir(), "none"), os.Getenv); err == nil {
		t.Error("a file that is not there has settings")
	}
}

func TestWhoMayWriteTXTRecords(t *testing.T) {
	for text, want := range map[string]string{
		"writer: gateway":                        "",
		"writer: cloudflare\n  settings_file: s": "",
		"writer: clodflare":                      "certs.writer clodflare: want gateway, command, acmedns",
		"writer: command":                        "certs.command: missing",
		"writer: command\n  command: [/bin/x]":   "commands are run only from a file that root owns",
		"command: [/bin/x]":                      "used only with writer: command",
		"settings_file: s":                       "used only with a DNS provider",
	} {
		c, err := LoadConfig(strings.NewReader("certs:\n  " + text + "\n"))
		if err == nil {
			err = c.Validate()
		}
		if want == "" && err != nil || want != "" && (err == nil || !strings.Contains(err.Error(), want)) {
			t.Errorf("%s: got %v, want %q", text, err, want)
		}
	}
}

// Our own stub has the tailnet's view of the zone, and is never asked where its records are.
func TestWhoIsAskedForThePublicDNS(t *testing.T) {
	cfg := testConfig()
	cfg.DNS.Upstreams = []string{"192.0.2.53", "tls://192.0.2.54#dns.example"}
	n := startNode(t, cfg, testPaths(t))
	if got := n.node.publicResolvers(); !slices.Equal(got, []netip.AddrPort{netip.MustParseAddrPort("192.0.2.53:53")}) {
		t.Errorf("got %v", got)
	}
	n.node.cfg.Certs.Resolvers = []netip.AddrPort{netip.MustParseAddrPort("192.0.2.55:53")}
	if got := n.node.publicResolvers(); !slices.Equal(got, n.node.cfg.Certs.Resolvers) {
		t.Errorf("got %v", got)
	}
}

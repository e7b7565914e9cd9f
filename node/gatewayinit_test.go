package node

import (
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestInitGatewayKeepsWhatTheFileSays(t *testing.T) {
	for name, test := range map[string]struct {
		before string // "-": no file
		want   string // empty: the file stays as it is
		hint   string
	}{
		"no file":    {before: "-", want: "gateway:\n  zone: mesh.example.org\n  public: [\"203.0.113.5\", \"2001:db8::5\"]\n"},
		"a comment":  {before: "# mine\nnode: edge\n", want: "# mine\nnode: edge\n\ngateway:\n  zone: mesh.example.org\n  public: [\"203.0.113.5\", \"2001:db8::5\"]\n"},
		"no newline": {before: "tunnel: {mode: userspace}", want: "tunnel: {mode: userspace}\n\ngateway:\n  zone: mesh.example.org\n  public: [\"203.0.113.5\", \"2001:db8::5\"]\n"},
		"another gateway": {
			before: "gateway: {zone: other.example.org, public: [203.0.113.5]}\n",
			hint:   `nothing was changed; write into its gateway section: gateway: {zone: mesh.example.org, public: ["203.0.113.5", "2001:db8::5"]}`,
		},
		"an empty section": {
			before: "gateway:\n",
			hint:   `nothing was changed; add yourself: gateway: {zone: mesh.example.org, public: ["203.0.113.5", "2001:db8::5"]}`,
		},
		"a flow mapping": {
			before: "{node: edge}\n",
			hint:   `nothing was changed; add yourself: gateway: {zone: mesh.example.org, public: ["203.0.113.5", "2001:db8::5"]}`,
		},
		"a file that is wrong": {before: "nodee: edge\n", hint: "did you mean node?"},
	} {
		t.Run(name, func(t *testing.T) {
			paths := Paths{State: t.TempDir(), Config: filepath.Join(t.TempDir(), "etc", "meshdns.yaml")}
			if test.before != "-" {
				if err := os.MkdirAll(filepath.Dir(paths.Config), 0o755); err != nil {
					t.Fatal(err)
				}
				if err := os.WriteFile(paths.Config, []byte(test.before), 0o600); err != nil {
					t.Fatal(err)
				}
			}
			reply, err := paths.InitGateway("mesh.example.org", []string{"203.0.113.5", "2001:db8::5"})
			if test.hint != "" {
				if err == nil || hintOf(err) != test.hint && !strings.HasSuffix(err.Error(), test.hint) {
					t.Errorf("error %v with hint %q, want the hint %q", err, hintOf(err), test.hint)
				}
				test.want = test.before
			} else if err != nil || !reply.Written {
				t.Fatalf("%+v, %v", reply, err)
			}
			if data, err := os.ReadFile(paths.Config); err != nil || string(data) != test.want {
				t.Errorf("the file is now %q (%v), want %q", data, err, test.want)
			}
			if test.hint != "" {
				return
			}
			again, err := paths.InitGateway("Mesh.example.org.", []string{"203.0.113.5", "2001:db8::5"})
			if err != nil || again.Written {
				t.Errorf("the second time: %+v, %v", again, err)
			}
		})
	}
}

func TestInitGatewayFollowsALink(t *testing.T) {
	dir := t.TempDir()
	paths := Paths{State: t.TempDir(), Config: filepath.Join(dir, "meshdns.yaml")}
	real := filepath.Join(dir, "real.yaml")
	if err := os.WriteFile(real, []byte("node: edge\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("real.yaml", paths.Config); err != nil {
		t.Skip("no links here: ", err)
	}
	if _, err := paths.InitGateway("mesh.example.org", []string{"203.0.113.5"}); err != nil {
		t.Fatal(err)
	}
	data, err := os.ReadFile(real)
	if err != nil || !strings.Contains(string(data), "zone: mesh.example.org") {
		t.Errorf("behind the link: %q, %v", data, err)
	}
	if info, err := os.Stat(real); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("its mode is now %v (%v)", info.Mode(), err)
	}
}

func TestInitGatewayRefuses(t *testing.T) {
	for _, test := range []struct {
		zone   string
		public []string
	}{
		{"", []string{"203.0.113.5"}},
		{"mesh.example.org", nil},
		{"mesh.example.org", []string{"vps"}},
		{"mesh.example.org", []string{"0.0.0.0"}},
		{"mesh.example.org", []string{"fe80::1%eth0"}},
		{"mesh.example.org", strings.Split("1.0.0.1 1.0.0.2 1.0.0.3 1.0.0.4 1.0.0.5 1.0.0.6 1.0.0.7 1.0.0.8 1.0.0.9", " ")},
		{"co.uk", []string{"203.0.113.5"}},
		{"mesh.local", []string{"203.0.113.5"}},
	} {
		paths := Paths{State: t.TempDir(), Config: filepath.Join(t.TempDir(), "meshdns.yaml")}
		if _, err := paths.InitGateway(test.zone, test.public); err == nil {
			t.Errorf("zone %q with %q is taken", test.zone, test.public)
		}
		if _, err := os.Stat(paths.Config); err == nil {
			t.Errorf("zone %q with %q: a file was written", test.zone, test.public)
		}
	}
}

func TestDelegation(t *testing.T) {
	public := []netip.Addr{netip.MustParseAddr("203.0.113.5"), netip.MustParseAddr("2001:db8::5")}
	for zone, want := range map[string]string{
		"foo-bar.example.org": "example.org: foo-bar NS ns1.foo-bar.example.org., foo-bar NS ns2.foo-bar.example.org., ns1.foo-bar A 203.0.113.5, ns2.foo-bar AAAA 2001:db8::5",
		"a.b.example.co.uk":   "example.co.uk: a.b NS ns1.a.b.example.co.uk., a.b NS ns2.a.b.example.co.uk., ns1.a.b A 203.0.113.5, ns2.a.b AAAA 2001:db8::5",
		"example.org":         "org: example NS ns1.example.org., example NS ns2.example.org., ns1.example A 203.0.113.5, ns2.example AAAA 2001:db8::5",
		"mesh.internal":       ": ",
		"home.arpa":           ": ",
	} {
		parent, records := delegation(zone, public)
		var words []string
		for _, r := range records {
			words = append(words, r.Name+" "+r.Type+" "+r.Data)
		}
		if got := parent + ": " + strings.Join(words, ", "); got != want {
			t.Errorf("%s:\ngot  %s\nwant %s", zone, got, want)
		}
	}
}

package node

import (
	"bytes"
	"encoding/base64"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/meshdns/meshdns/node/tunnel"
)

// presharedText is a key as wg genpsk prints it.
func presharedText() string {
	s := tunnel.NewSecret()
	return base64.StdEncoding.EncodeToString(s[:])
}

func TestPresharedKeysAreRead(t *testing.T) {
	a, b := presharedText(), presharedText()
	for name, tt := range map[string]struct {
		text string
		pair bool // there is a key with nas
		fine bool
	}{
		"nothing":              {"", false, true},
		"a pair":               {"# our house\nnas " + a + " # the one below\n\n", true, true},
		"all":                  {"* " + a, true, true},
		"all but one":          {"tv " + b + "\n* " + a, true, true},
		"another one":          {"tv " + a, false, true},
		"twice":                {"nas " + a + "\nnas " + b, false, false},
		"two for all":          {"* " + a + "\n* " + b, false, false},
		"a name alone":         {"nas", false, false},
		"a key too many":       {"nas " + a + " " + b, false, false},
		"cut short":            {"nas " + a[:40], false, false},
		"not base64":           {"nas " + strings.Repeat("!", 44), false, false},
		"zeros":                {"nas " + base64.StdEncoding.EncodeToString(make([]byte, 32)), false, false},
		"a name of two labels": {"nas.example " + a, false, false},
		"a very long line":     {"nas " + strings.Repeat("A", 70000), false, false},
	} {
		p, err := parsePreshared([]byte(tt.text))
		if (err == nil) != tt.fine {
			t.Errorf("%s: %v", name, err)
		}
		if err != nil && (strings.Contains(err.Error(), a[:20]) || strings.Contains(err.Error(), b[:20])) {
			t.Errorf("%s: the error holds a key: %v", name, err)
		}
		if key, err := p.with("example.org", "web", "nas"); err != nil || key.IsZero() == tt.pair {
			t.Errorf("%s: a key with nas: %t, %v", name, !key.IsZero(), err)
		}
	}
}

// Both sides make the same key of a common secret, and no two pairs have the same.
func TestEachPairHasItsPresharedKey(t *testing.T) {
	p := preshared{common: tunnel.NewSecret()}
	seen := map[tunnel.Secret]string{}
	for _, pair := range [][3]string{{"a.org", "nas", "tv"}, {"a.org", "nas", "web"}, {"a.org", "tv", "web"}, {"b.org", "nas", "tv"}, {"a.org", "na", "stv"}} {
		one, err := p.with(pair[0], pair[1], pair[2])
		other, err2 := p.with(pair[0], pair[2], pair[1])
		if err != nil || err2 != nil || one != other || one.IsZero() || one == p.common || seen[one] != "" {
			t.Errorf("%q: the same on both sides: %t; as %q", pair, one == other, seen[one])
		}
		seen[one] = fmt.Sprint(pair)
	}
	if text := fmt.Sprintf("%v %+v %#v %x", p, p, p, p); strings.Contains(text, fmt.Sprint(p.common[0], " ", p.common[1])) || strings.Contains(text, fmt.Sprintf("%x", p.common[:4])) {
		t.Errorf("they print themselves: %s", text)
	}
}

func TestPresharedKeysAreForRootAlone(t *testing.T) {
	path := filepath.Join(t.TempDir(), "psk")
	for mode, fine := range map[os.FileMode]bool{0o600: true, 0o400: true, 0o640: false, 0o604: false, 0o620: false} {
		_ = os.Remove(path) // there is none at first
		if err := os.WriteFile(path, []byte("* "+presharedText()), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Chmod(path, mode); err != nil {
			t.Fatal(err)
		}
		if _, err := loadPreshared(path); (err == nil) != fine || err != nil && hintOf(err) == "" {
			t.Errorf("%o: %v", mode, err)
		}
	}
	cfg := gatewayTestConfig(t)
	cfg.Tunnel.Preshared = path
	if err := cfg.Validate(); err == nil || !strings.Contains(err.Error(), "tunnel.preshared") {
		t.Errorf("a gateway's: %v", err)
	}
}

// startSharing starts the node of a machine that has joined, with a file of preshared keys.
func startSharing(t *testing.T, paths Paths, text string) *testNode {
	t.Helper()
	cfg := testConfig()
	cfg.Node, cfg.Tunnel = "", tunnelConfig{Mode: "userspace", Preshared: filepath.Join(paths.State, "psk")}
	if err := os.WriteFile(cfg.Tunnel.Preshared, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return startNode(t, cfg, paths)
}

// Nodes with the same secret speak, those with another one or none make no session with them; all reach the gateway. New keys of
// a node change nothing of it.
func TestOnlyWhoKnowsThePresharedKeySpeaks(t *testing.T) {
	g := startGateway(t)
	common, own := presharedText(), presharedText()
	nodes := map[string]*testNode{}
	for name, text := range map[string]string{"nas": "* " + common + "\nweb " + own, "tv": "* " + common, "web": "* " + common, "pi": ""} {
		paths, _ := g.join(t, name)
		nodes[name] = startSharing(t, paths, text)
	}
	tv, web, pi := nodes["tv"], nodes["web"], nodes["pi"]
	for _, n := range nodes {
		soon(t, "names", func() bool {
			return n.hasStream() && n.knows(t, "nas") && n.knows(t, "tv") && n.knows(t, "web") && n.knows(t, "pi")
		})
	}
	answers := func(n *testNode, name string) func() bool {
		return func() bool {
			_, err := n.Ping(t.Context(), name)
			return err == nil
		}
	}
	soon(t, "an answer to who has the secret", answers(tv, "nas"))
	if _, err := tv.RotateKey(t.Context(), true); err != nil {
		t.Fatal(err)
	}
	soon(t, "an answer to its new keys", answers(tv, "nas"))
	soon(t, "an answer of another pair", answers(web, "tv"))
	for name, n := range map[string]*testNode{"another one": web, "none": pi} {
		if answers(n, "nas")() {
			t.Errorf("who has %s speaks", name)
		}
		if _, s := n.pathTo(t, "nas"); s.Sent == 0 || !s.Handshake.IsZero() {
			t.Errorf("who has %s: %+v", name, s)
		}
	}
	if err := os.Chmod(tv.node.cfg.Tunnel.Preshared, 0o644); err != nil {
		t.Fatal(err)
	}
	if err := tv.end(); err != nil {
		t.Fatal(err)
	}
	again := startNode(t, tv.node.cfg, tv.paths)
	if again.ready.State != stateDegraded || !strings.Contains(strings.Join(again.ready.Problems, " "), "others may read") || again.node.carrier.tunnel != nil {
		t.Errorf("a tunnel without the keys that are wanted: %q", again.ready.Problems)
	}
}

func FuzzPreshared(f *testing.F) {
	f.Add([]byte("# x\nnas AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=\n* BAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8="))
	f.Add([]byte("nas"))
	f.Fuzz(func(t *testing.T, data []byte) {
		before := bytes.Clone(data)
		p, err := parsePreshared(data)
		if err != nil {
			return
		}
		for name, key := range p.pairs {
			if _, msg := checkLabel(name); msg != "" || key.IsZero() {
				t.Errorf("%q: %s", name, msg)
			}
		}
		if !bytes.Equal(before, data) {
			t.Error("what was read is changed")
		}
	})
}

package node

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/meshdns/meshdns/node/control"
	"github.com/meshdns/meshdns/node/tunnel"
)

// S5: a node is dropped without the gateway, and stays so: after a start, under another name, with keys that follow its own.
func TestADroppedNodeStaysDropped(t *testing.T) {
	g := startGateway(t)
	nas, tv := g.invited(t, "nas"), g.invited(t, "tv")
	soon(t, "names", func() bool { return nas.knows(t, "tv") && tv.knows(t, "nas") })
	if got := nas.speaksTo(t); got != "edge tv" {
		t.Fatalf("the peers are %q", got)
	}
	reply, err := nas.Drop(t.Context(), "tv.foo-bar.example.org", false)
	if err != nil || len(reply.Dropped) != 1 || reply.Dropped[0].Name != "tv" || time.Since(reply.Dropped[0].Since) > time.Minute {
		t.Fatalf("%+v, %v", reply, err)
	}
	dropped := func(n *testNode, name string) bool { return n.speaksTo(t) == "edge" && n.doubts(t) == name+"=dropped" }
	if !dropped(nas, "tv") || !nas.knows(t, "tv") {
		t.Errorf("the peers are %q, and %q", nas.speaksTo(t), nas.doubts(t))
	}
	if s, err := nas.Status(t.Context()); err != nil || s.State != stateOK {
		t.Errorf("what somebody wanted is a problem: %q, %v", s.Problems, err)
	}
	if _, err := nas.Drop(t.Context(), "tv", false); err != nil { // twice is once
		t.Error(err)
	}
	if err := nas.end(); err != nil {
		t.Fatal(err)
	}
	nas = startMember(t, nas.paths)
	if !dropped(nas, "tv") {
		t.Errorf("after a start the peers are %q, and %q", nas.speaksTo(t), nas.doubts(t))
	}
	if _, err := tv.RotateKey(t.Context(), true); err != nil {
		t.Fatal(err)
	}
	if err := g.RenameNode(t.Context(), "tv", "screen"); err != nil {
		t.Fatal(err)
	}
	soon(t, "the new name", func() bool { return nas.knows(t, "screen") })
	// Its statements are gone with the name, so it is as a new node: the gateway vouches for that.
	if got := nas.speaksTo(t); got != "edge screen" && got != "edge" {
		t.Errorf("the peers are %q", got)
	}
	reply, err = nas.Dropped(t.Context())
	if err != nil || len(reply.Dropped) != 1 {
		t.Errorf("%+v, %v", reply, err)
	}
}

func TestADropIsTakenBack(t *testing.T) {
	g := startGateway(t)
	nas, tv := g.invited(t, "nas"), g.invited(t, "tv")
	soon(t, "names", func() bool { return nas.knows(t, "tv") && tv.knows(t, "nas") })
	if _, err := nas.Drop(t.Context(), "tv", false); err != nil {
		t.Fatal(err)
	}
	if _, err := tv.RotateKey(t.Context(), true); err != nil { // which its old key vouches for
		t.Fatal(err)
	}
	soon(t, "the map with the new keys", func() bool {
		nas.node.member.mu.Lock()
		defer nas.node.member.mu.Unlock()
		for _, n := range nas.node.member.keeps.Map.Nodes {
			if n.Name == "tv" {
				return n.Keys() == tv.node.carrier.own().keys()
			}
		}
		return false
	})
	if nas.speaksTo(t) != "edge" || nas.doubts(t) != "tv=dropped" {
		t.Errorf("with other keys the peers are %q, and %q", nas.speaksTo(t), nas.doubts(t))
	}
	reply, err := nas.Drop(t.Context(), "tv", true)
	if err != nil || len(reply.Dropped) != 0 {
		t.Fatalf("%+v, %v", reply, err)
	}
	if got := nas.speaksTo(t); got != "edge tv" || nas.doubts(t) != "" {
		t.Errorf("the peers are %q, and %q", got, nas.doubts(t))
	}
	for name, tt := range map[string]struct {
		node string
		undo bool
		want error
	}{
		"nobody":      {"nobody", false, ErrNotFound},
		"the machine": {"nas", false, ErrBadRequest},
		"the gateway": {"edge", false, ErrBadRequest},
		"not dropped": {"tv", true, ErrNotFound},
	} {
		if _, err := nas.Drop(t.Context(), tt.node, tt.undo); !errors.Is(err, tt.want) || hintOf(err) == "" {
			t.Errorf("%s: %v, %q", name, err, hintOf(err))
		}
	}
	if _, err := g.Drop(t.Context(), "tv", false); !errors.Is(err, ErrBadRequest) || !strings.Contains(hintOf(err), "meshdns gateway remove tv") {
		t.Errorf("on a gateway: %v", err)
	}
}

// A static map's nodes are dropped by their keys, whatever is written into the map next.
func TestANodeOfAStaticMapIsDropped(t *testing.T) {
	paths := testPaths(t)
	s, err := loadSecrets(paths.State)
	if err != nil {
		t.Fatal(err)
	}
	other := tunnel.NewSecret().Public()
	text := fmt.Sprintf("zone: foo-bar.ts.net\nranges: [10.9.0.0/24]\nnodes:\n  nas: {addresses: [10.9.0.1], key: %s}\n  tv: {addresses: [10.9.0.2], key: %s}\n  box: {addresses: [10.9.0.3]}\n", s.keys().Key, other)
	writeTestMap(t, paths, text)
	cfg := testConfig()
	cfg.Tunnel = tunnelConfig{Mode: "userspace"}
	n := startNode(t, cfg, paths)
	if got := n.speaksTo(t); got != "tv" {
		t.Fatalf("the peers are %q", got)
	}
	if _, err := n.Drop(t.Context(), "box", false); !errors.Is(err, ErrBadRequest) {
		t.Errorf("a node without a key: %v", err)
	}
	if _, err := n.Drop(t.Context(), "tv", false); err != nil {
		t.Fatal(err)
	}
	if got := n.speaksTo(t); got != "" || n.doubts(t) != "tv=dropped" {
		t.Errorf("the peers are %q, and %q", got, n.doubts(t))
	}
	writeTestMap(t, paths, strings.Replace(text, "  tv:", "  screen:", 1))
	soon(t, "the changed map", func() bool { return n.doubts(t) == "screen=dropped" })
	if err := n.end(); err != nil {
		t.Fatal(err)
	}
	n = startNode(t, cfg, paths)
	if got := n.speaksTo(t); got != "" || n.doubts(t) != "screen=dropped" {
		t.Errorf("after a start the peers are %q, and %q", got, n.doubts(t))
	}
	if _, err := n.Drop(t.Context(), "screen", true); err != nil {
		t.Fatal(err)
	}
	if got := n.speaksTo(t); got != "screen" {
		t.Errorf("taken back, the peers are %q", got)
	}
	// A list that cannot be read ends the start: who was dropped would be spoken to.
	if err := n.end(); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(paths.State, droppedFile), []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := new(dropped).load(paths.State); err == nil || hintOf(err) == "" {
		t.Errorf("a damaged list: %v", err)
	}
}

func TestRotationsDoNotLeadPastADrop(t *testing.T) {
	told := gatewayMap(t)
	old, err := newSecrets()
	if err != nil {
		t.Fatal(err)
	}
	n := told.Nodes[1]
	n.Rotations = []control.Rotation{old.control.Rotate(told.Zone, n.Name, old.keys(), n.Keys())}
	for name, tt := range map[string]struct {
		list []droppedNode
		want bool
	}{
		"nobody":          {nil, false},
		"its key":         {[]droppedNode{{Key: n.Key.String()}}, true},
		"its control key": {[]droppedNode{{Key: "x", Control: n.Control}}, true},
		"its old key":     {[]droppedNode{{Key: old.keys().Key.String()}}, true},
		"somebody else":   {[]droppedNode{{Key: told.Nodes[0].Key.String(), Control: told.Nodes[0].Control}}, false},
		"no control key":  {[]droppedNode{{Key: "x"}}, false},
	} {
		if got := isDropped(tt.list, n); got != tt.want {
			t.Errorf("%s: %t", name, got)
		}
	}
}

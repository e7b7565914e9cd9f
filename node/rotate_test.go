package node

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/meshdns/meshdns/node/control"
)

// startRelayed starts a node that has joined and tries no direct path.
func startRelayed(t *testing.T, paths Paths) *testNode {
	t.Helper()
	cfg := testConfig()
	cfg.Node, cfg.Tunnel = "", tunnelConfig{Mode: "userspace"}
	return startNodeWith(t, cfg, Options{Paths: paths, relayed: true})
}

// A key changes under a connection that never rests, through the gateway and directly.
func TestKeysChangeUnderAConnection(t *testing.T) {
	for name, directly := range map[string]bool{"through the gateway": false, "directly": true} {
		t.Run(name, func(t *testing.T) {
			g := startGateway(t)
			nas, tv := g.invited(t, "nas"), g.invited(t, "tv")
			soon(t, "names", func() bool { return nas.knows(t, "tv") && tv.knows(t, "nas") })
			if !directly {
				for _, n := range []**testNode{&tv, &nas} {
					if err := (*n).end(); err != nil {
						t.Fatal(err)
					}
					*n = startRelayed(t, (*n).paths)
				}
			}
			c := startChatter(t, nas, tv, "nas")
			soon(t, "the path", func() bool {
				c.say(t, "before")
				return !directly || tv.isDirect(t, "nas") && nas.isDirect(t, "tv")
			})
			old := tv.node.carrier.own().keys()
			done := make(chan error, 1)
			go func() {
				_, err := tv.RotateKey(t.Context(), directly)
				done <- err
			}()
			for changing := true; changing; {
				select {
				case err := <-done:
					if err != nil {
						t.Fatal(err)
					}
					changing = false
				default:
					c.say(t, "meanwhile")
				}
			}
			for range 50 {
				c.say(t, "afterwards")
			}
			s, err := loadSecrets(tv.paths.State)
			if err != nil || s.keys() != tv.node.carrier.own().keys() || s.keys().Key == old.Key || (s.keys().Control == old.Control) == directly {
				t.Errorf("%+v, %+v, %v", s.keys(), old, err)
			}
			if _, err := os.Stat(filepath.Join(tv.paths.State, nextSecretsFile)); err == nil {
				t.Error("the next keys are still there")
			}
			soon(t, "the peer to believe the key", func() bool {
				m, _ := nas.node.tailnet.current()
				node, _ := m.Node("tv")
				return node.Key == s.keys().Key.String()
			})
			soon(t, "the stream", func() bool { return tv.hasStream() })
		})
	}
}

// believes reports whether a node has another one for a peer with these keys.
func (n *testNode) believes(name string, keys control.Keys) bool {
	m, _ := n.node.tailnet.current()
	node, _ := m.Node(name)
	return node.Key == keys.Key.String()
}

// keysOf are a node's keys as the gateway has them.
func (g *testGateway) keysOf(name string) control.Keys {
	for _, s := range g.node.gateway.registry.Nodes() {
		if s.Name == name && !s.Invited {
			return s.Keys()
		}
	}
	return control.Keys{}
}

// A machine may die at any moment of a change: one of the two keys is the one that the gateway knows, and it finds out which.
// The next row's machine is the one that the row before has left.
func TestADeathWhileKeysChange(t *testing.T) {
	all := t
	g := startGateway(t)
	nas, tv := g.invited(t, "nas"), g.invited(t, "tv")
	soon(t, "names", func() bool { return tv.knows(t, "nas") && nas.knows(t, "tv") && tv.hasStream() })
	for _, tt := range []struct {
		name    string
		told    bool // the gateway knows what the next keys are
		taken   bool // and has put them into its map
		mapKept bool // which the machine has on its disk
		kept    bool // and the keys with it
		lost    bool // the next ones are not on the disk any more
		reboot  bool // the gateway dies, too, and the other node
	}{
		{name: "the next keys are written"},
		{name: "the gateway is told", told: true},
		{name: "its answer is lost", told: true, lost: true},
		{name: "it dies, too, once it is told", told: true, reboot: true},
		{name: "it has taken them", told: true, taken: true},
		{name: "it dies, too, once it has taken them", told: true, taken: true, reboot: true},
		{name: "its map is kept", told: true, taken: true, mapKept: true},
		{name: "the keys are kept", told: true, taken: true, mapKept: true, kept: true},
		{name: "all is done", told: true, taken: true, mapKept: true, kept: true, lost: true},
		{name: "the keys are kept, and the map is an old one", told: true, taken: true, kept: true, lost: true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			before := tv.node.carrier.own()
			oldMap, err := os.ReadFile(tv.paths.membership())
			if err != nil {
				t.Fatal(err)
			}
			next, err := newSecrets()
			if err == nil && tt.taken {
				_, err = tv.RotateKey(t.Context(), true)
				next = tv.node.carrier.own()
			} else if err == nil && tt.told {
				err = tv.node.member.caller().Rotate(t.Context(), before.control.Rotate("foo-bar.example.org", "tv", before.keys(), next.keys()))
			}
			if err != nil {
				t.Fatal(err)
			}
			if err := tv.end(); err != nil {
				t.Fatal(err)
			}
			if tt.reboot {
				if err := errors.Join(nas.end(), g.end()); err != nil {
					t.Fatal(err)
				}
				g = startGatewayWith(all, g.cfg, g.paths)
				nas = startMember(all, nas.paths)
			}
			onDisk := before
			if tt.kept {
				onDisk = next
			}
			err = onDisk.save(tv.paths.State)
			if err == nil && !tt.lost {
				err = next.saveAs(filepath.Join(tv.paths.State, nextSecretsFile))
			}
			if err == nil && !tt.mapKept {
				err = writeFile(tv.paths.membership(), oldMap, 0o600)
			}
			if err != nil {
				t.Fatal(err)
			}
			tv = startMember(all, tv.paths)
			soon(t, "the stream", tv.hasStream)
			soon(t, "the keys to be kept", func() bool {
				s, err := loadSecrets(tv.paths.State)
				_, left := os.Stat(filepath.Join(tv.paths.State, nextSecretsFile))
				return err == nil && left != nil && s.keys() == g.keysOf("tv")
			})
			got := g.keysOf("tv")
			// A gateway that was told takes either, and a machine that hears nothing for a while tries the next ones.
			if tt.taken && got != next.keys() || !tt.told && got != before.keys() || got != next.keys() && got != before.keys() {
				t.Errorf("kept were %v, of %v and %v", got, before.keys(), next.keys())
			}
			soon(t, "the other node to believe them", func() bool { return nas.believes("tv", got) })
			soon(t, "an answer", func() bool {
				_, err := tv.Ping(t.Context(), "nas")
				return err == nil
			})
		})
	}
}

// Who was away while keys changed, more than once, believes the newest by the statements of those before (S3).
func TestWhoWasAwayBelievesTheNewKeys(t *testing.T) {
	g := startGateway(t)
	nas, tv := g.invited(t, "nas"), g.invited(t, "tv")
	soon(t, "names", func() bool { return nas.knows(t, "tv") && tv.hasStream() })
	if err := nas.end(); err != nil {
		t.Fatal(err)
	}
	for range 3 {
		if _, err := tv.RotateKey(t.Context(), true); err != nil {
			t.Fatal(err)
		}
		soon(t, "the stream", tv.hasStream)
	}
	nas = startMember(t, nas.paths)
	soon(t, "the other node to believe the keys", func() bool { return nas.believes("tv", tv.node.carrier.own().keys()) })
	soon(t, "an answer", func() bool {
		_, err := tv.Ping(t.Context(), "nas")
		return err == nil
	})
	if s, err := nas.Status(t.Context()); err != nil || strings.Contains(strings.Join(s.Problems, " "), "believed") {
		t.Errorf("%q, %v", s.Problems, err)
	}
}

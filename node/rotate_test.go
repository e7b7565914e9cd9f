package node

import (
	"os"
	"path/filepath"
	"testing"
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
	needsQuiet(t)
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

// A machine that dies before the gateway has heard of its next keys goes on with those that it has.
func TestADeathWhileKeysChange(t *testing.T) {
	g := startGateway(t)
	tv := g.invited(t, "tv")
	soon(t, "names", func() bool { return tv.knows(t, "edge") && tv.hasStream() && g.isNode(t, "tv") })
	before, err := loadSecrets(tv.paths.State)
	if err != nil {
		t.Fatal(err)
	}
	next, err := newSecrets()
	if err != nil {
		t.Fatal(err)
	}
	if err := tv.end(); err != nil {
		t.Fatal(err)
	}
	if err := next.saveAs(filepath.Join(tv.paths.State, nextSecretsFile)); err != nil {
		t.Fatal(err)
	}
	tv = startMember(t, tv.paths)
	soon(t, "the stream", func() bool { return tv.hasStream() })
	soon(t, "the keys to be kept", func() bool {
		s, err := loadSecrets(tv.paths.State)
		_, left := os.Stat(filepath.Join(tv.paths.State, nextSecretsFile))
		return err == nil && s.keys() == before.keys() && left != nil
	})
}

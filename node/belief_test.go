package node

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/meshdns/meshdns/node/control"
)

// S5, S4: a gateway that comes back from an old backup has removed nodes in its registry again. Its map counts as newer, and
// nodes that have seen the removal do not speak to the removed one before somebody there wants that.
func TestAnOldBackupBringsNoRemovedNodeBack(t *testing.T) {
	g := startGateway(t)
	nas, tv := g.invited(t, "nas"), g.invited(t, "tv")
	soon(t, "names", func() bool { return nas.knows(t, "tv") && tv.knows(t, "nas") })
	// Each start of the gateway is followed by one of the node, which then asks at once.
	away := func(meanwhile func()) {
		t.Helper()
		for _, n := range []*testNode{nas, tv, g.testNode} {
			if err := n.end(); err != nil {
				t.Fatal(err)
			}
		}
		meanwhile()
		g = startGatewayWith(t, g.cfg, g.paths)
		nas = startMember(t, nas.paths)
	}
	file := filepath.Join(t.TempDir(), "backup")
	away(func() {
		if err := g.paths.BackupGateway(t.Context(), Client{Socket: g.paths.Socket}, file, "correct horse", false); err != nil {
			t.Fatal(err)
		}
	})
	if err := g.RemoveNode(t.Context(), "tv"); err != nil {
		t.Fatal(err)
	}
	soon(t, "the removal", func() bool { return !nas.knows(t, "tv") })
	before := nas.node.member.status()
	away(func() {
		made, err := g.paths.RestoreGateway(file, "correct horse", true)
		if err != nil || time.Since(made) > time.Hour {
			t.Fatalf("%v, %v", made, err)
		}
	})
	if !g.isNode(t, "tv") {
		t.Fatal("the old registry has no tv")
	}
	soon(t, "the old registry's map", func() bool { return nas.knows(t, "tv") })
	if after := nas.node.member.status(); after.Epoch <= before.Epoch {
		t.Errorf("the map %d.%d came after %d.%d", after.Epoch, after.Version, before.Epoch, before.Version)
	}
	removed := func(n *testNode) bool { return n.speaksTo(t) == "edge" && n.doubts(t) == "tv=removed" }
	if !removed(nas) || !strings.Contains(nas.problems(t), "meshdns drop --undo tv") {
		t.Errorf("the peers are %q, and %q: %q", nas.speaksTo(t), nas.doubts(t), nas.problems(t))
	}
	if err := nas.end(); err != nil {
		t.Fatal(err)
	}
	nas = startMember(t, nas.paths)
	if !removed(nas) {
		t.Errorf("after a start the peers are %q, and %q", nas.speaksTo(t), nas.doubts(t))
	}
	if _, err := nas.Drop(t.Context(), "tv", true); err != nil {
		t.Fatal(err)
	}
	if got := nas.speaksTo(t); got != "edge tv" {
		t.Errorf("wanted again, the peers are %q", got)
	}
}

// A machine that leaves and joins anew takes new keys, since nobody believes those that were removed.
func TestJoiningAnewTakesNewKeys(t *testing.T) {
	g := startGateway(t)
	nas, tv := g.invited(t, "nas"), g.invited(t, "tv")
	soon(t, "names", func() bool { return nas.knows(t, "tv") && tv.knows(t, "nas") })
	if err := tv.end(); err != nil {
		t.Fatal(err)
	}
	if err := g.RemoveNode(t.Context(), "tv"); err != nil {
		t.Fatal(err)
	}
	soon(t, "the removal", func() bool { return !nas.knows(t, "tv") })
	before, err := loadSecrets(tv.paths.State)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(tv.paths.membership()); err != nil {
		t.Fatal(err)
	}
	reply, err := g.Invite(t.Context(), "screen", nil, 0, false)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := tv.paths.Join(t.Context(), reply.Invite, "", nil); err != nil {
		t.Fatal(err)
	}
	after, err := loadSecrets(tv.paths.State)
	if err != nil || after.keys().Key == before.keys().Key || after.keys().Control == before.keys().Control {
		t.Errorf("the keys are the old ones (%v)", err)
	}
	soon(t, "the node that joined anew", func() bool { return nas.speaksTo(t) == "edge screen" })
}

func TestWhoIsGoneIsKnownByKey(t *testing.T) {
	before := gatewayMap(t)
	now := time.Now()
	after := *before
	after.Nodes = []control.Node{before.Nodes[0]}
	renamed := *before
	renamed.Nodes = append([]control.Node{}, before.Nodes...)
	renamed.Nodes[1].Name = "store"
	other := *before
	other.Nodes = append([]control.Node{}, before.Nodes...)
	other.Nodes[1].Key = control.WireGuardKey{1}
	for name, tt := range map[string]struct {
		next *control.Map
		own  control.WireGuardKey
		want int
	}{
		"removed":      {&after, control.WireGuardKey{}, 1},
		"itself":       {&after, before.Nodes[1].Key, 0},
		"renamed":      {&renamed, control.WireGuardKey{}, 0},
		"other keys":   {&other, control.WireGuardKey{}, 1},
		"as it was":    {before, control.WireGuardKey{}, 0},
		"known so far": {&after, control.WireGuardKey{}, 1},
	} {
		gone := goneWith(nil, before, tt.next, tt.own, now)
		if name == "known so far" {
			gone = goneWith(gone, before, tt.next, tt.own, now)
		}
		if len(gone) != tt.want {
			t.Errorf("%s: %+v", name, gone)
		}
	}
	many := make([]goneNode, maxGone)
	if gone := goneWith(many, before, &after, control.WireGuardKey{}, now); len(gone) != maxGone || gone[maxGone-1].Name != "nas" {
		t.Errorf("%d are kept, the last %+v", len(gone), gone[len(gone)-1])
	}
}

// S3: what is not believed of a map, and how it is said.
func TestWhatIsBelieved(t *testing.T) {
	told := gatewayMap(t)
	nas := told.Nodes[1]
	owner := testLock(t)
	signed := *told
	signed.Nodes = append([]control.Node{}, told.Nodes...)
	for i, n := range signed.Nodes {
		s := owner.key.SignNode(told.Zone, n)
		signed.Nodes[i].Signature = &s
	}
	lock := []control.ControlKey{owner.Key()}
	changed := control.Pins{"nas": told.Nodes[0].Keys()}
	for name, tt := range map[string]struct {
		m     *control.Map
		b     beliefs
		state string
		says  string
	}{
		"nothing is known":            {told, beliefs{}, "", ""},
		"other keys":                  {told, beliefs{pins: changed}, doubtChanged, "meshdns drop --undo nas"},
		"its own":                     {told, beliefs{pins: changed, self: "nas"}, "", ""},
		"unsigned":                    {told, beliefs{lock: lock, self: "edge"}, doubtUnsigned, "meshdns lock sign"},
		"itself unsigned":             {told, beliefs{lock: lock, self: "nas", pins: control.Pins{"edge": told.Nodes[0].Keys()}}, "", "this machine"},
		"signed":                      {&signed, beliefs{lock: lock}, "", ""},
		"signed over a pin":           {&signed, beliefs{lock: lock, pins: changed}, "", ""},
		"signed, and removed":         {&signed, beliefs{lock: lock, gone: []goneNode{{Key: nas.Key}}}, doubtRemoved, "meshdns drop --undo nas"},
		"signed, and dropped":         {&signed, beliefs{lock: lock, dropped: []droppedNode{{Key: nas.Key.String()}}}, doubtDropped, ""},
		"dropped before it is judged": {told, beliefs{pins: changed, dropped: []droppedNode{{Key: nas.Key.String()}}}, doubtDropped, ""},
	} {
		if tt.b.pins == nil {
			tt.b.pins = control.Pins{}
		} else {
			tt.b.pins = control.Pins{"nas": tt.b.pins["nas"]}
			if tt.b.pins["nas"] == (control.Keys{}) {
				delete(tt.b.pins, "nas")
			}
		}
		doubts := tt.b.judge(tt.m)
		says := strings.Join(doubtLines(doubts), "\n")
		if doubts["nas"].state != tt.state || !strings.Contains(says, tt.says) || tt.says == "" && strings.Contains(says, "nas") {
			t.Errorf("%s: %+v", name, doubts)
		}
		if got := believed(doubts)(nas) == nil; got != (tt.state == "") {
			t.Errorf("%s: believed: %t", name, got)
		}
	}
}

package node

import (
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/meshdns/meshdns/node/control"
)

// beliefs are what a machine knows by itself of whom a gateway's map names (S3, S5): a gateway that was broken into, or that came
// back from an old backup, says other things.
type beliefs struct {
	self    string       // this machine's own node, whose keys need nobody's word here: without them no tunnel starts
	pins    control.Pins // which take what is seen first
	lock    []control.ControlKey
	gone    []goneNode
	dropped []droppedNode
}

// goneNode is a node whose removal, or change of keys, this machine has seen.
type goneNode struct {
	Name  string               `json:"name"`
	Key   control.WireGuardKey `json:"key"`
	Since time.Time            `json:"since"`
}

// maxGone is how many of them are kept; the oldest go first.
const maxGone = 4096

// The reasons for which a node of the map is not spoken to, as status has them.
const (
	doubtUnsigned = "unsigned" // the owner has not signed it
	doubtChanged  = "changed"  // it has other keys than before
	doubtRemoved  = "removed"  // it has the keys of a node that was removed
	doubtDropped  = "dropped"  // somebody here wanted that
)

// doubt is why a node is not spoken to.
type doubt struct {
	state string
	text  string // for whoever has to do something about it; empty: nobody has
}

// judge finds the nodes of a gateway's map whose keys are not taken.
func (b beliefs) judge(m *control.Map) map[string]doubt {
	doubts := map[string]doubt{}
	for _, n := range m.Nodes {
		if n.Name == b.self {
			if len(b.lock) > 0 && !n.SignedBy(m.Zone, b.lock) {
				doubts[n.Name] = doubt{text: "the owner has not signed this machine: other nodes with a lock do not speak to it; the owner runs: meshdns lock sign"}
			}
			continue
		}
		if d := b.doubt(m.Zone, n); d.state != "" {
			doubts[n.Name] = d
		}
	}
	return doubts
}

func (b beliefs) doubt(zone string, n control.Node) doubt {
	if isDropped(b.dropped, n) {
		return doubt{state: doubtDropped}
	}
	if i := slices.IndexFunc(b.gone, func(g goneNode) bool { return g.Key == n.Key }); i >= 0 {
		return doubt{doubtRemoved, fmt.Sprintf("%s has the keys of %s, which was removed or had changed them at %s: its keys are not believed; if that is meant: meshdns drop --undo %s",
			n.Name, b.gone[i].Name, b.gone[i].Since.Local().Format(time.DateTime), n.Name)}
	}
	err := b.pins.Check(zone, n, b.lock)
	switch {
	case err == nil:
		return doubt{}
	case len(b.lock) > 0:
		return doubt{doubtUnsigned, err.Error() + "; the owner runs: meshdns lock sign"}
	}
	return doubt{doubtChanged, err.Error() + "; if it was set up anew: meshdns drop --undo " + n.Name}
}

// believed is judge's result for mapFromGateway.
func believed(doubts map[string]doubt) func(control.Node) error {
	return func(n control.Node) error {
		if doubts[n.Name].state != "" {
			return control.ErrPinned
		}
		return nil
	}
}

// doubtLines are the doubts that somebody has to do something about, sorted.
func doubtLines(doubts map[string]doubt) []string {
	var list []string
	for _, name := range slices.Sorted(maps.Keys(doubts)) {
		if text := doubts[name].text; text != "" {
			list = append(list, text)
		}
	}
	return list
}

// goneWith adds the nodes that are not in a newer map any more, by their keys: a renamed one is the same, one with another key
// is to be believed with that alone. A gateway that goes back to an older state does not bring them back here.
func goneWith(gone []goneNode, before, after *control.Map, own control.WireGuardKey, now time.Time) []goneNode {
	still := make(map[control.WireGuardKey]bool, len(after.Nodes))
	for _, n := range after.Nodes {
		still[n.Key] = true
	}
	for _, n := range before.Nodes {
		known := slices.ContainsFunc(gone, func(g goneNode) bool { return g.Key == n.Key })
		if !still[n.Key] && !known && n.Key != own {
			gone = append(slices.Clip(gone), goneNode{n.Name, n.Key, now.UTC().Truncate(time.Second)})
		}
	}
	return gone[max(0, len(gone)-maxGone):]
}

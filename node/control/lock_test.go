package control

import (
	"errors"
	"fmt"
	"net/netip"
	"testing"
)

// S3: a gateway that was broken into hands out keys, and nobody takes them.
func TestPinnedKeysChangeOnlyByTheirOwners(t *testing.T) {
	owner, thief := newPrivateKey(t), newPrivateKey(t)
	first := Keys{newPair(t), owner.Public()}
	node := func(k Keys, rotations ...Rotation) Node {
		return Node{Name: "nas", Addresses: []netip.Addr{addr("10.0.0.2")}, Key: k.Key, Control: k.Control, Rotations: rotations}
	}
	second := Keys{newPair(t), owner.Public()}
	other := newPrivateKey(t)
	third := Keys{newPair(t), other.Public()}
	stolen := Keys{newPair(t), thief.Public()}
	one, two := owner.Rotate(testZone, "nas", first, second), owner.Rotate(testZone, "nas", second, third)
	for name, tt := range map[string]struct {
		n  Node
		ok bool
	}{
		"the same keys":          {node(first), true},
		"one rotation":           {node(second, one), true},
		"two of them":            {node(third, one, two), true},
		"one is missing":         {node(third, two), false},
		"no rotation":            {node(stolen), false},
		"a thief's rotation":     {node(stolen, thief.Rotate(testZone, "nas", first, stolen)), false},
		"one for another name":   {node(second, owner.Rotate(testZone, "tv", first, second)), false},
		"other keys behind it":   {node(stolen, one), false},
		"its WireGuard key only": {node(Keys{stolen.Key, first.Control}), false},
	} {
		pins := Pins{"nas": first}
		err := pins.Check(testZone, tt.n, nil)
		if (err == nil) != tt.ok || err != nil && !errors.Is(err, ErrPinned) {
			t.Errorf("%s: %v", name, err)
		}
		if want := map[bool]Keys{true: tt.n.Keys(), false: first}[tt.ok]; pins["nas"] != want {
			t.Errorf("%s: the pin is another one", name)
		}
	}
	pins := Pins{}
	if err := pins.Check(testZone, node(first), nil); err != nil || pins["nas"] != first {
		t.Errorf("the first sight: %v", err)
	}
}

// S3: with a lock only what the owner has signed counts.
func TestALockTakesNothingUnsigned(t *testing.T) {
	lock, thief := newPrivateKey(t), newPrivateKey(t)
	keys := []ControlKey{lock.Public()}
	n := Node{Name: "nas", Addresses: []netip.Addr{addr("10.0.0.2")}, Key: newPair(t), Control: newPrivateKey(t).Public(), Names: []string{"photos"}}
	signed := func(by PrivateKey, change func(*Node)) Node {
		n := n
		s := by.SignNode(testZone, n)
		n.Signature = &s
		change(&n)
		return n
	}
	same := func(*Node) {}
	for name, tt := range map[string]struct {
		n  Node
		ok bool
	}{
		"signed":          {signed(lock, same), true},
		"not signed":      {n, false},
		"by a thief":      {signed(thief, same), false},
		"in its name":     {signed(thief, func(n *Node) { n.Signature.By = lock.Public() }), false},
		"another key":     {signed(lock, func(n *Node) { n.Key = newPair(t) }), false},
		"another address": {signed(lock, func(n *Node) { n.Addresses = []netip.Addr{addr("10.0.0.3")} }), false},
		"another name":    {signed(lock, func(n *Node) { n.Name = "tv" }), false},
		"another service": {signed(lock, func(n *Node) { n.Names = []string{"photo", "s"} }), false},
		"its tags":        {signed(lock, func(n *Node) { n.Tags = []string{"x"} }), true},
	} {
		pins := Pins{}
		if err := pins.Check(testZone, tt.n, keys); (err == nil) != tt.ok {
			t.Errorf("%s: %v", name, err)
		}
	}
	pins := Pins{"nas": {newPair(t), newPrivateKey(t).Public()}}
	if err := pins.Check(testZone, signed(lock, same), keys); err != nil || pins["nas"] != n.Keys() {
		t.Errorf("signed keys do not win over a pin: %v", err)
	}
	r := newRig(t)
	nas := r.join("nas")
	s := lock.SignNode(testZone, nas.Node)
	if err := r.registry.Sign(t.Context(), "nas", s); err != nil {
		t.Fatal(err)
	}
	if m, _ := r.registry.Map(); m.Nodes[1].Signature == nil || Pins.Check(Pins{}, testZone, m.Nodes[1], keys) != nil {
		t.Errorf("%+v", m.Nodes[1])
	}
	wantCode(t, r.registry.Sign(t.Context(), "edge", s), codeBad)
	wantCode(t, r.registry.Sign(t.Context(), "tv", s), codeUnknownNode)
}

// S3: signatures come over the wire from any node, and only those of the owner's keys push out others.
func TestOnlyTheOwnersSignaturesAreTaken(t *testing.T) {
	r := newRig(t)
	owner, thief := newPrivateKey(t), newPrivateKey(t)
	nas, tv := r.join("nas"), r.join("tv")
	r.serve()
	bring := func(by PrivateKey, nodes ...Node) error {
		list := map[string]Signature{}
		for _, n := range nodes {
			list[n.Name] = by.SignNode(testZone, n)
		}
		return r.clientOf(tv).Sign(t.Context(), list)
	}
	signed := func(name string) bool {
		m, _ := r.registry.Map()
		for _, n := range m.Nodes {
			if n.Name == name {
				return n.SignedBy(testZone, []ControlKey{owner.Public()})
			}
		}
		return false
	}
	wantCode(t, bring(owner, nas.Node), codeNoLock)
	if signed("nas") {
		t.Error("a gateway without a lock has taken a signature from a node")
	}
	r.lock = []ControlKey{owner.Public()}
	r.registry = r.open()
	r.serve()
	other := tv.Node
	other.Addresses = nas.Addresses
	wantCode(t, bring(thief, nas.Node), codeNotYou)
	wantCode(t, bring(owner, other, nas.Node), codeBad) // the one that fits is taken
	if !signed("nas") || signed("tv") {
		t.Errorf("nas is signed: %t, tv: %t", signed("nas"), signed("tv"))
	}
	wantCode(t, bring(thief, nas.Node), codeNotYou)
	wantCode(t, r.registry.Sign(t.Context(), "nas", thief.SignNode(testZone, nas.Node)), codeNotYou)
	if !signed("nas") {
		t.Error("a thief's signature has pushed the owner's out")
	}
	many := map[string]Signature{}
	for i := range 3 * maxSignatures / 2 {
		many[fmt.Sprintf("n%d", i)] = owner.SignNode(testZone, tv.Node)
	}
	many["tv"] = owner.SignNode(testZone, tv.Node)
	wantCode(t, r.clientOf(nas).Sign(t.Context(), many), codeUnknownNode)
	if !signed("tv") {
		t.Error("one of many signatures is lost")
	}
	answer, err := r.registry.Join(t.Context(), r.invite(InviteOptions{Name: "web"}).Address, newPrivateKey(t).Public(), JoinRequest{Key: newPair(t)})
	if err != nil || !answer.Lock {
		t.Errorf("a new node is not told of the lock: %v", err)
	}
}

// A gateway writes its own record at each start, and is not to need its owner's signature each time.
func TestASignatureOutlivesAGatewaysRestart(t *testing.T) {
	r := newRig(t)
	owner := newPrivateKey(t)
	m, _ := r.registry.Map()
	edge := m.Nodes[0]
	if err := r.registry.Sign(t.Context(), "edge", owner.SignNode(testZone, edge)); err != nil {
		t.Fatal(err)
	}
	again := r.open()
	edge.Endpoints = []netip.AddrPort{netip.MustParseAddrPort("203.0.113.5:41642")}
	if err := again.Put(t.Context(), edge); err != nil {
		t.Fatal(err)
	}
	if m, _ := again.Map(); !m.Nodes[0].SignedBy(testZone, []ControlKey{owner.Public()}) {
		t.Error("the signature is gone")
	}
	edge.Addresses = []netip.Addr{addr("127.80.0.9")}
	if err := again.Put(t.Context(), edge); err != nil {
		t.Fatal(err)
	}
	if m, _ := again.Map(); m.Nodes[0].Signature != nil {
		t.Error("a signature stands below what it does not say")
	}
}

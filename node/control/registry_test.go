package control

import (
	"context"
	"encoding/json"
	"fmt"
	"net/netip"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"
)

func addr(s string) netip.Addr { return netip.MustParseAddr(s) }

func TestANodeJoinsOnceItsKeyHasCompletedAHandshake(t *testing.T) {
	r := newRig(t)
	i := r.invite(InviteOptions{Name: "nas", Tags: []string{"home"}})
	if i.Address != addr("127.80.15.253") || !i.Expires.Equal(r.now.Add(time.Hour)) || i.Control != r.key.Public() {
		t.Errorf("%#v", i.Encode())
	}
	key, control := newPair(t), newPrivateKey(t).Public()
	answer, err := r.registry.Join(t.Context(), i.Address, control, JoinRequest{Key: key})
	if err != nil {
		t.Fatal(err)
	}
	want := Node{
		Name: "nas", Key: key, Control: control, Tags: []string{"home"},
		Addresses: []netip.Addr{addr("127.80.0.2"), addr("fd00:80::1")},
	}
	if !reflect.DeepEqual(answer.Node, want) || answer.Map.Zone != testZone || answer.Gateway != r.key.Public() {
		t.Errorf("%+v", answer)
	}
	if m, _ := r.registry.Map(); mapNames(m) != "edge " {
		t.Errorf("a pending node is in the map: %s", mapNames(m))
	}
	again, err := r.registry.Join(t.Context(), i.Address, control, JoinRequest{Key: key})
	if err != nil || !reflect.DeepEqual(again.Node, want) {
		t.Errorf("the same call got %+v, %v", again.Node, err)
	}
	if changed, err := r.registry.Handshaken(t.Context(), key); !changed || err != nil {
		t.Errorf("handshaken: %t, %v", changed, err)
	}
	if m, _ := r.registry.Map(); mapNames(m) != "edge nas " {
		t.Error(mapNames(m))
	}
	if changed, err := r.registry.Handshaken(t.Context(), key); changed || err != nil {
		t.Errorf("once more: %t, %v", changed, err)
	}
	_, err = r.registry.Join(t.Context(), i.Address, control, JoinRequest{Key: key})
	wantCode(t, err, codeInviteUnknown) // it is dead
	if peers := r.registry.Peers(); len(peers) != 2 {
		t.Errorf("%+v", peers)
	}
	// And all of that is on the disk.
	if m, _ := r.open().Map(); mapNames(m) != "edge nas " {
		t.Error(mapNames(m))
	}
}

// S6, S1: what somebody gets who is not the one that the invite was for.
func TestWhoMayNotJoin(t *testing.T) {
	r := newRig(t)
	ctx := t.Context()
	nas := r.join("nas")
	i := r.invite(InviteOptions{Name: "tv"})
	mine, control := newPair(t), newPrivateKey(t).Public()
	join := func(from netip.Addr, control ControlKey, req JoinRequest) error {
		_, err := r.registry.Join(ctx, from, control, req)
		return err
	}
	wantCode(t, join(addr("127.80.9.9"), control, JoinRequest{Key: mine}), codeInviteUnknown)
	wantCode(t, join(nas.Addresses[0], control, JoinRequest{Key: mine}), codeInviteUnknown)
	wantCode(t, join(i.Address, control, JoinRequest{Key: mine, Name: "nas"}), codeNameBad)
	wantCode(t, join(i.Address, control, JoinRequest{Key: nas.Key}), codeKeyKnown)
	wantCode(t, join(i.Address, nas.Control, JoinRequest{Key: mine}), codeKeyKnown)
	wantCode(t, join(i.Address, control, JoinRequest{}), codeBad)
	public, err := publicOf(i.Key)
	if err != nil {
		t.Fatal(err)
	}
	wantCode(t, join(i.Address, control, JoinRequest{Key: public}), codeKeyKnown) // the invite's own
	if err := join(i.Address, control, JoinRequest{Key: mine}); err != nil {
		t.Fatal(err)
	}
	contested := func() time.Time {
		for _, s := range r.registry.Nodes() {
			if s.Name == "tv" && !s.Invited {
				return s.Contested
			}
		}
		return time.Time{}
	}
	if err := join(i.Address, control, JoinRequest{Key: mine}); err != nil || !contested().IsZero() {
		t.Errorf("the same key again: %v, contested %s", err, contested())
	}
	wantCode(t, join(i.Address, control, JoinRequest{Key: newPair(t)}), codeInviteUsed)
	first := contested()
	wantCode(t, join(i.Address, newPrivateKey(t).Public(), JoinRequest{Key: mine}), codeInviteUsed)
	if !first.Equal(r.now) || contested() != first {
		t.Errorf("contested at %s and %s, now is %s", first, contested(), r.now)
	}
	r.registry = r.open()
	if !contested().Equal(first) {
		t.Errorf("after a restart it was contested at %s", contested())
	}

	r.now = r.now.Add(2 * time.Hour)
	late := r.invite(InviteOptions{Name: "late", TTL: time.Minute})
	r.now = r.now.Add(time.Minute)
	wantCode(t, join(late.Address, newPrivateKey(t).Public(), JoinRequest{Key: newPair(t)}), codeInviteUnknown)
	if len(r.registry.Peers()) != 3 { // edge, nas and the pending tv
		t.Errorf("a dead invite is still a peer: %+v", r.registry.Peers())
	}
}

func TestNamesAreTheirOwners(t *testing.T) {
	r := newRig(t)
	r.join("nas")
	for name, code := range map[string]string{"nas": codeNameTaken, "wpad": codeNameBad, "edge": codeNameTaken} {
		_, err := r.registry.NewInvite(t.Context(), InviteOptions{Name: name})
		wantCode(t, err, code)
	}
	open := r.invite(InviteOptions{})
	for name, code := range map[string]string{"nas": codeNameTaken, "": codeNameBad, "wpad": codeNameBad} {
		_, err := r.registry.Join(t.Context(), open.Address, newPrivateKey(t).Public(), JoinRequest{Name: name, Key: newPair(t)})
		wantCode(t, err, code)
	}
	if _, err := r.registry.NewInvite(t.Context(), InviteOptions{Name: "x", Reusable: true}); err == nil {
		t.Error("a reusable invite for one name")
	}
}

func TestAReusableInviteGivesInvitesForOne(t *testing.T) {
	r := newRig(t)
	many := r.invite(InviteOptions{Reusable: true, TTL: 48 * time.Hour, Tags: []string{"lab"}})
	for _, name := range []string{"one", "two"} {
		control := newPrivateKey(t).Public()
		answer, err := r.registry.Join(t.Context(), many.Address, control, JoinRequest{Name: name, Key: newPair(t)})
		if err != nil || answer.Invite == "" || answer.Node.Name != "" || len(answer.Map.Nodes) > 0 {
			t.Fatalf("%+v, %v", answer, err)
		}
		one, err := ParseInvite(answer.Invite)
		if err != nil || one.Reusable || one.Address == many.Address || one.Expires.Sub(r.now) > time.Hour {
			t.Fatalf("%s, %v", answer.Invite, err)
		}
		answer, err = r.registry.Join(t.Context(), one.Address, control, JoinRequest{Key: newPair(t)})
		if err != nil || answer.Node.Name != name || answer.Node.Tags[0] != "lab" {
			t.Errorf("%+v, %v", answer.Node, err)
		}
	}
}

func TestAPlaceThatNobodyTakesIsFreeAgain(t *testing.T) {
	r := newRig(t)
	i := r.invite(InviteOptions{Name: "nas"})
	if _, err := r.registry.Join(t.Context(), i.Address, newPrivateKey(t).Public(), JoinRequest{Key: newPair(t)}); err != nil {
		t.Fatal(err)
	}
	r.now = r.now.Add(time.Hour)
	r.tick()
	if peers := r.registry.Peers(); len(peers) != 1 {
		t.Errorf("%+v", peers)
	}
	r.invite(InviteOptions{Name: "nas"})
}

// A name that is used again takes nothing of the rest of the addresses that it had.
func TestAnAddressRestsWhateverBecomesOfItsName(t *testing.T) {
	r := newRig(t)
	had := map[netip.Addr]bool{}
	for range 5 {
		nas := r.join("nas")
		for _, a := range nas.Addresses {
			if had[a] {
				t.Errorf("%s is given again", a)
			}
			had[a] = true
		}
		if err := r.registry.Rename(t.Context(), "nas", "store", time.Time{}); err != nil {
			t.Fatal(err)
		}
		if _, err := r.registry.Remove(t.Context(), "store", time.Time{}); err != nil {
			t.Fatal(err)
		}
		r.now = r.now.Add(addressRest / 5)
		r.tick()
		r.registry = r.open()
	}
	r.now = r.now.Add(addressRest / 5)
	r.tick()
	if nas := r.join("nas"); !had[nas.Addresses[0]] {
		t.Errorf("after a month it has %s, and not the first address again", nas.Addresses[0])
	}
}

// tick has what is over end.
func (r *rig) tick() {
	r.t.Helper()
	r.registry.mu.Lock()
	defer r.registry.mu.Unlock()
	if err := r.registry.changeLocked(r.t.Context(), func() ([]change, error) { return r.registry.expiredLocked(), nil }); err != nil {
		r.t.Fatal(err)
	}
}

// S5: what a removed node keeps is nothing, and what it had is nobody's for a while.
func TestRemovalRemoves(t *testing.T) {
	r := newRig(t)
	r.join("nas")
	tv := r.join("tv")
	reserved := r.now.Add(40 * 24 * time.Hour)
	was, err := r.registry.Remove(t.Context(), "nas", reserved)
	if err != nil || was.Name != "nas" {
		t.Fatal(was, err)
	}
	if m, _ := r.registry.Map(); mapNames(m) != "edge tv " || len(r.registry.Peers()) != 2 {
		t.Errorf("%s, %+v", mapNames(m), r.registry.Peers())
	}
	if _, err := r.registry.caller(was.Control, was.Addresses[0]); err == nil {
		t.Error("it may call")
	}
	_, err = r.registry.Remove(t.Context(), "nas", reserved)
	wantCode(t, err, codeUnknownNode)
	_, err = r.registry.NewInvite(t.Context(), InviteOptions{Name: "nas"})
	wantCode(t, err, codeNameTaken)
	if next := r.join("web"); next.Addresses[0] != addr("127.80.0.4") {
		t.Errorf("the next node has %s", next.Addresses[0])
	}
	r.now = r.now.Add(addressRest)
	r.tick()
	if next := r.join("web2"); next.Addresses[0] != addr("127.80.0.2") {
		t.Errorf("after a month the next node has %s", next.Addresses[0])
	}
	r.now = reserved
	r.tick()
	r.join("nas")
	if len(r.registry.gone) != 0 {
		t.Errorf("%+v is kept", r.registry.gone)
	}
	// Its keys stay nobody's, also those that were to follow: other nodes have seen them end.
	next := Keys{newPair(t), newPrivateKey(t).Public()}
	if err := r.registry.Rotate(t.Context(), "tv", tv.key.Rotate(testZone, "tv", tv.Keys(), next)); err != nil {
		t.Fatal(err)
	}
	if _, err := r.registry.Remove(t.Context(), "tv", time.Time{}); err != nil {
		t.Fatal(err)
	}
	r.now = r.now.Add(10 * addressRest)
	r.tick()
	r.registry = r.open()
	fresh := Keys{newPair(t), newPrivateKey(t).Public()}
	for name, k := range map[string]Keys{
		"the key": {tv.Key, fresh.Control}, "the control key": {fresh.Key, tv.Control}, "the next key": {next.Key, fresh.Control}, "the next control key": {fresh.Key, next.Control},
	} {
		_, err := r.registry.Join(t.Context(), r.invite(InviteOptions{Name: "tv"}).Address, k.Control, JoinRequest{Key: k.Key})
		wantCode(t, err, codeKeyKnown)
		if err == nil {
			t.Errorf("%s of a removed node is taken", name)
		}
	}
	if _, err := r.registry.Join(t.Context(), r.invite(InviteOptions{Name: "tv"}).Address, fresh.Control, JoinRequest{Key: fresh.Key}); err != nil {
		t.Errorf("with new keys: %v", err)
	}
}

// S5: a place that nobody has taken may be taken with the same keys by the next invite.
func TestAPendingNodesKeysAreNotDead(t *testing.T) {
	r := newRig(t)
	key, control := newPair(t), newPrivateKey(t).Public()
	for range 2 {
		if _, err := r.registry.Join(t.Context(), r.invite(InviteOptions{Name: "nas"}).Address, control, JoinRequest{Key: key}); err != nil {
			t.Fatal(err)
		}
		if _, err := r.registry.Remove(t.Context(), "nas", time.Time{}); err != nil {
			t.Fatal(err)
		}
	}
}

// What the store tells of changes may come late: it brings nothing back that is gone.
func TestNewsThatAreLateBringNothingBack(t *testing.T) {
	r := newRig(t)
	before := r.registry.revision
	r.join("nas")
	whole, err := r.store.Load(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	news, err := r.store.Watch(t.Context(), before)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := r.registry.Remove(t.Context(), "nas", time.Time{}); err != nil {
		t.Fatal(err)
	}
	for _, late := range []records{news, whole} {
		r.registry.mu.Lock()
		err := r.registry.takeLocked(late)
		r.registry.mu.Unlock()
		if m, _ := r.registry.Map(); err != nil || mapNames(m) != "edge " || len(r.registry.Peers()) != 1 {
			t.Errorf("%s, %+v, %v", mapNames(m), r.registry.Peers(), err)
		}
	}
}

func TestARenamedNodeIsTheSame(t *testing.T) {
	r := newRig(t)
	nas := r.join("nas")
	if err := r.registry.Rename(t.Context(), "nas", "store", r.now.Add(time.Hour)); err != nil {
		t.Fatal(err)
	}
	m, _ := r.registry.Map()
	if mapNames(m) != "edge store " || m.Nodes[1].Key != nas.Key || m.Nodes[1].Addresses[0] != nas.Addresses[0] {
		t.Errorf("%+v", m.Nodes)
	}
	wantCode(t, r.registry.Rename(t.Context(), "nas", "x", r.now), codeUnknownNode)
	wantCode(t, r.registry.Rename(t.Context(), "store", "edge", r.now), codeNameTaken)
	wantCode(t, r.registry.Rename(t.Context(), "edge", "nas", r.now), codeNameTaken)
	i := r.invite(InviteOptions{Name: "tv"})
	if _, err := r.registry.Join(t.Context(), i.Address, newPrivateKey(t).Public(), JoinRequest{Key: newPair(t)}); err != nil {
		t.Fatal(err)
	}
	wantCode(t, r.registry.Rename(t.Context(), "tv", "x", r.now), codeBusy)
}

func TestKeysChangeWhenTheNewOneHasCompletedAHandshake(t *testing.T) {
	r := newRig(t)
	nas, tv := r.join("nas"), r.join("tv")
	fresh := Keys{newPair(t), newPrivateKey(t).Public()}
	good := nas.key.Rotate(testZone, "nas", nas.Keys(), fresh)
	for name, bad := range map[string]Rotation{
		"by another key":        tv.key.Rotate(testZone, "nas", nas.Keys(), fresh),
		"for another node":      nas.key.Rotate(testZone, "tv", nas.Keys(), fresh),
		"for another zone":      nas.key.Rotate("other.example", "nas", nas.Keys(), fresh),
		"from keys that it has": tv.key.Rotate(testZone, "nas", tv.Keys(), fresh),
		"changed on the way":    {From: good.From, To: Keys{newPair(t), good.To.Control}, Signature: good.Signature},
	} {
		if err := r.registry.Rotate(t.Context(), "nas", bad); err == nil {
			t.Errorf("%s: taken", name)
		}
	}
	wantCode(t, r.registry.Rotate(t.Context(), "nas", nas.key.Rotate(testZone, "nas", nas.Keys(), Keys{tv.Key, nas.Control})), codeKeyKnown)
	for range 2 {
		if err := r.registry.Rotate(t.Context(), "nas", good); err != nil {
			t.Fatal(err)
		}
	}
	if m, _ := r.registry.Map(); m.Nodes[1].Key != nas.Key {
		t.Error("the key has changed before its handshake")
	}
	peers := 0
	for _, p := range r.registry.Peers() {
		if p.Key == fresh.Key {
			peers++
			if len(p.Addresses) > 0 {
				t.Error("a key without a handshake has addresses")
			}
		}
	}
	if changed, err := r.registry.Handshaken(t.Context(), fresh.Key); !changed || err != nil || peers != 1 {
		t.Errorf("%t, %v, %d peers", changed, err, peers)
	}
	m, _ := r.registry.Map()
	if m.Nodes[1].Keys() != fresh || len(m.Nodes[1].Rotations) != 1 || len(r.registry.Peers()) != 3 {
		t.Errorf("%+v", m.Nodes[1])
	}
	if _, err := r.registry.caller(nas.Control, nas.Addresses[0]); err == nil {
		t.Error("the old control key may call")
	}
}

// S1: a key is a node's only together with its address.
func TestAKeyCountsFromItsOwnAddressOnly(t *testing.T) {
	r := newRig(t)
	nas, tv := r.join("nas"), r.join("tv")
	for name, from := range map[string]netip.Addr{"v4": nas.Addresses[0], "v6": nas.Addresses[1]} {
		if got, err := r.registry.caller(nas.Control, from); got != "nas" || err != nil {
			t.Errorf("%s: %q, %v", name, got, err)
		}
	}
	for name, from := range map[string]netip.Addr{"another node's": tv.Addresses[0], "nobody's": addr("127.80.7.7"), "none": {}} {
		_, err := r.registry.caller(nas.Control, from)
		if err == nil {
			t.Errorf("%s: taken", name)
		}
	}
	_, err := r.registry.caller(newPrivateKey(t).Public(), nas.Addresses[0])
	wantCode(t, err, codeNotYou)
}

// S8: what a node may say of where it is.
func TestWhichEndpointsANodeMayReport(t *testing.T) {
	r := newRig(t)
	r.join("nas")
	var report Report
	for _, e := range []string{
		"192.168.1.5:41642", "8.8.8.8:41642", "127.0.0.1:41642", "10.0.0.5:80", "224.0.0.1:41642", "[fe80::1%eth0]:41642",
		"[fd12::1]:41642", "0.0.0.0:41642", "169.254.1.1:41642",
	} {
		report.Endpoints = append(report.Endpoints, netip.MustParseAddrPort(e))
	}
	r.registry.Take("nas", report)
	r.registry.Seen("nas", netip.MustParseAddrPort("198.51.100.7:30000"))
	if got := fmt.Sprint(r.registry.Endpoints("nas")); got != "[198.51.100.7:30000 192.168.1.5:41642 [fd12::1]:41642]" {
		t.Error(got)
	}
	report.Endpoints = nil
	for port := range uint16(20) {
		report.Endpoints = append(report.Endpoints, netip.AddrPortFrom(addr("10.0.0.1"), 2000+port))
	}
	r.registry.Take("nas", report)
	if got := len(r.registry.Endpoints("nas")); got != 1+maxEndpoints {
		t.Errorf("%d endpoints", got)
	}
	r.registry.Take("nobody", report)
	r.registry.Seen("nobody", report.Endpoints[0])
	if r.registry.Endpoints("nobody") != nil || len(r.registry.live) != 1 {
		t.Error("something is kept of a node that does not exist")
	}
}

func TestTheEpochNeverGoesBack(t *testing.T) {
	r := newRig(t)
	first, _ := r.registry.Map()
	second, _ := r.open().Map()
	r.now = r.now.Add(-24 * 365 * time.Hour) // a clock that lost its battery
	third, _ := r.open().Map()
	if first.Epoch >= second.Epoch || second.Epoch >= third.Epoch {
		t.Errorf("epochs %d, %d, %d", first.Epoch, second.Epoch, third.Epoch)
	}
}

func TestZoneAndRangesStay(t *testing.T) {
	r := newRig(t)
	_, err := openRegistry(t.Context(), RegistryConfig{Zone: "other.example", Ranges: testRanges()}, r.store)
	if err == nil || !strings.Contains(err.Error(), "other.example") {
		t.Error(err)
	}
}

func TestTheLastAddressIsTheServiceAddress(t *testing.T) {
	for p, want := range map[string][2]string{
		"10.0.0.0/24": {"10.0.0.1", "10.0.0.254"},
		"10.0.0.0/31": {"10.0.0.0", "10.0.0.1"},
		"fd00::/64":   {"fd00::1", "fd00::ffff:ffff:ffff:ffff"},
		"10.0.0.9/32": {"10.0.0.9", "10.0.0.9"},
	} {
		p := netip.MustParsePrefix(p)
		if first, last := firstHost(p), lastHost(p); first != addr(want[0]) || last != addr(want[1]) {
			t.Errorf("%s: %s to %s, want %v", p, first, last, want)
		}
	}
}

func TestAFullRangeIsSaid(t *testing.T) {
	r := &rig{t: t, key: newPrivateKey(t), now: time.Now()}
	var err error
	r.registry, err = OpenRegistry(t.Context(), RegistryConfig{
		File: filepath.Join(t.TempDir(), "x.db"), Zone: testZone, Ranges: []netip.Prefix{netip.MustParsePrefix("127.80.0.0/29")},
	})
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := r.registry.Close(); err != nil {
			t.Error(err)
		}
	}()
	for n := range 3 { // of six host addresses one is the service address, and one each time the invite's
		r.join(fmt.Sprint("n", n))
	}
	i := r.invite(InviteOptions{Name: "n3"})
	if _, err = r.registry.Join(t.Context(), i.Address, newPrivateKey(t).Public(), JoinRequest{Key: newPair(t)}); err != nil {
		t.Fatal(err)
	}
	_, err = r.registry.NewInvite(t.Context(), InviteOptions{Name: "n4"})
	wantCode(t, err, codeFull)
}

// A delta leads to the very map that it stands for, from every version before it.
func TestDeltasLeadToTheMap(t *testing.T) {
	r := newRig(t)
	maps := []*Map{}
	note := func() {
		m, _ := r.registry.Map()
		maps = append(maps, m)
	}
	for n := range 6 {
		r.join(fmt.Sprint("n", n))
		note()
	}
	steps := []func() error{
		func() error { _, err := r.registry.Remove(context.Background(), "n1", r.now); return err },
		func() error { return r.registry.Rename(context.Background(), "n2", "renamed", r.now) },
		func() error { return r.registry.Policy(context.Background(), "new") },
		func() error { _, err := r.registry.Remove(context.Background(), "n3", time.Time{}); return err },
	}
	for _, step := range steps {
		if err := step(); err != nil {
			t.Fatal(err)
		}
		note()
	}
	last := maps[len(maps)-1]
	deltas := 0
	for _, from := range maps {
		e, m, _ := r.registry.update(from.Epoch, from.Version)
		if e.Delta != nil {
			deltas++
		}
		got, err := e.Newer(from)
		if err != nil || m != last || asJSON(t, got.Nodes) != asJSON(t, last.Nodes) || got.Version != last.Version || got.Policy != "new" {
			t.Errorf("from version %d: %s, %v", from.Version, asJSON(t, got), err)
		}
	}
	if deltas < 4 {
		t.Errorf("%d deltas of %d", deltas, len(maps))
	}
	for _, have := range [][2]uint64{{0, 0}, {last.Epoch - 1, last.Version}, {last.Epoch, last.Version + 5}} {
		if e, _, _ := r.registry.update(have[0], have[1]); e.Map == nil {
			t.Errorf("who has map %v gets no whole one", have)
		}
	}
}

// A name that left the map and waits to be in it again is not in it.
func TestANameThatIsGoneAndPendingIsGone(t *testing.T) {
	r := newRig(t)
	for n := range 4 {
		r.join(fmt.Sprint("n", n))
	}
	have, _ := r.registry.Map()
	if _, err := r.registry.Remove(t.Context(), "n1", time.Time{}); err != nil {
		t.Fatal(err)
	}
	i := r.invite(InviteOptions{Name: "n1"})
	if _, err := r.registry.Join(t.Context(), i.Address, newPrivateKey(t).Public(), JoinRequest{Key: newPair(t)}); err != nil {
		t.Fatal(err)
	}
	e, _, _ := r.registry.update(have.Epoch, have.Version)
	if e.Delta == nil || len(e.Delta.Remove) != 1 || e.Delta.Remove[0] != "n1" {
		t.Errorf("%+v", e.Delta)
	}
}

func asJSON(t *testing.T, v any) string {
	t.Helper()
	data, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}

// S4: what a node takes from a gateway's stream.
func TestAMapNeverGoesBack(t *testing.T) {
	have := &Map{Zone: testZone, Ranges: testRanges(), Epoch: 5, Version: 7, Nodes: []Node{}}
	for name, change := range map[string]func(*Map){
		"an older epoch":   func(m *Map) { m.Epoch = 4 },
		"an older version": func(m *Map) { m.Version = 6 },
		"another zone":     func(m *Map) { m.Zone = "bank.example" },
		"other ranges":     func(m *Map) { m.Ranges = m.Ranges[:1] },
	} {
		next := *have
		change(&next)
		if _, err := (Event{Map: &next}).Newer(have); err == nil {
			t.Errorf("%s: taken", name)
		}
	}
	next := *have
	next.Epoch, next.Version = 6, 1
	if got, err := (Event{Map: &next}).Newer(have); err != nil || got != &next {
		t.Errorf("%v, %v", got, err)
	}
	for name, e := range map[string]Event{
		"a delta from elsewhere": {Delta: &Delta{From: 6, Version: 8}},
		"a delta to the past":    {Delta: &Delta{From: 7, Version: 7}},
	} {
		if _, err := e.Newer(have); err == nil {
			t.Errorf("%s: taken", name)
		}
	}
	if _, err := (Event{Delta: &Delta{From: 7, Version: 8}}).Newer(nil); err == nil {
		t.Error("a delta from nothing")
	}
	until := time.Unix(1_900_000_000, 0)
	if got, err := (Event{Trust: until}).Newer(have); err != nil || !got.TrustUntil.Equal(until) || got.Version != 7 {
		t.Errorf("%+v, %v", got, err)
	}
}

// Two gateways that share a store see each other's changes, and neither overwrites the other's.
func TestGatewaysShareAStore(t *testing.T) {
	r := newRig(t)
	other := &rig{t: t, store: r.store, key: r.key, now: r.now}
	other.registry = other.open()
	if _, err := other.registry.NewInvite(t.Context(), InviteOptions{Name: "edge"}); err == nil {
		t.Error("the name is taken at the other gateway")
	}
	// Each makes changes that the other has not seen yet.
	r.join("nas")
	other.join("tv")
	r.join("web")
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 2)
	for _, registry := range []*Registry{r.registry, other.registry} {
		go func() { done <- registry.Run(ctx) }()
		eventually(t, "all to be known", func() bool {
			m, _ := registry.Map()
			return mapNames(m) == "edge nas tv web "
		})
	}
	if _, err := other.registry.Remove(t.Context(), "nas", time.Time{}); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the removal to be known", func() bool {
		m, _ := r.registry.Map()
		return mapNames(m) == "edge tv web " && len(r.registry.Peers()) == 3
	})
	cancel()
	for range 2 {
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
	seen := map[netip.Addr]string{}
	m, _ := r.registry.Map()
	for _, n := range m.Nodes {
		if who := seen[n.Addresses[0]]; who != "" {
			t.Errorf("%s and %s have the same address", who, n.Name)
		}
		seen[n.Addresses[0]] = n.Name
	}
}

func TestInvitesCanBeTakenBack(t *testing.T) {
	r := newRig(t)
	i := r.invite(InviteOptions{Name: "nas"})
	r.invite(InviteOptions{Name: "tv"})
	if n, err := r.registry.Uninvite(t.Context(), "nas"); n != 1 || err != nil {
		t.Errorf("%d, %v", n, err)
	}
	_, err := r.registry.Join(t.Context(), i.Address, newPrivateKey(t).Public(), JoinRequest{Key: newPair(t)})
	wantCode(t, err, codeInviteUnknown)
	if len(r.registry.Peers()) != 2 {
		t.Errorf("%+v", r.registry.Peers())
	}
}

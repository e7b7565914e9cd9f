package node

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/meshdns/meshdns/node/control"
)

// testLock makes a lock of an owner.
func testLock(t *testing.T) ownersLock {
	t.Helper()
	file := filepath.Join(t.TempDir(), "lock.key")
	if _, err := (Paths{}).InitLock(file, ""); err != nil {
		t.Fatal(err)
	}
	lock, err := Paths{}.OpenLock(file, nil)
	if err != nil {
		t.Fatal(err)
	}
	return lock
}

// speaksTo are the nodes that a node has as peers, sorted.
func (n *testNode) speaksTo(t *testing.T) string {
	t.Helper()
	s, err := n.Status(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	var list []string
	for _, p := range s.Tunnel.Peers {
		list = append(list, p.Node)
	}
	slices.Sort(list)
	return strings.Join(list, " ")
}

// doubts are the reasons why a node does not speak to others, by name, in one word each.
func (n *testNode) doubts(t *testing.T) string {
	t.Helper()
	s, err := n.Status(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	var list []string
	for _, one := range s.Nodes {
		if one.Doubt != "" {
			list = append(list, one.Name+"="+one.Doubt)
		}
	}
	return strings.Join(list, " ")
}

func (n *testNode) problems(t *testing.T) string {
	t.Helper()
	s, err := n.Status(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return strings.Join(s.Problems, "\n")
}

// sign has an owner sign what a node tells of these, and bring it by that node.
func (n *testNode) sign(t *testing.T, lock ownersLock, names ...string) error {
	t.Helper()
	records, err := n.LockRecords(t.Context(), nil)
	if err != nil {
		t.Fatal(err)
	}
	asked := 0
	signed, err := lock.Sign(records, names, func(string, []string) bool { asked++; return true })
	if err != nil || asked != len(names) || len(signed.Signatures) != len(names) {
		t.Fatalf("%+v, %v", signed, err)
	}
	return n.BringSignatures(t.Context(), signed)
}

// S3: a gateway that was broken into inserts a node. Who has a lock does not speak to it before the owner has signed it; who has
// none does.
func TestALockKeepsInsertedNodesOut(t *testing.T) {
	lock, thief := testLock(t), testLock(t)
	gateway := gatewayTestConfig(t)
	gateway.Lock = []control.ControlKey{lock.Key()}
	g := startGatewayWith(t, gateway, testPaths(t))
	reply, err := g.Invite(t.Context(), "nas", nil, 0, false)
	if err != nil {
		t.Fatal(err)
	}
	paths := testPaths(t)
	if joined, err := paths.Join(t.Context(), reply.Invite, "", nil); err != nil || !joined.Lock {
		t.Fatalf("%+v, %v", joined, err)
	}
	cfg := testConfig()
	cfg.Node, cfg.Tunnel, cfg.Lock = "", tunnelConfig{Mode: "userspace"}, []control.ControlKey{lock.Key()}
	nas := startNode(t, cfg, paths)
	tv, trusting := g.invited(t, "tv"), g.invited(t, "trusting")
	soon(t, "names on all", func() bool { return nas.knows(t, "tv") && nas.knows(t, "trusting") && trusting.knows(t, "tv") })
	if got := trusting.speaksTo(t); got != "edge nas tv" {
		t.Errorf("without a lock the peers are %q", got)
	}
	if peers, doubts := nas.speaksTo(t), nas.doubts(t); peers != "" || doubts != "edge=unsigned trusting=unsigned tv=unsigned" {
		t.Errorf("with a lock the peers are %q, and %q", peers, doubts)
	}
	if got := nas.problems(t); !strings.Contains(got, "tv is not signed by a key of the lock") || !strings.Contains(got, "has not signed this machine") {
		t.Errorf("status says %q", got)
	}
	// Somebody else's signature is not taken, whoever brings it, and not believed where it was put in.
	for _, by := range []*testNode{tv, g.testNode} {
		if err := by.sign(t, thief, "tv"); !errors.Is(err, ErrBadRequest) || !strings.Contains(err.Error(), "no key of this gateway's lock") {
			t.Errorf("a thief's signature: %v", err)
		}
	}
	// The owner's come over the control connection of the very node that waits for them.
	if err := nas.sign(t, lock, "edge", "nas", "trusting"); err != nil {
		t.Fatal(err)
	}
	soon(t, "what the owner signed", func() bool { return nas.speaksTo(t) == "edge trusting" })
	if got := nas.doubts(t); got != "tv=unsigned" {
		t.Errorf("doubts are %q", got)
	}
	if err := g.sign(t, lock, "tv"); err != nil {
		t.Fatal(err)
	}
	soon(t, "what the owner signed at last", func() bool { return nas.speaksTo(t) == "edge trusting tv" && nas.doubts(t) == "" })
	// All of that outlives both.
	if err := nas.end(); err != nil {
		t.Fatal(err)
	}
	if err := g.end(); err != nil {
		t.Fatal(err)
	}
	if again := startNode(t, cfg, paths); again.speaksTo(t) != "edge trusting tv" {
		t.Errorf("after a start the peers are %q", again.speaksTo(t))
	}
}

func TestSignaturesNeedAGatewayThatKnowsTheLock(t *testing.T) {
	lock := testLock(t)
	g := startGateway(t)
	nas := g.invited(t, "nas")
	soon(t, "the node", func() bool { return g.isNode(t, "nas") && nas.knows(t, "nas") })
	if err := nas.sign(t, lock, "nas"); !errors.Is(err, ErrBadRequest) || !strings.Contains(hintOf(err), "meshdns gateway sign") {
		t.Errorf("brought by a node: %v", err)
	}
	if err := g.sign(t, lock, "nas"); err != nil { // whoever runs the gateway may
		t.Errorf("on the gateway: %v", err)
	}
	s := lockSignatures{Schema: "meshdns.lock.signatures/v1", Zone: "other.example.org"}
	s.Signatures = map[string]control.Signature{"nas": {}}
	if err := g.BringSignatures(t.Context(), s); !errors.Is(err, ErrBadRequest) {
		t.Errorf("of another zone: %v", err)
	}
	alone := startNode(t, testConfig(), testPaths(t))
	if _, err := alone.LockRecords(t.Context(), nil); !errors.Is(err, ErrBadRequest) || hintOf(err) == "" {
		t.Errorf("a node without a gateway: %v", err)
	}
}

func TestAnOwnersKeyIsKept(t *testing.T) {
	phrase := func() (string, error) { return "correct horse", nil }
	for name, passphrase := range map[string]string{"plain": "", "encrypted": "correct horse"} {
		file := filepath.Join(t.TempDir(), "lock.key")
		made, err := Paths{}.InitLock(file, passphrase)
		if err != nil || made.Encrypted != (passphrase != "") {
			t.Fatalf("%s: %+v, %v", name, made, err)
		}
		info, err := os.Stat(file)
		if err != nil || info.Mode().Perm() != 0o600 {
			t.Errorf("%s: %v, %v", name, info.Mode(), err)
		}
		lock, err := Paths{}.OpenLock(file, phrase)
		if err != nil || lock.Key() != made.Key {
			t.Errorf("%s: %v, %v", name, lock, err)
		}
		seed := lock.key.Seed()
		if s := fmt.Sprintf("%v %+v %#v", lock, lock, lock); strings.Contains(s, fmt.Sprint(seed[0], " ", seed[1])) {
			t.Errorf("%s: the key prints itself: %s", name, s)
		}
		data, err := os.ReadFile(file)
		if err != nil || bytes.Contains(data, []byte(made.Key.String())) == made.Encrypted {
			t.Errorf("%s: the file is %q, %v", name, data, err)
		}
		if _, err := (Paths{}).InitLock(file, passphrase); err == nil {
			t.Errorf("%s: it is replaced", name)
		}
		if err := os.WriteFile(file, data[:len(data)-10], 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := (Paths{}).OpenLock(file, phrase); err == nil || strings.Contains(err.Error(), "correct") {
			t.Errorf("%s: half of it: %v", name, err)
		}
	}
	if _, err := (Paths{}).InitLock(filepath.Join(t.TempDir(), "k"), "short"); err == nil {
		t.Error("a short passphrase is taken")
	}
	if _, err := (Paths{}).OpenLock(filepath.Join(t.TempDir(), "k"), nil); !errors.Is(err, ErrNotFound) || hintOf(err) == "" {
		t.Errorf("no file: %v", err)
	}
}

// What is to be signed is read from a file that the gateway wrote, and shown on a terminal.
func FuzzLockRecords(f *testing.F) {
	f.Add([]byte(`{"zone":"z","nodes":[{"name":"nas","state":"node","key":"AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAE=","control":"AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAE="},{"name":"tv","state":"invited","key":""}]}`))
	f.Add([]byte(`{"zone":"z","nodes":[{"name":"a\u001bb","state":"node"}]}`))
	key, err := control.NewPrivateKey()
	if err != nil {
		f.Fatal(err)
	}
	lock := ownersLock{key}
	f.Fuzz(func(t *testing.T, data []byte) {
		r, err := Client{}.LockRecords(t.Context(), bytes.NewReader(data))
		if err != nil {
			return
		}
		for _, one := range r.Nodes {
			if strings.ContainsFunc(one.Name+strings.Join(one.Names, ""), func(c rune) bool { return c <= ' ' || c > '~' }) {
				t.Errorf("the name %q is shown", one.Name)
			}
		}
		signed, err := lock.Sign(r, nil, func(string, []string) bool { return true })
		if err != nil {
			t.Fatal(err)
		}
		text, err := json.Marshal(signed)
		if err != nil {
			t.Fatal(err)
		}
		if again, err := readLockSignatures(bytes.NewReader(text)); err != nil || len(again.Signatures) != len(signed.Signatures) {
			t.Errorf("%+v came back as %+v, %v", signed, again, err)
		}
	})
}

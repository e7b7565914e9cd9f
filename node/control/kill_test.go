package control

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"
)

// deed is one thing that the gateway of the test below does: it is told before, and again when it is done.
type deed struct {
	Kind    string       `json:"kind"` // invite, join, shake, rename, remove, tick
	Done    bool         `json:"done"`
	At      time.Time    `json:"at"`
	Name    string       `json:"name"`
	To      string       `json:"to,omitempty"`
	Invite  WireGuardKey `json:"invite"`
	Keys    Keys         `json:"keys"`
	Address []netip.Addr `json:"address,omitempty"`
}

// place is a node as the model knows it.
type place struct {
	keys    Keys
	address []netip.Addr
	pending bool
	invite  WireGuardKey
}

// ledger is what a registry has to hold, by all that it has said was done.
type ledger struct {
	nodes   map[string]place
	invites map[WireGuardKey]string // by whom it was taken; "": nobody
	dead    map[WireGuardKey]bool
	freed   map[netip.Addr]time.Time // when a node that had it was removed
	had     map[netip.Addr]WireGuardKey
}

func newLedger() *ledger {
	return &ledger{
		map[string]place{}, map[WireGuardKey]string{}, map[WireGuardKey]bool{}, map[netip.Addr]time.Time{}, map[netip.Addr]WireGuardKey{},
	}
}

func (l *ledger) clone() *ledger {
	return &ledger{maps.Clone(l.nodes), maps.Clone(l.invites), maps.Clone(l.dead), maps.Clone(l.freed), maps.Clone(l.had)}
}

// do takes a deed in. It returns what must never happen.
func (l *ledger) do(d deed) error {
	switch d.Kind {
	case "invite":
		l.invites[d.Invite] = ""
	case "join":
		if by, ok := l.invites[d.Invite]; !ok || by != "" {
			return fmt.Errorf("%s has joined with an invite that %q took", d.Name, by)
		}
		for _, a := range d.Address {
			if at, ok := l.freed[a]; ok && d.At.Before(at.Add(addressRest)) {
				return fmt.Errorf("%s has %s, which was another node's until %s", d.Name, a, at)
			}
			for name, other := range l.nodes {
				if slices.Contains(other.address, a) {
					return fmt.Errorf("%s has %s, which is %s's", d.Name, a, name)
				}
			}
			l.had[a] = d.Keys.Key
		}
		l.invites[d.Invite] = d.Name
		l.nodes[d.Name] = place{d.Keys, d.Address, true, d.Invite}
	case "shake":
		n := l.nodes[d.Name]
		delete(l.invites, n.invite)
		l.dead[n.invite] = true
		n.pending, n.invite = false, WireGuardKey{}
		l.nodes[d.Name] = n
	case "rename":
		l.nodes[d.To] = l.nodes[d.Name]
		delete(l.nodes, d.Name)
	case "remove":
		n := l.nodes[d.Name]
		for _, a := range n.address {
			l.freed[a] = d.At
		}
		delete(l.invites, n.invite)
		l.dead[n.invite] = true
		delete(l.nodes, d.Name)
	}
	return nil
}

// ledgerOf is what a registry holds, with what the ledger knows besides.
func ledgerOf(r *Registry, l *ledger) *ledger {
	got := &ledger{map[string]place{}, map[WireGuardKey]string{}, l.dead, l.freed, l.had}
	ids := map[string]WireGuardKey{}
	for id, i := range r.invites {
		ids[id] = i.Key
		got.invites[i.Key] = i.Node
	}
	for name, n := range r.nodes {
		got.nodes[name] = place{n.Node.Keys(), n.Node.Addresses, n.Pending, ids[n.Invite]}
	}
	return got
}

// gatewayVariable has this test binary be a gateway that does one thing after another, until it is killed.
const gatewayVariable = "MESHDNS_TEST_REGISTRY"

// killTime is when the first of the test's gateways starts. Its clock makes five hours with each deed, so that addresses have rested
// within the test.
func killTime() time.Time { return time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC) }

const deedTime = 5 * time.Hour

// A gateway that is killed at any moment, again and again, has every change that it has said was made, and of the one that was
// under way all or nothing. It gives no address again within a month, and takes no invite twice.
func TestAKilledGatewayKeepsWhatItHasSaid(t *testing.T) {
	if text := os.Getenv(gatewayVariable); text != "" {
		actForEver(t, text)
		return
	}
	kills := 40
	if os.Getenv("MESHDNS_SOAK") != "" {
		kills = 400
	}
	seed := uint64(time.Now().UnixNano())
	if text := os.Getenv("MESHDNS_SEED"); text != "" {
		seed, _ = strconv.ParseUint(text, 10, 64)
	}
	t.Logf("MESHDNS_SEED=%d", seed)
	source := rand.New(rand.NewPCG(seed, 0))
	path := filepath.Join(t.TempDir(), "registry.db")
	known, at, done := newLedger(), killTime(), 0
	for range kills {
		list := killedWhile(t, path, at, source)
		var open *deed
		for i, d := range list {
			at = d.At
			if open = &list[i]; d.Done {
				open = nil
				done++
				if err := known.do(d); err != nil {
					t.Fatal(err)
				}
			}
		}
		known = checkRegistry(t, path, at, known, open)
	}
	if done < kills {
		t.Errorf("%d deeds in %d lives", done, kills)
	}
	t.Logf("%d deeds, %d nodes, %d addresses given", done, len(known.nodes), len(known.had))
}

// killedWhile runs a gateway, kills it at some moment, and returns what it said.
func killedWhile(t *testing.T, path string, at time.Time, source *rand.Rand) (list []deed) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^TestAKilledGatewayKeeps", "-test.v")
	cmd.Env = append(os.Environ(), fmt.Sprintf("%s=%d %d %s", gatewayVariable, source.Uint64(), at.Unix(), path))
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	last := 1 + source.IntN(40)
	lines := bufio.NewScanner(out)
	var failed strings.Builder
	for lines.Scan() {
		text, ok := strings.CutPrefix(lines.Text(), "deed ")
		if !ok {
			fmt.Fprintln(&failed, lines.Text())
			continue
		}
		var d deed
		if err := json.Unmarshal([]byte(text), &d); err != nil {
			t.Fatal(err)
		}
		if list = append(list, d); len(list) == last {
			// What it does next takes some milliseconds, most of them for the disk.
			time.AfterFunc(time.Duration(source.IntN(8000))*time.Microsecond, func() { _ = cmd.Process.Kill() })
		}
	}
	_ = cmd.Wait() // killed
	if len(list) < last {
		t.Fatalf("the gateway ended itself: %s", failed.String())
	}
	return list
}

// checkRegistry opens what a killed gateway has left, and compares it to what it has said, and, maybe, to what it was about to do.
func checkRegistry(t *testing.T, path string, at time.Time, known *ledger, open *deed) *ledger {
	t.Helper()
	r, err := OpenRegistry(t.Context(), RegistryConfig{File: path, Zone: testZone, Ranges: testRanges(), Now: func() time.Time { return at }})
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := r.Close(); err != nil {
			t.Error(err)
		}
	}()
	got := ledgerOf(r, known)
	if open != nil && !reflect.DeepEqual(got, known) {
		next, d := known.clone(), *open
		switch d.Kind {
		case "invite": // whose key was not known yet
			for key := range got.invites {
				if _, ok := known.invites[key]; !ok {
					d.Invite = key
				}
			}
		case "join":
			d.Address = got.nodes[d.Name].address
		}
		if err := next.do(d); err != nil {
			t.Fatal(err)
		}
		known, got = next, ledgerOf(r, next)
	}
	if !reflect.DeepEqual(got.nodes, known.nodes) || !reflect.DeepEqual(got.invites, known.invites) {
		t.Fatalf("the registry holds\n%v\n%v\nand is to hold\n%v\n%v\nwith %+v under way", got.nodes, got.invites, known.nodes, known.invites, open)
	}
	for _, i := range r.invites {
		if known.dead[i.Key] {
			t.Fatal("an invite is back from the dead")
		}
		if i.Node != "" {
			_, err := r.Join(t.Context(), i.Address, newPrivateKey(t).Public(), JoinRequest{Key: newPair(t)})
			wantCode(t, err, codeInviteUsed)
		}
	}
	return known
}

// actForEver does one thing after another to a registry, and tells of each before and after.
func actForEver(t *testing.T, text string) {
	var seed uint64
	var unix int64
	var path string
	if _, err := fmt.Sscan(text, &seed, &unix, &path); err != nil {
		t.Fatal(err)
	}
	now := time.Unix(unix, 0).UTC()
	r, err := OpenRegistry(t.Context(), RegistryConfig{File: path, Zone: testZone, Ranges: testRanges(), Now: func() time.Time { return now }})
	if err != nil {
		t.Fatal(err)
	}
	tell := func(d deed) {
		data, err := json.Marshal(d)
		if err != nil {
			t.Fatal(err)
		}
		fmt.Println("deed " + string(data))
	}
	for source := rand.New(rand.NewPCG(seed, 1)); ; {
		now = now.Add(deedTime)
		d := r.nextDeed(t, source)
		d.At = now
		tell(d)
		err := r.act(t.Context(), &d)
		var refused *RefusedError
		if errors.As(err, &refused) {
			continue
		}
		if err != nil {
			t.Fatal(err)
		}
		d.Done = true
		tell(d)
	}
}

// nextDeed is something that can be done now.
func (r *Registry) nextDeed(t *testing.T, source *rand.Rand) deed {
	var nodes, pending []string
	for name, n := range r.nodes {
		if nodes = append(nodes, name); n.Pending {
			pending = append(pending, name)
		}
	}
	var free []*inviteRecord
	for _, i := range r.invites {
		if i.Node == "" {
			free = append(free, i)
		}
	}
	fresh := fmt.Sprintf("n%d", source.IntN(30)) // names come back
	switch kind := source.IntN(10); {
	case kind < 3 && len(free) > 0:
		i := free[source.IntN(len(free))]
		return deed{Kind: "join", Name: fresh, Invite: i.Key, Keys: Keys{newPair(t), newPrivateKey(t).Public()}}
	case kind < 6 && len(pending) > 0:
		name := pending[source.IntN(len(pending))]
		return deed{Kind: "shake", Name: name, Keys: r.nodes[name].Node.Keys()}
	case kind == 6 && len(nodes) > 0:
		return deed{Kind: "rename", Name: nodes[source.IntN(len(nodes))], To: fresh}
	case kind < 9 && len(nodes) > 2:
		return deed{Kind: "remove", Name: nodes[source.IntN(len(nodes))]}
	case kind == 9:
		return deed{Kind: "tick"}
	}
	return deed{Kind: "invite"}
}

// act does it, and adds what came of it.
func (r *Registry) act(ctx context.Context, d *deed) error {
	switch d.Kind {
	case "invite":
		i, err := r.NewInvite(ctx, InviteOptions{TTL: 10000 * time.Hour})
		if err == nil {
			d.Invite, err = publicOf(i.Key)
		}
		return err
	case "join":
		for _, i := range r.invites {
			if i.Key == d.Invite {
				answer, err := r.Join(ctx, i.Address, d.Keys.Control, JoinRequest{Name: d.Name, Key: d.Keys.Key})
				d.Address = answer.Node.Addresses
				return err
			}
		}
		return fmt.Errorf("no invite %s", d.Invite)
	case "shake":
		_, err := r.Handshaken(ctx, d.Keys.Key)
		return err
	case "rename":
		return r.Rename(ctx, d.Name, d.To, time.Time{})
	case "remove":
		_, err := r.Remove(ctx, d.Name, time.Time{})
		return err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.changeLocked(ctx, func() ([]change, error) { return r.expiredLocked(), nil })
}

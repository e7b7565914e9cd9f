package node

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/meshdns/meshdns/node/control"
)

// pathDrop is the call that has this machine speak to a node no more, or again.
const pathDrop = "/v1/drop"

// droppedFile holds the nodes that this machine does not speak to, below the state directory: whatever map comes (S5).
const droppedFile = "dropped.json"

// maxDropped bounds them.
const maxDropped = 1000

// droppedNode is one of them. It is known by its keys: under another name it stays dropped.
type droppedNode struct {
	Name    string             `json:"name"`
	Key     string             `json:"key"`              // WireGuard public key
	Control control.ControlKey `json:"control,omitzero"` // where a gateway gave one
	Since   time.Time          `json:"since"`
}

// dropped are the nodes that somebody wanted dropped here.
type dropped struct {
	mu   sync.Mutex
	list []droppedNode // never changed, only replaced
}

type dropRequest struct {
	Node string `json:"node"`
	Undo bool   `json:"undo"`
}

// dropReply are the nodes that this machine does not speak to.
type dropReply struct {
	Schema  string        `json:"schema"` // meshdns.drop/v1
	Dropped []droppedNode `json:"dropped"`
}

func (d *dropped) all() []droppedNode {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.list
}

// isDropped reports whether a gateway's node is one of them, be it with keys that its old ones vouch for.
func isDropped(list []droppedNode, n control.Node) bool {
	was := []control.Keys{n.Keys()}
	for _, r := range n.Rotations {
		was = append(was, r.From)
	}
	return slices.ContainsFunc(list, func(d droppedNode) bool {
		return slices.ContainsFunc(was, func(k control.Keys) bool {
			return d.Key == k.Key.String() || d.Control != (control.ControlKey{}) && d.Control == k.Control
		})
	})
}

// load reads them from the state directory.
func (d *dropped) load(stateDir string) error {
	path := filepath.Join(stateDir, droppedFile)
	data, err := readFile(path, 1<<20)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	var reply dropReply
	if err == nil {
		err = json.Unmarshal(data, &reply)
	}
	if err != nil {
		// Nodes that somebody wanted dropped would be spoken to.
		return hinted(nil, fmt.Errorf("reading %s: %w", path, err), "remove the file, and drop anew who is to be: meshdns drop NODE")
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.list = reply.Dropped
	return nil
}

// set keeps another list, on the disk first.
func (d *dropped) set(stateDir string, list []droppedNode) error {
	data, err := json.Marshal(dropReply{"meshdns.drop/v1", list})
	if err == nil {
		err = writeFile(filepath.Join(stateDir, droppedFile), append(data, '\n'), 0o600)
	}
	if err != nil {
		return fmt.Errorf("dropping a node: %w", err)
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.list = list
	return nil
}

// strip is a map in which those nodes have no key, so that they are no peers. Their names stay.
func (d *dropped) strip(m *Map) *Map {
	list := d.all()
	is := func(n Machine) bool {
		return n.Key != "" && slices.ContainsFunc(list, func(one droppedNode) bool { return one.Key == n.Key })
	}
	if !slices.ContainsFunc(m.nodes, is) {
		return m
	}
	next := *m
	next.nodes = slices.Clone(m.nodes)
	for i, n := range next.nodes {
		if is(n) {
			next.nodes[i].Key, next.nodes[i].Endpoints, next.nodes[i].dropped = "", nil, n.Key
		}
	}
	return &next
}

func (n *Node) serveDropped(*http.Request, caller) (any, error) {
	return dropReply{"meshdns.drop/v1", notNil(n.dropped.all())}, nil
}

// serveDrop drops a node, or takes that back.
func (n *Node) serveDrop(r *http.Request, _ caller) (any, error) {
	var in dropRequest
	if err := decode(r, &in); err != nil {
		return nil, err
	}
	if n.gateway.registry != nil {
		return nil, hinted(ErrBadRequest, errors.New("a gateway removes a node for everybody"), "meshdns gateway remove "+in.Node)
	}
	n.member.taking.Lock()
	defer n.member.taking.Unlock()
	var err error
	if in.Undo {
		err = n.undrop(in.Node)
	} else {
		err = n.drop(in.Node)
	}
	if err != nil {
		return nil, err
	}
	return n.serveDropped(r, caller{})
}

// drop has this machine speak to a node no more.
func (n *Node) drop(name string) error {
	one, err := n.toDrop(name)
	if err != nil {
		return err
	}
	list := n.dropped.all()
	if slices.ContainsFunc(list, func(d droppedNode) bool { return d.Key == one.Key }) {
		return nil // already
	}
	if len(list) >= maxDropped {
		return fmt.Errorf("dropping %s: there are %d already", name, maxDropped)
	}
	if err := n.dropped.set(n.opt.Paths.State, append(slices.Clip(list), one)); err != nil {
		return err
	}
	n.log.Info("a node is dropped", "node", one.Name)
	return n.remap()
}

// toDrop is the node of a name, unless it cannot be dropped.
func (n *Node) toDrop(name string) (droppedNode, error) {
	m, _ := n.tailnet.current()
	machine, ok := m.Node(name)
	if !ok {
		return droppedNode{}, hinted(ErrNotFound, fmt.Errorf("the map has no node %s", name), "meshdns status lists them")
	}
	one := droppedNode{Name: machine.Name, Key: machine.Key, Since: time.Now().UTC().Truncate(time.Second)}
	if machine.Name == n.findSelf(m) {
		return one, hinted(ErrBadRequest, fmt.Errorf("%s is this machine", machine.Name), "to end its node: meshdns down")
	}
	if n.cfg.Tunnel.Mode == "off" {
		return one, hinted(ErrBadRequest, errors.New("with tunnel: off the peers are another program's"), "remove the peer there")
	}
	if keeps := n.member.keeps; keeps != nil {
		n.member.mu.Lock()
		defer n.member.mu.Unlock()
		for _, c := range n.member.keeps.Map.Nodes {
			if c.Name == machine.Name {
				one.Key, one.Control = c.Key.String(), c.Control
			}
		}
		if slices.ContainsFunc(n.member.keeps.Gateways, func(g gatewayContact) bool { return g.Key.String() == one.Key }) {
			return one, hinted(ErrBadRequest, fmt.Errorf("%s is the gateway, through which this machine is in the tailnet", machine.Name),
				"to leave that: meshdns down, then remove "+n.opt.Paths.membership())
		}
	}
	if one.Key == "" {
		one.Key = machine.dropped
	}
	if one.Key == "" {
		return one, hinted(ErrBadRequest, fmt.Errorf("%s has no key in the map, so the tunnel does not speak to it", machine.Name), "")
	}
	return one, nil
}

// undrop has this machine speak to a node again, with the keys that the map gives it now: pins and removals of that name are
// forgotten.
func (n *Node) undrop(name string) error {
	m, _ := n.tailnet.current()
	machine, ok := m.Node(name)
	if !ok {
		machine.Name = strings.ToLower(name)
	}
	keys := map[string]bool{machine.dropped: machine.dropped != ""}
	forgotten, err := n.forget(machine.Name, keys)
	if err != nil {
		return err
	}
	list := n.dropped.all()
	left := slices.DeleteFunc(slices.Clone(list), func(d droppedNode) bool { return d.Name == machine.Name || keys[d.Key] })
	if len(left) == len(list) && !forgotten {
		return hinted(ErrNotFound, fmt.Errorf("%s is not dropped", name), "meshdns drop lists who is")
	}
	if len(left) < len(list) {
		if err := n.dropped.set(n.opt.Paths.State, left); err != nil {
			return err
		}
	}
	n.log.Info("a node is spoken to again", "node", machine.Name)
	if n.member.keeps == nil {
		n.reread() // the map in use lacks the key
		return nil
	}
	return n.remap()
}

// forget drops what this machine knows of a name's keys besides the map, if that speaks against them, and adds those keys to
// keys.
func (n *Node) forget(name string, keys map[string]bool) (bool, error) {
	m := &n.member
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.keeps == nil {
		return false, nil
	}
	changed := *m.keeps
	changed.Gone = slices.Clone(changed.Gone)
	for _, c := range changed.Map.Nodes {
		if c.Name == name {
			keys[c.Key.String()] = true
			changed.Gone = slices.DeleteFunc(changed.Gone, func(g goneNode) bool { return g.Key == c.Key })
		}
	}
	if state := m.doubts[name].state; state != doubtChanged && state != doubtRemoved {
		return false, nil
	}
	changed.Pins = control.Pins{}
	for other, k := range m.keeps.Pins {
		if other != name {
			changed.Pins[other] = k
		}
	}
	if err := changed.save(n.opt.Paths.State); err != nil {
		return false, err
	}
	m.keeps = &changed
	return true, nil
}

// doubtOf is why a node is not spoken to, in one word; empty: it is.
func (n *Node) doubtOf(m Machine) string {
	if m.dropped != "" {
		return doubtDropped
	}
	n.member.mu.Lock()
	defer n.member.mu.Unlock()
	return n.member.doubts[m.Name].state
}

// remap judges the map in use anew.
func (n *Node) remap() error {
	if n.member.keeps == nil {
		n.newMap(n.tailnet.given())
		return nil
	}
	m, err := n.memberMap()
	if err != nil {
		return err
	}
	n.newMap(m)
	return nil
}

// Drop has the node speak to another one no more, or, with undo, again.
func (c Client) Drop(ctx context.Context, node string, undo bool) (dropReply, error) {
	return post[dropReply](ctx, c, pathDrop, dropRequest{Node: node, Undo: undo})
}

// Dropped asks whom the node does not speak to.
func (c Client) Dropped(ctx context.Context) (dropReply, error) {
	return get[dropReply](ctx, c, pathDrop, nil)
}

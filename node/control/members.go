package control

import (
	"bytes"
	"cmp"
	"context"
	"net/http"
	"net/netip"
	"reflect"
	"slices"
	"strings"
	"time"
)

// NodeState is a node as its gateway knows it.
type NodeState struct {
	Node
	Joined   time.Time      // when it did
	Seen     time.Time      // when it called last; zero: not since the gateway started
	Pending  bool           // its key has not completed a handshake
	Invited  bool           // it is no node yet but an invite: only Name, Tags, Key and Joined, when it ends, count
	Version  uint64         // of the map that it works from; 0: it has not said
	Observed netip.AddrPort // where its packets come from; invalid: none came

	Contested time.Time // when its invite was used with another key (S6); zero: never
}

// Nodes are all nodes and invites, sorted by name.
func (r *Registry) Nodes() []NodeState {
	r.mu.Lock()
	defer r.mu.Unlock()
	var list []NodeState
	for name, n := range r.nodes {
		live := r.live[name]
		state := NodeState{Node: n.Node, Joined: n.Joined, Seen: live.seen, Pending: n.Pending, Observed: live.observed, Contested: n.Contested}
		if live.report.Epoch == r.meta.Epoch {
			state.Version = live.report.Version
		}
		list = append(list, state)
	}
	for _, i := range r.invites {
		list = append(list, NodeState{Node: Node{Name: i.Name, Tags: i.Tags, Key: i.Key, Addresses: []netip.Addr{i.Address}}, Joined: i.Expires, Invited: true})
	}
	slices.SortFunc(list, func(a, b NodeState) int {
		return cmp.Or(strings.Compare(a.Name, b.Name), bytes.Compare(a.Key[:], b.Key[:]))
	})
	return list
}

// Peer is a WireGuard peer that a gateway has to have.
type Peer struct {
	Key       WireGuardKey
	Addresses []netip.Addr // that packets of its may come from; none: it may only complete a handshake
	Node      string       // empty: it is an invite's
}

// Peers are the gateway's WireGuard peers: nodes, the keys that are to follow theirs, and invites.
func (r *Registry) Peers() []Peer {
	r.mu.Lock()
	defer r.mu.Unlock()
	var list []Peer
	for name, n := range r.nodes {
		list = append(list, Peer{Key: n.Node.Key, Addresses: n.Node.Addresses, Node: name})
		if n.Next != nil {
			list = append(list, Peer{Key: n.Next.To.Key, Node: name})
		}
	}
	for _, i := range r.invites {
		if i.Expires.After(r.cfg.Now()) {
			list = append(list, Peer{Key: i.Key, Addresses: []netip.Addr{i.Address}})
		}
	}
	slices.SortFunc(list, func(a, b Peer) int { return bytes.Compare(a.Key[:], b.Key[:]) })
	return list
}

// Put adds or changes a node of the owner's: the gateway itself, or a machine with static endpoints.
func (r *Registry) Put(ctx context.Context, n Node) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.changeLocked(ctx, func() ([]change, error) {
		old := r.nodes[n.Name]
		record := nodeRecord{Node: n, Joined: r.cfg.Now().UTC()}
		if old != nil {
			record.Joined = old.Joined
			if bytes.Equal(lockMessage(r.meta.Zone, old.Node), lockMessage(r.meta.Zone, n)) {
				record.Node.Signature = old.Node.Signature // which says as much of it as before
			}
		} else if err := r.freeNameLocked(n.Name, n.Tags); err != nil {
			return nil, err
		}
		for name, other := range r.nodes {
			for _, a := range n.Addresses {
				if name != n.Name && slices.Contains(other.Node.Addresses, a) {
					return nil, refuse(http.StatusConflict, codeNameTaken, "the address %s is that of node %s", a, name)
				}
			}
		}
		if old != nil && reflect.DeepEqual(record.Node, old.Node) && !old.Pending {
			return nil, nil // a gateway starts though its disk takes nothing
		}
		return r.puts(nodeKey+n.Name, record)
	})
}

// Remove ends a node at once (S5): it is in no map and no peer any more. Its addresses rest for a month; its name until
// reserved, since a certificate for it may be in use. It returns what the node was; a *RefusedError says that there is
// none.
func (r *Registry) Remove(ctx context.Context, name string, reserved time.Time) (Node, error) {
	var was Node
	err := r.changeNode(ctx, name, func(n *nodeRecord) ([]change, error) {
		was = n.Node
		pairs := []any{goneKey + name, goneRecord{Name: name, Reserved: reserved.UTC()}}
		for _, a := range n.Node.Addresses {
			pairs = append(pairs, restKey+a.String(), restRecord{Until: r.cfg.Now().Add(addressRest).UTC()})
		}
		list, err := r.puts(pairs...)
		if err != nil {
			return nil, err
		}
		dead, err := r.deadLocked(n)
		list = append(append(append(list, dead...), r.drop(nodeKey+name)), r.dropCert(name)...)
		if r.invites[n.Invite] != nil {
			list = append(list, r.drop(inviteKey+n.Invite))
		}
		return list, err
	})
	return was, err
}

// deadLocked are the changes that make a removed node's keys nobody's. Those of a pending one are in nobody's map.
func (r *Registry) deadLocked(n *nodeRecord) ([]change, error) {
	if n.Pending {
		return nil, nil
	}
	keys := []Keys{n.Node.Keys()}
	if n.Next != nil {
		keys = append(keys, n.Next.To)
	}
	var pairs []any
	for _, k := range keys {
		pairs = append(pairs, deadKey+k.Key.String(), deadRecord{Name: n.Node.Name, Keys: k, Since: r.cfg.Now().UTC()})
	}
	return r.puts(pairs...)
}

// Uninvite ends the invites that are for a name.
func (r *Registry) Uninvite(ctx context.Context, name string) (ended int, err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	err = r.changeLocked(ctx, func() ([]change, error) {
		var list []change
		for id, i := range r.invites {
			if i.Name == name {
				list = append(list, r.drop(inviteKey+id))
			}
		}
		ended = len(list)
		return list, nil
	})
	return ended, err
}

// changeNode makes what changes returns of a node; that there is none is a *RefusedError.
func (r *Registry) changeNode(ctx context.Context, name string, changes func(n *nodeRecord) ([]change, error)) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.changeLocked(ctx, func() ([]change, error) {
		n := r.nodes[name]
		if n == nil {
			return nil, unknownNode(name)
		}
		return changes(n)
	})
}

func unknownNode(name string) error {
	return refuse(http.StatusNotFound, codeUnknownNode, "there is no node %s", name)
}

// Rename gives a node another name. The old one stays nobody's until reserved.
func (r *Registry) Rename(ctx context.Context, old, name string, reserved time.Time) error {
	return r.changeNode(ctx, old, func(n *nodeRecord) ([]change, error) {
		if n.Pending {
			return nil, refuse(http.StatusConflict, codeBusy, "%s has not finished joining", old)
		}
		if err := r.freeNameLocked(name, n.Node.Tags); err != nil {
			return nil, err
		}
		renamed := *n
		// What was signed under the old name says nothing of the new one.
		renamed.Node.Name, renamed.Node.Rotations, renamed.Node.Signature = name, nil, nil
		list, err := r.puts(nodeKey+name, renamed, goneKey+old, goneRecord{Name: old, Reserved: reserved.UTC()})
		// What it had published is of its old name, and so are its programs' credentials.
		return append(append(list, r.drop(nodeKey+old)), r.dropCert(old)...), err
	})
}

// Sign adds a lock's signature to a node's record. Where the owner's keys are known, nobody else's is taken: it would push
// out the one that counts.
func (r *Registry) Sign(ctx context.Context, name string, s Signature) error {
	return r.changeNode(ctx, name, func(n *nodeRecord) ([]change, error) {
		if len(r.cfg.Lock) > 0 && !slices.Contains(r.cfg.Lock, s.By) {
			return nil, refuse(http.StatusForbidden, codeNotYou, "the signature is by %s, which is no key of this gateway's lock", s.By)
		}
		signed := *n
		signed.Node.Signature = &s
		if !signed.Node.SignedBy(r.meta.Zone, []ControlKey{s.By}) {
			return nil, refuse(http.StatusBadRequest, codeBad, "the signature is not one of %s's name, addresses and keys", name)
		}
		return r.puts(nodeKey+name, signed)
	})
}

// Rotate lets a node's keys change, once the new one has completed a handshake. The call itself has proven the old control
// key, and the statement proves it to everybody else.
func (r *Registry) Rotate(ctx context.Context, name string, by Rotation) error {
	return r.changeNode(ctx, name, func(n *nodeRecord) ([]change, error) {
		if n.Pending || by.From != n.Node.Keys() || !by.valid(r.meta.Zone, name) {
			return nil, refuse(http.StatusForbidden, codeNotYou, "that is no statement of %s's present keys", name)
		}
		if n.Next != nil && n.Next.To == by.To {
			return nil, nil // said already, and not heard
		}
		fresh := by.To
		if fresh.Control == by.From.Control {
			fresh.Control = ControlKey{1} // which may stay; the other one may not
		}
		if err := r.unknownKeysLocked(fresh); err != nil {
			return nil, err
		}
		next := *n
		next.Next = &by
		return r.puts(nodeKey+name, next)
	})
}

// Take takes a node's report.
func (r *Registry) Take(name string, report Report) {
	kept := report.Endpoints[:0:0]
	for _, e := range report.Endpoints {
		if len(kept) < maxEndpoints && isPrivateEndpoint(e) {
			kept = append(kept, e)
		}
	}
	report.Endpoints = kept
	r.touch(name, func(s *liveState) {
		// What a node says at the same time by several ways may come in another order. Where it really went back to an older map,
		// its next stream says so.
		if before := s.report; before.Epoch == report.Epoch && before.Version > report.Version {
			report.Version = before.Version
		}
		s.report = report
	})
}

// works takes note of the map that a node works from.
func (r *Registry) works(name string, epoch, version uint64) {
	r.touch(name, func(s *liveState) { s.report.Epoch, s.report.Version = epoch, version })
}

// isPrivateEndpoint reports whether a node may say of itself that packets reach it there (S8): anything else could have
// its peers send to somebody who never asked for that.
func isPrivateEndpoint(e netip.AddrPort) bool {
	a := e.Addr()
	return e.Port() >= 1024 && a.IsPrivate() && a.Zone() == ""
}

// Seen takes note of where a node's packets come from, as the gateway's own tunnel says.
func (r *Registry) Seen(name string, from netip.AddrPort) {
	r.touch(name, func(s *liveState) { s.observed = from })
}

func (r *Registry) touch(name string, change func(*liveState)) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.nodes[name] == nil {
		return
	}
	s := r.live[name]
	s.seen = r.cfg.Now()
	change(&s)
	r.live[name] = s
}

// Endpoints are where packets may reach a node: what was observed first, then what it said itself.
func (r *Registry) Endpoints(name string) []netip.AddrPort {
	r.mu.Lock()
	defer r.mu.Unlock()
	n := r.nodes[name]
	if n == nil {
		return nil
	}
	var list []netip.AddrPort
	live := r.live[name]
	if live.observed.IsValid() {
		list = append(list, live.observed)
	}
	for _, e := range slices.Concat(n.Node.Endpoints, live.report.Endpoints) {
		if !slices.Contains(list, e) {
			list = append(list, e)
		}
	}
	return list
}

// caller is the node that a call comes from: its key and its address have to be the same node's (S1).
func (r *Registry) caller(key ControlKey, source netip.Addr) (string, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	name, ok := r.callers[key]
	if !ok {
		return "", refuse(http.StatusForbidden, codeNotYou, "this key is no node's")
	}
	if !slices.Contains(r.nodes[name].Node.Addresses, source) {
		r.log.Warn("a control key was used from another address than its node's", "node", name)
		return "", refuse(http.StatusForbidden, codeNotYou, "this key is not that of %s", source)
	}
	return name, nil
}

// knows reports whether anybody may call with a key from an address: a node, or whoever has an invite.
func (r *Registry) knows(key ControlKey, source netip.Addr) bool {
	if _, err := r.caller(key, source); err == nil {
		return true
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.inviteAtLocked(source) != nil
}

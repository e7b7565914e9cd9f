package control

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"fmt"
	"net/http"
	"net/netip"
	"slices"
	"time"
)

func refuse(status int, code, format string, args ...any) error {
	return &RefusedError{Status: status, Code: code, Message: fmt.Sprintf(format, args...)}
}

// InviteOptions say what an invite is for.
type InviteOptions struct {
	Name     string // of the node that joins with it; empty, it names itself, which a reusable one's always does
	Tags     []string
	TTL      time.Duration // zero: one hour
	Reusable bool
}

// NewInvite makes an invite. Its private key is in what is returned and nowhere else.
func (r *Registry) NewInvite(ctx context.Context, o InviteOptions) (Invite, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if o.Reusable && o.Name != "" {
		return Invite{}, refuse(http.StatusBadRequest, codeBad, "a reusable invite is for several nodes, and cannot name them %s", o.Name)
	}
	if o.Name != "" {
		if err := r.freeNameLocked(o.Name, o.Tags); err != nil {
			return Invite{}, err
		}
	}
	return r.inviteLocked(ctx, o)
}

func (r *Registry) inviteLocked(ctx context.Context, o InviteOptions) (Invite, error) {
	private, err := newWireGuardKey()
	if err != nil {
		return Invite{}, err
	}
	public, err := publicOf(private)
	if err != nil {
		return Invite{}, err
	}
	record := inviteRecord{ID: randomID(), Name: o.Name, Tags: o.Tags, Key: public, Reusable: o.Reusable}
	record.Expires = r.cfg.Now().Add(cmpOr(o.TTL, inviteTime)).Truncate(time.Second)
	err = r.changeLocked(ctx, func() ([]change, error) {
		if len(r.invites) >= maxInvites {
			return nil, refuse(http.StatusInsufficientStorage, codeFull, "there are %d invites already", len(r.invites))
		}
		if record.Address, err = r.freeAddressLocked(r.meta.Ranges[0], true); err != nil {
			return nil, err
		}
		return r.puts(inviteKey+record.ID, record)
	})
	if err != nil {
		return Invite{}, err
	}
	i := r.cfg.Template
	i.Key, i.Address, i.Expires, i.Reusable = private, record.Address, record.Expires, record.Reusable
	return i, nil
}

func cmpOr(d, otherwise time.Duration) time.Duration {
	if d > 0 {
		return d
	}
	return otherwise
}

// randomID names an invite in the registry and in logs.
func randomID() string {
	var b [8]byte
	_, _ = rand.Read(b[:]) // which never fails (crypto/rand)
	return hex.EncodeToString(b[:])
}

// freeNameLocked says why a name cannot be a new node's.
func (r *Registry) freeNameLocked(name string, tags []string) error {
	if err := r.cfg.CheckName(name, tags); err != nil {
		return refuse(http.StatusBadRequest, codeNameBad, "%v", err)
	}
	for _, n := range r.nodes {
		if n.Node.Name == name || slices.Contains(n.Node.Names, name) {
			return refuse(http.StatusConflict, codeNameTaken, "the name %s is that of node %s", name, n.Node.Name)
		}
	}
	if g := r.gone[name]; g != nil && g.Reserved.After(r.cfg.Now()) {
		return refuse(http.StatusConflict, codeNameTaken, "the name %s is reserved until %s: a certificate for it may be in use",
			name, g.Reserved.Format(time.DateOnly))
	}
	return nil
}

// freeAddressLocked is an address of a range that nobody has or had lately. A node's are counted up from the bottom, where
// the gateway has the first; those of invites down from the top, below the service address.
func (r *Registry) freeAddressLocked(p netip.Prefix, top bool) (netip.Addr, error) {
	taken := map[netip.Addr]bool{}
	for _, n := range r.nodes {
		for _, a := range n.Node.Addresses {
			taken[a] = true
		}
	}
	for _, i := range r.invites {
		taken[i.Address] = true
	}
	resting := func(a netip.Addr) bool {
		rest := r.resting[a.String()]
		return rest != nil && rest.Until.After(r.cfg.Now())
	}
	at, step := firstHost(p), netip.Addr.Next
	if top {
		at, step = lastHost(p).Prev(), netip.Addr.Prev
	}
	for ; p.Contains(at); at = step(at) {
		if !taken[at] && !resting(at) && at != p.Masked().Addr() && at != lastHost(p) && !isBroadcast(p, at) {
			return at, nil
		}
	}
	return netip.Addr{}, refuse(http.StatusInsufficientStorage, codeFull, "the range %s is full", p)
}

// firstHost is the first address of a range that a host may have.
func firstHost(p netip.Prefix) netip.Addr {
	if p.Bits() >= p.Addr().BitLen()-1 {
		return p.Masked().Addr()
	}
	return p.Masked().Addr().Next()
}

// lastHost is the last one: below the broadcast address, which IPv6 has none of.
func lastHost(p netip.Prefix) netip.Addr {
	b := p.Masked().Addr().AsSlice()
	for bit := p.Bits(); bit < len(b)*8; bit++ {
		b[bit/8] |= 0x80 >> (bit % 8)
	}
	last, _ := netip.AddrFromSlice(b)
	if isBroadcast(p, last) {
		return last.Prev()
	}
	return last
}

func isBroadcast(p netip.Prefix, a netip.Addr) bool {
	return a.Is4() && p.Bits() < 31 && !p.Contains(a.Next())
}

// Join gives a node its place. source is the address that its call came from, inside the tunnel: an invite's (S6).
func (r *Registry) Join(ctx context.Context, source netip.Addr, control ControlKey, req JoinRequest) (JoinAnswer, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	i := r.inviteAtLocked(source)
	if i == nil {
		return JoinAnswer{}, refuse(http.StatusForbidden, codeInviteUnknown, "there is no invite for %s, or it has ended", source)
	}
	if i.Reusable {
		return r.exchangeLocked(ctx, i, control, req)
	}
	if i.Node != "" {
		return r.againLocked(ctx, i, control, req)
	}
	name := req.Name
	if name == "" {
		name = i.Name
	}
	if i.Name != "" && name != i.Name {
		return JoinAnswer{}, refuse(http.StatusConflict, codeNameBad, "the invite is for %s, not for %s", i.Name, name)
	}
	if err := r.unknownKeysLocked(Keys{req.Key, control}); err != nil {
		return JoinAnswer{}, err
	}
	err := r.changeLocked(ctx, func() ([]change, error) {
		if err := r.freeNameLocked(name, i.Tags); err != nil {
			return nil, err
		}
		if len(r.nodes) >= maxNodes {
			return nil, refuse(http.StatusInsufficientStorage, codeFull, "there are %d nodes already", len(r.nodes))
		}
		n := Node{Name: name, Key: req.Key, Control: control, Tags: i.Tags}
		for _, p := range r.meta.Ranges {
			a, err := r.freeAddressLocked(p, false)
			if err != nil {
				return nil, err
			}
			n.Addresses = append(n.Addresses, a)
		}
		used := *i
		used.Node = name
		return r.puts(
			nodeKey+name, nodeRecord{Node: n, Joined: r.cfg.Now().UTC(), Pending: true, Invite: i.ID},
			inviteKey+i.ID, used)
	})
	if err != nil {
		return JoinAnswer{}, err
	}
	r.log.Info("a node has joined, and is pending until its key completes a handshake", "node", name)
	return r.answerLocked(name), nil
}

// inviteAtLocked is the invite with an address, unless it has ended.
func (r *Registry) inviteAtLocked(source netip.Addr) *inviteRecord {
	for _, i := range r.invites {
		if i.Address == source && i.Expires.After(r.cfg.Now()) {
			return i
		}
	}
	return nil
}

// exchangeLocked gives a one-time invite for a reusable one: two nodes with one key would take each other's place.
func (r *Registry) exchangeLocked(ctx context.Context, i *inviteRecord, control ControlKey, req JoinRequest) (JoinAnswer, error) {
	if err := r.giveUpLocked(ctx, req.Name, Keys{req.Key, control}); err != nil {
		return JoinAnswer{}, err
	}
	if err := r.freeNameLocked(req.Name, i.Tags); err != nil {
		return JoinAnswer{}, err
	}
	one, err := r.inviteLocked(ctx, InviteOptions{Name: req.Name, Tags: i.Tags, TTL: min(inviteTime, i.Expires.Sub(r.cfg.Now()))})
	if err != nil {
		return JoinAnswer{}, err
	}
	return JoinAnswer{Invite: one.Encode()}, nil
}

// giveUpLocked frees the place that a node has begun to take, when it begins anew: the one-time invite that it had is lost
// with the process that was told of it.
func (r *Registry) giveUpLocked(ctx context.Context, name string, keys Keys) error {
	return r.changeLocked(ctx, func() ([]change, error) {
		n := r.nodes[name]
		if n == nil || !n.Pending || n.Node.Keys() != keys {
			return nil, nil
		}
		list := []change{r.drop(nodeKey + name)}
		if r.invites[n.Invite] != nil {
			list = append(list, r.drop(inviteKey+n.Invite))
		}
		return list, nil
	})
}

// contestedPause is how long after a second use of an invite another one is not written down.
const contestedPause = time.Hour

// againLocked answers a call with an invite that is taken: whoever took it may not have heard the answer. Anybody else has
// got hold of the invite, which its owner has to know.
func (r *Registry) againLocked(ctx context.Context, i *inviteRecord, control ControlKey, req JoinRequest) (JoinAnswer, error) {
	n := r.nodes[i.Node]
	if n != nil && n.Node.Keys() == (Keys{req.Key, control}) {
		return r.answerLocked(i.Node), nil
	}
	r.log.Warn("an invite that is taken was used with another key", "invite", i.ID, "node", i.Node)
	if n != nil && r.cfg.Now().Sub(n.Contested) > contestedPause { // not each time: whoever it is may try for ever
		next := *n
		next.Contested = r.cfg.Now().UTC()
		if err := r.changeLocked(ctx, func() ([]change, error) { return r.puts(nodeKey+i.Node, next) }); err != nil {
			r.log.Error("the second use of an invite is not noted", "err", err)
		}
	}
	return JoinAnswer{}, refuse(http.StatusConflict, codeInviteUsed, "the invite was used already, by node %s", i.Node)
}

// unknownKeysLocked refuses keys that somebody has, or has in the registry in any other way.
func (r *Registry) unknownKeysLocked(k Keys) error {
	if k.Key == (WireGuardKey{}) || k.Control == (ControlKey{}) {
		return refuse(http.StatusBadRequest, codeBad, "a key of zeros")
	}
	for _, d := range r.dead {
		if d.Keys.Key == k.Key || d.Keys.Control == k.Control {
			return refuse(http.StatusConflict, codeKeyKnown, "the key was that of %s, which was removed", d.Name)
		}
	}
	known := k.Key == r.cfg.Template.Gateway || k.Control == r.cfg.Template.Control
	for _, n := range r.nodes {
		known = known || n.Node.Key == k.Key || n.Node.Control == k.Control || n.Next != nil && n.Next.To.Key == k.Key
	}
	for _, i := range r.invites {
		known = known || i.Key == k.Key
	}
	if known {
		return refuse(http.StatusConflict, codeKeyKnown, "the key is known already: each node and each join has one of its own")
	}
	return nil
}

func (r *Registry) answerLocked(name string) JoinAnswer {
	return JoinAnswer{Node: r.nodes[name].Node, Map: *r.current, Gateway: r.cfg.Template.Control, Lock: len(r.cfg.Lock) > 0}
}

// Handshaken takes note that keys have completed a handshake: a pending node is one from then on, and its invite dead; a
// key that was to follow another one has followed it. It reports whether that changed anything. It is one change for all of
// them: each is a write to the disk, and a map for every node.
func (r *Registry) Handshaken(ctx context.Context, keys ...WireGuardKey) (changed bool, err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	err = r.changeLocked(ctx, func() ([]change, error) {
		var list []change
		for name, n := range r.nodes {
			some, err := r.handshakenLocked(name, n, keys)
			if err != nil {
				return nil, err
			}
			list = append(list, some...)
		}
		changed = len(list) > 0
		return list, nil
	})
	return changed && err == nil, err
}

// handshakenLocked are the changes of one node.
func (r *Registry) handshakenLocked(name string, n *nodeRecord, keys []WireGuardKey) ([]change, error) {
	next := *n
	switch {
	case n.Pending && slices.Contains(keys, n.Node.Key):
		next.Pending, next.Invite = false, ""
		list, err := r.puts(nodeKey+name, next)
		if r.invites[n.Invite] != nil {
			list = append(list, r.drop(inviteKey+n.Invite))
		}
		return list, err
	case n.Next != nil && slices.Contains(keys, n.Next.To.Key):
		next.Node = n.Node.rotated(*n.Next)
		next.Next = nil
		return r.puts(nodeKey+name, next)
	}
	return nil, nil
}

// rotated is the node with the keys that a rotation gives it.
func (n Node) rotated(by Rotation) Node {
	n.Key, n.Control, n.Signature = by.To.Key, by.To.Control, nil
	n.Rotations = append(slices.Clone(n.Rotations), by)
	n.Rotations = n.Rotations[max(0, len(n.Rotations)-maxRotations):]
	return n
}

// expire ends what has had its time, every few seconds.
func (r *Registry) expire(ctx context.Context) {
	tick := time.NewTicker(5 * time.Second)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		r.mu.Lock()
		err := r.changeLocked(ctx, func() ([]change, error) {
			list := r.expiredLocked()
			if r.fault == nil || len(list) > 0 {
				return list, nil
			}
			return r.puts(metaKey, r.meta) // to see whether the disk takes something again
		})
		r.mu.Unlock()
		if err != nil && ctx.Err() == nil {
			r.log.Error("what has ended stays in the registry", "err", err)
		}
	}
}

// expiredLocked are the changes that remove dead invites, the places that nobody took with them, and names and addresses
// that have rested.
func (r *Registry) expiredLocked() []change {
	now := r.cfg.Now()
	var list []change
	for id, i := range r.invites {
		if i.Expires.After(now) {
			continue
		}
		list = append(list, r.drop(inviteKey+id))
		if n := r.nodes[i.Node]; n != nil && n.Pending {
			list = append(list, r.drop(nodeKey+i.Node))
		}
	}
	for name, c := range r.certs {
		kept := slices.DeleteFunc(slices.Clone(c.Texts), func(t textLease) bool { return !t.Expires.After(now) })
		if len(kept) == len(c.Texts) {
			continue
		}
		left := *c
		left.Texts = kept
		if changes, err := r.putCert(name, left); err == nil { // it was JSON before
			list = append(list, changes...)
		}
	}
	for name, g := range r.gone {
		if !g.Reserved.After(now) {
			list = append(list, r.drop(goneKey+name))
		}
	}
	for address, rest := range r.resting {
		if !rest.Until.After(now) {
			list = append(list, r.drop(restKey+address))
		}
	}
	return list
}

package tunnel

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"time"
)

// Bounds on what a map may ask for.
const (
	maxPeers     = 16384
	maxAllowed   = 64 // prefixes of one peer
	maxKeepalive = 65535 * time.Second
)

// Peer is another node, as the map has it.
type Peer struct {
	Key        Key
	Preshared  Secret         // zero: none
	AllowedIPs []netip.Prefix // its addresses: what may come from it, and what is sent to it
	Endpoint   netip.AddrPort // where it is tried first; invalid: it has to come to us
	Keepalive  time.Duration  // whole seconds; zero: none

	// Replaces is the key that this one follows. Until this key's first handshake the addresses that both have stay with
	// the old key, from then on they are the new one's. Zero: none.
	Replaces Key
}

// PeerStats is what is known of the session with one peer.
type PeerStats struct {
	Key       Key
	Endpoint  netip.AddrPort // where it was last heard of, or is tried; invalid: unknown
	Handshake time.Time      // the last completed one; zero: none
	Received  uint64         // bytes, encrypted
	Sent      uint64
}

// peerChange is what one peer's part of a change sets. Fields that are not set stay as they are, and so does the session.
type peerChange struct {
	key       Key
	remove    bool
	add       bool
	preshared *Secret
	allowed   *[]netip.Prefix
	endpoint  netip.AddrPort // invalid: stays
	keepalive *uint16        // seconds
}

// change is what an engine is told: a new private key, peers, or both.
type change struct {
	key   *Secret
	peers []peerChange
}

func checkPeers(peers []Peer) error {
	if len(peers) > maxPeers {
		return fmt.Errorf("%d peers, at most %d", len(peers), maxPeers)
	}
	seen := make(map[Key]bool, len(peers))
	for i, p := range peers {
		if p.Key.IsZero() {
			return fmt.Errorf("peer %d has no key", i+1)
		}
		if seen[p.Key] {
			return fmt.Errorf("peer %s is listed twice", p.Key)
		}
		seen[p.Key] = true
		if err := p.check(); err != nil {
			return fmt.Errorf("peer %s: %w", p.Key, err)
		}
	}
	return checkOwners(peers)
}

func (p Peer) check() error {
	if len(p.AllowedIPs) > maxAllowed {
		return fmt.Errorf("%d allowed prefixes, at most %d", len(p.AllowedIPs), maxAllowed)
	}
	for _, prefix := range p.AllowedIPs {
		if !prefix.IsValid() || prefix.Addr().Is4In6() || prefix != prefix.Masked() {
			return fmt.Errorf("allowed prefix %s is not one", prefix)
		}
	}
	if p.Endpoint != (netip.AddrPort{}) && !reachable(p.Endpoint) {
		return fmt.Errorf("endpoint %s cannot be sent to", p.Endpoint)
	}
	if p.Keepalive < 0 || p.Keepalive > maxKeepalive || p.Keepalive%time.Second != 0 {
		return fmt.Errorf("keepalive of %s: not whole seconds up to %s", p.Keepalive, maxKeepalive)
	}
	if p.Replaces == p.Key {
		return errors.New("replaces itself")
	}
	return nil
}

func reachable(a netip.AddrPort) bool {
	return a.IsValid() && a.Port() != 0 && !a.Addr().IsUnspecified() && !a.Addr().IsMulticast()
}

// checkOwners refuses two peers with the same prefix: WireGuard would let the last one win, in silence.
func checkOwners(peers []Peer) error {
	owners := make(map[netip.Prefix]Peer, len(peers))
	for _, p := range peers {
		for _, prefix := range p.AllowedIPs {
			other, taken := owners[prefix]
			if taken && other.Key != p.Replaces && other.Replaces != p.Key {
				return fmt.Errorf("%s belongs to peer %s and to peer %s", prefix, other.Key, p.Key)
			}
			owners[prefix] = p
		}
	}
	return nil
}

// settle decides who holds the addresses that a key and its successor both have, and whether that can still change.
func settle(peers []Peer, shook func(Key) bool) (settled []Peer, open bool) {
	settled = slices.Clone(peers)
	index := make(map[Key]int, len(peers))
	for i, p := range settled {
		index[p.Key] = i
	}
	for i, p := range peers {
		old, ok := index[p.Replaces]
		if p.Replaces.IsZero() || !ok {
			continue
		}
		holder, other := old, i
		if shook(p.Key) {
			holder, other = i, old
		} else {
			open = true
		}
		held := settled[holder].AllowedIPs
		settled[other].AllowedIPs = slices.DeleteFunc(slices.Clone(settled[other].AllowedIPs), func(prefix netip.Prefix) bool {
			return slices.Contains(held, prefix)
		})
	}
	return settled, open
}

// compare says what turns one list of peers into another. What is the same is left out, so that sessions go on.
func compare(have, want []Peer) []peerChange {
	before := make(map[Key]Peer, len(have))
	for _, p := range have {
		before[p.Key] = p
	}
	var changes []peerChange
	for _, p := range want {
		old, known := before[p.Key]
		delete(before, p.Key)
		if c, differs := p.since(old, known); differs {
			changes = append(changes, c)
		}
	}
	for _, p := range have {
		if _, left := before[p.Key]; left {
			changes = append(changes, peerChange{key: p.Key, remove: true})
		}
	}
	// Removals first: an address that moves on is free by then. What turns a keepalive on comes last: wireguard-go has all
	// peers that follow it in one operation say something, too.
	slices.SortStableFunc(changes, func(a, b peerChange) int { return order(a) - order(b) })
	return changes
}

func order(c peerChange) int {
	switch {
	case c.remove:
		return 0
	case c.keepalive == nil || *c.keepalive == 0:
		return 1
	}
	return 2
}

// since is what has to be set of p where old was set before.
func (p Peer) since(old Peer, known bool) (c peerChange, differs bool) {
	c = peerChange{key: p.Key, add: !known}
	if !known || !slices.Equal(p.AllowedIPs, old.AllowedIPs) {
		c.allowed = &p.AllowedIPs
	}
	if p.Preshared != old.Preshared {
		c.preshared = &p.Preshared
	}
	if p.Endpoint != old.Endpoint {
		c.endpoint = p.Endpoint
	}
	if p.Keepalive != old.Keepalive {
		seconds := uint16(p.Keepalive / time.Second)
		c.keepalive = &seconds
	}
	differs = c.add || c.allowed != nil || c.preshared != nil || c.endpoint.IsValid() || c.keepalive != nil
	return c, differs
}

package tunnel

import (
	"cmp"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
)

// SetPeers makes these the peers, all of them. Sessions of peers that stay go on; an endpoint is set only where it differs
// from the one that was last set here, so that a peer that roamed is not forgotten.
func (t *Tunnel) SetPeers(peers []Peer) error {
	if err := checkPeers(peers); err != nil {
		return err
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if _, err := t.managedLocked(); err != nil {
		return err
	}
	t.peers = slices.Clone(peers)
	open, err := t.applyLocked()
	if open {
		select {
		case t.kick <- struct{}{}:
		default:
		}
	}
	return err
}

// settleNow looks again at who holds the addresses of keys that are being replaced.
func (t *Tunnel) settleNow() (open bool, err error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.carrier == nil {
		return false, nil
	}
	return t.applyLocked()
}

// applyLocked tells the engine what differs from what it has.
func (t *Tunnel) applyLocked() (open bool, err error) {
	var stats []PeerStats
	if slices.ContainsFunc(t.peers, func(p Peer) bool { return !p.Replaces.IsZero() }) {
		if stats, err = t.carrier.engine.stats(); err != nil {
			return true, err
		}
	}
	shook := make(map[Key]bool, len(stats))
	for _, s := range stats {
		shook[s.Key] = !s.Handshake.IsZero()
	}
	want, open := settle(t.peers, func(k Key) bool { return shook[k] })
	changes := compare(t.applied, want)
	if len(changes) == 0 {
		return open, nil
	}
	if err := t.carrier.engine.apply(change{peers: changes}); err != nil {
		return open, err
	}
	t.applied = want
	return open, nil
}

// SetKey replaces this node's private key. Connections go on once the peers know the new public key (Peer.Replaces).
func (t *Tunnel) SetKey(key Secret) error {
	if key.IsZero() {
		return errors.New("no private key")
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	c, err := t.managedLocked()
	if err != nil {
		return err
	}
	return c.engine.apply(change{key: &key})
}

// SetEndpoint sends what is for a peer to another address from now on, until the peer itself is heard from elsewhere.
func (t *Tunnel) SetEndpoint(peer Key, to netip.AddrPort) error {
	if !reachable(to) {
		return fmt.Errorf("endpoint %s cannot be sent to", to)
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	c, err := t.managedLocked()
	if err != nil {
		return err
	}
	if !slices.ContainsFunc(t.applied, func(p Peer) bool { return p.Key == peer }) {
		return fmt.Errorf("no peer %s", peer)
	}
	return c.engine.apply(change{peers: []peerChange{{key: peer, endpoint: to}}})
}

// Renew forgets the session with a peer and sends what is for it to another address from now on: the next packet makes a
// new handshake there. Connections go on. A relay passes only packets of sessions that were made through it.
func (t *Tunnel) Renew(peer Key, to netip.AddrPort) error {
	if !reachable(to) {
		return fmt.Errorf("endpoint %s cannot be sent to", to)
	}
	return t.again(peer, to)
}

// Forget forgets the session with a peer, where it is, and when it made its last handshake: WireGuard takes none that claims
// to be older, so that one whose clock has gone back makes none until that time comes again. Whoever calls has to know by other
// means that the peer is there: what it sent once could be sent again by others.
func (t *Tunnel) Forget(peer Key) error { return t.again(peer, netip.AddrPort{}) }

// again takes a peer away and puts it back as it was set, at another endpoint if to is valid.
func (t *Tunnel) again(peer Key, to netip.AddrPort) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	c, err := t.managedLocked()
	if err != nil {
		return err
	}
	i := slices.IndexFunc(t.applied, func(p Peer) bool { return p.Key == peer })
	if i < 0 {
		return fmt.Errorf("no peer %s", peer)
	}
	again, _ := t.applied[i].since(Peer{}, false)
	if to.IsValid() {
		again.endpoint = to
	}
	return c.engine.apply(change{peers: []peerChange{{key: peer, remove: true}, again}})
}

// Stats is what is known of each peer, in the order of their keys.
func (t *Tunnel) Stats() ([]PeerStats, error) {
	t.mu.Lock()
	c, err := t.managedLocked()
	t.mu.Unlock()
	if err != nil {
		return nil, err
	}
	stats, err := c.engine.stats()
	slices.SortFunc(stats, func(a, b PeerStats) int { return cmp.Compare(string(a.Key[:]), string(b.Key[:])) })
	return stats, err
}

// Port is the UDP port that WireGuard listens on.
func (t *Tunnel) Port() (uint16, error) {
	t.mu.Lock()
	c, err := t.managedLocked()
	t.mu.Unlock()
	if err != nil {
		return 0, err
	}
	return c.engine.port()
}

// MTU is the longest packet in bytes that the tunnel takes; 0: it is not known.
func (t *Tunnel) MTU() int {
	c, err := t.current()
	if err != nil {
		return 0
	}
	if inside, ok := c.network.(*netstack); ok {
		return inside.mtu
	}
	link, err := net.InterfaceByIndex(c.index)
	if err != nil {
		return 0
	}
	return link.MTU
}

// Whose is the peer that packets from an address come from. In mode Off it is known only where the link is a WireGuard
// whose single peer with that address has it as a single address (SECURITY.md, S2).
func (t *Tunnel) Whose(a netip.Addr) (Key, bool) {
	t.mu.Lock()
	c, applied := t.carrier, t.applied
	t.mu.Unlock()
	if c == nil {
		return Key{}, false
	}
	if c.engine == nil {
		return foreignOwner(c.link, a)
	}
	return ownerOf(applied, a)
}

// ownerOf is the peer whose longest prefix has the address, as WireGuard decides it.
func ownerOf(peers []Peer, a netip.Addr) (owner Key, ok bool) {
	longest := -1
	for _, p := range peers {
		for _, prefix := range p.AllowedIPs {
			if prefix.Contains(a) && prefix.Bits() > longest {
				owner, longest = p.Key, prefix.Bits()
			}
		}
	}
	return owner, longest >= 0
}

// soleOwner is the peer that has the address as a single one, if no other peer may send from it.
func soleOwner(peers []Peer, a netip.Addr) (Key, bool) {
	var owners []Key
	exact := false
	for _, p := range peers {
		for _, prefix := range p.AllowedIPs {
			if prefix.Contains(a) {
				owners = append(owners, p.Key)
				exact = exact || prefix.IsSingleIP()
			}
		}
	}
	if len(owners) != 1 || !exact {
		return Key{}, false
	}
	return owners[0], true
}

// Send sends a datagram that is not WireGuard's from WireGuard's UDP socket: a probe, or another's packet that is relayed.
func (t *Tunnel) Send(to netip.AddrPort, datagram []byte) error {
	s, err := t.ownSocket()
	if err != nil {
		return err
	}
	if len(datagram) == 0 || len(datagram) > maxDatagram {
		return fmt.Errorf("datagram of %d bytes: not 1 to %d", len(datagram), maxDatagram)
	}
	return s.sendTo(to, datagram)
}

// Deliver hands WireGuard a datagram that came by another way than its UDP socket, as if from that address. Config.Outgoing
// is the other direction. It does not block: when too many wait the datagram is refused.
func (t *Tunnel) Deliver(from netip.AddrPort, datagram []byte) error {
	s, err := t.ownSocket()
	if err != nil {
		return err
	}
	if len(datagram) == 0 || len(datagram) > maxDatagram {
		return fmt.Errorf("datagram of %d bytes: not 1 to %d", len(datagram), maxDatagram)
	}
	if !from.IsValid() {
		return &net.AddrError{Err: "no source of a datagram", Addr: from.String()}
	}
	return s.deliver(from, datagram)
}

func (t *Tunnel) ownSocket() (*socket, error) {
	c, err := t.current()
	if err == nil && c.socket == nil {
		err = fmt.Errorf("tunnel mode %s has no UDP socket of this process: %w", c.mode, errors.ErrUnsupported)
	}
	if err != nil {
		return nil, err
	}
	return c.socket, nil
}

package tunnel

import (
	"encoding/binary"
	"net/netip"
	"slices"
	"time"
)

// An initiation is lost where one of its two ends is not known yet: its sender has just made its handshake with our endpoint, which
// is looked at some milliseconds later, or the relay has just been started, and the receiver has still to make one. WireGuard
// sends it again only after 5 s. So it is held until the next looks.
const (
	heldTime     = 4 * time.Second // WireGuard's next one follows after 5 s
	maxHeld      = 4096            // of all senders
	maxHeldEach  = 64              // of one node
	maxHeldEarly = 8               // of one address that is no node's yet
	maxAllEarly  = 1024            // of all such addresses, and such addresses: anybody who knows the relay's key can have one
)

// relayHeld is an initiation that waits for its receiver, or for its sender to be known.
type relayHeld struct {
	from     netip.AddrPort
	sender   *relayNode // nil: not known
	to       *relayNode // nil while the sender is not known
	datagram []byte
	until    time.Time
}

// relayReleased is one that goes on.
type relayReleased struct {
	to       relayPlace
	datagram []byte
}

// asked takes note that somebody begins a handshake with our endpoint from there, and so may be a node there in a moment.
func (t *relayTable) asked(from netip.AddrPort, now time.Time) {
	if t.byAddr[from] == nil && len(t.early) < maxAllEarly {
		t.early[from] = now.Add(heldTime)
	}
}

// holdEarly holds an initiation that comes from where nobody is yet, if a node is about to be.
func (t *relayTable) holdEarly(from netip.AddrPort, datagram []byte, now time.Time) {
	if t.early[from].After(now) {
		t.hold(relayHeld{from: from, datagram: datagram, until: now.Add(heldTime)}, maxHeldEarly)
	}
}

// hold holds a copy of an initiation, unless that many of its sender, too many of senders that are not known, or of all wait.
func (t *relayTable) hold(h relayHeld, each int) {
	same, early := 0, 0
	for _, o := range t.held {
		if o.sender == nil {
			early++
		}
		if o.sender == h.sender && (h.sender != nil || o.from == h.from) {
			same++
		}
	}
	if same >= each || len(t.held) >= maxHeld || h.sender == nil && early >= maxAllEarly {
		return
	}
	h.datagram = slices.Clone(h.datagram)
	t.held = append(t.held, h)
}

// release is what can go on now. What is over is dropped, and so is what policy or the registry forbid meanwhile.
func (t *relayTable) release(now time.Time) []relayReleased {
	waiting := t.held
	t.held = nil
	var list []relayReleased
	for _, h := range waiting {
		if !h.until.After(now) {
			continue
		}
		index := binary.LittleEndian.Uint32(h.datagram[4:])
		var to *relayNode
		switch {
		case h.sender == nil && t.byAddr[h.from] != nil:
			to = t.initiation(t.byAddr[h.from], index, h.datagram, now) // which may hold it for its receiver
		case h.sender == nil:
			t.held = append(t.held, h)
		case t.nodes[h.to.key] != h.to || t.nodes[h.sender.key] != h.sender || !t.allow(h.sender.key, h.to.key):
		case h.to.place.addr.IsValid():
			to = t.begins(h.sender, h.to, index, now)
		default:
			t.held = append(t.held, h)
		}
		if to != nil {
			list = append(list, relayReleased{to.place, h.datagram})
		}
	}
	return list
}

package tunnel

import (
	"crypto/subtle"
	"encoding/binary"
	"net/netip"
	"slices"
	"time"

	"golang.org/x/crypto/blake2s"
)

// The types of WireGuard's messages and their lengths in bytes, data's the least (the WireGuard paper, section 5.4).
const (
	typeInitiation = 1
	typeResponse   = 2
	typeCookie     = 3
	typeData       = 4

	initiationLength = 148
	responseLength   = 92
	cookieLength     = 64
	dataLength       = 32
	mac1Length       = 16
)

// The bounds of a relay's table.
const (
	pendingTime = 10 * time.Second  // for an answer to an initiation; WireGuard gives it 5 s
	sessionTime = 180 * time.Second // REJECT_AFTER_TIME: no key is used for longer
	maxPending  = 64                // of one sender
	maxSessions = 4096              // of one sender
	// Initiations of one sender to one destination: WireGuard sends one in 5 s while it gets no answer, and one in 120 s then.
	initiationBurst = 8
	initiationEvery = 2 * time.Second
	// Initiations of one sender to all: each costs a look at every node's key.
	trialBurst = 512
	trialEvery = 20 * time.Millisecond
)

// mac1 recognises the messages that are for a public key (the WireGuard paper, section 5.4.4).
type mac1 [blake2s.Size]byte

func newMAC1(k Key) mac1 {
	return blake2s.Sum256(append([]byte("mac1----"), k[:]...))
}

// matches reports whether a message of a handshake is for the key. Such messages end in mac1 and mac2.
func (m mac1) matches(message []byte) bool {
	body, sum := message[:len(message)-2*mac1Length], message[len(message)-2*mac1Length:len(message)-mac1Length]
	h, err := blake2s.New128(m[:])
	if err != nil {
		return false // of a key that is too long, which it is not
	}
	h.Write(body)
	return subtle.ConstantTimeCompare(h.Sum(nil), sum) == 1
}

// relayPlace is where a node is: its address, and the socket that it was heard at.
type relayPlace struct {
	addr netip.AddrPort
	conn int
}

// relayNode is a node as a relay knows it.
type relayNode struct {
	key       Key
	mac       mac1
	place     relayPlace // of its last completed handshake; invalid: it made none
	handshake time.Time

	pending  map[uint32]relayPending // by its index
	sessions int                     // that name it as sender
	limits   map[Key]*tokens
	trials   tokens
}

// relayPending is an initiation that waits for its response.
type relayPending struct {
	to    *relayNode
	until time.Time
}

// sessionKey is what the packets of one direction of a session have in common: who sends, and the index by which the
// receiver knows it.
type sessionKey struct {
	from  *relayNode
	index uint32
}

type relaySession struct {
	to    *relayNode
	until time.Time
}

// ownSession is one of our own endpoint.
type ownSession struct {
	until time.Time
	used  bool // something came in it, which completes its handshake
}

// relayTable knows the nodes of a relay and the sessions between them. It does no input and output, and has no clock.
type relayTable struct {
	allow    func(from, to Key) bool
	nodes    map[Key]*relayNode
	byAddr   map[netip.AddrPort]*relayNode
	sessions map[sessionKey]relaySession
	own      map[uint32]ownSession // by the index that our own endpoint gave
	held     []relayHeld
	early    map[netip.AddrPort]time.Time // until when a node may be about to be known there
}

func newRelayTable(allow func(from, to Key) bool) relayTable {
	return relayTable{
		allow:    allow,
		nodes:    map[Key]*relayNode{},
		byAddr:   map[netip.AddrPort]*relayNode{},
		sessions: map[sessionKey]relaySession{},
		own:      map[uint32]ownSession{},
		early:    map[netip.AddrPort]time.Time{},
	}
}

// keys are those of the nodes, in order.
func (t *relayTable) keys() []Key {
	list := make([]Key, 0, len(t.nodes))
	for k := range t.nodes {
		list = append(list, k)
	}
	slices.SortFunc(list, func(a, b Key) int { return slices.Compare(a[:], b[:]) })
	return list
}

// setNodes makes these the nodes. Sessions of those that are none any more end (S5).
func (t *relayTable) setNodes(keys []Key) {
	wanted := make(map[Key]bool, len(keys))
	for _, k := range keys {
		wanted[k] = true
		if t.nodes[k] == nil {
			t.nodes[k] = &relayNode{key: k, mac: newMAC1(k), pending: map[uint32]relayPending{}, limits: map[Key]*tokens{}, trials: newTokens(trialBurst, trialEvery)}
		}
	}
	for k, n := range t.nodes {
		if wanted[k] {
			continue
		}
		delete(t.nodes, k)
		if t.byAddr[n.place.addr] == n {
			delete(t.byAddr, n.place.addr)
		}
		for key, s := range t.sessions {
			if key.from == n || s.to == n {
				t.end(key)
			}
		}
	}
}

// end forgets one direction of a session.
func (t *relayTable) end(key sessionKey) {
	key.from.sessions--
	delete(t.sessions, key)
}

// move takes note of where a node has made a handshake with us. Nothing but a newer one moves it: the address of other
// packets is anybody's to write (S7).
func (t *relayTable) move(k Key, to relayPlace, handshake time.Time) {
	n := t.nodes[k]
	if n == nil || !handshake.After(n.handshake) {
		return
	}
	if t.byAddr[n.place.addr] == n {
		delete(t.byAddr, n.place.addr)
	}
	n.handshake, n.place = handshake, to
	t.byAddr[to.addr] = n
}

// forget drops what is over.
func (t *relayTable) forget(now time.Time) {
	for key, s := range t.sessions {
		if !s.until.After(now) {
			t.end(key)
		}
	}
	for index, s := range t.own {
		if !s.until.After(now) {
			delete(t.own, index)
		}
	}
	for at, until := range t.early {
		if !until.After(now) {
			delete(t.early, at)
		}
	}
	for _, n := range t.nodes {
		for index, p := range n.pending {
			if !p.until.After(now) {
				delete(n.pending, index)
			}
		}
		for k, l := range n.limits {
			if l.full(now) {
				delete(n.limits, k)
			}
		}
	}
}

// noteOwn takes note of the index by which whoever gets this response from our own endpoint will name it.
func (t *relayTable) noteOwn(response []byte, now time.Time) {
	t.own[binary.LittleEndian.Uint32(response[4:])] = ownSession{until: now.Add(sessionTime)}
}

// tells reports whether a datagram for our own endpoint may tell of a new place: it belongs to a handshake, completes one, or
// comes from where nobody is. A node whose key has changed speaks from where it was before.
func (t *relayTable) tells(from relayPlace, datagram []byte) bool {
	if messageType(datagram) != typeData {
		return true
	}
	index := binary.LittleEndian.Uint32(datagram[4:])
	s := t.own[index]
	completes := !s.used
	s.used = true
	t.own[index] = s
	return completes || t.byAddr[from.addr] == nil
}

// isOwn reports whether a datagram is for our own endpoint. Initiations to it may come from anywhere: that is how a node
// is found. It has the defences of WireGuard against floods.
func (t *relayTable) isOwn(own mac1, from relayPlace, datagram []byte, now time.Time) bool {
	switch messageType(datagram) {
	case typeInitiation:
		return own.matches(datagram)
	case typeData:
		index := binary.LittleEndian.Uint32(datagram[4:])
		_, other := t.sessions[sessionKey{t.byAddr[from.addr], index}] // drawn at random by both
		return !other && t.own[index].until.After(now)
	}
	return false
}

// messageType is the type of a message that has the length of its type; 0: it is none of WireGuard's.
func messageType(datagram []byte) byte {
	if len(datagram) < dataLength || datagram[1]|datagram[2]|datagram[3] != 0 {
		return 0
	}
	switch kind := datagram[0]; {
	case kind == typeInitiation && len(datagram) == initiationLength,
		kind == typeResponse && len(datagram) == responseLength,
		kind == typeCookie && len(datagram) == cookieLength,
		kind == typeData: // mostly a multiple of 16, but a packet as long as the MTU is not filled up
		return kind
	}
	return 0
}

// route is who a datagram is to be passed to, nil for nobody. met is whom that one has made a session with by it.
func (t *relayTable) route(from relayPlace, datagram []byte, now time.Time) (to, met *relayNode) {
	sender := t.byAddr[from.addr]
	kind := messageType(datagram)
	if sender == nil && kind == typeInitiation {
		t.holdEarly(from.addr, datagram, now)
	}
	if sender == nil || kind == 0 {
		return nil, nil // before any key is tried: strangers cost us a look at a table
	}
	index := func(at int) uint32 { return binary.LittleEndian.Uint32(datagram[at:]) }
	switch kind {
	case typeInitiation:
		return t.initiation(sender, index(4), datagram, now), nil
	case typeResponse:
		return t.response(sender, index(4), index(8), now)
	case typeCookie:
		return t.cookie(sender, index(4), now), nil
	}
	s := t.sessions[sessionKey{sender, index(4)}]
	if s.to == nil || !s.until.After(now) {
		return nil, nil
	}
	return s.to, nil
}

// initiation starts a session between its sender and the node whose key its mac1 is of.
func (t *relayTable) initiation(sender *relayNode, index uint32, datagram []byte, now time.Time) *relayNode {
	if !sender.trials.take(now) {
		return nil
	}
	var to *relayNode
	for _, n := range t.nodes {
		if n != sender && n.mac.matches(datagram) {
			to = n
			break
		}
	}
	if to == nil || !t.allow(sender.key, to.key) || !sender.may(to.key, now) {
		return nil
	}
	if !to.place.addr.IsValid() {
		t.hold(relayHeld{sender.place.addr, sender, to, datagram, now.Add(heldTime)}, maxHeldEach)
		return nil
	}
	return t.begins(sender, to, index, now)
}

// begins has a sender's initiation wait for its answer. It returns nil where too many do.
func (t *relayTable) begins(sender, to *relayNode, index uint32, now time.Time) *relayNode {
	if len(sender.pending) >= maxPending {
		for old, p := range sender.pending {
			if !p.until.After(now) {
				delete(sender.pending, old)
			}
		}
		if len(sender.pending) >= maxPending {
			return nil
		}
	}
	sender.pending[index] = relayPending{to, now.Add(pendingTime)}
	return to
}

// response makes the session: from now on each side is known by the index that it gave.
func (t *relayTable) response(sender *relayNode, index, receiver uint32, now time.Time) (to, met *relayNode) {
	to = t.awaits(sender, receiver, now)
	if to == nil || sender.sessions >= maxSessions || to.sessions >= maxSessions {
		return nil, nil
	}
	delete(to.pending, receiver)
	t.begin(sessionKey{sender, receiver}, to, now)
	t.begin(sessionKey{to, index}, sender, now)
	return to, sender
}

func (t *relayTable) begin(key sessionKey, to *relayNode, now time.Time) {
	if _, had := t.sessions[key]; !had {
		key.from.sessions++
	}
	t.sessions[key] = relaySession{to, now.Add(sessionTime)}
}

// cookie passes towards who has sent an initiation and to nobody else: it is encrypted, but not bound to an address.
func (t *relayTable) cookie(sender *relayNode, receiver uint32, now time.Time) *relayNode {
	return t.awaits(sender, receiver, now)
}

// awaits is the node that has an initiation to sender under way, with that index.
func (t *relayTable) awaits(sender *relayNode, receiver uint32, now time.Time) *relayNode {
	for _, n := range t.nodes {
		if p, ok := n.pending[receiver]; ok && p.to == sender && p.until.After(now) {
			return n
		}
	}
	return nil
}

// may reports whether a node may send another initiation to one.
func (n *relayNode) may(to Key, now time.Time) bool {
	l := n.limits[to]
	if l == nil {
		limit := newTokens(initiationBurst, initiationEvery)
		l = &limit
		n.limits[to] = l
	}
	return l.take(now)
}

// tokens is a bucket of them.
type tokens struct {
	left, burst int
	every       time.Duration
	at          time.Time // when the last one was put in
}

func newTokens(burst int, every time.Duration) tokens {
	return tokens{left: burst, burst: burst, every: every}
}

// refill puts in what has come due.
func (b *tokens) refill(now time.Time) {
	if b.at.IsZero() {
		b.at = now
	}
	due := now.Sub(b.at) / b.every
	if due <= 0 {
		return
	}
	b.at = b.at.Add(due * b.every)
	b.left = int(min(time.Duration(b.burst), time.Duration(b.left)+due))
}

func (b *tokens) take(now time.Time) bool {
	b.refill(now)
	if b.left == 0 {
		return false
	}
	b.left--
	return true
}

// full reports whether nothing was taken lately.
func (b *tokens) full(now time.Time) bool {
	b.refill(now)
	return b.left == b.burst
}

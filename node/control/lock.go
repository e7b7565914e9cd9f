package control

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"strings"
)

// Rotation says that a node has new keys from now on. It is signed by the control key that it had until then (S3).
type Rotation struct {
	From      Keys   `json:"from"`
	To        Keys   `json:"to"`
	Signature []byte `json:"signature"` // by From.Control
}

// Keys are what others know a node by.
type Keys struct {
	Key     WireGuardKey `json:"key"`
	Control ControlKey   `json:"control"`
}

// Keys are the node's.
func (n Node) Keys() Keys { return Keys{n.Key, n.Control} }

// Signature is a lock's, over a node's name, addresses and keys (S3).
type Signature struct {
	By   ControlKey `json:"by"`
	Sign []byte     `json:"signature"`
}

// maxRotations is how many of a node's key changes its record carries: who was away for more of them has to be told by
// its owner.
const maxRotations = 16

// message is what is signed: every part behind its length, so that no two things that could be signed read alike.
func message(kind string, parts ...[]byte) []byte {
	b := []byte("meshdns/1 " + kind)
	for _, p := range parts {
		b = append(binary.BigEndian.AppendUint32(b, uint32(len(p))), p...)
	}
	return b
}

func rotationMessage(zone, name string, from, to Keys) []byte {
	return message("rotation", []byte(zone), []byte(name), from.Key[:], from.Control[:], to.Key[:], to.Control[:])
}

func lockMessage(zone string, n Node) []byte {
	var addrs []byte
	for _, a := range n.Addresses {
		addrs = appendAddr(addrs, a)
	}
	var names []byte
	for _, name := range n.Names {
		names = append(binary.BigEndian.AppendUint32(names, uint32(len(name))), name...)
	}
	return message("lock", []byte(zone), []byte(n.Name), n.Key[:], n.Control[:], addrs, names)
}

// Rotate is the statement that a node's keys change, under its old control key.
func (k PrivateKey) Rotate(zone, name string, from, to Keys) Rotation {
	return Rotation{From: from, To: to, Signature: k.sign(rotationMessage(zone, name, from, to))}
}

// SignNode is a lock's signature over a node's record.
func (k PrivateKey) SignNode(zone string, n Node) Signature {
	return Signature{By: k.Public(), Sign: k.sign(lockMessage(zone, n))}
}

func (r Rotation) valid(zone, name string) bool {
	return r.From.Control.verify(rotationMessage(zone, name, r.From, r.To), r.Signature)
}

// Pins are the keys that a node has seen of others, by name. They decide what it believes of a map: a gateway that was
// broken into can hand out other keys, and nobody takes them.
type Pins map[string]Keys

// ErrPinned is wrapped by the errors that say which node's keys are not believed.
var ErrPinned = errors.New("its keys are not believed")

// Check says whether a node of a map in zone may be spoken to, and pins what it sees first. lock are the owner's keys:
// with any, only what one of them has signed counts. An error wraps ErrPinned, and the pin stays as it was.
func (p Pins) Check(zone string, n Node, lock []ControlKey) error {
	if len(lock) > 0 && !n.SignedBy(zone, lock) {
		return fmt.Errorf("%s is not signed by a key of the lock: %w", n.Name, ErrPinned)
	}
	pinned, seen := p[n.Name]
	if !seen || pinned == n.Keys() {
		p[n.Name] = n.Keys()
		return nil
	}
	if len(lock) > 0 {
		p[n.Name] = n.Keys() // the owner has signed these
		return nil
	}
	if n.follows(zone, pinned) {
		p[n.Name] = n.Keys()
		return nil
	}
	return fmt.Errorf("%s has other keys than before, and no statement of its old ones: %w", n.Name, ErrPinned)
}

// SignedBy reports whether one of a lock's keys has signed the node as it is.
func (n Node) SignedBy(zone string, lock []ControlKey) bool {
	if n.Signature == nil {
		return false
	}
	for _, key := range lock {
		if key == n.Signature.By {
			return key.verify(lockMessage(zone, n), n.Signature.Sign)
		}
	}
	return false
}

// follows reports whether the node's rotations lead from the keys that were pinned to those that it has.
func (n Node) follows(zone string, pinned Keys) bool {
	at := pinned
	for _, r := range n.Rotations[max(0, len(n.Rotations)-maxRotations):] {
		if r.From == at && r.valid(zone, n.Name) {
			at = r.To
		}
	}
	return at == n.Keys()
}

// Signable is a node's record as a lock signs it, in words for the one who is to sign.
func (n Node) Signable() string {
	return fmt.Sprintf("%s %v key %s control %s names %v", n.Name, addrList(n.Addresses), n.Key, n.Control, n.Names)
}

func addrList(addrs []netip.Addr) string {
	var words []string
	for _, a := range addrs {
		words = append(words, a.String())
	}
	return strings.Join(words, ",")
}

package control

import (
	"crypto/sha256"
	"crypto/subtle"
	"encoding/base32"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"strings"
	"time"
)

// Invite is what a new node needs to join: a WireGuard key of its own for that and the way to the gateway. Whoever has
// it can join, once: it is a secret (S21), and prints itself only by Encode.
type Invite struct {
	Key       [32]byte         // the WireGuard private key that reaches the join call and nothing else
	Address   netip.Addr       // the tailnet address that goes with it
	Gateway   WireGuardKey     // the gateway's
	Control   ControlKey       // the gateway's: its control calls and its carrier on 443 are pinned to it
	Server    netip.Addr       // the gateway's tailnet address, where Port answers
	Endpoints []netip.AddrPort // where the gateway's WireGuard listens
	Carrier   netip.AddrPort   // where its 443 listens; invalid: nowhere
	Expires   time.Time        // to the second
	Reusable  bool
}

const (
	invitePrefix  = "MESHDNS"
	inviteVersion = 1
	// maxInvite bounds an invite's text, in bytes: three keys and maxEndpoints endpoints are far below it.
	maxInvite = 1024
)

// ErrNoInvite says that a text is no invite, or one that was damaged on its way.
var ErrNoInvite = errors.New("not an invite")

// String hides the key.
func (i Invite) String() string { return "(an invite)" }

// GoString keeps %#v from printing the key.
func (i Invite) GoString() string { return i.String() }

// LogValue keeps loggers from printing the key.
func (i Invite) LogValue() slog.Value { return slog.StringValue(i.String()) }

// inviteText has only characters of a QR code's alphanumeric set, which is the densest for text (ISO/IEC 18004), and none
// that a reader could confuse in upper case alone.
var inviteText = base32.StdEncoding.WithPadding(base32.NoPadding)

// Encode writes the invite as one word.
func (i Invite) Encode() string {
	b := []byte{inviteVersion, 0}
	if i.Reusable {
		b[1] = 1
	}
	b = append(b, i.Key[:]...)
	b = append(b, i.Gateway[:]...)
	b = append(b, i.Control[:]...)
	b = binary.BigEndian.AppendUint64(b, uint64(max(0, i.Expires.Unix())))
	b = appendAddr(b, i.Address)
	b = appendAddr(b, i.Server)
	b = appendAddr(b, i.Carrier.Addr())
	b = binary.BigEndian.AppendUint16(b, i.Carrier.Port())
	endpoints := i.Endpoints[:min(len(i.Endpoints), maxEndpoints)]
	b = append(b, byte(len(endpoints)))
	for _, e := range endpoints {
		b = appendAddr(b, e.Addr())
		b = binary.BigEndian.AppendUint16(b, e.Port())
	}
	sum := sha256.Sum256(b)
	return invitePrefix + inviteText.EncodeToString(append(b, sum[:4]...))
}

// appendAddr writes an address behind its length; an invalid one has none.
func appendAddr(b []byte, a netip.Addr) []byte {
	data := a.WithZone("").AsSlice()
	return append(append(b, byte(len(data))), data...)
}

// ParseInvite reads an invite. Case, spaces and line breaks within it do not count: it is copied by hand and mail. Its
// error wraps ErrNoInvite and never holds a part of the text.
func ParseInvite(text string) (Invite, error) {
	text = strings.ToUpper(strings.Join(strings.Fields(text), ""))
	if len(text) > maxInvite {
		return Invite{}, fmt.Errorf("%w: longer than %d characters", ErrNoInvite, maxInvite)
	}
	rest, ok := strings.CutPrefix(text, invitePrefix)
	if !ok {
		return Invite{}, fmt.Errorf("%w: it does not start with %s", ErrNoInvite, invitePrefix)
	}
	data, err := inviteText.DecodeString(rest)
	if err != nil || len(data) < 5 {
		return Invite{}, fmt.Errorf("%w: it is incomplete, or has a character that does not belong there", ErrNoInvite)
	}
	body, sum := data[:len(data)-4], data[len(data)-4:]
	if want := sha256.Sum256(body); subtle.ConstantTimeCompare(sum, want[:4]) != 1 {
		return Invite{}, fmt.Errorf("%w: it was damaged or is incomplete", ErrNoInvite)
	}
	if body[0] != inviteVersion {
		return Invite{}, fmt.Errorf("%w of this version: it has version %d, and this program knows %d", ErrNoInvite, body[0], inviteVersion)
	}
	r := inviteReader{rest: body[1:]}
	i := r.invite()
	if r.bad || len(r.rest) > 0 {
		return Invite{}, fmt.Errorf("%w: its parts do not fit", ErrNoInvite)
	}
	return i, nil
}

// inviteReader reads what Encode wrote. bad: something did not fit.
type inviteReader struct {
	rest []byte
	bad  bool
}

func (r *inviteReader) take(n int) []byte {
	if len(r.rest) < n {
		r.bad, r.rest = true, nil
		return make([]byte, n)
	}
	taken := r.rest[:n]
	r.rest = r.rest[n:]
	return taken
}

func (r *inviteReader) invite() Invite {
	var i Invite
	flags := r.take(1)[0]
	r.bad = r.bad || flags > 1
	i.Reusable = flags == 1
	copy(i.Key[:], r.take(32))
	copy(i.Gateway[:], r.take(32))
	copy(i.Control[:], r.take(32))
	seconds := binary.BigEndian.Uint64(r.take(8))
	r.bad = r.bad || seconds > 1<<40
	i.Expires = time.Unix(int64(min(seconds, 1<<40)), 0)
	i.Address, i.Server = r.address(false), r.address(false)
	carrier := r.address(true)
	port := binary.BigEndian.Uint16(r.take(2))
	if carrier.IsValid() {
		i.Carrier = netip.AddrPortFrom(carrier, port)
	} else if port != 0 {
		r.bad = true
	}
	n := int(r.take(1)[0])
	r.bad = r.bad || n > maxEndpoints
	for range min(n, maxEndpoints) {
		addr := r.address(false)
		i.Endpoints = append(i.Endpoints, netip.AddrPortFrom(addr, binary.BigEndian.Uint16(r.take(2))))
	}
	return i
}

// address reads one; none is allowed where it may be left out.
func (r *inviteReader) address(optional bool) netip.Addr {
	n := int(r.take(1)[0])
	addr, ok := netip.AddrFromSlice(r.take(min(n, 16)))
	if !ok && (n != 0 || !optional) {
		r.bad = true
	}
	return addr
}

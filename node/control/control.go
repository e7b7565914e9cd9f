// Package control carries what nodes and their gateways tell each other: joining, the map of the tailnet, and what a
// node reports. It is JSON over HTTP/1.1 over TLS 1.3 inside the tunnel; each side is known by its Ed25519 control key
// and a node by its tailnet address besides (rule S1). It makes no tunnels, and answers no names.
package control

import (
	"errors"
	"net/netip"
	"time"
)

// Port is the TCP port on a gateway's tailnet address where it is spoken to.
const Port = 41443

// The bounds of what goes over the wire, in bytes where nothing else is said.
const (
	maxBody      = 64 << 10 // of a call
	maxEvent     = 32 << 20 // of one line of the map's stream: a full map of some 50,000 nodes
	maxHeader    = 8 << 10
	maxEndpoints = 8 // S8
	// maxSignatures is how many of a lock's signatures one call brings: they have to fit into maxBody.
	maxSignatures = 200
)

// The times of the protocol.
const (
	// pingInterval is how often a gateway says something on a quiet stream. A node waits three times as long.
	pingInterval = 25 * time.Second
	// callTimeout bounds a call, the map's stream aside.
	callTimeout = 10 * time.Second
	// trustTime is how long a map is trusted without a word of its gateway (S5).
	trustTime = 14 * 24 * time.Hour
)

// The paths of the calls.
const (
	pathJoin    = "/v1/join"
	pathMap     = "/v1/map"
	pathReport  = "/v1/report"
	pathConnect = "/v1/connect"
	pathRotate  = "/v1/rotate"
	pathText    = "/v1/acme/txt"
	pathAccount = "/v1/acme/account"
	pathTurn    = "/v1/acme/turn"
	pathSign    = "/v1/sign"
)

// Map is the tailnet as its gateway tells it. Slices are never changed once it is published.
type Map struct {
	Zone       string         `json:"zone"`
	Ranges     []netip.Prefix `json:"ranges"`
	Epoch      uint64         `json:"epoch"`   // of the gateway's registry; with Version it never goes back (S4)
	Version    uint64         `json:"version"` // within the epoch
	TrustUntil time.Time      `json:"trust_until"`
	Nodes      []Node         `json:"nodes"` // sorted by name
	Policy     string         `json:"policy,omitempty"`
}

// Node is one machine of the map.
type Node struct {
	Name      string           `json:"name"`
	Addresses []netip.Addr     `json:"addresses"`
	Key       WireGuardKey     `json:"key"`
	Control   ControlKey       `json:"control"`
	Names     []string         `json:"names,omitempty"` // service names
	Tags      []string         `json:"tags,omitempty"`
	Wildcard  bool             `json:"wildcard,omitempty"`
	Gateway   *GatewayNode     `json:"gateway,omitempty"`
	Endpoints []netip.AddrPort `json:"endpoints,omitempty"` // static ones, that its owner gave
	Rotations []Rotation       `json:"rotations,omitempty"` // how its keys changed, the newest last (S3)
	Signature *Signature       `json:"signature,omitempty"` // of a lock (S3)
}

// GatewayNode is what a gateway is besides.
type GatewayNode struct {
	Public []netip.Addr `json:"public"`
	// Where packets for other nodes may be sent, and the WireGuard key of that port (S7).
	Relay    []netip.AddrPort `json:"relay,omitempty"`
	RelayKey WireGuardKey     `json:"relay_key,omitzero"`
}

// Event is one line of the map's stream. One of its fields is set, or none: then it only says that the gateway lives.
type Event struct {
	Map     *Map      `json:"map,omitempty"`
	Delta   *Delta    `json:"delta,omitempty"`
	Connect *Connect  `json:"connect,omitempty"`
	Trust   time.Time `json:"trust_until,omitzero"` // on a sign of life: the map's new TrustUntil
	Now     time.Time `json:"now,omitzero"`         // on a sign of life: what the gateway's clock says
	Funnels []Funnel  `json:"funnels,omitempty"`    // what has become of the node's funnels: all of them
	Texts   time.Time `json:"texts_until,omitzero"` // the gateway has values of the node until then: only while it hears of it does it tell them
}

// Delta is what makes a newer map of the map with version From of the same epoch.
type Delta struct {
	From    uint64   `json:"from"`
	Version uint64   `json:"version"`
	Set     []Node   `json:"set,omitempty"`
	Remove  []string `json:"remove,omitempty"`
	Policy  *string  `json:"policy,omitempty"` // nil: as before
}

// Connect asks a node to send packets to another one at once, since that one does the same: so both open their NAT.
type Connect struct {
	Node      string           `json:"node"`
	Endpoints []netip.AddrPort `json:"endpoints"`
}

// JoinRequest is what a new node says of itself. Its control key is that of the connection.
type JoinRequest struct {
	Name string       `json:"name,omitempty"` // empty: the invite's
	Key  WireGuardKey `json:"key"`
}

// JoinAnswer is a new node's place in the tailnet.
type JoinAnswer struct {
	Node    Node       `json:"node"`
	Map     Map        `json:"map"`
	Gateway ControlKey `json:"gateway"`          // to be pinned
	Lock    bool       `json:"lock,omitempty"`   // the owner signs keys: somebody has to sign this one's
	Invite  string     `json:"invite,omitempty"` // instead of all that: a one-time invite, for a reusable one
}

// Report is what a node tells of itself from time to time.
type Report struct {
	Epoch     uint64           `json:"epoch"` // of the map that it works from
	Version   uint64           `json:"version"`
	Endpoints []netip.AddrPort `json:"endpoints,omitempty"` // private ones, on its own links (S8)
}

// RefusedError is a gateway's no. Code is for programs, Message for people.
type RefusedError struct {
	Status  int    `json:"-"` // of HTTP
	Code    string `json:"code"`
	Message string `json:"message"`
}

func (e *RefusedError) Error() string { return e.Message }

// Busy reports whether the same call may be taken soon.
func (e *RefusedError) Busy() bool { return e.Code == codeBusy }

// Hint says what the user can do.
func (e *RefusedError) Hint() string {
	switch e.Code {
	case codeInviteUsed, codeInviteUnknown:
		return "ask for a new invite: on the gateway, meshdns gateway invite NAME"
	case codeNameTaken:
		return "choose another name, or remove the old node: on the gateway, meshdns gateway remove NAME"
	case codeKeyKnown:
		return "this node has joined already; to join anew remove its keys first"
	case codeNoLock:
		return "write the lock: line into the gateway's configuration too, or, on the gateway: meshdns gateway sign FILE"
	case codeLocked:
		return "the tailnet's owner signs names: use a name that the node has"
	case codeNoFunnels:
		return "update the gateway"
	case codeBusy:
		return "try again in a minute"
	}
	return ""
}

// The codes of refusals.
const (
	codeInviteUsed    = "invite_used"
	codeInviteUnknown = "invite_unknown"
	codeNameTaken     = "name_taken"
	codeNameBad       = "name_bad"
	codeKeyKnown      = "key_known"
	codeNotYou        = "not_you"
	codeBad           = "bad_request"
	codeBusy          = "busy"
	codeFull          = "full"
	codeUnknownNode   = "unknown_node"
	codeNotYours      = "not_yours"
	codeNoLock        = "no_lock"
	codeNoFunnels     = "no_funnels"
	codeLocked        = "locked"
)

// errConflict says that a record was changed by somebody else meanwhile.
var errConflict = errors.New("the record was changed meanwhile")

package node

import (
	"errors"
	"time"

	"github.com/meshdns/meshdns/node/control"
	"github.com/meshdns/meshdns/node/tunnel"
)

// tunnelStatus says how the tailnet is carried.
type tunnelStatus struct {
	Mode    string         `json:"mode"` // kernel, tun or userspace; empty: no tunnel runs
	Why     []string       `json:"why"`  // the trace that led to it
	Port    uint16         `json:"port"`
	MTU     int            `json:"mtu"`
	Peers   []peerStatus   `json:"peers"`
	Gateway *contactStatus `json:"gateway,omitempty"` // that this machine has joined
}

// peerStatus is how one node is reached.
type peerStatus struct {
	Node      string     `json:"node"`
	Path      string     `json:"path"`      // direct, gateway, or none before anything was said
	Endpoint  string     `json:"endpoint"`  // where packets go
	Handshake *time.Time `json:"handshake"` // the last one; null: none
	Received  uint64     `json:"received"`  // bytes, encrypted
	Sent      uint64     `json:"sent"`
}

// contactStatus is how this machine stands with its gateway.
type contactStatus struct {
	Name       string     `json:"name"`
	Since      *time.Time `json:"since"` // its stream of maps is open; null: it is not
	Epoch      uint64     `json:"epoch"`
	Version    uint64     `json:"version"`
	TrustUntil time.Time  `json:"trust_until"` // afterwards names resolve, and nobody else is spoken to
	Relay      *time.Time `json:"relay"`       // the last handshake with its relay; null: none
	Ahead      *int       `json:"ahead"`       // seconds by which this machine's clock is ahead of the gateway's; null: not known

	relayKey control.WireGuardKey
}

// The paths of a peer, as status and ping say them.
const (
	pathDirect  = "direct"
	pathGateway = "gateway"
	pathNone    = "none"
)

// tunnelStatus is how the tailnet is carried at this moment.
func (n *Node) tunnelStatus(m *Map) tunnelStatus {
	s := tunnelStatus{Why: []string{}, Peers: []peerStatus{}, Gateway: n.member.status()}
	t := n.carrier.tunnel
	if t == nil {
		return s
	}
	s.Mode, s.Why, s.MTU = string(t.Mode()), notNil(t.Why()), t.MTU()
	port, err := t.Port()
	stats, err2 := t.Stats()
	if err = errors.Join(err, err2); err != nil {
		n.log.Debug("the tunnel tells nothing", "err", err)
	}
	s.Port = port
	known := map[string]tunnel.PeerStats{}
	for _, one := range stats {
		known[one.Key.String()] = one
	}
	if s.Gateway != nil {
		s.Gateway.Relay = handshakeTime(known[s.Gateway.relayKey.String()])
	}
	for _, node := range m.Nodes() {
		if one, ok := known[node.Key]; ok && node.Key != "" {
			s.Peers = append(s.Peers, n.peerStatus(node.Name, one))
		}
	}
	return s
}

// peerStatus is how one node is reached.
func (n *Node) peerStatus(name string, s tunnel.PeerStats) peerStatus {
	p := peerStatus{Node: name, Path: n.pathOf(s), Received: s.Received, Sent: s.Sent, Handshake: handshakeTime(s)}
	if s.Endpoint.IsValid() {
		p.Endpoint = s.Endpoint.String()
	}
	return p
}

// handshakeTime is that of the last handshake; nil: there was none.
func handshakeTime(s tunnel.PeerStats) *time.Time {
	if s.Handshake.IsZero() {
		return nil
	}
	at := s.Handshake.UTC().Truncate(time.Millisecond)
	return &at
}

// pathOf is by which way packets go to a peer.
func (n *Node) pathOf(s tunnel.PeerStats) string {
	n.paths.mu.Lock()
	p := n.paths.peers[s.Key]
	byGateway := p != nil && p.state != direct
	n.paths.mu.Unlock()
	switch {
	case s.Handshake.IsZero():
		return pathNone
	case byGateway:
		return pathGateway
	}
	return pathDirect
}

// status is how this machine stands with its gateway; nil: it has none.
func (m *member) status() *contactStatus {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.keeps == nil {
		return nil
	}
	s := &contactStatus{
		Name: m.keeps.Gateways[0].label(), Epoch: m.keeps.Map.Epoch, Version: m.keeps.Map.Version, TrustUntil: m.keeps.Map.TrustUntil.UTC(),
		relayKey: m.keeps.Gateways[0].RelayKey,
	}
	if m.ahead != nil {
		seconds := int(m.ahead.Seconds())
		s.Ahead = &seconds
	}
	if !m.stream.IsZero() {
		at := m.stream.UTC().Truncate(time.Millisecond)
		s.Since = &at
	}
	return s
}

package node

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/netip"
	"net/url"
	"slices"
	"time"

	"github.com/meshdns/meshdns/node/tunnel"
)

// pathPing is the call that asks another node whether it is there.
const pathPing = "/v1/ping"

// How long an answer is waited for. The question is put again, since the first packet to a node may be lost while the two make
// their session.
const (
	pingTime  = 4500 * time.Millisecond
	pingAgain = 1500 * time.Millisecond
)

// pingReply is one answer of a node.
type pingReply struct {
	Schema   string     `json:"schema"` // meshdns.ping/v1
	Node     string     `json:"node"`
	Address  netip.Addr `json:"address"`
	Latency  float64    `json:"latency_ms"`
	Path     string     `json:"path"`     // direct or gateway
	Endpoint string     `json:"endpoint"` // where packets go
}

// servePing asks a node.
func (n *Node) servePing(r *http.Request, _ caller) (any, error) {
	m, _ := n.tailnet.current()
	node, err := pinged(m, r.FormValue("node"))
	if err != nil {
		return nil, err
	}
	switch {
	case node.Name == n.findSelf(m):
		return nil, hinted(ErrBadRequest, fmt.Errorf("%s is this machine", node.Name), "")
	case n.carrier.tunnel == nil:
		return nil, hinted(nil, errors.New("no tunnel of meshdns runs here"), "see: meshdns status")
	}
	key, err := tunnel.ParseKey(node.Key)
	if err != nil {
		return nil, hinted(nil, fmt.Errorf("%s has no key that is believed", node.Name), "see: meshdns status")
	}
	ctx, cancel := context.WithTimeout(r.Context(), pingTime)
	defer cancel()
	took, err := n.echo.insist(ctx, node.Addresses[0])
	if err != nil {
		if isTimeout(err) {
			err = hinted(ErrTimeout, fmt.Errorf("%s does not answer", node.Name), "is it up? see: meshdns status, there and here")
		}
		return nil, err
	}
	reply := pingReply{
		Schema: "meshdns.ping/v1", Node: node.Name, Address: node.Addresses[0], Latency: float64(took.Microseconds()) / 1000, Path: pathNone,
	}
	stats, err := n.carrier.tunnel.Stats()
	if i := slices.IndexFunc(stats, func(s tunnel.PeerStats) bool { return s.Key == key }); err == nil && i >= 0 {
		reply.Path, reply.Endpoint = n.pathOf(stats[i]), stats[i].Endpoint.String()
	}
	return reply, nil
}

// pinged is the node that a name or an address is of.
func pinged(m *Map, name string) (Machine, error) {
	if node, ok := m.Node(name); ok {
		return node, nil
	}
	if a, err := netip.ParseAddr(name); err == nil {
		for _, node := range m.Nodes() {
			if slices.Contains(node.Addresses, a) {
				return node, nil
			}
		}
	}
	return Machine{}, hinted(ErrNotFound, fmt.Errorf("no node %q", name), "the nodes are in: meshdns status")
}

// insist asks until there is an answer, and returns how long that took from its own question on.
func (e *echo) insist(ctx context.Context, to netip.Addr) (time.Duration, error) {
	for {
		once, cancel := context.WithTimeout(ctx, pingAgain)
		took, err := e.ask(once, to)
		cancel()
		if err == nil || !isTimeout(err) {
			return took, err
		}
		if ctx.Err() != nil {
			return 0, ctx.Err()
		}
	}
}

// Ping asks another node whether it is there. ErrNotFound: there is no such node; ErrTimeout: it does not answer.
func (c Client) Ping(ctx context.Context, name string) (pingReply, error) {
	return get[pingReply](ctx, c, pathPing, url.Values{"node": {name}})
}

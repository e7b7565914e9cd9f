package node

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/netip"
	"net/url"
	"time"

	"github.com/meshdns/meshdns/node/control"
)

// The paths of the calls for a gateway.
const (
	pathInvite = "/v1/gateway/invite"
	pathNodes  = "/v1/gateway/nodes"
	pathRemove = "/v1/gateway/remove"
	pathRename = "/v1/gateway/rename"
	pathBackup = "/v1/gateway/backup"
)

// maxInviteTime bounds how long an invite may live: it is a secret that lies in somebody's mail.
const maxInviteTime = 90 * 24 * time.Hour

type inviteRequest struct {
	Name     string   `json:"name"`
	Tags     []string `json:"tags"`
	Seconds  int64    `json:"seconds"` // 0: one hour
	Reusable bool     `json:"reusable"`
}

// inviteReply is an invite, which is a secret.
type inviteReply struct {
	Schema   string    `json:"schema"` // meshdns.gateway.invite/v1
	Name     string    `json:"name"`
	Invite   string    `json:"invite"`
	Expires  time.Time `json:"expires"`
	Reusable bool      `json:"reusable"`
}

// nodesReply is what a gateway knows of its nodes.
type nodesReply struct {
	Schema  string        `json:"schema"` // meshdns.gateway.nodes/v1
	Zone    string        `json:"zone"`
	Version uint64        `json:"version"` // of the map
	Nodes   []gatewayPeer `json:"nodes"`
}

// gatewayPeer is one node, or an invite that waits for one.
type gatewayPeer struct {
	Name      string             `json:"name"`
	State     string             `json:"state"` // node, pending or invited
	Addresses []netip.Addr       `json:"addresses"`
	Tags      []string           `json:"tags"`
	Key       string             `json:"key"`
	Control   string             `json:"control"`
	Names     []string           `json:"names"`     // service names
	Signature *control.Signature `json:"signature"` // of the owner's lock; null: none
	Since     time.Time          `json:"since"`     // joined, or for an invite when it ends
	Seen      *time.Time         `json:"seen"`      // null: not since the gateway started
	Version   uint64             `json:"version"`   // of the map that it works from
	Confirmed bool               `json:"confirmed"` // it works from the newest
	Endpoint  string             `json:"endpoint"`
	Contested *time.Time         `json:"contested"` // when its invite was used again, by somebody else; null: never
	Funnels   []funnelStatus     `json:"funnels"`   // what it shows to the world
}

type removeRequest struct {
	Name string `json:"name"`
}

type renameRequest struct {
	Name string `json:"name"`
	To   string `json:"to"`
}

// gatewayEndpoints are the calls of the control API that only a gateway answers.
func (n *Node) gatewayEndpoints() []endpoint {
	return []endpoint{
		{pattern: "GET " + pathNodes, operator: true, serve: n.asGateway(n.serveNodes)},
		{pattern: "POST " + pathInvite, operator: true, serve: n.asGateway(n.serveInvite)},
		{pattern: "POST " + pathRemove, operator: true, serve: n.asGateway(n.serveRemove)},
		{pattern: "POST " + pathRename, operator: true, serve: n.asGateway(n.serveRename)},
		{pattern: "GET " + pathBackup, operator: true, serve: n.asGateway(n.serveBackup)},
	}
}

// asGateway answers where this node is a gateway.
func (n *Node) asGateway(serve func(r *http.Request) (any, error)) func(*http.Request, caller) (any, error) {
	return func(r *http.Request, _ caller) (any, error) {
		if n.gateway.registry == nil {
			return nil, hinted(ErrNotFound, errors.New("this node is no gateway"), "run this on the gateway, or make one: meshdns gateway init")
		}
		answer, err := serve(r)
		var refused *control.RefusedError
		if errors.As(err, &refused) {
			kind := ErrBadRequest
			if refused.Status == http.StatusNotFound {
				kind = ErrNotFound
			}
			return nil, hinted(kind, err, refused.Hint())
		}
		return answer, err
	}
}

func (n *Node) serveInvite(r *http.Request) (any, error) {
	var in inviteRequest
	if err := decode(r, &in); err != nil {
		return nil, err
	}
	if in.Seconds < 0 || in.Seconds > int64(maxInviteTime/time.Second) {
		return nil, hinted(ErrBadRequest, fmt.Errorf("an invite lives for at most %s", maxInviteTime), "")
	}
	invite, err := n.gateway.registry.NewInvite(r.Context(), control.InviteOptions{
		Name: in.Name, Tags: in.Tags, TTL: time.Duration(in.Seconds) * time.Second, Reusable: in.Reusable,
	})
	if err != nil {
		return nil, err
	}
	n.awaitPeers()
	return inviteReply{
		Schema: "meshdns.gateway.invite/v1", Name: in.Name, Invite: invite.Encode(), Expires: invite.Expires.UTC(), Reusable: in.Reusable,
	}, nil
}

// contestedTime is how long status speaks of an invite that was used twice.
const contestedTime = 7 * 24 * time.Hour

// contested says of nodes whose invite was used twice lately, since either may be who was not invited (S6).
func (g *gateway) contested(now time.Time) []string {
	if g.registry == nil {
		return nil
	}
	var list []string
	for _, s := range g.registry.Nodes() {
		if !s.Contested.IsZero() && now.Sub(s.Contested) < contestedTime {
			list = append(list, contestedText(s.Name, s.Contested))
		}
	}
	return list
}

func contestedText(name string, at time.Time) string {
	return fmt.Sprintf("the invite of %s was used again, by another machine, at %s: if %s is not yours, meshdns gateway remove %s",
		name, at.UTC().Format("2006-01-02 15:04 MST"), name, name)
}

func (n *Node) serveNodes(*http.Request) (any, error) {
	m, _ := n.gateway.registry.Map()
	own := n.carrier.secrets.keys().Key
	reply := nodesReply{Schema: "meshdns.gateway.nodes/v1", Zone: m.Zone, Version: m.Version, Nodes: []gatewayPeer{}}
	for _, s := range n.gateway.registry.Nodes() {
		p := gatewayPeer{
			Name: s.Name, State: "node", Addresses: notNil(s.Addresses), Tags: notNil(s.Tags), Key: s.Key.String(),
			Control: s.Control.String(), Names: notNil(s.Names), Signature: s.Signature,
			Funnels: n.gateway.funnels.funnelsOf(s.Name),
			Since:   s.Joined.UTC(), Version: s.Version, Confirmed: s.Version == m.Version || s.Key == own,
		}
		switch {
		case s.Invited:
			p.State, p.Key, p.Control = "invited", "", ""
		case s.Pending:
			p.State = "pending"
		}
		if !s.Seen.IsZero() {
			seen := s.Seen.UTC()
			p.Seen = &seen
		}
		if !s.Contested.IsZero() {
			at := s.Contested.UTC()
			p.Contested = &at
		}
		if s.Observed.IsValid() {
			p.Endpoint = s.Observed.String()
		}
		reply.Nodes = append(reply.Nodes, p)
	}
	return reply, nil
}

// serveRemove ends a node, or the invites for one that has not joined.
func (n *Node) serveRemove(r *http.Request) (any, error) {
	var in removeRequest
	if err := decode(r, &in); err != nil {
		return nil, err
	}
	if n.findSelf(n.tailnet.given()) == in.Name {
		return nil, hinted(ErrBadRequest, errors.New("a gateway cannot remove itself"), "")
	}
	ended, err := n.gateway.registry.Uninvite(r.Context(), in.Name)
	if err == nil {
		_, err = n.gateway.registry.Remove(r.Context(), in.Name, time.Time{})
	}
	if n.gateway.funnels != nil {
		n.settleFunnels() // its visits have ended when this returns
	}
	n.wakeGateway()
	if isUnknown(err) && ended > 0 {
		err = nil
	}
	return struct{}{}, err
}

// isUnknown reports whether a registry's error says that there is no such node.
func isUnknown(err error) bool {
	var refused *control.RefusedError
	return errors.As(err, &refused) && refused.Status == http.StatusNotFound
}

func (n *Node) serveRename(r *http.Request) (any, error) {
	var in renameRequest
	if err := decode(r, &in); err != nil {
		return nil, err
	}
	if n.findSelf(n.tailnet.given()) == in.Name {
		return nil, hinted(ErrBadRequest, errors.New("a gateway is named by its own configuration"), "set node: there")
	}
	return struct{}{}, n.gateway.registry.Rename(r.Context(), in.Name, in.To, time.Time{})
}

// Invite has a gateway make an invite. A life of zero is one hour.
func (c Client) Invite(ctx context.Context, name string, tags []string, life time.Duration, reusable bool) (inviteReply, error) {
	return post[inviteReply](ctx, c, pathInvite, inviteRequest{Name: name, Tags: tags, Seconds: int64(life / time.Second), Reusable: reusable})
}

// Nodes asks a gateway for what it knows of its nodes.
func (c Client) Nodes(ctx context.Context) (nodesReply, error) {
	return get[nodesReply](ctx, c, pathNodes, url.Values{})
}

// Behind waits until every node of a gateway works from the newest map, or ctx ends. It returns the nodes that do not yet:
// what a change forbids, they may still do.
func (c Client) Behind(ctx context.Context) ([]string, error) {
	tick := time.NewTicker(200 * time.Millisecond)
	defer tick.Stop()
	behind := []string{}
	for first := true; ; first = false {
		reply, err := c.Nodes(ctx)
		if err != nil && (first || ctx.Err() == nil) {
			return behind, err
		}
		if err == nil {
			behind = behind[:0]
			for _, p := range reply.Nodes {
				if p.State == "node" && !p.Confirmed {
					behind = append(behind, p.Name)
				}
			}
		}
		if len(behind) == 0 {
			return behind, nil
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return behind, nil
		}
	}
}

// RemoveNode has a gateway end a node, or the invites for one.
func (c Client) RemoveNode(ctx context.Context, name string) error {
	_, err := post[struct{}](ctx, c, pathRemove, removeRequest{Name: name})
	return err
}

// RenameNode has a gateway give a node another name.
func (c Client) RenameNode(ctx context.Context, name, to string) error {
	_, err := post[struct{}](ctx, c, pathRename, renameRequest{Name: name, To: to})
	return err
}

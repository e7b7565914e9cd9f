package node

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"slices"
	"time"

	"github.com/meshdns/meshdns/node/control"
	"github.com/meshdns/meshdns/node/tunnel"
)

// joinTime is how long one endpoint of the gateway is tried.
const joinTime = 10 * time.Second

// joinReply is a machine's place in a tailnet.
type joinReply struct {
	Schema    string       `json:"schema"` // meshdns.join/v1
	Node      string       `json:"node"`   // its full name
	Zone      string       `json:"zone"`
	Addresses []netip.Addr `json:"addresses"`
	Lock      bool         `json:"lock"` // the owner has to sign it before others speak to it
}

// Join takes a place in the tailnet that an invite is for, and keeps it in the state directory for the next start. name is
// the node's; empty, it is the invite's or else the host's. report is told each step; nil: nobody is. No node may run
// meanwhile. What fails leaves nothing behind, and may be tried again with the same invite as long as that lives; so may what
// was killed, which goes on where it was.
func (p Paths) Join(ctx context.Context, invite, name string, report func(string)) (joinReply, error) {
	if report == nil {
		report = func(string) {}
	}
	i, err := control.ParseInvite(invite)
	if err != nil {
		return joinReply{}, hinted(ErrBadRequest, err, "copy it whole, or ask for a new one: on the gateway, meshdns gateway invite NAME")
	}
	unlock, err := lockState(p.State)
	if err != nil {
		return joinReply{}, err
	}
	defer unlock()
	m, err := loadMembership(p.State)
	if err == nil && m != nil && !m.Joining {
		err = hinted(nil, fmt.Errorf("this machine is %s already", m.Node+"."+m.Map.Zone), "leave that first: remove "+membershipFile+" in "+p.State)
	}
	if err != nil {
		return joinReply{}, err
	}
	s, err := loadSecrets(p.State)
	if err != nil {
		return joinReply{}, err
	}
	if s.joined && m == nil {
		if s, err = newSecrets(); err == nil {
			err = s.save(p.State)
		}
		if err != nil {
			return joinReply{}, err
		}
	}
	j := joiner{secrets: s, report: report}
	if m == nil || !j.resume(ctx, m, i) {
		if m, err = j.join(ctx, i, name); err != nil {
			return joinReply{}, fmt.Errorf("joining: %w", err)
		}
		// The invite is dead once the gateway has seen a handshake of this machine's own key: what is not kept by then is lost.
		m.Joining = true
		if err := m.save(p.State); err != nil {
			return joinReply{}, err
		}
		report("the gateway is told that this machine's own key works")
		if err := j.confirm(ctx, m); err != nil {
			return joinReply{}, errors.Join(fmt.Errorf("joining: %w", err), os.Remove(p.membership()))
		}
	}
	s.joined, m.Joining = true, false
	if err := errors.Join(s.save(p.State), m.save(p.State)); err != nil {
		return joinReply{}, err
	}
	reply := joinReply{Schema: "meshdns.join/v1", Node: m.Node + "." + m.Map.Zone, Zone: m.Map.Zone, Addresses: j.answer.Node.Addresses, Lock: j.answer.Lock}
	return reply, nil
}

// resume goes on with a join that was killed when it had its place and had not heard that this is its own. false: it begins anew.
func (j *joiner) resume(ctx context.Context, m *membership, i control.Invite) bool {
	k := slices.IndexFunc(m.Map.Nodes, func(n control.Node) bool { return n.Name == m.Node && n.Keys() == j.secrets.keys() })
	if m.Gateways[0].Control != i.Control || k < 0 {
		return false
	}
	j.answer.Node = m.Map.Nodes[k]
	j.report("the gateway is asked for the place that this machine had before it was stopped")
	return j.confirm(ctx, m) == nil
}

// joiner takes the steps of a join.
type joiner struct {
	secrets secrets
	report  func(string)
	answer  control.JoinAnswer
	overTLS bool // UDP is blocked
}

// inviteSlack is how long an invite that has ended by this machine's clock is tried all the same: it is the gateway's that
// counts, and either may be wrong.
const inviteSlack = 24 * time.Hour

// inviteOver says that an invite has ended; nil: it has not.
func inviteOver(ended, now time.Time) error {
	if ended.After(now) {
		return nil
	}
	return hinted(nil, fmt.Errorf("the invite ended at %s UTC, and this machine's clock says %s UTC", ended.UTC().Format(time.DateTime), now.UTC().Format(time.DateTime)),
		"ask for a new one: on the gateway, meshdns gateway invite NAME; or set the clock that is wrong, here or there")
}

// join makes the call with the invite's key, and again with the one-time invite that a reusable one is exchanged for.
func (j *joiner) join(ctx context.Context, i control.Invite, name string) (*membership, error) {
	over := inviteOver(i.Expires, time.Now())
	if over != nil && time.Since(i.Expires) > inviteSlack && !i.Expires.Before(firstTime()) {
		return nil, over
	}
	if name == "" && i.Reusable {
		host, err := os.Hostname()
		if err != nil {
			return nil, hinted(ErrBadRequest, errors.New("the host has no name"), "give one: meshdns join --name NAME INVITE")
		}
		name = hostLabel(host)
	}
	err := j.each(ctx, i, i.Key, []netip.Addr{i.Address}, func(ctx context.Context, c *control.Client) (err error) {
		j.answer, err = c.Join(ctx, control.JoinRequest{Name: name, Key: j.secrets.keys().Key})
		return err
	})
	if over != nil && errors.Is(err, ErrTimeout) {
		return nil, hinted(ErrTimeout, fmt.Errorf("%w; %w", err, over), hintOf(over)) // which a gateway does not answer
	}
	if err != nil {
		return nil, err
	}
	if j.answer.Invite != "" {
		one, err := control.ParseInvite(j.answer.Invite)
		if err == nil && one.Reusable {
			err = errors.New("the gateway gives one reusable invite for another")
		}
		if err != nil {
			return nil, err
		}
		return j.join(ctx, one, name)
	}
	return j.membership(i)
}

// membership is what is kept of the answer. The map has to be one, by the checks of every map, before it counts.
func (j *joiner) membership(i control.Invite) (*membership, error) {
	a := j.answer
	if a.Gateway != i.Control || a.Node.Keys() != j.secrets.keys() || len(a.Node.Addresses) == 0 {
		return nil, errors.New("the gateway's answer is not about this machine's keys")
	}
	m := &membership{Node: a.Node.Name, Map: &a.Map, Pins: control.Pins{}}
	// The gateway's map has this node once its key has completed a handshake.
	if !slices.ContainsFunc(a.Map.Nodes, func(n control.Node) bool { return n.Name == a.Node.Name }) {
		m.Map.Nodes = append(slices.Clone(a.Map.Nodes), a.Node)
	}
	contact := gatewayContact{Key: i.Gateway, Control: i.Control, Server: i.Server, Endpoints: i.Endpoints, Carrier: i.Carrier}
	m.Gateways = []gatewayContact{contact}
	m.learn()
	told, err := mapFromGateway(m.Map, believeAll)
	if err != nil {
		return nil, err
	}
	j.report(fmt.Sprintf("%s is this machine's name, %s its address", told.FQDN(m.Node), a.Node.Addresses[0]))
	return m, nil
}

// confirm makes a call with the machine's own key, from its own address: then the gateway has seen its handshake.
func (j *joiner) confirm(ctx context.Context, m *membership) error {
	g := m.Gateways[0]
	i := control.Invite{Gateway: g.Key, Control: g.Control, Server: g.Server, Endpoints: g.Endpoints, Carrier: g.Carrier}
	return j.each(ctx, i, j.secrets.wireGuard, j.answer.Node.Addresses, func(ctx context.Context, c *control.Client) error {
		return c.Report(ctx, control.Report{Epoch: m.Map.Epoch, Version: m.Map.Version})
	})
}

// each tries the gateway's endpoints one after another, and at last TLS, through a tunnel inside this process that lives as long as the call.
func (j *joiner) each(ctx context.Context, i control.Invite, key tunnel.Secret, own []netip.Addr, call func(context.Context, *control.Client) error) error {
	var errs []error
	endpoints := slices.Clone(i.Endpoints)
	if i.Carrier = carrierAt(i.Carrier, i.Endpoints, routed); i.Carrier.IsValid() {
		endpoints = append(endpoints, i.Carrier)
	}
	for k, endpoint := range endpoints {
		one := i
		one.Endpoints = []netip.AddrPort{endpoint}
		if j.overTLS && k < len(i.Endpoints) {
			continue // they were tried
		}
		if err := routed(endpoint); err != nil {
			errs = append(errs, err)
			continue
		}
		if j.overTLS = k == len(i.Endpoints); j.overTLS {
			j.report("asking the gateway over TLS at " + endpoint.String())
		} else {
			j.report("asking the gateway at " + endpoint.String())
		}
		err := j.through(ctx, one, key, own, call)
		if err == nil {
			return nil
		}
		var refused *control.RefusedError
		if errors.As(err, &refused) || ctx.Err() != nil {
			return err
		}
		errs = append(errs, fmt.Errorf("at %s: %w", endpoint, err))
	}
	if len(errs) == 0 {
		return errors.New("the invite names no endpoint of the gateway")
	}
	return hinted(ErrTimeout, errors.Join(errs...), "is the gateway up, and is UDP to it open? meshdns gateway check ZONE looks; an invite that was used or has ended gets no answer either")
}

// through makes the call by the invite's first endpoint, which is tried for joinTime.
func (j *joiner) through(ctx context.Context, i control.Invite, key tunnel.Secret, own []netip.Addr, call func(context.Context, *control.Client) error) error {
	ctx, cancel := context.WithTimeout(ctx, joinTime)
	defer cancel()
	var ranges []netip.Prefix
	for _, a := range own {
		ranges = append(ranges, netip.PrefixFrom(a, a.BitLen()))
	}
	t, err := tunnel.New(tunnel.Config{Mode: tunnel.Userspace, Key: key, Addresses: own, Ranges: ranges, Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		return err
	}
	if err := t.Start(ctx); err != nil {
		return err
	}
	defer t.Close()
	endpoint := i.Endpoints[0]
	if j.overTLS {
		at, stop, err := j.openTLS(ctx, i, t)
		if err != nil {
			return err
		}
		defer stop()
		endpoint = at
	}
	err = t.SetPeers([]tunnel.Peer{{
		Key: tunnel.Key(i.Gateway), Endpoint: endpoint, AllowedIPs: []netip.Prefix{netip.PrefixFrom(i.Server, i.Server.BitLen())},
	}})
	if err != nil {
		return err
	}
	return call(ctx, &control.Client{
		Dial: func(ctx context.Context, network, address string) (net.Conn, error) {
			return dialTunnel(ctx, t, network, address)
		},
		Server:  netip.AddrPortFrom(i.Server, control.Port),
		Gateway: i.Control,
		Key:     j.secrets.control,
	})
}

// openTLS has a tunnel's packets go over TLS, to the place that it returns, until stop.
func (j *joiner) openTLS(ctx context.Context, i control.Invite, t *tunnel.Tunnel) (at netip.AddrPort, stop func(), err error) {
	o, err := openOverTLS(overTLSConfig{gateway: i.Carrier, pinned: i.Control, key: j.secrets.control, port: t.Port})
	if err != nil {
		return netip.AddrPort{}, nil, err
	}
	conn, err := o.dial(ctx)
	if err != nil {
		o.close()
		return netip.AddrPort{}, nil, err
	}
	ctx, cancel := context.WithCancel(ctx)
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		_ = o.pass(ctx, conn) // whose end the call notices
	}()
	return o.places()[portWireGuard], func() {
		cancel()
		<-ended
		o.close()
	}, nil
}

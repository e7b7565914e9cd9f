package node

import (
	"context"
	"crypto/hkdf"
	"crypto/sha256"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"time"

	"github.com/meshdns/meshdns/certs"
	"github.com/meshdns/meshdns/funnel"
)

// newServer makes the server behind all that is served.
func (n *Node) newServer() (*funnel.Server, error) {
	login, err := loginKey(n.carrier.own())
	if err != nil {
		return nil, err
	}
	return funnel.NewServer(funnel.ServerConfig{
		GetCertificate: n.servedCertificate,
		Identify:       n.identify,
		As:             n.asOwner,
		Dial:           n.dialServed,
		Log:            n.accessLog(),
		LoginKey:       login,
		Spend:          n.spendShare,
		Logger:         n.log,
	}), nil
}

// loginKey seals the logins of visitors, which outlive a restart by it.
func loginKey(s secrets) ([]byte, error) {
	key, err := hkdf.Key(sha256.New, s.control.Seed(), nil, "meshdns logins", sha256.Size)
	if err != nil {
		return nil, fmt.Errorf("making the key of logins: %w", err)
	}
	return key, nil
}

// servedCertificate is for handshakes of what is served.
func (n *Node) servedCertificate(hello *tls.ClientHelloInfo) (*tls.Certificate, error) {
	m, err := n.certs.open()
	if err != nil {
		return nil, err
	}
	return m.GetCertificate(hello)
}

// identify says which node a connection from the tailnet comes from, by the tunnel that it came through (S2).
func (n *Node) identify(conn net.Conn) funnel.Caller {
	at := addrPortOf(conn.RemoteAddr())
	c := funnel.Caller{Addr: at}
	m, _ := n.tailnet.current()
	self, ok := m.Node(n.findSelf(m))
	if ok && slices.Contains(self.Addresses, at.Addr()) {
		return called(c, m, self, true)
	}
	t, err := n.serveTunnel(n.services.ctx)
	if err != nil {
		return c
	}
	key, ok := t.Whose(at.Addr())
	if !ok {
		return c
	}
	for _, node := range m.Nodes() {
		// The address has to be the node's in the map too: a peer may send from more than that.
		if node.Key == key.String() && slices.Contains(node.Addresses, at.Addr()) {
			return called(c, m, node, false)
		}
	}
	return c
}

// called is a caller that is a node of the map. All of the tailnet may know what stands behind a name.
func called(c funnel.Caller, m *Map, node Machine, own bool) funnel.Caller {
	c.Node, c.Addresses, c.Tags, c.Owner = m.FQDN(node.Name), node.Addresses, node.Tags, own
	return c
}

// openIngress takes visitors from gateways, once there is something for them.
func (n *Node) openIngress(ctx context.Context) {
	t, s := n.carrier.tunnel, &n.serving
	if t == nil || !n.hasGateway() || ctx.Err() != nil {
		return
	}
	m, _ := n.tailnet.current()
	for _, a := range n.ownAddresses() {
		if s.ingress[a] != nil {
			continue
		}
		ln, err := t.Listen(ctx, "tcp", netip.AddrPortFrom(a, ingressPort))
		if err != nil {
			s.fault(netip.AddrPortFrom(a, ingressPort), fmt.Errorf("taking visitors from the gateway: %w", err))
			continue
		}
		in := funnel.Ingress(ln, funnel.IngressConfig{Keys: n.gatewayVisits, Tailnet: m.Ranges(), Loopback: n.gatewayIsHere(), Logger: n.log})
		s.ingress[a] = s.listen(ctx, in, func(ctx context.Context, ln net.Listener) {
			if err := s.server.Serve(ctx, ln, 0, true); err != nil && ctx.Err() == nil && !errors.Is(err, net.ErrClosed) {
				n.log.Error("visitors from the gateway are not taken any more", "err", err)
			}
		})
	}
}

// closeIngress takes no more of them.
func (n *Node) closeIngress() {
	for a, end := range n.serving.ingress {
		end()
		delete(n.serving.ingress, a)
	}
}

// gatewayIsHere reports whether the gateway is reached on this very machine. Then its visitors may be programs of this machine too.
func (n *Node) gatewayIsHere() bool {
	n.member.mu.Lock()
	defer n.member.mu.Unlock()
	if n.member.keeps == nil {
		return slices.ContainsFunc(n.gateway.listen, netip.Addr.IsLoopback)
	}
	return slices.ContainsFunc(n.member.keeps.Gateways, func(g gatewayContact) bool {
		return slices.ContainsFunc(g.Endpoints, func(at netip.AddrPort) bool { return at.Addr().IsLoopback() })
	})
}

// gatewayVisits are the keys of a gateway with an address; none: it is not one.
func (n *Node) gatewayVisits(at netip.Addr) [][]byte {
	m, _ := n.tailnet.current()
	self, _ := m.Node(n.findSelf(m))
	if self.Gateway && slices.Contains(self.Addresses, at) {
		return n.visitKeys() // this machine is one, and shows something itself
	}
	key, ok := n.carrier.tunnel.Whose(at)
	if !ok {
		return nil
	}
	for _, node := range m.Nodes() {
		if node.Gateway && node.Key == key.String() && slices.Contains(node.Addresses, at) {
			return n.visitKeys()
		}
	}
	return nil
}

// wantServedCerts has certificates got and renewed for what is served, unless a command waits for its own. It does not wait for them:
// whoever gets the same certificate just now may take minutes.
func (n *Node) wantServedCerts(list []served) {
	m, s := n.certs.state().manager, &n.serving
	var names []string
	for _, one := range list {
		if m != nil && one.secure() && one.from != fromForeground && !hasCertificate(m, one.Name) && !slices.Contains(names, one.Name) {
			names = append(names, one.Name)
		}
	}
	if len(names) == 0 || !s.wanting.CompareAndSwap(false, true) {
		return
	}
	s.ended.Go(func() {
		defer s.wanting.Store(false)
		for _, name := range names {
			if err := m.Manage(n.services.ctx, certs.Request{Names: []string{name}}); err != nil {
				n.log.Debug("a certificate for what is served cannot be had", "name", name, "err", err)
			}
		}
	})
}

// hasCertificate reports whether a handshake for a name would get a certificate that is valid.
func hasCertificate(m *certs.Manager, name string) bool {
	c, err := m.GetCertificate(&tls.ClientHelloInfo{ServerName: name})
	return err == nil && time.Now().Before(c.Leaf.NotAfter)
}

// getServedCert gets the certificate of a name, and tells of the steps.
func (n *Node) getServedCert(ctx context.Context, name string, told func(certs.Step)) error {
	m, err := n.certs.open()
	if err != nil {
		return err
	}
	if hasCertificate(m, name) {
		return nil
	}
	_, _, err = m.Get(ctx, certs.Request{Names: []string{name}, Steps: told})
	if err != nil {
		err = certError(err)
		hint := hintOf(err)
		if hint == "" {
			hint = "see: meshdns cert check"
		}
		return hinted(errorKindOf(err), fmt.Errorf("getting a certificate for %s: %w", name, err), hint)
	}
	return nil
}

// errorKindOf is the kind of an error that crosses the control socket; nil: none.
func errorKindOf(err error) error {
	for _, k := range errorKinds() {
		if errors.Is(err, k.err) {
			return k.err
		}
	}
	return nil
}

package node

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/meshdns/meshdns/node/control"
)

// The times of a try from outside.
const (
	tryLookup = 2 * time.Second // for the world's DNS
	tryReach  = 2 * time.Second // to connect
	tryTLS    = 4 * time.Second
	tryListen = time.Second // in which a whole port whose node is not reached is closed
)

// The steps of a try, in the order of a visitor's way.
const (
	stepShown       = "gateway"     // it is shown
	stepName        = "name"        // the world finds the gateway's address at the name
	stepConnection  = "connection"  // the address is reached
	stepTLS         = "tls"         // the node answers
	stepCertificate = "certificate" // with a certificate for the name that programs believe
)

// tryFunnel goes a visitor's way to something that a node shows, and says how far it came. Nothing else is connected to: this is
// no way to look at other machines.
func (n *Node) tryFunnel(ctx context.Context, node string, f control.Funnel) (control.Funnel, error) {
	told := n.gateway.funnels.toldTo(node)
	i := slices.IndexFunc(told, f.Same)
	if i < 0 {
		return f, &control.RefusedError{Status: http.StatusNotFound, Code: "not_shown", Message: fmt.Sprintf("%s does not show %.200s", node, f)}
	}
	f = told[i]
	if !n.gateway.funnels.begin(node) {
		return f, &control.RefusedError{Status: http.StatusTooManyRequests, Code: "busy", Message: "a try is under way"}
	}
	defer n.gateway.funnels.finish(node)
	if !f.Open {
		f.Step(stepShown, "", errors.New(f.Why))
		return f, nil
	}
	f.Step(stepShown, "", nil)
	if f.Name != "" {
		n.tryName(ctx, &f)
	}
	if f.Kind == kindUDP {
		return f, nil // whoever is asked there answers what it is asked, and nobody knows what that is
	}
	conn := n.tryConnection(ctx, &f)
	if conn == nil {
		return f, nil
	}
	defer conn.Close()
	if f.Kind == kindTCP {
		f.Step(stepTLS, "", tryOpen(conn))
		return f, nil
	}
	state, err := tryHandshake(ctx, conn, f.Name)
	if f.Step(stepTLS, "", err) {
		f.Step(stepCertificate, issuerOf(state), verifyFor(state, f.Name, time.Now()))
	}
	return f, nil
}

// begin reports whether a node may have something tried: one thing at a time.
func (g *funnelGate) begin(node string) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.trying[node] {
		return false
	}
	g.trying[node] = true
	return true
}

func (g *funnelGate) finish(node string) {
	g.mu.Lock()
	defer g.mu.Unlock()
	delete(g.trying, node)
}

// tryName asks the world's DNS for the name, which has to lead to this gateway.
func (n *Node) tryName(ctx context.Context, f *control.Funnel) {
	ctx, cancel := context.WithTimeout(ctx, tryLookup)
	defer cancel()
	addrs, err := n.gateway.funnels.proofs.outside.addresses(ctx, strings.TrimPrefix(f.Name, "*."))
	var words []string
	for _, a := range addrs {
		words = append(words, a.String())
	}
	switch {
	case err != nil:
	case len(addrs) == 0:
		err = errors.New("the world's DNS has no address at it; see: meshdns gateway check")
	case !slices.ContainsFunc(addrs, func(a netip.Addr) bool { return slices.Contains(n.cfg.Gateway.Public, a) }):
		err = errors.New("it does not lead to this gateway")
	}
	f.Step(stepName, strings.Join(words, " "), err)
}

// tryConnection connects to the first of the public addresses that is reached. Many routers do not let a machine reach itself by its
// public address: then the address is taken that it has behind them, and what they pass on is for others to try.
func (n *Node) tryConnection(ctx context.Context, f *control.Funnel) net.Conn {
	var errs []error
	inside := ports(n.gateway.listen, f.Port)
	if f.Port == publicPort {
		inside = ports(n.gateway.listen, n.publicPort())
	}
	for _, at := range slices.Concat(f.At, inside) {
		dialer := net.Dialer{Timeout: tryReach / time.Duration(max(len(f.At), 1))}
		conn, err := dialer.DialContext(ctx, "tcp", at.String())
		if err == nil {
			f.Step(stepConnection, at.String(), nil)
			return conn
		}
		errs = append(errs, err)
	}
	f.Step(stepConnection, "", errors.Join(errs...))
	return nil
}

// tryHandshake begins as a browser does. Who answers is judged afterwards.
func tryHandshake(ctx context.Context, conn net.Conn, name string) (tls.ConnectionState, error) {
	ctx, cancel := context.WithTimeout(ctx, tryTLS)
	defer cancel()
	secure := tls.Client(conn, &tls.Config{
		ServerName: strings.Replace(name, "*", "try", 1), NextProtos: []string{"h2", "http/1.1"}, InsecureSkipVerify: true,
	})
	err := secure.HandshakeContext(ctx)
	return secure.ConnectionState(), err
}

// verifyFor says why programs would not believe a certificate.
func verifyFor(state tls.ConnectionState, name string, now time.Time) error {
	if len(state.PeerCertificates) == 0 {
		return errors.New("there is none")
	}
	between := x509.NewCertPool()
	for _, c := range state.PeerCertificates[1:] {
		between.AddCert(c)
	}
	_, err := state.PeerCertificates[0].Verify(x509.VerifyOptions{
		DNSName: strings.Replace(name, "*", "try", 1), Intermediates: between, CurrentTime: now,
	})
	return err
}

func issuerOf(state tls.ConnectionState) string {
	if len(state.PeerCertificates) == 0 {
		return ""
	}
	return printableName(state.PeerCertificates[0].Issuer.String())
}

// printableName is text of a stranger's certificate as it may stand in a terminal.
func printableName(s string) string {
	const limit = 100
	return strings.Map(func(r rune) rune {
		if r < ' ' || r > '~' {
			return '.'
		}
		return r
	}, s[:min(len(s), limit)])
}

// tryOpen waits a moment whether a connection is closed again, as one is whose node is not reached.
func tryOpen(conn net.Conn) error {
	if err := conn.SetReadDeadline(time.Now().Add(tryListen)); err != nil {
		return err
	}
	_, err := conn.Read(make([]byte, 1))
	if isTimeout(err) {
		return nil
	}
	return err
}

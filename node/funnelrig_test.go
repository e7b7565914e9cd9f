package node

import (
	"bufio"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/miekg/dns"

	"github.com/meshdns/meshdns/funnel"
	"github.com/meshdns/meshdns/node/control"
)

// funnelRig is a gateway and its nodes, with visitors on loopback.
type funnelRig struct {
	*testGateway
	public, plain uint16
	world         *fakeWorld
}

const rigZone = "foo-bar.example.org"

// newFunnelRig starts a gateway with a policy.
func newFunnelRig(t *testing.T, edit ...func(*Config)) *funnelRig {
	t.Helper()
	r := &funnelRig{public: freeTCP(t, gatewayAddress), plain: freeTCP(t, gatewayAddress), world: newFakeWorld()}
	cfg := gatewayTestConfig(t)
	cfg.Certs.Resolvers = []netip.AddrPort{netip.MustParseAddrPort("192.0.2.53:53")} // which is not asked
	for _, f := range edit {
		f(&cfg)
	}
	r.start(t, cfg, testPaths(t))
	return r
}

func (r *funnelRig) start(t *testing.T, cfg Config, paths Paths) {
	t.Helper()
	cfg.Gateway.Ports.HTTPS, cfg.Gateway.Ports.HTTP = r.public, r.plain
	opt := Options{Paths: paths, reached: addrs(gatewayAddress), outside: r.world.exchange}
	r.testGateway = &testGateway{startNodeWith(t, cfg, opt), cfg}
}

// policy has the gateway's policy be another one.
func (r *funnelRig) policy(t *testing.T, text string) {
	t.Helper()
	if err := r.node.gateway.registry.Policy(t.Context(), "policy: {"+text+"}"); err != nil {
		t.Fatal(err)
	}
	soon(t, "the policy", func() bool { return r.node.tailnet.given().Policy() != nil })
}

// show has a node show something, and waits for what the gateway says.
func (n *testNode) show(t *testing.T, list ...control.Funnel) []control.Funnel {
	t.Helper()
	n.node.registration.set(list)
	var told []control.Funnel
	soon(t, "the registration", func() bool {
		var settled bool
		told, settled, _, _ = n.node.registration.state()
		return settled && len(told) == len(list)
	})
	return told
}

// sees waits until the gateway says this of a node's only funnel.
func (n *testNode) sees(t *testing.T, what string, so func(control.Funnel) bool) {
	t.Helper()
	soon(t, what, func() bool {
		told, _, _, _ := n.node.registration.state()
		return len(told) == 1 && so(told[0])
	})
}

func isOpen(f control.Funnel) bool { return f.Open }

// web is a server behind a node's ingress, that ends TLS and tells its visitors who they are.
func (n *testNode) web(t *testing.T, names ...string) {
	t.Helper()
	certificate := selfSigned(t, names...)
	n.takes(t, func(conn net.Conn) {
		v := conn.(*funnel.Visit)
		if v.Kind == kindTCP || v.Kind == kindUDP {
			line := make([]byte, 100)
			if k, err := conn.Read(line); err == nil {
				fmt.Fprintf(conn, "%s %d %s: %s", v.Kind, v.Port, v.Visitor, line[:k])
			}
			if v.Kind == kindUDP {
				_, _ = conn.Read(line) // until the visitor is quiet
			}
			return
		}
		secure := tls.Server(conn, &tls.Config{Certificates: []tls.Certificate{certificate}, NextProtos: []string{"http/1.1"}})
		if secure.HandshakeContext(t.Context()) != nil {
			return
		}
		m, _ := n.node.tailnet.current()
		req, err := http.ReadRequest(bufio.NewReader(secure))
		if err != nil {
			return
		}
		text := fmt.Sprintf("%s %s %d by %s to %s of %s", req.Host, v.Visitor, v.Port, v.Kind, v.Name, n.node.findSelf(m))
		fmt.Fprintf(secure, "HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s", len(text), text)
		_, _ = io.Copy(io.Discard, secure)
	})
}

// takes has each visit of a node be handled.
func (n *testNode) takes(t *testing.T, handle func(net.Conn)) {
	t.Helper()
	self, _ := n.node.tailnet.given().Node(n.node.findSelf(n.node.tailnet.given()))
	ln, err := n.node.carrier.tunnel.Listen(t.Context(), "tcp", netip.AddrPortFrom(self.Addresses[0], ingressPort))
	if err != nil {
		t.Fatal(err)
	}
	ingress := funnel.Ingress(ln, funnel.IngressConfig{
		Keys: func(netip.Addr) [][]byte { return n.node.visitKeys() }, Tailnet: n.node.tailnet.given().Ranges(), Loopback: true,
	})
	t.Cleanup(func() { ingress.Close() })
	go func() {
		for {
			conn, err := ingress.Accept()
			if err != nil {
				return
			}
			go func() {
				defer conn.Close()
				handle(conn)
			}()
		}
	}()
}

func selfSigned(t *testing.T, names ...string) tls.Certificate {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "the test"}, NotAfter: time.Now().Add(time.Hour), DNSNames: names,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
}

// visitor is where a visitor comes from.
const visitorAddress = "127.80.9.77"

// visits opens a visitor's TLS connection.
func (r *funnelRig) visits(t *testing.T, port uint16, name string, protocols ...string) (*tls.Conn, error) {
	t.Helper()
	dialer := &tls.Dialer{
		NetDialer: &net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(visitorAddress)}, Timeout: 20 * time.Second},
		Config:    &tls.Config{ServerName: name, InsecureSkipVerify: true, NextProtos: protocols},
	}
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	conn, err := dialer.DialContext(ctx, "tcp", fmt.Sprintf("%s:%d", gatewayAddress, port))
	if err != nil {
		return nil, err
	}
	return conn.(*tls.Conn), nil
}

// fetch is what a visitor gets.
func (r *funnelRig) fetch(t *testing.T, name string) (string, error) {
	t.Helper()
	return r.fetchAt(t, r.public, name)
}

func (r *funnelRig) fetchAt(t *testing.T, port uint16, name string) (string, error) {
	t.Helper()
	conn, err := r.visits(t, port, name)
	if err != nil {
		return "", err
	}
	defer conn.Close()
	return getOn(conn, name)
}

// getOn asks on a visitor's connection.
func getOn(conn net.Conn, name string) (string, error) {
	fmt.Fprintf(conn, "GET / HTTP/1.1\r\nHost: %s\r\n\r\n", name)
	resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
	if err != nil {
		return "", err
	}
	body := make([]byte, resp.ContentLength)
	_, err = io.ReadFull(resp.Body, body)
	return string(body), err
}

// told are the records of a type that the public is told, and the answer's code.
func (r *funnelRig) told(t *testing.T, name string, kind uint16) (list []string, rcode string) {
	t.Helper()
	query, err := new(dns.Msg).SetQuestion(dns.Fqdn(name), kind).Pack()
	if err != nil {
		t.Fatal(err)
	}
	m := new(dns.Msg)
	if err := m.Unpack(r.node.queryPublic(query, netip.MustParseAddr("192.0.2.1"), true)); err != nil {
		t.Fatal(err)
	}
	for _, rr := range m.Answer {
		list = append(list, strings.TrimPrefix(rr.String(), rr.Header().String()))
	}
	return list, dns.RcodeToString[m.Rcode]
}

// isUnknownName reports whether the alert is that nobody has the name.
func isUnknownName(err error) bool {
	return err != nil && strings.Contains(err.Error(), "unrecognized name")
}

package node

import (
	"context"
	"crypto/rand"
	"log/slog"
	"net"
	"net/netip"
	"path/filepath"
	"testing"
	"time"

	"github.com/meshdns/meshdns/node/control"
	"github.com/meshdns/meshdns/resolver"
)

// publicRig is what a gateway serves to the public and to programs, on addresses of loopback: a tunnel's are out of reach for
// programs of the machine. Its one node is nas, which has 127.0.0.1.
type publicRig struct {
	testGateway

	public  string // the public name server
	acme    string // of acme-dns
	updates string
	own     control.ControlKey // the gateway's
	key     control.PrivateKey // of nas
	control netip.AddrPort
}

// rigOptions say what a rig is like.
type rigOptions struct {
	public  []netip.Addr // of the gateways; 127.0.0.1 if none
	at      netip.Addr   // where this one's name server answers, with port 53; any port of 127.0.0.1 if invalid
	pinned  bool
	issuers []string
	heard   bool // the node's daemon lets itself be heard all the while
}

// asked is how many questions the public name server has answered.
func (r *publicRig) asked() uint64 {
	s := r.node.gateway.authority.Stats()
	return s.Answered
}

// listenBoth listens on one port for datagrams and connections.
func listenBoth(t *testing.T, at string) (*net.UDPConn, net.Listener) {
	t.Helper()
	var err error
	for range 50 {
		var tcp net.Listener
		if tcp, err = net.Listen("tcp4", at); err != nil {
			t.Fatal(err)
		}
		var udp *net.UDPConn
		if udp, err = net.ListenUDP("udp4", net.UDPAddrFromAddrPort(netip.MustParseAddrPort(tcp.Addr().String()))); err == nil {
			return udp, tcp
		}
		tcp.Close()
	}
	t.Fatal(err)
	return nil, nil
}

// newPublicRig starts one.
func newPublicRig(t *testing.T, key control.PrivateKey, o rigOptions) *publicRig {
	t.Helper()
	cfg := DefaultConfig()
	cfg.Gateway = gatewayConfig{Zone: zoneOfTests, Public: o.public, Pinned: o.pinned}
	if len(o.public) == 0 {
		cfg.Gateway.Public = []netip.Addr{netip.MustParseAddr("127.0.0.1")}
	}
	own, err := control.NewPrivateKey()
	if err != nil {
		t.Fatal(err)
	}
	r := &publicRig{key: key, own: own.Public()}
	n := &Node{cfg: cfg, log: slog.New(slog.DiscardHandler)}
	r.testGateway = testGateway{&testNode{node: n}, cfg}
	g := &n.gateway
	g.registry, err = control.OpenRegistry(t.Context(), control.RegistryConfig{
		File: filepath.Join(t.TempDir(), "registry.db"), Zone: zoneOfTests, Ranges: []netip.Prefix{netip.MustParsePrefix("127.0.0.0/24")},
		Issuers: issuerHosts(o.issuers),
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { g.registry.Close() })
	nas := control.Node{Name: "nas", Addresses: []netip.Addr{netip.MustParseAddr("127.0.0.1")}, Control: key.Public()}
	_, _ = rand.Read(nas.Key[:])
	if err := g.registry.Put(t.Context(), nas); err != nil {
		t.Fatal(err)
	}
	g.server = control.NewServer(control.ServerConfig{Registry: g.registry, Key: own, Publish: n.publish, Query: n.queryPublic})
	g.authority, err = resolver.NewAuthority(resolver.AuthorityConfig{Zone: zoneOfTests, View: n.publicView(nil, nil), Unsure: g.registry.Unsure, Pinned: o.pinned})
	if err != nil {
		t.Fatal(err)
	}
	services := newGroup()
	at := "127.0.0.1:0"
	if o.at.IsValid() {
		at = netip.AddrPortFrom(o.at, portDNS).String()
	}
	dnsUDP, dnsTCP := listenBoth(t, at)
	updUDP, updTCP := listenBoth(t, "127.0.0.1:0")
	web, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	calls, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	r.public, r.updates, r.acme = dnsTCP.Addr().String(), updTCP.Addr().String(), "http://"+web.Addr().String()
	r.control = netip.MustParseAddrPort(calls.Addr().String())
	services.run("dns over udp", func(ctx context.Context) error { return g.authority.ServeUDP(ctx, dnsUDP) })
	services.run("dns over tcp", func(ctx context.Context) error { return g.authority.ServeTCP(ctx, dnsTCP) })
	services.run("updates", func(ctx context.Context) error { return g.server.ServeUpdates(ctx, updUDP, updTCP) })
	services.run("acme-dns", func(ctx context.Context) error { return g.server.ServeACMEDNS(ctx, web) })
	services.run("control", func(ctx context.Context) error { return g.server.Serve(ctx, calls) })
	services.run("public", n.tendPublic)
	services.run("nas", func(ctx context.Context) error {
		for o.heard && ctx.Err() == nil {
			g.server.Hear("nas")
			sleep(ctx, time.Second)
		}
		return nil
	})
	t.Cleanup(func() {
		if err := services.stop(context.Background()); err != nil {
			t.Error(err)
		}
	})
	return r
}

// startPebble runs a CA that asks a DNS server. root is a file with the certificate of its HTTPS.
func startPebble(t *testing.T, dns string) (directory, root string) {
	t.Helper()
	_, directory, root = pebble{dns: dns, caa: "ca.test", life: 3600, retry: 1}.start(t)
	return directory, root
}

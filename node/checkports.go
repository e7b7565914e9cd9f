package node

import (
	"context"
	"crypto/tls"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/meshdns/meshdns/node/control"
)

// The times of looking at ports.
const (
	frontTime  = 5 * time.Second
	silentTime = 800 * time.Millisecond // for the news that nobody has a UDP port
	recentTime = 3 * time.Minute        // a session's life
)

// frontFacts is what answers at 443.
type frontFacts struct {
	addr   netip.Addr
	err    error  // of the connection
	tlsErr error  // of its TLS
	key    string // the control key of the gateway that answers; empty: something else does
}

// plainFacts is what answers at 80.
type plainFacts struct {
	addr   netip.Addr
	err    error
	status int // of HTTP, to a request for a name that nobody can have
}

// udpFacts is what came back from a UDP port that does not answer strangers.
type udpFacts struct {
	use  string
	at   netip.AddrPort
	err  error
	shut bool // the machine there says that nobody has the port
}

// tryPorts looks at the gateway's ports besides 53.
func (f *gatewayFacts) tryPorts(ctx context.Context) {
	addrs := f.public
	if len(addrs) == 0 {
		for _, s := range f.servers {
			addrs = append(addrs, s.addr)
		}
	}
	f.fronts = make([]frontFacts, len(addrs))
	f.plains = make([]plainFacts, len(addrs))
	f.silent = make([]udpFacts, 0, 2*len(addrs))
	for _, a := range addrs {
		f.silent = append(f.silent, udpFacts{use: "wireguard", at: netip.AddrPortFrom(a, f.ports[0])}, udpFacts{use: "relay", at: netip.AddrPortFrom(a, f.ports[1])})
	}
	var trying sync.WaitGroup
	for i, a := range addrs {
		trying.Go(func() { f.fronts[i] = tryFront(ctx, netip.AddrPortFrom(a, publicPort)) })
		trying.Go(func() { f.plains[i] = tryPlain(ctx, netip.AddrPortFrom(a, plainPort)) })
	}
	for i := range f.silent {
		trying.Go(func() { f.silent[i].try(ctx) })
	}
	trying.Wait()
}

// tryFront connects as a node does whose network blocks UDP, with a key that nobody knows. What answers shows its own before it
// sees that.
func tryFront(ctx context.Context, at netip.AddrPort) frontFacts {
	f := frontFacts{addr: at.Addr()}
	ctx, cancel := context.WithTimeout(ctx, frontTime)
	defer cancel()
	var conn net.Conn
	if conn, f.err = new(net.Dialer).DialContext(ctx, "tcp", at.String()); f.err != nil {
		return f
	}
	defer conn.Close()
	stranger, err := control.NewPrivateKey()
	var config *tls.Config
	if err == nil {
		config, err = stranger.TLSFor(overTLSProtocol, func(k control.ControlKey) bool {
			f.key = k.String()
			return true
		})
	}
	if err == nil {
		err = tls.Client(conn, config).HandshakeContext(ctx)
	}
	if f.key == "" {
		f.tlsErr = err
	}
	return f
}

// tryPlain asks for a name that nobody can have (RFC 6761). The gateway says of all that it does not show that there is nothing.
func tryPlain(ctx context.Context, at netip.AddrPort) plainFacts {
	f := plainFacts{addr: at.Addr()}
	ctx, cancel := context.WithTimeout(ctx, frontTime)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+at.String()+"/", nil)
	if err != nil {
		f.err = err
		return f
	}
	req.Host = "nobody.invalid"
	transport := &http.Transport{DisableKeepAlives: true, MaxResponseHeaderBytes: 8 << 10}
	resp, err := transport.RoundTrip(req)
	if err != nil {
		f.err = err
		return f
	}
	defer resp.Body.Close()
	f.status = resp.StatusCode
	return f
}

// try sends a packet that is nothing. What has the port says nothing to that, whether it is WireGuard or not; only a machine where
// nobody has it may say so (ICMP, port unreachable).
func (u *udpFacts) try(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, silentTime)
	defer cancel()
	var conn net.Conn
	if conn, u.err = new(net.Dialer).DialContext(ctx, "udp", u.at.String()); u.err != nil {
		return
	}
	defer conn.Close()
	deadline, _ := ctx.Deadline()
	if u.err = conn.SetDeadline(deadline); u.err != nil {
		return
	}
	if _, u.err = conn.Write(make([]byte, 4)); u.err == nil {
		_, u.err = conn.Read(make([]byte, 4))
	}
	if u.shut = isRefused(u.err); u.shut || isTimeout(u.err) {
		u.err = nil
	}
}

// judgeFronts says what answers at 443.
func (f *gatewayFacts) judgeFronts() []checkFinding {
	const name = "443"
	var list []checkFinding
	for _, at := range f.fronts {
		switch {
		case isUnreachable(at.err):
			list = append(list, checked(name, checkSkip, "run this on a machine that has such addresses", "%s: this machine has no way to %s", at.addr, family(at.addr)))
		case at.err != nil && f.isHairpin(at.addr):
			list = append(list, checked(name, checkSkip, f.elsewhere(), "%s: the gateway does not reach its own public address, which says nothing of others", at.addr))
		case isRefused(at.err):
			list = append(list, checked(name, checkFail, "on the gateway: meshdns up, and meshdns status, which names a program that has the port", "%s port 443/tcp: nothing listens there", at.addr))
		case at.err != nil:
			list = append(list, checked(name, checkFail, "open 443/tcp in the firewalls of the gateway and of its provider", "%s port 443/tcp: %s", at.addr, connectFailure(at.err)))
		case at.key == "":
			list = append(list, checked(name, checkFail, "on the gateway: meshdns status names the program that has the port; set gateway.listen and gateway.fallback to have both",
				"%s port 443/tcp: what answers is not the gateway: %v", at.addr, at.tlsErr))
		case f.control != "" && at.key != f.control:
			list = append(list, checked(name, checkFail, "see where that address leads; a gateway that was restored keeps its key", "%s port 443/tcp: another gateway answers, with the key %s", at.addr, at.key))
		default:
			list = append(list, checked(name, checkOK, "", "%s: the gateway answers, with the key %s", at.addr, at.key))
		}
	}
	return list
}

// judgePlains says what answers at 80. Nothing has to: a visitor who writes https needs it not.
func (f *gatewayFacts) judgePlains() []checkFinding {
	const name = "80"
	shown := slices.ContainsFunc(f.status.Funnels, func(s funnelStatus) bool { return s.Open && s.Kind == kindHTTPS && s.Port == publicPort })
	var list []checkFinding
	for _, at := range f.plains {
		switch {
		case at.err == nil && at.status == http.StatusNotFound:
			list = append(list, checked(name, checkOK, "", "%s: plain HTTP is answered, and leads to https for names that are shown", at.addr))
		case at.err == nil:
			list = append(list, checked(name, checkWarn, "have that program send visitors of the tailnet's names to https, or give it another port",
				"%s port 80/tcp: another program answers, so http:// does not lead to what is shown", at.addr))
		case isUnreachable(at.err), f.isHairpin(at.addr) || !shown && isRefused(at.err):
			list = append(list, checked(name, checkSkip, "", "%s port 80/tcp: it is opened when something is shown by https, and cannot be seen from here", at.addr))
		case f.from == fromGateway && shown:
			list = append(list, checked(name, checkWarn, "open 80/tcp in the firewalls of the gateway and of its provider, and see meshdns status there",
				"%s port 80/tcp: %s: a visitor has to write https://", at.addr, connectFailure(at.err)))
		default:
			list = append(list, checked(name, checkSkip, "", "%s port 80/tcp: %s, which it is while nothing is shown by https", at.addr, connectFailure(at.err)))
		}
	}
	return list
}

func connectFailure(err error) string {
	if isTimeout(err) {
		return "no answer"
	}
	return err.Error()
}

// judgeUDPPorts says whether packets of nodes come through.
func (f *gatewayFacts) judgeUDPPorts() []checkFinding {
	var list []checkFinding
	proof, over := f.heard()
	for _, u := range f.silent {
		port := fmt.Sprintf("%s port %d/udp", u.at.Addr(), u.at.Port())
		switch {
		case u.shut && !f.isHairpin(u.at.Addr()):
			list = append(list, checked(u.use, checkFail, "on the gateway: meshdns up, and meshdns status", "%s: nothing listens there", port))
		case over:
			list = append(list, checked(u.use, checkFail, fmt.Sprintf("open %d/udp in the firewalls of the gateway and of its provider, and of this network", u.at.Port()),
				"%s: nothing comes back, so this node's packets go over TLS", port))
		case proof[u.use] != "":
			list = append(list, checked(u.use, checkOK, "", "%s: %s", port, proof[u.use]))
		default:
			list = append(list, checked(u.use, checkSkip, f.askPeers(), "%s: it answers only nodes of the tailnet, so from here nothing can be told", port))
		}
	}
	return list
}

// askPeers is how to find out what strangers are not told.
func (f *gatewayFacts) askPeers() string {
	switch f.from {
	case fromGateway:
		return "on a node: meshdns gateway check"
	case fromNode:
		return "meshdns up, and then this again"
	}
	return "on a node that has joined: meshdns gateway check"
}

// heard tells what this machine's own node, or the gateway, has heard over UDP; over: that it could not, and uses TLS.
func (f *gatewayFacts) heard() (proof map[string]string, over bool) {
	if f.statusErr != nil {
		return nil, false
	}
	for _, p := range f.nodes {
		// Nodes of the gateway's own network come past the provider's firewall.
		at, err := netip.ParseAddrPort(p.Endpoint)
		if err == nil && p.Seen != nil && f.now.Sub(*p.Seen) < recentTime && at.Addr().IsGlobalUnicast() && !at.Addr().IsPrivate() {
			return map[string]string{"wireguard": fmt.Sprintf("%s was heard from %s", p.Name, at)}, false
		}
	}
	contact := f.status.Tunnel.Gateway
	if f.from != fromNode || contact == nil {
		return nil, false
	}
	if slices.Contains(f.status.Problems, overTLSTold) {
		return nil, true
	}
	proof = map[string]string{}
	note := func(use string, at *time.Time) {
		if at != nil && f.now.Sub(*at) < recentTime {
			proof[use] = fmt.Sprintf("this node's last handshake was %s ago", f.now.Sub(*at).Round(time.Second))
		}
	}
	note("relay", contact.Relay)
	for _, p := range f.status.Tunnel.Peers {
		if p.Node == contact.Name {
			note("wireguard", p.Handshake)
		}
	}
	return proof, false
}

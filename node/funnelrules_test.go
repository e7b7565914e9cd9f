package node

import (
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/miekg/dns"

	"github.com/meshdns/meshdns/node/control"
)

// stays opens a visit that lasts: the node's side says nothing, and waits.
func (r *funnelRig) stays(t *testing.T, name string) *tls.Conn {
	t.Helper()
	conn, err := r.visits(t, r.public, name)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return conn
}

// ends waits for a visit's end, which is none of its node's.
func ends(t *testing.T, conn net.Conn) {
	t.Helper()
	if err := conn.SetReadDeadline(time.Now().Add(time.Minute)); err != nil {
		t.Fatal(err)
	}
	if _, err := conn.Read(make([]byte, 1)); err == nil || isTimeout(err) {
		t.Errorf("the visit goes on: %v", err)
	}
}

// later has time pass for what domains were found to say, for ports and for streams that are closed.
func (r *funnelRig) later(d time.Duration) {
	g := r.node.gateway.funnels
	g.proofs.mu.Lock()
	for domain, p := range g.proofs.of {
		p.at, p.tried = p.at.Add(-d), p.tried.Add(-d)
		g.proofs.of[domain] = p
	}
	g.proofs.mu.Unlock()
	g.settling.Lock()
	for at, f := range g.failed {
		f.at = f.at.Add(-d)
		g.failed[at] = f
	}
	g.settling.Unlock()
	g.mu.Lock()
	for _, w := range g.wishes {
		if !w.gone.IsZero() {
			w.gone = w.gone.Add(-d)
		}
	}
	g.mu.Unlock()
	g.again()
	select {
	case g.prove <- struct{}{}:
	default:
	}
}

// S5: a node that is removed shows nothing from that moment on, not to whoever is there already.
func TestARemovedNodeShowsNothing(t *testing.T) {
	r := newFunnelRig(t)
	nas := r.invited(t, "nas")
	const name = "nas." + rigZone
	nas.web(t, name)
	nas.show(t, shownAs(name))
	visit := r.stays(t, name)
	if err := r.RemoveNode(t.Context(), "nas"); err != nil {
		t.Fatal(err)
	}
	if list := r.node.gateway.funnels.view(); len(list) > 0 {
		t.Errorf("when it is removed it is shown: %+v", list)
	}
	ends(t, visit)
	if _, err := r.fetch(t, name); !isUnknownName(err) {
		t.Errorf("a visitor: %v", err)
	}
	if list, rcode := r.told(t, name, dns.TypeA); len(list) > 0 || rcode != "NXDOMAIN" {
		t.Errorf("its name: %v %s", list, rcode)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second) // nobody answers a removed node
	defer cancel()
	if _, err := nas.node.register(ctx, []control.Funnel{shownAs(name)}); err == nil {
		t.Error("it registers again")
	}
}

// S12: what the policy forbids ends when it does, and the node is told why and what would mend it.
func TestAPolicyEndsWhatItForbids(t *testing.T) {
	r := newFunnelRig(t)
	nas, tv := r.invited(t, "nas"), r.invited(t, "tv")
	const name = "nas." + rigZone
	nas.web(t, name)
	tv.web(t, "tv."+rigZone)
	nas.show(t, shownAs(name))
	tv.show(t, shownAs("tv."+rigZone))
	visit, other := r.stays(t, name), r.stays(t, "tv."+rigZone)
	r.policy(t, "funnel: [tv]")
	ends(t, visit)
	if text, err := getOn(other, "tv."+rigZone); err != nil || !strings.HasSuffix(text, "of tv") {
		t.Errorf("a visit that is not forbidden: %q, %v", text, err)
	}
	nas.sees(t, "the refusal", func(f control.Funnel) bool {
		return !f.Open && f.Code == shownNot && strings.Contains(f.Mend, "funnel: [nas]")
	})
	if _, err := r.fetch(t, name); !isUnknownName(err) {
		t.Error(err)
	}
	// Names of others stay theirs.
	if f := tv.show(t, shownAs(name))[0]; f.Open || f.Code != shownNobodys {
		t.Errorf("another's name: %+v", f)
	}
	r.policy(t, "funnel: [nas]")
	nas.sees(t, "the name to be shown again", isOpen)
	if _, err := r.fetch(t, name); err != nil {
		t.Error(err)
	}
	if nodes, err := r.Nodes(t.Context()); err != nil || !slices.ContainsFunc(nodes.Nodes, func(p gatewayPeer) bool {
		return p.Name == "tv" && len(p.Funnels) == 1 && !p.Funnels[0].Open && p.Funnels[0].Why != ""
	}) {
		t.Errorf("%+v, %v", nodes, err)
	}
}

// S15: a domain is shown while the world's DNS says that it is that very node's, and no longer.
func TestADomainCountsWhileItLeadsToTheNode(t *testing.T) {
	r := newFunnelRig(t)
	nas, tv := r.invited(t, "nas"), r.invited(t, "tv")
	const domain = "www.example.com"
	nas.web(t, domain)
	tv.web(t, domain)
	wish := shownAs(domain)
	if f := nas.show(t, wish)[0]; f.Open || f.Code != shownUnproven || !strings.Contains(f.Mend, domain+". CNAME nas."+rigZone+".") {
		t.Errorf("nothing says so: %+v", f)
	}
	if _, err := r.fetch(t, domain); !isUnknownName(err) {
		t.Errorf("nothing says so: %v", err)
	}
	r.world.set(domain+" CNAME", "nas."+rigZone+".")
	r.later(2 * proofSoon)
	nas.sees(t, "the domain to be shown", isOpen)
	if text, err := r.fetch(t, domain); err != nil || !strings.HasSuffix(text, "of nas") {
		t.Errorf("%q, %v", text, err)
	}
	// What the domain leads to has to have the gateway's addresses.
	if list, _ := r.told(t, "nas."+rigZone, dns.TypeA); len(list) != 1 {
		t.Errorf("its target: %v", list)
	}
	if f := tv.show(t, wish)[0]; f.Open || f.Code != shownUnproven {
		t.Errorf("another node: %+v", f)
	}
	// A resolver that fails says nothing against it, for a while.
	r.world.with(func() { r.world.broken = true })
	r.later(2 * proofTime)
	soon(t, "the lookup", func() bool {
		g := r.node.gateway.funnels
		g.proofs.mu.Lock()
		defer g.proofs.mu.Unlock()
		return g.proofs.of[domain].err != nil
	})
	if _, err := r.fetch(t, domain); err != nil {
		t.Errorf("while there is no DNS: %v", err)
	}
	visit := r.stays(t, domain)
	r.world.with(func() { r.world.broken = false })
	r.world.set(domain+" CNAME", "tv."+rigZone+".")
	r.later(2 * proofTime)
	ends(t, visit)
	nas.sees(t, "the end", func(f control.Funnel) bool { return !f.Open && f.Code == shownUnproven })
	tv.sees(t, "the other node's turn", isOpen)
	if text, err := r.fetch(t, domain); err != nil || !strings.HasSuffix(text, "of tv") {
		t.Errorf("%q, %v", text, err)
	}
	r.world.with(func() { r.world.broken = true })
	r.later(2 * proofLast)
	tv.sees(t, "the end without DNS", func(f control.Funnel) bool { return !f.Open })
}

// S15: where the policy lists two nodes with a name both get its visitors, and a CA's check only the one that has it alone.
func TestTwoNodesShareANameThatPolicyLists(t *testing.T) {
	r := newFunnelRig(t)
	nas, tv := r.invited(t, "nas"), r.invited(t, "tv")
	const name = "nas." + rigZone
	nas.web(t, name)
	tv.web(t, name)
	nas.show(t, shownAs(name))
	if f := tv.show(t, shownAs(name))[0]; f.Open {
		t.Errorf("not listed: %+v", f)
	}
	check := func() error {
		conn, err := r.visits(t, r.public, name, "acme-tls/1")
		if err == nil {
			conn.Close()
		}
		return err
	}
	// The node's server does not speak it, and says so: it was asked.
	if err := check(); err == nil || !strings.Contains(err.Error(), "no application protocol") {
		t.Errorf("a CA's check of a name of one: %v", err)
	}
	r.policy(t, "funnel: [{nodes: [nas, tv], names: [nas]}]")
	tv.sees(t, "the name to be shared", isOpen)
	first := r.stays(t, name)
	defer first.Close()
	served := map[string]bool{}
	soon(t, "visits to both", func() bool {
		text, err := r.fetch(t, name)
		if err != nil {
			t.Fatal(err)
		}
		served[text[strings.LastIndexByte(text, ' ')+1:]] = true
		return len(served) == 2
	})
	asked := r.node.gateway.funnels.relay.Stats().Begun
	if err := check(); err == nil || r.node.gateway.funnels.relay.Stats().Unreached+r.node.gateway.funnels.relay.Stats().Refused == 0 && asked == r.node.gateway.funnels.relay.Stats().Begun {
		t.Errorf("a CA's check of a name of two: %v", err)
	}
}

// A whole port is a node's where the policy gives it the port, and no longer than that.
func TestWholePorts(t *testing.T) {
	r := newFunnelRig(t)
	nas := r.invited(t, "nas")
	nas.web(t, "nas."+rigZone)
	port := freePorts(t, gatewayAddress)
	ln, err := net.Listen("tcp", fmt.Sprintf("%s:%d", gatewayAddress, port)) // another program's
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	list := []control.Funnel{{Port: port, Kind: kindTCP}, {Port: port, Kind: kindUDP}}
	told := nas.show(t, list...)
	if told[0].Code != shownNot || told[1].Code != shownNot {
		t.Errorf("without a policy: %+v", told)
	}
	dial := func(network string) (net.Conn, error) {
		dialer := net.Dialer{Timeout: 5 * time.Second}
		return dialer.DialContext(t.Context(), network, fmt.Sprintf("%s:%d", gatewayAddress, port))
	}
	r.policy(t, fmt.Sprintf("funnel: [{nodes: [nas], ports: ['%d/tcp', '%d/udp']}]", port, port))
	soon(t, "the port of the other program to be refused, and the other one shown", func() bool {
		told, _, _, _ := nas.node.registration.state()
		return told[0].Code == shownNoPort && told[1].Open
	})
	ln.Close()
	r.later(2 * settleRest)
	soon(t, "both", func() bool {
		told, _, _, _ := nas.node.registration.state()
		return told[0].Open && told[1].Open
	})
	for _, network := range []string{"tcp", "udp"} {
		conn, err := dial(network)
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		fmt.Fprint(conn, "hello")
		if err := conn.SetReadDeadline(time.Now().Add(30 * time.Second)); err != nil {
			t.Fatal(err)
		}
		b := make([]byte, 200)
		n, err := conn.Read(b)
		if want := fmt.Sprintf("%s %d %s: hello", network, port, conn.LocalAddr()); err != nil || string(b[:n]) != want {
			t.Errorf("%s: %q, %v, want %q", network, b[:n], err, want)
		}
	}
	if list, _ := r.told(t, "nas."+rigZone, dns.TypeA); len(list) != 1 {
		t.Errorf("its node's name: %v", list)
	}
	if list, _ := r.told(t, "nas."+rigZone, dns.TypeHTTPS); len(list) != 0 {
		t.Errorf("HTTPS without any: %v", list)
	}
	nas.show(t)
	if conn, err := dial("tcp"); err == nil {
		conn.Close()
		t.Error("the port is open when it has ended")
	}
}

// TLS by names on a further port, which the policy gives.
func TestNamesOnAnotherPort(t *testing.T) {
	r := newFunnelRig(t)
	nas := r.invited(t, "nas")
	const name = "nas." + rigZone
	nas.web(t, name)
	port := freeTCP(t, gatewayAddress)
	r.policy(t, fmt.Sprintf("funnel: [{nodes: [nas], ports: ['%d']}]", port))
	told := nas.show(t, control.Funnel{Name: name, Port: port, Kind: kindHTTPS}, shownAs(name))
	if !told[0].Open || told[1].Open || told[0].At[0].Port() != port {
		t.Fatalf("%+v", told)
	}
	if text, err := r.fetchAt(t, port, name); err != nil || !strings.Contains(text, fmt.Sprintf(" %d by https", port)) {
		t.Errorf("%q, %v", text, err)
	}
	if _, err := r.fetchAt(t, port, "tv."+rigZone); !isUnknownName(err) {
		t.Errorf("another name there: %v", err)
	}
	if _, err := r.fetch(t, name); !isUnknownName(err) {
		t.Errorf("the name on the public port: %v", err)
	}
}

// Port 80 leads to https, for names that are shown and for nothing else.
func TestPlainHTTPLeadsToHTTPS(t *testing.T) {
	r := newFunnelRig(t)
	nas := r.invited(t, "nas")
	const name = "nas." + rigZone
	ask := func(host string) (int, string, error) {
		req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, fmt.Sprintf("http://%s:%d/x?y", gatewayAddress, r.plain), nil)
		if err != nil {
			t.Fatal(err)
		}
		req.Host = host
		resp, err := (&http.Transport{DisableKeepAlives: true}).RoundTrip(req)
		if err != nil {
			return 0, "", err
		}
		resp.Body.Close()
		return resp.StatusCode, resp.Header.Get("Location"), nil
	}
	if _, _, err := ask(name); err == nil {
		t.Error("the port is open though nothing is shown")
	}
	nas.show(t, shownAs(name))
	if code, to, err := ask(name); err != nil || code != http.StatusMovedPermanently && code != http.StatusPermanentRedirect || to != fmt.Sprintf("https://%s:%d/x?y", name, r.public) {
		t.Errorf("%d %q, %v", code, to, err)
	}
	if code, to, err := ask("tv." + rigZone); err != nil || code != http.StatusNotFound || to != "" {
		t.Errorf("a name that is not shown: %d %q, %v", code, to, err)
	}
}

// Sites that the machine has already stay where they are.
func TestTheFallbackStays(t *testing.T) {
	site, err := net.Listen("tcp", gatewayAddress+":0")
	if err != nil {
		t.Skip("NOT PROVEN: this system has no other loopback addresses: ", err)
	}
	defer site.Close()
	go func() {
		for {
			conn, err := site.Accept()
			if err != nil {
				return
			}
			secure := tls.Server(conn, &tls.Config{Certificates: []tls.Certificate{selfSigned(t, "blog.example")}})
			_ = secure.HandshakeContext(context.Background())
			fmt.Fprint(secure, "the blog")
			secure.Close()
		}
	}()
	r := newFunnelRig(t, func(c *Config) { c.Gateway.Fallback = "tcp://" + site.Addr().String() })
	nas := r.invited(t, "nas")
	const name = "nas." + rigZone
	nas.web(t, name)
	blog := func() string {
		conn, err := r.visits(t, r.public, "blog.example")
		if err != nil {
			return err.Error()
		}
		defer conn.Close()
		data, _ := io.ReadAll(conn)
		return string(data)
	}
	if got := blog(); got != "the blog" {
		t.Error("before:", got)
	}
	nas.show(t, shownAs(name))
	if got := blog(); got != "the blog" {
		t.Error("beside what is shown:", got)
	}
	if text, err := r.fetch(t, name); err != nil || !strings.HasSuffix(text, "of nas") {
		t.Errorf("%q, %v", text, err)
	}
}

// What is shown outlives a stream by a moment, in which a node that is started anew is back, and no longer.
func TestWhatIsShownOutlivesItsStreamByAMoment(t *testing.T) {
	r := newFunnelRig(t)
	nas := r.invited(t, "nas")
	const name = "nas." + rigZone
	nas.show(t, shownAs(name))
	if err := nas.end(); err != nil {
		t.Fatal(err)
	}
	r.node.gateway.funnels.left("nas") // as the control server says when it has heard nothing
	if list, _ := r.told(t, name, dns.TypeA); len(list) != 1 {
		t.Errorf("at once: %v", list)
	}
	r.later(wishGrace)
	soon(t, "the end", func() bool {
		_, rcode := r.told(t, name, dns.TypeA)
		return rcode == "NXDOMAIN"
	})
	if _, err := r.fetch(t, name); !isUnknownName(err) {
		t.Error(err)
	}
}

// A node may show what is a service name of its own, and nobody shows one that is another's (S12).
func TestServiceNamesAreShown(t *testing.T) {
	r := newFunnelRig(t)
	nas, tv := r.invited(t, "nas"), r.invited(t, "tv")
	const name = "photos." + rigZone
	nas.web(t, name)
	if f := nas.show(t, shownAs(name))[0]; f.Open || f.Code != shownNobodys || !strings.Contains(f.Mend, "--name photos") {
		t.Errorf("a name of nobody: %+v", f)
	}
	if err := nas.node.takeServiceNames(t.Context(), []string{"photos"}); err != nil {
		t.Fatal(err)
	}
	nas.sees(t, "it to be shown", isOpen)
	if err := tv.node.takeServiceNames(t.Context(), []string{"photos"}); err == nil {
		t.Error("another node takes it")
	}
	if f := tv.show(t, shownAs(name))[0]; f.Open {
		t.Errorf("another node shows it: %+v", f)
	}
	if text, err := r.fetch(t, name); err != nil || !strings.HasSuffix(text, "of nas") {
		t.Errorf("%q, %v", text, err)
	}
}

// The gateway shows something itself as well.
func TestAGatewayShowsItsOwn(t *testing.T) {
	r := newFunnelRig(t)
	const name = "edge." + rigZone
	self := r.testNode
	self.web(t, name)
	self.show(t, shownAs(name))
	self.sees(t, "it to be shown", isOpen)
	if text, err := r.fetch(t, name); err != nil || !strings.HasSuffix(text, "of edge") {
		t.Errorf("%q, %v", text, err)
	}
}

// A try from outside says how far a visitor comes, and is no way to look at other machines.
func TestATryFromOutside(t *testing.T) {
	r := newFunnelRig(t)
	nas, tv := r.invited(t, "nas"), r.invited(t, "tv")
	const name = "nas." + rigZone
	steps := func(f control.Funnel) string {
		var words []string
		for _, s := range f.Steps {
			word := s.What
			if s.Err != "" {
				word += "!"
			}
			words = append(words, word)
		}
		return strings.Join(words, " ")
	}
	try := func(n *testNode, f control.Funnel) string {
		t.Helper()
		got, err := n.node.tryFromOutside(t.Context(), f)
		if err != nil {
			return err.Error()
		}
		return steps(got)
	}
	if got := try(nas, shownAs(name)); !strings.Contains(got, "does not show") {
		t.Error("what is not registered:", got)
	}
	nas.show(t, shownAs(name))
	if got := try(tv, shownAs(name)); !strings.Contains(got, "does not show") {
		t.Error("another node's:", got)
	}
	if got := try(nas, shownAs(name)); got != "gateway name! connection tls!" {
		t.Error("nothing listens on the node, and the world knows no address:", got)
	}
	nas.web(t, name)
	r.world.set(name+" A", "203.0.113.5")
	if got := try(nas, shownAs(name)); got != "gateway name connection tls certificate!" {
		t.Error("a certificate that nobody believes:", got)
	}
	r.policy(t, "funnel: []")
	nas.sees(t, "the refusal", func(f control.Funnel) bool { return !f.Open })
	if got := try(nas, shownAs(name)); got != "gateway!" {
		t.Error("what the policy forbids:", got)
	}
}

// A gateway that ends lets visits come to their end.
func TestVisitsEndWithTheGateway(t *testing.T) {
	r := newFunnelRig(t)
	nas := r.invited(t, "nas")
	const name = "nas." + rigZone
	slow := make(chan struct{})
	certificate := selfSigned(t, name)
	nas.takes(t, func(conn net.Conn) {
		secure := tls.Server(conn, &tls.Config{Certificates: []tls.Certificate{certificate}})
		if secure.HandshakeContext(t.Context()) != nil {
			return
		}
		<-slow
		fmt.Fprint(secure, "the end of it")
	})
	nas.show(t, shownAs(name))
	visit := r.stays(t, name)
	// What the end of the node calls, which has less time than a machine may need that does much else.
	g := r.node.gateway.funnels
	if g.end != visitsEnd {
		t.Errorf("visits have %s", g.end)
	}
	g.end = time.Minute
	done := make(chan error)
	go func() { done <- g.drain(t.Context()) }()
	soon(t, "the gateway to take no visitors", func() bool {
		_, err := r.visits(t, r.public, name)
		return err != nil
	})
	close(slow)
	data, err := io.ReadAll(visit)
	if string(data) != "the end of it" {
		t.Errorf("%q, %v", data, err)
	}
	visit.Close()
	if err := <-done; err != nil {
		t.Error(err)
	}
	g.end = 0
}

// A gateway that was killed shows the same again by itself: the nodes tell it once more.
func TestFunnelsComeBackWithAGatewayThatWasKilled(t *testing.T) {
	at := gatewayPlaces{Paths: testPaths(t), Port: freePorts(t, gatewayAddress), Public: freeTCP(t, gatewayAddress)}
	p := startGatewayProcess(t, at)
	r := &funnelRig{testGateway: &testGateway{testNode: &testNode{Client: p.Client}}, public: at.Public}
	nas := r.invited(t, "nas")
	const name = "nas." + rigZone
	nas.web(t, name)
	nas.show(t, shownAs(name))
	if _, err := r.fetch(t, name); err != nil {
		t.Fatal(err)
	}
	// One that has run for a while knows where its nodes are.
	soon(t, "the gateway to keep where the node is", func() bool {
		data, _ := os.ReadFile(filepath.Join(at.Paths.State, lastPathsFile))
		return strings.Contains(string(data), nas.node.carrier.own().keys().Key.String())
	})
	p.end()
	if _, err := r.fetch(t, name); err == nil {
		t.Error("there is still a gateway")
	}
	began := time.Now()
	startGatewayProcess(t, at)
	up := time.Now()
	soon(t, "the name to be shown again", func() bool {
		_, err := r.fetch(t, name)
		return err == nil
	})
	t.Logf("the gateway was up after %s, and the name shown %s later", up.Sub(began), time.Since(up))
}

// A node that ends without a word and comes back is served again as soon as it is there.
func TestFunnelsComeBackWithTheirNode(t *testing.T) {
	r := newFunnelRig(t)
	nas := r.invited(t, "nas")
	const name = "nas." + rigZone
	nas.show(t, shownAs(name))
	if err := nas.end(); err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	if _, err := r.fetch(t, name); err == nil || isUnknownName(err) {
		t.Errorf("without its node: %v", err)
	}
	t.Logf("a visitor without the node was told so after %s", time.Since(began))
	again := startMember(t, nas.paths)
	again.web(t, name)
	again.node.registration.set([]control.Funnel{shownAs(name)})
	began = time.Now()
	soon(t, "visitors to reach it", func() bool {
		text, err := r.fetch(t, name)
		return err == nil && strings.HasSuffix(text, "of nas")
	})
	t.Logf("visitors reached it %s after it was started", time.Since(began))
}

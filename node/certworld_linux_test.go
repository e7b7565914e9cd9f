package node

import (
	"context"
	"crypto/x509"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/miekg/dns"

	"github.com/meshdns/meshdns/certs"
	"github.com/meshdns/meshdns/node/control"
)

// The world that a CA sees: a root server that has the parent zone as well, and a resolver that mixes the case of what it asks
// and picks any server of a zone. All of it is on addresses of loopback, with port 53, in a network of its own.
const (
	worldProvider = "127.81.0.1"
	worldGateways = "127.81.0." // and the number of one, from 2
	worldResolver = "127.81.0.53"
)

// ownNetwork runs the test again in a network namespace, where nobody else has its ports. It reports whether this is that run.
func ownNetwork(t *testing.T) bool {
	t.Helper()
	const variable = "MESHDNS_TEST_NETWORK"
	if os.Getenv(variable) != "" {
		if out, err := exec.CommandContext(t.Context(), "ip", "link", "set", "lo", "up").CombinedOutput(); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
		return true
	}
	runApart(t, syscall.CLONE_NEWNET, variable+"=1")
	return false
}

// startProgram runs a program until the test ends.
func startProgram(t *testing.T, name string, args ...string) {
	t.Helper()
	path, err := exec.LookPath(name)
	if err != nil {
		path = "/usr/sbin/" + name
	}
	if _, err := os.Stat(path); err != nil {
		t.Skipf("NOT PROVEN: there is no %s: .ci/deps installs it", name)
	}
	log, err := os.Create(filepath.Join(t.TempDir(), name+".log"))
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(path, args...)
	cmd.Stdout, cmd.Stderr = log, log
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		log.Close()
		if data, err := os.ReadFile(log.Name()); err == nil && t.Failed() {
			t.Logf("%s:\n%s", name, data)
		}
	})
}

// startWorld has a provider serve records, and a resolver that begins there. It returns where the resolver answers.
func startWorld(t *testing.T, records string) (resolver string) {
	t.Helper()
	dir := t.TempDir()
	write := func(name, text string) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
		return path
	}
	write("root.zone", ". 60 SOA ns. h. 1 60 60 60 1\n. 60 NS ns.\nns. 60 A "+worldProvider+"\n"+records)
	knot := write("knot.conf", fmt.Sprintf(`server:
    rundir: %[1]s
    listen: %[2]s@53
database:
    storage: %[1]s
template:
  - id: default
    storage: %[1]s
    journal-content: none
zone:
  - domain: .
    file: root.zone
    zonefile-sync: -1
`, dir, worldProvider))
	port := freePorts(t, worldResolver)
	hints := write("hints", ". 60 NS ns.\nns. 60 A "+worldProvider+"\n")
	unbound := write("unbound.conf", fmt.Sprintf(`server:
    do-daemonize: no
    username: ""
    chroot: ""
    directory: %s
    pidfile: ""
    use-syslog: no
    interface: %s@%d
    access-control: 127.0.0.0/8 allow
    do-not-query-localhost: no
    root-hints: %s
    module-config: "iterator"
    use-caps-for-id: yes
    infra-host-ttl: 0
    num-threads: 1
remote-control:
    control-enable: no
`, dir, worldResolver, port, hints))
	startProgram(t, "knotd", "-c", knot)
	startProgram(t, "unbound", "-d", "-c", unbound)
	resolver = netip.AddrPortFrom(netip.MustParseAddr(worldResolver), port).String()
	soon(t, "the resolver", func() bool {
		reply, err := dns.Exchange(new(dns.Msg).SetQuestion("ns.", dns.TypeA), resolver)
		return err == nil && len(reply.Answer) == 1
	})
	return resolver
}

// textsOver is the rig's gateway as its node reaches it.
func (r *publicRig) textsOver(ears *ears, name string, reached func() bool) textGateway {
	call := &control.Client{Server: r.control, Gateway: r.own, Key: r.key, Dial: ears.listening(name, func(ctx context.Context, network, address string) (net.Conn, error) {
		if !reached() {
			return nil, errLost
		}
		return new(net.Dialer).DialContext(ctx, network, address)
	})}
	return textGateway{
		name:  name,
		set:   func(ctx context.Context, name, value string) error { return call.SetText(ctx, name, value, textLife) },
		clear: call.ClearText,
		hear:  func(ctx context.Context) error { _, err := call.Published(ctx); return err },
		values: func(ctx context.Context, name string) ([]string, error) {
			m, _, err := (&dns.Client{Net: "tcp"}).ExchangeContext(ctx, textQuery(name), r.public)
			if err != nil {
				return nil, err
			}
			raw, err := m.Pack()
			if err != nil {
				return nil, err
			}
			return textValues(raw)
		},
	}
}

// worldGateway is the gateway with a number, and what writes to it alone.
func worldGateway(t *testing.T, number string, o rigOptions) (*publicRig, *gatewayTexts) {
	t.Helper()
	key, err := control.NewPrivateKey()
	if err != nil {
		t.Fatal(err)
	}
	o.at = netip.MustParseAddr(worldGateways + number)
	o.public = []netip.Addr{o.at}
	r := newPublicRig(t, key, o)
	return r, worldWriter(t, func(ears *ears) []textGateway {
		return []textGateway{r.textsOver(ears, "one", func() bool { return true })}
	})
}

// worldWriter writes to gateways.
func worldWriter(t *testing.T, gateways func(*ears) []textGateway) *gatewayTexts {
	g := &gatewayTexts{log: slog.New(slog.DiscardHandler), life: t.Context, place: func(_ context.Context, name string) (string, error) { return name, nil }}
	g.gateways = func() []textGateway { return gateways(&g.ears) }
	return g
}

// worldCA is a CA, and how a node orders there.
type worldCA struct {
	directory, root string
	writer          certs.TXTSetter
	told            func(uri string) // may be nil
}

// order gets a certificate.
func (w worldCA) order(t *testing.T, names ...string) error {
	t.Helper()
	data, err := os.ReadFile(w.root)
	if err != nil {
		t.Fatal(err)
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(data)
	acme, err := certs.NewACME(certs.ACMEConfig{
		Name: "test", Directory: w.directory, Dir: t.TempDir(), TXT: w.writer, Roots: roots, Logger: slog.New(slog.DiscardHandler),
		Account: func(_ context.Context, uri string) error {
			if w.told != nil {
				w.told(uri)
			}
			return nil
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	chain, err := acme.Issue(ctx, csrFor(t, names...))
	if err == nil && !strings.Contains(string(chain), "BEGIN CERTIFICATE") {
		err = fmt.Errorf("no certificate: %q", chain)
	}
	return err
}

func nasAndBelow() []string { return []string{"nas." + zoneOfTests, "*.nas." + zoneOfTests} }

// A CA asks any of a tailnet's gateways. One that the node does not reach costs no order: it fails to tell, and the CA's resolver
// asks the other one.
func TestTwoGatewaysOfWhichOneIsDeaf(t *testing.T) {
	if !ownNetwork(t) {
		return
	}
	zone := zoneOfTests + "."
	key, err := control.NewPrivateKey()
	if err != nil {
		t.Fatal(err)
	}
	resolver := startWorld(t, zone+" 60 NS ns1."+zone+"\n"+zone+" 60 NS ns2."+zone+"\nns1."+zone+" 60 A "+worldGateways+"2\nns2."+zone+" 60 A "+worldGateways+"3\n")
	public := []netip.Addr{netip.MustParseAddr(worldGateways + "2"), netip.MustParseAddr(worldGateways + "3")}
	one := newPublicRig(t, key, rigOptions{public: public, at: public[0]})
	two := newPublicRig(t, key, rigOptions{public: public, at: public[1]})
	deaf := false
	writer := worldWriter(t, func(ears *ears) []textGateway {
		return []textGateway{one.textsOver(ears, "one", func() bool { return true }), two.textsOver(ears, "two", func() bool { return !deaf })}
	})
	directory, root := startPebble(t, resolver)
	ask := func() {
		t.Helper()
		if err := (worldCA{directory, root, writer, nil}).order(t, nasAndBelow()...); err != nil {
			t.Error(err)
		}
	}
	ask()
	deaf = true
	var wait sync.WaitGroup
	wait.Go(ask)
	name := func(i int) string { return challengeOf(fmt.Sprintf("h%d.nas", i)) }
	undo := make([]func(context.Context) error, 8)
	for i := range undo {
		wait.Go(func() {
			var err error
			if undo[i], err = writer.SetTXT(t.Context(), name(i), testDigest(i)); err != nil {
				t.Error(err)
			}
		})
	}
	wait.Wait()
	for i := range undo {
		reply, err := dns.Exchange(textQuery(name(i)), resolver)
		if err != nil || len(reply.Answer) != 1 {
			t.Errorf("%s: %v, %v", name(i), reply, err)
		}
		if undo[i] != nil {
			if err := undo[i](t.Context()); err != nil {
				t.Error(err)
			}
		}
	}
	if got := two.texts(t, challengeOf("nas")); got != "SERVFAIL" {
		t.Errorf("the deaf one says %s", got)
	}
}

// The zone is at its owner's provider, and only challenges are delegated. The CA is led to the gateway for those, and for
// nothing else.
func TestACertificateOfAPinnedZone(t *testing.T) {
	if !ownNetwork(t) {
		return
	}
	zone := zoneOfTests + "."
	r, writer := worldGateway(t, "4", rigOptions{pinned: true, issuers: []string{"127.0.0.1=ca.test"}})
	var lines []string
	for _, one := range r.node.pinnedRecords() {
		lines = append(lines, one.Name+" 60 "+one.Type+" "+one.Data)
	}
	resolver := startWorld(t, strings.Join(lines, "\n")+"\nnas."+zone+" 60 A 192.0.2.7\n")
	directory, root := startPebble(t, resolver)
	account := ""
	if err := (worldCA{directory, root, writer, func(uri string) { account = uri }}).order(t, nasAndBelow()...); err != nil {
		t.Error(err)
	}
	if account == "" || r.asked() == 0 {
		t.Errorf("account %q, the gateway was asked %d times", account, r.asked())
	}
	reply, err := dns.Exchange(new(dns.Msg).SetQuestion("nas."+zone, dns.TypeA), resolver)
	if err != nil || len(reply.Answer) != 1 || !strings.Contains(reply.Answer[0].String(), "192.0.2.7") {
		t.Errorf("%v, %v", reply, err)
	}
}

// A name of somebody else's zone whose challenges lead to a name of the node is certified through the gateway too.
func TestACertificateOfAForeignName(t *testing.T) {
	if !ownNetwork(t) {
		return
	}
	zone := zoneOfTests + "."
	r, writer := worldGateway(t, "5", rigOptions{})
	lead := func(from, to string) string { return challengeLabel + from + ". 60 CNAME " + to + ".\n" }
	resolver := startWorld(t, zone+" 60 NS ns1."+zone+"\nns1."+zone+" 60 A "+worldGateways+"5\n"+
		lead("www.example.com", "delegated.example.net")+"delegated.example.net. 60 CNAME "+challengeLabel+"NAS."+zone+"\n"+
		lead("tv.example.com", challengeLabel+"tv."+zoneOfTests)+lead("top.example.com", challengeLabel+zoneOfTests)+
		lead("loop.example.com", challengeLabel+"loop2.example.com")+lead("loop2.example.com", challengeLabel+"loop.example.com")+
		lead("else.example.com", challengeLabel+"else.example.net")+"plain.example.com. 60 A 192.0.2.1\n")
	directory, root := startPebble(t, resolver)
	m, err := parseMap("m", []byte("zone: "+zoneOfTests+"\nnodes: {nas: {addresses: [100.64.0.2], names: [photos]}, tv: {addresses: [100.64.0.3]}}\n"))
	if err != nil {
		t.Fatal(err)
	}
	n := &Node{log: slog.New(slog.DiscardHandler), cfg: Config{Node: "nas", Certs: certsConfig{Resolvers: []netip.AddrPort{netip.MustParseAddrPort(resolver)}}}}
	n.tailnet.merged, n.tailnet.static = m, m
	writer.place = n.textPlace
	ca := worldCA{directory, root, writer, nil}
	if err := ca.order(t, "www.example.com", "nas."+zoneOfTests); err != nil {
		t.Error(err)
	}
	if text := r.texts(t, challengeOf("nas")); strings.Contains(text, "=") {
		t.Errorf("left: %s", text)
	}
	for name, want := range map[string]string{
		"tv.example.com":    "it is no name of nas",
		"top.example.com":   "it is no name of nas",
		"loop.example.com":  "lead back to",
		"else.example.com":  "leads to _acme-challenge.else.example.net, which is no name of this tailnet",
		"plain.example.com": "is no name of this tailnet, and leads to none",
		"tv." + zoneOfTests: "it is no name of nas",
	} {
		before := r.asked()
		err := ca.order(t, name)
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", name, err)
		}
		if n := r.asked() - before; n != 0 && !strings.Contains(want, "no name of nas") {
			t.Errorf("%s: the CA looked", name)
		}
		if hint := hintOf(err); strings.Contains(want, "tailnet") && hint != "have its owner add: _acme-challenge."+name+". CNAME _acme-challenge.nas."+zone {
			t.Errorf("%s: hint %q", name, hint)
		}
	}
	if view, _ := r.node.gateway.registry.Certs(); len(view.Texts) != 0 {
		t.Errorf("published: %v", view.Texts)
	}
	n.cfg.Certs.Resolvers = []netip.AddrPort{netip.MustParseAddrPort("127.0.0.1:9")}
	for name, want := range map[string]string{
		"_acme-challenge.www.example.com": "where it leads is not known", "_acme-challenge.tv." + zoneOfTests: "_acme-challenge.tv." + zoneOfTests,
		"_acme-challenge.x.photos." + zoneOfTests: "_acme-challenge.x.photos." + zoneOfTests,
	} {
		at, err := n.textPlace(t.Context(), name)
		if at != want && (err == nil || !strings.Contains(err.Error(), want)) {
			t.Errorf("without a resolver: %s is at %q, %v", name, at, err)
		}
	}
}

package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/meshdns/meshdns/node"
)

const (
	zone     = "foo-bar.ts.net"
	nasName  = "nas." + zone
	pageText = "a page on the nas, which the gateway passed on and could not read"
	tryTime  = 2 * time.Minute // for the whole, on a machine that is very busy

	// noTakeover is said where the takeover of the machine's DNS cannot be shown.
	noTakeover = "is left alone: taking over the machine's DNS needs root, and is shown on Linux in a mount namespace"
)

// demo is a CA, a gateway and two nodes, with all that they write in one directory.
type demo struct {
	out   io.Writer
	log   io.Writer
	start time.Time
	dir   string

	ports   ports
	ca      *authority
	gateway *daemon
	laptop  *daemon
	nas     *daemon
	url     string // of the page
}

func newDemo(out io.Writer) (*demo, error) {
	d := &demo{out: out, log: io.Discard, start: time.Now()}
	var err error
	if d.ports, err = choosePorts(); err != nil {
		return nil, err
	}
	// The path of a Unix socket may have a hundred bytes or so: the names below are short.
	if d.dir, err = os.MkdirTemp("", "meshdns-demo"); err != nil {
		return nil, fmt.Errorf("making a directory for the demo: %w", err)
	}
	return d, nil
}

// run shows everything, and with stay goes on until ctx ends.
func (d *demo) run(ctx context.Context, stay bool) error {
	trying, cancel := context.WithTimeoutCause(ctx, tryTime, fmt.Errorf("it took longer than %s", tryTime))
	defer cancel()
	fmt.Fprintf(d.out, "A tailnet on this machine alone: loopback addresses, no root, everything in %s.\n\n", d.dir)
	for _, step := range []struct {
		what string
		do   func(context.Context) (string, error)
	}{
		{"a CA", d.startCA},
		{"the gateway", d.startGateway},
		{"laptop and nas join", d.join},
		{"a name", d.resolve},
		{"a packet", d.ping},
		{"a certificate", d.certify},
		{"serve", d.serve},
		{"the tailnet reads it", d.readInside},
		{"funnel", d.funnel},
		{"a visitor reads it", d.visit},
		{"/etc/resolv.conf", d.takeover},
	} {
		before := time.Now()
		said, err := step.do(trying)
		if ctx.Err() != nil {
			return nil // Ctrl-C is how it ends
		}
		if err != nil {
			return fmt.Errorf("%s: %w", step.what, err)
		}
		fmt.Fprintf(d.out, "%6.2f s  %-20s  %s\n", time.Since(before).Seconds(), step.what, strings.ReplaceAll(said, "\n", "\n"+strings.Repeat(" ", 32)))
	}
	fmt.Fprintf(d.out, "%6.2f s  in all\n", time.Since(d.start).Seconds())
	if stay {
		d.sayCommands()
		<-ctx.Done()
		fmt.Fprintln(d.out, "\nending, and removing everything")
	}
	return nil
}

// end ends all and removes what was written.
func (d *demo) end() error {
	var errs []error
	for _, one := range []*daemon{d.laptop, d.nas, d.gateway} {
		if one != nil {
			errs = append(errs, one.end())
		}
	}
	if d.ca != nil {
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		defer cancel()
		errs = append(errs, d.ca.end(ctx))
	}
	return errors.Join(append(errs, os.RemoveAll(d.dir))...)
}

func local(port uint16) netip.AddrPort {
	return netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 0, 1}), port)
}

// file is the path of a file of the demo's own.
func (d *demo) file(name string) string { return filepath.Join(d.dir, name) }

// startCA runs the CA, and writes down by what it and its certificates are believed.
func (d *demo) startCA(context.Context) (string, error) {
	var err error
	if d.ca, err = startAuthority(local(d.ports.dns)); err != nil {
		return "", err
	}
	err = errors.Join(os.WriteFile(d.file("ca.pem"), d.ca.root, 0o600), os.WriteFile(d.file("acme.pem"), d.ca.httpsRoot, 0o600))
	return "Pebble, which speaks ACME as Let's Encrypt does, at " + d.ca.directory, err
}

// config is what all machines have in common: nothing of this machine is changed, and certificates come from the CA.
func (d *demo) config() string {
	return fmt.Sprintf(`dns: {os: "off", stub: "127.0.0.1:0", containers: "off", portal: "off"}
certs: {ca: %q, root: %q, resolvers: ["%s"]}
`, d.ca.directory, d.file("acme.pem"), local(d.ports.dns))
}

// startGateway runs the machine that has a public address, which is loopback's here.
func (d *demo) startGateway(ctx context.Context) (string, error) {
	config := fmt.Sprintf(`node: edge
%stunnel: {mode: userspace, port: %d, proxy: "off"}
gateway:
  zone: %s
  public: [127.0.0.1]
  listen: [127.0.0.1]
  ports: {https: %d, http: %d, dns: %d}
  issuers: ["%s=%s"]
`, d.config(), d.ports.wireGuard, zone, d.ports.https, d.ports.http, d.ports.dns, d.ca.host, caaName)
	var err error
	if d.gateway, err = newDaemon(d.dir, "edge", config); err != nil {
		return "", err
	}
	if err := d.gateway.start(ctx, d.log); err != nil {
		return "", err
	}
	return fmt.Sprintf("of %s: WireGuard at %s, name server at %s, visitors at %s", zone, local(d.ports.wireGuard), local(d.ports.dns), local(d.ports.https)), nil
}

// join has two machines join by invites, both at the same time.
func (d *demo) join(ctx context.Context) (string, error) {
	errs := make([]error, 2)
	var wait sync.WaitGroup
	wait.Go(func() { d.laptop, errs[0] = d.joinOne(ctx, "laptop", d.ports.laptopProxy) })
	wait.Go(func() { d.nas, errs[1] = d.joinOne(ctx, "nas", d.ports.nasProxy) })
	wait.Wait()
	if err := errors.Join(errs...); err != nil {
		return "", err
	}
	// Whoever speaks to a node that has not heard of it yet is not answered.
	behind, err := d.gateway.Behind(ctx)
	if err == nil && len(behind) > 0 {
		err = context.Cause(ctx)
	}
	if err != nil {
		return "", fmt.Errorf("waiting for %s to hear of the others: %w", strings.Join(behind, " and "), err)
	}
	return fmt.Sprintf("by invites, over WireGuard inside each process: %s is %s, %s is %s",
		d.laptop.name, addressOf(d.laptop.ready, "laptop"), d.nas.name, addressOf(d.nas.ready, "nas")), nil
}

// joinOne does what `meshdns gateway invite`, `meshdns join` and `meshdns up` do.
func (d *demo) joinOne(ctx context.Context, name string, proxy uint16) (*daemon, error) {
	one, err := newDaemon(d.dir, name, fmt.Sprintf("%stunnel: {mode: userspace, port: 0, proxy: \"%s\"}\n", d.config(), local(proxy)))
	if err != nil {
		return nil, err
	}
	invite, err := d.gateway.Invite(ctx, name, nil, 0, false)
	if err != nil {
		return one, err
	}
	if _, err := one.paths.Join(ctx, invite.Invite, "", nil); err != nil {
		return one, err
	}
	// WireGuard takes initiations that come too close for a replay: the next one waits until the last has been seen.
	if err := poll(ctx, func() (bool, error) { return d.gateway.hasJoined(ctx, name) }); err != nil {
		return one, err
	}
	return one, one.start(ctx, d.log)
}

// hasJoined reports whether a gateway has a node, whose place is no longer pending.
func (d *daemon) hasJoined(ctx context.Context, name string) (bool, error) {
	nodes, err := d.Nodes(ctx)
	for _, one := range nodes.Nodes {
		if one.Name == name && one.State == "node" {
			return true, nil
		}
	}
	return false, err
}

// addressOf is a node's address as another one has it in its map.
func addressOf(s node.Status, name string) netip.Addr {
	for _, one := range s.Nodes {
		if one.Name == name && len(one.Addresses) > 0 {
			return one.Addresses[0]
		}
	}
	return netip.Addr{}
}

// resolve asks the laptop's stub for the nas, as a program does.
func (d *demo) resolve(ctx context.Context) (string, error) {
	stub, err := netip.ParseAddrPort(d.laptop.ready.DNS.Stub)
	if err != nil {
		return "", fmt.Errorf("reading where the stub is: %w", err)
	}
	want, got := addressOf(d.nas.ready, "nas").String(), ""
	err = poll(ctx, func() (bool, error) {
		reply, err := node.Query(ctx, stub, nasName, "A")
		if err != nil || len(reply.Answer) == 0 {
			return false, err // the laptop may not have heard of the nas yet
		}
		got = reply.Answer[0].Data
		return true, nil
	})
	if err == nil && got != want {
		err = fmt.Errorf("the laptop's resolver says that %s is %s, not %s", nasName, got, want)
	}
	return fmt.Sprintf("%s is %s, says the laptop's resolver at %s", nasName, got, stub), err
}

// ping goes from the laptop to the nas.
func (d *demo) ping(ctx context.Context) (string, error) {
	said := ""
	err := poll(ctx, func() (bool, error) {
		reply, err := d.laptop.Ping(ctx, "nas")
		if errors.Is(err, node.ErrTimeout) {
			return false, nil // one that is lost is not asked for again by itself
		}
		way := "directly"
		if reply.Path != "direct" {
			way = "through the gateway's relay, which cannot read it; a direct way is looked for"
		}
		said = fmt.Sprintf("from the laptop to the nas and back in %.1f ms, %s", reply.Latency, way)
		return err == nil, err
	})
	return said, err
}

// certify gets the nas a certificate.
func (d *demo) certify(ctx context.Context) (string, error) {
	challenge := ""
	reply, err := d.nas.Certificate(ctx, d.nas.CertRequest(), func(step, name, detail string) {
		if step == "published" {
			challenge = name
		}
	})
	if err != nil {
		return "", err
	}
	if err := believes(d.ca.root, reply.Chain, nasName); err != nil {
		return "", err
	}
	said := fmt.Sprintf("for %s until %s, proven by dns-01", nasName, reply.NotAfter.Local().Format(time.DateOnly))
	if challenge != "" {
		said += " at " + challenge + ", which the gateway's name server answers"
	}
	return said + "; the key never left the nas", nil
}

// sayCommands prints what to try.
func (d *demo) sayCommands() {
	fmt.Fprintf(d.out, "\nTry, in another terminal:\n\n")
	meshdns := "go run ./cmd/meshdns --socket "
	stub, _ := netip.ParseAddrPort(d.laptop.ready.DNS.Stub)
	for _, line := range []string{
		fmt.Sprintf("curl --cacert %s --resolve %s:%d:127.0.0.1 %s", d.file("ca.pem"), nasName, d.ports.https, d.url),
		fmt.Sprintf("curl --cacert %s --proxy socks5h://%s https://%s/", d.file("ca.pem"), local(d.ports.laptopProxy), nasName),
		fmt.Sprintf("dig @%s -p %d %s", stub.Addr(), stub.Port(), nasName),
		fmt.Sprintf("dig @127.0.0.1 -p %d %s HTTPS    # what the world is told", d.ports.dns, nasName),
		meshdns + d.laptop.Socket + " status",
		meshdns + d.laptop.Socket + " ping nas",
		meshdns + d.laptop.Socket + " dns explain nas",
		meshdns + d.nas.Socket + " cert list",
		meshdns + d.nas.Socket + " serve status",
		meshdns + d.nas.Socket + " funnel --set-path /hello text:hello",
		meshdns + d.gateway.Socket + " gateway nodes",
	} {
		fmt.Fprintln(d.out, line)
	}
	fmt.Fprintf(d.out, "\nConfigurations: %s. Ctrl-C ends it, and removes everything.\n", d.file("*/meshdns.yaml"))
}

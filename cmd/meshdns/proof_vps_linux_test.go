package main_test

import (
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/meshdns/meshdns/node"
)

// filter has the gateway's machine treat packets by a rule of nftables, until the test ends.
func filter(t *testing.T, rules ...string) {
	t.Helper()
	must(t, onVPS("nft", "add", "table", "inet", "f")...)
	must(t, onVPS("nft", "add", "chain", "inet", "f", "in", "{ type filter hook input priority 0 ; }")...)
	for _, rule := range rules {
		must(t, onVPS(append([]string{"nft", "add", "rule", "inet", "f", "in"}, strings.Fields(rule)...)...)...)
	}
	t.Cleanup(func() { // when the test's context has ended
		if out, err := exec.Command("ip", "netns", "exec", "vps", "nft", "delete", "table", "inet", "f").CombinedOutput(); err != nil {
			t.Errorf("deleting the rules: %v\n%s", err, out)
		}
	})
}

// provePortsAreChecked: what a firewall, another program or a clock has wrong is found from outside.
func provePortsAreChecked(t *testing.T) {
	w := newWorld(t)
	gateway := startWorldGateway(t)
	ours := []string{worldZone, "--public", worldOurs + "," + worldOurs6}
	for _, row := range []struct {
		name, rule string
		wants      []string
	}{
		{"UDP is filtered", "meta nfproto ipv4 udp dport 53 drop", []string{"udp: " + worldOurs + " port 53/udp: no answer | open 53/udp in the firewalls"}},
		{"TCP is filtered", "meta nfproto ipv4 tcp dport 53 drop", []string{"tcp: " + worldOurs + " port 53/tcp: no answer | open 53/tcp in the firewalls"}},
		{"443 is filtered", "meta nfproto ipv6 tcp dport 443 drop", []string{"443: " + worldOurs6 + " port 443/tcp: no answer | open 443/tcp in the firewalls"}},
		{"443 is refused", "meta nfproto ipv4 tcp dport 443 reject with tcp reset", []string{"443: " + worldOurs + " port 443/tcp: nothing listens there | meshdns status"}},
		{"WireGuard's port is refused", "meta nfproto ipv4 udp dport 41642 reject", []string{"wireguard: " + worldOurs + " port 41642/udp: nothing listens there | meshdns up"}},
		{"the relay's port is filtered", "udp dport 41643 drop", nil},
	} {
		t.Run(row.name, func(t *testing.T) {
			filter(t, row.rule)
			fromOutside(t, ours...).wants(t, row.wants...)
		})
	}
	t.Run("a node without UDP", func(t *testing.T) { proveBlockedNodeChecks(t) })
	t.Run("this clock is an hour behind", func(t *testing.T) {
		endProgram(w.named)
		endProgram(w.root)
		above := knot(t, []string{"faketime", "-f", "+1h"}, "[ "+worldRoot+"@53, 198.51.100.1@53, "+worldParent+"@53 ]", ".", "root.zone", "org", "org.zone", "example.org", "example.zone")
		w.await(t)
		fromOutside(t, ours...).wants(t, "clock: this machine's clock is 1h0m | timedatectl",
			"clock: the gateway's clock ("+worldOurs+") is 1h0m", "clock: the gateway's clock ("+worldOurs6+") is 1h0m") // they are one machine here
		endProgram(above)
	})
	gateway.end(t, syscall.SIGTERM)
	knot(t, nil, "[ "+worldRoot+"@53, 198.51.100.1@53, "+worldParent+"@53 ]", ".", "root.zone", "org", "org.zone", "example.org", "example.zone")
	w.await(t)
	t.Run("the gateway's clock is an hour behind", func(t *testing.T) {
		writeFile(t, "/tmp/named/ours.zone", "$TTL 60\n"+worldZone+". SOA ns1."+worldZone+". h."+worldZone+". 1 3600 600 86400 60\n"+worldGood)
		knot(t, onVPS("faketime", "-f", "-1h"), "[ "+worldOurs+"@53, "+worldOurs6+"@53 ]", worldZone, "ours.zone")
		eventually(t, readyTimeout, "the zone", func() error { return asks(worldOurs+":53", "ns1."+worldZone, worldOurs) })
		run := fromOutside(t, ours...)
		if err := run.has("clock", "fail", "the gateway's clock ("+worldOurs+") is 1h0m"); err != nil {
			t.Error(err)
		}
	})
}

// joinWorld has a machine of the world join, and start: in a namespace, or here if that is empty.
func joinWorld(t *testing.T, name, namespace, config string) (flags []string, d *daemon) {
	t.Helper()
	in := func(args ...string) []string {
		if namespace == "" {
			return args
		}
		return append([]string{"ip", "netns", "exec", namespace}, args...)
	}
	invite := must(t, onVPS(append([]string{program, "gateway", "invite", name}, gatewayFlags()...)...)...)
	word, _, _ := strings.Cut(invite, "\n")
	dir := "/tmp/" + name
	writeFile(t, dir+"/invite", word+"\n")
	writeFile(t, dir+"/meshdns.yaml", config)
	flags = []string{"--config", dir + "/meshdns.yaml", "--state-dir", dir + "/state", "--socket", dir + "/s"}
	must(t, in(append([]string{program, "join", "--file", dir + "/invite"}, flags...)...)...)
	d = background(t, in(append([]string{program, "up"}, flags...)...)...)
	ready(t, d, dir+"/s")
	return flags, d
}

const worldNode = "dns: {os: \"off\", stub: \"127.0.0.77:5301\"}\ntunnel: {mode: userspace, port: 41700, proxy: \"off\"}\n"

// proveBlockedNodeChecks: a node that has to take TLS says which ports to open.
func proveBlockedNodeChecks(t *testing.T) {
	flags, d := joinWorld(t, "far", "", worldNode)
	d.end(t, syscall.SIGTERM)
	filter(t, "udp dport { 41642, 41643 } drop")
	d = background(t, append([]string{program, "up"}, flags...)...)
	eventually(t, time.Minute, "packets to go over TLS", func() error {
		s, err := node.Client{Socket: "/tmp/far/s"}.Status(t.Context())
		if err == nil && !strings.Contains(fmt.Sprint(s.Problems), "over TLS") {
			err = errors.New("they do not")
		}
		return err
	})
	run := look(t, append([]string{program, "gateway", "check", "--json"}, flags...)...)
	for _, want := range []string{"wireguard: 41642/udp: nothing comes back | open 41642/udp", "relay: 41643/udp: nothing comes back | open 41643/udp"} {
		name, rest, _ := strings.Cut(want, ": ")
		detail, hint, _ := strings.Cut(rest, " | ")
		if err := run.has(name, "fail", detail); err != nil || !strings.Contains(run.text, hint) {
			t.Errorf("%v; want the hint %s", err, hint)
		}
	}
	d.end(t, syscall.SIGTERM)
}

// visit is the certificate that a visitor gets at 443, and the page.
func visit(t *testing.T, at, name string) (certificate, page string, err error) {
	t.Helper()
	transport := &http.Transport{
		DisableKeepAlives: true,
		DialTLS: func(network, _ string) (net.Conn, error) {
			c, err := tls.DialWithDialer(&net.Dialer{Timeout: 5 * time.Second}, network, net.JoinHostPort(at, "443"), &tls.Config{ServerName: name, InsecureSkipVerify: true})
			if err == nil {
				certificate = c.ConnectionState().PeerCertificates[0].Subject.CommonName
			}
			return c, err
		},
	}
	client := http.Client{Transport: transport, Timeout: commandTimeout}
	resp, err := client.Get("https://" + name + "/")
	if err != nil {
		return certificate, "", err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, 4096))
	return certificate, string(body), err
}

// startSite runs nginx with a site as a VPS has it.
func startSite(t *testing.T, listen string) *daemon {
	t.Helper()
	writeFile(t, "/tmp/site/index.html", "the site\n")
	must(t, "openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "30", "-subj", "/CN=site.example", "-keyout", "/tmp/site/key", "-out", "/tmp/site/cert")
	writeFile(t, "/tmp/site/nginx.conf", `daemon off;
error_log stderr;
pid /tmp/site/pid;
events { }
http {
  access_log off;
  server {
    listen `+listen+` ssl;
    server_name site.example;
    ssl_certificate /tmp/site/cert;
    ssl_certificate_key /tmp/site/key;
    root /tmp/site;
  }
}
`)
	must(t, "chmod", "-R", "a+rX", "/tmp/site")
	return background(t, onVPS("nginx", "-c", "/tmp/site/nginx.conf")...)
}

func endProgram(d *daemon) {
	syscall.Kill(-d.cmd.Process.Pid, syscall.SIGKILL)
	<-d.ended
}

// proveVPSKeepsItsSites: a machine that has a web server and a name server already becomes a gateway beside them.
func proveVPSKeepsItsSites(t *testing.T) {
	newWorld(t)
	held := startSite(t, "443")
	resolver := background(t, onVPS("dnsmasq", "-k", "-C", "/dev/null", "--no-resolv", "--no-hosts", "--pid-file=")...)
	site := func(at, name string) error {
		certificate, page, err := visit(t, at, name)
		if err == nil && (certificate != "site.example" || page != "the site\n") {
			err = fmt.Errorf("got the certificate of %q and %q", certificate, page)
		}
		return err
	}
	eventually(t, readyTimeout, "the site", func() error { return site(worldOurs, "site.example") })
	writeFile(t, "/tmp/vps/meshdns.yaml", "node: edge\ndns: {os: \"off\", stub: \"127.0.0.77:5300\"}\n")
	initGateway := onVPS(append([]string{program, "gateway", "init", "--zone", worldZone, "--public", worldOurs}, gatewayFlags()...)...)
	t.Run("init names who has the ports", func(t *testing.T) {
		out := must(t, initGateway...)
		for _, want := range []string{worldOurs + ":53 is held by dnsmasq (pid ", worldOurs + ":443 is held by nginx (pid ", "set gateway.listen to an address that is free"} {
			if !strings.Contains(out, want) {
				t.Errorf("no %q in\n%s", want, out)
			}
		}
	})
	t.Run("it runs without them and says so", func(t *testing.T) {
		d := startWorldGateway(t)
		eventually(t, readyTimeout, "the programs to be named", func() error {
			s, err := node.Client{Socket: "/tmp/vps/s"}.Status(t.Context())
			said := strings.Join(s.Problems, "\n")
			if err == nil && (!strings.Contains(said, "nginx (pid ") || !strings.Contains(said, "dnsmasq (pid ")) {
				err = errors.New(said)
			}
			return err
		})
		run := fromOutside(t, worldZone, "--public", worldOurs)
		for name, detail := range map[string]string{"443": "what answers is not the gateway", "udp": "does not serve", "tcp": "does not serve"} {
			if err := run.has(name, "fail", detail); err != nil {
				t.Error(err)
			}
		}
		d.end(t, syscall.SIGTERM)
	})
	t.Run("an address of its own", func(t *testing.T) {
		must(t, "ip", "-n", "vps", "addr", "add", "203.0.113.6/24", "dev", "v0")
		endProgram(held)
		endProgram(resolver)
		beside := startSite(t, worldOurs+":443")
		name := background(t, onVPS("dnsmasq", "-k", "-C", "/dev/null", "--no-resolv", "--no-hosts", "--pid-file=", "--bind-interfaces", "--listen-address="+worldOurs)...)
		writeFile(t, "/tmp/vps/meshdns.yaml", "node: edge\ndns: {os: \"off\", stub: \"127.0.0.77:5300\"}\ngateway: {zone: "+worldZone+", public: [203.0.113.6], listen: [203.0.113.6]}\n")
		if out := must(t, onVPS(append([]string{program, "gateway", "init", "--zone", worldZone, "--public", "203.0.113.6"}, gatewayFlags()...)...)...); strings.Contains(out, "is held by") {
			t.Errorf("printed\n%s", out)
		}
		d := startWorldGateway(t)
		eventually(t, readyTimeout, "the site", func() error { return site(worldOurs, "site.example") })
		run := fromOutside(t, worldZone, "--public", "203.0.113.6")
		for _, name := range []string{"443", "udp", "tcp"} {
			if err := run.has(name, "ok", "203.0.113.6"); err != nil {
				t.Error(err)
			}
		}
		d.end(t, syscall.SIGTERM)
		endProgram(beside)
		endProgram(name)
	})
	t.Run("the site behind", func(t *testing.T) {
		startSite(t, "127.0.0.1:8443")
		writeFile(t, "/tmp/vps/meshdns.yaml", "node: edge\ndns: {os: \"off\", stub: \"127.0.0.77:5300\"}\ngateway: {zone: "+worldZone+", public: ["+worldOurs+"], fallback: \"tcp://127.0.0.1:8443\"}\n")
		d := startWorldGateway(t)
		for _, name := range []string{"site.example", "unknown.example", "nas." + worldZone} {
			eventually(t, readyTimeout, "the site at "+name, func() error { return site(worldOurs, name) })
		}
		run := fromOutside(t, worldZone, "--public", worldOurs)
		if err := run.has("443", "ok", "the gateway answers"); err != nil { // nodes without UDP find it all the same
			t.Error(err)
		}
		d.end(t, syscall.SIGTERM)
	})
}

// proveGatewayBehindNAT: a provider maps the public address to a private one, which is all that the gateway's links know. Two
// nodes behind NATs of their own still meet there.
func proveGatewayBehindNAT(t *testing.T) {
	newWorld(t)
	for line := range strings.Lines(`ip -n vps addr flush dev v0
ip -n vps addr add 10.20.0.5/24 dev v0
ip addr add 10.20.0.1/24 dev w0
ip -n vps route add default via 10.20.0.1
ip netns add home
ip link add h0 type veth peer name h1 netns home
ip addr add 192.168.7.1/24 dev h0
ip link set h0 up
ip -n home addr add 192.168.7.2/24 dev h1
ip -n home link set h1 up
ip -n home link set lo up
ip -n home route add default via 192.168.7.1
sysctl -qw net.ipv4.ip_forward=1
nft add table ip nat
nft add chain ip nat pre { type nat hook prerouting priority -100 ; }
nft add chain ip nat out { type nat hook output priority -100 ; }
nft add chain ip nat post { type nat hook postrouting priority 100 ; }
nft add rule ip nat pre ip daddr ` + worldOurs + ` dnat to 10.20.0.5
nft add rule ip nat out ip daddr ` + worldOurs + ` dnat to 10.20.0.5
nft add rule ip nat post ip saddr 10.20.0.5 oifname != w0 snat to ` + worldOurs + `
nft add rule ip nat post ip saddr 192.168.7.2 oifname w0 snat to 203.0.113.1
`) {
		must(t, strings.Fields(line)...)
	}
	writeFile(t, "/tmp/vps/meshdns.yaml", "node: edge\ndns: {os: \"off\", stub: \"127.0.0.77:5300\"}\n")
	must(t, onVPS(append([]string{program, "gateway", "init", "--zone", worldZone, "--public", worldOurs}, gatewayFlags()...)...)...)
	gateway := startWorldGateway(t)
	if !strings.Contains(gateway.log.String(), "public at [10.20.0.5]") {
		t.Errorf("it listens elsewhere:\n%s", gateway.log.String())
	}
	run := fromOutside(t, worldZone, "--public", worldOurs)
	for _, name := range []string{"udp", "tcp", "443"} {
		if err := run.has(name, "ok", worldOurs); err != nil {
			t.Error(err)
		}
	}
	run = look(t, onVPS(append([]string{program, "gateway", "check", "--json"}, gatewayFlags()...)...)...)
	if err := errors.Join(run.has("server", "skip", "does not reach its own public address"), run.has("443", "skip", "does not reach its own public address")); err != nil || run.code != 6 && run.code != 0 {
		t.Error(err)
	}
	near, _ := joinWorld(t, "near", "", worldNode)
	_, _ = joinWorld(t, "far", "home", strings.ReplaceAll(worldNode, "5301", "5302"))
	eventually(t, time.Minute, "the gateway and its relay to be heard at the public address", func() error {
		run := look(t, append([]string{program, "gateway", "check", "--json"}, near...)...)
		return errors.Join(run.has("wireguard", "ok", worldOurs), run.has("relay", "ok", worldOurs))
	})
	eventually(t, time.Minute, "one node to reach the other", func() error {
		out, code := output(t, append([]string{program, "ping", "far"}, near...)...)
		if code != 0 {
			return errors.New(out)
		}
		return nil
	})
}

// proveGatewayWithIPv6Alone: a gateway that has no IPv4 at all, and a node that has none either.
func proveGatewayWithIPv6Alone(t *testing.T) {
	w := newWorld(t)
	w.says(t, worldZone+". NS ns1."+worldZone+".\nns1."+worldZone+". AAAA "+worldOurs6+"\n")
	for line := range strings.Lines(`ip -n vps -4 addr flush dev v0
ip netns add home
ip link add h0 type veth peer name h1 netns home
ip addr add 2001:db8:7::1/64 dev h0 nodad
ip link set h0 up
ip -n home addr add 2001:db8:7::2/64 dev h1 nodad
ip -n home link set h1 up
ip -n home link set lo up
ip -n home -6 route add default via 2001:db8:7::1
sysctl -qw net.ipv6.conf.all.forwarding=1
`) {
		must(t, strings.Fields(line)...)
	}
	writeFile(t, "/tmp/vps/meshdns.yaml", "node: edge\ndns: {os: \"off\", stub: \"127.0.0.77:5300\"}\n")
	out := must(t, onVPS(append([]string{program, "gateway", "init", "--zone", worldZone, "--public", worldOurs6}, gatewayFlags()...)...)...)
	if !strings.Contains(out, "\nns1.foo-bar  AAAA  "+worldOurs6+"\n") || strings.Contains(out, "  A ") {
		t.Errorf("printed\n%s", out)
	}
	gateway := startWorldGateway(t)
	if !strings.Contains(gateway.log.String(), "public at ["+worldOurs6+"]") {
		t.Errorf("it listens elsewhere:\n%s", gateway.log.String())
	}
	run := fromOutside(t, worldZone, "--public", worldOurs6)
	run.wants(t)
	if err := run.has("glue", "ok", worldOurs6); err != nil {
		t.Error(err)
	}
	look(t, onVPS(append([]string{program, "gateway", "check", "--json"}, gatewayFlags()...)...)...).wants(t)
	near, _ := joinWorld(t, "near", "", worldNode)
	_, _ = joinWorld(t, "far", "home", strings.ReplaceAll(worldNode, "5301", "5302"))
	eventually(t, time.Minute, "one node to reach the other", func() error {
		out, code := output(t, append([]string{program, "ping", "far"}, near...)...)
		if code != 0 {
			return errors.New(out)
		}
		return nil
	})
	eventually(t, readyTimeout, "the relay to be heard", func() error {
		run := look(t, append([]string{program, "gateway", "check", "--json"}, near...)...)
		return errors.Join(run.has("wireguard", "ok", worldOurs6), run.has("relay", "ok", worldOurs6))
	})
}

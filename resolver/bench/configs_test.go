//go:build bench

package bench

import (
	"fmt"
	"path/filepath"
	"strconv"
	"testing"
)

// peers are all that are known, meshdns first. Each runs with one thread, and forwards to the upstream.
func peers() []peer {
	return []peer{
		{"meshdns", "", nil, meshdnsConfig},
		{"unbound", "unbound", nil, unboundConfig},
		{"dnsmasq", "dnsmasq", nil, dnsmasqConfig},
		{"knot", "knotd", []string{"local", "nx"}, func(t *testing.T, c config) []string {
			write(t, filepath.Join(c.dir, "tailnet.zone"), zoneFile())
			return knotConfig(t, c, zone+".", "tailnet.zone")
		}},
		{"named", "named", nil, namedConfig},
		{"kresd", "kresd", nil, kresdConfig},
	}
}

func meshdnsConfig(t *testing.T, c config) []string {
	file, tailnet := filepath.Join(c.dir, "meshdns.yaml"), filepath.Join(c.dir, "map.yaml")
	write(t, tailnet, "zone: "+zone+"\nnodes:\n"+
		everyNode(func(i int) string { return fmt.Sprintf("  n%d: {addresses: [%s]}\n", i, nodeAddr(i)) }))
	write(t, file, fmt.Sprintf("node: n0\nmap: %s\ntunnel: off\ndns: {os: off, stub: \"127.0.0.1:%d\", upstreams: [\"127.0.0.1:%d\"]}\n",
		tailnet, c.port, c.upstream))
	return []string{"up", "--config", file, "--state-dir", filepath.Join(c.dir, "state"), "--socket", filepath.Join(c.dir, "sock")}
}

func unboundConfig(t *testing.T, c config) []string {
	file := filepath.Join(c.dir, "unbound.conf")
	write(t, file, fmt.Sprintf(`server:
  interface: 127.0.0.1
  port: %d
  directory: "%s"
  do-daemonize: no
  chroot: ""
  username: ""
  pidfile: ""
  use-syslog: no
  logfile: ""
  num-threads: 1
  module-config: "iterator"
  do-not-query-localhost: no
  outgoing-range: 4096
  num-queries-per-thread: 2048
  msg-cache-size: 32m
  rrset-cache-size: 64m
  local-zone: "%s." static
  local-data: "%s. 60 SOA ns.%s. host.%s. 1 3600 600 86400 60"
%s
remote-control:
  control-enable: no
forward-zone:
  name: "."
  forward-addr: 127.0.0.1@%d
`, c.port, c.dir, zone, zone, zone, zone,
		everyNode(func(i int) string { return fmt.Sprintf("  local-data: \"%s. 60 A %s\"\n", nodeName(i), nodeAddr(i)) }), c.upstream))
	return []string{"-d", "-c", file}
}

func dnsmasqConfig(t *testing.T, c config) []string {
	hosts := filepath.Join(c.dir, "hosts")
	write(t, hosts, everyNode(func(i int) string { return nodeAddr(i) + " " + nodeName(i) + "\n" }))
	return []string{
		"-k", "--conf-file=/dev/null", "--user=root", "--no-resolv", "--no-hosts", "--bind-interfaces", "--listen-address=127.0.0.1",
		"--port=" + strconv.Itoa(c.port), "--local=/" + zone + "/", "--addn-hosts=" + hosts, "--pid-file=", "--log-facility=-",
		"--cache-size=10000", "--dns-forward-max=1000", fmt.Sprintf("--server=127.0.0.1#%d", c.upstream),
	}
}

// knotConfig is an authoritative server for one zone; both the upstream and a peer.
func knotConfig(t *testing.T, c config, zone, file string) []string {
	path := filepath.Join(c.dir, "knot.conf")
	write(t, path, fmt.Sprintf(`server:
  rundir: "%[1]s"
  listen: 127.0.0.1@%[2]d
  udp-workers: 1
  tcp-workers: 1
  background-workers: 1
database:
  storage: "%[1]s"
log:
  - target: stderr
    any: warning
zone:
  - domain: "%[3]s"
    storage: "%[1]s"
    file: "%[4]s"
    journal-content: none
    zonefile-sync: -1
`, c.dir, c.port, zone, file))
	return []string{"-c", path}
}

func namedConfig(t *testing.T, c config) []string {
	file := filepath.Join(c.dir, "named.conf")
	write(t, filepath.Join(c.dir, "tailnet.zone"), zoneFile())
	write(t, file, fmt.Sprintf(`options {
  directory "%[1]s";
  pid-file none;
  session-keyfile none;
  listen-on port %[2]d { 127.0.0.1; };
  listen-on-v6 { none; };
  forwarders { 127.0.0.1 port %[3]d; };
  forward only;
  recursion yes;
  dnssec-validation no;
  empty-zones-enable no;
  minimal-responses yes;
};
controls { };
zone "%[4]s" { type primary; file "tailnet.zone"; };
`, c.dir, c.port, c.upstream, zone))
	return []string{"-f", "-n", "1", "-c", file}
}

func kresdConfig(t *testing.T, c config) []string {
	file, hosts := filepath.Join(c.dir, "kresd.conf"), filepath.Join(c.dir, "hosts")
	write(t, hosts, everyNode(func(i int) string { return nodeAddr(i) + " " + nodeName(i) + "\n" }))
	write(t, file, fmt.Sprintf(`net.listen('127.0.0.1', %d, { kind = 'dns' })
net.ipv6 = false
trust_anchors.remove('.')
modules = { 'hints > iterate' }
hints.add_hosts('%s')
cache.size = 100 * MB
policy.add(policy.all(policy.FORWARD('127.0.0.1@%d')))
`, c.port, hosts, c.upstream))
	return []string{"-n", "-c", file, c.dir}
}

package main_test

import (
	"fmt"
	"net/netip"
	"os"
	"slices"
	"strings"
	"syscall"
	"testing"
)

// serviceAddr is the highest address of the proof's range.
const serviceAddr = "100.127.255.254"

// bridgeUp makes what dockerd makes: a bridge, and a namespace that is joined to it as a container is.
func bridgeUp(t *testing.T) {
	t.Helper()
	run(t, `ip link add docker0 type bridge
ip addr add 172.17.0.1/16 dev docker0
ip link set docker0 up
ip netns add container
ip link add vc0 type veth peer name eth0 netns container
ip link set vc0 master docker0 up
ip -n container addr add 172.17.0.2/16 dev eth0
ip -n container link set eth0 up
ip -n container link set lo up
ip -n container route add default via 172.17.0.1
`)
}

func run(t *testing.T, lines string) {
	t.Helper()
	for line := range strings.Lines(lines) {
		must(t, strings.Fields(line)...)
	}
}

// copyConf gives the container the machine's resolv.conf as Docker does for one on docker0: without loopback servers, and
// with public ones if none are left. ip-netns(8) mounts it over the container's own.
func copyConf(t *testing.T) (servers []string) {
	t.Helper()
	data, err := os.ReadFile(resolvConf)
	if err != nil {
		t.Fatal(err)
	}
	var text strings.Builder
	for line := range strings.Lines(string(data)) {
		if words := strings.Fields(line); len(words) > 1 && words[0] == "nameserver" {
			if addr, err := netip.ParseAddr(words[1]); err != nil || addr.IsLoopback() {
				continue
			}
			servers = append(servers, words[1])
		}
		text.WriteString(line)
	}
	if len(servers) == 0 {
		servers = []string{"8.8.8.8"}
		text.WriteString("nameserver 8.8.8.8\n")
	}
	writeFile(t, "/etc/netns/container/resolv.conf", text.String())
	return servers
}

// inside asks from the container, by its own resolv.conf and as glibc does.
func inside(t *testing.T, name, addr string) error {
	t.Helper()
	for _, args := range [][]string{{"dig", "+short", "+search"}, {"dig", "+short", "+search", "+tcp"}, {"getent", "ahostsv4"}} {
		args = append(append([]string{"ip", "netns", "exec", "container"}, args...), name)
		if out, code := output(t, args...); code != 0 || !strings.HasPrefix(out, addr) {
			return fmt.Errorf("%v: exit code %d, %q; want %s", args, code, out, addr)
		}
	}
	return nil
}

// once asks server for a name of the tailnet, from an address in a namespace, and does not ask again.
func once(t *testing.T, ns, from, server string, more ...string) (string, int) {
	t.Helper()
	args := []string{"ip", "netns", "exec", ns, "dig", "+short", "+tries=1", "+time=1", "-b", from, "@" + server, nasName}
	return output(t, append(args, more...)...)
}

// onLo reports whether lo has the service address.
func onLo(t *testing.T) bool {
	t.Helper()
	return strings.Contains(must(t, "ip", "-4", "addr", "show", "dev", "lo"), " "+serviceAddr+"/32 ")
}

// proveContainersAreAnswered has a container with a copy of the machine's resolv.conf resolve names of the tailnet and from
// outside, and whatever way the node ends, nothing of the address is left.
func proveContainersAreAnswered(t *testing.T) {
	newMachine(t)
	before := snapshot(t)
	d, status := up(t)
	if onLo(t) || status.DNS.Takeover.State != "on" {
		t.Errorf("without an engine lo has a service address, or the takeover is %s", status.DNS.Takeover.State)
	}
	bridgeUp(t) // the engine starts after us
	eventually(t, readyTimeout, "the service address to be written", func() error {
		if servers := copyConf(t); !slices.Equal(servers, []string{serviceAddr}) {
			return fmt.Errorf("a container gets %v", servers)
		}
		return nil
	})
	answered(t)
	if out, code := output(t, program, "doctor"); code != 0 || !strings.Contains(out, serviceAddr+" answers them names of the tailnet and from outside; on docker0 172.17.0.0/16") {
		t.Errorf("doctor: exit code %d\n%s", code, out)
	}
	if out := must(t, program, "status"); !strings.Contains(out, serviceAddr+": all; networks docker0 172.17.0.0/16") {
		t.Errorf("status: %s", out)
	}
	for name, undo := range map[string]func(d *daemon){
		"SIGTERM":              func(d *daemon) { d.end(t, syscall.SIGTERM) },
		"kill -9, dns restore": func(d *daemon) { d.kill(); must(t, program, "dns", "restore") },
		"kill -9, next start, SIGTERM": func(d *daemon) {
			d.kill()
			next, _ := up(t)
			answered(t)
			next.end(t, syscall.SIGTERM)
		},
	} {
		t.Run(name, func(t *testing.T) {
			if d == nil {
				d, _ = up(t)
				answered(t)
			}
			undo(d)
			d = nil
			if onLo(t) {
				t.Error("the service address is left on lo")
			}
			// The snapshot is of before the directory that ip-netns(8) reads.
			if after := strings.Replace(snapshot(t), " netns ", " ", 1); after != before {
				t.Errorf("it is not as it was\nbefore:\n%s\nafter:\n%s", before, after)
			}
		})
	}
	t.Run("networks come and go", networksAreFollowed)
	t.Run("forward", func(t *testing.T) {
		writeFile(t, "/etc/meshdns/meshdns.yaml", proofConfig+"dns: {containers: forward}\n")
		d, _ := up(t)
		copyConf(t)
		if err := inside(t, outsideName, outsideAddr); err != nil {
			t.Error(err)
		}
		if out, _ := output(t, "ip", "netns", "exec", "container", "dig", nasName); !strings.Contains(out, "status: NXDOMAIN") {
			t.Errorf("of a name of the tailnet a container hears\n%s", out)
		}
		if err := libc(t, nasName, nasAddr); err != nil {
			t.Error(err)
		}
		d.end(t, syscall.SIGTERM)
	})
	t.Run("off", func(t *testing.T) {
		writeFile(t, "/etc/meshdns/meshdns.yaml", proofConfig+"dns: {containers: \"off\"}\n")
		d, _ := up(t)
		if servers := copyConf(t); onLo(t) || !slices.Equal(servers, []string{"8.8.8.8"}) {
			t.Errorf("there is a service address, or a container gets %v", servers)
		}
		d.end(t, syscall.SIGTERM)
	})
}

// answered checks what the container and the machine itself find.
func answered(t *testing.T) {
	t.Helper()
	if servers := copyConf(t); !slices.Equal(servers, []string{serviceAddr}) {
		t.Errorf("a container gets %v, want the service address alone", servers)
	}
	if !onLo(t) {
		t.Error("lo does not have the service address")
	}
	for name, addr := range map[string]string{nasName: nasAddr, "nas": nasAddr, outsideName: outsideAddr} {
		if err := inside(t, name, addr); err != nil {
			t.Error(err)
		}
		if err := libc(t, name, addr); err != nil {
			t.Error(err)
		}
	}
}

// networksAreFollowed replaces the container's network under a running node, and takes the address away from lo.
func networksAreFollowed(t *testing.T) {
	d, _ := up(t)
	answered(t)
	run(t, `ip addr flush dev docker0
ip addr add 172.30.0.1/24 dev docker0
ip -n container addr flush dev eth0
ip -n container addr add 172.30.0.2/24 dev eth0
ip -n container route add default via 172.30.0.1
`)
	eventually(t, readyTimeout, "the bridge's new network to be answered", func() error { return inside(t, nasName, nasAddr) })
	must(t, "ip", "addr", "del", serviceAddr+"/32", "dev", "lo")
	eventually(t, readyTimeout, "the address to be put back", func() error { return inside(t, nasName, nasAddr) })
	must(t, "ip", "link", "set", "docker0", "down")
	run(t, `ip link set docker0 name somebridge
ip link set somebridge up
ip -n container route replace default via 172.30.0.1
`)
	eventually(t, readyTimeout, "a bridge that is none of an engine's to be left out", func() error {
		if out, code := once(t, "container", "172.30.0.2", serviceAddr); code == 0 {
			return fmt.Errorf("it is answered: %q", out)
		}
		return nil
	})
	d.end(t, syscall.SIGTERM)
	run(t, `ip link set somebridge down
ip link set somebridge name docker0
ip addr flush dev docker0
ip addr add 172.17.0.1/16 dev docker0
ip link set docker0 up
ip -n container addr flush dev eth0
ip -n container addr add 172.17.0.2/16 dev eth0
ip -n container route add default via 172.17.0.1
`)
}

// proveNeighboursAreNot tries what an address on lo is open to: a machine on another link that routes to it, sources that
// are not the bridge's, and a bridge that a neighbour is behind. Not a packet comes back.
func proveNeighboursAreNot(t *testing.T) {
	newMachine(t)
	bridgeUp(t)
	run(t, `ip netns add neighbour
ip link add vn0 type veth peer name eth0 netns neighbour
ip addr add 203.0.113.1/24 dev vn0
ip link set vn0 up
ip -n neighbour addr add 203.0.113.2/24 dev eth0
ip -n neighbour addr add 172.17.0.9/32 dev lo
ip -n neighbour link set eth0 up
ip -n neighbour link set lo up
ip -n neighbour route add default via 203.0.113.1
ip -n container addr add 198.51.100.66/32 dev lo
ip route add 198.51.100.66/32 dev docker0
ip addr add 192.0.2.200/32 dev lo
sysctl -qw net.ipv4.conf.all.rp_filter=0 net.ipv4.conf.vn0.rp_filter=0 net.ipv4.conf.docker0.rp_filter=0
`)
	writeFile(t, "/etc/meshdns/meshdns.yaml", proofConfig+"dns: {listen: [192.0.2.200]}\n")
	d, _ := up(t)
	answered(t)
	// The attacks work: an address on lo that has no such filter answers all of them.
	for _, from := range []struct{ ns, addr string }{{"neighbour", "203.0.113.2"}, {"container", "198.51.100.66"}} {
		if out, code := once(t, from.ns, from.addr, "192.0.2.200"); code != 0 || out != nasAddr+"\n" {
			t.Errorf("the attack is none: %s at %s hears %q from an address without a filter", from.ns, from.addr, out)
		}
	}
	must(t, "ip", "netns", "exec", "neighbour", "ping", "-c1", "-W2", serviceAddr)
	before := ready(t, d, "/run/meshdns/meshdns.sock").DNS.Queries
	for _, from := range []struct{ ns, addr string }{
		{"neighbour", "203.0.113.2"}, {"neighbour", "172.17.0.9"}, {"container", "198.51.100.66"},
	} {
		for _, more := range [][]string{nil, {"+tcp"}} {
			// A refusal would say that somebody is there.
			if out, code := once(t, from.ns, from.addr, serviceAddr, more...); code == 0 || strings.Contains(out, "refused") || !strings.Contains(out, "timed out") {
				t.Errorf("%s at %s, %v: exit code %d, %q; want silence", from.ns, from.addr, more, code, out)
			}
		}
	}
	if after := ready(t, d, "/run/meshdns/meshdns.sock").DNS.Queries; after != before {
		t.Errorf("%d queries were answered, though to nowhere", after-before)
	}
	// A link that leads out, put into the engine's bridge, brings others into the bridge's network.
	run(t, `ip link add outlet type vxlan id 7 dstport 4789 remote 203.0.113.2
ip link set outlet master docker0 up
`)
	eventually(t, readyTimeout, "a bridge that leads out to be left out", func() error {
		if out, code := once(t, "container", "172.17.0.2", serviceAddr); code == 0 {
			return fmt.Errorf("it hears %q", out)
		}
		return nil
	})
	must(t, "ip", "link", "del", "outlet")
	eventually(t, readyTimeout, "it to be answered again", func() error { return inside(t, nasName, nasAddr) })
	if err := libc(t, nasName, nasAddr); err != nil {
		t.Error(err)
	}
	d.end(t, syscall.SIGTERM)
}

// proveEmbeddedServerStays runs the node as in a container of Docker's: resolv.conf is a mount and names 127.0.0.11, which
// goes on to be asked, and stands there again afterwards.
func proveEmbeddedServerStays(t *testing.T) {
	newMachine(t)
	background(t, "dnsmasq", "-k", "-C", "/dev/null", "--no-resolv", "--no-hosts", "--bind-interfaces", "--listen-address=127.0.0.11", "--server="+upstreamAddr)
	eventually(t, readyTimeout, "the embedded server", func() error { return asks("127.0.0.11:53", outsideName, outsideAddr) })
	const conf = "nameserver 127.0.0.11\nsearch corp.example\noptions ndots:0\n"
	writeFile(t, "/tmp/conf", conf)
	writeFile(t, resolvConf, "")
	must(t, "mount", "--bind", "/tmp/conf", resolvConf)
	before := snapshot(t)
	d, status := up(t)
	if !slices.Equal(status.DNS.Base, []string{"127.0.0.11"}) || status.DNS.Takeover.State != "on" {
		t.Errorf("takeover is %s (%s), base %v", status.DNS.Takeover.State, status.DNS.Takeover.Reason, status.DNS.Base)
	}
	for name, addr := range map[string]string{nasName: nasAddr, "nas": nasAddr, outsideName: outsideAddr} {
		if err := libc(t, name, addr); err != nil {
			t.Error(err)
		}
	}
	d.end(t, syscall.SIGTERM)
	if after := snapshot(t); after != before {
		t.Errorf("it is not as it was\nbefore:\n%s\nafter:\n%s", before, after)
	}
	if err := libc(t, outsideName, outsideAddr); err != nil {
		t.Error(err)
	}
}

// proveEngineGetsTheAddress has a real engine start containers, on its own network and on one that its user made, which
// has a name server of the engine's before ours.
func proveEngineGetsTheAddress(engine string) func(t *testing.T) {
	return func(t *testing.T) {
		newMachine(t)
		before := snapshot(t)
		d, _ := up(t)
		must(t, engine, "network", "create", "lab")
		for name, network := range map[string]string{"plain": "default", "named": "lab"} {
			must(t, "/lab/container.sh", name, network)
			conf := must(t, engine, "exec", name, "cat", "/etc/resolv.conf")
			t.Logf("on the network %s:\n%s", network, conf)
			if network == "default" && !strings.Contains(conf, "nameserver "+serviceAddr+"\n") {
				t.Errorf("its copy is\n%s", conf)
			}
			names := map[string]string{nasName: nasAddr, outsideName: outsideAddr}
			if network == "default" {
				names["nas"] = nasAddr // on the others the engine's ndots:0 or search list is in the way of musl
			}
			for question, addr := range names {
				eventually(t, readyTimeout, question+" to be found in "+name, func() error {
					if out, code := output(t, engine, "exec", name, "/bin/lookup", question); code != 0 || !strings.Contains(out, addr) {
						return fmt.Errorf("exit code %d: %q; want %s", code, out, addr)
					}
					return nil
				})
			}
		}
		d.end(t, syscall.SIGTERM)
		if after := snapshot(t); onLo(t) || after != before {
			t.Errorf("it is not as it was\nbefore:\n%s\nafter:\n%s", before, after)
		}
		must(t, "/lab/container.sh", "later")
		if out, code := output(t, engine, "exec", "later", "/bin/lookup", outsideName); code != 0 || !strings.Contains(out, outsideAddr) {
			t.Errorf("afterwards a container finds %q for %s, exit code %d", out, outsideName, code)
		}
	}
}

// proveEngineBesideResolvedIsTold has systemd-resolved ask us, so that Docker goes by its list of uplinks: status and
// doctor say what containers get, and the command that mends it.
func proveEngineBesideResolvedIsTold(t *testing.T) {
	writeOtherConfig(t)
	bridgeUp(t)
	writeFile(t, "/run/docker.sock", "") // that dockerd runs is known by it
	d, status := up(t)
	if mode := status.DNS.Takeover.Mode; mode != "resolved" || !onLo(t) {
		t.Errorf("the mode is %s; lo has the address: %v", mode, onLo(t))
	}
	out, _ := output(t, program, "doctor")
	if !strings.Contains(out, "those of docker are told to ask "+upstreamAddr+", which do not know the tailnet's names") {
		t.Errorf("doctor: %s", out)
	}
	mend := ""
	for _, c := range ready(t, d, "/run/meshdns/meshdns.sock").DNS.Containers.Copies {
		mend = strings.ReplaceAll(strings.TrimSuffix(c.Mend, " && sudo systemctl restart docker"), "sudo ", "")
	}
	if !strings.Contains(must(t, program, "status"), "to mend: echo ") || mend == "" {
		t.Error("status does not say what mends it")
	}
	must(t, "mkdir", "-p", "/etc/docker")
	must(t, "sh", "-c", mend)
	if out, _ := output(t, program, "doctor"); strings.Contains(out, "those of docker") {
		t.Errorf("after %s doctor says %s", mend, out)
	}
	if out, code := once(t, "container", "172.17.0.2", serviceAddr); code != 0 || out != nasAddr+"\n" {
		t.Errorf("the container hears %q", out)
	}
	d.end(t, syscall.SIGTERM)
	if onLo(t) {
		t.Error("the service address is left on lo")
	}
}

// proveRecordsNameTheAddress has Debian's resolvconf write the file: the service address first, and no other record's
// server behind it.
func proveRecordsNameTheAddress(t *testing.T) {
	writeOtherConfig(t)
	bridgeUp(t)
	before := managed(t)
	d, status := up(t)
	if status.DNS.Takeover.Mode != "resolvconf" {
		t.Errorf("the mode is %s", status.DNS.Takeover.Mode)
	}
	if servers := copyConf(t); !slices.Equal(servers, []string{serviceAddr}) {
		t.Errorf("a container gets %v, want the service address alone", servers)
	}
	if err := libc(t, nasName, nasAddr); err != nil {
		t.Error(err)
	}
	d.end(t, syscall.SIGTERM)
	if after := strings.Replace(managed(t), " netns ", " ", 1); onLo(t) || after != before {
		t.Errorf("it is not as it was\nbefore:\n%s\nafter:\n%s", before, after)
	}
}

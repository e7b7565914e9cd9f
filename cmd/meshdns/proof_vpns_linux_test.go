package main_test

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/meshdns/meshdns/node"
)

// The names of these proofs: one of ours, one that only the VPN's name server knows, and one that both name servers
// have, each with an address of its own.
const (
	vpnMap = `zone: foo-bar.ts.net
ranges: [10.77.0.0/24]
nodes:
  laptop: {addresses: [10.77.0.1]}
  nas: {addresses: [10.77.0.2]}
`
	vpnNasAddr   = "10.77.0.2"
	corpName     = "www.corp.test"
	corpAddr     = "10.9.0.7"
	fromNetwork  = "192.0.2.99"
	fromVPN      = "203.0.113.99"
	networkName  = "printer.lan.example"
	mostRewrites = 10 // of resolv.conf, from the first of two to come until both are settled
)

// vpn is a VPN client of the lab's, and what it is called in status.
type vpn struct {
	kind  string // for vpn.sh
	named string // in status
}

// proveBesideVPN runs the node beside a VPN that has a say in the machine's DNS, in each order of coming and of leaving.
// With both there, names of both resolve; with one gone, those of the other; and in the end the machine is as it was.
func proveBesideVPN(v vpn, orders ...string) func(t *testing.T) {
	return func(t *testing.T) {
		writeFile(t, "/etc/meshdns/meshdns.yaml", otherConfig)
		writeFile(t, "/etc/meshdns/map.yaml", vpnMap)
		must(t, "ip", "addr", "add", "198.51.100.77/32", "dev", "lo") // glibc looks for no address of a kind that no link has
		before := managed(t)
		for _, first := range []string{"VPN first", "node first"} {
			for _, leave := range []string{"node leaves first", "VPN leaves first", "node is killed", "node is killed, VPN leaves"} {
				name := first + ", " + leave
				if len(orders) > 0 && !slices.Contains(orders, name) {
					continue
				}
				t.Run(name, func(t *testing.T) {
					start := time.Now()
					v.prove(t, first == "VPN first", leave)
					if after := managed(t); after != before {
						t.Errorf("it is not as it was\nbefore:\n%s\nafter:\n%s", before, after)
					}
					t.Logf("%s: %s", name, time.Since(start).Round(time.Millisecond))
				})
			}
		}
	}
}

func (v vpn) prove(t *testing.T, vpnFirst bool, leave string) {
	writes := countWrites(t)
	var d *daemon
	if vpnFirst {
		v.sh(t, "up")
		d, _ = up(t)
	} else {
		d, _ = up(t)
		eventually(t, readyTimeout, "names before the VPN", func() error { return libc(t, "nas.foo-bar.ts.net", vpnNasAddr) })
		v.sh(t, "up")
	}
	defer v.sh(t, "down") // does nothing where it is down
	v.checkBoth(t, d)
	if n := writes(); n > mostRewrites {
		t.Errorf("resolv.conf was written %d times until both were settled", n)
	} else {
		t.Logf("resolv.conf was written %d times", n)
	}
	switch leave {
	case "node leaves first":
		d.end(t, syscall.SIGTERM)
		v.checkAlone(t)
		v.sh(t, "down")
	case "VPN leaves first":
		v.sh(t, "down")
		eventually(t, readyTimeout, "the node to go on without the VPN", func() error { return node1(t) })
		eventually(t, readyTimeout, "status without the VPN", func() error {
			if s := ready(t, d, "/run/meshdns/meshdns.sock"); len(s.VPNs) > 0 || s.State != "ok" || !slices.Equal(s.DNS.Base, []string{upstreamAddr}) {
				return fmt.Errorf("it is %s (%q), base %q, with %v", s.State, s.Problems, s.DNS.Base, s.VPNs)
			}
			return nil
		})
		d.end(t, syscall.SIGTERM)
	case "node is killed":
		d.kill()
		must(t, program, "dns", "restore")
		v.checkAlone(t)
		v.sh(t, "down")
	case "node is killed, VPN leaves":
		d.kill()
		v.sh(t, "down")
		must(t, program, "dns", "restore")
	}
	eventually(t, readyTimeout, "the network's names in the end", func() error { return libc(t, outsideName, fromNetwork) })
}

func (v vpn) sh(t *testing.T, what string) { must(t, "/lab/vpn.sh", v.kind, what) }

// node1 checks that names of ours and of the network resolve without the VPN.
func node1(t *testing.T) error {
	if err := libc(t, "nas.foo-bar.ts.net", vpnNasAddr); err != nil {
		return err
	}
	if err := libc(t, networkName, fromNetwork); err != nil {
		return err
	}
	return libc(t, outsideName, fromNetwork)
}

// checkBoth checks that with both there names of both resolve, whoever is asked, and that the VPN is named.
func (v vpn) checkBoth(t *testing.T, d *daemon) {
	t.Helper()
	eventually(t, readyTimeout, "names of both", func() error {
		for name, addr := range map[string]string{"nas.foo-bar.ts.net": vpnNasAddr, corpName: corpAddr} {
			if err := libc(t, name, addr); err != nil {
				return err
			}
			if out, _ := output(t, "dig", "+short", "+tries=1", "@"+strings.TrimSuffix(otherStub, ":53"), name); out != addr+"\n" {
				return fmt.Errorf("asked the stub for %s: %q", name, out)
			}
		}
		out, code := output(t, "getent", "ahostsv4", outsideName)
		if code != 0 || !strings.HasPrefix(out, fromNetwork+" ") && !strings.HasPrefix(out, fromVPN+" ") {
			return fmt.Errorf("getent ahostsv4 %s: exit code %d, %q", outsideName, code, out)
		}
		return nil
	})
	var status node.Status
	eventually(t, readyTimeout, "status to name the VPN", func() error {
		status = ready(t, d, "/run/meshdns/meshdns.sock")
		if len(status.VPNs) != 1 || status.VPNs[0].Program != v.named || len(status.VPNs[0].Servers) == 0 || status.State != "ok" {
			return fmt.Errorf("it is %s (%q), with %+v", status.State, status.Problems, status.VPNs)
		}
		return nil
	})
	line := status.VPNs[0].String()
	t.Logf("base %q; vpn %s", status.DNS.Base, line)
	if out := must(t, program, "status"); !strings.Contains(out, line) {
		t.Errorf("status says\n%s", out)
	}
	if out, _ := output(t, program, "doctor"); !strings.Contains(out, status.VPNs[0].Link) || !strings.Contains(out, status.VPNs[0].DNS) {
		t.Errorf("doctor says\n%s", out)
	}
}

// checkAlone checks that the VPN goes on without the node.
func (v vpn) checkAlone(t *testing.T) {
	t.Helper()
	eventually(t, readyTimeout, "the VPN to go on without the node", func() error { return libc(t, corpName, corpAddr) })
	if data, err := os.ReadFile(resolvConf); err != nil || strings.Contains(string(data), "127.0.0.78") || strings.Contains(string(data), "meshdns") {
		t.Errorf("without the node resolv.conf is %q, %v", data, err)
	}
}

// countWrites counts how often resolv.conf is written from now on, here or where resolvconf has it.
func countWrites(t *testing.T) func() int {
	t.Helper()
	args := []string{"inotifywait", "-m", "-e", "close_write,moved_to", "--format", "%e %f", "/etc"}
	if _, err := os.Stat("/run/resolvconf"); err == nil {
		args = append(args, "/run/resolvconf")
	}
	d := background(t, args...)
	eventually(t, readyTimeout, "the watches", func() error {
		if !strings.Contains(d.log.String(), "Watches established") {
			return errors.New(d.log.String())
		}
		return nil
	})
	return func() int {
		n := 0
		for line := range strings.Lines(d.log.String()) {
			if strings.HasSuffix(strings.TrimSpace(line), " resolv.conf") {
				n++
			}
		}
		return n
	}
}

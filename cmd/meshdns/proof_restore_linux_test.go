package main_test

import (
	"encoding/json"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/meshdns/meshdns/node"
)

// roams has the machine's network bring another nameserver, as the manager of each mode is told by it.
func roams() map[string]func(t *testing.T) {
	record := func(name string) func(t *testing.T) {
		return func(t *testing.T) {
			must(t, "sh", "-c", "echo nameserver "+roamedServer+" | resolvconf -a "+name)
		}
	}
	return map[string]func(t *testing.T){
		"resolved": func(t *testing.T) {
			must(t, "busctl", "call", "org.freedesktop.resolve1", "/org/freedesktop/resolve1", "org.freedesktop.resolve1.Manager",
				"SetLinkDNS", "ia(iay)", ifindex(t, "eth0"), "1", "2", "4", "192", "0", "2", "54")
		},
		"resolvconf": record("eth0.dhclient"),
		"openresolv": record("eth0"),
		"networkmanager": func(t *testing.T) {
			must(t, "nmcli", "con", "mod", "eth0", "ipv4.dns", roamedServer)
			must(t, "nmcli", "-w", "10", "con", "up", "eth0")
		},
		"direct": func(t *testing.T) { // as dhclient does
			must(t, "sh", "-c", "echo nameserver "+roamedServer+" >"+resolvConf)
		},
	}
}

// proveRestoreFindsTheNetworkOfNow kills the node, lets the machine roam, and gives its DNS back: what it gets is what
// the new network says, every step is told, and it may be done again.
func proveRestoreFindsTheNetworkOfNow(mode string) func(t *testing.T) {
	return func(t *testing.T) {
		writeOtherConfig(t)
		if mode == "direct" {
			must(t, "rm", "-f", resolvConf)
			writeFile(t, resolvConf, "nameserver "+upstreamAddr+"\n")
		}
		d, status := up(t)
		if status.DNS.Takeover.State != "on" || status.DNS.Takeover.Mode != mode {
			t.Fatalf("takeover is %s (%s): %s", status.DNS.Takeover.State, status.DNS.Takeover.Mode, status.DNS.Takeover.Reason)
		}
		d.kill()
		roams()[mode](t)
		for range 2 {
			out := must(t, program, "dns", "restore", "--json")
			var given node.Takeover
			if err := json.Unmarshal([]byte(out), &given); err != nil {
				t.Fatalf("%v\n%s", err, out)
			}
			t.Logf("%q", given.Steps)
			said := slices.ContainsFunc(given.Steps, func(s string) bool { return strings.HasPrefix(s, "nameserver ") })
			if given.State != "off" || given.Left != nil || !said {
				t.Errorf("dns restore --json printed:\n%s", out)
			}
			if mode == "resolved" {
				if got := resolvedServers(t); !strings.Contains(got, "192 0 2 54") || ourServers(t) > 0 {
					t.Errorf("systemd-resolved has %s", got)
				}
				continue
			}
			text, err := os.ReadFile(resolvConf)
			if err != nil || !strings.Contains(string(text), "nameserver "+roamedServer+"\n") || strings.Contains(string(text), "127.0.0.78") {
				t.Errorf("resolv.conf is %q, %v", text, err)
			}
		}
		if _, err := os.Stat("/var/lib/meshdns/dns-journal.json"); err == nil {
			t.Error("a journal is left")
		}
	}
}

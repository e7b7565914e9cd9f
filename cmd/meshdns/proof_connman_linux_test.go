package main_test

import (
	"fmt"
	"os"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/meshdns/meshdns/node"
)

// proveConnmanIsLivedWith runs the node beside a real connman, whose own proxy is all that resolv.conf names: its servers
// are learnt from it, through renewals too, and it has its file back however the node ends.
func proveConnmanIsLivedWith(t *testing.T) {
	writeOtherConfig(t)
	before := managed(t)
	if !strings.Contains(before, "nameserver 127.0.0.1\n") {
		t.Fatalf("connman's proxy is not named:\n%s", before)
	}
	// What connman does of itself it has done by then; its own proxy answers again.
	returned := func(t *testing.T, how string) {
		t.Helper()
		if after := managed(t); after != before {
			t.Errorf("after %s it is not as it was\nbefore:\n%s\nafter:\n%s", how, before, after)
		}
		if err := libc(t, outsideName, "192.0.2.99"); err != nil {
			t.Errorf("after %s: %v", how, err)
		}
	}

	d, status := up(t)
	checkBesideConnman(t, status.DNS, upstreamAddr)
	checkConnmanIsNamed(t)
	d.end(t, syscall.SIGTERM)
	returned(t, "SIGTERM")

	d, _ = up(t)
	d.kill()
	must(t, program, "dns", "restore")
	returned(t, "kill -9 and dns restore")

	d, _ = up(t)
	d.kill()
	d, status = up(t)
	checkBesideConnman(t, status.DNS, upstreamAddr)

	renew(t, upstreamAddr)
	checkBesideConnman(t, awaitBase(t, d, upstreamAddr), upstreamAddr)
	renew(t, roamedServer)
	checkBesideConnman(t, awaitBase(t, d, roamedServer), roamedServer)
	d.end(t, syscall.SIGTERM)
	returned(t, "renewals and SIGTERM")
	if log := d.log.String(); strings.Contains(log, "keeps overwriting") {
		t.Errorf("there was a war:\n%s", log)
	}
}

// checkBesideConnman checks that the stub is named and every kind of name is found.
func checkBesideConnman(t *testing.T, dns node.DNSStatus, base string) {
	t.Helper()
	if dns.Takeover.State != "on" || dns.Takeover.Mode != "direct" || !slices.Equal(dns.Base, []string{base}) {
		t.Errorf("takeover is %s (%s): %s; base %v, want %s", dns.Takeover.State, dns.Takeover.Mode, dns.Takeover.Reason, dns.Base, base)
	}
	for name, addr := range map[string]string{nasName: nasAddr, "nas": nasAddr, outsideName: "192.0.2.99"} {
		eventually(t, readyTimeout, "an address of "+name, func() error { return libc(t, name, addr) })
	}
	if out := must(t, "dig", "+short", nasName); out != nasAddr+"\n" {
		t.Errorf("dig printed %q", out)
	}
}

// checkConnmanIsNamed checks that people are told of connman.
func checkConnmanIsNamed(t *testing.T) {
	t.Helper()
	plan := must(t, program, "dns", "plan")
	doctor, _ := output(t, program, "doctor")
	for what, text := range map[string]string{"dns plan": plan, "doctor": doctor} {
		for _, want := range []string{"connman runs", "names its proxy"} {
			if !strings.Contains(text, want) {
				t.Errorf("%s does not say %q:\n%s", what, want, text)
			}
		}
	}
}

// renew has connman lose its cable and get a lease with this nameserver.
func renew(t *testing.T, server string) {
	t.Helper()
	if err := os.WriteFile("/tmp/options", []byte("option:dns-server,"+server+"\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	must(t, "pkill", "-HUP", "-f", "dnsmasq.*dhcp-optsfile")
	hasLease := func() bool { return strings.Contains(must(t, "ip", "-4", "addr", "show", "eth0"), "192.0.2.1") }
	must(t, "ip", "-n", "lan", "link", "set", "e1", "down")
	eventually(t, readyTimeout, "connman to miss its cable", func() error {
		if hasLease() {
			return fmt.Errorf("eth0 has its address still")
		}
		return nil
	})
	must(t, "ip", "-n", "lan", "link", "set", "e1", "up")
	eventually(t, leaseTimeout, "a lease", func() error {
		if !hasLease() {
			return fmt.Errorf("eth0 has no address yet")
		}
		return nil
	})
}

// awaitBase waits until the node has learnt a server, and connman has told of it.
func awaitBase(t *testing.T, d *daemon, server string) node.DNSStatus {
	t.Helper()
	start := time.Now()
	var status node.Status
	eventually(t, leaseTimeout, "the new server to be learnt", func() error {
		status = ready(t, d, "/run/meshdns/meshdns.sock")
		if !slices.Equal(status.DNS.Base, []string{server}) {
			return fmt.Errorf("base is %v", status.DNS.Base)
		}
		return nil
	})
	t.Logf("learnt %s after %s", server, time.Since(start).Round(time.Millisecond))
	return status.DNS
}

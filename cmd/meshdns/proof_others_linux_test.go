package main_test

import (
	"fmt"
	"os"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"
)

// The stub of these proofs: in the lab's sandboxes other programs hold 127.0.0.77.
const (
	otherStub    = "127.0.0.78:53"
	otherConfig  = proofConfig + "dns: {stub: \"" + otherStub + "\"}\n"
	roamedServer = "192.0.2.54"
	leaseTimeout = 60 * time.Second // dhcpcd probes the address for some seconds
)

func writeOtherConfig(t *testing.T) {
	writeFile(t, "/etc/meshdns/meshdns.yaml", otherConfig)
	writeFile(t, "/etc/meshdns/map.yaml", proofMap)
}

// proveManagerIsLeftAlone runs the node on a machine whose DNS a real manager manages: it is named, nothing is touched,
// and who asks the stub gets answers, from outside too.
func proveManagerIsLeftAlone(manager string) func(t *testing.T) {
	return func(t *testing.T) {
		writeOtherConfig(t)
		before := snapshot(t)
		if out := must(t, program, "dns", "plan"); !strings.Contains(out, manager+" manages this machine's DNS") {
			t.Errorf("dns plan does not name %s:\n%s", manager, out)
		}
		d, status := up(t)
		takeover := status.DNS.Takeover
		t.Logf("base %v; takeover %s: %s", status.DNS.Base, takeover.State, takeover.Reason)
		if takeover.State != "refused" || !strings.Contains(takeover.Reason, manager+" manages") {
			t.Errorf("takeover is %s (%s), want it refused, and %s named", takeover.State, takeover.Reason, manager)
		}
		if !strings.Contains(d.log.String(), manager) {
			t.Errorf("meshdns up does not name %s:\n%s", manager, d.log.String())
		}
		if err := asks(otherStub, nasName, nasAddr); err != nil {
			t.Error(err)
		}
		if after := snapshot(t); after != before {
			t.Errorf("it was not left alone\nbefore:\n%s\nafter:\n%s", before, after)
		}
		d.end(t, syscall.SIGTERM)
		must(t, program, "dns", "restore")
		if after := snapshot(t); after != before {
			t.Errorf("it was not left alone at the end\nbefore:\n%s\nafter:\n%s", before, after)
		}
	}
}

// proveLeaseIsLearnt runs the node beside a real DHCP client, which gets other nameservers after a while and overwrites
// resolv.conf with them: they are learnt, the stub is named again, and they are what is left at the end.
func proveLeaseIsLearnt(t *testing.T) {
	writeOtherConfig(t)
	d, status := up(t)
	if status.DNS.Takeover.State != "on" || !slices.Equal(status.DNS.Base, []string{upstreamAddr}) {
		t.Errorf("takeover is %s (%s), base %v", status.DNS.Takeover.State, status.DNS.Takeover.Reason, status.DNS.Base)
	}
	start := time.Now()
	eventually(t, leaseTimeout, "the new lease to be learnt", func() error {
		status = ready(t, d, "/run/meshdns/meshdns.sock")
		if !slices.Equal(status.DNS.Base, []string{roamedServer}) {
			return fmt.Errorf("base is %v", status.DNS.Base)
		}
		return nil
	})
	t.Logf("learnt %v after %s", status.DNS.Base, time.Since(start).Round(time.Millisecond))
	eventually(t, readyTimeout, "the stub to be named again", func() error { return libc(t, nasName, nasAddr) })
	if err := libc(t, outsideName, "192.0.2.99"); err != nil { // what the lab's server says of every name
		t.Error(err)
	}
	d.end(t, syscall.SIGTERM)
	text, err := os.ReadFile(resolvConf)
	if err != nil || !strings.Contains(string(text), "nameserver "+roamedServer+"\n") || strings.Contains(string(text), "127.0.0.78") {
		t.Errorf("at the end resolv.conf is %q, %v", text, err)
	}
	if !strings.Contains(d.log.String(), "overwrote the machine's DNS settings") {
		t.Errorf("it does not say what happened:\n%s", d.log.String())
	}
}

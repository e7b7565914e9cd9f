package osconfig

import (
	"context"
	"net/netip"
	"slices"
	"strings"
	"testing"
)

// containerConfig is stubConfig with an address for containers.
func containerConfig() Config {
	c := stubConfig()
	c.Service = netip.MustParseAddr("10.8.0.254")
	return c
}

func TestServiceAddressIsWrittenInPlaceOfALoopback(t *testing.T) {
	r := newRig(t)
	r.write("etc/resolv.conf", upstreamConf)
	before := r.snapshot()
	var asked []netip.AddrPort
	r.opt.Verify = func(_ context.Context, server netip.AddrPort) error {
		asked = append(asked, server)
		return nil
	}
	m := r.open()
	// First without containers, then with.
	for _, step := range []struct {
		config Config
		server string
	}{{stubConfig(), "127.0.0.77"}, {containerConfig(), "10.8.0.254"}} {
		r.must(m.Apply(t.Context(), step.config))
		r.wantServers(step.server)
		if last := asked[len(asked)-1]; last != netip.MustParseAddrPort(step.server+":53") {
			t.Errorf("with %s in the file %s was tried", step.server, last)
		}
		if b, err := m.Base(t.Context()); err != nil || !slices.Equal(serverWords(b.Servers), []string{"192.0.2.53:53"}) {
			t.Errorf("base: %v, %v", serverWords(b.Servers), err)
		}
	}
	r.restore()
	if after := r.snapshot(); after != before {
		t.Errorf("not as it was\nbefore:\n%s\nafter:\n%s", before, after)
	}
}

func TestServiceAddressOfALostJournalIsNoBase(t *testing.T) {
	r := newRig(t)
	r.write("etc/resolv.conf", "nameserver 10.8.0.254\nnameserver 192.0.2.53\n")
	m := r.open()
	r.must(m.Apply(t.Context(), containerConfig()))
	if b, err := m.Base(t.Context()); err != nil || !slices.Equal(serverWords(b.Servers), []string{"192.0.2.53:53"}) {
		t.Errorf("base: %v, %v", serverWords(b.Servers), err)
	}
	r.must(m.Close())
	r.wantServers("192.0.2.53")
}

func TestServiceAddressInRecords(t *testing.T) {
	r := debian(t)
	before := r.snapshot()
	m := r.open()
	r.must(m.Apply(t.Context(), containerConfig()))
	// The loopback server behind it keeps all other records out.
	if got := r.read("run/resolvconf/interface/lo.meshdns"); !strings.HasPrefix(got, "nameserver 10.8.0.254\nnameserver 127.0.0.77\n") {
		t.Errorf("the record is %q", got)
	}
	r.must(m.Close())
	if after := r.snapshot(); after != before {
		t.Errorf("not as it was\nbefore:\n%s\nafter:\n%s", before, after)
	}
	if got := addrWords(recordServers(modeOpenresolv, containerConfig())); !slices.Equal(got, []string{"10.8.0.254"}) {
		t.Errorf("openresolv is given %v", got)
	}
	if got := planManaged(modeNM, containerConfig()); !strings.Contains(got, "[10.8.0.254]") {
		t.Errorf("NetworkManager would be told %s", got)
	}
	if got := planManaged(modeResolved, containerConfig()); strings.Contains(got, "10.8.0.254") || !strings.Contains(got, "127.0.0.77") {
		t.Errorf("systemd-resolved would be told %s", got)
	}
}

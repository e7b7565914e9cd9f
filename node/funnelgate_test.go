package node

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/miekg/dns"
)

// A visitor's TLS connection reaches a listener on the node, with the visitor's address. The name is in the public DNS meanwhile,
// and stays the node's inside the tailnet.
func TestAVisitorReachesANode(t *testing.T) {
	r := newFunnelRig(t)
	nas, tv := r.invited(t, "nas"), r.invited(t, "tv")
	const name = "nas." + rigZone
	nas.web(t, name)
	if _, err := r.fetch(t, name); !isUnknownName(err) {
		t.Errorf("before it is shown: %v", err)
	}
	if list, rcode := r.told(t, name, dns.TypeA); len(list) > 0 || rcode != "NXDOMAIN" {
		t.Errorf("before it is shown: %v %s", list, rcode)
	}
	told := nas.show(t, shownAs(name))
	if f := told[0]; !f.Open || len(f.At) != 1 || f.At[0] != netip.AddrPortFrom(netip.MustParseAddr("203.0.113.5"), r.public) {
		t.Fatalf("%+v", f)
	}
	text, err := r.fetch(t, name)
	if err != nil || !strings.HasPrefix(text, name+" "+visitorAddress+":") || !strings.HasSuffix(text, "443 by https to "+name+" of nas") {
		t.Errorf("%q, %v", text, err)
	}
	if list, _ := r.told(t, name, dns.TypeA); !slices.Equal(list, []string{"203.0.113.5"}) {
		t.Errorf("A %v", list)
	}
	if list, _ := r.told(t, name, dns.TypeHTTPS); !slices.Equal(list, []string{fmt.Sprintf(`1 . alpn="h2,http/1.1" port="%d"`, r.public)}) {
		t.Errorf("HTTPS %v", list)
	}
	if list, rcode := r.told(t, name, dns.TypeAAAA); len(list) > 0 || rcode != "NOERROR" {
		t.Errorf("AAAA %v %s", list, rcode)
	}
	// S11: of what is not shown nothing is told, neither by DNS nor by TLS.
	for _, hidden := range []string{"tv." + rigZone, "nobody." + rigZone} {
		if list, rcode := r.told(t, hidden, dns.TypeA); len(list) > 0 || rcode != "NXDOMAIN" {
			t.Errorf("%s: %v %s", hidden, list, rcode)
		}
		if _, err := r.fetch(t, hidden); !isUnknownName(err) {
			t.Errorf("%s: %v", hidden, err)
		}
	}
	m, _ := tv.node.tailnet.current()
	node, _ := m.Node("nas")
	if _, addrs := tv.ask(t, name+"."); len(addrs) != 1 || addrs[0] != node.Addresses[0].String() {
		t.Errorf("inside: %v", addrs)
	}
	nas.show(t)
	if _, err := r.fetch(t, name); !isUnknownName(err) {
		t.Errorf("once it has ended: %v", err)
	}
	if list, rcode := r.told(t, name, dns.TypeA); len(list) > 0 || rcode != "NXDOMAIN" {
		t.Errorf("once it has ended: %v %s", list, rcode)
	}
}

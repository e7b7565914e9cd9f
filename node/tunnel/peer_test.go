package tunnel

import (
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

func prefixes(texts ...string) (out []netip.Prefix) {
	for _, text := range texts {
		out = append(out, netip.MustParsePrefix(text))
	}
	return out
}

func addrs(texts ...string) (out []netip.Addr) {
	for _, text := range texts {
		out = append(out, netip.MustParseAddr(text))
	}
	return out
}

func TestPeersAreChecked(t *testing.T) {
	good := Peer{Key: Key{1}, AllowedIPs: prefixes("10.8.0.2/32")}
	with := func(change func(*Peer)) []Peer {
		p := good
		change(&p)
		return []Peer{p}
	}
	for name, test := range map[string]struct {
		peers []Peer
		want  string
	}{
		"good":               {[]Peer{good}, ""},
		"none":               {nil, ""},
		"too many":           {make([]Peer, maxPeers+1), "16385 peers"},
		"no key":             {with(func(p *Peer) { p.Key = Key{} }), "no key"},
		"twice":              {[]Peer{good, good}, "listed twice"},
		"host bits":          {with(func(p *Peer) { p.AllowedIPs = []netip.Prefix{netip.MustParsePrefix("10.8.0.2/24")} }), "allowed prefix"},
		"invalid prefix":     {with(func(p *Peer) { p.AllowedIPs = make([]netip.Prefix, 1) }), "allowed prefix"},
		"mapped prefix":      {with(func(p *Peer) { p.AllowedIPs = prefixes("::ffff:10.8.0.2/128") }), "allowed prefix"},
		"too many prefixes":  {with(func(p *Peer) { p.AllowedIPs = make([]netip.Prefix, maxAllowed+1) }), "65 allowed"},
		"endpoint, port 0":   {with(func(p *Peer) { p.Endpoint = netip.MustParseAddrPort("192.0.2.1:0") }), "cannot be sent to"},
		"endpoint, wildcard": {with(func(p *Peer) { p.Endpoint = netip.MustParseAddrPort("[::]:1") }), "cannot be sent to"},
		"endpoint, group":    {with(func(p *Peer) { p.Endpoint = netip.MustParseAddrPort("224.0.0.1:1") }), "cannot be sent to"},
		"keepalive in part":  {with(func(p *Peer) { p.Keepalive = time.Millisecond }), "whole seconds"},
		"keepalive, long":    {with(func(p *Peer) { p.Keepalive = 65536 * time.Second }), "whole seconds"},
		"keepalive, never":   {with(func(p *Peer) { p.Keepalive = -time.Second }), "whole seconds"},
		"replaces itself":    {with(func(p *Peer) { p.Replaces = p.Key }), "replaces itself"},
		"two owners":         {[]Peer{good, {Key: Key{2}, AllowedIPs: good.AllowedIPs}}, "belongs to peer"},
		"successor":          {[]Peer{good, {Key: Key{2}, AllowedIPs: good.AllowedIPs, Replaces: good.Key}}, ""},
	} {
		err := checkPeers(test.peers)
		if (err == nil) != (test.want == "") || err != nil && !strings.Contains(err.Error(), test.want) {
			t.Errorf("%s: error %v, want %q", name, err, test.want)
		}
	}
}

func TestOnlyWhatDiffersIsSet(t *testing.T) {
	at := netip.MustParseAddrPort("192.0.2.1:1")
	old := []Peer{
		{Key: Key{1}, AllowedIPs: prefixes("10.8.0.1/32"), Endpoint: at, Keepalive: 5 * time.Second},
		{Key: Key{2}, AllowedIPs: prefixes("10.8.0.2/32")},
		{Key: Key{3}, AllowedIPs: prefixes("10.8.0.3/32")},
	}
	want := []Peer{
		old[0],
		{Key: Key{4}, AllowedIPs: prefixes("10.8.0.3/32")},
		{Key: Key{2}, AllowedIPs: prefixes("10.8.0.2/32"), Endpoint: at, Preshared: Secret{7}, Keepalive: time.Second},
	}
	second, allowed, preshared := uint16(1), prefixes("10.8.0.3/32"), Secret{7}
	got := compare(old, want)
	expect := []peerChange{
		{key: Key{3}, remove: true},
		{key: Key{4}, add: true, allowed: &allowed},
		{key: Key{2}, preshared: &preshared, endpoint: at, keepalive: &second},
	}
	if d := cmp.Diff(expect, got, cmp.AllowUnexported(peerChange{}), cmp.Comparer(func(a, b Secret) bool { return a == b }),
		cmp.Comparer(func(a, b netip.Prefix) bool { return a == b }), cmp.Comparer(func(a, b netip.AddrPort) bool { return a == b })); d != "" {
		t.Error(d)
	}
	if again := compare(want, want); len(again) != 0 {
		t.Errorf("nothing differs, and %+v is set", again)
	}
}

func TestAddressesFollowTheNewKeyOnceItShookHands(t *testing.T) {
	peers := []Peer{
		{Key: Key{2}, AllowedIPs: prefixes("10.8.0.1/32", "10.8.0.9/32"), Replaces: Key{1}},
		{Key: Key{1}, AllowedIPs: prefixes("10.8.0.1/32")},
		{Key: Key{3}, AllowedIPs: prefixes("10.8.0.3/32"), Replaces: Key{9}}, // which is gone already
	}
	before, open := settle(peers, func(Key) bool { return false })
	if owner, _ := ownerOf(before, netip.MustParseAddr("10.8.0.1")); owner != (Key{1}) || !open {
		t.Errorf("before the handshake: owner %s, open %t", owner, open)
	}
	if owner, _ := ownerOf(before, netip.MustParseAddr("10.8.0.9")); owner != (Key{2}) {
		t.Errorf("an address that only the new key has is %s's", owner)
	}
	after, open := settle(peers, func(k Key) bool { return k == Key{2} })
	if owner, _ := ownerOf(after, netip.MustParseAddr("10.8.0.1")); owner != (Key{2}) || open {
		t.Errorf("after the handshake: owner %s, open %t", owner, open)
	}
	for name, list := range map[string][]Peer{"before": before, "after": after} {
		for i := range list {
			list[i].Replaces = Key{}
		}
		if err := checkPeers(list); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestOwners(t *testing.T) {
	peers := []Peer{
		{Key: Key{1}, AllowedIPs: prefixes("10.8.0.0/24")},
		{Key: Key{2}, AllowedIPs: prefixes("10.8.0.2/32")},
		{Key: Key{3}, AllowedIPs: prefixes("10.9.0.3/32")},
		{Key: Key{4}, AllowedIPs: prefixes("10.10.0.0/24")},
	}
	for addr, test := range map[string]struct {
		owner Key
		sole  bool
	}{
		"10.8.0.2":  {Key{2}, false}, // the first peer may send from it too, where its prefix is shorter
		"10.8.0.3":  {Key{1}, false},
		"10.9.0.3":  {Key{3}, true},
		"10.10.0.3": {Key{4}, false}, // one peer, many addresses
		"10.11.0.3": {Key{}, false},
	} {
		a := netip.MustParseAddr(addr)
		if owner, ok := ownerOf(peers, a); owner != test.owner || ok != !test.owner.IsZero() {
			t.Errorf("%s is %s's, want %s", a, owner, test.owner)
		}
		if sole, ok := soleOwner(peers, a); ok != test.sole || ok && sole != test.owner {
			t.Errorf("%s: sole owner %s, %t, want %t", a, sole, ok, test.sole)
		}
	}
}

func TestStatsAreReadFromWireGuardsText(t *testing.T) {
	text := "private_key=00\nlisten_port=1\npublic_key=" + strings.Repeat("01", 32) + "\npreshared_key=00\nendpoint=[2001:db8::1]:5\n" +
		"last_handshake_time_sec=100\nlast_handshake_time_nsec=7\ntx_bytes=3\nrx_bytes=4\nallowed_ip=10.8.0.1/32\n" +
		"public_key=" + strings.Repeat("02", 32) + "\nlast_handshake_time_sec=0\nlast_handshake_time_nsec=0\n"
	got, err := uapiStats([]byte(text))
	if err != nil || len(got) != 2 {
		t.Fatalf("%v, %v", got, err)
	}
	if s := got[0]; s.Endpoint.String() != "[2001:db8::1]:5" || s.Sent != 3 || s.Received != 4 || !s.Handshake.Equal(time.Unix(100, 7)) {
		t.Errorf("first: %+v", s)
	}
	if s := got[1]; !s.Handshake.IsZero() || s.Endpoint.IsValid() {
		t.Errorf("second: %+v", s)
	}
	for _, bad := range []string{"public_key=0", "public_key=" + strings.Repeat("01", 32) + "\nendpoint=x\n"} {
		if _, err := uapiStats([]byte(bad)); err == nil {
			t.Errorf("%q is read", bad)
		}
	}
}

func FuzzStats(f *testing.F) {
	f.Add([]byte("public_key=" + strings.Repeat("01", 32) + "\nendpoint=[2001:db8::1]:5\nrx_bytes=4\n"))
	f.Fuzz(func(t *testing.T, text []byte) {
		if stats, err := uapiStats(text); err == nil && len(stats) > len(text)/10 {
			t.Errorf("%d peers in %d bytes", len(stats), len(text))
		}
	})
}

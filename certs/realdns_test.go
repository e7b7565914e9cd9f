package certs

import (
	"context"
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/miekg/dns"
)

// A real CA, and real name servers that take updates.
func TestCertificatesByUpdates(t *testing.T) {
	for name, start := range map[string]func(*testing.T) netip.AddrPort{"knot": knot, "bind": bind} {
		t.Run(name, func(t *testing.T) {
			at := start(t)
			p := newPebble(t, &nameServer{addr: at.String()}, month)
			lookup := Lookup{
				Resolvers: func() []netip.AddrPort { return []netip.AddrPort{at} },
				Exchange: func(ctx context.Context, q *dns.Msg, _ netip.AddrPort) (*dns.Msg, error) { // not at port 53
					m, _, err := new(dns.Client).ExchangeContext(ctx, q, at.String())
					return m, err
				},
			}
			writer, err := NewProvider(ProviderConfig{Name: "rfc2136", Lookup: lookup, Timeout: time.Minute, Settings: map[string]string{
				"server": at.String(), "key_name": "ours.", "key_alg": "hmac-sha256.", "key": knotKey,
			}})
			if err != nil {
				t.Fatal(err)
			}
			m := p.manager(t, func(c *Config) {
				c.CAs = []CA{{"pebble", p.issuer(t, func(c *ACMEConfig) { c.TXT = writer })}}
			})
			c, _, err := m.Get(t.Context(), Request{Names: []string{"nas.example.org", "*.nas.example.org"}})
			if err != nil {
				t.Fatal(err)
			}
			if !covers(c.Leaf, []string{"nas.example.org", "*.nas.example.org"}) {
				t.Errorf("it is for %q", c.Leaf.DNSNames)
			}
			reply, err := lookup.exchange(t.Context(), "_acme-challenge.nas.example.org", dns.TypeTXT, at, false)
			if err != nil || len(reply.Answer) != 0 {
				t.Errorf("left: %v, %v", reply, err)
			}
			if name == "bind" {
				_, _, err = m.Get(t.Context(), Request{Names: []string{"tv.example.org"}})
				if err == nil || !strings.Contains(err.Error(), "publishing the TXT record") || !strings.Contains(err.Error(), "REFUSED") {
					t.Errorf("a name that the key may not write: %v", err)
				}
			}
		})
	}
}

// bind starts a real BIND for example.org on loopback, whose key may write at one name.
func bind(t *testing.T) netip.AddrPort {
	t.Helper()
	return startNames(t, []string{"named", "-g", "-n", "1", "-c"}, func(dir string, at netip.AddrPort) string {
		return fmt.Sprintf(`options {
  directory %[1]q; pid-file "pid"; session-keyfile "session.key"; managed-keys-directory %[1]q;
  listen-on port %[2]d { 127.0.0.1; }; listen-on-v6 { none; };
  recursion no; dnssec-validation no;
};
controls { };
key "ours." { algorithm hmac-sha256; secret %[3]q; };
zone "example.org" {
  type primary; file "zone";
  update-policy { grant ours. name _acme-challenge.nas.example.org. TXT; };
};
`, dir, at.Port(), knotKey)
	})
}

// A CA that remembers what was proven asks for nothing.
func TestAuthorizationsThatAreReused(t *testing.T) {
	p := newPebble(t, newNameServer(t), month)
	t.Setenv("PEBBLE_AUTHZREUSE", "100")
	p.reset(month, false)
	m := p.manager(t, nil)
	for _, force := range []bool{false, true} {
		if _, issued, err := m.Get(t.Context(), Request{Names: nasNames(), Force: force}); err != nil || !issued {
			t.Fatalf("issued = %t, %v", issued, err)
		}
	}
	if p.dns.writes != len(nasNames()) {
		t.Errorf("%d TXT records for two orders of %d names", p.dns.writes, len(nasNames()))
	}
}

func TestProfiles(t *testing.T) {
	p := newPebble(t, newNameServer(t), month)
	get := func(profile string) error {
		m := p.manager(t, func(c *Config) {
			c.CAs = []CA{{"pebble", p.issuer(t, func(c *ACMEConfig) { c.Profile = profile })}}
		})
		_, _, err := m.Get(t.Context(), Request{Names: nasNames()})
		return err
	}
	if err := get("nonsense"); err == nil || !strings.Contains(err.Error(), "unknown profile name 'nonsense'") || p.count("order-plz") != 0 {
		t.Errorf("%v, after %d orders", err, p.count("order-plz"))
	}
	if err := get("default"); err != nil || !strings.Contains(strings.Join(p.bodies, " "), "payload") {
		t.Error(err)
	}
}

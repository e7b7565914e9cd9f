package resolver

import (
	"strings"
	"testing"

	"github.com/miekg/dns"
)

// A server that may lack values says nothing of them that a resolver would believe.
func TestChallengesThatMayBeElsewhere(t *testing.T) {
	var asked []string
	a := newPublic(t, func(c *AuthorityConfig) {
		c.Unsure = func(name string) bool {
			asked = append(asked, name)
			return !strings.Contains(name, "sure-")
		}
	})
	for _, name := range []string{"_acme-challenge.nas.", "_acme-challenge.sure-nas."} {
		if err := a.SetTXT(name+publicZone, "token"); err != nil {
			t.Fatal(err)
		}
	}
	const nothing, failed = "NOERROR AA | | " + soaShown + " |", "SERVFAIL | | |"
	for name, row := range map[string]struct {
		qname string
		qtype uint16
		want  string
	}{
		"a value that it has":                {"_acme-challenge.nas.foo-bar.example.org", dns.TypeTXT, failed},
		"in any case":                        {"_ACME-challenge.NAS.foo-bar.example.org", dns.TypeTXT, failed},
		"one that it has not":                {"_acme-challenge.tv.foo-bar.example.org", dns.TypeTXT, failed},
		"anything":                           {"_acme-challenge.tv.foo-bar.example.org", dns.TypeANY, failed},
		"the top of a zone, as clients look": {"_acme-challenge.tv.foo-bar.example.org", dns.TypeSOA, nothing},
		"an address, as resolvers look":      {"_acme-challenge.tv.foo-bar.example.org", dns.TypeA, nothing},
		"one that it is sure of":             {"_acme-challenge.sure-nas.foo-bar.example.org", dns.TypeTXT, `NOERROR AA | _acme-challenge.sure-nas.foo-bar.example.org. TXT "token" | |`},
		"one that it is sure is not":         {"_acme-challenge.sure-tv.foo-bar.example.org", dns.TypeTXT, "NXDOMAIN AA | | " + soaShown + " |"},
		"the zone's own, which nobody has":   {"_acme-challenge.foo-bar.example.org", dns.TypeTXT, "NXDOMAIN AA | | " + soaShown + " |"},
		"the name itself":                    {"tv.foo-bar.example.org", dns.TypeTXT, "NXDOMAIN AA | | " + soaShown + " |"},
		"another zone":                       {"_acme-challenge.nas.example.org", dns.TypeTXT, "REFUSED | | |"},
	} {
		t.Run(name, func(t *testing.T) {
			if got := shown(askPublic(t, a, questionFor(row.qname, row.qtype), UDP)); !strings.EqualFold(got, row.want) {
				t.Errorf("got %s, want %s", got, row.want)
			}
		})
	}
	for _, name := range asked {
		if name != strings.ToLower(name) || strings.HasSuffix(name, ".") {
			t.Errorf("asked for %q", name)
		}
	}
}

// A server that only challenges are delegated to answers for those, each as a zone of its own, and for nothing else.
func TestOnlyChallengesAreDelegated(t *testing.T) {
	a := newPublic(t, func(c *AuthorityConfig) {
		c.Pinned, c.Unsure = true, func(name string) bool { return !strings.Contains(name, "sure-") }
	})
	const name = "_acme-challenge.sure-nas.foo-bar.example.org"
	if err := a.SetTXT(name, "token"); err != nil {
		t.Fatal(err)
	}
	for what, row := range map[string]struct {
		qname string
		qtype uint16
		want  string
	}{
		"a value":                   {name, dns.TypeTXT, `NOERROR AA | ` + name + `. TXT "token" | |`},
		"the top of a zone":         {name, dns.TypeSOA, "NOERROR AA | " + name + ". SOA | |"},
		"its servers":               {name, dns.TypeNS, "NOERROR AA | " + name + ". NS ns.foo-bar.example.org., " + name + ". NS ns2.example.net. | |"},
		"an address":                {name, dns.TypeA, "NOERROR AA | | " + name + ". SOA |"},
		"no value":                  {"_acme-challenge.sure-tv.foo-bar.example.org", dns.TypeTXT, "NOERROR AA | | _acme-challenge.sure-tv.foo-bar.example.org. SOA |"},
		"values that may be others": {"_acme-challenge.tv.foo-bar.example.org", dns.TypeTXT, "SERVFAIL | | |"},
		"the top of their zone":     {"_acme-challenge.tv.foo-bar.example.org", dns.TypeSOA, "NOERROR AA | _acme-challenge.tv.foo-bar.example.org. SOA | |"},
		"the zone":                  {"foo-bar.example.org", dns.TypeSOA, "REFUSED | | |"},
		"its own challenge":         {"_acme-challenge.foo-bar.example.org", dns.TypeTXT, "REFUSED | | |"},
		"a public name":             {"photos.foo-bar.example.org", dns.TypeA, "REFUSED | | |"},
		"a server":                  {"ns.foo-bar.example.org", dns.TypeA, "REFUSED | | |"},
		"CAA":                       {"nas.foo-bar.example.org", dns.TypeCAA, "REFUSED | | |"},
		"a name's parent":           {"sure-nas.foo-bar.example.org", dns.TypeA, "REFUSED | | |"},
		"below a challenge":         {"x." + name, dns.TypeTXT, "REFUSED | | |"},
		"another zone":              {"_acme-challenge.nas.example.com", dns.TypeTXT, "REFUSED | | |"},
	} {
		t.Run(what, func(t *testing.T) {
			if got := shown(askPublic(t, a, questionFor(row.qname, row.qtype), UDP)); got != row.want {
				t.Errorf("got %s, want %s", got, row.want)
			}
		})
	}
	m := askPublic(t, a, questionFor(name, dns.TypeA), TCP)
	if soa := m.Ns[0].(*dns.SOA); soa.Hdr.Ttl != negativeTTL || soa.Hdr.Name != name+"." {
		t.Errorf("%v", soa)
	}
}

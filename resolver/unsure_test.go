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

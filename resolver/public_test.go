package resolver

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/miekg/dns"
)

// textsOf are the TXT values of a name as the public sees them, or the rcode if there are none.
func textsOf(t testing.TB, a *Authority, name string) []string {
	t.Helper()
	m := askPublic(t, a, questionFor(name, dns.TypeTXT), TCP)
	if len(m.Answer) == 0 {
		return []string{dns.RcodeToString[m.Rcode]}
	}
	var values []string
	for _, rr := range m.Answer {
		values = append(values, strings.Join(rr.(*dns.TXT).Txt, ""))
		if ttl := rr.Header().Ttl; ttl != textTTL {
			t.Errorf("TTL %d", ttl)
		}
	}
	slices.Sort(values)
	return values
}

func TestTXTRecordsComeAndGoAtOnce(t *testing.T) {
	a := newPublic(t)
	const name = "_acme-challenge.git." + publicZone
	steps := []struct {
		set, clear string
		want       string
	}{
		{"one", "", "one"},
		{"two", "", "one two"},
		{"two", "", "one two"},
		{"", "none", "one two"},
		{"", "one", "two"},
		{"", "two", "NXDOMAIN"},
		{"", "two", "NXDOMAIN"},
		{"again", "", "again"},
	}
	for i, s := range steps {
		err := error(nil)
		if s.set != "" {
			err = a.SetTXT(strings.ToUpper(name)+".", s.set)
		} else {
			err = a.ClearTXT(name, s.clear)
		}
		if got := strings.Join(textsOf(t, a, name), " "); err != nil || got != s.want {
			t.Errorf("step %d: got %q (%v), want %q", i, got, err, s.want)
		}
	}
	if a.count != 1 || len(a.texts) != 1 {
		t.Errorf("%d values at %d names are counted, want one at one", a.count, len(a.texts))
	}
	if err := a.SetPublic(publicConfig(t).View); err != nil {
		t.Fatal(err)
	}
	if got := textsOf(t, a, name); got[0] != "again" {
		t.Errorf("a new view takes the record away: %v", got)
	}
}

func TestTXTValuesAreNotReadAsZoneSyntax(t *testing.T) {
	a := newPublic(t)
	for i, value := range []string{`a\b`, `\065`, `say "no"`, `trailing\`, "; comment", "tab\tand ü", strings.Repeat("x", maxText), strings.Repeat(`\`, maxText)} {
		name := fmt.Sprintf("t%d.%s", i, publicZone)
		if err := a.SetTXT(name, value); err != nil {
			t.Fatal(err)
		}
		reply := a.Answer(query(t, name, dns.TypeTXT), somebody(), TCP)
		if !strings.HasSuffix(string(reply), string(append([]byte{byte(len(value))}, value...))) {
			t.Errorf("%q is served as %q", value, reply)
		}
	}
}

func TestTXTRecordsAreBounded(t *testing.T) {
	a := newPublic(t)
	for name, row := range map[string]struct {
		name, value string
		want        error
	}{
		"elsewhere":      {"_acme-challenge.example.org", "x", errNotInZone},
		"beside":         {"xfoo-bar.example.org", "x", errNotInZone},
		"a wildcard":     {"*." + publicZone, "x", errName},
		"no name":        {"a..b." + publicZone, "x", errName},
		"no value":       {"a." + publicZone, "", errText},
		"too long":       {"a." + publicZone, strings.Repeat("x", maxText+1), errText},
		"beside a CNAME": {"www." + publicZone, "x", nil},
	} {
		before := *a.table.Load()
		err := a.SetTXT(row.name, row.value)
		if err == nil || row.want != nil && !errors.Is(err, row.want) {
			t.Errorf("%s: got %v, want %v", name, err, row.want)
		}
		if string(a.table.Load().slab) != string(before.slab) || a.count != 0 || len(a.texts) != 0 {
			t.Errorf("%s: the zone has changed", name)
		}
	}
	for i := range maxTextsName {
		if err := a.SetTXT(publicZone, fmt.Sprint(i)); err != nil {
			t.Fatal(err)
		}
	}
	if err := a.SetTXT(publicZone, "one more"); !errors.Is(err, errTexts) {
		t.Errorf("one more at a name: %v", err)
	}
	a.count = maxTexts
	if err := a.SetTXT("other."+publicZone, "x"); !errors.Is(err, errTexts) {
		t.Errorf("one more in all: %v", err)
	}
	if err := a.ClearTXT("elsewhere.example", "x"); !errors.Is(err, errNotInZone) {
		t.Errorf("clearing elsewhere: %v", err)
	}
}

func TestAViewThatIsWrongChangesNothing(t *testing.T) {
	good := publicConfig(t).View
	for name, row := range map[string]struct {
		edit func(*PublicView)
		want string
	}{
		"no servers":                     {func(v *PublicView) { v.Servers = nil }, "name server"},
		"a server in it without address": {func(v *PublicView) { v.Servers = map[string][]netip.Addr{"ns." + publicZone: nil} }, "address"},
		"an address that is none":        {func(v *PublicView) { v.Servers = map[string][]netip.Addr{"ns." + publicZone: {{}}} }, "ns." + publicZone},
		"a server with no name":          {func(v *PublicView) { v.Servers = map[string][]netip.Addr{"a..b": nil} }, "a..b"},
		"a delegation":                   {func(v *PublicView) { v.Records = rr(t, "sub.foo-bar.example.org. NS ns.example.com.") }, "sub.foo-bar"},
		"a second SOA":                   {func(v *PublicView) { v.Records = rr(t, "foo-bar.example.org. SOA a. b. 1 2 3 4 5") }, "SOA"},
		"a subtree elsewhere":            {func(v *PublicView) { v.Records = rr(t, "d.foo-bar.example.org. DNAME example.com.") }, "DNAME"},
		"a name elsewhere":               {func(v *PublicView) { v.Records = rr(t, "a.example.org. A 192.0.2.1") }, "outside"},
		"nothing where a record was":     {func(v *PublicView) { v.Records = []dns.RR{nil} }, "nil"},
		"an alias beside data": {func(v *PublicView) {
			v.Records = append(slices.Clone(v.Records), rr(t, "photos.foo-bar.example.org. CNAME x.")...)
		}, "CNAME"},
	} {
		t.Run(name, func(t *testing.T) {
			a := newPublic(t)
			serial := a.Stats().Serial
			v := good
			row.edit(&v)
			if err := a.SetPublic(v); err == nil || !strings.Contains(err.Error(), row.want) {
				t.Errorf("got %v, want something about %s", err, row.want)
			}
			wantA(t, askPublic(t, a, questionFor("photos."+publicZone, dns.TypeA), UDP), "203.0.113.5")
			if err := a.SetTXT("a."+publicZone, "x"); err != nil {
				t.Errorf("the bad view stayed: %v", err)
			}
			if got := a.Stats().Serial; got != serial+1 {
				t.Errorf("serial %d, want %d", got, serial+1)
			}
			v = good
			if _, err := NewAuthority(AuthorityConfig{Zone: publicZone, View: func() PublicView { row.edit(&v); return v }()}); err == nil {
				t.Error("taken at the start")
			}
		})
	}
	for _, zone := range []string{"", ".", "*.example.org", "a..b"} {
		if _, err := NewAuthority(AuthorityConfig{Zone: zone, View: good}); !errors.Is(err, errName) {
			t.Errorf("zone %q: %v", zone, err)
		}
	}
	if _, err := NewAuthority(AuthorityConfig{Zone: publicZone, View: good, Rate: -1}); err == nil {
		t.Error("a rate below zero is taken")
	}
}

func TestTheOwnersIssuersStandInPlaceOfNone(t *testing.T) {
	a := newPublic(t, func(c *AuthorityConfig) {
		c.View.Records = append(c.View.Records, rr(t, `FOO-bar.example.org. CAA 0 issue "letsencrypt.org"`)...)
	})
	want := `NOERROR AA | foo-bar.example.org. CAA 0 issue "letsencrypt.org" | |`
	if got := shown(askPublic(t, a, questionFor(publicZone, dns.TypeCAA), UDP)); got != want {
		t.Errorf("got %s, want %s", got, want)
	}
}

func TestNegativeAnswersAreKeptForSeconds(t *testing.T) {
	m := askPublic(t, newPublic(t), questionFor("no."+publicZone, dns.TypeA), UDP)
	soa, ok := m.Ns[0].(*dns.SOA)
	if !ok || soa.Hdr.Ttl != 5 || soa.Minttl != 5 {
		t.Errorf("got %v", m.Ns)
	}
	if soa.Ns != "ns.foo-bar.example.org." || soa.Mbox != "hostmaster.foo-bar.example.org." {
		t.Errorf("got %v", soa)
	}
}

func TestSerialsOnlyGrow(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		now := uint32(time.Now().Unix())
		for _, row := range []struct {
			last, want uint32
			name       string
		}{
			{0, now, "the first"},
			{now - 100, now, "after a restart"},
			{now + 100, now + 101, "after a restart with the clock set back"},
			{now, now + 1, "in the same second"},
			{now + 1<<31 + 5, now, "from far behind, past the middle of the circle"},
		} {
			a := newPublic(t, func(c *AuthorityConfig) { c.Serial = row.last })
			if got := a.Stats().Serial; got != row.want {
				t.Errorf("%s: got %d, want %d", row.name, got, row.want)
			}
		}
		if got := nextSerial(1<<32-1, time.Unix(10, 0)); got == 0 || int32(got-(1<<32-1)) <= 0 {
			t.Errorf("past the end: %d", got)
		}
		a := newPublic(t)
		last := a.Stats().Serial
		for i := range 5 {
			if err := a.SetTXT("a."+publicZone, fmt.Sprint(i)); err != nil {
				t.Fatal(err)
			}
			soa := askPublic(t, a, questionFor(publicZone, dns.TypeSOA), UDP).Answer[0].(*dns.SOA)
			if int32(soa.Serial-last) <= 0 || soa.Serial != a.Stats().Serial {
				t.Errorf("serial %d after %d", soa.Serial, last)
			}
			last = soa.Serial
			time.Sleep(time.Duration(i) * time.Second)
		}
	})
}

func TestTheSerialTellsOfPublicChangesAlone(t *testing.T) {
	a := newPublic(t)
	serial := a.Stats().Serial
	if err := a.SetPublic(publicConfig(t).View); err != nil {
		t.Fatal(err)
	}
	if got := a.Stats().Serial; got != serial {
		t.Errorf("the same view again: serial %d after %d", got, serial)
	}
	v := publicConfig(t).View
	v.Records = v.Records[1:]
	if err := a.SetPublic(v); err != nil {
		t.Fatal(err)
	}
	if got := a.Stats().Serial; got == serial {
		t.Error("the serial stays with another view")
	}
}

// TestViewsAreSwappedWhole asks while the view changes: each answer is that of one view.
func TestViewsAreSwappedWhole(t *testing.T) {
	a := newPublic(t, func(c *AuthorityConfig) { c.Rate = maxRate })
	views := make([]PublicView, 2)
	for i := range views {
		views[i] = PublicView{Servers: publicConfig(t).View.Servers, Records: rr(t,
			fmt.Sprintf("both.%s. A 192.0.2.%d", publicZone, i), fmt.Sprintf("both.%s. A 192.0.2.%d", publicZone, i+100))}
	}
	if err := a.SetPublic(views[0]); err != nil {
		t.Fatal(err)
	}
	msg := query(t, "both."+publicZone, dns.TypeA)
	var wg sync.WaitGroup
	for range 2 {
		wg.Go(func() {
			for range 500 {
				var m dns.Msg
				if err := m.Unpack(a.Answer(msg, somebody(), TCP)); err != nil || len(m.Answer) != 2 {
					t.Errorf("%v: %s", err, &m)
					return
				}
				x, y := m.Answer[0].(*dns.A).A[3], m.Answer[1].(*dns.A).A[3]
				if max(x, y)-min(x, y) != 100 {
					t.Errorf("addresses of two views: %s", &m)
				}
			}
		})
	}
	for i := range 200 {
		if err := a.SetPublic(views[i%2]); err != nil {
			t.Error(err)
		}
		if err := a.SetTXT("x."+publicZone, fmt.Sprint(i%3)); err != nil {
			t.Error(err)
		}
	}
	wg.Wait()
}

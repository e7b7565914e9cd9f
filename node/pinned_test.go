package node

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/miekg/dns"
)

func pinnedForTest() []pinnedRecord {
	return pinnedList("foo-bar.example.org", addrs("127.80.9.31", "2001:db8::5"),
		map[string][]string{"nas.foo-bar.example.org": {"letsencrypt.org; validationmethods=dns-01; accounturi=https://acme-v02.api.letsencrypt.org/acme/acct/1"}},
		[]string{"tv.foo-bar.example.org", "nas.foo-bar.example.org", "tv.foo-bar.example.org"})
}

func TestThePinnedZonesRecords(t *testing.T) {
	const account = `"letsencrypt.org; validationmethods=dns-01; accounturi=https://acme-v02.api.letsencrypt.org/acme/acct/1"`
	want := []string{
		"ns1.foo-bar.example.org. A 127.80.9.31 true", "ns2.foo-bar.example.org. AAAA 2001:db8::5 true",
		`foo-bar.example.org. CAA 0 issue ";" true`, `foo-bar.example.org. CAA 0 issuewild ";" true`,
		"_acme-challenge.nas.foo-bar.example.org. NS ns1.foo-bar.example.org. true", "_acme-challenge.nas.foo-bar.example.org. NS ns2.foo-bar.example.org. true",
		"nas.foo-bar.example.org. CAA 0 issue " + account + " true", "nas.foo-bar.example.org. CAA 0 issuewild " + account + " true",
		"_acme-challenge.tv.foo-bar.example.org. NS ns1.foo-bar.example.org. false", "_acme-challenge.tv.foo-bar.example.org. NS ns2.foo-bar.example.org. false",
	}
	var got []string
	for _, r := range pinnedForTest() {
		got = append(got, fmt.Sprintf("%s %s %s %t", r.Name, r.Type, r.Data, r.Wanted))
		if _, err := dns.NewRR(r.Name + " 60 " + r.Type + " " + r.Data); err != nil { // as it is pasted
			t.Errorf("%+v: %v", r, err)
		}
	}
	if !slices.Equal(got, want) {
		t.Errorf("got\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
}

// The check asks the owner's own provider, and names each record that is not there, or one too many.
func TestACheckOfPinnedRecords(t *testing.T) {
	const provider = "127.80.9.31"
	port := freePorts(t, provider)
	var now atomic.Pointer[map[string]bool]
	dnsAt(t, netip.AddrPortFrom(netip.MustParseAddr(provider), port).String(), func(w dns.ResponseWriter, q *dns.Msg) {
		m := new(dns.Msg).SetReply(q)
		asked := q.Question[0]
		m.Authoritative = true
		for line := range *now.Load() {
			rr, err := dns.NewRR(line)
			if err != nil || !strings.EqualFold(rr.Header().Name, asked.Name) || rr.Header().Rrtype != asked.Qtype {
				continue
			}
			if asked.Qtype == dns.TypeNS && strings.HasPrefix(asked.Name, "_") {
				m.Authoritative, m.Ns = false, append(m.Ns, rr) // a delegation
			} else {
				m.Answer = append(m.Answer, rr)
			}
		}
		if len(m.Answer)+len(m.Ns) == 0 {
			m.Ns = append(m.Ns, &dns.SOA{Hdr: dns.RR_Header{Name: "example.org.", Rrtype: dns.TypeSOA, Class: dns.ClassINET}, Ns: "ns.example.org.", Mbox: "h.example.org."})
		}
		_ = w.WriteMsg(m)
	})
	check := func(state string) []string {
		t.Helper()
		f := gatewayFacts{zone: "foo-bar.example.org", from: fromGateway, now: time.Now(), pinned: pinnedFacts{on: true, records: pinnedForTest()}}
		f.gatherPinned(t.Context(), &walker{port: port, roots: addrs(provider), left: maxWalk, now: time.Now})
		var r checkReply
		r.Findings = f.judgePinned()
		return shownFindings(r, state)
	}
	set := func(records []pinnedRecord, change func(r pinnedRecord) string) {
		have := map[string]bool{}
		have["example.org. 60 NS ns.example.org."], have["ns.example.org. 60 A "+provider] = true, true
		for _, r := range records {
			if line := change(r); line != "" {
				have[line] = true
			}
		}
		now.Store(&have)
	}
	as := func(r pinnedRecord) string { return r.Name + " 60 " + r.Type + " " + r.Data }
	wanted := func(r pinnedRecord) string {
		if !r.Wanted {
			return ""
		}
		return as(r)
	}
	set(pinnedForTest(), wanted)
	if fail, ok, skip := check(checkFail), check(checkOK), check(checkSkip); len(fail) != 0 || len(ok) != 1 || len(skip) != 1 || !strings.Contains(skip[0], "_acme-challenge.tv") {
		t.Errorf("all that is wanted: %q %q %q", fail, ok, skip)
	}
	set(nil, wanted)
	if fail := check(checkFail); len(fail) != 1 || strings.Count(fail[0], ";") < 8 || !strings.Contains(fail[0], "example.org, at its DNS provider") {
		t.Errorf("nothing: %q", fail)
	}
	set(pinnedForTest(), func(r pinnedRecord) string {
		if r.Type == "NS" {
			return ""
		}
		return as(r)
	})
	if fail := check(checkFail); len(fail) != 1 || !strings.Contains(fail[0], "2 records are not there") || !strings.Contains(fail[0], "_acme-challenge.nas.foo-bar.example.org. NS ns1") {
		t.Errorf("no delegation: %q", fail)
	}
	set(append(pinnedForTest(), pinnedRecord{"nas.foo-bar.example.org.", "CAA", `0 issue "evil.example"`, true}), as)
	if fail := check(checkFail); len(fail) != 1 || !strings.Contains(fail[0], "evil.example") || !strings.Contains(fail[0], "lets others issue") {
		t.Errorf("a CA too many: %q", fail)
	}
}

// A pinned gateway answers at challenges alone, and lists what its owner has to have.
func TestAPinnedGateway(t *testing.T) {
	cfg := gatewayTestConfig(t)
	cfg.Gateway.Pinned = true
	g := startGatewayWith(t, cfg, testPaths(t))
	undo, err := g.node.texts.SetTXT(t.Context(), challengeOf("edge"), testDigest(1))
	if err != nil {
		t.Fatal(err)
	}
	if got := g.texts(t, challengeOf("edge")); got != "NOERROR 1="+testDigest(1) {
		t.Error(got)
	}
	for _, name := range []string{zoneOfTests, "edge." + zoneOfTests, "ns1." + zoneOfTests, "_acme-challenge." + zoneOfTests} {
		if got := g.texts(t, name); got != "REFUSED" {
			t.Errorf("%s: %s", name, got)
		}
	}
	if m := g.askPublic(t, challengeOf("edge"), dns.TypeSOA); len(m.Answer) != 1 || m.Answer[0].Header().Name != challengeOf("edge")+"." {
		t.Errorf("%v", m)
	}
	if err := undo(t.Context()); err != nil {
		t.Error(err)
	}
	reply, err := g.PinnedRecords(t.Context())
	if err != nil || reply.Zone != zoneOfTests || len(reply.Records) != 4 || reply.Records[0] != (pinnedRecord{"ns1." + zoneOfTests + ".", "A", "203.0.113.5", true}) {
		t.Errorf("%+v, %v", reply, err)
	}
}

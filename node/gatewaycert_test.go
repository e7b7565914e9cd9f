package node

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/miekg/dns"
)

// askPublic asks the gateway's public name server.
func (g *testGateway) askPublic(t *testing.T, name string, qtype uint16) *dns.Msg {
	t.Helper()
	query, err := new(dns.Msg).SetQuestion(dns.Fqdn(name), qtype).Pack()
	if err != nil {
		t.Fatal(err)
	}
	m := new(dns.Msg)
	if err := m.Unpack(g.node.queryPublic(query, netip.MustParseAddr("198.51.100.7"), true)); err != nil {
		t.Fatal(err)
	}
	return m
}

// texts are the values at a name, and the code of the answer.
func (g *testGateway) texts(t *testing.T, name string) string {
	t.Helper()
	m := g.askPublic(t, name, dns.TypeTXT)
	words := []string{dns.RcodeToString[m.Rcode]}
	for _, rr := range m.Answer {
		words = append(words, fmt.Sprintf("%d=%s", rr.Header().Ttl, strings.Join(rr.(*dns.TXT).Txt, "")))
	}
	slices.Sort(words[1:]) // sets have no order
	return strings.Join(words, " ")
}

func testDigest(n int) string { return strings.Repeat("A", 40) + fmt.Sprintf("%02dA", n) }

const zoneOfTests = "foo-bar.example.org"

func challengeOf(name string) string { return "_acme-challenge." + name + "." + zoneOfTests }

func TestANodesValuesAreServedInPublic(t *testing.T) {
	g := startGateway(t)
	nas, tv := g.invited(t, "nas"), g.invited(t, "tv")
	soon(t, "the nodes", func() bool {
		return g.isNode(t, "nas") && g.isNode(t, "tv") && nas.knows(t, "tv") && tv.knows(t, "nas")
	})
	before := []string{g.texts(t, challengeOf("nas")), g.texts(t, challengeOf("nobody")), g.texts(t, challengeOf("tv"))}
	if !slices.Equal(before, []string{"SERVFAIL", "SERVFAIL", "SERVFAIL"}) {
		t.Errorf("before anything was published: %v", before) // and nothing tells which nodes there are (S11)
	}
	for _, name := range []string{"_acme-challenge." + zoneOfTests, "nas." + zoneOfTests, "nobody." + zoneOfTests} {
		if got := g.texts(t, name); got != "NXDOMAIN" {
			t.Errorf("%s: %s", name, got)
		}
	}
	undo, err := nas.node.texts.SetTXT(t.Context(), challengeOf("nas"), testDigest(1))
	if err != nil {
		t.Fatal(err)
	}
	if got := g.texts(t, strings.ToUpper(challengeOf("nas"))); got != "NOERROR 1="+testDigest(1) {
		t.Error(got)
	}
	if m := g.askPublic(t, "nas."+zoneOfTests, dns.TypeA); m.Rcode != dns.RcodeSuccess || len(m.Answer) != 0 || m.Ns[0].(*dns.SOA).Minttl != 5 {
		t.Errorf("above a value: %v", m)
	}
	for _, name := range []string{challengeOf("tv"), "_acme-challenge." + zoneOfTests, "_acme-challenge." + challengeOf("nas")} {
		if _, err := nas.node.texts.SetTXT(t.Context(), name, testDigest(1)); err == nil || !strings.Contains(err.Error(), "edge") {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := nas.node.texts.SetTXT(t.Context(), challengeOf("nas"), "v=spf1 -all"); err == nil {
		t.Error("a value that is no digest is served")
	}
	other, err := tv.node.texts.SetTXT(t.Context(), challengeOf("app.tv"), testDigest(2))
	if err != nil || g.texts(t, challengeOf("app.tv")) != "NOERROR 1="+testDigest(2) {
		t.Fatal(err, g.texts(t, challengeOf("app.tv")))
	}
	if err := other(t.Context()); err != nil || g.texts(t, challengeOf("app.tv")) == "NOERROR 1="+testDigest(2) {
		t.Error(err)
	}
	// A gateway that starts anew serves what it served, once it hears of the node; it asks for that itself.
	if err := g.end(); err != nil {
		t.Fatal(err)
	}
	again := startGatewayWith(t, g.cfg, g.paths)
	if got := again.texts(t, challengeOf("nas")); got != "SERVFAIL" && got != "NOERROR 1="+testDigest(1) {
		t.Errorf("after a start: %s", got)
	}
	soon(t, "the value", func() bool { return again.texts(t, challengeOf("nas")) == "NOERROR 1="+testDigest(1) })
	soon(t, "the value to go", func() bool { return undo(t.Context()) == nil })
	if got := again.texts(t, challengeOf("nas")); strings.Contains(got, testDigest(1)) {
		t.Errorf("it stays: %s", got)
	}
	// S5
	undo, err = nas.node.texts.SetTXT(t.Context(), challengeOf("nas"), testDigest(3))
	if err != nil {
		t.Fatal(err)
	}
	if err := again.RemoveNode(t.Context(), "nas"); err != nil {
		t.Fatal(err)
	}
	soon(t, "the removal", func() bool { return again.texts(t, "nas."+zoneOfTests) == "NXDOMAIN" })
	ctx, cancel := context.WithTimeout(t.Context(), textFirstRetry)
	defer cancel()
	if err := undo(ctx); err == nil {
		t.Error("a removed node still takes values away")
	}
}

// A gateway gets certificates for its own name in the same way.
func TestAGatewaysOwnValues(t *testing.T) {
	g := startGateway(t)
	undo, err := g.node.texts.SetTXT(t.Context(), challengeOf("edge"), testDigest(1))
	if err != nil || g.texts(t, challengeOf("edge")) != "NOERROR 1="+testDigest(1) {
		t.Fatal(err, g.texts(t, challengeOf("edge")))
	}
	if _, err := g.node.texts.SetTXT(t.Context(), challengeOf("ns1"), testDigest(1)); err == nil {
		t.Error("the name server's name")
	}
	if err := undo(t.Context()); err != nil || strings.Contains(g.texts(t, challengeOf("edge")), testDigest(1)) {
		t.Error(err, g.texts(t, challengeOf("edge")))
	}
}

// caaRequest is a certificate that somebody asks a CA for.
type caaRequest struct {
	name    string // with "*." for a wildcard
	ca      string
	account string
	method  string
}

// caaAllows is what a CA decides by CAA (RFC 8659, section 3 and 4; RFC 8657, section 3 and 4).
func caaAllows(r caaRequest, lookup func(name string) []*dns.CAA) bool {
	name, wildcard := strings.CutPrefix(r.name, "*.")
	var set []*dns.CAA
	for name != "" && len(set) == 0 {
		set = lookup(name)
		_, name, _ = strings.Cut(name, ".")
	}
	tag := "issue"
	if wildcard && slices.ContainsFunc(set, func(c *dns.CAA) bool { return strings.EqualFold(c.Tag, "issuewild") }) {
		tag = "issuewild"
	}
	restricted := false
	for _, c := range set {
		if !strings.EqualFold(c.Tag, tag) {
			if c.Flag&0x80 != 0 && !slices.Contains([]string{"issue", "issuewild", "iodef"}, strings.ToLower(c.Tag)) {
				return false
			}
			continue
		}
		restricted = true
		if caaMatches(c.Value, r) {
			return true
		}
	}
	return !restricted
}

// caaMatches reports whether the value of one record lets a certificate be issued.
func caaMatches(value string, r caaRequest) bool {
	parts := strings.Split(value, ";")
	if domain := strings.TrimSpace(parts[0]); domain == "" || !strings.EqualFold(domain, r.ca) {
		return false
	}
	seen := map[string]bool{}
	for _, p := range parts[1:] {
		key, v, _ := strings.Cut(strings.TrimSpace(p), "=")
		if seen[key] {
			return false
		}
		seen[key] = true
		switch key {
		case "accounturi":
			if v != r.account {
				return false
			}
		case "validationmethods":
			if !slices.Contains(strings.Split(v, ","), r.method) {
				return false
			}
		}
	}
	return true
}

func (g *testGateway) caa(t *testing.T) func(name string) []*dns.CAA {
	return func(name string) (list []*dns.CAA) {
		for _, rr := range g.askPublic(t, name, dns.TypeCAA).Answer {
			list = append(list, rr.(*dns.CAA))
		}
		return list
	}
}

func TestWhoMayIssue(t *testing.T) {
	g := startGateway(t)
	nas := g.invited(t, "nas")
	soon(t, "the node", func() bool { return g.isNode(t, "nas") && nas.knows(t, "nas") })
	const le, acct = "letsencrypt.org", "https://acme-v02.api.letsencrypt.org/acme/acct/"
	check := func(when string, want map[caaRequest]bool) {
		t.Helper()
		for r, may := range want {
			r.name = strings.ReplaceAll(r.name, "ZONE", zoneOfTests)
			if got := caaAllows(r, g.caa(t)); got != may {
				t.Errorf("%s: %+v: allowed is %t", when, r, got)
			}
		}
	}
	ask := func(name, account, method string) caaRequest {
		return caaRequest{name: name, ca: le, account: acct + account, method: method}
	}
	check("from the start", map[caaRequest]bool{
		ask("ZONE", "1", "dns-01"): false, ask("*.ZONE", "1", "dns-01"): false, ask("nas.ZONE", "1", "dns-01"): false,
		ask("nobody.ZONE", "1", "http-01"): false, ask("example.org", "1", "http-01"): true,
	})
	if err := nas.node.member.caller().SetAccount(t.Context(), acct+"1", false); err != nil {
		t.Fatal(err)
	}
	one := map[caaRequest]bool{
		ask("nas.ZONE", "1", "dns-01"): true, ask("*.nas.ZONE", "1", "dns-01"): true, ask("app.nas.ZONE", "1", "dns-01"): true,
		ask("nas.ZONE", "2", "dns-01"): false, ask("*.nas.ZONE", "2", "dns-01"): false,
		ask("nas.ZONE", "1", "http-01"): false, ask("nas.ZONE", "1", "tls-alpn-01"): false, ask("*.nas.ZONE", "1", "http-01"): false,
		{name: "nas.ZONE", ca: "evil.example", account: acct + "1", method: "dns-01"}: false,
		ask("ZONE", "1", "dns-01"): false, ask("*.ZONE", "1", "dns-01"): false, ask("edge.ZONE", "1", "dns-01"): false,
	}
	check("with the node's account", one)
	made, err := g.node.gateway.registry.AddCredential(t.Context(), "nas", "", "", false)
	if err != nil {
		t.Fatal(err)
	}
	soon(t, "the record", func() bool { return caaAllows(ask("nas."+zoneOfTests, "2", "dns-01"), g.caa(t)) })
	check("with a program whose account is not known", map[caaRequest]bool{
		ask("nas.ZONE", "1", "dns-01"): true, ask("nas.ZONE", "2", "dns-01"): true, ask("*.nas.ZONE", "2", "dns-01"): true,
		ask("nas.ZONE", "2", "http-01"): false, {name: "nas.ZONE", ca: "evil.example", method: "dns-01"}: false,
		ask("ZONE", "1", "dns-01"): false, ask("edge.ZONE", "1", "dns-01"): false,
	})
	if err := g.node.gateway.registry.SetCredential(t.Context(), "nas", made.ID, acct+"2", false); err != nil {
		t.Fatal(err)
	}
	soon(t, "the record", func() bool { return !caaAllows(ask("nas."+zoneOfTests, "3", "dns-01"), g.caa(t)) })
	check("with both accounts", map[caaRequest]bool{
		ask("nas.ZONE", "1", "dns-01"): true, ask("nas.ZONE", "2", "dns-01"): true, ask("nas.ZONE", "3", "dns-01"): false,
		ask("nas.ZONE", "2", "tls-alpn-01"): false,
	})
	if err := g.node.gateway.registry.SetCredential(t.Context(), "nas", made.ID, "", true); err != nil {
		t.Fatal(err)
	}
	soon(t, "the record", func() bool { return !caaAllows(ask("nas."+zoneOfTests, "2", "dns-01"), g.caa(t)) })
	check("with the node's account again", one)
	if err := g.RemoveNode(t.Context(), "nas"); err != nil {
		t.Fatal(err)
	}
	soon(t, "the removal", func() bool { return !caaAllows(ask("nas."+zoneOfTests, "1", "dns-01"), g.caa(t)) })
}

// The faces answer at the gateway's tailnet address.
func TestFacesAreReachedThroughTheTunnel(t *testing.T) {
	g := startGateway(t)
	nas := g.invited(t, "nas")
	soon(t, "the node", func() bool { return g.isNode(t, "nas") && nas.knows(t, "edge") })
	made, err := g.node.gateway.registry.AddCredential(t.Context(), "nas", "", "", false)
	if err != nil {
		t.Fatal(err)
	}
	m, _ := g.node.gateway.registry.Map()
	at := m.Ranges[0].Addr().Next()
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, _, address string) (net.Conn, error) {
		return dialTunnel(ctx, nas.node.carrier.tunnel, "tcp", address)
	}}}
	body := fmt.Sprintf(`{"subdomain": %q, "txt": %q}`, made.Sub, testDigest(1))
	req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, fmt.Sprintf("http://%s/update", netip.AddrPortFrom(at, portACMEDNS)), strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	req.Header = http.Header{"X-Api-User": {made.ID}, "X-Api-Key": {made.Password}}
	resp, err := client.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if data, err := io.ReadAll(resp.Body); err != nil || resp.StatusCode != http.StatusOK {
		t.Fatalf("%d %s %v", resp.StatusCode, data, err)
	}
	if got := g.texts(t, challengeOf("nas")); got != "NOERROR 1="+testDigest(1) {
		t.Error(got)
	}
	// The gateway asks the node to let itself be heard: the program's CA may come late.
	soon(t, "the node to know", func() bool { return nas.node.heard.wanted() })
	conn, err := nas.node.carrier.tunnel.Dial(t.Context(), "tcp", netip.AddrPortFrom(at, portUpdates))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	c := &dns.Conn{Conn: conn}
	if err := c.WriteMsg(new(dns.Msg).SetUpdate(zoneOfTests + ".")); err != nil {
		t.Fatal(err)
	}
	if m, err := c.ReadMsg(); err != nil || m.Rcode != dns.RcodeRefused {
		t.Errorf("an update without a signature: %v, %v", m, err)
	}
	// S18: neither is reached from anywhere else.
	for _, port := range []uint16{portACMEDNS, portUpdates} {
		if c, err := new(net.Dialer).DialContext(t.Context(), "tcp", netip.AddrPortFrom(netip.MustParseAddr(gatewayAddress), port).String()); err == nil {
			c.Close()
			t.Errorf("port %d is open in public", port)
		}
	}
}

// Who runs the gateway makes credentials in acme-dns's own words, over the control socket.
func TestRegisteringAsWithACMEDNS(t *testing.T) {
	g := startGateway(t)
	m, _ := g.node.gateway.registry.Map()
	at := m.Ranges[0].Addr().Next()
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", g.paths.Socket)
	}}}
	for _, row := range []struct {
		query, body string
		status      int
		want        string
	}{
		{"", `{"allowfrom": ["` + at.String() + `/32"]}`, http.StatusCreated, `"fulldomain":"_acme-challenge.edge.` + zoneOfTests + `"`},
		{"?node=edge", "", http.StatusCreated, `"allowfrom":["` + at.String() + `/32"`},
		{"?node=edge&name=app.edge." + zoneOfTests, "{}", http.StatusCreated, `"_acme-challenge.app.edge.` + zoneOfTests + `"`},
		{"", "", http.StatusBadRequest, "invalid_allowfrom_cidr"},
		{"", `{"allowfrom": ["192.0.2.1/32"]}`, http.StatusBadRequest, "invalid_allowfrom_cidr"},
		{"", "x", http.StatusBadRequest, "malformed_json_payload"},
		{"?node=nobody", "", http.StatusNotFound, "there is no node"},
		{"?node=edge&name=tv", "", http.StatusForbidden, "no name of edge"},
	} {
		resp, err := client.Post("http://"+controlHost+"/register"+row.query, "application/json", strings.NewReader(row.body))
		if err != nil {
			t.Fatal(err)
		}
		data, err := io.ReadAll(resp.Body)
		resp.Body.Close()
		if err != nil || resp.StatusCode != row.status || !strings.Contains(string(data), row.want) {
			t.Errorf("%s %s: %d %s %v", row.query, row.body, resp.StatusCode, data, err)
		}
	}
	if reply, err := g.Credentials(t.Context(), "edge"); err != nil || len(reply.Credentials) != 3 || len(reply.Suspended) != 3 {
		t.Errorf("%+v, %v", reply, err)
	}
}

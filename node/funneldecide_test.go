package node

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/meshdns/meshdns/node/control"
)

const decideMap = `zone: foo-bar.example.org
ranges: [10.9.0.0/24]
nodes:
  edge: {addresses: [10.9.0.1], gateway: {public: [203.0.113.5]}}
  nas: {addresses: [10.9.0.2], names: [photos], wildcard: true}
  tv: {addresses: [10.9.0.3], names: [films]}
`

// wished is "KIND NAME PORT" as a funnel; a name without a dot is of the zone, "-" none.
func wished(t *testing.T, text string) control.Funnel {
	t.Helper()
	var f control.Funnel
	if _, err := fmt.Sscan(text, &f.Kind, &f.Name, &f.Port); err != nil {
		t.Fatalf("%q: %v", text, err)
	}
	switch {
	case f.Name == "-":
		f.Name = ""
	case !strings.Contains(f.Name, "."):
		f.Name += "." + rigZone
	}
	f.Name = foldName(f.Name)
	return f
}

// decideCase is what nodes want, in the order in which they came, and what becomes of it.
type decideCase struct {
	policy string
	proofs map[string]domainProof
	barred map[showPorts]string
	wishes []string // "NODE: KIND NAME PORT"
	want   []string // "open" or a code, for each of them
	shown  []string // "KIND NAME PORT: NODES publish NAME"
}

func (c decideCase) run(t *testing.T) {
	t.Helper()
	m, err := parseMap("m", []byte(decideMap+c.policy))
	if err != nil {
		t.Fatal(err)
	}
	facts := showFacts{
		m: m, wishes: map[string][]control.Funnel{}, since: map[showKey]uint64{}, proofs: c.proofs, barred: c.barred,
		at:   func(port uint16) []netip.AddrPort { return ports(addrs("203.0.113.5"), port) },
		ours: func(name string) bool { return name == rigZone || name == "ns1."+rigZone },
	}
	type place struct {
		node  string
		index int
	}
	var places []place
	for i, line := range c.wishes {
		node, text, _ := strings.Cut(line, ": ")
		f := wished(t, text)
		places = append(places, place{node, len(facts.wishes[node])})
		facts.wishes[node] = append(facts.wishes[node], f)
		facts.since[keyOf(node, f)] = uint64(i + 1)
	}
	d := facts.decide()
	for i, p := range places {
		f := d.of[p.node][p.index]
		got := f.Code
		if f.Open {
			got = "open"
		}
		if got != c.want[i] || f.Open != (len(f.At) > 0) || f.Open == (f.Why != "") {
			t.Errorf("%s: %s, want %s: %+v", c.wishes[i], got, c.want[i], f)
		}
	}
	var shows []string
	for _, s := range d.shown {
		name := strings.TrimSuffix(s.name, "."+rigZone)
		if name == "" {
			name = "-"
		}
		shows = append(shows, fmt.Sprintf("%s %s %d: %s publish %s", s.kind, name, s.port, strings.Join(s.nodes, " "), strings.TrimSuffix(s.publish, "."+rigZone)))
	}
	if !slices.Equal(shows, c.shown) {
		t.Errorf("shown:\n%s\nwant\n%s", strings.Join(shows, "\n"), strings.Join(c.shown, "\n"))
	}
}

// S12, S15: what becomes of what nodes want to show, who lie where it helps them.
func TestWhatIsShownToTheWorld(t *testing.T) {
	now := time.Now()
	alias := func(targets ...string) domainProof { return domainProof{at: now, targets: targets} }
	text := func(texts ...string) domainProof { return domainProof{at: now, texts: texts} }
	const domain = "www.example.com"
	const both = "policy: {funnel: ['*', {nodes: [nas, tv], names: [shop, www.example.com, photos]}]}\n"
	for name, c := range map[string]decideCase{
		"its own name":             {wishes: []string{"nas: https nas 443"}, want: []string{"open"}, shown: []string{"https nas 443: nas publish nas"}},
		"its service's":            {wishes: []string{"nas: https photos 443"}, want: []string{"open"}, shown: []string{"https photos 443: nas publish photos"}},
		"one below its own":        {wishes: []string{"nas: https a.nas.foo-bar.example.org 443"}, want: []string{"open"}, shown: []string{"https a.nas 443: nas publish a.nas"}},
		"all below its own":        {wishes: []string{"nas: https *.nas.foo-bar.example.org 443"}, want: []string{"open"}, shown: []string{"https *.nas 443: nas publish *.nas"}},
		"two below its own":        {wishes: []string{"nas: https b.a.nas.foo-bar.example.org 443"}, want: []string{shownNobodys}},
		"below, without wildcard":  {wishes: []string{"tv: https a.tv.foo-bar.example.org 443"}, want: []string{shownNobodys}},
		"a challenge's name":       {wishes: []string{"nas: https _acme-challenge.nas.foo-bar.example.org 443"}, want: []string{shownNobodys}},
		"another's name":           {wishes: []string{"tv: https nas 443"}, want: []string{shownNobodys}},
		"another's service":        {wishes: []string{"tv: https photos 443"}, want: []string{shownNobodys}},
		"below another's":          {wishes: []string{"tv: https a.nas.foo-bar.example.org 443"}, want: []string{shownNobodys}},
		"the gateway's":            {wishes: []string{"tv: https edge 443"}, want: []string{shownNobodys}},
		"the zone's top":           {wishes: []string{"tv: https foo-bar.example.org 443"}, want: []string{shownNobodys}},
		"the zone's name server":   {wishes: []string{"tv: https ns1 443"}, want: []string{shownNobodys}},
		"all names of the zone":    {wishes: []string{"tv: https *.foo-bar.example.org 443"}, want: []string{shownNobodys}},
		"nobody's name":            {wishes: []string{"tv: https wpad 443"}, want: []string{shownNobodys}},
		"a name like the zone's":   {wishes: []string{"tv: https tvfoo-bar.example.org 443"}, want: []string{shownWaiting}},
		"an address":               {wishes: []string{"tv: https 192.0.2.1 443"}, want: []string{shownWaiting}},
		"a name of one label":      {proofs: map[string]domainProof{"com": alias("tv." + rigZone)}, wishes: []string{"tv: tls-terminated-tcp com. 443"}, want: []string{shownNobodys}},
		"a node that there is not": {wishes: []string{"gone: https nas 443"}, want: []string{shownNobodys}},
		"a kind that there is not": {wishes: []string{"nas: http nas 443"}, want: []string{shownUnknown}},
		"TLS without a name":       {wishes: []string{"nas: https - 443"}, want: []string{shownUnknown}},
		"a whole port with a name": {policy: "policy: {funnel: [{nodes: [nas], ports: [25/tcp]}]}\n", wishes: []string{"nas: tcp nas 25"}, want: []string{shownUnknown}},
		"port 0":                   {wishes: []string{"nas: https nas 0"}, want: []string{shownNoPort}},
		"the policy":               {policy: "policy: {funnel: [nas]}\n", wishes: []string{"tv: https tv 443"}, want: []string{shownNot}},
		"a port of the gateway": {
			barred: map[showPorts]string{{53, 53, ""}: "it is taken"}, policy: "policy: {funnel: [{nodes: [nas], ports: [53/udp]}]}\n",
			wishes: []string{"nas: udp - 53"}, want: []string{shownNoPort},
		},
		"a domain, not looked up": {wishes: []string{"nas: https www.example.com 443"}, want: []string{shownWaiting}},
		"a domain": {
			proofs: map[string]domainProof{domain: alias("nas." + rigZone)}, wishes: []string{"nas: https www.example.com 443"}, want: []string{"open"},
			shown: []string{"https www.example.com 443: nas publish nas"},
		},
		"a domain, by further aliases": {
			proofs: map[string]domainProof{domain: alias("cdn.example.com", "photos."+rigZone)}, wishes: []string{"nas: https www.example.com 443"}, want: []string{"open"},
			shown: []string{"https www.example.com 443: nas publish photos"},
		},
		"a domain that is another node's":         {proofs: map[string]domainProof{domain: alias("nas." + rigZone)}, wishes: []string{"tv: https www.example.com 443"}, want: []string{shownUnproven}},
		"a domain that leads elsewhere":           {proofs: map[string]domainProof{domain: alias("nas.example.net")}, wishes: []string{"nas: https www.example.com 443"}, want: []string{shownUnproven}},
		"a domain that leads to a label":          {proofs: map[string]domainProof{domain: alias("nas")}, wishes: []string{"nas: https www.example.com 443"}, want: []string{shownUnproven}},
		"a domain without anything":               {proofs: map[string]domainProof{domain: alias()}, wishes: []string{"nas: https www.example.com 443"}, want: []string{shownUnproven}},
		"a domain that cannot be looked up":       {proofs: map[string]domainProof{domain: {err: errors.New("no")}}, wishes: []string{"nas: https www.example.com 443"}, want: []string{shownUnproven}},
		"a domain by a text":                      {proofs: map[string]domainProof{domain: text("NAS." + rigZone + ".")}, wishes: []string{"nas: https www.example.com 443"}, want: []string{"open"}, shown: []string{"https www.example.com 443: nas publish "}},
		"a domain by a text for another":          {proofs: map[string]domainProof{domain: text("nas." + rigZone)}, wishes: []string{"tv: https www.example.com 443"}, want: []string{shownUnproven}},
		"a domain by a text without the zone":     {proofs: map[string]domainProof{domain: text("nas")}, wishes: []string{"nas: https www.example.com 443"}, want: []string{shownUnproven}},
		"a domain of two, and policy is silent":   {proofs: map[string]domainProof{domain: text("nas."+rigZone, "tv."+rigZone)}, wishes: []string{"tv: https www.example.com 443", "nas: https www.example.com 443"}, want: []string{"open", shownTaken}, shown: []string{"https www.example.com 443: tv publish "}},
		"a domain of two, and policy lists both":  {policy: both, proofs: map[string]domainProof{domain: text("nas."+rigZone, "tv."+rigZone)}, wishes: []string{"tv: https www.example.com 443", "nas: https www.example.com 443"}, want: []string{"open", "open"}, shown: []string{"https www.example.com 443: tv nas publish "}},
		"listed with a name, its owner not there": {policy: both, wishes: []string{"tv: https photos 443"}, want: []string{"open"}, shown: []string{"https photos 443: tv publish photos"}},
		"listed with a name, its owner first":     {policy: both, wishes: []string{"tv: https photos 443", "nas: https photos 443"}, want: []string{"open", "open"}, shown: []string{"https photos 443: nas tv publish photos"}},
		"listed with a name, alone": {
			policy: "policy: {funnel: ['*', {nodes: [tv], names: [photos]}]}\n", wishes: []string{"tv: https photos 443"}, want: []string{shownNobodys},
		},
		"two kinds of one name": {
			policy: both, wishes: []string{"tv: tls-terminated-tcp photos 443", "nas: https photos 443"}, want: []string{shownTaken, "open"},
			shown: []string{"https photos 443: nas publish photos"},
		},
		"two kinds of one name of one node": {
			wishes: []string{"nas: https nas 443", "nas: tls-terminated-tcp nas 443"}, want: []string{"open", shownTaken}, shown: []string{"https nas 443: nas publish nas"},
		},
		"a whole port, and another's": {
			policy: "policy: {funnel: [{nodes: ['*'], ports: ['1000-2000/tcp', '1000/udp']}]}\n",
			wishes: []string{"tv: tcp - 1000", "nas: tcp - 1000", "nas: udp - 1000", "nas: tcp - 1001"}, want: []string{"open", shownTaken, "open", "open"},
			shown: []string{"tcp - 1000: tv publish tv", "udp - 1000: nas publish nas", "tcp - 1001: nas publish nas"},
		},
		"the public port as a whole": {
			policy: "policy: {funnel: [{nodes: ['*'], ports: ['443/tcp']}]}\n", wishes: []string{"tv: tcp - 443"}, want: []string{shownTaken},
		},
		"a whole port that is for names": {
			policy: "policy: {funnel: [{nodes: [tv], ports: ['8443/tcp']}, {nodes: [nas], ports: ['8443']}]}\n",
			wishes: []string{"tv: tcp - 8443", "nas: https nas 8443"}, want: []string{shownTaken, "open"}, shown: []string{"https nas 8443: nas publish nas"},
		},
	} {
		t.Run(name, c.run)
	}
}

// What is said of a refusal names what mends it, in words that the policy takes.
func TestAPolicyTakesTheLineThatARefusalNames(t *testing.T) {
	for _, text := range []string{"https tv 443", "https films 443", "https tv 8443", "tcp - 25565", "udp - 53", "https www.example.com 443"} {
		c := decideCase{policy: "policy: {funnel: []}\n"}
		f := wished(t, text)
		m, err := parseMap("m", []byte(decideMap+c.policy))
		if err != nil {
			t.Fatal(err)
		}
		tv, _ := m.Node("tv")
		if m.showing.allows(rigZone, tv, f) {
			t.Errorf("%s: allowed", text)
		}
		m, err = parseMap("m", []byte(decideMap+"policy: {"+policyLine("tv", f, rigZone)+"}\n"))
		if err != nil {
			t.Errorf("%s: %v", text, err)
			continue
		}
		if !m.showing.allows(rigZone, tv, f) {
			t.Errorf("%s: %s does not let it", text, policyLine("tv", f, rigZone))
		}
	}
}

// The public names lead to the gateway, and say nothing of who is behind them.
func TestRecordsOfWhatIsShown(t *testing.T) {
	list := []shown{
		{name: "nas." + rigZone, port: 443, kind: kindHTTPS, publish: "nas." + rigZone, nodes: []string{"nas"}},
		{name: "www.example.com", port: 443, kind: kindHTTPS, publish: "tv." + rigZone},
		{name: "films." + rigZone, port: 8443, kind: kindHTTPS, publish: "films." + rigZone},
		{name: "mail." + rigZone, port: 443, kind: kindTLS, publish: "mail." + rigZone},
		{port: 25565, kind: kindTCP, publish: "tv." + rigZone},
		{name: "apex.example", port: 443, kind: kindHTTPS},
	}
	var got []string
	for _, rr := range shownRecords(addrs("203.0.113.5", "2001:db8::5"), publicPort, list) {
		got = append(got, strings.ReplaceAll(strings.ReplaceAll(rr.String(), "\t", " "), " 60 IN ", " "))
	}
	want := []string{
		"films.foo-bar.example.org. A 203.0.113.5", "films.foo-bar.example.org. AAAA 2001:db8::5",
		"mail.foo-bar.example.org. A 203.0.113.5", "mail.foo-bar.example.org. AAAA 2001:db8::5",
		"nas.foo-bar.example.org. A 203.0.113.5", "nas.foo-bar.example.org. AAAA 2001:db8::5",
		"tv.foo-bar.example.org. A 203.0.113.5", "tv.foo-bar.example.org. AAAA 2001:db8::5",
		`_8443._https.films.foo-bar.example.org. HTTPS 1 films.foo-bar.example.org. alpn="h2,http/1.1"`,
		`nas.foo-bar.example.org. HTTPS 1 . alpn="h2,http/1.1"`,
	}
	if !slices.Equal(got, want) {
		t.Errorf("got\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
	for _, rr := range shownRecords(addrs("203.0.113.5"), 9443, list) {
		if text := rr.String(); strings.Contains(text, `alpn="h2`) && strings.HasPrefix(text, "nas.") != strings.Contains(text, `port="9443"`) {
			t.Errorf("at another port: %s", text)
		}
	}
	// Where the zone is served elsewhere its owner is told of the same addresses.
	var elsewhere []string
	for _, r := range pinnedAddresses(addrs("203.0.113.5", "2001:db8::5"), list) {
		elsewhere = append(elsewhere, r.Name+" "+r.Type+" "+r.Data)
	}
	slices.Sort(elsewhere)
	if !slices.Equal(elsewhere, want[:8]) {
		t.Errorf("elsewhere\n%s\nwant\n%s", strings.Join(elsewhere, "\n"), strings.Join(want[:8], "\n"))
	}
}

package funnel

import (
	"encoding/json"
	"fmt"
	"net/http"
	"net/netip"
	"net/url"
	"path"
	"reflect"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

func TestAccessNamesWhatCannotBe(t *testing.T) {
	provider := OIDC{Issuer: "https://id.example", ClientID: "nas", Mails: []string{"ann@example.com"}}
	oidcWith := func(change func(*OIDC)) Access {
		o := provider
		change(&o)
		return Access{Login: &o}
	}
	many := make([]string, maxListed+1)
	for i := range many {
		many[i] = fmt.Sprint("/", i)
	}
	for name, test := range map[string]struct {
		access Access
		want   string // "" if it can be
	}{
		"nothing":                 {Access{}, ""},
		"host bits":               {Access{Allow: prefixes("192.0.2.1/24")}, "allow: 192.0.2.1/24"},
		"IPv4 in IPv6":            {Access{Deny: prefixes("::ffff:192.0.2.0/120")}, "deny: "},
		"no prefix":               {Access{Deny: make([]netip.Prefix, 1)}, "deny: "},
		"too many prefixes":       {Access{Deny: make([]netip.Prefix, maxPrefixes+1)}, "deny: 10001"},
		"an empty node":           {Access{Nodes: []string{"tag:"}}, "nodes: "},
		"a small method":          {Access{Methods: []string{"get"}}, "methods: "},
		"a method with a line":    {Access{Methods: []string{"GET\r\n"}}, "methods: "},
		"a path from nowhere":     {Access{Paths: []string{"x"}}, "paths: "},
		"a path with escapes":     {Access{Paths: []string{"/%2e%2e/"}}, "paths: "},
		"a path with dots":        {Access{Paths: []string{"/a/../b"}}, "paths: "},
		"a long path":             {Access{Paths: []string{"/" + strings.Repeat("x", 5000)}}, "paths: "},
		"too many paths":          {Access{Paths: many}, "paths: 1001"},
		"an origin with a path":   {Access{Origins: []string{"https://x.example/"}}, "origins: "},
		"an origin in capitals":   {Access{Origins: []string{"https://X.example"}}, "origins: "},
		"a null origin":           {Access{Origins: []string{"null"}}, "origins: "},
		"good origins":            {Access{Origins: []string{"https://x.example:8443", "*"}}, ""},
		"a negative rate":         {Access{Rate: Rate{Count: -1, Per: time.Second}}, "rate: "},
		"a rate per week":         {Access{Rate: Rate{Count: 1, Per: 7 * 24 * time.Hour}}, "rate: "},
		"basic without users":     {Access{Basic: &Basic{}}, "basic.users"},
		"a user with a colon":     {withUsers(map[string]string{"a:b": cheapHash}), `basic.users: "a:b"`},
		"a realm that breaks out": {Access{Basic: &Basic{Realm: `x", y="`, Users: map[string]string{"ann": cheapHash}}}, "basic.realm"},
		"a realm with a line":     {Access{Basic: &Basic{Realm: "x\r\ny", Users: map[string]string{"ann": cheapHash}}}, "basic.realm"},
		"a long notice":           {Access{Maintenance: &Maintenance{Text: strings.Repeat("x", 5000)}}, "maintenance.text"},
		"a notice's prefix":       {Access{Maintenance: &Maintenance{Except: prefixes("10.1.1.1/8")}}, "maintenance.except"},
		"a provider":              {Access{Login: &provider}, ""},
		"nobody on the list":      {oidcWith(func(o *OIDC) { o.Mails = nil }), "says nobody who may"},
		"everybody on the list":   {oidcWith(func(o *OIDC) { o.Mails = []string{"*"} }), "login.mails"},
		"every mail of a pattern": {oidcWith(func(o *OIDC) { o.Mails = []string{"*@example.com"} }), "login.mails"},
		"an empty domain":         {oidcWith(func(o *OIDC) { o.Mails = []string{"@"} }), "login.mails"},
		"an empty mail":           {oidcWith(func(o *OIDC) { o.Mails = []string{""} }), "login.mails"},
		"an empty subject":        {oidcWith(func(o *OIDC) { o.Subjects = []string{""} }), "login.subjects"},
		"a domain":                {oidcWith(func(o *OIDC) { o.Mails = []string{"@example.com"} }), ""},
		"an issuer in the clear":  {oidcWith(func(o *OIDC) { o.Issuer = "http://id.example" }), "login.issuer"},
		"an issuer on loopback":   {oidcWith(func(o *OIDC) { o.Issuer = "http://127.0.0.1:5556/dex" }), ""},
		"an issuer with a query":  {oidcWith(func(o *OIDC) { o.Issuer = "https://id.example?x" }), "login.issuer"},
		"an issuer with a user":   {oidcWith(func(o *OIDC) { o.Issuer = "https://a:b@id.example" }), "login.issuer"},
		"no client":               {oidcWith(func(o *OIDC) { o.ClientID = "" }), "login.clientID"},
		"a login for years":       {oidcWith(func(o *OIDC) { o.Lifetime = 10000 * time.Hour }), "login.lifetime"},
		"a scope of two words":    {oidcWith(func(o *OIDC) { o.Scopes = []string{"email groups"} }), "login.scopes"},
	} {
		t.Run(name, func(t *testing.T) {
			err := test.access.Check()
			if test.want == "" && err != nil || test.want != "" && (err == nil || !strings.Contains(err.Error(), test.want)) {
				t.Errorf("got %v, want %q", err, test.want)
			}
		})
	}
}

func TestAccessIsDataWithoutLoss(t *testing.T) {
	share, _ := NewShare(time.Date(2027, 1, 2, 3, 4, 5, 0, time.UTC))
	a := Access{
		Allow: prefixes("192.0.2.0/24"), Rate: Rate{Count: 10, Per: time.Minute, Burst: 20}, Methods: []string{"GET"}, Paths: []string{"/x/"},
		Basic: &Basic{Users: map[string]string{"ann": cheapHash}}, Shares: []Share{share},
		Login:       &OIDC{Issuer: "https://id.example", ClientID: "nas", Secret: "client's", Mails: []string{"@example.com"}},
		Maintenance: &Maintenance{Text: "soon"},
	}
	text, err := json.Marshal(a)
	if err != nil {
		t.Fatal(err)
	}
	var back Access
	if err := json.Unmarshal(text, &back); err != nil || !reflect.DeepEqual(a, back) {
		t.Errorf("%v\ngot  %+v\nwant %+v", err, back, a)
	}
	if text, _ := json.Marshal(Entry{}); strings.Contains(string(text), "access") {
		t.Errorf("no rules are written as %s", text)
	}
	shown, err := json.Marshal(a.Redacted())
	if err != nil {
		t.Fatal(err)
	}
	for _, secret := range []string{cheapHash, share.Hash, "client's"} {
		if strings.Contains(string(shown), secret) {
			t.Errorf("%s is shown in %s", secret, shown)
		}
	}
	if a.Basic.Users["ann"] != cheapHash || a.Shares[0].Hash != share.Hash || a.Login.Secret != "client's" {
		t.Error("what is shown has changed what it is of")
	}
}

func TestRatesAreText(t *testing.T) {
	for text, want := range map[string]Rate{
		"":                {},
		"10/s":            {Count: 10, Per: time.Second},
		"100/m":           {Count: 100, Per: time.Minute},
		"1/h burst 5":     {Count: 1, Per: time.Hour, Burst: 5},
		"1000000/s":       {Count: maxRate, Per: time.Second},
		"  10/s  burst 3": {Count: 10, Per: time.Second, Burst: 3},
	} {
		var got Rate
		if err := got.UnmarshalText([]byte(text)); err != nil || got != want {
			t.Errorf("%q: %+v, %v", text, got, err)
		}
	}
	for _, text := range []string{"10", "10/", "/s", "0/s", "-1/s", "1000001/s", "10/d", "1.5/s", "10/s burst", "10/s burst 0", "10/s burst -1", "10/s x 5", "10/s burst 5 6", "99999999999999999999/s", " "} {
		got := Rate{Count: 7}
		if err := got.UnmarshalText([]byte(text)); err == nil || got != (Rate{Count: 7}) {
			t.Errorf("%q was taken as %+v", text, got)
		}
	}
}

func TestClientsAreBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLimiter(Rate{Count: 1, Per: time.Minute})
		addr := func(i int) netip.Addr { return netip.AddrFrom4([4]byte{10, byte(i >> 16), byte(i >> 8), byte(i)}) }
		for i := range maxClients {
			if _, ok := l.take(addr(i), time.Now()); !ok {
				t.Fatalf("client %d had no turn", i)
			}
		}
		// There is no room to tell more apart: they have one turn together, and those that are known are not forgotten.
		if _, ok := l.take(addr(maxClients), time.Now()); !ok {
			t.Error("the first that is not known had no turn")
		}
		if _, ok := l.take(addr(maxClients+1), time.Now()); ok {
			t.Error("the second had one of its own")
		}
		if _, ok := l.take(addr(5), time.Now()); ok {
			t.Error("a client beyond its rate was forgotten")
		}
		if len(l.ahead) > maxClients+1 {
			t.Errorf("%d are known", len(l.ahead))
		}
		time.Sleep(2 * time.Minute)
		if _, ok := l.take(addr(maxClients+1), time.Now()); !ok || len(l.ahead) > 2 {
			t.Errorf("clients at rest are kept: %d", len(l.ahead))
		}
	})
}

// FuzzRate checks that what is read can be written and read again, and that no client gets more than it may.
func FuzzRate(f *testing.F) {
	f.Add("10/s burst 3")
	f.Add("1/h")
	f.Fuzz(func(t *testing.T, text string) {
		var r, again Rate
		if r.UnmarshalText([]byte(text)) != nil {
			return
		}
		if err := again.UnmarshalText([]byte(r.String())); err != nil || again != r {
			t.Fatalf("%+v is %q, which is %+v (%v)", r, r.String(), again, err)
		}
		if r == (Rate{}) {
			return
		}
		l, now, n := newLimiter(r), time.Unix(0, 0), 0
		for range 1000 {
			if _, ok := l.take(netip.Addr{}, now); ok {
				n++
			}
		}
		if most := max(r.Burst, 0); n > 1000 || r.Burst > 0 && n > most || r.Burst == 0 && n > r.Count || n == 0 {
			t.Errorf("%d at once by %+v", n, r)
		}
	})
}

// FuzzAccess checks that rules that are read are bounded, and that no request brings a guard down.
func FuzzAccess(f *testing.F) {
	f.Add(`{"paths":["/x/"],"methods":["GET"],"rate":"10/s"}`, "/x/y?z", "Basic YTpi", "https://a")
	f.Add(`{"shares":[{"id":"a","hash":"`+strings.Repeat("0", 64)+`","until":"2030-01-01T00:00:00Z"}]}`, "/.meshdns/share/x", "", "null")
	f.Add(`{"login":{"issuer":"http://127.0.0.1:1","clientID":"x","subjects":["y"]},"maintenance":{}}`, "/.meshdns/callback?state=x&code=y", "x", "")
	f.Fuzz(func(t *testing.T, text, target, authorization, origin string) {
		var a Access
		u, err := url.ParseRequestURI(target)
		if json.Unmarshal([]byte(text), &a) != nil || a.Check() != nil || a.Basic != nil || err != nil {
			return // hashes take too long here; FuzzPasswordHash has them
		}
		offline := &http.Client{Transport: roundTrip(func(*http.Request) (*http.Response, error) { return nil, errOffline })}
		g, err := newGuard(a, guardConfig{Name: "nas.example.org", Port: 443, Kind: kindHTTPS, Shared: &guards{Client: offline}})
		if err != nil {
			return
		}
		w := &guarded{guard: g, t: t, from: fromWorld("192.0.2.7")}
		answer := w.ask("POST", u.String(), "Authorization", authorization, "Origin", origin)
		if w.got != nil && (a.logsIn() || len(a.Allow) > 0 && !a.Allow[0].Contains(w.from.Addr.Addr()) && len(a.Allow) == 1) {
			t.Errorf("it passed %s: %d", text, answer.Code)
		}
	})
}

// FuzzAmbiguous checks that a path which is not ambiguous stays where a rule has it, however often it is decoded, and
// whether or not parameters are cut off and backslashes turned.
func FuzzAmbiguous(f *testing.F) {
	for _, seed := range []string{"/open/x", "/open/..;/x", "/open/%2e%2e/x", "/open/\\..\\x", "/open/.", "/open/;x"} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, p string) {
		if ambiguous(p) || !covers("/open/", p) {
			return
		}
		var parts []string
		for part := range strings.SplitSeq(strings.ReplaceAll(p, "\\", "/"), "/") {
			name, _, _ := strings.Cut(part, ";")
			parts = append(parts, name)
		}
		for _, read := range []string{p, unescapedPath(p), strings.Join(parts, "/"), unescapedPath(strings.Join(parts, "/"))} {
			if clean := path.Clean(read); !strings.HasPrefix(clean+"/", "/open/") {
				t.Errorf("%q is %q to somebody", p, clean)
			}
		}
		if to := localPath(p, "/"); strings.HasPrefix(to, "//") || to[0] != '/' {
			t.Errorf("goes on to %q", to)
		}
	})
}

func unescapedPath(p string) string {
	if plain, err := url.PathUnescape(p); err == nil {
		return plain
	}
	return p
}

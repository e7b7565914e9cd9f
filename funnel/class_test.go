package funnel

import (
	"crypto/tls"
	"net/http"
	"strings"
	"testing"
)

// handshake tries a TLS handshake.
func (w *world) handshake(addr string, cfg *tls.Config) (*tls.Conn, error) {
	cfg.RootCAs = w.ca.pool
	conn, err := tls.Dial("tcp", addr, cfg)
	if err == nil {
		w.t.Cleanup(func() { conn.Close() })
	}
	return conn, err
}

func host(name string) func(*http.Request) { return func(r *http.Request) { r.Host = name } }

func TestAnotherHostIsMisdirected(t *testing.T) {
	w := newWorld(t)
	to := backend(t, mirror)
	web := site("http", "a.example", 80, false, to)
	web.Aliases = []string{"a", "100.64.0.2", "FD7A:0::2"}
	w.set(site("https", "a.example", 443, false, to), site("https", "b.example", 443, false, "text:b"),
		site("https", "*.wild.example", 443, false, to), web,
		site("https", "public.example", 443, true, to), site("https", "a.example", 8443, false, to))
	secure, plain, public := w.tailnet(443), w.tailnet(80), w.public("public.example", 443, "https")
	for name, test := range map[string]struct {
		addr, url, host string
		want            int
	}{
		"its own":                          {secure, "https://a.example/", "", 200},
		"in capitals":                      {secure, "https://a.example/", "A.EXAMPLE", 200},
		"with a port":                      {secure, "https://a.example/", "a.example:443", 200},
		"with a dot at the end":            {secure, "https://a.example/", "a.example.", 200},
		"another one's":                    {secure, "https://a.example/", "b.example", 421},
		"nobody's":                         {secure, "https://a.example/", "evil.example", 421},
		"an address":                       {secure, "https://a.example/", "127.0.0.1", 421},
		"one of the world":                 {secure, "https://a.example/", "public.example", 421},
		"with a name for a port":           {secure, "https://a.example/", "a.example:x", 421},
		"under a wildcard":                 {secure, "https://x.wild.example/", "", 200},
		"the other one under it":           {secure, "https://x.wild.example/", "y.wild.example", 421},
		"plain, its own":                   {plain, "http://a.example/", "", 200},
		"plain, a short name":              {plain, "http://a/", "", 200},
		"plain, an address":                {plain, "http://100.64.0.2/", "", 200},
		"plain, an address of IPv6":        {plain, "http://[fd7a::2]:80/", "", 200},
		"plain, a name that was rebound":   {plain, "http://evil.example/", "", 421},
		"plain, one that only https has":   {plain, "http://b.example/", "", 421},
		"plain, another address":           {plain, "http://127.0.0.1/", "", 421},
		"funnel, its own":                  {public, "https://public.example/", "", 200},
		"funnel, one of the tailnet":       {public, "https://public.example/", "a.example", 421},
		"funnel, one of the tailnet alone": {public, "https://public.example/", "100.64.0.2", 421},
	} {
		t.Run(name, func(t *testing.T) {
			for _, protocols := range []func(*http.Protocols){http1, func(p *http.Protocols) { p.SetHTTP2(true); p.SetUnencryptedHTTP2(true) }} {
				change := func(*http.Request) {}
				if test.host != "" {
					change = host(test.host)
				}
				got := w.get(w.client(test.addr, protocols), test.url, change)
				if got.status != test.want {
					t.Errorf("%s: %d %s", got.proto, got.status, got.body)
				}
			}
		})
	}
}

// A browser uses one HTTP/2 connection for all names in its certificate that have the same address (RFC 9113, section 9.1.1).
func TestAConnectionForOneNameHasNoOther(t *testing.T) {
	w := newWorld(t)
	w.set(site("https", "a.example", 443, false, "text:a"), site("https", "b.example", 443, false, "text:b"))
	c := w.client(w.tailnet(443), http2)
	if got := w.get(c, "https://a.example/"); got.body != "a" || got.proto != "HTTP/2.0" {
		t.Fatalf("%+v", got)
	}
	// The same connection, for its transport pools by URL.
	if got := w.get(c, "https://a.example/", host("b.example")); got.status != 421 || strings.Contains(got.body, "b\n") {
		t.Errorf("%+v", got)
	}
	if got := w.get(c, "https://b.example/"); got.body != "b" {
		t.Errorf("on a connection of its own: %+v", got)
	}
}

func TestTheWorldNeverReachesTheTailnet(t *testing.T) {
	w := newWorld(t)
	both := []Entry{site("https", "a.example", 443, false, "text:tailnet"), site("https", "public.example", 443, true, "text:world"),
		site("https", "b.example", 443, true, "text:another one's"), {Kind: "tcp", Port: 5432, Target: "5432"}}
	w.set(both...)
	for name, test := range map[string]struct {
		gateway string // what the gateway has read
		port    uint16
		kind    string
		sni     string
	}{
		"a name of the tailnet":                {"a.example", 443, "https", "a.example"},
		"one name outside and another inside":  {"public.example", 443, "https", "a.example"},
		"one name and another, both outside":   {"public.example", 443, "https", "b.example"},
		"another port":                         {"public.example", 8443, "https", "public.example"},
		"no name":                              {"public.example", 443, "https", ""},
		"no name that the gateway could read":  {"", 443, "https", "a.example"},
		"a port of the tailnet alone":          {"", 5432, "tcp", "a.example"},
		"a name that nobody has":               {"evil.example", 443, "https", "evil.example"},
		"a kind that makes no difference here": {"a.example", 443, "tcp", "a.example"},
	} {
		t.Run(name, func(t *testing.T) {
			cfg := &tls.Config{ServerName: test.sni, InsecureSkipVerify: true}
			conn, err := w.handshake(w.public(test.gateway, test.port, test.kind), cfg)
			if err == nil {
				t.Fatalf("a handshake with %v", conn.ConnectionState().PeerCertificates[0].DNSNames)
			}
			if test.port == 443 && !strings.HasSuffix(err.Error(), "tls: unrecognized name") {
				t.Errorf("%v, want the alert unrecognized_name", err)
			}
		})
	}
	// And the other way round.
	if _, err := w.handshake(w.tailnet(443), &tls.Config{ServerName: "public.example"}); err == nil {
		t.Error("the tailnet's listener has what is for the world")
	}
}

func TestANameMayStandForTwoThings(t *testing.T) {
	w := newWorld(t)
	w.set(site("https", "a.example", 443, false, "text:tailnet"), site("https", "a.example", 443, true, "text:world"))
	if got := w.get(w.client(w.tailnet(443), http2), "https://a.example/"); got.body != "tailnet" {
		t.Errorf("%+v", got)
	}
	if got := w.get(w.client(w.public("a.example", 443, "https"), http2), "https://a.example/"); got.body != "world" {
		t.Errorf("%+v", got)
	}
}

// A ticket of one name would skip the choice of a certificate, and with it who is asked for.
func TestSessionsResumeForTheSameNameAlone(t *testing.T) {
	w := newWorld(t)
	entries := []Entry{site("https", "a.example", 443, false, "text:a"), site("https", "b.example", 443, false, "text:b"),
		site("https", "*.wild.example", 443, false, "text:w"), site("https", "a.example", 443, true, "text:world")}
	w.set(entries...)
	tailnet, public := w.tailnet(443), w.public("a.example", 443, "https")
	resumes := func(cache tls.ClientSessionCache, addr, name string) bool {
		t.Helper()
		conn, err := w.handshake(addr, &tls.Config{ServerName: name, ClientSessionCache: cache})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := conn.Write([]byte("GET / HTTP/1.1\r\nHost: " + name + "\r\nConnection: close\r\n\r\n")); err != nil {
			t.Fatal(err)
		}
		for buf := make([]byte, 1000); err == nil; { // TLS 1.3 has its tickets behind the handshake
			_, err = conn.Read(buf)
		}
		return conn.ConnectionState().DidResume
	}
	one := &oneSession{}
	resumes(one, tailnet, "a.example")
	if !resumes(one, tailnet, "a.example") {
		t.Fatal("a session does not resume at all")
	}
	w.set(append(entries, site("http", "a.example", 80, false, "text:more"))...)
	if !resumes(one, tailnet, "a.example") {
		t.Error("a new list has ended sessions")
	}
	if resumes(one, public, "a.example") {
		t.Error("a session of the tailnet resumes in the world")
	}
	if resumes(one, tailnet, "b.example") {
		t.Error("a session resumes for another name")
	}
	resumes(one, tailnet, "x.wild.example")
	if resumes(one, tailnet, "y.wild.example") {
		t.Error("a session resumes for another name of a wildcard")
	}
	// Tickets of TLS 1.2 would tell all that was said to whoever gets the key of tickets, within a week.
	old := &oneSession{}
	conn, err := w.handshake(tailnet, &tls.Config{ServerName: "a.example", ClientSessionCache: old, MaxVersion: tls.VersionTLS12})
	if err != nil {
		t.Fatal(err)
	}
	if conn.ConnectionState().Version != tls.VersionTLS12 || old.session != nil {
		t.Errorf("%s has a ticket: %v", tls.VersionName(conn.ConnectionState().Version), old.session != nil)
	}
}

// oneSession offers its session to every server.
type oneSession struct{ session *tls.ClientSessionState }

func (c *oneSession) Get(string) (*tls.ClientSessionState, bool) { return c.session, c.session != nil }

func (c *oneSession) Put(_ string, s *tls.ClientSessionState) {
	if s != nil {
		c.session = s
	}
}

func TestEntriesThatClashChangeNothing(t *testing.T) {
	w := newWorld(t)
	w.set(site("https", "a.example", 443, false, "text:first"))
	secure := w.tailnet(443)
	for name, test := range map[string]struct {
		entries []Entry
		want    string
	}{
		"one place twice":           {[]Entry{site("https", "a.example", 443, false, "1"), site("https", "a.example", 443, false, "2")}, "entries[1]: port 443 of \"a.example\" is served already"},
		"plain and secure":          {[]Entry{site("https", "a.example", 443, false, "1"), site("http", "b.example", 443, false, "2")}, "entries[1]: port 443 is one of https already"},
		"a port and a name":         {[]Entry{{Kind: "tcp", Port: 443, Target: "22"}, site("https", "b.example", 443, false, "2")}, "entries[1]: port 443 is one of tcp already"},
		"an alias that is a name":   {[]Entry{site("http", "a.example", 80, false, "1"), {Kind: "http", Name: "b.example", Port: 80, Aliases: []string{"a.example"}, Mounts: []Mount{{Path: "/", Target: "1"}}}}, "\"a.example\" is served already"},
		"what cannot be, twice":     {[]Entry{site("https", "A", 443, false, "1"), site("x", "a", 0, false, "2")}, "entries[1]: port \"0\""},
		"plain HTTP to the world":   {[]Entry{site("http", "a.example", 80, true, "1")}, "to the world there is https alone"},
		"a site without a mount":    {[]Entry{{Kind: "https", Name: "a.example", Port: 443}}, "mounts \"0\""},
		"an insecure other machine": {[]Entry{site("https", "a.example", 443, false, "https+insecure://192.0.2.1")}, "give tlsPin"},
	} {
		t.Run(name, func(t *testing.T) {
			err := w.server.Set(test.entries)
			if err == nil || !strings.Contains(err.Error(), test.want) {
				t.Errorf("%v, want %s", err, test.want)
			}
			if got := w.get(w.client(secure, http2), "https://a.example/"); got.body != "first" {
				t.Errorf("%+v", got)
			}
		})
	}
	// TLS for names and TLS that ends here for bare bytes can share a port.
	w.set(site("https", "a.example", 443, false, "1"), Entry{Kind: "tls-terminated-tcp", Name: "b.example", Port: 443, Target: "22"},
		site("https", "a.example", 443, true, "1"))
}

func TestHostName(t *testing.T) {
	for host, want := range map[string]string{
		"a.example": "a.example", "A.Example.:443": "a.example", "[fd7a::2]:80": "fd7a::2", "[fd7a:0::2]": "fd7a::2", "192.0.2.1:8": "192.0.2.1",
		"": "", ":443": "", "x@a.example": "", "a.example:": "", "a.example:443x": "", "a.example:443:443": "", "a..example": "", "[a.example]": "",
		"a.example/": "", "a.example:99999999": "", "[fd7a::2": "", "fd7a::2": "", "a.example\x00": "", "[192.0.2.1]": "", "a.example,b.example": "",
	} {
		got, ok := hostName(host)
		if ok != (want != "") || ok && got != want {
			t.Errorf("%q: %q, %v", host, got, ok)
		}
	}
}

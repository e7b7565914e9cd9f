package certs

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/miekg/dns"
)

const testValue = "gfj9Xq-Rg85nM2ys_8pZDsGUUxbyOuzXJ7u6OfWbdFo"

// world is the DNS as it is asked: by server, name and type.
type world struct {
	mu     sync.Mutex
	zones  map[netip.AddrPort]map[string][]dns.RR // by server; names in lower case with the type
	silent map[netip.AddrPort]bool
	rcode  map[netip.AddrPort]int
}

var resolver = netip.MustParseAddrPort("192.0.2.100:53")

func newWorld(t *testing.T, records ...string) *world {
	t.Helper()
	w := &world{zones: map[netip.AddrPort]map[string][]dns.RR{}, silent: map[netip.AddrPort]bool{}, rcode: map[netip.AddrPort]int{}}
	for _, text := range records {
		w.add(t, resolver, text)
	}
	return w
}

func (w *world) add(t *testing.T, server netip.AddrPort, text string) {
	t.Helper()
	rr, err := dns.NewRR(text)
	if err != nil {
		t.Fatal(err)
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.zones[server] == nil {
		w.zones[server] = map[string][]dns.RR{}
	}
	key := strings.ToLower(rr.Header().Name) + dns.TypeToString[rr.Header().Rrtype]
	w.zones[server][key] = append(w.zones[server][key], rr)
}

func (w *world) exchange(_ context.Context, q *dns.Msg, server netip.AddrPort) (*dns.Msg, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.silent[server] {
		return nil, errors.New("i/o timeout")
	}
	m := new(dns.Msg).SetReply(q)
	m.Rcode = w.rcode[server]
	m.Answer = w.zones[server][strings.ToLower(q.Question[0].Name)+dns.TypeToString[q.Question[0].Qtype]]
	return m, nil
}

func (w *world) lookup() Lookup {
	return Lookup{Resolvers: func() []netip.AddrPort { return []netip.AddrPort{resolver} }, Exchange: w.exchange}
}

// zoned is a world with a zone of two servers.
func zoned(t *testing.T) (w *world, one, two netip.AddrPort) {
	t.Helper()
	w = newWorld(t,
		"example.org. SOA ns1.example.org. root.example.org. 1 1 1 1 1",
		"example.org. NS ns1.example.org.", "example.org. NS ns2.example.org.",
		"ns1.example.org. A 192.0.2.1", "ns2.example.org. AAAA 2001:db8::2")
	return w, netip.MustParseAddrPort("192.0.2.1:53"), netip.MustParseAddrPort("[2001:db8::2]:53")
}

func TestWhereAChallengeIsWritten(t *testing.T) {
	w, _, _ := zoned(t)
	chain := "a"
	for i := range 12 {
		next := fmt.Sprintf("%s%d", "a", i)
		w.add(t, resolver, chain+".long. CNAME "+next+".long.")
		chain = next
	}
	for _, text := range []string{
		"_acme-challenge.nas.example.net. CNAME _acme-challenge.nas.Example.ORG.",
		"one.loop. CNAME two.loop.", "two.loop. CNAME ONE.loop.", "self.loop. CNAME self.loop.",
		"sub.example.org. SOA ns1.example.org. root.example.org. 1 1 1 1 1",
	} {
		w.add(t, resolver, text)
	}
	for name, want := range map[string]string{
		"_acme-challenge.nas.example.org":     "_acme-challenge.nas.example.org in example.org",
		"_acme-challenge.nas.sub.example.org": "_acme-challenge.nas.sub.example.org in sub.example.org",
		"_acme-challenge.nas.example.net":     "_acme-challenge.nas.example.org in example.org",
		"one.loop":                            "the CNAMEs of one.loop lead back to one.loop",
		"self.loop":                           "the CNAMEs of self.loop lead back to self.loop",
		"a.long":                              "a.long leads through more than 8 CNAMEs",
		"nobody.has.this":                     "no zone has nobody.has.this",
	} {
		at, zone, err := w.lookup().place(t.Context(), name)
		got := at + " in " + zone
		if err != nil {
			got = err.Error()
		}
		if got != want {
			t.Errorf("%s: got %q, want %q", name, got, want)
		}
	}
	w.rcode[resolver] = dns.RcodeServerFailure
	if _, _, err := w.lookup().place(t.Context(), "nas.example.org"); err == nil || !strings.Contains(err.Error(), "SERVFAIL") {
		t.Errorf("of a resolver that fails: %v", err)
	}
	if _, _, err := (Lookup{}).place(t.Context(), "nas.example.org"); err == nil {
		t.Error("without a resolver a zone is found")
	}
}

// A CA may ask any server of a zone, so one that lacks the value is waited for, and one that is silent is not for ever.
func TestEveryServerHasToHaveTheValue(t *testing.T) {
	const name = "_acme-challenge.nas.example.org"
	record := name + ". TXT " + testValue
	for what, tt := range map[string]struct {
		make func(t *testing.T, w *world, one, two netip.AddrPort)
		took time.Duration // 0: at once
		why  string
	}{
		"both have it": {func(t *testing.T, w *world, one, two netip.AddrPort) {
			w.add(t, one, record)
			w.add(t, two, record)
		}, 0, ""},
		"beside another value": {func(t *testing.T, w *world, one, two netip.AddrPort) {
			w.add(t, one, name+". TXT other")
			w.add(t, one, record)
			w.add(t, two, record)
		}, 0, ""},
		"one does not": {func(t *testing.T, w *world, one, _ netip.AddrPort) { w.add(t, one, record) },
			time.Minute, "ns2.example.org (2001:db8::2): it does not have the value"},
		"one says that there is no such name": {func(t *testing.T, w *world, one, two netip.AddrPort) {
			w.add(t, one, record)
			w.rcode[two] = dns.RcodeNameError
		}, time.Minute, "ns2.example.org (2001:db8::2): it answers NXDOMAIN"},
		"one is silent": {func(t *testing.T, w *world, one, two netip.AddrPort) {
			w.add(t, one, record)
			w.silent[two] = true
		}, silentTime, ""},
		"both are silent": {func(_ *testing.T, w *world, one, two netip.AddrPort) { w.silent[one], w.silent[two] = true, true },
			time.Minute, "i/o timeout"},
		"one has it later": {func(t *testing.T, w *world, one, two netip.AddrPort) {
			w.add(t, one, record)
			time.AfterFunc(7*time.Second, func() { w.add(t, two, record) })
		}, 7 * time.Second, ""},
	} {
		t.Run(what, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w, one, two := zoned(t)
				tt.make(t, w, one, two)
				ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
				defer cancel()
				start := time.Now()
				err := w.lookup().await(ctx, "example.org", name, testValue)
				took := time.Since(start)
				if tt.why == "" && err != nil || tt.why != "" && (err == nil || !strings.Contains(err.Error(), tt.why)) {
					t.Errorf("got %v, want %q", err, tt.why)
				}
				if took < tt.took || took > tt.took+longestPause {
					t.Errorf("it took %s, want %s", took, tt.took)
				}
			})
		})
	}
	w := newWorld(t, "example.org. NS nowhere.example.org.")
	if err := w.lookup().await(t.Context(), "example.org", name, testValue); err == nil || !strings.Contains(err.Error(), "names no server") {
		t.Errorf("of a zone without servers: %v", err)
	}
}

func TestAProvidersSettings(t *testing.T) {
	const secret = "s3cret-token"
	for what, tt := range map[string]struct {
		name     string
		settings map[string]string
		why      string
	}{
		"as it is told":       {"cloudflare", map[string]string{"api_token": secret}, ""},
		"an unknown provider": {"clodflare", nil, `DNS provider "clodflare" is not in this build`},
		"an unknown setting":  {"cloudflare", map[string]string{"api_tokn": secret}, `unknown setting "api_tokn"`},
		"of another kind":     {"bunny", map[string]string{"access_key": secret, "debug": "perhaps"}, `setting debug`},
	} {
		p, err := NewProvider(ProviderConfig{Name: tt.name, Settings: tt.settings})
		if tt.why == "" {
			if err != nil {
				t.Errorf("%s: %v", what, err)
			} else if text := fmt.Sprintf("%v %+v %#v", p, p, p); strings.Contains(text, secret) {
				t.Errorf("%s: it shows its secret: %s", what, text)
			}
			continue
		}
		var hint interface{ Hint() string }
		if err == nil || !strings.Contains(err.Error(), tt.why) || !errors.As(err, &hint) || strings.Contains(err.Error()+hint.Hint(), secret) {
			t.Errorf("%s: got %v, want %q and a hint", what, err, tt.why)
		}
	}
	for _, name := range ProviderNames() {
		if len(settings(providers()[name]())) == 0 {
			t.Errorf("%s can be told nothing", name)
		}
	}
	for _, name := range []string{"rfc2136", "cloudflare", "desec", "gandi", "porkbun", "ovh", "inwx", "infomaniak", "ionos", "bunny", "netcup", "godaddy", "digitalocean", "duckdns", "acmedns"} {
		if !slices.Contains(ProviderNames(), name) {
			t.Errorf("%s is missing", name)
		}
	}
}

// A real name server that takes updates under TSIG.
func TestRFC2136ToKnot(t *testing.T) {
	at := knot(t)
	elsewhere := func(ctx context.Context, q *dns.Msg, _ netip.AddrPort) (*dns.Msg, error) { // not at port 53
		m, _, err := new(dns.Client).ExchangeContext(ctx, q, at.String())
		return m, err
	}
	lookup := Lookup{Resolvers: func() []netip.AddrPort { return []netip.AddrPort{at} }, Exchange: elsewhere}
	newOne := func(key string) *writer {
		p, err := NewProvider(ProviderConfig{Name: "rfc2136", Lookup: lookup, Timeout: time.Minute, Settings: map[string]string{
			"server": at.String(), "key_name": "ours.", "key_alg": "hmac-sha256.", "key": key,
		}})
		if err != nil {
			t.Fatal(err)
		}
		return p
	}
	const name = "_acme-challenge.nas.example.org"
	var steps []string
	ctx := withSteps(t.Context(), func(s Step) { steps = append(steps, s.Stage) })
	p := newOne(knotKey)
	undo, err := p.SetTXT(ctx, name, testValue)
	if err != nil {
		t.Fatal(err)
	}
	if !slices.Equal(steps, []string{"published"}) {
		t.Errorf("told %q", steps)
	}
	another, err := p.SetTXT(t.Context(), name, strings.ToLower(testValue)) // a wildcard's, at the same name
	if err != nil {
		t.Fatal(err)
	}
	if err := lookup.has(t.Context(), at, name, testValue); err != nil {
		t.Errorf("beside another value: %v", err)
	}
	if err := errors.Join(undo(t.Context())); err != nil {
		t.Error(err)
	}
	if err := lookup.has(t.Context(), at, name, testValue); err == nil {
		t.Error("the value is there after undo")
	}
	if err := lookup.has(t.Context(), at, name, strings.ToLower(testValue)); err != nil {
		t.Errorf("the other value: %v", err)
	}
	if err := another(t.Context()); err != nil {
		t.Error(err)
	}
	var step *StepError
	if _, err := newOne("AAAA"+knotKey[4:]).SetTXT(t.Context(), name, testValue); !errors.As(err, &step) || step.Stage != Published || !strings.Contains(err.Error(), name) {
		t.Errorf("under another key: %v", err)
	}
	if _, err := p.SetTXT(t.Context(), "_acme-challenge.nas.example.com", testValue); err == nil {
		t.Error("a name of no zone of the server is written")
	}
}

const knotKey = "c2VjcmV0LXNlY3JldC1zZWNyZXQtc2VjcmV0LXNlY3I="

// knot starts a real Knot for example.org on loopback.
func knot(t *testing.T) netip.AddrPort {
	t.Helper()
	return startNames(t, []string{"knotd", "-c"}, func(dir string, at netip.AddrPort) string {
		return fmt.Sprintf(`server:
  rundir: %[1]q
  listen: "127.0.0.1@%[2]d"
database:
  storage: %[1]q
key:
- id: "ours."
  algorithm: hmac-sha256
  secret: %[3]s
acl:
- id: ours
  key: "ours."
  action: update
zone:
- domain: example.org.
  storage: %[1]q
  file: zone
  acl: ours
  zonefile-sync: -1
  journal-content: none
`, dir, at.Port(), knotKey)
	})
}

// startNames runs a real name server for example.org on loopback, whose zone's file is "zone" in dir. argv is its program, before
// the configuration's file.
func startNames(t *testing.T, argv []string, config func(dir string, at netip.AddrPort) string) netip.AddrPort {
	t.Helper()
	program, err := exec.LookPath(argv[0])
	if err != nil {
		t.Skipf("%s is not installed", argv[0])
	}
	dir := t.TempDir()
	if err := os.Chmod(filepath.Dir(dir), 0o755); err != nil {
		t.Fatal(err)
	}
	zone := "@ 60 SOA ns1 root 1 60 60 60 1\n@ NS ns1\nns1 A 127.0.0.1\n"
	if err := os.WriteFile(filepath.Join(dir, "zone"), []byte(zone), 0o644); err != nil {
		t.Fatal(err)
	}
	for range 10 {
		at := freePort(t)
		path := filepath.Join(dir, "server.conf")
		if err := os.WriteFile(path, []byte(config(dir, at)), 0o644); err != nil {
			t.Fatal(err)
		}
		cmd := exec.CommandContext(t.Context(), program, append(argv[1:], path)...)
		var out strings.Builder
		cmd.Stdout, cmd.Stderr = &out, &out
		cmd.Cancel = func() error { return cmd.Process.Signal(os.Interrupt) }
		cmd.WaitDelay = 5 * time.Second
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		ended := make(chan struct{})
		go func() { defer close(ended); _ = cmd.Wait() }() // it is interrupted at the test's end
		t.Cleanup(func() { <-ended })
		if answers(at, ended) {
			return at
		}
		t.Logf("%s at %s: %s", argv[0], at, out.String())
	}
	t.Fatalf("%s does not start", argv[0])
	return netip.AddrPort{}
}

// answers waits for a server, or for its end.
func answers(at netip.AddrPort, ended <-chan struct{}) bool {
	q := new(dns.Msg).SetQuestion("example.org.", dns.TypeSOA)
	for {
		if m, _, err := (&dns.Client{Timeout: 200 * time.Millisecond}).Exchange(q, at.String()); err == nil && len(m.Answer) > 0 {
			return true
		}
		select {
		case <-ended:
			return false
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// freePort is one that nobody has now, on both transports.
func freePort(t *testing.T) netip.AddrPort {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	return netip.MustParseAddrPort(ln.Addr().String())
}

func TestAProgramThatWrites(t *testing.T) {
	w, one, two := zoned(t)
	dir := t.TempDir()
	script := filepath.Join(dir, "dns")
	said := filepath.Join(dir, "said")
	text := "#!/bin/sh\necho \"$*\" >>" + said + "\n[ ! -e " + dir + "/broken ] || { echo no credentials >&2; exit 3; }\n"
	if err := os.WriteFile(script, []byte(text), 0o700); err != nil {
		t.Fatal(err)
	}
	e, err := NewExec([]string{script, "-v"}, w.lookup())
	if err != nil {
		t.Fatal(err)
	}
	const name = "_acme-challenge.nas.example.org"
	for _, server := range []netip.AddrPort{one, two} {
		w.add(t, server, name+". TXT "+testValue)
	}
	undo, err := e.SetTXT(t.Context(), name, testValue)
	if err != nil {
		t.Fatal(err)
	}
	if err := undo(t.Context()); err != nil {
		t.Error(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "broken"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	var step *StepError
	if _, err := e.SetTXT(t.Context(), name, testValue); !errors.As(err, &step) || step.Stage != Published || !strings.Contains(err.Error(), "no credentials") {
		t.Errorf("a program that fails: %v", err)
	}
	words := " " + name + " " + testValue + "\n"
	want := "-v present" + words + "-v cleanup" + words + "-v present" + words + "-v cleanup" + words
	if got, err := os.ReadFile(said); err != nil || string(got) != want {
		t.Errorf("ran with %q, %v", got, err)
	}
	if _, err := NewExec(nil, w.lookup()); err == nil {
		t.Error("no program is taken for one")
	}
}

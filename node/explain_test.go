package node

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/miekg/dns"
)

// whats are what an explanation's steps are about, in order.
func (r ExplainResult) whats() string {
	words := make([]string, len(r.Steps))
	for i, step := range r.Steps {
		words[i] = step.What
	}
	return strings.Join(words, " ")
}

// detail is what the first step about what says, or "".
func (r ExplainResult) detail(what string) string {
	for _, step := range r.Steps {
		if step.What == what {
			return step.Detail
		}
	}
	return ""
}

// zoneServer answers for the names it has, and that there is no other.
func zoneServer(t *testing.T, records map[string]string) string {
	t.Helper()
	return testServer(t, func(w dns.ResponseWriter, q *dns.Msg) {
		m := new(dns.Msg).SetReply(q)
		text, ok := records[strings.ToLower(q.Question[0].Name)] // the case of letters is made random
		if !ok {
			m.Rcode = dns.RcodeNameError
		} else if rr, err := dns.NewRR(q.Question[0].Name + " 600 IN " + text); err == nil && rr.Header().Rrtype == q.Question[0].Qtype {
			m.Answer = append(m.Answer, rr)
		}
		_ = w.WriteMsg(m) // what does not arrive, the test sees
	}).String()
}

func TestExplainTellsWhatAnswers(t *testing.T) {
	corp := zoneServer(t, map[string]string{"www.corp.example.": "A 192.0.2.7"})
	rest := zoneServer(t, map[string]string{"example.com.": "A 192.0.2.8"})
	cfg := testConfig()
	cfg.DNS.Upstreams = []string{rest}
	cfg.DNS.Routes = map[string][]string{"corp.example": {corp}}
	n := startNode(t, cfg, testPaths(t))
	tests := []struct {
		name, kind, source, rcode string
		answers                   int
		step, says                string
	}{
		{"nas.foo-bar.ts.net", "A", "local", "NOERROR", 1, "result", "NOERROR, 1 record"},
		{"nas.foo-bar.ts.net", "AAAA", "local", "NOERROR", 0, "result", "NOERROR, and no AAAA records"},
		{"nope.foo-bar.ts.net", "A", "local", "NXDOMAIN", 0, "result", "NXDOMAIN"},
		{"100.64.0.2", "", "local", "NOERROR", 1, "result", "NOERROR, 1 record"},
		{"www.corp.example", "A", "upstream", "NOERROR", 1, "route", "split route corp.example. is the longest that matches"},
		{"example.com", "A", "upstream", "NOERROR", 1, "route", "no split route matches: the base upstreams"},
		{"gone.example.com", "A", "upstream", "NXDOMAIN", 0, "result", "NXDOMAIN"},
		{"foo.localhost", "A", "special", "NOERROR", 1, "result", "NOERROR, 1 record"},
	}
	for _, tt := range tests {
		t.Run(tt.name+" "+tt.kind, func(t *testing.T) {
			got, err := n.Explain(t.Context(), tt.name, tt.kind)
			must(t, err)
			if got.Source != tt.source || got.Rcode != tt.rcode || len(got.Answer) != tt.answers || !got.Daemon {
				t.Errorf("got %+v, want %s from %s with %d records", got, tt.rcode, tt.source, tt.answers)
			}
			if detail := got.detail(tt.step); detail != tt.says {
				t.Errorf("%s: got %q, want %q", tt.step, detail, tt.says)
			}
			if steps := strings.Fields(got.whats()); len(steps) == 0 || steps[len(steps)-1] != "result" {
				t.Errorf("steps: got %q, want the result last", steps)
			}
		})
	}
}

func TestExplainShowsEveryCandidateThatWasTried(t *testing.T) {
	rest := zoneServer(t, map[string]string{"printer.corp.example.": "A 192.0.2.9"})
	cfg := testConfig()
	cfg.DNS.Upstreams = []string{rest}
	paths := testPaths(t)
	writeTestMap(t, paths, testMap+"dns: {search: [corp.example]}\n")
	n := startNode(t, cfg, paths)
	got, err := n.Explain(t.Context(), "printer", "A")
	must(t, err)
	if got.Name != "printer.corp.example." || got.Source != "upstream" || got.Rcode != "NOERROR" {
		t.Errorf("got %+v, want the second candidate's answer", got)
	}
	if want := "printer has one label, so these are tried: printer.foo-bar.ts.net. printer.corp.example. printer."; got.detail("search") != want {
		t.Errorf("search: got %q, want %q", got.detail("search"), want)
	}
	var results []string
	for _, step := range got.Steps {
		if step.What == "result" {
			results = append(results, step.Detail)
		}
	}
	if want := []string{"NXDOMAIN", "NOERROR, 1 record"}; !slices.Equal(results, want) {
		t.Errorf("results: got %q, want %q", results, want)
	}
	// Of a name that does not exist the last candidate is told.
	if got, err = n.Explain(t.Context(), "scanner", "A"); err != nil || got.Name != "scanner." || got.Rcode != "NXDOMAIN" {
		t.Errorf("a name that is nowhere: got %+v, %v", got, err)
	}
	if got, err = n.Explain(t.Context(), "nas", "A"); err != nil || got.Name != "nas.foo-bar.ts.net." || strings.Count(got.whats(), "result") != 1 {
		t.Errorf("the first candidate: got %+v, %v; want no other tried", got, err)
	}
}

func TestExplainKeepsTheCacheFromStrangers(t *testing.T) {
	rest := zoneServer(t, map[string]string{"secret.example.": "A 192.0.2.9"})
	cfg := testConfig()
	cfg.DNS.Upstreams = []string{rest}
	tn := startNode(t, cfg, testPaths(t))
	if _, got := tn.ask(t, "secret.example."); len(got) != 1 {
		t.Fatalf("got %v, want an answer", got)
	}
	own, err := tn.Explain(t.Context(), "secret.example", "A")
	must(t, err)
	if own.Source != "cache" || own.detail("cache") == "" {
		t.Errorf("the operator: got %+v, want what the cache holds", own)
	}
	n := tn.node
	var told []string
	for _, name := range []string{"secret.example", "never-asked.example"} {
		got, err := n.explain(t.Context(), name, "A", false)
		must(t, err)
		if got.Source != "upstream" || got.detail("cache") != "only root and the daemon's own user are told what it holds" {
			t.Errorf("a stranger about %s: got %+v, want nothing of the cache", name, got)
		}
		told = append(told, got.whats())
	}
	if told[0] != told[1] {
		t.Errorf("a stranger can tell them apart by the steps: %q and %q", told[0], told[1])
	}
}

func TestExplainRefusesWhatIsNoQuestion(t *testing.T) {
	n, c := apiNode(t, testConfig(), &fakeSystem{})
	for _, bad := range [][2]string{{"", ""}, {"a..b", ""}, {"nas", "NOTATYPE"}, {strings.Repeat("a.", 128) + "b", ""}} {
		if _, err := c.Explain(t.Context(), bad[0], bad[1]); !errors.Is(err, ErrBadRequest) {
			t.Errorf("%q over the socket: got %v, want ErrBadRequest", bad, err)
		}
		if _, err := n.explain(t.Context(), bad[0], bad[1], true); !errors.Is(err, ErrBadRequest) {
			t.Errorf("%q: got %v, want ErrBadRequest", bad, err)
		}
	}
}

func TestExplainWithoutADaemonAsksNobody(t *testing.T) {
	at, asked := countingServer(t, "192.0.2.1")
	cfg := testConfig()
	cfg.DNS.Upstreams = []string{at}
	n, err := New(cfg, Options{Paths: testPaths(t)})
	must(t, err)
	got, err := n.Explain(t.Context(), "example.com", "A")
	must(t, err)
	if got.Daemon || got.Source != "upstream" || got.Rcode != "" || len(got.Answer) != 0 {
		t.Errorf("got %+v, want no answer", got)
	}
	if want := "not asked for, since no daemon runs"; got.detail("result") != want {
		t.Errorf("result: got %q, want %q", got.detail("result"), want)
	}
	if !strings.Contains(got.detail("upstream"), at) {
		t.Errorf("upstream: got %q, want %s", got.detail("upstream"), at)
	}
	if asked.Load() != 0 {
		t.Errorf("asked %d times", asked.Load())
	}
}

func TestExplainWithoutADaemonUsesTheRangesThatWereDrawn(t *testing.T) {
	paths := testPaths(t)
	must(t, os.Remove(paths.Map))
	cfg := testConfig()
	explain := func() ExplainResult {
		t.Helper()
		n, err := New(cfg, Options{Paths: paths})
		must(t, err)
		got, err := n.Explain(t.Context(), "nas.mesh.internal", "A")
		must(t, err)
		return got
	}
	if got := explain(); len(got.Answer) != 0 {
		t.Errorf("before they are drawn: got %q, want no address", got.Answer)
	}
	drawn, err := loadRanges(paths.State)
	must(t, err)
	got := explain()
	if len(got.Answer) != 1 {
		t.Fatalf("got %+v, want an address", got)
	}
	fields := strings.Fields(got.Answer[0])
	if addr := fields[len(fields)-1]; !strings.HasPrefix(drawn.V4.String(), addr[:strings.LastIndexByte(addr, '.')+1]) {
		t.Errorf("got %s, want an address of %s", addr, drawn.V4)
	}
	must(t, put(filepath.Join(paths.State, "ranges.json"), "{"))
	n, err := New(cfg, Options{Paths: paths})
	must(t, err)
	if _, err := n.Explain(t.Context(), "nas.mesh.internal", "A"); err == nil || hintOf(err) == "" {
		t.Errorf("ranges that are broken: got %v, want an error with a hint", err)
	}
}

func TestExplainSaysWhenNoAnswerComes(t *testing.T) {
	cfg := testConfig()
	silent := heldPort(t, "udp")
	cfg.DNS.Upstreams = []string{silent.String()}
	n := startNode(t, cfg, testPaths(t))
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	got, err := n.node.explain(ctx, "example.com", "A", true)
	must(t, err)
	if got.Source != "upstream" || len(got.Answer) != 0 || got.detail("result") == "" {
		t.Errorf("got %+v, want a result that says so", got)
	}
}

func TestRepliesAreDescribed(t *testing.T) {
	for want, got := range map[string]string{
		"NXDOMAIN":                  describeReply("NXDOMAIN", 0, "A"),
		"SERVFAIL":                  describeReply("SERVFAIL", 3, "A"),
		"NOERROR, and no A records": describeReply("NOERROR", 0, "A"),
		"NOERROR, 1 record":         describeReply("NOERROR", 1, "A"),
		"NOERROR, 2 records":        describeReply("NOERROR", 2, "A"),
	} {
		if got != want {
			t.Errorf("got %q, want %q", got, want)
		}
	}
}

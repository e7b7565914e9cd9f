package node

import (
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/meshdns/meshdns/osconfig"
)

// apiNode is a node that is not started but answers on a control socket, with the DNS of a fake machine.
func apiNode(t *testing.T, cfg Config, system *fakeSystem) (*Node, Client) {
	t.Helper()
	n, err := New(cfg, Options{Paths: testPaths(t), Version: "test"})
	must(t, err)
	must(t, n.prepareIdle())
	n.services, n.system = newGroup(), newGroup()
	takeover, _ := newTakeover(system)
	n.takeover.system, n.takeover.config, n.takeover.report, n.takeover.log = system, takeover.config, takeover.report, takeover.log
	n.takeover.kick, n.takeover.wanted = takeover.kick, true
	return n, Client{Socket: testControl(t, &localAPI{endpoints: n.endpoints()})}
}

// strangersReply is what a caller without rights is answered.
func strangersReply(t *testing.T, n *Node, method, path, body string) (status int, reply string) {
	t.Helper()
	c := &localAPI{endpoints: n.endpoints(), log: slog.New(slog.DiscardHandler)}
	r, err := http.NewRequestWithContext(t.Context(), method, "http://"+controlHost+path, strings.NewReader(body))
	must(t, err)
	w := httptest.NewRecorder()
	c.handler().ServeHTTP(w, r) // no connection has told who it is
	return w.Code, w.Body.String()
}

func TestStrangersMayCallWhatChangesNothing(t *testing.T) {
	system := &fakeSystem{}
	n, _ := apiNode(t, testConfig(), system)
	tests := []struct {
		method, path string
		want         int // 0: anything but 403
	}{
		{"GET", pathStatus, 200},
		{"GET", pathDNSStatus, 200},
		{"GET", pathExplain + "?name=nas", 200},
		{"GET", pathPlan, 200},
		{"GET", pathMetrics, 200},
		{"GET", pathQuery + "?name=a..b", 400},
		{"GET", pathConfig, 403},
		{"POST", pathFlush, 403},
		{"POST", pathApply, 403},
		{"POST", pathConfirm, 403},
		{"POST", pathRestore, 403},
		{"POST", pathDown, 403},
		{"GET", pathNodes, 403},
		{"POST", pathInvite, 403},
		{"POST", pathRemove, 403},
		{"POST", pathRename, 403},
		{"POST", pathConnect, 403},
		{"POST", pathRotate, 403},
		{"GET", pathDrop, 200},
		{"POST", pathDrop, 403},
		{"GET", pathLock, 403},
		{"POST", pathLock, 403},
		{"GET", pathBackup, 403},
		{"GET", pathCA, 403},
		{"GET", pathPinned, 403},
		{"GET", pathCredentials, 403},
		{"POST", pathCredential, 403},
		{"POST", pathCertGet, 403},
		{"POST", pathCertKeep, 403},
		{"POST", pathCertRemove, 403},
		{"POST", pathCertRevoke, 403},
		{"POST", pathRegister, 403},
		{"GET", pathServed, 0},
		{"POST", pathServed, 403},
		{"POST", pathServeOff, 403},
		{"POST", pathServeShare, 403},
		{"POST", pathServeRun, 403},
		{"GET", pathCARoot, 0},
		{"GET", pathCertList, 0},
		{"GET", pathCertCheck, 0},
		{"GET", pathPing + "?node=nobody", 404},
		{"POST", pathStatus, 404},
		{"GET", pathApply, 404},
		{"DELETE", pathConfig, 404},
		{"GET", "/v2/status", 404},
		{"GET", "/", 404},
	}
	for _, tt := range tests {
		t.Run(tt.method+" "+tt.path, func(t *testing.T) {
			got, body := strangersReply(t, n, tt.method, tt.path, "{}")
			if got != tt.want && tt.want != 0 || got == 403 && tt.want == 0 {
				t.Errorf("got %d %s, want %d", got, body, tt.want)
			}
		})
	}
	for _, e := range n.endpoints() {
		told := slices.ContainsFunc(tests, func(tt struct {
			method, path string
			want         int
		}) bool {
			path, _, _ := strings.Cut(tt.path, "?")
			return e.pattern == tt.method+" "+path
		})
		if !told {
			t.Errorf("say in this table who may call %s", e.pattern)
		}
	}
	select {
	case <-n.ending:
		t.Error("a stranger ended the node")
	default:
	}
	if len(system.applied) > 0 {
		t.Errorf("a stranger changed the machine: %v", system.applied)
	}
}

func TestTakeoverIsDrivenOverTheSocket(t *testing.T) {
	system := &fakeSystem{}
	n, c := apiNode(t, testConfig(), system)
	ctx := t.Context()
	if _, err := c.Confirm(ctx); !errors.Is(err, ErrNotFound) || hintOf(err) == "" {
		t.Errorf("confirming nothing: got %v, want ErrNotFound with a hint", err)
	}
	got, err := c.Apply(ctx, time.Minute)
	if err != nil || got.State != takeoverPending || got.Until == nil || got.Schema != takeoverSchema || got.Mode != "direct" {
		t.Errorf("apply: got %+v, %v; want it pending", got, err)
	}
	if until := time.Until(*got.Until); until > time.Minute || until < 50*time.Second {
		t.Errorf("it is undone in %s, want a minute", until)
	}
	if got, err = c.Confirm(ctx); err != nil || got.State != takeoverOn || got.Until != nil {
		t.Errorf("confirm: got %+v, %v; want it on", got, err)
	}
	if got, err = c.Restore(ctx); err != nil || got.State != takeoverOff || got.Reason == "" || system.ours() {
		t.Errorf("restore: got %+v, %v; want it off, with the reason", got, err)
	}
	if got, err = c.Restore(ctx); err != nil || got.State != takeoverOff {
		t.Errorf("restore again: got %+v, %v; want the same", got, err)
	}
	n.takeover.denied = hinted(nil, errors.New("dns.os is off"), "set dns.os: auto")
	if _, err = c.Apply(ctx, 0); err == nil || hintOf(err) != "set dns.os: auto" || !strings.Contains(err.Error(), "dns.os is off") {
		t.Errorf("apply where it is denied: got %v (hint %q)", err, hintOf(err))
	}
}

func TestTimesToConfirmAreBounded(t *testing.T) {
	system := &fakeSystem{}
	_, c := apiNode(t, testConfig(), system)
	for _, confirm := range []time.Duration{-time.Second, maxConfirm + time.Second, 1 << 62} {
		if _, err := c.Apply(t.Context(), confirm); !errors.Is(err, ErrBadRequest) {
			t.Errorf("%s: got %v, want ErrBadRequest", confirm, err)
		}
	}
	if len(system.applied) > 0 {
		t.Errorf("applied %v", system.applied)
	}
	if got, err := c.Apply(t.Context(), maxConfirm); err != nil || got.State != takeoverPending {
		t.Errorf("the longest: got %+v, %v", got, err)
	}
}

func TestNumbersThatOverflowAreNoTimeToConfirm(t *testing.T) {
	n, _ := apiNode(t, testConfig(), &fakeSystem{})
	for _, seconds := range []string{"-1", "3601", "9223372036854775807", "-9223372036854775808", "18446744074", "1e3", "1.5", `"30"`} {
		r := httptest.NewRequestWithContext(t.Context(), http.MethodPost, "http://meshdns"+pathApply,
			strings.NewReader(`{"confirm_seconds":`+seconds+`}`))
		if got, err := n.serveApply(r, caller{operator: true}); !errors.Is(err, ErrBadRequest) {
			t.Errorf("%s: got %v, %v; want ErrBadRequest", seconds, got, err)
		}
	}
}

func TestFailedChangesAreErrors(t *testing.T) {
	system := &fakeSystem{fail: errors.New("/etc/resolv.conf is immutable")}
	_, c := apiNode(t, testConfig(), system)
	if _, err := c.Apply(t.Context(), 0); err == nil || !strings.Contains(err.Error(), "is immutable") {
		t.Errorf("apply: got %v, want the reason", err)
	}
	if _, err := c.Restore(t.Context()); err == nil || !strings.Contains(err.Error(), "giving the machine's DNS back") {
		t.Errorf("restore: got %v, want the reason: it may be half taken over", err)
	}
	if _, err := c.Plan(t.Context()); err == nil || !strings.Contains(err.Error(), "planning: ") {
		t.Errorf("plan: got %v, want the reason", err)
	}
	system.fail = nil
	if got, err := c.Restore(t.Context()); err != nil || got.State != takeoverOff {
		t.Errorf("restore once it can be done: got %+v, %v", got, err)
	}
}

func TestPlanPutsFirstWhatSpeaksAgainstIt(t *testing.T) {
	plan := osconfig.Plan{Possible: true, Mode: "direct", Reason: "r", Hint: "h", Trace: []string{"a fact"}, Diff: "+nameserver"}
	got := planResult(plan, nil)
	if !got.Possible || got.Mode != "direct" || got.Reason != "r" || got.Hint != "h" || len(got.Trace) != 1 || got.Diff != plan.Diff || got.Schema == "" {
		t.Errorf("got %+v, want the plan", got)
	}
	got = planResult(plan, hinted(nil, errors.New("the daemon is not root"), "start it with sudo"))
	if got.Possible || got.Reason != "the daemon is not root" || got.Hint != "start it with sudo" || got.Diff != plan.Diff {
		t.Errorf("got %+v, want it impossible, and still what it would do", got)
	}
	got = planResult(plan, errors.New("no hint"))
	if got.Hint != "" {
		t.Errorf("hint: got %q, which is about something else", got.Hint)
	}
}

func TestFlushTakesOneNameOrAll(t *testing.T) {
	at, _ := countingServer(t, "192.0.2.1")
	cfg := testConfig()
	cfg.DNS.Upstreams = []string{at}
	n := startNode(t, cfg, testPaths(t))
	fill := func() {
		for _, name := range []string{"a.example.", "b.example."} {
			if _, got := n.ask(t, name); len(got) != 1 {
				t.Fatalf("%s: got %v, want an answer", name, got)
			}
		}
	}
	fill()
	for _, step := range []struct {
		name string
		want int
	}{{"A.Example", 1}, {"a.example.", 0}, {"", 1}, {"", 0}} {
		if got, err := n.Flush(t.Context(), step.name); err != nil || got != step.want {
			t.Errorf("%q: dropped %d, %v; want %d", step.name, got, err, step.want)
		}
	}
	for _, bad := range []string{"a..b", strings.Repeat("a", 64)} {
		if _, err := n.Flush(t.Context(), bad); !errors.Is(err, ErrBadRequest) {
			t.Errorf("%q: got %v, want ErrBadRequest", bad, err)
		}
	}
}

func TestConfigurationOfARunningNodeReadsBack(t *testing.T) {
	cfg := testConfig()
	cfg.Metrics = "127.0.0.1:9999"
	cfg.DNS.Routes = map[string][]string{"corp.example": {"10.0.0.1"}}
	_, c := apiNode(t, cfg, &fakeSystem{})
	text, err := c.Config(t.Context())
	must(t, err)
	back, err := LoadConfig(strings.NewReader(text))
	must(t, err)
	if back.Metrics != cfg.Metrics || back.Node != "nas" || back.DNS.OS != "off" || fmt.Sprint(back.DNS.Routes) != fmt.Sprint(cfg.DNS.Routes) {
		t.Errorf("got %+v of\n%s", back, text)
	}
}

func TestDownIsRefusedWithABodyThatIsNotItsOwn(t *testing.T) {
	n, _ := apiNode(t, testConfig(), &fakeSystem{})
	for _, body := range []string{"", "[", `{"force":true}`, "{}{}"} {
		for name, serve := range map[string]func(*http.Request, caller) (any, error){"down": n.serveDown, "confirm": n.serveConfirm, "restore": n.serveRestore} {
			r := httptest.NewRequestWithContext(t.Context(), http.MethodPost, "http://meshdns/", strings.NewReader(body))
			if _, err := serve(r, caller{operator: true}); !errors.Is(err, ErrBadRequest) {
				t.Errorf("%s with %q: got %v, want ErrBadRequest", name, body, err)
			}
		}
	}
	select {
	case <-n.ending:
		t.Error("the node ends")
	default:
	}
}

// nullLists are the places in a JSON document that hold null.
func nullLists(path string, v any) []string {
	var found []string
	switch v := v.(type) {
	case nil:
		return []string{path}
	case map[string]any:
		for key, value := range v {
			found = append(found, nullLists(path+"."+key, value)...)
		}
	case []any:
		for _, value := range v {
			found = append(found, nullLists(path+"[]", value)...)
		}
	}
	return found
}

func TestListsAreEmptyAndNeverNull(t *testing.T) {
	cfg := testConfig()
	cfg.Node = ""
	n, err := New(cfg, Options{Paths: testPaths(t)})
	must(t, err)
	writeTestMap(t, n.opt.Paths, "zone: bare.internal\nranges: [100.64.0.0/10]\nnodes:\n  lonely:\n    addresses: [100.64.0.1]\n")
	must(t, n.prepareIdle())
	explained, err := n.explain(t.Context(), "nothing.bare.internal", "", true)
	must(t, err)
	for name, v := range map[string]any{
		"status":                n.status(),
		"DNS status":            n.dnsStatus(),
		"a takeover of nothing": new(takeover).state(),
		"a plan":                planResult(osconfig.Plan{}, nil),
		"an explanation":        explained,
	} {
		data, err := json.Marshal(v)
		must(t, err)
		var doc any
		must(t, json.Unmarshal(data, &doc))
		if got := nullLists(name, doc); len(got) > 0 {
			t.Errorf("%s are null in %s", got, data)
		}
		if schema, _ := doc.(map[string]any)["schema"].(string); !strings.HasPrefix(schema, "meshdns.") {
			t.Errorf("%s: schema %q", name, schema)
		}
	}
}

func TestAnswersWithoutRecordsHaveAnEmptyList(t *testing.T) {
	n := startNode(t, testConfig(), testPaths(t))
	for _, name := range []string{"nope", "nas.foo-bar.ts.net"} {
		got, err := n.Query(t.Context(), name, "TXT")
		if err != nil || got.Answer == nil || len(got.Answer) != 0 {
			t.Errorf("%s: got %+v, %v; want an empty list", name, got, err)
		}
	}
}

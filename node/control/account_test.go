package control

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"
)

const acct = "https://acme-v02.api.letsencrypt.org/acme/acct/"

// issue is what the registry says of who may issue for a name.
func (r *rig) issue(name string) string {
	view, _ := r.registry.Certs()
	return strings.Join(view.Issue[name+"."+testZone], " | ")
}

func TestCAANamesEveryAccountThatIsKnown(t *testing.T) {
	r := newRig(t)
	r.serve()
	nas := r.join("nas")
	nas.Node.Names = []string{"photos"}
	if err := r.registry.Put(t.Context(), nas.Node); err != nil {
		t.Fatal(err)
	}
	c := r.clientOf(nas)
	if got := r.issue("nas"); got != "" {
		t.Error("before anything is known: ", got)
	}
	for _, n := range []string{"1", "1", "2"} {
		if err := c.SetAccount(t.Context(), acct+n, false); err != nil {
			t.Fatal(err)
		}
	}
	line := func(n string) string { return "letsencrypt.org; validationmethods=dns-01; accounturi=" + acct + n }
	if got, want := r.issue("nas"), line("1")+" | "+line("2"); got != want || r.issue("photos") != want {
		t.Errorf("%s, %s; want %s", got, r.issue("photos"), want)
	}
	// A program whose account is not known may have any.
	program := r.credential("nas", "", false)
	mine, err := c.Published(t.Context())
	if got := r.issue("nas"); err != nil || strings.Contains(got, "accounturi") || !strings.Contains(got, "letsencrypt.org; validationmethods=dns-01") ||
		!slices.Equal(mine.Suspended, []string{program.ID}) {
		t.Errorf("%s, %+v, %v", got, mine, err)
	}
	if err := r.registry.SetCredential(t.Context(), "nas", program.ID, acct+"3", false); err != nil {
		t.Fatal(err)
	}
	if got, want := r.issue("nas"), line("1")+" | "+line("2")+" | "+line("3"); got != want {
		t.Errorf("%s, want %s", got, want)
	}
	if err := c.SetAccount(t.Context(), acct+"1", true); err != nil {
		t.Fatal(err)
	}
	if err := r.registry.SetCredential(t.Context(), "nas", program.ID, "", true); err != nil {
		t.Fatal(err)
	}
	if got := r.issue("nas"); got != line("2") {
		t.Error(got)
	}
	if mine, err := c.Published(t.Context()); err != nil || !slices.Equal(mine.Issue, []string{line("2")}) || len(mine.Credentials) != 0 {
		t.Errorf("%+v, %v", mine, err)
	}
	wantCode(t, r.registry.SetCredential(t.Context(), "nas", program.ID, acct+"3", false), codeUnknownNode)
}

// S18: an account's address is taken to pieces before it becomes part of a record.
func TestAccountsThatAreRefused(t *testing.T) {
	r := newRig(t)
	r.serve()
	c := r.clientOf(r.join("nas"))
	for what, uri := range map[string]string{
		"nothing":                  "",
		"another scheme":           strings.Replace(acct, "https", "http", 1) + "1",
		"nobody's host":            "https://ca.example/acct/1",
		"a host that begins so":    "https://acme-v02.api.letsencrypt.org.evil.example/acct/1",
		"a user":                   "https://x@acme-v02.api.letsencrypt.org/acme/acct/1",
		"a port":                   "https://acme-v02.api.letsencrypt.org:8443/acme/acct/1",
		"a query":                  acct + "1?x=1",
		"a fragment":               acct + "1#x",
		"no path":                  "https://acme-v02.api.letsencrypt.org/",
		"the end of a parameter":   acct + "1;validationmethods=http-01",
		"the end of a value":       acct + `1"`,
		"a blank":                  acct + "1 2",
		"a line's end":             acct + "1\n",
		"an escape":                acct + `1\\`,
		"a letter that is none":    acct + "é",
		"more than a record holds": acct + strings.Repeat("1", 300),
	} {
		wantCode(t, c.SetAccount(t.Context(), uri, false), codeBad)
		if got := r.issue("nas"); got != "" {
			t.Errorf("%s: %s", what, got)
		}
		r.now = r.now.Add(time.Second)
	}
	for n := range maxAccounts {
		if err := c.SetAccount(t.Context(), fmt.Sprint(acct, n), false); err != nil {
			t.Fatal(err)
		}
	}
	wantCode(t, c.SetAccount(t.Context(), acct+"more", false), codeFull)
	_, err := r.registry.AddCredential(t.Context(), "nas", "", "https://ca.example/acct/1", true)
	wantCode(t, err, codeBad)
}

func TestAnotherCAIsTakenOnceItIsConfigured(t *testing.T) {
	r := newRig(t)
	r.registry.cfg.Issuers["ca.example:14000"] = "ca.example"
	r.join("nas")
	if err := r.registry.setAccount(t.Context(), "nas", "https://ca.example:14000/my-account/1", false); err != nil {
		t.Fatal(err)
	}
	if got, want := r.issue("nas"), "ca.example; validationmethods=dns-01; accounturi=https://ca.example:14000/my-account/1"; got != want {
		t.Errorf("%s, want %s", got, want)
	}
}

func TestFirstCertificatesTakeTurns(t *testing.T) {
	r := newRig(t)
	r.serve(func(c *ServerConfig) { c.Pace = 3 })
	c, ctx := r.clientOf(r.join("nas")), t.Context()
	ask := func(name string) turnAnswer {
		t.Helper()
		a, err := c.Turn(ctx, "letsencrypt", []string{name, "*." + name})
		if err != nil {
			t.Fatal(err)
		}
		return a
	}
	for n, name := range []string{"a", "b", "c"} {
		if a := ask(name); !a.Granted || a.Left != 2-n || a.Limit != 3 {
			t.Errorf("%s: %+v", name, a)
		}
		r.now = r.now.Add(time.Hour)
	}
	if a := ask("a"); !a.Granted || a.Left != 0 {
		t.Errorf("an order that is tried again: %+v", a)
	}
	for n, name := range []string{"d", "e", "d"} {
		if a := ask(name); a.Granted || a.Place != []int{1, 2, 1}[n] || a.Retry < 60 || a.Retry > int(turnPatience/time.Second) {
			t.Errorf("%s: %+v", name, a)
		}
	}
	r.now = r.now.Add(turnTime - 3*time.Hour - time.Minute)
	ask("d")
	ask("e")
	r.now = r.now.Add(time.Minute) // the first one's turn is a week old
	if a := ask("e"); a.Granted || a.Place != 2 {
		t.Errorf("the second is let before the first: %+v", a)
	}
	if a := ask("d"); !a.Granted || a.Left != 0 {
		t.Errorf("%+v", a)
	}
	// A gateway that starts anew has not forgotten.
	r.registry = r.open()
	r.server.cfg.Registry = r.registry
	if a := ask("e"); a.Granted {
		t.Errorf("%+v", a)
	}
	_, err := c.Turn(ctx, "letsencrypt", nil)
	wantCode(t, err, codeBad)
	for range 2 { // to ask takes none
		if a, err := c.TurnsLeft(ctx); err != nil || a.Granted || a.Left != 0 || a.Limit != 3 {
			t.Errorf("left: %+v, %v", a, err)
		}
	}
	r.now = r.now.Add(turnTime)
	if a, err := c.TurnsLeft(ctx); err != nil || a.Left != 3 {
		t.Errorf("left after a week: %+v, %v", a, err)
	}
}

package node

import (
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/miekg/dns"

	"github.com/meshdns/meshdns/certs"
)

func TestCertificatesThroughTheGateway(t *testing.T) {
	cfg := gatewayTestConfig(t)
	acme := newTestACME(t)
	acme.in(&cfg)
	cfg.Gateway.Issuers = []string{acme.host + "=pebble.test"}
	g := startGatewayWith(t, cfg, testPaths(t))
	acme.gateway.Store(g.node)
	nas, tv := g.invitedWith(t, "nas", acme.in), g.invitedWith(t, "tv", acme.in)
	soon(t, "the nodes", func() bool { return nas.knows(t, "tv") && tv.knows(t, "nas") })

	var mu sync.Mutex
	var steps []string
	req := nas.CertRequest()
	req.Wildcard = true
	began := time.Now()
	got, err := nas.Certificate(t.Context(), req, func(step, _, _ string) {
		mu.Lock()
		defer mu.Unlock()
		if !slices.Contains(steps, step) {
			steps = append(steps, step)
		}
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("name and wildcard in %v", time.Since(began).Round(time.Millisecond))
	if !got.Issued || got.Name != "nas."+zoneOfTests || len(got.Names) != 2 {
		t.Errorf("got %v of %v", got.Issued, got.Names)
	}
	acme.verify(t, got.Chain, "x.nas."+zoneOfTests)
	for _, step := range []string{"account", "order", "published", "seen", "validated", "issued", "written"} {
		if !slices.Contains(steps, step) {
			t.Errorf("step %s was not told of: %q", step, steps)
		}
	}
	if text := g.texts(t, challengeOf("nas")); strings.Contains(text, "=") {
		t.Errorf("left: %s", text)
	}
	if m := g.askPublic(t, "nas."+zoneOfTests, dns.TypeCAA); !strings.Contains(m.String(), "accounturi=https://"+acme.host) {
		t.Errorf("CAA of nas: %v", m)
	}

	// Another node's name is the other node's.
	_, err = nas.Certificate(t.Context(), nas.CertRequest("tv"), func(string, string, string) {})
	if err == nil || !strings.Contains(err.Error(), "publishing the TXT record") {
		t.Errorf("another node's name: %v", err)
	}
	if text := g.texts(t, challengeOf("tv")); strings.Contains(text, "=") {
		t.Errorf("published: %s", text)
	}
	if err := nas.RemoveCertificate(t.Context(), "tv"); err != nil {
		t.Error(err)
	}

	// A gateway gets one for its own name in the same way.
	own, err := g.Certificate(t.Context(), g.CertRequest(), func(string, string, string) {})
	if err != nil {
		t.Fatal(err)
	}
	acme.verify(t, own.Chain, "edge."+zoneOfTests)

	checkFiles(t, nas, got)
	list, err := nas.Certificates(t.Context())
	if err != nil || len(list.Certificates) != 1 || list.Certificates[0].State != "valid" {
		t.Fatalf("%+v, %v", list, err)
	}
	status, err := nas.Status(t.Context())
	if err != nil || len(status.Certs) != 1 || status.Certs[0].State != "valid" || status.Certs[0].Renewal == nil {
		t.Errorf("status: %+v, %v", status.Certs, err)
	}
	facts := doctorFacts{status: status}
	if f := judgeCerts(facts); len(f) != 1 || f[0].State != findingOK || f[0].Detail != "1 certificate, renewed by themselves" {
		t.Errorf("doctor: %+v", f)
	}
	check, err := nas.CheckCertificates(t.Context())
	if err != nil || check.State != findingOK || len(check.Findings) != 3 {
		t.Errorf("check: %+v, %v", check, err)
	}
	for _, f := range check.Findings {
		// A CA at an address of one's own has limits that nobody knows, so its certificates are not counted.
		if f.Name == "first certificates" && !strings.HasPrefix(f.Detail, "40 of this week's 40 are left") {
			t.Errorf("what is left: %+v", f)
		}
	}
	// A service name that comes later is taken in, after a while in which others may come.
	if err := g.node.gateway.registry.SetNames(t.Context(), "nas", []string{"photos"}); err != nil {
		t.Fatal(err)
	}
	soon(t, "the new name", func() bool {
		list, err := nas.Certificates(t.Context())
		return err == nil && slices.Equal(list.Certificates[0].Lacks, []string{"photos." + zoneOfTests}) && list.Certificates[0].GrowsAt.After(time.Now())
	})
	if own := nas.node.ownCertNames(); !slices.Equal(own, []string{"nas." + zoneOfTests, "photos." + zoneOfTests}) {
		t.Errorf("its own names are %q", own)
	}
	metrics, err := nas.Metrics(t.Context())
	if err != nil || !strings.Contains(string(metrics), `meshdns_cert_alarm{name="nas.`+zoneOfTests+`"} 0`) {
		t.Errorf("metrics: %v\n%s", err, metrics)
	}
	if err := nas.RevokeCertificate(t.Context(), "nas", "superseded"); err != nil {
		t.Error(err)
	}
	if err := nas.RevokeCertificate(t.Context(), "nas", ""); !errors.Is(err, ErrNotFound) {
		t.Errorf("revoked twice: %v", err)
	}
}

// checkFiles writes a certificate for other programs and has that kept.
func checkFiles(t *testing.T, nas *testNode, got certReply) {
	t.Helper()
	dir := t.TempDir()
	cert, key := filepath.Join(dir, "nas.crt"), filepath.Join(dir, "nas.key")
	if err := nas.KeepCertificate(t.Context(), got.Name, cert, key, ""); err == nil {
		t.Error("files that are not there are kept")
	}
	for _, want := range []bool{true, false} {
		if changed, err := got.Save(cert, key, ""); changed != want || err != nil {
			t.Errorf("saved: changed = %t, %v", changed, err)
		}
	}
	if err := nas.KeepCertificate(t.Context(), got.Name, cert, key, ""); err != nil {
		t.Fatal(err)
	}
	req := nas.CertRequest(got.Name)
	req.Force, req.Renew = true, true
	next, err := nas.Certificate(t.Context(), req, func(string, string, string) {})
	if err != nil || !next.Issued || next.Key == got.Key || len(next.Names) != 2 {
		t.Fatalf("renewed: %v, %v", next.Names, err)
	}
	soon(t, "the files", func() bool {
		data, err := os.ReadFile(key)
		return err == nil && string(data) == next.Key
	})
	req = nas.CertRequest("photos")
	req.Renew = true
	if _, err := nas.Certificate(t.Context(), req, func(string, string, string) {}); !errors.Is(err, ErrNotFound) {
		t.Errorf("renewing what there is not: %v", err)
	}
}

func TestACAThatTheGatewayDoesNotKnow(t *testing.T) {
	cfg := gatewayTestConfig(t)
	acme := newTestACME(t)
	acme.in(&cfg)
	g := startGatewayWith(t, cfg, testPaths(t))
	_, err := g.Certificate(t.Context(), g.CertRequest(), func(string, string, string) {})
	if err == nil || !strings.Contains(err.Error(), "that of no CA that this gateway is configured for") || !strings.Contains(hintOf(err), "gateway.issuers") {
		t.Errorf("got %v, hint %q", err, hintOf(err))
	}
}

func TestWhatIsSaidOfACertificate(t *testing.T) {
	for name, test := range map[string]struct {
		info string
		want []string
	}{
		"missing":      {`{"state":"missing"}`, []string{findingWarning}},
		"not issued":   {`{"state":"missing","trouble":{"error":"the CA says no","hint":"ask it"}}`, []string{findingProblem}},
		"valid":        {`{"state":"valid"}`, []string{findingOK}},
		"grows":        {`{"state":"valid","lacks":["photos.example.org"],"growsAt":"2026-01-01T00:00:00Z"}`, []string{findingOK, findingWarning}},
		"CA is gone":   {`{"state":"valid","ca":"old","caGone":true}`, []string{findingOK, findingWarning}},
		"not renewed":  {`{"state":"valid","trouble":{"error":"the CA says no"}}`, []string{findingWarning}},
		"expiring":     {`{"state":"expiring"}`, []string{findingProblem}},
		"expired":      {`{"state":"expired","trouble":{"error":"the CA says no"}}`, []string{findingProblem}},
		"not deployed": {`{"state":"valid","targets":[{"unit":"nginx","state":"failed","error":"exit status 1"},{"cert":"/x","state":"current"}]}`, []string{findingOK, findingProblem}},
	} {
		var info certs.Info
		if err := json.Unmarshal([]byte(test.info), &info); err != nil {
			t.Fatal(err)
		}
		var states []string
		for _, f := range judgeCert(info) {
			states = append(states, f.State)
			if info.Trouble != nil && !strings.Contains(f.Detail, "the CA says no") {
				t.Errorf("%s: %q does not say why", name, f.Detail)
			}
		}
		if !slices.Equal(states, test.want) {
			t.Errorf("%s: %q, want %q", name, states, test.want)
		}
	}
}

// invitedWith joins a machine whose configuration is changed first.
func (g *testGateway) invitedWith(t *testing.T, name string, change func(*Config)) *testNode {
	t.Helper()
	paths := testPaths(t)
	if _, err := paths.Join(t.Context(), g.invite(t, name), "", nil); err != nil {
		t.Fatal(err)
	}
	soon(t, "the end of joining", func() bool { return g.isNode(t, name) })
	cfg := testConfig()
	cfg.Node = ""
	cfg.Tunnel = tunnelConfig{Mode: "userspace"}
	change(&cfg)
	return startNode(t, cfg, paths)
}

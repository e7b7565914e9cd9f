package node

import (
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/meshdns/meshdns/node/control"
)

// What is passed on for visitors is counted and bounded, and the count of a month outlives the gateway.
func TestVisitsAreCountedAndBounded(t *testing.T) {
	paths := testPaths(t)
	month := time.Now().UTC().Format("2006-01")
	if err := os.MkdirAll(paths.State, 0o700); err != nil {
		t.Fatal(err)
	}
	kept := filepath.Join(paths.State, usageFile)
	if err := os.WriteFile(kept, []byte(`{"month":"`+month+`","bytes":{"node nas":5000,"node tv":2000000000}}`), 0o600); err != nil {
		t.Fatal(err)
	}
	cfg := gatewayTestConfig(t)
	cfg.Gateway.Limits = limitsConfig{Name: limitConfig{Connections: 2}, Node: limitConfig{Month: 1 << 30}}
	r := &funnelRig{public: freeTCP(t, gatewayAddress), plain: freeTCP(t, gatewayAddress), world: newFakeWorld()}
	r.start(t, cfg, paths)
	nas, tv := r.invited(t, "nas"), r.invited(t, "tv")
	const name = "nas." + rigZone
	nas.web(t, name)
	tv.web(t, "tv."+rigZone)
	nas.show(t, shownAs(name))
	tv.show(t, shownAs("tv."+rigZone))
	first := r.stays(t, name)
	r.stays(t, name)
	if _, err := r.fetch(t, name); err == nil {
		t.Error("a third visit of two that are let in")
	}
	if _, err := r.fetch(t, "tv."+rigZone); err == nil {
		t.Error("a visit to a node that has moved all that it may in this month")
	}
	if text, err := getOn(first, name); err != nil || !strings.HasSuffix(text, "of nas") {
		t.Errorf("%q, %v", text, err)
	}
	w := httptest.NewRecorder()
	r.node.metricsHandler().ServeHTTP(w, httptest.NewRequest("GET", "/metrics", nil))
	for _, line := range []string{
		`meshdns_funnel_visits_total{result="begun"} 3`, `meshdns_funnel_visits_total{result="refused"} 1`, `meshdns_funnel_visits_total{result="unreached"} 1`, "meshdns_funnel_visits 2", "meshdns_funnel_shown 2",
		`meshdns_front_connections_total{result="accepted"} 4`,
	} {
		if !strings.Contains(w.Body.String(), "\n"+line+"\n") {
			t.Errorf("the metrics lack %s: %+v", line, r.node.gateway.funnels.relay.Stats())
		}
	}
	if err := r.end(); err != nil {
		t.Error(err)
	}
	data, err := os.ReadFile(kept)
	if err != nil || strings.Contains(string(data), `"node nas":5000,`) || !strings.Contains(string(data), `"node tv":2000000000`) {
		t.Errorf("%s, %v", data, err)
	}
}

func TestFunnelsInWords(t *testing.T) {
	told := []control.Funnel{
		{Name: "nas.example", Port: 443, Kind: kindHTTPS, Open: true}, {Name: "nas.example", Port: 8443, Kind: kindHTTPS, Open: true},
		{Port: 25565, Kind: kindTCP, Why: "no"},
	}
	var got []string
	for _, f := range funnelStates("nas", told) {
		got = append(got, f.String())
	}
	if want := "https nas.example; https nas.example:8443; tcp port 25565 (not shown: no)"; strings.Join(got, "; ") != want {
		t.Errorf("%q", got)
	}
}

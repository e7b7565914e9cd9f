package node

import (
	"io"
	"net/http"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/meshdns/meshdns/resolver"
)

func TestMetricsTellWhatHappened(t *testing.T) {
	n := startNode(t, testConfig(), testPaths(t))
	n.ask(t, "nas.foo-bar.ts.net.")
	text, err := n.Metrics(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{
		`meshdns_dns_queries_total{rcode="NOERROR",source="local",type="A"} 1`,
		`meshdns_dns_takeover{state="off"} 1`,
		`meshdns_dns_takeover{state="on"} 0`,
		`meshdns_info{version="test"} 1`,
		"meshdns_map_nodes 2",
		"meshdns_map_problems 0",
		"meshdns_degraded 0",
	} {
		if !strings.Contains(string(text), want+"\n") {
			t.Errorf("want %s in\n%s", want, text)
		}
	}
}

func TestMetricsHaveAnAddressOfTheirOwn(t *testing.T) {
	cfg := testConfig()
	cfg.Metrics = "127.0.0.1:0"
	n := startNode(t, cfg, testPaths(t))
	n.mu.Lock()
	url := regexp.MustCompile(`http://\S+/metrics`).FindString(strings.Join(n.lines, "\n"))
	n.mu.Unlock()
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	for path, want := range map[string]int{"": http.StatusOK, "/../v1/status": http.StatusNotFound} {
		resp, err := client.Get(url + path)
		if err != nil {
			t.Fatal(err)
		}
		body, err := io.ReadAll(resp.Body)
		resp.Body.Close()
		if err != nil || resp.StatusCode != want {
			t.Errorf("GET %s%s: got %d, %v; want %d", url, path, resp.StatusCode, err, want)
		}
		if want == http.StatusOK && !strings.Contains(string(body), "meshdns_map_nodes 2\n") {
			t.Errorf("the map is not in\n%s", body)
		}
	}
}

// sinkCollector collects what a function sends.
type sinkCollector func(metricSink)

func (c sinkCollector) Describe(chan<- *prometheus.Desc)     {}
func (c sinkCollector) Collect(out chan<- prometheus.Metric) { c(out) }

func TestLatencyBucketsIncludeTheSmallerOnes(t *testing.T) {
	registry := prometheus.NewRegistry()
	registry.MustRegister(sinkCollector(func(m metricSink) {
		m.histogram("latency", "Help.", resolver.Histogram{
			Bounds: []time.Duration{time.Millisecond, 10 * time.Millisecond},
			Counts: []uint64{3, 2, 1},
			Sum:    time.Second,
		}, label{"upstream", "192.0.2.1"})
	}))
	families, err := registry.Gather()
	if err != nil || len(families) != 1 {
		t.Fatalf("got %d families, %v; want one", len(families), err)
	}
	h := families[0].GetMetric()[0].GetHistogram()
	if h.GetSampleCount() != 6 || h.GetSampleSum() != 1 {
		t.Errorf("got %d samples with the sum %g, want 6 with 1", h.GetSampleCount(), h.GetSampleSum())
	}
	want := []struct {
		bound float64
		n     uint64
	}{{0.001, 3}, {0.01, 5}}
	if len(h.GetBucket()) != len(want) {
		t.Fatalf("got %d buckets, want %d", len(h.GetBucket()), len(want))
	}
	for i, b := range h.GetBucket() {
		if b.GetUpperBound() != want[i].bound || b.GetCumulativeCount() != want[i].n {
			t.Errorf("bucket %d: got %d up to %g, want %d up to %g", i, b.GetCumulativeCount(), b.GetUpperBound(), want[i].n, want[i].bound)
		}
	}
}

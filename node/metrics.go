package node

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/meshdns/meshdns/resolver"
)

// maxScrapes bounds the scrapes at one time: each walks all counters.
const maxScrapes = 4

// metricsHandler serves the node's metrics in the format of Prometheus.
func (n *Node) metricsHandler() http.Handler {
	registry := prometheus.NewRegistry()
	registry.MustRegister(&collector{node: n})
	return promhttp.HandlerFor(registry, promhttp.HandlerOpts{MaxRequestsInFlight: maxScrapes})
}

// serveMetrics serves the metrics on ln until ctx ends.
func (n *Node) serveMetrics(ctx context.Context, ln net.Listener) error {
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", n.metricsHandler())
	server := &http.Server{
		Handler:           mux,
		ReadHeaderTimeout: headerTimeout,
		ReadTimeout:       requestTimeout,
		WriteTimeout:      answerTimeout,
		IdleTimeout:       idleTimeout,
		MaxHeaderBytes:    maxControlHeader,
	}
	// A scrape that is cut off is made again; nothing is lost by not waiting for it.
	stop := context.AfterFunc(ctx, func() { server.Close() })
	defer stop()
	bounded := &boundedListener{Listener: ln, slots: make(chan struct{}, maxControlConns), shed: &n.shedScrapes}
	if err := server.Serve(bounded); !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("serving the metrics: %w", err)
	}
	return nil
}

// collector reads everything at the moment of a scrape: between scrapes it costs nothing.
type collector struct{ node *Node }

// Describe sends nothing: which time series there are depends on the upstreams, which change (an "unchecked"
// collector, in client_golang's word).
func (c *collector) Describe(chan<- *prometheus.Desc) {}

// Collect sends all metrics.
func (c *collector) Collect(out chan<- prometheus.Metric) {
	m := metricSink(out)
	stats := c.node.resolver.Stats()
	c.collectResolver(m, stats)
	collectUpstreams(m, c.node.resolver.Upstreams())
	c.collectNode(m)
	c.collectCerts(m)
	c.collectFunnels(m)
}

func (c *collector) collectResolver(m metricSink, s resolver.Stats) {
	for _, q := range s.Queries {
		m.counter("meshdns_dns_queries_total", "Queries answered.", q.N,
			label{"type", q.Type}, label{"source", q.Source}, label{"rcode", q.Rcode})
	}
	m.counter("meshdns_dns_cache_hits_total", "Questions answered from the cache.", s.Cache.Hits)
	m.counter("meshdns_dns_cache_misses_total", "Questions not found in the cache.", s.Cache.Misses)
	m.counter("meshdns_dns_cache_evictions_total", "Entries dropped to make room.", s.Cache.Evictions)
	m.gauge("meshdns_dns_cache_entries", "Entries in the cache.", float64(s.Cache.Entries))
	m.gauge("meshdns_dns_cache_bytes", "Memory that the cache's entries take.", float64(s.Cache.Bytes))
	m.gauge("meshdns_dns_in_flight", "Questions that upstreams have not answered yet.", float64(s.InFlight))
	for _, drop := range []struct {
		reason string
		n      uint64
	}{{"ignored", s.Ignored}, {"stray", s.Stray}, {"unsent", s.Dropped}, {"shed", s.Shed}, {"rebound", s.Rebound}} {
		m.counter("meshdns_dns_dropped_total", "Messages dropped or refused: datagrams that are no queries (ignored), "+
			"answers that nobody asked for (stray), replies that the kernel did not take (unsent), queries above a "+
			"bound (shed), answers that point inside (rebound).", drop.n, label{"reason", drop.reason})
	}
}

func collectUpstreams(m metricSink, upstreams []resolver.UpstreamStatus) {
	for _, u := range upstreams {
		name := label{"upstream", u.Upstream}
		m.counter("meshdns_upstream_queries_total", "Questions sent to an upstream.", u.Queries, name)
		m.counter("meshdns_upstream_failures_total", "Questions that an upstream did not answer.", u.Failures, name)
		m.gauge("meshdns_upstream_up", "1 unless an upstream is not asked at present.", truth(u.State == "ok" || u.State == "new"), name)
		m.histogram("meshdns_upstream_latency_seconds", "How long an upstream took to answer.", u.Latency, name)
	}
}

func (c *collector) collectNode(m metricSink) {
	s := c.node.status()
	m.gauge("meshdns_info", "Always 1.", 1, label{"version", s.Version})
	m.gauge("meshdns_start_time_seconds", "When the node started, in Unix time.", seconds(s.Started))
	m.gauge("meshdns_degraded", "1 if something is not as it should be.", truth(s.State != stateOK))
	m.gauge("meshdns_map_loaded_time_seconds", "When the map in use was read, in Unix time.", seconds(s.Map.Loaded))
	m.gauge("meshdns_map_age_seconds", "How long ago the map in use was read.", time.Since(s.Map.Loaded).Seconds())
	m.gauge("meshdns_map_version", "The version that the map's owner gave it.", float64(s.Map.Version))
	m.gauge("meshdns_map_nodes", "Nodes in the map.", float64(s.Map.Nodes))
	m.gauge("meshdns_map_records", "Records in the map.", float64(s.Map.Records))
	m.gauge("meshdns_map_problems", "Problems of the newest map, which is not in use if it has any.", float64(len(s.Map.Problems)))
	for _, state := range []string{takeoverOff, takeoverOn, takeoverPending, takeoverRefused} {
		m.gauge("meshdns_dns_takeover", "1 for the state that the takeover of the machine's DNS is in.",
			truth(s.DNS.Takeover.State == state), label{"state", state})
	}
	m.counter("meshdns_control_shed_total", "Connections to the control socket closed at its bound.", c.node.control.shed.Load())
}

func truth(b bool) float64 {
	if b {
		return 1
	}
	return 0
}

// seconds is t in Unix time.
func seconds(t time.Time) float64 { return float64(t.UnixMilli()) / 1000 }

// label is a label of a metric and its value.
type label struct{ name, value string }

// metricSink takes metrics during a scrape.
type metricSink chan<- prometheus.Metric

func (m metricSink) counter(name, help string, n uint64, labels ...label) {
	desc, values := metricDesc(name, help, labels)
	m <- prometheus.MustNewConstMetric(desc, prometheus.CounterValue, float64(n), values...)
}

func (m metricSink) gauge(name, help string, v float64, labels ...label) {
	desc, values := metricDesc(name, help, labels)
	m <- prometheus.MustNewConstMetric(desc, prometheus.GaugeValue, v, values...)
}

// histogram turns h's counts, one a bucket, into Prometheus's, which include all smaller buckets.
func (m metricSink) histogram(name, help string, h resolver.Histogram, labels ...label) {
	desc, values := metricDesc(name, help, labels)
	buckets := make(map[float64]uint64, len(h.Bounds))
	var total uint64
	for i, n := range h.Counts {
		total += n
		if i < len(h.Bounds) {
			buckets[h.Bounds[i].Seconds()] = total
		}
	}
	m <- prometheus.MustNewConstHistogram(desc, total, h.Sum.Seconds(), buckets, values...)
}

func metricDesc(name, help string, labels []label) (desc *prometheus.Desc, values []string) {
	var names []string
	for _, l := range labels {
		names = append(names, l.name)
		values = append(values, l.value)
	}
	return prometheus.NewDesc(name, help, names, nil), values
}

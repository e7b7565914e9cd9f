package node

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"log/slog"
	"math/big"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/meshdns/meshdns/certs"
)

// monthCA signs for 30 days, until it refuses.
type monthCA struct {
	key     *ecdsa.PrivateKey
	refuses atomic.Bool
}

func (c *monthCA) Issue(_ context.Context, csr *x509.CertificateRequest) ([]byte, error) {
	if c.refuses.Load() {
		return nil, errors.New("the CA says no")
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), DNSNames: csr.DNSNames, NotBefore: time.Now(), NotAfter: time.Now().Add(30 * 24 * time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, template, template, csr.PublicKey, c.key)
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), err
}

// One that a quarter of its life is left of, and one that is not where it should be, are told of by status and by metrics.
func TestACertificateThatIsAboutToEndIsTold(t *testing.T) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	ca, ahead := &monthCA{key: key}, new(atomic.Int64)
	m, err := certs.New(certs.Config{
		Dir: t.TempDir(), CAs: []certs.CA{{Name: "month", Issuer: ca}}, Logger: slog.New(slog.DiscardHandler),
		Now:     func() time.Time { return time.Now().Add(time.Duration(ahead.Load())) },
		Targets: map[string][]certs.Target{"nas.example.org": {{Command: []string{"/bin/false"}}}},
	})
	if err != nil {
		t.Fatal(err)
	}
	n := &Node{}
	n.certs.made.Store(&certState{manager: m})
	registry := prometheus.NewRegistry()
	registry.MustRegister(certCollector{&collector{node: n}})
	value := func(name string) float64 {
		t.Helper()
		families, err := registry.Gather()
		if err != nil {
			t.Fatal(err)
		}
		for _, f := range families {
			if f.GetName() == name {
				return f.GetMetric()[0].GetGauge().GetValue()
			}
		}
		t.Fatalf("there is no %s", name)
		return 0
	}
	problems := func() string { return strings.Join(n.certs.problems(), "\n") }
	if _, _, err := m.Get(t.Context(), certs.Request{Names: []string{"nas.example.org"}}); err != nil {
		t.Fatal(err)
	}
	if got := problems(); got != "" || value("meshdns_cert_alarm") != 0 {
		t.Errorf("at first: %s", got)
	}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- m.Run(ctx) }()
	defer func() { cancel(); <-ended }()
	soon(t, "a deployment that fails", func() bool {
		return strings.Contains(problems(), "the certificate of nas.example.org is not deployed to /bin/false: running /bin/false: exit status 1")
	})
	if value("meshdns_cert_deploy_failed") != 1 || value("meshdns_cert_alarm") != 0 {
		t.Error("the metrics do not tell of the deployment alone")
	}
	ca.refuses.Store(true)
	ahead.Store(int64(23 * 24 * time.Hour))
	if _, _, err := m.Get(ctx, certs.Request{Names: []string{"nas.example.org"}}); err == nil {
		t.Fatal("a CA that refuses signs")
	}
	got := problems()
	if !strings.Contains(got, "the certificate of nas.example.org ends at ") || !strings.Contains(got, ": the CA says no") {
		t.Errorf("status says %s", got)
	}
	if value("meshdns_cert_alarm") != 1 || value("meshdns_cert_renewal_failed") != 1 {
		t.Error("the metrics do not tell of it")
	}
	if list := n.certs.status(); len(list) != 1 || list[0].State != "expiring" {
		t.Errorf("%+v", list)
	}
	ahead.Store(int64(31 * 24 * time.Hour))
	if list := n.certs.status(); list[0].State != "expired" || value("meshdns_cert_alarm") != 1 {
		t.Errorf("%+v", list)
	}
}

// certCollector collects what is told of certificates alone.
type certCollector struct{ *collector }

// Collect sends it.
func (c certCollector) Collect(out chan<- prometheus.Metric) { c.collectCerts(out) }

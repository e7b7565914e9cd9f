//go:build bench

package bench

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"log/slog"
	"testing"

	"github.com/caddyserver/certmagic"
	"github.com/libdns/rfc2136"
	"go.uber.org/zap"

	"github.com/meshdns/meshdns/certs"
)

// newRequest is a request with a key of its own.
func newRequest() (*x509.CertificateRequest, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{DNSNames: []string{"nas." + certZone, "*.nas." + certZone}}, key)
	if err != nil {
		return nil, err
	}
	return x509.ParseCertificateRequest(der)
}

// byMeshdns is package certs with a DNS provider.
func byMeshdns(t *testing.T, c testCA) func(ctx context.Context) error {
	writer, err := certs.NewProvider(certs.ProviderConfig{
		Name: "rfc2136", Lookup: certs.Lookup{Resolvers: providerServer},
		Settings: map[string]string{"server": providerAddress + ":53", "key_name": "ours.", "key_alg": "hmac-sha256.", "key": providerKey},
	})
	if err != nil {
		t.Fatal(err)
	}
	acme, err := certs.NewACME(certs.ACMEConfig{Name: "pebble", Directory: c.directory, Dir: t.TempDir(), TXT: writer, Roots: c.roots, Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	return func(ctx context.Context) error {
		csr, err := newRequest()
		if err != nil {
			return err
		}
		_, err = acme.Issue(ctx, csr)
		return err
	}
}

// byCertmagic is certmagic with the same provider, and as many names in one order.
func byCertmagic(t *testing.T, c testCA) func(ctx context.Context) error {
	quiet := zap.NewNop()
	certmagic.Default.Logger, certmagic.DefaultACME.Logger = quiet, quiet
	var config *certmagic.Config
	cache := certmagic.NewCache(certmagic.CacheOptions{
		GetConfigForCert: func(certmagic.Certificate) (*certmagic.Config, error) { return config, nil }, Logger: quiet,
	})
	t.Cleanup(cache.Stop)
	config = certmagic.New(cache, certmagic.Config{Storage: &certmagic.FileStorage{Path: t.TempDir()}, Logger: quiet})
	issuer := certmagic.NewACMEIssuer(config, certmagic.ACMEIssuer{
		CA: c.directory, TestCA: c.directory, Email: "x@example.org", Agreed: true, TrustedRoots: c.roots, Logger: quiet,
		DisableHTTPChallenge: true, DisableTLSALPNChallenge: true,
		DNS01Solver: &certmagic.DNS01Solver{DNSManager: certmagic.DNSManager{
			DNSProvider: &rfc2136.Provider{KeyName: "ours.", KeyAlg: "hmac-sha256.", Key: providerKey, Server: providerAddress + ":53"},
			Resolvers:   []string{providerAddress + ":53"}, Logger: quiet,
		}},
	})
	return func(ctx context.Context) error {
		csr, err := newRequest()
		if err != nil {
			return err
		}
		_, err = issuer.Issue(ctx, csr)
		return err
	}
}

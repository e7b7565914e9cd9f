package certs

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"slices"
	"time"
)

// Certificate is a certificate with its key. It prints nothing of the key.
type Certificate struct {
	Name     string // under which it is stored: the first of its names
	CA       string // that signed it, as Config.CAs calls it
	Leaf     *x509.Certificate
	ChainPEM []byte // the leaf first
	KeyPEM   []byte // PKCS#8

	version int
}

// Format prints the names and nothing of the key: fmt would print all fields.
func (c Certificate) Format(f fmt.State, _ rune) {
	_, _ = io.WriteString(f, "(certificate and key of "+c.Name+")")
}

// LogValue is what a log has to know.
func (c Certificate) LogValue() slog.Value {
	return slog.GroupValue(slog.String("name", c.Name), slog.String("ca", c.CA), slog.Time("until", c.Leaf.NotAfter))
}

// lifetime is how long the certificate is valid in all.
func lifetime(leaf *x509.Certificate) time.Duration { return leaf.NotAfter.Sub(leaf.NotBefore) }

// covers reports whether the certificate has just these names.
func covers(leaf *x509.Certificate, names []string) bool {
	have, want := slices.Sorted(slices.Values(leaf.DNSNames)), slices.Sorted(slices.Values(names))
	return slices.Equal(have, want)
}

// newCertificate takes a chain and a key once they fit each other.
func newCertificate(name, ca string, chainPEM, keyPEM []byte) (*Certificate, error) {
	pair, err := tls.X509KeyPair(chainPEM, keyPEM)
	if err != nil {
		return nil, fmt.Errorf("certificate of %s: %w", name, err)
	}
	leaf := pair.Leaf
	if leaf == nil {
		if leaf, err = x509.ParseCertificate(pair.Certificate[0]); err != nil {
			return nil, fmt.Errorf("certificate of %s: %w", name, err)
		}
	}
	return &Certificate{Name: name, CA: ca, Leaf: leaf, ChainPEM: chainPEM, KeyPEM: keyPEM}, nil
}

// served is the certificate as handshakes use it.
func (c *Certificate) served() (*tls.Certificate, error) {
	pair, err := tls.X509KeyPair(c.ChainPEM, c.KeyPEM)
	if err != nil {
		return nil, fmt.Errorf("certificate of %s: %w", c.Name, err)
	}
	pair.Leaf = c.Leaf
	return &pair, nil
}

// The kinds of keys. keyP256 is the default; old clients may need RSA.
const (
	keyP256    = "p256"
	keyP384    = "p384"
	keyRSA2048 = "rsa2048"
	keyRSA4096 = "rsa4096"
)

func keyKinds() []string { return []string{keyP256, keyP384, keyRSA2048, keyRSA4096} }

// newKey makes a key of a kind.
func newKey(kind string) (crypto.Signer, error) {
	switch kind {
	case keyP256:
		return ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	case keyP384:
		return ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	case keyRSA2048:
		return rsa.GenerateKey(rand.Reader, 2048)
	case keyRSA4096:
		return rsa.GenerateKey(rand.Reader, 4096)
	}
	return nil, fmt.Errorf("unknown kind of key %q", kind)
}

// kindOfPublic is the kind of a key, by its public half.
func kindOfPublic(key crypto.PublicKey) string {
	switch key := key.(type) {
	case *ecdsa.PublicKey:
		if key.Curve == elliptic.P384() {
			return keyP384
		}
		return keyP256
	case *rsa.PublicKey:
		return fmt.Sprintf("rsa%d", key.N.BitLen())
	}
	return ""
}

// decodeKey reads what keyPEM wrote. Its errors hold nothing of the key.
func decodeKey(data []byte) (crypto.Signer, error) {
	block, _ := pem.Decode(data)
	if block == nil {
		return nil, errors.New("a key is damaged: no PEM block")
	}
	key, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	if err != nil {
		return nil, errors.New("a key is damaged")
	}
	signer, ok := key.(crypto.Signer)
	if !ok {
		return nil, errors.New("a key cannot sign")
	}
	return signer, nil
}

// newRequest is the request for a certificate with these names. It has no common name: clients do not read it, and CAs
// leave it out.
func newRequest(key crypto.Signer, names []string) (*x509.CertificateRequest, error) {
	der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{DNSNames: names}, key)
	if err != nil {
		return nil, fmt.Errorf("making the request: %w", err)
	}
	return x509.ParseCertificateRequest(der)
}

// readChain reads the certificates of a PEM text.
func readChain(data []byte) ([]*x509.Certificate, error) {
	var chain []*x509.Certificate
	for {
		block, rest := pem.Decode(data)
		if block == nil {
			break
		}
		if data = rest; block.Type != "CERTIFICATE" {
			continue
		}
		cert, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, fmt.Errorf("reading a certificate: %w", err)
		}
		chain = append(chain, cert)
	}
	if len(chain) == 0 {
		return nil, errors.New("no certificate in the text")
	}
	return chain, nil
}

// sameKey reports whether two public keys are one.
func sameKey(a, b crypto.PublicKey) bool {
	public, ok := a.(interface{ Equal(crypto.PublicKey) bool })
	return ok && public.Equal(b)
}

// vetChain makes sure that what an issuer gave is for this request.
func vetChain(chainPEM []byte, csr *x509.CertificateRequest) error {
	chain, err := readChain(chainPEM)
	if err != nil {
		return err
	}
	leaf := chain[0]
	if !sameKey(leaf.PublicKey, csr.PublicKey) {
		return errors.New("the certificate is for another key")
	}
	for _, name := range csr.DNSNames {
		if !slices.Contains(leaf.DNSNames, name) {
			return fmt.Errorf("the certificate lacks the name %s", name)
		}
	}
	return nil
}

package certs

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"net"
	"slices"
	"strings"
	"time"
)

// The lifetimes of a local CA. An intermediate is made anew while every leaf that it signs still ends before it does.
const (
	rootLife         = 10 * 365 * 24 * time.Hour
	intermediateLife = 90 * 24 * time.Hour
	leafLife         = 30 * 24 * time.Hour
	backdate         = 10 * time.Minute // for clocks that are behind
)

// Root is the root of a local CA with its key. It signs intermediates and nothing else, so it can live on a machine that is
// seldom on.
type Root struct {
	cert *x509.Certificate
	key  crypto.Signer
}

// Intermediate is what a local CA signs certificates with.
type Intermediate struct {
	cert *x509.Certificate
	root *x509.Certificate
	key  crypto.Signer
}

// NewRoot makes the root of a local CA for the names of zone, which must be a name of two labels at least or one that no
// public CA serves. What it and all beneath it may certify is in critical constraints (RFC 5280, section 4.2.1.10): names
// of the zone, and no address, mailbox or URI.
func NewRoot(zone string, now time.Time) (*Root, error) {
	if zone == "" || strings.Trim(zone, ".") != zone {
		return nil, fmt.Errorf("making a local CA: %q is no zone", zone)
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	template := authority(zone, now, rootLife)
	template.Subject = pkix.Name{CommonName: "meshdns root of " + zone, Organization: []string{zone}}
	template.MaxPathLen = 1
	cert, err := sign(template, template, key.Public(), key)
	if err != nil {
		return nil, fmt.Errorf("making a local CA for %s: %w", zone, err)
	}
	return &Root{cert, key}, nil
}

// authority is the template of a CA's certificate that is constrained to a zone. An empty excluded name is every name of its
// kind; a permitted one that nobody has says the same once more, for libraries that read an empty one as none.
func authority(zone string, now time.Time, life time.Duration) *x509.Certificate {
	return &x509.Certificate{
		NotBefore:                   now.Add(-backdate),
		NotAfter:                    now.Add(life),
		KeyUsage:                    x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
		BasicConstraintsValid:       true,
		IsCA:                        true,
		PermittedDNSDomainsCritical: true,
		PermittedDNSDomains:         []string{zone},
		ExcludedIPRanges:            everyAddress(),
		PermittedEmailAddresses:     []string{nobody},
		ExcludedEmailAddresses:      []string{nobody},
		PermittedURIDomains:         []string{nobody},
		ExcludedURIDomains:          []string{nobody},
	}
}

// nobody is a host that no mailbox or URI has (RFC 2606, section 2). It is permitted, and nothing else is; and it is excluded.
const nobody = "nobody.invalid"

func everyAddress() []*net.IPNet {
	return []*net.IPNet{
		{IP: net.IPv4zero.To4(), Mask: net.CIDRMask(0, 32)},
		{IP: net.IPv6zero, Mask: net.CIDRMask(0, 128)},
	}
}

func sign(template, parent *x509.Certificate, public crypto.PublicKey, key crypto.Signer) (*x509.Certificate, error) {
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 127))
	if err != nil {
		return nil, err
	}
	template.SerialNumber = serial.Add(serial, big.NewInt(1)) // it may not be 0
	der, err := x509.CreateCertificate(rand.Reader, template, parent, public, key)
	if err != nil {
		return nil, err
	}
	return x509.ParseCertificate(der)
}

// ParseRoot reads a root's certificate and its key, both PEM. It is held to what CheckRoot asks.
func ParseRoot(certPEM, keyPEM []byte) (*Root, error) {
	cert, err := CheckRoot(certPEM)
	if err != nil {
		return nil, err
	}
	key, err := parseKey(keyPEM, cert)
	if err != nil {
		return nil, err
	}
	return &Root{cert, key}, nil
}

// PEM is the root's certificate and its key, which is a secret.
func (r *Root) PEM() (cert, key []byte, err error) {
	key, err = keyPEM(r.key)
	return certPEM(r.cert), key, err
}

// Sign makes an intermediate of the root for a request that NewIntermediateRequest made. The request says the key and nothing else.
func (r *Root) Sign(requestPEM []byte, now time.Time) (intermediatePEM []byte, err error) {
	block, _ := pem.Decode(requestPEM)
	if block == nil || block.Type != "CERTIFICATE REQUEST" {
		return nil, errors.New("signing an intermediate: not a PEM certificate request")
	}
	csr, err := x509.ParseCertificateRequest(block.Bytes)
	if err == nil {
		err = csr.CheckSignature()
	}
	if err != nil {
		return nil, fmt.Errorf("signing an intermediate: %w", err)
	}
	cert, err := r.sign(csr.PublicKey, now)
	if err != nil {
		return nil, err
	}
	return certPEM(cert), nil
}

func (r *Root) sign(public crypto.PublicKey, now time.Time) (*x509.Certificate, error) {
	zone := r.cert.PermittedDNSDomains[0]
	template := authority(zone, now, intermediateLife)
	if template.NotAfter.After(r.cert.NotAfter) {
		template.NotAfter = r.cert.NotAfter
	}
	template.Subject = pkix.Name{CommonName: "meshdns " + now.UTC().Format(time.DateOnly) + " of " + zone, Organization: []string{zone}}
	template.MaxPathLen, template.MaxPathLenZero = 0, true
	template.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}
	cert, err := sign(template, r.cert, public, r.key)
	if err != nil {
		return nil, fmt.Errorf("signing an intermediate of %s: %w", zone, err)
	}
	return cert, nil
}

// Intermediate makes one with a new key, where the root's key is at hand.
func (r *Root) Intermediate(now time.Time) (*Intermediate, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	cert, err := r.sign(key.Public(), now)
	if err != nil {
		return nil, err
	}
	return &Intermediate{cert: cert, root: r.cert, key: key}, nil
}

// NewIntermediateRequest makes the key of an intermediate, and the request that a root elsewhere signs.
func NewIntermediateRequest() (requestPEM, keyText []byte, err error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, nil, err
	}
	der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, key)
	if err != nil {
		return nil, nil, err
	}
	keyText, err = keyPEM(key)
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der}), keyText, err
}

// ParseIntermediate reads an intermediate, its key and its root's certificate, all PEM.
func ParseIntermediate(intermediate, key, root []byte) (*Intermediate, error) {
	top, err := CheckRoot(root)
	if err != nil {
		return nil, err
	}
	cert, err := parseCert(intermediate)
	if err != nil {
		return nil, fmt.Errorf("reading an intermediate: %w", err)
	}
	if err := cert.CheckSignatureFrom(top); err != nil {
		return nil, fmt.Errorf("reading an intermediate: it is not of the root %s: %w", top.Subject.CommonName, err)
	}
	if err := constrained(cert, 0); err != nil {
		return nil, fmt.Errorf("reading an intermediate: %w", err)
	}
	k, err := parseKey(key, cert)
	if err != nil {
		return nil, err
	}
	return &Intermediate{cert: cert, root: top, key: k}, nil
}

// PEM is the intermediate's certificate and its key, which is a secret.
func (i *Intermediate) PEM() (cert, key []byte, err error) {
	key, err = keyPEM(i.key)
	return certPEM(i.cert), key, err
}

// Due tells whether it is time for another one: half of its life is over, and a leaf of full life would not fit any more
// soon after.
func (i *Intermediate) Due(now time.Time) bool {
	return now.After(i.cert.NotBefore.Add(intermediateLife / 2))
}

// End is when it and all that it has signed are over.
func (i *Intermediate) End() time.Time { return i.cert.NotAfter }

// Issue makes a certificate of public for names, which the caller knows to be the node's: of a request nothing but the key
// counts. A name has to be in the zone. The chain, PEM, has the leaf and the intermediate.
func (i *Intermediate) Issue(public crypto.PublicKey, names []string, now time.Time) (chainPEM []byte, err error) {
	if len(names) == 0 {
		return nil, errors.New("issuing a certificate: no name")
	}
	if err := strongKey(public); err != nil {
		return nil, fmt.Errorf("issuing a certificate for %s: %w", names[0], err)
	}
	zone := i.root.PermittedDNSDomains[0]
	for _, name := range names {
		if !strings.HasSuffix(strings.TrimPrefix(name, "*."), "."+zone) {
			return nil, fmt.Errorf("issuing a certificate: %s is not in the zone %s", name, zone)
		}
	}
	template := &x509.Certificate{
		Subject:               pkix.Name{CommonName: commonName(names)},
		DNSNames:              slices.Clone(names),
		NotBefore:             now.Add(-backdate),
		NotAfter:              now.Add(leafLife),
		KeyUsage:              x509.KeyUsageDigitalSignature,
		ExtKeyUsage:           []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
		BasicConstraintsValid: true,
	}
	if template.NotAfter.After(i.cert.NotAfter) {
		template.NotAfter = i.cert.NotAfter
	}
	if !template.NotAfter.After(now) {
		return nil, fmt.Errorf("issuing a certificate for %s: the intermediate has ended at %s", names[0], i.cert.NotAfter.Format(time.RFC3339))
	}
	leaf, err := sign(template, i.cert, public, i.key)
	if err != nil {
		return nil, fmt.Errorf("issuing a certificate for %s: %w", names[0], err)
	}
	return append(certPEM(leaf), certPEM(i.cert)...), nil
}

// commonName is for people who look at the certificate; clients read the alternative names. It has 64 bytes at most (RFC 5280,
// appendix A.1).
func commonName(names []string) string {
	if len(names[0]) > 64 {
		return ""
	}
	return names[0]
}

// CheckRoot reads the certificate of a local CA's root, PEM, and refuses one that could certify more than names of one
// zone: constraints that are missing, not critical or too wide, and a path longer than one intermediate.
func CheckRoot(certPEM []byte) (*x509.Certificate, error) {
	cert, err := parseCert(certPEM)
	if err != nil {
		return nil, fmt.Errorf("reading a root: %w", err)
	}
	if !bytes.Equal(cert.RawIssuer, cert.RawSubject) || cert.CheckSignatureFrom(cert) != nil {
		return nil, errors.New("reading a root: it has not signed itself")
	}
	if err := constrained(cert, 1); err != nil {
		return nil, fmt.Errorf("the root %q: %w", cert.Subject.CommonName, err)
	}
	return cert, nil
}

// constrained tells what a CA's certificate lacks of S19's constraints.
func constrained(cert *x509.Certificate, path int) error {
	switch {
	case !cert.BasicConstraintsValid || !cert.IsCA:
		return errors.New("it is no CA's certificate")
	case cert.MaxPathLen != path || path == 0 && !cert.MaxPathLenZero:
		return fmt.Errorf("its path may be longer than %d", path)
	case !cert.PermittedDNSDomainsCritical:
		return errors.New("its name constraints are missing or not critical")
	case len(cert.PermittedDNSDomains) != 1 || strings.Trim(cert.PermittedDNSDomains[0], ".") == "":
		return fmt.Errorf("it may certify names of %d zones, not of one", len(cert.PermittedDNSDomains))
	case !excludesAll(cert.ExcludedIPRanges, 32) || !excludesAll(cert.ExcludedIPRanges, 128):
		return errors.New("it may certify IP addresses")
	case !slices.Equal(cert.PermittedEmailAddresses, []string{nobody}) || !slices.Equal(cert.ExcludedEmailAddresses, []string{nobody}):
		return errors.New("it may certify mailboxes")
	case !slices.Equal(cert.PermittedURIDomains, []string{nobody}) || !slices.Equal(cert.ExcludedURIDomains, []string{nobody}):
		return errors.New("it may certify URIs")
	}
	return nil
}

func excludesAll(ranges []*net.IPNet, bits int) bool {
	return slices.ContainsFunc(ranges, func(r *net.IPNet) bool {
		ones, size := r.Mask.Size()
		return ones == 0 && size == bits
	})
}

// Fingerprint is the SHA-256 of a certificate in the form that browsers show.
func Fingerprint(cert *x509.Certificate) string {
	sum := sha256.Sum256(cert.Raw)
	text := strings.ToUpper(hex.EncodeToString(sum[:]))
	var b strings.Builder
	for i := 0; i < len(text); i += 2 {
		if i > 0 {
			b.WriteByte(':')
		}
		b.WriteString(text[i : i+2])
	}
	return b.String()
}

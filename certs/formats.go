package certs

import (
	"bytes"
	"crypto"
	"errors"
	"fmt"

	pkcs12 "software.sslmate.com/src/go-pkcs12"
)

// encodePKCS12 is certificate, key and chain in one file, with the ciphers of 2023, which OpenSSL 1.1.1, Java 12, macOS 15
// and Windows Server 2019 read. A file without a password is what browsers and Windows import with an empty one.
func encodePKCS12(c *Certificate, password string) ([]byte, error) {
	key, err := decodeKey(c.KeyPEM)
	if err != nil {
		return nil, err
	}
	chain, err := readChain(c.ChainPEM)
	if err != nil {
		return nil, err
	}
	data, err := pkcs12.Modern2023.Encode(key, chain[0], chain[1:], password)
	if err != nil {
		return nil, fmt.Errorf("writing PKCS#12: %w", err)
	}
	return data, nil
}

// samePKCS12 reports whether a file holds just c already: each encoding has its own salt.
func samePKCS12(data []byte, c *Certificate, password string) bool {
	key, leaf, rest, err := pkcs12.DecodeChain(data, password)
	if err != nil || !leaf.Equal(c.Leaf) {
		return false
	}
	signer, ok := key.(crypto.Signer)
	if !ok || !sameKey(signer.Public(), c.Leaf.PublicKey) {
		return false
	}
	chain, err := readChain(c.ChainPEM)
	if err != nil || len(chain) != len(rest)+1 {
		return false
	}
	for i, cert := range rest {
		if !bytes.Equal(cert.Raw, chain[i+1].Raw) {
			return false
		}
	}
	return true
}

// ParseCertificate takes a chain and its key as PEM, if they fit each other.
func ParseCertificate(name string, chainPEM, keyPEM []byte) (*Certificate, error) {
	if name == "" {
		return nil, errors.New("a certificate needs a name")
	}
	return newCertificate(name, "", chainPEM, keyPEM)
}

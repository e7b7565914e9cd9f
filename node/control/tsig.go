package control

import (
	"crypto/hmac"
	"crypto/sha256"
	"crypto/sha512"
	"encoding/hex"
	"hash"
	"strings"

	"github.com/miekg/dns"
)

// hmacKey signs and checks messages (RFC 8945, section 4.3), under SHA-256 or better.
type hmacKey []byte

// hmacOf is the hash of an algorithm; nil: it is not taken.
func hmacOf(algorithm string) func() hash.Hash {
	switch strings.ToLower(algorithm) {
	case dns.HmacSHA256:
		return sha256.New
	case dns.HmacSHA384:
		return sha512.New384
	case dns.HmacSHA512:
		return sha512.New
	}
	return nil
}

// Generate is a message's MAC.
func (k hmacKey) Generate(msg []byte, t *dns.TSIG) ([]byte, error) {
	of := hmacOf(t.Algorithm)
	if of == nil {
		return nil, dns.ErrKeyAlg
	}
	h := hmac.New(of, k)
	h.Write(msg)
	return h.Sum(nil), nil
}

// Verify reports whether a MAC is that of a message, all of it: a shortened one could be guessed.
func (k hmacKey) Verify(msg []byte, t *dns.TSIG) error {
	want, err := k.Generate(msg, t)
	if err != nil {
		return err
	}
	mac, err := hex.DecodeString(t.MAC)
	if err != nil || !hmac.Equal(mac, want) {
		return dns.ErrSig
	}
	return nil
}

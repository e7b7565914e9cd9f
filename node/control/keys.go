package control

import (
	"crypto/ecdh"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/subtle"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"errors"
	"fmt"
	"log/slog"
	"math/big"
	"time"
)

// WireGuardKey is a WireGuard public key (Curve25519), written in base64 as wg(8) does.
type WireGuardKey [32]byte

// ControlKey is the public half of a control key (Ed25519, RFC 8032), written in base64.
type ControlKey [32]byte

func (k WireGuardKey) String() string { return base64.StdEncoding.EncodeToString(k[:]) }

func (k ControlKey) String() string { return base64.StdEncoding.EncodeToString(k[:]) }

// MarshalText writes the key in base64.
func (k WireGuardKey) MarshalText() ([]byte, error) { return []byte(k.String()), nil }

// MarshalText writes the key in base64.
func (k ControlKey) MarshalText() ([]byte, error) { return []byte(k.String()), nil }

// UnmarshalText reads a key in base64.
func (k *WireGuardKey) UnmarshalText(text []byte) error { return decodeKey(k[:], text) }

// UnmarshalText reads a key in base64.
func (k *ControlKey) UnmarshalText(text []byte) error { return decodeKey(k[:], text) }

// decodeKey reads 32 bytes in strict base64: one key has one spelling.
func decodeKey(key, text []byte) error {
	data, err := base64.StdEncoding.Strict().DecodeString(string(text))
	if err != nil || len(data) != len(key) {
		return errors.New("not a key: 44 characters of base64 are wanted")
	}
	copy(key, data)
	return nil
}

// PrivateKey is a node's or gateway's control key. It never prints itself (S21).
type PrivateKey struct{ key ed25519.PrivateKey }

// NewPrivateKey makes a control key.
func NewPrivateKey() (PrivateKey, error) {
	_, key, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		return PrivateKey{}, fmt.Errorf("making a control key: %w", err)
	}
	return PrivateKey{key}, nil
}

// PrivateKeyFrom is the control key of a seed of 32 bytes, as Seed returned it.
func PrivateKeyFrom(seed []byte) (PrivateKey, error) {
	if len(seed) != ed25519.SeedSize {
		return PrivateKey{}, fmt.Errorf("a control key's seed has %d bytes, not %d", ed25519.SeedSize, len(seed))
	}
	return PrivateKey{ed25519.NewKeyFromSeed(seed)}, nil
}

// Seed is what the key is made from, to be kept in a file of mode 0600.
func (k PrivateKey) Seed() []byte { return k.key.Seed() }

// Public is the half that may be told.
func (k PrivateKey) Public() ControlKey { return ControlKey(k.key.Public().(ed25519.PublicKey)) }

func (k PrivateKey) String() string { return "(a private key)" }

// GoString keeps %#v from printing the key.
func (k PrivateKey) GoString() string { return k.String() }

// LogValue keeps loggers from printing the key.
func (k PrivateKey) LogValue() slog.Value { return slog.StringValue(k.String()) }

// verify reports whether signature is k's of message.
func (k ControlKey) verify(message, signature []byte) bool {
	return ed25519.Verify(ed25519.PublicKey(k[:]), message, signature)
}

// publicOf is the WireGuard public key of a private one.
func publicOf(private [32]byte) (WireGuardKey, error) {
	key, err := ecdh.X25519().NewPrivateKey(private[:])
	if err != nil {
		return WireGuardKey{}, fmt.Errorf("reading a WireGuard key: %w", err)
	}
	return WireGuardKey(key.PublicKey().Bytes()), nil
}

// newWireGuardKey makes a WireGuard private key, clamped as wg genkey does (RFC 7748, section 5).
func newWireGuardKey() ([32]byte, error) {
	var key [32]byte
	if _, err := rand.Read(key[:]); err != nil {
		return key, fmt.Errorf("making a WireGuard key: %w", err)
	}
	key[0] &= 248
	key[31] = key[31]&127 | 64
	return key, nil
}

// alpn keeps the protocol apart from others that the same key could be asked to speak.
const alpn = "meshdns-control/1"

// TLS is a configuration for one side of a control connection. known is asked whether the other side's key may be spoken to;
// TLS 1.3 has proven by then that it has the private half. Certificates only carry the keys: there is no CA, and no
// name or time in them counts, so that a clock that is wrong keeps nobody out.
func (k PrivateKey) TLS(known func(ControlKey) bool) (*tls.Config, error) {
	return k.TLSFor(alpn, known)
}

// TLSFor is TLS for another protocol, by its name in ALPN.
func (k PrivateKey) TLSFor(protocol string, known func(ControlKey) bool) (*tls.Config, error) {
	certificate, err := k.certificate()
	if err != nil {
		return nil, err
	}
	config := &tls.Config{
		Certificates: []tls.Certificate{certificate},
		MinVersion:   tls.VersionTLS13,
		NextProtos:   []string{protocol},
		ClientAuth:   tls.RequireAnyClientCert,
		// Verified by the key alone. Sessions are not resumed: a removed node's would outlive its removal.
		InsecureSkipVerify:     true,
		SessionTicketsDisabled: true,
	}
	verifyBy(config, protocol, known)
	return config, nil
}

// verifyBy has a connection go on only if the other side's key is known.
func verifyBy(config *tls.Config, protocol string, known func(ControlKey) bool) {
	config.VerifyConnection = func(state tls.ConnectionState) error {
		if state.NegotiatedProtocol != protocol {
			return errors.New("the other side does not speak " + protocol)
		}
		key, err := peerKey(state)
		if err != nil {
			return err
		}
		if !known(key) {
			return fmt.Errorf("the other side's control key %s is not known", key)
		}
		return nil
	}
}

// Is is for TLS: whether the other side has this very key.
func (k ControlKey) Is(other ControlKey) bool { return subtle.ConstantTimeCompare(k[:], other[:]) == 1 }

// certificate is a certificate that carries the key.
func (k PrivateKey) certificate() (tls.Certificate, error) {
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1),
		NotBefore:    time.Unix(0, 0),
		NotAfter:     time.Date(9999, 12, 31, 23, 59, 59, 0, time.UTC), // RFC 5280, section 4.1.2.5: no end
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, k.key.Public(), k.key)
	if err != nil {
		return tls.Certificate{}, fmt.Errorf("making a certificate for the control key: %w", err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: k.key}, nil
}

// peerKey is the key of the other side.
func peerKey(state tls.ConnectionState) (ControlKey, error) {
	if len(state.PeerCertificates) != 1 {
		return ControlKey{}, errors.New("the other side gives no single certificate")
	}
	key, ok := state.PeerCertificates[0].PublicKey.(ed25519.PublicKey)
	if !ok || len(key) != ed25519.PublicKeySize {
		return ControlKey{}, errors.New("the other side's key is not of Ed25519")
	}
	return ControlKey(key), nil
}

func (k PrivateKey) sign(message []byte) []byte { return ed25519.Sign(k.key, message) }

package tunnel

import (
	"crypto/ecdh"
	"crypto/rand"
	"encoding/base64"
	"fmt"
	"log/slog"
)

const keyBytes = 32

// Key is the WireGuard public key of a node; its text is the base64 that `wg` shows.
type Key [keyBytes]byte

// ParseKey reads a public key as `wg pubkey` prints it.
func ParseKey(text string) (Key, error) {
	var k Key
	// 44 letters hold 33 bytes: a decoder may write that many before it sees the padding.
	var buf [keyBytes + 1]byte
	if len(text) != base64.StdEncoding.EncodedLen(keyBytes) {
		return k, fmt.Errorf("public key has %d letters, not %d", len(text), base64.StdEncoding.EncodedLen(keyBytes))
	}
	n, err := base64.StdEncoding.Strict().Decode(buf[:], []byte(text))
	if err != nil || n != keyBytes {
		return k, fmt.Errorf("public key %q is not base64 of %d bytes", text, keyBytes)
	}
	return Key(buf[:keyBytes]), nil
}

func (k Key) String() string { return base64.StdEncoding.EncodeToString(k[:]) }

// MarshalText writes the key as String does.
func (k Key) MarshalText() ([]byte, error) { return []byte(k.String()), nil }

// UnmarshalText reads the key as ParseKey does.
func (k *Key) UnmarshalText(text []byte) (err error) {
	*k, err = ParseKey(string(text))
	return err
}

// IsZero tells whether there is no key.
func (k Key) IsZero() bool { return k == Key{} }

// Secret is a private key or a preshared one. However it is printed or logged, its bytes do not show (SECURITY.md, S21);
// s[:] has them.
type Secret [keyBytes]byte

// NewSecret draws a private key. It serves as a preshared key too.
func NewSecret() Secret {
	var s Secret
	rand.Read(s[:]) // never fails: crypto/rand ends the program itself
	return s.clamped()
}

const hidden = "(hidden)"

func (Secret) String() string { return hidden }

// GoString hides the bytes from %#v.
func (Secret) GoString() string { return hidden }

// Format hides the bytes from every verb: %x and %d would print an array without asking String.
func (Secret) Format(f fmt.State, _ rune) { _, _ = f.Write([]byte(hidden)) }

// LogValue hides the bytes from slog.
func (Secret) LogValue() slog.Value { return slog.StringValue(hidden) }

// MarshalText hides the bytes from encoders such as JSON.
func (Secret) MarshalText() ([]byte, error) { return []byte(hidden), nil }

// IsZero tells whether there is no secret.
func (s Secret) IsZero() bool { return s == Secret{} }

// clamped sets the bits that Curve25519 prescribes (RFC 7748, section 5), as every implementation does before use.
func (s Secret) clamped() Secret {
	s[0] &= 248
	s[31] = s[31]&127 | 64
	return s
}

// Public is the public key of a private one.
func (s Secret) Public() Key {
	private, err := ecdh.X25519().NewPrivateKey(s[:])
	if err != nil { // only a wrong length, which the type rules out
		return Key{}
	}
	return Key(private.PublicKey().Bytes())
}

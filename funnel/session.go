package funnel

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/hkdf"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"mime"
	"net/http"
	"strings"
	"time"
)

const (
	// cookiePrefix starts the names of all our cookies. Browsers take a __Host- cookie only with Secure, for the path /,
	// and from the very host that gets it back, so that no other name of the zone can plant one (RFC 6265bis, 4.1.3.2).
	cookiePrefix = "__Host-meshdns-"
	maxCookie    = 4096 // what browsers keep
	maxSealed    = 8192
)

// login is as whom a visitor passed.
type login struct {
	Way    string   `json:"w"`           // basic, oidc or share
	User   string   `json:"u"`           // the name, mail address or subject; of a share link its ID
	ID     string   `json:"s,omitempty"` // the provider's subject
	Mail   string   `json:"m,omitempty"` // one that counts
	Groups []string `json:"g,omitempty"` // those that count
	Until  int64    `json:"x,omitempty"` // Unix time at which it ends
}

// tell tells a service as whom its visitor passed. What is no ASCII is written as RFC 2047 has it, as Tailscale does.
func (l login) tell(h http.Header) {
	if l.User == "" {
		return
	}
	h.Set("Meshdns-Login", l.Way)
	if l.Way == "share" {
		return // who takes a link is nobody known
	}
	h.Set("Meshdns-User", mime.QEncoding.Encode("utf-8", l.User))
	if l.ID != "" {
		h.Set("Meshdns-Subject", mime.QEncoding.Encode("utf-8", l.ID))
	}
	if len(l.Groups) > 0 {
		h.Set("Meshdns-Groups", mime.QEncoding.Encode("utf-8", strings.Join(l.Groups, ", ")))
	}
}

// sealer keeps what a browser carries for us from being read, made or changed by anybody, and from counting for another
// name, port, mount or provider than it was made for.
type sealer struct {
	aead   cipher.AEAD
	secret []byte // for values that are derived, not carried
	id     string // of the names of its cookies
}

// newSealer makes the sealer of one guard and one provider from the node's secret.
func newSealer(key []byte, cfg guardConfig, provider ...string) (sealer, error) {
	var info strings.Builder
	writeParts(&info, append([]string{"meshdns login 1", cfg.Kind, cfg.Name, fmt.Sprint(cfg.Port), cfg.Mount}, provider...)...)
	keys, err := hkdf.Key(sha256.New, key, nil, info.String(), 64)
	if err != nil {
		return sealer{}, fmt.Errorf("deriving the key of logins: %w", err)
	}
	block, err := aes.NewCipher(keys[:32])
	if err != nil {
		return sealer{}, fmt.Errorf("making the cipher of logins: %w", err)
	}
	aead, err := cipher.NewGCMWithRandomNonce(block)
	if err != nil {
		return sealer{}, fmt.Errorf("making the cipher of logins: %w", err)
	}
	id := sha256.Sum256([]byte(info.String()))
	return sealer{aead: aead, secret: keys[32:], id: hex.EncodeToString(id[:6])}, nil
}

// writeParts writes each part with its length, so that no two lists look alike.
func writeParts(w io.Writer, parts ...string) {
	for _, part := range parts {
		fmt.Fprintf(w, "%d:%s,", len(part), part)
	}
}

// seal is v for a browser to carry. Only open with the same purpose takes it.
func (s sealer) seal(purpose string, v any) (string, error) {
	plain, err := json.Marshal(v)
	if err != nil {
		return "", fmt.Errorf("sealing: %w", err)
	}
	return base64.RawURLEncoding.EncodeToString(s.aead.Seal(nil, nil, plain, []byte(purpose))), nil
}

// errForged says that something which a browser carried is not from us, or for another purpose.
var errForged = errors.New("it was not made here")

// open reads what seal wrote.
func (s sealer) open(purpose, text string, v any) error {
	if len(text) > maxSealed {
		return errForged
	}
	sealed, err := base64.RawURLEncoding.Strict().DecodeString(text)
	if err != nil {
		return errForged
	}
	plain, err := s.aead.Open(nil, nil, sealed, []byte(purpose))
	if err != nil {
		return errForged
	}
	if err := json.Unmarshal(plain, v); err != nil {
		return errForged
	}
	return nil
}

// derive is a value that only we can know, made from what is known.
func (s sealer) derive(parts ...string) string {
	mac := hmac.New(sha256.New, s.secret)
	writeParts(mac, parts...)
	return base64.RawURLEncoding.EncodeToString(mac.Sum(nil))
}

// cookie is the name of one of this sealer's cookies.
func (s sealer) cookie(kind string) string { return cookiePrefix + s.id + "-" + kind }

// setCookie has the browser keep a value for a time; nothing removes it.
func setCookie(w http.ResponseWriter, name, value string, lifetime time.Duration) {
	age := int(lifetime / time.Second)
	if value == "" {
		age = -1
	}
	http.SetCookie(w, &http.Cookie{
		Name: name, Value: value, Path: "/", MaxAge: age,
		Secure: true, HttpOnly: true, SameSite: http.SameSiteLaxMode,
	})
}

// takeCookies takes our cookies out of a request, so that no backend and no log ever sees one.
func takeCookies(h http.Header) map[string]string {
	ours := map[string]string{}
	var kept []string
	for _, line := range h["Cookie"] {
		var rest []string
		for pair := range strings.SplitSeq(line, ";") {
			pair = strings.TrimSpace(pair)
			name, value, _ := strings.Cut(pair, "=")
			name = strings.TrimSpace(name)
			switch {
			case !strings.HasPrefix(strings.ToLower(name), strings.ToLower(cookiePrefix)):
				rest = append(rest, pair)
			case strings.HasPrefix(name, cookiePrefix) && len(value) <= maxCookie:
				ours[name] = strings.Trim(strings.TrimSpace(value), `"`)
			}
		}
		if len(rest) > 0 {
			kept = append(kept, strings.Join(rest, "; "))
		}
	}
	delete(h, "Cookie")
	if len(kept) > 0 {
		h["Cookie"] = kept
	}
	return ours
}

// random is a value of n random bytes that nobody guesses, as text.
func random(n int) string {
	b := make([]byte, n)
	_, _ = rand.Read(b) // it never fails
	return base64.RawURLEncoding.EncodeToString(b)
}

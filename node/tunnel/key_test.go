package tunnel

import (
	"bytes"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"log/slog"
	"strings"
	"testing"
)

func TestKeyTextRoundTrips(t *testing.T) {
	want := NewSecret().Public()
	got, err := ParseKey(want.String())
	if err != nil || got != want {
		t.Fatalf("ParseKey(%s) = %s, %v", want, got, err)
	}
	for name, text := range map[string]string{
		"empty": "", "short": want.String()[:43], "long": want.String() + "A", "not base64": strings.Repeat("!", 44),
		"33 bytes": strings.Repeat("A", 44), "stray bits": strings.Repeat("A", 42) + "B=", "line break": strings.Repeat("A", 42) + "\n=",
	} {
		if _, err := ParseKey(text); err == nil {
			t.Errorf("%s: %q is taken for a key", name, text)
		}
	}
}

func FuzzParseKey(f *testing.F) {
	f.Add(Key{1}.String())
	f.Add(strings.Repeat("A", 44))
	f.Fuzz(func(t *testing.T, text string) {
		if k, err := ParseKey(text); err == nil && k.String() != text {
			t.Errorf("%q reads as %s", text, k)
		}
	})
}

// RFC 7748, section 5.2: the scalar 9 once applied to the base point.
func TestPublicKeyIsCurve25519(t *testing.T) {
	const want = "422c8e7a6227d7bca1350b3e2bb7279f7897b87bb6854b783c60e80311ae3079"
	public := Secret{9}.Public()
	if got := hex.EncodeToString(public[:]); got != want {
		t.Errorf("got %s, want %s", got, want)
	}
	if drawn := NewSecret(); drawn != drawn.clamped() || drawn == NewSecret() {
		t.Error("a key that is drawn is not clamped, or drawn twice")
	}
}

func TestSecretsDoNotShow(t *testing.T) {
	s := NewSecret()
	var log bytes.Buffer
	slog.New(slog.NewTextHandler(&log, nil)).Info("x", "secret", s, "peer", Peer{Preshared: s}, "config", Config{Key: s})
	slog.New(slog.NewJSONHandler(&log, nil)).Info("x", "secret", s, "peer", Peer{Preshared: s}, "config", &Peer{Preshared: s})
	encoded, err := json.Marshal(Peer{Preshared: s})
	if err != nil {
		t.Fatal(err)
	}
	var texts strings.Builder
	texts.WriteString(log.String() + string(encoded))
	for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%x", "%X", "%d", "%b", "%o", "%c", "%U"} {
		texts.WriteString(fmt.Sprintf(verb+" ", s) + fmt.Sprintf(verb+" ", &s) + fmt.Sprintf(verb+" ", Peer{Preshared: s}) + fmt.Sprintf(verb+" ", Config{Key: s}))
	}
	for _, shown := range []string{
		hex.EncodeToString(s[:]), strings.ToUpper(hex.EncodeToString(s[:])), Key(s).String(),
		strings.Trim(fmt.Sprint(s[:4]), "[]"), fmt.Sprintf("%#x, %#x", s[0], s[1]), strings.Trim(fmt.Sprintf("%b", s[:4]), "[]"),
	} {
		if strings.Contains(texts.String(), shown) {
			t.Errorf("the secret shows as %q in %s", shown, texts.String())
		}
	}
}

package control

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"reflect"
	"strings"
	"testing"
	"time"
)

func testInvite() Invite {
	i := Invite{
		Address:   netip.MustParseAddr("10.1.2.3"),
		Server:    netip.MustParseAddr("10.1.0.1"),
		Endpoints: []netip.AddrPort{netip.MustParseAddrPort("203.0.113.5:41642"), netip.MustParseAddrPort("[2001:db8::5]:41642")},
		Carrier:   netip.MustParseAddrPort("203.0.113.5:443"),
		Expires:   time.Unix(1_800_000_000, 0),
		Reusable:  true,
	}
	for n := range i.Key {
		i.Key[n], i.Gateway[n], i.Control[n] = byte(n), byte(n+1), byte(n+2)
	}
	return i
}

func TestAnInviteIsReadAsItWasWritten(t *testing.T) {
	for name, change := range map[string]func(*Invite){
		"all":          func(*Invite) {},
		"once":         func(i *Invite) { i.Reusable = false },
		"no carrier":   func(i *Invite) { i.Carrier = netip.AddrPort{} },
		"no endpoints": func(i *Invite) { i.Endpoints = nil },
		"IPv6":         func(i *Invite) { i.Address = netip.MustParseAddr("fd00::3") },
	} {
		want := testInvite()
		change(&want)
		text := want.Encode()
		// As mail and hands leave it.
		got, err := ParseInvite("  " + strings.ToLower(text[:40]) + "\r\n  " + text[40:] + "\n")
		if err != nil || !reflect.DeepEqual(got, want) {
			t.Errorf("%s: got %#v, %v", name, got, err)
		}
	}
}

func TestADamagedInviteIsRefused(t *testing.T) {
	text := testInvite().Encode()
	for name, damaged := range map[string]string{
		"nothing":     "",
		"another":     "TSKEY-AUTH-1234",
		"cut short":   text[:len(text)-1],
		"a character": text[:50] + string(rune('A'+(text[50]-'A'+1)%26)) + text[51:],
		"longer":      text + "A",
		"too long":    strings.Repeat(text, 10),
		"not base32":  text[:30] + "189!" + text[34:],
	} {
		_, err := ParseInvite(damaged)
		if !errors.Is(err, ErrNoInvite) {
			t.Errorf("%s: %v", name, err)
		}
		if len(damaged) > 50 && strings.Contains(err.Error(), damaged[10:20]) {
			t.Errorf("%s: the error holds a part of the secret: %v", name, err)
		}
	}
}

// S21: what holds a key prints none of it.
func TestSecretsDoNotPrintThemselves(t *testing.T) {
	key := newPrivateKey(t)
	i := testInvite()
	var log strings.Builder
	slog.New(slog.NewTextHandler(&log, nil)).Info("x", "key", key, "invite", i)
	text := log.String() + fmt.Sprintf("%v %+v %#v %s %v %+v %#v %s", key, key, key, key, i, i, i, i)
	for _, secret := range []string{fmt.Sprint(key.Seed()[:4]), fmt.Sprintf("%x", key.Seed()[:4]), "0x0, 0x1, 0x2", "0 1 2 3"} {
		if strings.Contains(text, strings.Trim(secret, "[]")) {
			t.Errorf("%q is in %s", secret, text)
		}
	}
	if strings.Count(text, "(a private key)") != 5 || strings.Count(text, "(an invite)") != 5 {
		t.Error(text)
	}
}

// The bytes are fuzzed behind their checksum, which would keep all but whole invites from the parser.
func FuzzParseInvite(f *testing.F) {
	whole, _ := inviteText.DecodeString(testInvite().Encode()[len(invitePrefix):])
	f.Add(whole[:len(whole)-4])
	f.Add([]byte{inviteVersion})
	f.Fuzz(func(t *testing.T, body []byte) {
		sum := sha256.Sum256(body)
		i, err := ParseInvite(invitePrefix + inviteText.EncodeToString(append(body, sum[:4]...)))
		if err != nil {
			return
		}
		again, err := ParseInvite(i.Encode())
		if err != nil || !reflect.DeepEqual(again, i) {
			t.Errorf("%s, read again: %s, %v", i.Encode(), again.Encode(), err)
		}
	})
}

package funnel

import (
	"net/http"
	"strings"
	"testing"
)

func TestServicesAreToldWhoLoggedIn(t *testing.T) {
	h := http.Header{}
	login{Way: "oidc", User: "änn@example.com", ID: "1\r\nX: y", Groups: []string{"family", "x y"}}.tell(h)
	want := http.Header{
		"Meshdns-Login": {"oidc"}, "Meshdns-User": {"=?utf-8?q?=C3=A4nn@example.com?="},
		"Meshdns-Subject": {"=?utf-8?q?1=0D=0AX:_y?="}, "Meshdns-Groups": {"family, x y"},
	}
	for name := range want {
		if h.Get(name) != want.Get(name) {
			t.Errorf("%s: %q, want %q", name, h.Get(name), want.Get(name))
		}
	}
	none := http.Header{}
	login{}.tell(none)
	if len(none) != 0 || len(h) != len(want) {
		t.Errorf("without a login: %v, with one: %v", none, h)
	}
}

func TestOnlyWeTellWhoLoggedIn(t *testing.T) {
	w := newWorld(t)
	e := site(kindHTTPS, "public.example", 443, true, backend(t, mirror))
	e.Access = withUsers(map[string]string{"ann": cheapHash})
	w.set(e)
	c := w.client(w.public("public.example", 443, kindHTTPS), http2)
	got := w.get(c, "https://public.example/", func(r *http.Request) {
		r.SetBasicAuth("ann", "secret")
		for _, name := range []string{"Meshdns-User", "meshdns_user", "Meshdns_Groups", "X-Forwarded-User", "Remote-User", "Remote_Groups"} {
			r.Header[name] = []string{"boss"}
		}
	})
	if got.status != http.StatusOK || strings.Contains(got.body, "boss") || strings.Contains(got.body, "Authorization") ||
		!strings.Contains(got.body, "Meshdns-User: ann\r\n") || !strings.Contains(got.body, "Meshdns-Login: basic\r\n") {
		t.Errorf("%d, and the service got:\n%s", got.status, got.body)
	}
}

func TestOurCookiesAreTakenOutAndNoOthers(t *testing.T) {
	for line, want := range map[string]string{
		"a=b; c=d":                         "a=b; c=d",
		"a=b; __Host-meshdns-1-login=x":    "a=b",
		"__Host-meshdns-1-login=x; a=b":    "a=b",
		"__host-Meshdns-1-login=x":         "",
		"__Host-meshdns-1-login":           "",
		"__Host-other=x;a=\"b c\"":         "__Host-other=x; a=\"b c\"",
		" __Host-meshdns-1-login = x ;a=b": "a=b",
	} {
		h := http.Header{"Cookie": {line}}
		ours := takeCookies(h)
		if got := h.Get("Cookie"); got != want {
			t.Errorf("%q leaves %q, want %q", line, got, want)
		}
		if v, ok := ours["__Host-meshdns-1-login"]; strings.Contains(line, "__Host-meshdns-1-login") != ok || strings.Contains(line, "x") && ok && v != "x" {
			t.Errorf("%q: took %v", line, ours)
		}
	}
}

package funnel

import (
	"bytes"
	"encoding/json"
	"net/http"
	"net/url"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
)

func TestTargets(t *testing.T) {
	for s, want := range map[string]target{
		"3000":                                     {kind: targetProxy, network: "tcp", address: "localhost:3000", bare: true},
		"192.168.1.9:80":                           {kind: targetProxy, network: "tcp", address: "192.168.1.9:80", bare: true},
		"[fd7a::1]:80":                             {kind: targetProxy, network: "tcp", address: "[fd7a::1]:80", bare: true},
		"Printer.LAN.:631":                         {kind: targetProxy, network: "tcp", address: "printer.lan:631", bare: true},
		"http://localhost:3000":                    {kind: targetProxy, network: "tcp", address: "localhost:3000"},
		"http://nas/base//?a=b":                    {kind: targetProxy, network: "tcp", address: "nas:80", base: "/base", query: "a=b"},
		"https://inner.example/a%2Fb":              {kind: targetProxy, network: "tcp", address: "inner.example:443", base: "/a%2Fb", tls: true},
		"https+insecure://127.0.0.1:8443":          {kind: targetProxy, network: "tcp", address: "127.0.0.1:8443", tls: true, insecure: true},
		"unix:/run/x.sock":                         {kind: targetProxy, network: "unix", address: "/run/x.sock", bare: true},
		"https+insecure+unix:/run/x.sock":          {kind: targetProxy, network: "unix", address: "/run/x.sock", bare: true, tls: true, insecure: true},
		"/srv/www/../www/":                         {kind: targetFiles, path: "/srv/www"},
		"text:":                                    {kind: targetText},
		"text:a\nb":                                {kind: targetText, text: "a\nb"},
		"redirect:https://b.example":               {kind: targetRedirect, status: 302, text: "https://b.example"},
		"redirect:307:/x?y=z":                      {kind: targetRedirect, status: 307, text: "/x?y=z"},
		"redirect:301:http://[::1]:80/":            {kind: targetRedirect, status: 301, text: "http://[::1]:80/"},
		"redirect:https://${HOST}${REQUEST_URI}":   {kind: targetRedirect, status: 302, text: "https://${HOST}${REQUEST_URI}"},
		"redirect:https://b:1/x?to=${REQUEST_URI}": {kind: targetRedirect, status: 302, text: "https://b:1/x?to=${REQUEST_URI}"},
	} {
		if got, err := parseTarget(s); err != nil || got != want {
			t.Errorf("%s: %+v, %v", s, got, err)
		}
	}
	for _, s := range []string{
		"", "0", "65536", "-1", "+80", "80a", "host", "host:", "host:0", "host:99999", ":80", "a b:80", "*.a:80", "host:80:80", "[::1]", "a/b", "./x", "../x", "~/x",
		"http://", "http:x", "http:///x", "http://user@host", "http://user:pass@host", "http://host/#f", "http://host:0", "http://ho st", "http://host/%zz", "http://host/a/../b",
		"http://host/%2e%2e/b", "ftp://host", "file:///etc/passwd", "https+insecure:host", "unix:", "unix:x", "unix:@abstract", "h2c://x",
		"/srv/\x00", "3000\n", "http://host/\r\nX: y", "/srv/\x1b[2J", strings.Repeat("x", maxTarget+1), "text:" + strings.Repeat("x", maxText+1),
		"redirect:", "redirect:x", "redirect:ftp://x", "redirect:javascript:alert(1)", "redirect:304:https://x", "redirect:200:https://x", "redirect:https://${REQUEST_URI}",
		"redirect:https://x${HOST}", "redirect:https://${HOST}.evil", "redirect:https://x@y", "redirect:https://x\\y", "redirect:https://", "redirect:https://x y", "redirect:${HOST}",
		"redirect:https://x:${REQUEST_URI}", "redirect:https://x/\r\nSet-Cookie: a=b", "redirect:https://x/${OTHER}",
	} {
		if got, err := parseTarget(s); err == nil {
			t.Errorf("%q is taken: %+v", s, got)
		}
	}
}

// S17: who answers without having shown a certificate that counts is this machine, or somebody pinned, or forced.
func TestInsecureTargets(t *testing.T) {
	pin := "sha256//" + strings.Repeat("A", 43) + "="
	for name, test := range map[string]struct {
		mount Mount
		ok    bool
	}{
		"loopback":           {Mount{Target: "https+insecure://127.0.0.1:8443"}, true},
		"loopback of IPv6":   {Mount{Target: "https+insecure://[::1]:8443"}, true},
		"this machine":       {Mount{Target: "https+insecure://localhost:8443"}, true},
		"a socket":           {Mount{Target: "https+insecure+unix:/run/x"}, true},
		"another machine":    {Mount{Target: "https+insecure://192.168.1.9"}, false},
		"a name":             {Mount{Target: "https+insecure://nas.lan"}, false},
		"a lookalike":        {Mount{Target: "https+insecure://localhost.evil.example"}, false},
		"a mapped address":   {Mount{Target: "https+insecure://[::ffff:127.0.0.1]"}, true},
		"any address":        {Mount{Target: "https+insecure://0.0.0.0"}, false},
		"another one pinned": {Mount{Target: "https+insecure://192.168.1.9", TLSPin: pin}, true},
		"another one forced": {Mount{Target: "https+insecure://192.168.1.9", Insecure: true}, true},
		"a pin that is none": {Mount{Target: "https://a.example", TLSPin: "sha256//x"}, false},
		"a pin without TLS":  {Mount{Target: "http://a.example", TLSPin: pin}, false},
		"forced for nothing": {Mount{Target: "3000", Insecure: true}, false},
		"a name without TLS": {Mount{Target: "3000", TLSName: "a.example"}, false},
		"checked":            {Mount{Target: "https://192.168.1.9", TLSName: "nas.lan"}, true},
	} {
		test.mount.Path = "/"
		if err := test.mount.check(); (err == nil) != test.ok {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestEntriesAreChecked(t *testing.T) {
	good := Entry{Kind: "https", Name: "a.example", Port: 443, Mounts: []Mount{{Path: "/", Target: "3000"}, {Path: "/x/y", Target: "text:x"}}}
	if err := good.Check(); err != nil {
		t.Fatal(err)
	}
	for name, change := range map[string]func(*Entry){
		"a name in capitals":      func(e *Entry) { e.Name = "A.example" },
		"a name with a dot":       func(e *Entry) { e.Name = "a.example." },
		"a name with a line end":  func(e *Entry) { e.Name = "a.example\n" },
		"an address":              func(e *Entry) { e.Name = "192.0.2.1" },
		"no name":                 func(e *Entry) { e.Name = "" },
		"a star within":           func(e *Entry) { e.Name = "a.*.example" },
		"a star alone":            func(e *Entry) { e.Name = "*" },
		"no port":                 func(e *Entry) { e.Port = 0 },
		"no kind":                 func(e *Entry) { e.Kind = "" },
		"a target":                func(e *Entry) { e.Target = "3000" },
		"aliases":                 func(e *Entry) { e.Aliases = []string{"a"} },
		"a third PROXY":           func(e *Entry) { e.ProxyProtocol = 3 },
		"a relative path":         func(e *Entry) { e.Mounts[0].Path = "x" },
		"an empty path":           func(e *Entry) { e.Mounts[0].Path = "" },
		"a path with dots":        func(e *Entry) { e.Mounts[0].Path = "/a/../b" },
		"a path with a slash":     func(e *Entry) { e.Mounts[0].Path = "/a/" },
		"a path with escapes":     func(e *Entry) { e.Mounts[0].Path = "/a%2Fb" },
		"a path with a semicolon": func(e *Entry) { e.Mounts[0].Path = "/a;b" },
		"a path with a backslash": func(e *Entry) { e.Mounts[0].Path = `/a\b` },
		"a path twice":            func(e *Entry) { e.Mounts[1].Path = "/" },
		"a path without end":      func(e *Entry) { e.Mounts[0].Path = "/" + strings.Repeat("x", maxMountPath) },
		"too many mounts":         func(e *Entry) { e.Mounts = make([]Mount, maxMounts+1) },
		"a wait below zero":       func(e *Entry) { e.Mounts[0].Wait = -1 },
		"rules that cannot be":    func(e *Entry) { e.Mounts[0].Headers.Set = map[string]string{"": ""} },
		"access that cannot be":   func(e *Entry) { e.Access.Methods = []string{"no method"} },
		"a mount's access":        func(e *Entry) { e.Mounts[0].Access = &Access{Methods: []string{"no method"}} },
	} {
		e := good
		e.Mounts = append([]Mount(nil), good.Mounts...)
		change(&e)
		if e.Check() == nil {
			t.Errorf("%s: it is taken", name)
		}
	}
	for name, e := range map[string]Entry{
		"tcp with a name":           {Kind: "tcp", Port: 1, Name: "a.example", Target: "22"},
		"tcp with mounts":           {Kind: "tcp", Port: 1, Target: "22", Mounts: good.Mounts},
		"tcp to a URL":              {Kind: "tcp", Port: 1, Target: "http://localhost:22"},
		"tcp to a file":             {Kind: "tcp", Port: 1, Target: "/etc/passwd"},
		"TLS without a name":        {Kind: "tls-terminated-tcp", Port: 1, Target: "22"},
		"udp to a socket":           {Kind: "udp", Port: 1, Target: "unix:/run/x"},
		"tcp with access for sites": {Kind: "tcp", Port: 1, Target: "22", Access: Access{Methods: []string{"GET"}}},
	} {
		if err := NewServer(ServerConfig{}).Set([]Entry{e}); err == nil {
			t.Errorf("%s: it is taken", name)
		}
	}
}

// FuzzTarget holds that what is taken has bounds, and means the same when it is written out again.
func FuzzTarget(f *testing.F) {
	for _, s := range []string{"3000", "host:80", "https+insecure://x/y?z", "unix:/x", "/srv", "text:x", "redirect:301:https://${HOST}${REQUEST_URI}", "redirect:/x"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		got, err := parseTarget(s)
		if err != nil {
			return
		}
		switch got.kind {
		case targetProxy:
			if got.network != "unix" {
				if _, err := checkAddress(got.address); err != nil {
					t.Errorf("%q: address %q", s, got.address)
				}
			} else if !filepath.IsAbs(got.address) {
				t.Errorf("%q: a socket at %q", s, got.address)
			}
			if plain, err := url.PathUnescape(got.base); err != nil || hasDots(plain) || strings.ContainsAny(got.base, "\r\n ") {
				t.Errorf("%q: base %q", s, got.base)
			}
			again, err := parseTarget(got.String())
			if err != nil || again.address != got.address || again.base != got.base {
				if !got.tls || got.network != "unix" { // whose text is for people alone
					t.Errorf("%q: %q is %+v, %v", s, got, again, err)
				}
			}
		case targetFiles:
			if !filepath.IsAbs(got.path) || filepath.Clean(got.path) != got.path {
				t.Errorf("%q: path %q", s, got.path)
			}
		case targetRedirect:
			to := strings.NewReplacer("${HOST}", "a.example", "${REQUEST_URI}", "/@evil.example//x").Replace(got.text)
			u, err := url.Parse(to)
			if err != nil {
				return // a browser does not follow it
			}
			plain, err := url.Parse(strings.NewReplacer("${HOST}", "a.example", "${REQUEST_URI}", "/x").Replace(got.text))
			if err != nil || u.Host != plain.Host || u.User != nil || u.Scheme != "" && u.Scheme != "http" && u.Scheme != "https" {
				t.Errorf("%q leads to %q", s, to)
			}
			if http.StatusText(got.status) == "" || strings.ContainsAny(to, "\r\n") {
				t.Errorf("%q: %+v", s, got)
			}
		}
	})
}

// FuzzEntry holds that an entry which passes stays as it is through JSON, and can be served.
func FuzzEntry(f *testing.F) {
	f.Add([]byte(`{"port":443,"kind":"https","name":"a.example","public":true,"mounts":[{"path":"/","target":"3000","headers":{"set":{"A":"b"}},"access":{"allow":["10.0.0.0/8"]}}]}`))
	f.Add([]byte(`{"port":22,"kind":"tcp","public":false,"target":"22","proxyProtocol":2,"owner":1000}`))
	f.Add([]byte(`{"port":80,"kind":"http","name":"a.example","aliases":["a"],"mounts":[{"path":"/x","target":"redirect:/y"}]}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		var e Entry
		if json.Unmarshal(data, &e) != nil || e.Check() != nil {
			return
		}
		out, err := json.Marshal(e)
		if err != nil {
			t.Fatal(err)
		}
		var again Entry
		if err := json.Unmarshal(out, &again); err != nil {
			t.Fatal(err)
		}
		more, err := json.Marshal(again)
		if err != nil || !bytes.Equal(out, more) || again.Check() != nil {
			t.Errorf("%s became %s (%v)", out, more, again.Check())
		}
		s := NewServer(ServerConfig{})
		if s.Set([]Entry{e}) != nil {
			return // for reasons of its access
		}
		if one := s.table.Load().services[e.class()]; one == nil || !reflect.DeepEqual(one.entry, e) {
			t.Errorf("%s is not served", out)
		}
	})
}

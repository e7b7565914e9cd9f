package certs

import (
	"crypto/x509"
	"net/http"
	"strings"
	"testing"
	"time"
)

// acmez fetches the directories of all CAs under one lock of the process.
func TestACAThatHangsFromTheStartHoldsNoOtherUp(t *testing.T) {
	names := newNameServer(t)
	slow, good := newPebble(t, names, month), newPebble(t, names, month)
	asked, hang := make(chan struct{}, 10), make(chan struct{})
	slow.has(func() {
		slow.fault = func(_ http.ResponseWriter, r *http.Request) bool {
			select {
			case asked <- struct{}{}:
			default:
			}
			select {
			case <-hang:
			case <-r.Context().Done():
			}
			return false
		}
	})
	m := good.manager(t, func(c *Config) {
		c.CAs = []CA{{"slow", slow.issuer(t, func(c *ACMEConfig) { c.Name = "slow" })}, {"good", good.issuer(t, nil)}}
	})
	waiting := make(chan error, 1)
	go func() {
		_, _, err := m.Get(t.Context(), Request{Names: []string{"tv.foo-bar.example.org"}, CA: "slow"})
		waiting <- err
	}()
	<-asked
	done := make(chan error, 1)
	go func() {
		_, _, err := m.Get(t.Context(), Request{Names: nasNames(), CA: "good"})
		done <- err
	}()
	select {
	case err := <-done:
		if err != nil {
			t.Error(err)
		}
	case err := <-waiting:
		t.Fatalf("the one that hangs has ended first: %v", err)
	}
	close(hang)
	if err := <-waiting; err != nil {
		t.Errorf("once it goes on: %v", err)
	}
}

func TestWhatIsNoDirectory(t *testing.T) {
	p := newPebble(t, newNameServer(t), month)
	answer := func(status int, kind, text string) {
		p.has(func() {
			p.fault = func(w http.ResponseWriter, r *http.Request) bool {
				if r.URL.Path != "/dir" {
					return false
				}
				w.Header().Set("Content-Type", kind)
				w.WriteHeader(status)
				_, _ = w.Write([]byte(text))
				return true
			}
		})
	}
	a := p.issuer(t, nil)
	for name, test := range map[string]struct {
		status     int
		kind, text string
		want       string
		asked      int
	}{
		"a page":      {200, "text/html", "<h1>Welcome</h1>", "no ACME directory", 1},
		"something":   {200, "application/json", `{"newNonce":"https://x/"}`, "no ACME directory", 1},
		"not there":   {404, "text/html", "no", "404", 1},
		"its words":   {403, "application/problem+json; charset=utf-8", `{"type":"urn:ietf:params:acme:error:unauthorized","detail":"go away"}`, `the CA says "go away"`, 1},
		"in trouble":  {502, "text/html", "no", "502", directoryTries},
		"half of it":  {200, "application/json", `{"newNonce":"https://x/`, "no ACME directory", 1},
		"huge answer": {200, "application/json", strings.Repeat(" ", 2<<20), "no ACME directory", 1},
	} {
		answer(test.status, test.kind, test.text)
		before := p.count("dir")
		_, err := a.Replace(t.Context(), testRequest(t, nasNames()...), nil)
		if err == nil || !strings.Contains(err.Error(), test.want) || !strings.Contains(err.Error(), "registering an account (CA pebble)") {
			t.Errorf("%s: %v", name, err)
		}
		if n := p.count("dir") - before; n != test.asked {
			t.Errorf("%s: asked %d times, want %d", name, n, test.asked)
		}
		if err := a.Check(t.Context()); err == nil || !strings.Contains(err.Error(), test.want) {
			t.Errorf("%s: the check says %v", name, err)
		}
	}
	p.has(func() { p.fault = nil })
	if err := a.Check(t.Context()); err != nil {
		t.Error(err)
	}
	if _, err := a.Replace(t.Context(), testRequest(t, nasNames()...), nil); err != nil {
		t.Fatal(err)
	}
	before := p.count("dir")
	if _, err := a.Replace(t.Context(), testRequest(t, nasNames()...), nil); err != nil || p.count("dir") != before {
		t.Errorf("fetched again at once: %v", err)
	}
	a.directory.mu.Lock()
	a.directory.at = time.Now().Add(-directoryLife)
	a.directory.mu.Unlock()
	if _, err := a.Replace(t.Context(), testRequest(t, nasNames()...), nil); err != nil || p.count("dir") != before+1 {
		t.Errorf("not fetched anew after an hour: %v", err)
	}
}

func testRequest(t *testing.T, names ...string) *x509.CertificateRequest {
	t.Helper()
	key, err := newKey(keyP256)
	if err != nil {
		t.Fatal(err)
	}
	csr, err := newRequest(key, names)
	if err != nil {
		t.Fatal(err)
	}
	return csr
}

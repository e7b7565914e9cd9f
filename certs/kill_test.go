//go:build unix

package certs

import (
	"context"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"os/exec"
	"strings"
	"sync"
	"syscall"
	"testing"
)

// The variables by which a test tells another process of itself what to do.
const (
	childDir   = "CERTS_TEST_DIR"
	childCA    = "CERTS_TEST_CA"    // directory's URL
	childRoot  = "CERTS_TEST_ROOT"  // PEM
	childTXT   = "CERTS_TEST_TXT"   // URL that takes records
	childDeath = "CERTS_TEST_DEATH" // step at which it kills itself; empty: at none
)

// remoteTXT publishes records through the process of the test.
type remoteTXT string

// SetTXT publishes a value.
func (r remoteTXT) SetTXT(ctx context.Context, name, value string) (func(context.Context) error, error) {
	if err := r.call(ctx, "set", name, value); err != nil {
		return nil, err
	}
	Report(ctx, Step{Stage: Published, Name: name})
	return func(ctx context.Context) error { return r.call(ctx, "clear", name, value) }, nil
}

func (r remoteTXT) call(ctx context.Context, do, name, value string) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, string(r)+"?"+url.Values{"do": {do}, "name": {name}, "value": {value}}.Encode(), nil)
	if err != nil {
		return err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return errors.New(resp.Status)
	}
	_, err = io.Copy(io.Discard, resp.Body)
	return err
}

// TestGetsACertificateInAnotherProcess is the other process of other tests, and nothing by itself.
func TestGetsACertificateInAnotherProcess(t *testing.T) {
	dir := os.Getenv(childDir)
	if dir == "" {
		return
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM([]byte(os.Getenv(childRoot)))
	a, err := NewACME(ACMEConfig{Name: "pebble", Directory: os.Getenv(childCA), Dir: dir + "/acme/pebble", TXT: remoteTXT(os.Getenv(childTXT)), Roots: roots})
	if err != nil {
		t.Fatal(err)
	}
	m, err := New(Config{Dir: dir, CAs: []CA{{"pebble", a}}})
	if err != nil {
		t.Fatal(err)
	}
	death := os.Getenv(childDeath)
	c, _, err := m.Get(t.Context(), Request{Names: nasNames(), Steps: func(s Step) {
		if s.Stage == death {
			_ = syscall.Kill(os.Getpid(), syscall.SIGKILL)
		}
	}})
	if err != nil {
		t.Fatal(err)
	}
	fmt.Printf("serial=%s\n", c.Leaf.SerialNumber.Text(16))
}

// children are other processes at one store.
type children struct {
	ca   *pebble
	dir  string
	face *httptest.Server

	mu    sync.Mutex
	undos map[string]func(context.Context) error
}

func newChildren(t *testing.T, p *pebble) *children {
	t.Helper()
	c := &children{ca: p, dir: t.TempDir(), undos: map[string]func(context.Context) error{}}
	c.face = httptest.NewServer(c)
	t.Cleanup(c.face.Close)
	return c
}

// ServeHTTP publishes for the other processes.
func (c *children) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	name, value := r.FormValue("name"), r.FormValue("value")
	if r.FormValue("do") == "set" {
		undo, err := c.ca.dns.SetTXT(r.Context(), name, value)
		if err != nil {
			http.Error(w, err.Error(), http.StatusInternalServerError)
			return
		}
		c.mu.Lock()
		c.undos[name+value] = undo
		c.mu.Unlock()
		return
	}
	c.mu.Lock()
	undo := c.undos[name+value]
	c.mu.Unlock()
	if undo != nil {
		_ = undo(r.Context())
	}
}

// run has another process get the certificate. It returns the serial number.
func (c *children) run(t *testing.T, death string) (serial string, err error) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^TestGetsACertificateInAnotherProcess$")
	root := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.ca.Certificate().Raw})
	cmd.Env = append(os.Environ(), childDir+"="+c.dir, childCA+"="+c.ca.URL+"/dir", childRoot+"="+string(root), childTXT+"="+c.face.URL, childDeath+"="+death)
	out, err := cmd.CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("%w: %s", err, out)
	}
	_, rest, _ := strings.Cut(string(out), "serial=")
	serial, _, _ = strings.Cut(rest, "\n")
	return serial, nil
}

func TestKilledAtAnyStepItGoesOn(t *testing.T) {
	for _, step := range []string{registered, ordered, Published, seen, validated, issued, written} {
		t.Run(step, func(t *testing.T) {
			p := newPebble(t, newNameServer(t), month)
			c := newChildren(t, p)
			if serial, err := c.run(t, step); err == nil {
				t.Fatalf("it lived on, with %s", serial)
			}
			serial, err := c.run(t, "")
			if err != nil {
				t.Fatal(err)
			}
			if n := p.count("order-plz"); n != 1 {
				t.Errorf("%d orders", n)
			}
			kept, err := store{dir: c.dir}.read(nasNames()[0])
			if err != nil || kept.cert.Leaf.SerialNumber.Text(16) != serial {
				t.Errorf("stored is %v, %v; the process has %s", kept.cert, err, serial)
			}
			if again, err := c.run(t, ""); err != nil || again != serial {
				t.Errorf("a third one got %s, %v", again, err)
			}
		})
	}
}

func TestTwoProcessesAtOneStore(t *testing.T) {
	p := newPebble(t, newNameServer(t), month)
	c := newChildren(t, p)
	var wait sync.WaitGroup
	serials := make([]string, 3)
	for i := range serials {
		wait.Go(func() {
			var err error
			if serials[i], err = c.run(t, ""); err != nil {
				t.Error(err)
			}
		})
	}
	wait.Wait()
	if serials[0] == "" || serials[0] != serials[1] || serials[0] != serials[2] {
		t.Errorf("they have %q", serials)
	}
	if orders, accounts := p.count("order-plz"), p.count("sign-me-up"); orders != 1 || accounts != 1 {
		t.Errorf("%d orders, %d accounts", orders, accounts)
	}
}

func TestTwelveOrdersAtOnceForOneName(t *testing.T) {
	p := newPebble(t, newNameServer(t), month)
	m := p.manager(t, nil)
	other, err := New(m.cfg) // another user of the same store
	if err != nil {
		t.Fatal(err)
	}
	var wait sync.WaitGroup
	for i := range 12 {
		wait.Go(func() {
			one := m
			if i%2 == 1 {
				one = other
			}
			if _, _, err := one.Get(t.Context(), Request{Names: nasNames(), Force: true}); err != nil {
				t.Error(err)
			}
		})
	}
	wait.Wait()
	if n := p.count("order-plz"); n != 1 {
		t.Errorf("%d orders", n)
	}
}

// Package certs gets, stores and renews certificates: by ACME dns-01 through whatever can write the TXT record, or from
// any other Issuer. It makes the keys, which never leave this machine.
package certs

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"time"
)

// Issuer signs a certificate for a request. An Issuer that also has one of the methods Vet, Replace,
// RenewalInfo, Revoke or Check of ACME is asked for more than that.
type Issuer interface {
	// Issue returns the certificate for csr and those above it, as PEM. It is called for one certificate at a time, but
	// for several certificates at the same time. The errors of a step are StepErrors.
	Issue(ctx context.Context, csr *x509.CertificateRequest) (chainPEM []byte, err error)
}

// TXTSetter publishes TXT records. A TXTSetter that also has a method Serial() bool which is true can hold only one value
// at a time: names are then validated one after the other.
type TXTSetter interface {
	// SetTXT returns when every authoritative server serves value at name (in lower case, without a trailing dot:
	// _acme-challenge.nas.example.org), or an error that says which does not. Values of a name that were there stay.
	// undo takes the value away again, with a context of its own; it is not nil unless err is. What SetTXT has done it
	// tells with Report, as Published.
	SetTXT(ctx context.Context, name, value string) (undo func(context.Context) error, err error)
}

// CA is an Issuer and its name: letsencrypt, local.
type CA struct {
	Name   string
	Issuer Issuer
}

// Config is what a Manager works with.
type Config struct {
	Dir    string       // where certificates and keys are kept; made if it is missing
	CAs    []CA         // in order of preference: the next is asked where one cannot
	Key    string       // kind of new keys: p256, p384, rsa2048 or rsa4096; p256 if empty
	Logger *slog.Logger // nil: nothing is logged
	// Targets are, by name of a certificate, where it is copied to. Only targets from here can run a command or reload a
	// unit: they come from a file that nobody but root can change, never from a call (S20).
	Targets map[string][]Target
	// Own are all names of this machine now, its own first; none while they are not known. Certificates of Requests with Own follow
	// them. Nil: they never change. It is called with locks held, and must not call back.
	Own func() []string
	// Changed is called, if set, after anything about the certificate name has changed. It must not block.
	Changed func(name string)
	// Now and Random are the clock and the source of chance: time.Now and rand.Float64 if nil.
	Now    func() time.Time
	Random func() float64
}

// Manager holds certificates, hands them to handshakes, and renews them while Run runs. Its methods may be called at the
// same time.
type Manager struct {
	cfg   Config
	log   *slog.Logger
	store store
	ready atomic.Pointer[index] // what handshakes read
	wake  chan struct{}         // Run looks again

	mu    sync.Mutex
	certs map[string]*managed // by name
}

// New returns a Manager that holds nothing until Load.
func New(cfg Config) (*Manager, error) {
	switch {
	case cfg.Dir == "":
		return nil, errors.New("certificates need a directory")
	case len(cfg.CAs) == 0:
		return nil, errors.New("certificates need a CA")
	}
	seen := map[string]bool{}
	for _, ca := range cfg.CAs {
		if ca.Name == "" || ca.Issuer == nil || seen[ca.Name] {
			return nil, fmt.Errorf("each CA needs a name of its own and an issuer: %q", ca.Name)
		}
		seen[ca.Name] = true
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	if cfg.Random == nil {
		cfg.Random = rand.Float64
	}
	if cfg.Own == nil {
		cfg.Own = func() []string { return nil }
	}
	if cfg.Changed == nil {
		cfg.Changed = func(string) {}
	}
	m := &Manager{cfg: cfg, log: cfg.Logger, store: store{dir: cfg.Dir}, wake: make(chan struct{}, 1), certs: map[string]*managed{}}
	m.ready.Store(&index{})
	return m, nil
}

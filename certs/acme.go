package certs

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/mholt/acmez/v3/acme"
)

// ACMEConfig is how a CA is spoken to.
type ACMEConfig struct {
	Name      string    // of the CA, in messages
	Directory string    // URL of the CA's directory
	Dir       string    // where the account and the orders in progress are kept; made if it is missing
	TXT       TXTSetter // publishes what the CA asks for

	Email   string         // where the CA may write to; may be empty
	EAB     [2]string      // id and key of the account with the CA that it asks for (RFC 8555, section 7.3.4); may be empty
	Profile string         // of the certificates; empty: the CA's default
	Roots   *x509.CertPool // of the CA's own HTTPS; nil: the system's
	// Account is told the URI of the account before each order (for CAA records with accounturi, RFC 8657); may be nil.
	Account func(ctx context.Context, uri string) error
	// First is asked before an order of names that renews nothing; a LaterError has it wait. It may be nil.
	First func(ctx context.Context, names []string) error

	Agent   string        // how the program calls itself to the CA
	Request time.Duration // for one request to the CA: 30 s if zero
	Timeout time.Duration // for one certificate: 10 min if zero
	Logger  *slog.Logger  // nil: nothing is logged
}

// Format prints nothing of the key.
func (c ACMEConfig) Format(f fmt.State, _ rune) { fmt.Fprint(f, "(CA "+c.Name+" at "+c.Directory+")") }

// ACME is an Issuer that asks a CA by RFC 8555, with the challenge dns-01. It speaks the protocol through acmez and not
// through certmagic's ACMEIssuer: that one can name the certificate that is replaced (RFC 9773, section 5) only where it
// orders for one name itself, keeps the Retry-After of an answer to itself, and gives an order up when its process ends.
type ACME struct {
	cfg  ACMEConfig
	log  *slog.Logger
	web  *http.Client // for acmez, which it tells the directory from memory
	live *http.Client // asks the CA whatever it is

	directory *directory

	mu      sync.Mutex
	account account // the zero one until it is read
}

// NewACME returns an Issuer for the CA. It asks nothing yet.
func NewACME(cfg ACMEConfig) (*ACME, error) {
	u, err := url.Parse(cfg.Directory)
	switch {
	case err != nil:
		return nil, fmt.Errorf("directory of CA %s: %w", cfg.Name, err)
	case u.Scheme != "https" || u.Host == "":
		return nil, fmt.Errorf("directory of CA %s: %q is no https URL", cfg.Name, cfg.Directory)
	case cfg.Name == "" || cfg.Dir == "" || cfg.TXT == nil:
		return nil, errors.New("an ACME issuer needs a name, a directory and somebody who publishes TXT records")
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	if cfg.Request == 0 {
		cfg.Request = 30 * time.Second
	}
	if cfg.Timeout == 0 {
		cfg.Timeout = 10 * time.Minute
	}
	if cfg.Agent == "" {
		cfg.Agent = "meshdns"
	}
	a := &ACME{cfg: cfg, log: cfg.Logger.With("ca", cfg.Name)}
	a.live = &http.Client{Transport: newWatched(cfg.Roots), Timeout: cfg.Request}
	a.directory = &directory{address: cfg.Directory, live: a.live.Transport}
	a.web = &http.Client{Transport: a.directory, Timeout: cfg.Request}
	return a, nil
}

// client is a client for one task, which begins with the CA's directory.
func (a *ACME) client(ctx context.Context) (*acme.Client, error) {
	if err := a.fetchDirectory(ctx); err != nil {
		return nil, err
	}
	return &acme.Client{
		Directory:    a.cfg.Directory,
		HTTPClient:   a.web,
		UserAgent:    a.cfg.Agent,
		PollInterval: 100 * time.Millisecond,
		PollTimeout:  a.cfg.Timeout,
		Logger:       slog.New(quiet{a.log.Handler()}),
	}, nil
}

// Vet refuses names that the CA cannot certify, without asking it.
func (a *ACME) Vet(names []string) error { return vetPublic(a.cfg.Directory, names) }

// Issue gets a certificate for csr.
func (a *ACME) Issue(ctx context.Context, csr *x509.CertificateRequest) ([]byte, error) {
	return a.Replace(ctx, csr, nil)
}

// Replace gets a certificate for csr that takes the place of old, which the same CA has signed; that spares the limits on
// new certificates (RFC 9773, section 5). old may be nil.
func (a *ACME) Replace(ctx context.Context, csr *x509.CertificateRequest, old *x509.Certificate) ([]byte, error) {
	if err := a.Vet(csr.DNSNames); err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, a.cfg.Timeout)
	defer cancel()
	defer a.live.CloseIdleConnections() // the next task is days away
	chain, err := a.attempt(ctx, csr, old)
	if isProblem(err, acme.ProblemTypeAccountDoesNotExist) {
		a.log.Warn("the CA has forgotten the account, a new one is made", "err", err)
		a.forget()
		chain, err = a.attempt(ctx, csr, old)
	}
	// A CA that loses nonces, as one of many machines may, refuses what acmez has tried ten times; the order goes on.
	for range nonceTries {
		if !isProblem(err, acme.ProblemTypeBadNonce) || isDone(ctx) {
			break
		}
		chain, err = a.attempt(ctx, csr, old)
	}
	if err != nil {
		return nil, err
	}
	return chain, nil
}

// nonceTries is how often an order goes on that ended at nonces.
const nonceTries = 4

// attempt is one try at Replace.
func (a *ACME) attempt(ctx context.Context, csr *x509.CertificateRequest, old *x509.Certificate) ([]byte, error) {
	ctx, heard := listen(ctx)
	task := &order{acme: a, csr: csr, old: old}
	chain, err := task.run(ctx)
	if err == nil {
		return chain, nil
	}
	err = sayProblem(err)
	if until := heard.until(); !until.IsZero() && !isDone(ctx) {
		err = &LaterError{Until: until, Err: err}
	}
	return nil, &StepError{Stage: task.stage, CA: a.cfg.Name, Err: err}
}

func isDone(ctx context.Context) bool { return ctx.Err() != nil }

// RenewalInfo is when the CA wants a certificate to be renewed (RFC 9773). ErrUnsupported: it does not say.
func (a *ACME) RenewalInfo(ctx context.Context, leaf *x509.Certificate) (window, error) {
	ctx, cancel := context.WithTimeout(ctx, 2*a.cfg.Request)
	defer cancel()
	defer a.live.CloseIdleConnections()
	ctx, heard := listen(ctx)
	var info acme.RenewalInfo
	client, err := a.client(ctx)
	if err == nil {
		info, err = client.GetRenewalInfo(ctx, leaf)
	}
	switch {
	case errors.Is(err, acme.ErrUnsupported):
		return window{}, fmt.Errorf("asking CA %s when to renew: %w", a.cfg.Name, errors.ErrUnsupported)
	case err != nil:
		err = fmt.Errorf("asking CA %s when to renew: %w", a.cfg.Name, err)
		if until := heard.until(); !until.IsZero() {
			err = &LaterError{Until: until, Err: err}
		}
		return window{}, err
	}
	w := window{Start: info.SuggestedWindow.Start, End: info.SuggestedWindow.End, Why: info.ExplanationURL}
	if info.RetryAfter != nil {
		w.Again = *info.RetryAfter
	}
	return w, nil
}

// Revoke has the CA revoke a certificate for one of the reasons of RFC 5280, section 5.3.1.
func (a *ACME) Revoke(ctx context.Context, leaf *x509.Certificate, reason int) error {
	ctx, cancel := context.WithTimeout(ctx, 2*a.cfg.Request)
	defer cancel()
	defer a.live.CloseIdleConnections()
	var acct acme.Account
	client, err := a.client(ctx)
	if err == nil {
		acct, err = a.register(ctx, client)
	}
	if err != nil {
		return &StepError{Stage: registered, CA: a.cfg.Name, Err: sayProblem(err)}
	}
	err = client.RevokeCertificate(ctx, acct, leaf, nil, reason)
	if err != nil && !isProblem(err, acme.ProblemTypeAlreadyRevoked) {
		return fmt.Errorf("revoking (CA %s): %w", a.cfg.Name, sayProblem(err))
	}
	return nil
}

// Check asks for the CA's directory, to see that it answers.
func (a *ACME) Check(ctx context.Context) error {
	defer a.live.CloseIdleConnections()
	if _, _, err := a.askDirectory(ctx); err != nil {
		return fmt.Errorf("asking CA %s: %w", a.cfg.Name, sayProblem(err))
	}
	return nil
}

// file is a file of the account's directory.
func (a *ACME) file(name string) string { return filepath.Join(a.cfg.Dir, name) }

// mkdir makes the account's directory.
func (a *ACME) mkdir() error {
	if err := os.MkdirAll(a.file("orders"), 0o700); err != nil {
		return fmt.Errorf("making the directory of CA %s: %w", a.cfg.Name, err)
	}
	return nil
}

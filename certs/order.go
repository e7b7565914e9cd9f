package certs

import (
	"context"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/mholt/acmez/v3/acme"
)

// undoTime is how long the taking away of a TXT record may take. What it does not manage ends with the record's lease.
const undoTime = 30 * time.Second

// order is one order on its way to a certificate.
type order struct {
	acme    *ACME
	client  *acme.Client
	account acme.Account
	csr     *x509.CertificateRequest
	old     *x509.Certificate // nil: nothing is replaced
	stage   string            // that is being worked on
}

// run takes the order through all steps (RFC 8555, section 7.4).
func (o *order) run(ctx context.Context) (chainPEM []byte, err error) {
	o.stage = registered
	if o.client, err = o.acme.client(ctx); err != nil {
		return nil, err
	}
	if o.account, err = o.acme.register(ctx, o.client); err != nil {
		return nil, err
	}
	Report(ctx, Step{Stage: registered, Detail: o.account.Location})
	if tell := o.acme.cfg.Account; tell != nil {
		if err := tell(ctx, o.account.Location); err != nil {
			return nil, fmt.Errorf("telling of account %s: %w", o.account.Location, err)
		}
	}
	o.stage = ordered
	order, err := o.place(ctx)
	if err != nil {
		return nil, err
	}
	Report(ctx, Step{Stage: ordered, Name: o.csr.DNSNames[0], Detail: order.Location})
	if order.Status == acme.StatusPending {
		if err := o.validate(ctx, order); err != nil {
			o.drop(ctx, err)
			return nil, err
		}
	}
	o.stage = issued
	chainPEM, err = o.collect(ctx, order)
	if err != nil {
		o.drop(ctx, err)
		return nil, err
	}
	Report(ctx, Step{Stage: issued, Name: o.csr.DNSNames[0], Detail: o.acme.cfg.Name})
	return chainPEM, nil
}

// keptOrder is an order in progress as it is kept, under the digest of its request.
type keptOrder struct {
	URI     string `json:"uri"`
	Account string `json:"account"`
}

// path is where the order is kept.
func (o *order) path() string {
	sum := sha256.Sum256(o.csr.Raw)
	return o.acme.file(filepath.Join("orders", hex.EncodeToString(sum[:16])+".json"))
}

// orderLife is how long orders are kept. The CA forgets them after a week.
const orderLife = 7 * 24 * time.Hour

// place returns the order for the request: the one that a process before this one placed, or else a new one.
func (o *order) place(ctx context.Context) (acme.Order, error) {
	o.prune()
	var kept keptOrder
	if err := readJSON(o.path(), &kept); err == nil && kept.Account == o.account.Location {
		order, err := o.client.GetOrder(ctx, o.account, acme.Order{Location: kept.URI})
		var said acme.Problem
		switch {
		case err == nil && order.Status != acme.StatusInvalid:
			return order, nil
		case err != nil && !errors.As(err, &said):
			return acme.Order{}, err
		case isProblem(err, acme.ProblemTypeAccountDoesNotExist), isProblem(err, acme.ProblemTypeRateLimited):
			return acme.Order{}, err
		}
	}
	if first := o.acme.cfg.First; first != nil && o.old == nil {
		if err := first(ctx, o.csr.DNSNames); err != nil {
			return acme.Order{}, err
		}
	}
	wanted := acme.Order{Profile: o.acme.cfg.Profile}
	for _, name := range o.csr.DNSNames {
		wanted.Identifiers = append(wanted.Identifiers, acme.Identifier{Type: "dns", Value: name})
	}
	order, err := o.newOrder(ctx, wanted)
	if err != nil {
		return acme.Order{}, err
	}
	if order.Location == "" {
		return acme.Order{}, errors.New("the CA gave the order no address")
	}
	return order, writeJSON(o.path(), keptOrder{URI: order.Location, Account: o.account.Location})
}

// newOrder places an order that names what it replaces, unless the CA does not take that: the certificate may have been
// replaced already, by a process that died, or the CA does not know it.
func (o *order) newOrder(ctx context.Context, wanted acme.Order) (acme.Order, error) {
	if o.old == nil {
		return o.client.NewOrder(ctx, o.account, wanted)
	}
	id, err := acme.ARIUniqueIdentifier(o.old)
	if err != nil {
		return o.client.NewOrder(ctx, o.account, wanted)
	}
	replacing := wanted
	replacing.Replaces = id
	order, err := o.client.NewOrder(ctx, o.account, replacing)
	if err == nil || !refusesReplaces(err) {
		return order, err
	}
	o.acme.log.Info("the CA does not take that a certificate is replaced", "err", sayProblem(err))
	return o.client.NewOrder(ctx, o.account, wanted)
}

// refusesReplaces reports whether it may be the field replaces that made a CA refuse an order.
func refusesReplaces(err error) bool {
	var p acme.Problem
	if !errors.As(err, &p) {
		return false
	}
	switch p.Type {
	case acme.ProblemTypeAlreadyReplaced, acme.ProblemTypeMalformed, acme.ProblemTypeServerInternal:
		return true
	case acme.ProblemTypeRateLimited, acme.ProblemTypeAccountDoesNotExist:
		return false
	}
	return strings.Contains(p.Detail, "replac") || p.Status == 404
}

// prune removes orders that were kept for too long.
func (o *order) prune() {
	entries, err := os.ReadDir(filepath.Dir(o.path()))
	if err != nil {
		return
	}
	for _, e := range entries {
		if info, err := e.Info(); err == nil && time.Since(info.ModTime()) > orderLife {
			os.Remove(filepath.Join(filepath.Dir(o.path()), e.Name()))
		}
	}
}

// drop forgets an order that came to nothing. One that was only interrupted, or whose record could not be published, goes
// on later: the CA has not looked yet.
func (o *order) drop(ctx context.Context, err error) {
	var said acme.Problem
	var web *url.Error
	switch {
	case ctx.Err() != nil, o.stage == Published, errors.As(err, &web):
		return
	case errors.As(err, &said) && (said.Type == acme.ProblemTypeRateLimited || said.Type == acme.ProblemTypeBadNonce || said.Status >= 500):
		return
	}
	if err := os.Remove(o.path()); err != nil && !errors.Is(err, fs.ErrNotExist) {
		o.acme.log.Warn("forgetting an order", "err", err)
	}
}

// validate proves to the CA that the names are ours.
func (o *order) validate(ctx context.Context, order acme.Order) error {
	var open []acme.Authorization
	for _, uri := range order.Authorizations {
		authz, err := o.client.GetAuthorization(ctx, o.account, uri)
		if err != nil {
			return err
		}
		if authz.Status != acme.StatusValid {
			open = append(open, authz)
		}
	}
	together := len(open)
	if s, ok := o.acme.cfg.TXT.(interface{ Serial() bool }); ok && s.Serial() {
		together = 1
	}
	for len(open) > 0 {
		n := min(max(together, 1), len(open))
		if err := o.prove(ctx, open[:n]); err != nil {
			return err
		}
		open = open[n:]
	}
	return nil
}

// txtRecord is a TXT record that was asked for.
type txtRecord struct {
	name      string
	challenge acme.Challenge
	undo      func(context.Context) error
	err       error
}

// prove publishes the records for some authorizations, has the CA look, and takes them away again.
func (o *order) prove(ctx context.Context, open []acme.Authorization) error {
	records := make([]txtRecord, len(open))
	for i, authz := range open {
		challenge, err := dns01(authz)
		if err != nil {
			return err
		}
		records[i] = txtRecord{name: challenge.DNS01TXTRecordName(), challenge: challenge}
	}
	o.stage = Published
	defer o.takeAway(ctx, records)
	if err := o.publish(ctx, records); err != nil {
		return err
	}
	o.stage = validated
	for i := range records {
		if _, err := o.client.InitiateChallenge(ctx, o.account, records[i].challenge); err != nil {
			return err
		}
	}
	for i, authz := range open {
		// Its state is from before the challenge was taken up.
		if _, err := o.client.PollAuthorization(ctx, o.account, authz); err != nil {
			return err
		}
		Report(ctx, Step{Stage: validated, Name: open[i].IdentifierValue(), Detail: o.acme.cfg.Name})
	}
	return nil
}

// dns01 is the challenge of an authorization that we can meet. CAs offer more, and new kinds.
func dns01(authz acme.Authorization) (acme.Challenge, error) {
	if authz.Status != acme.StatusPending {
		return acme.Challenge{}, fmt.Errorf("the CA's authorization of %s is %s", authz.IdentifierValue(), authz.Status)
	}
	for _, c := range authz.Challenges {
		if c.Type == acme.ChallengeTypeDNS01 {
			return c, nil
		}
	}
	return acme.Challenge{}, fmt.Errorf("the CA offers no challenge by DNS for %s", authz.IdentifierValue())
}

// publishers is how many records are written at a time.
const publishers = 8

// publish writes all records and returns when all are served.
func (o *order) publish(ctx context.Context, records []txtRecord) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	slots := make(chan struct{}, publishers)
	var wait sync.WaitGroup
	for i := range records {
		slots <- struct{}{}
		wait.Go(func() {
			defer func() { <-slots }()
			r := &records[i]
			r.undo, r.err = o.acme.cfg.TXT.SetTXT(ctx, r.name, r.challenge.DNS01KeyAuthorization())
			if r.err != nil {
				cancel() // the others are of no use any more
				return
			}
			Report(ctx, Step{Stage: seen, Name: r.name})
		})
	}
	wait.Wait()
	var cancelled error
	for _, r := range records {
		switch {
		case errors.Is(r.err, context.Canceled):
			cancelled = fmt.Errorf("%s: %w", r.name, r.err)
		case r.err != nil:
			return fmt.Errorf("%s: %w", r.name, r.err)
		}
	}
	return cancelled
}

// takeAway takes the records away again, also when the order was interrupted.
func (o *order) takeAway(ctx context.Context, records []txtRecord) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), undoTime)
	defer cancel()
	var wait sync.WaitGroup
	for _, r := range records {
		if r.undo == nil {
			continue
		}
		wait.Go(func() {
			if err := r.undo(ctx); err != nil {
				o.acme.log.Warn("a TXT record stays until its lease ends", "record", r.name, "err", err)
			}
		})
	}
	wait.Wait()
}

// collect has the CA sign the request, unless it has already, and fetches the certificate.
func (o *order) collect(ctx context.Context, order acme.Order) ([]byte, error) {
	location := order.Location
	if order.Status != acme.StatusValid {
		var err error
		if order, err = o.finalize(ctx, order); err != nil {
			return nil, err
		}
	}
	order.Location = location
	chains, err := o.client.GetCertificateChain(ctx, o.account, order.Certificate)
	if err != nil {
		return nil, err
	}
	if len(chains) == 0 {
		return nil, errors.New("the CA gave no certificate")
	}
	return chains[0].ChainPEM, nil
}

// finalize hands in the request. An order that is being processed already is waited for.
func (o *order) finalize(ctx context.Context, order acme.Order) (acme.Order, error) {
	if order.Status != acme.StatusProcessing {
		return o.client.FinalizeOrder(ctx, o.account, order, o.csr.Raw)
	}
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	for order.Status == acme.StatusProcessing {
		select {
		case <-ctx.Done():
			return order, ctx.Err()
		case <-tick.C:
		}
		var err error
		if order, err = o.client.GetOrder(ctx, o.account, order); err != nil {
			return order, err
		}
	}
	if order.Status != acme.StatusValid {
		return order, fmt.Errorf("the order has become %s", order.Status)
	}
	return order, nil
}

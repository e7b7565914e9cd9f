package certs

import (
	"context"
	"fmt"
)

// The steps to a certificate, in their order. Those up to issued are steps of the issuer.
const (
	registered = "account"   // the CA knows us
	ordered    = "order"     // the CA has taken the order
	Published  = "published" // the TXT record is written: for TXTSetters to Report
	seen       = "seen"      // every authoritative server serves it
	validated  = "validated" // the CA has seen it too
	issued     = "issued"    // the certificate is here
	written    = "written"   // it is stored
	deployed   = "deployed"  // it is where other programs read it
)

// Step is a step that was taken.
type Step struct {
	Stage  string `json:"step"`             // account, order, published, seen, validated, issued, written or deployed
	Name   string `json:"name,omitempty"`   // that it is about: a name of the certificate, or of a TXT record
	Detail string `json:"detail,omitempty"` // by whom or where: a CA, a server, a file
}

// stepsKey is the context key of the function that withSteps was given.
type stepsKey struct{}

// withSteps has told called for every step that is taken under the context, by several goroutines at a time.
func withSteps(ctx context.Context, told func(Step)) context.Context {
	return context.WithValue(ctx, stepsKey{}, told)
}

// Report tells whoever waits for the certificate under ctx of a step. It is for Issuers and TXTSetters.
func Report(ctx context.Context, step Step) {
	if told, ok := ctx.Value(stepsKey{}).(func(Step)); ok {
		told(step)
	}
}

// StepError is a step that did not succeed.
type StepError struct {
	Stage string // as in Step
	CA    string // whose, if it is known
	Err   error
}

// verb says what was being done at a stage.
func verb(stage string) string {
	switch stage {
	case registered:
		return "registering an account"
	case ordered:
		return "ordering"
	case Published:
		return "publishing the TXT record"
	case seen:
		return "waiting for the TXT record"
	case validated:
		return "validating"
	case issued:
		return "getting the certificate"
	case written:
		return "storing the certificate"
	case deployed:
		return "deploying the certificate"
	}
	return stage
}

// Error says what was being done, with whom, and why it did not succeed.
func (e *StepError) Error() string {
	if e.CA == "" {
		return fmt.Sprintf("%s: %v", verb(e.Stage), e.Err)
	}
	return fmt.Sprintf("%s (CA %s): %v", verb(e.Stage), e.CA, e.Err)
}

// Unwrap returns what was wrong.
func (e *StepError) Unwrap() error { return e.Err }

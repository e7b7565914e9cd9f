package node

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"time"
)

// errEnded says that a part ended that lives as long as the node.
var errEnded = errors.New("it ended by itself")

const (
	// undoTime is how long putting everything back may take, the machine's DNS aside.
	undoTime = 2 * time.Second
	// undoLeast is what is left of it for each step at least, so that one that hangs costs no other its turn.
	undoLeast = 100 * time.Millisecond
	// undoDNSTime is how long giving the machine's DNS back may take. On a machine at rest that is a matter of
	// milliseconds; on one that is busy, a node that ends late is better than one that ends with DNS left pointing at it.
	undoDNSTime = 10 * time.Second
)

// undoStep puts one thing back.
type undoStep struct {
	what  string
	do    func(ctx context.Context) error
	limit time.Duration // for it alone; 0: a share of undoTime
}

// undoStack remembers how to put back what was started, newest first.
type undoStack struct {
	steps []undoStep
	log   *slog.Logger
}

func (s *undoStack) push(what string, do func(ctx context.Context) error) { s.pushWithin(0, what, do) }

// pushWithin is push for a step that has a time of its own.
func (s *undoStack) pushWithin(limit time.Duration, what string, do func(ctx context.Context) error) {
	s.steps = append(s.steps, undoStep{what, do, limit})
}

// run puts everything back in reverse order. What hangs is abandoned; the errors are joined.
func (s *undoStack) run() error {
	var errs []error
	left := undoTime
	for _, step := range slices.Backward(s.steps) {
		limit := step.limit
		if limit == 0 {
			limit = max(left, undoLeast)
		}
		start := time.Now()
		ctx, cancel := context.WithTimeout(context.Background(), limit)
		if err := orAbandon(ctx, func() error { return step.do(ctx) }); err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", step.what, err))
		}
		cancel()
		if step.limit == 0 {
			left -= time.Since(start)
		}
	}
	s.steps = nil
	return errors.Join(errs...)
}

// orAbandon runs f and returns what it returns, or the error of ctx as soon as that ends: f then goes on by itself in
// a process that is about to end.
func orAbandon(ctx context.Context, f func() error) error {
	done := make(chan error, 1)
	go func() { done <- f() }()
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
	}
	select {
	case err := <-done: // both were ready
		return err
	default:
		return fmt.Errorf("given up: %w", ctx.Err())
	}
}

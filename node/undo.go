package node

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"
)

// errEnded says that a part ended that lives as long as the node.
var errEnded = errors.New("it ended by itself")

// undoTime is how long putting everything back may take. The machine's DNS goes first and has undoDNSTime of it, so
// that nothing that hangs behind it can keep the machine without names.
const (
	undoTime    = 2 * time.Second
	undoDNSTime = 1500 * time.Millisecond
)

// undoStep puts one thing back.
type undoStep struct {
	what string
	do   func(ctx context.Context) error
}

// undoStack remembers how to put back what was started, newest first.
type undoStack struct {
	steps []undoStep
	log   *slog.Logger
}

func (s *undoStack) push(what string, do func(ctx context.Context) error) {
	s.steps = append(s.steps, undoStep{what, do})
}

// run puts everything back in reverse order within undoTime. What hangs is abandoned; the errors are joined.
func (s *undoStack) run() error {
	ctx, cancel := context.WithTimeout(context.Background(), undoTime)
	defer cancel()
	var errs []error
	for i := len(s.steps) - 1; i >= 0; i-- {
		step := s.steps[i]
		if err := orAbandon(ctx, func() error { return step.do(ctx) }); err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", step.what, err))
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

package certs

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"
)

// ExecConfig says which program writes TXT records.
type ExecConfig struct {
	// Argv is the program and its first arguments; "present" or "cleanup", the name and the value follow. It comes from a file that
	// only root can change (S20).
	Argv []string
	// Run runs a program without a shell, bounded in time and output, and returns what was wrong in its own words.
	Run     func(ctx context.Context, argv []string) error
	Lookup  Lookup
	Timeout time.Duration // until all servers of the zone serve a value; 5 minutes if zero
}

// execWriter has a program of the user's write TXT records. It is a TXTSetter. CNAMEs are followed: the program gets the name to
// write at.
type execWriter struct{ cfg ExecConfig }

// NewExec checks the config and runs nothing.
func NewExec(cfg ExecConfig) (*execWriter, error) {
	if len(cfg.Argv) == 0 || cfg.Run == nil {
		return nil, errors.New("a program that writes TXT records has to be named")
	}
	if cfg.Timeout == 0 {
		cfg.Timeout = providerTime
	}
	return &execWriter{cfg}, nil
}

// SetTXT has the program publish a value and waits until every server of the zone serves it. A program that fails is asked
// to clean up, as it may have begun.
func (e *execWriter) SetTXT(ctx context.Context, name, value string) (undo func(context.Context) error, err error) {
	at, zone, err := e.cfg.Lookup.place(ctx, name)
	if err != nil {
		return nil, &StepError{Stage: Published, Err: err}
	}
	undo = func(ctx context.Context) error {
		ctx, cancel := context.WithTimeout(ctx, undoTime)
		defer cancel()
		if err := e.run(ctx, "cleanup", at, value); err != nil {
			return fmt.Errorf("taking away the TXT record at %s: %w", at, err)
		}
		return nil
	}
	if err := e.run(ctx, "present", at, value); err != nil {
		return nil, &StepError{Stage: Published, Err: errors.Join(err, undo(context.WithoutCancel(ctx)))}
	}
	Report(ctx, Step{Stage: Published, Name: at, Detail: e.cfg.Argv[0]})
	return e.cfg.Lookup.settle(ctx, published{zone, at, value, e.cfg.Timeout}, undo)
}

func (e *execWriter) run(ctx context.Context, words ...string) error {
	if err := e.cfg.Run(ctx, slices.Concat(e.cfg.Argv, words)); err != nil {
		return fmt.Errorf("%s %s: %w", e.cfg.Argv[0], words[0], err)
	}
	return nil
}

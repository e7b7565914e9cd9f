package certs

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"time"
)

// programTime is how long a program may take to write a record.
const programTime = 2 * time.Minute

// execWriter has a program of the user's write TXT records. It is a TXTSetter. CNAMEs are followed: the program gets the
// name to write at.
type execWriter struct {
	argv    []string
	lookup  Lookup
	timeout time.Duration // until all servers of the zone serve a value
}

// NewExec takes the program and its first arguments; "present" or "cleanup", the name and the value follow. It is run without
// a shell, and comes from a file that only root can change (S20).
func NewExec(argv []string, lookup Lookup) (*execWriter, error) {
	if len(argv) == 0 {
		return nil, errors.New("a program that writes TXT records has to be named")
	}
	return &execWriter{argv, lookup, providerTime}, nil
}

// SetTXT has the program publish a value and waits until every server of the zone serves it. A program that fails is asked
// to clean up, as it may have begun.
func (e *execWriter) SetTXT(ctx context.Context, name, value string) (undo func(context.Context) error, err error) {
	at, zone, err := e.lookup.place(ctx, name)
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
	Report(ctx, Step{Stage: Published, Name: at, Detail: filepath.Base(e.argv[0])})
	return e.lookup.settle(ctx, published{zone, at, value, e.timeout}, undo)
}

func (e *execWriter) run(ctx context.Context, words ...string) error {
	return runProgram(ctx, program{argv: slices.Concat(e.argv, words), limit: programTime})
}

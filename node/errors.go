package node

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
)

// Errors that callers decide on, found by errors.Is.
var (
	// ErrNoDaemon says that no node answers on the control socket.
	ErrNoDaemon = errors.New("no daemon")
	// ErrNotPermitted says that the caller may not do what it asked for.
	ErrNotPermitted = errors.New("not permitted")
	// ErrNotFound says that what was asked for does not exist.
	ErrNotFound = errors.New("not found")
	// ErrTimeout says that the answer did not come in time and may come later.
	ErrTimeout = errors.New("timed out")
	// ErrBadRequest says that what was asked for makes no sense.
	ErrBadRequest = errors.New("bad request")
)

// errRunning says that another node runs already.
var errRunning = errors.New("already running")

// hintedError is an error that the user can mend, of one of the kinds above or of none.
type hintedError struct {
	kind error // nil: none that callers decide on
	err  error // what happened, in full
	hint string
}

func (e *hintedError) Error() string { return e.err.Error() }

// Hint says what the user can do.
func (e *hintedError) Hint() string { return e.hint }

// Unwrap leads to what happened and to its kind.
func (e *hintedError) Unwrap() []error {
	if e.kind == nil {
		return []error{e.err}
	}
	return []error{e.err, e.kind}
}

// hinted gives err a hint, and a kind if that is not nil.
func hinted(kind, err error, hint string) error {
	return &hintedError{kind: kind, err: err, hint: hint}
}

// hintOf is the hint of the first error in err's chain that has one, or "".
func hintOf(err error) string {
	var h interface{ Hint() string }
	if errors.As(err, &h) {
		return h.Hint()
	}
	return ""
}

// runningError says who runs already.
func runningError(where string) error {
	return hinted(errRunning, fmt.Errorf("another meshdns runs already (%s)", where),
		"look at it with: meshdns status; end it with: meshdns down")
}

// isTimeout reports whether err is about time that ran out, in whichever of the three ways there are to say so.
func isTimeout(err error) bool {
	var ne net.Error
	return errors.Is(err, ErrTimeout) || errors.Is(err, context.DeadlineExceeded) ||
		errors.Is(err, os.ErrDeadlineExceeded) || (errors.As(err, &ne) && ne.Timeout())
}

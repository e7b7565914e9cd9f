package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"slices"
	"strings"
	"text/tabwriter"

	"github.com/meshdns/meshdns/node"
)

// The exit codes, the same for every command.
const (
	exitDone        = 0
	exitFailed      = 1
	exitUsage       = 2
	exitNoDaemon    = 3
	exitPermission  = 4
	exitNotFound    = 5
	exitDegraded    = 6
	exitTimeout     = 7
	exitInterrupted = 130
)

// usageError is a command line that makes no sense.
type usageError struct {
	err     error
	command string // whose help to look at
}

func (e *usageError) Error() string { return e.err.Error() }
func (e *usageError) Unwrap() error { return e.err }

// Hint says where the right use stands.
func (e *usageError) Hint() string { return "see: " + e.command + " --help" }

// errDegraded ends a command that has told already what is not as it should be, and that it works nevertheless.
var errDegraded = errors.New("degraded")

// exitCode is how the process ends after err.
func exitCode(err error) int {
	var usage *usageError
	switch {
	case err == nil:
		return exitDone
	case errors.As(err, &usage), errors.Is(err, node.ErrBadRequest), isFlagProblem(err):
		return exitUsage
	case errors.Is(err, node.ErrNoDaemon):
		return exitNoDaemon
	case errors.Is(err, node.ErrNotPermitted), errors.Is(err, fs.ErrPermission):
		return exitPermission
	case errors.Is(err, node.ErrNotFound):
		return exitNotFound
	case errors.Is(err, errDegraded):
		return exitDegraded
	case errors.Is(err, context.Canceled):
		return exitInterrupted
	case errors.Is(err, node.ErrTimeout), errors.Is(err, context.DeadlineExceeded):
		return exitTimeout
	}
	return exitFailed
}

// isFlagProblem reports whether err is about the value of a flag, and not about a file.
func isFlagProblem(err error) bool {
	var problems node.Problems
	return errors.As(err, &problems) && slices.ContainsFunc(problems, func(p node.Problem) bool { return strings.HasPrefix(p.File, "--") })
}

// printError writes err and its hint to stderr. An error of several lines is several errors, and each of several
// problems has a hint of its own.
func (a *app) printError(err error) {
	var problems node.Problems
	switch {
	case err == nil || errors.Is(err, errDegraded):
		return
	case errors.Is(err, context.Canceled):
		err = errors.New("interrupted")
	case errors.As(err, &problems):
		for _, p := range problems {
			a.printOne(p)
		}
		return
	}
	a.printOne(err)
}

func (a *app) printOne(err error) {
	for line := range strings.Lines(err.Error()) {
		fmt.Fprintf(a.stderr, "meshdns: %s %s\n", a.paint(a.stderr, red, "error:"), strings.TrimRight(line, "\n"))
	}
	var h interface{ Hint() string }
	if errors.As(err, &h) && h.Hint() != "" {
		a.hint(h.Hint())
	}
}

// say writes a line for people to stderr.
func (a *app) say(format string, args ...any) {
	fmt.Fprintf(a.stderr, "meshdns: "+format+"\n", args...)
}

// hint writes what the user can do next to stderr.
func (a *app) hint(text string) { a.say("hint: %s", text) }

// print writes a result to stdout: as JSON if that was asked for, or else as human writes it.
func (a *app) print(result any, human func(w io.Writer)) error {
	if !a.json {
		tw := tabwriter.NewWriter(a.stdout, 0, 8, 2, ' ', 0)
		human(tw)
		if err := tw.Flush(); err != nil {
			return fmt.Errorf("writing the result: %w", err)
		}
		return nil
	}
	e := json.NewEncoder(a.stdout)
	e.SetIndent("", "  ")
	e.SetEscapeHTML(false)
	if err := e.Encode(result); err != nil {
		return fmt.Errorf("writing the result: %w", err)
	}
	return nil
}

// The colours, as terminals take them (ECMA-48, SGR).
const (
	red    = "31"
	green  = "32"
	yellow = "33"
)

// paint colours text for a terminal, unless NO_COLOR is set to anything (no-color.org).
func (a *app) paint(w io.Writer, colour, text string) string {
	if a.getenv("NO_COLOR") != "" || a.getenv("TERM") == "dumb" || !isTerminal(w) {
		return text
	}
	return "\x1b[" + colour + "m" + text + "\x1b[0m"
}

// isTerminal reports whether stream is a terminal: a character device, and not the one that swallows everything.
func isTerminal(stream any) bool {
	f, ok := stream.(*os.File)
	if !ok {
		return false
	}
	info, err := f.Stat()
	if err != nil || info.Mode()&fs.ModeCharDevice == 0 {
		return false
	}
	null, err := os.Stat(os.DevNull)
	return err == nil && !os.SameFile(info, null)
}

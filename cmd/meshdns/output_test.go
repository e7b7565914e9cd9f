package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"runtime/debug"
	"strings"
	"testing"

	"github.com/meshdns/meshdns/node"
)

func TestExitCodesFollowTheError(t *testing.T) {
	tests := []struct {
		name string
		err  error
		want int
	}{
		{"none", nil, 0},
		{"any", errors.New("disk full"), 1},
		{"usage", &usageError{err: errors.New("unknown flag")}, 2},
		{"a question that makes no sense", fmt.Errorf("asking: %w", node.ErrBadRequest), 2},
		{"a flag's value", node.Problems{{File: "--os", Msg: "want auto"}}, 2},
		{"a file's value", node.Problems{{File: "meshdns.yaml", Line: 1, Msg: "want auto"}}, 1},
		{"no daemon", fmt.Errorf("asking: %w", node.ErrNoDaemon), 3},
		{"the daemon refuses", fmt.Errorf("asking: %w", node.ErrNotPermitted), 4},
		{"the system refuses", &fs.PathError{Op: "open", Path: "/x", Err: fs.ErrPermission}, 4},
		{"no such name", &answerError{kind: node.ErrNotFound}, 5},
		{"degraded", errDegraded, 6},
		{"timeout", fmt.Errorf("asking: %w", node.ErrTimeout), 7},
		{"deadline", context.DeadlineExceeded, 7},
		{"interrupted", fmt.Errorf("asking: %w", context.Canceled), 130},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if got := exitCode(tt.err); got != tt.want {
				t.Errorf("got %d, want %d", got, tt.want)
			}
		})
	}
}

// testApp is an app whose stderr is captured.
func testApp(env map[string]string) (*app, *bytes.Buffer) {
	var stderr bytes.Buffer
	return &app{process: process{
		stdin:  strings.NewReader(""),
		stdout: io.Discard,
		stderr: &stderr,
		getenv: func(name string) string { return env[name] },
	}}, &stderr
}

func TestErrorsOfSeveralLinesAreSeveralErrors(t *testing.T) {
	a, stderr := testApp(nil)
	a.printError(node.Problems{
		{File: "map.yaml", Line: 3, Column: 5, Field: "zone", Value: "x y", Msg: "not a name"},
		{File: "map.yaml", Line: 9, Msg: "unknown", Advice: "remove it"},
	})
	want := "meshdns: error: map.yaml:3:5: zone \"x y\": not a name\n" +
		"meshdns: error: map.yaml:9: unknown\n" +
		"meshdns: hint: remove it\n"
	if got := stderr.String(); got != want {
		t.Errorf("got\n%swant\n%s", got, want)
	}
}

func TestWhatWasToldIsNotToldAgain(t *testing.T) {
	for _, err := range []error{nil, errDegraded} {
		a, stderr := testApp(nil)
		a.printError(err)
		if stderr.Len() > 0 {
			t.Errorf("%v: got %q, want nothing", err, stderr)
		}
	}
}

func TestColourIsForTerminalsThatWantIt(t *testing.T) {
	terminal, err := os.OpenFile("/dev/ptmx", os.O_RDWR, 0)
	if err != nil {
		t.Skipf("no pseudo-terminals: %v", err)
	}
	defer terminal.Close()
	null, err := os.OpenFile(os.DevNull, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer null.Close()
	const painted = "\x1b[31merror:\x1b[0m"
	tests := []struct {
		name string
		env  map[string]string
		w    io.Writer
		want string
	}{
		{"a terminal", nil, terminal, painted},
		{"NO_COLOR", map[string]string{"NO_COLOR": "1"}, terminal, "error:"},
		{"a dumb terminal", map[string]string{"TERM": "dumb"}, terminal, "error:"},
		{"a pipe", nil, new(bytes.Buffer), "error:"},
		{"/dev/null", nil, null, "error:"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			a, _ := testApp(tt.env)
			if got := a.paint(tt.w, red, "error:"); got != tt.want {
				t.Errorf("got %q, want %q", got, tt.want)
			}
		})
	}
}

func TestVersionIsTheBestKnown(t *testing.T) {
	commit := []debug.BuildSetting{{Key: "vcs.revision", Value: "0123456789abcdef0123"}}
	dirty := append([]debug.BuildSetting{{Key: "vcs.modified", Value: "true"}}, commit...)
	tests := []struct {
		name   string
		linked string
		info   *debug.BuildInfo
		want   string
	}{
		{"linked in", "v1.2.3", &debug.BuildInfo{Main: debug.Module{Version: "v1.0.0"}}, "v1.2.3"},
		{"go install", "", &debug.BuildInfo{Main: debug.Module{Version: "v1.0.0"}}, "v1.0.0"},
		{"go build", "", &debug.BuildInfo{Main: debug.Module{Version: "(devel)"}, Settings: commit}, "devel-0123456789ab"},
		{"changed files", "", &debug.BuildInfo{Settings: dirty}, "devel-0123456789ab-dirty"},
		{"no commit", "", &debug.BuildInfo{}, "devel"},
		{"nothing", "", nil, "unknown"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if got := versionOf(tt.linked, tt.info); got != tt.want {
				t.Errorf("got %q, want %q", got, tt.want)
			}
		})
	}
}

func TestScriptPatternsMatchLineByLine(t *testing.T) {
	for want, ok := range map[string]bool{
		"a\nb 5 c\nd\n": true,
		"a\nb … c\nd\n": true,
		"a\n…\n":        true,
		"…\nd\n":        true,
		"a\n…\nd\n":     true,
		"a\nd\n":        false,
		"a\nb … d\n":    false,
		"a\nb 5 c\n":    false,
	} {
		if got := matches("a\nb 5 c\nd\n", want); got != ok {
			t.Errorf("matches(%q) = %t, want %t", want, got, ok)
		}
	}
}

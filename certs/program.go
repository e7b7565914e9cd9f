package certs

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os/exec"
	"slices"
	"strings"
	"time"
)

// program is one that the configuration names (S20).
type program struct {
	argv  []string
	limit time.Duration // until it is killed, with what it has started
	env   []string      // besides what every program gets
}

// maxSaid is how much of what a program says is kept.
const maxSaid = 1024

// runProgram runs it without a shell. Its error has what the program said last.
func runProgram(ctx context.Context, p program) error {
	ctx, cancel := context.WithTimeout(ctx, p.limit)
	defer cancel()
	cmd := exec.CommandContext(ctx, p.argv[0], p.argv[1:]...)
	cmd.Dir = "/"
	// Nothing of our environment is for it: variables carry secrets.
	cmd.Env = slices.Concat([]string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOME=/", "LANG=C.UTF-8"}, p.env)
	said := &tail{}
	cmd.Stdout, cmd.Stderr = said, said
	cmd.WaitDelay = time.Second // a child of it may hold the pipes open
	ownGroup(cmd)
	err := cmd.Run()
	switch {
	case errors.Is(ctx.Err(), context.DeadlineExceeded):
		return fmt.Errorf("running %s: not done after %s%s", p.argv[0], p.limit, said)
	case err != nil:
		return fmt.Errorf("running %s: %w%s", p.argv[0], err, said)
	}
	return nil
}

// tail keeps the end of what a program says.
type tail struct{ buf bytes.Buffer }

// Write keeps the last maxSaid bytes.
func (t *tail) Write(p []byte) (int, error) {
	t.buf.Write(p)
	if over := t.buf.Len() - maxSaid; over > 0 {
		t.buf.Next(over)
	}
	return len(p), nil
}

// String is the end in quotes, or nothing.
func (t *tail) String() string {
	text := strings.TrimSpace(t.buf.String())
	if text == "" {
		return ""
	}
	return fmt.Sprintf(" (%q)", text)
}

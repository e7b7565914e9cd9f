package osconfig

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os/exec"
	"strings"
	"time"
)

const (
	// toolTimeout bounds a run of a program of the system's. resolvconf, for one, runs scripts of an administrator's.
	toolTimeout = 5 * time.Second
	// maxToolOutput bounds what is read of what it prints.
	maxToolOutput = 256 << 10
)

// toolRun is one run of a program, without a shell.
type toolRun struct {
	program string
	args    []string
	input   []byte
	dir     string // that it runs in; "": ours
}

// tool runs a program of the system's and returns what it printed.
func (m machine) tool(ctx context.Context, r toolRun) ([]byte, error) {
	m.disk.at("run", r.program+" "+strings.Join(r.args, " "))
	if m.tools != nil {
		return m.tools(ctx, r)
	}
	return r.run(ctx)
}

func (r toolRun) run(ctx context.Context) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, toolTimeout)
	defer cancel()
	cmd := exec.CommandContext(ctx, r.program, r.args...)
	cmd.Dir = r.dir
	cmd.Stdin = bytes.NewReader(r.input)
	cmd.WaitDelay = time.Second
	var stdout, stderr head
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	err := cmd.Run()
	if errors.Is(err, exec.ErrWaitDelay) {
		err = nil // it did its work, and a daemon that it restarted has kept its output open
	}
	if err != nil && ctx.Err() != nil {
		err = ctx.Err() // says more than that it was killed
	}
	if err != nil {
		said := strings.TrimSpace(string(stderr))
		return nil, fmt.Errorf("running %s %s: %w (%.200s)", r.program, strings.Join(r.args, " "), err, said)
	}
	return stdout, nil
}

// head keeps the first maxToolOutput bytes of what is written to it.
type head []byte

func (h *head) Write(p []byte) (int, error) {
	*h = append(*h, p[:min(len(p), maxToolOutput-len(*h))]...)
	return len(p), nil
}

package node

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os/exec"
	"strings"
	"time"
)

// commandTime is how long a source's command may run.
const commandTime = 10 * time.Second

// runCommand runs a program without a shell, as nobody if we are root, and returns what it wrote: at most maxSource
// bytes (S20).
func runCommand(ctx context.Context, argv []string) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, commandTime)
	defer cancel()
	cmd := exec.CommandContext(ctx, argv[0], argv[1:]...)
	cmd.Dir = "/"
	// Nothing of our environment is for it: variables carry secrets.
	cmd.Env = []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOME=/", "LANG=C.UTF-8"}
	stdout := &boundedBuffer{limit: maxSource, full: cancel}
	stderr := &boundedBuffer{limit: 1024, full: func() {}}
	cmd.Stdout, cmd.Stderr = stdout, stderr
	// A child of it may hold the pipes open after it has ended.
	cmd.WaitDelay = time.Second
	if err := confine(cmd); err != nil {
		return nil, fmt.Errorf("running %s: %w", argv[0], err)
	}
	err := cmd.Run()
	switch {
	case stdout.cut:
		return nil, fmt.Errorf("running %s: it wrote more than %d bytes", argv[0], maxSource)
	case errors.Is(ctx.Err(), context.DeadlineExceeded):
		return nil, fmt.Errorf("running %s: not done after %v: %w", argv[0], commandTime, ErrTimeout)
	case err != nil:
		return nil, fmt.Errorf("running %s: %w%s", argv[0], err, said(stderr.buf.Bytes()))
	}
	return stdout.buf.Bytes(), nil
}

// said is the first line that a program complained in.
func said(stderr []byte) string {
	line, _, _ := strings.Cut(strings.TrimSpace(string(stderr)), "\n")
	if line == "" {
		return ""
	}
	return fmt.Sprintf(" (%q)", line[:min(len(line), 200)])
}

// boundedBuffer keeps the first limit bytes, and calls full when there are more. The buffer is not embedded: io.Copy
// would find its ReadFrom, which knows no limit.
type boundedBuffer struct {
	buf   bytes.Buffer
	limit int
	cut   bool
	full  func()
}

// Write never fails, so that a program that writes too much to standard error is not disturbed.
func (b *boundedBuffer) Write(p []byte) (int, error) {
	room := b.limit - b.buf.Len()
	if len(p) <= room {
		return b.buf.Write(p)
	}
	b.buf.Write(p[:room])
	if !b.cut {
		b.cut = true
		b.full()
	}
	return len(p), nil
}

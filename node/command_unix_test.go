//go:build unix

package node

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// script writes a shell script that everybody may run, in a directory that everybody may enter.
func script(t *testing.T, text string) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "meshdns")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, "script")
	if err := os.WriteFile(path, []byte("#!/bin/sh\n"+text), 0o755); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestCommandsRunWithoutAShell(t *testing.T) {
	path := script(t, `printf '%s|' "$@"`)
	args := []string{"$HOME", "a b", "`id`", "; touch x", "*"}
	got, err := runCommand(t.Context(), append([]string{path}, args...))
	if want := strings.Join(args, "|") + "|"; err != nil || string(got) != want {
		t.Errorf("got %q, %v; want %q", got, err, want)
	}
}

func TestCommandsSeeNothingOfOurEnvironment(t *testing.T) {
	t.Setenv("MESHDNS_SECRET", "x")
	got, err := runCommand(t.Context(), []string{script(t, "env; pwd")})
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"MESHDNS_SECRET", "SSH_", "XDG_"} {
		if strings.Contains(string(got), name) {
			t.Errorf("%s is in %q", name, got)
		}
	}
	if !strings.HasSuffix(string(got), "\n/\n") {
		t.Errorf("got %q, want it to run in /", got)
	}
}

func TestCommandsOfRootRunAsNobody(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("only root has rights to give up")
	}
	got, err := runCommand(t.Context(), []string{script(t, "id -u; id -g; id -G")})
	if err != nil {
		t.Fatal(err)
	}
	uid, gid := nobody()
	if want := fmt.Sprintf("%d\n%d\n%d\n", uid, gid, gid); string(got) != want {
		t.Errorf("got %q, want %q", got, want)
	}
	if uid == 0 || gid == 0 {
		t.Errorf("nobody is %d:%d", uid, gid)
	}
}

func TestRootIsNeverNobody(t *testing.T) {
	for text, want := range map[string]uint32{"65534": 65534, "99": 99, "0": 7, "": 7, "-1": 7, "x": 7, "99999999999": 7} {
		if got := number(text, 7); got != want {
			t.Errorf("%q: got %d, want %d", text, got, want)
		}
	}
}

func TestCommandsAreBounded(t *testing.T) {
	long := fmt.Sprintf("head -c %d /dev/zero", maxSource+1)
	tests := []struct{ name, text, want string }{
		{"it fails", "echo 'no daemon' >&2; echo more >&2; exit 3", `exit status 3 ("no daemon")`},
		{"it fails in silence", "exit 1", "exit status 1"},
		{"it writes for ever", "yes", "it wrote more than 8388608 bytes"},
		{"it writes a little too much", long, "it wrote more than 8388608 bytes"},
		{"it complains at length", "head -c 100000 /dev/zero | tr '\\0' x >&2; exit 1", `exit status 1 ("` + strings.Repeat("x", 200) + `")`},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			path := script(t, tt.text)
			_, err := runCommand(t.Context(), []string{path})
			if want := "running " + path + ": " + tt.want; err == nil || err.Error() != want {
				t.Errorf("got %v, want %s", err, want)
			}
		})
	}
	if got, err := runCommand(t.Context(), []string{script(t, fmt.Sprintf("head -c %d /dev/zero", maxSource))}); err != nil || len(got) != maxSource {
		t.Errorf("just the bound: got %d bytes, %v", len(got), err)
	}
	if _, err := runCommand(t.Context(), []string{"/nonexistent/program"}); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("no program: got %v", err)
	}
}

func TestCommandsEndInTime(t *testing.T) {
	// The child that the shell leaves behind holds the pipe open.
	path := script(t, "sleep 1000 & echo $!; exec sleep 1000")
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	start := time.Now()
	if _, err := runCommand(ctx, []string{path}); !errors.Is(err, ErrTimeout) {
		t.Errorf("got %v, want ErrTimeout", err)
	}
	if took := time.Since(start); took > 5*time.Second {
		t.Errorf("took %s", took)
	}
}

func TestCommandOfASourceIsRead(t *testing.T) {
	path := script(t, `echo '[{"name":"a","ip_addresses":["100.64.0.1"]}]'`)
	p := newPolled(sourceConfig{Type: "headscale", Command: []string{path, "nodes"}}, nil)
	var list []Machine
	var err error
	p.once(t.Context(), func(l []Machine, e error) { list, err = l, e })
	if err != nil || listMachines(list) != "a=100.64.0.1" || p.String() != "headscale ("+path+")" {
		t.Errorf("%s: got %v, %v", p, list, err)
	}
}

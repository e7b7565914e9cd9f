//go:build bench

package bench

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/meshdns/meshdns/node"
)

// insideVar says that a test runs in namespaces of its own.
const insideVar = "BENCH_INSIDE"

// inside reports whether the test runs in a network and mount namespace of its own. Where it does not, it is run again in such.
func inside(t *testing.T) bool {
	t.Helper()
	if os.Getenv(insideVar) != "" {
		must(t, "mount", "-t", "tmpfs", "none", "/run")
		must(t, "ip", "link", "set", "lo", "up")
		return true
	}
	if os.Geteuid() != 0 {
		t.Fatal("needs root, for network namespaces")
	}
	cmd := exec.CommandContext(t.Context(), "unshare", "--net", "--mount", "--propagation", "private", os.Args[0], "-test.run=^"+t.Name()+"$", "-test.v", "-test.timeout=50m")
	cmd.Env = append(os.Environ(), insideVar+"=1", "MESHDNS_BINARY="+program(t))
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	if err := cmd.Run(); err != nil {
		t.Errorf("in namespaces of its own: %v", err)
	}
	return false
}

// program is the one to measure, built as a release is unless MESHDNS_BINARY names it.
func program(t *testing.T) string {
	t.Helper()
	if path := os.Getenv("MESHDNS_BINARY"); path != "" {
		return path
	}
	path := filepath.Join(t.TempDir(), "meshdns")
	cmd := exec.Command("go", "build", "-trimpath", "-o", path, "github.com/meshdns/meshdns/cmd/meshdns")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("building meshdns: %v\n%s", err, out)
	}
	return path
}

func must(t *testing.T, args ...string) string {
	t.Helper()
	out, err := exec.CommandContext(t.Context(), args[0], args[1:]...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s: %v\n%s", strings.Join(args, " "), err, out)
	}
	return string(out)
}

// until waits for what takes a while.
func until(t *testing.T, what string, patience time.Duration, so func() bool) {
	t.Helper()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for over := time.After(patience); !so(); {
		select {
		case <-tick.C:
		case <-over:
			t.Fatalf("waited for %s for %s", what, patience)
		}
	}
}

// process is a program that runs until the test ends.
type process struct {
	name string
	pid  int
}

// launch starts a program, which becomes args by the last of the words (ip netns exec and the like do).
func launch(t *testing.T, name string, env []string, args ...string) process {
	t.Helper()
	log, err := os.Create(filepath.Join(t.TempDir(), name+".log"))
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(args[0], args[1:]...)
	cmd.Env = append(os.Environ(), env...)
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		t.Fatalf("starting %s: %v", name, err)
	}
	t.Cleanup(func() {
		cmd.Process.Signal(syscall.SIGTERM)
		killed := time.AfterFunc(10*time.Second, func() { cmd.Process.Kill() })
		cmd.Wait()
		killed.Stop()
		if text, err := os.ReadFile(log.Name()); err == nil && (t.Failed() || os.Getenv("BENCH_LOGS") != "") {
			t.Logf("%s printed:\n%s", name, text[max(0, len(text)-10000):])
		}
		log.Close()
	})
	return process{name, cmd.Process.Pid}
}

// cpu is the time that a process has spent so far, in user and system mode.
func (p process) cpu(t *testing.T) time.Duration {
	t.Helper()
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", p.pid))
	if err != nil {
		t.Fatal(err)
	}
	fields := strings.Fields(string(data[bytes.LastIndexByte(data, ')')+1:]))
	var ticks int64
	for _, field := range fields[11:13] {
		n, err := strconv.ParseInt(field, 10, 64)
		if err != nil {
			t.Fatal(err)
		}
		ticks += n
	}
	const tick = 10 * time.Millisecond // USER_HZ is 100 on all of Linux's usual platforms
	return time.Duration(ticks) * tick
}

// memory is a number of a process's memory in MiB, by its name in smaps_rollup or status.
func (p process) memory(t *testing.T, name string) float64 {
	t.Helper()
	for _, file := range []string{"smaps_rollup", "status"} {
		data, err := os.ReadFile(fmt.Sprintf("/proc/%d/%s", p.pid, file))
		if err != nil {
			t.Fatal(err)
		}
		for line := range strings.Lines(string(data)) {
			if rest, ok := strings.CutPrefix(line, name+":"); ok {
				kib, err := strconv.ParseFloat(strings.Fields(rest)[0], 64)
				if err != nil {
					t.Fatal(err)
				}
				return kib / 1024
			}
		}
	}
	t.Fatalf("no %s of %s", name, p.name)
	return 0
}

// forgetPeak has VmHWM begin anew (proc_pid_clear_refs(5)).
func (p process) forgetPeak(t *testing.T) {
	t.Helper()
	if err := os.WriteFile(fmt.Sprintf("/proc/%d/clear_refs", p.pid), []byte("5"), 0); err != nil {
		t.Fatal(err)
	}
}

// daemon is a meshdns that runs.
type daemon struct {
	process
	node.Client

	dir string
}

// up runs a node with a configuration, whose other files lie in dir, and waits until it answers. prefix is how it is run.
func up(t *testing.T, name, dir, config string, prefix ...string) daemon {
	t.Helper()
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	path, socket := filepath.Join(dir, "meshdns.yaml"), filepath.Join(dir, "s")
	if err := os.WriteFile(path, []byte(config), 0o600); err != nil {
		t.Fatal(err)
	}
	args := append(prefix, program(t), "up", "--config", path, "--state-dir", filepath.Join(dir, "state"), "--socket", socket)
	d := daemon{process: launch(t, name, nil, args...), Client: node.Client{Socket: socket}, dir: dir}
	until(t, name, 30*time.Second, func() bool {
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
		defer cancel()
		s, err := d.Status(ctx)
		return err == nil && s.State != "" && !errors.Is(err, context.Canceled)
	})
	return d
}

package main_test

import (
	"bufio"
	"fmt"
	"io"
	"os"
	"os/exec"
	"regexp"
	"strings"
	"testing"
	"time"
)

// tourStep is one command of README's tour, and what stands below it.
type tourStep struct {
	line    int
	command string
	want    []string
}

// tour reads the blocks marked console: "$ " starts a command, "> " goes on with it, the rest is what it prints.
func tour(readme string) []tourStep {
	var steps []tourStep
	inside := false
	for i, line := range strings.Split(readme, "\n") {
		switch {
		case !inside:
			inside = line == "```console"
		case line == "```":
			inside = false
		case strings.HasPrefix(line, "$ "):
			steps = append(steps, tourStep{line: i + 1, command: strings.TrimPrefix(line, "$ ")})
		case len(steps) == 0:
		case strings.HasPrefix(line, "> "):
			steps[len(steps)-1].command += "\n" + strings.TrimPrefix(line, "> ")
		default:
			last := &steps[len(steps)-1]
			last.want = append(last.want, line)
		}
	}
	return steps
}

// printed reports whether out is what the tour says: line for line, where … stands for any text, and in a line of its
// own for any lines. Blanks count as one, so that columns may move.
func printed(out string, want []string) bool {
	var pattern strings.Builder
	pattern.WriteString(`^\s*`)
	for _, line := range want {
		if strings.TrimSpace(line) == "…" {
			pattern.WriteString(`(?:.*\n)*?`)
			continue
		}
		line = regexp.QuoteMeta(strings.Join(strings.Fields(line), " "))
		line = strings.ReplaceAll(line, "…", ".*")
		pattern.WriteString(`\s*` + strings.ReplaceAll(line, " ", `[ \t]+`) + `[ \t]*\n`)
	}
	pattern.WriteString(`\s*$`)
	if len(want) == 0 {
		return true
	}
	return regexp.MustCompile(pattern.String()).MatchString(strings.TrimRight(out, "\n") + "\n")
}

// proveTourWorks runs the tour of README.md in one shell, as it is written.
func proveTourWorks(t *testing.T) {
	newMachine(t)
	if err := os.RemoveAll("/etc/meshdns"); err != nil { // the tour writes its own
		t.Fatal(err)
	}
	must(t, "cp", program, "/usr/local/bin/meshdns")
	readme, err := os.ReadFile("/mnt/README.md")
	if err != nil {
		t.Fatal(err)
	}
	steps := tour(string(readme))
	if len(steps) < 5 {
		t.Fatalf("README.md has a tour of %d commands", len(steps))
	}
	before := snapshotFile()
	sh := newShell(t)
	sh.run(t, "sudo() { \"$@\"; }")
	for _, step := range steps {
		out := sh.run(t, step.command)
		if !printed(out, step.want) {
			t.Errorf("README.md:%d: %s\nprinted:\n%s\nand the tour says:\n%s", step.line, step.command, out, strings.Join(step.want, "\n"))
		}
	}
	if after := snapshotFile(); after != before {
		t.Errorf("the tour left resolv.conf changed\nbefore:\n%s\nafter:\n%s", before, after)
	}
}

// snapshotFile is snapshot without what else lies in /etc: the tour adds to that.
func snapshotFile() string {
	var b strings.Builder
	describe(&b, resolvConf)
	return b.String()
}

// shell is a bash that runs one command after the other.
type shell struct {
	stdin io.Writer
	lines chan string
}

func newShell(t *testing.T) *shell {
	t.Helper()
	cmd := exec.Command("bash", "--norc")
	stdin, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	cmd.Stderr = cmd.Stdout
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	s := &shell{stdin: stdin, lines: make(chan string, 1000)}
	go func() {
		for scan := bufio.NewScanner(stdout); scan.Scan(); {
			s.lines <- scan.Text()
		}
	}()
	t.Cleanup(func() {
		cmd.Process.Kill()
		cmd.Wait()
	})
	return s
}

const tourMark = "-- end of a step --"

// run runs one command and returns what was printed until it ended.
func (s *shell) run(t *testing.T, command string) string {
	t.Helper()
	fmt.Fprintf(s.stdin, "%s\necho; echo '%s'\n", command, tourMark)
	var out strings.Builder
	limit := time.After(commandTimeout)
	for {
		select {
		case line := <-s.lines:
			if line == tourMark {
				return out.String()
			}
			out.WriteString(line + "\n")
		case <-limit:
			t.Fatalf("%s did not end within %s; it printed:\n%s", command, commandTimeout, out.String())
		}
	}
}

func TestTourIsRead(t *testing.T) {
	steps := tour("text\n```sh\nmake\n```\n```console\n$ a\n> b\nout … here\n…\nlast\n$ c\n```\n$ d\n")
	if len(steps) != 2 || steps[0].command != "a\nb" || len(steps[0].want) != 3 || steps[1].command != "c" || steps[1].line != 11 {
		t.Fatalf("got %+v", steps)
	}
	for out, want := range map[string]bool{
		"out   of here\nlast\n":           true,
		"out of here\nx\ny\nlast\n":       true,
		"out of right here \nlast":        true,
		"out of\nlast\n":                  false,
		"out of here\nlast\nand more\n":   false,
		"before\nout of here\nlast\n":     false,
		"out of here\nx\nthe very last\n": false,
	} {
		if got := printed(out, steps[0].want); got != want {
			t.Errorf("printed(%q) = %t, want %t", out, got, want)
		}
	}
}

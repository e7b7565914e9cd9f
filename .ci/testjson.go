// Command testjson reads the output of `go test -json` and prints what matters: one line a package, everything that a
// failed test said, every skip with its reason, the slowest tests and a count. It fails if a test failed, and, where
// CI=true, if one was skipped that .ci/skips does not list (with -skips= any): in CI nothing may be missing that a test
// needs.
package main

import (
	"bufio"
	"cmp"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"os"
	"regexp"
	"slices"
	"strings"
	"time"
)

// event is one line of test2json.
type event struct {
	Action  string
	Package string
	Test    string
	Elapsed float64
	Output  string
}

// result is how one test ended.
type result struct {
	name    string
	elapsed time.Duration
}

// report collects events.
type report struct {
	show                    *regexp.Regexp // tests whose output is printed although they passed
	output                  map[string]*strings.Builder
	passed, failed, skipped []result
	broken                  []string // packages that failed
}

func main() {
	show := flag.String("show", "^$", "print the output of tests whose name matches, even if they passed")
	skips := flag.String("skips", ".ci/skips", "a list of the skips that are right in CI; empty: none is")
	flag.Parse()
	r := &report{show: regexp.MustCompile(*show), output: map[string]*strings.Builder{}}
	if err := r.read(os.Stdin); err != nil {
		fmt.Println("testjson: error:", err)
		os.Exit(1)
	}
	allowed, err := allowedSkips(*skips)
	if err != nil {
		fmt.Println("testjson: error:", err)
		os.Exit(1)
	}
	if !r.close(allowed, os.Getenv("CI") == "true") {
		os.Exit(1)
	}
}

// read takes events until the stream ends. What is no event is printed as it is.
func (r *report) read(stdin io.Reader) error {
	lines := bufio.NewScanner(stdin)
	lines.Buffer(nil, 16<<20)
	for lines.Scan() {
		var e event
		if err := json.Unmarshal(lines.Bytes(), &e); err != nil || e.Action == "" {
			fmt.Println(lines.Text())
			continue
		}
		r.add(e)
	}
	return lines.Err()
}

// add takes one event.
func (r *report) add(e event) {
	name := strings.TrimSuffix(e.Package+"."+e.Test, ".")
	switch e.Action {
	case "output":
		if r.output[name] == nil {
			r.output[name] = &strings.Builder{}
		}
		r.output[name].WriteString(e.Output)
		if e.Test == "" && (strings.HasPrefix(e.Output, "ok  ") || strings.HasPrefix(e.Output, "FAIL\t")) {
			fmt.Print(e.Output)
		}
	case "build-output":
		fmt.Print(e.Output)
	case "pass", "fail", "skip":
		r.end(e, name)
	}
}

// end takes the event that ends a test or a package.
func (r *report) end(e event, name string) {
	if e.Test == "" {
		if e.Action == "fail" {
			r.broken = append(r.broken, name)
			r.say(name)
		}
		return
	}
	one := result{name, time.Duration(e.Elapsed * float64(time.Second))}
	switch e.Action {
	case "pass":
		r.passed = append(r.passed, one)
		if r.show.MatchString(e.Test) {
			r.say(name)
		}
	case "fail":
		r.failed = append(r.failed, one)
		r.say(name)
	case "skip":
		r.skipped = append(r.skipped, one)
	}
}

// say prints what a test or a package printed.
func (r *report) say(name string) {
	if out := r.output[name]; out != nil {
		fmt.Print(out.String())
	}
}

// close prints the summary and reports whether all is well.
func (r *report) close(allowed []*regexp.Regexp, ci bool) bool {
	ok := len(r.failed) == 0 && len(r.broken) == 0
	for _, s := range r.skipped {
		listed := slices.ContainsFunc(allowed, func(re *regexp.Regexp) bool { return re.MatchString(s.name) })
		fmt.Printf("SKIPPED %s (allowed: %t)\n", s.name, listed)
		r.say(s.name)
		if ci && !listed {
			ok = false
			fmt.Println("        in CI nothing may be missing that a test needs")
		}
	}
	r.slowest(8)
	for _, f := range r.failed {
		fmt.Printf("FAILED %s\n", f.name)
	}
	for _, p := range r.broken {
		fmt.Printf("FAILED package %s\n", p)
	}
	if len(r.passed)+len(r.failed) == 0 {
		fmt.Println("FAILED no test ran")
		ok = false
	}
	fmt.Printf("%d passed, %d failed, %d skipped\n", len(r.passed), len(r.failed), len(r.skipped))
	return ok
}

// slowest prints the n tests that took longest, those without subtests first in their line.
func (r *report) slowest(n int) {
	all := slices.Concat(r.passed, r.failed)
	slices.SortFunc(all, func(a, b result) int { return cmp.Compare(b.elapsed, a.elapsed) })
	for _, t := range all[:min(n, len(all))] {
		if t.elapsed >= time.Second {
			fmt.Printf("slow   %6.1fs %s\n", t.elapsed.Seconds(), t.name)
		}
	}
}

// allowedSkips reads the list of skips that are right in CI: one regular expression a line, "#" starts a comment.
func allowedSkips(path string) ([]*regexp.Regexp, error) {
	if path == "" {
		return nil, nil
	}
	b, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	var list []*regexp.Regexp
	for line := range strings.Lines(string(b)) {
		line, _, _ = strings.Cut(line, "#")
		if line = strings.TrimSpace(line); line == "" {
			continue
		}
		re, err := regexp.Compile(line)
		if err != nil {
			return nil, fmt.Errorf("reading %s: %w", path, err)
		}
		list = append(list, re)
	}
	return list, nil
}

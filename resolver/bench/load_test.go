//go:build bench

package bench

import (
	"bufio"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"
)

const (
	zone    = "foo-bar.ts.net"
	outside = "wide.example.org" // the upstream answers any name below it
	names   = 1000               // of the tailnet, and as many outside that are cached

	// freshRate is more queries a second than dnsperf can send: a fresh name must not come twice in a run.
	freshRate = 170_000
)

// workload is a kind of question.
type workload struct {
	name  string
	rcode string // what every answer has to be
	warm  bool   // ask the cached names beforehand
	// question is the i-th of a run; tag differs from run to run.
	question func(i int, tag string) string
}

func workloads() []workload {
	local := func(i int, _ string) string { return nodeName(i) }
	cached := func(i int, _ string) string { return fmt.Sprintf("c%d.%s", i%names, outside) }
	fresh := func(i int, tag string) string { return fmt.Sprintf("f%d-%s.%s", i, tag, outside) }
	return []workload{
		{"local", "NOERROR", false, local},
		{"nx", "NXDOMAIN", false, func(i int, tag string) string { return fmt.Sprintf("x%d-%s.%s", i, tag, zone) }},
		{"cached", "NOERROR", true, cached},
		{"uncached", "NOERROR", false, fresh},
		{"mixed", "NOERROR", true, func(i int, tag string) string {
			switch i % 10 {
			case 0, 5:
				return local(i/5, tag)
			case 7:
				return fresh(i, tag)
			}
			return cached(i, tag)
		}},
	}
}

// nodeName is the i-th name of the tailnet, nodeAddr its address.
func nodeName(i int) string { return fmt.Sprintf("n%d.%s", i%names, zone) }
func nodeAddr(i int) string { return fmt.Sprintf("100.64.%d.%d", i/250, i%250+1) }

// load is one run.
type load struct {
	round   int
	seconds int
}

// queries writes the questions of a run. No two runs of a server share a fresh name.
func (r *rig) queries(t *testing.T, srv *server, w workload, l load) string {
	t.Helper()
	path := filepath.Join(r.dir, "queries-"+w.name)
	writeQueries(t, path, freshRate*l.seconds, func(i int) string {
		return w.question(i, fmt.Sprintf("%s%d", srv.name, l.round))
	})
	return path
}

// warming writes the names that a cached workload asks.
func (r *rig) warming(t *testing.T, srv *server) string {
	t.Helper()
	path := filepath.Join(r.dir, "queries-warming")
	writeQueries(t, path, names, func(i int) string { return fmt.Sprintf("c%d.%s", i, outside) })
	return path
}

func writeQueries(t *testing.T, path string, n int, name func(int) string) {
	t.Helper()
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	w := bufio.NewWriterSize(f, 1<<20)
	for i := range n {
		w.WriteString(name(i))
		w.WriteString(" A\n")
	}
	if err := errors.Join(w.Flush(), f.Close()); err != nil {
		t.Fatal(err)
	}
}

// run is what dnsperf tells of one run.
type run struct {
	completed, lost int
	rate            float64 // queries a second
	latency         time.Duration
}

// dnsperf asks srv and checks that every answer has the workload's code. A query without an answer within 5 s is lost.
func (r *rig) dnsperf(t *testing.T, srv *server, w workload, args []string) run {
	t.Helper()
	base := []string{"-c", "1", "dnsperf", "-s", "127.0.0.1", "-p", strconv.Itoa(srv.port), "-c", "8", "-T", "1", "-q", "100"}
	out, err := exec.CommandContext(t.Context(), "taskset", append(base, args...)...).CombinedOutput()
	if err != nil {
		t.Fatalf("running dnsperf against %s: %v\n%s", srv.name, err, out)
	}
	got, codes, err := parseDnsperf(string(out))
	if err != nil {
		t.Fatalf("dnsperf against %s: %v\n%s", srv.name, err, out)
	}
	if len(codes) != 1 || codes[0] != w.rcode {
		t.Fatalf("%s answered %s with %v, want %s alone\n%s", srv.name, w.name, codes, w.rcode, out)
	}
	return got
}

var (
	dnsperfField = regexp.MustCompile(`(?m)^\s*([A-Z][^:\n]*):\s+(.*)$`)
	dnsperfCode  = regexp.MustCompile(`([A-Z]+) \d+`)
)

// parseDnsperf reads the statistics that dnsperf 2.10 prints, and the codes of the answers.
func parseDnsperf(out string) (run, []string, error) {
	fields := map[string]string{}
	for _, m := range dnsperfField.FindAllStringSubmatch(out, -1) {
		fields[m[1]] = m[2]
	}
	var errs []error
	number := func(field string) float64 {
		text, _, _ := strings.Cut(fields[field], " ")
		n, err := strconv.ParseFloat(text, 64)
		if err != nil {
			errs = append(errs, fmt.Errorf("reading %q: %w", field, err))
		}
		return n
	}
	got := run{
		completed: int(number("Queries completed")),
		lost:      int(number("Queries lost")),
		rate:      number("Queries per second"),
		latency:   time.Duration(number("Average Latency (s)") * float64(time.Second)),
	}
	if got.completed == 0 {
		errs = append(errs, errors.New("no query was answered"))
	}
	var codes []string
	for _, m := range dnsperfCode.FindAllStringSubmatch(fields["Response codes"], -1) {
		codes = append(codes, m[1])
	}
	return got, codes, errors.Join(errs...)
}

// times are what a process has used.
type times struct{ user, system time.Duration }

func (t times) total() time.Duration       { return t.user + t.system }
func (t times) minus(other times) times    { return times{t.user - other.user, t.system - other.system} }
func ticks(n uint64) time.Duration         { return time.Duration(n) * (time.Second / 100) } // USER_HZ is 100 everywhere
func procPath(pid int, file string) string { return fmt.Sprintf("/proc/%d/%s", pid, file) }

// cpuTime reads utime and stime, fields 14 and 15 of proc(5)'s stat. The second holds the name, which may hold blanks.
func cpuTime(t *testing.T, pid int) times {
	t.Helper()
	stat, err := os.ReadFile(procPath(pid, "stat"))
	if err != nil {
		t.Fatal(err)
	}
	fields := strings.Fields(string(stat[strings.LastIndexByte(string(stat), ')')+1:]))
	user, err1 := strconv.ParseUint(fields[11], 10, 64)
	system, err2 := strconv.ParseUint(fields[12], 10, 64)
	if err := errors.Join(err1, err2); err != nil {
		t.Fatal(err)
	}
	return times{ticks(user), ticks(system)}
}

// procField reads a field in kB of a file of /proc/PID.
func procField(t *testing.T, pid int, file, field string) float64 {
	t.Helper()
	data, err := os.ReadFile(procPath(pid, file))
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(data)) {
		if rest, ok := strings.CutPrefix(line, field+":"); ok {
			n, err := strconv.ParseFloat(strings.TrimSuffix(strings.TrimSpace(rest), " kB"), 64)
			if err != nil {
				t.Fatal(err)
			}
			return n
		}
	}
	t.Fatalf("no %s in /proc/%d/%s", field, pid, file)
	return 0
}

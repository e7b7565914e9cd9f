//go:build bench

package bench

import (
	"cmp"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"testing"
	"text/tabwriter"
	"time"
)

// reference is the peer that ratios are to.
const reference = "unbound"

// settings are what the environment asks for.
type settings struct {
	rounds  int
	seconds int
	only    []string // servers; empty: all
	loads   []string // workloads; empty: all
}

// sample is one run of one workload against one server.
type sample struct {
	run
	cpu  float64 // microseconds per query
	user float64 // of it in user mode
}

// key says which samples are of the same kind.
type key struct{ server, workload string }

func TestBench(t *testing.T) {
	s := readSettings(t)
	if runtime.NumCPU() < 2 {
		t.Fatal("the servers and the load need a core each, and this machine has one")
	}
	for _, program := range []string{"dnsperf", "taskset", "knotd", reference} {
		if _, err := exec.LookPath(program); err != nil {
			t.Fatalf("%v: install what is missing with: make deps", err)
		}
	}
	rig := newRig(t)
	var servers []*server
	for _, p := range peers() {
		if p.name != reference && len(s.only) > 0 && !slices.Contains(s.only, p.name) {
			continue
		}
		if srv := rig.start(t, p); srv != nil {
			servers = append(servers, srv)
		}
	}
	samples := map[key][]sample{}
	for round := range s.rounds {
		for _, w := range workloads() {
			if len(s.loads) > 0 && !slices.Contains(s.loads, w.name) {
				continue
			}
			for _, srv := range servers {
				if srv.can(w.name) {
					k := key{srv.name, w.name}
					samples[k] = append(samples[k], rig.measure(t, srv, w, load{round: round, seconds: s.seconds}))
				}
			}
		}
	}
	fmt.Print(table(servers, samples))
	fmt.Print(memory(t, servers))
	for k, all := range samples {
		for _, one := range all {
			if one.lost != 0 {
				t.Errorf("%s lost %d queries of %s", k.server, one.lost, k.workload)
			}
		}
	}
}

func readSettings(t *testing.T) settings {
	number := func(name string, fallback int) int {
		text := cmp.Or(os.Getenv(name), strconv.Itoa(fallback))
		n, err := strconv.Atoi(text)
		if err != nil || n < 1 {
			t.Fatalf("%s=%s: not a number above 0", name, text)
		}
		return n
	}
	words := func(name string) []string {
		return strings.FieldsFunc(os.Getenv(name), func(r rune) bool { return r == ',' || r == ' ' })
	}
	return settings{
		rounds: number("BENCH_ROUNDS", 3), seconds: number("BENCH_SECONDS", 2),
		only: words("BENCH_SERVERS"), loads: words("BENCH_WORKLOADS"),
	}
}

// measure runs one workload against one server. A cached workload is asked once beforehand.
func (r *rig) measure(t *testing.T, srv *server, w workload, l load) sample {
	t.Helper()
	file := r.queries(t, srv, w, l)
	if w.warm {
		r.dnsperf(t, srv, w, []string{"-d", r.warming(t, srv), "-n", "1"})
	}
	before := cpuTime(t, srv.pid)
	got := r.dnsperf(t, srv, w, []string{"-d", file, "-l", strconv.Itoa(l.seconds)})
	spent := cpuTime(t, srv.pid).minus(before)
	return sample{
		run:  got,
		cpu:  spent.total().Seconds() * 1e6 / float64(got.completed),
		user: spent.user.Seconds() * 1e6 / float64(got.completed),
	}
}

// table prints medians, one block a workload, the servers in the order of their CPU per query.
func table(servers []*server, samples map[key][]sample) string {
	var b strings.Builder
	for _, w := range workloads() {
		var rows []*server
		for _, srv := range servers {
			if len(samples[key{srv.name, w.name}]) > 0 {
				rows = append(rows, srv)
			}
		}
		if len(rows) == 0 {
			continue
		}
		of := func(srv *server) []sample { return samples[key{srv.name, w.name}] }
		slices.SortStableFunc(rows, func(x, y *server) int {
			return cmp.Compare(median(of(x), sample.cost), median(of(y), sample.cost))
		})
		fmt.Fprintf(&b, "\n%s\n", w.name)
		tw := tabwriter.NewWriter(&b, 0, 8, 2, ' ', tabwriter.AlignRight)
		fmt.Fprintf(tw, "server\tus CPU a query\tof it user\tto %s\tspread\tqueries/s\tlatency us\tlost\truns\t\n", reference)
		for _, srv := range rows {
			all := of(srv)
			ratios := ratiosTo(all, samples[key{reference, w.name}])
			identity := func(f float64) float64 { return f }
			fmt.Fprintf(tw, "%s\t%.2f\t%.2f\t%.2f\t%.2f..%.2f\t%.0f\t%.0f\t%d\t%d\t\n", srv.name,
				median(all, sample.cost), median(all, func(s sample) float64 { return s.user }),
				median(ratios, identity), slices.Min(ratios), slices.Max(ratios),
				median(all, func(s sample) float64 { return s.rate }),
				median(all, func(s sample) float64 { return float64(s.latency) / float64(time.Microsecond) }),
				lost(all), len(all))
		}
		tw.Flush()
	}
	return b.String()
}

func (s sample) cost() float64 { return s.cpu }

// ratiosTo are the ratios of CPU per query, round by round.
func ratiosTo(all, reference []sample) []float64 {
	ratios := make([]float64, 0, len(all))
	for i, s := range all {
		ratios = append(ratios, s.cpu/reference[i].cpu)
	}
	return ratios
}

func lost(all []sample) (n int) {
	for _, s := range all {
		n += s.lost
	}
	return n
}

// median is the middle of what of makes of all; of an even number the mean of the two in the middle.
func median[T any](all []T, of func(T) float64) float64 {
	values := make([]float64, len(all))
	for i, one := range all {
		values[i] = of(one)
	}
	slices.Sort(values)
	n := len(values)
	return (values[(n-1)/2] + values[n/2]) / 2
}

// memory prints what the servers hold after the load: with 1,000 names, and as many cached answers as they keep.
func memory(t *testing.T, servers []*server) string {
	var b strings.Builder
	tw := tabwriter.NewWriter(&b, 0, 8, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintf(tw, "\nmemory\tPSS MiB\tpeak RSS MiB\t\n")
	for _, srv := range servers {
		pss := procField(t, srv.pid, "smaps_rollup", "Pss")
		peak := procField(t, srv.pid, "status", "VmHWM")
		fmt.Fprintf(tw, "%s\t%.1f\t%.1f\t\n", srv.name, pss/1024, peak/1024)
	}
	tw.Flush()
	return b.String()
}

package main_test

import (
	"fmt"
	"os"
	"slices"
	"strings"
	"syscall"
	"testing"
	"text/tabwriter"
	"time"
)

// The shapes of resolv.conf that osconfig/lab/10-direct.sh makes.
var shapes = strings.Fields("regular symlink-rel symlink-abs chain dangling readonly-file readonly-etc bind bind-ro missing immutable dir empty crlf no-newline comments")

// refusedShapes are those that an administrator, or the system, does not let anybody change.
var refusedShapes = strings.Fields("readonly-file readonly-etc bind-ro immutable dir")

// upstreamlessShapes name no server, so that names from outside have nobody to ask.
var upstreamlessShapes = strings.Fields("dangling missing dir empty")

// shape gives resolv.conf one of the shapes.
func shape(t *testing.T, name string) {
	t.Helper()
	must(t, "bash", "/mnt/lab/10-direct.sh", name, "true")
}

// proveProgramsResolve asks for a tailnet name, its short form and a name from outside through every kind of resolver
// that programs have.
func proveProgramsResolve(t *testing.T) {
	newMachine(t)
	d, status := up(t)
	if got := status.DNS.Takeover.State; got != "on" {
		t.Fatalf("takeover is %s (%s), want on\n%s", got, status.DNS.Takeover.Reason, d.log.String())
	}
	programs := []struct {
		name string
		args []string // the name is added
	}{
		{"dig", []string{"dig", "+search", "+short"}},
		{"glibc getent", []string{"getent", "ahostsv4"}},
		{"musl getaddrinfo", []string{"/mnt/lookup-musl"}},
		{"busybox nslookup", []string{"busybox", "nslookup"}},
		{"Go's own resolver", []string{"/mnt/lookup-go"}},
		{"Go with cgo", []string{"/mnt/lookup-cgo"}},
		{"curl", []string{"curl", "-4", "-sv", "--max-time", "5"}},
	}
	questions := []struct{ name, addr string }{
		{nasName, nasAddr}, {"nas", nasAddr}, {"photos", nasAddr}, {"deep.nas.foo-bar.ts.net", nasAddr}, {outsideName, outsideAddr},
	}
	var table strings.Builder
	tw := tabwriter.NewWriter(&table, 0, 8, 2, ' ', 0)
	for _, p := range programs {
		fmt.Fprintf(tw, "%s", p.name)
		for _, q := range questions {
			out, code := output(t, append(p.args, q.name)...)
			if code != 0 || !strings.Contains(out, q.addr) {
				t.Errorf("%s does not resolve %s to %s: exit code %d\n%s", p.name, q.name, q.addr, code, out)
				fmt.Fprintf(tw, "\t%s FAILED", q.name)
				continue
			}
			fmt.Fprintf(tw, "\t%s ok", q.name)
		}
		fmt.Fprintln(tw)
	}
	tw.Flush()
	t.Logf("who resolves what:\n%s", table.String())
	if out, code := output(t, "getent", "ahostsv6", nasName); code != 0 || !strings.Contains(out, "fd7a:115c:a1e0::2") {
		t.Errorf("getent ahostsv6 %s: exit code %d, %q", nasName, code, out)
	}
	if out := must(t, "dig", "+short", "-x", nasAddr); out != nasName+".\n" {
		t.Errorf("dig -x %s printed %q, want %s.", nasAddr, out, nasName)
	}
	d.end(t, syscall.SIGTERM)
}

// proveShapesComeBack takes over every shape of resolv.conf and gives it back in every way that there is.
func proveShapesComeBack(t *testing.T) {
	newMachine(t)
	events := []struct {
		name string
		undo func(t *testing.T, d *daemon, upstream bool)
	}{
		{"SIGTERM", func(t *testing.T, d *daemon, _ bool) { d.end(t, syscall.SIGTERM) }},
		{"kill -9, dns restore", func(t *testing.T, d *daemon, _ bool) {
			d.kill()
			must(t, program, "dns", "restore")
		}},
		{"kill -9, next start, SIGTERM", func(t *testing.T, d *daemon, upstream bool) {
			d.kill()
			next, status := up(t)
			checkResolving(t, status.DNS.Takeover.State, upstream)
			next.end(t, syscall.SIGTERM)
		}},
	}
	var table strings.Builder
	tw := tabwriter.NewWriter(&table, 0, 8, 2, ' ', 0)
	fmt.Fprint(tw, "shape\twhile up")
	for _, e := range events {
		fmt.Fprintf(tw, "\t%s", e.name)
	}
	fmt.Fprintln(tw)
	for _, s := range shapes {
		results := make([]string, len(events))
		state := ""
		for i, e := range events {
			results[i] = "DIFFERS"
			t.Run(s+"/"+e.name, func(t *testing.T) {
				shape(t, s)
				before := snapshot(t)
				d, status := up(t)
				state = status.DNS.Takeover.State
				checkTakeover(t, s, status.DNS.Takeover.State, status.DNS.Takeover.Reason)
				checkResolving(t, state, !slices.Contains(upstreamlessShapes, s))
				e.undo(t, d, !slices.Contains(upstreamlessShapes, s))
				if after := snapshot(t); after != before {
					t.Errorf("resolv.conf is not as it was\nbefore:\n%s\nafter:\n%s", before, after)
					return
				}
				results[i] = "identical"
			})
		}
		fmt.Fprintf(tw, "%s\ttakeover %s\t%s\n", s, state, strings.Join(results, "\t"))
	}
	shape(t, "regular") // an immutable file would outlive the sandbox's clean-up
	tw.Flush()
	t.Logf("resolv.conf by shape and event:\n%s", table.String())
}

// checkTakeover checks that the takeover happened where it may, and elsewhere says why not.
func checkTakeover(t *testing.T, shape, state, reason string) {
	t.Helper()
	want := "on"
	if slices.Contains(refusedShapes, shape) {
		want = "refused"
	}
	if state != want {
		t.Errorf("takeover is %s (%s), want %s", state, reason, want)
	}
	if state == "refused" && reason == "" {
		t.Error("the takeover was refused without a reason")
	}
}

// checkResolving checks that programs resolve the tailnet's names, and with an upstream those from outside; without a
// takeover those who ask the stub do.
func checkResolving(t *testing.T, state string, upstream bool) {
	t.Helper()
	questions := map[string]string{nasName: nasAddr}
	if upstream {
		questions[outsideName] = outsideAddr
	}
	for name, addr := range questions {
		err := asks(stub, name, addr)
		if err == nil && state == "on" {
			err = libc(t, name, addr)
		}
		if err != nil {
			t.Error(err)
		}
	}
}

// proveFirstLookTouchesNothing runs `up --try`, and `up` without root, on a machine without any configuration.
func proveFirstLookTouchesNothing(t *testing.T) {
	newMachine(t)
	if err := os.RemoveAll("/etc/meshdns"); err != nil {
		t.Fatal(err)
	}
	must(t, "install", "-d", "-o", "65534", "-m", "700", "/tmp/home", "/tmp/run")
	nobody := []string{"setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "env", "HOME=/tmp/home", "XDG_RUNTIME_DIR=/tmp/run"}
	for name, test := range map[string]struct {
		as, args []string
		socket   string
	}{
		"up --try":        {nil, []string{"--try", "--socket", "/tmp/try.sock"}, "/tmp/try.sock"},
		"up without root": {nobody, nil, "/tmp/run/meshdns/meshdns.sock"},
	} {
		t.Run(name, func(t *testing.T) {
			before := snapshot(t)
			d := background(t, append(append(test.as, program, "up"), test.args...)...)
			status := ready(t, d, test.socket)
			if status.DNS.Takeover.State != "off" {
				t.Errorf("takeover is %s, want off", status.DNS.Takeover.State)
			}
			if !strings.HasSuffix(status.Zone, "mesh.internal") {
				t.Errorf("zone is %s, want mesh.internal", status.Zone)
			}
			if len(status.Nodes) != 1 || len(status.Nodes[0].Addresses) == 0 {
				t.Fatalf("nodes are %v, want this machine with an address", status.Nodes)
			}
			if err := asks(status.DNS.Stub, status.Node, status.Nodes[0].Addresses[0].String()); err != nil {
				t.Error(err)
			}
			if err := asks(status.DNS.Stub, outsideName, outsideAddr); err != nil {
				t.Error(err)
			}
			if strings.HasSuffix(status.DNS.Stub, ":53") {
				t.Errorf("stub is %s, want a high port", status.DNS.Stub)
			}
			d.end(t, syscall.SIGTERM)
			if after := snapshot(t); after != before {
				t.Errorf("/etc is not as it was\nbefore:\n%s\nafter:\n%s", before, after)
			}
			if text := d.log.String(); name == "up without root" && !strings.Contains(text, "root") {
				t.Errorf("it does not say what root would add:\n%s", text)
			}
		})
	}
}

// proveUnconfirmedIsUndone has `dns apply --confirm` run out, and be confirmed.
func proveUnconfirmedIsUndone(t *testing.T) {
	newMachine(t)
	before := snapshot(t)
	d, _ := up(t)
	must(t, program, "dns", "restore")
	if after := snapshot(t); after != before {
		t.Fatalf("dns restore with a running node did not put resolv.conf back\nbefore:\n%s\nafter:\n%s", before, after)
	}
	must(t, program, "dns", "apply", "--confirm")
	start := time.Now()
	if err := libc(t, nasName, nasAddr); err != nil {
		t.Errorf("after dns apply --confirm: %v", err)
	}
	if snapshot(t) == before {
		t.Error("dns apply --confirm changed nothing")
	}
	eventually(t, 40*time.Second, "dns apply --confirm to undo itself", func() error {
		if snapshot(t) != before {
			return fmt.Errorf("resolv.conf still names the stub")
		}
		return nil
	})
	took := time.Since(start)
	t.Logf("undone after %s", took.Round(100*time.Millisecond))
	if took < 25*time.Second {
		t.Errorf("undone after %s, want 30 s", took)
	}
	must(t, program, "dns", "apply", "--confirm")
	must(t, program, "dns", "confirm")
	if state := ready(t, d, "/run/meshdns/meshdns.sock").DNS.Takeover.State; state != "on" {
		t.Errorf("takeover is %s after dns confirm, want on", state)
	}
	d.end(t, syscall.SIGTERM)
	if after := snapshot(t); after != before {
		t.Errorf("resolv.conf is not as it was\nbefore:\n%s\nafter:\n%s", before, after)
	}
}

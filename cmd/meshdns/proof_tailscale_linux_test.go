package main_test

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// tailscaleVariable has the proof beside a real Tailscale run too: building that takes minutes (make lab-tailscale).
const tailscaleVariable = "MESHDNS_TAILSCALE"

// tailscaleBinaries puts Tailscale and Headscale where the sandbox sees them.
func (s *stage) tailscaleBinaries(t *testing.T) {
	t.Helper()
	dir := filepath.Join(cacheDir(), "tailscale")
	build(t, "", filepath.Join(s.lab, "tailscale.sh"), "build", dir)
	for _, name := range []string{"tailscaled", "tailscale", "headscale"} {
		build(t, "", "cp", filepath.Join(dir, name), s.dir)
	}
}

const (
	tailscaleName = "tsnode.tail.test"
	tailscaleAddr = "100.64.0.1"
)

// proveBesideTailscale: names of both resolve, nobody fights for resolv.conf, and whoever leaves first, the machine has names
// and in the end the file that it had.
func proveBesideTailscale(t *testing.T) {
	writeFile(t, "/etc/meshdns/meshdns.yaml", otherConfig)
	writeFile(t, "/etc/meshdns/map.yaml", vpnMap)
	must(t, "ip", "addr", "add", "198.51.100.99/32", "dev", "lo") // glibc looks for no address of a kind that no link has
	before := managed(t)
	for _, first := range []string{"Tailscale first", "node first"} {
		for _, leave := range []string{"node leaves first", "Tailscale leaves first", "node is killed"} {
			t.Run(first+", "+leave, func(t *testing.T) {
				besideTailscale(t, first == "Tailscale first", leave)
				eventually(t, readyTimeout, "the file that was there", func() error {
					if after := managed(t); after != before {
						return fmt.Errorf("before:\n%s\nafter:\n%s", before, after)
					}
					return nil
				})
			})
		}
	}
}

func besideTailscale(t *testing.T, tailscaleFirst bool, leave string) {
	sh := func(what string) {
		t.Helper()
		cmd := exec.CommandContext(t.Context(), "/lab/tailscale.sh", what)
		log, err := os.CreateTemp(t.TempDir(), "log") // no pipe: what it starts would hold that open
		if err != nil {
			t.Fatal(err)
		}
		defer log.Close()
		cmd.Stdout, cmd.Stderr = log, log
		if err := cmd.Run(); err != nil {
			text, _ := os.ReadFile(log.Name())
			t.Fatalf("tailscale.sh %s: %v\n%s", what, err, text)
		}
	}
	var d *daemon
	if tailscaleFirst {
		sh("up")
		d, _ = up(t)
	} else {
		d, _ = up(t)
		sh("up")
	}
	defer sh("down")
	eventually(t, readyTimeout, "names of both", func() error { return tailscaleNames(t, vpnNasAddr, tailscaleAddr) })
	eventually(t, readyTimeout, "status to name Tailscale", func() error {
		s := ready(t, d, "/run/meshdns/meshdns.sock")
		if len(s.VPNs) != 1 || s.VPNs[0].Program != "Tailscale" || s.State != "ok" {
			return fmt.Errorf("it is %s (%q), with %+v", s.State, s.Problems, s.VPNs)
		}
		return nil
	})
	writes := countWrites(t)
	eventually(t, readyTimeout, "a while without a write", quiet(writes))
	// Where it came second it took us for the network's name server. Once we have left the network's file stands there again,
	// and Tailscale's names are back when it next has a reason to write its own.
	alone := func() {
		if tailscaleFirst {
			eventually(t, readyTimeout, "Tailscale's names", func() error { return libc(t, tailscaleName, tailscaleAddr) })
		}
	}
	switch leave {
	case "node leaves first":
		d.end(t, syscall.SIGTERM)
		alone()
	case "Tailscale leaves first":
		sh("down")
		eventually(t, readyTimeout, "the node's names", func() error { return node1(t) })
		d.end(t, syscall.SIGTERM)
	case "node is killed":
		d.kill()
		must(t, program, "dns", "restore")
		alone()
	}
	eventually(t, readyTimeout, "the network's names", func() error { return libc(t, networkName, fromNetwork) })
	text, err := os.ReadFile(resolvConf)
	if err != nil || strings.Contains(string(text), "127.0.0.78") || strings.Contains(string(text), "meshdns") {
		t.Errorf("without the node: %q, %v", text, err)
	}
}

// quiet is met once nothing was written for four seconds.
func quiet(writes func() int) func() error {
	last, since := writes(), time.Now()
	return func() error {
		if n := writes(); n != last {
			last, since = n, time.Now()
		}
		if still := time.Since(since); still < 4*time.Second {
			return fmt.Errorf("written %d times, quiet for %s", last, still)
		}
		return nil
	}
}

// tailscaleNames checks one name of each, and one of the network.
func tailscaleNames(t *testing.T, nas, other string) error {
	if err := libc(t, "nas.foo-bar.ts.net", nas); err != nil {
		return err
	}
	if err := libc(t, tailscaleName, other); err != nil {
		return err
	}
	return libc(t, networkName, fromNetwork)
}

// withTailscale are the proofs that only run where Tailscale was asked for.
func withTailscale() []proof {
	if os.Getenv(tailscaleVariable) == "" {
		return nil
	}
	return []proof{{name: "tailscale", limit: 5 * time.Minute, run: proveBesideTailscale, lab: []string{"44-vpn-direct.sh"}}}
}

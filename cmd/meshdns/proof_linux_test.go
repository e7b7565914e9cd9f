package main_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"
)

// The proofs try the program on a whole machine: a sandbox of the lab (osconfig/lab/README.md) with its own mounts,
// network and processes, in which this very test binary runs again. There is nothing fake in it: the upstream is
// unbound behind a second network namespace, and the programs that ask are Debian's.

// proof is one of them; run is called inside the sandbox.
type proof struct {
	name  string
	limit time.Duration
	run   func(*testing.T)
	lab   []string // the lab's script that makes the sandbox, and its arguments; none: one with name servers
	extra bool     // of a kind that another proof tries already: for the slower set
	alone bool     // it waits for what a machine that does much else does late: make lab-tailnet, make soak
}

func proofs() []proof {
	return []proof{
		{name: "programs", limit: 2 * time.Minute, run: proveProgramsResolve},
		{name: "shapes", limit: 5 * time.Minute, run: proveShapesComeBack},
		{name: "ports", limit: 2 * time.Minute, run: proveHeldPortIsLeftAlone},
		{name: "lifecycle", limit: 2 * time.Minute, run: proveOneNodeAtATime},
		{name: "look", limit: 2 * time.Minute, run: proveFirstLookTouchesNothing},
		{name: "confirm", limit: 2 * time.Minute, run: proveUnconfirmedIsUndone},
		{name: "reload", limit: 2 * time.Minute, run: proveReloadLosesNothing},
		{name: "stuck", limit: 2 * time.Minute, run: proveStuckUpstreamHoldsNobody},
		{name: "kills", limit: 10 * time.Minute, run: proveKillsRecover},
		{name: "war", limit: 8 * time.Minute, run: proveWarIsLost, extra: true},
		{name: "containers", limit: 3 * time.Minute, run: proveContainersAreAnswered},
		{name: "neighbours", limit: 2 * time.Minute, run: proveNeighboursAreNot},
		{name: "containersresolved", limit: time.Minute, run: proveEngineBesideResolvedIsTold, lab: []string{"20-resolved.sh"}},
		{name: "containersresolvconf", limit: time.Minute, run: proveRecordsNameTheAddress, lab: []string{"40-resolvconf-debian.sh"}},
		{name: "embedded", limit: 2 * time.Minute, run: proveEmbeddedServerStays},
		{name: "tunnel", limit: 2 * time.Minute, run: proveTunnelCarriesAndGoes},
		{name: "check", limit: 2 * time.Minute, run: proveGatewayIsChecked},
		{name: "checkports", limit: 3 * time.Minute, run: provePortsAreChecked, lab: []string{"46-gateway.sh"}, extra: true},
		{name: "vps", limit: 3 * time.Minute, run: proveVPSKeepsItsSites, lab: []string{"46-gateway.sh"}, extra: true},
		{name: "vps6", limit: 2 * time.Minute, run: proveGatewayWithIPv6Alone},
		{name: "vpsnat", limit: 3 * time.Minute, run: proveGatewayBehindNAT, lab: []string{"46-gateway.sh"}, extra: true},
		{name: "tailnet", limit: 15 * time.Minute, run: proveTailnet, lab: []string{"tailnet.sh"}, extra: true, alone: true},
		{name: "cert", limit: 4 * time.Minute, run: proveCertificatesAreBelieved, lab: []string{"47-browser.sh"}, extra: true},
		{name: "funnel", limit: 9 * time.Minute, run: proveFunnel, lab: []string{"funnel.sh"}, extra: true},
		{name: "portal", limit: 3 * time.Minute, run: provePortalIsPassed},
		{name: "readme", limit: 5 * time.Minute, run: proveTourWorks},

		{name: "resolved", limit: time.Minute, run: proveManagerAsksUs("resolved"), lab: []string{"20-resolved.sh"}},
		{name: "followed", limit: time.Minute, run: proveResolvedIsFollowed, lab: []string{"20-resolved.sh"}},
		{name: "healed", limit: 2 * time.Minute, run: proveResolvedIsHealed, lab: []string{"20-resolved.sh"}},
		{name: "restarted", limit: 2 * time.Minute, run: proveResolvedIsRestarted, lab: []string{"70-systemd-pid1.sh"}},
		{name: "restoredirect", limit: time.Minute, run: proveRestoreFindsTheNetworkOfNow("direct")},
		{name: "restoreresolved", limit: time.Minute, run: proveRestoreFindsTheNetworkOfNow("resolved"), lab: []string{"20-resolved.sh"}},
		{name: "restoreresolvconf", limit: time.Minute, run: proveRestoreFindsTheNetworkOfNow("resolvconf"), lab: []string{"40-resolvconf-debian.sh"}},
		{name: "restoreopenresolv", limit: time.Minute, run: proveRestoreFindsTheNetworkOfNow("openresolv"), lab: []string{"41-openresolv.sh"}},
		{name: "restorenm", limit: 2 * time.Minute, run: proveRestoreFindsTheNetworkOfNow("networkmanager"), lab: []string{"30-networkmanager.sh", "default"}},
		{name: "resolvconf", limit: time.Minute, run: proveManagerAsksUs("resolvconf"), lab: []string{"40-resolvconf-debian.sh"}},
		{name: "openresolv", limit: time.Minute, run: proveManagerAsksUs("openresolv"), lab: []string{"41-openresolv.sh"}},
		{name: "nm", limit: 2 * time.Minute, run: proveManagerAsksUs("networkmanager"), lab: []string{"30-networkmanager.sh", "default"}},
		{name: "nmdnsmasq", limit: 2 * time.Minute, run: proveManagerAsksUs("networkmanager"), lab: []string{"30-networkmanager.sh", "dnsmasq"}},
		{name: "nmfile", limit: 2 * time.Minute, run: proveManagerAsksUs("networkmanager"), lab: []string{"30-networkmanager.sh", "default/file"}},
		{name: "nmunmanaged", limit: 2 * time.Minute, run: proveManagerAsksUs("direct"), lab: []string{"30-networkmanager.sh", "default/unmanaged"}},
		{name: "nmresolved", limit: 2 * time.Minute, run: proveManagerAsksUs("resolved"), lab: []string{"30-networkmanager.sh", "systemd-resolved"}},
		{name: "nmroam", limit: 2 * time.Minute, run: proveRoamIsLearnt, lab: []string{"30-networkmanager.sh", "default"}},
		{name: "resolvedloop", limit: 5 * time.Minute, run: proveNoLoop("../run/systemd/resolve/resolv.conf", "../usr/lib/systemd/resolv.conf", "foreign"), lab: []string{"20-resolved.sh"}},
		{name: "nmloop", limit: 5 * time.Minute, run: proveNoLoop(), lab: []string{"30-networkmanager.sh", "default"}},
		{name: "nmdnsmasqloop", limit: 5 * time.Minute, run: proveNoLoop(), lab: []string{"30-networkmanager.sh", "dnsmasq"}},
		{name: "resolvedkills", limit: 10 * time.Minute, run: proveManagerSurvivesKills("resolved"), lab: []string{"20-resolved.sh"}},
		{name: "resolvconfkills", limit: 10 * time.Minute, run: proveManagerSurvivesKills("resolvconf"), lab: []string{"40-resolvconf-debian.sh"}},
		{name: "openresolvkills", limit: 10 * time.Minute, run: proveManagerSurvivesKills("openresolv"), lab: []string{"41-openresolv.sh"}},
		{name: "nmkills", limit: 10 * time.Minute, run: proveManagerSurvivesKills("networkmanager"), lab: []string{"30-networkmanager.sh", "default"}},
		{name: "service", limit: 2 * time.Minute, run: proveServiceWorks, lab: []string{"70-systemd-pid1.sh"}},
		{name: "package", limit: 2 * time.Minute, run: provePackageComesAndGoes, lab: []string{"70-systemd-pid1.sh"}},
		{name: "vpnwg", limit: time.Minute, run: proveBesideVPN(vpn{"wg", "WireGuard (wg-quick)"}, "VPN first, VPN leaves first", "node first, node is killed"), lab: []string{"44-vpn-resolvconf.sh"}},
		{name: "vpnc", limit: time.Minute, run: proveBesideVPN(vpn{"vpnc", "python3"}), lab: []string{"44-vpn-direct.sh"}},
		{name: "vpncresolved", limit: time.Minute, run: proveBesideVPN(vpn{"vpnc", "python3"}), lab: []string{"44-vpn-resolved.sh"}, extra: true},
		{name: "vpnwgresolvconf", limit: 2 * time.Minute, run: proveBesideVPN(vpn{"wg", "WireGuard (wg-quick)"}), lab: []string{"44-vpn-resolvconf.sh"}, extra: true},
		{name: "vpnwgopenresolv", limit: 2 * time.Minute, run: proveBesideVPN(vpn{"wg", "WireGuard (wg-quick)"}), lab: []string{"44-vpn-openresolv.sh"}, extra: true},
		{name: "vpnwgresolved", limit: 2 * time.Minute, run: proveBesideVPN(vpn{"wg", "WireGuard (wg-quick)"}), lab: []string{"44-vpn-resolved.sh"}, extra: true},
		{name: "vpnovpnresolvconf", limit: 2 * time.Minute, run: proveBesideVPN(vpn{"openvpn", "OpenVPN"}), lab: []string{"44-vpn-resolvconf.sh"}, extra: true},
		{name: "vpnovpnopenresolv", limit: 2 * time.Minute, run: proveBesideVPN(vpn{"openvpn", "OpenVPN"}), lab: []string{"44-vpn-openresolv.sh"}, extra: true},
		{name: "vpnovpnresolved", limit: 2 * time.Minute, run: proveBesideVPN(vpn{"openvpn", "OpenVPN"}), lab: []string{"44-vpn-resolved.sh"}, extra: true},
		{name: "docker", limit: 2 * time.Minute, run: proveEngineGetsTheAddress("docker"), lab: []string{"45-containers.sh", "docker"}, extra: true},
		{name: "podman", limit: 2 * time.Minute, run: proveEngineGetsTheAddress("podman"), lab: []string{"45-containers.sh", "podman"}, extra: true},
		{name: "dhclient", limit: 2 * time.Minute, run: proveLeaseIsLearnt, lab: []string{"50-dhcp-trample.sh", "dhclient", "--"}},
		{name: "udhcpc", limit: 2 * time.Minute, run: proveLeaseIsLearnt, lab: []string{"50-dhcp-trample.sh", "udhcpc", "--"}},
		{name: "dhcpcd", limit: 2 * time.Minute, run: proveLeaseIsLearnt, lab: []string{"50-dhcp-trample.sh", "dhcpcd", "--"}},
		{name: "connman", limit: 3 * time.Minute, run: proveConnmanIsLivedWith, lab: []string{"50-dhcp-trample.sh", "connman", "---"}},
		{name: "connmanlink", limit: 3 * time.Minute, run: proveConnmanIsLivedWith, lab: []string{"50-dhcp-trample.sh", "connman-link", "---"}},
		{name: "connmanloop", limit: 3 * time.Minute, run: proveNoLoop("chained"), lab: []string{"50-dhcp-trample.sh", "connman-link", "---"}},
		{name: "ifupdown", limit: 2 * time.Minute, run: proveLeaseIsLearnt, lab: []string{"50-dhcp-trample.sh", "ifupdown", "--"}},
	}
}

// slowLabs are the scripts whose proofs only `make lab` runs, and nothing else: each waits for leases or activations.
func slowLabs() []string { return []string{"30-networkmanager.sh", "50-dhcp-trample.sh"} }

// slow reports whether the proof is one of `make lab`.
func (p proof) slow() bool { return p.extra || p.lab != nil && slices.Contains(slowLabs(), p.lab[0]) }

// insideVariable is set in the sandbox.
const insideVariable = "MESHDNS_PROOF_INSIDE"

// labCache is where `make test` has the lab's file trees.
const labCache = "/var/cache/meshdns-lab"

func TestProof(t *testing.T) {
	inside := os.Getenv(insideVariable) != ""
	var s *stage
	if inside {
		// Not the test's own: the scripts' meshdns, which is never root, stands first in that.
		t.Setenv("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin")
	} else {
		requireLab(t)
		s = newStage(t)
		if os.Getenv(tailscaleVariable) != "" {
			s.tailscaleBinaries(t)
		}
	}
	slowSet, ran := os.Getenv("MESHDNS_LAB") != "", false
	for _, p := range append(proofs(), withTailscale()...) {
		if slowSet && (!p.slow() || p.alone) && !inside && !soak() {
			continue // `make test` has run it, or it is run by itself
		}
		t.Run(p.name, func(t *testing.T) {
			ran = true
			if inside {
				p.run(t)
				return
			}
			if p.slow() && !slowSet && !soak() {
				t.Skip("of the slower set: make lab, or MESHDNS_LAB=1")
			}
			t.Parallel()
			s.run(t, p)
		})
	}
	if !ran {
		t.Error("no proof has that name; with MESHDNS_LAB=1 there are those of the slower set alone")
	}
}

// requireLab skips the test where there is no lab, and fails it in CI, where there has to be one.
func requireLab(t *testing.T) {
	t.Helper()
	missing := ""
	if testing.Short() {
		missing = "-short was given"
	}
	if os.Geteuid() != 0 {
		missing = "not root"
	}
	for _, program := range []string{"debootstrap", "unshare", "musl-gcc", "gcc", "ip"} {
		if _, err := exec.LookPath(program); err != nil {
			missing = program + " is not installed (make deps)"
		}
	}
	if _, err := os.Stat(filepath.Join(cacheDir(), "layers", "servers.ok")); err != nil {
		missing = "the lab's trees are not built (make deps)"
	}
	switch {
	case missing == "":
	case os.Getenv("CI") == "true":
		t.Fatal("no sandbox: ", missing)
	default:
		t.Skip("NOT PROVEN, no sandbox: ", missing)
	}
}

func cacheDir() string {
	if dir := os.Getenv("LAB_CACHE"); dir != "" {
		return dir
	}
	return labCache
}

// stage is the directory that is /mnt in every sandbox.
type stage struct {
	dir     string
	sandbox string // the script that enters one with name servers
	lab     string // the directory with the lab's scripts
}

// newStage builds the program, this test without cgo, and the programs that look names up.
func newStage(t *testing.T) *stage {
	t.Helper()
	sandbox, err := filepath.Abs(filepath.Join("testdata", "proof", "sandbox.sh"))
	if err != nil {
		t.Fatal(err)
	}
	lab, err := filepath.Abs(filepath.Join("..", "..", "osconfig", "lab"))
	if err != nil {
		t.Fatal(err)
	}
	s := &stage{dir: t.TempDir(), sandbox: sandbox, lab: lab}
	if err := os.Chmod(s.dir, 0o755); err != nil { // programs that gave root up read it too
		t.Fatal(err)
	}
	out := func(name string) string { return filepath.Join(s.dir, name) }
	build(t, "CGO_ENABLED=0", "go", "build", "-trimpath", "-o", out("meshdns"), ".")
	build(t, "CGO_ENABLED=0", "go", "test", "-c", "-o", out("proof.test"), ".")
	build(t, "CGO_ENABLED=0", "go", "build", "-o", out("lookup-go"), "./testdata/proof/lookup")
	build(t, "CGO_ENABLED=1", "go", "build", "-tags", "netcgo", "-o", out("lookup-cgo"), "./testdata/proof/lookup")
	build(t, "", "musl-gcc", "-static", "-O1", "-o", out("lookup-musl"), "testdata/proof/lookup.c")
	build(t, "", "sh", "-c", `mv "$(../../.ci/deb "$1" 1.0 "$(dirname "$1")")" "$1.deb"`, "deb", out("meshdns"))
	if err := os.CopyFS(out("lab"), os.DirFS(lab)); err != nil {
		t.Fatal(err)
	}
	readme, err := os.ReadFile("../../README.md")
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(out("README.md"), readme, 0o644); err != nil {
		t.Fatal(err)
	}
	return s
}

func build(t *testing.T, env string, args ...string) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), args[0], args[1:]...)
	cmd.Env = append(os.Environ(), strings.Fields(env)...)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("running %v: %v\n%s", args, err, out)
	}
}

// run runs one proof in a sandbox of its own and tells what it printed.
func (s *stage) run(t *testing.T, p proof) {
	ctx, cancel := context.WithTimeout(t.Context(), p.limit+10*time.Second)
	defer cancel()
	script := []string{s.sandbox}
	if p.lab != nil {
		script = append([]string{filepath.Join(s.lab, p.lab[0])}, p.lab[1:]...)
		if own := filepath.Join(filepath.Dir(s.sandbox), p.lab[0]); exists(own) {
			script[0] = own
		}
	}
	cmd := exec.CommandContext(ctx, script[0], append(script[1:], "env", "-C", "/tmp", insideVariable+"=1", "MESHDNS_SOAK="+os.Getenv("MESHDNS_SOAK"),
		"PROOF_SEED="+os.Getenv("PROOF_SEED"), "/mnt/proof.test", "-test.v", "-test.run=^TestProof$/^"+p.name+"$", fmt.Sprintf("-test.timeout=%s", p.limit))...)
	cmd.Env = append(os.Environ(), "LAB_BIND="+s.dir, "LAB_CACHE="+cacheDir())
	// The script is a chain of processes; the sandbox dies with the group.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	cmd.WaitDelay = 5 * time.Second
	out, err := cmd.CombinedOutput()
	text := strings.ReplaceAll(string(out), "--- ", "") // so that nobody counts these tests a second time
	t.Logf("in the sandbox:\n%s", text)
	if err != nil {
		t.Errorf("the proof failed: %v", err)
	}
	if !strings.Contains(string(out), "--- PASS: TestProof/"+p.name) && !t.Failed() {
		t.Error("the proof did not run")
	}
}

// exists reports whether there is a file.
func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}

// soak reports whether `make soak` asked for the long form.
func soak() bool { return os.Getenv("MESHDNS_SOAK") != "" }

// pollInterval is how often a condition is looked at.
const pollInterval = 5 * time.Millisecond

// eventually waits until cond returns nil.
func eventually(t *testing.T, limit time.Duration, what string, cond func() error) {
	t.Helper()
	tick := time.NewTicker(pollInterval)
	defer tick.Stop()
	end := time.NewTimer(limit)
	defer end.Stop()
	for {
		err := cond()
		if err == nil {
			return
		}
		select {
		case <-end.C:
			t.Fatalf("waited %s for %s: %v", limit, what, err)
		case <-tick.C:
		}
	}
}

// commandTimeout bounds every program that a proof runs to its end.
const commandTimeout = 30 * time.Second

// output runs a program to its end and returns what it printed, stdout and stderr together, and its exit code.
func output(t *testing.T, args ...string) (string, int) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), commandTimeout)
	defer cancel()
	out, err := exec.CommandContext(ctx, args[0], args[1:]...).CombinedOutput()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		t.Fatalf("running %v: %v", args, err)
	}
	if ctx.Err() != nil {
		t.Fatalf("%v did not end within %s; it printed:\n%s", args, commandTimeout, out)
	}
	if exit != nil {
		return string(out), exit.ExitCode()
	}
	return string(out), 0
}

// must runs a program that has to succeed.
func must(t *testing.T, args ...string) string {
	t.Helper()
	out, code := output(t, args...)
	if code != 0 {
		t.Fatalf("%v: exit code %d\n%s", args, code, out)
	}
	return out
}

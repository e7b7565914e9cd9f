//go:build bench

package bench

import (
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/miekg/dns"
)

// startTimeout is how long a server may take to its first answer.
const startTimeout = 20 * time.Second

// peer is a program that can be measured.
type peer struct {
	name    string
	program string // to look for; meshdns is built if MESHDNS_BINARY names none
	only    []string
	// configure writes what it needs below dir and returns its arguments.
	configure func(t *testing.T, c config) []string
}

// config is what a peer has to be told.
type config struct {
	dir      string
	port     int
	upstream int // port of the upstream
}

// server is a peer that runs.
type server struct {
	peer
	port int
	pid  int
}

// can reports whether the peer serves a workload.
func (s *server) can(workload string) bool {
	return len(s.only) == 0 || slices.Contains(s.only, workload)
}

// rig is the place of one run of the bench.
type rig struct {
	dir      string
	upstream int
}

// newRig starts the upstream.
func newRig(t *testing.T) *rig {
	r := &rig{dir: t.TempDir()}
	dir := filepath.Join(r.dir, "upstream")
	write(t, filepath.Join(dir, "root.zone"), fmt.Sprintf(
		"$ORIGIN .\n@ 3600 SOA ns. host. 1 3600 600 86400 3600\n@ 3600 NS ns.\nns. 3600 A 127.0.0.1\n*.%s. 3600 A 192.0.2.80\n", outside))
	r.upstream = freePort(t)
	args := knotConfig(t, config{dir: dir, port: r.upstream}, ".", "root.zone")
	r.launch(t, "upstream", "1", append([]string{"knotd"}, args...))
	await(t, "the upstream", r.upstream, "c0."+outside)
	return r
}

// start starts a peer on core 0, or returns nil where it is not installed.
func (r *rig) start(t *testing.T, p peer) *server {
	program := p.program
	if p.name == "meshdns" {
		program = meshdns(t, r.dir)
	}
	path, err := exec.LookPath(program)
	if err != nil {
		t.Logf("%s is not installed", p.name)
		return nil
	}
	c := config{dir: filepath.Join(r.dir, p.name), port: freePort(t), upstream: r.upstream}
	if err := os.MkdirAll(c.dir, 0o755); err != nil {
		t.Fatal(err)
	}
	srv := &server{peer: p, port: c.port}
	srv.pid = r.launch(t, p.name, "0", append([]string{path}, p.configure(t, c)...))
	for _, name := range []string{nodeName(0), "c0." + outside} {
		if srv.can("cached") || name == nodeName(0) {
			await(t, p.name, c.port, name)
		}
	}
	return srv
}

// launch runs a program on one core until the test ends, and returns its process. taskset becomes the program.
func (r *rig) launch(t *testing.T, name, core string, args []string) int {
	t.Helper()
	log, err := os.Create(filepath.Join(r.dir, name+".log"))
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("taskset", append([]string{"-c", core}, args...)...)
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		t.Fatalf("starting %s: %v", name, err)
	}
	t.Cleanup(func() {
		cmd.Process.Signal(syscall.SIGTERM)
		killed := time.AfterFunc(5*time.Second, func() { cmd.Process.Kill() })
		cmd.Wait()
		killed.Stop()
		if text, err := os.ReadFile(log.Name()); err == nil && t.Failed() {
			t.Logf("%s printed:\n%s", name, text)
		}
		log.Close()
	})
	return cmd.Process.Pid
}

// meshdns is the program to measure, built as a release is unless MESHDNS_BINARY names it.
func meshdns(t *testing.T, dir string) string {
	if path := os.Getenv("MESHDNS_BINARY"); path != "" {
		return path
	}
	path := filepath.Join(dir, "meshdns-release")
	cmd := exec.Command("go", "build", "-trimpath", "-o", path, "../../cmd/meshdns")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("building meshdns: %v\n%s", err, out)
	}
	return path
}

// await waits until the server on port answers for name with an address.
func await(t *testing.T, who string, port int, name string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), startTimeout)
	defer cancel()
	client := &dns.Client{Timeout: 200 * time.Millisecond}
	q := new(dns.Msg).SetQuestion(dns.Fqdn(name), dns.TypeA)
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for {
		reply, _, err := client.ExchangeContext(ctx, q, net.JoinHostPort("127.0.0.1", strconv.Itoa(port)))
		if err == nil && reply.Rcode == dns.RcodeSuccess && len(reply.Answer) > 0 {
			return
		}
		select {
		case <-ctx.Done():
			t.Fatalf("%s does not answer for %s on port %d: %v %v", who, name, port, err, reply)
		case <-tick.C:
		}
	}
}

// freePort is a loopback port from 20000 that is free for UDP and TCP. Whoever asked for one has it in use before the
// next is asked for.
func freePort(t *testing.T) int {
	t.Helper()
	for port := 20000 + os.Getpid()%10000; port < 60000; port += 7 {
		addr := net.JoinHostPort("127.0.0.1", strconv.Itoa(port))
		udp, err := net.ListenPacket("udp", addr)
		if err != nil {
			continue
		}
		tcp, err := net.Listen("tcp", addr)
		udp.Close()
		if err != nil {
			continue
		}
		tcp.Close()
		return port
	}
	t.Fatal("no free port from 20000")
	return 0
}

// write writes a configuration file. The servers read it as root.
func write(t *testing.T, path, text string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}

// everyNode is a text with one piece for each name of the tailnet.
func everyNode(piece func(i int) string) string {
	var b strings.Builder
	for i := range names {
		b.WriteString(piece(i))
	}
	return b.String()
}

// zoneFile is the tailnet's zone for the peers that read zone files.
func zoneFile() string {
	return fmt.Sprintf("$ORIGIN %s.\n@ 60 SOA ns host 1 3600 600 86400 60\n@ 60 NS ns\nns 60 A 127.0.0.1\n", zone) +
		everyNode(func(i int) string { return fmt.Sprintf("n%d 60 A %s\n", i, nodeAddr(i)) })
}

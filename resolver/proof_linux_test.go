package resolver

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/miekg/dns"
	"golang.org/x/sys/unix"
)

// The proof has real resolvers find names of an Authority as anybody on the internet does: from the root, whose key they
// hold, through a signed parent that Knot serves, by a delegation without DS. It runs in a sandbox of the lab
// (osconfig/lab/README.md), where port 53 is free; all servers have addresses on its loopback link.

// insideProof is set in the sandbox.
const insideProof = "MESHDNS_PROOF_INSIDE"

const (
	proofZone    = "foo-bar.example"
	proofParent  = "10.53.0.1"
	proofOurs    = "10.53.0.2"
	proofOurs6   = "fd53::2"
	proofUnbound = "10.53.0.3"
	proofOut6    = "fd53::3" // unbound's, for what it asks
	proofBIND    = "10.53.0.4"
	proofFlooder = "10.53.0.9"
)

func TestProofPublic(t *testing.T) {
	if os.Getenv(insideProof) != "" {
		provePublic(t)
		return
	}
	t.Parallel()
	requireLab(t)
	dir, top := t.TempDir(), filepath.Join("..")
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	build := exec.CommandContext(t.Context(), "go", "test", "-c", "-o", filepath.Join(dir, "proof.test"), ".")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("building the test: %v\n%s", err, out)
	}
	if err := os.CopyFS(filepath.Join(dir, "lab"), os.DirFS(filepath.Join(top, "osconfig", "lab"))); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, filepath.Join(top, "cmd", "meshdns", "testdata", "proof", "sandbox.sh"), "env", "-C", "/tmp", insideProof+"=1",
		"/mnt/proof.test", "-test.v", "-test.run=^TestProofPublic$", "-test.timeout=170s")
	cmd.Env = append(os.Environ(), "LAB_BIND="+dir, "LAB_CACHE="+labCache())
	// The script is a chain of processes; the sandbox dies with the group.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	cmd.WaitDelay = 5 * time.Second
	out, err := cmd.CombinedOutput()
	t.Logf("in the sandbox:\n%s", strings.ReplaceAll(string(out), "--- ", "")) // so that nobody counts these tests a second time
	if err != nil || !strings.Contains(string(out), "--- PASS: TestProofPublic") {
		t.Errorf("the proof failed: %v", err)
	}
}

func labCache() string {
	if dir := os.Getenv("LAB_CACHE"); dir != "" {
		return dir
	}
	return "/var/cache/meshdns-lab" // where `make test` has it
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
	if _, err := os.Stat(filepath.Join(labCache(), "layers", "servers.ok")); err != nil {
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

// shell runs a script that has to succeed.
func shell(t *testing.T, script string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	out, err := exec.CommandContext(ctx, "bash", "-euc", script).CombinedOutput()
	if err != nil {
		t.Fatalf("%s: %v\n%s", script, err, out)
	}
	return string(out)
}

// program runs a server until the test ends, and shows what it printed if the test failed.
func program(t *testing.T, args ...string) {
	t.Helper()
	var log strings.Builder
	cmd := exec.Command(args[0], args[1:]...)
	cmd.Stdout, cmd.Stderr = &log, &log
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		if t.Failed() {
			text := log.String()
			t.Logf("%s printed, at the end:\n%s", args[0], text[max(0, len(text)-6000):])
		}
	})
}

func writeFile(t *testing.T, name, text string) {
	t.Helper()
	if err := os.WriteFile(name, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}

// until waits until cond returns nil.
func until(t *testing.T, limit time.Duration, what string, cond func() error) {
	t.Helper()
	end, tick := time.After(limit), time.NewTicker(20*time.Millisecond)
	defer tick.Stop()
	for {
		err := cond()
		if err == nil {
			return
		}
		select {
		case <-end:
			t.Fatalf("waited %s for %s: %v", limit, what, err)
		case <-tick.C:
		}
	}
}

// startParent serves the root and example, both signed, and returns the DS record of the root's key.
func startParent(t *testing.T) string {
	t.Helper()
	writeFile(t, "/tmp/knot.conf", `
server:
  listen: `+proofParent+`@53
  rundir: /tmp/knot
database:
  storage: /tmp/knot
policy:
  - id: sign
    manual: on
template:
  - id: default
    storage: /tmp
    file: "%s.zone"
    dnssec-signing: on
    dnssec-policy: sign
    zonefile-load: difference
    zonefile-sync: -1
    journal-content: all
zone:
  - domain: .
    file: root.zone
  - domain: example
    file: example.zone
`)
	ds := func(zone string) string {
		out := shell(t, "mkdir -p /tmp/knot; keymgr -c /tmp/knot.conf "+zone+" generate algorithm=ecdsap256sha256 ksk=yes zsk=yes >&2; keymgr -c /tmp/knot.conf "+zone+" ds 2>/dev/null")
		for line := range strings.Lines(out) {
			if f := strings.Fields(line); len(f) == 6 && f[1] == "DS" && f[4] == "2" {
				return strings.Join(f, " ")
			}
		}
		t.Fatalf("no DS in %q", out)
		return ""
	}
	anchor := ds(".")
	writeFile(t, "/tmp/root.zone", "$TTL 3600\n. SOA ns.root. h.root. 1 3600 600 86400 60\n. NS ns.root.\nns.root. A "+proofParent+"\nexample. NS ns.root.\n"+ds("example.")+"\n")
	writeFile(t, "/tmp/example.zone", "$TTL 3600\nexample. SOA ns.root. h.root. 1 3600 600 86400 60\nexample. NS ns.root.\nsigned.example. A 192.0.2.1\n"+
		proofZone+". NS ns."+proofZone+".\nns."+proofZone+". A "+proofOurs+"\nns."+proofZone+". AAAA "+proofOurs6+"\n")
	program(t, "knotd", "-c", "/tmp/knot.conf")
	return anchor
}

func startUnbound(t *testing.T, anchor string) {
	t.Helper()
	writeFile(t, "/tmp/unbound.conf", `
server:
  interface: `+proofUnbound+`
  outgoing-interface: `+proofUnbound+`
  outgoing-interface: `+proofOut6+`
  access-control: 0.0.0.0/0 allow
  do-daemonize: no
  chroot: ""
  username: ""
  pidfile: ""
  directory: /tmp
  use-syslog: no
  logfile: ""
  verbosity: 1
  val-log-level: 2
  root-hints: /tmp/hints
  trust-anchor: "`+anchor+`"
  use-caps-for-id: yes
  qname-minimisation: yes
  qname-minimisation-strict: yes
  aggressive-nsec: yes
  harden-glue: yes
  harden-dnssec-stripped: yes
  harden-below-nxdomain: yes
  harden-referral-path: yes
  harden-algo-downgrade: yes
  harden-short-bufsize: yes
  harden-large-queries: yes
  do-not-query-localhost: no
remote-control:
  control-enable: no
`)
	program(t, "unbound", "-c", "/tmp/unbound.conf")
}

func startBIND(t *testing.T, anchor string) {
	t.Helper()
	f := strings.Fields(anchor) // . DS TAG ALGORITHM 2 DIGEST
	writeFile(t, "/tmp/named.conf", `
options {
  directory "/tmp/named";
  pid-file none;
  session-keyfile none;
  listen-on { `+proofBIND+`; };
  listen-on-v6 { none; };
  allow-query { any; };
  recursion yes;
  dnssec-validation yes;
  qname-minimization strict;
  empty-zones-enable no;
};
controls { };
trust-anchors { . static-ds `+f[2]+` `+f[3]+` `+f[4]+` "`+f[5]+`"; };
zone "." { type hint; file "/tmp/hints"; };
`)
	shell(t, "mkdir -p /tmp/named")
	program(t, "named", "-g", "-c", "/tmp/named.conf")
}

// ask asks a server at port 53 and returns the reply.
func ask(server, name string, qtype uint16, network string) (*dns.Msg, error) {
	m := new(dns.Msg).SetQuestion(dns.Fqdn(name), qtype)
	m.SetEdns0(1232, true)
	c := dns.Client{Net: network, Timeout: 10 * time.Second}
	r, _, err := c.Exchange(m, net.JoinHostPort(server, "53"))
	return r, err
}

// asked are the names of the queries that reached our server on the wire, with who sent them.
type asked struct {
	mu    sync.Mutex
	names map[string][]string
}

// watch notes what is asked until the test ends.
func watch(t *testing.T) *asked {
	t.Helper()
	const all = 0x0300 // ETH_P_ALL, in the order of the network
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, all)
	if err != nil {
		t.Fatal(err)
	}
	if err := unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Usec: 100_000}); err != nil {
		t.Fatal(err)
	}
	a := &asked{names: make(map[string][]string)}
	done, stop := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		defer unix.Close(fd)
		buf := make([]byte, 4096)
		for {
			select {
			case <-stop:
				return
			default:
			}
			n, _, err := unix.Recvfrom(fd, buf, 0)
			if err == nil {
				a.note(buf[:n])
			}
		}
	}()
	t.Cleanup(func() { close(stop); <-done })
	return a
}

// note takes a packet that the loopback link shows, once as it leaves and once as it arrives.
func (a *asked) note(p []byte) {
	from, to, rest := net.IP(nil), net.IP(nil), []byte(nil)
	switch {
	case len(p) > 28 && p[0] == 0x45 && p[9] == unix.IPPROTO_UDP:
		from, to, rest = p[12:16], p[16:20], p[20:]
	case len(p) > 48 && p[0]>>4 == 6 && p[6] == unix.IPPROTO_UDP:
		from, to, rest = p[8:24], p[24:40], p[40:]
	}
	var m dns.Msg
	if to.String() != proofOurs && to.String() != proofOurs6 || m.Unpack(rest[8:]) != nil || len(m.Question) != 1 {
		return
	}
	sender := from.String()
	a.mu.Lock()
	defer a.mu.Unlock()
	if len(a.names[sender]) < 10_000 {
		a.names[sender] = append(a.names[sender], m.Question[0].Name)
	}
}

func (a *asked) by(from string) []string {
	a.mu.Lock()
	defer a.mu.Unlock()
	return slices.Clone(a.names[from])
}

// provePublic is the proof, inside the sandbox.
func provePublic(t *testing.T) {
	shell(t, "for a in "+strings.Join([]string{proofParent, proofOurs, proofUnbound, proofBIND, proofFlooder}, " ")+"; do ip addr add $a/24 dev lo; done; for a in "+proofOurs6+" "+proofOut6+"; do ip -6 addr add $a/128 dev lo nodad; done")
	a, err := NewAuthority(AuthorityConfig{Zone: proofZone, View: PublicView{
		Servers: map[string][]netip.Addr{"ns." + proofZone: {netip.MustParseAddr(proofOurs), netip.MustParseAddr(proofOurs6)}},
		Records: rr(t, "photos.foo-bar.example. 60 A 203.0.113.5", "photos.foo-bar.example. 60 AAAA 2001:db8::5", "www.foo-bar.example. 60 CNAME photos.foo-bar.example.",
			"deep.under.foo-bar.example. 60 A 203.0.113.5", "*.wild.foo-bar.example. 60 A 203.0.113.5", `nas.foo-bar.example. 60 CAA 0 issue "ca.example"`),
	}})
	if err != nil {
		t.Fatal(err)
	}
	for _, addr := range []string{proofOurs, proofOurs6} {
		at := netip.AddrPortFrom(netip.MustParseAddr(addr), 53)
		conns, err := ListenUDP(t.Context(), at, 2)
		if err != nil {
			t.Fatal(err)
		}
		for _, c := range conns {
			run(t, func(ctx context.Context) error { return a.ServeUDP(ctx, c) })
		}
		ln, err := net.Listen("tcp", at.String())
		if err != nil {
			t.Fatal(err)
		}
		run(t, func(ctx context.Context) error { return a.ServeTCP(ctx, ln) })
	}
	seen := watch(t)
	anchor := startParent(t)
	writeFile(t, "/tmp/hints", ". 3600000 NS ns.root.\nns.root. 3600000 A "+proofParent+"\n")
	startUnbound(t, anchor)
	startBIND(t, anchor)
	resolvers := []string{proofUnbound, proofBIND}
	for _, r := range resolvers {
		until(t, 20*time.Second, r+" to validate a name of the parent", func() error {
			m, err := ask(r, "signed.example", dns.TypeA, "udp")
			if err == nil && (!m.AuthenticatedData || len(m.Answer) == 0) {
				err = fmt.Errorf("got %s", m)
			}
			return err
		})
	}
	// A CA that looks before the value is there keeps that for half a minute, and then has to see it.
	const late = "late." + proofZone
	for _, r := range resolvers {
		if m, err := ask(r, late, dns.TypeTXT, "udp"); err != nil || m.Rcode != dns.RcodeNameError {
			t.Errorf("%s: %v %v", r, m, err)
		}
	}
	looked := time.Now()
	if err := a.SetTXT(late, "late"); err != nil {
		t.Fatal(err)
	}
	for _, r := range resolvers {
		t.Run("names by "+r, func(t *testing.T) { proveNames(t, r) })
		t.Run("TXT by "+r, func(t *testing.T) { proveTXT(t, a, r) })
	}
	t.Run("how they asked", func(t *testing.T) { proveManners(t, a, seen) })
	t.Run("nothing else", func(t *testing.T) { proveNothingElse(t, a) })
	t.Run("flood", func(t *testing.T) { proveFlood(t, a, resolvers) })
	for _, r := range resolvers {
		until(t, time.Until(looked.Add((negativeTTL+5)*time.Second)), r+" to see a value that it looked for too early", func() error { return hasTXT(r, late, "late") })
	}
}

// hasTXT checks that a resolver knows exactly the values of a name; none: that it does not exist.
func hasTXT(resolver, name string, values ...string) error {
	m, err := ask(resolver, name, dns.TypeTXT, "udp")
	if err != nil {
		return err
	}
	var got []string
	for _, rr := range m.Answer {
		got = append(got, strings.Join(rr.(*dns.TXT).Txt, ""))
	}
	slices.Sort(got)
	if !slices.Equal(got, values) || (m.Rcode == dns.RcodeNameError) != (len(values) == 0) {
		return fmt.Errorf("%s: got %s %v, want %v", name, dns.RcodeToString[m.Rcode], got, values)
	}
	return nil
}

// proveNames asks a resolver for all that there is, and for what there is not.
func proveNames(t *testing.T, resolver string) {
	for _, row := range []struct {
		name    string
		qtype   uint16
		rcode   int
		answers int
		last    string // of the answer's data
		secure  bool
	}{
		{"photos.foo-bar.example", dns.TypeA, dns.RcodeSuccess, 1, "203.0.113.5", false},
		{"photos.foo-bar.example", dns.TypeAAAA, dns.RcodeSuccess, 1, "2001:db8::5", false},
		{"PHOTOS.foo-BAR.example", dns.TypeHTTPS, dns.RcodeSuccess, 0, "", false},
		{"www.foo-bar.example", dns.TypeA, dns.RcodeSuccess, 2, "203.0.113.5", false},
		{"deep.under.foo-bar.example", dns.TypeA, dns.RcodeSuccess, 1, "203.0.113.5", false},
		{"under.foo-bar.example", dns.TypeA, dns.RcodeSuccess, 0, "", false},
		{"a.b.c.wild.foo-bar.example", dns.TypeA, dns.RcodeSuccess, 1, "203.0.113.5", false},
		{"nas.foo-bar.example", dns.TypeCAA, dns.RcodeSuccess, 1, `0 issue "ca.example"`, false},
		{"nas.foo-bar.example", dns.TypeA, dns.RcodeSuccess, 0, "", false},
		{"printer.foo-bar.example", dns.TypeA, dns.RcodeNameError, 0, "", false},
		{"very.deep.down.nothing.foo-bar.example", dns.TypeA, dns.RcodeNameError, 0, "", false},
		{"foo-bar.example", dns.TypeNS, dns.RcodeSuccess, 1, "ns.foo-bar.example.", false},
		{"foo-bar.example", dns.TypeSOA, dns.RcodeSuccess, 1, "", false},
		{"foo-bar.example", dns.TypeCAA, dns.RcodeSuccess, 2, "", false},
		{"foo-bar.example", dns.TypeDNSKEY, dns.RcodeSuccess, 0, "", false},
		{"foo-bar.example", dns.TypeDS, dns.RcodeSuccess, 0, "", true}, // the parent's, signed
		{"ns.foo-bar.example", dns.TypeAAAA, dns.RcodeSuccess, 1, proofOurs6, false},
	} {
		m, err := ask(resolver, row.name, row.qtype, "udp")
		if err != nil {
			t.Errorf("%s: %v", row.name, err)
			continue
		}
		// BIND 9.18 sets AD when a minimised name of any unsigned zone does not exist, Knot's too.
		secure := m.AuthenticatedData && m.Rcode == dns.RcodeSuccess
		if m.Rcode != row.rcode || len(m.Answer) != row.answers || secure != row.secure || row.last != "" && !strings.HasSuffix(m.Answer[len(m.Answer)-1].String(), row.last) {
			t.Errorf("%s %s: got %s", row.name, dns.Type(row.qtype), m)
		}
	}
}

// proveTXT publishes values and takes them back, as for a certificate.
func proveTXT(t *testing.T, a *Authority, resolver string) {
	for i := range 2 {
		name := fmt.Sprintf("_acme-challenge.n%d-%s.%s", i, strings.ReplaceAll(resolver, ".", "-"), proofZone)
		set := func(f func(string, string) error, value string) {
			if err := f(name, value); err != nil {
				t.Fatal(err)
			}
		}
		set(a.SetTXT, "one")
		if err := hasTXT(resolver, name, "one"); err != nil {
			t.Errorf("just set: %v", err)
		}
		set(a.SetTXT, "two")
		until(t, 10*time.Second, "the second value", func() error { return hasTXT(resolver, name, "one", "two") })
		set(a.ClearTXT, "one")
		set(a.ClearTXT, "two")
		until(t, 10*time.Second, "the values to be gone", func() error { return hasTXT(resolver, name) })
	}
}

// proveManners checks that the resolvers did ask in the ways that this is about.
func proveManners(t *testing.T, a *Authority, seen *asked) {
	mixed, minimised := 0, false
	names := append(seen.by(proofUnbound), seen.by(proofOut6)...)
	for _, name := range names {
		if strings.ToLower(name) != name {
			mixed++
		}
		minimised = minimised || strings.EqualFold(name, "nothing."+proofZone+".")
	}
	if mixed == 0 || !minimised {
		t.Errorf("unbound asked in mixed case %d times, with minimised names: %t; it asked for %q", mixed, minimised, names)
	}
	if s := a.Stats(); s.Verified == 0 {
		t.Errorf("no query had a valid cookie, though BIND sends them: %+v", s)
	}
}

// proveNothingElse asks our server itself, with the programs that people have.
func proveNothingElse(t *testing.T, a *Authority) {
	serial := a.Stats().Serial
	for _, row := range []struct {
		args string
		want []string
		not  []string
	}{
		{"+nsid photos." + proofZone, []string{"status: NOERROR", " aa"}, []string{"NSID", " ra"}},
		{"CH TXT version.bind", []string{"status: REFUSED", "ANSWER: 0"}, nil},
		{"CH TXT id.server", []string{"status: REFUSED", "ANSWER: 0"}, nil},
		{"CH TXT hostname.bind", []string{"status: REFUSED", "ANSWER: 0"}, nil},
		{"AXFR " + proofZone, []string{"Transfer failed"}, []string{"SOA"}},
		{"+notcp IXFR=1 " + proofZone, []string{"MSG SIZE"}, []string{"SOA"}},
		{"+opcode=NOTIFY SOA " + proofZone, []string{"status: REFUSED"}, nil},
		{"+opcode=STATUS " + proofZone, []string{"status: NOTIMP"}, nil},
		{"ANY photos." + proofZone, []string{"status: NOERROR", "ANSWER: 1", "RFC8482"}, nil},
		{"+edns=1 +noednsneg photos." + proofZone, []string{"status: BADVERS"}, nil},
		{"+edns=1 +ednsneg photos." + proofZone, []string{"status: NOERROR", "203.0.113.5"}, nil},
		{"+ednsopt=100:0102 +ednsflags=0x40 photos." + proofZone, []string{"status: NOERROR", "203.0.113.5"}, []string{"OPT=100", "MBZ"}},
		{"+noedns photos." + proofZone, []string{"status: NOERROR", "203.0.113.5"}, []string{"OPT PSEUDO"}},
		{"+cookie=0123456789abcdef photos." + proofZone, []string{"(good)", "203.0.113.5"}, nil},
		{"+tcp +keepopen photos." + proofZone + " www." + proofZone, []string{"CNAME", "203.0.113.5"}, nil},
		{"www.example.com", []string{"status: REFUSED", "recursion requested but not available"}, nil},
		{"NS .", []string{"status: REFUSED"}, nil},
		{"NS " + proofZone, []string{proofOurs, proofOurs6, "ADDITIONAL: 3"}, nil},
	} {
		out, err := exec.CommandContext(t.Context(), "bash", "-c", "dig +tries=1 +time=5 @"+proofOurs+" "+row.args).CombinedOutput()
		var exit *exec.ExitError
		if err != nil && !errors.As(err, &exit) {
			t.Fatal(err)
		}
		for _, want := range row.want {
			if !strings.Contains(string(out), want) {
				t.Errorf("dig %s: no %q in\n%s", row.args, want, out)
			}
		}
		for _, not := range row.not {
			if strings.Contains(string(out), not) {
				t.Errorf("dig %s: %q in\n%s", row.args, not, out)
			}
		}
	}
	out, err := exec.CommandContext(t.Context(), "bash", "-c", `printf 'server `+proofOurs+`\nzone `+proofZone+`\nupdate add evil.`+proofZone+` 60 A 192.0.2.66\nsend\n' | nsupdate`).CombinedOutput()
	if err == nil || !strings.Contains(string(out), "REFUSED") {
		t.Errorf("nsupdate: %v, %s", err, out)
	}
	if got := a.Stats().Serial; got != serial {
		t.Errorf("the zone was changed: serial %d after %d", got, serial)
	}
}

// proveFlood has a neighbour ask more than a network may, by addresses that are as good as forged, while the resolvers in
// the same network ask for fresh names: unbound has no cookie and comes back over TCP.
func proveFlood(t *testing.T, a *Authority, resolvers []string) {
	before := a.Stats()
	ctx, stop := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	d := net.Dialer{LocalAddr: &net.UDPAddr{IP: net.ParseIP(proofFlooder)}}
	conn, err := d.DialContext(ctx, "udp", net.JoinHostPort(proofOurs, "53"))
	if err != nil {
		t.Fatal(err)
	}
	msg := pack(t, new(dns.Msg).SetQuestion("photos."+proofZone+".", dns.TypeTXT))
	wg.Go(func() {
		tick := time.NewTicker(time.Millisecond)
		defer tick.Stop()
		for ctx.Err() == nil {
			for range 10 {
				_, _ = conn.Write(msg) // 10,000 a second
			}
			<-tick.C
		}
	})
	until(t, 10*time.Second, "truncated answers", func() error {
		if a.Stats().Truncated < before.Truncated+100 {
			return errors.New("too few")
		}
		return nil
	})
	for i := range 10 {
		for _, r := range resolvers {
			m, err := ask(r, fmt.Sprintf("fresh%d.wild.%s", i, proofZone), dns.TypeA, "udp")
			if err != nil || len(m.Answer) != 1 {
				t.Errorf("%s during a flood: %v %v", r, m, err)
			}
		}
	}
	stop()
	wg.Wait()
	_ = conn.Close()
	after := a.Stats()
	if after.TCP.Accepted == before.TCP.Accepted {
		t.Error("nobody came over TCP")
	}
	t.Logf("%d answered (%d with a cookie), %d truncated, %d connections", after.Answered-before.Answered, after.Verified-before.Verified,
		after.Truncated-before.Truncated, after.TCP.Accepted-before.TCP.Accepted)
}

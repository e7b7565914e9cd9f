package main_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/miekg/dns"

	"github.com/meshdns/meshdns/node"
)

const (
	program    = "/mnt/meshdns"
	resolvConf = "/etc/resolv.conf"

	stub         = "127.0.0.77:53"
	nasName      = "nas.foo-bar.ts.net"
	nasAddr      = "100.64.0.2"
	outsideName  = "www.outside.example.org"
	outsideAddr  = "192.0.2.80"
	upstreamAddr = "192.0.2.53"

	readyTimeout = 10 * time.Second
	// Putting everything back is to take 2 s at most, and takes some 30 ms. On a machine that proves other things at the
	// same time it may take longer, which is told; only what looks like hanging fails.
	endAim     = 2 * time.Second
	endTimeout = 8 * time.Second
)

const proofConfig = `node: laptop
tunnel: off
`

const proofMap = `zone: foo-bar.ts.net
nodes:
  laptop: {addresses: [100.64.0.1]}
  nas: {addresses: [100.64.0.2, "fd7a:115c:a1e0::2"], names: [photos], wildcard: true}
`

// newMachine gives the sandbox a network with an upstream behind it, web servers at both addresses that are looked up,
// and meshdns's configuration.
func newMachine(t *testing.T) {
	t.Helper()
	for line := range strings.Lines(`ip netns add outside
ip link add e0 type veth peer name e1 netns outside
ip addr add 192.0.2.1/24 dev e0
ip link set e0 up
ip -n outside addr add 192.0.2.53/24 dev e1
ip -n outside link set e1 up
ip -n outside link set lo up
ip addr add 100.64.0.2/32 dev lo
ip addr add 192.0.2.80/32 dev lo
`) {
		must(t, strings.Fields(line)...)
	}
	writeFile(t, "/tmp/upstream.conf", `server:
  interface: 192.0.2.53
  access-control: 192.0.2.0/24 allow
  directory: "/tmp"
  do-daemonize: no
  chroot: ""
  username: ""
  pidfile: ""
  use-syslog: no
  module-config: "iterator"
  local-zone: "." static
  local-data: ". 60 SOA ns. host. 1 3600 600 86400 60"
  local-data: "www.outside.example.org. 60 A 192.0.2.80"
  local-data: "example.com. 60 A 192.0.2.81"
remote-control:
  control-enable: no
`)
	background(t, "ip", "netns", "exec", "outside", "unbound", "-d", "-c", "/tmp/upstream.conf")
	eventually(t, readyTimeout, "the upstream", func() error { return asks(upstreamAddr+":53", outsideName, outsideAddr) })

	web := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { fmt.Fprintf(w, "hello from %s\n", r.Host) })}
	go web.ListenAndServe()
	t.Cleanup(func() { web.Close() })

	writeFile(t, "/etc/meshdns/meshdns.yaml", proofConfig)
	writeFile(t, "/etc/meshdns/map.yaml", proofMap)
}

// writeFile writes a file in one step, as a careful editor does.
func writeFile(t *testing.T, path, text string) {
	t.Helper()
	err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path+".new", []byte(text), 0o644), os.Rename(path+".new", path))
	if err != nil {
		t.Fatal(err)
	}
}

// background runs a program until the test ends.
func background(t *testing.T, args ...string) *daemon {
	t.Helper()
	d := &daemon{ended: make(chan struct{})}
	d.cmd = exec.Command(args[0], args[1:]...)
	d.cmd.Stdout, d.cmd.Stderr = &d.log, &d.log
	d.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := d.cmd.Start(); err != nil {
		t.Fatalf("starting %v: %v", args, err)
	}
	go func() {
		d.err = d.cmd.Wait()
		close(d.ended)
	}()
	t.Cleanup(func() {
		syscall.Kill(-d.cmd.Process.Pid, syscall.SIGKILL)
		<-d.ended
		if t.Failed() {
			t.Logf("%v printed:\n%s", args, d.log.String())
		}
	})
	return d
}

// daemon is a program that runs.
type daemon struct {
	cmd   *exec.Cmd
	log   lockedBuffer
	ended chan struct{}
	err   error // once ended
}

// lockedBuffer may be read while a program writes.
type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lockedBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lockedBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// launch starts `meshdns up` and does not wait for anything.
func launch(t *testing.T, args ...string) *daemon {
	t.Helper()
	return background(t, append([]string{program, "up"}, args...)...)
}

// up starts `meshdns up` and waits until it has taken over the machine's DNS, or given that up.
func up(t *testing.T, args ...string) (*daemon, node.Status) {
	t.Helper()
	d := launch(t, args...)
	return d, ready(t, d, "/run/meshdns/meshdns.sock")
}

// ready waits until the node behind socket says that it is up.
func ready(t *testing.T, d *daemon, socket string) node.Status {
	t.Helper()
	var status node.Status
	eventually(t, readyTimeout, "the node", func() error {
		select {
		case <-d.ended:
			t.Fatalf("meshdns up ended: %v\n%s", d.err, d.log.String())
		default:
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		var err error
		status, err = node.Client{Socket: socket}.Status(ctx)
		return err
	})
	return status
}

// end sends a signal and checks that the program ends well, and in time.
func (d *daemon) end(t *testing.T, s os.Signal) {
	t.Helper()
	start := time.Now()
	if err := d.cmd.Process.Signal(s); err != nil {
		t.Fatal(err)
	}
	select {
	case <-d.ended:
	case <-time.After(readyTimeout):
		t.Fatalf("meshdns up did not end on %s\n%s", s, d.log.String())
	}
	if d.err != nil {
		t.Errorf("meshdns up on %s: %v\n%s", s, d.err, d.log.String())
	}
	if took := time.Since(start); took > endTimeout {
		t.Errorf("meshdns up took %s to end on %s, at most %s", took, s, endTimeout)
	} else if took > endAim {
		t.Logf("on this busy machine meshdns up took %s to end on %s", took, s)
	}
}

// kill ends the program without giving it a chance.
func (d *daemon) kill() {
	d.cmd.Process.Kill()
	<-d.ended
}

// asks asks server for name over UDP and returns nil if the answer is addr.
func asks(server, name, addr string) error {
	reply, _, err := (&dns.Client{Timeout: 2 * time.Second}).Exchange(new(dns.Msg).SetQuestion(dns.Fqdn(name), dns.TypeA), server)
	if err != nil {
		return err
	}
	for _, rr := range reply.Answer {
		if a, ok := rr.(*dns.A); ok && a.A.String() == addr {
			return nil
		}
	}
	return fmt.Errorf("%s says of %s: %s, %v", server, name, dns.RcodeToString[reply.Rcode], reply.Answer)
}

// libc resolves name as glibc does, through resolv.conf as it is.
func libc(t *testing.T, name, addr string) error {
	t.Helper()
	out, code := output(t, "getent", "ahostsv4", name)
	if code != 0 || !strings.HasPrefix(out, addr+" ") {
		return fmt.Errorf("getent ahostsv4 %s: exit code %d, %q; want %s", name, code, out, addr)
	}
	return nil
}

// snapshot is all of resolv.conf that has to come back, in words: kind, mode, owner, link text, bytes, attributes and
// mounts, those of the file that a link leads to as well, and what else lies in /etc.
func snapshot(t *testing.T) string {
	t.Helper()
	var b strings.Builder
	describe(&b, resolvConf)
	if target, err := filepath.EvalSymlinks(resolvConf); err == nil && target != resolvConf {
		describe(&b, target)
	}
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(mounts)) {
		if fields := strings.Fields(line); fields[4] == resolvConf || fields[4] == "/etc" {
			b.WriteString("mount " + strings.Join(fields[2:6], " ") + "\n")
		}
	}
	entries, err := os.ReadDir("/etc")
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		b.WriteString(e.Name() + " ")
	}
	return b.String()
}

// describe writes what one file is.
func describe(b *strings.Builder, path string) {
	info, err := os.Lstat(path)
	if err != nil {
		fmt.Fprintf(b, "%s: %v\n", path, errors.Unwrap(err))
		return
	}
	owner := info.Sys().(*syscall.Stat_t)
	fmt.Fprintf(b, "%s: %s %d:%d", path, info.Mode(), owner.Uid, owner.Gid)
	switch {
	case info.Mode()&fs.ModeSymlink != 0:
		text, err := os.Readlink(path)
		fmt.Fprintf(b, " -> %q %v", text, err)
	case info.Mode().IsRegular():
		text, err := os.ReadFile(path)
		flags, _ := exec.Command("lsattr", path).Output() // not every file system has attributes
		fmt.Fprintf(b, " %q %v %q", text, err, flags)
	}
	b.WriteByte('\n')
}
